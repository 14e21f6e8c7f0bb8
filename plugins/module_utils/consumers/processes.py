# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes of this host that are known by their command line, which names a folder. A number alone may have become somebody else's."""

from __future__ import annotations

import os
import time
from typing import Callable, NamedTuple, Sequence

_PAUSE = 0.02  # seconds
IsMeant = Callable[[Sequence[bytes]], bool]  # whether the words of a command line are those of the process


class Process(NamedTuple):
    """A process that runs: its number, and when it began, by the kernel's clock."""

    pid: int
    began: str


def find(is_meant: IsMeant, folder: str, pid: int = 0) -> Process | None:
    """The process of this user with such a command line that finds this folder at this path.

    :param pid: as it was known last, which is looked at first.
    """
    found = _of(pid, is_meant, folder) if pid else None
    if found is not None:
        return found
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found = _of(int(entry), is_meant, folder)
            if found is not None:
                return found
    return None


def _of(pid: int, is_meant: IsMeant, folder: str) -> Process | None:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            words = stream.read().split(b"\0")
        if not is_meant(words):
            return None
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return None  # anybody can have such words on a command line
        if not _sees(pid, folder):
            return None
        began = _began(pid)
    except OSError:
        return None  # it has ended meanwhile
    return Process(pid, began) if began else None


def _sees(pid: int, folder: str) -> bool:
    """Whether this folder is the one that a process finds at that path. In a container it can be another one."""
    try:
        if os.path.samestat(os.stat(f"/proc/{pid}/ns/mnt"), os.stat("/proc/self/ns/mnt")):
            return True
        return os.path.samestat(os.stat(f"/proc/{pid}/root{folder}"), os.stat(folder))
    except PermissionError:
        return True  # the kernel does not tell this user


def _began(pid: int) -> str:
    """When a process began (proc_pid_stat(5)); empty if it has ended and nobody has asked for its status yet."""
    with open(f"/proc/{pid}/stat", "rb") as stream:
        fields = stream.read().rpartition(b")")[2].split()
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def runs(process: Process) -> bool:
    """Whether it has not ended."""
    try:
        return _began(process.pid) == process.began
    except OSError:
        return False


def has_ended(process: Process, seconds: float) -> bool:
    """Whether it ends within this time."""
    until = time.monotonic() + seconds
    while runs(process):
        if time.monotonic() > until:
            return False
        time.sleep(_PAUSE)
    return True
