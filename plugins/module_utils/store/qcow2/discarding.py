# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes the data out of an image that is to go, where it lies: no new block is needed, so that it works on a full share."""

from __future__ import annotations

import errno
import os
import struct

from .l2_entries import refcount_table
from .layout import Qcow2Error
from .reading import read_header
from .writing import write_whole

_PAGE = 4096  # bytes that are written at a time, and only where they are not zero yet: a hole would want a block


def drop_data(fd: int) -> int:
    """Let an image show what lies beneath, and nothing of its own. It stays a valid image of the same size, backing file and length.

    Returns where the bytes begin that nothing in it leads to any more, up to the end of its file. The caller gives them back.
    A crash leaves an image in which some of the data is gone. What is returned is durable.

    :raises Qcow2Error: the image is damaged, has bitmaps or extensions that lead to clusters, or its file system wants new blocks
        for what is written in place and has none. :raises OSError: nobody knows what is durable.
    """
    header = read_header(fd)
    table_offset, blocks = refcount_table(fd, header)
    if header.bitmaps or header.unknown_extensions or header.internal_snapshots or not blocks or not blocks[0]:
        raise Qcow2Error("more than its tables leads to its clusters")
    size = header.cluster_size
    l1_bytes = header.l1_entries * 8
    ends = (size, header.l1_offset + l1_bytes, table_offset + len(blocks) * 8, blocks[0] + size)
    if min(header.l1_offset, table_offset, blocks[0]) < size or any(block % size for block in blocks):
        raise Qcow2Error("its tables are not where the format wants them")
    kept = -(-max(ends) // size) * size
    _write_changed(fd, bytes(l1_bytes), header.l1_offset)
    os.fsync(fd)  # before any table goes that it led to
    _write_changed(fd, struct.pack(f">{len(blocks)}Q", *(block if block < kept else 0 for block in blocks)), table_offset)
    os.fsync(fd)
    return kept


def _write_changed(fd: int, data: bytes, offset: int) -> None:
    for start in range(0, len(data), _PAGE):
        part = data[start : start + _PAGE]
        if os.pread(fd, len(part), offset + start) == part:
            continue
        try:
            write_whole(fd, part, offset + start)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Qcow2Error("it cannot be written in place") from error
