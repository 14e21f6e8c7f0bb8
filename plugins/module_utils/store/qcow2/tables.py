# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the L1 and L2 tables of untrusted files: which clusters are allocated."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from . import layout

if TYPE_CHECKING:
    from . import reading

_OFFSET = 0x00FFFFFFFFFFFE00  # the bits of an L1 entry that are the offset of an L2 table
_MASKED = {mask: bytes(1 if value & mask else 0 for value in range(256)) for mask in (0x01, 0x40, 0xFE, 0xFF)}
_MOST_L2_BYTES = 256 << 20  # the most that :func:`allocation` reads; its result is an eighth of that or less
_CHUNK = 1 << 20


def allocation(fd: int, header: reading.Header, most_tables: int = 4096) -> dict[int, bytes] | None:
    """Which clusters are allocated: L1 index → one byte per L2 entry, 0 for nothing, 1 for data, 2 for zeros.

    None if the image has more than ``most_tables`` L2 tables, or more than 256 MiB of them: an estimate is not worth reading
    them all.

    :raises Qcow2Error: L2 tables lie behind the end of the file, at impossible places, or several times in the L1 table.
    """
    tables = l1_table(fd, header, min(most_tables, _MOST_L2_BYTES // header.cluster_size))
    if tables is None:
        return None
    return {index: kinds(os.pread(fd, header.cluster_size, entry & _OFFSET), header) for index, entry in tables.items()}


def l1_table(fd: int, header: reading.Header, most: int) -> dict[int, int] | None:
    """L1 index → entry, for entries that lead to an L2 table. None if there are more than ``most``. Section "L1 and L2 tables".

    :raises Qcow2Error: L2 tables lie behind the end of the file, at impossible places, or several times in the L1 table.
    """
    found = {}
    last = os.fstat(fd).st_size - header.cluster_size
    for first in range(0, header.l1_entries, _CHUNK // 8):
        count = min(_CHUNK // 8, header.l1_entries - first)
        data = os.pread(fd, count * 8, header.l1_offset + first * 8)
        if len(data) < count * 8:
            raise layout.CutShort("its L1 table lies behind the end of the file (the file was cut short)")
        entries = () if data.count(0) == len(data) else struct.unpack(f">{count}Q", data)
        for index, entry in enumerate(entries, first):
            offset = entry & _OFFSET
            if offset % header.cluster_size:
                raise layout.Qcow2Error("an L2 table is not where the format wants it")
            if offset > last:
                raise layout.CutShort("an L2 table lies behind the end of the file (the file was cut short)")
            if offset:
                found[index] = entry
            if len(found) > most:
                return None
    if len({entry & _OFFSET for entry in found.values()}) < len(found):
        raise layout.Qcow2Error("two entries of its L1 table share an L2 table")
    return found


def kinds(table: bytes, header: reading.Header) -> bytes:
    """One byte per entry of an L2 table, as in :func:`allocation`, found by a few operations on all entries at once.

    Section "Standard Cluster Descriptor": bit 0 means zeros, but not in a compressed cluster's entry (bit 62). Section
    "Extended L2 Entries": the lower half of the bitmap means data, the upper half zeros.
    """
    table = table.ljust(header.cluster_size, b"\0")
    if table.count(0) == len(table):
        return bytes(header.l2_entries)
    if header.extended_l2:
        data = _where(table[0::16], 0x40) | _any_of(table, range(12, 16), 16)
        zeros = _any_of(table, range(8, 12), 16) & ~data
    else:
        compressed, zeros = _where(table[0::8], 0x40), _where(table[7::8], 0x01)
        zeros &= ~compressed
        data = compressed | (_any_of(table, range(1, 6), 8) | _where(table[6::8], 0xFE)) & ~zeros
    return (data | zeros << 1).to_bytes(header.l2_entries, "big")


def _any_of(table: bytes, places: range, step: int) -> int:
    found = 0
    for place in places:
        found |= _where(table[place::step], 0xFF)
    return found


def _where(column: bytes, mask: int) -> int:
    """A number with a byte 1 for each byte of ``column`` that has a bit of ``mask``, and a byte 0 for the others."""
    return int.from_bytes(column.translate(_MASKED[mask]), "big")
