# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bulk tasks that divide their items among copies of their process: nothing shows it, whatever becomes of a copy or of the task."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import changes, errors
from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import batch_locks, processes, runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Finder
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.operations.step_log import StepLog
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.modules import remotefs_snapshot, remotefs_volume

HERE = os.getpid()
NAMES = [f"v{number:02}" for number in range(40)]
SIZE = 256 << 10
MODULES = {remotefs_volume: remotefs_volume._VOLUME, remotefs_snapshot: remotefs_snapshot._SNAPSHOT}


how_many = processes.how_many


@pytest.fixture(autouse=True)
def three_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "how_many", lambda rows, parallel: min(3, rows, parallel))


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


def items(module, share: Path, every: list[dict], **task: object) -> list[runner.Item]:
    finder = Finder()
    defaults = {name: option.get("default") for name, option in MODULES[module].items()}
    return [module._item(changes.merged(one, {**defaults, "mount_base": "/nowhere", "share": [str(share)], **task}), finder) for one in every]


def run(module, share: Path, every: list[dict], parallel: int = 6, **task: object) -> list:
    return runner.run_all(items(module, share, every, **task), parallel, Options(lock_timeout=10))


def made(share: Path, **task: object) -> list:
    return run(remotefs_volume, share, [{"name": name, "size": str(SIZE)} for name in NAMES], **task)


def points(share: Path, state: str = "present", parallel: int = 6) -> list:
    return run(remotefs_snapshot, share, [{"volume": name, "name": "s"} for name in NAMES], parallel, state=state)


def pattern(name: str, what: str) -> bytes:
    return hashlib.sha256(f"{name} {what}".encode()).digest() * 128


def active(share: Path, name: str) -> str:
    (volume,) = reading.list_volumes(Share(str(share), str(share), "directory"), [name])
    return volume["path"]


def write_new(share: Path, name: str, data: Path) -> None:
    """Into the overlay, behind what the base has."""
    data.write_bytes(pattern(name, "new"))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -s {data} 64k 4k", active(share, name)], check=True, capture_output=True)


def expected(name: str) -> bytes:
    return pattern(name, "old").ljust(64 << 10, b"\0") + pattern(name, "new").ljust(SIZE - (64 << 10), b"\0")


def changed(results: list) -> list[bool]:
    assert not [one for one in results if isinstance(one, StorageError)]
    return [one.changed for one in results]


def settled(share: Path) -> None:
    """Nothing of a task is left."""
    assert os.listdir(share / ".remotefs" / "tmp") == []
    for record in (share / ".remotefs" / "volumes").iterdir():
        assert "intent" not in json.loads(record.read_text()) or not json.loads(record.read_text())["intent"]


def test_a_life_in_copies_is_a_life(share: Path, tmp_path: Path) -> None:
    results = made(share)
    assert [one.name for one in results] == NAMES and changed(results) == [True] * 40 and changed(made(share)) == [False] * 40
    for name in NAMES:
        with (share / name).open("r+b") as image:
            image.write(pattern(name, "old"))
    assert changed(points(share)) == [True] * 40
    for name in NAMES[:5]:
        write_new(share, name, tmp_path / "data")
    assert changed(points(share, "absent")) == [True] * 40 and changed(points(share, "absent")) == [False] * 40
    for name in NAMES[:5]:
        assert (share / name).read_bytes() == expected(name)
    for name in NAMES[5:]:
        assert (share / name).read_bytes() == pattern(name, "old").ljust(SIZE, b"\0")
    settled(share)
    assert changed(run(remotefs_volume, share, [{"name": name} for name in NAMES], state="absent")) == [True] * 40
    assert os.listdir(share) == [".remotefs"] and os.listdir(share / ".remotefs" / "locks") == []


@pytest.mark.parametrize(("rows", "parallel", "copies"), [(31, 8, 1), (32, 8, 2), (32, 1, 1), (63, 8, 3), (1000, 8, 4), (1000, 3, 3), (0, 8, 0)])
def test_few_items_are_not_worth_a_copy(rows: int, parallel: int, copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(4))
    assert how_many(rows, parallel) == copies


def told(name: str) -> Outcome:
    return Outcome(name, True, [{"step": "x", "pid": os.getpid()}], [], None, None)


def item(name: str, run: Callable[[Options], Outcome]) -> runner.Item:
    return runner.Item(name, frozenset([name]), run)


def who(results: list) -> list[int]:
    return [one.actions[0]["pid"] for one in results]


def test_copies_do_the_work() -> None:
    done = who(runner.run_all([item(name, lambda _options, name=name: told(name)) for name in NAMES], 6, Options()))
    assert len(set(done)) == 3 and HERE not in done
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("parallel", [1, 2])
def test_no_more_copies_than_items_may_work(parallel: int) -> None:
    done = who(runner.run_all([item(name, lambda _options, name=name: told(name)) for name in NAMES], parallel, Options()))
    assert len(set(done)) == parallel and (HERE in done) == (parallel == 1)


def test_what_a_killed_copy_has_not_reported_is_done_here() -> None:
    def run(name: str) -> Outcome:
        if name == NAMES[10] and os.getpid() != HERE:
            os.kill(os.getpid(), signal.SIGKILL)
        return told(name)

    results = runner.run_all([item(name, lambda _options, name=name: run(name)) for name in NAMES], 6, Options())
    assert [one.name for one in results] == NAMES and who(results)[10] == HERE
    assert len(set(who(results)) - {HERE}) in (2, 3), "the killed copy may have reported some rows before"


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_is_killed_in_the_middle_of_real_work(seed: int, share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somewhere between two changes of the share: this process ends what it finds half done."""
    made(share)
    for name in NAMES:
        (share / name).write_bytes(pattern(name, "old").ljust(SIZE, b"\0"))
    changed(points(share))
    write_new(share, NAMES[0], tmp_path / "data")
    left, fsync = [random.Random(seed).randrange(20)], os.fsync

    def falling(fd: int) -> None:
        fsync(fd)
        left[0] -= 1
        if left[0] < 0 and os.getpid() != HERE:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, "fsync", falling)
    assert not [one for one in points(share, "absent") if isinstance(one, StorageError)]
    settled(share)
    assert (share / NAMES[0]).read_bytes() == expected(NAMES[0])
    for name in NAMES[1:]:
        assert (share / name).read_bytes() == pattern(name, "old").ljust(SIZE, b"\0")
        assert active(share, name) == str(share / name)


@pytest.mark.parametrize("after", [0.3, 0.45, 0.6, 0.9])
def test_copies_end_with_a_killed_task_and_the_next_one_finishes(after: float, share: Path, collections_path: str) -> None:
    given = {"share": [str(share)], "volumes": [{"name": f"w{number:03}"} for number in range(200)], "size": str(SIZE), "parallel": 3}
    argv = [sys.executable, "-m", "ansible_collections.remotefs.storage.plugins.modules.remotefs_volume"]
    environment = {**os.environ, "PYTHONPATH": collections_path}
    stdin = json.dumps({"ANSIBLE_MODULE_ARGS": given}).encode()
    task = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True)
    assert task.stdin is not None
    task.stdin.write(stdin)
    task.stdin.close()
    time.sleep(after)
    task.kill()  # this process alone, and not its group
    task.wait()
    deadline = time.monotonic() + 5
    while (alive := _session(task.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive
    again = subprocess.run(argv, input=stdin, capture_output=True, env=environment, check=False)
    assert again.returncode == 0, again.stdout
    assert len(json.loads(again.stdout)["volumes"]) == 200 and len([name for name in os.listdir(share) if name[0] == "w"]) == 200
    settled(share)


def _session(session: int) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(pid)
    return found


def test_warnings_and_steps_come_from_copies(tmp_path: Path) -> None:
    warnings: list[str] = []
    log = StepLog(str(tmp_path / "log"), True, warnings.append)

    def run(options: Options, name: str) -> Outcome:
        options.task.warn(f"{name} is old")
        assert options.task.log is not None
        options.task.log(name, {"step": "x"}, 0.1)
        return told(name)

    every = [item(name, lambda options, name=name: run(options, name)) for name in NAMES]
    runner.run_all(every, 6, Options(task=Task(warn=warnings.append, log=log)))
    assert sorted(warnings) == [f"{name} is old" for name in NAMES]
    assert sorted(line["volume"] for line in log.lines) == NAMES
    assert sorted(json.loads(line)["volume"] for line in (tmp_path / "log").read_text().splitlines()) == NAMES


def test_room_is_counted_once_for_all_copies(share: Path) -> None:
    """The share is promised as far as it goes, and what is made is known to what the task does later."""
    file_system = os.statvfs(share)
    size = file_system.f_blocks * file_system.f_frsize
    room = {"max_over_subscription_ratio": 10.0, "reserved_percentage": 0, "size": str(size // 512 * 512)}
    results = run(remotefs_volume, share, [{"name": name} for name in NAMES], **room)
    assert [getattr(one, "error_code", "") for one in results] == [""] * 10 + ["no_eligible_share"] * 30
    for name in NAMES[:5]:
        run(remotefs_volume, share, [{"name": name}], state="absent")
    again = run(remotefs_volume, share, [{"name": name} for name in NAMES], **room)
    assert sum(isinstance(one, StorageError) for one in again) == 30 and changed(again[:10]) == [True] * 5 + [False] * 5


def test_the_task_knows_what_its_copies_have_taken(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that was promised and used stays taken, whoever used it, and room of what failed is free again."""
    left = []
    for number, copies in enumerate((1, 3)):
        monkeypatch.setattr(processes, "how_many", lambda _rows, _parallel, copies=copies: copies)
        place = share / str(number)
        place.mkdir()
        (place / NAMES[1]).mkdir()  # so that this volume cannot be made
        task = Task()
        every = [{"name": name, "size": str(SIZE), "preallocation": "full"} for name in NAMES]
        results = runner.run_all(items(remotefs_volume, place, every), 6, Options(task=task))
        assert [isinstance(one, StorageError) for one in results] == [name == NAMES[1] for name in NAMES]
        left.append((task.capacity._taken, task.capacity._small, sorted(name for _path, name in task.capacity._standing)))
    assert left[0] == left[1] and left[0][2] == [name for name in NAMES if name != NAMES[1]] and list(left[0][0].values()) == [39 * SIZE]


def test_failures_in_copies_say_the_same(share: Path) -> None:
    made(share)
    for name in NAMES[::2]:
        (share / name).unlink()
        (share / name).symlink_to("/etc/passwd")
    in_copies, alone = points(share), points(share, parallel=1)
    failed = [(one.error_code, str(one)) for one in in_copies if isinstance(one, StorageError)]
    assert failed == [(one.error_code, str(one)) for one in alone if isinstance(one, StorageError)] and len(failed) == 20
    assert all(isinstance(one, StorageError) == (number % 2 == 0) for number, one in enumerate(in_copies))


def test_a_lock_is_free_when_its_copy_and_this_process_let_go(share: Path, tmp_path: Path) -> None:
    """Other copies have the files of all locks open, too: they let go of those that are not theirs when they begin."""
    made(share)
    held = Share(str(share), str(share), "directory")
    with batch_locks.BatchLocks(held) as locks:
        locks.take(NAMES[:2])
        reading_end, writing = os.pipe()
        copy = os.fork()
        if copy == 0:
            try:
                locks.keep_only(NAMES[:1])
                os.write(writing, b"x")
                time.sleep(30)
            finally:
                os._exit(0)
        os.read(reading_end, 1)
        for name in NAMES[:2]:
            locks.release(name)
        taken = [run(remotefs_snapshot, share, [{"volume": name, "name": "s"}], lock_timeout=0)[0] for name in NAMES[:2]]
        os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)
        os.close(reading_end)
        os.close(writing)
    assert [getattr(one, "error_code", "") for one in taken] == ["lock_timeout", ""]


def _all_kinds(kind: type) -> list[type]:
    return [kind, *(below for one in kind.__subclasses__() for below in _all_kinds(one))]


@pytest.mark.parametrize("kind", _all_kinds(errors.StorageError), ids=lambda kind: kind.__name__)
def test_every_error_comes_whole(kind: type) -> None:
    def fail(_options: Options) -> Outcome:
        raise kind("volume x", "it is old", "make it new", {"rc": 3})

    found = runner.run_all([item(name, fail) for name in NAMES[:6]], 6, Options())
    assert [(type(one), str(one), one.subject, one.details) for one in found] == [(kind, "volume x: it is old; make it new.", "volume x", {"rc": 3})] * 6
