# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lock lasts as long as the work: a task is killed while its program runs on, and nobody else may begin before that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import LockTimeout
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock

# A task that holds the lock and has started a program with its descriptor, as qemu-img is started.
TASK = """
import sys
from ansible_collections.remotefs.storage.plugins.module_utils import command
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock

share, *program = sys.argv[1:]
with ShareDirectory(Share(share, share, "directory")) as directory, VolumeLock(directory, "vol") as lock:
    command.run(program, descriptors=lock.descriptors)
"""
# The program says its process number and then works on for longer than any test waits.
WORKING = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w'), flush=True); time.sleep(300)"
# The same for a program that has left the mercy of its parent's death behind, as one that changes its user does.
OBSTINATE = "import ctypes; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); " + WORKING


def a_lock(path: Path, timeout: float) -> VolumeLock:
    return VolumeLock(ShareDirectory(Share(str(path), str(path), "directory")), "vol", timeout)


def is_running(pid: int) -> bool:
    """Whether the program can still do something: a dying one has closed its files before it is seen to be dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X") and bool(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


class Task:
    """The task and its program."""

    def __init__(self, share: Path, scratch: Path, program: str) -> None:
        said = scratch / "pid"
        self.process = subprocess.Popen([sys.executable, "-c", TASK, str(share), sys.executable, "-c", program, str(said)])
        deadline = time.monotonic() + 30
        while not (said.exists() and said.read_text().endswith("\n")):
            assert time.monotonic() < deadline and self.process.poll() is None, "the task did not start its program"
            time.sleep(0.01)
        self.program = int(said.read_text())

    def kill_python_alone(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        for pid in (self.program, self.process.pid):
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "share").mkdir()
    (tmp_path / "scratch").mkdir()
    return tmp_path / "share", tmp_path / "scratch"


@pytest.fixture
def working(places: tuple[Path, Path]) -> Iterator[Task]:
    task = Task(*places, WORKING)
    yield task
    task.end()


@pytest.fixture
def obstinate(places: tuple[Path, Path]) -> Iterator[Task]:
    task = Task(*places, OBSTINATE)
    yield task
    task.end()


def test_the_program_dies_with_its_task(places: tuple[Path, Path], working: Task) -> None:
    with pytest.raises(LockTimeout) as told:
        a_lock(places[0], 0.2).__enter__()
    assert f"process {working.process.pid} on " in str(told.value)
    working.kill_python_alone()
    with a_lock(places[0], 10):
        assert not is_running(working.program), "the lock was free while the program worked on"


def test_a_program_that_outlives_its_task_keeps_the_lock(places: tuple[Path, Path], obstinate: Task) -> None:
    obstinate.kill_python_alone()
    assert is_running(obstinate.program)
    with pytest.raises(LockTimeout):
        a_lock(places[0], 1).__enter__()
    os.kill(obstinate.program, signal.SIGKILL)
    with a_lock(places[0], 10):
        assert not is_running(obstinate.program)
