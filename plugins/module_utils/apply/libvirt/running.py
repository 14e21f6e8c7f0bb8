# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on a domain that runs, by libvirt's own verbs. libvirt changes the running domain and its definition together.

A merge of libvirt's ends by itself, so nothing can be made durable before the header shows it. What can be lost by that is said in
docs/live.md. The newest snapshot goes while the domain is suspended for a moment: then the old and the new active image show the same
while ``.info`` is written, and the guest writes to neither.
"""

from __future__ import annotations

import os
import time
from typing import Callable, ContextManager, Iterable, Mapping

from ...errors import ChainBroken, NeedsRecovery, ToolFailed
from ...pace import Pace
from ...plan import intent_fields
from ...plan.plan import CREATE_SNAPSHOT, Plan
from ...plan.steps import Commit, CreateOverlay, Grow, Repoint, SetAttributes, Step, WriteInfo
from ...store import qcow2
from ...store.metadata import info_file
from ...store.metadata.records import Disk as DiskMark
from ..engine import Session
from ..merges import is_taken
from ..openers import kept_closed
from .connection import ACTIVE_COMMIT, COMMIT, RUNNING, Job, Refused, Unreachable
from .definition import Disk, Unreadable
from .domain import VolumeDomain, told
from .guardian import Guardian

_POLL, _LONGEST_POLL = 0.02, 0.5  # seconds between two looks at a job, at first and later
_FORMATS = ("raw", "qcow2", "file", "host_device")  # that QEMU names for images; the last two for raw ones without a format layer
_SETTLED = 30.0  # seconds for libvirt to say what a call has done


class RunningSession:
    """The :class:`engine.Session` for a domain that runs.

    :param files: a session that holds no images. It makes new files. :param known: all files that may be in the disk's chain.
    :param pace: how fast data moves, and for how long. :param ended: is told that pace at the end.
    :param resumes: an interrupted task has suspended the domain.
    """

    def __init__(
        self, machine: VolumeDomain, plan: Plan, files: Session, known: tuple[str, ...], pace: Pace, ended: Callable[[Pace], None], resumes: bool = False
    ) -> None:
        self._pace, self._ended = pace, ended
        self.machine, self._plan, self._files, self._known = machine, plan, files, known
        self._directory, self._domain = machine.directory, machine.domain
        self._top = machine.file_of(self._disk().images[0].path, known)  # the file that the guest writes to
        self._resumes, self._guardian = resumes, None  # type: bool, Guardian | None
        self._begun = self._withdrawn = False
        self._methods: dict[type, Callable] = {
            CreateOverlay: self._create_overlay,
            Grow: self._grow,
            Repoint: self._repoint,
            Commit: self._commit,
            SetAttributes: files.do,
        }

    def __enter__(self) -> RunningSession:
        self._files.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._guardian is not None:
            self._guardian.let_decide()
            self._guardian = None
        self._ended(self._pace)
        self._files.__exit__(*exc)

    def can(self, step: Step) -> bool:
        """See :meth:`engine.Session.can`."""
        return type(step) in self._methods

    def do(self, step: Step) -> None:
        """See :meth:`engine.Session.do`."""
        self._pace.step(step.moves())
        with self._told():
            self._methods[type(step)](step)

    def prepared(self, steps: Iterable[Step]) -> ContextManager[Mapping[str, DiskMark]]:
        """See :meth:`engine.Session.prepared`."""
        return self._files.prepared(steps)

    def closing(self, file: str) -> ContextManager[None]:
        """See :meth:`engine.Session.closing`. QEMU has closed the file by then."""
        return kept_closed(self._directory, file)

    def _told(self) -> ContextManager[None]:
        return told(self.machine.subject, self.machine.attachment)

    def _disk(self) -> Disk:
        return self.machine.disk(False, self._known)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def _create_overlay(self, step: CreateOverlay) -> None:
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
        if self._withdrawn or plan.after is None or not is_taken(plan):
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
        return is_taken(self._plan)

    def _require_empty(self, overlay: str) -> None:
        """:raises NeedsRecovery: something was written to the overlay, while this domain wrote to the image under it."""
        with self._directory.root.opened(overlay) as fd:
            if qcow2.is_empty(fd, qcow2.read_header(fd)):
                return
        raise NeedsRecovery(
            self.machine.subject,
            f"another machine has written to its active image {overlay}, and this one writes to the image under that",
            "stop both, and decide which of the two counts; see docs/worst-day.md",
        )

    def require_used(self, overlay_path: str) -> None:
        """:raises ToolFailed: the guest does not write to the overlay, although libvirt says so."""
        after = self._plan.after
        if after is not None and self.machine.file_of(self._disk().images[0].path, [after.active.file]) is None:
            problem = f"libvirt says that the guest writes to {overlay_path}, and it does not"
            raise ToolFailed(self.machine.subject, problem, "shut the domain off, and run the task again")

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
        except (Refused, Unreachable, Unreadable):
            return None if self._directory.root.status(after.active.file) is None else False
        self._withdrawn = True
        return True

    # -- merges ------------------------------------------------------------------------------------------------------

    def _commit(self, step: Commit) -> None:
        """What the guest writes to is merged last, by :meth:`settle`."""
        if step.file != self._top or not self._leaves_top():
            self._merge(step.file, step.into)

    def _repoint(self, step: Repoint) -> None:
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

    def _place(self, file: str, disk: Disk) -> int | None:
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
            self._await(disk.target)
            if self._place(upper, self._disk()) is not None:
                problem = f"the merge of {upper} into {into} has ended, and {upper} is in use still"
                raise ToolFailed(self.machine.subject, problem, "look at QEMU's log (a full share, an image that somebody reads), and run the task again")
            self._sync(into)
            self._require_header(child, into)

    def _start(self, target: str, top: str | None, base: str) -> None:
        """Begin a merge. What libvirt refuses has changed nothing."""
        try:
            self._domain.commit(target, top, base, self._pace.speed)
        except Refused:
            raise
        except BaseException:
            self._begun = True
            raise
        self._begun = True

    def _await(self, target: str) -> None:
        """Wait until a merge has ended. :raises OutOfTime: it had no time, and was cancelled. :raises InUse: there is another job."""
        until, pause = self._pace.until(), _POLL
        while True:
            job = self._domain.job(target)
            if job is None:
                return
            self._tell(job)
            if job.kind != COMMIT:
                self.machine.refuse(f"another program's job works on disk {target}", "wait until it has ended, and run the task again")
            if until is not None and time.monotonic() > until:
                self._domain.cancel(target)
                raise self._pace.out_of_time()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL)

    def _tell(self, job: Job) -> None:
        if self._pace.part is not None:
            self._pace.part.tell(job.current, job.end)

    def _sync(self, file: str) -> None:
        with self._directory.root.opened(file) as fd:
            self._directory.waiting.sync_file(fd)

    def _require_header(self, file: str, backing: str | None) -> None:
        """Before anything is removed that the header may still name. :raises ChainBroken: it does not name ``backing``, or with no format."""
        self._sync(file)
        with self._directory.root.opened(file) as fd:
            header = qcow2.read_header(fd)
        if header.backing_file != backing or header.backing_format not in _FORMATS:
            raise ChainBroken(
                self._directory.root.subject(file),
                f"after the merge its header names {header.backing_file} ({header.backing_format}), not {backing}",
                "nothing was removed; shut the domain off, and run the task again",
            )

    def _grow(self, step: Grow) -> None:
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
            raise ToolFailed(self.machine.subject, problem, "look at the share's storage and at QEMU's log, and run the task again")

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
        is_running = self._domain.state().state == RUNNING
        self._resumes = self._resumes or is_running  # an interrupted task may have suspended it already
        announce(intent_fields.SWITCHING_SUSPENDED if self._resumes else intent_fields.SWITCHING)
        self._guardian = Guardian(self.machine, disk.target, new, self._write_info, self._resumes)
        if is_running:
            self._domain.suspend()
        self._domain.pivot(disk.target)
        until = time.monotonic() + _SETTLED
        while self.machine.file_of(self._disk().images[0].path, [new]) is None:
            if time.monotonic() > until:
                problem = f"libvirt says that the guest has left {self._top}, and it has not"
                raise ToolFailed(self.machine.subject, problem, "shut the domain off, and run the task again")
            time.sleep(_POLL)
        with self._directory.root.opened(new) as fd:
            os.fsync(fd)

    def _await_ready(self, target: str) -> None:
        """Wait until an active commit has copied all. libvirt's own numbers may say so too early."""
        until, pause = self._pace.until(), _POLL
        while True:
            disk, job = self._disk(), self._domain.job(target)
            if job is None or job.kind != ACTIVE_COMMIT:
                raise ToolFailed(self.machine.subject, f"the merge of {self._top} has ended early", "look at QEMU's log, and run the task again")
            self._tell(job)
            if disk.is_ready:
                return
            if until is not None and time.monotonic() > until:
                self._domain.cancel(target)
                raise self._pace.out_of_time()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL)

    def _write_info(self) -> None:
        """What the executor does next. The guardian does it if the task dies before."""
        step = next(one for one in self._plan.steps if isinstance(one, WriteInfo))
        data = info_file.Info(step.active, step.snapshots).to_bytes()
        like = next((file for file in (step.file, step.active) if self._directory.root.status(file) is not None), None)
        self._directory.write_record(self._plan.volume, self._directory.root, step.file, data, like, None, "blocks")

    def go_on(self) -> None:
        """Let the guest go on, if it was suspended. ``.info`` names durably what it writes to."""
        with self._told():
            if self._resumes and self._domain.state().state != RUNNING:
                self._domain.resume()
            self._resumes = False
            if self._guardian is not None:
                self._guardian.dismiss()
                self._guardian = None
