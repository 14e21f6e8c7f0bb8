# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bind mounts: the directory that a bind mount shows."""
from __future__ import annotations

import os

from . import tables, types


def origin(mounts: tuple[tables.Mount, ...], mount: tables.Mount) -> str | None:
    """The path of the directory that a bind mount shows, through another mount of its file system; None if no other mount reaches it."""
    for other in mounts:
        if other.id != mount.id and other.device == mount.device and tables.is_within(mount.root, other.root):
            below = mount.root[len(other.root.rstrip("/")):].strip("/")
            candidate = os.path.join(other.path, below) if below else other.path
            if candidate != mount.path and tables.enclosing(mounts, candidate) == other:
                return candidate
    return None


def shows(mounts: tuple[tables.Mount, ...], mount: tables.Mount, directory: str) -> bool:
    """Whether ``mount`` is a bind mount of ``directory`` (without links): both are the same directory of the same file system."""
    under = tables.enclosing(mounts, directory)
    if under is None or under.device != mount.device:
        return False
    if under.root == tables.HIDDEN:
        from . import hidden  # late: only in some chroots

        return hidden.is_same_directory(mount.path, directory)
    below = directory[len(under.path.rstrip("/")):].strip("/")
    row = types.by_kernel_type(under.fstype)
    if row is not None and row.root_in_source == "alone":
        return mount.source.rstrip("/") == os.path.join(under.source, below).rstrip("/")
    return os.path.join(under.root, below).rstrip("/") == mount.root.rstrip("/")
