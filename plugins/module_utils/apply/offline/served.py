# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that only QEMU can read (compressed clusters, other formats): qemu-nbd serves what they show on a socket of this task.

The protocol is that of https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: the fixed newstyle handshake with the options
NBD_OPT_STRUCTURED_REPLY, NBD_OPT_SET_META_CONTEXT (base:allocation) and NBD_OPT_GO, structured replies, and requests for data and for where it is.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import time
from contextlib import contextmanager
from typing import Callable, Iterator, Sequence

from ... import command, errors
from . import qemu_img

_PACKAGE = "qemu-utils"
_PATIENCE = 30.0  # seconds until it must listen
_NAP = 0.01
_LONGEST = 32 << 20  # bytes of one request, as the protocol recommends
_GREETING, _OPTION, _OPTION_REPLY = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO, _STRUCTURED, _META_CONTEXT = 7, 8, 10  # options
_ACK, _INFO, _META, _INFO_EXPORT, _FAILED = 1, 3, 4, 0, 1 << 31  # replies to them
_CONTEXT = b"base:allocation"
_REQUEST, _CHUNK = 0x25609513, 0x668E33EF
_READ, _BLOCK_STATUS = 0, 7
_DONE, _ZERO = 1, 2  # flags: of a chunk, that it is the last one; of an extent
_OFFSET_DATA, _OFFSET_HOLE, _STATUS, _ERROR = 1, 2, 5, 1 << 15  # kinds of chunks
_ASKED = 1 << 30  # bytes of which is asked at once where there is data


def node(fd: int, image_format: str) -> str:
    """A file name for QEMU that stands for an opened image of this format, which rests on no other."""
    found: dict = {"driver": image_format, "file": {"driver": "file", "filename": f"/proc/self/fd/{fd}"}}
    if image_format == "qcow2":
        found["backing"] = None
    return "json:" + json.dumps(found)


class ServedView:
    """The disk that a server of NBD shows. See :class:`viewing.View`.

    :raises _Ended: the server does not speak as the protocol has it, or has gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._cookie = connection, 0
        self.size = self._handshake()

    def data(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See :meth:`viewing.View.data`."""
        while start < stop:
            for length, flags in self._extents(start, min(_ASKED, stop - start)):
                end = min(start + length, stop)
                if not flags & _ZERO:
                    yield start, end
                start = end

    def _extents(self, start: int, length: int) -> list[tuple[int, int]]:
        """What lies from ``start`` on: the length of each part, and its flags. At least one, and no more than the server likes to tell."""
        found: list[tuple[int, int]] = []
        for kind, data in self._asked(_BLOCK_STATUS, start, length):
            if kind == _STATUS and len(data) % 8 == 4:
                found += struct.iter_unpack(">II", data[4:])
        if not found or any(not extent for extent, _flags in found):
            raise _Ended("it does not say where its data is")
        return found

    def read(self, start: int, length: int) -> bytes:
        """See :meth:`viewing.View.read`."""
        return b"".join(self._read_once(start + done, min(_LONGEST, length - done)) for done in range(0, length, _LONGEST))

    def _read_once(self, start: int, length: int) -> bytes:
        found, got = bytearray(length), 0
        for kind, data in self._asked(_READ, start, length):
            if kind not in (_OFFSET_DATA, _OFFSET_HOLE):
                continue
            at = struct.unpack(">Q", data[:8])[0] - start
            count = len(data) - 8 if kind == _OFFSET_DATA else struct.unpack(">I", data[8:12])[0]
            if at < 0 or at + count > length:
                raise _Ended("it sends what it was not asked for")
            if kind == _OFFSET_DATA:
                found[at : at + count] = data[8:]
            got += count
        if got != length:
            raise _Ended("it sends less than it was asked for")
        return bytes(found)

    def _asked(self, kind: int, start: int, length: int) -> Iterator[tuple[int, bytes]]:
        """The chunks of the answer to a request, each with its kind."""
        self._cookie += 1
        self._connection.sendall(struct.pack(">IHHQQI", _REQUEST, 0, kind, self._cookie, start, length))
        flags = 0
        while not flags & _DONE:
            magic, flags, chunk, cookie, size = struct.unpack(">IHHQI", self._receive(20))
            if (magic, cookie) != (_CHUNK, self._cookie) or size > _LONGEST + 8:
                raise _Ended("its answer is none")
            data = self._receive(size)
            if chunk & _ERROR:
                raise _Ended(f"it cannot read {length} bytes at {start} ({os.strerror(struct.unpack('>I', data[:4])[0])})")
            yield chunk, data

    def _handshake(self) -> int:
        """The size of the disk, after both sides have agreed on it."""
        if self._receive(16) != _GREETING + _OPTION or not struct.unpack(">H", self._receive(2))[0] & _FIXED_NEWSTYLE:
            raise _Ended("it speaks another protocol")
        self._connection.sendall(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
        self._option(_STRUCTURED, b"")
        name = struct.pack(">I", 0)
        contexts = self._option(_META_CONTEXT, name + struct.pack(">II", 1, len(_CONTEXT)) + _CONTEXT)
        if [kind for kind, _data in contexts] != [_META]:
            raise _Ended("it does not say where data is")
        for kind, data in self._option(_GO, name + struct.pack(">H", 0)):
            if kind == _INFO and len(data) >= 10 and struct.unpack(">H", data[:2])[0] == _INFO_EXPORT:
                size: int = struct.unpack(">Q", data[2:10])[0]
                return size
        raise _Ended("it does not say how large the disk is")

    def _option(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        """What the server replies to an option before it agrees, each with its kind."""
        self._connection.sendall(_OPTION + struct.pack(">II", option, len(data)) + data)
        found: list[tuple[int, bytes]] = []
        while True:
            magic, answered, kind, length = struct.unpack(">QIII", self._receive(20))
            if (magic, answered) != (_OPTION_REPLY, option) or kind & _FAILED or length > _LONGEST:
                raise _Ended("it does not let this task read")
            data = self._receive(length)
            if kind == _ACK:
                return found
            found.append((kind, data))

    def _receive(self, length: int) -> bytes:
        found = bytearray(length)
        view = memoryview(found)
        while view:
            count = self._connection.recv_into(view)
            if not count:
                raise _Ended("it ended")
            view = view[count:]
        return bytes(found)


class _Ended(Exception):
    """The message says what the server did, as the end of a sentence about it."""


@contextmanager
def by_qemu(name: str, descriptors: Sequence[int], size: int) -> Iterator[ServedView]:
    """A context with what an image shows.

    :param name: as QEMU takes it. :param descriptors: files that it leads to. :param size: its virtual size in bytes.
    :raises ToolMissing: qemu-nbd is not installed. :raises ToolFailed: it cannot read the image.
    """
    program = command.find("qemu-nbd", _PACKAGE)
    path = command.private_directory()
    place, limits = os.path.join(path, "nbd"), qemu_img.limits_for(descriptors, size, size)  # all of it is read, holes too
    try:
        with command.running([program, "--read-only", "--socket", place, name], descriptors=descriptors, limits=limits) as ended:
            with socket.socket(socket.AF_UNIX) as connection:
                try:
                    _connect(connection, place, ended)
                    yield ServedView(connection)
                except (_Ended, ConnectionError) as error:
                    raise _failure(error, ended()) from error
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _connect(connection: socket.socket, place: str, ended: Callable[[], command.Result | None]) -> None:
    """:raises _Ended: the program has ended, or does not listen in time."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.connect(place)
            return
        except OSError:
            if ended() is not None:
                raise _Ended("it ended at once") from None
            if time.monotonic() > until:
                raise _Ended(f"it did not listen within {_PATIENCE:.0f} s") from None
        time.sleep(_NAP)


def _failure(error: Exception, result: command.Result | None) -> errors.ToolFailed:
    said = f"; it said: {result.reason}" if result is not None and (result.err or result.out) else ""
    return errors.ToolFailed("reading through qemu-nbd", f"{error}{said}", "check the image with qemu-img check", result.details if result is not None else {})
