# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the names of backing files and data files from files of any format.

It serves to find out which files *might* rest on a file. So headers are read as tolerantly as any program that knows the format
could read them, even headers that this collection refuses to use. It never decides the format of a file. Reads are bounded, and no
content of a file raises an error.
"""

from __future__ import annotations

import os
import re
import struct
from typing import Callable, Iterator

from ..qcow2 import layout

Read = Callable[[int, int], bytes]  # (length, offset), both in bytes → the data there
PAGE = 4096
_MOST_EXTENSIONS = 128
_DESCRIPTOR = 20 << 10  # bytes of a VMDK descriptor that are read
_VMDK_HINT = re.compile(rb"""parentFileNameHint\s*=\s*"?([^"\r\n\0]*)""", re.IGNORECASE)
_VMDK_EXTENT = re.compile(rb"""^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+\w+[ \t]+"([^"\r\n\0]*)\"""", re.IGNORECASE | re.MULTILINE)
_VMDK_TEXT = re.compile(rb"""\A[^\0]*?(?:DescriptorFile|^[ \t]*(?:version|createType|parentCID)[ \t]*=)""", re.IGNORECASE | re.MULTILINE)
_XML_FILE = re.compile(rb"<File>([^<\0]*)</File>|<File [^>]*href=\"([^\"\0]*)\"", re.IGNORECASE)
_VHDX_METADATA = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_VHDX_PARENT = bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")


def names_in(fd: int) -> tuple[str, ...]:
    """The names of other files in an opened file, exactly as written there. Bytes that are no text become surrogate escapes.

    :raises OSError: the file cannot be read.
    """
    found = _names(os.pread(fd, PAGE, 0), lambda length, offset: os.pread(fd, length, offset))
    return tuple(dict.fromkeys(os.fsdecode(name) for name in found if name))


def _names(first: bytes, read: Read) -> Iterator[bytes]:
    try:
        yield from BINARY.get(first[:4], _text)(first, read)
    except (struct.error, ValueError, OverflowError):
        return  # it ends too early for what it claims to be


def _ended(name: bytes) -> bytes:
    return name.split(b"\0")[0]


def _wide(name: bytes, order: str) -> bytes:
    """A UTF-16 name, encoded as file names of this host are. ``order``: "le" or "be"."""
    return os.fsencode(name.decode(f"utf-16-{order}", "replace").split("\0")[0].replace("\ufffd", "?"))


def _qcow2(first: bytes, read: Read) -> Iterator[bytes]:
    """Any version of qcow. The version of 2006 has the backing file's name in the same place."""
    offset, length = struct.unpack_from(">QI", first, 8)
    if offset and 0 < length <= layout.MAX_BACKING_NAME:
        yield _ended(first[offset : offset + length] if offset + length <= len(first) else _read(read, length, offset))
    version = int.from_bytes(first[4:8], "big")
    at = int.from_bytes(first[100:104], "big") if version >= 3 else layout.FIELDS.size
    data = first
    for _count in range(_MOST_EXTENSIONS):
        if at + layout.EXTENSION.size > len(data) and len(data) == PAGE:
            data = read(layout.MOST_HEADER, 0)
        kind, size = layout.EXTENSION.unpack_from(data, at)
        if kind == layout.EXT_END:
            return
        if kind == layout.EXT_DATA_FILE:
            yield _ended(_read(read, min(size, PAGE), at + layout.EXTENSION.size))
        at += layout.EXTENSION.size + (size + 7) // 8 * 8


def _read(read: Read, length: int, offset: int) -> bytes:
    return b"" if offset >= 1 << 63 else read(length, offset)


def _qed(first: bytes, read: Read) -> Iterator[bytes]:
    offset, length = struct.unpack_from("<II", first, 56)
    yield _ended(_read(read, min(length, PAGE), offset))


def _vmdk(first: bytes, read: Read) -> Iterator[bytes]:
    """A sparse extent, which contains its descriptor."""
    sector, sectors = struct.unpack_from("<QQ", first, 28)
    yield from _descriptor(_read(read, min(sectors * 512, _DESCRIPTOR), sector * 512))


def _cowd(first: bytes, _read_more: Read) -> Iterator[bytes]:
    """An extent of ESX, which has the name of its parent in the header."""
    yield _ended(first[32 : 32 + 1024])


def _descriptor(text: bytes) -> Iterator[bytes]:
    yield from _VMDK_HINT.findall(text)
    yield from _VMDK_EXTENT.findall(text)


def _text(first: bytes, read: Read) -> Iterator[bytes]:
    if _VMDK_TEXT.match(first):
        yield from _descriptor(read(_DESCRIPTOR, 0))
    elif first.lstrip().startswith(b"<"):
        for both in _XML_FILE.findall(read(_DESCRIPTOR, 0)):
            yield from both


def _uml(first: bytes, _read_more: Read) -> Iterator[bytes]:
    """A copy-on-write file of user-mode Linux."""
    yield _ended(first[8 : 8 + 1024])
    yield _ended(first[32 : 32 + 4064])


def _vhd(first: bytes, read: Read) -> Iterator[bytes]:
    """A differencing disk. The dynamic header has the parent's name, and lists locators that have its paths."""
    (at,) = struct.unpack_from(">Q", first, 16)
    head = _read(read, 1024, at)
    if head[:8] != b"cxsparse":
        return
    yield _wide(head[64:576], "be")
    for entry in range(576, 576 + 8 * 24, 24):
        platform, _space, length, _reserved, offset = struct.unpack_from(">4sIIIQ", head, entry)
        if platform in (b"W2ku", b"W2ru"):
            yield _wide(_read(read, min(length, PAGE), offset), "le")
        elif platform != bytes(4):
            yield _ended(_read(read, min(length, PAGE), offset))


def _vhdx(_first: bytes, read: Read) -> Iterator[bytes]:
    """The values of the parent locator. A table of regions leads to a table of metadata, and that to the locator."""
    for table in (192 << 10, 256 << 10):
        regions = read(PAGE, table)
        for entry in range(16, 16 + 32 * min(int.from_bytes(regions[8:12], "little"), 64), 32):
            if regions[entry : entry + 16] == _VHDX_METADATA:
                yield from _vhdx_parent(int.from_bytes(regions[entry + 16 : entry + 24], "little"), read)


def _vhdx_parent(region: int, read: Read) -> Iterator[bytes]:
    table = _read(read, 64 << 10, region)
    for entry in range(32, 32 + 32 * min(int.from_bytes(table[10:12], "little"), 64), 32):
        if table[entry : entry + 16] != _VHDX_PARENT:
            continue
        offset, length = struct.unpack_from("<II", table, entry + 16)
        locator = _read(read, min(length, 64 << 10), region + offset)
        for pair in range(20, 20 + 12 * min(int.from_bytes(locator[18:20], "little"), 64), 12):
            _key, value, _key_length, value_length = struct.unpack_from("<IIHH", locator, pair)
            yield _wide(locator[value : value + value_length], "le")


BINARY = {
    layout.MAGIC: _qcow2,
    b"QED\0": _qed,
    b"KDMV": _vmdk,
    b"COWD": _cowd,
    b"cone": _vhd,
    b"vhdx": _vhdx,
    b"OOOM": _uml,
    b"MOOO": _uml,
}
