# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One task that reads all volumes of a share, beside ``qemu-img info --backing-chain`` for each of them.

qemu-img is asked about a sample of the volumes where there are many, and its time is scaled to all of them. It says less than the
task, which also finds snapshots with their names and times, dependents, and whether somebody has the image open.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from . import measuring
from .measuring import MIB

TITLE = "reading a share"
GOALS = {"faster": 50.0, "memory": 200 * MIB}
_SIZE = 64 * MIB
_SAMPLE = 100  # volumes that qemu-img is asked about at most


@dataclass(frozen=True)
class Row:
    """Seconds to read ``volumes`` chains of ``files`` each; ``memory`` of the module's processes together at its peak in bytes."""

    volumes: int
    files: int
    ours: float
    qemu_img: float
    memory: int


class Share:
    """A share with volumes whose chains have so many files, written by the collection's codec; it can grow."""

    def __init__(self, path: Path, files: int) -> None:
        self.path, self.files, self.volumes = path, files, 0
        (path / ".remotefs" / "volumes").mkdir(parents=True)
        os.chmod(path / ".remotefs", 0o700)

    def grow(self, volumes: int) -> Share:
        for number in range(self.volumes, volumes):
            self._add(f"vol{number:05d}")
        self.volumes = volumes
        return self

    def _add(self, name: str) -> None:
        from ansible_collections.remotefs.storage.plugins.module_utils import model
        from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
        from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import info_file, records

        files = [name, *(f"{name}.s{number}" for number in range(1, self.files))]
        images, inode = [], 0
        for position, file in enumerate(files):
            below = files[position - 1] if position else None
            below_format = None if below is None else "raw" if position == 1 else "qcow2"
            fd = os.open(self.path / file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o660)
            if position:
                qcow2.write_image(fd, _SIZE, below, below_format)
            else:
                os.ftruncate(fd, _SIZE)
            inode = os.fstat(fd).st_ino if not position else inode
            os.close(fd)
            images.append(model.Image(file, "qcow2" if position else "raw", _SIZE, below, below_format))
        points = tuple(
            model.Snapshot(f"s{number}", files[number], time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_790_000_000 + number)))
            for number in range(1, self.files)
        )
        volume = model.Volume(name, tuple(reversed(images)), points, info=bool(points), adopted=True)
        (self.path / ".remotefs" / "volumes" / records.file_name(name)).write_bytes(
            records.describing(volume, (), {name: records.Disk(inode, _SIZE)}).to_bytes(name)
        )
        if points:
            info = info_file.Info(files[-1], tuple((point.name, point.file) for point in points))
            (self.path / f"{name}.info").write_bytes(info.to_bytes())

    def active(self, number: int) -> str:
        return f"vol{number:05d}" + (f".s{self.files - 1}" if self.files > 1 else "")


def ours(share: Share) -> float:
    """:raises AssertionError: it did not read all of it."""
    ran = measuring.run_module("remotefs_volume_info", {"share": [str(share.path)]})
    found = json.loads(ran.out)["volumes"]
    assert len(found) == share.volumes and all(len(one["chain"]) == share.files for one in found)
    assert all(len(one["snapshots"]) == share.files - 1 for one in found)
    return ran.seconds


def qemu_img(share: Share, volumes: int) -> float:
    """Seconds for all volumes of the share, from a shell loop over so many of them."""
    script = "for name; do qemu-img info --backing-chain --output=json -f $0 $name || exit 1; done"
    step = share.volumes // volumes
    files = [share.active(number * step) for number in range(volumes)]
    ran = measuring.run(["sh", "-c", script, "raw" if share.files == 1 else "qcow2", *files], where=share.path)
    assert ran.out.count(b'"virtual-size"') >= volumes * share.files
    return ran.seconds / volumes * share.volumes


def measure_share(share: Share, repeats: int, sample: int = _SAMPLE) -> Row:
    found = measuring.in_turns(repeats, {"ours": lambda: ours(share), "qemu-img": lambda: qemu_img(share, min(sample, share.volumes))})
    memory = measuring.peak_memory("remotefs_volume_info", {"share": [str(share.path)]})
    return Row(share.volumes, share.files, found["ours"], found["qemu-img"], memory)


def measure(scratch: Path, full: bool) -> list[Row]:
    rows = []
    share = Share(scratch / "share", 10)
    for volumes in (10, 100, 1000, 10_000):
        rows.append(measure_share(share.grow(volumes), 9 if full else 3))
    shutil.rmtree(share.path)
    for files in (1, 100):
        rows.append(measure_share(Share(scratch / "share", files).grow(100), 3, 20))
        shutil.rmtree(scratch / "share")
    return rows


def tables(rows: Sequence[Row]) -> str:
    return measuring.table(
        ["volumes", "files in each chain", "one task", "qemu-img", "times as fast", "a file costs", "peak memory"],
        [
            [
                row.volumes,
                row.files,
                measuring.seconds(row.ours),
                measuring.seconds(row.qemu_img),
                measuring.ratio(row.qemu_img, row.ours),
                f"{row.ours / row.volumes / row.files * 1e6:.0f} µs",
                f"{row.memory / MIB:.0f} MiB",
            ]
            for row in rows
        ],
    )
