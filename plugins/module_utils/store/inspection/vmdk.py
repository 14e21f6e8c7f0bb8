# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMDK: the sparse extents that hold a whole disk in one file (VMware's "Virtual Disk Format 5.0").

Taken are ``monolithicSparse`` and ``streamOptimized``. All other kinds name other files. Numbers are little-endian, and most of them
count sectors of 512 bytes.

QEMU reads the descriptor as a text up to its first zero byte, and looks for words anywhere in it. So it must have each of them once.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from .source import Refused, Source

_SECTOR = 512
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_MAGIC = b"KDMV"
_AT_END = (1 << 64) - 1
_FOOTER_BYTES = 3 * _SECTOR  # the marker of a footer, the footer, the marker of the end of the stream
_MARKER = struct.Struct("<QII")
_FOOTER, _END_OF_STREAM = 3, 0
_MOST_DESCRIPTOR = 1 << 20  # bytes
_NEWLINES = b"\n \r\n"
_COMPRESSED, _MARKERS, _ZERO_GRAINS, _NEWLINE_TEST, _SECOND_TABLE = 1 << 16, 1 << 17, 1 << 2, 1, 2
_EXTENT = re.compile(r'^\s*(RW|RDONLY|NOACCESS)\s+(\d+)\s+(\w+)(\s+"([^"]*)")?\s*(\d*)\s*$', re.MULTILINE)


class _Header(NamedTuple):
    magic: bytes
    version: int
    flags: int
    capacity: int  # sectors
    grain: int  # sectors
    descriptor: int  # sector
    descriptor_size: int  # sectors
    per_table: int  # entries
    second_directory: int  # sector
    directory: int  # sector
    overhead: int  # sectors
    unclean: int
    newlines: bytes
    compression: int


def inspect(source: Source) -> int:
    """The virtual size in bytes. :raises Refused: it is not one whole disk, or the file does not have all of it."""
    first = _read_header(source, 0)
    _require_harmless(source, first)
    header = first
    if first.directory == _AT_END:
        header = _footer(source, first)
    _require_data(source, header)
    return header.capacity * _SECTOR


def _read_header(source: Source, offset: int) -> _Header:
    header = _Header(*_HEADER.unpack_from(source.read(offset, _SECTOR, "header")))
    if header.magic != _MAGIC or header.version not in (1, 2, 3):
        raise Refused(f"it is no VMDK extent of version 1 to 3 (version {header.version})")
    if header.flags & _NEWLINE_TEST and header.newlines != _NEWLINES:
        raise Refused("a transfer as text has changed its line ends")
    if not header.capacity:
        raise Refused("its header tells no size, so that its text could name other files", is_unsafe=True)
    if header.grain < 8 or header.grain > 128 << 10 or header.grain & (header.grain - 1):
        raise Refused(f"it has grains of {header.grain} sectors")
    if header.per_table != 512 or header.capacity > 1 << 44:
        raise Refused("its tables have sizes that no program writes")
    if header.compression not in (0, 1) or bool(header.compression) != bool(header.flags & _COMPRESSED):
        raise Refused("it is compressed in a way that is not known")
    return header


def _footer(source: Source, first: _Header) -> _Header:
    """The header at the end of a stream, which counts. :raises Refused: it is not there, or says other things than the first one."""
    at = source.size - _FOOTER_BYTES
    begin, end = (_MARKER.unpack_from(source.read(offset, _SECTOR, "footer")) for offset in (at, at + 2 * _SECTOR))
    if begin != (1, 0, _FOOTER) or end != (0, 0, _END_OF_STREAM):
        raise Refused("it does not end with a footer (the file was cut short)")
    found = _read_header(source, at + _SECTOR)
    if found.directory == _AT_END or found._replace(directory=_AT_END) != first:
        raise Refused("its header and its footer contradict each other", is_unsafe=True)
    return found


def _require_harmless(source: Source, header: _Header) -> None:
    """Check the descriptor. :raises Refused: it names other files, or is not where every program looks for it."""
    if header.descriptor != 1 or not 0 < header.descriptor_size * _SECTOR <= _MOST_DESCRIPTOR:
        raise Refused("its descriptor is not where it belongs", is_unsafe=True)
    text, ending, _rest = source.read(_SECTOR, header.descriptor_size * _SECTOR, "descriptor").partition(b"\0")
    if not ending and source.at_most(_SECTOR + header.descriptor_size * _SECTOR, 1)[:1] not in (b"", b"\0"):
        raise Refused("its descriptor does not end where the header says", is_unsafe=True)
    try:
        words = text.decode("ascii")
    except UnicodeDecodeError:
        words = text.decode("latin-1")
    if "parentfilenamehint" in words.lower() or re.findall(r"parentcid\s*=\s*(\w+)", words, re.IGNORECASE) != ["ffffffff"]:
        raise Refused("it has a parent (a backing file), or does not say that it has none", is_unsafe=True)
    kinds = re.findall(r"createtype", words, re.IGNORECASE)
    kind = re.findall(r'^createType="(\w+)"\s*$', words, re.MULTILINE)
    if len(kinds) != 1 or kind not in (["monolithicSparse"], ["streamOptimized"]):
        raise Refused(f"it is of the kind {kind[0] if kind else 'unknown'}: only monolithicSparse and streamOptimized are whole disks", is_unsafe=True)
    _require_one_extent(words, header)


def _require_one_extent(words: str, header: _Header) -> None:
    begun = re.findall(r"^\s*(?:RW|RDONLY|NOACCESS)\b", words, re.MULTILINE | re.IGNORECASE)
    extents = _EXTENT.findall(words)
    if len(begun) != 1 or len(extents) != 1:
        raise Refused(f"its descriptor names {len(begun)} extents: only one whole disk in one file is taken", is_unsafe=True)
    _access, sectors, kind, _given, name, _offset = extents[0]
    if kind != "SPARSE" or not name or "/" in name or "\\" in name:
        raise Refused("its descriptor names another file", is_unsafe=True)
    if int(sectors) != header.capacity:
        raise Refused(f"its descriptor tells {int(sectors)} sectors, and its header {header.capacity}")


def _require_data(source: Source, header: _Header) -> None:
    """Check that the file has every grain that the tables lead to."""
    per_table = header.grain * header.per_table
    tables = (header.capacity + per_table - 1) // per_table
    zero = (0, 1) if header.flags & _ZERO_GRAINS else (0,)
    for part in source.table(header.directory * _SECTOR, tables * 4, "grain directory"):
        for (table,) in struct.iter_unpack("<I", part):
            if table:
                entries = source.read(table * _SECTOR, header.per_table * 4, "grain table")
                _require_grains(source, header, [entry for (entry,) in struct.iter_unpack("<I", entries) if entry not in zero])


def _require_grains(source: Source, header: _Header, grains: list[int]) -> None:
    """:param grains: their sectors."""
    for grain in grains:
        offset = grain * _SECTOR
        if header.compression and header.flags & _MARKERS:
            _address, length = struct.unpack("<QI", source.read(offset, 12, "grain"))
            if length > 2 * header.grain * _SECTOR + 4096:
                raise Refused("a grain of it is longer when it is compressed")
            source.require(offset, 12 + length, "grain")
        else:
            source.require(offset, 1 if header.compression else header.grain * _SECTOR, "grain")
