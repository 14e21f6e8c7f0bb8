# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shares that autofs mounts, for the automount daemon and for systemd's ``.automount`` units.

Until the first access, the mount table shows only the automounter's trigger and not what it will mount. So a process accesses the path first.
"""
from __future__ import annotations

import os

from .. import errors
from . import probe, resolve, sources, tables

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
_DEPTH = 8  # how many triggers may lie within each other: one may be on what another has mounted


def visit_source(source: str, mounts: tuple[tables.Mount, ...], mount_base: str, fstab: str, timeout: float) -> tuple[tables.Mount, ...]:
    """Access the paths where an automounter may mount ``source``: its default path and its paths in fstab. :return: the mounts afterwards.

    :param timeout: seconds for each path. :raises ShareNotMounted: nothing was mounted, or it took too long.
    """
    entries = tables.parse_fstab(tables.read_fstab(fstab))
    paths = [resolve.default_path(source, mount_base)] + [entry.path for entry in entries if sources.is_entry_of(entry, source)]
    for path in dict.fromkeys(paths):
        mounts = resolve.after_automount(path, mounts, timeout, f"share {source}")
    return mounts


def trigger(mounts: tuple[tables.Mount, ...], path: str) -> tables.Mount | None:
    """The automounter's trigger for ``path`` (without links), even if the automounter has mounted something there; None if there is none.

    It is the nearest trigger at or above ``path``.
    """
    parents = {mount.id: mount for mount in mounts}
    current = tables.enclosing(mounts, path)
    seen: set[int] = set()
    while current is not None and current.id not in seen and current.path != "/":
        if current.is_trigger:
            return current
        seen.add(current.id)
        # Go up only from a mount exactly at the path. Any other mount in between was not made by the automounter.
        above = parents.get(current.parent)
        current = above if above is not None and current.path == path else None
    return None


def visit(path: str, mounts: tuple[tables.Mount, ...], timeout: float, subject: str) -> tuple[tables.Mount, ...]:
    """Access ``path``, so that autofs mounts everything on the way. :return: the kernel's mounts afterwards.

    :param timeout: seconds that an access may take. A child process makes it, because a dead server would make it hang.
    :raises ShareNotMounted: nothing was mounted, or it took too long.
    """
    for _dummy in range(_DEPTH):
        real = resolve.follow(path, mounts)
        trigger = tables.enclosing(mounts, real)
        if trigger is None or not trigger.is_trigger:
            break
        reason, mounts = _go(real, timeout, subject)
        here = tables.enclosing(mounts, resolve.follow(path, mounts))
        if here is not None and here.id == trigger.id:
            problem = f"autofs manages {trigger.path}, and going to {real} mounted nothing ({reason})"
            raise errors.ShareNotMounted(
                subject, problem, "see the log of the automounter on this host and the table that names the share, and run the task again"
            )
    return mounts


def _go(path: str, timeout: float, subject: str) -> tuple[str, tuple[tables.Mount, ...]]:
    """Open ``path``. :return: (the reason why that failed or mounted nothing, the mounts afterwards)."""

    def query() -> tuple:
        """Runs in the child process."""
        try:
            os.close(os.open(path, _FLAGS))
        except OSError as error:
            return (error.errno or 5,)
        return (0,)

    number = probe.bounded(query, timeout, subject)[0]
    if number:
        return os.strerror(number), tables.read_mounts()
    try:
        descriptor = os.open(path, _FLAGS)  # the server answers. While this is open, the mount does not expire, and the table is read meanwhile
    except OSError as error:
        return error.strerror or str(error), tables.read_mounts()
    try:
        return "the trigger let it pass", tables.read_mounts()
    finally:
        os.close(descriptor)
