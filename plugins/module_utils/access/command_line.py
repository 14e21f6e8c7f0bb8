# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of qemu-storage-daemon(1) for a point. Pure.

Each file of the chain is a node with its format, and each overlay names the node below it. So no format is probed, and no name that a header has
is followed.
"""

from __future__ import annotations

import json
from typing import Sequence

from . import guard, record

_EXPORT = "point"


def command_line(program: str, pid_file: str, target: record.Target, label: str, formats: Sequence[str], descriptors: Sequence[int], locks: bool) -> list[str]:
    """All words of it.

    :param label: the name of the export of NBD. :param formats: of the chain, top first. :param descriptors: its opened files, likewise.
    :param locks: QEMU's own locks work on them.
    """
    words = [program, "--pidfile", pid_file]
    last = len(formats) - 1
    for number in range(last, -1, -1):
        words += ["--blockdev", json.dumps(_file(number, descriptors[number], locks))]
        words += ["--blockdev", json.dumps(_layer(number, formats[number], number + 1 if number < last else None))]
    export = {"id": _EXPORT, "node-name": "layer0", "writable": False}
    if target.kind == guard.FUSE:
        shown = {"type": "fuse", "mountpoint": target.path, "growable": False, "allow-other": "off"}
        return [*words, "--export", json.dumps({**export, **shown})]
    server = {"addr": {"type": "unix", "path": target.path}}
    return [*words, "--nbd-server", json.dumps(server), "--export", json.dumps({**export, "type": "nbd", "name": label})]


def _file(number: int, descriptor: int, locks: bool) -> dict:
    return {
        "driver": "file",
        "node-name": f"file{number}",
        "filename": f"/proc/self/fd/{descriptor}",
        "read-only": True,
        "auto-read-only": False,
        "locking": "on" if locks else "auto",
    }


def _layer(number: int, image_format: str, below: int | None) -> dict:
    node = {"driver": image_format, "node-name": f"layer{number}", "read-only": True, "file": f"file{number}"}
    if image_format == "qcow2":
        node["backing"] = None if below is None else f"layer{below}"
    return node
