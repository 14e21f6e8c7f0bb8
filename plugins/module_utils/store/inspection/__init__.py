# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A strict look at images that somebody else made: which format, how large, and whether they are one whole disk in one file.

Everything here only reads, within the file and in bounded memory. An image that passes leads to no other file, by whatever program it
is read then. QEMU is told the format that was found here, and never guesses.
"""

from __future__ import annotations

import os
from typing import Callable, NamedTuple

from .. import qcow2
from . import marks, vdi, vhdx, vmdk, vpc
from .source import Refused, Source

__all__ = ["FORMATS", "Inspected", "Refused", "inspect"]


SECTOR = 512  # bytes


class Inspected(NamedTuple):
    """``size`` is the virtual size in bytes, that of a raw file in whole sectors, ``held`` bytes of clusters with data (0: its format does not say it)."""

    format: str
    size: int
    held: int = 0


def _raw(source: Source) -> int:
    if not source.size:
        raise Refused("it is empty")
    return -(-source.size // SECTOR) * SECTOR


def _qcow2(source: Source) -> tuple[int, int]:
    """Its virtual size, and the bytes of data in it, however small compression makes them (0 if there are too many tables to look at)."""
    try:
        header = qcow2.read_header(source.fd)
        qcow2.require_whole(source.fd)
        if header.backing_file is not None:
            raise Refused("it rests on another image (a backing file)", is_unsafe=True)
        if not header.size:
            raise Refused("it is a disk of no size")
        tables = qcow2.allocation(source.fd, header) or {}
    except qcow2.Qcow2Error as error:
        raise Refused(str(error), is_unsafe=not isinstance(error, qcow2.CutShort)) from error
    return header.size, min(header.size, sum(table.count(1) for table in tables.values()) * header.cluster_size)


def _sized(size_of: Callable[[Source], int]) -> Callable[[Source], tuple[int, int]]:
    """The inspector of a format that does not say how much data it holds."""
    return lambda source: (size_of(source), 0)


_INSPECTORS: dict[str, Callable[[Source], tuple[int, int]]] = {
    "raw": _sized(_raw),
    "qcow2": _qcow2,
    "vmdk": _sized(vmdk.inspect),
    "vdi": _sized(vdi.inspect),
    "vhdx": _sized(vhdx.inspect),
    "vpc": _sized(vpc.inspect),
}
FORMATS = tuple(_INSPECTORS)


def inspect(fd: int, asked: str | None = None) -> Inspected:
    """What an opened regular file is.

    :param asked: one of :data:`FORMATS`, which it must be; None: what its marks say, and raw where it has none.
    :raises Refused: it is something else, or two things at once, or not one whole disk.
    """
    source = Source(fd)
    found = sorted(marks.formats(source))
    if len(found) > 1:
        raise Refused(f"it has the marks of several formats ({', '.join(found)}), so that programs would read it differently", is_unsafe=True)
    is_format = found[0] if found else "raw"
    if is_format not in _INSPECTORS:
        raise Refused(f"it is of the format {is_format}, which is not taken")
    if asked not in (None, is_format):
        raise Refused(f"it is of the format {is_format}, and not {asked}")
    size, held = _INSPECTORS[is_format](source)
    if os.fstat(fd).st_size != source.size:
        raise Refused("somebody changes the file meanwhile")
    return Inspected(is_format, size, held)


def is_packed(head: bytes) -> bool:
    """Whether a file that begins so is about as long as its data: it has the mark of a format without holes, or of a compression."""
    return any(head.startswith(mark.word, mark.offset) for mark in (*marks.TAKEN, *marks.OTHERS) if mark.offset >= 0)
