# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the process behind a monitor may write to a file, as far as that can be seen from outside: by its ids and the file's mode."""

from __future__ import annotations

import os
import re

_FIELDS = re.compile(r"^(Uid|Gid|Groups|CapEff):[ \t]*(.*)$", re.MULTILINE)
_FILE_SYSTEM_ID = 3  # its place among the ids of a process (proc_pid_status(5)): the one by which access is judged
_DAC_OVERRIDE = 1 << 1
_ACL = "system.posix_acl_access"


def may_write(pid: int, fd: int) -> bool:
    """Whether a process may write to an opened file. True where that is not known: an ACL decides, or the process cannot be looked at."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as stream:
            told = dict(_FIELDS.findall(stream.read()))
        user, group = (int(told[name].split()[_FILE_SYSTEM_ID]) for name in ("Uid", "Gid"))
        groups, capabilities = {group, *map(int, told["Groups"].split())}, int(told["CapEff"], 16)
        if capabilities & _DAC_OVERRIDE or _ACL in os.listxattr(fd):
            return True
    except (OSError, KeyError, IndexError, ValueError):
        return True
    status = os.fstat(fd)
    place = 6 if user == status.st_uid else 3 if status.st_gid in groups else 0
    return bool(status.st_mode >> place & 0o2)
