# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this host can mount a type that has no row: mount(8) needs a helper for it, or a kernel that has it."""
from __future__ import annotations

import os

from .. import command, errors
from . import types

FILE_SYSTEMS = "/proc/filesystems"
MODULES = "/lib/modules"


def check(mount_type: str) -> None:
    """Check, before anything is mounted, that mount(8) knows ``mount_type``.

    :raises ToolMissing: neither a helper nor a kernel module for it is on this host.
    """
    if _is_there(f"mount.{mount_type}") or _in_kernel(mount_type):
        return
    program = mount_type[len(types.FUSE):] if mount_type.startswith(types.FUSE) else ""
    if program and _is_there("mount.fuse") and _is_there(program):
        return
    wanted = f"mount.{mount_type}" + (f" (or mount.fuse with {program})" if program else "")
    problem = "it is not installed on this host, and the kernel has no such file system"
    raise errors.ToolMissing(f"program {wanted}", problem, f"install the client of {mount_type}, or correct type, and run the task again")


def _is_there(program: str) -> bool:
    try:
        command.find(program, program)
    except errors.ToolMissing:
        return False
    return True


def _in_kernel(mount_type: str) -> bool:
    """Whether the running kernel has the file system, or a module that it loads when it is asked for it."""
    listed = any(line.split()[-1:] == [mount_type] for line in _lines(FILE_SYSTEMS))
    return listed or any(line.startswith(f"alias fs-{mount_type} ") for line in _lines(os.path.join(MODULES, os.uname().release, "modules.alias")))


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().splitlines()
    except OSError:
        return []
