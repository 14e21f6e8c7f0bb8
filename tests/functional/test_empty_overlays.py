# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots that were taken for linked clones go with their empty overlays, once the clones are gone. No content changes, and none is lost."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import model
from ansible_collections.remotefs.storage.plugins.module_utils.operations import empty_overlays, snapshots, updating
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.pace import OutOfTime
from ansible_collections.remotefs.storage.plugins.module_utils.plan import clones
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, Expiry
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock

from .test_clones import content, opened, write
from .test_documents import play
from .test_leases import hold, make, under
from .test_refusals import MIB, Store
from .test_replicas import replicate

OPEN = "a machine or another program has it open"


def told(store: Store, **options: Any) -> dict[str, str]:
    """What became of each snapshot, as VOLUME@SNAPSHOT: why it stays, "" where it does not. Check mode foretells it."""
    found = empty_overlays.drop(store.share, Options(lock_timeout=0.2, task=Task(), **options))
    if found.failure is not None:
        raise found.failure
    return {f"{one.volume}@{one.snapshot}": one.why for one in found.overlays}


def clone(store: Store, name: str, of: str = "golden") -> None:
    store.present(name, updating.SourceRequest(of, linked=True))


def as_for_a_clone(store: Store, volume: str, name: str, **details: Any) -> None:
    """A snapshot like one that is taken for a clone, but for these details."""
    desired = DesiredSnapshot(name, **{"description": clones.DESCRIPTION, **details})
    snapshots.take(snapshots.SnapshotRequest(store.candidates, volume, desired), store.options())


def names(store: Store, volume: str = "golden") -> list[str]:
    return [one["name"] for one in store.info(volume)["snapshots"]]


@pytest.fixture(params=["raw", "qcow2"])
def golden(store: Store, request: pytest.FixtureRequest) -> Store:
    """Volume ``golden``, of which three clones were made from its present content, and are gone again."""
    store.present("golden", size=4 * MIB, format=request.param)
    write(store, "golden", 7, "64k 256k")
    for number in range(3):
        clone(store, f"c{number}")
    for number in range(3):
        store.absent(f"c{number}")
    return store


def test_the_chain_is_as_short_as_before(golden: Store) -> None:
    before, state = content(golden, "golden"), golden.state()
    assert names(golden) == ["clone-c0", "clone-c1", "clone-c2"] and len(golden.info("golden")["chain"]) == 4
    expected = {f"golden@clone-c{number}": "" for number in range(3)}
    assert told(golden, check=True) == expected and golden.state() == state
    assert told(golden) == expected
    after = golden.info("golden")
    assert content(golden, "golden") == before and names(golden) == [] and len(after["chain"]) == 1 and after["pending"] is None
    assert told(golden) == {} and told(golden, check=True) == {}
    clone(golden, "c9")
    assert content(golden, "c9") == before


def test_a_point_that_shows_something_else_stays(golden: Store) -> None:
    """Somebody wrote to the volume after the last clone: its point is the only place where the old content is."""
    write(golden, "golden", 9, "0 64k")
    before = content(golden, "golden")
    assert told(golden) == {"golden@clone-c0": "", "golden@clone-c1": ""}
    assert names(golden) == ["clone-c2"] and content(golden, "golden") == before
    golden.present("back", updating.SourceRequest("golden", "clone-c2"))
    assert content(golden, "back") == bytes(65536) + b"\7" * (256 << 10) + bytes(4 * MIB - (320 << 10))


def test_what_a_clone_rests_on_stays(store: Store) -> None:
    store.present("golden", size=4 * MIB)
    write(store, "golden", 7)
    for number in range(3):
        clone(store, f"c{number}")
    assert told(store) == {}, "all of them are there"
    store.absent("c1")
    found = told(store)
    assert list(found) == ["golden@clone-c1"] and "linked clones rest on it" in found["golden@clone-c1"]
    store.absent("c0")
    store.absent("c2")
    assert set(told(store).values()) == {""} and names(store) == []


@pytest.mark.parametrize(
    "details",
    [{"description": "mine"}, {"labels": {"a": "b"}}, {"protected": True}, {"expires": Expiry("2126-01-01T00:00:00Z")}],
    ids=lambda value: next(iter(value)),
)
def test_what_somebody_has_said_something_about_stays(golden: Store, details: dict) -> None:
    as_for_a_clone(golden, "golden", "clone-gone", **details)
    as_for_a_clone(golden, "golden", "clone-of-nobody")
    assert "golden@clone-gone" not in told(golden) and names(golden) == ["clone-gone"]


def test_names_that_are_not_of_clones(store: Store) -> None:
    store.present("vol", size=MIB)
    for name in ("s1", "clone", "clones", "my-clone-c0"):
        as_for_a_clone(store, "vol", name)
    assert told(store) == {} and names(store, "vol") == ["s1", "clone", "clones", "my-clone-c0"]


def test_who_has_it_open_keeps_it(golden: Store) -> None:
    state = golden.state()
    with opened(golden, "golden"):
        assert set(told(golden).values()) == {OPEN} == set(told(golden, check=True).values())
    assert golden.state() == state


def test_a_clone_that_is_made_just_now(golden: Store) -> None:
    """It has the lock of its source until it is there."""
    with ShareDirectory(golden.share) as directory, VolumeLock(directory, "golden", 1):
        assert set(told(golden).values()) == {"a task works at it"}
    assert len(names(golden)) == 3


def test_who_writes_just_before_the_lock(golden: Store) -> None:
    """What was empty when the share was read is looked at again."""
    find = empty_overlays._find

    def find_and_write(share: model.Share) -> list:
        found = find(share)
        write(golden, "golden", 9)
        return found

    with mock.patch.object(empty_overlays, "_find", find_and_write):
        found = told(golden)
    assert "somebody has written to it" in found["golden@clone-c2"] and names(golden) == ["clone-c2"]


def test_volumes_of_which_others_know_more(store: Store, tmp_path: Path) -> None:
    """A replica goes on from the points of its source, and the volumes of a lease are its owner's."""
    (tmp_path / "backup").mkdir()
    backup = Store(tmp_path / "backup")
    store.present("vol", size=MIB)
    as_for_a_clone(store, "vol", "clone-gone")
    replicate(store, backup)
    taken = hold(store, volumes=("ci-00",)).after
    make(store, taken, "ci-00")
    with under(store, taken) as options:
        desired = DesiredSnapshot("clone-gone", description=clones.DESCRIPTION)
        snapshots.take(snapshots.SnapshotRequest(store.candidates, "ci-00", desired), options)
    assert told(store) == {} == told(backup)
    assert names(store, "vol") == ["clone-gone"] and names(store, "ci-00") == ["pristine", "clone-gone"]


def test_an_overlay_that_is_larger_stays(store: Store) -> None:
    store.present("golden", size=MIB)
    clone(store, "c0")
    store.absent("c0")
    store.present("golden", size=2 * MIB)
    assert told(store) == {} and names(store) == ["clone-c0"]


def test_damaged_and_hostile_overlays_stay(golden: Store) -> None:
    overlay = Path(golden.info("golden")["path"])
    with overlay.open("r+b") as stream:
        stream.seek(8)
        stream.write(b"\xff" * 16)
    before = golden.state()
    assert told(golden) == {} and golden.state() == before


def test_the_time_is_kept(golden: Store) -> None:
    with pytest.raises(OutOfTime):
        told(golden, timeout=0.0)
    assert len(names(golden)) == 3


@pytest.mark.slow
def test_the_module_and_the_role_tell_it(golden: Store, tmp_path: Path, ansible_environment: dict) -> None:
    wanted = {"housekeeping_shares": [str(golden.path)], "housekeeping_empty_overlays": True}
    tasks: list[dict] = [
        {"ansible.builtin.include_role": {"name": "remotefs.storage.housekeeping"}, "vars": wanted},
        {"ansible.builtin.assert": {"that": ["housekeeping_result.empty_overlays | map(attribute='snapshot') == ['clone-c0', 'clone-c1', 'clone-c2']"]}},
        {"remotefs.storage.remotefs_housekeeping": {"share": str(golden.path), "empty_overlays": True}, "register": "again"},
        {"ansible.builtin.assert": {"that": ["again is not changed", "again.empty_overlays == []", "again.leaked_clusters is not defined"]}},
    ]
    said = play([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], tmp_path, ansible_environment)
    assert "failed=0" in said and "Empty overlays: 3 dropped, 0 stay." in said
    assert subprocess.run(["qemu-img", "check", "-q", golden.info("golden")["path"]], check=False).returncode in (0, 63)
