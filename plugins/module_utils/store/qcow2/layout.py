# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of a qcow2 file: structures, offsets, numbers and limits; and its errors."""

from __future__ import annotations

import struct

MAGIC = b"QFI\xfb"
FIELDS = struct.Struct(">4sIQIIQIIQQIIQ")  # section "Header", bytes 0 to 71
FIELDS_OF_3 = struct.Struct(">QQQII")  # section "Header", bytes 72 to 103
AUTOCLEAR_AT = 88
EXTENSION = struct.Struct(">II")

EXT_END = 0x00000000
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_DATA_FILE = 0x44415441
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_ENCRYPTION = 0x0537BE77

SECTOR = 512
MOST_HEADER = 64 << 10  # bytes of a header cluster that are read at most
MAX_BACKING_NAME = 1023
MAX_L1_BYTES = 32 << 20  # QEMU opens no larger L1 table


class Qcow2Error(ValueError):
    """The bytes are no qcow2 image that may be used. The message says why, as the end of a sentence about "it"."""


class CutShort(Qcow2Error):
    """The file ends before data that its tables lead to. Causes are a copy that ended early, or a full disk of the server."""
