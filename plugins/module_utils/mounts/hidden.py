# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The root of a chroot into a directory that is not a mount point: the kernel's table of mounts does not show it."""

from __future__ import annotations

import os

from .. import localities
from . import tables

_INIT = "/proc/1/mountinfo"


def root(mounts: tuple[tables.Mount, ...]) -> tables.Mount:
    """A mount for ``/`` for a table that has none, as in a chroot into a directory that is not a mount point."""
    device = os.stat("/").st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        others = mounts + tables.parse_mountinfo(_init())
    except OSError:
        others = mounts
    known = next((mount for mount in others if mount.device == name), None)
    fstype = (
        known.fstype if known is not None else localities.ROOT.kernel_type if os.major(device) else "unknown"
    )  # a file system on a device belongs to this host
    identities = {mount.id for mount in mounts}
    above = [mount.parent for mount in mounts if mount.parent not in identities]
    number = max(above, key=above.count) if above else 0
    return tables.Mount(number, number, name, tables.HIDDEN, "/", fstype, known.source if known is not None else "none", ("rw",), ())


def _init() -> str:
    with open(_INIT, "rb") as stream:
        return os.fsdecode(stream.read())


def is_same_directory(path: str, other: str) -> bool:
    """Whether two paths lead to the same directory. False if one of them leads nowhere."""
    try:
        return os.path.samestat(os.stat(path), os.stat(other))
    except OSError:
        return False
