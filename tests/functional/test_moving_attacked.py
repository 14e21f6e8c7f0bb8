# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves in bad company: replicas that lack something, backups that lie on the old share, writes at the wrong moment, advice that is followed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.executor import Executor
from ansible_collections.remotefs.storage.plugins.module_utils.operations import moving, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .test_clones import opened, write
from .test_documents import play
from .test_exporting import lived
from .test_importing import content
from .test_moving import Killed, killed_at, move, new, only_there, refuse
from .test_refusals import MIB, Store
from .test_replicas import names, replicate, shown
from .test_restoring_many import item, of, run

__all__ = ["new"]  # a fixture


@pytest.fixture
def third(store: Store) -> Store:
    (store.path.parent / "third").mkdir()
    return Store(store.path.parent / "third")


def at_complete(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Something happens right before it is recorded that all is there."""
    apply = Executor.apply

    def late(self: Executor, plan: Any, source: Any = None) -> None:
        if plan.after is not None and plan.after.move is not None and plan.after.move.is_complete:
            act()
        apply(self, plan, source)

    monkeypatch.setattr(Executor, "apply", late)


def killed_at_removal(monkeypatch: pytest.MonkeyPatch, store: Store, target: Store) -> None:
    """The task ends after the first file on the old share is gone."""
    unlink = Executor._unlink

    def dying(self: Executor, volume: str, files: list[str], session: Any) -> None:
        if self._directory.share.path != str(store.path) or len(files) < 2:
            unlink(self, volume, files, session)
            return
        unlink(self, volume, files[:1], session)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Executor, "_unlink", dying)
        move(store, target)


def complete_and_whole(store: Store, target: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task ends when all is there, and before anything is removed."""
    apply = Executor.apply

    def dying(self: Executor, plan: Any, source: Any = None) -> None:
        if plan.operation == "delete_volume":
            raise Killed
        apply(self, plan, source)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Executor, "apply", dying)
        move(store, target)
    assert target.info()["pending"]["counts"] == "target" and (store.path / "vol").exists()


@pytest.mark.parametrize("gone", ["s0", "s1"])
def test_points_that_the_replica_lacks(store: Store, new: Store, gone: str) -> None:
    """Its retention is shorter, or only some of them were sent. They would exist nowhere."""
    life = lived(store, 1)
    replicate(store, new)
    new.delete(gone)
    refuse(errors.Conflict, store, new, f"would be lost: {gone}")
    new.absent(cascade=True)
    move(store, new)
    only_there(life, new)


def test_points_that_were_never_sent(store: Store, new: Store) -> None:
    lived(store, 1)
    replicate(store, new, match="s[12]")
    refuse(errors.Conflict, store, new, "would be lost: s0")


def test_the_backup_on_the_old_share(store: Store, new: Store) -> None:
    """moved_from stayed in the playbook, and the old share has the backup of the new one since."""
    lived(store, 1)
    move(store, new)
    replicate(new, store)
    new.delete("s0")
    new.snapshot("s3")
    replicate(new, store)
    refuse(errors.Conflict, store, new, "that one is a replica itself")
    assert names(store) == ["s0", "s1", "s2", "s3"]


def test_a_half_removed_source_is_not_the_only_copy(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is advised to remove the new one, and it is not removed."""
    life = lived(store, 4)
    killed_at_removal(monkeypatch, store, new)
    for action in (lambda: new.snapshot("x"), lambda: new.absent(cascade=True), lambda: new.absent(cascade=True, check=True)):
        with pytest.raises(errors.Conflict) as caught:
            action()
        assert "state: absent" not in str(caught.value) and "moved_from again" in str(caught.value)
    move(store, new)
    only_there(life, new)


@pytest.mark.parametrize("grows", [False, True])
def test_a_write_between_the_look_and_the_sending(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch, grows: bool) -> None:
    life = lived(store, 5)
    life.snapshot("s3")
    run = moving._Moving.run

    def late(self: Any) -> Any:
        if grows:
            subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", str(store.path / "vol.s3"), "+1M"], check=True)
        write(store, "vol", 77, "128k 64k")
        return run(self)

    with monkeypatch.context() as patched, pytest.raises(errors.Conflict, match="somebody has written to"):
        patched.setattr(moving._Moving, "run", late)
        move(store, new)
    expected = bytearray(life.shown) + bytes(MIB if grows else 0)
    expected[131072:196608] = b"\x4d" * 65536
    assert content(store.info()["path"], "qcow2") == bytes(expected)


def test_a_kept_snapshot_is_not_dropped_after_an_interruption(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    life = lived(store, 41)
    replicate(store, new)
    store.delete("s0")
    life.write()
    kept = shown(new, "s0")
    with killed_at(1, monkeypatch, True), pytest.raises(Killed):
        move(store, new)
    life.snapshot("s0")
    with pytest.raises(errors.Conflict, match="given their names to others"):
        move(store, new)
    assert shown(new, "s0") == kept


@pytest.mark.parametrize("file", ["vol", "vol.s2-1"])
def test_the_new_share_is_written_to_before_all_is_there(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    life = lived(store, 32)
    image_format = "raw" if file == "vol" else "qcow2"
    command = ["qemu-io", "-f", image_format, "-c", "write -q -P 200 0 64k", str(new.path / file)]
    with monkeypatch.context() as patched, pytest.raises(errors.Conflict, match=f"somebody has written to {file}"):
        at_complete(patched, lambda: subprocess.run(command, check=True))
        move(store, new)
    assert content(store.info()["path"], "qcow2") == bytes(life.shown)
    with pytest.raises(errors.Conflict):
        move(store, new)
    volumes.ensure_absent(new.candidates, "vol", True, new.options(discard=True))
    move(store, new)
    only_there(life, new)


@pytest.fixture
def seconds(tmp_path: Path) -> Iterator[list[Store]]:
    """Two shares on file systems that count the times of writes in seconds."""
    stores: list[Store] = []
    try:
        for name in ("old", "other"):
            image, mount = tmp_path / f"{name}.ext4", tmp_path / f"on-{name}"
            mount.mkdir()
            image.touch()
            os.truncate(image, 64 * MIB)
            subprocess.run(["mkfs.ext4", "-q", "-I", "128", image], check=True, stderr=subprocess.DEVNULL)
            if subprocess.run(["mount", "-o", "loop", image, mount], check=False, capture_output=True).returncode != 0:
                pytest.skip("needs loop devices")
            stores.append(Store(mount))
        yield stores
    finally:
        for one in stores:
            subprocess.run(["umount", "-l", one.path], check=True)


@pytest.mark.root
@pytest.mark.parametrize("side", ["old", "new", "none"])
def test_file_systems_that_count_seconds(seconds: list[Store], monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    """A write can have the time of the one before it. The task waits until this cannot be, and reads again what it has just made."""
    old, target = seconds
    life = lived(old, 1)
    apply = Executor.apply

    def late(self: Executor, plan: Any, source: Any = None) -> None:
        if side == "old" and plan.operation == "delete_volume":
            life.write()
        apply(self, plan, source)
        if side == "new" and plan.operation == "create_volume":
            subprocess.run(["qemu-io", "-f", "raw", "-c", "write -q -P 200 0 64k", str(target.path / "vol")], check=True)

    with monkeypatch.context() as patched:
        patched.setattr(Executor, "apply", late)
        if side == "none":
            move(old, target)
            only_there(life, target)
            return
        with pytest.raises((errors.Conflict, errors.VerifyFailed)):
            move(old, target)
    assert content(old.info()["path"], "qcow2") == bytes(life.shown)


@pytest.mark.root
@pytest.mark.parametrize("is_written", [False, True])
def test_seconds_and_a_replica_that_kept_a_newer_point(seconds: list[Store], monkeypatch: pytest.MonkeyPatch, is_written: bool) -> None:
    """The newest point that both have is not the newest one on the new share.

    :param is_written: somebody writes to a file between the two, and no time tells.
    """
    old, target = seconds
    life = lived(old, 6)
    replicate(old, target)
    old.revert("s1", discard=True)
    life.shown[:] = life.points["s1"].ljust(len(life.shown), b"\0")
    life.write(1)
    apply, between = Executor.apply, target.path / target.info()["chain"][1]["file"]

    def late(self: Executor, plan: Any, source: Any = None) -> None:
        apply(self, plan, source)
        if is_written and plan.operation == "receive":
            status = os.stat(between)
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 231 0 {len(life.shown)}", str(between)], check=True)
            os.utime(between, ns=(status.st_atime_ns, status.st_mtime_ns))

    with monkeypatch.context() as patched:
        patched.setattr(Executor, "apply", late)
        if not is_written:
            move(old, target)
            only_there(life, target)
            return
        with pytest.raises(errors.VerifyFailed):
            move(old, target)
    assert content(old.info()["path"], "qcow2") == bytes(life.shown)


@pytest.mark.root
def test_equal_inodes_and_times_on_two_file_systems(seconds: list[Store]) -> None:
    """Both are new, and count seconds: files that are made in the same second are equal in all but their device."""
    old, target = seconds
    life = lived(old, 1)
    replicate(old, target)
    for name in ("vol", "vol.info"):
        os.utime(target.path / name, ns=(0, os.stat(old.path / name).st_mtime_ns))
    move(old, target)
    only_there(life, target)


def test_a_move_is_not_ended_from_another_share(store: Store, new: Store, third: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    life = lived(store, 3)
    complete_and_whole(store, new, monkeypatch)
    with pytest.raises(errors.Conflict, match="is being moved there from"):
        move(third, new)
    move(store, new)
    only_there(life, new)


def test_mode_and_owner_of_a_replica(store: Store, new: Store) -> None:
    lived(store, 10)
    replicate(store, new)
    for file in ("vol", "vol.s0", "vol.s1", "vol.s2"):
        os.chmod(store.path / file, 0o640)
        if os.geteuid() == 0:
            os.chown(store.path / file, 4711, 4712)
    foretold, done = move(store, new, check=True), move(store, new)
    assert [step["step"] for step in foretold.actions] == [step["step"] for step in done.actions]
    status = os.stat(new.info()["path"])
    assert status.st_mode & 0o777 == 0o640 and (os.geteuid() != 0 or (status.st_uid, status.st_gid) == (4711, 4712))


def test_dirty_bitmaps(store: Store, new: Store) -> None:
    """They say what changed since a backup, and would be lost. A volume of one file keeps them."""
    life = lived(store, 3)
    subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", store.path / "vol.s2", "backup0"], check=True)
    refuse(errors.Conflict, store, new, "backup0 of vol.s2")
    subprocess.run(["qemu-img", "bitmap", "--remove", "-f", "qcow2", store.path / "vol.s2", "backup0"], check=True)
    move(store, new)
    only_there(life, new)


def test_dirty_bitmaps_of_one_file_onto_a_replica(store: Store, new: Store) -> None:
    """Only the replica has a snapshot, so that the file is not copied as it is."""
    store.present(size=MIB, format="qcow2")
    store.snapshot("s")
    replicate(store, new)
    store.delete("s")
    path = store.info()["path"]
    subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", path, "backup0"], check=True)
    refuse(errors.Conflict, store, new, "backup0 of")


def test_a_write_right_after_a_receipt(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for one of the task's own."""
    life = lived(store, 33)
    apply = Executor.apply

    def late(self: Executor, plan: Any, source: Any = None) -> None:
        apply(self, plan, source)
        if plan.operation == "receive" and plan.after.active.file != "vol.s2":
            told = new.info()
            subprocess.run(["qemu-io", "-f", told["format"], "-c", "write -q -P 200 0 64k", told["path"]], check=True)

    with monkeypatch.context() as patched, pytest.raises((errors.Conflict, errors.VerifyFailed)):
        patched.setattr(Executor, "apply", late)
        move(store, new)
    assert content(store.info()["path"], "qcow2") == bytes(life.shown)


def test_to_give_up_a_record_is_a_change(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lived(store, 1)
    with killed_at(4, monkeypatch, True), pytest.raises(Killed):
        move(store, new)
    for check in (True, False):
        done = volumes.ensure_present(updating.VolumeRequest(new.candidates, DesiredVolume("vol")), new.options(discard=True, check=check))
        assert done.changed and [one["outcome"] for one in done.recovered] == ["discarded"]
    assert new.info()["pending"] is None
    again = volumes.ensure_present(updating.VolumeRequest(new.candidates, DesiredVolume("vol")), new.options(discard=True))
    assert not again.changed and not again.recovered


def test_a_machine_on_the_new_share(store: Store, new: Store) -> None:
    lived(store, 8).snapshot("s3")
    replicate(store, new)
    with opened(new, "vol"):
        refuse(errors.InUse, store, new, "a volume moves while nobody has it open")


def test_details_that_change_after_all_was_there(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lived(store, 5)
    complete_and_whole(store, new, monkeypatch)
    snapshots.take(snapshots.SnapshotRequest(store.candidates, "vol", DesiredSnapshot("s1", protected=True)), store.options())
    move(store, new)
    assert [one["protected"] for one in new.info()["snapshots"]] == [False, True, False]


@pytest.mark.parametrize("wish, kind", [({"size": MIB}, errors.WouldShrink), ({"format": "qcow2"}, errors.Conflict)])
def test_wishes_that_cannot_be(store: Store, new: Store, wish: dict, kind: type) -> None:
    """They are refused before anything moves."""
    life = lived(store, 8)
    refuse(kind, store, new, "volume vol", **wish)
    move(store, new)
    only_there(life, new)


def test_no_room_beside_a_replica_is_foretold(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica stays one."""
    lived(store, 9)
    replicate(store, new)
    figures = os.statvfs(new.path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "statvfs", lambda _path: os.statvfs_result((*figures[:3], 0, 0, *figures[5:])))
        refuse(errors.NoSpace, store, new, "free")
    assert new.info()["pending"] is None


def test_a_reader_of_a_lower_file(store: Store, new: Store) -> None:
    """It is met before anything is sent."""
    lived(store, 6)
    command = ["qemu-io", "-r", "-f", "qcow2", "vol.s1"]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=store.path)
    try:
        reader.stdin.write("read 0 512\n")  # type: ignore[union-attr]
        reader.stdin.flush()  # type: ignore[union-attr]
        reader.stdout.readline()  # type: ignore[union-attr]
        refuse(errors.InUse, store, new, "vol.s1")
    finally:
        reader.communicate("quit\n")


def test_a_revert_before_the_move_is_foretold(store: Store, new: Store) -> None:
    """It replaces the overlay of the newest snapshot, so that only its content tells which point it is."""
    life = lived(store, 2)
    replicate(store, new)
    store.revert("s2", True)
    life.shown = bytearray(life.points["s2"].ljust(len(life.shown), b"\0"))
    foretold, done = move(store, new, check=True), move(store, new)
    assert [step["step"] for step in foretold.actions] == [step["step"] for step in done.actions]
    only_there(life, new)


def test_a_copy_from_the_old_share_in_the_same_task(store: Store, new: Store) -> None:
    """It is made before the volume moves, whatever order they are named in."""
    life = lived(store, 7)
    items = [item("vol", new, moved_from=str(store.path)), item("copy", new, of(store, "vol", "s1"))]
    for check in (True, False):
        moved, copied = run(items, check=check)
        assert moved.changed and copied.changed
    only_there(life, new)
    assert content(new.info("copy")["path"], "raw") == life.points["s1"]


def test_a_volume_that_moves_both_ways_in_one_task(store: Store, new: Store, tmp_path: Path, ansible_environment: dict) -> None:
    lived(store, 7)
    ways = [{"name": "vol", "share": str(one.path), "moved_from": str(other.path)} for one, other in ((new, store), (store, new))]
    task = {"remotefs.storage.remotefs_volume": {"volumes": ways}, "register": "done", "failed_when": "done is not failed"}
    play([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}], tmp_path, ansible_environment)
    assert names(store) == ["s0", "s1", "s2"] and not list(new.path.glob("vol*"))
