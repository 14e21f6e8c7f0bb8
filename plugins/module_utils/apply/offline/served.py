# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that only QEMU can read (compressed clusters, other formats): qemu-nbd serves what they show on a socket of this task.

The protocol is that of https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: the fixed newstyle handshake with the option
NBD_OPT_GO, simple replies, and no other request than reading.
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

from ... import command
from ...errors import ToolFailed
from . import qemu_img

_PACKAGE = "qemu-utils"
_PATIENCE = 30.0  # seconds until it must listen
_NAP = 0.01
_LONGEST = 32 << 20  # bytes of one request, as the protocol recommends
_GREETING, _OPTION, _OPTION_REPLY = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO, _ACK, _INFO, _INFO_EXPORT, _FAILED = 7, 1, 3, 0, 1 << 31
_REQUEST, _REPLY, _READ = 0x25609513, 0x67446698, 0


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
        """See :meth:`viewing.View.data`. It is not asked where there are zeros."""
        if start < stop:
            yield start, stop

    def read(self, start: int, length: int) -> bytes:
        """See :meth:`viewing.View.read`."""
        return b"".join(self._read_once(start + done, min(_LONGEST, length - done)) for done in range(0, length, _LONGEST))

    def _read_once(self, start: int, length: int) -> bytes:
        self._cookie += 1
        self._connection.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _READ, self._cookie, start, length))
        magic, problem, cookie = struct.unpack(">IIQ", self._receive(16))
        if (magic, cookie) != (_REPLY, self._cookie):
            raise _Ended("its answer is none")
        if problem:
            raise _Ended(f"it cannot read {length} bytes at {start} ({os.strerror(problem)})")
        return self._receive(length)

    def _handshake(self) -> int:
        """The size of the disk, after both sides have agreed on it."""
        if self._receive(16) != _GREETING + _OPTION or not struct.unpack(">H", self._receive(2))[0] & _FIXED_NEWSTYLE:
            raise _Ended("it speaks another protocol")
        self._connection.sendall(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
        self._connection.sendall(_OPTION + struct.pack(">III", _GO, 6, 0) + struct.pack(">H", 0))
        size = None
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self._receive(20))
            data = self._receive(length) if length <= _LONGEST else b""
            if (magic, option) != (_OPTION_REPLY, _GO) or kind & _FAILED or len(data) < length:
                raise _Ended("it does not let this task read")
            if kind == _INFO and length >= 10 and struct.unpack(">H", data[:2])[0] == _INFO_EXPORT:
                size = struct.unpack(">Q", data[2:10])[0]
            if kind == _ACK:
                if size is None:
                    raise _Ended("it does not say how large the disk is")
                return size

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


def _failure(error: Exception, result: command.Result | None) -> ToolFailed:
    said = f"; it said: {result.reason}" if result is not None and (result.err or result.out) else ""
    return ToolFailed("reading through qemu-nbd", f"{error}{said}", "check the image with qemu-img check", result.details if result is not None else {})
