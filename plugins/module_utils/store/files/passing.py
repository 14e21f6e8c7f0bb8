# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes of opened files that pass through this process: read in pieces, and written so that zeros stay holes."""

from __future__ import annotations

import os
from typing import Iterator

from . import directory

_PIECE = 1 << 20  # bytes
_GRAIN = 64 << 10  # bytes: what is all zeros in pieces of this size stays a hole


def file_pieces(fd: int, length: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from the beginning, up to ``length`` or to the end."""
    position = 0
    while length is None or position < length:
        piece = os.pread(fd, _PIECE if length is None else min(_PIECE, length - position), position)
        if not piece:
            return
        yield piece
        position += len(piece)


def write_with_holes(fd: int, data: bytes, position: int) -> int:
    """Write bytes to a file that is empty from ``position`` on. What is all zeros stays a hole. Returns how many bytes were written."""
    start, written = position, 0
    while start < position + len(data):
        end = min(position + len(data), (start // _GRAIN + 1) * _GRAIN)
        part = memoryview(data)[start - position : end - position]
        if any(part) if len(part) < 64 else part.tobytes().count(0) < len(part):
            directory.write_all(fd, part, start)
            written += len(part)
        start = end
    return written
