# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who could open a volume still can after a snapshot, a revert, a merge or a recovery, and nobody else."""

from __future__ import annotations

import errno
import importlib
import json
import os
import pkgutil
import shutil
import stat
import struct
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins import module_utils
from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files import access

MIB = 1 << 20
POSIX = "system.posix_acl_access"
NFS4 = "system.nfs4_acl"


class Store:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.share = Share(str(path), str(path), "directory")
        self.where = Candidates((self.share,))
        self.warnings: list[str] = []

    def options(self) -> Options:
        return Options(lock_timeout=5, task=Task(warn=self.warnings.append))

    def present(self, name: str = "v", source: updating.SourceRequest | None = None, **desired: object) -> None:
        volumes.ensure_present(updating.VolumeRequest(self.where, DesiredVolume(name, **desired), source), self.options())  # type: ignore[arg-type]

    def take(self, name: str) -> None:
        snapshots.take(snapshots.SnapshotRequest(self.where, "v", DesiredSnapshot(name)), self.options())

    def revert(self, name: str, discard: bool = False) -> None:
        snapshots.revert(self.where, "v", name, discard, self.options())

    def delete(self, *names: str) -> None:
        snapshots.delete(self.where, "v", list(names), self.options())

    @property
    def active(self) -> Path:
        (found,) = reading.list_volumes(self.share, ["v"])
        return Path(found["path"])

    def write(self) -> None:
        kind = "raw" if self.active.name == "v" else "qcow2"
        subprocess.run(["qemu-io", "-f", kind, "-c", "write -q -P 7 0 64k", str(self.active)], check=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.present(size=MIB, mode=0o600)
    return made


def acl(path: Path) -> list[str]:
    return subprocess.run(["getfacl", "-p", "-c", "-n", str(path)], check=True, capture_output=True, text=True).stdout.split()


def setfacl(*arguments: object) -> None:
    if shutil.which("setfacl") is None:
        pytest.skip("needs setfacl (package acl)")
    if subprocess.run(["setfacl", *map(str, arguments)], check=False, capture_output=True).returncode != 0:
        pytest.skip("this file system keeps no POSIX ACLs")


def snapshot(store: Store) -> None:
    store.take("s")


def revert(store: Store) -> None:
    store.take("s")
    setfacl("-m", "u:4711:r", store.active)  # now the overlay differs from what it rests on
    store.write()
    store.revert("s")


def revert_and_discard(store: Store) -> None:
    store.take("s")
    store.take("t")
    setfacl("-m", "u:4711:r", store.active)
    store.write()
    store.revert("s", True)


def merge(store: Store) -> None:
    """The base becomes the active image again, with the access of the overlay that goes."""
    store.take("s")
    setfacl("-m", "u:4711:r", store.active)
    store.write()
    store.delete("s")


def merge_of_the_middle(store: Store) -> None:
    store.take("s")
    store.write()
    store.take("t")
    setfacl("-m", "u:4711:r", store.active)
    store.delete("s")


def grow_by_copy(store: Store) -> None:
    """An overlay that is shorter than what it rests on is grown in a copy."""
    store.take("s")
    setfacl("-m", "u:4711:r", store.active)
    subprocess.run(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", str(store.active), "512K"], check=True)
    store.present(size=2 * MIB)


WAYS: tuple[Callable[[Store], None], ...] = (snapshot, revert, revert_and_discard, merge, merge_of_the_middle, grow_by_copy)


@pytest.mark.parametrize("way", WAYS)
def test_the_acl_follows(store: Store, way: Callable[[Store], None]) -> None:
    setfacl("-m", "u:12345:rw,g:23456:r", store.path / "v")
    way(store)
    entries = ["user::rw-", "user:12345:rw-", "group::---", "group:23456:r--", "mask::rw-", "other::---"]
    if way is not snapshot:
        entries.insert(1, "user:4711:r--")
    assert acl(store.active) == entries
    assert not store.warnings
    if (store.path / "v.info").exists():
        assert "user:12345:rw-" in acl(store.path / "v.info"), ".info is written like the image"


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_inherited_that_the_image_had_not(store: Store, way: Callable[[Store], None]) -> None:
    """The folder where new files are made has a default ACL; what replaces the image must not have its entries."""
    store.take("before")
    for folder in (store.path, store.path / ".remotefs" / "tmp"):
        setfacl("-d", "-m", "u:999:rwx", folder)
    store.present("w", size=MIB)
    way(store)
    assert "user:999:rwx" not in acl(store.active) and "user:999:rw-" not in acl(store.active)
    assert stat.S_IMODE(store.active.stat().st_mode) & 0o007 == 0


def test_a_new_volume_has_the_default_acl_of_its_directory(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.present("first", size=MIB)
    setfacl("-d", "-m", "u:4711:r", tmp_path)
    store.present("second", size=MIB)
    store.present("third", size=MIB, mode=0o600)
    assert acl(tmp_path / "first") == ["user::rw-", "group::rw-", "other::---"], "made before there was one"
    assert "user:4711:r--" in acl(tmp_path / "second") and stat.S_IMODE((tmp_path / "second").stat().st_mode) == 0o660
    assert stat.S_IMODE((tmp_path / "third").stat().st_mode) == 0o600, "the mode that is asked for limits it"


@pytest.mark.parametrize("way", [snapshot, revert])
def test_a_file_system_that_refuses(store: Store, way: Callable[[Store], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets more than before, and who gets less is named."""
    setfacl("-m", "u:12345:rw,g:23456:r,u:0:rw", store.path / "v")
    real = os.setxattr

    def refuse(path: int, name: str, value: bytes, *more: int) -> None:
        if name == POSIX:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        real(path, name, value, *more)

    if way is revert:
        store.take("s")
        setfacl("-m", "u:4711:r", store.active)
        store.write()
    monkeypatch.setattr(os, "setxattr", refuse)
    (store.revert if way is revert else store.take)("s")
    assert stat.S_IMODE(store.active.stat().st_mode) == 0o600, "the mask is not the right of the owning group"
    (told,) = [text for text in store.warnings if "v.s" in text.partition(":")[0]]
    assert "user 12345" in told and "group 23456" in told and "user root" in told


def test_recovery_gives_it_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.remotefs.storage.plugins.module_utils.apply import executor

    class Killed(BaseException):
        pass

    def die(*_arguments: object) -> None:
        raise Killed

    store.take("s")
    setfacl("-m", "u:12345:rw", store.active)
    store.write()
    with monkeypatch.context() as patched:
        patched.setattr(executor.Executor, "_write_info", die)
        with pytest.raises(Killed):
            store.delete("s")
    store.present()
    assert store.active.name == "v" and "user:12345:rw-" in acl(store.active)


# -- NFSv4 ACLs and labels, which local file systems have not ---------------------------------------------------------


def ace(kind: int, flags: int, rights: int, who: str) -> bytes:
    name = who.encode()
    return struct.pack(">4I", kind, flags, rights, len(name)) + name + bytes(-len(name) % 4)


ENTRIES = [ace(0, 0, 0x3, "OWNER@"), ace(0, 0, 0x3, "alice@example.com"), ace(0, 0x40, 0x1, "ops@example.com"), ace(0, 0x40, 0x1, "GROUP@")]
ACL4 = struct.pack(">I", len(ENTRIES)) + b"".join(ENTRIES)


@pytest.fixture
def attributes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    """Extended attributes kept here by inode, as an NFS 4 server or a labelled file system would have them. ``refused`` names those
    that it does not take."""
    kept: dict = {"refused": set()}

    def inode(path: object) -> int:
        return os.fstat(path).st_ino if isinstance(path, int) else os.stat(str(path)).st_ino

    def put(path: object, name: str, value: bytes, *_more: int) -> None:
        if name in kept["refused"]:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        kept[inode(path), name] = value

    def get(path: object, name: str, **_more: object) -> bytes:
        if (inode(path), name) not in kept:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return kept[inode(path), name]

    monkeypatch.setattr(os, "listxattr", lambda path, **_more: [key[1] for key in kept if key[0] == inode(path)])
    monkeypatch.setattr(os, "getxattr", get)
    monkeypatch.setattr(os, "setxattr", put)
    yield kept


@pytest.mark.parametrize("name", [NFS4, "system.nfs4_acl_xdr", "security.selinux", "security.SMACK64", "security.NTACL", "user.tag"])
def test_other_attributes_follow(store: Store, attributes: dict, name: str) -> None:
    value = ACL4 if name == NFS4 else b"label\0"
    attributes[(store.path / "v").stat().st_ino, name] = value
    store.take("s")
    assert attributes[store.active.stat().st_ino, name] == value
    store.write()
    store.revert("s")
    assert attributes[store.active.stat().st_ino, name] == value and not store.warnings


def test_a_server_that_refuses_an_nfs4_acl(store: Store, attributes: dict) -> None:
    attributes[(store.path / "v").stat().st_ino, NFS4] = ACL4
    os.chmod(store.path / "v", 0o660)  # as servers show what named users have
    attributes["refused"] = {NFS4}
    store.take("s")
    assert stat.S_IMODE(store.active.stat().st_mode) == 0o640, "the group has what GROUP@ had"
    assert any("user alice@example.com, group ops@example.com cannot open it" in text for text in store.warnings)


def test_a_label_that_is_refused_is_told(store: Store, attributes: dict) -> None:
    attributes[(store.path / "v").stat().st_ino, "security.selinux"] = b"system_u:object_r:svirt_image_t:s0\0"
    attributes["refused"] = {"security.selinux"}
    store.take("s")
    assert any("svirt_image_t" in text and "v.s" in text for text in store.warnings)


@pytest.mark.parametrize("data", [b"", b"\0", ACL4[:9], ACL4[:-3], b"\xff" * 40])
def test_lists_that_cannot_be_understood(data: bytes) -> None:
    for name in (POSIX, NFS4, "system.nfs4_acl_xdr"):
        refused = access._refused(name, data, OSError(errno.EOPNOTSUPP, "no"))
        assert 0 <= refused.group <= 7 and 0 <= refused.other <= 7


# -- groups that share a directory ------------------------------------------------------------------------------------


def as_user(uid: int, gid: int, task: Callable[[], object]) -> dict:
    """What a task of another user ends with, in a process of its own."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            os.umask(0o077)
            os.setgroups([gid])
            os.setgid(uid)
            os.setuid(uid)
            try:
                found = {"told": task()}
            except StorageError as error:
                found = {"error_code": error.error_code, "msg": str(error)}
            os.write(writer, json.dumps(found, default=str).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    with os.fdopen(reader, "rb") as stream:
        return json.loads(stream.read())


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become two users")
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="shared-", dir="/tmp"))
    os.chown(path, 0, 3000)
    os.chmod(path, 0o2770)
    for found in pkgutil.walk_packages(module_utils.__path__, f"{module_utils.__name__}."):
        importlib.import_module(found.name)  # the users may not read the collection's files
    warm = Store(tmp_path_factory.mktemp("warm"))
    os.chmod(warm.path, 0o2770)
    warm.present(size=MIB)
    warm.take("s")
    warm.revert("s")
    warm.delete("s")
    volumes.ensure_absent(warm.where, "v", True, Options())
    yield path
    shutil.rmtree(path)


def test_members_of_a_group_use_each_others_volumes(shared: Path) -> None:
    one, other = Store(shared), Store(shared)
    assert as_user(2001, 3000, lambda: one.present(size=MIB)) == {"told": None}
    assert as_user(2002, 3000, lambda: reading.list_volumes(other.share, [])[0]["size"]) == {"told": MIB}
    for uid, task in (
        (2002, lambda: other.take("a")),
        (2001, lambda: one.take("b")),
        (2002, lambda: other.revert("a", True)),
        (2001, lambda: one.take("c")),
        (2002, lambda: other.delete("c")),
        (2001, lambda: one.delete("a")),
        (2002, lambda: other.take("d")),
        (2001, lambda: volumes.ensure_absent(one.where, "v", True, one.options()) and None),
        (2002, lambda: other.present(size=MIB)),
    ):
        assert as_user(uid, 3000, task) == {"told": None}
    for path in (shared / ".remotefs").rglob("*"):
        status = path.stat()
        assert status.st_gid == 3000 and status.st_mode & 0o007 == 0 and (status.st_mode & 0o070) >= 0o060, path
    refused = as_user(2003, 3001, lambda: reading.list_volumes(other.share, []))
    assert refused["error_code"] == "tool_failed" and "reading was refused to uid 2003" in refused["msg"]


def test_remotefs_of_an_older_release_is_explained(shared: Path) -> None:
    one, other = Store(shared), Store(shared)
    as_user(2001, 3000, lambda: one.present(size=MIB))
    os.chmod(shared / ".remotefs", 0o2700)
    for task in (lambda: reading.list_volumes(other.share, []), lambda: other.take("a")):
        found = as_user(2002, 3000, task)
        refused = found["told"][0] if "told" in found else found
        assert refused["error_code"] == "tool_failed" and "writing" not in refused["msg"]
        assert "uid 2002" in refused["msg"] and "let uid 2001" in refused["msg"] and "chmod -R g+rwX,g+s" in refused["msg"]


def test_a_directory_of_one_user_stays_private(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    store = Store(tmp_path)
    store.present(size=MIB)
    store.take("s")
    for path in (tmp_path / ".remotefs", *(tmp_path / ".remotefs").rglob("*")):
        if ".remotefs/ballast/" not in str(path):
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("place", ["v", ".remotefs/volumes/v.json", "v.info", ".remotefs/volumes", ""])
def test_refused_reading_is_told_as_that(shared: Path, place: str) -> None:
    store = Store(shared)
    store.present(size=MIB)
    store.take("s")
    os.chmod(shared, 0o755)
    os.chmod(shared / ".remotefs", 0o755)
    for path in shared.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    os.chmod(shared / place, 0o700 if (shared / place).is_dir() else 0o600)

    def look() -> object:
        return [{key: one.get(key) for key in ("error_code", "msg")} for one in reading.list_volumes(store.share, [])]

    found = as_user(2003, 3001, look)
    told = found if "told" not in found else found["told"][0]
    assert told["error_code"] == "tool_failed" and "reading was refused to uid 2003" in told["msg"]


def test_a_refused_owner_names_the_file_and_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At creation, on a volume that exists, for a snapshot's overlay, and where the share is ill."""
    store = Store(tmp_path)
    store.present(size=MIB, format="raw")

    def refusing(code: int) -> Callable[..., None]:
        def refuse(*_args: object) -> None:
            raise OSError(code, os.strerror(code))

        return refuse

    for code in (errno.EPERM, errno.EIO):
        monkeypatch.setattr(access.os, "fchown", refusing(code))
        for action, file in ((lambda: store.present(uid=12345), "v"), (lambda: store.present("w", size=MIB, uid=12345), "w")):
            with pytest.raises(StorageError, match=rf"file {file} on {tmp_path}: "):
                action()
    assert not (tmp_path / "w").exists()
