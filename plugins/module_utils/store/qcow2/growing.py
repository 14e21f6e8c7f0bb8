# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Raises the virtual size of an image. The new part shows zeros, and a crash leaves the old size or the new one."""

from __future__ import annotations

import os
import struct

from . import layout, reading, tails, writing


def grow(fd: int, size: int) -> bool:
    """Raise the virtual size to ``size`` bytes by writing one sector. Returns False, with the size unchanged, if qemu-img has to do it.

    Data of the image behind its virtual end is removed first, durably (see :mod:`tails`); qemu-img would not remove it either. qemu-img
    is needed if the L1 table has no room, or the image has internal snapshots, bitmaps or reference counts to be repaired. The L1
    table may use all of its last cluster (section "L1 and L2 tables"), if the rest of that is zero.
    The new part shows what the backing file has there. For overlays over longer files use qemu-img instead.

    :raises Unsuited: data behind the end cannot be removed in place. Nothing was written.
    :raises Qcow2Error: the header is not valid, or the size is smaller or no multiple of 512. Nothing was written.
    """
    header = reading.read_header(fd)
    if size < header.size or size % layout.SECTOR:
        raise layout.Qcow2Error(f"its size cannot be raised from {header.size} to {size} bytes")
    if size > header.size:
        tails.clear_tail(fd)
    needed = header.l1_needed(size)
    table = header.l1_entries * 8
    room = min((table + header.cluster_size - 1) // header.cluster_size * header.cluster_size, layout.MAX_L1_BYTES)
    if needed * 8 > room or header.internal_snapshots or header.dirty or header.bitmaps:
        return False
    if needed > header.l1_entries and not reading.is_zero(fd, header.l1_offset + table, needed * 8 - table):
        return False
    if os.fstat(fd).st_size < header.l1_offset + room:
        os.ftruncate(fd, header.l1_offset + room)
    sector = writing.first_sector(fd, header)
    struct.pack_into(">Q", sector, 24, size)
    struct.pack_into(">I", sector, 36, max(needed, header.l1_entries))
    writing.write_whole(fd, bytes(sector), 0)
    os.fsync(fd)
    return True
