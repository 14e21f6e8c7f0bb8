# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which raw disks of a volume hold nothing but what a guest writes, so that nobody takes that for a header."""

from __future__ import annotations

import os
from typing import Mapping

from ..model import Volume
from . import records
from .dependents import names_in
from .directory import ShareDirectory


def disks_of(directory: ShareDirectory, volume: Volume, made: Mapping[str, records.Disk]) -> dict[str, records.Disk]:
    """The raw disks of a volume whose content is a guest's, for its record.

    :param made: those that the task itself made. What a record knows already stays as it was; another one is taken in only while
        it names no other file: a user may have called an overlay raw, and then it is better to ask.
    """
    before = records.read(directory, volume.name)
    found: dict[str, records.Disk] = {}
    for file in [image.file for image in volume.own if image.format == "raw"]:
        disk = made.get(file) or (before.disks.get(file) if before else None)
        try:
            found.update({file: disk} if disk else _innocent(directory, file))
        except OSError:
            continue  # it is looked at again when the next record is written
    return found


def _innocent(directory: ShareDirectory, file: str) -> dict[str, records.Disk]:
    with directory.root.opened(file) as fd:
        status = os.fstat(fd)
        inode = status.st_ino if directory.share.keeps_inodes else 0
        return {} if names_in(fd) else {file: records.Disk(inode, status.st_size)}
