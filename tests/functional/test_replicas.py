# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas on another share: what is sent, what is compared, what is refused, and what is left after a failure. Random lives of both sides
are in tests/property."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import receiving
from ansible_collections.remotefs.storage.plugins.module_utils.operations import candidates, replicas, replication, snapshots
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.operations.up_to_date import ReplicaRequest
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot

from .test_clones import opened, write
from .test_exporting import Life, lived
from .test_importing import content
from .test_refusals import MIB, Store, refused

REPLICATE, VERIFY = replicas.replicate, replicas.verify


@pytest.fixture
def backup(tmp_path: Path) -> Store:
    """An empty share for replicas."""
    (tmp_path / "backup").mkdir()
    return Store(tmp_path / "backup")


def replicate(
    source: Store, target: Store, do: Callable[..., Outcome] = REPLICATE, volume: str = "vol", name: str | None = None, options: Any = None, **more: Any
) -> Outcome:
    options = options or source.options(**{key: more.pop(key) for key in ("check", "warn", "timeout", "speed") if key in more})
    return do(ReplicaRequest(source.candidates, volume, target.candidates, name or volume, **more), options)


def names(store: Store, name: str = "vol") -> list[str]:
    return [one["name"] for one in store.info(name)["snapshots"]]


def shown(store: Store, snapshot: str, name: str = "vol") -> bytes:
    told = store.info(name)
    (file,) = [one["file"] for one in told["snapshots"] if one["name"] == snapshot]
    (below,) = [image["backing_file"] for image in told["chain"] if image["file"] == file]
    image_format = next(image["format"] for image in told["chain"] if image["file"] == below)
    return content(str(store.path / below), image_format)


def alike(life: Life, *stores: Store) -> None:
    """Each store has all points of a life, and shows the newest one."""
    points = {name: data for name, data in life.points.items() if name is not None}
    for store in stores:
        assert names(store) == list(points)
        for name, data in points.items():
            assert shown(store, name) == data, f"{name} of {store.path}"
        told = store.info()
        if store is not life.store:
            assert content(told["path"], told["format"]) == list(points.values())[-1]


# -- what is sent ----------------------------------------------------------------------------------------------------


def test_only_what_changed_is_sent(store: Store, backup: Store) -> None:
    """A disk of 64 MiB with 20 MiB of data, of which 33 clusters of 64 KiB change."""
    store.present(size=64 * MIB)
    write(store, "vol", 1, "0 20M")
    store.snapshot("s1")
    assert replicate(store, backup).told["sent"] >= 20 * MIB  # type: ignore[index]
    for number in range(33):
        write(store, "vol", 2, f"{number * 512}k 64k")
    store.snapshot("s2")
    done = replicate(store, backup)
    assert done.told == {"sent": 33 * 65536, "points": {"sent": ["s2"], "present": ["s1"], "kept": []}}
    assert backup.info()["allocated"] < 1.05 * store.info()["allocated"]


@pytest.mark.parametrize("seed, desired", [(1, {}), (2, {"format": "qcow2"}), (3, {}), (4, {"format": "qcow2"})])
def test_two_replicas_and_one_of_a_replica(store: Store, backup: Store, tmp_path: Path, seed: int, desired: dict) -> None:
    life = lived(store, seed, **desired)
    stores = []
    for name in ("second", "third"):
        (tmp_path / name).mkdir()
        stores.append(Store(tmp_path / name))
    for source, target in ((store, backup), (store, stores[0]), (backup, stores[1])):
        assert replicate(source, target).told["points"]["sent"] == ["s0", "s1", "s2"]  # type: ignore[index]
    alike(life, store, backup, *stores)
    life.snapshot("s3")
    for source, target in ((store, backup), (store, stores[0]), (backup, stores[1])):
        assert replicate(source, target).told["points"]["sent"] == ["s3"]  # type: ignore[index]
        assert not replicate(source, target).changed
    alike(life, store, backup, *stores)
    assert store.info()["base_format"] == backup.info()["base_format"]


def test_back_to_a_first_share_that_was_lost_or_went_on(store: Store, backup: Store) -> None:
    """After a loss all comes back. A first share that is still there and has gone on gives up what it has since, if it may."""
    life = lived(store, 5)
    replicate(store, backup)
    found = refused(store, errors.Conflict, lambda check: replicate(backup, store, check=check))
    assert "somebody has written to it" in str(found)
    replicate(backup, store, discards=True)
    alike(life, store, backup)
    store.absent(cascade=True)
    assert replicate(backup, store).told["points"]["sent"] == ["s0", "s1", "s2"]  # type: ignore[index]
    alike(life, store, backup)
    life.points.pop(None)
    life.shown = bytearray(life.points["s2"])
    life.write()
    life.snapshot("s3")
    assert replicate(store, backup).told["points"] == {"sent": ["s3"], "present": ["s0", "s1", "s2"], "kept": []}  # type: ignore[index]
    alike(life, store, backup)


def test_retention_of_both_sides_reads_no_content(store: Store, backup: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deletions, merges and reverts of this collection do not lose the identity of what stays."""
    life = lived(store, 6)
    replicate(store, backup)
    monkeypatch.setattr(replication.engine, "difference", lambda *_args: pytest.fail("contents were compared"))
    store.delete("s0")
    backup.delete("s1")
    life.snapshot("s3")
    done = replicate(store, backup)
    assert done.told["points"] == {"sent": ["s3"], "present": ["s2"], "kept": ["s0"]}  # type: ignore[index]
    store.revert("s1", discard=True)
    life.shown = bytearray(life.points["s1"])
    life.write()
    life.snapshot("s4")
    assert names(backup) == ["s0", "s2", "s3"]


def test_labels_and_times_come_along(store: Store, backup: Store) -> None:
    store.present(size=MIB, description="of the shop", labels={"team": "blue", "remotefs_role": "volumes"})
    desired = DesiredSnapshot("s1", created="2020-01-02T03:04:05Z", description="before", labels={"a": "b"}, protected=True)
    snapshots.take(snapshots.SnapshotRequest(store.candidates, "vol", desired), store.options())
    replicate(store, backup, name="copy")
    told = backup.info("copy")
    (one,) = told["snapshots"]
    assert (told["description"], told["labels"], told["created"]) == ("of the shop", {"team": "blue"}, store.info()["created"])
    assert (one["created"], one["description"], one["labels"], one["protected"]) == ("2020-01-02T03:04:05Z", "before", {"a": "b"}, False)


def test_what_matches_and_nothing_that_does(store: Store, backup: Store) -> None:
    life = lived(store, 7)
    warnings: list[str] = []
    assert not replicate(store, backup, match="x*", warn=warnings.append).changed
    assert warnings == ["volume vol has no snapshot that matches x*: nothing is sent"] and not backup.state()
    assert replicate(store, backup, match="*[02]").told["points"]["sent"] == ["s0", "s2"]  # type: ignore[index]
    assert shown(backup, "s2") == life.points["s2"]
    assert not replicate(store, backup).changed  # s1 is older than what both have


def test_a_machine_that_writes_to_the_source(store: Store, backup: Store) -> None:
    life = lived(store, 8)
    with opened(store, "vol"):
        replicate(store, backup)
    alike(life, backup)
    with opened(backup, "vol"):
        assert not replicate(store, backup).changed  # there is nothing to send


def test_a_machine_on_the_replica_is_left_alone(store: Store, backup: Store) -> None:
    life = lived(store, 9)
    replicate(store, backup)
    life.snapshot("s3")
    with opened(backup, "vol"):
        refused(backup, errors.InUse, lambda check: replicate(store, backup, check=check))
    replicate(store, backup)
    alike(life, backup)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_another_volume_of_that_name_is_never_touched(store: Store, backup: Store) -> None:
    lived(store, 10)
    backup.present(size=MIB)
    for discards in (False, True):
        found = refused(backup, errors.Conflict, lambda check, discards=discards: replicate(store, backup, discards=discards, check=check))
        assert "was not made as a replica" in str(found)
    backup.snapshot("s1")
    refused(backup, errors.Conflict, lambda check: replicate(store, backup, discards=True, check=check))


def test_a_volume_is_no_replica_of_itself(store: Store) -> None:
    lived(store, 11)
    refused(store, errors.Conflict, lambda check: replicate(store, store, check=check))
    assert replicate(store, store, name="copy").changed


def test_what_is_in_the_way_is_dropped_only_if_it_may(store: Store, backup: Store) -> None:
    life = lived(store, 12)
    replicate(store, backup)
    backup.snapshot("mine")
    life.snapshot("s3")
    assert "made there: mine" in str(refused(backup, errors.Conflict, lambda check: replicate(store, backup, check=check)))
    replicate(store, backup, discards=True)
    alike(life, backup)
    store.delete("s3")
    write(store, "vol", 77)
    store.snapshot("s3")
    found = refused(backup, errors.Conflict, lambda check: replicate(store, backup, check=check))
    assert "names that the source gave anew: s3" in str(found)
    assert replicate(store, backup, discards=True).told["points"] == {"sent": ["s3"], "present": ["s0", "s1", "s2"], "kept": []}  # type: ignore[index]
    assert shown(backup, "s3") == shown(store, "s3")


def test_what_is_protected_on_the_replica_is_not_dropped(store: Store, backup: Store) -> None:
    life = lived(store, 21)
    replicate(store, backup)
    for protected in (True, False):
        mine = snapshots.SnapshotRequest(backup.candidates, "vol", DesiredSnapshot("mine", protected=protected))
        snapshots.take(mine, backup.options())
        if protected:
            found = refused(backup, errors.Conflict, lambda check: replicate(store, backup, discards=True, check=check))
            assert "protected snapshots that are in the way: mine" in str(found)
    replicate(store, backup, discards=True)
    alike(life, backup)


def test_a_clone_on_the_replica_stays_whole(store: Store, backup: Store) -> None:
    """One that rests on a received point, and a file of somebody who rests on the present, which is going to be replaced."""
    life = lived(store, 13)
    replicate(store, backup)
    active = backup.info()["path"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", active, "-F", "qcow2", str(backup.path / "somebody")], check=True)
    life.snapshot("s3")
    refused(backup, errors.HasDependents, lambda check: replicate(store, backup, check=check))
    (backup.path / "somebody").unlink()
    replicate(store, backup)
    alike(life, backup)


def test_a_chain_has_its_limit(store: Store, backup: Store) -> None:
    """It is looked at before anything is sent."""
    lived(store, 14)
    refused(backup, errors.InvalidParameter, lambda check: replicate(store, backup, max_chain=3, check=check))
    replicate(store, backup, max_chain=3, match="s[01]")
    found = refused(backup, errors.InvalidParameter, lambda check: replicate(store, backup, max_chain=3, check=check))
    assert "it would have 4 files" in str(found)
    replicate(store, backup, max_chain=4)


# -- what fails ------------------------------------------------------------------------------------------------------


def test_what_does_not_come_back_is_not_published(store: Store, backup: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that stores something else than it was given."""
    life = lived(store, 15)
    replicate(store, backup, match="s[01]")
    real = receiving.write_all

    def lying(fd: int, data: bytes, offset: int) -> None:
        real(fd, bytes([data[0] ^ 1]) + data[1:], offset)

    monkeypatch.setattr(receiving, "write_all", lying)
    before = backup.info()
    with pytest.raises(errors.VerifyFailed):
        replicate(store, backup)
    assert backup.info() == before and {path.name for path in backup.path.glob("vol*")} == {"vol.info", *(image["file"] for image in before["chain"])}
    monkeypatch.undo()
    replicate(store, backup)
    alike(life, backup)


def test_a_first_copy_that_does_not_come_back(store: Store, backup: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lived(store, 16)
    monkeypatch.setattr(receiving.deltas, "read", lambda view, start, stop: bytes(id(view).to_bytes(8, "big")))
    with pytest.raises(errors.VerifyFailed):
        replicate(store, backup)
    assert not list(backup.path.glob("vol*"))


def test_out_of_time_leaves_what_is_complete(store: Store, backup: Store) -> None:
    life = lived(store, 17)
    write(store, "vol", 5, "0 2M")
    life.shown[: 2 * MIB] = bytes([5]) * 2 * MIB
    life.snapshot("s3")
    with pytest.raises(errors.ToolFailed):
        replicate(store, backup, speed=MIB, timeout=0.5)
    there = names(backup) if (backup.path / "vol").exists() else []
    assert there == ["s0", "s1", "s2", "s3"][: len(there)] and len(there) < 4
    replicate(store, backup)
    alike(life, backup)


def test_a_share_without_room(store: Store, backup: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lived(store, 18)
    replicate(store, backup, match="s[01]")
    monkeypatch.setattr(os, "statvfs", lambda _path: type("Figures", (), {"f_bavail": 1, "f_frsize": 512, "f_blocks": 100}))
    found = refused(backup, errors.NoSpace, lambda _check: replicate(store, backup), both=False)
    assert "have to be sent" in str(found)


@pytest.mark.parametrize("verified", ["sent", "all", "none"])
def test_the_life_of_a_replica_in_check_mode(store: Store, backup: Store, verified: str) -> None:
    """Foretold as it is done, and nothing is touched."""
    life = Life(store, 19)
    for number in range(3):
        life.write()
        life.snapshot(f"s{number}")
        before = store.state(), backup.state()
        foretold = replicate(store, backup, check=True, verify=verified)
        assert (store.state(), backup.state()) == before
        done = replicate(store, backup, verify=verified)
        assert (foretold.changed, foretold.actions) == (done.changed, done.actions)
        assert foretold.told["points"] == done.told["points"]  # type: ignore[index]
        assert not replicate(store, backup, VERIFY).changed
    alike(life, backup)


@pytest.mark.parametrize("match", ["*", "s[02]", "none"])
@pytest.mark.parametrize("desired", [{}, {"format": "qcow2", "description": "The first", "labels": {"a": "b"}}])
def test_a_share_that_is_not_there_yet_is_taken_for_an_empty_one(store: Store, backup: Store, tmp_path: Path, match: str, desired: dict) -> None:
    """Format, size, points, steps and bytes are foretold as for one that is there, and the warning names the share and what to do."""
    lived(store, 19, **desired)
    nowhere, warnings = tmp_path / "nowhere", []
    there, before = replicate(store, backup, check=True, match=match), store.state()
    options = store.options(check=True, assume=True, warn=warnings.append)
    missing = ReplicaRequest(store.candidates, "vol", candidates.find_candidates(str(nowhere), "/var/lib/remotefs/mnt"), "vol", match)
    foretold = replicas.replicate(missing, options)
    assert (foretold.changed, foretold.actions, foretold.told) == (there.changed, there.actions, there.told) and foretold.changed == (match != "none")
    if foretold.after is None:
        assert there.after is None
    else:
        assert foretold.after["path"] == str(nowhere / Path(foretold.after["path"]).name)
        for key in ("format", "base_format", "size", "snapshots", "chain", "description", "labels", "replica"):
            assert foretold.after[key] == there.after[key] and foretold.after[key] is not None  # type: ignore[index]
    told = f"share {nowhere} is not mounted or does not exist yet: check mode assumes that an earlier task sees to it."
    assert warnings[0] == f"{told} If there is none, mount it, or create its directory, with remotefs_share"
    assert store.state() == before and not nowhere.exists()
    verified = replicas.verify(missing, store.options(check=True, assume=True))
    assert (verified.changed, verified.actions) == (False, [])


def test_later_items_meet_a_replica_that_is_foretold(store: Store, tmp_path: Path) -> None:
    """A replica of it, on a further share that is not there yet either. And a source that is nowhere still has no size that anybody knows."""
    lived(store, 19)
    options = store.options(check=True, assume=True)
    first, second = (candidates.find_candidates(str(tmp_path / name), "/var/lib/remotefs/mnt") for name in ("first", "second"))
    one = replicas.replicate(ReplicaRequest(store.candidates, "vol", first, "vol"), options)
    two = replicas.replicate(ReplicaRequest(first, "vol", second, "vol"), options)
    assert two.changed and two.after is not None and two.after["path"].startswith(f"{tmp_path}/second/") and one.after is not None
    other = replicas.replicate(ReplicaRequest(store.candidates, "other", first, "other"), options)
    assert other.changed and other.after is not None and other.after["size"] is None


def test_a_snapshot_that_is_read_is_not_deleted(store: Store, backup: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is locked while it is read, for changes of its snapshots, and not for others who read."""
    life = lived(store, 20)
    replicate(store, backup, match="s0")
    tried: list[str] = []
    real = receiving.Receiver.fill

    def filling(self: receiving.Receiver, fd: int, file: str) -> None:
        if not tried:
            with pytest.raises(errors.LockTimeout):
                store.delete("s0")
            tried.append("deletion")
            replicate(store, store, name="beside", match="s0")
        real(self, fd, file)

    monkeypatch.setattr(receiving.Receiver, "fill", filling)
    replicate(store, backup)
    alike(life, backup)
    assert tried and names(store, "beside") == ["s0"]
