# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Python's side of preload.c: builds the library, says what it is to do, runs a task under it, reads what it recorded.

A process that was started with the library in ``LD_PRELOAD`` forks a child for each run (:func:`run`). The child and every
program that it starts count their calls on the share together. Layouts here and in preload.c must agree.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Iterator

SOURCE = Path(__file__).with_name("preload.c")

KINDS = ("write", "truncate", "fallocate", "copy", "fsync", "create", "link", "rename", "unlink", "mkdir", "attribute", "open to write")
KINDS += ("open to read", "read", "status")
CHANGES = (1 << KINDS.index("open to write")) - 1  # what comes before it
WRITING = CHANGES | 1 << KINDS.index("open to write")
READING = (1 << len(KINDS)) - 1 & ~WRITING
PYTHON, TOOL = 1, 2
_SERIAL, _RECORD, _STICKY = 1, 2, 4
_MAGIC = 0x43524153
_PATH = 1024
_MOST_PROCESSES = 64
_LONGEST_RUN = 60  # seconds: a run that hangs is a defect


class Control(ctypes.Structure):
    """``struct control`` of preload.c."""

    _fields_ = [
        ("magic", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("counted_roles", ctypes.c_uint32),
        ("victims", ctypes.c_uint32),
        ("kinds", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("limit", ctypes.c_uint64),
        ("counter", ctypes.c_uint64),
        ("lock", ctypes.c_uint32),
        ("dead", ctypes.c_uint32),
        ("fired", ctypes.c_uint32),
        ("failing", ctypes.c_uint32),
        ("fired_kind", ctypes.c_uint32),
        ("fired_role", ctypes.c_uint32),
        ("processes", ctypes.c_uint32),
        ("pids", ctypes.c_int32 * _MOST_PROCESSES),
        ("roles", ctypes.c_uint32 * _MOST_PROCESSES),
        ("fired_name", ctypes.c_char * 256),
        ("share", ctypes.c_char * _PATH),
        ("keep", ctypes.c_char * _PATH),
        ("log", ctypes.c_char * _PATH),
    ]


@dataclass(frozen=True)
class Fault:
    """What happens at the ``at``-th call (from 1; 0: never) among those counted.

    :param counted: whose calls are counted (:data:`PYTHON`, :data:`TOOL` or both).
    :param victims: whom SIGKILL hits; 0 where ``error`` (an errno) is what the call is to end with.
    :param leave: return as soon as Python is gone, whatever it started: its locks and its death have to protect what comes next.
    :param lasting: every later call of these kinds fails as well, in all processes, as it is with a share that is full or gone.
    """

    at: int = 0
    counted: int = PYTHON | TOOL
    victims: int = PYTHON | TOOL
    error: int = 0
    lasting: bool = False
    kinds: int = CHANGES
    record: bool = False
    leave: bool = False


@dataclass(frozen=True)
class Event:
    """One recorded call that changed something, or an fsync. Names are relative to the share; inodes are the real ones."""

    kind: str
    role: int
    inode: int
    result: int
    name: str = ""
    other: str = ""  # the new name of a rename or link
    replaced: int = 0  # the inode that a rename takes the name from
    directory: bool = False
    mode: int = 0  # of fallocate; O_TRUNC of a create
    offset: int = 0
    length: int = 0
    data: bytes = b""
    synced: bool = False  # the descriptor is O_DSYNC

    def __str__(self) -> str:
        who = "Python" if self.role == PYTHON else "qemu-img"
        return f"{who}: {self.kind} {self.name or '.'}{' to ' + self.other if self.other else ''}"


@dataclass(frozen=True)
class Ended:
    """How a run ended: ``done`` (``value`` is what the task returned), ``failed`` (``error`` describes the exception), ``killed``."""

    how: str
    counted: int
    fired: str  # the call at which the fault happened; empty where it never came to that
    value: object = None
    error: dict | None = None


def build(directory: Path) -> Path:
    """Compile the library into ``directory``."""
    library = directory / "preload.so"
    subprocess.run(
        ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True
    )
    return library


def is_loaded() -> bool:
    return hasattr(ctypes.CDLL(None), "crash_attach")


def run(base: Path, share: Path, fault: Fault, task: Callable[[], object]) -> Ended:
    """Run ``task`` in a forked child under the library with ``fault``; returns when no process of it is left (but see ``leave``).

    :param base: a directory for this run alone, not below the share: control file, log, kept inodes, temporary files.
    :param task: what it returns must survive JSON.
    """
    base.mkdir(exist_ok=True)
    control = make_control(base, share, fault)
    child = os.fork()
    if child == 0:
        _be_the_child(base, task)
    _wait_for_all(child, control, fault.leave)
    return _how_it_ended(base, control, child)


def make_control(base: Path, share: Path, fault: Fault) -> Control:
    """What tells the library in ``base`` what to do. Programs that start with it in ``LD_PRELOAD`` are counted as tools."""
    library = base / "preload.so"
    if not library.exists():
        library.symlink_to(os.environ["LD_PRELOAD"])
    for stale in (base / "result", base / "log"):
        stale.unlink(missing_ok=True)
    (base / "keep").mkdir(exist_ok=True)
    both = PYTHON | TOOL
    # One call after the other wherever that cannot leave a survivor waiting for the dead.
    serial = bool(fault.record or (not fault.error and fault.victims == both))
    with open(base / "control", "w+b") as stream:
        stream.truncate(ctypes.sizeof(Control))
        control = Control.from_buffer(mmap.mmap(stream.fileno(), ctypes.sizeof(Control)))
    control.flags = serial * _SERIAL | fault.record * _RECORD | fault.lasting * _STICKY
    control.counted_roles, control.victims, control.kinds = fault.counted, fault.victims, fault.kinds
    control.error, control.limit = fault.error, fault.at
    control.share, control.keep, control.log = (os.fsencode(path) for path in (share, base / "keep", base / "log"))
    control.magic = _MAGIC
    return control


def _be_the_child(base: Path, task: Callable[[], object]) -> None:
    status = 1
    try:
        os.setsid()
        os.environ["LD_PRELOAD"] = str(base / "preload.so")
        (base / "tmp").mkdir(exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(base / "tmp")
        attach(base)
        try:
            told: dict = {"value": task()}
        except Exception as error:
            told = {"error": describe_error(error)}
        (base / "result").write_text(json.dumps(told))
        status = 0
    finally:
        os._exit(status)


def describe_error(error: BaseException) -> dict:
    return {"type": type(error).__name__, "error_code": getattr(error, "error_code", None), "msg": str(error)}


def attach(base: Path) -> None:
    """Let the calls of this process be counted as Python's, from now on."""
    ctypes.CDLL(None).crash_attach(os.fsencode(base / "control"))


def become_reaper() -> None:
    """Programs whose parent was killed become children of this process, so that it can wait for their end."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def wait_for_stragglers() -> None:
    """Wait for what a run that was left has left."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass


def _wait_for_all(child: int, control: Control, leave: bool) -> None:
    """Wait until the child and all that it left are gone: a program that is still dying could still hold a lock."""
    deadline = time.monotonic() + _LONGEST_RUN
    while True:
        try:
            pid, _status = os.waitpid(child if leave else -1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() > deadline:
                _kill_all(child, control)
                raise AssertionError(f"the run did not end within {_LONGEST_RUN} s")
            time.sleep(0.0005)


def _kill_all(child: int, control: Control) -> None:
    for pid in {child, *control.pids[: control.processes]} - {0}:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _how_it_ended(base: Path, control: Control, child: int) -> Ended:
    fired = ""
    if control.fired:
        who = "Python" if control.fired_role == PYTHON else "qemu-img"
        fired = f"{who}'s {KINDS[control.fired_kind]} of {os.fsdecode(control.fired_name) or 'the share'}"
    ended = Ended("killed", control.counter, fired)
    try:
        told = json.loads((base / "result").read_text())
    except FileNotFoundError:
        assert fired or control.error, "the child died without being killed"
        return ended
    if "error" in told:
        return replace(ended, how="failed", error=told["error"])
    return replace(ended, how="done", value=told["value"])


_ENTRY = struct.Struct("=IIIIQQqqqIIII")


def read_log(path: Path) -> list[Event]:
    """What a recording run did on the share, in order; calls that failed are left out."""
    return [event for event in read_calls(path) if event.result >= 0 and CHANGES & 1 << KINDS.index(event.kind)]


def read_calls(path: Path) -> Iterator[Event]:
    """All recorded calls in order, failed ones too: the n-th that is counted is the one that a fault at n meets."""
    data = path.read_bytes() if path.exists() else b""
    at = 0
    while at < len(data):
        kind, role, directory, mode, inode, replaced, offset, length, result, name, other, size, synced = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        fields = []
        for part in (name, other, size):
            fields.append(data[at : at + part])
            at += part
        names = [os.fsdecode(field).removesuffix(" (deleted)") for field in fields[:2]]
        yield Event(
            KINDS[kind], role, inode, result, names[0], names[1], replaced, bool(directory), mode, offset, length, fields[2], bool(synced)
        )


def can_fail(error: str, kind: str) -> bool:
    """As in preload.c: a full file system still lets names go, and one that is full or read-only can be read."""
    if READING & 1 << KINDS.index(kind):
        return error not in ("ENOSPC", "EROFS")
    return error != "ENOSPC" or kind not in ("unlink", "attribute", "open to write")


ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "ESTALE": errno.ESTALE, "EROFS": errno.EROFS}
