# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drops the data of an image that will be removed, in place. No new block is needed, so it works on a full share."""

from __future__ import annotations

import errno
import os
import struct

from . import l2_entries, layout, reading, writing

_PAGE = 4096  # bytes that are written at a time, and only if they change: writing zeros into a hole would need a block


def drop_data(fd: int) -> int:
    """Drop all data of an image, so that it shows just its backing file. It stays valid, with the same size, backing file and length.

    Returns an offset in bytes: from there to the end of the file nothing is used any more, and the caller may free it. That is
    durable on return. A crash before leaves an image in which some of the data is gone.

    :raises Qcow2Error: the image is damaged, has bitmaps or extensions that lead to clusters, or its file system is full and needs
        new blocks even to write in place. :raises OSError: it is unknown what is durable.
    """
    header = reading.read_header(fd)
    table_offset, blocks = l2_entries.refcount_table(fd, header)
    if header.bitmaps or header.unknown_extensions or header.internal_snapshots or not blocks or not blocks[0]:
        raise layout.Qcow2Error("more than its tables leads to its clusters")
    size = header.cluster_size
    l1_bytes = header.l1_entries * 8
    ends = (size, header.l1_offset + l1_bytes, table_offset + len(blocks) * 8, blocks[0] + size)
    if min(header.l1_offset, table_offset, blocks[0]) < size or any(block % size for block in blocks):
        raise layout.Qcow2Error("its tables are not where the format wants them")
    kept = -(-max(ends) // size) * size
    _write_changed(fd, bytes(l1_bytes), header.l1_offset)
    os.fsync(fd)  # the L1 table must be empty before the tables that it led to are gone
    _write_changed(fd, struct.pack(f">{len(blocks)}Q", *(block if block < kept else 0 for block in blocks)), table_offset)
    os.fsync(fd)
    return kept


def _write_changed(fd: int, data: bytes, offset: int) -> None:
    for start in range(0, len(data), _PAGE):
        part = data[start : start + _PAGE]
        if os.pread(fd, len(part), offset + start) == part:
            continue
        try:
            writing.write_whole(fd, part, offset + start)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise layout.Qcow2Error("it cannot be written in place") from error
