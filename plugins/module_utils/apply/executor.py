# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out plans: a durable intent, the steps in order, a durable final record, and only then the removal of files.

It also ends interrupted tasks: :mod:`recovery` says how, :meth:`Executor.finish` does it. An engine does the steps that make or
change images (see :mod:`engine`).
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Callable, Iterable, Iterator, Mapping, Sequence

from .. import errors, model, pace
from ..plan import grouping, room, steps
from ..plan import intent as intents
from ..plan.plan import CREATE_SNAPSHOT, RECEIVE, REPLACE_SEED, Plan, lost_snapshots
from ..plan.resumption import Resumption
from ..store.files import access
from ..store.files.directory import ShareDirectory
from ..store.metadata import records
from ..store.metadata.points import checksums_of_points, marks_of_points, without_lost
from ..store.volumes import raw_disks
from ..store.volumes.look import Look
from . import group_records, info_writing, recovery, unchanged
from .engine import CopySource, Engine, Session, predict_end
from .interrupted import Interrupted, forget_groups

# Takes the name of a volume, a step (what describe() returns, with "share", and "failed" if it failed), and the seconds that it took.
StepLog = Callable[[str, dict, float], None]


class Executor:
    """Applies plans to volumes of one share while the caller holds their locks.

    :param engine: the engine for the images of that share.
    :param warn: takes sentences for the user.
    :param log: takes each step when it is done or has failed.
    :param look: takes the name of a volume and returns what was read of it under its lock.
    """

    def __init__(
        self,
        directory: ShareDirectory,
        engine: Engine,
        warn: Callable[[str], None],
        log: StepLog | None = None,
        look: Callable[[str], Look] | None = None,
    ) -> None:
        self._directory = directory
        self._look = look or (lambda volume: Look(directory, volume))
        self._records: dict[str, records.Record | None] = {}  # the records on the share, by name of the volume
        self._sums: Mapping[str, str] = {}  # checksums of files that were received or read
        self._engine = engine
        self._warn = warn
        self._log = log

    def apply(self, plan: Plan, source: CopySource | None = None) -> None:
        """Carry out a plan. After an error the intent stays recorded and the next task resumes it, unless no step was begun.

        :param source: what a full clone is copied from, or what a seed holds.
        """
        try:
            self._apply(plan, source)
        except errors.NoSpace:
            again = room.with_intent(plan)
            if again is None:
                raise
            self._apply(again, source)

    def _apply(self, plan: Plan, source: CopySource | None, instead_of: group_records.Group | None = None) -> None:
        """:param instead_of: the group that is on record, which has no snapshot any more. Then nothing is undone after an error."""
        self._sums = source.sums if source is not None else {}
        with self._engine.session(plan, source) as session:
            unchanged.require_unchanged(self._directory, plan.volume, plan.unchanged or {})
            if plan.intent and instead_of is not None:
                self.record_intent(plan, instead_of.name, instead_of.members)
            elif plan.intent:
                self.record_intent(plan)
            try:
                self._run(plan, session)
            except errors.StorageError as error:
                self._forget_unmade(plan)
                taken_back = instead_of is None and self._take_back(plan, session)
                if isinstance(error, pace.OutOfTime) and plan.intent and not taken_back:
                    raise _left_pending(plan, error) from error
                raise

    def apply_together(self, plans: Sequence[Plan], group: str) -> None:
        """Take one snapshot of several volumes: all or none.

        First all overlays are published. Then the decision for the group is recorded. Only then ``.info`` files name the overlays. Then
        the engine lets them be used, all at one instant. After a crash before the decision all snapshots are undone. After a later crash
        all are finished. The recovery of each volume sees from the decision which of the two it must do. Where a machine has some of
        them open, all end together (see :mod:`plan.grouping`).

        :param group: the name under which the decision is recorded.
        """
        members = tuple(plan.volume for plan in plans) if self._engine.attachment is not None else ()
        with ExitStack() as stack:
            sessions = [(plan, stack.enter_context(self._engine.session(plan))) for plan in plans]
            try:
                for plan, _session in sessions:
                    self.record_intent(plan, group, members)
                for plan, session in sessions:
                    self._do_image_steps(plan, session)
                self._decide(plans[0].volume, group)
                self._use(sessions)
            except (errors.StorageError, OSError):
                if self._may_be_taken_back(plans[0].volume, group, [session for _plan, session in sessions]):
                    for plan, session in sessions:
                        self._take_back(plan, session)
                    with suppress(errors.StorageError, OSError):
                        forget_groups(self._directory)
                raise
            for plan, _session in sessions:
                self._write_final_record(plan, ())
        self._directory.make_private("groups").unlink(group_records.group_file(group))

    def _use(self, sessions: Sequence[tuple[Plan, Session]]) -> None:
        """Let the overlays of a group be what counts."""
        for plan, session in sessions:
            session.settle(partial(self._announce, plan.volume))
        for plan, _session in sessions:
            self._write_infos(plan)
        self._engine.barrier([session for _plan, session in sessions])

    def _decide(self, volume: str, group: str, decision: bytes = group_records.DECIDED) -> None:
        """Record, durably, the decision to take the snapshots of the group, or that they are lost."""
        last = "" if decision == group_records.DECIDED else "ballast"
        self._directory.write_record(volume, self._directory.make_private("groups"), group_records.group_file(group), decision, last=last)

    def _may_be_taken_back(self, volume: str, group: str, sessions: Sequence[Session]) -> bool:
        """Whether a group that failed can be undone at once: it was not decided, or it is certain that no machine uses any of its overlays.
        Then it is decided that it gets no snapshot after all."""
        try:
            if recovery.decision_on(self._directory, group, self._engine.attachment is not None) == grouping.UNDECIDED:
                return True
            if not self._engine.withdraw(sessions):
                return False
            self._decide(volume, group, group_records.LOST)
        except (errors.StorageError, OSError):
            return False
        return True

    def _forget_unmade(self, plan: Plan) -> None:
        """Remove the record of a volume that could not be created."""
        if plan.before is None and self._directory.root.status(plan.volume) is None:
            self._forget(plan.volume)

    def _take_back(self, plan: Plan, session: Session) -> bool:
        """Undo at once what a failed plan left, if it can be undone. If that fails too (full disk), the next task does it. True if all of it
        was withdrawn."""
        if not plan.intent:
            return False
        try:
            withdrawn = session.withdraw()
            if withdrawn:
                from ..plan.planner import taken_back  # late: hardly any plan fails

                self._run(taken_back(plan), session)
                return True
            if withdrawn is None and plan.operation in (CREATE_SNAPSHOT, RECEIVE, REPLACE_SEED):
                for resumption in recovery.find_interrupted(Look(self._directory, plan.volume)).resumptions:
                    if resumption.outcome == "undone":
                        self._run(resumption.plan, session)
        except (errors.StorageError, OSError):
            pass
        return False

    # -- the order of steps ------------------------------------------------------------------------------------------

    def record_intent(self, plan: Plan, group: str | None = None, members: tuple[str, ...] = ()) -> None:
        """Record a plan durably before its first step. ``group`` names a snapshot of several volumes together. ``members`` are those
        volumes, if the plan cannot be ended without the others."""
        record = self._record(plan.volume) or records.Record()
        if plan.before is not None:
            formats = {image.file: image.format for image in plan.before.own if image.format}
            record = replace(record, formats={**record.formats, **formats}, parent=plan.before.parent, garbage=())
            record = without_lost(self._directory, plan.before, record)
        intent = intents.of_plan(plan, model.now(), self._proofs(plan), group, self._engine.name, self._engine.attachment, members, self._engine.agent)
        self._write_record(plan.volume, record.with_intent(intent.to_json()), _last_resort(plan))

    def _record(self, volume: str) -> records.Record | None:
        if volume not in self._records:
            self._records[volume] = self._look(volume).record
        return self._records[volume]

    def _proofs(self, plan: Plan) -> dict[str, intents.Proof]:
        """A proof of identity for each of the volume's own files, by name. Recovery compares it."""
        keeps_inodes, proofs = self._directory.share.keeps_inodes, {}
        for file in plan.before.own_files if plan.before else ():
            status = self._directory.root.status(file)
            if status is not None:
                proofs[file] = intents.Proof(status.st_ino if keeps_inodes else 0, status.st_size)
        return proofs

    def _run(self, plan: Plan, session: Session) -> None:
        with session.prepared(plan.steps) as made:
            for position, step in enumerate(plan.steps):
                if session.can(step):
                    self._do(session, step, plan.volume)
                elif isinstance(step, steps.WriteInfo):
                    session.settle(partial(self._announce, plan.volume))
                    self._write_info(plan, step)
                    self._engine.barrier([session])
                    self._write_final_record(plan, plan.steps[position + 1 :])
                elif isinstance(step, steps.WriteRecord):
                    self._write_final_record(plan, (), made)
        self._unlink(plan.volume, [step.file for step in plan.steps if isinstance(step, steps.Unlink)], session)
        if plan.after is None:
            self._forget(plan.volume)

    def _do_image_steps(self, plan: Plan, session: Session) -> None:
        for step in plan.steps:
            if session.can(step):
                self._do(session, step, plan.volume)

    def _write_infos(self, plan: Plan) -> None:
        for step in plan.steps:
            if isinstance(step, steps.WriteInfo):
                self._write_info(plan, step)

    def _do(self, session: Session, step: steps.Step, volume: str) -> None:
        with self._logged(volume, step.describe()):
            try:
                session.do(step)
            except OSError as error:
                raise errors.from_os_error(error, f"volume {volume} on {self._directory.share.label}") from error

    @contextmanager
    def _logged(self, volume: str, entry: dict) -> Iterator[None]:
        """Log the step that is done in this context, with the time that it took and its error, if any."""
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            entry = {**entry, "failed": f"{type(error).__name__}: {error}"}
            raise
        finally:
            if self._log is not None:
                self._log(volume, {"share": self._directory.share.source, **entry}, time.monotonic() - began)

    # -- records -----------------------------------------------------------------------------------------------------

    def _write_info(self, plan: Plan, step: steps.WriteInfo) -> None:
        self._keep_access(plan)
        with self._logged(plan.volume, step.describe()):
            info_writing.write_info(self._directory, plan.volume, step, self._warn)

    def _keep_access(self, plan: Plan) -> None:
        """Give the next active image the access of the present one. So the same users can open the volume afterwards, and nobody else.
        The overlay of a snapshot already has this access when it is made."""
        files = [volume.active.file for volume in (plan.before, plan.after) if volume is not None]
        root = self._directory.root
        if plan.operation == CREATE_SNAPSHOT or len(set(files)) < 2 or any(root.status(file) is None for file in files):
            return
        with root.opened(files[0]) as old, root.opened(files[1]) as new:
            try:
                if access.copy_access(old, new, self._directory.share.keeps_modes, self._warn, root.subject(files[1])):
                    self._directory.waiting.sync_file(new)
            except errors.ShareNotWritable as error:  # the next active image keeps its own access
                self._warn(f"{error} It has become the active image of volume {plan.volume}.")

    def _announce(self, volume: str, phase: str) -> None:
        """Record durably that the plan of a volume is in this phase."""
        record = self._record(volume)
        if record is not None and record.intent is not None:
            self._write_record(volume, record.with_intent(intents.in_phase(record.intent, phase)), "blocks")

    def _write_final_record(self, plan: Plan, later: Iterable[steps.Step], made: Mapping[str, records.Disk] | None = None) -> None:
        if plan.after is None:
            return
        garbage = [self._garbage(step.file) for step in later if isinstance(step, steps.Unlink)]
        before = self._record(plan.volume)
        disks = raw_disks.disks_of(self._directory, plan.after, before, made or {})
        marks = raw_disks.marks_of(self._directory, plan.after, before, made or {})
        identified = {file for step in plan.steps if isinstance(step, steps.WriteRecord) for file in step.identified}
        points = marks_of_points(self._directory, plan.after, before, _changed(plan), identified)
        checksums = checksums_of_points(plan.after, before, steps.written_by(plan.steps), self._sums)
        record = records.describing(plan.after, tuple(item for item in garbage if item), disks, marks, points, checksums)
        self._write_record(plan.volume, record, "" if plan.before is None else "blocks")

    def _garbage(self, file: str) -> records.Garbage | None:
        """What the final record says of a file that will be removed. None where it does not exist."""
        status = self._directory.root.status(file)
        inode = status.st_ino if status and self._directory.share.keeps_inodes else 0
        return records.Garbage(file, inode, status.st_size) if status else None

    def _write_record(self, volume: str, record: records.Record, last: str) -> None:
        """:param last: what may be used on a full share, as for :meth:`ShareDirectory.write_record`."""
        data, private = record.to_bytes(volume), self._directory.make_private("volumes")
        with self._logged(volume, {"step": "write_record" if record.intent is None else "write_intent"}):
            self._directory.write_record(volume, private, records.file_name(volume), data, last=last)
        self._records[volume] = record

    def _unlink(self, volume: str, files: list[str], session: Session) -> None:
        if not files:
            return
        for file in files:
            with self._logged(volume, steps.Unlink(file).describe()), session.closing(file):
                try:
                    self._directory.root.unlink(file)
                except OSError as error:
                    raise errors.from_os_error(error, self._directory.root.subject(file)) from error
        self._directory.root.sync()

    def _forget(self, volume: str) -> None:
        self._records[volume] = None
        private = self._directory.private("volumes")
        if private and private.unlink(records.file_name(volume)):
            private.sync()

    # -- interrupted tasks -------------------------------------------------------------------------------------------

    def finish(self, interrupted: Interrupted) -> list[Interrupted]:
        """End an interrupted task. ``interrupted.describe()`` is ``recovered`` as modules return it. Returns what was ended of other volumes
        besides: those of a group end together, or each as its own next task would do it.

        :raises InUse: somebody has an image of the volume open. Nothing was changed then.
        """
        group = interrupted.group
        self._thaw(interrupted)
        for resumption in interrupted.resumptions:
            predict_end(self._engine, resumption)
        for name in interrupted.leftovers:
            self._directory.discard_temporary(name)
        if group is not None and group.end == grouping.FINISH:
            self._finish_together([*(one for other in group.others for one in other.resumptions), *interrupted.resumptions])
            for name in [name for other in group.others for name in other.leftovers]:
                self._directory.discard_temporary(name)
            return list(group.others)
        if group is not None and group.end == grouping.GIVE_UP:
            self._decide(interrupted.resumptions[0].plan.volume, group.name, group_records.LOST)
        for resumption in interrupted.resumptions:
            self._end(resumption, group)
        return [other for other in (group.others if group is not None else ()) if self._ended(other)]

    def _thaw(self, interrupted: Interrupted) -> None:
        """First of all a guest goes on that the interrupted task may have left frozen."""
        for resumption in interrupted.resumptions:
            if resumption.agent is not None:
                volume = resumption.plan.volume
                self._engine.thaw(resumption.agent, volume)
                if resumption.outcome == "finished":
                    subject = f"volume {volume} on {self._directory.share.label}"
                    self._warn(f"{subject}: the task that took a snapshot of it was interrupted; it is not known whether the guest was frozen at that instant")

    def _ended(self, other: Interrupted) -> bool:
        """End what is left of another volume, if that is possible now. Its own next task would end it in the same way."""
        try:
            self.finish(other)
        except (errors.StorageError, OSError):
            return False
        return True

    def _end(self, resumption: Resumption, group: group_records.Group | None) -> None:
        if resumption.begins:
            self._apply(resumption.plan, None, group)
            return
        with self._engine.session_to_end(resumption) as session:
            self._require_empty(resumption)
            try:
                self._run(resumption.plan, session)
            except pace.OutOfTime as error:
                raise _left_pending(resumption.plan, error) from error

    def _finish_together(self, resumptions: Sequence[Resumption]) -> None:
        """Let the overlays of a group be used, all at one instant.

        :raises InUse: that is not possible now for one of them. Nothing was changed then.
        """
        with ExitStack() as stack:
            for resumption in resumptions:
                predict_end(self._engine, resumption)
            sessions = [(one.plan, stack.enter_context(self._engine.session_to_end(one))) for one in resumptions]
            self._use(sessions)
            for plan, _session in sessions:
                self._write_final_record(plan, ())

    def _require_empty(self, resumption: Resumption) -> None:
        """Asked while nobody can write to them. :raises NeedsRecovery: an overlay that would be removed has data."""
        for file in resumption.empty:
            if self._directory.root.status(file) is not None and not recovery.is_empty(self._directory, file):
                problem = f"its overlay {file} would be removed, and somebody has written to it"
                raise errors.NeedsRecovery(f"volume {resumption.plan.volume} on {self._directory.share.label}", problem, "see docs/worst-day.md")


def _left_pending(plan: Plan, error: pace.OutOfTime) -> pace.OutOfTime:
    """The error for a plan that ran out of time and could not be taken back."""
    going = lost_snapshots(plan.before, plan.after)
    what = f"the deletion of {model.listed(going)} is pending now (until it has ended, their data is wrong)" if going else "what was begun is pending now"
    return pace.OutOfTime(error.subject, f"{error.problem}, and {what}", "run the task again with a longer timeout; any task that changes the volume ends it")


def _last_resort(plan: Plan) -> str:
    """What may be used on a full share to record an intent: nothing, "blocks" or "ballast". A revert must not begin if it could not go on
    afterwards."""
    if not _frees_room(plan):
        return ""
    return "blocks" if not room.given_up(plan.steps) or room.gives_enough(plan) else "ballast"


def _frees_room(plan: Plan) -> bool:
    """Whether a plan may use the ballast of a full share: it frees space, and needs none for data before that."""
    return any(isinstance(step, (steps.Unlink, steps.ReplaceOverlay)) for step in plan.steps) and all(step.moves() == 0 for step in plan.steps)


def _changed(plan: Plan) -> set[str]:
    return {file for step in plan.steps for file in step.changes()}
