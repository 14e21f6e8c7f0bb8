# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: which of a volume's snapshots stay, and why.

Nothing here looks at a clock. The newest snapshot is the one highest in the chain, and periods count from there downwards,
so that the same snapshots get the same verdict whenever they are judged, and a clock that ran backwards removes nothing that
the rules keep. The time of the task, which callers give, matters only to what has expired, and keeps ``within`` from counting
from a time that has not come yet.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Callable, Iterable, Mapping, Sequence

from ..errors import InvalidParameter
from ..model import Snapshot, Volume
from .desired import Expiry, label_texts

_SUBJECT = "option keep"
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,][0-9]+)?)?)?\s?(Z|z|[+-][0-9]{2}(?::?[0-9]{2})?)?\Z"
)
_DURATION = re.compile(r"([0-9]{1,12})\s*([smhdw])\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_CREATED = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z\Z")


def _week(time: datetime) -> str:
    year, week, _day = time.isocalendar()
    return f"{year:04}-W{week:02}"


# Each rule's period of a time, as reasons show it. ISO 8601, UTC; the first days of January can be in a week of the old year.
_PERIODS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda time: time.isoformat()[:13],
    "daily": lambda time: time.isoformat()[:10],
    "weekly": _week,
    "monthly": lambda time: time.isoformat()[:7],
    "yearly": lambda time: time.isoformat()[:4],
}
RULES = ("last", *_PERIODS)
_LONGEST = 100 * 366 * 86400  # seconds; longer ones lead out of the calendar


@dataclass(frozen=True)
class Policy:
    """What to keep: ``counts`` of every rule in :data:`RULES`, and all of the last ``within`` seconds (``span`` is how the user
    says it), for snapshots that ``match`` (a glob of names, or labels)."""

    match: str | dict
    counts: Mapping[str, int]
    within: int = 0
    span: str = ""

    def matches(self, snapshot: Snapshot) -> bool:
        if isinstance(self.match, str):
            return fnmatch.fnmatchcase(snapshot.name, self.match)
        return all(snapshot.labels.get(name) == value for name, value in self.match.items())


@dataclass(frozen=True)
class Verdict:
    """One snapshot that matches or has expired; without ``reasons`` it goes."""

    snapshot: Snapshot
    reasons: tuple[str, ...]

    def describe(self) -> dict:
        return {
            "name": self.snapshot.name,
            "created": self.snapshot.created,
            "expires": self.snapshot.expires,
            "keep": bool(self.reasons),
            "reasons": list(self.reasons),
        }


def parse(content: object) -> Policy:
    """A policy from what a playbook says.

    :raises InvalidParameter: it is no dictionary, has an unknown key (a rule that is misspelt would keep nothing), matches
        nothing, has a count that is none, or no rule above 0.
    """
    example = "give match and at least one of " + ", ".join((*RULES, "within"))
    if not isinstance(content, Mapping):
        raise InvalidParameter(_SUBJECT, f"{content!r} is no dictionary", example)
    unknown = sorted(str(key) for key in content if key not in ("match", *RULES, "within"))
    if unknown:
        raise InvalidParameter(_SUBJECT, f"it has no {', '.join(unknown)}", example)
    counts = {rule: _count(rule, content.get(rule)) for rule in RULES}
    policy = Policy(_match(content.get("match")), counts, _within(content.get("within")), str(content.get("within") or "").strip())
    if not any(policy.counts.values()) and not policy.within:
        raise InvalidParameter(_SUBJECT, "no rule is above 0, so that every snapshot would go", "say how many to keep")
    return policy


def _match(value: object) -> str | dict:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, Mapping) and value:
        return label_texts(value)
    problem = "match is missing or empty" if not value else f"match is neither a glob nor labels: {value!r}"
    raise InvalidParameter(_SUBJECT, problem, "give a glob such as daily-*, or labels that the snapshots have")


def _count(rule: str, value: object) -> int:
    """A count from a number or its text, which templates may make; None, as for a rule that is not given, is 0."""
    text = "0" if value is None else str(value).strip()
    if not re.match(r"-?[0-9]+\Z", text):
        raise InvalidParameter(_SUBJECT, f"{rule} is no whole number: {value!r}", "give the number of snapshots to keep")
    if int(text) < 0:
        raise InvalidParameter(_SUBJECT, f"{rule} is negative: {text}", "give the number of snapshots to keep, 0 for none by this rule")
    return int(text)


def parse_duration(value: object, subject: str) -> int:
    """Seconds from a number with its unit: s, m (minutes), h, d or w.

    :raises InvalidParameter: it is none, or not above 0.
    """
    match = _DURATION.match(str(value).strip())
    seconds = int(match.group(1)) * _SECONDS[match.group(2)] if match else 0
    if seconds <= 0:
        raise InvalidParameter(subject, f"{str(value)[:60]!r} is no duration", "give a whole number above 0 with s, m, h, d or w, such as 30d")
    return seconds


def _within(value: object) -> int:
    """Seconds; None, as for a rule that is not given, is 0. :raises InvalidParameter: it is no duration."""
    return 0 if value is None or str(value).strip() in ("", "0") else _in_calendar(parse_duration(value, f"{_SUBJECT}.within"), f"{_SUBJECT}.within")


def _in_calendar(seconds: int, subject: str) -> int:
    if seconds > _LONGEST:
        raise InvalidParameter(subject, "it is more than a hundred years", "give a shorter time")
    return seconds


def parse_expiry(value: str, now: str) -> Expiry:
    """When a snapshot expires, from a time (ISO 8601, UTC where it names no zone), a duration from ``now``, or ``never``.

    :raises InvalidParameter: it is none of these.
    """
    subject, text = "option expires", value.strip()
    if text.lower() == "never":
        return Expiry(None)
    found = _TIME.match(text)
    present = _recorded(now)
    try:
        if found:
            return Expiry(_spelt(_zoned(found)))
        if present is not None and re.match(r"[0-9]+\s*[smhdw]\Z", text):
            seconds = _in_calendar(parse_duration(text, subject), subject)
            return Expiry(_spelt(present + timedelta(seconds=seconds)), relative=True)
    except (ValueError, OverflowError):
        pass
    raise InvalidParameter(
        subject,
        f"{value!r} is neither a time nor a duration",
        "give a time such as 2027-01-31T18:00:00Z, a number with s, m, h, d or w counted from now, or never",
    )


def _zoned(found: re.Match) -> datetime:
    """A time of :data:`_TIME` in UTC."""
    *parts, zone = found.groups()
    time = datetime(*(int(part or 0) for part in parts))  # type: ignore[arg-type] # six numbers, by the pattern
    if zone in (None, "Z", "z"):
        return time
    digits = zone[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return time - offset if zone[0] == "+" else time + offset


def _spelt(time: datetime) -> str:
    return time.replace(tzinfo=timezone.utc, microsecond=0).isoformat().replace("+00:00", "Z")


def created_at(snapshot: Snapshot) -> datetime | None:
    """When it was taken (UTC); None where that is not recorded as our records spell it."""
    return _recorded(snapshot.created)


def has_expired(snapshot: Snapshot, now: str) -> bool:
    """Whether its time has passed; one whose expiry is not recorded as our records spell it has none."""
    expires, present = _recorded(snapshot.expires), _recorded(now)
    return expires is not None and present is not None and expires <= present


def _recorded(time: str | None) -> datetime | None:
    found = _CREATED.match(time or "")
    try:
        return datetime(*(int(part) for part in found.groups())) if found else None  # type: ignore[arg-type] # six numbers, by the pattern
    except ValueError:
        return None


def judge(volume: Volume, policy: Policy | None, named: str | None = None, now: str = "") -> tuple[Verdict, ...]:
    """A verdict on every snapshot that matches or has expired, oldest first. Without a policy on those that have expired.

    What has expired goes, and takes no rule's place, unless something keeps it whatever the rules say.

    :param named: a snapshot that the same task wants to exist, which therefore stays.
    :param now: the time of the task as records spell it; where it is not given, nothing has expired.
    """
    expired = {snapshot.name for snapshot in volume.snapshots if has_expired(snapshot, now)}
    matching = [snapshot for snapshot in volume.snapshots if policy is not None and policy.matches(snapshot)]
    told = [snapshot for snapshot in volume.snapshots if snapshot in matching or snapshot.name in expired]
    fixed = {snapshot.name: _whatever_the_rules(volume, snapshot) for snapshot in told}
    reasons: dict[str, list[str]] = {snapshot.name: [] for snapshot in told}
    if policy is not None:
        standing = [snapshot for snapshot in matching if snapshot.name not in expired or fixed[snapshot.name] or snapshot.name == named]
        _apply_rules(policy, list(reversed(standing)), reasons, now)
    for snapshot in told:
        reasons[snapshot.name] += fixed[snapshot.name]
        if snapshot.name == named and not reasons[snapshot.name]:
            reasons[snapshot.name].append("named by this task")
    return tuple(Verdict(snapshot, tuple(reasons[snapshot.name])) for snapshot in told)


def _apply_rules(policy: Policy, newest_first: Sequence[Snapshot], reasons: dict[str, list[str]], now: str) -> None:
    for place, snapshot in enumerate(newest_first[: policy.counts["last"]], 1):
        reasons[snapshot.name].append(f"last {place} of {policy.counts['last']}")
    for rule, period_of in _PERIODS.items():
        for name, period in _newest_of_periods(newest_first, period_of, policy.counts[rule]):
            reasons[name].append(f"{rule} {period}")
    if policy.within:
        for name in _of_the_last(newest_first, policy.within, now):
            reasons[name].append(f"within {policy.span}")


def _of_the_last(newest_first: Sequence[Snapshot], seconds: int, now: str) -> list[str]:
    """Snapshots that are less than so many seconds older than the newest one, as restic counts: a volume whose snapshots stopped
    keeps its last ones.

    Where the newest one claims a time that has not come yet, a clock was wrong: it does not make the others old. Where all do,
    they all stay.
    """
    times = [(snapshot.name, time) for snapshot, time in ((one, created_at(one)) for one in newest_first) if time is not None]
    present = _recorded(now)
    newest = next((time for _name, time in times if present is None or time <= present), None)
    return [name for name, time in times if newest is None or time - newest > timedelta(seconds=-seconds)]


def _newest_of_periods(newest_first: Iterable[Snapshot], period_of: Callable[[datetime], str], count: int) -> list[tuple[str, str]]:
    """(snapshot, period) for the first ``count`` periods that a walk down the chain comes to."""
    found: dict[str, str] = {}
    for snapshot in newest_first:
        time = created_at(snapshot)
        if time is not None and len(found) < count:
            found.setdefault(period_of(time), snapshot.name)
    return [(name, period) for period, name in found.items()]


def _whatever_the_rules(volume: Volume, snapshot: Snapshot) -> list[str]:
    """Reasons for which a snapshot stays that no rule keeps."""
    found = ["protected"] if snapshot.protected else []
    if created_at(snapshot) is None:
        found.append("created at an unknown time")
    point = volume.point_file(snapshot.name)
    clones = sorted({clone for clone, file in volume.dependents if file == point})
    return found + [f"linked clone {clone} rests on it" for clone in clones]
