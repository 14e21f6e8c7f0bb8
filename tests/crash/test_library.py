# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The library by itself: what it counts, whom it kills, what it lets fail, and that its record is complete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import errno, json, os, shutil, subprocess, sys, time
from pathlib import Path
from crash import interposer, powerloss
from crash.interposer import PYTHON, TOOL, Fault
interposer.become_reaper()
share, base = Path("share").resolve(), Path("base").resolve()
share.mkdir()
def task():
{task}
ended = interposer.run(base, share, {fault}, task)
events = interposer.read_log(base / "log")
{after}
print(json.dumps([ended.how, ended.counted, ended.fired, ended.value, ended.error]))
"""


@pytest.fixture
def under(library: Path, checkout: Path, tmp_path: Path):
    """Run ``task`` (lines of Python) under a fault; returns the fields of Ended."""

    def run(task: str, fault: str, after: str = "") -> list:
        body = "\n".join("    " + line for line in task.strip().splitlines())
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(checkout / "tests")]),
        }
        program = _PROGRAM.format(task=body, fault=fault, after=after)
        ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return run


_FOUR_WRITES = """
fd = os.open(share / "file", os.O_RDWR | os.O_CREAT)
for number in range(4):
    os.pwrite(fd, b"x", number)
"""


def test_killed_before_the_nth_call(under, tmp_path: Path) -> None:
    how, counted, fired, *_rest = under(_FOUR_WRITES, "Fault(4)")
    assert (how, counted, fired) == ("killed", 4, "Python's write of file")
    assert (tmp_path / "share" / "file").read_bytes() == b"xx"


def test_beyond_the_last_call(under, tmp_path: Path) -> None:
    assert under(_FOUR_WRITES + "return 7", "Fault(6)") == ["done", 5, "", 7, None]
    assert (tmp_path / "share" / "file").read_bytes() == b"xxxx"


def test_other_places_do_not_count(under) -> None:
    task = """
os.mkdir("share-not")
Path("share-not/x").write_bytes(b"x")
os.link("share-not/x", "outside")
os.rename("outside", "elsewhere")
Path("linked").symlink_to(share)
"""
    assert under(task, "Fault(1)")[:2] == ["done", 0]


def test_descriptors_behind_links(under) -> None:
    """As programs are given files: by a link in another directory to /proc/self/fd/N."""
    task = """
fd = os.open(share / "file", os.O_RDWR | os.O_CREAT)
os.symlink("/proc/self/fd/%d" % fd, os.path.abspath("link"))
other = os.open(os.path.abspath("link"), os.O_RDWR)
os.pwrite(other, b"x", 0)
os.unlink(share / "file")
os.pwrite(other, b"x", 1)
"""
    assert under(task, "Fault()")[:2] == ["done", 4]


def test_the_whole_group_dies(under, tmp_path: Path) -> None:
    """A program in a session of its own is killed as well; run() returns only when it is gone."""
    task = """
program = subprocess.Popen(["sh", "-c", "sleep 30; echo x > share/late"], start_new_session=True)
time.sleep(0.2)
os.mkdir(share / "never")
"""
    assert under(task, "Fault(1)")[0] == "killed"
    assert not list((tmp_path / "share").iterdir())


def test_only_the_program_dies(under) -> None:
    task = """
return subprocess.run(["dd", "if=/dev/zero", "bs=1", "count=3", f"of={share / 'file'}"], stderr=subprocess.DEVNULL).returncode
"""
    how, _counted, fired, value, _error = under(task, "Fault(3, TOOL, TOOL)")
    assert (how, value) == ("done", -9) and fired == "qemu-img's write of file"


def test_only_python_dies(under, tmp_path: Path) -> None:
    """The program finishes: here nobody asked it to die with its parent."""
    task = """
subprocess.run(["sh", "-c", f"echo a > {share / 'a'}; sleep 0.2; echo b > {share / 'b'}"])
os.mkdir(share / "never")
"""
    assert under(task, "Fault(1, TOOL, PYTHON)")[0] == "killed"
    assert {path.name for path in (tmp_path / "share").iterdir()} == {"a", "b"}


@pytest.mark.parametrize(("lasting", "written"), [(False, 3), (True, 1)])
def test_calls_that_fail(under, tmp_path: Path, lasting: bool, written: int) -> None:
    task = """
fd = os.open(share / "file", os.O_RDWR | os.O_CREAT)
failed = []
for number in range(4):
    try:
        os.pwrite(fd, b"x", os.fstat(fd).st_size)
    except OSError as error:
        failed.append(errno.errorcode[error.errno])
return failed
"""
    how, _counted, fired, value, _error = under(task, f"Fault(3, PYTHON, 0, errno.ENOSPC, {lasting})")
    assert (how, fired, value) == ("done", "Python's write of file", ["ENOSPC"] * (4 - written))
    assert (tmp_path / "share" / "file").read_bytes() == b"x" * written


_EVERYTHING = """
fd = os.open(share / "a", os.O_RDWR | os.O_CREAT | os.O_EXCL)
os.write(fd, b"one")
os.write(fd, b"two")
os.pwritev(fd, [b"3", b"", b"four"], 100)
os.writev(fd, [b"5", b"six"])
os.ftruncate(fd, 90)
os.truncate(share / "a", 80)
os.posix_fallocate(fd, 0, 9000)
import ctypes
ctypes.CDLL(None).fallocate64(fd, 3, ctypes.c_int64(1), ctypes.c_int64(3))
os.fsync(fd)
os.fchmod(fd, 0o640)
os.mkdir(share / "dir")
os.link(share / "a", share / "dir" / "b")
os.rename(share / "dir" / "b", share / "c")
Path(share / "d").write_text("text")
os.replace(share / "d", share / "c")
shutil.copyfile(share / "a", share / "e")
os.copy_file_range(os.open(share / "c", os.O_RDONLY), fd, 3, 1, 50)
os.unlink(share / "e")
os.mkdir(share / "gone")
os.rmdir(share / "gone")
here = os.open(share, os.O_RDONLY)
os.mkdir("by descriptor", dir_fd=here)
os.rename("a", "by descriptor/a", src_dir_fd=here, dst_dir_fd=here)
os.fsync(here)
shell = "cd share && echo appended >> c && cp c f && mv f g && rm c && truncate -s 5 g"
subprocess.run(["sh", "-c", shell + " && dd if=/dev/zero of=g bs=1 seek=9 count=2 conv=notrunc 2>/dev/null"], check=True)
subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "share/q", "1M"], check=True)
commands = ["-c", "write -P 3 1000 99999", "-c", "write -z 0 64k", "-c", "discard 64k 64k"]
subprocess.run(["qemu-io", "-f", "qcow2", *commands, str(share / "q")], check=True, stdout=subprocess.DEVNULL)
subprocess.run(["qemu-img", "convert", "-O", "raw", str(share / "q"), str(share / "r")], check=True)
"""


@pytest.mark.skipif(not shutil.which("qemu-io"), reason="missing program: qemu-io")
def test_the_record_is_complete(under) -> None:
    """What Python, a shell and QEMU do to a share can be played from the record, byte for byte and name for name."""
    after = """
kept, shown = powerloss.Disk(powerloss.Image({}, frozenset(), {})).feed(events).kept(), powerloss.scan(share)
assert (kept.names, kept.directories) == (shown.names, shown.directories)
different = [name for name, data in shown.files().items() if kept.files()[name] != data]
assert not different, different
missed = {kind for at, kind in enumerate(interposer.KINDS) if interposer.CHANGES >> at & 1} - {event.kind for event in events}
assert not missed, missed
assert {event.role for event in events} == {PYTHON, TOOL}, "nobody but Python"
"""
    how, *_rest, error = under(_EVERYTHING, "Fault(record=True)", after)
    assert (how, error) == ("done", None)
