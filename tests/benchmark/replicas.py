# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas beside what does the same by hand.

A dense disk of which a part changes in scattered pieces: sending that, and reading it back, beside ``rsync`` of a raw file in which the same has
changed, and beside a full copy of it. Both sides end with a sync. Then many volumes of which nothing has to be sent, in one task, beside reading
both shares.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

from . import measuring
from .images import dense, measuring_candidates
from .measuring import MIB

TITLE = "replicas"
PIECE = 64 << 10  # bytes that change at a time
SHARE_OF_CHANGE = 20  # one of so many pieces changes
GOALS = {"rsync": 1.1, "idle": 2.0}


@dataclass(frozen=True)
class Row:
    """Seconds of ours and of the other way. ``sent`` is what was sent for each byte that has changed (0: nothing was)."""

    what: str
    other: str
    ours: float
    theirs: float
    sent: float = 0.0


def _run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


class Night:
    """A source, its replica, and a raw file with the same content and copies of it."""

    def __init__(self, scratch: Path, megabytes: int) -> None:
        from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating, volumes
        from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
        from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume

        self.size, self._chance, self._taken = megabytes * MIB, random.Random(megabytes), 0
        self.places = {name: scratch / name for name in ("source", "replica", "files", "copies")}
        for place in self.places.values():
            place.mkdir()
        self.raw = dense(self.places["files"] / "disk", megabytes)
        self.source, self.replica = (measuring_candidates(self.places[name]) for name in ("source", "replica"))
        volumes.ensure_present(updating.VolumeRequest(self.source, DesiredVolume("vol", size=self.size)), Options())
        shutil.copyfile(self.raw, self.places["source"] / "vol")
        self._snapshot()
        self.replicate()
        self.copies = {other: Path(shutil.copyfile(self.raw, self.places["copies"] / other)) for other in ("cp", "rsync")}
        os.sync()

    def _snapshot(self) -> None:
        from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots
        from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
        from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot

        self._taken += 1
        snapshots.take(snapshots.SnapshotRequest(self.source, "vol", DesiredSnapshot(f"s{self._taken}")), Options())

    def replicate(self) -> int:
        """Bytes that were sent."""
        from ansible_collections.remotefs.storage.plugins.module_utils.operations import replicas, up_to_date
        from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options

        request = up_to_date.ReplicaRequest(self.source, "vol", self.replica, "vol", max_chain=200)
        return int((replicas.replicate(request, Options()).told or {})["sent"])

    def change(self) -> int:
        """Change the same pieces of the volume and of the raw file. Returns the bytes."""
        from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading

        (told,) = reading.list_volumes(self.source.shares[0], ["vol"])
        pieces = self._chance.sample(range(self.size // PIECE), self.size // PIECE // SHARE_OF_CHANGE)
        changed = self._chance.randbytes(PIECE)
        with self.raw.open("r+b") as disk:
            for piece in pieces:
                disk.seek(piece * PIECE)
                disk.write(changed)
        pattern = self.places["files"] / "pattern"
        pattern.write_bytes(changed)
        words = [word for piece in pieces for word in ("-c", f"write -q -s {pattern} {piece * PIECE} {PIECE}")]
        for start in range(0, len(words), 2000):
            _run("qemu-io", "-f", told["format"], *words[start : start + 2000], told["path"])
        pattern.unlink()
        self._snapshot()
        os.sync()
        return len(pieces) * PIECE


def measure_night(scratch: Path, megabytes: int, repeats: int) -> list[Row]:
    night = Night(scratch, megabytes)
    sent: list[float] = []

    def ours() -> float:
        changed, count = night.change(), []
        found = measuring.timed(lambda: count.append(night.replicate()))
        sent.append(count[0] / changed)
        return found

    def synced(*words: str) -> Callable[[], float]:
        copy = str(night.copies[words[0]])  # of its own, so that what changed is missing there

        def work() -> None:
            _run(*words, str(night.raw), copy)
            _run("sync", copy)

        return lambda: measuring.timed(work)

    others = {"a full copy": synced("cp", "--sparse=auto")}
    if shutil.which("rsync") is not None:
        others["rsync"] = synced("rsync", "--inplace", "--no-whole-file", "--ignore-times")
    found = measuring.in_turns(repeats, {"ours": ours, **others})
    what = f"1/{SHARE_OF_CHANGE} of {megabytes} MiB has changed"
    return [Row(what, other, found["ours"], found[other], max(sent)) for other in sorted(others, reverse=True)]


def measure_idle(scratch: Path, count: int, repeats: int) -> Row:
    """A task of the module about all volumes, beside the tasks that read both shares."""
    places = [scratch / name for name in ("many", "copies of many")]
    for place in places:
        place.mkdir()
    names = [f"v{number:04}" for number in range(count)]
    measuring.run_module("remotefs_volume", {"share": [str(places[0])], "size": "1M", "snapshot": "s1", "volumes": [{"name": name} for name in names]})
    given = {"share": [str(places[0])], "to": str(places[1]), "volumes": [{"volume": name} for name in names]}
    measuring.run_module("remotefs_replica", given)

    def ours() -> float:
        return measuring.run_module("remotefs_replica", given).seconds

    def read() -> float:
        return sum(measuring.run_module("remotefs_volume_info", {"share": [str(place)]}).seconds for place in places)

    found = measuring.in_turns(repeats, {"ours": ours, "read": read})
    return Row(f"nothing to send of {count} volumes", "reading both shares", found["ours"], found["read"])


def measure(scratch: Path, full: bool) -> list[Row]:
    repeats = 5 if full else 3
    return [*measure_night(scratch, 2048 if full else 512, repeats), measure_idle(scratch, 1000, repeats)]


def tables(rows: Sequence[Row]) -> str:
    heads = ["what", "beside", "task", "the other", "task / the other", "sent for each byte that changed"]
    cells = []
    for row in rows:
        times = [measuring.seconds(row.ours), measuring.seconds(row.theirs), measuring.ratio(row.ours, row.theirs)]
        cells.append([row.what, row.other, *times, f"{row.sent:.2f}" if row.sent else ""])
    return measuring.table(heads, cells)
