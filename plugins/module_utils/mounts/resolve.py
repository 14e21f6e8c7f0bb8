# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the directory that belongs to the user's name for a share.

Nothing here accesses a network mount, because a single access to a dead server hangs. The two tables give every answer. The only
exception is a directory that autofs manages: see :mod:`automount`.
"""
from __future__ import annotations

import os

from .. import errors, localities, model
from ..model import MOUNT_BASE
from . import tables, types

PATIENCE = 30.0  # seconds that a server may take to answer
_MAX_LINKS = 40


def find_share(share: str, mount_base: str = MOUNT_BASE, fstab: str = tables.FSTAB, timeout: float = PATIENCE) -> model.Share:
    """The share with the name ``share``: the source string of a mounted share, or an absolute directory.

    :param timeout: seconds that an automounter may take to mount it.
    :raises ShareNotMounted: the source is not mounted, or nothing is mounted at a directory that is meant for a mount.
    :raises InvalidParameter: it is neither a source nor an absolute directory.
    """
    mounts = tables.read_mounts()
    if is_directory_name(share):
        path = clean_path(share, "share")
        mounts = after_automount(path, mounts, timeout, f"share {share}")
        return find_directory(path, mounts, tables.parse_fstab(tables.read_fstab(fstab)), mount_base)
    from . import served  # late: a task on a plain directory starts faster without it

    return served.find_share(share, mounts, mount_base, fstab, timeout)


def share_names(given: object) -> list[str]:
    """The value of the option ``share`` as a list of names; empty for None. A string is one name: its commas belong to the name.

    :raises InvalidParameter: the value is neither a string nor a list of strings.
    """
    names = list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
    for name in names:
        if not isinstance(name, str):
            raise errors.InvalidParameter(f"share {name!r}", "it is not a text", "give a source such as nas1:/vols or a directory, or a list of them")
    return [str(name) for name in names]


def after_automount(path: str, mounts: tuple[tables.Mount, ...], timeout: float, subject: str) -> tuple[tables.Mount, ...]:
    """The kernel's mounts after an automounter has mounted what belongs at ``path``. Without an automounter they are ``mounts``.

    :raises ShareNotMounted: the access to ``path`` mounted nothing, or took longer than ``timeout`` seconds.
    """
    mount = tables.enclosing(mounts, follow(path, mounts))
    if mount is None or not mount.is_trigger:
        return mounts
    from . import automount  # late: most hosts have no automounter

    return automount.visit(path, mounts, timeout, subject)


def default_path(source: str, mount_base: str = MOUNT_BASE) -> str:
    """The directory where a share is mounted if no path is given. Its name is the MD5 of the exact source string, as in os-brick."""
    import hashlib

    try:
        digest = hashlib.new("md5", usedforsecurity=False)
    except TypeError:  # before Python 3.9
        digest = hashlib.new("md5")
    digest.update(os.fsencode(source))
    return os.path.join(mount_base, digest.hexdigest())


def is_directory_name(share: str) -> bool:
    """Whether ``share`` has the form of an absolute directory. With two slashes at the start it is a source."""
    return share.startswith("/") and not share.startswith("//")


def clean_path(path: str, option: str) -> str:
    """``path`` without "." and without doubled or trailing slashes. :param option: the option with this value, for the message.

    :raises InvalidParameter: ``path`` is not absolute, or contains '..' or a control character.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or ".." in parts or any(ord(char) < 32 or ord(char) == 127 for char in path):
        raise errors.InvalidParameter(
            f"{option} {path!r}", "it is not an absolute path without '..' and control characters", "give the full path of a directory"
        )
    return "/" + "/".join(parts)


def find_source(
    source: str, mounts: tuple[tables.Mount, ...], mount_base: str = MOUNT_BASE, entries: tuple[tables.Entry, ...] = ()
) -> tables.Mount | None:
    """The visible mount of ``source``, in any spelling: the one at the default path, else the first; None if it is not mounted.

    :param entries: the lines of fstab.
    """
    from .witnesses import is_mount_of  # late: a plain directory has no source

    found = [mount for mount in mounts if is_mount_of(mount, source, entries) and tables.mounted_at(mounts, mount.path) == mount]
    preferred = default_path(source, mount_base)
    for mount in found:
        if mount.path == preferred:
            return mount
    return found[0] if found else None


def find_directory(path: str, mounts: tuple[tables.Mount, ...], entries: tuple[tables.Entry, ...], mount_base: str = MOUNT_BASE) -> model.Share:
    """The share that the absolute directory ``path`` is on. :param entries: the lines of fstab.

    :raises ShareNotMounted: see :func:`find_share`. :raises InvalidParameter: ``path`` is not a directory.
    """
    real = follow(path, mounts)
    for name in (path,) if real == path else (path, real):
        check_mounted(name, real, mounts, entries, mount_base)
    mount = tables.enclosing(mounts, real)
    if mount is None or is_local(mount):
        _check_local_directory(path, real)
    if mount is None:
        return model.Share(path, path, types.DIRECTORY.name, mount_base=mount_base)
    return describe(mount, mounts, path, None if mount.path == real else path, mount_base, real=real, entries=entries)


def follow(path: str, mounts: tuple[tables.Mount, ...]) -> str:
    """``path`` with its symbolic links followed, as far as that is possible without access to a network mount.

    :raises InvalidParameter: the links form a loop.
    """
    pending, current, links = path.strip("/").split("/"), "/", 0
    while pending:
        step = os.path.join(current, pending.pop(0))
        mount = tables.enclosing(mounts, step)
        if mount is not None and not is_local(mount):
            return os.path.join(step, *pending)
        try:
            target = os.readlink(step)
        except OSError:
            current = step
            continue
        links += 1
        if links > _MAX_LINKS:
            raise errors.InvalidParameter(f"share {path}", "its symbolic links form a loop", "name the directory itself")
        if target.startswith("/"):
            current = "/"
        pending = [part for part in target.split("/") if part not in ("", ".")] + pending
        while pending and pending[0] == "..":
            pending.pop(0)
            current = os.path.dirname(current)
    return current


def is_local(mount: tables.Mount) -> bool:
    """Whether no access to it can hang, because no server and no process serves it. The root counts as local: without it nothing works."""
    return localities.locality(mount.fstype).local or (mount.path == "/" and not mount.is_trigger)


def is_unknown_file_system(mount: tables.Mount) -> bool:
    """Whether it is unknown which locks of other hosts are visible there: the file system is not local and has no row."""
    return types.by_kernel_type(mount.fstype) is None and not localities.locality(mount.fstype).local


def check_mounted(name: str, real: str, mounts: tuple[tables.Mount, ...], entries: tuple[tables.Entry, ...], mount_base: str) -> None:
    """Check that the directory ``name`` may hold volumes. :param real: the same directory without links. :param entries: the lines of fstab.

    :raises ShareNotMounted: the directory is meant for a mount, but nothing is mounted there.
    :raises InvalidParameter: the kernel shows its own state there.
    """
    mount = tables.enclosing(mounts, real)
    if mount is not None and localities.locality(mount.fstype).kernel_state:
        problem = f"the kernel shows its own state there ({mount.fstype}), and nobody can store files"
        raise errors.InvalidParameter(f"share {name}", problem, "name a directory on a disk, or the source of a mounted share")
    at = mount.path if mount is not None and not mount.is_trigger else "/"
    base = mount_base.rstrip("/")
    if name != base and tables.is_within(name, base):
        if not (at != base and tables.is_within(at, base)):
            raise _not_mounted(name, f"it lies under {base}, but no share is mounted there")
    elif name == base and at != base:
        raise _not_mounted(name, "it is the directory under which shares are mounted, not a share")
    for entry in entries:
        if entry.path != "/" and tables.is_within(name, entry.path) and not tables.is_within(at, follow(entry.path, mounts)):
            raise _not_mounted(name, f"fstab mounts {entry.source} at {entry.path}, but nothing is mounted there")


def _not_mounted(name: str, problem: str) -> errors.ShareNotMounted:
    return errors.ShareNotMounted(f"share {name}", problem, "mount it with remotefs_share and run the task again")


def _check_local_directory(path: str, real: str) -> None:
    if os.path.isdir(real):
        return
    if os.path.lexists(real):
        raise errors.InvalidParameter(f"share {path}", "it is not a directory", "name a directory or the source of a mounted share")
    from .served import hint_for_several

    remedy = f"create it with remotefs_share (fstype {types.DIRECTORY.name}) or mount the share{hint_for_several(path)}"
    raise errors.ShareNotMounted(f"share {path}", "the directory does not exist", remedy)


def describe(
    mount: tables.Mount,
    mounts: tuple[tables.Mount, ...],
    path: str,
    source: str | None,
    mount_base: str = MOUNT_BASE,
    fstab: str = tables.FSTAB,
    real: str | None = None,
    entries: tuple[tables.Entry, ...] | None = None,
) -> model.Share:
    """The share in the directory ``path`` on ``mount``. :param source: the user's name for the share; None: the mount table decides.

    :param real: ``path`` without links. :param entries: the lines of fstab; None: they are read when they are needed.
    """
    row = types.by_kernel_type(mount.fstype)
    if row is not None:
        from . import served  # late: a task on a plain directory starts faster without it

        return served.describe(mount, row, path, source, mount_base, (real or path)[len(mount.path):], fstab, entries)
    if is_unknown_file_system(mount):
        return model.Share(source or path, path, mount.fstype, "", mount_base, **facts(types.unknown_file_system(mount.fstype), ()))
    if source is not None or not is_bind(mount):
        return model.Share(path, path, types.DIRECTORY.name, "", mount_base)
    from .binds import origin  # late: most directories are no bind mounts

    return model.Share(origin(mounts, mount) or path, path, types.BIND.name, public_options(mount, types.BIND), mount_base)


def facts(row: types.FileSystem, live: tuple[str, ...]) -> dict:
    """The fields of :class:`model.Share` that follow from the row of its file system, by name. :param live: the options in force."""
    return {
        "local": row.local,
        "keeps_modes": row.keeps_modes,
        "keeps_inodes": row.keeps_inodes(live),
        "locks_visible": row.locks_visible(live),
        "locks_readable": row.locks_readable(live),
        "stale_seconds": row.stale_seconds,
        "client_times": row.client_times,
    }


def is_bind(mount: tables.Mount) -> bool:
    """Whether it shows a part of a file system that has no server. Subvolumes look the same in the table, but are not bind mounts."""
    return mount.path != "/" and mount.root != "/" and not localities.locality(mount.fstype).subvolumes and types.by_kernel_type(mount.fstype) is None


def public_options(mount: tables.Mount, row: types.FileSystem) -> str:
    """The options in force, separated by commas, without secrets and without those that describe only this host or this mount."""
    from .options import SECRETS  # late: a plain directory has no options

    return ",".join(option for option in tables.options_of(mount, row) if option.split("=", 1)[0] not in SECRETS + row.local_options)
