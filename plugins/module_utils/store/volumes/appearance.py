# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the content of a file that the user calls raw looks like.

Only for a warning. A guest can write any of these marks into its disk, so they decide nothing.
"""

from __future__ import annotations

import os

_HEAD, _FOOTER = 512, 512  # bytes
# (name, offset, mark), from the specifications of the formats
_MARKS = (
    ("a qcow2 image", 0, b"QFI\xfb"),
    ("a QED image", 0, b"QED\0"),
    ("a VMDK image", 0, b"KDMV"),
    ("a VMDK image", 0, b"COWD"),
    ("a VMDK descriptor", 0, b"# Disk DescriptorFile"),
    ("a VDI image", 64, b"\x7f\x10\xda\xbe"),
    ("a VHDX image", 0, b"vhdxfile"),
    ("a VHD (vpc) image", 0, b"conectix"),
    ("a Parallels image", 0, b"WithoutFreeSpace"),
    ("a Parallels image", 0, b"WithouFreSpacExt"),
    ("a compressed file (gzip)", 0, b"\x1f\x8b\x08"),
    ("a compressed file (bzip2)", 0, b"BZh"),
    ("a compressed file (xz)", 0, b"\xfd7zXZ\0"),
    ("a compressed file (zstd)", 0, b"\x28\xb5\x2f\xfd"),
)


def looks_like(fd: int) -> str | None:
    """Describe the format that an opened file looks like, such as "a qcow2 image". None if it has no mark of a known format.

    Costs two reads. :raises OSError: the file cannot be read.
    """
    head = os.pread(fd, _HEAD, 0)
    for name, offset, mark in _MARKS:
        if head[offset : offset + len(mark)] == mark:
            return name
    footer = os.pread(fd, _FOOTER, max(0, os.fstat(fd).st_size - _FOOTER))
    return "a VHD (vpc) image" if footer.startswith(b"conectix") else None  # a fixed VHD disk has a footer and no header
