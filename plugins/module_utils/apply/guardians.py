# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that outlives a killed task, so that a guest which waits does not wait for ever.

It has the task's locks, and a pipe that ends when the task dies. It is in no process group of the task when that goes on, so that who
kills the group does not kill it. What it does when the task has died is said by who begins it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import Callable

from .. import errors

_READY, _DONE = b"R", b"D"
_LOOK = 0.005  # seconds between two looks at whether it has ended
_WAIT = 60.0  # seconds for which a task waits for its guardian
_starting = threading.Lock()
_ends: set[int] = set()  # the task's ends of the pipes of all its guardians, which each child closes


class GuardianProcess:
    """A guardian, whose process is ``pid``.

    :param subject: how messages name the volume. :param decide: is called in it if the task ends before it says that all is well.
    :raises ToolFailed: it could not be started. Then it has decided already.
    """

    def __init__(self, subject: str, decide: Callable[[], None]) -> None:
        self._decision = decide
        try:
            ready = self._begin()
        except OSError as error:
            raise errors.ToolFailed(subject, f"no process can be started ({error.strerror or error})", "run the task again") from error
        with open(ready, "rb") as end:
            if end.read(1) != _READY:  # it died, or somebody killed it
                self.let_decide()
                raise errors.ToolFailed(subject, "the process that watches over the guest ended", "run the task again")

    def _begin(self) -> int:
        """Start the child. Returns the end of a pipe that says when it is out of reach of those who kill the task. :raises OSError: it cannot."""
        with _starting:
            reading, self._end = os.pipe()
            ready, telling = os.pipe()
            _ends.add(self._end)
            try:
                self.pid = os.fork()
            except OSError:
                _ends.discard(self._end)
                for end in (reading, self._end, ready, telling):
                    os.close(end)
                raise
            if self.pid == 0:
                self._watch(reading, telling)
            os.close(reading)
            os.close(telling)
        return ready

    def dismiss(self) -> None:
        """All has ended as it should."""
        with suppress(OSError):
            os.write(self._end, _DONE)
        self.let_decide()

    def let_decide(self) -> None:
        """Stop holding it back, and wait until it has ended. If what it asks does not answer for long, it goes on alone."""
        with _starting:
            _ends.discard(self._end)
            os.close(self._end)
        until = time.monotonic() + _WAIT
        with suppress(ChildProcessError):
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0) and time.monotonic() < until:
                time.sleep(_LOOK)

    def _watch(self, reading: int, telling: int) -> None:
        """The whole life of the child."""
        try:
            os.setsid()
            for one in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                signal.signal(one, signal.SIG_IGN)
            for end in _ends:
                os.close(end)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for standard in range(3):
                os.dup2(nowhere, standard)  # whoever started the task waits for the end of its output
            os.write(telling, _READY)
            os.close(telling)
            if os.read(reading, 1) != _DONE:
                self._decision()
        finally:
            os._exit(0)
