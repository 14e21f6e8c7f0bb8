# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with two volumes of the same name, from two shares: what a task on one left is nothing of the other's."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.machine import Machine
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, StorageError

from .guest import CLUSTER, Live, digest_of
from .instants import instants, killed_at

SECOND = "/machine/peripheral/d1/virtio-backend"
NAMES = ["ab", "a"]  # what is deleted: by a merge of the active image, by one below


class Pair:
    """Two volumes ``v`` with snapshots ``a`` and ``b``, and their machine."""

    def __init__(self, make: Callable[..., Live]) -> None:
        self.one, self.other = make("raw"), make("raw")
        for live in (self.one, self.other):
            live.snapshot("a")
        other = {"driver": "qcow2", "node-name": "second", "file": {"driver": "file", "filename": str(self.other.path / "v.a")}}
        self.second_monitor = f"{tempfile.mkdtemp(prefix='qmp-')}/second"  # the path of a socket has to be short
        monitor = f"unix:{self.second_monitor},server=on,wait=off"
        more = ("-blockdev", json.dumps(other), "-device", "virtio-blk-pci,id=d1,drive=second", "-qmp", monitor)
        self.other.guest = self.guest = self.one.start(more=more)
        self.write(1)
        for live in (self.one, self.other):
            live.snapshot("b")
        self.write(2)

    def write(self, seed: int) -> None:
        """Different data on the two disks, flushed."""
        self.guest.write(seed * 4 * CLUSTER, 2 * CLUSTER, 16 + seed)
        offset, length = seed * 7 * CLUSTER, 3 * CLUSTER
        for words in (f"write -P {32 + seed} {offset} {length}", "flush"):
            self.guest.qmp("human-monitor-command", command_line=f'qemu-io -d {SECOND} "{words}"')
        self.other.data[offset : offset + length] = bytes([32 + seed]) * length

    def require_right(self) -> None:
        for live in (self.one, self.other):
            live.require_right()


@pytest.mark.parametrize("names", NAMES)
def test_the_jobs_of_another_volume_are_not_ours(make: Callable[..., Live], names: str) -> None:
    """One task is killed when its job is there. The other volume's deletion is done by a job of its own."""
    trial = Pair(make)
    number = next(one.number for one in instants(lambda: trial.one.delete(*names)) if one.what == "after block-commit")
    pair = Pair(make)
    killed_at(lambda: pair.one.delete(*names), number, "guardian too", pair.guest.process.pid)
    (left,) = pair.guest.qmp("query-jobs")
    assert pair.other.delete(*names).changed
    assert [job["id"] for job in pair.guest.qmp("query-jobs")] == [left["id"]]
    pair.other.forget(*names)
    pair.other.require_right()
    pair.other.require_nothing_left()
    pair.write(3)
    assert not pair.other.present(size=len(pair.other.data)).changed
    assert pair.one.delete(*names).recovered[0]["outcome"] == "finished"
    pair.one.forget(*names)
    pair.require_right()
    pair.guest.kill()
    pair.require_right()


@pytest.mark.parametrize("names", NAMES)
def test_no_name_of_a_job_is_believed(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """If names were the same, the graph would show it: nothing of the second volume is removed, and ``.info`` stays."""
    monkeypatch.setattr(Machine, "job_name", lambda _self, what, *_files: f"rfs-{what}-same")
    monkeypatch.setattr(Machine, "is_own", lambda _self, job: job.startswith("rfs-"))
    trial = Pair(make)
    number = next(one.number for one in instants(lambda: trial.one.delete(*names)) if one.what == "after block-commit")
    pair = Pair(make)
    killed_at(lambda: pair.one.delete(*names), number, "guardian too", pair.guest.process.pid)
    before = {path.name for path in pair.other.path.iterdir()}
    for _attempt in range(2):
        with pytest.raises(StorageError, match="not the one that this task began"):
            pair.other.delete(*names)
    assert {path.name for path in pair.other.path.iterdir()} == before and pair.other.info()["path"].endswith("/v.b")
    pair.write(3)
    assert pair.one.delete(*names).recovered
    pair.one.forget(*names)
    monkeypatch.undo()
    assert pair.other.delete(*names).changed
    pair.other.forget(*names)
    pair.require_right()
    pair.guest.kill()
    pair.require_right()


def test_two_monitors_at_the_same_time(make: Callable[..., Live]) -> None:
    for _round in range(3):
        pair, failed = Pair(make), []

        def delete(live: Live, monitor: str) -> None:
            try:
                live.delete("a", "b", attachment=monitor)
            except StorageError as error:
                failed.append(error)  # noqa: B023  joined below

        threads = [threading.Thread(target=delete, args=pair_of) for pair_of in ((pair.one, pair.guest.socket), (pair.other, pair.second_monitor))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failed
        pair.one.points, pair.other.points = {}, {}
        pair.guest.go_on()
        pair.require_right()
        pair.guest.kill()
        pair.require_right()


@pytest.mark.parametrize("names", NAMES)
def test_other_tasks_use_the_monitor_while_a_long_merge_runs(make: Callable[..., Live], names: str) -> None:
    """A merge may take hours. In that time the machine's other disks have their snapshots."""
    pair = Pair(make)
    slow = os.fork()
    if not slow:
        try:
            pair.one.delete(*names, speed=1 << 10)
            os._exit(0)
        finally:
            os._exit(1)
    while not any(job["status"] == "running" for job in pair.guest.qmp("query-jobs")):
        time.sleep(0.05)
    with pytest.raises(InUse, match="another task works with this machine"):  # at first it asks without a pause
        pair.other.take("c", lock_timeout=0)
    pair.other.snapshot("c", lock_timeout=30)
    running = [job["id"] for job in pair.guest.qmp("query-jobs")]
    assert running, "the merge was over before"
    pair.other.delete("a", lock_timeout=30)
    pair.other.forget("a")
    os.kill(slow, signal.SIGKILL)  # it would take minutes
    os.waitpid(slow, 0)
    assert pair.one.delete(*names).recovered
    pair.one.forget(*names)
    pair.require_right()
    for live in (pair.one, pair.other):
        live.require_nothing_left()


def test_tasks_on_one_machine_take_turns(make: Callable[..., Live]) -> None:
    """Many at once, each with a short piece of work."""
    pair = Pair(make)
    tasks = []
    for number in range(6):
        task = os.fork()
        if not task:
            live = (pair.one, pair.other)[number % 2]
            try:
                live.take(f"t{number}", lock_timeout=60)
                os._exit(0)
            finally:
                os._exit(1)
        tasks.append(task)
    assert [os.waitpid(task, 0)[1] for task in tasks] == [0] * 6
    for number in range(6):
        live = (pair.one, pair.other)[number % 2]
        live.points[f"t{number}"] = digest_of(live.data)
    pair.require_right()
