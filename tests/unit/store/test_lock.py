# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a volume: who keeps whom out, who is named, and how its holder notices that it is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import (
    LockTimeout,
    NoSpace,
    ShareNotMounted,
    ShareNotWritable,
    StorageError,
    UnsafeImage,
)
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.operations.workspace import Workspace
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import lock as locking
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import Owner, VolumeLock

OFD_SETLK = 37


def share(path: Path, **changes) -> Share:
    return Share(str(path), str(path), "directory", **changes)


def a_lock(path: Path, timeout: float = 0, visible: bool = True, **options) -> VolumeLock:
    """A lock through an opened directory of its own, as another task has it."""
    return VolumeLock(ShareDirectory(share(path, locks_visible=visible)), "vol", timeout, **options)


def lock_file(path: Path) -> Path:
    return path / ".remotefs" / "locks" / "vol.lock"


def lease_file(path: Path) -> Path:
    return path / ".remotefs" / "locks" / "vol.lease"


def refused(lock: VolumeLock) -> str:
    with pytest.raises(LockTimeout) as told:
        lock.__enter__()
    return str(told.value)


def lost(lock: VolumeLock) -> str:
    with pytest.raises(LockTimeout) as told:
        lock.verify()
    assert str(told.value).endswith("run the task again: it finishes or undoes what this one began.")
    return str(told.value)


# -- who keeps whom out ----------------------------------------------------------------------------------------------


def test_readers_share_and_a_writer_waits_for_all_of_them(tmp_path: Path) -> None:
    with a_lock(tmp_path, shared=True) as one:
        with a_lock(tmp_path, shared=True) as two:
            assert one.shared and two.shared
            refused(a_lock(tmp_path))
        refused(a_lock(tmp_path))
        one.verify()
    with a_lock(tmp_path) as writer:
        refused(a_lock(tmp_path, shared=True))
        refused(a_lock(tmp_path))
        writer.verify()


def test_a_lease_is_never_shared(tmp_path: Path) -> None:
    with a_lock(tmp_path, visible=False, shared=True) as reader:
        assert not reader.shared
        refused(a_lock(tmp_path, visible=False, shared=True))
        reader.verify()
    assert not lease_file(tmp_path).exists()


def test_the_owner_is_named_where_there_is_one(tmp_path: Path) -> None:
    me = f"process {os.getpid()} on "
    with a_lock(tmp_path) as writer:
        for shared in (False, True, True):  # readers that wait leave the writer's name alone
            assert me in refused(a_lock(tmp_path, shared=shared))
        assert json.loads(lock_file(tmp_path).read_text())["pid"] == os.getpid()
        writer.verify()
    with a_lock(tmp_path, shared=True), a_lock(tmp_path, shared=True):
        told = refused(a_lock(tmp_path))  # the name of a writer that is done is not told of its readers
        assert "held by another task" in told and me not in told


def test_a_writer_takes_over_from_readers_that_left_nothing(tmp_path: Path) -> None:
    with a_lock(tmp_path, shared=True):
        pass
    with a_lock(tmp_path) as writer:
        writer.verify()
    with a_lock(tmp_path, shared=True) as reader:
        reader.verify()


def test_an_owner_written_by_an_earlier_release_is_understood(tmp_path: Path) -> None:
    described = json.loads(Owner.of_this_process().to_bytes())
    del described["generation"], described["task"]
    (tmp_path / ".remotefs" / "locks").mkdir(parents=True, mode=0o700)
    lease_file(tmp_path).write_text(json.dumps(described))
    assert f"process {os.getpid()} on " in refused(a_lock(tmp_path, visible=False))


# -- several names ---------------------------------------------------------------------------------------------------


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list:
    """What is locked, in order: (directory, name, shared)."""
    taken = []
    real = VolumeLock.__enter__

    def noted(lock: VolumeLock) -> VolumeLock:
        entered = real(lock)
        taken.append((Path(lock._directory.share.path).name, lock.volume, lock.shared))
        return entered

    monkeypatch.setattr(VolumeLock, "__enter__", noted)
    return taken


def test_all_locks_are_taken_in_one_order(tmp_path: Path, order: list) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    two.mkdir()
    with Workspace(Options(lock_timeout=0.05)) as work:
        work.locks.take([(share(two), "a"), (share(one), "c")], shared=[(share(two), "b"), (share(one), "a"), (share(one), "c")])
    assert order == [("1", "a", True), ("1", "c", False), ("2", "a", False), ("2", "b", True)]


def test_given_back_and_taken_anew(tmp_path: Path) -> None:
    with Workspace(Options(lock_timeout=0.05)) as work:
        work.locks.take([(share(tmp_path), "vol")])
        refused(a_lock(tmp_path))
        work.locks.give_back()
        with a_lock(tmp_path):
            pass
        work.locks.take([(share(tmp_path), "other")], shared=[(share(tmp_path), "vol")])
        with a_lock(tmp_path, shared=True):
            pass
        refused(a_lock(tmp_path))
        work.directory(share(tmp_path)).verify("other")
        assert len(work.locks.descriptors) == 2  # programs inherit the locks that are held now
    with a_lock(tmp_path):
        pass


def test_which_locks_a_change_rests_on(tmp_path: Path) -> None:
    """All of the task; in a group those of its own volume, and what all of it reads."""
    wanted, read = [(share(tmp_path), name) for name in ("a", "b")], [(share(tmp_path), "parent")]
    for siblings, lost_name, stopped in (
        (False, "b", ("a", "b.info", "0123.json")),
        (True, "b", ("b", "b.info", "b~0123", "0123.json")),
        (True, "parent", ("a", "b.info", "0123.json")),
    ):
        with Workspace(Options(lock_timeout=0.05), siblings) as work:
            work.locks.take(wanted, read)
            directory = work.directory(share(tmp_path))
            (tmp_path / ".remotefs" / "locks" / f"{lost_name}.lock").unlink()
            for name in stopped:
                with pytest.raises(LockTimeout):
                    directory.verify(name)
            if siblings and lost_name == "b":
                for name in ("a", "a.info", "a~0123", "a.b"):
                    directory.verify(name)


def test_check_mode_takes_none_and_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Workspace(Options(check=True)) as work:
        work.locks.take([(share(tmp_path), "vol")], shared=[(share(tmp_path), "other")])
        work.directory(share(tmp_path)).verify("vol")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path / "ro"))
    with Workspace(Options(check=True)) as work, pytest.raises(ShareNotWritable):
        work.locks.take([(share(tmp_path), "vol")], shared=[(share(tmp_path / "ro"), "other")])


# -- losing it -------------------------------------------------------------------------------------------------------


def take_away(lock: VolumeLock) -> None:
    """What a server does to the lock of a client that it believes to be dead."""
    fcntl.fcntl(lock.descriptors[0], OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def by_removal(path: Path, _lock: VolumeLock) -> None:
    lock_file(path).unlink()


def by_replacement(path: Path, _lock: VolumeLock) -> None:
    other = lock_file(path).with_name("new")
    other.write_bytes(lock_file(path).read_bytes())
    other.rename(lock_file(path))


def by_a_link(path: Path, _lock: VolumeLock) -> None:
    """It leads to the very file, and whoever opens it meets a link."""
    lock_file(path).rename(lock_file(path).with_name("moved"))
    lock_file(path).symlink_to("moved")


def by_removal_of_everything(path: Path, _lock: VolumeLock) -> None:
    lock_file(path).unlink()
    lock_file(path).parent.rmdir()


def by_a_writer_that_holds_it(path: Path, lock: VolumeLock) -> None:
    take_away(lock)
    a_lock(path).__enter__()


def by_a_writer_that_is_done(path: Path, lock: VolumeLock) -> None:
    take_away(lock)
    with a_lock(path):
        pass


LOSSES: list[Callable[[Path, VolumeLock], None]] = [
    by_removal,
    by_replacement,
    by_a_link,
    by_removal_of_everything,
    by_a_writer_that_holds_it,
    by_a_writer_that_is_done,
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_lock_is_noticed(tmp_path: Path, loss: Callable, shared: bool) -> None:
    holder = a_lock(tmp_path, shared=shared)
    with holder:
        holder.verify()
        loss(tmp_path, holder)
        assert "it was lost to " in lost(holder)
        before = sorted(path.name for path in (tmp_path / ".remotefs").rglob("*"))
        holder.forget_file()
        lost(holder)  # asking did not make it ours
    assert sorted(path.name for path in (tmp_path / ".remotefs").rglob("*")) == before


def test_a_reader_notices_and_is_noticed(tmp_path: Path) -> None:
    with a_lock(tmp_path) as writer:
        take_away(writer)
        with a_lock(tmp_path, shared=True) as reader:
            assert "it was lost to another task" in lost(writer)
            reader.verify()
        lost(writer)  # a reader in between may have read what was half done


def test_a_lock_that_the_server_gave_back_untouched_is_ours(tmp_path: Path) -> None:
    with a_lock(tmp_path) as writer:
        take_away(writer)
        writer.verify()
        refused(a_lock(tmp_path))  # asking took it again


def test_who_took_it_is_named(tmp_path: Path) -> None:
    with a_lock(tmp_path) as writer:
        take_away(writer)
        other = Owner.of_this_process()._replace(host="elsewhere", pid=77, task="remotefs_volume")
        lock_file(tmp_path).write_bytes(other.to_bytes())
        assert "it was lost to process 77 on elsewhere (remotefs_volume) since " in lost(writer)


def test_a_broken_lease_is_noticed_and_left_alone(tmp_path: Path) -> None:
    holder = a_lock(tmp_path, visible=False)
    with holder:
        holder.verify()
        with a_lock(tmp_path, visible=False, break_lease=True) as breaker:
            breaker.verify()
            lost(holder)
            holder.__exit__()
            assert lease_file(tmp_path).exists(), "another one's lease was removed"
            breaker.verify()
    assert not lease_file(tmp_path).exists()


def test_a_lease_is_broken_once(tmp_path: Path) -> None:
    a_lock(tmp_path, visible=False).__enter__()
    breaker = a_lock(tmp_path, visible=False, break_lease=True)
    assert not breaker._try() and not lease_file(tmp_path).exists()
    with a_lock(tmp_path, visible=False) as quicker:
        assert not breaker._try()
        quicker.verify()  # what stands there now belongs to a living task


def opened_in(path: Path) -> list[str]:
    found = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]
    return [file for file in found if file.startswith(str(path)) and file.rsplit("/", 1)[1].startswith("vol.")]


def test_a_lease_is_not_kept_open(tmp_path: Path) -> None:
    """An SMB server keeps the name of a file that somebody has open, removed or not: nobody could break the lease."""
    with a_lock(tmp_path, visible=False) as lock:
        assert lock.descriptors == () and not opened_in(tmp_path)
        lock.verify()
    with a_lock(tmp_path):
        assert opened_in(tmp_path)
    assert not opened_in(tmp_path)


@pytest.mark.parametrize("visible", [True, False])
def test_what_cannot_be_written_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: bool) -> None:
    def full(_fd: int, _data: bytes, _offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(NoSpace):
            a_lock(tmp_path, visible=visible).__enter__()
    assert not opened_in(tmp_path) and not lease_file(tmp_path).exists()
    with a_lock(tmp_path, visible=visible) as lock:
        lock.verify()


def test_one_that_was_taken_in_vain_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_directory: ShareDirectory) -> None:
        raise ShareNotMounted("share", "it is gone", "mount it")

    lock = a_lock(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ShareDirectory, "refresh", gone)
        with pytest.raises(ShareNotMounted):
            lock.__enter__()
    with a_lock(tmp_path):
        pass


def failing(number: int) -> Callable:
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_share_that_fails_is_not_a_lock_that_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost to another task is done again by that one; a failure says what it is."""
    for number, was_lost in ((errno.ENOMEM, False), (errno.EIO, True), (errno.ESTALE, True), (errno.EAGAIN, True)):
        with a_lock(tmp_path) as lock, monkeypatch.context() as patched:
            patched.setattr(locking.os, "stat", failing(number))
            with pytest.raises(StorageError) as told:
                lock.verify()
            assert isinstance(told.value, LockTimeout) is was_lost


def test_what_kept_a_lock_from_being_taken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not know the file any more is no task that holds it."""
    for number, by_another in ((errno.ENOENT, True), (errno.ESTALE, False)):
        with monkeypatch.context() as patched, pytest.raises(StorageError) as told:
            patched.setattr(VolumeLock, "_open", failing(number))
            a_lock(tmp_path).__enter__()
        assert isinstance(told.value, LockTimeout) is by_another


def test_a_directory_of_locks_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    """A share was restored under a task that waits: what it has opened is nowhere."""
    lock = a_lock(tmp_path)
    with lock:
        pass
    shutil.rmtree(tmp_path / ".remotefs")
    with lock:
        lock.verify()
        refused(a_lock(tmp_path))


@pytest.mark.parametrize("visible", [True, False])
def test_a_directory_of_locks_that_goes_while_somebody_waits(tmp_path: Path, visible: bool) -> None:
    """Who waits has the old directory open, in which no file can be made any more."""
    waiting = a_lock(tmp_path, visible=visible)
    with a_lock(tmp_path, visible=visible):
        assert not waiting._try()
        shutil.rmtree(tmp_path / ".remotefs")
    with waiting:
        waiting.verify()
        refused(a_lock(tmp_path, visible=visible))


@pytest.mark.parametrize("replace", [by_removal, by_replacement, by_a_link])
def test_a_file_that_was_replaced_while_it_was_locked_is_not_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: Callable) -> None:
    """Between the open and the lock another task ended with the volume, and somebody made a new file: that one counts."""
    real, times = fcntl.fcntl, []

    def locked(fd: int, request: int, content: bytes) -> bytes:
        if not times:
            replace(tmp_path, None)
        times.append(1)
        return real(fd, request, content)

    lock = a_lock(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(locking.fcntl, "fcntl", locked)
        if replace is by_a_link:
            with pytest.raises(UnsafeImage):
                lock.__enter__()
            return
        lock.__enter__()
    assert len(times) == 2
    lock.verify()
    refused(a_lock(tmp_path))
    lock.__exit__()


def by_hard_link(path: Path, foreign: Path) -> None:
    path.hardlink_to(foreign)


def by_symlink(path: Path, foreign: Path) -> None:
    path.symlink_to(foreign)


def by_pipe(path: Path, _foreign: Path) -> None:
    os.mkfifo(path)


def by_directory(path: Path, _foreign: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("plant", [by_hard_link, by_symlink, by_pipe, by_directory])
def test_what_was_planted_in_place_of_a_lock_is_neither_opened_nor_written(tmp_path: Path, plant: Callable, shared: bool) -> None:
    with a_lock(tmp_path):
        pass
    lock_file(tmp_path).unlink()
    foreign = tmp_path / "foreign"
    foreign.write_text("data")
    plant(lock_file(tmp_path), foreign)
    with pytest.raises(UnsafeImage, match="find out who put .remotefs/locks/vol.lock there"):
        a_lock(tmp_path, shared=shared).__enter__()
    assert foreign.read_text() == "data" and os.path.lexists(lock_file(tmp_path))


@pytest.mark.parametrize("folder, file", [(0o2770, 0o660), (0o755, 0o600)])
def test_who_may_write_to_the_share_may_lock(tmp_path: Path, folder: int, file: int) -> None:
    """Of several users of one group, the first makes the file, and all of them lock it."""
    tmp_path.chmod(folder)
    with a_lock(tmp_path):
        assert lock_file(tmp_path).stat().st_mode & 0o777 == file


def test_a_lease_is_durable_before_anything_is_done_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a host that loses its power leaves a lease of which nobody can tell whose it is."""
    real, synced = os.fsync, []
    monkeypatch.setattr(locking.os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    with a_lock(tmp_path, visible=False):
        assert str(lease_file(tmp_path)) in synced
        assert json.loads(lease_file(tmp_path).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("visible", [True, False])
def test_what_was_seen_before_the_lock_is_looked_at_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: bool) -> None:
    lock, calls = a_lock(tmp_path, visible=visible), []
    monkeypatch.setattr(ShareDirectory, "refresh", lambda _directory: calls.append(1))
    with lock:
        assert calls


def test_a_lock_whose_owner_cannot_be_written_is_held_without_only_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(StorageError):
        patched.setattr(locking.os, "pwrite", failing(errno.EIO))
        a_lock(tmp_path).__enter__()
    with a_lock(tmp_path):
        pass


@pytest.mark.parametrize("number, room, taken", [(errno.ENOSPC, True, True), (errno.ENOSPC, False, False), (errno.EIO, True, False)])
def test_a_lease_gets_room_on_a_full_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, room: bool, taken: bool) -> None:
    """Once, and where the ballast has some. It is never held without the name of its owner, by which it is told from others."""
    real, failed, made = os.pwrite, [], []

    def full(fd: int, data: bytes, offset: int) -> int:
        if not failed:
            failed.append(1)
            raise OSError(number, os.strerror(number))
        return real(fd, data, offset)

    lock = a_lock(tmp_path, visible=False)
    with monkeypatch.context() as patched:
        patched.setattr(locking.os, "pwrite", full)
        patched.setattr(VolumeLock, "_make_room", lambda _lock: (made.append(1), room)[1])
        if not taken:
            with pytest.raises(StorageError):
                lock.__enter__()
            assert not lease_file(tmp_path).exists()
            return
        lock.__enter__()
    assert made == [1] and json.loads(lease_file(tmp_path).read_text())["pid"] == os.getpid()
    lock.verify()
    lock.__exit__()


def test_what_stands_in_place_of_a_lease_is_not_read_and_its_remedy_is_told(tmp_path: Path) -> None:
    with a_lock(tmp_path):
        assert "break_lock" not in refused(a_lock(tmp_path))
    lease_file(tmp_path).symlink_to("/etc/hostname")
    told = refused(a_lock(tmp_path, visible=False))
    assert "held by another task" in told and "break_lock: true" in told


def test_closed_locks_are_nobodys(tmp_path: Path) -> None:
    lock = a_lock(tmp_path)
    with lock:
        pass
    lost(lock)


def test_what_asking_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(module: object, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: (calls.append(name), real(*args, **kwargs))[1])

    with a_lock(tmp_path) as lock:
        lock.verify()
        counted(locking.fcntl, "fcntl")
        for name in ("stat", "fstat", "open", "pread", "read", "pwrite", "fsync", "close", "ftruncate"):
            counted(os, name)
        lock.verify()
        assert calls == ["fcntl", "stat", "pread"]


# -- what is believed of a name ----------------------------------------------------------------------------------------


def leave_lease(path: Path, content: object) -> None:
    (path / ".remotefs" / "locks").mkdir(parents=True, mode=0o700)
    lease_file(path).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes, dead",
    [
        ({"pid": 2**22 + 1}, True),  # larger than any: there is no such process
        ({"started": "1"}, True),  # its number was given to another one since
        ({}, False),
        ({"started": "1", "machine": "other"}, False),  # nobody here can tell
        ({"started": "1", "boot": "other"}, False),
        ({"started": "1", "pid_namespace": "other"}, False),
        ({"started": "1", "boot": ""}, False),
    ],
)
def test_a_lease_is_taken_from_a_process_that_is_proven_gone_and_from_no_other(tmp_path: Path, changes: dict, dead: bool) -> None:
    leave_lease(tmp_path, {**Owner.of_this_process()._asdict(), **changes})
    lock = a_lock(tmp_path, visible=False)
    if dead:
        with lock:
            lock.verify()
    else:
        refused(lock)
        assert lease_file(tmp_path).exists()


def test_where_no_boot_is_known_nobody_is_proven_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container without /proc, two hosts look alike."""
    monkeypatch.setattr(locking, "_first_line", lambda _path: "")
    monkeypatch.setattr(locking, "_of_process", locking._of_process.__wrapped__)  # as a process that has not asked yet
    assert not Owner.of_this_process()._replace(started="1").is_dead()


def test_a_process_that_grows_stays_the_one_that_it_was() -> None:
    owner = Owner.of_this_process()
    grown = bytearray(64 << 20)
    assert len(grown) and not owner.is_dead() and owner.started == Owner.of_this_process().started
    assert 0 < int(owner.started) / os.sysconf("SC_CLK_TCK") <= float(Path("/proc/uptime").read_text().split()[0])
    assert owner.generation != Owner.of_this_process().generation


def test_the_task_is_named_as_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking.sys, "argv", ["/tmp/x.y/remotefs_volume.py", "other.py"])
    monkeypatch.setattr(locking, "_of_process", locking._of_process.__wrapped__)
    with a_lock(tmp_path):
        assert "(remotefs_volume)" in refused(a_lock(tmp_path))


HONEST = {**Owner.of_this_process()._asdict(), "machine": "other"}


@pytest.mark.parametrize(
    "content",
    [{**HONEST, "pid": True}, {**HONEST, "pid": "../1"}, {**HONEST, "host": 5}, {**HONEST, "host": "a\nb"}, {**HONEST, "more": "x"}, [], {}, "x", None],
    ids=range(9),
)
def test_of_what_none_of_ours_wrote_nothing_is_told_or_believed(tmp_path: Path, content: object) -> None:
    leave_lease(tmp_path, content)
    assert "held by another task and" in refused(a_lock(tmp_path, visible=False))
    assert lease_file(tmp_path).exists()


# -- which bytes, and when ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first, length", [(0, 1), (100, 1), (2**40, 0)])
@pytest.mark.parametrize("kind", [fcntl.F_WRLCK, fcntl.F_RDLCK])
def test_the_lock_is_of_the_whole_file(tmp_path: Path, first: int, length: int, kind: int) -> None:
    """As every release takes it, so that tasks of different releases keep each other out."""
    with a_lock(tmp_path):
        pass
    with lock_file(tmp_path).open("r+b") as other:
        fcntl.fcntl(other, OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, first, length, 0))
        refused(a_lock(tmp_path))
    with a_lock(tmp_path):
        pass


def test_before_it_is_taken_it_is_nobodys(tmp_path: Path) -> None:
    with a_lock(tmp_path, visible=False):
        pass
    lock = a_lock(tmp_path)
    assert lock.descriptors == ()
    lost(lock)


def test_who_waits_asks_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_lock(tmp_path):
        waiting = a_lock(tmp_path, timeout=1)
        asked = []
        real = waiting._try
        monkeypatch.setattr(waiting, "_try", lambda: (asked.append(1), real())[1])
        refused(waiting)
        assert 4 <= len(asked) <= 12


@pytest.mark.parametrize(
    "shared, visible, stale, goes",
    [(False, True, 0.0, True), (True, True, 0.0, False), (False, False, 0.0, False), (False, True, 1.0, False)],
    ids=["a writer's", "a reader's", "a lease", "where clients remember names"],
)
def test_the_lock_file_of_a_volume_that_is_gone_goes_where_nobody_could_lock_it_still(
    tmp_path: Path, shared: bool, visible: bool, stale: float, goes: bool
) -> None:
    lock = VolumeLock(ShareDirectory(share(tmp_path, locks_visible=visible, stale_seconds=stale)), "vol", 0.05, shared=shared)
    file = lock_file(tmp_path) if visible else lease_file(tmp_path)
    with lock:
        lock.forget_file()
        assert file.exists() is not goes
    with lock:
        lock.verify()


def test_the_lock_file_of_another_one_stays(tmp_path: Path) -> None:
    lock = a_lock(tmp_path)
    with lock:
        pass
    lock.forget_file()
    assert lock_file(tmp_path).exists()
