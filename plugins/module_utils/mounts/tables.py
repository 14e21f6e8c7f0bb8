# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two tables of mounts: the kernel's (mountinfo) and the administrator's (fstab). Parsing is pure; the last section reads the files.

Nearly every task reads these tables. :mod:`fstab` changes fstab.
"""
from __future__ import annotations

import os
import re
from typing import NamedTuple

from .. import errors, localities
from ..model import FSTAB
from . import types

MOUNTINFO = "/proc/self/mountinfo"
HIDDEN = "?"  # the root of a mount that the kernel's table does not show
_BLANKS = re.compile(r"[ \t]+")
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


def unescape(text: str) -> str:
    """``text`` without the octal escapes of mountinfo and fstab: ``\\040`` is a space, ``\\303\\251`` are the two bytes of one letter in UTF-8."""
    if "\\" not in text:
        return text
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes((int(match.group(1), 8),)), os.fsencode(text)))


def split_options(text: str) -> tuple[str, ...]:
    """The options in a text that separates them by commas. A comma inside double quotes does not separate (SELinux contexts have some)."""
    return tuple(option for option in re.findall(r'(?:[^,"]|"[^"]*"?)+', text) if option.strip())


# --- the kernel's table


class Mount(NamedTuple):
    """One line of mountinfo."""

    id: int
    parent: int
    device: str  # major:minor
    root: str  # the directory of the file system that is mounted; not "/" for most bind mounts
    path: str  # the directory where it is mounted
    fstype: str  # the kernel's name of the file system
    source: str
    mount_options: tuple[str, ...]  # options of this mount
    super_options: tuple[str, ...]  # options of its file system, which other mounts may share

    @property
    def is_trigger(self) -> bool:
        """Whether it is an automounter's placeholder: the first access makes the automounter mount something there."""
        return localities.locality(self.fstype).trigger

    @property
    def options(self) -> tuple[str, ...]:
        """The options in force: those of the mount, then those of its file system. If either is read-only, so is the mount."""
        options = self.mount_options + tuple(option for option in self.super_options if option not in ("rw", "ro") + self.mount_options)
        if "ro" in self.super_options:
            options = tuple("ro" if option == "rw" else option for option in options)
        return options


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts in the text of a mountinfo file, in its order. Lines of another form are left out: newer kernels may add some."""
    mounts = []
    for line in text.split("\n"):
        fields = line.split(" ")
        if "-" not in fields[6:]:
            continue
        end = fields.index("-", 6)
        if len(fields) < end + 4 or not fields[0].isdigit() or not fields[1].isdigit():
            continue
        mounts.append(
            Mount(
                id=int(fields[0]),
                parent=int(fields[1]),
                device=fields[2],
                root=unescape(fields[3]),
                path=unescape(fields[4]),
                fstype=fields[end + 1],
                source=unescape(fields[end + 2]),
                mount_options=split_options(fields[5]),
                super_options=tuple(unescape(option) for option in split_options(fields[end + 3])),
            )
        )
    return tuple(mounts)


def is_within(path: str, directory: str) -> bool:
    """Whether ``path`` is ``directory`` or lies beneath it. Only the names are compared; no link is followed."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def enclosing(mounts: tuple[Mount, ...], path: str) -> Mount | None:
    """The mount that ``path`` (absolute, without links) lies on; None if the table has none. A mount hides everything beneath it."""
    identities = {mount.id for mount in mounts}
    roots = [mount for mount in mounts if mount.parent not in identities or mount.parent == mount.id]
    current = _nearest([mount for mount in roots if is_within(path, mount.path)])
    seen = set()
    while current is not None and current.id not in seen:
        seen.add(current.id)
        inner = _nearest([mount for mount in mounts if mount.parent == current.id and mount.id not in seen and is_within(path, mount.path)])
        if inner is None:
            break
        current = inner
    return current


def _nearest(mounts: list[Mount]) -> Mount | None:
    """The mount with the shortest path: a walk down from the root reaches it first. None if there is none."""
    return min(mounts, key=lambda mount: len(mount.path)) if mounts else None


def mounted_at(mounts: tuple[Mount, ...], path: str) -> Mount | None:
    """The mount that is visible exactly at ``path`` (without links); None if there is none. An automounter's trigger does not count as a mount."""
    mount = enclosing(mounts, path)
    return mount if mount is not None and mount.path == path and not mount.is_trigger else None


def options_of(mount: Mount, row: types.FileSystem) -> tuple[str, ...]:
    """The options in force. For a bind mount only its own: those of the file system beneath belong to another mount."""
    return mount.options if row.kernel_types else mount.mount_options


# --- the administrator's table


class Entry(NamedTuple):
    """One line of fstab that describes a mount. ``dump`` and ``passno`` are its last two fields."""

    source: str
    path: str
    fstype: str
    options: tuple[str, ...] = ("defaults",)
    dump: str = "0"
    passno: str = "0"


def parse_entry(line: str) -> Entry | None:
    """The mount that a line of fstab describes; None for a comment, a blank line or a line that mount(8) would not read."""
    fields = _BLANKS.split(line.strip(" \t\r"))  # any other character that Python calls white space is part of a name
    if len(fields) < 3 or fields[0].startswith("#"):
        return None
    path = unescape(fields[1])
    return Entry(
        source=unescape(fields[0]),
        path="/" + "/".join(part for part in path.split("/") if part not in ("", ".")) if path.startswith("/") else path,
        fstype=fields[2],
        options=tuple(unescape(option) for option in split_options(fields[3])) if len(fields) > 3 else ("defaults",),
        dump=fields[4] if len(fields) > 4 else "0",
        passno=fields[5] if len(fields) > 5 else "0",
    )


def parse_fstab(text: str) -> tuple[Entry, ...]:
    """The mounts that the text of an fstab describes, in its order."""
    return tuple(entry for entry in map(parse_entry, text.split("\n")) if entry is not None)


# --- files


def read_mounts(path: str = MOUNTINFO) -> tuple[Mount, ...]:
    """The kernel's mounts at this moment. :raises ToolFailed: there is no /proc, so that nothing shows which shares are mounted."""
    try:
        mounts = parse_mountinfo(_read(path))
    except OSError as error:
        words = error.strerror or str(error)
        raise errors.ToolFailed(
            f"mount table {path}", f"it cannot be read ({words})", "mount /proc (mount -t proc proc /proc) and run the task again"
        ) from error
    if any(mount.path == "/" for mount in mounts):
        return mounts
    from . import hidden  # late: only in some chroots

    return (hidden.root(mounts), *mounts)


def read_fstab(path: str = FSTAB) -> str:
    """The text of the file ``path``; empty if there is none.

    :raises StorageError: the file cannot be read.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise errors.from_os_error(error, f"fstab {path}", os.geteuid()) from error


def _read(path: str) -> str:
    with open(path, "rb") as stream:
        return os.fsdecode(stream.read())
