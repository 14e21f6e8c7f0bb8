# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VHDX: fixed and dynamic disks without a log to replay ([MS-VHDX], "Virtual Hard Disk v2 (VHDX) File Format"). Numbers are little-endian."""

from __future__ import annotations

import struct
import uuid
from typing import NamedTuple

from .source import Refused, Source

_KIB, _MIB = 1 << 10, 1 << 20
_MARK = b"vhdxfile"
_HEADERS, _HEADER_BYTES = (64 * _KIB, 128 * _KIB), 4 * _KIB
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGIONS, _TABLE_BYTES = (192 * _KIB, 256 * _KIB), 64 * _KIB
_TABLE = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
_METADATA = struct.Struct("<8sHH20s")
_ITEM = struct.Struct("<16sIIII")
_MOST_REGIONS, _MOST_ITEMS = 2047, 2047
_IS_USER, _IS_REQUIRED = 1, 4  # of an item of metadata
_HAS_PARENT = 2
_FULL, _PARTIAL = 6, 7  # states of a block


def _id(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


_BLOCKS_ID, _METADATA_ID = _id("2dc27766-f623-4200-9d64-115e9bfd4a08"), _id("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_PARAMETERS, _SIZE, _SECTORS = (
    _id("caa16737-fa36-4d43-b3b6-33f0aa44e76b"),
    _id("2fa54224-cd1b-4876-b211-5dbed83bf4b8"),
    _id("8141bf1d-a96f-4709-ba47-f233a8faab5f"),
)
_KNOWN = {
    _PARAMETERS: 8,
    _SIZE: 8,
    _SECTORS: 4,
    _id("cda348c7-445d-4471-9cc9-e9885251c556"): 4,  # physical sector size
    _id("beca12ab-b2e6-4523-93ef-c309e000c746"): 16,  # identifier of the disk
}
_PARENT = _id("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")


class _Place(NamedTuple):
    offset: int
    length: int


def inspect(source: Source) -> int:
    """The virtual size in bytes. :raises Refused: it rests on another disk, needs its log, or the file does not have all of it."""
    if source.at_most(0, len(_MARK)) != _MARK:
        raise Refused("it does not begin as a VHDX does")
    _require_no_log(source)
    regions = _regions(source)
    block, size, sector = _metadata(source, regions[_METADATA_ID])
    _require_blocks(source, regions[_BLOCKS_ID], block, size, sector)
    return size


def _require_no_log(source: Source) -> None:
    """Of the two headers the one with the higher number counts."""
    found = {}
    for offset in _HEADERS:
        data = source.read(offset, _HEADER_BYTES, "header")
        signature, told, number, _written, _data, log, log_version, version, _log_length, _log_offset = _HEADER.unpack_from(data)
        if signature == b"head" and told == _checksum(data):
            found[number] = (version, log_version, log)
    if not found:
        raise Refused("both of its headers are damaged")
    version, log_version, log = found[max(found)]
    if (version, log_version) != (1, 0):
        raise Refused(f"it is of version {version}, with a log of version {log_version}")
    if log != bytes(16):
        raise Refused("its log was not replayed: open it once with the program that wrote it, and close it")


def _checksum(data: bytes) -> int:
    """CRC-32C with the checksum's own four bytes, from 4 on, as zeros."""
    return crc32c(data[:4] + bytes(4) + data[8:])


def _regions(source: Source) -> dict[bytes, _Place]:
    """Where the parts of the file are. Both tables must say the same, because programs differ in which of them they read."""
    tables = [source.read(offset, _TABLE_BYTES, "region table") for offset in _REGIONS]
    data = tables[0]
    signature, told, count, _reserved = _TABLE.unpack_from(data)
    if tables[1] != data or signature != b"regi" or told != _checksum(data) or count > _MOST_REGIONS:
        raise Refused("its region tables are damaged, or differ")
    found: dict[bytes, _Place] = {}
    for number in range(count):
        name, offset, length, required = _REGION.unpack_from(data, _TABLE.size + number * _REGION.size)
        if name not in (_BLOCKS_ID, _METADATA_ID):
            if required & 1:
                raise Refused("it has a region that is not known, and without which it must not be read")
            continue
        if name in found or offset < _MIB or offset % _MIB or length % _MIB or not length:
            raise Refused("its region tables contradict themselves")
        source.require(offset, length, "region")
        found[name] = _Place(offset, length)
    if len(found) != 2:
        raise Refused("its region tables do not name all that it needs")
    return found


def _metadata(source: Source, place: _Place) -> tuple[int, int, int]:
    """Bytes of a block, of the disk and of a sector."""
    table = source.read(place.offset, _TABLE_BYTES, "metadata")
    signature, _reserved, count, _more = _METADATA.unpack_from(table)
    if signature != b"metadata" or count > _MOST_ITEMS:
        raise Refused("its metadata is damaged")
    found: dict[bytes, bytes] = {}
    for number in range(count):
        name, offset, length, flags, _more = _ITEM.unpack_from(table, _METADATA.size + number * _ITEM.size)
        if name == _PARENT:
            raise Refused("it is a differencing disk, which rests on another one", is_unsafe=True)
        if name not in _KNOWN:
            if flags & _IS_REQUIRED:
                raise Refused("it has metadata that is not known, and without which it must not be read")
            continue
        if name in found or length != _KNOWN[name] or flags & _IS_USER or offset < _TABLE_BYTES or offset + length > place.length:
            raise Refused("its metadata contradicts itself")
        found[name] = source.read(place.offset + offset, length, "metadata")
    if not {_PARAMETERS, _SIZE, _SECTORS} <= set(found):
        raise Refused("its metadata does not have all that it needs")
    block, flags = struct.unpack("<II", found[_PARAMETERS])
    if flags & _HAS_PARENT:
        raise Refused("it is a differencing disk, which rests on another one", is_unsafe=True)
    return block, int.from_bytes(found[_SIZE], "little"), int.from_bytes(found[_SECTORS], "little")


def _require_blocks(source: Source, table: _Place, block: int, size: int, sector: int) -> None:
    """Check that the file has every block that the table leads to. After a number of blocks comes an entry for a bitmap, which only
    differencing disks use."""
    if not _MIB <= block <= 256 * _MIB or block & (block - 1) or sector not in (512, 4096) or not 0 < size <= 64 << 40 or size % sector:
        raise Refused(f"it has blocks of {block}, sectors of {sector} and a size of {size} bytes")
    group = (1 << 23) * sector // block + 1  # entries, with that of the bitmap
    blocks = (size + block - 1) // block
    entries = blocks + (blocks - 1) // (group - 1)
    if entries * 8 > table.length:
        raise Refused("its table of blocks is too short for its size")
    position = 0
    for part in source.table(table.offset, entries * 8, "table of blocks"):
        for (entry,) in struct.iter_unpack("<Q", part):
            state, offset = entry & 7, entry >> 20 << 20
            is_bitmap, position = position % group == group - 1, position + 1
            if state == _PARTIAL or (is_bitmap and state):
                raise Refused("parts of it are in another file", is_unsafe=True)
            if state == _FULL:
                source.require(offset, block, "data")
            elif state > 3:
                raise Refused("a block of it has no state that is known")


def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        for _bit in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """The checksum of Castagnoli (RFC 3720, appendix B.4), which the standard library does not have."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
