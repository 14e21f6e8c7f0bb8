# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deleting snapshots, beside ``cp`` of as many bytes as that moves, synced, into the same directory.

Only the work is compared: Python and the collection are loaded already (what a task's start costs is another benchmark). What is
copied is in the page cache, and so is what is merged. A merge also removes files, which takes its time where they are large: so the
copy is told alone, and with the removal of the same files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from . import measuring
from .measuring import MIB
from .merge_bytes import Chain, Shape, data

TITLE = "merges"
GOALS = {"copy": 1.2}
_SIZE = 1024 * MIB


def _scattered(length: int, distance: int, count: int, value: int) -> tuple[str, ...]:
    return tuple(data(str(number * distance), str(length), value) for number in range(count))


SHAPES = (
    Shape("a qcow2 overlay into a raw base", ((data("0", "64M", 1),), (data("32M", "192M", 2),), ()), (1,), _SIZE, "raw"),
    Shape("one of several overlays", ((data("0", "384M", 1),), (data("0", "256M", 2),), (data("128M", "256M", 3),), ()), (2,), _SIZE),
    Shape(
        "eight overlays in one pass",
        ((data("0", "8M", 1),), (data("0", "64M", 2),), *((data(f"{96 * number}M", "24M", number + 3),) for number in range(8)), ()),
        tuple(range(2, 10)),
        _SIZE,
    ),
    Shape(
        "a hundred overlays in one pass",
        ((data("0", "8M", 1),), *((data(f"{10 * number}M", "2M", number + 1),) for number in range(100)), ()),
        tuple(range(1, 101)),
        _SIZE,
    ),
    Shape("a pull of one run of data", ((data("0", "512M", 1),), (data("0", "96M", 2),), (data("64M", "256M", 3),), ()), (2,), _SIZE),
    Shape(
        "a pull of single clusters",
        ((data("0", "8M", 1),), _scattered(65536, 2 * 65536, 512, 2), (data("256M", "96M", 3),), ()),
        (2,),
        _SIZE,
    ),
    Shape("nothing written since", ((data("0", "64M", 1),), (), ()), (1,), _SIZE),
)


@dataclass(frozen=True)
class Row:
    """Seconds of the merge, of a synced copy of the bytes that it wrote, and of that with the removal of the files that go."""

    shape: str
    moved: int
    ours: float
    copy: float
    copy_and_rm: float


def copy(share: Path, length: int, source: Path, going: Sequence[Path] = ()) -> float:
    """``cp`` of so many bytes to a new file that is synced afterwards, and removal of others."""

    def work() -> None:
        subprocess.run(["cp", "--reflink=never", str(source), str(share / "plain-copy")], check=True)
        fd = os.open(share / "plain-copy", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        for path in going:
            os.unlink(path)

    os.truncate(source, length)
    seconds = measuring.timed(work)
    os.unlink(share / "plain-copy")
    return seconds


def measure_shape(shape: Shape, scratch: Path, repeats: int) -> Row:
    from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img

    chain = Chain(scratch / "share", shape).build()
    moved, going = max(chain.delete(check=True), 4096), chain.going()
    source = scratch / "plain"

    def merge() -> float:
        copied = chain.copy(scratch / "copy")
        os.sync()  # else the merge would wait for what the copy left
        qemu_img._version_checked.clear()  # as in a task of its own
        seconds = measuring.timed(lambda: copied.delete(check=False))
        shutil.rmtree(copied.share)
        return seconds

    def prepare() -> None:
        with open(source, "wb") as file:
            for _part in range(moved // MIB + 1):
                file.write(b"\5" * MIB)
        os.sync()

    def plain() -> float:
        prepare()
        return copy(scratch, moved, source)

    def plain_and_rm() -> float:
        copied = chain.copy(scratch / "copy")
        prepare()
        seconds = copy(scratch, moved, source, [copied.share / file for file in going])
        shutil.rmtree(copied.share)
        return seconds

    found = measuring.in_turns(repeats, {"ours": merge, "copy": plain, "copy and rm": plain_and_rm})
    shutil.rmtree(scratch)
    return Row(shape.name, moved, found["ours"], found["copy"], found["copy and rm"])


def measure(scratch: Path, full: bool) -> list[Row]:
    rows = []
    for number, shape in enumerate(SHAPES):
        (scratch / str(number)).mkdir()
        rows.append(measure_shape(shape, scratch / str(number), 9 if full else 3))
    return rows


def tables(rows: Sequence[Row]) -> str:
    return measuring.table(
        ["merge", "moved", "deletion", "cp and fsync", "cp, fsync, rm", "deletion / cp", "deletion / cp and rm"],
        [
            [
                row.shape,
                f"{row.moved / MIB:.1f} MiB",
                measuring.seconds(row.ours),
                measuring.seconds(row.copy),
                measuring.seconds(row.copy_and_rm),
                measuring.ratio(row.ours, row.copy),
                measuring.ratio(row.ours, row.copy_and_rm),
            ]
            for row in rows
        ],
    )
