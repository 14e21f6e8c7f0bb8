# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many volumes of one task from another share: order, names that both shares have, room, and tasks at the same time."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import copying
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Finder
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.operations.reserving import reserve_all
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.modules import remotefs_volume
from ansible_collections.remotefs.storage.tests.benchmark.measuring import environment, module_call

from .test_clones import content, write
from .test_refusals import Store
from .test_restoring import Backup, hashed, source

MIB = 1 << 20
DEFAULTS = {name: option.get("default") for name, option in remotefs_volume._VOLUME.items()}
SOURCE = {name: option.get("default") for name, option in remotefs_volume._VOLUME["source"]["options"].items()}


@pytest.fixture
def backup(tmp_path: Path) -> Store:
    (tmp_path / "backup").mkdir()
    return Store(tmp_path / "backup")


def item(name: str, share: Store | Path, given: dict | None = None, **more: object) -> dict:
    """An item as the module has it once all defaults are in."""
    place = share if isinstance(share, Path) else share.path
    wanted = None if given is None else {**SOURCE, **given}
    return {**DEFAULTS, "name": name, "share": [str(place)], "mount_base": "/var/lib/remotefs/mnt", "source": wanted, **more}


def of(share: Store | Path, volume: str | None, snapshot: str | None = None) -> dict:
    return {"share": str(share if isinstance(share, Path) else share.path), "volume": volume, "snapshot": snapshot}


def run(items: list[dict], parallel: int = 2, warn: Callable[[str], None] = lambda _text: None, check: bool = False) -> list:
    finder = Finder()
    options = Options(check=check, assume=check, lock_timeout=20, task=Task(warn=warn))
    return runner.run_all([remotefs_volume._item(one, finder) for one in items], parallel, options)


def told(results: list) -> list:
    return [one.error_code if isinstance(one, errors.StorageError) else (one.changed, [step["step"] for step in one.actions]) for one in results]


def foretold_and_done(items: list[dict], parallel: int = 2) -> list:
    """Check mode tells what the run does, of each item."""
    said = told(run(items, parallel, check=True))
    results = run(items, parallel)
    assert said == told(results)
    return results


def test_twenty_from_one_share(store: Store, backup: Store) -> None:
    """Each under its own name, which need not be said twice; half of them a snapshot, and half of them the present."""
    for number in range(20):
        backup.present(f"v{number}", size=MIB, format="raw" if number % 3 else "qcow2")
        write(backup, f"v{number}", number + 1)
        backup.snapshot("s1", f"v{number}")
        write(backup, f"v{number}", 100 + number)
    before = backup.state()
    items = [item(f"v{number}", store, of(backup, f"v{number}" if number % 3 else None, "s1" if number % 2 else None)) for number in range(20)]
    results = foretold_and_done(items, 4)
    assert all(isinstance(one, Outcome) and one.changed for one in results), told(results)
    for number in range(20):
        assert content(store, f"v{number}")[:65536] == bytes([number + 1 if number % 2 else 100 + number]) * 65536
    assert backup.state() == before
    backup.path.rename(backup.path.with_name("gone"))
    assert not any(one.changed for one in run(items, 4)), "they exist and need their source no more"


def test_many_of_one_snapshot_at_once(store: Store, tmp_path: Path) -> None:
    backup = Backup(tmp_path, "qcow2")
    items = [item(f"c{number}", store, of(backup.share, "vol", "s2"), snapshot="fresh") for number in range(6)]
    assert all(one.changed for one in foretold_and_done(items, 4))
    assert {hashed(content(store, f"c{number}")) for number in range(6)} == {hashed(backup.points["s2"])}


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_made_on_the_backup_and_restored_in_the_same_task(store: Store, backup: Store, tmp_path: Path, order: tuple, parallel: int) -> None:
    """A volume of one name on three shares, each made of the one before, in whatever order they are asked for."""
    (tmp_path / "third").mkdir()
    third = Store(tmp_path / "third")
    backup.present("gold", size=MIB)
    write(backup, "gold", 8)
    items = [item("vol", backup, {"volume": "gold"}), item("vol", store, of(backup, "vol")), item("vol", third, of(store, "vol"))]
    results = foretold_and_done([items[index] for index in order], parallel)
    assert all(isinstance(one, Outcome) and one.changed for one in results), told(results)
    assert content(store, "vol") == content(third, "vol") == bytes([8]) * 65536 + bytes(MIB - 65536)


@pytest.mark.parametrize("reverse", [False, True])
def test_restored_before_the_backup_goes(store: Store, backup: Store, reverse: bool) -> None:
    for name in ("a", "b"):
        backup.present(name, size=MIB)
        write(backup, name, 3)
    restored, gone = [item(name, store, of(backup, name)) for name in ("a", "b")], [item(name, backup, state="absent") for name in ("a", "b")]
    results = foretold_and_done(gone + restored if reverse else restored + gone)
    assert all(isinstance(one, Outcome) and one.changed for one in results), told(results)
    assert content(store, "a")[:65536] == content(store, "b")[:65536] == bytes([3]) * 65536 and not (backup.path / "a").exists()


def test_a_volume_that_goes_on_the_target_and_comes_back_from_the_backup(store: Store, backup: Store) -> None:
    """Its damaged copy is removed first, in the order asked for."""
    for share, value in ((store, 1), (backup, 2)):
        share.present(size=MIB)
        write(share, "vol", value)
    results = foretold_and_done([item("vol", store, state="absent"), item("vol", store, of(backup, "vol"))])
    assert all(one.changed for one in results) and content(store, "vol")[:65536] == bytes([2]) * 65536


def test_what_fails_on_one_share_is_no_word_about_another(store: Store, backup: Store, tmp_path: Path) -> None:
    """A volume of that name could not be made elsewhere; the backup has it, and another share is only there later."""
    backup.present(size=MIB)
    (tmp_path / "third").mkdir()
    refused = item("vol", tmp_path / "third", None, size="1")
    results = foretold_and_done([refused, item("vol", store, of(backup, "vol")), item("two", store, of(backup, "none"))][:2])
    assert told(results)[0] == "invalid_size" and results[1].changed
    warnings: list[str] = []
    missing = run([refused, item("two", store, of(tmp_path / "later", "vol"))], warn=warnings.append, check=True)
    assert missing[1].changed and any("later" in text for text in warnings)
    failed = run([item("gold", backup, None, size="1"), item("three", store, of(backup, "gold"))], check=True)
    assert told(failed) == ["invalid_size", "volume_not_found"], "no other task makes what an item of this one could not"


def test_room_is_promised_to_what_is_restored(store: Store, backup: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them find room does not depend on how many work at a time, and check mode tells the same."""
    for number in range(3):
        backup.present(f"v{number}", size=4 * MIB, preallocation="full")
    figures = os.statvfs(store.path)
    fixed = SimpleNamespace(f_frsize=4096, f_blocks=figures.f_blocks, f_bavail=10 * MIB // 4096)  # whatever others write here meanwhile
    monkeypatch.setattr(os, "statvfs", lambda _path: fixed)
    items = [item(f"v{number}", store, of(backup, f"v{number}")) for number in range(3)]
    asked = [remotefs_volume._item(one, Finder()).asked for one in items]
    assert reserve_all(list(enumerate(asked)), Options()) == {2}, "decided before any of them begins"
    assert told(run(items, 1, check=True)) == told(run(items, 4, check=True))
    assert [isinstance(one, errors.NoEligibleShare) for one in run(items, 4, check=True)] == [False, False, True]


@pytest.mark.parametrize(
    "given, code, words",
    [
        ({"share": "backup/of/nas2"}, "invalid_parameter", "backup/of/nas2"),
        ({"share": ""}, "invalid_parameter", "share ''"),
        ({"share": "/a/../b"}, "invalid_parameter", "'..'"),
        ({"share": "BACKUP", "method": "linked"}, "invalid_parameter", "option source.share: a linked clone"),
        ({"share": "BACKUP/none"}, "share_not_mounted|invalid_parameter", "none"),
        ({"share": "nas2:/not-mounted"}, "share_not_mounted", "nas2:/not-mounted"),
    ],
)
def test_words_that_are_no_other_share(store: Store, backup: Store, given: dict, code: str, words: str) -> None:
    """Each is an error of its item alone; check mode assumes a share that is not there yet."""
    backup.present(size=MIB)
    given = {**of(backup, "vol"), **given}
    given["share"] = given["share"].replace("BACKUP", str(backup.path))
    items = [item("vol", store, given), item("fine", store, of(backup, "vol"))]
    first, second = run(items)
    assert first.error_code in code.split("|") and words in str(first), str(first)
    assert second.changed and not (store.path / "vol").exists()
    said = run(items, check=True)[0]
    assert said.changed if first.error_code == "share_not_mounted" else said.error_code == first.error_code


# -- at the same time -------------------------------------------------------------------------------------------------------


def test_a_deletion_waits_for_the_copy_and_the_copy_for_a_deletion(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two restores of a snapshot, and a process that deletes it meanwhile: it gets its turn when both have ended."""
    backup = Backup(tmp_path, "raw")
    real, met, both = copying.Copier.copy, set(), threading.Barrier(2)
    argv, given = module_call("remotefs_snapshot", {"share": [str(backup.share)], "volume": "vol", "name": "s2", "state": "absent", "lock_timeout": 30})
    started: list[subprocess.Popen] = []

    def start() -> None:
        started.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()))
        started[0].stdin.write(given)
        started[0].stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            started[0].wait(1.5)

    def copied(copier: copying.Copier, *parts: int) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            if both.wait(30) == 0:  # they read the snapshot at the same time
                start()
            both.wait(30)
        real(copier, *parts)

    monkeypatch.setattr(copying.Copier, "copy", copied)
    results = run([item(name, store, of(backup.share, "vol", "s2")) for name in ("one", "two")], 2)
    assert [told for told in results if isinstance(told, errors.StorageError)] == []
    assert started[0].wait(30) == 0
    with started[0].stdout as answer:
        assert json.loads(answer.read())["changed"]
    assert hashed(content(store, "one")) == hashed(content(store, "two")) == hashed(backup.points.pop("s2"))
    backup.check()


def _restores(share: Path, backup: Path, rounds: int, name: str) -> None:
    store, there = Store(share), Store(backup).candidates
    for number in range(rounds):
        try:
            store.present(f"{name}{number}", source(there, "s"), format="qcow2" if number % 2 else "raw")
        except errors.SnapshotNotFound:
            continue
        except errors.LockTimeout:
            continue


def _replaces(backup: Path, rounds: int) -> None:
    """The snapshot goes and comes again, of other content."""
    store = Store(backup)
    patient = Options(lock_timeout=30)
    for number in range(rounds):
        snapshots.delete(store.candidates, "vol", ["s"], patient)
        active = store.info()["path"]
        subprocess.run(["qemu-io", "-f", store.info()["format"], "-c", f"write -q -P {number + 2} 0 1M", active], check=True)
        snapshots.take(snapshots.SnapshotRequest(store.candidates, "vol", DesiredSnapshot("s")), patient)


def test_restores_beside_somebody_who_replaces_the_snapshot(store: Store, backup: Store) -> None:
    """Whatever they meet: a volume that was made shows one of the snapshots that were, whole."""
    backup.present(size=MIB)
    write(backup, "vol", 1, "0 1M")
    backup.snapshot("s")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_restores, args=(store.path, backup.path, 12, name)) for name in ("a", "b")]
    processes.append(context.Process(target=_replaces, args=(backup.path, 12)))
    for one in processes:
        one.start()
    for one in processes:
        one.join(120)
    assert [one.exitcode for one in processes] == [0, 0, 0]
    found = sorted(path.name for path in store.path.iterdir() if path.is_file() and path.suffix != ".info")
    assert len(found) >= 4, found
    for name in found:
        shown = content(store, name)
        assert len(set(shown)) == 1 and len(shown) == MIB and shown[0], f"{name} shows a mixture"
    last = content(backup, "vol")
    assert set(last) == {13} and not (backup.path / ".remotefs" / "tmp").exists() or not list((backup.path / ".remotefs" / "tmp").iterdir())


def test_two_tasks_that_want_the_same_volume(store: Store, tmp_path: Path) -> None:
    backup = Backup(tmp_path, "qcow2")
    context = multiprocessing.get_context("fork")

    def restore(point: str, queue: object) -> None:
        request = updating.VolumeRequest(store.candidates, DesiredVolume("vol"), source(backup.there, point))
        queue.put((point, volumes.ensure_present(request, Options(lock_timeout=30)).changed))  # type: ignore[attr-defined]

    queue = context.Queue()
    processes = [context.Process(target=restore, args=(point, queue)) for point in ("s1", "s3")]
    for one in processes:
        one.start()
    answers = dict(queue.get(timeout=60) for _one in processes)
    for one in processes:
        one.join(30)
    (made,) = [point for point, changed in answers.items() if changed]
    assert hashed(content(store, "vol")) == hashed(backup.points[made])
