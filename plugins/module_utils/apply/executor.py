# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries plans out: durable intent, the steps in order, durable final record, and only then unlinking.

Also what an interrupted task left: :mod:`recovery` sees it, :meth:`Executor.finish` ends it.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import Callable, Iterable, Iterator, Mapping

from ..errors import NoSpace, ShareNotWritable, StorageError, from_os_error
from ..model import now
from ..plan import intent as intents
from ..plan.plan import Plan
from ..plan.steps import ReplaceOverlay, Step, Unlink, WriteInfo, WriteRecord
from ..store import access, info_file, records
from ..store.directory import ShareDirectory
from ..store.disks import disks_of, marks_of
from . import making_room
from .guard import Guard, ask_resumption, ask_unwritten, existing
from .offline import CopySource, OfflineEngine
from .recovery import find_interrupted
from .remains import Interrupted

StepLog = Callable[[str, dict, float], None]  # takes a volume, what is told of a step, and how many seconds that took


class Executor:
    """Applies plans to volumes of one share while the caller holds their locks.

    :param locks: descriptors of the held locks, for programs to inherit.
    :param assume_unused: the user vouches that nobody has the images open, where the file system cannot tell.
    """

    def __init__(
        self,
        directory: ShareDirectory,
        locks: tuple[int, ...],
        warn: Callable[[str], None],
        assume_unused: bool = False,
        source: CopySource | None = None,
        log: StepLog | None = None,
    ) -> None:
        self._directory = directory
        self._locks = locks
        self._warn = warn
        self._assume_unused = assume_unused
        self._source = source
        self._log = log

    def apply(self, plan: Plan) -> None:
        """Carry out a plan. On an error the intent stays on record and the next task resumes it, unless nothing was begun."""
        try:
            self._apply(plan)
        except NoSpace:
            again = making_room.on_record(plan)
            if again is None:
                raise
            self._apply(again)

    def _apply(self, plan: Plan) -> None:
        with self.guarded(plan) as guard:
            if plan.intent:
                self.record_intent(plan)
            try:
                self._run(plan, plan.steps, guard, making_room.given_up(plan.steps) if plan.intent else ())
            except StorageError:
                self._forget_unmade(plan)
                self.undo_snapshot(plan, guard)
                raise

    def _forget_unmade(self, plan: Plan) -> None:
        """Remove the record of a volume that could not be made."""
        if plan.before is None and self._directory.root.status(plan.volume) is None:
            self._forget(plan.volume)

    def undo_snapshot(self, plan: Plan, guard: Guard) -> None:
        """Take back at once what a failed snapshot left; where that fails too (full disk), the next task does it."""
        if plan.operation != "create_snapshot" or not plan.intent:
            return
        try:
            for resumption in find_interrupted(self._directory, plan.volume).resumptions:
                if resumption.outcome == "undone":
                    self._run(resumption.plan, resumption.plan.steps, guard)
        except (StorageError, OSError):
            pass

    def guarded(self, plan: Plan, resumption: intents.Resumption | None = None) -> Guard:
        """The guard of all that the plan touches; of one that ends an interrupted task, of all images of the volume."""
        guard = Guard(self._directory, self._assume_unused)
        try:
            if resumption is None:
                guard.take(self._touched(plan.steps))
                ask_unwritten(self._directory, plan, self._assume_unused)
            else:
                guard.take(existing(self._directory, resumption.closed))
                guard.watch(existing(self._directory, resumption.unwritten))
        except BaseException:
            guard.__exit__()
            raise
        return guard

    def _touched(self, steps: Iterable[Step]) -> list[str]:
        """Existing image files that the steps write or remove."""
        wanted = {file for step in steps for file in step.touches() if not file.endswith(".info")}
        return sorted(file for file in wanted if self._directory.root.status(file) is not None)

    # -- in two halves, for groups that all get their overlays before any is recorded ------------------------------

    def record_intent(self, plan: Plan, group: str | None = None) -> None:
        record = records.read(self._directory, plan.volume) or records.Record()
        if plan.before is not None:
            formats = {image.file: image.format for image in plan.before.own if image.format}
            record = replace(record, formats={**record.formats, **formats}, parent=plan.before.parent, garbage=())
        intent = intents.of_plan(plan, now(), self._proofs(plan), group)
        self._write_record(plan.volume, record.with_intent(intent.to_json()), _last_resort(plan))

    def _proofs(self, plan: Plan) -> dict[str, intents.Proof]:
        """What proves each own file of the volume to be the same one later on."""
        keeps_inodes, proofs = self._directory.share.keeps_inodes, {}
        for file in plan.before.own_files if plan.before else ():
            status = self._directory.root.status(file)
            if status is not None:
                proofs[file] = intents.Proof(status.st_ino if keeps_inodes else 0, status.st_size)
        return proofs

    def run_data_steps(self, plan: Plan, guard: Guard) -> None:
        engine = self._engine(guard)
        for step in plan.steps:
            if engine.can(step):
                self._do(engine, step, plan.volume)

    def run_final_steps(self, plan: Plan, guard: Guard) -> None:
        engine = self._engine(guard)
        self._run(plan, [step for step in plan.steps if not engine.can(step)], guard)

    def _engine(self, guard: Guard, given_up: tuple[str, ...] = ()) -> OfflineEngine:
        return OfflineEngine(self._directory, self._locks, guard, self._source, self._warn, given_up)

    def _run(self, plan: Plan, steps: Iterable[Step], guard: Guard, given_up: tuple[str, ...] = ()) -> None:
        """:param given_up: files whose data may go first, because an intent that says so is on record."""
        steps = list(steps)
        engine = self._engine(guard, given_up)
        with engine:
            for position, step in enumerate(steps):
                if engine.can(step):
                    self._do(engine, step, plan.volume)
                elif isinstance(step, WriteInfo):
                    self._write_info(plan, step)
                    self._write_final_record(plan, steps[position + 1 :])
                elif isinstance(step, WriteRecord):
                    self._write_final_record(plan, (), engine.begin(steps[position + 1 :], plan.volume))
        self._unlink(plan.volume, [step.file for step in steps if isinstance(step, Unlink)], guard)
        if plan.after is None:
            self._forget(plan.volume)

    def _do(self, engine: OfflineEngine, step: Step, volume: str) -> None:
        with self._logged(volume, step.describe()):
            try:
                engine.do(step, volume)
            except OSError as error:
                raise from_os_error(error, f"volume {volume} on {self._directory.share.label}") from error

    @contextmanager
    def _logged(self, volume: str, told: dict) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            told = {**told, "failed": f"{type(error).__name__}: {error}"}
            raise
        finally:
            if self._log is not None:
                self._log(volume, {"share": self._directory.share.source, **told}, time.monotonic() - began)

    # -- records -----------------------------------------------------------------------------------------------------

    def _write_info(self, plan: Plan, step: WriteInfo) -> None:
        self._hand_access_on(plan)
        root = self._directory.root
        like = next((file for file in (step.file, step.active) if root.status(file) is not None), None)
        data = info_file.Info(step.active, step.snapshots).to_bytes()
        with self._logged(plan.volume, step.describe()):
            self._directory.write_record(plan.volume, root, step.file, data, like, self._warn, "blocks")

    def _hand_access_on(self, plan: Plan) -> None:
        """Before another file becomes the active one: whoever could open the volume still can, and nobody else. A snapshot's overlay
        was made so."""
        files = [volume.active.file for volume in (plan.before, plan.after) if volume is not None]
        root = self._directory.root
        if plan.operation == "create_snapshot" or len(set(files)) < 2 or any(root.status(file) is None for file in files):
            return
        with root.opened(files[0]) as old, root.opened(files[1]) as new:
            try:
                if access.copy_access(old, new, self._directory.share.keeps_modes, self._warn, root.subject(files[1])):
                    self._directory.pace.sync_file(new)
            except ShareNotWritable as error:  # it stays as accessible as it was
                self._warn(f"{error} It has become the active image of volume {plan.volume}.")

    def _write_final_record(self, plan: Plan, later: Iterable[Step], made: Mapping[str, records.Disk] | None = None) -> None:
        if plan.after is None:
            return
        garbage = [self._garbage(step.file) for step in later if isinstance(step, Unlink)]
        disks = disks_of(self._directory, plan.after, made or {})
        marks = marks_of(self._directory, plan.after, made or {})
        record = records.describing(plan.after, tuple(item for item in garbage if item), disks, marks)
        self._write_record(plan.volume, record, "" if plan.before is None else "blocks")

    def _garbage(self, file: str) -> records.Garbage | None:
        status = self._directory.root.status(file)
        inode = status.st_ino if status and self._directory.share.keeps_inodes else 0
        return records.Garbage(file, inode, status.st_size) if status else None

    def _write_record(self, volume: str, record: records.Record, last: str) -> None:
        """:param last: what may be used on a full share, as :meth:`ShareDirectory.write_record` has it."""
        data, private = record.to_bytes(volume), self._directory.make_private("volumes")
        with self._logged(volume, {"step": "write_record" if record.intent is None else "write_intent"}):
            self._directory.write_record(volume, private, records.file_name(volume), data, last=last)

    def _unlink(self, volume: str, files: list[str], guard: Guard) -> None:
        if not files:
            return
        for file in files:
            with self._logged(volume, Unlink(file).describe()):
                try:
                    # Where an open file can lose its name, the lock bytes are held until it has: nobody opens it in between.
                    if not self._directory.share.locks_visible:
                        guard.drop([file])
                    self._directory.root.unlink(file)
                except OSError as error:
                    raise from_os_error(error, self._directory.root.subject(file)) from error
                guard.drop([file])
        self._directory.root.sync()

    def _forget(self, volume: str) -> None:
        private = self._directory.private("volumes")
        if private and private.unlink(records.file_name(volume)):
            private.sync()

    # -- interrupted tasks -------------------------------------------------------------------------------------------

    def finish(self, interrupted: Interrupted) -> None:
        """End what an earlier task left; ``interrupted.describe()`` is ``recovered`` as modules report it.

        :raises InUse: somebody has an image of the volume open. Nothing was changed.
        """
        for resumption in interrupted.resumptions:
            ask_resumption(self._directory, resumption, self._assume_unused)
        for name in interrupted.leftovers:
            self._directory.discard_temporary(name)
        for resumption in interrupted.resumptions:
            with self.guarded(resumption.plan, resumption) as guard:
                self._run(resumption.plan, resumption.plan.steps, guard, making_room.given_up(resumption.plan.steps))


def _last_resort(plan: Plan) -> str:
    """What may be used on a full share to record an intent. A revert must not begin where it could not go on."""
    if not _frees_room(plan):
        return ""
    return "blocks" if not making_room.given_up(plan.steps) or making_room.gives_enough(plan) else "ballast"


def _frees_room(plan: Plan) -> bool:
    """Whether a plan is worth the ballast of a full share: it gives room back, and needs none for data on the way."""
    return any(isinstance(step, (Unlink, ReplaceOverlay)) for step in plan.steps) and all(step.moves() == 0 for step in plan.steps)
