# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Full clones of a volume of 1 GiB with 300 MiB of data, beside ``cp --reflink=auto --sparse=always`` of its file.

A clone is durable when it is reported, and cp syncs nothing: both comparisons are shown, with the copy synced and with cp alone. Beside
them stands a copy with all that the protocol makes durable: a record in its own directory first, then the copy, then its name.
Only the work is compared, as in merges.py. On XFS (from a file, where this user can mount one) blocks are shared. The data of a
volume with snapshots is spread over all files of its chain, and cp copies them all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

from . import measuring
from .measuring import MIB
from .merge_bytes import Chain, Shape, data

TITLE = "full clones"
GOALS = {"copy": 1.2}
_SIZE, _DATA = 1024, 300  # MiB


@dataclass(frozen=True)
class Row:
    """Seconds of a clone, of cp with fsync and a durable record, of cp with fsync, and of cp alone; ``taken`` are the bytes that the clone
    has on disk."""

    source: str
    place: str
    ours: float
    recorded: float
    synced: float
    plain: float
    taken: int


def shape(image_format: str, layers: int, size: int = _SIZE, filled: int = _DATA) -> Shape:
    """A volume of ``size`` MiB with its data (``filled`` MiB) in three pieces, or one in each file of a longer chain."""
    pieces = max(3, layers)
    held: list[list[str]] = [[] for _layer in range(layers)]
    for number in range(pieces):
        held[number * layers // pieces].append(data(f"{number * size // pieces}M", f"{filled // pieces}M", number + 1))
    return Shape("clone", tuple(map(tuple, held)), (), size * MIB, image_format)


def measure_clones(name: str, place: str, share: Path, image_format: str, layers: int, repeats: int, **sizes: int) -> Row:
    from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img
    from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating, volumes
    from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
    from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume

    chain = Chain(share, shape(image_format, layers, **sizes)).build()
    os.sync()
    candidates, files = chain.candidates, chain.files
    request = updating.VolumeRequest(candidates, DesiredVolume("copy", format=image_format), updating.SourceRequest("vol", None))
    taken = []

    def clone() -> float:
        qemu_img._version_checked.clear()
        seconds = measuring.timed(lambda: volumes.ensure_present(request, Options()))
        taken.append((share / "copy").stat().st_blocks * 512)
        volumes.ensure_absent(candidates, "copy", False, Options())
        os.sync()
        return seconds

    def copy(sync: bool, record: bool = False) -> float:
        target, records = share.with_suffix(".copies"), share.with_suffix(".records")
        target.mkdir()
        records.mkdir(exist_ok=True)

        def work() -> None:
            if record:
                (records / "new").write_bytes(b"r" * 400)
                _sync(records / "new")
                (records / "new").rename(records / "record")
                _sync(records)
            subprocess.run(["cp", "--reflink=auto", "--sparse=always", *files, str(target)], check=True, cwd=share)
            if sync:
                _sync(*(target / file for file in files), target)

        seconds = measuring.timed(work)
        shutil.rmtree(target)
        os.sync()
        return seconds

    ways = {"ours": clone, "recorded": lambda: copy(True, True), "synced": lambda: copy(True), "plain": lambda: copy(False)}
    found = measuring.in_turns(repeats, ways)
    shutil.rmtree(share)
    shutil.rmtree(share.with_suffix(".records"))
    return Row(name, place, found["ours"], found["recorded"], found["synced"], found["plain"], max(taken))


def _sync(*paths: Path) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


@contextlib.contextmanager
def reflinking(scratch: Path) -> Iterator[Path | None]:
    """A file system that can share blocks; None where this machine has no means to make one."""
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        yield None
        return
    image, directory = scratch / "xfs", scratch / "mounted"
    image.touch()
    os.truncate(image, 3072 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    directory.mkdir()
    if subprocess.run(["mount", "-o", "loop", str(image), str(directory)], stderr=subprocess.DEVNULL, check=False).returncode:
        yield None
        return
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)
        image.unlink()


def measure(scratch: Path, full: bool) -> list[Row]:
    rows, repeats = [], 9 if full else 3
    with reflinking(scratch) as shared:
        for place, where in (("the directory", scratch), ("XFS with reflinks", shared)):
            for name, image_format, layers in (
                ("raw", "raw", 1),
                ("qcow2", "qcow2", 1),
                ("qcow2 with a snapshot", "qcow2", 2),
                ("qcow2 with nine", "qcow2", 10),
                ("qcow2 with ninety-nine", "qcow2", 100),
            ):
                if where is not None:
                    rows.append(measure_clones(name, place, where / "share", image_format, layers, repeats))
    return rows


def tables(rows: Sequence[Row]) -> str:
    return measuring.table(
        ["volume", "on", "clone", "cp and fsync", "clone / synced cp", "clone / cp with a record", "clone / cp alone", "on disk"],
        [
            [
                row.source,
                row.place,
                measuring.seconds(row.ours),
                measuring.seconds(row.synced),
                measuring.ratio(row.ours, row.synced),
                measuring.ratio(row.ours, row.recorded),
                measuring.ratio(row.ours, row.plain),
                f"{row.taken / MIB:.0f} MiB",
            ]
            for row in rows
        ],
    )
