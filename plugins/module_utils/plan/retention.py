# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: which of a volume's snapshots stay, and why.

Nothing here reads a clock. The newest snapshot is the highest one in the chain, and periods are counted from there downwards.
So the same snapshots always get the same verdict, and a clock that ran backwards removes nothing that the rules keep.
Callers give the time of the task. It is used for two things only: it says which snapshots have expired, and it keeps ``within``
from counting from a time in the future.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Callable, Iterable, Mapping, Sequence

from .. import errors, model
from . import desired

_SUBJECT = "option keep"
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,][0-9]+)?)?)?\s?(Z|z|[+-][0-9]{2}(?::?[0-9]{2})?)?\Z"
)
_DURATION = re.compile(r"([0-9]{1,12})\s*([smhdw])\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_CREATED = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z\Z")


def _week(time: datetime) -> str:
    """The week as ISO 8601 names it, such as 2027-W04."""
    year, week, _day = time.isocalendar()
    return f"{year:04}-W{week:02}"


# By rule: from a time to the name of its period, as reasons show it. ISO 8601, UTC. The first days of January can be in a week of
# the old year.
_PERIODS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda time: time.isoformat()[:13],
    "daily": lambda time: time.isoformat()[:10],
    "weekly": _week,
    "monthly": lambda time: time.isoformat()[:7],
    "yearly": lambda time: time.isoformat()[:4],
}
RULES = ("last", *_PERIODS)
_LONGEST = 100 * 366 * 86400  # seconds: with longer durations a date could leave the calendar, and no lease and no opened point has a longer time


@dataclass(frozen=True)
class Policy:
    """What to keep of the snapshots that ``match``: a glob of names, or a dict of labels (text to text).

    ``counts`` has a number of snapshots for every rule in :data:`RULES`. ``within``: all snapshots of the last so many seconds
    stay. ``span`` is the same duration as the user wrote it.
    """

    match: str | dict
    counts: Mapping[str, int]
    within: int = 0
    span: str = ""

    def matches(self, snapshot: model.Snapshot) -> bool:
        """Whether the policy is about this snapshot: its name matches the glob, or it has all the labels."""
        if isinstance(self.match, str):
            return fnmatch.fnmatchcase(snapshot.name, self.match)
        return all(snapshot.labels.get(name) == value for name, value in self.match.items())


@dataclass(frozen=True)
class Verdict:
    """The verdict on one snapshot that matches or has expired. ``reasons`` say why it stays. Without any it is deleted."""

    snapshot: model.Snapshot
    reasons: tuple[str, ...]

    def describe(self) -> dict:
        """The verdict as modules return it: name, created, expires (texts or None), keep (bool), reasons (list of texts)."""
        return {
            "name": self.snapshot.name,
            "created": self.snapshot.created,
            "expires": self.snapshot.expires,
            "keep": bool(self.reasons),
            "reasons": list(self.reasons),
        }


def parse(content: object) -> Policy:
    """A policy from the option ``keep`` of a playbook: a dict with the key match and at least one of :data:`RULES` and within.

    :raises InvalidParameter: it is no dictionary, has an unknown key (a misspelled rule would keep nothing), has no match, has
        a value that is no count or duration, or has no rule above 0.
    """
    example = "give match and at least one of " + ", ".join((*RULES, "within"))
    if not isinstance(content, Mapping):
        raise errors.InvalidParameter(_SUBJECT, f"{content!r} is no dictionary", example)
    unknown = sorted(str(key) for key in content if key not in ("match", *RULES, "within"))
    if unknown:
        raise errors.InvalidParameter(_SUBJECT, f"it has no {', '.join(unknown)}", example)
    counts = {rule: _count(rule, content.get(rule)) for rule in RULES}
    policy = Policy(_match(content.get("match")), counts, _within(content.get("within")), str(content.get("within") or "").strip())
    if not any(policy.counts.values()) and not policy.within:
        raise errors.InvalidParameter(_SUBJECT, "no rule is above 0, so that every snapshot would go", "say how many to keep")
    return policy


def _match(value: object) -> str | dict:
    """A glob, or labels as they are stored. :raises InvalidParameter: it is neither."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, Mapping) and value:
        return desired.label_texts(value)
    problem = "match is missing or empty" if not value else f"match is neither a glob nor labels: {value!r}"
    raise errors.InvalidParameter(_SUBJECT, problem, "give a glob such as daily-*, or labels that the snapshots have")


def _count(rule: str, value: object) -> int:
    """A count from a number or a text (templates may make texts). None means that the rule is not given: 0.

    :raises InvalidParameter: it is no whole number, or it is negative.
    """
    text = "0" if value is None else str(value).strip()
    if not re.match(r"-?[0-9]+\Z", text):
        raise errors.InvalidParameter(_SUBJECT, f"{rule} is no whole number: {value!r}", "give the number of snapshots to keep")
    if int(text) < 0:
        raise errors.InvalidParameter(_SUBJECT, f"{rule} is negative: {text}", "give the number of snapshots to keep, 0 for none by this rule")
    return int(text)


def parse_duration(value: object, subject: str) -> int:
    """Seconds from a whole number with a unit: s, m (minutes), h, d or w. ``subject`` names the option in the error.

    :raises InvalidParameter: it is no duration, not above 0, or so long that a time or a record could not have it.
    """
    match = _DURATION.match(str(value).strip())
    seconds = int(match.group(1)) * _SECONDS[match.group(2)] if match else 0
    if seconds <= 0:
        raise errors.InvalidParameter(subject, f"{str(value)[:60]!r} is no duration", "give a whole number above 0 with s, m, h, d or w, such as 30d")
    if seconds > _LONGEST:
        raise errors.InvalidParameter(subject, "it is more than a hundred years", "give a shorter time")
    return seconds


def _within(value: object) -> int:
    """Seconds. None means that the rule is not given: 0. :raises InvalidParameter: it is no duration."""
    return 0 if value is None or str(value).strip() in ("", "0") else parse_duration(value, f"{_SUBJECT}.within")


def parse_expiry(value: str, now: str) -> desired.Expiry:
    """When a snapshot expires, from what a playbook says: a time (ISO 8601; UTC where it has no zone), a duration from ``now``, or
    ``never``.

    :param now: the time of the task, in the form that records use. :raises InvalidParameter: the value is none of these.
    """
    subject, text = "option expires", value.strip()
    if text.lower() == "never":
        return desired.Expiry(None)
    match = _TIME.match(text)
    present = _parse_recorded(now)
    try:
        if match:
            return desired.Expiry(_format_time(_to_utc(match)))
        if present is not None and re.match(r"[0-9]+\s*[smhdw]\Z", text):
            return desired.Expiry(_format_time(present + timedelta(seconds=parse_duration(text, subject))), relative=True)
    except (ValueError, OverflowError):
        pass
    raise errors.InvalidParameter(
        subject,
        f"{value!r} is neither a time nor a duration",
        "give a time such as 2027-01-31T18:00:00Z, a number with s, m, h, d or w counted from now, or never",
    )


def _to_utc(match: re.Match) -> datetime:
    """The time in UTC that a match of :data:`_TIME` says."""
    *parts, zone = match.groups()
    time = datetime(*(int(part or 0) for part in parts))  # type: ignore[arg-type] # six numbers, by the pattern
    if zone in (None, "Z", "z"):
        return time
    digits = zone[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return time - offset if zone[0] == "+" else time + offset


def _format_time(time: datetime) -> str:
    """A time in UTC in the form that records use."""
    return time.replace(tzinfo=timezone.utc, microsecond=0).isoformat().replace("+00:00", "Z")


def created_at(snapshot: model.Snapshot) -> datetime | None:
    """When the snapshot was taken (UTC). None where its record does not say so in the form that records use."""
    return _parse_recorded(snapshot.created)


def has_expired(snapshot: model.Snapshot, now: str) -> bool:
    """Whether the snapshot has expired. One whose expiry is not in the form that records use never expires.

    :param now: the time of the task, in the form that records use.
    """
    expires, present = _parse_recorded(snapshot.expires), _parse_recorded(now)
    return expires is not None and present is not None and expires <= present


def _parse_recorded(time: str | None) -> datetime | None:
    """The time (UTC) that a text in the form of records says. None where it is in no such form."""
    match = _CREATED.match(time or "")
    try:
        return datetime(*(int(part) for part in match.groups())) if match else None  # type: ignore[arg-type] # six numbers, by the pattern
    except ValueError:
        return None


def judge(volume: model.Volume, policy: Policy | None, named: str | None = None, now: str = "") -> tuple[Verdict, ...]:
    """A verdict on every snapshot that matches or has expired, oldest first. Without a policy: on those that have expired.

    An expired snapshot is deleted and does not count for any rule, unless it must stay whatever the rules say.

    :param named: a snapshot that the same task wants to exist. It stays.
    :param now: the time of the task, in the form that records use. Without it nothing has expired.
    """
    expired = {snapshot.name for snapshot in volume.snapshots if has_expired(snapshot, now)}
    matching = [snapshot for snapshot in volume.snapshots if policy is not None and policy.matches(snapshot)]
    judged = [snapshot for snapshot in volume.snapshots if snapshot in matching or snapshot.name in expired]
    other_reasons = {snapshot.name: _reasons_besides_rules(volume, snapshot) for snapshot in judged}
    reasons: dict[str, list[str]] = {snapshot.name: [] for snapshot in judged}
    if policy is not None:
        counted = [snapshot for snapshot in matching if snapshot.name not in expired or other_reasons[snapshot.name] or snapshot.name == named]
        _apply_rules(policy, list(reversed(counted)), reasons, now)
    for snapshot in judged:
        reasons[snapshot.name] += other_reasons[snapshot.name]
        if snapshot.name == named and not reasons[snapshot.name]:
            reasons[snapshot.name].append("named by this task")
    return tuple(Verdict(snapshot, tuple(reasons[snapshot.name])) for snapshot in judged)


def _apply_rules(policy: Policy, newest_first: Sequence[model.Snapshot], reasons: dict[str, list[str]], now: str) -> None:
    """Add to ``reasons`` (by snapshot name) why the rules of the policy keep snapshots."""
    for place, snapshot in enumerate(newest_first[: policy.counts["last"]], 1):
        reasons[snapshot.name].append(f"last {place} of {policy.counts['last']}")
    for rule, period_of in _PERIODS.items():
        for name, period in _newest_of_periods(newest_first, period_of, policy.counts[rule]):
            reasons[name].append(f"{rule} {period}")
    if policy.within:
        for name in _within_seconds(newest_first, policy.within, now):
            reasons[name].append(f"within {policy.span}")


def _within_seconds(newest_first: Sequence[model.Snapshot], seconds: int, now: str) -> list[str]:
    """Names of the snapshots that are less than so many seconds older than the newest one.

    restic counts in the same way. So a volume of which no more snapshots are taken keeps its last ones. If the time of the newest
    one is in the future, a clock was wrong. Then it does not make the others old. If the times of all are in the future, they
    all stay.
    """
    times = [(snapshot.name, time) for snapshot, time in ((one, created_at(one)) for one in newest_first) if time is not None]
    present = _parse_recorded(now)
    newest = next((time for _name, time in times if present is None or time <= present), None)
    return [name for name, time in times if newest is None or time - newest > timedelta(seconds=-seconds)]


def _newest_of_periods(newest_first: Iterable[model.Snapshot], period_of: Callable[[datetime], str], count: int) -> list[tuple[str, str]]:
    """(snapshot name, period) for the first ``count`` periods from the top of the chain downwards: the highest snapshot of each."""
    newest: dict[str, str] = {}
    for snapshot in newest_first:
        time = created_at(snapshot)
        if time is not None and len(newest) < count:
            newest.setdefault(period_of(time), snapshot.name)
    return [(name, period) for period, name in newest.items()]


def _reasons_besides_rules(volume: model.Volume, snapshot: model.Snapshot) -> list[str]:
    """Reasons why a snapshot stays even if no rule keeps it."""
    reasons = ["protected"] if snapshot.protected else []
    if created_at(snapshot) is None:
        reasons.append("created at an unknown time")
    point = volume.point_file(snapshot.name)
    clones = sorted({clone for clone, file in volume.dependents if file == point})
    return reasons + [f"linked clone {clone} rests on it" for clone in clones]
