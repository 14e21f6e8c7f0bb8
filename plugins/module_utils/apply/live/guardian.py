# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that outlives a killed task, so that a guest whose writes wait does not wait for ever.

It has the task's connection to the monitor, its locks, and a pipe that ends when the task dies. It is in no process group of the task
when that goes on, so that who kills the group does not kill it. What it does then is decided by the
share alone. First it removes the volume's temporary files: if the new ``.info`` still was one, nothing can publish it any more, not
even a rename that is still under way to a server. Then it reads ``.info``. If that names the new image the job may end, else it is
cancelled. Both are right at this moment, and exactly one agrees with ``.info``.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

from ...errors import StorageError, ToolFailed
from ...model import info_name
from ...store.files.directory import ShareDirectory
from ...store.metadata import info_file
from .answers import Strange
from .client import Lost, Monitor, QmpError, connect

_READY, _DONE = b"R", b"D"
_LOOK = 0.005  # seconds between two looks at whether it has ended
_ATTEMPTS, _PAUSE = 100, 0.1  # to read .info, and seconds between them
_WAIT = 60.0  # seconds for which a task waits for its guardian
_starting = threading.Lock()
_ends: set[int] = set()  # the task's ends of the pipes of all its guardians, which each child closes


class Guardian:
    """Watches over one job that rests.

    :param new: the file that ``.info`` is going to name. :param job: the job's name. :param old: the node of the present active image.
    """

    def __init__(self, monitor: Monitor, directory: ShareDirectory, volume: str, new: str, job: str, old: str) -> None:
        self._monitor, self._directory = monitor, directory
        self._volume, self._new, self._job, self._old = volume, new, job, old
        directory.make_private("tmp")  # opened now, so that the child need not
        try:
            ready = self._begin()
        except OSError as error:
            raise ToolFailed(
                f"volume {volume} on {directory.share.label}", f"no process can be started ({error.strerror or error})", "run the task again"
            ) from error
        with open(ready, "rb") as end:
            if end.read(1) != _READY:  # it died, or somebody killed it
                self.let_decide()
                raise ToolFailed(f"volume {volume} on {directory.share.label}", "the process that watches over the guest ended", "run the task again")

    def _begin(self) -> int:
        """Start the child. Returns the end of a pipe that says when it is out of reach of those who kill the task. :raises OSError: it cannot."""
        with _starting:
            reading, self._end = os.pipe()
            ready, telling = os.pipe()
            _ends.add(self._end)
            try:
                self._pid = os.fork()
            except OSError:
                _ends.discard(self._end)
                for end in (reading, self._end, ready, telling):
                    os.close(end)
                raise
            if self._pid == 0:
                self._watch(reading, telling)
            os.close(reading)
            os.close(telling)
        return ready

    def dismiss(self) -> None:
        """The job has ended as it should."""
        with suppress(OSError):
            os.write(self._end, _DONE)
        self.let_decide()

    def let_decide(self) -> None:
        """Stop holding it back, and wait until it has ended. If QEMU does not answer it for long, it goes on alone."""
        with _starting:
            _ends.discard(self._end)
            os.close(self._end)
        until = time.monotonic() + _WAIT
        with suppress(ChildProcessError):
            while os.waitpid(self._pid, os.WNOHANG) == (0, 0) and time.monotonic() < until:
                time.sleep(_LOOK)

    # -- in the child ------------------------------------------------------------------------------------------------

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
                self._decide()
        finally:
            os._exit(0)

    def _decide(self) -> None:
        self._monitor.inherit()
        agreed = self._names_new()
        if agreed is None:
            return  # the share is gone, and nothing that is done now could be right for certain. The next task decides.
        while not self._is_over("job-finalize" if agreed else "job-cancel"):
            time.sleep(_PAUSE)
        if agreed:
            leave_behind(self._monitor, self._directory, self._volume, self._old)

    def _is_over(self, command: str) -> bool:
        """End the job by this command, and dismiss it. False where QEMU has not answered yet, or works on it: a guest waits, however long
        it takes."""
        try:
            job = self._monitor.job(self._job)
            if job is not None and job["status"] in ("ready", "pending"):
                self._monitor.run(command, id=self._job)
            elif job is not None and job["status"] == "concluded":
                self._monitor.run("job-dismiss", id=self._job)
            return job is None
        except QmpError:
            return False  # it has another state by now
        except Strange:
            return True
        except Lost as lost:
            return lost.is_closed and not self._is_there_again()

    def _is_there_again(self) -> bool:
        """Whether QEMU takes a new connection in place of one that has ended."""
        try:
            monitor = connect(self._monitor.path)
        except StorageError:
            return True  # somebody is there, and will have time
        if monitor is None or monitor.pid != self._monitor.pid:
            return False
        monitor.turn, self._monitor = self._monitor.turn, monitor
        return True

    def _names_new(self) -> bool | None:
        """Whether ``.info`` names the new image, now and for ever. None if that cannot be read."""
        for _attempt in range(_ATTEMPTS):
            try:
                for name in self._directory.leftovers(self._volume):
                    self._directory.discard_temporary(name)
                if self._directory.root.status(info_name(self._volume)) is not None:
                    with self._directory.root.opened(info_name(self._volume)) as fd:
                        os.fsync(fd)
                os.fsync(self._directory.root.fd)
                info = info_file.read(self._directory, self._volume)
                return info is not None and info.active == self._new
            except Exception:  # whatever it is, somebody's disk waits for an answer
                time.sleep(_PAUSE)
        return None


def leave_behind(monitor: Monitor, directory: ShareDirectory, volume: str, old: str) -> None:
    """Let QEMU write what it holds of the image that the guest has left, and then renew the time of ``.info``. So whoever ends the task's
    work sees from the times that nobody wrote to that image after ``.info``.

    :param old: the image's node.
    """
    with suppress(QmpError, Lost, Strange):
        monitor.run("human-monitor-command", command_line=f'qemu-io {old} "flush"')
    with suppress(OSError):
        os.utime(info_name(volume), dir_fd=directory.root.fd)
