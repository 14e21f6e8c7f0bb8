# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes that show a point: they are started, found and ended. A process is ended only if its command line names the point's folder."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Sequence

from .. import command, errors
from ..consumers import processes
from ..consumers.processes import Process
from . import folders, guard, targets
from .command_line import command_line
from .record import Record, Target

PROGRAM = "qemu-storage-daemon"
_PACKAGE = "qemu-system-common on Debian"
_ISOLATED = ("-I", "-S", "-B", "-")  # words for Python: nothing of the user's, and the program from standard input
_START = 60.0  # seconds for the daemon to open the files, which may be on a slow share
_END = 40.0  # seconds for a guard to end the daemon and itself
_PAUSE = 0.02  # seconds
_MEMORY, _MEMORY_PER_LAYER = 10 << 30, 128 << 20  # bytes of address space, as for qemu-img: threads reserve stacks and heaps
_NO_FUSE = ("'fuse'", "fuse export")  # in the words of a daemon that was built without
_NO_HELPER = "exec fusermount"


class Holder(NamedTuple):
    """What shows a point: its guard and its daemon. A part of it that was killed is None."""

    guard: Process | None
    daemon: Process | None

    @property
    def is_whole(self) -> bool:
        """Whether both run."""
        return None not in self

    @property
    def is_gone(self) -> bool:
        """Whether none runs."""
        return self == (None, None)


def find(directory: folders.AccessDirectory, name: str, record: Record | None) -> Holder:
    """What shows the point of this folder. :param record: has the processes as they were known last."""
    folder = directory.folder(name)
    if not os.path.isdir(folder):
        return Holder(None, None)  # its guard ends at its next look, if it has not
    known = (record.guard, record.daemon) if record is not None else (0, 0)
    return Holder(
        processes.find(partial(_is_guard, os.fsencode(folder)), folder, known[0]),
        processes.find(partial(_is_daemon, os.fsencode(directory.pid_file(name))), folder, known[1]),
    )


def _is_guard(folder: bytes, words: Sequence[bytes]) -> bool:
    return list(words[1:6]) == [*map(os.fsencode, _ISOLATED), folder]


def _is_daemon(pid_file: bytes, words: Sequence[bytes]) -> bool:
    return os.path.basename(words[0]) == PROGRAM.encode() and list(words[1:3]) == [b"--pidfile", pid_file]


def program() -> str:
    """The path of the daemon. :raises ToolMissing: it is not installed."""
    return command.find(PROGRAM, _PACKAGE)


def start(directory: folders.AccessDirectory, record: Record, formats: Sequence[str], descriptors: Sequence[int], locks: bool) -> Record:
    """Show a point that is recorded, and return when it can be read. What shows it outlives this task. Returns its record with the processes.

    :param formats: of the chain, top first. :param descriptors: of its files, likewise. :param locks: QEMU's own locks work on them.
    :raises ToolMissing, ToolFailed, InUse: it cannot be shown. Nothing is left then.
    """
    target, folder = record.target, directory.folder(record.target.name)
    try:
        if target.kind == guard.FUSE:
            targets.make_file(target)
        given = {
            "argv": command_line(program(), directory.pid_file(target.name), target, record.point.label, formats, descriptors, locks),
            "descriptors": list(descriptors),
            "memory": _MEMORY + len(formats) * _MEMORY_PER_LAYER,
            "folder": folder,
            "kind": target.kind,
            "target": target.path,
        }
        told = f"{_source()}\nmain({json.dumps(given)!r})\n".encode()
        process = command.Detached([sys.executable, *_ISOLATED, folder], descriptors, told)
        try:
            pid = _awaited(directory, record, process)
        finally:
            process.let_go()
        known = replace(record, guard=process.pid, daemon=pid)
        directory.replace(known)
    except BaseException:
        end(directory, target, record)
        raise
    return known


def _source() -> str:
    """The program of the guard, wherever this collection was imported from."""
    loader = guard.__loader__
    source = loader.get_source(guard.__name__) if loader is not None and hasattr(loader, "get_source") else None
    if source is None:
        raise errors.ToolFailed("the guard of a point", "its program cannot be read", "install the collection with its sources")
    return str(source)


def _awaited(directory: folders.AccessDirectory, record: Record, process: command.Detached) -> int:
    """Wait until the point can be read. Returns the process of the daemon. :raises StorageError: it ended, or does not come to that."""
    until = time.monotonic() + _START
    while True:
        failed = process.ended()
        if failed is not None:
            raise _not_shown(record, failed)
        pid = directory.known_pid(record.target.name)
        if pid:
            return pid
        if time.monotonic() > until:
            raise errors.ToolFailed(f"point {record.point.label}", f"{PROGRAM} does not show it within {_START:g} s", "look at the share's server")
        time.sleep(_PAUSE)


def _not_shown(record: Record, result: command.Result) -> errors.StorageError:
    subject, said = f"point {record.point.label}", result.reason
    if "Failed to get" in result.err and "lock" in result.err:
        return errors.InUse(subject, f"a file of it is open elsewhere ({said})", "end what has it open, and run the task again", result.details)
    if record.target.kind == guard.FUSE and _NO_HELPER in result.err:
        return errors.ToolMissing("program fusermount3", f"it cannot mount ({said})", "install it (package fuse3), or use nbd, which needs no FUSE")
    if record.target.kind == guard.FUSE and any(words in result.err for words in _NO_FUSE):
        return errors.ToolMissing(
            f"program {PROGRAM}", f"it has no FUSE exports ({said})", "use nbd, which needs no FUSE, or install one that was built with FUSE"
        )
    return errors.ToolFailed(subject, f"{PROGRAM} said: {said}", "mend what it names, and run the task again", result.details)


def end(directory: folders.AccessDirectory, target: Target, record: Record | None) -> bool:
    """End what shows a point there, if anything does, and take away what is left of it. Returns whether there was anything.

    :raises InUse: the kernel cannot end it. :raises ToolFailed: its mount or its folder cannot be removed.
    """
    holder = find(directory, target.name, record)
    was_there = not holder.is_gone or os.path.lexists(directory.folder(target.name))
    if holder.guard is not None:
        _signal(holder.guard, signal.SIGTERM)
        if not processes.has_ended(holder.guard, _END):
            _signal(holder.guard, signal.SIGKILL)
            processes.has_ended(holder.guard, _END)
        holder = find(directory, target.name, record)
    for one in (signal.SIGTERM, signal.SIGKILL):
        if holder.daemon is not None and processes.runs(holder.daemon):
            _signal(holder.daemon, one)
            processes.has_ended(holder.daemon, _END / 2)
    if holder.daemon is not None and processes.runs(holder.daemon):
        problem = f"its process {holder.daemon.pid} does not end, because the kernel waits for a server"
        raise errors.InUse(f"{target.option} {target.path}", problem, "bring the share's server back, or restart this host")
    try:
        found = guard.remove_traces(target.kind, target.path)
    except OSError as error:
        raise errors.ToolFailed(
            f"{target.option} {target.path}", f"what was left there cannot be removed ({error.strerror})", "unmount and remove it"
        ) from error
    directory.forget(target.name)
    return found or was_there


def _signal(process: Process, which: int) -> None:
    if processes.runs(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, which)
            os.kill(process.pid, signal.SIGCONT)  # one that somebody stopped would not hear it
