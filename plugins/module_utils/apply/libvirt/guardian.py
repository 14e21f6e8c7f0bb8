# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guardian of a domain that is suspended while its disk gets another active image (see :mod:`guardians`).

The domain decides: if it is on the new image, ``.info`` must name that before the guest may write to it. If it is on the old one, the job is
cancelled. Only then the guest goes on. The guardian does not give up while the domain's QEMU lives, because neither would be right.
"""

from __future__ import annotations

import time
from typing import Callable

from ... import errors
from .. import guardians
from . import definition
from .connection import ACTIVE_COMMIT, PAUSED, Domain, Refused, Unreachable, separate_connection
from .domain import VolumeDomain, process_of

_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds between two attempts, at first and later


class Guardian(guardians.GuardianProcess):
    """Watches over the change of one disk.

    :param machine: the domain, with the volume as it is before. :param new: the file that the guest is to write to.
    :param write_info: writes durably the ``.info`` that names it. :param resumes: whether the guest has to go on.
    """

    def __init__(self, machine: VolumeDomain, target: str, new: str, write_info: Callable[[], None], resumes: bool) -> None:
        self._machine, self._target, self._new = machine, target, new
        self._write_info, self._resumes = write_info, resumes
        machine.directory.make_private("tmp")  # opened now, so that the child need not
        super().__init__(machine.subject, self._decide)

    # -- in the child ------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        pause = _PAUSE
        while not self._has_gone_on():
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _has_gone_on(self) -> bool:
        try:
            connection = separate_connection(self._machine.attachment.uri)
            try:
                domain = connection.find(self._machine.domain.uuid)
                if domain is None or domain.state().state != PAUSED:
                    return True  # it is off or gone, or somebody else has resumed it. The next task asks which image it has
                self._settle(domain)
                if self._resumes:
                    domain.resume()
                return True
            finally:
                connection.close()
        except (Refused, Unreachable, definition.Unreadable, errors.StorageError, OSError):
            return process_of(self._machine.domain.uuid) is None  # without libvirt only its process tells that it is gone

    def _settle(self, domain: Domain) -> None:
        """Let ``.info`` and the domain agree. :raises Refused: that is not possible yet."""
        machine = VolumeDomain(domain, self._machine.attachment, self._machine.directory, self._machine.volume)
        job = domain.job(self._target)
        if job is not None and job.kind == ACTIVE_COMMIT:
            domain.cancel(self._target)  # a pivot that is under way is over then
        files = (self._new, *machine.volume.files)
        if machine.file_of(machine.disk(False, files).images[0].path, files) == self._new:
            self._write_info()
