# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an opened file has data, and where it has holes."""

from __future__ import annotations

import errno
import os
from typing import Iterator

_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def next_data(fd: int, offset: int, size: int) -> tuple[int, int]:
    """(Begin, end) in bytes of the first data at or after ``offset``; (``size``, ``size``) if there is none before ``size``.

    If the file system cannot show holes, everything counts as data.

    :raises OSError: the file system fails.
    """
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
        return min(start, size), min(os.lseek(fd, start, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        if error.errno not in _NOT_SUPPORTED:
            raise
        return offset, size


def all_data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges with data in the first ``size`` bytes of a file, as (begin, end) in bytes. :raises OSError: the file system fails."""
    end = 0
    while end < size:
        start, end = next_data(fd, end, size)
        if start < end:
            yield start, end
