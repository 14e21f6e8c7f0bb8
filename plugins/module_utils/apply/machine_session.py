# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sessions of all engines share that work through a machine which has the images open."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Callable, ContextManager, Iterable, Iterator, Mapping, TypeVar

from .. import errors
from ..pace import Pace
from ..plan.plan import Plan
from ..plan.steps import Step
from ..store import qcow2
from ..store.files.directory import ShareDirectory
from ..store.metadata import records
from . import engine, openers

if TYPE_CHECKING:
    from .quiescing import Quiescing

S = TypeVar("S", bound="MachineSession")


class MachineSession(ABC):
    """A part of an :class:`engine.Session`.

    :param subject: how messages name the volume. :param files: a session that holds no images. It makes new files.
    :param pace: how fast data moves, and for how long. :param ended: is told that pace at the end.
    """

    def __init__(self, directory: ShareDirectory, plan: Plan, subject: str, files: engine.Session, pace: Pace, ended: Callable[[Pace], None]) -> None:
        self._directory, self._plan, self._subject = directory, plan, subject
        self._files, self._pace, self._ended = files, pace, ended
        self._withdrawn = False
        self._methods: dict[type, Callable] = {}  # what does each kind of step

    @abstractmethod
    def _told(self) -> ContextManager[None]:
        """A context in which errors of the machine become errors for users."""

    @abstractmethod
    def _give_up(self) -> None:
        """See to it that a guest goes on which waits. If all has ended as it should, none does."""

    def __enter__(self: S) -> S:
        self._files.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._give_up()
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

    def prepared(self, steps: Iterable[Step]) -> ContextManager[Mapping[str, records.Disk]]:
        """See :meth:`engine.Session.prepared`."""
        return self._files.prepared(steps)

    def closing(self, file: str) -> ContextManager[None]:
        """See :meth:`engine.Session.closing`. The machine has closed the file by then. Its lock bytes show whether somebody else has it open."""
        return openers.kept_closed(self._directory, file)

    def _require_empty(self, overlay: str) -> None:
        """:raises NeedsRecovery: something was written to the overlay, while this machine wrote to the image under it."""
        with self._directory.root.opened(overlay) as fd:
            if qcow2.is_empty(fd, qcow2.read_header(fd)):
                return
        raise errors.NeedsRecovery(
            self._subject,
            f"another machine has written to its active image {overlay}, and this one writes to the image under that",
            "stop both, and decide which of the two counts; see docs/worst-day.md",
        )

    @staticmethod
    @contextmanager
    def resting(sessions: Iterable[MachineSession], quiescing: Quiescing | None) -> Iterator[None]:
        """A context in which the guest is frozen, if that is asked for and its agent has answered. What its disks have written is made durable
        before that, so that little is left for the time in which its programs wait."""
        if quiescing is None or quiescing.place is None:
            yield
            return
        for session in sessions:
            session._write_out(str(session._plan.after.active.backing_file) if session._plan.after is not None else "")
        with quiescing.frozen():
            yield

    def _write_out(self, file: str) -> None:
        """Make durable what the guest has written to ``file``."""
        with suppress(OSError), self._directory.root.opened(file) as fd:  # if it cannot be, QEMU says so when it switches
            os.fsync(fd)


def without_steps(plan: Plan) -> Plan:
    """A plan about the same volume for which nothing has to be held, for the session that only makes new files."""
    return Plan(plan.operation, plan.volume, (), plan.before, plan.after)
