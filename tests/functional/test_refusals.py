# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input and a bad world: each gives its error code, says what to do, and leaves every file as it was."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest
from engines import leave_to_qemu_img

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock

MIB = 1 << 20


class Store:
    """A share, and its use cases with few words."""

    def __init__(self, path: Path, **share) -> None:
        self.path = path
        self.share = Share(str(path), str(path), "directory", **share)
        self.candidates = Candidates((self.share,))

    def options(self, warn: Callable[[str], None] = lambda _text: None, **changes) -> Options:
        return Options(**{"lock_timeout": 0.2, "task": Task(warn), **changes})

    def present(self, name: str = "vol", source: updating.SourceRequest | None = None, check: bool = False, **desired):
        return volumes.ensure_present(updating.VolumeRequest(self.candidates, DesiredVolume(name, **desired), source), self.options(check=check))

    def absent(self, name: str = "vol", cascade: bool = False, check: bool = False):
        return volumes.ensure_absent(self.candidates, name, cascade, self.options(check=check))

    def snapshot(self, name: str = "s1", volume: str = "vol", check: bool = False):
        return snapshots.take(snapshots.SnapshotRequest(self.candidates, volume, DesiredSnapshot(name)), self.options(check=check))

    def delete(self, *names: str, check: bool = False):
        return snapshots.delete(self.candidates, "vol", list(names), self.options(check=check))

    def revert(self, name: str, discard: bool = False, check: bool = False):
        return snapshots.revert(self.candidates, "vol", name, discard, self.options(check=check))

    def info(self, name: str = "vol") -> dict:
        (found,) = reading.list_volumes(self.share, [name])
        return found

    def state(self) -> dict:
        """Names, kinds and content of everything but locks."""
        return {
            str(path.relative_to(self.path)): hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file() and not path.is_symlink()
            else oct(path.lstat().st_mode)
            for path in self.path.rglob("*")
            if ".remotefs/locks" not in str(path) and not (path.is_dir() and ".remotefs" in str(path))
        }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    share = tmp_path / "share"
    share.mkdir()
    yield Store(share)


def refused(store: Store, kind: type, action: Callable[[bool], object], both: bool = True) -> errors.StorageError:
    """``action`` fails with ``kind`` in check mode and in earnest, and changes nothing."""
    before = store.state()
    found = None
    for check in (True, False) if both else (False,):
        with pytest.raises(kind) as caught:
            action(check)
        found = caught.value
        assert store.state() == before
    assert found is not None and "; " in str(found) and str(found).endswith(".")
    return found


@pytest.fixture
def volume(store: Store) -> Store:
    store.present(size=4 * MIB)
    return store


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-U", "a:b", "a,b", "a\nb", ".hidden", "x.info", "x.INFO", "é", "a" * 240])
def test_volume_names(store: Store, name: str) -> None:
    refused(store, errors.InvalidName, lambda check: store.present(name, size=MIB, check=check))
    refused(store, errors.InvalidName, lambda check: store.absent(name, check=check))


@pytest.mark.parametrize("name", ["", "active", "ACTIVE", "info", "x.info", "a/b", "-U", "a" * 240])
def test_snapshot_names(volume: Store, name: str) -> None:
    refused(volume, errors.InvalidName, lambda check: volume.snapshot(name, check=check))


def test_sizes_and_formats(volume: Store) -> None:
    refused(volume, errors.WouldShrink, lambda check: volume.present(size=2 * MIB, check=check))
    refused(volume, errors.Conflict, lambda check: volume.present(format="qcow2", check=check))
    refused(volume, errors.InvalidParameter, lambda check: volume.present("new", check=check))
    refused(volume, errors.InvalidParameter, lambda check: volume.present("new", size=MIB, preallocation="metadata", check=check))
    refused(volume, errors.InvalidSize, lambda check: volume.present("new", size=2**52, format="qcow2", check=check))
    refused(volume, errors.WouldShrink, lambda check: volume.present("new", updating.SourceRequest("vol"), size=MIB, check=check))
    refused(volume, errors.VolumeNotFound, lambda check: volume.present("new", updating.SourceRequest("none"), check=check))
    refused(volume, errors.SnapshotNotFound, lambda check: volume.present("new", updating.SourceRequest("vol", "none"), check=check))


def test_snapshots_of_nothing(volume: Store) -> None:
    refused(volume, errors.VolumeNotFound, lambda check: volume.snapshot(volume="none", check=check))
    refused(volume, errors.SnapshotNotFound, lambda check: volume.revert("none", check=check))
    assert not volume.delete("none").changed


def test_what_still_has_snapshots(volume: Store) -> None:
    volume.snapshot("s1")
    volume.snapshot("s2")
    refused(volume, errors.HasSnapshots, lambda check: volume.absent(check=check))
    refused(volume, errors.HasNewerSnapshots, lambda check: volume.revert("s1", check=check))


def test_names_of_other_volumes(volume: Store) -> None:
    volume.snapshot("s1")
    refused(volume, errors.Conflict, lambda check: volume.present("vol.s1", size=MIB, format="qcow2", check=check))
    refused(volume, errors.Conflict, lambda check: volume.absent("vol.s1", check=check))
    volume.present("vol.s2", size=MIB)
    refused(volume, errors.Conflict, lambda check: volume.snapshot("s2", check=check))


def test_a_foreign_file_is_never_removed_nor_guessed(store: Store) -> None:
    (store.path / "vol").write_bytes(b"QFI\xfb" + bytes(4092))
    refused(store, errors.Conflict, lambda check: store.absent(check=check))
    refused(store, errors.InvalidParameter, lambda check: store.present(size=MIB, check=check))
    refused(store, errors.UnsafeImage, lambda check: store.snapshot(check=check))
    assert store.info()["format"] is None
    assert store.present(format="raw").changed  # said by the user: raw whatever its content
    assert store.info()["format"] == "raw"


def test_adopting_with_a_format_that_cannot_be(store: Store) -> None:
    (store.path / "vol").write_bytes(bytes(MIB))
    refused(store, errors.Conflict, lambda check: store.present(format="qcow2", check=check))


def test_full_disk(store: Store) -> None:
    figures = os.statvfs(store.path)
    more = (figures.f_bavail * figures.f_frsize // MIB + 1024) * MIB
    refused(store, errors.NoEligibleShare, lambda check: store.present(size=more, preallocation="falloc", check=check))
    refused(store, errors.NoEligibleShare, lambda check: store.present(size=2**50, check=check))


@pytest.mark.root
def test_disk_that_fills_up(tmp_path: Path) -> None:
    """ENOSPC in the middle of things: a clear error, all points intact, and the task goes through once there is room."""
    share = tmp_path / "small"
    share.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(share)], check=True)
    try:
        store = Store(share)
        store.present(size=4 * MIB)
        store.snapshot("s1")
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 3M", store.info()["path"]], check=True)
        store.snapshot("s2")
        filler = share / ".filler"
        filler.write_bytes(bytes(3 * MIB))
        with pytest.raises(errors.NoSpace):
            store.delete("s1")
        assert store.info()["pending"]["operation"] == "delete_snapshot"
        with pytest.raises((errors.NoSpace, errors.NoEligibleShare)):
            store.present("full", size=3 * MIB, preallocation="full")
        subprocess.run(["cp", "-a", "--sparse=always", str(share), str(tmp_path / "copy")], check=True)
        copy = Store(tmp_path / "copy")
        predicted, done = copy.absent(cascade=True, check=True), copy.absent(cascade=True)
        assert (predicted.actions, predicted.recovered) == (done.actions, done.recovered) and done.recovered[0]["outcome"] == "discarded"
        assert sorted(path.name for path in copy.path.iterdir()) == [".filler", ".remotefs"]
        assert not (share / "full").exists() and not [name for name in os.listdir(share / ".remotefs/tmp") if name.startswith("full")]
        filler.unlink()
        outcome = store.delete("s1")
        assert [one["outcome"] for one in outcome.recovered] == ["finished"]
        content = subprocess.run(
            ["qemu-io", "-r", "-f", "qcow2", "-c", "read -q -P 7 0 3M", store.info()["path"]], check=True, capture_output=True, text=True
        )
        assert not content.stdout, content.stdout
    finally:
        subprocess.run(["umount", str(share)], check=True)


@pytest.mark.root
def test_read_only_share(volume: Store) -> None:
    subprocess.run(["mount", "--bind", str(volume.path), str(volume.path)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(volume.path)], check=True)
    try:
        refused(volume, errors.ShareNotWritable, lambda check: volume.snapshot(check=check))
        refused(volume, errors.ShareNotWritable, lambda check: volume.present(size=8 * MIB, check=check))
        assert volume.info()["size"] == 4 * MIB
    finally:
        subprocess.run(["umount", str(volume.path)], check=True)


@pytest.mark.parametrize("program", [None, "#!/bin/sh\necho 'qemu-img version 2.12.0'\n", "#!/bin/sh\nexit 0\n"])
def test_missing_or_old_qemu_img(volume: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    if program:
        (tools / "qemu-img").write_text(program)
        (tools / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(qemu_img.command, "_STANDARD_PATH", str(tools))
    monkeypatch.setattr(qemu_img, "_version_checked", [])
    converted = {"source": updating.SourceRequest("vol"), "format": "qcow2"}  # from raw
    volume.present("converted", **converted)  # needs no qemu-img
    leave_to_qemu_img(monkeypatch.setattr)
    refused(volume, errors.ToolMissing, lambda check: volume.present("copy", check=check, **converted), both=False)
    volume.present("copy", updating.SourceRequest("vol"))  # needs no qemu-img
    volume.present("empty", size=MIB, format="qcow2")  # needs no qemu-img


def test_two_tasks_at_once(volume: Store) -> None:
    with ShareDirectory(volume.share) as directory, VolumeLock(directory, "vol"):
        told = refused(volume, errors.LockTimeout, lambda _check: volume.present(size=8 * MIB), both=False)
        assert f"process {os.getpid()} on " in str(told)
        assert volume.info()["size"] == 4 * MIB  # reading waits for nobody
    assert volume.present(size=8 * MIB).changed


@pytest.mark.parametrize("base_format", ["raw", "qcow2"])
def test_an_image_that_is_open(store: Store, base_format: str) -> None:
    store.present(size=4 * MIB, format=base_format)
    store.snapshot("s1")
    store.snapshot("s2")
    user = subprocess.Popen(["qemu-io", "-f", "qcow2", store.info()["path"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        user.stdin.write("write -P 5 0 64k\n")
        user.stdin.flush()
        assert "wrote" in user.stdout.readline()
        assert store.info()["in_use"] is True
        before = store.state()
        for action in (
            lambda check: store.snapshot("s3", check=check),
            lambda check: store.delete("s2", check=check),
            lambda check: store.delete("s1", check=check),
            lambda check: store.revert("s2", check=check),
            lambda check: store.present(size=8 * MIB, check=check),
            lambda check: store.absent(cascade=True, check=check),
        ):
            for check in (True, False):
                with pytest.raises(errors.InUse):
                    action(check)
        assert store.state() == before
        assert store.info()["pending"] is None
    finally:
        user.communicate("quit\n")
    assert store.info()["in_use"] is False
    assert store.delete("s1", "s2").changed


def test_where_locks_cannot_be_seen(tmp_path: Path) -> None:
    store = Store(tmp_path, locks_visible=False, locks_readable=False)
    store.present(size=4 * MIB)
    assert store.info()["in_use"] is None
    refused(store, errors.InUse, lambda check: store.snapshot(check=check))
    options = store.options(assume_unused=True)
    assert snapshots.take(snapshots.SnapshotRequest(store.candidates, "vol", DesiredSnapshot("s1")), options).changed
    assert not list((tmp_path / ".remotefs" / "locks").iterdir()), "the lease is given back"


def test_lease_of_a_dead_and_of_a_living_owner(tmp_path: Path) -> None:
    store = Store(tmp_path, locks_visible=False)
    child = os.fork()
    if child == 0:
        VolumeLock(ShareDirectory(store.share), "vol").__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / ".remotefs/locks/vol.lease").exists()
    assert store.present(size=MIB).changed  # its owner is proven dead
    lease = tmp_path / ".remotefs/locks/vol.lease"
    lease.write_text('{"host": "elsewhere", "machine": "m", "boot": "b", "pid_namespace": "p", "pid": 1, "started": "1", "since": "today"}')
    told = refused(store, errors.LockTimeout, lambda _check: store.present(size=2 * MIB), both=False)
    assert "process 1 on elsewhere" in str(told) and "break_lock" in str(told)
    desired = updating.VolumeRequest(store.candidates, DesiredVolume("vol", size=2 * MIB))
    assert volumes.ensure_present(desired, store.options(break_lock=True, assume_unused=True)).changed


# -- hostile content -------------------------------------------------------------------------------------------------


def plant(store: Store, name: str, target: str) -> None:
    """Put an overlay with any backing name over the volume's active image."""
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", target, "-F", "raw", str(store.path / name), "4M"], check=True)
    (store.path / "vol.info").write_text('{"active": "%s", "s1": "%s"}' % (name, name))


@pytest.mark.parametrize("target", ["/etc/passwd", "../vol", "json:{}", "nbd://localhost/x", "sub/vol", "vol,x=y"])
def test_backing_names_that_lead_out(volume: Store, target: str) -> None:
    plant(volume, "vol.s1", target)
    assert volume.info()["error_code"] == "unsafe_image"
    for action in (
        lambda check: volume.snapshot("s2", check=check),
        lambda check: volume.delete("s1", check=check),
        lambda check: volume.present(size=8 * MIB, check=check),
    ):
        refused(volume, errors.UnsafeImage, action)


def test_loop_and_missing_file(volume: Store) -> None:
    plant(volume, "vol.s1", "vol.s1")
    refused(volume, errors.ChainBroken, lambda check: volume.delete("s1", check=check))
    plant(volume, "vol.s1", "gone")
    refused(volume, errors.ChainBroken, lambda check: volume.delete("s1", check=check))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"s1": "vol.s1"}', b'{"active": 5}'])
def test_torn_info(volume: Store, data: bytes) -> None:
    """What it said is on our own record; without that, or where somebody went on from there, nothing is guessed."""
    volume.snapshot("s1")
    right, record = (volume.path / "vol.info").read_bytes(), volume.path / ".remotefs/volumes/vol.json"
    (volume.path / "vol.info").write_bytes(data)
    _rebuilds_info(volume, right)
    (volume.path / "vol.info").write_bytes(data)
    known = record.read_bytes()
    record.unlink()
    refused(volume, errors.ChainBroken, lambda check: volume.snapshot("s2", check=check))
    assert volume.info()["error_code"] == "chain_broken"
    record.write_bytes(known)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "vol.s1", volume.path / "vol.theirs"], check=True)
    refused(volume, errors.ChainBroken, lambda check: volume.snapshot("s2", check=check))


def test_lost_info(volume: Store) -> None:
    """A volume whose .info is gone is not taken for one without snapshots: that would hide all that was written since."""
    volume.snapshot("s1")
    info, record = volume.path / "vol.info", volume.path / ".remotefs/volumes/vol.json"
    right, known = info.read_bytes(), record.read_bytes()
    info.unlink()
    _rebuilds_info(volume, right)
    info.unlink()
    record.unlink()
    for action in (lambda check: volume.snapshot("s2", check=check), lambda check: volume.present(size=8 * MIB, format="raw", check=check)):
        found = refused(volume, errors.ChainBroken, action)
        assert "vol.info" in str(found) and "is missing" in str(found) and "vol.s1 on vol" in str(found)
    assert volume.info()["error_code"] == "chain_broken"
    record.write_bytes(known)
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "other", volume.path / "vol.s1"], check=True)
    refused(volume, errors.ChainBroken, lambda check: volume.snapshot("s2", check=check))


def test_lost_info_of_a_volume_whose_base_is_gone(store: Store) -> None:
    store.present(size=MIB, format="qcow2")
    store.snapshot("s1")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 3 0 512k", store.info()["path"]], check=True)
    store.snapshot("s2")
    store.delete("s1")
    assert not (store.path / "vol").exists()
    right = (store.path / "vol.info").read_bytes()
    (store.path / "vol.info").unlink()
    assert [one["name"] for one in reading.list_volumes(store.share, [])] == ["vol"]
    _rebuilds_info(store, right)
    (store.path / "vol.info").unlink()
    assert store.absent(cascade=True).changed and not store.absent().changed
    assert sorted(path.name for path in store.path.iterdir()) == [".remotefs"]


def _rebuilds_info(volume: Store, right: bytes) -> None:
    assert [one["name"] for one in volume.info()["snapshots"]] == list(json.loads(right))[1:]
    predicted, done = volume.present(check=True), volume.present()
    assert (predicted.changed, predicted.actions, predicted.recovered) == (done.changed, done.actions, done.recovered)
    assert [one["operation"] for one in done.recovered] == ["rebuild_info"] and (volume.path / "vol.info").read_bytes() == right
    assert not volume.present().changed


@pytest.mark.parametrize("value", ["/etc/passwd", "../x", "a/b", "-U", "json:{}"])
def test_info_that_leads_out(volume: Store, value: str) -> None:
    (volume.path / "vol.info").write_text('{"active": "%s"}' % value)
    refused(volume, errors.UnsafeImage, lambda check: volume.snapshot("s2", check=check))


def patch(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


@pytest.mark.parametrize(
    "offset, data",
    [
        (4, struct.pack(">I", 7)),  # version
        (20, struct.pack(">I", 40)),  # cluster bits
        (32, struct.pack(">I", 1)),  # encryption
        (36, struct.pack(">I", 2**31)),  # L1 size
        (40, struct.pack(">Q", 2**60)),  # L1 offset
        (60, struct.pack(">I", 65535)),  # internal snapshots
        (72, struct.pack(">Q", 2)),  # corrupt
        (72, struct.pack(">Q", 4)),  # external data file
        (72, struct.pack(">Q", 1 << 40)),  # unknown incompatible feature
        (100, struct.pack(">I", 2**31)),  # header length
    ],
)
def test_hostile_headers(store: Store, offset: int, data: bytes) -> None:
    store.present(size=4 * MIB, format="qcow2")
    patch(store.path / "vol", offset, data)
    assert store.info()["error_code"] == "unsafe_image"
    refused(store, errors.UnsafeImage, lambda check: store.present(size=8 * MIB, check=check))
    refused(store, errors.UnsafeImage, lambda check: store.present("copy", updating.SourceRequest("vol"), check=check))


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/passwd"), os.mkfifo, Path.mkdir])
def test_something_else_than_a_file(store: Store, make: Callable) -> None:
    make(store.path / "vol")
    with pytest.raises((errors.UnsafeImage, errors.Conflict)):
        store.present(size=MIB, format="raw")
    with pytest.raises((errors.UnsafeImage, errors.Conflict)):
        store.absent()
    assert store.info()["error_code"] == "unsafe_image"


def test_hard_links_are_not_written(volume: Store) -> None:
    victim = volume.path / "victim"
    victim.write_bytes(b"precious" * 128)
    os.unlink(volume.path / "vol")
    os.link(victim, volume.path / "vol")
    refused(volume, errors.UnsafeImage, lambda _check: volume.present(size=8 * MIB), both=False)
    assert victim.read_bytes() == b"precious" * 128


def test_private_directory_that_is_a_link(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (store.path / ".remotefs").symlink_to(elsewhere)
    refused(store, errors.UnsafeImage, lambda check: store.present(size=MIB, check=check))
    assert not list(elsewhere.iterdir())


def test_a_guest_that_forges_a_header_gains_nothing(volume: Store, tmp_path: Path) -> None:
    """The raw disk's content becomes a qcow2 header over a host file: it stays the content of a raw disk."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s3cret" * 1000)
    forged = volume.path.parent / "forged"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(forged), "4M"], check=True)
    patch(volume.path / "vol", 0, forged.read_bytes()[:65536])
    volume.snapshot("s1")
    volume.present("copy", updating.SourceRequest("vol", "s1"))
    with open(volume.path / "vol.s1", "rb") as stream:
        assert qcow2.read_header(stream.fileno()).backing_format == "raw"
    assert (volume.path / "copy").read_bytes()[:4] == b"QFI\xfb" and b"s3cret" not in (volume.path / "copy").read_bytes()
    assert volume.delete("s1").changed
    assert volume.info()["base_format"] == "raw"


def test_a_foreign_overlay_is_a_dependent(volume: Store) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "vol", "-F", "raw", str(volume.path / "by-hand")], check=True)
    refused(volume, errors.HasDependents, lambda check: volume.absent(check=check))
    volume.snapshot("s1")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 3 0 64k", volume.info()["path"]], check=True)
    refused(volume, errors.HasDependents, lambda check: volume.delete("s1", check=check))
    assert volume.info()["dependents"] == [{"volume": "by-hand", "snapshot": "s1"}]


def test_a_clone_of_a_running_disk_is_refused_and_of_its_snapshot_is_not(volume: Store) -> None:
    volume.snapshot("s1")
    user = subprocess.Popen(["qemu-io", "-f", "qcow2", volume.info()["path"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        user.stdin.write("write -P 5 0 64k\n")
        user.stdin.flush()
        user.stdout.readline()
        refused(volume, errors.InUse, lambda check: volume.present("copy", updating.SourceRequest("vol"), check=check))
        assert volume.present("copy", updating.SourceRequest("vol", "s1")).changed
    finally:
        user.communicate("quit\n")


def test_what_a_killed_creation_left_is_cleared(store: Store) -> None:
    store.present("other", size=MIB)
    with ShareDirectory(store.share) as directory:
        fd, _name = directory.create_temporary("vol")
        os.close(fd)
    (store.path / ".remotefs/volumes/vol.json").write_bytes((store.path / ".remotefs/volumes/other.json").read_bytes())
    predicted, done = store.absent(check=True), store.absent()
    assert predicted.changed and predicted.recovered == done.recovered
    assert [one["outcome"] for one in done.recovered] == ["undone", "undone"]
    assert not list((store.path / ".remotefs/tmp").iterdir()) and not (store.path / ".remotefs/volumes/vol.json").exists()
    assert not store.absent().changed


@pytest.mark.parametrize(
    "image_format, preallocation",
    [("raw", "off"), ("raw", "falloc"), ("raw", "full"), ("qcow2", "off"), ("qcow2", "metadata"), ("qcow2", "falloc"), ("qcow2", "full")],
)
def test_preallocation(store: Store, image_format: str, preallocation: str) -> None:
    store.present(size=4 * MIB, format=image_format, preallocation=preallocation)
    allocated = store.info()["allocated"]
    assert (allocated >= 4 * MIB) == (preallocation in ("falloc", "full"))
    subprocess.run(["qemu-io", "-f", image_format, "-c", "write -q -P 1 1M 1M", store.info()["path"]], check=True)
    store.snapshot()
    assert store.delete("s1").changed


def test_candidates(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = Store(tmp_path / "a"), Store(tmp_path / "b")
    both = Store(tmp_path / "a")
    both.candidates = Candidates((one.share, two.share))
    two.present(size=MIB)
    assert both.present(size=2 * MIB).changed and two.info()["size"] == 2 * MIB
    one.present(size=MIB)
    for action in (lambda: both.present(size=MIB), both.absent, both.snapshot):
        with pytest.raises(errors.Conflict):
            action()
    lost = errors.ShareNotMounted("share c", "it is not mounted", "mount it")
    both.candidates = Candidates((one.share,), (lost,))
    assert not both.present(size=MIB).changed  # found: the share that cannot be read does not matter
    for action in (lambda: both.present("new", size=MIB), lambda: both.absent("new"), lambda: both.snapshot(volume="new")):
        with pytest.raises(errors.ShareNotMounted):
            action()


def test_errors_of_the_system_are_told_as_ours(volume: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO and ESTALE wherever they come from: an error code and a sentence, never a traceback."""
    volume.snapshot("s1")
    for number, kind in ((5, errors.ToolFailed), (116, errors.ShareNotMounted)):
        for name in ("fsync", "rename", "listdir", "link"):
            with monkeypatch.context() as patched:

                def fail(*_args: object, number: int = number, **_more: object) -> None:
                    raise OSError(number, os.strerror(number))

                patched.setattr(os, name, fail)
                with pytest.raises(kind):
                    volume.delete("s1") if name == "listdir" else volume.snapshot("s2")
    assert volume.snapshot("s3").changed and volume.delete("s1", "s2", "s3").changed
    assert volume.info()["snapshots"] == [] and volume.info()["pending"] is None


def test_an_overlay_that_names_no_format_is_healed_before_qemu_img_could_guess(volume: Store) -> None:
    """The raw base holds a forged header over a host file, and the overlay leaves the format open: nothing leaks."""
    secret = volume.path.parent / "secret"
    secret.write_bytes(b"s3cret" * 1000)
    forged = volume.path.parent / "forged"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(forged), "4M"], check=True)
    patch(volume.path / "vol", 0, forged.read_bytes()[:65536])
    with open(volume.path / "vol.s1", "w+b") as stream:
        qcow2.write_image(stream.fileno(), 4 * MIB, "vol", None)
    (volume.path / "vol.info").write_text('{"active": "vol.s1", "s1": "vol.s1"}')
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 3 1M 64k", str(volume.path / "vol.s1")], check=True)
    predicted, done = volume.delete("s1", check=True), volume.delete("s1")
    assert predicted.actions == done.actions and done.actions[0]["step"] == "repoint"
    content = (volume.path / "vol").read_bytes()
    assert content[:4] == b"QFI\xfb" and b"s3cret" not in content and content[MIB : MIB + 65536] == b"\x03" * 65536
