# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is kept away from an image, for how long, and that a prediction finds what the work finds."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.engine import open_engine
from ansible_collections.remotefs.storage.plugins.module_utils.apply.executor import Executor
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import guard as guards
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.guard import Guard
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, ShareNotWritable
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.plan import planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot
from ansible_collections.remotefs.storage.plugins.module_utils.plan.intent import Resumption
from ansible_collections.remotefs.storage.plugins.module_utils.plan.plan import Plan
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import Directory, ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import in_use, kernel_users
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import chains

WRITER, READER = (100, 101, 103, 201, 203), (100, 201, 203)
NOBODY, READS, WRITES = (True, True), (True, False), (False, False)  # whether others may open a file for reading, and for writing


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[ShareDirectory]:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_bytes(bytes(4096))
    with ShareDirectory(Share(str(tmp_path), str(tmp_path), "directory")) as opened:
        yield opened


@contextmanager
def with_terms(directory: ShareDirectory, **changes: object) -> Iterator[ShareDirectory]:
    with ShareDirectory(directory.share._replace(**changes)) as opened:
        yield opened


def path_of(directory: ShareDirectory, file: str) -> Path:
    return Path(directory.share.path) / file


@contextmanager
def used(path: Path, places: tuple[int, ...]) -> Iterator[None]:
    """QEMU's lock bytes of somebody who has a file open."""
    with open(path, "r+b") as stream:
        for place in places:
            fcntl.fcntl(stream.fileno(), 37, in_use._request(fcntl.F_RDLCK, place))
        yield


def others_may(directory: ShareDirectory, file: str) -> tuple[bool, bool]:
    """Whether somebody else can open the file now: (for reading, for writing)."""
    found = []
    for take in (lambda fd: in_use.hold_for_reading(fd, file, directory.share), lambda fd: in_use.hold(fd, file, "")):
        with open(path_of(directory, file), "r+b") as stream:
            try:
                take(stream.fileno())
                found.append(True)
            except InUse:
                found.append(False)
    return found[0], found[1]


def opened_files(directory: ShareDirectory) -> list[str]:
    """Those that this process has open."""
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sorted(Path(os.readlink(name)).name for name in names if os.path.lexists(name) and os.readlink(name).startswith(f"{directory.share.path}/"))


# ------------------------------------------------------------------------------------------------ who is kept away


def test_nobody_opens_what_is_taken_until_it_is_dropped(directory: ShareDirectory) -> None:
    with Guard(directory, False) as guard:
        guard.take(["a", "b"])
        guard.take(["a", "c"])  # the same again is no other user, and what follows is taken, too
        assert [others_may(directory, file) for file in "abcd"] == [WRITES, WRITES, WRITES, NOBODY]
        assert "a" in guard and "d" not in guard and guard.held(["a", "b", "d"]) == ["a", "b"]
        guard.drop(["a", "d"])
        assert [others_may(directory, file) for file in "abc"] == [NOBODY, WRITES, WRITES]
        assert "a" not in guard and guard.held(["a", "b"]) == ["b"]
        guard.take(["a"])
        assert others_may(directory, "a") == WRITES
    assert [others_may(directory, file) for file in "abc"] == [NOBODY] * 3
    assert opened_files(directory) == [] and guard.held(["a", "b", "c"]) == []


def test_what_is_watched_may_be_read_and_not_written(directory: ShareDirectory) -> None:
    with Guard(directory, False) as guard:
        guard.take(["a"])
        guard.watch(["a", "b"])  # what is taken stays so
        assert [others_may(directory, file) for file in "ab"] == [WRITES, READS]
        guard.watch(["b", "c"])
        assert [others_may(directory, file) for file in "abcd"] == [WRITES, READS, READS, NOBODY]
        assert all(file in guard for file in "abc") and guard.held(["a", "b", "c"]) == ["a"]
        guard.drop(["b"])
        assert others_may(directory, "b") == NOBODY
        guard.take(["b"])  # watched no longer
        assert others_may(directory, "b") == WRITES and guard.held(["b"]) == ["b"]
    assert opened_files(directory) == []


@pytest.mark.parametrize("why", ["a second name", "another owner"])
def test_what_cannot_be_opened_for_writing_is_watched_as_well(directory: ShareDirectory, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Files of a parent, which may belong to somebody else."""
    real = Directory.open

    def open_as_another(opened: Directory, name: str, write: bool = False) -> int:
        if write:
            raise ShareNotWritable(name, "it is not yours", "ask its owner")
        return real(opened, name)

    if why == "a second name":
        path_of(directory, "again").hardlink_to(path_of(directory, "a"))
    else:
        monkeypatch.setattr(Directory, "open", open_as_another)
    with Guard(directory, False) as guard:
        with used(path_of(directory, "a"), WRITER), pytest.raises(InUse, match="image a on .* has it open"):
            guard.watch(["a"])
        guard.drop_all()
        guard.watch(["a"])
        assert others_may(directory, "a") == READS and guard.held(["a"]) == []
        with used(path_of(directory, "b"), READER):
            guard.watch(["b"])
    with with_terms(directory, locks_visible=False) as blind, Guard(blind, True) as guard:
        guard.watch(["a"])
        assert others_may(directory, "a") == NOBODY  # nobody would see the lock bytes


def test_an_image_that_is_open_is_not_taken(directory: ShareDirectory) -> None:
    for places in (READER, WRITER):
        with used(path_of(directory, "b"), places), Guard(directory, False) as guard:
            with pytest.raises(InUse, match="image b on .* has it open"):
                guard.take(["a", "b"])
        assert opened_files(directory) == []
    with Guard(directory, False) as guard, used(path_of(directory, "b"), WRITER), pytest.raises(InUse, match="image b on .* has it open"):
        guard.watch(["a", "b"])


def test_a_writer_is_found_where_a_query_answers_wrongly(directory: ShareDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFSv3: only an attempt to take the lock tells."""
    monkeypatch.setattr(in_use, "_is_held", lambda *_args: False)
    with Guard(directory, False) as guard, used(path_of(directory, "a"), WRITER):
        for take in (guard.take, guard.watch):
            with pytest.raises(InUse, match="image a on .* has it open"):
                take(["a"])
            guard.drop_all()


# ---------------------------------------------------------------------------- what is foretold is what the work finds

KERNEL = {"a kernel that reads": False, "a kernel that writes": True}
USERS = {"nobody": (), "a reader": READER, "a writer": WRITER, **dict.fromkeys(KERNEL, ())}


@contextmanager
def user_of(directory: ShareDirectory, who: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with used(path_of(directory, "a"), USERS[who]), monkeypatch.context() as patched:
        if who in KERNEL:
            user, inode = kernel_users.User("/dev/loop7", KERNEL[who]), path_of(directory, "a").stat().st_ino
            patched.setattr(kernel_users.KernelUsers, "of", lambda _users, status: user if status.st_ino == inode else None)
        yield


def refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except InUse as error:
        return str(error)
    return ""


@pytest.mark.parametrize("terms", ["locks", "blind", "blind, but promised"])
@pytest.mark.parametrize("writing", [False, True])
@pytest.mark.parametrize("who", USERS)
def test_a_check_answers_as_the_work_does(directory: ShareDirectory, monkeypatch: pytest.MonkeyPatch, who: str, writing: bool, terms: str) -> None:
    harmless = {"nobody", "a reader", "a kernel that reads"} if writing else {"nobody"}
    promised = terms == "blind, but promised"
    with with_terms(directory, locks_visible=terms == "locks") as opened, user_of(directory, who, monkeypatch):
        foretold = refusal(lambda: guards.check_unused(opened, "a", promised, writing))
        with Guard(opened, promised) as guard:
            found = refusal(lambda: (guard.watch if writing else guard.take)(["a"]))
    assert foretold == found
    if terms == "blind":
        assert "cannot tell whether somebody has it open" in found and "assume_unused: true" in found
    elif promised:
        assert bool(found) is (who in KERNEL and who not in harmless)
    else:
        assert bool(found) is (who not in harmless)
    assert ("/dev/loop7" in found) is (who in KERNEL and who not in harmless and terms != "blind")
    assert opened_files(directory) == []


def test_what_an_earlier_item_would_make_is_used_by_nobody(directory: ShareDirectory) -> None:
    guards.check_unused(directory, "not-yet", False)
    with with_terms(directory, locks_visible=False) as blind, pytest.raises(InUse, match="cannot tell"):
        guards.check_unused(blind, "not-yet", False)


@pytest.mark.parametrize("assume_unused", [False, True])
def test_where_locks_do_not_work_a_promise_is_needed(directory: ShareDirectory, assume_unused: bool) -> None:
    with with_terms(directory, locks_visible=False) as blind, Guard(blind, assume_unused) as guard:
        for take in (guard.take, guard.watch):
            told = refusal(lambda take=take: take(["a"]))
            assert bool(told) is not assume_unused and ("a" in guard) is assume_unused
            assert others_may(directory, "a") == NOBODY
            guard.drop_all()


# ------------------------------------------------------------------------------------------------ the rest of a volume


def three_files(directory: ShareDirectory) -> Plan:
    """A snapshot of volume ``a`` whose chain is ``a.t``, ``a.s``, ``a``."""
    for name in ("s", "t", "u"):
        volume = chains.observe(directory, "a", "raw").volume
        plan = planner.create_snapshot(volume, DesiredSnapshot(name))
        if name != "u":
            Executor(directory, open_engine("offline", directory), lambda _text: None).apply(plan)
    assert {file for step in plan.steps for file in step.touches()} == {"a.t"}
    return plan


def test_a_machine_on_an_old_image_keeps_a_change_from_the_volume(directory: ShareDirectory) -> None:
    plan = three_files(directory)
    for file in ("a", "a.s"):
        with used(path_of(directory, file), READER):  # a machine on a linked clone
            guards.check_unwritten(directory, plan, False)
        with used(path_of(directory, file), WRITER):
            with pytest.raises(InUse, match=f"image {file} on "):
                guards.check_unwritten(directory, plan, False)
            guards.check_unwritten(directory, Plan("present", "a", (), plan.before, plan.before), False)  # nothing is done, so nobody is asked
            guards.check_unwritten(directory, Plan("create_volume", "a", plan.steps, None, plan.after), False)
    with used(path_of(directory, "a.t"), WRITER):  # the work itself takes this one
        guards.check_unwritten(directory, plan, False)
    with with_terms(directory, locks_visible=False) as blind:
        guards.check_unwritten(blind, plan, True)
        with pytest.raises(InUse, match="image a on .* cannot tell"):
            guards.check_unwritten(blind, plan, False)
    path_of(directory, "a").rename(path_of(directory, "lost"))
    guards.check_unwritten(directory, plan, False)


def test_an_interrupted_task_is_ended_beside_readers_of_what_it_does_not_touch(directory: ShareDirectory) -> None:
    plan = three_files(directory)
    resumption = Resumption("create_snapshot", "finished", plan, images=("d",))
    assert "a.t" in resumption.closed and resumption.unwritten == {"a", "a.s", "d"}
    guards.check_resumption(directory, resumption, False)
    for file, places, refused in (("a.t", READER, True), ("a.t", WRITER, True), ("a", READER, False), ("a.s", WRITER, True), ("d", WRITER, True)):
        with used(path_of(directory, file), places):
            told = refusal(lambda: guards.check_resumption(directory, resumption, False))
        assert bool(told) is refused and (f"image {file} on " in told) is refused
    with with_terms(directory, locks_visible=False) as blind:
        guards.check_resumption(blind, resumption, True)
        with pytest.raises(InUse, match="cannot tell"):
            guards.check_resumption(blind, resumption, False)


def test_files_are_asked_in_one_order_and_once(directory: ShareDirectory) -> None:
    assert guards.existing(directory, ["c", "a", "gone", "c", "b"]) == ["a", "b", "c"]
