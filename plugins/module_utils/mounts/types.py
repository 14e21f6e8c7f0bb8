# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file systems that a share can be on: one row each.

To add one, add its row. Everything that differs between file systems is a column here, so that no other module asks for
a file system by name.
"""
from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import InvalidParameter

ALWAYS = ("*",)

# Options that mount(8) and fstab know but that no mount table ever shows.
FSTAB_ONLY = ("defaults", "_netdev", "nofail", "auto", "noauto", "nouser", "users", "owner", "group", "comment")

# What the mount table shows of every file system, and a remount changes on every one.
GENERAL = ("ro", "rw", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "sync", "dirsync", "nosymfollow")

_HOST = r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9][^/:@,\s]*)"


class FileSystem(NamedTuple):
    """What the rest of the collection needs to know of one file system."""

    name: str
    source: str  # pattern of a valid source
    example: str  # a source, for messages
    claims: str = ""  # pattern of the sources which fstype auto takes for this file system
    kernel_types: tuple[str, ...] = ()  # as mountinfo shows them
    mount_type: str = ""  # as mount -t and fstab want it; empty: nothing is ever mounted
    helper: str = ""  # the program that mount(8) calls for it
    package: str = ""  # Debian's package that brings it
    network: bool = True  # False where no server can keep a caller waiting
    credentials: str = ""  # "file": an option names a file; "stdin": the helper reads the password; empty: it has none
    default_options: tuple[str, ...] = ()
    stdin_options: tuple[str, ...] = ()  # what makes the helper read the password
    spellings: tuple[tuple[str, tuple[str, ...]], ...] = ()  # an option and how the mount table spells it ("*": its value)
    shown: tuple[str, ...] = ()  # options that the mount table shows when they are in force, beside the general ones
    silent: tuple[str, ...] = ()  # values that it leaves out, because they are the default
    negotiated: tuple[str, ...] = ()  # sizes that a server may lower
    octal: tuple[str, ...] = ()  # options whose values are octal numbers
    owners: tuple[str, ...] = ()  # options whose value is a user ("uid") or a group ("gid"), by name or number
    remountable: tuple[str, ...] = ()  # options that a remount changes in place; any other takes unmounting and mounting
    remount_options: tuple[str, ...] = ("remount",)
    remount_whole: bool = False  # True where a remount wants every option again, not only the general ones
    local_options: tuple[str, ...] = ()  # shown, but true for one host or one mount only
    keeps_modes: bool = True
    blind_with: tuple[str, ...] = ()  # options with which the locks of other hosts cannot be seen at all
    unreadable_with: tuple[str, ...] = ()  # options with which a held lock can be met but not asked about
    renumbered_with: tuple[str, ...] = ()  # options with which inode numbers are the client's own
    stale_seconds: float = 0.0  # how long a client may show what another one has replaced, even after opening it anew

    def keeps_inodes(self, options: tuple[str, ...]) -> bool:
        return not _any_of(self.renumbered_with, options)

    def locks_visible(self, options: tuple[str, ...]) -> bool:
        return not _any_of(self.blind_with, options)

    def locks_readable(self, options: tuple[str, ...]) -> bool:
        return not _any_of(self.unreadable_with, options)


def _any_of(wanted: tuple[str, ...], options: tuple[str, ...]) -> bool:
    return wanted == ALWAYS or any(option in options for option in wanted)


_FUSE_SHOWN = ("allow_other", "default_permissions", "max_read")
_FUSE_LOCAL = ("user_id", "group_id", "rootmode", "fd")

DIRECTORY = FileSystem(name="directory", source=r"/.*", example="/srv/volumes", network=False)

FILE_SYSTEMS: tuple[FileSystem, ...] = (
    DIRECTORY,
    FileSystem(
        name="bind",
        source=r"/[^/].*",
        example="/srv/volumes",
        mount_type="none",
        network=False,
        default_options=("bind",),
        # The options of the file system beneath belong to somebody else: a bind mount has the general ones only.
        remountable=GENERAL,
        remount_options=("remount", "bind"),
    ),
    FileSystem(
        name="nfs",
        source=_HOST + r":/.*",
        example="nas1:/vols",
        claims=_HOST + r":/.*",
        kernel_types=("nfs", "nfs4"),
        mount_type="nfs",
        helper="mount.nfs",
        package="nfs-common",
        spellings=(
            ("nfsvers", ("vers=*",)), ("v3", ("vers=3",)), ("v4", ("vers=4",)), ("v4.0", ("vers=4.0",)), ("v4.1", ("vers=4.1",)), ("v4.2", ("vers=4.2",)),
            ("tcp", ("proto=tcp",)), ("udp", ("proto=udp",)), ("rdma", ("proto=rdma",)),
            ("lookupcache=positive", ("lookupcache=pos",)),
            ("actimeo", ("acregmin=*", "acregmax=*", "acdirmin=*", "acdirmax=*")),
        ),
        shown=(
            "vers", "proto", "rsize", "wsize", "hard", "soft", "softerr", "softreval", "timeo", "retrans", "sec", "noac", "nocto", "nolock",
            "nosharecache", "nordirplus", "noresvport", "lookupcache", "fsc", "nconnect", "local_lock",
            "acregmin", "acregmax", "acdirmin", "acdirmax",
        ),
        silent=("acregmin=3", "acregmax=60", "acdirmin=30", "acdirmax=60", "lookupcache=all", "nconnect=1"),
        negotiated=("rsize", "wsize"),
        # A remount of NFS changes the general flags only; the kernel refuses the rest.
        remountable=GENERAL,
        local_options=("addr", "clientaddr", "mountaddr", "mountport", "mountvers", "mountproto", "namlen"),
        blind_with=("nolock", "local_lock=all", "local_lock=posix"),
        unreadable_with=("vers=3", "vers=2"),
    ),
    FileSystem(
        name="cifs",
        stale_seconds=1.25,  # names and content are cached for one second; measured: up to 1.02
        source=r"//[^/@\s]+/.+",
        example="//nas1/vols",
        claims=r"//[^/@\s]+/.+",
        kernel_types=("cifs", "smb3"),
        mount_type="cifs",
        helper="mount.cifs",
        package="cifs-utils",
        credentials="file",
        # Without nobrl qemu's own locks keep it from creating a qcow2 file (EACCES).
        default_options=("nobrl",),
        spellings=(("user", ("username=*",)), ("dom", ("domain=*",)), ("workgroup", ("domain=*",))),
        shown=(
            "vers", "sec", "cache", "uid", "gid", "forceuid", "forcegid", "file_mode", "dir_mode", "hard", "soft", "serverino", "nobrl", "rsize", "wsize",
            "actimeo", "username", "domain", "seal", "multiuser", "mfsymlinks", "noperm", "nosharesock", "cifsacl", "modefromsid", "echo_interval",
        ),
        silent=("vers=default",),
        negotiated=("rsize", "wsize", "bsize"),
        octal=("file_mode", "dir_mode"),
        owners=("uid", "gid"),
        remountable=GENERAL + ("file_mode", "dir_mode", "actimeo", "nobrl", "brl", "hard", "soft", "noperm", "mfsymlinks"),
        remount_whole=True,
        local_options=("addr", "srcaddr"),
        keeps_modes=False,
        blind_with=("nobrl",),
        renumbered_with=("noserverino",),
        unreadable_with=ALWAYS,
    ),
    FileSystem(
        name="glusterfs",
        stale_seconds=1.25,  # names and content are cached for one second; measured: up to 1.02
        source=_HOST + r"(," + _HOST + r")*:/?[A-Za-z0-9].*",
        example="gl1:/vols",
        kernel_types=("fuse.glusterfs",),
        mount_type="glusterfs",
        helper="mount.glusterfs",
        package="glusterfs-client",
        shown=_FUSE_SHOWN,
        local_options=_FUSE_LOCAL,
    ),
    FileSystem(
        name="sshfs",
        source=r"([A-Za-z0-9_][^@:/\s]*@)?" + _HOST + r":.*",
        example="user@host:/dir",
        claims=r"[A-Za-z0-9_][^@:/\s]*@" + _HOST + r":.*",
        kernel_types=("fuse.sshfs",),
        mount_type="fuse.sshfs",
        helper="sshfs",
        package="sshfs",
        credentials="stdin",
        stdin_options=("password_stdin",),
        shown=_FUSE_SHOWN,
        local_options=_FUSE_LOCAL,
        # The protocol has no locks: the kernel keeps them among the processes of one host. Nor has it inode numbers.
        blind_with=ALWAYS,
        renumbered_with=ALWAYS,
    ),
)

NAMES: tuple[str, ...] = tuple(row.name for row in FILE_SYSTEMS)


def by_name(name: str) -> FileSystem:
    """The row called ``name``.

    :raises InvalidParameter: there is none.
    """
    for row in FILE_SYSTEMS:
        if row.name == name:
            return row
    raise InvalidParameter(f"fstype {name!r}", "this file system is not known", "choose one of " + ", ".join(NAMES))


def by_kernel_type(kernel_type: str) -> FileSystem | None:
    """The row of a mounted network file system by the type that mountinfo shows; None for any other file system."""
    for row in FILE_SYSTEMS:
        if kernel_type in row.kernel_types:
            return row
    return None


def by_mount_type(mount_type: str) -> FileSystem | None:
    """The row of an fstab line by its third field (or a kernel type); None for any other file system."""
    for row in FILE_SYSTEMS:
        if row.mount_type and mount_type in (row.mount_type,) + row.kernel_types:
            return row
    return None


def claim(source: str) -> FileSystem | None:
    """The row that ``fstype: auto`` stands for by the form of ``source``; None for a directory or where the form says nothing."""
    for row in FILE_SYSTEMS:
        if row.claims and re.fullmatch(row.claims, source):
            return row
    return None


def is_source(text: str) -> bool:
    """Whether ``text`` has the form of any network share's source."""
    return any(row.network and re.fullmatch(row.source, text) for row in FILE_SYSTEMS)


def normalise_source(source: str) -> str:
    """One spelling for what servers treat alike: backslashes of SMB become slashes, a trailing slash goes."""
    if source.startswith("\\\\"):
        source = source.replace("\\", "/")
    stripped = source.rstrip("/")
    return stripped + "/" if stripped != source and (not stripped or stripped.endswith(":")) else stripped
