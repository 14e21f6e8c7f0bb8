# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes small ISO 9660 images with a few files in their root directory. Pure: from bytes to bytes.

The specification is ECMA-119 (4th edition, the same as ISO 9660); section numbers in comments are its own. The names as they are given are
in a second tree of directories, after the Joliet specification of 1995. All dates are the same one, so that equal files make equal images.
"""

from __future__ import annotations

import struct
from typing import Mapping, NamedTuple

SECTOR = 2048  # bytes
HEAD = 17 * SECTOR  # bytes at the beginning of an image by which :func:`is_image` knows it
_PRIMARY, _SUPPLEMENTARY, _TERMINATOR = 1, 2, 255  # kinds of volume descriptors
_FIRST = 16  # the sector of the first descriptor; those before it are for systems that are started from the image
_TABLES, _ROOTS, _DATA = 19, 23, 25  # the first sectors: of the path tables, of the two root directories, of the files
_JOLIET = b"%/E"  # the escape sequence for UCS-2, level 3
_DATE, _LONG_DATE = bytes((80, 1, 1, 0, 0, 0, 0)), b"1980010100000000\0"
_UNSET_DATE = b"0" * 16 + b"\0"
_IS_DIRECTORY = 2  # a flag of a directory record
_LONGEST_JOLIET = 64  # letters of a name


class _Extent(NamedTuple):
    """Where bytes are in the image: the first sector and the number of bytes."""

    sector: int
    length: int


def image(files: Mapping[str, bytes], label: str, application: str) -> bytes:
    """The image with these files, by name.

    :param label: the name of the volume, up to 16 letters. :param application: what made it, up to 64 letters (8.4.20).
    :raises ValueError: the names are too long, or look the same in the form 8.3; there are more files than one sector can list.
    """
    extents, sector = {}, _DATA
    for name, data in files.items():
        extents[name] = _Extent(sector, len(data))
        sector += _sectors(len(data))
    size = sector + 1  # the last sector is empty, so that a file without content lies inside, too
    plain, joliet = _plain_names(files), {name: name.encode("utf-16-be") for name in files}
    if max((len(name) for name in files), default=0) > _LONGEST_JOLIET:
        raise ValueError(f"a name of more than {_LONGEST_JOLIET} letters")
    parts = [bytes(_FIRST * SECTOR)]
    parts.append(_descriptor(_PRIMARY, size, label, application))
    parts.append(_descriptor(_SUPPLEMENTARY, size, label, application))
    parts.append(_padded(bytes((_TERMINATOR,)) + b"CD001\1"))
    for root in (_ROOTS, _ROOTS + 1):
        parts += [_padded(struct.pack(f"{order}BBIH", 1, 0, root, 1) + b"\0\0") for order in "<>"]
    parts += [_directory(_ROOTS, plain, extents), _directory(_ROOTS + 1, joliet, extents)]
    parts += [_padded(data) for data in files.values()]
    return b"".join((*parts, bytes(SECTOR)))


def is_image(head: bytes, length: int, label: str, application: str) -> bool:
    """Whether a file is an image that :func:`image` made, with this label and application.

    :param head: its first :data:`HEAD` bytes. :param length: how long it is.
    """
    if length % SECTOR:
        return False
    return head[_FIRST * SECTOR : HEAD] == _descriptor(_PRIMARY, length // SECTOR, label, application)


def _sectors(length: int) -> int:
    return -(-length // SECTOR)


def _padded(data: bytes) -> bytes:
    return data.ljust(_sectors(len(data)) * SECTOR, b"\0")


def _both(form: str, number: int) -> bytes:
    """A number in both byte orders (7.2.3, 7.3.3)."""
    return struct.pack(f"<{form}", number) + struct.pack(f">{form}", number)


def _plain_names(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The names in the form 8.3, with the version (7.5)."""
    found = {}
    for name in files:
        stem, _dot, end = name.partition(".")
        found[name] = f"{_plain(stem)[:8]}.{_plain(end)[:3]};1".encode("ascii")
    if len(set(found.values())) < len(found) or "" in found:
        raise ValueError("two names look the same in the form 8.3, or one is empty")
    return found


def _plain(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text.upper())


def _record(identifier: bytes, extent: _Extent, flags: int = 0) -> bytes:
    """A directory record (9.1)."""
    fields = bytes(1) + _both("I", extent.sector) + _both("I", extent.length) + _DATE + bytes((flags, 0, 0)) + _both("H", 1)
    fields += bytes((len(identifier),)) + identifier
    fields += bytes((len(fields) + 1) % 2)
    return bytes((len(fields) + 1,)) + fields


def _directory(sector: int, names: Mapping[str, bytes], extents: Mapping[str, _Extent]) -> bytes:
    """The root directory, sorted by the names as they stand in it (9.3)."""
    itself = _Extent(sector, SECTOR)
    records = [_record(b"\0", itself, _IS_DIRECTORY), _record(b"\1", itself, _IS_DIRECTORY)]
    records += [_record(names[name], extents[name]) for name in sorted(names, key=lambda name: names[name])]
    data = b"".join(records)
    if len(data) > SECTOR:
        raise ValueError("more files than a sector can list")
    return _padded(data)


def _descriptor(kind: int, size: int, label: str, application: str) -> bytes:
    """The primary (8.4) or the Joliet supplementary (8.5) volume descriptor. :param size: the sectors of the whole image."""
    is_joliet = kind == _SUPPLEMENTARY
    root, tables = _ROOTS + is_joliet, _TABLES + 2 * is_joliet
    fields = (
        bytes((kind,)) + b"CD001\1\0",
        _text("", 32, is_joliet),  # the system
        _text(label, 32, is_joliet),
        bytes(8),
        _both("I", size),
        (_JOLIET if is_joliet else b"").ljust(32, b"\0"),
        _both("H", 1) * 2,  # the first volume of a set of one
        _both("H", SECTOR),
        _both("I", 10),  # bytes of a path table
        struct.pack("<II", tables, 0),
        struct.pack(">II", tables + 1, 0),
        _record(b"\0", _Extent(root, SECTOR), _IS_DIRECTORY),
        _text("", 128, is_joliet) * 3,  # the set, the publisher, the preparer
        _text(application, 128, is_joliet),
        (_text("", 36, is_joliet) + (b"\0" if is_joliet else b" ")) * 3,  # files with a copyright, an abstract, a bibliography
        _LONG_DATE * 2,  # made, modified
        _UNSET_DATE * 2,  # it never ends, and may be used at once
        b"\1",
    )
    return _padded(b"".join(fields))


def _text(text: str, length: int, is_joliet: bool) -> bytes:
    """A text in a field of so many bytes. :raises ValueError: it does not fit."""
    data = text.encode("utf-16-be") if is_joliet else text.encode("ascii")
    if len(data) > length:
        raise ValueError(f"{text!r} has no room in {length} bytes")
    filler = " ".encode("utf-16-be") if is_joliet else b" "
    return data + filler * ((length - len(data)) // len(filler))
