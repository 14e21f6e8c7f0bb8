# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The use cases of shares: bring one or many into a state, and tell about them. Observe, plan, apply.

Nothing here raises for one share of many: a failure becomes part of that share's result.
"""
from __future__ import annotations

from .. import errors
from ..mounts import applier, observer, parameters, planner, probe, record, resolve, shares_file, tables, types
from ..mounts import options as mount_options
from ..mounts.steps import MountShare, Remount, Step, Unmount, WriteFstab


def ensure_all(params: dict, check_mode: bool = False) -> dict:
    """Bring each share of ``shares`` and ``shares_file`` into its state.

    :param params: the options of remotefs_share, each key present.
    :return: what the module returns, with ``results`` in input order, and ``failed``, ``diff`` and ``warnings``.
    :raises StorageError: the shares file cannot be read.
    """
    items: list[dict] = list(params["shares"] or ())
    warnings: list[str] = []
    if params["shares_file"]:
        listed, warnings = shares_file.read(params["shares_file"])
        items += listed
    results: list[dict] = []
    taken: dict[str, int] = {}
    for number, item in enumerate(_merged(items, params), 1):
        results.append(_ensure_item(item, check_mode, taken, number))
    faults = [result.pop("error", None) for result in results]
    failed = [([result["name"]], error) for result, error in zip(results, faults) if error is not None]
    answer = {
        "changed": any(result["changed"] for result in results),
        "failed": bool(failed),
        "results": results,
        "shares": [result["share"] for result in results if result["share"]],
        "actions": [action for result in results for action in result["actions"]],
        "diff": [diff for diff in (result.pop("diff") for result in results) if diff],
        "warnings": warnings + [warning for result in results for warning in result.pop("warnings")],
    }
    if failed:
        from ..together import failure_of_all  # late: most tasks succeed

        answer.update(failure_of_all("shares", len(results), failed))
    return answer


def _merged(items: list[dict], params: dict) -> list[dict]:
    """The items of a bulk list, each completed with the task's values."""
    defaults = {key: value for key, value in params.items() if key not in ("shares", "shares_file")}
    defaults.update(src=None, path=None)
    return [{**defaults, **{key: value for key, value in item.items() if value is not None}} for item in items]


def ensure(params: dict, check_mode: bool = False) -> dict:
    """Bring one share into ``params["state"]``.

    :param params: the options of remotefs_share, each key present.
    :return: name, src, changed, failed, actions, share, diff, warnings; with ``failed`` error_code and msg as well, and what the error carries.
    """
    result = _ensure_item(params, check_mode, {}, 1)
    result.pop("error", None)
    return result


def _ensure_item(params: dict, check_mode: bool, taken: dict, number: int) -> dict:
    """As :func:`ensure`, with the ``error`` itself.

    :param taken: the paths of earlier items of the same task, to refuse a second item for one of them.
    """
    name = params["src"] or params["path"] or f"item {number}"
    result = {"name": name, "src": params["src"], "changed": False, "failed": False, "actions": [], "share": None, "diff": {}, "warnings": []}
    done: list = []
    try:
        _ensure(params, check_mode, taken, number, result, done)
    except Exception as error:  # one that nobody foresaw is the failure of this share alone
        known = errors.as_storage_error(error, f"share {name}")
        result.update(failed=True, error_code=known.error_code, msg=str(known), error=known, **known.details)
    result["actions"] = [step.describe() for step in done]
    result["changed"] = bool(done)
    return result


def _ensure(params: dict, check_mode: bool, taken: dict, number: int, result: dict, done: list) -> None:
    deadline = _deadline(params)
    mounts = tables.read_mounts()
    entries = tables.parse_fstab(tables.read_fstab(resolve.clean_path(params["fstab"], "fstab")))
    mounts = _settled(params, mounts, entries, deadline)
    desired = parameters.read_desired(params, mounts, entries)
    result["src"], subject = desired.src, f"share {desired.name}"
    if taken.setdefault(desired.path, number) != number:
        raise errors.InvalidParameter(subject, f"item {taken[desired.path]} of the list has the same path {desired.path}", "name every share once")
    if not desired.row.mount_type and desired.state in planner.KEPT:
        resolve.check_mounted(desired.path, resolve.follow(desired.path, mounts), mounts, entries, resolve.clean_path(params["mount_base"], "mount_base"))
    seen = observer.observe(desired, mounts, entries, deadline)
    steps = planner.plan(desired, seen)
    result["diff"] = {"before": planner.picture(seen), "after": planner.fold(seen, desired, steps), "before_header": desired.path, "after_header": desired.path}
    _check_source(desired, seen, steps, deadline)
    applier.check_possible(steps, subject)
    if check_mode:
        done.extend(steps)
    for step in () if check_mode else steps:
        try:
            if applier.apply(step, deadline, params["attempts"], subject):
                done.append(step)
        except errors.StorageError:
            done[:] = applier.undo(done, planner.restore(desired, seen), seen.credentials, deadline, subject)
            _record(desired, seen, steps, failed=True)
            raise
    if not check_mode:
        _record(desired, seen, steps)
    result["warnings"] = _warnings(desired, seen, steps, check_mode)
    result["share"] = _report(desired, steps, check_mode, deadline, params["mount_base"])


def _settled(params: dict, mounts: tuple[tables.Mount, ...], entries: tuple[tables.Entry, ...], deadline: probe.Deadline) -> tuple[tables.Mount, ...]:
    """The mounts after going where autofs would mount what the task is about; nobody goes to a share that is to be taken away."""
    places = [parameters.place(params, mounts, entries)] if params["state"] in planner.MOUNTED else []
    src = params["src"]
    if src and params["path"] and resolve.is_directory_name(src):  # a bind mount is known by what its source shows
        places.append(resolve.clean_path(src, "src"))
    for place in filter(None, places):
        mounts = resolve.after_automount(place, mounts, deadline.left, f"share {src or place}")
    return mounts


def _record(desired: planner.DesiredShare, seen: planner.Seen, steps: tuple[Step, ...], failed: bool = False) -> None:
    """Keep how the share was mounted, if it was; forget it, if it is gone or nobody knows."""
    if not any(isinstance(step, (MountShare, Remount, Unmount)) for step in steps):
        return
    mounts = tables.read_mounts()
    mount = None if failed else tables.mounted_at(mounts, resolve.follow(desired.path, mounts))
    record.write(desired.path, mount, planner.effective_options(desired, seen))


def _deadline(params: dict) -> probe.Deadline:
    for key in ("timeout", "attempts"):
        if params[key] < 1:
            raise errors.InvalidParameter(f"{key} {params[key]}", "it is less than 1", "give a positive number")
    return probe.Deadline(params["timeout"])


def _check_source(desired: planner.DesiredShare, seen: planner.Seen, steps: tuple[Step, ...], deadline: probe.Deadline) -> None:
    """A bind mount's source is the one source that can be looked at before anything happens."""
    if not desired.row.local or not any(isinstance(step, (MountShare, WriteFstab)) for step in steps) or seen.mount is not None:
        return
    if desired.src is not None and not probe.directory_state(desired.src, deadline.left, f"share {desired.src}")[1]:
        raise errors.MountFailed(f"share {desired.src}", "there is no such directory to show elsewhere", "create it, or correct src")


def _warnings(desired: planner.DesiredShare, seen: planner.Seen, steps: tuple[Step, ...], check_mode: bool) -> list[str]:
    mounting = any(isinstance(step, (MountShare, Remount)) for step in steps)
    wanted = desired.state in planner.MOUNTED and bool(desired.row.mount_type)
    warnings = []
    if mounting and seen.mount is None and not seen.empty:
        warnings.append(f"{desired.path} was not empty: what lies there is hidden while {desired.name} is mounted")
    mounts = tables.read_mounts()
    real = resolve.follow(desired.path, mounts)
    if wanted and not (check_mode and steps):
        mount = tables.mounted_at(mounts, real)
        live = () if mount is None else tables.options_of(mount, desired.row)
        drifted = mount_options.drift(desired.row, planner.effective_options(desired, seen), live)
        if drifted:
            warnings.append(f"share {desired.name}: {', '.join(drifted)} not in force; {_who_decides(desired, seen)}")
    if desired.state == "absent" and seen.trigger:
        warnings.append(f"autofs still manages {desired.path}: {desired.name} is mounted when somebody goes there until the automounter's own table is changed")
    here = tables.enclosing(mounts, real)
    if not desired.row.mount_type and here is not None and not here.is_trigger and resolve.is_unknown_file_system(here):
        remedy = "tasks that change an image want assume_unused: true"
        warnings.append(f"share {desired.name}: nobody can tell whether other hosts have images open on its file system ({here.fstype}); {remedy}")
    return warnings


def _who_decides(desired: planner.DesiredShare, seen: planner.Seen) -> str:
    if seen.trigger:
        return "the automounter's own table decides (systemctl daemon-reload after a change of fstab), and state: remounted has it mounted anew"
    apart = f" ({desired.row.separating} separates the two)" if desired.row.separating else ""
    return f"another mount of the same export on this host decides{apart}, or the server"


def _report(desired: planner.DesiredShare, steps: tuple[Step, ...], check_mode: bool, deadline: probe.Deadline, mount_base: str) -> dict:
    """The share as it is now; in check mode as far as it is known."""
    mounts = tables.read_mounts()
    real = resolve.follow(desired.path, mounts)
    mount = tables.mounted_at(mounts, real)
    if not desired.row.mount_type:
        if not probe.directory_state(real, deadline.left, f"path {desired.path}")[1]:
            return _picture(desired.path, desired.path, desired.row.name)
        return _with_capacity(_picture(desired.path, desired.path, desired.row.name, mounted=True), real, deadline)
    if mount is None or (check_mode and any(isinstance(step, (MountShare, Unmount)) for step in steps)):
        coming = check_mode and desired.state in planner.MOUNTED
        opts = ",".join(mount_options.for_mount(mount_options.complete(desired.row, desired.options))) if coming else ""
        return _picture(desired.src, desired.path, desired.row.name, opts, mounted=coming)
    opts = resolve.public_options(mount, desired.row)
    share = _picture(desired.src or observer.source_of(mount, mounts), desired.path, desired.row.name, opts, mounted=True)
    return _with_capacity(share, real, deadline) if desired.state != "present" else share


def _picture(src: str | None, path: str | None, fstype: str | None, opts: str = "", mounted: bool = False) -> dict:
    return {"src": src, "path": path, "fstype": fstype, "opts": opts, "mounted": mounted, "total": None, "free": None, "used": None, "writable": None}


def _with_capacity(share: dict, path: str, deadline: probe.Deadline) -> dict:
    room = probe.capacity(path, deadline.left, f"share {share['src']}")
    share.update(total=room.total, free=room.free, used=room.used, writable=room.writable)
    return share


def describe_all(names: list[str] | str | None, mount_base: str, fstab: str, timeout: float) -> list[dict]:
    """The shares called ``names`` (one or a list), or each mounted one: network file systems anywhere, and all mounts under ``mount_base``.

    A share that cannot be read has ``error_code`` and ``msg``.

    :param timeout: seconds for each share. :return: dictionaries as remotefs_share_info documents them; sizes are bytes.
    :raises StorageError: the names or the table of mounts cannot be read.
    """
    return [_describe(name, mount_base, fstab, timeout) for name in (_mounted_paths(mount_base) if names is None else resolve.share_names(names))]


def _mounted_paths(mount_base: str) -> list[str]:
    mounts = tables.read_mounts()
    base = mount_base.rstrip("/")
    paths = []
    for mount in mounts:
        wanted = types.by_kernel_type(mount.fstype) is not None or (mount.path != base and tables.is_within(mount.path, base))
        if wanted and mount.path not in paths and tables.mounted_at(mounts, mount.path) == mount:
            paths.append(mount.path)
    return paths


def _describe(name: str, mount_base: str, fstab: str, timeout: float) -> dict:
    share = _picture(name, name if resolve.is_directory_name(name) else None, None)
    try:
        found = resolve.find_share(name, mount_base, fstab, timeout)
        share.update(src=found.source, path=found.path, fstype=found.fstype, opts=found.options, mounted=True)
        _with_capacity(share, found.path, probe.Deadline(timeout))
    except errors.StorageError as error:
        share.update(error_code=error.error_code, msg=str(error))
    return share
