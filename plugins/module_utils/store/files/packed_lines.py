# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compressed lines of a record, for adding in place on a full share. They take about a tenth of the length."""

from __future__ import annotations

import base64
import zlib

_PACKED = b"zlib "
_MOST_UNPACKED = 1 << 20  # bytes; no record may be longer


def packed(line: bytes) -> bytes:
    """Compress a line of a record, so that it fits into the blocks that the file has."""
    return _PACKED + base64.b64encode(zlib.compress(line, 9))


def unpacked(line: bytes) -> bytes:
    """Undo :func:`packed`; a line that is not packed is returned as it is. :raises ValueError: the line is torn."""
    if not line.startswith(_PACKED):
        return line
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(base64.b64decode(line[len(_PACKED) :], validate=True), _MOST_UNPACKED)
    except zlib.error as error:
        raise ValueError("a torn line") from error
    if not reader.eof:
        raise ValueError("a torn line")
    return text
