# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of many volumes: created, snapshotted, the snapshots deleted, the volumes deleted, in four bulk tasks.

Beside it the fewest qemu-img calls that do the same, which keep no records and sync no directory, one after the other and as many
at a time as the module has threads; and the floor of the same system calls (floor.py), in as many threads where that makes it
faster.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from . import measuring
from .measuring import MIB

TITLE = "lives of volumes"
GOALS = {"qemu_img": 0.15, "floor": 3.0}
COUNTED = 100  # volumes while system calls are counted
_SAMPLE = 100  # volumes that qemu-img is asked to work on at most
_SIZE = 64 * MIB
_WAYS = {"ours": "Four bulk tasks", "floor": "The floor", "qemu-img": "Calls of qemu-img"}
_QEMU_IMG = """set -e
for name; do qemu-img create -q -f raw $name {size}; done
for name; do qemu-img create -q -f qcow2 -u -b $name -F raw $name.s {size}; done
for name; do qemu-img commit -q -f qcow2 -d $name.s; rm $name.s; done
rm "$@"
"""


@dataclass(frozen=True)
class Row:
    """Seconds for ``volumes`` lives in each way."""

    volumes: int
    ours: float
    qemu_img: float
    qemu_img_together: float
    floor: float


@dataclass(frozen=True)
class Counts:
    """What the lives of :data:`COUNTED` volumes cost, all tasks together."""

    way: str
    fsyncs: int
    programs: int


def at_a_time() -> int:
    return min(8, os.cpu_count() or 1)


def names(count: int) -> list[str]:
    return [f"vol{number:05d}" for number in range(count)]


def tasks(share: Path, count: int) -> list[tuple[str, dict]]:
    """The four tasks: (module, parameters)."""
    volumes = [{"name": name} for name in names(count)]
    points = [{"volume": name, "name": "s"} for name in names(count)]
    given = {"share": [str(share)]}
    return [
        ("remotefs_volume", {**given, "volumes": volumes, "size": str(_SIZE)}),
        ("remotefs_snapshot", {**given, "snapshots": points}),
        ("remotefs_snapshot", {**given, "snapshots": points, "state": "absent"}),
        ("remotefs_volume", {**given, "volumes": volumes, "state": "absent"}),
    ]


def ours(share: Path, count: int) -> float:
    """:raises AssertionError: a task did not do all of it."""
    total = 0.0
    for module, parameters in tasks(share, count):
        ran = measuring.run_module(module, parameters)
        results = json.loads(ran.out)["results"]
        assert len(results) == count and all(one["changed"] for one in results)
        total += ran.seconds
    assert [name for name in os.listdir(share) if name != ".remotefs"] == []
    return total


def qemu_img(share: Path, volumes: int, shells: int) -> float:
    """So many shells, each with its part of the volumes. Each call costs the same, so that no more than a sample is made."""
    count = min(volumes, _SAMPLE)
    every = names(count)
    script = _QEMU_IMG.format(size=_SIZE)
    parts = " ".join(f'sh -c "$0" sh {" ".join(every[number::shells])} &' for number in range(shells))
    return measuring.run(["sh", "-c", parts + " wait", script], where=share).seconds * volumes / count


def floor(share: Path, count: int, threads: int) -> float:
    return measuring.run(floor_argv(share, count, threads)).seconds


def floor_argv(share: Path, count: int, threads: int) -> list[str]:
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("floor.py")), str(share), str(count), str(threads)]


def measure_lives(scratch: Path, count: int, repeats: int) -> Row:
    def fresh() -> Path:
        share = scratch / "share"
        shutil.rmtree(share, ignore_errors=True)
        share.mkdir()
        return share

    found = measuring.in_turns(
        repeats,
        {
            "ours": lambda: ours(fresh(), count),
            "floor": lambda: floor(fresh(), count, 1),
            "floor with threads": lambda: floor(fresh(), count, at_a_time()),
            "qemu-img": lambda: qemu_img(fresh(), count, 1),
            "qemu-img together": lambda: qemu_img(fresh(), count, at_a_time()),
        },
    )
    shutil.rmtree(scratch / "share")
    return Row(count, found["ours"], found["qemu-img"], found["qemu-img together"], min(found["floor"], found["floor with threads"]))


def count(scratch: Path, volumes: int = COUNTED) -> list[Counts]:
    """fsyncs and programs of each way, as strace sees them. The modules' own processes and the shells are no programs."""
    share = scratch / "counted"
    share.mkdir()
    counted = {"ours": {"fsyncs": 0, "programs": 0}}
    for module, parameters in tasks(share, volumes):
        calls = measuring.count_calls(*measuring.module_call(module, parameters))
        counted["ours"] = {
            "fsyncs": counted["ours"]["fsyncs"] + calls["fsyncs"],
            "programs": counted["ours"]["programs"] + calls["programs"] - 1,
        }
    calls = measuring.count_calls(floor_argv(share, volumes, 1))
    counted["floor"] = {**calls, "programs": calls["programs"] - 1}
    calls = measuring.count_calls(["sh", "-c", _QEMU_IMG.format(size=_SIZE), "sh", *names(volumes)], where=share)
    counted["qemu-img"] = {**calls, "programs": calls["programs"] - 1}
    shutil.rmtree(share)
    return [Counts(way, one["fsyncs"], one["programs"]) for way, one in counted.items()]


def measure(scratch: Path, full: bool) -> list[Row | Counts]:
    sizes = [(10, 3), (100, 3), (1000, 1)] + ([(10_000, 1)] if full else [])
    rows: list[Row | Counts] = [measure_lives(scratch, volumes, repeats) for volumes, repeats in sizes]
    return rows + (count(scratch) if measuring.can_count() else [])


def tables(rows: Sequence[Row | Counts]) -> str:
    lives = [row for row in rows if isinstance(row, Row)]
    times = measuring.table(
        ["volumes", "four bulk tasks", "qemu-img", "floor", "to qemu-img", "to several qemu-img at a time", "to the floor"],
        [
            [
                row.volumes,
                *(measuring.seconds(value) for value in (row.ours, row.qemu_img, row.floor)),
                measuring.ratio(row.ours, row.qemu_img),
                measuring.ratio(row.ours, row.qemu_img_together),
                measuring.ratio(row.ours, row.floor),
            ]
            for row in lives
        ],
    )
    counts = [[_WAYS[row.way], row.fsyncs, row.programs] for row in rows if isinstance(row, Counts)]
    return times + ("\n\n" + measuring.table([f"lives of {COUNTED} volumes", "fsyncs", "programs"], counts) if counts else "")
