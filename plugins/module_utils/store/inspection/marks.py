# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""By which bytes the formats of images are known. A file with any of them is no raw image.

These are the marks by which QEMU guesses formats, and those of formats that it knows and this collection does not take. QEMU never
guesses here: it is told the format, and this says whether that can be true.
"""

from __future__ import annotations

from typing import NamedTuple

from .source import Source

_HEAD, _TAIL = 4096, 512  # bytes that are looked at
_SECTOR = 512


class Mark(NamedTuple):
    """``offset`` is where the ``word`` stands, from the end of the file if it is negative."""

    format: str
    word: bytes
    offset: int = 0


#: Formats that are taken, by all of their marks.
TAKEN = (
    Mark("qcow2", b"QFI\xfb"),
    Mark("vmdk", b"KDMV"),
    Mark("vdi", b"\x7f\x10\xda\xbe", 0x40),
    Mark("vhdx", b"vhdxfile"),
    Mark("vpc", b"conectix", -512),
    Mark("vpc", b"conectix", -511),  # some programs wrote a footer of 511 bytes
    Mark("vpc", b"conectix"),  # the copy of the footer of a dynamic disk
)
#: Formats that are not.
OTHERS = (
    Mark("vmdk (text)", b"# Disk DescriptorFile"),
    Mark("vmdk 3", b"COWD"),
    Mark("vmdk (SESPARSE)", b"\xca\xfe\xba\xbe\x00\x00\x00\x00"),
    Mark("qed", b"QED\x00"),
    Mark("luks", b"LUKS\xba\xbe"),
    Mark("parallels", b"WithoutFreeSpace"),
    Mark("parallels", b"WithouFreSpacExt"),
    Mark("bochs", b"Bochs Virtual HD Image"),
    Mark("cloop", b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
    Mark("dmg", b"koly", -512),
    Mark("ova (a tar archive)", b"ustar", 257),
    Mark("gzip", b"\x1f\x8b"),
    Mark("bzip2", b"BZh"),
    Mark("xz", b"\xfd7zXZ\x00"),
    Mark("lzma", b"\x5d\x00\x00"),
    Mark("zip", b"PK\x03\x04"),
    Mark("zstd", b"\x28\xb5\x2f\xfd"),
)


def formats(source: Source) -> frozenset[str]:
    """The formats of :data:`TAKEN` and :data:`OTHERS` of which the file has a mark."""
    head, tail = source.at_most(0, _HEAD), source.at_most(source.size - _TAIL, _TAIL)
    found = {mark.format for mark in (*TAKEN, *OTHERS) if _has(head, tail, mark)}
    if _is_descriptor(head):
        found.add("vmdk (text)")
    return frozenset(found)


def _has(head: bytes, tail: bytes, mark: Mark) -> bool:
    text = head if mark.offset >= 0 else tail
    start = mark.offset if mark.offset >= 0 else len(tail) + mark.offset
    return start >= 0 and text[start : start + len(mark.word)] == mark.word


def _is_descriptor(head: bytes) -> bool:
    """Whether QEMU may take the file for a VMDK descriptor: after comments and empty lines it begins with a version."""
    for line in head.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith(b"#"):
            return stripped.lower().replace(b" ", b"").startswith(b"version=")
    return False
