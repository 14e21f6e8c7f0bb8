# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to know of a file system that a share can be on: one column each. The rows are in :mod:`file_systems`.

Each difference between file systems is a column, so that no other module compares a file system's name;
tests/unit/mounts/test_mounts_one_row.py checks that. :mod:`localities` has the file systems that cannot be mounted as a share
themselves, but that may hold a directory which serves as a share. The two rows without a server are here: a task on a plain directory
needs no other.
"""
from __future__ import annotations

import re
from typing import NamedTuple

from .. import errors, localities

ALWAYS = ("*",)
BY_PATH = "local"  # the driver_volume_type of os-brick that takes a path on this host

# Options of mount(8) and fstab that the mount table never shows.
FSTAB_ONLY = ("defaults", "_netdev", "nofail", "auto", "noauto", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup", "comment")

# Options that the mount table shows on every file system while they are in force.
GENERAL_SHOWN = ("ro", "rw", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "sync", "dirsync", "nosymfollow", "lazytime")

# Options that the mount table never shows, because they only cancel others. The values are the options that each one cancels.
CONTRARIES = {
    "suid": ("nosuid",), "dev": ("nodev",), "exec": ("noexec",), "async": ("sync",), "diratime": ("nodiratime",), "symfollow": ("nosymfollow",),
    "nolazytime": ("lazytime",), "atime": ("noatime",), "strictatime": ("noatime", "relatime"), "norelatime": ("relatime",), "nostrictatime": (),
}

# Options that a remount can change on every file system.
GENERAL = GENERAL_SHOWN + tuple(CONTRARIES)


class FileSystem(NamedTuple):
    """All properties of one file system that the collection uses. Options are written as for mount(8). Patterns are regular expressions."""

    name: str
    source: str  # pattern of a valid source
    example: str  # a source, for messages
    claims: str = ""  # pattern of the sources that fstype auto takes for this file system
    kernel_types: tuple[str, ...] = ()  # its types in mountinfo
    mount_type: str = ""  # its type for mount -t and in fstab; empty: it is never mounted
    helper: str = ""  # the program that mount(8) calls for it
    package: str = ""  # the Debian package with that program
    kernel_module: str = ""  # the kernel module that it needs
    by_hand: str = ""  # for messages: where to find out more when the helper fails; {host} is the source up to its directory
    no_module: tuple[str, ...] = ()  # further messages of the helper that mean: the kernel does not have this file system
    local: bool = False  # True: only processes of this host open the files, so no server can make a caller hang
    by_process: bool = False  # True: a process of this host serves the mount. If it dies, the mount stays, but every access fails
    root_in_source: str = ""  # where the mount table shows a directory within an export: "alone": in the source; "too": in source and root; empty: in the root
    cinder_type: str = BY_PATH  # the driver_volume_type of os-brick
    # "file": an option names a file; "secret": so it does, and the file has only the password; "stdin": the helper reads the password; empty: it takes none
    credentials: str = ""
    identity_options: tuple[str, ...] = ()  # options that say which user mounts, or with which password; the first one names the credentials file
    user_place: str = ""  # for messages: where the user goes, if not into the credentials
    user_option: str = ""  # the option in the mount table that shows which user mounted
    without_password: str = ""  # for messages: what a user can do where no password can be stored
    default_options: tuple[str, ...] = ()
    stdin_options: tuple[str, ...] = ()  # options that make the helper read the password
    spellings: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (option, how the mount table spells it); "*" stands for its value
    shown: tuple[str, ...] = ()  # options that the mount table shows when they are in force, besides the general ones
    silent: tuple[str, ...] = ()  # options with their values that the mount table leaves out, because they are the default
    moot: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (option, others): while the option is in force, the others have no effect and are not shown
    negotiated: tuple[str, ...] = ()  # sizes that a server may lower; the kernel raises very small ones
    listed: tuple[str, ...] = ()  # options with several allowed values, separated by colons; the mount table shows the one in use
    signed: tuple[str, ...] = ()  # options whose value is shown with an "i" at the end where the server requires signatures
    octal: tuple[str, ...] = ()  # options whose values are octal numbers
    versions: tuple[str, ...] = ()  # options whose values are versions of the protocol
    owners: tuple[str, ...] = ()  # options whose value is a user ("uid") or a group ("gid"), by name or number
    remountable: tuple[str, ...] = ()  # options that a remount changes in place; all others need an unmount and a mount
    remount_options: tuple[str, ...] = ("remount",)
    separating: str = ""  # the option that stops two mounts of one export on this host from sharing their options
    remount_whole: bool = False  # True: a remount needs all options again, not only the general ones
    local_options: tuple[str, ...] = ()  # options that are shown but describe only this host or this mount
    attachable: tuple[str, ...] = ()  # options, besides ro, that the mount helper of another host accepts as they are shown
    attachable_given: tuple[str, ...] = ()  # further ones that it accepts, which the mount table hides or changes: they are told as they were given
    assumed: tuple[str, ...] = ()  # options with their values that the mount table shows although every host assumes them
    unspellings: tuple[tuple[str, str], ...] = ()  # (option as the mount table shows it, how the mount helper wants to hear it)
    folds_case: bool = False  # True: letter case does not matter in the first part of the path in a source
    slash_optional: bool = False  # True: host:name and host:/name are the same
    keeps_modes: bool = True  # False: a file does not keep the mode that it is given
    blind_with: tuple[str, ...] = ()  # options with which the locks of other hosts cannot be seen at all
    unreadable_with: tuple[str, ...] = ()  # options with which a lock cannot be queried: only an attempt to take it shows that another one holds it
    renumbered_with: tuple[str, ...] = ()  # options with which the client makes up the inode numbers
    client_times: bool = False  # True: the client gives the times of files, by the clock of its host
    stale_seconds: float = 0.0  # how long a client may show old data after another client replaced it, even after it opens the file again
    prefixes: tuple[str, ...] = ()  # what may stand before a source without a change of its meaning
    mount_prefix: str = ""  # what mount(8) and fstab want before a source
    vague: bool = False  # True: any word can be a source, so that only a mount, fstab or a prefix tells that a word is one
    default_port: str = ""  # a source begins with a list of servers, in any order, and this is the port of one without a port
    # True: the mount table shows the source in another form, such as with addresses for names. Then our record and fstab tell whose mount it is.
    hidden_source: bool = False
    source_options: tuple[str, ...] = ()  # options that carry the source, with {source}, {servers} and {path}; one without a value is left out
    source_advice: str = ""  # for messages: what to do about other forms of sources
    by_shell: bool = False  # True: the helper hands the source, the path and the options to a shell as they are
    vendor: str = ""  # who has the package, if it is not Debian
    denied: str = ""  # for messages: what to check if the server refuses
    risks: tuple[tuple[str, str], ...] = ()  # (option, what can happen to data while it is in force)
    fallbacks: tuple[str, ...] = ()  # options of versions that are tried one by one where the helper ends its own search early
    falls_back_on: tuple[str, ...] = ()  # messages of the helper that mean so
    shown_as_any: bool = False  # True: it is mounted by a type that has no row, and nobody knows how the mount table shows it

    @property
    def keeps_credentials(self) -> bool:
        """Whether credentials lie in a file that an option names."""
        return self.credentials in ("file", "secret")

    def is_shown_as(self, kernel_type: str) -> bool:
        """Whether the mount table may show ``kernel_type`` for it."""
        return kernel_type in self.kernel_types or (self.shown_as_any and by_kernel_type(kernel_type) is None and not localities.locality(kernel_type).local)

    def keeps_inodes(self, options: tuple[str, ...]) -> bool:
        """Whether a file keeps its inode number at the next mount. ``options`` are those in force, as in the other methods."""
        return not _any_of(self.renumbered_with, options)

    def locks_visible(self, options: tuple[str, ...]) -> bool:
        """Whether the locks of other processes and hosts can be seen at all."""
        return not _any_of(self.blind_with, options)

    def locks_readable(self, options: tuple[str, ...]) -> bool:
        """Whether a lock can be queried without an attempt to take it."""
        return not _any_of(self.unreadable_with, options)


def _any_of(wanted: tuple[str, ...], options: tuple[str, ...]) -> bool:
    return wanted == ALWAYS or any(option in options for option in wanted)


DIRECTORY = FileSystem(name="directory", source=r"/.*", example="/srv/volumes", local=True)

BIND = FileSystem(
    name="bind",
    source=r"/[^/].*",
    example="/srv/volumes",
    mount_type="none",
    local=True,
    default_options=("bind",),
    # The options of the file system beneath belong to another mount: a bind mount has only the general ones.
    remountable=GENERAL,
    remount_options=("remount", "bind"),
)

AUTO = "auto"  # the value of fstype with which the table chooses the file system
OTHER = "other"  # the value of fstype with which the option "type" names the file system
FUSE = "fuse."  # a type that begins so is served by a program, whose name follows
_NO_TYPE = ("auto", "none", "swap", "ignore")  # words that mount(8) or fstab take for something else than a type


def rows() -> tuple[FileSystem, ...]:
    """All rows."""
    from . import file_systems as table  # late: a task on a plain directory starts faster without it

    return (DIRECTORY, BIND, *table.SERVED)


def choices() -> list[str]:
    """The values of ``fstype``."""
    return [AUTO, *(row.name for row in rows()), OTHER]


def unknown_file_system(kernel_type: str) -> FileSystem:
    """A row for a file system that is not in the table. It assumes the worst of locks, inode numbers and caches, because nothing is known of them."""
    return FileSystem(kernel_type, "", "", blind_with=ALWAYS, unreadable_with=ALWAYS, renumbered_with=ALWAYS, client_times=True, stale_seconds=1.25)


def other(mount_type: str | None) -> FileSystem:
    """The row of ``fstype: other``: a file system without a row, by its type for ``mount -t``. It assumes the worst, as :func:`unknown_file_system` does.

    :raises InvalidParameter: no type is given, or it needs another ``fstype``.
    """
    if not mount_type:
        raise errors.InvalidParameter(f"fstype {OTHER}", "its type is not given", "name the type for mount -t in the option 'type'")
    subject = f"type {mount_type!r}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", mount_type) or mount_type in _NO_TYPE:
        raise errors.InvalidParameter(subject, "it is not the type of a file system", "write it as after mount -t, like lustre or fuse.juicefs")
    known = find(mount_type) or by_mount_type(mount_type) or by_kernel_type(mount_type)
    if known is not None:
        raise errors.InvalidParameter(subject, "this file system is known", f"use fstype {known.name} and leave type out")
    if localities.locality(mount_type).local or localities.locality(mount_type).trigger or localities.locality(mount_type).kernel_state:
        remedy = f"mount it by other means, and name its directory (fstype {DIRECTORY.name})"
        raise errors.InvalidParameter(subject, "no server serves this file system", remedy)
    return unknown_file_system(mount_type)._replace(
        name=OTHER, source=r"\S.*", example="the source in your file system's documentation", mount_type=mount_type,
        kernel_types=(mount_type,) if mount_type.startswith(FUSE) else (mount_type, FUSE + mount_type),
        shown_as_any=True, hidden_source=True, vague=True, local_options=("user_id", "group_id", "rootmode", "fd"),
    )


def find(name: str) -> FileSystem | None:
    """The row with the name ``name``; None if there is none, as for a share on a file system without a row."""
    for row in (DIRECTORY, BIND):
        if row.name == name:
            return row
    return next((row for row in rows() if row.name == name), None)


def by_name(name: str) -> FileSystem:
    """The row with the name ``name``.

    :raises InvalidParameter: there is none.
    """
    row = find(name)
    if row is None:
        raise errors.InvalidParameter(f"fstype {name!r}", "this file system is not known", "choose one of " + ", ".join(choices()))
    return row


def by_kernel_type(kernel_type: str) -> FileSystem | None:
    """The row of a mounted file system, by its type in mountinfo; None if there is none, as for directories and bind mounts."""
    if localities.locality(kernel_type).local:
        return None
    return next((row for row in rows() if kernel_type in row.kernel_types), None)


def by_mount_type(mount_type: str) -> FileSystem | None:
    """The row of a line of fstab, by its third field, which may be a mount type or a kernel type; None for any other file system."""
    return next((row for row in rows() if row.mount_type and mount_type in (row.mount_type,) + row.kernel_types), None)
