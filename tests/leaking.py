# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes qcow2 images with leaked clusters, as a program leaves them that is killed between a count and the table that leads to the cluster."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

CLUSTER = 64 << 10  # bytes


def leak(image: Path, clusters: int = 3) -> int:
    """Count clusters behind the end of an image of 64 KiB clusters, and fill them with data. Returns their bytes."""
    with image.open("r+b") as stream:
        stream.seek(48)
        (table,) = struct.unpack(">Q", stream.read(8))
        stream.seek(table)
        (block,) = struct.unpack(">Q", stream.read(8))
        first = -(-stream.seek(0, 2) // CLUSTER)
        for number in range(first, first + clusters):
            stream.seek(number * CLUSTER)
            stream.write(b"leaked".ljust(CLUSTER, b"l"))
            stream.seek(block + number * 2)
            stream.write(b"\0\1")
    return clusters * CLUSTER


def leaks_of(image: Path) -> int:
    """The number of leaked clusters, as QEMU counts them. :raises AssertionError: QEMU finds the image damaged."""
    ended = subprocess.run(["qemu-img", "check", "--output=json", "-f", "qcow2", str(image)], check=False, capture_output=True, text=True)
    assert ended.returncode in (0, 3), ended.stdout + ended.stderr
    return int(json.loads(ended.stdout).get("leaks", 0))
