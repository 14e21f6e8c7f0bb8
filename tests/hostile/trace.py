# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a traced task did to files, sockets and programs: lines of strace, understood and judged."""

from __future__ import annotations

import functools
import os
import re
import sys
import sysconfig
from dataclasses import dataclass
from typing import Iterable, Iterator

SYSTEM_CALLS = (
    "open,openat,openat2,creat,connect,bind,execve,execveat,link,linkat,unlink,unlinkat,rename,renameat,renameat2,symlink,symlinkat,"
    "kill,tkill,tgkill,pidfd_send_signal,mknod,mknodat,mkdir,mkdirat,rmdir,truncate,chmod,fchmodat,chown,lchown,fchownat,utimensat,mount,"
    "setxattr,lsetxattr,removexattr"
)
_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>.*)", re.DOTALL)
# A directory's descriptor with its path, or nothing, and the path given beside it.
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<(?P<at>(?:[^<>\\]|\\.)*)>(?:\(deleted\))?, )?"(?P<name>(?:[^"\\]|\\.)*)"')
_RETURNED = re.compile(r"\d+<(?P<path>(?:[^<>\\]|\\.)*)>")


@dataclass(frozen=True)
class Call:
    """One system call. ``paths`` are absolute, as they were asked for; ``opened`` is what the kernel says it led to."""

    name: str
    arguments: str
    paths: tuple[str, ...]
    opened: str | None
    pid: str = ""

    @property
    def writes(self) -> bool:
        opens = self.name in ("open", "openat", "openat2")
        return self.name == "creat" or (opens and re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", self.arguments) is not None)


def _unescaped(text: str) -> str:
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape", "replace")


def _joined(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Calls with the processes that made them. Those that other threads interrupted in the trace are put together again."""
    begun: dict[str, str] = {}
    for line in lines:
        match = _LINE.match(line)
        if not match:
            continue
        pid, rest = match.group("pid"), match.group("rest")
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest[: -len("<unfinished ...>")]
        elif rest.startswith("<... "):
            yield pid, begun.pop(pid, "") + rest.partition(" resumed>")[2]
        else:
            yield pid, rest
    yield from ((pid, call + ") = ?") for pid, call in begun.items())  # it was killed in the middle


def calls(lines: Iterable[str]) -> list[Call]:
    found = []
    for pid, text in _joined(lines):
        match = _CALL.match(text)
        if not match:
            continue
        arguments, result = match.group("arguments"), match.group("result")
        asked = arguments if match.group("name") != "execve" else arguments.partition(", [")[0]
        paths = tuple(
            os.path.normpath(os.path.join(_unescaped(one.group("at") or "/"), _unescaped(one.group("name"))))
            for one in _PATH.finditer(asked)
        )
        returned = _RETURNED.match(result)
        opened = _unescaped(returned.group("path")) if returned and match.group("name").startswith(("open", "creat")) else None
        found.append(Call(match.group("name"), arguments, paths, opened, pid))
    return found


@functools.lru_cache(maxsize=None)
def _program_files(checkout: str) -> tuple[str, ...]:
    """Where the interpreter, Ansible, the collection and qemu-img keep what they are made of."""
    python = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *(path for path in sys.path if path)]
    return tuple(
        dict.fromkeys(
            [
                *map(os.path.realpath, python),
                *python,
                checkout,
                "/usr/lib",
                "/lib",
                "/lib64",
                "/usr/lib64",
                "/usr/share/zoneinfo",
                "/usr/local/lib",
            ]
        )
    )


SIGNALS = ("kill", "tkill", "tgkill", "pidfd_send_signal")
READABLE = (  # single files that a task or a program of its may read
    "/dev/null",
    "/dev/urandom",
    "/proc",
    "/etc/fstab",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/machine-id",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/ssl/openssl.cnf",
    "/usr/lib/ssl/openssl.cnf",
    "/sys/fs/cgroup/cpu.max",
)
PROGRAMS = ("qemu-img", "qemu-nbd", "false")
SOCKETS = ("/dev/log", "/var/run/nscd/socket")  # Ansible tells the system log what runs; the C library looks names up
READABLE_UNDER = (
    "/proc/",
    "/sys/block",  # what the kernel of this host has open; it leads to the next one
    "/sys/devices/virtual/block",
    "/sys/class/block",
    "/sys/kernel/config",
    "/sys/devices/system/",
    "/sys/kernel/mm/",
    "/etc/gnutls/",
    "/etc/crypto-policies/",
    "/etc/qemu/",
    "/usr/share/locale/",
)


def _under(path: str, directories: Iterable[str]) -> bool:
    return any(path == directory or path.startswith(directory.rstrip("/") + "/") for directory in directories)


@dataclass(frozen=True)
class Judge:
    """Says what a task may do outside the share: ``share`` and ``scratch`` are its own directories, ``target``, to which it restores, and ``run``,
    where it keeps machines. ``mine`` are the numbers of processes that it may end."""

    share: str
    scratch: str
    checkout: str
    target: str = ""
    run: str = ""
    mine: tuple[int, ...] = ()

    def offences(self, found: Iterable[Call]) -> list[str]:
        every = list(found)
        ours = {call.pid for call in every} | {str(pid) for pid in self.mine}
        return [f"{call.name}({call.arguments})" for call in every if (self._signals(call, ours) if call.name in SIGNALS else self._offends(call))]

    def _signals(self, call: Call, ours: set[str]) -> bool:
        """Whether a process, or the group that it leads, gets a signal that is neither the task's own nor one that it may end."""
        words = call.arguments.split(", ")
        return words[-1 if call.name != "pidfd_send_signal" else 1] != "0" and words[0].lstrip("-") not in ours

    def _offends(self, call: Call) -> bool:
        if call.name in ("connect", "bind"):
            told = re.search(r'sun_path=(@?)"([^"]*)"', call.arguments)
            if told is not None and told[1]:
                return not told[2].startswith("remotefs-")  # a turn, which is no file
            return told is None or not (told[2] in SOCKETS or _under(os.path.normpath(told[2]), (self.scratch, *filter(None, [self.run]))))
        if call.name in ("execve", "execveat"):
            return any(os.path.basename(path) not in PROGRAMS for path in call.paths)
        if call.name in ("mount",):
            return True
        if call.name in ("mkdir", "mkdirat") and self.run.startswith(call.paths[-1].rstrip("/") + "/"):
            return False  # the way to it, which is there
        if call.name in ("symlink", "symlinkat"):
            return not _under(call.paths[-1], (self.scratch,))
        changes = call.writes or not call.name.startswith("open")
        places = [*call.paths, *([call.opened] if call.opened else [])]
        return not all(self._allowed(path.replace(" (deleted)", ""), changes) for path in places)

    def _allowed(self, path: str, changes: bool) -> bool:
        if _under(path, (self.share, self.scratch, *filter(None, [self.target, self.run]))):
            return True
        if changes:
            # qemu-img opens what it was handed through /proc; where that led to is judged as well.
            return path == "/dev/null" or re.match(r"/proc/(self|\d+)/fd/\d+\Z", path) is not None
        # The way to the share may be looked at, and what belongs to the programs.
        return (
            self.share.startswith(path.rstrip("/") + "/")
            or path in READABLE
            or re.match(r"/dev/loop\d+\Z", path) is not None
            or _under(path, READABLE_UNDER)
            or _under(path, _program_files(self.checkout))
        )
