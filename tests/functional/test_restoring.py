# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes made from volumes of another share (``source.share``): what they hold, what is refused, and that the source stays as it is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

import pytest
from engines import leave_to_qemu_img

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates, find_candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, TakesLong, Task
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.pace import OutOfTime
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock
from ansible_collections.remotefs.storage.tests.property.world import World

from .test_clones import content, opened, write
from .test_refusals import Store

MIB, KIB = 1 << 20, 1 << 10


def source(backup: Candidates, snapshot: str | None = None, volume: str = "vol", name: str = "BACKUP") -> updating.SourceRequest:
    return updating.SourceRequest(volume, snapshot, elsewhere=updating.OtherShare(name, lambda: backup))


def hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Backup(World):
    """Volume ``vol`` with three snapshots, data in each layer, and grown on the way."""

    def __init__(self, root: Path, image_format: str) -> None:
        (root / "backup").mkdir()
        (root / "scratch").mkdir()
        super().__init__(root / "backup", root / "scratch", image_format, 2 * MIB)
        self.store = Store(self.share)
        self.there = self.store.candidates
        for number in range(1, 4):
            self.write(number * 128 * KIB, 256 * KIB, number)
            self.snapshot()
            if number == 2:
                self.grow(3 * MIB + 64 * KIB)
        self.write(MIB, 64 * KIB, 99)

    def of(self, snapshot: str | None) -> bytes:
        return self.points[snapshot] if snapshot else bytes(self.active)


@pytest.fixture(params=["raw", "qcow2"])
def backup(request: pytest.FixtureRequest, tmp_path: Path) -> Backup:
    return Backup(tmp_path, request.param)


@pytest.fixture
def plain(tmp_path: Path) -> Backup:
    return Backup(tmp_path, "raw")


def foretold_and_done(store: Store, name: str, given: updating.SourceRequest, **desired: object) -> Outcome:
    """Check mode says what the run does."""
    said = volumes.ensure_present(updating.VolumeRequest(store.candidates, DesiredVolume(name, **desired), given), store.options(check=True, assume=True))
    assert not (store.path / name).exists()
    done = store.present(name, given, **desired)
    assert (said.changed, said.actions, said.recovered) == (done.changed, done.actions, done.recovered)
    known = ("name", "path", "format", "base_format", "size", "parent", "labels")
    assert [said.after[key] for key in known] == [done.after[key] for key in known]
    return done


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_each_point_comes_back(store: Store, backup: Backup, image_format: str) -> None:
    before = backup.store.state()
    for point in (*backup.points, None):
        name = point or "vol"
        done = foretold_and_done(store, name, source(backup.there, point), format=image_format)
        label = (f"vol@{point}" if point else "vol") + " on BACKUP"
        assert [one.get("source") for one in done.actions if one["step"] == "copy"] == [label] and done.before is None
        assert done.after["format"] == image_format and done.after["parent"] is None and len(done.after["chain"]) == 1
        assert hashed(content(store, name)) == hashed(backup.of(point)), point
        assert not store.present(name, source(backup.there, point), format=image_format).changed
    assert backup.store.state() == before, "the source was changed"
    backup.check()
    for name in ("vol", "s1"):  # they are volumes as any others
        write(store, name, 5)
        assert store.snapshot("later", name).changed and content(store, name)[: 64 * KIB] == bytes([5]) * 64 * KIB


@pytest.mark.parametrize("way", ["other device", "no copy by the kernel", "left to qemu-img"])
def test_by_any_way_of_copying(store: Store, plain: Backup, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as elsewhere:
        there = plain.there
        if way == "other device":
            subprocess.run(["cp", "-a", "--sparse=always", str(plain.share), f"{elsewhere}/backup"], check=True)
            there = Store(Path(elsewhere) / "backup").candidates
        elif way == "left to qemu-img":
            leave_to_qemu_img(monkeypatch.setattr)
        else:

            def refused(*_arguments: object) -> int:
                raise OSError(errno.EXDEV, "two file systems")

            monkeypatch.setattr(os, "copy_file_range", refused, raising=False)
        for point, image_format in (("s2", "raw"), (None, "qcow2")):
            store.present(f"{image_format}-{point}", source(there, point), format=image_format)
            assert hashed(content(store, f"{image_format}-{point}")) == hashed(plain.of(point))
        assert (store.path / "raw-s2").stat().st_blocks * 512 < MIB, "holes were filled"


def test_a_linked_clone_as_source(store: Store, backup: Backup) -> None:
    backup.store.present("env", updating.SourceRequest("vol", "s2", linked=True))
    write(backup.store, "env", 7, "512k 64k")
    store.present("env", source(backup.there, volume="env"))
    expected = bytearray(backup.of("s2"))
    expected[512 * KIB : 576 * KIB] = bytes([7]) * 64 * KIB
    assert hashed(content(store, "env")) == hashed(bytes(expected)) and store.info("env")["parent"] is None


def test_sizes(store: Store, backup: Backup) -> None:
    before, larger = backup.store.state(), 8 * MIB
    foretold_and_done(store, "vol", source(backup.there, "s1"), size=larger)
    assert hashed(content(store, "vol")) == hashed(backup.of("s1").ljust(larger, b"\0"))
    for point, size in (("s1", MIB), (None, 2 * MIB)):
        for check in (True, False):
            with pytest.raises(errors.WouldShrink, match="source"):
                store.present("small", source(backup.there, point), check, size=size)
    assert not (store.path / "small").exists() and backup.store.state() == before


def test_with_a_snapshot_and_details_in_the_same_task(store: Store, backup: Backup) -> None:
    done = foretold_and_done(
        store, "vol", source(backup.there, "s3"), format="qcow2", snapshot="restored", flatten=True, labels={"from": "nas2"}, description="again"
    )
    assert [one["name"] for one in done.after["snapshots"]] == ["restored"] and done.after["labels"] == {"from": "nas2"}
    assert hashed(content(store, "vol")) == hashed(backup.of("s3"))
    write(store, "vol", 6)
    store.revert("restored")
    assert hashed(content(store, "vol")) == hashed(backup.of("s3"))


def test_a_volume_that_exists_needs_its_source_no_more(store: Store, plain: Backup) -> None:
    store.present("vol", source(plain.there, "s1"))
    shown = content(store, "vol")
    write(plain.store, "vol", 9)

    def unreachable() -> Candidates:
        raise AssertionError("the source's share was looked up, and its server may be dead")

    gone = updating.SourceRequest("vol", "no-such", elsewhere=updating.OtherShare("nas2:/gone", unreachable))
    for check in (True, False):
        options = store.options(check=check, assume=check)
        assert not volumes.ensure_present(updating.VolumeRequest(store.candidates, DesiredVolume("vol"), gone), options).changed
    assert content(store, "vol") == shown
    assert store.present("vol", gone, size=8 * MIB).changed and content(store, "vol") == shown.ljust(8 * MIB, b"\0")


# -- what is refused -------------------------------------------------------------------------------------------------------


@contextmanager
def nothing_changes(*stores: Store) -> Iterator[None]:
    before = [one.state() for one in stores]
    yield
    assert [one.state() for one in stores] == before


def fails(store: Store, kind: type, given: updating.SourceRequest, both: bool = True, **more: object) -> errors.StorageError:
    found = None
    for check in (True, False) if both else (False,):
        with pytest.raises(kind) as caught:
            volumes.ensure_present(updating.VolumeRequest(store.candidates, DesiredVolume("vol"), given), store.options(check=check, **more))
        found = caught.value
    assert found is not None and str(found).endswith(".")
    return found


def test_what_is_not_there(store: Store, plain: Backup, tmp_path: Path) -> None:
    with nothing_changes(store, plain.store):
        assert "it is not on BACKUP" in str(fails(store, errors.VolumeNotFound, source(plain.there, volume="none")))
        fails(store, errors.SnapshotNotFound, source(plain.there, "none"))
        fails(store, errors.InvalidName, source(plain.there, volume="../vol"))
        assert "it is not on SAME" in str(fails(store, errors.VolumeNotFound, source(store.candidates, name="SAME")))
        nowhere = find_candidates([str(tmp_path / "nowhere")], "/var/lib/remotefs/mnt")
        assert "nowhere" in str(fails(store, errors.ShareNotMounted, source(nowhere)))


def test_the_same_directory_under_another_name(store: Store, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(store.path)
    alias = Store(tmp_path / "alias")
    store.present("gold", size=MIB)
    write(store, "gold", 4)
    assert store.present("copy", source(alias.candidates, volume="gold")).changed
    assert content(store, "copy") == content(store, "gold")
    assert store.present("more", source(store.candidates, volume="gold")).changed and content(store, "more") == content(store, "gold")


def test_one_share_of_several_and_the_source_beside_them(store: Store, plain: Backup, tmp_path: Path) -> None:
    """The volume goes to one of the candidates, never to the share of the source; it may be one of them."""
    (tmp_path / "second").mkdir()
    second = Store(tmp_path / "second")
    for several in (Candidates((store.share, second.share)), Candidates((second.share, store.share))):
        done = volumes.ensure_present(updating.VolumeRequest(several, DesiredVolume("copy"), source(plain.there, "s2")), store.options())
        assert done.after["share"] in (str(store.path), str(second.path)) and not (plain.share / "copy").exists()
    both = Candidates((store.share, plain.store.share))
    found = volumes.ensure_present(updating.VolumeRequest(both, DesiredVolume("vol"), source(plain.there, "s2")), store.options())
    assert not found.changed and found.after["share"] == str(plain.share), "it exists, on the share that is also that of the source"


def test_a_source_in_use(store: Store, backup: Backup) -> None:
    with opened(backup.store, "vol"):
        with nothing_changes(store, backup.store):
            fails(store, errors.InUse, source(backup.there))
        store.present("vol", source(backup.there, "s3"))
    assert hashed(content(store, "vol")) == hashed(backup.of("s3"))


def test_with_the_monitor_of_a_machine_that_is_off(store: Store, plain: Backup) -> None:
    """``attachment``: nobody has a new volume open, and what is read is guarded as without one."""
    machine = Attachment(monitor="/nobody/listens.sock")  # directories of tests can be too long for a socket
    with opened(plain.store, "vol"), nothing_changes(store, plain.store):
        fails(store, errors.InUse, source(plain.there), attachment=machine)
    for name, point in (("vol", "s2"), ("now", None)):
        request = updating.VolumeRequest(store.candidates, DesiredVolume(name), source(plain.there, point))
        assert volumes.ensure_present(request, store.options(attachment=machine)).changed
        assert hashed(content(store, name)) == hashed(plain.of(point))


def test_where_nobody_can_see_whether_it_is_in_use(store: Store, plain: Backup) -> None:
    """``assume_unused`` is about the source's share, too."""
    smb = Store(plain.share, locks_visible=False, local=False)
    with nothing_changes(store, plain.store):
        assert "assume_unused" in str(fails(store, errors.InUse, source(smb.candidates)))
    request = updating.VolumeRequest(store.candidates, DesiredVolume("vol"), source(smb.candidates))
    assert volumes.ensure_present(request, store.options(assume_unused=True)).changed
    assert hashed(content(store, "vol")) == hashed(plain.of(None))


@pytest.mark.root
def test_a_share_of_the_source_that_is_read_only(store: Store, plain: Backup) -> None:
    place = str(plain.share)
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        with nothing_changes(store, plain.store):
            for point in ("s1", None):
                told = fails(store, errors.ShareNotWritable, source(plain.there, point))
                assert place in str(told)
        subprocess.run(["mount", "-o", "remount,rw,bind", place], check=True)
        assert store.present("vol", source(plain.there, "s1")).changed
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.root
def test_a_full_target(plain: Backup, tmp_path: Path) -> None:
    """Refused before, or where it fills up on the way; then nothing is left, and the source is as it was."""
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(tmp_path / "small")], check=True)
    try:
        small = Store(tmp_path / "small")
        small.present("other", size=MIB)
        plain.write(0, 3 * MIB, 5)
        filler = small.path / "filler"
        filler.write_bytes(bytes(6 * MIB))
        with nothing_changes(small, plain.store):
            fails(small, errors.NoEligibleShare, source(plain.there))
        filler.unlink()
        real = os.copy_file_range

        def fills_up(*arguments: int) -> int:
            if not filler.exists():
                filler.write_bytes(bytes(6 * MIB))
            return real(*arguments)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "copy_file_range", fills_up)
            with pytest.raises(errors.NoSpace) as caught:
                small.present("vol", source(plain.there))
        assert str(small.path) in str(caught.value) and str(plain.share) not in str(caught.value), caught.value
        filler.unlink()
        assert sorted(path.name for path in small.path.iterdir() if path.is_file()) == ["other"]
        assert small.present("vol", source(plain.there)).changed and hashed(content(small, "vol")) == hashed(plain.of(None))
    finally:
        subprocess.run(["umount", str(tmp_path / "small")], check=True)


def test_a_source_that_is_damaged(store: Store, backup: Backup) -> None:
    with open(backup.share / "vol.s1", "r+b") as stream:
        stream.truncate(stream.seek(0, os.SEEK_END) - 128 * KIB)
    with nothing_changes(store, backup.store):
        fails(store, errors.UnsafeImage, source(backup.there, "s3"))
    (backup.share / "vol.s1").unlink()
    with nothing_changes(store, backup.store):
        fails(store, errors.ChainBroken, source(backup.there))


# -- locks, interrupted work, time ------------------------------------------------------------------------------------------


def test_what_was_interrupted_on_the_source_is_ended_first(store: Store, plain: Backup) -> None:
    record = plain.share / ".remotefs" / "volumes" / "vol.json"
    garbage = plain.share / "vol.gone"
    garbage.write_bytes(bytes(512))
    status = garbage.stat()
    record.write_text(json.dumps({**json.loads(record.read_text()), "garbage": [["vol.gone", status.st_ino, status.st_size]]}))
    done = foretold_and_done(store, "vol", source(plain.there, "s1"))
    assert [one["outcome"] for one in done.recovered] == ["finished"] and not garbage.exists()
    assert hashed(content(store, "vol")) == hashed(plain.of("s1"))


@pytest.mark.parametrize("point", ["s2", None])
def test_nobody_changes_the_source_meanwhile(store: Store, plain: Backup, point: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion of what is read waits; so does the restore for a deletion. Others may read the same snapshot at the same time."""
    refusals, real = [], os.copy_file_range

    def meanwhile(*arguments: int) -> int:
        if not refusals:
            with pytest.raises(errors.LockTimeout) as caught:
                plain.store.delete("s2")
            refusals.append(caught.value)
            with ShareDirectory(plain.store.share) as directory:
                if point:
                    with VolumeLock(directory, "vol", 0, shared=True):
                        pass
                else:
                    with pytest.raises(errors.LockTimeout), VolumeLock(directory, "vol", 0, shared=True):
                        pass
        return real(*arguments)

    monkeypatch.setattr(os, "copy_file_range", meanwhile)
    store.present("vol", source(plain.there, point), format="qcow2")
    assert refusals and hashed(content(store, "vol")) == hashed(plain.of(point))
    with ShareDirectory(plain.store.share) as directory, VolumeLock(directory, "vol", 0), pytest.raises(errors.LockTimeout) as caught:
        store.present("again", source(plain.there, point))
    assert str(plain.share) in str(caught.value) and not (store.path / "again").exists()


def test_a_lease_is_given_back(store: Store, plain: Backup) -> None:
    """Where locks do not work between hosts; such a lease is never shared."""
    smb = Store(plain.share, locks_visible=False, local=False)
    store.present("vol", source(smb.candidates, "s1"))
    assert not list((plain.share / ".remotefs" / "locks").glob("*.lease")) and hashed(content(store, "vol")) == hashed(plain.of("s1"))
    with ShareDirectory(smb.share) as directory, VolumeLock(directory, "vol", 0), pytest.raises(errors.LockTimeout):
        store.present("again", source(smb.candidates, "s1"))


@pytest.mark.parametrize("lost", ["source", "target"])
def test_a_lock_that_is_lost_meanwhile(store: Store, plain: Backup, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may have changed the source by then, or made the volume: the task stops, and the next one clears up."""
    share, real = plain.share if lost == "source" else store.path, os.copy_file_range

    def meanwhile(*arguments: int) -> int:
        lock = share / ".remotefs" / "locks" / "vol.lock"
        lock.unlink(missing_ok=True)
        lock.write_bytes(b"")
        return real(*arguments)

    store.present("other", size=MIB)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "copy_file_range", meanwhile)
        with pytest.raises(errors.LockTimeout) as caught:
            store.present("vol", source(plain.there, "s2"))
    assert str(share) in str(caught.value) and not (store.path / "vol").exists()
    assert store.present("vol", source(plain.there, "s2")).changed and hashed(content(store, "vol")) == hashed(plain.of("s2"))
    assert not list(store.path.rglob("*~*"))


def test_what_takes_long_is_begun_anew_where_it_is_watched_and_ends_in_time(store: Store, plain: Backup) -> None:
    plain.write(0, 3 * MIB, 5)
    request = updating.VolumeRequest(store.candidates, DesiredVolume("vol"), source(plain.there))
    watched = Options(speed=MIB, task=Task(begins_anew=True))
    store.present("other", size=MIB)  # a share that was used before
    with nothing_changes(store, plain.store):
        with pytest.raises(TakesLong):
            volumes.ensure_present(request, watched)
        with pytest.raises(OutOfTime):
            volumes.ensure_present(request, Options(speed=MIB, timeout=0.3))
    assert volumes.ensure_present(request, Options(speed=64 * MIB, timeout=60)).changed
    assert hashed(content(store, "vol")) == hashed(plain.of(None))


# -- check mode before anything is there ------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["share", "volume", "snapshot", "target"])
def test_check_mode_before_the_source_is_there(store: Store, plain: Backup, tmp_path: Path, missing: str) -> None:
    warnings: list[str] = []
    nowhere = find_candidates([str(tmp_path / "nowhere")], "/var/lib/remotefs/mnt")
    there = nowhere if missing == "share" else plain.there
    given = source(there, "s9" if missing == "snapshot" else "s1", "none" if missing == "volume" else "vol")
    options = Options(check=True, assume=True, task=Task(warn=warnings.append))
    request = updating.VolumeRequest(nowhere if missing == "target" else store.candidates, DesiredVolume("vol"), given)
    with nothing_changes(store, plain.store):
        said = volumes.ensure_present(request, options)
    assert said.changed and [one["step"] for one in said.actions] == ["write_record", "copy"] and said.actions[1]["source"].endswith(" on BACKUP")
    place = tmp_path / "nowhere" if missing == "target" else store.path
    size = {"target": 2 * MIB, "snapshot": 3 * MIB + 64 * KIB}.get(missing)
    assert (said.after["path"], said.after["size"]) == (str(place / "vol"), size)
    told = {
        "share": f"share {tmp_path}/nowhere is not mounted or does not exist yet",
        "volume": "source volume none does not exist yet on BACKUP",
        "snapshot": "snapshot s9 of volume vol does not exist yet",
        "target": f"share {tmp_path}/nowhere is not mounted",
    }
    assert any(text.startswith(told[missing]) for text in warnings), warnings
    again = volumes.ensure_present(request, options)
    assert not again.changed, "a later item of the task meets what this one makes"


def test_a_snapshot_that_goes_while_the_task_waits(store: Store, plain: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen under the lock, and nothing is left."""
    real: Callable = VolumeLock.__enter__
    gone: list[bool] = []

    def late(lock: VolumeLock) -> VolumeLock:
        if not gone:
            gone.append(True)
            snapshots.delete(plain.there, "vol", ["s2"], Options())
        return real(lock)

    monkeypatch.setattr(VolumeLock, "__enter__", late)
    with pytest.raises(errors.SnapshotNotFound):
        store.present("vol", source(plain.there, "s2"))
    assert not [path for path in store.path.iterdir() if path.is_file()]
