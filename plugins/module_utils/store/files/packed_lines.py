# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of a record that were added in place on a full share, in a tenth of their length."""

from __future__ import annotations

import base64
import zlib

_PACKED = b"zlib "
_MOST_UNPACKED = 1 << 20  # bytes: no record may be longer


def packed(line: bytes) -> bytes:
    """A line of a record in a tenth of its length, for where the blocks of the file must do."""
    return _PACKED + base64.b64encode(zlib.compress(line, 9))


def unpacked(line: bytes) -> bytes:
    """The line that :func:`packed` was given; another one as it is. :raises ValueError: it is torn."""
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
