# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program that looks like a machine of QEMU, and whose monitor is none: ``stand_in.py HOW -pidfile FOLDER/pid``."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time

_LIFE = 60  # seconds, so that nothing is left of a test that was ended
_GREETING = {"QMP": {"version": {"qemu": {"major": 9, "minor": 0, "micro": 0}, "package": ""}, "capabilities": []}}


def _say(stream: socket.socket, how: str) -> None:
    if how == "garbage":
        stream.sendall(b"SSH-2.0-OpenSSH\r\n\xff\xfe\0" * 100)
    elif how == "flood":
        while True:
            stream.sendall(b"x" * (1 << 16))
    elif how == "silence":
        time.sleep(_LIFE)
    elif how == "obeys":
        _obey(stream)
    stream.close()


def _obey(stream: socket.socket) -> None:
    """As QEMU does: it ends if it is told so."""
    lines = stream.makefile("rwb", buffering=0)
    lines.write(json.dumps(_GREETING).encode() + b"\n")
    for line in lines:
        asked = json.loads(line)
        answer: object = [{"name": "quit"}] if asked["execute"] == "query-commands" else {}
        lines.write(json.dumps({"return": answer, "id": asked.get("id")}).encode() + b"\n")
        if asked["execute"] in ("quit", "system_powerdown"):
            os._exit(0)


def _serve(stream: socket.socket, how: str) -> None:
    try:
        _say(stream, how)
    except OSError:
        pass  # the task has gone


def main() -> None:
    how, folder = sys.argv[1], os.path.dirname(sys.argv[3])
    signal.alarm(_LIFE)
    if how == "no monitor":
        open(os.path.join(folder, "ready"), "w").close()
        time.sleep(_LIFE)
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(folder)
        listening.bind("qmp.sock")
        listening.listen(8)
        while True:
            threading.Thread(target=_serve, args=(listening.accept()[0], how), daemon=True).start()


main()
