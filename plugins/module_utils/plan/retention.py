# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: which of a volume's snapshots stay, and why.

Nothing here asks for the time. The newest snapshot is the one highest in the chain, and periods count from there downwards,
so that the same snapshots get the same verdict whenever they are judged, and a clock that ran backwards removes nothing that
the rules keep.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Callable, Iterable, Mapping

from ..errors import InvalidParameter
from ..model import Snapshot, Volume

_SUBJECT = "option keep"
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
}
RULES = ("last", *_PERIODS)


@dataclass(frozen=True)
class Policy:
    """What to keep: ``counts`` of every rule in :data:`RULES`, for snapshots that ``match`` (a glob of names, or labels)."""

    match: str | dict
    counts: Mapping[str, int]

    def matches(self, snapshot: Snapshot) -> bool:
        if isinstance(self.match, str):
            return fnmatch.fnmatchcase(snapshot.name, self.match)
        return all(snapshot.labels.get(name) == value for name, value in self.match.items())


@dataclass(frozen=True)
class Verdict:
    """One snapshot that matches; without ``reasons`` it goes."""

    snapshot: Snapshot
    reasons: tuple[str, ...]

    def describe(self) -> dict:
        return {
            "name": self.snapshot.name,
            "created": self.snapshot.created,
            "keep": bool(self.reasons),
            "reasons": list(self.reasons),
        }


def label_texts(labels: Mapping) -> dict[str, str]:
    """Labels as they are kept and compared: texts, nothing at all as the empty one."""
    return {str(name): "" if value is None else str(value) for name, value in labels.items()}


def parse(content: object) -> Policy:
    """A policy from what a playbook says.

    :raises InvalidParameter: it is no dictionary, has an unknown key (a rule that is misspelt would keep nothing), matches
        nothing, has a count that is none, or no rule above 0.
    """
    example = "give match and at least one of " + ", ".join(RULES)
    if not isinstance(content, Mapping):
        raise InvalidParameter(_SUBJECT, f"{content!r} is no dictionary", example)
    unknown = sorted(str(key) for key in content if key not in ("match", *RULES))
    if unknown:
        raise InvalidParameter(_SUBJECT, f"it has no {', '.join(unknown)}", example)
    policy = Policy(_match(content.get("match")), {rule: _count(rule, content.get(rule)) for rule in RULES})
    if not any(policy.counts.values()):
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


def created_at(snapshot: Snapshot) -> datetime | None:
    """When it was taken (UTC); None where that is not recorded as our records spell it."""
    found = _CREATED.match(snapshot.created or "")
    try:
        return datetime(*(int(part) for part in found.groups())) if found else None  # type: ignore[arg-type] # six numbers, by the pattern
    except ValueError:
        return None


def judge(volume: Volume, policy: Policy, named: str | None = None) -> tuple[Verdict, ...]:
    """A verdict on every snapshot that matches, oldest first.

    :param named: a snapshot that the same task wants to exist, which therefore stays.
    """
    matching = [snapshot for snapshot in volume.snapshots if policy.matches(snapshot)]
    reasons: dict[str, list[str]] = {snapshot.name: [] for snapshot in matching}
    newest_first = list(reversed(matching))
    for place, snapshot in enumerate(newest_first[: policy.counts["last"]], 1):
        reasons[snapshot.name].append(f"last {place} of {policy.counts['last']}")
    for rule, period_of in _PERIODS.items():
        for name, period in _newest_of_periods(newest_first, period_of, policy.counts[rule]):
            reasons[name].append(f"{rule} {period}")
    for snapshot in matching:
        reasons[snapshot.name] += _whatever_the_rules(volume, snapshot)
        if snapshot.name == named and not reasons[snapshot.name]:
            reasons[snapshot.name].append("named by this task")
    return tuple(Verdict(snapshot, tuple(reasons[snapshot.name])) for snapshot in matching)


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
