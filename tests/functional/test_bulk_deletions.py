# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deletions in bulk: one look at the share for many volumes, and still nothing is removed on which something rests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import moving
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import batch_locks, processes, runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk.order import Change
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.operations.workspace import Workspace
from ansible_collections.remotefs.storage.plugins.module_utils.plan import plan
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files import folders
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import dependents

MIB = 1 << 20


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What threads do is watched here. Copies of the process have their own tests (test_bulk_copies.py)."""
    monkeypatch.setattr(processes, "how_many", lambda _rows, _parallel: 1)


@pytest.fixture
def shares(tmp_path: Path) -> Candidates:
    return Candidates((Share(str(tmp_path), str(tmp_path), "directory"),))


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list:
    """How often all headers of a share were read."""
    counted: list = []
    scan = dependents.search_root
    monkeypatch.setattr(dependents, "search_root", lambda *args, **named: (counted.append(1), scan(*args, **named))[1])
    return counted


def make(shares: Candidates, name: str, source: updating.SourceRequest | None = None) -> None:
    size = None if source else 4 * MIB
    volumes.ensure_present(updating.VolumeRequest(shares, DesiredVolume(name, size=size), source), Options())


def take(shares: Candidates, volume: str, name: str) -> None:
    snapshots.take(snapshots.SnapshotRequest(shares, volume, DesiredSnapshot(name)), Options())


def write(shares: Candidates, name: str, value: int, offset: int = 0) -> None:
    (volume,) = reading.list_volumes(shares.shares[0], [name])
    subprocess.run(
        ["qemu-io", "-f", volume["format"], "-c", f"write -P {value} {offset} 64k", volume["path"]], check=True, capture_output=True
    )


def content(shares: Candidates, name: str, into: Path) -> str:
    (volume,) = reading.list_volumes(shares.shares[0], [name])
    raw = into / "read"
    subprocess.run(["qemu-img", "convert", "-f", volume["format"], "-O", "raw", volume["path"], raw], check=True)
    return hashlib.sha256(raw.read_bytes()).hexdigest()


def removal(shares: Candidates, name: str) -> runner.Item:
    def run(options: Options) -> Outcome:
        return volumes.ensure_absent(shares, name, True, options)

    return runner.Item(name, frozenset([name]), run, runner.Deletion(shares, name), change=Change(shares, name, absent=True))


def deletion(shares: Candidates, volume: str, *names: str) -> runner.Item:
    def run(options: Options) -> Outcome:
        return snapshots.delete(shares, volume, list(names), options)

    return runner.Item(volume, frozenset([volume]), run, runner.Deletion(shares, volume))


def names_on(shares: Candidates) -> list[str]:
    return [volume["name"] for volume in reading.list_volumes(shares.shares[0], [])]


def codes(results: list[Outcome | errors.StorageError]) -> list[str]:
    return [result.error_code if isinstance(result, errors.StorageError) else "" for result in results]


def test_many_volumes_are_removed_with_one_look_at_the_share(shares: Candidates, scans: list) -> None:
    wanted = [f"v{number}" for number in range(40)]
    for name in [*wanted, "stays"]:
        make(shares, name)
    results = runner.run_all([removal(shares, name) for name in wanted], 4, Options())
    assert [result.name for result in results] == wanted and all(result.changed for result in results)
    assert names_on(shares) == ["stays"]
    assert len(scans) == 2, "one for the removals, one for the list"
    assert not any(path.name.split(".")[0] in wanted for path in (Path(shares.shares[0].path) / ".remotefs").rglob("*"))


def test_what_a_clone_rests_on_stays_and_goes_after_it(shares: Candidates) -> None:
    make(shares, "golden")
    take(shares, "golden", "v1")
    make(shares, "clone", updating.SourceRequest("golden", "v1", linked=True))
    make(shares, "other")
    items = [replace(removal(shares, name), change=None) for name in ("golden", "other", "clone")]
    assert codes(runner.run_all(items, 4, Options())) == ["has_dependents", "", ""]
    make(shares, "clone", updating.SourceRequest("golden", "v1", linked=True))
    make(shares, "other")
    assert codes(runner.run_all([removal(shares, name) for name in ("clone", "other", "golden")], 4, Options())) == ["", "", ""]
    assert names_on(shares) == []


def test_a_clone_that_comes_to_rest_on_another_file_is_noticed(
    shares: Candidates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The clone's own lowest file goes: the one above it then rests on the parent, which no header said when the batch began."""
    scratch = tmp_path_factory.mktemp("scratch")
    make(shares, "golden")
    write(shares, "golden", 7)
    take(shares, "golden", "v1")
    make(shares, "clone", updating.SourceRequest("golden", "v1", linked=True))
    for value, snapshot in ((1, "a"), (2, "b"), (3, "c")):
        write(shares, "clone", value, value * 65536)
        take(shares, "clone", snapshot)
    before = content(shares, "clone", scratch)
    items = [deletion(shares, "clone", "a", "b", "c"), deletion(shares, "golden", "v1"), removal(shares, "golden")]
    results = runner.run_all(items, 4, Options())
    assert codes(results)[0] == "" and codes(results)[2] == "has_dependents", results
    assert content(shares, "clone", scratch) == before


def test_a_file_that_the_batch_itself_repoints_counts(shares: Candidates) -> None:
    """As above, on what the batch knows: the header is read again after each change."""
    make(shares, "golden")
    take(shares, "golden", "v1")
    make(shares, "clone", updating.SourceRequest("golden", "v1", linked=True))
    take(shares, "clone", "a")
    with batch_locks.BatchLocks(shares.shares[0]) as held:
        held.take(["clone", "golden"])
        assert held.backings().above("golden") == ["clone", "golden.v1"]
        outcome = snapshots.delete(shares, "clone", ["a"], Options(task=Task(batch_locks=held)))
        (left,) = {"clone", "clone.a"} & {path.name for path in Path(shares.shares[0].path).iterdir()}
        assert outcome.changed and held.backings().above("golden") == [left, "golden.v1"]
        assert held.backings().above("clone") == []


def test_a_volume_that_somebody_holds_is_waited_for_and_the_others_are_not(shares: Candidates) -> None:
    for number in range(4):
        make(shares, f"v{number}")
    order: list[str] = []
    entered, done = threading.Event(), threading.Event()

    def hold() -> None:
        with Workspace(Options()) as work:
            work.locks.take([(shares.shares[0], "v1")])
            entered.set()
            done.wait(30)

    def noted(name: str) -> runner.Item:
        def run(options: Options) -> Outcome:
            outcome = volumes.ensure_absent(shares, name, True, options)
            order.append(name)
            if len(order) == 3:
                done.set()
            return outcome

        return runner.Item(name, frozenset([name]), run, runner.Deletion(shares, name), change=Change(shares, name, absent=True))

    other = threading.Thread(target=hold)
    other.start()
    entered.wait()
    results = runner.run_all([noted(f"v{number}") for number in range(4)], 2, Options())
    other.join()
    assert order[-1] == "v1" and sorted(order) == ["v0", "v1", "v2", "v3"]
    assert codes(results) == [""] * 4 and names_on(shares) == []


def test_one_that_stays_locked_fails_alone(shares: Candidates) -> None:
    for number in range(3):
        make(shares, f"v{number}")
    with Workspace(Options()) as work:
        work.locks.take([(shares.shares[0], "v1")])
        results = runner.run_all([removal(shares, f"v{number}") for number in range(3)], 2, Options(lock_timeout=0.2))
    assert codes(results) == ["", "lock_timeout", ""] and names_on(shares) == ["v1"]


def test_items_in_between_keep_their_place(shares: Candidates) -> None:
    """Deletions are batched with their neighbours only: what stands before and after them comes before and after."""
    make(shares, "v")

    def create(options: Options) -> Outcome:
        return volumes.ensure_present(updating.VolumeRequest(shares, DesiredVolume("v", size=8 * MIB)), options)

    items = [removal(shares, "v"), runner.Item("v", frozenset(["v"]), create), removal(shares, "w"), removal(shares, "x")]
    results = runner.run_all(items, 4, Options())
    assert [result.changed for result in results] == [True, True, False, False]
    assert reading.list_volumes(shares.shares[0], ["v"])[0]["size"] == 8 * MIB


def test_check_mode_takes_no_lock_and_looks_once(shares: Candidates, scans: list, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        make(shares, f"v{number}")
    taken: list[str] = []
    monkeypatch.setattr(VolumeLock, "__enter__", lambda lock: taken.append(lock.volume))
    results = runner.run_all([removal(shares, f"v{number}") for number in range(10)], 1, Options(check=True))
    assert all(result.changed for result in results) and len(scans) == 1 and not taken
    assert len(names_on(shares)) == 10


def test_the_lock_is_free_once_a_volume_is_done(shares: Candidates) -> None:
    """Nobody waits for the rest of a batch."""
    for name in ("v0", "v1"):
        make(shares, name)
        take(shares, name, "a")
    free: list[bool] = []

    def then_look(options: Options) -> Outcome:
        outcome = snapshots.delete(shares, "v1", ["a"], options)
        with Workspace(Options(lock_timeout=0)) as work:
            work.locks.take([(shares.shares[0], "v0")])
            free.append(True)
        return outcome

    items = [deletion(shares, "v0", "a"), runner.Item("v1", frozenset(["v1"]), then_look, runner.Deletion(shares, "v1"))]
    assert codes(runner.run_all(items, 1, Options())) == ["", ""] and free == [True]


def test_volumes_whose_turn_does_not_come_are_given_back(shares: Candidates, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one deletion of the batch takes long, others get the volumes behind it; they are deleted all the same, later."""
    monkeypatch.setattr(runner, "_PATIENCE", 0.1)
    for name in ("slow", "v1", "v2"):
        make(shares, name)
    seen: list[bool] = []

    def takes_long(options: Options) -> Outcome:
        for name in ("v1", "v2"):
            with Workspace(Options(lock_timeout=20)) as work:
                work.locks.take([(shares.shares[0], name)])
                seen.append(name in names_on(shares))
        return volumes.ensure_absent(shares, "slow", True, options)

    slow = runner.Item("slow", frozenset(["slow"]), takes_long, runner.Deletion(shares, "slow"))
    results = runner.run_all([slow, removal(shares, "v1"), removal(shares, "v2")], 1, Options())
    assert seen == [True, True] and codes(results) == [""] * 3 and names_on(shares) == []


def test_merges_of_much_data_hold_no_more_volumes_than_are_merged(
    shares: Candidates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While two merges take long, the volumes behind them are given back untouched, and quick deletions go on."""
    monkeypatch.setattr(runner, "_PATIENCE", 0.2)
    monkeypatch.setattr(plan, "MUCH", 32 * 1024)
    names = [f"v{number}" for number in range(6)]
    for value, name in enumerate([*names, "quick"], 1):
        make(shares, name)
        take(shares, name, "s")
        if name != "quick":
            write(shares, name, value)
    wanted = {name: content(shares, name, tmp_path) for name in names}
    commit, mutex, merging, most, given_back = moving.Mover.commit, threading.Lock(), set(), [0], threading.Event()

    def takes_long(mover: moving.Mover, images: tuple, into: str) -> None:
        with mutex:
            merging.add(into)
            most[0] = max(most[0], len(merging))
        while not given_back.is_set():  # it never is where they are not: the test's timeout ends that
            behind = set(names) - merging
            if len(behind) == 4 and all(_can_be_locked(shares, name) for name in behind):
                given_back.set()
            time.sleep(0.01)
        commit(mover, images, into)
        with mutex:
            merging.discard(into)

    monkeypatch.setattr(moving.Mover, "commit", takes_long)
    results = runner.run_all([deletion(shares, name, "s") for name in [*names, "quick"]], 2, Options())
    assert codes(results) == [""] * 7 and most[0] == 2
    assert {name: content(shares, name, tmp_path) for name in names} == wanted
    assert not any(volume["snapshots"] or volume["pending"] for volume in reading.list_volumes(shares.shares[0], []))


def _can_be_locked(shares: Candidates, name: str) -> bool:
    try:
        with Workspace(Options(lock_timeout=0)) as work:
            work.locks.take([(shares.shares[0], name)])
            (volume,) = reading.list_volumes(shares.shares[0], [name])
            return not volume["pending"]
    except errors.LockTimeout:
        return False


@pytest.mark.parametrize("count", [0, 1])
def test_a_share_that_is_ill_is_told_by_each(shares: Candidates, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for number in range(3):
        make(shares, f"v{number}")

    def ill(*_args: object, **_named: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(folders, "scan_all", ill)
    results = runner.run_all([removal(shares, f"v{number}") for number in range(count, 3)], 2, Options())
    assert all(isinstance(result, errors.StorageError) for result in results)
    monkeypatch.undo()
    assert len(names_on(shares)) == 3


# -- families: golden volumes that go together with what rests on them ---------------------------------------------------


def family(shares: Candidates, name: str, wide: int) -> list[str]:
    """A golden volume, linked clones of it, and one linked clone of each of those. Returns their names, the worst order first."""
    make(shares, name)
    take(shares, name, "s1")
    many = []
    for below, each in ((lambda _number: name, "mid"), (lambda number: f"{name}-mid{number}", "leaf")):
        for number in range(wide):
            source = updating.SourceRequest(below(number), "s1", linked=True)
            desired = DesiredVolume(f"{name}-{each}{number}", snapshot="s1")
            request = updating.VolumeRequest(shares, desired, source)
            many.append(runner.Item(desired.name, frozenset([desired.name]), lambda options, one=request: volumes.ensure_present(one, options)))
    for start in (0, wide):
        assert not any(codes(runner.run_all(many[start : start + wide], 4, Options())))
    return [name, *(item.name for item in many)]


def test_families_of_several_levels_go_in_one_task(shares: Candidates) -> None:
    """More than are locked at once, so that clones and what they rest on are in different batches."""
    wanted = [*family(shares, "g1", 70), *family(shares, "g2", 40)]
    assert len(wanted) > runner._MOST_HELD
    items = [removal(shares, name) for name in wanted]
    predicted = runner.run_all(items, 1, Options(check=True))
    assert not any(codes(predicted)) and len(names_on(shares)) == len(wanted)
    done = runner.run_all(items, 4, Options())
    assert not any(codes(done)) and names_on(shares) == []
    assert [result.name for result in done] == wanted
    assert [(one.changed, one.actions) for one in predicted] == [(one.changed, one.actions) for one in done]


def test_what_rests_on_a_volume_of_an_earlier_batch_is_done_later_too(shares: Candidates, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone that was given back, because somebody held it, goes before what it rests on all the same."""
    wanted = family(shares, "g", 4)
    monkeypatch.setattr(runner, "_MOST_HELD", 3)
    taken = batch_locks.BatchLocks._try

    def busy(self: batch_locks.BatchLocks, name: str, shared: bool) -> None:
        if name not in ("g-leaf0", "g-mid2"):
            taken(self, name, shared)

    monkeypatch.setattr(batch_locks.BatchLocks, "_try", busy)
    assert not any(codes(runner.run_all([removal(shares, name) for name in wanted], 4, Options()))) and names_on(shares) == []


def test_a_failure_stays_with_its_family(shares: Candidates) -> None:
    """Whatever rests on what stays is told so; others go."""
    wanted = [*family(shares, "g1", 3), *family(shares, "g2", 3)]
    path = Path(shares.shares[0].path)
    (path / "g1-leaf1.s1").unlink()
    (path / "g1-leaf1.s1").mkdir()
    told = dict(zip(wanted, codes(runner.run_all([removal(shares, name) for name in wanted], 4, Options()))))
    assert {name: code for name, code in told.items() if code} == {"g1-leaf1": "unsafe_image", "g1-mid1": "has_dependents", "g1": "has_dependents"}


def test_clones_that_go_round_fail_alone(shares: Candidates) -> None:
    make(shares, "other")
    path = Path(shares.shares[0].path)
    for name, below in (("a", "b"), ("b", "a")):
        subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", path / name, "4M"], check=True)
    told = codes(runner.run_all([removal(shares, name) for name in ("a", "b", "other")], 4, Options()))
    assert told[0] and told[1] and not told[2], told
    assert sorted(file.name for file in path.iterdir() if file.is_file()) == ["a", "b"]


@pytest.mark.usefixtures("no_devices")
def test_a_family_costs_as_much_for_each_of_its_members(shares: Candidates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls, which no other load disturbs."""
    counted: Counter = Counter()
    names = ("open", "stat", "fstat", "pread", "read", "listdir", "scandir", "unlink", "fsync")
    costs = []
    for number, wide in enumerate((10, 20, 40)):
        wanted = family(shares, f"g{number}", wide)
        with monkeypatch.context() as patched:
            counted.clear()
            for name in names:
                call = getattr(os, name)
                patched.setattr(os, name, lambda *given, _call=call, _name=name, **named: (counted.update([_name]), _call(*given, **named))[1])
            assert not any(codes(runner.run_all([removal(shares, name) for name in wanted], 1, Options())))
        costs.append(sum(counted.values()))
    few, more, many = costs
    assert many - more < 2.6 * (more - few) + 100, costs
