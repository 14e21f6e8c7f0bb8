# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many objects in one task, and many tasks at once."""

from __future__ import annotations

import multiprocessing
import subprocess
import threading
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import processes, runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates, Finder
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.modules import remotefs_snapshot, remotefs_volume

MIB = 1 << 20


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What threads do is watched here. Copies of the process have their own tests (test_bulk_copies.py)."""
    monkeypatch.setattr(processes, "how_many", lambda _rows, _parallel: 1)


def candidates(path: Path) -> Candidates:
    return Candidates((Share(str(path), str(path), "directory"),))


def test_all_are_attempted_in_order_and_each_has_its_own_result(tmp_path: Path) -> None:
    shares = candidates(tmp_path)

    def create(name: str, size: int) -> runner.Item:
        request = updating.VolumeRequest(shares, DesiredVolume(name, size=size))
        return runner.Item(name, frozenset([name]), lambda options: volumes.ensure_present(request, options))

    wanted = [(f"v{number}", MIB) for number in range(60)]
    wanted[7] = ("bad name", MIB)
    results = runner.run_all([create(name, size) for name, size in wanted], 8, Options())
    assert [index for index, result in enumerate(results) if isinstance(result, StorageError)] == [7]
    assert [result.name for result in results if not isinstance(result, StorageError)] == [
        name for name, _size in wanted if name != "bad name"
    ]
    again = runner.run_all([create(name, size) for name, size in wanted if name != "bad name"], 8, Options())
    assert not any(result.changed for result in again)


def test_items_of_one_volume_keep_their_order(tmp_path: Path) -> None:
    shares = candidates(tmp_path)
    volumes.ensure_present(updating.VolumeRequest(shares, DesiredVolume("v", size=MIB)), Options())

    def take(name: str) -> runner.Item:
        request = snapshots.SnapshotRequest(shares, "v", DesiredSnapshot(name))
        return runner.Item("v", frozenset(["v"]), lambda options: snapshots.take(request, options))

    names = [f"s{number}" for number in range(12)]
    assert all(result.changed for result in runner.run_all([take(name) for name in names], 8, Options()))
    (found,) = reading.list_volumes(shares.shares[0], ["v"])
    assert [one["name"] for one in found["snapshots"]] == names


def test_readers_meet_and_keep_their_place_beside_who_changes_what_they_read() -> None:
    """Two that read ``gold`` meet, which they can only side by side; the one behind its change starts when that has ended."""
    meeting, told = threading.Barrier(2), []

    def probe(_options: Options) -> Outcome:
        meeting.wait(60)
        return Outcome("", True, [], [], None, None)

    def tell(text: str) -> Callable[[Options], Outcome]:
        def run(_options: Options) -> Outcome:
            told.append(text)
            return Outcome("", True, [], [], None, None)

        return run

    gold = frozenset(["gold"])
    readers = [runner.Item(name, frozenset([name]), probe, reads=gold) for name in ("one", "two")]
    assert len(runner.run_all(readers, 2, Options())) == 2
    changing = runner.Item("gold", gold, tell("change"))
    before, after = (runner.Item(name, frozenset([name]), tell(name), reads=gold) for name in ("before", "after"))
    for _again in range(20):
        told.clear()
        runner.run_all([before, changing, after], 3, Options())
        assert told == ["before", "change", "after"]


@pytest.mark.parametrize(
    "source, locks_visible, reads",
    [
        ({"volume": "gold", "snapshot": "s"}, True, {"gold"}),
        ({"volume": "gold", "snapshot": None}, True, set()),
        ({"volume": "gold", "snapshot": "s"}, False, set()),  # one after the other: a lease is never shared
    ],
)
def test_which_clones_of_a_task_are_made_side_by_side(source: dict, locks_visible: bool, reads: set) -> None:
    class OneShare(Finder):
        def prepare(self, *_names: object) -> Candidates:
            return Candidates((Share("/s", "/s", "directory", locks_visible=locks_visible),))

    params = {"name": "env", "source": source, "state": "present", "share": ["/s"], "mount_base": "/m", "flatten": False, "moved_from": None}
    item = remotefs_volume._item(params, OneShare())
    assert (item.reads, item.touches) == (reads, {"env", "gold"} - reads)


@pytest.mark.parametrize("keeps_lock, at_once", [(False, 6), (True, 2)])
def test_what_keeps_its_lock_is_not_begun_before_it_can_work(keeps_lock: bool, at_once: int) -> None:
    mutex, under_way, most = threading.Lock(), [0], [0]

    def run(options: Options) -> Outcome:
        with mutex:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        options.task.waiting.sleep(0.2)
        with mutex:
            under_way[0] -= 1
        return Outcome("", True, [], [], None, None)

    runner.run_all([runner.Item(str(number), frozenset([str(number)]), run, keeps_lock=keeps_lock) for number in range(6)], 2, Options())
    assert most[0] == at_once


@pytest.mark.parametrize(
    "changes, keeps_lock",
    [
        ({"keep": {"match": "*", "last": 1}}, True),
        ({"keep": {"match": "*", "last": 1}, "name": None}, False),
        ({}, False),
        ({"state": "absent"}, False),
    ],
)
def test_who_takes_a_snapshot_before_others_go_keeps_its_lock(tmp_path: Path, changes: dict, keeps_lock: bool) -> None:
    params = {"volume": "vol", "name": "s", "names": None, "keep": None, "state": "present", "share": [str(tmp_path)], "mount_base": "/m"}
    item = remotefs_snapshot._item({**params, **changes}, Finder())
    assert item.keeps_lock is keeps_lock and bool(item.deletion) is bool(changes)


def _hammer(path: str, worker: int, errors: multiprocessing.Queue) -> None:
    shares = candidates(Path(path))
    for turn in range(6):
        name = f"v{(worker + turn) % 3}"
        try:
            snapshots.take(snapshots.SnapshotRequest(shares, name, DesiredSnapshot(f"w{worker}-{turn}")), Options(lock_timeout=60))
            snapshots.delete(shares, name, [f"w{worker}-{turn}"], Options(lock_timeout=60))
        except StorageError as error:
            errors.put(f"{error.error_code}: {error}")


def test_eight_tasks_on_three_volumes(tmp_path: Path) -> None:
    """Processes that snapshot and merge the same volumes: no error, and the contents that were there stay."""
    shares = candidates(tmp_path)
    for number in range(3):
        volumes.ensure_present(updating.VolumeRequest(shares, DesiredVolume(f"v{number}", size=MIB)), Options())
        subprocess.run(["qemu-io", "-f", "raw", "-c", f"write -q -P {number + 1} 0 1M", str(tmp_path / f"v{number}")], check=True)
    context = multiprocessing.get_context("fork")
    errors = context.Queue()
    workers = [context.Process(target=_hammer, args=(str(tmp_path), number, errors)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert errors.empty(), errors.get()
    for number in range(3):
        (found,) = reading.list_volumes(shares.shares[0], [f"v{number}"])
        assert found["snapshots"] == [] and found["pending"] is None
        with open(found["path"], "rb") as stream:
            assert stream.read() == bytes([number + 1]) * MIB
