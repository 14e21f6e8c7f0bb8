# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots and merges while a machine runs, beside what QEMU itself needs for them, told through the same kind of socket.

- A snapshot beside ``blockdev-add`` and ``blockdev-snapshot`` of an overlay that is durable, and as many durable files as a task writes.
- Merges beside QEMU's own job alone, and beside that job with what a deletion needs besides: the merged data on the disk, and the file gone.
- How long the guest's writes wait at the end of the merge of the newest snapshot: from the event that says that the job rests, until
  the one that it has ended. Beside it, how long one small write of this machine takes.

Only the work is compared: Python and the collection are loaded already. The machine is QEMU without a guest, under emulation.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from . import measuring
from .measuring import MIB

TITLE = "a machine that runs"
GOALS = {"snapshot": 1.2, "merge": 1.1}
_SIZE = 1024 * MIB
_DATA = 256 * MIB  # bytes that a merge moves
_HOLDS = 20  # merges of the newest snapshot
_LITTLE = 4096  # bytes of a write of the guest


@dataclass(frozen=True)
class Row:
    """Seconds of a task's work, of QEMU's own part, and of that with the same durable writes and removals."""

    work: str
    ours: float
    alone: float
    bare: float


@dataclass(frozen=True)
class Holds:
    """Seconds for which the guest's writes waited, and seconds of one write and flush of the guest."""

    median: float
    most: float
    write: float
    most_write: float


@contextmanager
def machine(scratch: Path, data: int) -> Iterator[Any]:
    """A volume with one snapshot, the oldest, and ``data`` bytes written since; a machine runs on it. Twice as many bytes are older, so that
    it is the younger ones that a merge moves."""
    from live.guest import Live

    share = scratch / "share"
    share.mkdir()
    live = Live(share, "qcow2", _SIZE)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 3 {_SIZE // 2} {2 * data}", str(share / "v")], check=True, capture_output=True)
    live.take("first")
    guest = live.start()
    live.data = guest.data = bytearray()  # the model of the disk: a task's process is not that large, and a guardian is a copy of it
    try:
        for start in range(0, data, 16 * MIB):
            write(guest, start, 16 * MIB)
        yield live
    finally:
        guest.kill()
        shutil.rmtree(share)


def write(guest: Any, start: int, length: int) -> None:
    """As the guest does, without a model of the disk."""
    from live.guest import DEVICE

    for command in (f"write -P 7 {start} {length}", "flush"):
        guest.qmp("human-monitor-command", command_line=f'qemu-io -d {DEVICE} "{command}"')


# -- snapshots -------------------------------------------------------------------------------------------------------


def fsyncs_of(action: Callable[[], object]) -> int:
    """How often Python forces something to the disk meanwhile."""
    real, count = os.fsync, [0]

    def counted(fd: int) -> None:
        count[0] += 1
        real(fd)

    os.fsync = counted
    try:
        action()
    finally:
        os.fsync = real
    return count[0]


def durable(folder: int, name: str, content: bytes) -> None:
    """A file that is written whole, as every protocol that survives a power cut has to: two fsyncs."""
    fd = os.open(f"{name}~", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=folder)
    os.write(fd, content)
    os.fsync(fd)
    os.close(fd)
    os.rename(f"{name}~", name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def bare_snapshot(live: Any, number: int, fsyncs: int) -> None:
    """An overlay and as many durable files as the task writes, then QEMU's two commands through a socket of their own."""
    from live.guest import Qmp

    from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2

    path, active = live.path / f"bare{number}", live.info_path
    with open(path, "wb") as file:
        qcow2.write_image(file.fileno(), _SIZE, os.path.basename(active), "qcow2")
        if fsyncs:
            os.fsync(file.fileno())
    folder = os.open(live.path, os.O_RDONLY)
    for count in range((fsyncs - 1) // 2):
        durable(folder, f"record{count}", b"x" * 700)
    os.close(folder)
    qmp = Qmp(live.guest.socket)
    top = next(one["inserted"]["node-name"] for one in qmp("query-block") if one.get("inserted"))
    qmp("blockdev-add", driver="qcow2", node_name=f"b{number}", backing=None, file={"driver": "file", "filename": str(path)})
    qmp("blockdev-snapshot", node=top, overlay=f"b{number}")
    qmp.close()
    live.info_path = str(path)


def snapshots(scratch: Path, repeats: int) -> Row:
    """Each way has a machine of its own, and the chains grow alike."""
    (scratch / "a").mkdir()
    (scratch / "b").mkdir()
    with machine(scratch / "a", MIB) as ours, machine(scratch / "b", MIB) as bare:
        bare.info_path = bare.info()["path"]
        count = fsyncs_of(lambda: ours.take("counted"))
        numbers = iter(range(1000))

        def take() -> float:
            name = f"s{next(numbers)}"
            return measuring.timed(lambda: ours.take(name))

        def plain(fsyncs: int) -> float:
            number = next(numbers)
            return measuring.timed(lambda: bare_snapshot(bare, number, fsyncs))

        plain(count)
        found = measuring.in_turns(repeats, {"ours": take, "alone": lambda: plain(0), "bare": lambda: plain(count)})
    return Row("a snapshot", found["ours"], found["alone"], found["bare"])


# -- merges ----------------------------------------------------------------------------------------------------------


def bare_merge(live: Any, top: str, base: str, active: bool, whole: bool) -> None:
    """QEMU's own job, as its documentation has it. :param whole: with the data on the disk, and the merged file gone."""
    from live.guest import Qmp

    qmp = Qmp(live.guest.socket)
    nodes = {os.path.basename(one["file"]): one["node-name"] for one in qmp("query-named-block-nodes", flat=True) if one["drv"] == "qcow2"}
    device = next(one["inserted"]["node-name"] for one in qmp("query-block") if one.get("inserted"))
    qmp("block-commit", job_id="j", device=device, top_node=nodes[top], base_node=nodes[base])
    told = False
    while True:
        jobs = qmp("query-block-jobs")
        if not jobs:
            break
        if active and jobs[0]["ready"] and not told:
            qmp("block-job-complete", device="j")
            told = True
        time.sleep(0.002)
    if whole:
        with open(live.path / base, "rb") as file:
            os.fsync(file.fileno())
        if active:
            qmp("blockdev-del", node_name=nodes[top])
        os.unlink(live.path / top)
    qmp.close()


def merges(scratch: Path, repeats: int, newest: bool) -> Row:
    """The data of ``v.first`` goes into ``v``. A second snapshot is above it, unless it is the newest one itself that goes."""

    def prepare(live: Any) -> None:
        if not newest:
            live.take("second")
        os.sync()

    def ours() -> float:
        with machine(scratch, _DATA) as live:
            prepare(live)
            return measuring.timed(lambda: live.delete("first"))

    def bare(whole: bool) -> float:
        with machine(scratch, _DATA) as live:
            prepare(live)
            return measuring.timed(lambda: bare_merge(live, "v.first", "v", newest, whole))

    found = measuring.in_turns(repeats, {"ours": ours, "alone": lambda: bare(False), "bare": lambda: bare(True)})
    kind = "the newest snapshot" if newest else "a snapshot below the active image"
    return Row(f"deletion of {kind}, {_DATA // MIB} MiB", found["ours"], found["alone"], found["bare"])


# -- how long the guest waits ----------------------------------------------------------------------------------------


def held(events: Sequence[dict]) -> float:
    """Seconds from the moment at which the job rests until it has ended, by QEMU's own clock."""
    at = {}
    for event in events:
        if event["event"] == "JOB_STATUS_CHANGE":
            stamp = event["timestamp"]
            at[event["data"]["status"]] = stamp["seconds"] + stamp["microseconds"] / 1e6
    return at["concluded"] - at["waiting"]


def holds(scratch: Path, repeats: int) -> Holds:
    waited, writes = [], []
    with machine(scratch, MIB) as live:
        for number in range(repeats):
            live.take(f"h{number}")
            for position in range(8):
                writes.append(measuring.timed(lambda at=position: write(live.guest, at * 128 * 1024, _LITTLE)))
            live.guest.qmp.events.clear()
            live.delete(f"h{number}")
            live.guest.qmp("query-status")
            waited.append(held(live.guest.qmp.events))
    return Holds(statistics.median(waited), max(waited), statistics.median(writes), max(writes))


def measure(scratch: Path, full: bool) -> list[Row | Holds]:
    repeats = 9 if full else 3
    return [
        snapshots(scratch, repeats * 5),
        merges(scratch, repeats, newest=False),
        merges(scratch, repeats, newest=True),
        holds(scratch, _HOLDS * (5 if full else 1)),
    ]


def tables(rows: Sequence[Row | Holds]) -> str:
    compared = [row for row in rows if isinstance(row, Row)]
    first = measuring.table(
        ["work", "task", "QEMU alone", "durable", "task / QEMU alone", "task / durable"],
        [
            [
                row.work,
                measuring.seconds(row.ours),
                measuring.seconds(row.alone),
                measuring.seconds(row.bare),
                measuring.ratio(row.ours, row.alone),
                measuring.ratio(row.ours, row.bare),
            ]
            for row in compared
        ],
    )
    waits = [row for row in rows if isinstance(row, Holds)]
    second = measuring.table(
        ["at the end of the merge of the newest snapshot", "median", "most"],
        [
            line
            for row in waits
            for line in (
                ["the guest's writes wait", measuring.seconds(row.median), measuring.seconds(row.most)],
                ["one write of 4 KiB and a flush takes", measuring.seconds(row.write), measuring.seconds(row.most_write)],
            )
        ],
    )
    return f"{first}\n\n{second}"
