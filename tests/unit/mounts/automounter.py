# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small automount daemon on the kernel's autofs, in a mount namespace that ends with the test."""
from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
import traceback

READY, FAIL, CATATONIC = 0x9360, 0x9361, 0x9362
_PACKET = struct.Struct("iiIIQIIIII256s4x")  # struct autofs_v5_packet
_NEW_NAMESPACE = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, fstype: str, data: str) -> None:
    if _libc.mount(source.encode(), target.encode(), fstype.encode(), 0, data.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Automounter:
    """Manages ``path``. ``command`` makes the mount, with {} for its place; one that fails makes going there fail.

    With ``indirect`` the shares appear as directories below ``path``.
    """

    def __init__(self, path: str, command: list[str], indirect: bool = False) -> None:
        self.path, self.command, self.indirect = path, command, indirect
        started, ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._serve(ready)
            finally:
                os._exit(1)
        os.close(ready)
        if os.read(started, 1) != b"+":
            raise OSError("this kernel has no autofs that can be used here")

    def _serve(self, ready: int) -> None:
        os.setpgid(0, 0)  # who is of the daemon's process group passes the trigger
        packets, writer = os.pipe()
        kind = "indirect" if self.indirect else "direct"
        _mount("automounter", self.path, "autofs", f"fd={writer},pgrp={os.getpgid(0)},minproto=5,maxproto=5,{kind}")
        os.close(writer)
        control = os.open(self.path, os.O_RDONLY)
        os.write(ready, b"+")
        while True:
            packet = os.read(packets, _PACKET.size)
            fields = _PACKET.unpack(packet.ljust(_PACKET.size, b"\0"))
            target = os.path.join(self.path, fields[10][: fields[9]].decode()) if self.indirect else self.path
            if self.indirect:
                os.makedirs(target, exist_ok=True)
            made = subprocess.run([word.replace("{}", target) for word in self.command], check=False, capture_output=True).returncode == 0
            fcntl.ioctl(control, READY if made else FAIL, fields[2])

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def in_a_namespace(scenario) -> str:
    """Run ``scenario()`` in a child with mounts of its own; "" if it passed, "skip: ..." or what went wrong otherwise."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            if _libc.unshare(_NEW_NAMESPACE) or subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode:
                answer = "skip: no mount namespace can be made here"
            else:
                answer = _outcome(scenario)
            os.write(writer, answer.encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read().decode()
    os.waitpid(child, 0)
    return answer


def _outcome(scenario) -> str:
    try:
        scenario()
    except OSError as error:
        return f"skip: {error}" if "no autofs" in str(error) else traceback.format_exc()
    except BaseException:
        return traceback.format_exc()
    return ""
