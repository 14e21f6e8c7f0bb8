# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What merges write: predicted in check mode, measured, and measured for the same snapshots deleted one by one.

Run by ``scripts/bench``. Written bytes are those that all programs and Python handed to the kernel to write (``wchar`` in
/proc/self/io, to which every program adds its own when it ends): data, tables, headers and records, whatever the file
system does with them. Zeros that are punched as holes are none.

One by one means what Cinder's drivers do for each snapshot: commit its file into its backing file, then repoint the overlay
above.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from . import measuring
from .measuring import MIB

TITLE = "bytes of merges"


@dataclass(frozen=True)
class Shape:
    """A chain: for each file, base first, the qemu-io commands that fill it; between two files a snapshot is taken.

    ``doomed`` are numbers of snapshots; the point of snapshot n is what file n - 1 shows. ``saves`` is how many times as much
    one by one must write at least, so that a worse choice of what merges where is noticed.
    """

    name: str
    layers: tuple[tuple[str, ...], ...]
    doomed: tuple[int, ...]
    size: int = 256 * MIB
    format: str = "qcow2"
    saves: float = 1.0


def data(start: str, length: str, value: int) -> str:
    return f"write -q -P {value} {start} {length}"


def zeros(start: str, length: str) -> str:
    return f"write -q -z {start} {length}"


def scattered(count: int, distance: int, value: int, length: str = "64k") -> tuple[str, ...]:
    return tuple(data(str(number * distance), length, value) for number in range(count))


SHAPES = (
    Shape(
        "adjacent layers that overlap",
        ((data("0", "16M", 1),), *((data(f"{4 * number}M", "8M", number + 2),) for number in range(4)), (data("0", "1M", 9),)),
        (2, 3, 4),
        saves=1.8,
    ),
    Shape(
        "disjoint layers",
        ((data("0", "4M", 1),), *((data(f"{8 + 8 * number}M", "5M", number + 2),) for number in range(8)), ()),
        tuple(range(2, 9)),
    ),
    Shape(
        "one big layer above small ones",
        ((data("0", "4M", 1),), (data("0", "2M", 2),), (data("8M", "2M", 3),), (data("16M", "64M", 4),), ()),
        (2, 3),
        saves=10,
    ),
    Shape(
        "zeros over data",
        ((data("0", "32M", 1),), (data("0", "8M", 2),), (zeros("0", "16M"), data("40M", "4M", 3)), (data("80M", "4M", 6),), ()),
        (1, 2, 3),
        format="raw",
        saves=1.8,
    ),
    Shape(
        "a commit and a pull into the middle layer",
        ((data("0", "32M", 1),), (data("0", "4M", 2),), (data("8M", "20M", 3),), (data("10M", "2M", 4),), ()),
        (2, 3),
        saves=3,
    ),
    Shape(
        "deep chain, four groups",
        tuple((data(f"{number * 7 % 60}M", "3M", number + 1), data(f"{100 + number % 5}M", "1M", number + 1)) for number in range(21)),
        (2, 3, 4, 7, 8, 11, 12, 13, 14, 18),
        format="raw",
    ),
    Shape("single clusters, scattered, pulled", ((), scattered(300, 256 << 10, 1), (data("80M", "100M", 2),), ()), (2,), saves=1.5),
    Shape("single clusters in 8 GiB", ((), scattered(300, 24 * MIB, 1), scattered(200, 40 * MIB, 2), ()), (1, 2), 8 << 30, "raw"),
    Shape("4 KiB writes, scattered", ((), scattered(400, 128 << 10, 1, "4k"), scattered(200, 192 << 10, 2, "4k"), ()), (2,)),
    Shape("little in a qcow2 base, much above it", ((data("0", "4M", 1),), (data("2M", "60M", 2),), ()), (1,), saves=20),
    Shape("little in a raw base, much above it", ((data("0", "4M", 1),), (data("2M", "60M", 2),), ()), (1,), format="raw"),
)


@dataclass(frozen=True)
class Result:
    """Bytes of one shape."""

    shape: str
    predicted: int
    written: int
    top_down: int
    bottom_up: int


def run(*argv: str, where: Path) -> None:
    subprocess.run(argv, check=True, cwd=where, stdout=subprocess.DEVNULL)


def written_so_far() -> int:
    """Bytes that this process and all its children that have ended asked the kernel to write."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["wchar"])


class Chain:
    """A share with the chain of a shape."""

    def __init__(self, share: Path, shape: Shape) -> None:
        from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
        from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates

        self.share, self.shape = share, shape
        self.candidates = Candidates((Share(str(share), str(share), "directory"),))

    def build(self) -> Chain:
        from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating, volumes
        from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
        from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

        self.share.mkdir()
        desired = DesiredVolume("vol", size=self.shape.size, format=self.shape.format)
        volumes.ensure_present(updating.VolumeRequest(self.candidates, desired), Options())
        for number, commands in enumerate(self.shape.layers):
            if number:
                snapshots.take(snapshots.SnapshotRequest(self.candidates, "vol", DesiredSnapshot(f"s{number}", max_chain=200)), Options())
            if commands:
                image_format = "qcow2" if number else self.shape.format
                run(
                    "qemu-io",
                    "-f",
                    image_format,
                    *(word for command in commands for word in ("-c", command)),
                    self._file(number),
                    where=self.share,
                )
        return self

    @property
    def files(self) -> list[str]:
        """All files, base first."""
        return [self._file(number) for number in range(len(self.shape.layers))]

    def _file(self, number: int) -> str:
        return f"vol.s{number}" if number else "vol"

    def copy(self, share: Path) -> Chain:
        run("cp", "-r", "--sparse=always", str(self.share), str(share), where=Path("/"))
        return Chain(share, self.shape)

    def delete(self, check: bool) -> int:
        """All doomed snapshots in one pass; returns the bytes of ``actions``."""
        return sum(action["bytes"] for action in self._actions(check) if action["step"] in ("commit", "pull"))

    def going(self) -> list[str]:
        """The files that this removes."""
        return [action["file"] for action in self._actions(True) if action["step"] == "unlink"]

    def _actions(self, check: bool) -> tuple:
        from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots
        from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options

        names = [f"s{number}" for number in self.shape.doomed]
        return snapshots.delete(self.candidates, "vol", names, Options(check=check)).actions

    def delete_one_by_one(self, order: list[int]) -> None:
        files = list(range(len(self.shape.layers)))
        for number in order:
            position = files.index(number)
            below = files[position - 1]
            run("qemu-img", "commit", "-q", "-d", "-f", "qcow2", self._file(number), where=self.share)
            if position + 1 < len(files):
                below_format = "qcow2" if below else self.shape.format
                run(
                    *(
                        "qemu-img",
                        "rebase",
                        "-u",
                        "-f",
                        "qcow2",
                        "-F",
                        below_format,
                        "-b",
                        self._file(below),
                        self._file(files[position + 1]),
                    ),
                    where=self.share,
                )
            (self.share / self._file(number)).unlink()
            files.remove(number)

    def contents(self) -> dict[str, str]:
        """Hashes of the active data and of every snapshot that stays, as the collection finds them."""
        from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading

        (found,) = reading.list_volumes(self.candidates.shares[0], ["vol"])
        backing = {image["file"]: image["backing_file"] for image in found["chain"]}
        formats = {image["file"]: image["format"] for image in found["chain"]}
        files = {"active": found["chain"][0]["file"], **{one["name"]: backing[one["file"]] for one in found["snapshots"]}}
        return {name: self._hash(file, formats[file]) for name, file in files.items() if name[1:] not in map(str, self.shape.doomed)}

    def _hash(self, file: str, image_format: str) -> str:
        flat = self.share.with_suffix(".flat")
        run("qemu-img", "convert", "-f", image_format, "-O", "raw", file, str(flat), where=self.share)
        total, offset = hashlib.sha256(), 0
        with open(flat, "rb") as content:
            size = os.fstat(content.fileno()).st_size
            while offset < size:
                try:
                    offset = os.lseek(content.fileno(), offset, os.SEEK_DATA) // 4096 * 4096
                except OSError:
                    break
                block = os.pread(content.fileno(), 4096, offset)
                if block.count(0) < len(block):
                    total.update(offset.to_bytes(8, "little") + block)
                offset += 4096
        flat.unlink()
        return total.hexdigest()


def measure_shape(shape: Shape, scratch: Path) -> Result:
    """Everything of one shape. :raises AssertionError: a snapshot or the active data is not what it was."""
    chain = Chain(scratch / "share", shape).build()
    copies = [chain.copy(scratch / name) for name in ("top-down", "bottom-up")]
    expected = chain.contents()
    predicted = chain.delete(check=True)
    before = written_so_far()
    chain.delete(check=False)
    written = written_so_far() - before
    assert chain.contents() == expected, f"{shape.name}: contents changed"
    one_by_one = []
    for copy, order in zip(copies, (sorted(shape.doomed, reverse=True), sorted(shape.doomed))):
        before = written_so_far()
        copy.delete_one_by_one(order)
        one_by_one.append(written_so_far() - before)
    shutil.rmtree(scratch)
    return Result(shape.name, predicted, written, *one_by_one)


def measure(scratch: Path, full: bool) -> list[Result]:
    results = []
    for number, shape in enumerate(SHAPES):
        (scratch / str(number)).mkdir()
        results.append(measure_shape(shape, scratch / str(number)))
    return results


def tables(results: Sequence[Result]) -> str:
    return measuring.table(
        ["chain", "predicted", "written", "predicted / written", "top-down", "bottom-up"],
        [
            [
                one.shape,
                f"{one.predicted / MIB:.1f} MiB",
                f"{one.written / MIB:.1f} MiB",
                *(f"{value / one.written:.2f}" for value in (one.predicted, one.top_down, one.bottom_up)),
            ]
            for one in results
        ],
    )
