# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guardian of a guest whose writes wait for the end of a job (see :mod:`guardians`).

It has the task's connection to the monitor. What it does if the task dies is decided by the share alone. First it removes the volume's
temporary files: if the new ``.info`` still was one, nothing can publish it any more, not even a rename that is still under way to a
server. Then it reads ``.info``. If that names the new image the job may end, else it is cancelled. Both are right at this moment, and
exactly one agrees with ``.info``.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ... import errors, model
from ...store.files.directory import ShareDirectory
from ...store.metadata import info_file
from .. import guardians
from . import answers, client

_ATTEMPTS, _PAUSE = 100, 0.1  # to read .info, and seconds between them


class Guardian(guardians.GuardianProcess):
    """Watches over one job that rests.

    :param new: the file that ``.info`` is going to name. :param job: the job's name. :param old: the node of the present active image.
    """

    def __init__(self, monitor: client.Monitor, directory: ShareDirectory, volume: str, new: str, job: str, old: str) -> None:
        self._monitor, self._directory = monitor, directory
        self._volume, self._new, self._job, self._old = volume, new, job, old
        directory.make_private("tmp")  # opened now, so that the child need not
        super().__init__(f"volume {volume} on {directory.share.label}", self._decide)

    # -- in the child ------------------------------------------------------------------------------------------------

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
        except client.QmpError:
            return False  # it has another state by now
        except answers.Strange:
            return True
        except client.Lost as lost:
            return lost.is_closed and not self._is_there_again()

    def _is_there_again(self) -> bool:
        """Whether QEMU takes a new connection in place of one that has ended."""
        try:
            monitor = client.connect(self._monitor.path)
        except errors.StorageError:
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
                if self._directory.root.status(model.info_name(self._volume)) is not None:
                    with self._directory.root.opened(model.info_name(self._volume)) as fd:
                        os.fsync(fd)
                os.fsync(self._directory.root.fd)
                info = info_file.read(self._directory, self._volume)
                return info is not None and info.active == self._new
            except Exception:  # whatever it is, somebody's disk waits for an answer
                time.sleep(_PAUSE)
        return None


def leave_behind(monitor: client.Monitor, directory: ShareDirectory, volume: str, old: str) -> None:
    """Let QEMU write what it holds of the image that the guest has left, and then renew the time of ``.info``. So whoever ends the task's
    work sees from the times that nobody wrote to that image after ``.info``.

    :param old: the image's node.
    """
    with suppress(client.QmpError, client.Lost, answers.Strange):
        monitor.run("human-monitor-command", command_line=f'qemu-io {old} "flush"')
    with suppress(OSError):
        os.utime(model.info_name(volume), dir_fd=directory.root.fd)
