# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a task works: what the user said, and what all changes of the task share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable

from ..store.files.waiting import Waiting

if TYPE_CHECKING:
    from .. import attachments, model, progress
    from . import lease_holding, step_log
    from .bulk.batch_locks import BatchLocks
    from .capacity import Capacity


LOOKED_AT = "looked at"  # in ``kept``, of a task about many: shares that are opened for a moment, by (path, thread)
ARRIVED = "arrived"  # in ``kept``: images that volumes of the task were made from, by (share, key)


class TakesLong(BaseException):
    """Work is going to take long, and nothing has been changed yet: it can be begun anew in a process that is watched."""


@dataclass(frozen=True)
class Task:
    """What all changes of one task share.

    ``warn`` takes sentences for the user, and gives each once; ``log`` takes each step with its seconds.
    ``predicted`` is check mode's memory: volumes as earlier items would leave them, None for those that would be gone, by (share path,
    name). ``assumed`` are volumes that check mode assumes to be there, in the same form. ``failed`` are volumes that items were to make
    or to change, and could not, in the same form. ``batch_locks`` are the locks under which a part of the task works, ``waiting`` is how its parts wait.
    ``meter`` notes how far the work is, if anybody watches. ``begins_anew``: if the first change of the task is going to take long, it raises
    :class:`TakesLong` instead, and the task begins anew.
    """

    warn: Callable[[str], None] = lambda _text: None
    log: step_log.StepLog | None = None
    predicted: dict = field(default_factory=dict)
    assumed: set = field(default_factory=set)
    failed: set = field(default_factory=set)
    kept: dict = field(default_factory=dict)
    batch_locks: BatchLocks | None = None
    waiting: Waiting = field(default_factory=Waiting)
    meter: progress.Meter | None = None
    begins_anew: bool = False

    @property
    def may_begin_anew(self) -> bool:
        """Whether somebody wants to see how far it is, and nothing has been changed yet."""
        return self.begins_anew and "begun" not in self.kept

    @property
    def capacity(self) -> Capacity:
        """What all volumes of a share take together; it is in ``kept`` from its first use on."""
        if "capacity" not in self.kept:
            from .capacity import Capacity  # late: most tasks find all as it should be

            self.kept.setdefault("capacity", Capacity())  # threads that come at once get the same
        return self.kept["capacity"]


@dataclass(frozen=True)
class Options:
    """What the user said, whatever the task does. ``lock_timeout`` is in seconds; ``discard`` gives up a record that cannot be honoured.

    ``not_dependent`` are files that do not count as resting on what is destroyed. ``drop_bitmaps`` gives up dirty bitmaps that a merge
    cannot carry. ``attachment`` is the machine that has the images open; ``of_all``: it is named for several volumes, and may have only
    some of them. ``speed`` (bytes a second, 0: any) and ``timeout`` (seconds, None: any) are about data that moves. ``quiesce``
    is the option of that name, and ``agent`` the socket of the guest agent's channel. ``assume`` lets check mode assume what is not there yet
    (see :mod:`assumptions`). ``lease`` is the lease under which the task works. ``permit`` raises an error if a volume, as it was seen under its
    lock, may not be changed.
    """

    check: bool = False
    lock_timeout: float = 90
    break_lock: bool = False
    assume_unused: bool = False
    discard: bool = False
    not_dependent: tuple[str, ...] = ()
    drop_bitmaps: bool = False
    attachment: attachments.Attachment | None = None
    of_all: bool = False
    speed: int = 0
    timeout: float | None = None
    quiesce: str = "false"
    agent: str | None = None
    assume: bool = False
    lease: lease_holding.HeldLease | None = None
    permit: Callable[[model.Volume], None] | None = None
    task: Task = field(default_factory=Task)


def end(options: Options) -> None:
    """Remove what a task, or a copy of its process, needs only while it lasts: images that volumes were made from, opened shares."""
    if LOOKED_AT in options.task.kept:
        from .up_to_date import close_all

        close_all(options)
    if ARRIVED in options.task.kept:
        from .importing import forget_all

        forget_all(options)
