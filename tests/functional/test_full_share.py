# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A share without one free block can be emptied: the ballast, what is left without it, and guests that take what is freed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest import mock

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import making_room
from ansible_collections.remotefs.storage.plugins.module_utils.errors import LockTimeout, NoEligibleShare, NoSpace
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, shares, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.plugins.module_utils.store.files import ballast, packed_lines
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import maintenance, records, share_abilities
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2 import discarding

MIB = 1 << 20
OPTIONS = Options(lock_timeout=5)


class Full:
    """A volume with the snapshots a and b, which hold data, and e, which holds nothing, on a share that can be filled."""

    def __init__(self, mount: Path) -> None:
        self.mount, self.path = mount, mount / "share"
        self.path.mkdir()
        self.share = Share(str(self.path), str(self.path), "directory")
        self.where = Candidates((self.share,))
        self.content: dict[str, bytes] = {}
        self._busy = threading.Event()
        volumes.ensure_present(updating.VolumeRequest(self.where, DesiredVolume("v", size=2 * MIB)), OPTIONS)
        for number, name in enumerate(("a", "b", "e")):
            active = self.info()
            pattern = f"write -q -P {number + 1} {number * 4096} 512k"
            subprocess.run(["qemu-io", "-f", active["format"], "-c", pattern, active["path"]], check=True)
            snapshots.take(snapshots.SnapshotRequest(self.where, "v", DesiredSnapshot(name)), OPTIONS)

    def info(self) -> dict:
        (found,) = reading.list_volumes(self.share, ["v"])
        return found

    def shown(self) -> bytes:
        """What the volume shows to a guest."""
        found, target = self.info(), f"/dev/shm/full-share-content-{os.getpid()}"
        subprocess.run(["qemu-img", "convert", "-f", found["format"], "-O", "raw", found["path"], target], check=True)
        data = Path(target).read_bytes()
        os.unlink(target)
        return data

    def fill(self) -> None:
        for size in (65536, 4096, 1024, 512, 1):
            with open(self.mount / "filler", "ab", buffering=0) as stream:
                try:
                    while stream.write(b"x" * size):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def filled_by_a_guest(self, task: Callable[[], object]) -> None:
        """Run a task while somebody takes whatever becomes free."""
        over = threading.Event()

        def grab() -> None:
            while not over.is_set():
                try:
                    with open(self.mount / "guest", "ab", buffering=0) as stream:
                        stream.write(b"g" * 4096)
                except OSError as error:
                    assert error.errno == errno.ENOSPC

        guest = threading.Thread(target=grab)
        guest.start()
        try:
            task()
        finally:
            over.set()
            guest.join()


FORMATTED = {  # megabytes, and the command that makes the file system
    "ext4": (16, ("mkfs.ext4", "-q", "-m", "0", "-b", "4096")),
    "xfs": (320, ("mkfs.xfs", "-q")),
    "btrfs": (160, ("mkfs.btrfs", "-q")),
}


@pytest.fixture(params=["tmpfs", *FORMATTED])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Full]:
    with filled_in(request.param, tmp_path) as made:
        yield made


IN_PLACE = ["tmpfs", "ext4", "xfs"]  # what is written over needs no new block


@pytest.fixture(params=IN_PLACE)
def in_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Full]:
    with filled_in(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=IN_PLACE)
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Full]:
    """A share that an older release made, on a file system that writes in place: it has no ballast."""
    with filled_in(request.param, tmp_path) as made:
        shutil.rmtree(made.path / ".remotefs" / "ballast")
        yield made


@contextmanager
def filled_in(kind: str, tmp_path: Path) -> Iterator[Full]:
    mount = tmp_path / "mount"
    mount.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)]
    if kind in FORMATTED:
        size, make = FORMATTED[kind]
        if shutil.which(make[0]) is None:
            pytest.skip(f"needs {make[0]}")
        image = tmp_path / "image"
        with open(image, "wb") as stream:
            stream.truncate(size * MIB)
        subprocess.run([*make, str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(mount)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip(f"this machine cannot mount {kind}")
    try:
        yield Full(mount)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def remove_all(full: Full) -> None:
    volumes.ensure_absent(full.where, "v", True, OPTIONS)
    assert sorted(path.name for path in full.path.iterdir()) == [".remotefs"]


def delete_the_empty_one(full: Full) -> None:
    before = full.shown()
    snapshots.delete(full.where, "v", ["e"], OPTIONS)
    assert [one["name"] for one in full.info()["snapshots"]] == ["a", "b"] and full.shown() == before


def revert(full: Full) -> None:
    snapshots.revert(full.where, "v", "a", True, OPTIONS)
    found = full.info()
    assert [one["name"] for one in found["snapshots"]] == ["a"] and found["pending"] is None
    assert full.shown() == bytes([1]) * (MIB // 2) + bytes(2 * MIB - MIB // 2)


def revert_to_the_newest(full: Full) -> None:
    active = full.info()
    expected = full.shown()
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 1M", active["path"]], check=True)
    full.fill()
    snapshots.revert(full.where, "v", "e", False, OPTIONS)
    assert full.shown() == expected


def qcow2_of(path: str) -> dict:
    return json.loads(subprocess.run(["qemu-img", "info", "--output=json", "-U", path], check=True, capture_output=True).stdout)


TASKS = {"removal": remove_all, "deletion": delete_the_empty_one, "revert": revert}


@pytest.mark.parametrize("task", TASKS)
def test_a_full_share_is_emptied(full: Full, task: str) -> None:
    full.fill()
    TASKS[task](full)


def test_present_content_is_dropped(full: Full) -> None:
    revert_to_the_newest(full)


@pytest.mark.parametrize("task", TASKS)
def test_beside_a_guest_that_takes_what_is_freed(in_place: Full, task: str) -> None:
    in_place.fill()
    in_place.filled_by_a_guest(lambda: TASKS[task](in_place))


@pytest.mark.parametrize("task", TASKS)
def test_a_share_of_an_older_release(older: Full, task: str) -> None:
    """It has no ballast: what its files have is enough for what needs no data, and a revert takes out what it gives up."""
    older.fill()
    TASKS[task](older)


@pytest.mark.parametrize("task", TASKS)
def test_without_ballast_what_copies_on_write_refuses_before_it_begins(tmp_path: Path, task: str) -> None:
    with filled_in("btrfs", tmp_path) as full:
        shutil.rmtree(full.path / ".remotefs" / "ballast")
        full.fill()
        before = full.info()
        with pytest.raises(NoSpace):
            TASKS[task](full)
        assert full.info() == before and before["pending"] is None


def test_present_content_makes_room_for_a_revert(older: Full) -> None:
    revert_to_the_newest(older)
    found = older.info()
    assert found["pending"] is None and qcow2_of(found["path"])["backing-filename"] == found["chain"][1]["file"]


@pytest.mark.parametrize("moment", ["nothing", "first table", "all"])
def test_a_killed_revert_of_present_content_is_on_record(older: Full, moment: str) -> None:
    """An L1 table of many sectors is not emptied in one go: a crash in between must not pass for what the volume held."""
    active = older.info()
    expected = older.shown()
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 1M", active["path"]], check=True)
    older.fill()
    place = {"nothing": (qcow2, "drop_data"), "first table": (discarding, "_write_changed"), "all": (making_room, "_give_back")}[moment]
    with mock.patch.object(*place, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        snapshots.revert(older.where, "v", "e", False, OPTIONS)
    assert older.info()["pending"]["operation"] == "revert"
    snapshots.revert(older.where, "v", "e", False, OPTIONS)
    assert older.info()["pending"] is None and older.shown() == expected


def test_where_nothing_is_given_up_a_revert_refuses_before_it_begins(older: Full) -> None:
    snapshots.take(snapshots.SnapshotRequest(older.where, "v", DesiredSnapshot("f")), OPTIONS)
    shutil.rmtree(older.path / ".remotefs" / "ballast")  # which that change has made
    older.fill()
    before = older.info()
    with pytest.raises(NoSpace):
        snapshots.revert(older.where, "v", "e", True, OPTIONS)
    assert older.info() == before and before["pending"] is None


def test_a_guest_takes_what_a_revert_gave_up(older: Full) -> None:
    """The revert is pending until there is room, and every snapshot that stays is whole."""
    older.fill()
    real = making_room.take_data_out

    def then_filled(*arguments: Any) -> bool:
        done = real(*arguments)
        older.fill()
        return done

    with mock.patch.object(making_room, "take_data_out", then_filled), pytest.raises(NoSpace):
        snapshots.revert(older.where, "v", "a", True, OPTIONS)
    assert older.info()["pending"]["operation"] == "revert"
    (older.mount / "filler").unlink()
    revert(older)


def test_what_needs_room_does_not_take_the_ballast(full: Full) -> None:
    full.fill()
    pieces = sorted(os.listdir(full.path / ".remotefs" / "ballast"))
    for number in range(3):
        with pytest.raises(NoSpace):
            snapshots.take(snapshots.SnapshotRequest(full.where, "v", DesiredSnapshot(f"n{number}")), OPTIONS)
        with pytest.raises((NoEligibleShare, NoSpace)):
            volumes.ensure_present(updating.VolumeRequest(full.where, DesiredVolume(f"w{number}", size=MIB)), OPTIONS)
    assert sorted(os.listdir(full.path / ".remotefs" / "ballast")) == pieces
    TASKS["removal"](full)


def test_it_is_made_again_when_there_is_room(in_place: Full) -> None:
    folder = in_place.path / ".remotefs" / "ballast"
    whole = sorted(set(os.listdir(folder)) - {share_abilities.FILE})
    assert len(whole) == 10
    in_place.fill()
    TASKS["deletion"](in_place)
    os.unlink(in_place.mount / "filler")
    snapshots.take(snapshots.SnapshotRequest(in_place.where, "v", DesiredSnapshot("later")), OPTIONS)
    assert sorted(os.listdir(folder)) == [*whole, share_abilities.FILE]
    assert all((folder / name).stat().st_blocks * 512 >= int(name.partition("-")[0]) for name in whole)


# -- parts, without a file system of their own -----------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[ShareDirectory]:
    with ShareDirectory(Share(str(tmp_path), str(tmp_path), "directory")) as opened:
        ballast.keep(opened)
        yield opened


def test_a_piece_is_lent_once(directory: ShareDirectory) -> None:
    lent = [ballast.lend(directory, "v", 100_000) for _time in range(3)]
    names = {one[1] for one in lent if one is not None}
    assert lent[2] is None and len(names) == 2
    assert set(directory.leftovers("v")) == names, "a task that is killed now leaves them to the volume's next task"
    for one in lent[:2]:
        assert one is not None
        os.close(one[0])


def test_what_is_not_whole_is_not_lent(directory: ShareDirectory, tmp_path: Path) -> None:
    """A power loss can leave pieces empty or with holes, and anybody may put something else there."""
    folder = tmp_path / ".remotefs" / "ballast"
    for number, name in enumerate(sorted(os.listdir(folder))):
        (folder / name).unlink()
        if number % 3 == 0:
            (folder / name).write_bytes(b"")
        elif number % 3 == 1:
            with open(folder / name, "wb") as stream:
                stream.truncate(int(name.partition("-")[0]))
        else:
            os.symlink("/etc/passwd", folder / name)
    try:
        assert ballast.lend(directory, "v", 4096) is None
    except Exception as error:  # a link there is told like any other
        assert getattr(error, "error_code", "") == "unsafe_image"


def test_a_record_that_grew_in_place_is_read_by_its_last_whole_line() -> None:
    first, second = records.Record({"v": "raw"}), records.Record({"v": "raw"}, intent={"operation": "delete_volume"})
    line = first.to_bytes("v")
    assert records.parse("v", line + b"\n" + second.to_bytes("v")) == second
    for more in (second.to_bytes("v"), packed_lines.packed(second.to_bytes("v"))):
        assert records.parse("v", line + b"\n" + more) == second
        for length in range(1, len(more)):
            assert records.parse("v", line + b"\n" + more[:length]) == first


def test_a_lock_is_taken_on_a_full_share(directory: ShareDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for the holder's name it is held as readers hold it, and whoever comes next is kept out all the same."""
    real = VolumeLock._write_token

    def refuse(self: VolumeLock, fd: int, token: bytes) -> None:
        if token:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        real(self, fd, token)

    monkeypatch.setattr(VolumeLock, "_write_token", refuse)
    with VolumeLock(directory, "v", 0) as lock:
        lock.verify()
        with pytest.raises(LockTimeout), ShareDirectory(directory.share) as other, VolumeLock(other, "v", 0):
            pass


@pytest.mark.parametrize("there", [True, False], ids=["of a volume that is there", "of a new one"])
def test_a_lock_that_cannot_be_made_gets_room(directory: ShareDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """Where files are counted, one of the ballast makes place for the lock's; not for new volumes, however often they are tried."""
    real, left = os.open, [1]
    if there:
        (tmp_path / "v").write_bytes(bytes(512))

    def refuse(path: str, flags: int, *others: object, **names: object) -> int:
        if path == "v.lock" and flags & os.O_CREAT and left:
            left.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *others, **names)

    monkeypatch.setattr(os, "open", refuse)
    with nullcontext() if there else pytest.raises(NoSpace):
        with VolumeLock(directory, "v", 0) as lock:
            lock.verify()
    folder = directory.private("ballast")
    assert folder is not None and len(folder.names()) == (9 if there else 10)


def marked(full: Full, wanted: bool | None) -> dict:
    """What remotefs_share says of a share that is to be in maintenance or not."""
    given = {"src": str(full.path), "path": None, "fstype": "directory", "type": None, "opts": None, "credentials": None, "state": "mounted"}
    given.update(persist=False, fstab="/dev/null", attempts=1, timeout=60, mount_base="/nowhere", maintenance=wanted)
    return shares.ensure(given)


def test_a_full_share_goes_into_maintenance_and_out_of_it(full: Full) -> None:
    """The mark may use the ballast, and taking it away needs no room. The share can be emptied afterwards."""
    full.fill()
    done = marked(full, True)
    assert (done["changed"], done["failed"]) == (True, False), done
    assert maintenance.is_marked(str(full.path)) and done["share"]["maintenance"] is True
    assert not marked(full, True)["changed"]
    with pytest.raises(NoEligibleShare, match="is in maintenance"):
        volumes.ensure_present(updating.VolumeRequest(full.where, DesiredVolume("w", size=512)), Options(lock_timeout=5))
    full.fill()
    done = marked(full, False)
    assert (done["changed"], done["failed"]) == (True, False) and not maintenance.is_marked(str(full.path))
    assert marked(full, True)["changed"]
    delete_the_empty_one(full)
    remove_all(full)


def test_where_not_even_the_mark_fits(older: Full) -> None:
    """Without ballast, on a share that never had a mark: the message says what to do, and nothing is left."""
    older.fill()
    done = marked(older, True)
    if done["failed"]:  # file systems differ in what an inode and a name need
        assert done["error_code"] == "no_space" and "not even the mark of maintenance fits; remove something there" in done["msg"], done
        assert not maintenance.is_marked(str(older.path)) and not list((older.path / ".remotefs" / "tmp").iterdir())
        remove_all(older)
        assert marked(older, True)["changed"]
    assert marked(older, False)["changed"] and not maintenance.is_marked(str(older.path))
