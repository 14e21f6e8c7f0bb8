# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report on shares: what the info modules returned, with what deserves a look, as data and as Markdown. The role ``report`` makes a page of it.

Documented in report_data.yml, report_markdown.yml and report_digest.yml.
"""
from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone

from ansible.errors import AnsibleFilterError

from ansible_collections.remotefs.storage.plugins.filter.chain_picture import human_size, printable

_DURATION = re.compile(r"([0-9]+)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_POLICY = {"percent_free": 10, "over_subscription": 10, "chain": 32, "snapshot_age": "2d", "replica_lag": "2d", "leftovers": 1 << 30, "lock_age": "1d"}
_SHARE = ("src", "path", "fstype", "mounted", "total", "free", "virtual", "allocated", "held_by_snapshots", "over_subscription")
_SHARE += ("maintenance", "leftovers", "leftovers_allocated", "unknown", "unknown_allocated", "locks", "abilities", "error_code", "msg", "contents_error")
_VOLUME = ("name", "share", "size", "allocated", "format", "chain", "parent", "created", "description", "labels", "pending", "in_use")
_VOLUME += ("lease", "replica", "error_code", "msg", "dependents")
_SNAPSHOT = ("name", "file", "created", "expires", "protected", "description")
_LEASE = ("name", "share", "id", "owner", "acquired", "expires", "expired", "volumes", "uses", "collector", "error_code", "msg")
_WORKER = "remotefs_worker"  # the label of the first disk of a worker. A lease under which there are some is an environment
BAD = "bad"
WARN = "warn"


def report_data(shares: object, volumes: object = (), leases: object = (), policy: object = None, now: object = None) -> dict:
    """The data of a report.

    :param shares: as remotefs_share_info returns them; the other lists as their modules do, or the results of a loop over shares.
    :param policy: numbers over which something deserves a look. :param now: when the report is made; None: now.
    :raises AnsibleFilterError: one of them is something else.
    """
    limits = _limits(policy)
    time = _time(now) if now is not None else datetime.now(timezone.utc)
    if time is None:
        raise AnsibleFilterError(f"remotefs.storage.report_data: now is no time: {now!r}. Give one such as 2026-01-31T12:00:00Z.")
    shown_shares = [_part(one, _SHARE, "shares") for one in _list(shares, "shares")]
    found_volumes, failed = _opened(_list(volumes, "volumes"), "volumes")
    found_leases, failed_too = _opened(_list(leases, "leases"), "leases")
    shown_volumes = [_volume(one) for one in _named(found_volumes, shown_shares)]
    shown_leases = [_part(one, _LEASE, "leases") for one in found_leases]
    _tell_environments(shown_leases, shown_volumes)
    lags = _lags(shown_volumes)
    for one in shown_volumes:
        one["lag"] = lags.get((one["share"], one["name"]))
    warnings = [
        *failed,
        *failed_too,
        *(found for one in shown_shares for found in _of_share(one, limits, time)),
        *(found for one in shown_volumes for found in _of_volume(one, limits, time)),
        *_of_leases(shown_leases, shown_volumes, time),
    ]
    warnings.sort(key=lambda one: (one["level"] != BAD, one["share"] or "", one["volume"] or ""))
    return {
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "shares": shown_shares,
        "volumes": shown_volumes,
        "leases": shown_leases,
        "warnings": warnings,
        "policy": {**_POLICY, **(policy if isinstance(policy, Mapping) else {})},
    }


def _list(given: object, name: str) -> Sequence:
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence) or not all(isinstance(one, Mapping) for one in given):
        raise AnsibleFilterError(f"remotefs.storage.report_data: {name} must be a list as the info modules return it.")
    return given


def _opened(given: Sequence[Mapping], key: str) -> tuple[list, list[dict]]:
    """What is in the results of a loop, and warnings about those that failed. A list of the objects themselves stays as it is."""
    found, failed = [], []
    for one in given:
        if "ansible_loop_var" not in one:
            found.append(one)
        elif key in one:
            found += _list(one[key], key)
        else:
            failed.append(_warning(BAD, one.get(one["ansible_loop_var"]), None, f"Its {key} cannot be read: {one.get('msg')}"))
    return found, failed


def _named(volumes: Sequence[Mapping], shares: Sequence[Mapping]) -> list[Mapping]:
    """Without files, links and folders that nobody on their share names. remotefs_volume_info tells them, because they may be volumes that nobody has
    adopted yet. What nobody names is what remotefs_share_info tells as unknown, and nothing else."""
    strange = {(where, name.rstrip("/")) for one in shares for where in (one["src"], one.get("path")) for name in one.get("unknown") or ()}
    return [one for one in volumes if not {(one.get(key), one.get("name")) for key in ("share", "mountpoint")} & strange]


def _part(one: Mapping, keys: Sequence[str], name: str) -> dict:
    if keys[0] not in one:
        raise AnsibleFilterError(f"remotefs.storage.report_data: an item of {name} has no {keys[0]}. Give what the info modules return.")
    return {key: one[key] for key in keys if key in one}


def _volume(one: Mapping) -> dict:
    found = _part(one, _VOLUME, "volumes")
    found["chain"] = [{key: image.get(key) for key in ("file", "format", "allocated")} for image in one.get("chain") or ()]
    found["snapshots"] = [{key: snapshot.get(key) for key in _SNAPSHOT} for snapshot in one.get("snapshots") or ()]
    return {"share": None, **found}


def _limits(policy: object) -> dict:
    if policy is not None and (not isinstance(policy, Mapping) or set(policy) - set(_POLICY)):
        raise AnsibleFilterError(f"remotefs.storage.report_data: policy must be a dictionary with some of {', '.join(_POLICY)}.")
    limits = {**_POLICY, **(policy or {})}
    for name in ("snapshot_age", "replica_lag", "lock_age"):
        match = _DURATION.fullmatch(str(limits[name]))
        if not match:
            raise AnsibleFilterError(f"remotefs.storage.report_data: {name} of policy is no duration: {limits[name]!r}. Give one such as 2d.")
        limits[name] = int(match[1]) * _SECONDS[match[2]]
    try:
        return {name: float(value) for name, value in limits.items()}
    except (TypeError, ValueError) as error:
        raise AnsibleFilterError(f"remotefs.storage.report_data: policy has something that is no number: {error}.") from None


def _time(told: object) -> datetime | None:
    """A time as modules return it; None for what is none."""
    try:
        return datetime.strptime(str(told), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


# -- what deserves a look --------------------------------------------------------------------------------------------


def _warning(level: str, share: object, volume: object, text: str) -> dict:
    return {"level": level, "share": share, "volume": volume, "text": text}


def _of_share(one: dict, limits: dict, now: datetime) -> list[dict]:
    name, found = one["src"], []
    if "error_code" in one:
        return [_warning(BAD, name, None, f"The share cannot be read: {one.get('msg') or one['error_code']}")]
    if "contents_error" in one:
        found.append(_warning(WARN, name, None, f"What it holds cannot be read: {one['contents_error']}"))
    total, free = one.get("total") or 0, one.get("free") or 0
    if total and free * 100 < total * limits["percent_free"]:
        found.append(_warning(BAD, name, None, f"{human_size(free)} of {human_size(total)} are free"))
    if (one.get("over_subscription") or 0) > limits["over_subscription"]:
        found.append(_warning(WARN, name, None, f"Its volumes have {one['over_subscription']:g} times its size together"))
    if (one.get("leftovers_allocated") or 0) > limits["leftovers"]:
        found.append(_warning(WARN, name, None, f"Killed tasks left {human_size(one['leftovers_allocated'])} in {len(one['leftovers'])} files"))
    found += [_warning(WARN, name, lock["name"], text) for lock in one.get("locks") or () for text in _of_lock(lock, limits["lock_age"], now)]
    if one.get("maintenance"):
        found.append(_warning(WARN, name, None, "It is in maintenance: no new volumes are placed there"))
    return found


def _of_lock(lock: Mapping, longest: float, now: datetime) -> list[str]:
    """What deserves a look of a lock that is a file. A task that only works for long has such a file, too."""
    since = _time(lock.get("since"))
    age = (now - since).total_seconds() if since is not None else None
    holder = f"{lock.get('task') or 'a task'} on {lock['host']}" if lock.get("host") else "somebody whom the file does not name"
    if lock.get("dead"):
        return [f"A lock of {holder} is left, which is gone. The next task there that needs the lock removes it"]
    if age is not None and age <= longest:
        return []
    return [f"A lock is held by {holder} since {_age(age) if age is not None else 'nobody knows when'}. If that host is dead, use break_lock"]


def _of_volume(one: dict, limits: dict, now: datetime) -> list[dict]:
    where, found = (one["share"], one["name"]), []
    if "error_code" in one:
        return [_warning(BAD, *where, f"It cannot be read: {one.get('msg') or one['error_code']}")]
    if one.get("pending"):
        found.append(_warning(BAD, *where, f"Work on it was interrupted, or runs: {one['pending'].get('operation')}"))
    if len(one["chain"]) > limits["chain"]:
        found.append(_warning(WARN, *where, f"Its chain has {len(one['chain'])} files"))
    if one["lag"] is not None and one["lag"] > limits["replica_lag"]:
        found.append(_warning(WARN, *where, f"The replica is {_age(one['lag'])} behind its source"))
    times = _taken(one)
    if times and not one.get("replica") and not one.get("lease") and (now - max(times)).total_seconds() > limits["snapshot_age"]:
        found.append(_warning(WARN, *where, f"Its newest snapshot is {_age((now - max(times)).total_seconds())} old"))
    over = [snapshot["name"] for snapshot in one["snapshots"] if not snapshot["protected"] and (_time(snapshot["expires"]) or now) < now]
    if over:
        found.append(_warning(WARN, *where, f"Snapshots that have expired are still there: {len(over)}, such as {over[0]}"))
    return found


def _tell_environments(leases: Sequence[dict], volumes: Sequence[dict]) -> None:
    """Adds to each lease what was made under it: ``made`` (names), ``workers`` (how many of these are first disks of machines) and ``golden`` (what
    the workers were made from, each once). A volume counts if the lease lists it and it was made under just this lease."""
    under: dict = {}
    for one in volumes:
        if one.get("lease"):
            under.setdefault((one["share"], one["lease"]), []).append(one)
    for lease in leases:
        listed = set(lease.get("volumes") or ())
        made = [one for one in under.get((lease.get("share"), lease.get("id")), ()) if one["name"] in listed]
        workers = [one for one in made if _WORKER in (one.get("labels") or {})]
        uses = lease.get("uses") or ()
        own = {"volume": uses[0], "snapshot": None} if len(uses) == 1 else None  # a full copy does not show what it was made from
        golden: list = []
        for one in workers:
            source = {key: one["parent"].get(key) for key in ("volume", "snapshot")} if one.get("parent") else own
            if source and source not in golden:
                golden.append(source)
        lease.update(made=[one["name"] for one in made], workers=len(workers), golden=golden)


def _taken(one: dict) -> list[datetime]:
    """When the snapshots of a volume were taken, as far as that is known."""
    return [taken for taken in (_time(snapshot["created"]) for snapshot in one["snapshots"]) if taken is not None]


def _lags(volumes: Sequence[dict]) -> dict:
    """Of replicas, how many seconds the newest point is older than that of a volume of the same name on another share."""
    newest: dict = {}
    for one in volumes:
        times = _taken(one)
        if times:
            newest[one["share"], one["name"]] = max(times)
    sources: dict = {}
    for one in volumes:
        if not one.get("replica") and (one["share"], one["name"]) in newest:
            sources[one["name"]] = max(newest[one["share"], one["name"]], sources.get(one["name"], datetime.min.replace(tzinfo=timezone.utc)))
    found = {}
    for one in volumes:
        key = (one["share"], one["name"])
        if one.get("replica") and key in newest and one["name"] in sources:
            found[key] = max(timedelta(), sources[one["name"]] - newest[key]).total_seconds()
    return found


def _of_leases(leases: Sequence[dict], volumes: Sequence[dict], now: datetime) -> list[dict]:
    found = []
    listed = {(one.get("share"), name) for one in leases for name in one.get("volumes") or ()}
    for one in leases:
        ends = _time(one.get("expires"))
        if "error_code" in one:
            found.append(_warning(BAD, one.get("share"), None, f"Lease {one['name']} cannot be read: {one.get('msg') or one['error_code']}"))
        elif ends is not None and ends < now:
            ago = _age((now - ends).total_seconds())
            collected = f"{one['collector']} has not finished collecting it" if one.get("collector") else "nobody has collected it"
            found.append(_warning(WARN, one.get("share"), None, f"Lease {one['name']} of {one.get('owner')} ended {ago} ago, and {collected}"))
    for one in volumes:
        if one.get("lease") and (one["share"], one["name"]) not in listed:
            found.append(_warning(WARN, one["share"], one["name"], "It was made under a lease that is gone, or that lists it no more"))
    return found


# -- words -----------------------------------------------------------------------------------------------------------


def _age(seconds: float) -> str:
    for length, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {name}"
    return f"{int(seconds)} seconds"


# -- Markdown --------------------------------------------------------------------------------------------------------


def report_markdown(data: object) -> str:
    """The report as Markdown, with the clone trees as Mermaid. :raises AnsibleFilterError: it is no data of a report."""
    if not isinstance(data, Mapping) or not {"written", "shares", "volumes", "leases", "warnings"} <= set(data):
        raise AnsibleFilterError("remotefs.storage.report_markdown: the input must be what remotefs.storage.report_data returns.")
    lines = ["# Shares and volumes", "", f"Written {data['written']}.", "", "## What deserves a look", ""]
    lines += [_warning_line(one) for one in data["warnings"]] or ["Nothing."]
    lines += ["", "## Shares", "", *_heading("share", "free", "size", "volumes promise", "snapshots hold", "leftovers", "named by nobody")]
    lines += [_share_line(one) for one in data["shares"]]
    lines += ["", "## Volumes", "", *_heading("volume", "share", "size", "on disk", "files", "snapshots", "newest snapshot")]
    lines += [_volume_line(one) for one in data["volumes"]]
    tree = _mermaid(data["volumes"])
    if tree:
        lines += ["", "## Linked clones", "", "```mermaid", *tree, "```"]
    replicas = [one for one in data["volumes"] if one.get("replica")]
    if replicas:
        lines += ["", "## Replicas", "", *_heading("volume", "share", "behind its source")]
        lines += [_row(one["name"], one["share"], "not known" if one["lag"] is None else _age(one["lag"])) for one in replicas]
    if data["leases"]:
        lines += ["", "## Leases and environments", "", *_heading("lease", "share", "owner", "ends", "volumes", "workers", "golden")]
        lines += [_lease_line(one) for one in data["leases"]]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Text of a cell, without what means something to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|&~$-])", r"\\\1", printable(value))


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _heading(*words: str) -> list[str]:
    return ["| " + " | ".join(words) + " |", "|" + " --- |" * len(words)]


def _lease_line(one: Mapping) -> str:
    if "error_code" in one:
        return _row(one["name"], one.get("share"), one["error_code"], "", "", "", "")
    ends = one.get("expires") or "never"
    golden = ", ".join(f"{source['volume']}, {source['snapshot']}" if source["snapshot"] else str(source["volume"]) for source in one["golden"])
    return _row(one["name"], one.get("share"), one.get("owner"), ends, len(one["made"]), one["workers"] or "", golden)


def _warning_line(one: Mapping) -> str:
    where = ", ".join(_cell(part) for part in (one["share"], one["volume"]) if part)
    return f"- {'**' if one['level'] == BAD else ''}{where}{'**' if one['level'] == BAD else ''}: {_cell(one['text'])}"


def _share_line(one: Mapping) -> str:
    if "error_code" in one:
        return _row(one["src"], one["error_code"], "", "", "", "", "")
    sizes = [human_size(one.get(key)) for key in ("free", "total", "virtual", "held_by_snapshots", "leftovers_allocated")]
    return _row(one["src"], *sizes, len(one.get("unknown") or ()))


def _volume_line(one: Mapping) -> str:
    if "error_code" in one:
        return _row(one["name"], one["share"], one["error_code"], "", "", "", "")
    newest = max((snapshot["created"] or "" for snapshot in one["snapshots"]), default="")
    return _row(one["name"], one["share"], human_size(one.get("size")), human_size(one.get("allocated")), len(one["chain"]), len(one["snapshots"]), newest)


def _mermaid(volumes: Sequence[Mapping]) -> list[str]:
    """Who rests on whom, as a flowchart. Names are numbered, because a name can be anything that Mermaid knows."""
    edges = [(one["share"], one["parent"], one["name"]) for one in volumes if one.get("parent")]
    numbers: dict = {}
    lines = []
    for share, parent, clone in edges:
        for name in (parent["volume"], clone):
            if (share, name) not in numbers:
                numbers[share, name] = len(numbers)
                lines.append(f'  v{numbers[share, name]}["{_quoted(name)}"]')
        point = _quoted(parent.get("snapshot") or "its present")
        lines.append(f'  v{numbers[share, parent["volume"]]} -->|"{point}"| v{numbers[share, clone]}')
    return ["graph TD", *lines] if lines else []


def _quoted(text: object) -> str:
    return re.sub(r"[^A-Za-z0-9._ -]", "?", str(text))


def report_digest(text: object) -> str:
    """The SHA-256 of a script in base64, by which a page's policy permits it."""
    return base64.b64encode(hashlib.sha256(str(text).encode("utf-8")).digest()).decode("ascii")


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict:
        """The filters by name."""
        return {"report_data": report_data, "report_markdown": report_markdown, "report_digest": report_digest}
