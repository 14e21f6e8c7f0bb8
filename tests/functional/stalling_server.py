# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An SFTP server, run by sshfs in place of ssh, that stops itself (SIGSTOP) when it is asked for what its control file says.

    stalling_server.py CONTROL SERVER ...

CONTROL: a file with the number of a kind of request and the beginning of a path, such as "3 /export/db01". It is read at each request, and removed at the
one that it is about. PID is written to CONTROL.pid. The mount that the server serves hangs then, as after the death of an NFS server, until SIGCONT.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

OPEN, OPENDIR = 3, 11  # requests of the protocol that begin with an id and a path
HEAD = struct.Struct(">I")


def request(stream: BinaryIO) -> bytes:
    """The next request, without its length; empty at the end."""
    head = stream.read(HEAD.size)
    return stream.read(HEAD.unpack(head)[0]) if len(head) == HEAD.size else b""


def is_meant(asked: bytes, control: Path) -> bool:
    """Whether the control file is about this request."""
    try:
        kind, _space, path = control.read_text().partition(" ")
    except FileNotFoundError:
        return False
    if asked[0] not in (OPEN, OPENDIR) or not kind or asked[0] != int(kind):
        return False
    length = HEAD.unpack_from(asked, 5)[0]
    return os.fsdecode(asked[9 : 9 + length]).startswith(path)


def answer(server: subprocess.Popen) -> None:
    """Hand on what the server says."""
    assert server.stdout is not None
    while True:
        data = os.read(server.stdout.fileno(), 1 << 16)
        if not data:
            os._exit(0)
        while data:
            data = data[os.write(1, data) :]


def main() -> None:
    control = Path(sys.argv[1])
    Path(f"{control}.pid").write_text(str(os.getpid()))
    server = subprocess.Popen([sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    threading.Thread(target=answer, args=(server,), daemon=True).start()
    while True:
        asked = request(sys.stdin.buffer)
        if not asked:
            server.kill()
            return
        if is_meant(asked, control):
            control.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)
        server.stdin.write(HEAD.pack(len(asked)) + asked)
        server.stdin.flush()


if __name__ == "__main__":
    main()
