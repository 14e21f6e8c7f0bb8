# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries plans out: durable intent, the steps in order, durable final record, and only then unlinking.

Also what an interrupted task left: :func:`find_interrupted` sees it, :meth:`Executor.finish` ends it.
"""

from __future__ import annotations

import os
import time
from typing import Callable, Iterable

from ..errors import NeedsRecovery, StorageError, from_os_error
from ..model import Volume, info_name
from ..plan import intent as intents
from ..plan.plan import Plan
from ..plan.steps import Step, Unlink, WriteInfo, WriteRecord
from ..store import info_file, inventory, qcow2, records
from ..store.directory import ShareDirectory
from .offline import CopySource, Guard, OfflineEngine


def now() -> str:
    """The time as records spell it: UTC, whole seconds, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Interrupted:
    """What a killed task left of a volume: resumptions to run, temporary files to remove."""

    def __init__(self, resumptions: tuple[intents.Resumption, ...] = (), leftovers: tuple[str, ...] = ()) -> None:
        self.resumptions = resumptions
        self.leftovers = leftovers

    def __bool__(self) -> bool:
        return bool(self.resumptions or self.leftovers)

    @property
    def after(self) -> Volume | None:
        return self.resumptions[-1].plan.after

    def describe(self) -> list[dict]:
        told = [item.describe() for item in self.resumptions]
        if self.leftovers:
            told.append(
                {"operation": "temporary_files", "outcome": "undone", "steps": [Unlink(name).describe() for name in self.leftovers]}
            )
        return told


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
    ) -> None:
        self._directory = directory
        self._locks = locks
        self._warn = warn
        self._assume_unused = assume_unused
        self._source = source

    def apply(self, plan: Plan) -> None:
        """Carry out a plan. On an error the intent stays on record and the next task resumes it, unless nothing was begun."""
        with self.guarded(plan) as guard:
            if plan.intent:
                self.record_intent(plan)
            try:
                self._run(plan, plan.steps, guard)
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

    def guarded(self, plan: Plan) -> Guard:
        guard = Guard(self._directory, self._assume_unused)
        try:
            guard.take(self._touched(plan.steps))
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
            record = records.Record({**record.formats, **formats}, record.snapshots, parent=plan.before.parent)
        self._write_record(plan.volume, record.with_intent(intents.of_plan(plan, now(), group).to_json()))

    def run_data_steps(self, plan: Plan, guard: Guard) -> None:
        engine = self._engine(guard)
        for step in plan.steps:
            if engine.can(step):
                self._do(engine, step, plan.volume)

    def run_final_steps(self, plan: Plan, guard: Guard) -> None:
        engine = self._engine(guard)
        self._run(plan, [step for step in plan.steps if not engine.can(step)], guard)

    def _engine(self, guard: Guard) -> OfflineEngine:
        return OfflineEngine(self._directory, self._locks, guard, self._source, self._warn)

    def _run(self, plan: Plan, steps: Iterable[Step], guard: Guard) -> None:
        engine = self._engine(guard)
        steps = list(steps)
        for position, step in enumerate(steps):
            if engine.can(step):
                self._do(engine, step, plan.volume)
            elif isinstance(step, WriteInfo):
                self._write_info(plan, step)
                self._write_final_record(plan, steps[position + 1 :])
            elif isinstance(step, WriteRecord):
                self._write_final_record(plan, ())
        self._unlink([step.file for step in steps if isinstance(step, Unlink)], guard)
        if plan.after is None:
            self._forget(plan.volume)

    def _do(self, engine: OfflineEngine, step: Step, volume: str) -> None:
        try:
            engine.do(step, volume)
        except OSError as error:
            raise from_os_error(error, f"volume {volume} on {self._directory.share.label}") from error

    # -- records -----------------------------------------------------------------------------------------------------

    def _write_info(self, plan: Plan, step: WriteInfo) -> None:
        root = self._directory.root
        like = root.status(step.file) or root.status(step.active)
        data = info_file.Info(step.active, step.snapshots).to_bytes()
        self._directory.write_record(plan.volume, root, step.file, data, like if self._directory.share.keeps_modes else None)

    def _write_final_record(self, plan: Plan, later: Iterable[Step]) -> None:
        if plan.after is None:
            return
        garbage = [self._garbage(step.file) for step in later if isinstance(step, Unlink)]
        self._write_record(plan.volume, records.describing(plan.after, tuple(item for item in garbage if item)))

    def _garbage(self, file: str) -> records.Garbage | None:
        status = self._directory.root.status(file)
        return records.Garbage(file, status.st_ino, status.st_size) if status else None

    def _write_record(self, volume: str, record: records.Record) -> None:
        self._directory.write_record(volume, self._directory.make_private("volumes"), records.file_name(volume), record.to_bytes(volume))

    def _unlink(self, files: list[str], guard: Guard) -> None:
        if not files:
            return
        for file in files:
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
        """End what an earlier task left; ``interrupted.describe()`` is ``recovered`` as modules report it."""
        for name in interrupted.leftovers:
            self._directory.discard_temporary(name)
        for resumption in interrupted.resumptions:
            with self.guarded(resumption.plan) as guard:
                self._run(resumption.plan, resumption.plan.steps, guard)


def find_interrupted(directory: ShareDirectory, name: str) -> Interrupted:
    """What is to be resumed of volume ``name``. Only meaningful under its lock; without it a prediction.

    :raises NeedsRecovery: the share is in no state that the interrupted task can have left.
    """
    record = records.read(directory, name)
    leftovers = tuple(directory.leftovers(name))
    if record is None:
        return Interrupted((), leftovers)
    if record.intent is not None:
        return Interrupted((_resumption(directory, name, intents.from_json(name, record.intent)),), leftovers)
    if not inventory.exists(directory, name):
        nothing = Plan("create_volume", name, (), None, None)
        return Interrupted((intents.Resumption("create_volume", "undone", nothing),), leftovers)
    garbage = tuple(item.file for item in record.garbage if _is_garbage(directory, name, item))
    if not garbage:
        return Interrupted((), leftovers)
    present = _readable(directory, name)
    if present is None or set(garbage) & set(present.files):
        raise NeedsRecovery(
            f"volume {name}", f"files that were to be removed are in use again ({', '.join(garbage)})", "see docs/worst-day.md"
        )
    steps = (intents.write_info(present), *(Unlink(file) for file in garbage))
    plan = Plan("unlink", name, steps, present, present)
    return Interrupted((intents.Resumption("unlink", "finished", plan),), leftovers)


def _is_garbage(directory: ShareDirectory, name: str, item: records.Garbage) -> bool:
    """Whether the file still is the one that the final record meant: same inode, same length."""
    status = directory.root.status(item.file)
    return status is not None and (status.st_ino, status.st_size) == (item.inode, item.size) and item.file != info_name(name)


def _readable(directory: ShareDirectory, name: str) -> Volume | None:
    try:
        observed = inventory.observe(directory, name)
    except StorageError:
        return None
    return observed.volume if observed else None


def _resumption(directory: ShareDirectory, name: str, intent: intents.Intent) -> intents.Resumption:
    info = info_file.read(directory, name)
    backing = {}
    for file in intents.files_to_look_at(intent):
        found = _backing(directory, file)
        if found is not None:
            backing[file] = found[0]
    decided = intent.group is None or _group_decided(directory, intent.group)
    found_state = intents.Found(info.active if info else None, info.snapshots if info else (), backing, decided)
    return intents.resume(name, _readable(directory, name), intent, found_state)


def _backing(directory: ShareDirectory, file: str) -> tuple[str | None] | None:
    try:
        with directory.root.opened(file) as fd:
            name = qcow2.read_backing_name(fd)
    except FileNotFoundError:
        return None
    return (os.path.basename(name) if name else None,)


def group_file(group: str) -> str:
    return group + ".json"


def _group_decided(directory: ShareDirectory, group: str) -> bool:
    private = directory.private("groups")
    return private is not None and private.status(group_file(group)) is not None
