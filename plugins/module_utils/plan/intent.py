# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is recorded durably before a plan begins, and what to do with it after a crash.

An intent holds the steps, ``.info`` before and after, the backing file of every image that gets another one, and the
volume as it will be. :func:`resume` is pure: from an intent and what is found it makes the plan that ends the matter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from ..errors import NeedsRecovery
from ..model import Image, Snapshot, Volume, is_safe_file_name
from . import steps as step_types
from .plan import Plan, write_info
from .steps import CreateOverlay, Pull, ReplaceOverlay, Repoint, Step, Unlink, WriteInfo, WriteRecord


@dataclass(frozen=True)
class Intent:
    """A plan on record. ``old`` maps files that get another backing file to (old backing file, its format)."""

    operation: str
    started: str
    steps: tuple[Step, ...]
    active_before: str
    old: dict
    after: Volume | None
    group: str | None = None

    def to_json(self) -> dict:
        return {
            "operation": self.operation,
            "started": self.started,
            "steps": [step.to_json() for step in self.steps],
            "active_before": self.active_before,
            "old": {file: list(backing) for file, backing in self.old.items()},
            "after": None if self.after is None else {**asdict(self.after), "pending": None},
            "group": self.group,
        }


def of_plan(plan: Plan, started: str, group: str | None = None) -> Intent:
    before = plan.before
    if before is None:
        raise ValueError("a plan without a volume before it needs no intent")
    changing = {step.file for step in plan.steps if isinstance(step, (Repoint, Pull, ReplaceOverlay))}
    formats = {image.file: image.format for image in before.chain}
    old = {image.file: (image.backing_file, formats.get(str(image.backing_file))) for image in before.chain if image.file in changing}
    return Intent(plan.operation, started, plan.steps, before.active.file, old, plan.after, group)


def from_json(volume: str, content: dict) -> Intent:
    """:raises NeedsRecovery: the record cannot be understood."""
    try:
        after = content["after"]
        return Intent(
            operation=str(content["operation"]),
            started=str(content["started"]),
            steps=tuple(step_types.from_json(step) for step in content["steps"]),
            active_before=str(content["active_before"]),
            old={str(file): tuple(backing) for file, backing in content["old"].items()},
            after=None if after is None else _volume_from_json(after),
            group=_group(content.get("group")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NeedsRecovery(
            f"volume {volume}", f"the record of an interrupted task cannot be understood ({error!r})", "see docs/worst-day.md"
        ) from error


def _group(value: object) -> str | None:
    if value is not None and not is_safe_file_name(value):
        raise ValueError(f"no group: {value!r}")
    return None if value is None else str(value)


def _volume_from_json(content: dict) -> Volume:
    chain = tuple(Image(**image) for image in content["chain"])
    snapshots = tuple(Snapshot(**snapshot) for snapshot in content["snapshots"])
    return Volume(content["name"], chain, snapshots, info=True, adopted=True)


def summary(content: dict) -> dict:
    """``pending`` as info modules show it."""
    return {"operation": content.get("operation"), "started": content.get("started")}


@dataclass(frozen=True)
class Found:
    """What stands on the share when a task is to be resumed.

    ``active`` and ``snapshots`` are those of ``.info`` (None: there is no ``.info``); ``backing`` maps each file of the intent
    that exists to the backing file in its header.
    """

    active: str | None
    snapshots: tuple[tuple[str, str], ...]
    backing: dict
    decided: bool = True  # the record of its group exists, or it has no group


@dataclass(frozen=True)
class Resumption:
    """How an interrupted operation ends: ``plan.steps`` still to do, and finished or undone."""

    operation: str
    outcome: str
    plan: Plan

    def describe(self) -> dict:
        return {"operation": self.operation, "outcome": self.outcome, "steps": self.plan.actions}


def files_to_look_at(intent: Intent) -> tuple[str, ...]:
    """Files whose headers :class:`Found` must show."""
    made = [step.file for step in intent.steps if isinstance(step, CreateOverlay)]
    return tuple(intent.old) + tuple(made)


def resume(name: str, present: Volume | None, intent: Intent, found: Found) -> Resumption:
    """The rest of an interrupted task, or its undoing.

    :param present: the volume as it can be read now; None where it cannot (some of its files are gone already).
    :raises NeedsRecovery: the share is in no state that the task can have left.
    """
    if intent.operation == "create_snapshot":
        return _resume_snapshot(name, present, intent, found)
    if intent.after is None:
        left: tuple[Step, ...] = tuple(step for step in intent.steps if isinstance(step, Unlink))
        return Resumption(intent.operation, "finished", Plan(intent.operation, name, left, present, None))
    if _matches(found, _recorded_info(intent)):
        left = tuple(step for step in intent.steps if isinstance(step, (WriteInfo, Unlink)))
        return Resumption(intent.operation, "finished", Plan(intent.operation, name, left, present, intent.after))
    _require_untouched(name, intent, found)
    redo = tuple(_put_back(intent, found)) + _not_done(intent, found)
    return Resumption(intent.operation, "finished", Plan(intent.operation, name, redo, present, intent.after))


def _recorded_info(intent: Intent) -> WriteInfo:
    for step in intent.steps:
        if isinstance(step, WriteInfo):
            return step
    raise NeedsRecovery(f"task {intent.operation}", "its record has no final state", "see docs/worst-day.md")


def _matches(found: Found, step: WriteInfo) -> bool:
    return found.active == step.active and sorted(found.snapshots) == sorted(step.snapshots)


def _resume_snapshot(name: str, present: Volume | None, intent: Intent, found: Found) -> Resumption:
    """An overlay that was published is finished, unless its group never got that far; without one there is nothing."""
    overlay = next((step for step in intent.steps if isinstance(step, CreateOverlay)), None)
    if overlay is None:
        raise _changed(name, intent, "an overlay in its record", "none")
    info = _recorded_info(intent)
    published = overlay.file in found.backing
    if published and found.backing[overlay.file] != overlay.backing_file:
        raise _changed(name, intent, f"{overlay.file} on {overlay.backing_file}", f"it on {found.backing[overlay.file]}")
    if published and (found.decided or _matches(found, info)):
        return Resumption(intent.operation, "finished", Plan(intent.operation, name, (info,), present, intent.after))
    if present is None or present.active.file != intent.active_before:
        raise _changed(name, intent, f"active file {intent.active_before}", present.active.file if present else "no readable volume")
    undo: tuple[Step, ...] = (write_info(present), Unlink(overlay.file)) if published else (WriteRecord(name),)
    after = replace(present, pending=None)
    return Resumption(intent.operation, "undone", Plan(intent.operation, name, undo, present, after))


def _require_untouched(volume: str, intent: Intent, found: Found) -> None:
    """``.info`` must be as it was, and every file that gets another backing file must have its old one or its new one."""
    if (found.active or volume) != intent.active_before:
        raise _changed(volume, intent, f"active file {intent.active_before}", str(found.active))
    new: dict[str, set] = {}
    for step in intent.steps:
        if isinstance(step, (Repoint, Pull, ReplaceOverlay)):
            new.setdefault(step.file, set()).add(step.backing_file)
    for file, (backing, _format) in intent.old.items():
        if file not in found.backing:
            raise _changed(volume, intent, f"file {file}", "no such file")
        if found.backing[file] != backing and found.backing[file] not in new.get(file, set()):
            raise _changed(volume, intent, f"{file} on {backing} or {sorted(map(str, new.get(file, ())))}", f"it on {found.backing[file]}")


def _changed(volume: str, intent: Intent, expected: str, present: str) -> NeedsRecovery:
    return NeedsRecovery(
        f"volume {volume}",
        f"its {intent.operation} of {intent.started} was interrupted and somebody changed the share since: expected {expected}, found {present}",
        "see docs/worst-day.md for how to decide by hand",
    )


def _put_back(intent: Intent, found: Found) -> list[Step]:
    """Repoints to the old backing files: doing the data steps again is only right on what they started from."""
    replaced = {step.file for step in intent.steps if isinstance(step, ReplaceOverlay)}
    steps: list[Step] = []
    for file, (backing, backing_format) in intent.old.items():
        if file not in replaced and backing is not None and found.backing[file] != backing:
            steps.append(Repoint(file, backing, str(backing_format)))
    return steps


def _not_done(intent: Intent, found: Found) -> tuple[Step, ...]:
    """All steps but an overlay's replacement that has happened: somebody may have written to it since."""
    return tuple(
        step for step in intent.steps if not (isinstance(step, ReplaceOverlay) and found.backing.get(step.file) == step.backing_file)
    )
