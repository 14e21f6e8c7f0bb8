# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of an image that somebody else made: bytes within the file, and nothing beyond its end."""

from __future__ import annotations

import os
from typing import Iterator

_CHUNK = 1 << 20  # bytes that are read at once


class Refused(ValueError):
    """The image is not used. The message says why, as the end of a sentence about "it".

    :ivar is_unsafe: it leads to other files, or hides what it holds; otherwise it is damaged, or of no kind that is taken.
    """

    def __init__(self, problem: str, is_unsafe: bool = False) -> None:
        super().__init__(problem)
        self.is_unsafe = is_unsafe


class Source:
    """An opened regular file. ``size`` is its length in bytes when it was opened."""

    def __init__(self, fd: int) -> None:
        self.fd, self.size = fd, os.fstat(fd).st_size

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Bytes of the file. :param what: names them in a message. :raises Refused: the file does not have them all."""
        self.require(offset, length, what)
        data = os.pread(self.fd, length, offset)
        if len(data) < length:
            raise Refused(f"its {what} cannot be read whole")
        return data

    def require(self, offset: int, length: int, what: str) -> None:
        """Check that a range lies within the file. :raises Refused: it does not."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Refused(f"its {what} lies behind the end of the file (the file was cut short, or lies about it)")

    def table(self, offset: int, length: int, what: str) -> Iterator[bytes]:
        """The bytes of a table, a MiB at a time, so that a large one takes no memory. :raises Refused: the file does not have them all."""
        self.require(offset, length, what)
        for start in range(0, length, _CHUNK):
            yield self.read(offset + start, min(_CHUNK, length - start), what)

    def at_most(self, offset: int, length: int) -> bytes:
        """Bytes of the file; fewer where it ends before."""
        return os.pread(self.fd, length, offset) if offset >= 0 else b""
