# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Intents: what is recorded durably before a plan begins, and how an interrupted plan ends after a crash.

An intent has the steps, the volume before and after them, and a proof of identity for each file.
:func:`resume` is pure. From an intent and what is on the share now, it makes the plan that ends the interrupted task. It accepts
only states that the recorded plan itself can have left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import attachments, errors, model
from . import abilities, intent_fields, recorded_steps
from .plan import CREATE_SNAPSHOT, FLATTEN, RECEIVE, REPLACE_SEED, Plan, lost_snapshots
from .resumption import ObservedState, Resumption
from .steps import CreateOverlay, Pull, ReceiveOverlay, ReplaceOverlay, Repoint, Step, Unlink, WriteInfo, WriteRecord, WriteSeed, write_info

_BY_HAND = "see docs/worst-day.md for how to decide by hand, or say recover: discard to give the record up"


@dataclass(frozen=True)
class Proof:
    """A file as it was when the intent was recorded: its inode (0 where the file system does not keep inodes) and length in bytes."""

    inode: int
    length: int


@dataclass(frozen=True)
class Intent:
    """A recorded plan. ``started`` is the time in the form that records use. ``proofs`` has a proof for each of the volume's own files
    before the plan. ``group`` names a snapshot of several volumes together. ``engine`` names the engine that did the work, and
    ``attachment`` is the machine that had the images open. ``members`` are the volumes of a group of which a machine had some open, so that
    one cannot be ended without the others. ``phase`` says from which point on the machine may be on the new active image. ``agent`` is how a
    guest is reached that is frozen for a moment: whoever ends the task first sees to it that it goes on."""

    operation: str
    started: str
    steps: tuple[Step, ...]
    before: model.Volume
    after: model.Volume | None
    proofs: dict[str, Proof]
    group: str | None = None
    engine: str = abilities.OFFLINE
    attachment: attachments.Attachment | None = None
    members: tuple[str, ...] = ()
    agent: str | None = None
    phase: str = ""

    def to_json(self) -> dict:
        """The intent as the record of the volume has it: the fields by name. A step is what :meth:`Step.to_json` returns, a volume a
        dict of its fields, a proof [inode, length]. :func:`from_json` reads it."""
        return {
            "operation": self.operation,
            "started": self.started,
            "steps": [step.to_json() for step in self.steps],
            "before": _volume_to_json(self.before),
            "after": None if self.after is None else _volume_to_json(self.after),
            "proofs": {file: [proof.inode, proof.length] for file, proof in self.proofs.items()},
            "group": self.group,
            "engine": self.engine,
            **({"attachment": self.attachment.to_json()} if self.attachment else {}),
            **({"members": list(self.members)} if self.members else {}),
            **({"phase": self.phase} if self.phase else {}),
            **({"agent": self.agent} if self.agent else {}),
        }

    @property
    def deleted_snapshots(self) -> tuple[str, ...]:
        """Names of the snapshots whose data the steps may have begun to destroy."""
        return lost_snapshots(self.before, self.after)

    @property
    def uncertain_snapshots(self) -> tuple[str, ...]:
        """Names of snapshots of which it is not known whether a machine has begun to write behind them."""
        if self.attachment is None or self.operation != CREATE_SNAPSHOT or self.after is None:
            return ()
        return tuple(snapshot.name for snapshot in self.after.snapshots if not self.before.has_snapshot(snapshot.name))

    @property
    def files(self) -> tuple[str, ...]:
        """The volume's own files before and after the plan. :class:`ObservedState` must show each of them that exists."""
        named = dict.fromkeys(self.before.own_files)
        named.update(dict.fromkeys(self.after.own_files if self.after else ()))
        named.update(dict.fromkeys(step.file for step in self.steps if isinstance(step, (CreateOverlay, ReceiveOverlay))))
        return tuple(named)


def of_plan(
    plan: Plan,
    started: str,
    proofs: dict[str, Proof],
    group: str | None = None,
    engine: str = abilities.OFFLINE,
    attachment: attachments.Attachment | None = None,
    members: tuple[str, ...] = (),
    agent: str | None = None,
) -> Intent:
    """The intent of a plan. :raises ValueError: the plan makes a new volume. Such a plan needs no intent."""
    if plan.before is None:
        raise ValueError("a plan without a volume before it needs no intent")
    return Intent(plan.operation, started, plan.steps, plan.before, plan.after, proofs, group, engine, attachment, members, agent)


def in_phase(content: dict, phase: str) -> dict:
    """An intent as the record has it, now in this phase."""
    return {**content, "phase": phase}


def _volume_to_json(volume: model.Volume) -> dict:
    """The fields by name, at all depths. ``asdict`` of the library takes ten times as long, and a chain can be long."""
    chain, snapshots = [vars(image) for image in volume.chain], [vars(snapshot) for snapshot in volume.snapshots]
    return {**vars(volume), "chain": chain, "snapshots": snapshots, "parent": vars(volume.parent) if volume.parent else None, "pending": None}


def from_json(volume: str, content: dict) -> Intent:
    """The intent that :meth:`Intent.to_json` wrote, for the volume of this name.

    :raises NeedsRecovery: the record cannot be understood.
    """
    try:
        after = content["after"]
        return Intent(
            operation=str(content["operation"]),
            started=str(content["started"]),
            steps=tuple(recorded_steps.from_json(step) for step in content["steps"]),
            before=intent_fields.volume(content["before"]),
            after=None if after is None else intent_fields.volume(after),
            proofs={str(file): Proof(int(inode), int(length)) for file, (inode, length) in content["proofs"].items()},
            group=intent_fields.group(content.get("group")),
            engine=intent_fields.engine(content.get("engine", abilities.OFFLINE)),  # older records do not name an engine
            attachment=attachments.from_json(content.get("attachment")),
            members=intent_fields.members(content.get("members", ())),
            phase=intent_fields.phase(content.get("phase", "")),
            agent=intent_fields.socket(content.get("agent")),
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise errors.NeedsRecovery(f"volume {volume}", f"the record of an interrupted task cannot be understood ({error!r})", _BY_HAND) from error


def summary(content: dict) -> dict:
    """``pending`` as info modules show it: operation, started, snapshots (a list of names), and the attachment if there is one. The data
    of these snapshots may be damaged, or is not certain yet, until the work is finished.

    :param content: an intent as the record has it.
    """
    shown: dict = {"operation": content.get("operation"), "started": content.get("started"), "snapshots": []}
    try:
        intent = from_json("", content)
        shown["snapshots"] = [*intent.deleted_snapshots, *intent.uncertain_snapshots]
        if intent.attachment is not None:
            shown["attachment"] = intent.attachment.describe()
    except errors.NeedsRecovery:
        pass
    return shown


def resume(name: str, present: model.Volume | None, intent: Intent, observed: ObservedState) -> Resumption:
    """The plan that finishes an interrupted task or undoes it.

    :param name: the name of the volume.
    :param present: the volume as it is now. None where it cannot be read, because some of its files are already removed.
    :raises NeedsRecovery: the interrupted task cannot have left the share in this state.
    """
    check = _Check(name, intent, observed)
    check.same_files()
    if intent.after is None:
        left: tuple[Step, ...] = tuple(step for step in intent.steps if isinstance(step, Unlink))
        return Resumption(intent.operation, "finished", Plan(intent.operation, name, left, present, None))
    if intent.operation == CREATE_SNAPSHOT:
        return _resume_snapshot(check, present)
    if intent.operation == FLATTEN:
        return _resume_flatten(check, present)
    if intent.operation == REPLACE_SEED:
        return _resume_seed(check, present)
    recorded = next((step for step in intent.steps if isinstance(step, WriteInfo)), None)
    if recorded is None and any(isinstance(step, ReplaceOverlay) for step in intent.steps):
        return _resume_replacement(check, present)
    if recorded is None:
        raise check.differs("a final state in its record", "none")
    if check.info_is(recorded):
        check.as_after()
        left = tuple(step for step in intent.steps if isinstance(step, (WriteInfo, Unlink)))
        return Resumption(intent.operation, "finished", Plan(intent.operation, name, left, present, intent.after))
    check.info_as_before()
    check.chain_between()
    if intent.operation == RECEIVE:
        return _undo_receipt(intent, observed, name, present)
    if intent.phase and check.is_switched():
        left = tuple(step for step in intent.steps if isinstance(step, (WriteInfo, Unlink)))
        return Resumption(intent.operation, "finished", Plan(intent.operation, name, left, present, intent.after))
    redo = tuple(_restored_backing_files(intent, observed)) + _not_done(intent, observed)
    return Resumption(intent.operation, "finished", Plan(intent.operation, name, redo, present, intent.after))


class _Check:
    """Conditions that a share must fulfil before an intent is resumed.

    The methods raise NeedsRecovery where a condition is not fulfilled. The error says what was expected and what was observed.
    """

    def __init__(self, volume: str, intent: Intent, observed: ObservedState) -> None:
        self.volume, self.intent, self.observed = volume, intent, observed

    def differs(self, expected: str, present: str) -> errors.NeedsRecovery:
        """The error for a condition that is not fulfilled."""
        problem = f"its {self.intent.operation} of {self.intent.started} was interrupted and somebody changed the share since"
        return errors.NeedsRecovery(f"volume {self.volume}", f"{problem}: expected {expected}, found {present}", _BY_HAND)

    def same_files(self) -> None:
        """Every file that exists is still the recorded one, except an active image that the plan itself replaced."""
        replaced = {step.file: step.backing_file for step in self.intent.steps if isinstance(step, ReplaceOverlay)}
        seeds = {step.file: step.size for step in self.intent.steps if isinstance(step, WriteSeed)}
        for file, proof in self.intent.proofs.items():
            now = self.observed.files.get(file)
            if now is None or (file in replaced and now.backing_file == replaced[file]) or (now.size is None and now.length == seeds.get(file)):
                continue
            if proof.inode and now.inode != proof.inode:
                raise self.differs(f"{file} to be the file with inode {proof.inode}", f"another one with inode {now.inode}")
            if self.intent.before.image(file).format == "qcow2" and now.size is None:
                raise self.differs(f"{file} to be a qcow2 image", "no valid header in it")

    def info_is(self, step: WriteInfo) -> bool:
        """Whether ``.info`` says what the step writes."""
        return self.observed.active == step.active and sorted(self.observed.snapshots) == sorted(step.snapshots)

    def info_as_before(self) -> None:
        """``.info`` says what it said before the plan."""
        before = self.intent.before
        if self.observed.active is None and not before.info:
            return
        if self.observed.active != before.active.file:
            raise self.differs(f"active file {before.active.file}", str(self.observed.active))
        pairs = sorted([*((snapshot.name, snapshot.file) for snapshot in before.snapshots), *before.stale])
        if sorted(self.observed.snapshots) != pairs:
            raise self.differs(f"snapshots {dict(pairs)} in .info", str(dict(sorted(self.observed.snapshots))))

    def chain_between(self) -> None:
        """Every file exists. Its backing file and size are the old ones, or those that the plan gives it."""
        given: dict[str, set] = {}
        for step in self.intent.steps:
            if isinstance(step, (Repoint, Pull, ReplaceOverlay)):
                given.setdefault(step.file, set()).add(step.backing_file)
        for image in self.intent.before.own:
            self._exists(image.file)
            self._has(image, given.get(image.file, set()) | {image.backing_file})

    def as_after(self) -> None:
        """For a plan whose final state is recorded: the files are in that state, and nobody wrote to those that are to be removed."""
        after = self.intent.after
        for image in after.own if after else ():
            self._exists(image.file)
            self._has(image, {image.backing_file})
        shrinks = any(isinstance(step, ReplaceOverlay) for step in self.intent.steps)  # their data may be given up
        for file in [step.file for step in self.intent.steps if isinstance(step, Unlink)]:
            if self.intent.attachment is not None:
                self._left_alone(file)
                continue
            now, proof = self.observed.files.get(file), self.intent.proofs.get(file)
            if now is not None and proof is not None and now.length != proof.length and not (shrinks and now.length < proof.length):
                raise self.differs(f"{file}, which is to go, to have {proof.length} bytes", f"{now.length}")

    def _left_alone(self, file: str) -> None:
        """A machine wrote to the file while the plan was carried out, and it has grown. Nobody may have written to it after ``.info``."""
        now = self.observed.files.get(file)
        if now is not None and self.observed.info_changed and now.changed > self.observed.info_changed:
            raise self.differs(f"nobody to write to {file} after the volume had left it", "later writes (a machine that was started on the wrong file)")

    def is_switched(self) -> bool:
        """Whether the machine is on the new active image. :raises InUse: it is not known."""
        if self.observed.switched is None:
            raise errors.InUse(
                f"volume {self.volume}",
                f"its {self.intent.operation} of {self.intent.started} was interrupted while {self.intent.attachment} changed to another image",
                "run the task on the machine's host, with that attachment",
            )
        return self.observed.switched

    def _exists(self, file: str) -> None:
        if file not in self.observed.files:
            raise self.differs(f"file {file}", "no such file")

    def _has(self, image: model.Image, backings: set) -> None:
        if image.format != "qcow2":
            return
        now = self.observed.files[image.file]
        if now.backing_file not in backings:
            raise self.differs(f"{image.file} on {' or '.join(sorted(map(str, backings)))}", f"it on {now.backing_file}")
        sizes = {volume.image(image.file).size for volume in (self.intent.before, self.intent.after) if volume and image.file in volume.files}
        if now.size not in sizes:
            raise self.differs(f"{image.file} with {' or '.join(str(size) for size in sorted(sizes))} bytes", f"{now.size}")


def _resume_snapshot(check: _Check, present: model.Volume | None) -> Resumption:
    """If the overlay was published, the snapshot is finished, unless its group was not decided. Otherwise the snapshot is undone."""
    intent, observed, name = check.intent, check.observed, check.volume
    overlay = next((step for step in intent.steps if isinstance(step, CreateOverlay)), None)
    info = next((step for step in intent.steps if isinstance(step, WriteInfo)), None)
    if overlay is None or info is None:
        raise check.differs("an overlay in its record", "none")
    published = overlay.file in observed.files
    if published and observed.backing(overlay.file) != overlay.backing_file:
        raise check.differs(f"{overlay.file} on {overlay.backing_file}", f"it on {observed.backing(overlay.file)}")
    if observed.lost:
        return _resume_lost(check, present, overlay, info)
    if published and (observed.decided or check.info_is(info)):
        if not check.info_is(info):
            check.info_as_before()
        return Resumption(intent.operation, "finished", Plan(intent.operation, name, (info,), present, intent.after))
    check.info_as_before()
    if present is None or present.active.file != intent.before.active.file:
        raise check.differs(f"active file {intent.before.active.file}", present.active.file if present else "no readable volume")
    undo: tuple[Step, ...] = (write_info(present), Unlink(overlay.file)) if published else (WriteRecord(name),)
    after = replace(present, pending=None)
    empty = (overlay.file,) if intent.members else ()
    return Resumption(intent.operation, "undone", Plan(intent.operation, name, undo, present, after), empty=empty)


def _resume_lost(check: _Check, present: model.Volume | None, overlay: CreateOverlay, info: WriteInfo) -> Resumption:
    """The snapshot is undone, whatever ``.info`` says, if nobody has used the overlay. Who calls this has seen to that."""
    intent, name = check.intent, check.volume
    if overlay.file not in check.observed.files or not check.info_is(info):
        check.info_as_before()
    before = replace(intent.before, adopted=True, pending=None)
    undo: tuple[Step, ...] = (write_info(before), Unlink(overlay.file)) if overlay.file in check.observed.files else (WriteRecord(name),)
    return Resumption(intent.operation, "undone", Plan(intent.operation, name, undo, present or before, before), empty=(overlay.file,))


def _undo_receipt(intent: Intent, observed: ObservedState, name: str, present: model.Volume | None) -> Resumption:
    """A point that was not published is undone: only with its source at hand could it go on. Nobody but the task knew the new files.

    A file that had one of their names already is somebody else's. It does not rest on what the new one was to rest on."""
    before = replace(intent.before, adopted=True, pending=None)
    steps = [step for step in intent.steps if isinstance(step, (CreateOverlay, ReceiveOverlay)) and step.file in observed.files]
    made = [step.file for step in steps if observed.backing(step.file) == step.backing_file]
    undo: tuple[Step, ...] = (write_info(before), *(Unlink(file) for file in reversed(made))) if made else (WriteRecord(name),)
    return Resumption(intent.operation, "undone", Plan(intent.operation, name, undo, present or before, before))


def _resume_flatten(check: _Check, present: model.Volume | None) -> Resumption:
    """A flatten has one pull. The pull is complete when the header names no backing file any more. Then the parent may already be
    removed, and the header stays as it is."""
    intent, name = check.intent, check.volume
    check.info_as_before()
    check.chain_between()
    base = intent.before.own_base.file
    done = check.observed.backing(base) is None
    steps: tuple[Step, ...] = (WriteRecord(name),) if done else intent.steps
    return Resumption(intent.operation, "finished", Plan(intent.operation, name, steps, present, intent.after))


def _resume_replacement(check: _Check, present: model.Volume | None) -> Resumption:
    """A revert to the newest snapshot, on a full share. It is done if another file has the name of the active image."""
    intent, observed, name = check.intent, check.observed, check.volume
    check.info_as_before()
    check.chain_between()
    active = intent.before.active.file
    inode = intent.proofs[active].inode if active in intent.proofs else 0
    steps = intent.steps
    if inode and observed.files[active].inode != inode:
        steps = tuple(step for step in steps if not isinstance(step, ReplaceOverlay))
    return Resumption(intent.operation, "finished", Plan(intent.operation, name, steps, present, intent.after))


def _resume_seed(check: _Check, present: model.Volume | None) -> Resumption:
    """Another seed is in the place of the old one, or it is not. What it holds is on no record, so that nothing can be done but to record which
    file is there. Where the file system does not tell, the new one counts: the task that has the content compares it anyway."""
    intent, name = check.intent, check.volume
    file = intent.before.own_base.file
    check.info_as_before()
    check.chain_between()
    now, proof = check.observed.files[file], intent.proofs.get(file, Proof(0, 0))
    is_old, is_new = 0 != proof.inode == now.inode, 0 != proof.inode != now.inode
    lengths = {0 if is_new else proof.length, *(step.size for step in intent.steps if isinstance(step, WriteSeed) and not is_old)} - {0}
    if now.length not in lengths:
        raise check.differs(f"{file} with {' or '.join(map(str, sorted(lengths)))} bytes", str(now.length))
    after = replace(intent.before, adopted=True, pending=None) if is_old else intent.after
    return Resumption(intent.operation, "undone" if is_old else "finished", Plan(intent.operation, name, (WriteRecord(name),), present, after))


def _restored_backing_files(intent: Intent, observed: ObservedState) -> list[Step]:
    """Steps that put the old backing files into the headers. Steps that move data may be done again only from where they started."""
    replaced = {step.file for step in intent.steps if isinstance(step, ReplaceOverlay)}
    steps: list[Step] = []
    for image in intent.before.own:
        if image.file not in replaced and image.backing_file is not None and observed.backing(image.file) != image.backing_file:
            steps.append(Repoint(image.file, image.backing_file, str(intent.before.image(image.backing_file).format)))
    return steps


def _not_done(intent: Intent, observed: ObservedState) -> tuple[Step, ...]:
    """All steps, but not the replacement of an overlay if that was done. Somebody may have written to the new overlay since."""
    return tuple(
        step for step in intent.steps if not (isinstance(step, ReplaceOverlay) and observed.files[step.file].backing_file == step.backing_file)
    )
