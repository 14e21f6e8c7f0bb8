# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on a domain that runs, by libvirt's own verbs. libvirt changes the running domain and its definition together.

A merge of libvirt's ends by itself, so nothing can be made durable before the header shows it. If QEMU dies in that instant, the volume shows
older data until a task has merged it again (docs/live.md). Nothing is removed before the tables show that all was written.

The newest snapshot goes while the domain is suspended for a moment: then the old and the new active image show the same while ``.info`` is
written, and the guest writes to neither.
"""

from __future__ import annotations

import os
import time
from typing import Callable, ContextManager, Sequence

from ... import errors, model
from ...pace import Pace
from ...plan import intent_fields, steps
from ...plan.plan import CREATE_SNAPSHOT, Plan
from ...store import qcow2
from .. import engine, info_writing, machine_session, merges, positions
from . import connection, definition, domain, guardian

_POLL, _LONGEST_POLL = 0.02, 0.5  # seconds between two looks at a job, at first and later
_FORMATS = ("raw", "qcow2", "file", "host_device")  # that QEMU names for images; the last two for raw ones without a format layer
_SETTLED = 30.0  # seconds for libvirt to say what a call has done


class RunningSession(machine_session.MachineSession):
    """The :class:`engine.Session` for a domain that runs.

    :param known: all files that may be in the disk's chain. :param resumes: an interrupted task has suspended the domain. The others are
        those of :class:`machine_session.MachineSession`.
    """

    def __init__(
        self,
        machine: domain.VolumeDomain,
        plan: Plan,
        files: engine.Session,
        known: tuple[str, ...],
        pace: Pace,
        ended: Callable[[Pace], None],
        resumes: bool = False,
    ) -> None:
        super().__init__(machine.directory, plan, machine.subject, files, pace, ended)
        self.machine, self._domain, self._known = machine, machine.domain, known
        self._top = machine.file_of(self._disk().images[0].path, known)  # the file that the guest writes to
        self._resumes, self._begun = resumes, False
        self._guardian: guardian.Guardian | None = None
        self._methods = {
            steps.CreateOverlay: self._create_overlay,
            steps.Grow: self._grow,
            steps.Repoint: self._repoint,
            steps.Commit: self._commit,
            steps.SetAttributes: files.do,
        }

    def _give_up(self) -> None:
        if self._guardian is not None:
            self._guardian.let_decide()
            self._guardian = None

    def _told(self) -> ContextManager[None]:
        return domain.told(self.machine.subject, self.machine.attachment)

    def _disk(self) -> definition.Disk:
        return self.machine.disk(False, self._known)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def _create_overlay(self, step: steps.CreateOverlay) -> None:
        """Publish the overlay. The domain does not use it before the barrier."""
        self._require_size(step.size)
        self._files.do(step)

    def _require_size(self, size: int) -> None:
        """libvirt compares no sizes: with a smaller overlay the guest's disk would shrink. :raises InUse: the disk has another size."""
        capacity = self._domain.capacity(self._disk().target)
        if capacity != size:
            self.machine.refuse(f"the domain's disk has {capacity} bytes, and the file on the share {size}", "shut the domain off, and run the task again")

    def next_overlay(self) -> tuple[str, str] | None:
        """Which disk has to use which path so that the guest writes to the overlay that a snapshot makes. None if it does, or if there is none."""
        plan = self._plan
        if self._withdrawn or plan.after is None or not merges.is_taken(plan):
            return None
        overlay, disk = plan.after.active.file, self._disk()
        if self.machine.file_of(disk.images[0].path, [overlay]) is not None:
            return None
        self._require_empty(overlay)
        self._require_size(plan.after.size)
        return disk.target, self.machine.path_like(disk.images[0], overlay)

    @property
    def takes(self) -> bool:
        """Whether the plan takes a snapshot."""
        return merges.is_taken(self._plan)

    def require_used(self, overlay_path: str) -> None:
        """:raises ToolFailed: the guest does not write to the overlay, although libvirt says so."""
        after = self._plan.after
        if after is not None and self.machine.file_of(self._disk().images[0].path, [after.active.file]) is None:
            problem = f"libvirt says that the guest writes to {overlay_path}, and it does not"
            raise errors.ToolFailed(self.machine.subject, problem, "shut the domain off, and run the task again")

    def withdraw(self) -> bool | None:
        """See :meth:`engine.Session.withdraw`."""
        after = self._plan.after
        if after is None:
            return False
        if self._plan.operation != CREATE_SNAPSHOT:
            return not self._begun
        try:
            if self.machine.file_of(self._disk().images[0].path, [after.active.file]) is not None:
                return False
        except (connection.Refused, connection.Unreachable, definition.Unreadable):
            return None if self._directory.root.status(after.active.file) is None else False
        self._withdrawn = True
        return True

    # -- merges ------------------------------------------------------------------------------------------------------

    def _commit(self, step: steps.Commit) -> None:
        """What the guest writes to is merged last, by :meth:`settle`."""
        if step.file != self._top or not self._leaves_top():
            self._merge(step.file, step.into)

    def _repoint(self, step: steps.Repoint) -> None:
        """Let a file rest on another one that is further down. What lies between them is empty, and is merged all the same: the domain has
        it open."""
        disk = self._disk()
        upper, lower = self._place(step.file, disk), self._place(step.backing_file, disk)
        if upper is None or lower is None:
            return  # merged by the interrupted task
        if lower > upper + 1:
            between = self.machine.file_of(disk.images[upper + 1].path, self._known)
            if between is not None:
                self._merge(between, step.backing_file)
        self._require_header(step.file, step.backing_file)

    def _place(self, file: str, disk: definition.Disk) -> int | None:
        return self.machine.place(file, disk)

    def _leaves_top(self) -> bool:
        after = self._plan.after
        return self._plan.operation != CREATE_SNAPSHOT and after is not None and after.active.file != self._top

    def _merge(self, upper: str, into: str) -> None:
        """Write into ``into`` what the images above it hold, up to ``upper``. libvirt takes them out of the chain in the same step."""
        disk = self._disk()
        self._await(disk.target)  # what the interrupted task began
        disk = self._disk()
        position, base = self._place(upper, disk), self._place(into, disk)
        if position is not None and position > 0:
            child = self.machine.file_of(disk.images[position - 1].path, self._known)
            if base is None or child is None:
                self.machine.refuse(f"{into} is not in the domain's chain any more", "look at what the domain has, and run the task again")
            top, bottom = disk.images[position].handle, disk.images[base].handle
            if top is None or bottom is None:
                self.machine.refuse("libvirt has no names for its images", "shut the domain off, and run the task again")
            self._start(disk.target, top, bottom)
            files = [self.machine.file_of(image.path, self._known) for image in disk.images[position:base]]
            self._await(disk.target, [image for image in self.machine.volume.chain if image.file in files])
            if self._place(upper, self._disk()) is not None:
                problem = f"the merge of {upper} into {into} has ended, and {upper} is in use still"
                raise errors.ToolFailed(
                    self.machine.subject, problem, "look at QEMU's log (a full share, an image that somebody reads), and run the task again"
                )
            self._sync(into)
            if self.machine.volume.image(into).format == "qcow2":
                merges.require_held(self._directory, into, [file for file in files if file is not None])
            self._require_header(child, into)

    def _start(self, target: str, top: str | None, base: str) -> None:
        """Begin a merge. What libvirt refuses has changed nothing."""
        try:
            self._domain.commit(target, top, base, self._pace.speed)
        except connection.Refused:
            raise
        except BaseException:
            self._begun = True
            raise
        self._begun = True

    def _await(self, target: str, layers: Sequence[model.Image] = ()) -> None:
        """Wait until a merge has ended. :raises OutOfTime: it had no time, and was cancelled. :raises InUse: there is another job.

        :param layers: the images whose data it moves, if they are known.
        """

        def has_ended(job: connection.Job | None) -> bool:
            if job is not None and job.kind != connection.COMMIT:
                self.machine.refuse(f"another program's job works on disk {target}", "wait until it has ended, and run the task again")
            return job is None

        self._wait(target, has_ended, layers)

    def _await_ready(self, target: str) -> None:
        """Wait until an active commit has copied all. libvirt's own numbers may say so too early."""

        def is_ready(job: connection.Job | None) -> bool:
            if job is None or job.kind != connection.ACTIVE_COMMIT:
                raise errors.ToolFailed(self.machine.subject, f"the merge of {self._top} has ended early", "look at QEMU's log, and run the task again")
            return self._disk().is_ready

        self._wait(target, is_ready)

    def _wait(self, target: str, is_over: Callable[[connection.Job | None], bool], layers: Sequence[model.Image] = ()) -> None:
        """Look at the job on a disk until that is enough. :raises OutOfTime: it had no time, and was cancelled."""
        until, pause, tell = self._pace.until(), _POLL, positions.telling(self._directory, self._pace.part, layers)
        while not is_over(job := self._domain.job(target)):
            if tell is not None and job is not None:
                tell(job.current, job.end)
            if until is not None and time.monotonic() > until:
                self._domain.cancel(target)
                raise self._pace.out_of_time()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL)

    def _sync(self, file: str) -> None:
        with self._directory.root.opened(file) as fd:
            self._directory.waiting.sync_file(fd)

    def _require_header(self, file: str, backing: str | None) -> None:
        """Before anything is removed that the header may still name. :raises ChainBroken: it does not name ``backing``, or with no format."""
        self._sync(file)
        with self._directory.root.opened(file) as fd:
            header = qcow2.read_header(fd)
        if header.backing_file != backing or header.backing_format not in _FORMATS:
            raise errors.ChainBroken(
                self._directory.root.subject(file),
                f"after the merge its header names {header.backing_file} ({header.backing_format}), not {backing}",
                "nothing was removed; shut the domain off, and run the task again",
            )

    def _grow(self, step: steps.Grow) -> None:
        """libvirt compares no sizes, and would also shrink."""
        target = self._disk().target
        capacity = self._domain.capacity(target)
        if capacity > step.size:
            self.machine.refuse(f"the domain's disk has {capacity} bytes already", "ask for that size")
        if capacity < step.size:
            self._domain.resize(target, step.size)
        with self._directory.root.opened(step.file) as fd:
            self._directory.waiting.sync_file(fd)
            size = qcow2.read_header(fd).size if step.format == "qcow2" else os.fstat(fd).st_size
        if size != step.size or self._domain.capacity(target) != step.size:
            problem = f"libvirt says that the disk has {step.size} bytes now, and {step.file} has {size}"
            raise errors.ToolFailed(self.machine.subject, problem, "look at the share's storage and at QEMU's log, and run the task again")

    # -- the change to another active image ------------------------------------------------------------------------------

    def settle(self, announce: Callable[[str], None]) -> None:
        """See :meth:`engine.Session.settle`."""
        after = self._plan.after
        if self._plan.operation == CREATE_SNAPSHOT or after is None:
            return
        with self._told():
            if self._leaves_top():
                self._leave_top(after.active.file, announce)
            self.machine.require_chain(self._disk(), after.files)

    def _leave_top(self, new: str, announce: Callable[[str], None]) -> None:
        """Merge the image that the guest writes to into the new one, and let the guest use that. It is suspended from then on."""
        disk = self._disk()
        base = self._place(new, disk)
        if base is None or disk.images[base].handle is None or self._top is None:
            self.machine.refuse(f"{new} is not in the domain's chain", "look at what the domain has, and run the task again")
        if disk.mirror is None:
            self._start(disk.target, None, str(disk.images[base].handle))
        elif self.machine.file_of(disk.mirror, [new]) is None:
            self.machine.refuse(f"another program's job works on disk {disk.target}", "wait until it has ended, and run the task again")
        self._await_ready(disk.target)
        for file in (self._top, new):  # so that little is left to write while the guest waits
            self._sync(file)
        is_running = self._domain.state().state == connection.RUNNING
        self._resumes = self._resumes or is_running  # an interrupted task may have suspended it already
        announce(intent_fields.SWITCHING_SUSPENDED if self._resumes else intent_fields.SWITCHING)
        self._guardian = guardian.Guardian(self.machine, disk.target, new, self._write_info, self._resumes)
        if is_running:
            self._domain.suspend()
        self._domain.pivot(disk.target)
        until = time.monotonic() + _SETTLED
        while self.machine.file_of(self._disk().images[0].path, [new]) is None:
            if time.monotonic() > until:
                problem = f"libvirt says that the guest has left {self._top}, and it has not"
                raise errors.ToolFailed(self.machine.subject, problem, "shut the domain off, and run the task again")
            time.sleep(_POLL)
        with self._directory.root.opened(new) as fd:
            os.fsync(fd)

    def _write_info(self) -> None:
        """What the executor does next. The guardian does it if the task dies before."""
        step = next(one for one in self._plan.steps if isinstance(one, steps.WriteInfo))
        info_writing.write_info(self._directory, self._plan.volume, step, None)

    def go_on(self) -> None:
        """Let the guest go on, if it was suspended. ``.info`` names durably what it writes to."""
        with self._told():
            if self._resumes and self._domain.state().state != connection.RUNNING:
                self._domain.resume()
            self._resumes = False
            if self._guardian is not None:
                self._guardian.dismiss()
                self._guardian = None
