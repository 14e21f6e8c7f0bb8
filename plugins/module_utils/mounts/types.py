# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file systems that a share can be on: one row each.

To add one, add its row. Everything that differs between file systems is a column here, so that no other module asks for a
file system by name; tests/unit/mounts/test_mounts_one_row.py holds that. File systems that are no shares by themselves, on which
a directory that serves as one may lie, are in :mod:`localities`.
"""
from __future__ import annotations

from typing import NamedTuple

from ..errors import InvalidParameter

ALWAYS = ("*",)
BY_PATH = "local"  # the driver_volume_type of os-brick that takes a path on this host

# Options that mount(8) and fstab know but that no mount table ever shows.
FSTAB_ONLY = ("defaults", "_netdev", "nofail", "auto", "noauto", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup", "comment")

# What the mount table shows of every file system while it is in force.
GENERAL_SHOWN = ("ro", "rw", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "sync", "dirsync", "nosymfollow", "lazytime")

# What it never shows, because it says that others are not in force.
CONTRARIES = {
    "suid": ("nosuid",), "dev": ("nodev",), "exec": ("noexec",), "async": ("sync",), "diratime": ("nodiratime",), "symfollow": ("nosymfollow",),
    "nolazytime": ("lazytime",), "atime": ("noatime",), "strictatime": ("noatime", "relatime"), "norelatime": ("relatime",), "nostrictatime": (),
}

# What a remount changes on every file system.
GENERAL = GENERAL_SHOWN + tuple(CONTRARIES)

_HOST = r"(\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\]|[A-Za-z0-9][^/:@,\s]*)"


class FileSystem(NamedTuple):
    """What the rest of the collection needs to know of one file system. Options are words as in mount(8), patterns regular expressions."""

    name: str
    source: str  # pattern of a valid source
    example: str  # a source, for messages
    claims: str = ""  # pattern of the sources which fstype auto takes for this file system
    kernel_types: tuple[str, ...] = ()  # as mountinfo shows them
    mount_type: str = ""  # as mount -t and fstab want it; empty: nothing is ever mounted
    helper: str = ""  # the program that mount(8) calls for it
    package: str = ""  # Debian's package that brings it
    kernel_module: str = ""  # what the kernel needs for it
    by_hand: str = ""  # what tells more than the helper does when it fails; {host} is the source up to its directory
    no_module: tuple[str, ...] = ()  # what the helper says where the kernel has no such file system, beside what mount(8) says
    local: bool = False  # True where only processes of this host open the files, so that no server can keep a caller waiting
    by_process: bool = False  # True where a process of this host serves the mount: it may die and leave a mount that answers nobody
    root_in_source: str = ""  # where the mount table has the place in an export: "alone" in the source, "too" in source and root; empty: in the root
    cinder_type: str = BY_PATH  # the driver_volume_type of os-brick
    credentials: str = ""  # "file": an option names a file; "stdin": the helper reads the password; empty: it has none
    identity_options: tuple[str, ...] = ()  # options that say who mounts; the first one names the file
    user_option: str = ""  # how the mount table shows who mounted
    without_password: str = ""  # what a user can do where no password can be kept
    default_options: tuple[str, ...] = ()
    stdin_options: tuple[str, ...] = ()  # what makes the helper read the password
    spellings: tuple[tuple[str, tuple[str, ...]], ...] = ()  # an option and how the mount table spells it ("*": its value)
    shown: tuple[str, ...] = ()  # options that the mount table shows when they are in force, beside the general ones
    silent: tuple[str, ...] = ()  # values that it leaves out, because they are the default
    moot: tuple[tuple[str, tuple[str, ...]], ...] = ()  # beside which live option which others mean nothing, so that none of them is shown
    negotiated: tuple[str, ...] = ()  # sizes that a server may lower, and that very small ones are raised from
    listed: tuple[str, ...] = ()  # options whose value is a choice, separated by colons, of which the live one is shown
    signed: tuple[str, ...] = ()  # options whose live value gets an "i" where the server wants signatures
    octal: tuple[str, ...] = ()  # options whose values are octal numbers
    versions: tuple[str, ...] = ()  # options whose values are versions of the protocol
    owners: tuple[str, ...] = ()  # options whose value is a user ("uid") or a group ("gid"), by name or number
    remountable: tuple[str, ...] = ()  # options that a remount changes in place; any other takes unmounting and mounting
    remount_options: tuple[str, ...] = ("remount",)
    separating: str = ""  # the option that keeps two mounts of one export on this host from sharing their options
    remount_whole: bool = False  # True where a remount wants every option again, not only the general ones
    local_options: tuple[str, ...] = ()  # shown, but true for one host or one mount only
    attachable: tuple[str, ...] = ()  # options that another host's mount helper takes as they are shown, beside ro
    folds_case: bool = False  # the first part of the path in a source is a name whose letter case does not matter
    slash_optional: bool = False  # host:name is host:/name
    keeps_modes: bool = True
    blind_with: tuple[str, ...] = ()  # options with which the locks of other hosts cannot be seen at all
    unreadable_with: tuple[str, ...] = ()  # options with which a held lock can be met but not asked about
    renumbered_with: tuple[str, ...] = ()  # options with which inode numbers are the client's own
    stale_seconds: float = 0.0  # how long a client may show what another one has replaced, even after opening it anew

    def keeps_inodes(self, options: tuple[str, ...]) -> bool:
        """Whether a file has the same inode number after the next mount. ``options`` are those in force, here and below."""
        return not _any_of(self.renumbered_with, options)

    def locks_visible(self, options: tuple[str, ...]) -> bool:
        """Whether the locks of other processes and hosts can be seen at all."""
        return not _any_of(self.blind_with, options)

    def locks_readable(self, options: tuple[str, ...]) -> bool:
        """Whether somebody can ask about a lock without trying to take it."""
        return not _any_of(self.unreadable_with, options)


def _any_of(wanted: tuple[str, ...], options: tuple[str, ...]) -> bool:
    return wanted == ALWAYS or any(option in options for option in wanted)


_FUSE_SHOWN = ("allow_other", "default_permissions", "max_read")
_FUSE_LOCAL = ("user_id", "group_id", "rootmode", "fd")
_FUSE_MISSING = ("device not found, try 'modprobe fuse'",)

DIRECTORY = FileSystem(name="directory", source=r"/.*", example="/srv/volumes", local=True)

BIND = FileSystem(
    name="bind",
    source=r"/[^/].*",
    example="/srv/volumes",
    mount_type="none",
    local=True,
    default_options=("bind",),
    # The options of the file system beneath belong to somebody else: a bind mount has the general ones only.
    remountable=GENERAL,
    remount_options=("remount", "bind"),
)

FILE_SYSTEMS: tuple[FileSystem, ...] = (
    DIRECTORY,
    BIND,
    FileSystem(
        name="nfs",
        source=_HOST + r":/.*",
        example="nas1:/vols",
        claims=_HOST + r":/.*",
        kernel_types=("nfs", "nfs4"),
        mount_type="nfs",
        helper="mount.nfs",
        package="nfs-common",
        kernel_module="nfs",
        root_in_source="alone",
        cinder_type="nfs",
        spellings=(
            ("nfsvers", ("vers=*",)), ("v3", ("vers=3",)), ("v4", ("vers=4",)), ("v4.0", ("vers=4.0",)), ("v4.1", ("vers=4.1",)), ("v4.2", ("vers=4.2",)),
            ("tcp", ("proto=tcp",)), ("udp", ("proto=udp",)), ("rdma", ("proto=rdma",)),
            ("lookupcache=positive", ("lookupcache=pos",)),
            ("actimeo", ("acregmin=*", "acregmax=*", "acdirmin=*", "acdirmax=*")),
        ),
        shown=(
            "vers", "proto", "rsize", "wsize", "hard", "soft", "softerr", "timeo", "retrans", "sec", "noac", "nocto", "nolock",
            "nosharecache", "nordirplus", "noresvport", "lookupcache", "local_lock", "acregmin", "acregmax", "acdirmin", "acdirmax",
        ),
        # Not nconnect, fsc and softreval: the first mount of a server decides, or the kernel lacks them and shows nothing.
        silent=(
            "acregmin=3", "acregmax=60", "acdirmin=30", "acdirmax=60", "lookupcache=all", "nconnect=1", "port=0", "port=2049",
            "sharecache", "rdirplus", "resvport", "cto", "ac", "lock", "local_lock=none",
        ),
        # NFSv4 has locking and ACLs in the protocol: the kernel drops what speaks of the helpers of NFSv3.
        moot=(("vers=4", ("nolock", "lock", "local_lock", "acl", "noacl", "mountvers", "mountproto", "mountport", "mounthost", "mountaddr")),),
        negotiated=("rsize", "wsize"),
        listed=("sec",),
        versions=("vers",),
        separating="nosharecache",
        # A remount of NFS changes the general flags only; the kernel refuses the rest.
        remountable=GENERAL,
        local_options=("addr", "clientaddr", "mountaddr", "mountport", "mountvers", "mountproto", "namlen"),
        attachable=(
            "vers", "proto", "port", "soft", "softerr", "sec", "noac", "nocto", "nolock", "nordirplus", "noresvport", "lookupcache", "nconnect",
            "acregmin", "acregmax", "acdirmin", "acdirmax",
        ),
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
        kernel_module="cifs",
        root_in_source="too",
        cinder_type="smbfs",
        credentials="file",
        identity_options=("credentials", "cred", "guest"),
        user_option="username",
        # Without nobrl qemu's own locks keep it from creating a qcow2 file (EACCES).
        default_options=("nobrl",),
        spellings=(("user", ("username=*",)), ("dom", ("domain=*",)), ("workgroup", ("domain=*",))),
        shown=(
            "vers", "sec", "cache", "uid", "gid", "forceuid", "forcegid", "file_mode", "dir_mode", "hard", "soft", "serverino", "nobrl", "rsize", "wsize",
            "actimeo", "username", "domain", "seal", "multiuser", "mfsymlinks", "noperm", "cifsacl", "modefromsid", "echo_interval",
        ),
        silent=("vers=default", "sec=none"),
        # Who mounted is shown neither of a mount for many users nor of one for guests.
        moot=(("multiuser", ("username", "domain")), ("sec=none", ("username", "domain", "guest")), ("username=guest", ("guest",))),
        negotiated=("rsize", "wsize", "bsize"),
        signed=("sec",),
        octal=("file_mode", "dir_mode"),
        versions=("vers",),
        separating="nosharesock",
        owners=("uid", "gid"),
        remountable=GENERAL + ("file_mode", "dir_mode", "actimeo", "nobrl", "brl", "hard", "soft", "noperm", "mfsymlinks"),
        remount_whole=True,
        local_options=("addr", "srcaddr"),
        attachable=(
            "vers", "sec", "cache", "uid", "gid", "forceuid", "forcegid", "file_mode", "dir_mode", "nobrl", "noperm", "mfsymlinks", "seal", "actimeo",
            "username", "domain",
        ),
        folds_case=True,
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
        kernel_module="fuse",
        no_module=_FUSE_MISSING,
        by_process=True,
        cinder_type="glusterfs",
        by_hand="see its log in /var/log/glusterfs",
        slash_optional=True,
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
        kernel_module="fuse",
        no_module=_FUSE_MISSING,
        by_process=True,
        by_hand="try `ssh {host} true` by hand as root, which says why in its own words; sshfs does not hand them on",
        credentials="stdin",
        stdin_options=("password_stdin",),
        without_password="use a key (opts: IdentityFile=FILE)",
        shown=_FUSE_SHOWN,
        local_options=_FUSE_LOCAL,
        # The protocol has no locks: the kernel keeps them among the processes of one host. Nor has it inode numbers.
        blind_with=ALWAYS,
        renumbered_with=ALWAYS,
    ),
)

AUTO = "auto"  # the value of fstype that leaves the choice to the table
NAMES: tuple[str, ...] = tuple(row.name for row in FILE_SYSTEMS)


def unknown_file_system(kernel_type: str) -> FileSystem:
    """A row for a file system without one: nobody has found out what is seen there of other hosts, nor what else it keeps."""
    return FileSystem(kernel_type, "", "", blind_with=ALWAYS, unreadable_with=ALWAYS, renumbered_with=ALWAYS, stale_seconds=1.25)


def find(name: str) -> FileSystem | None:
    """The row called ``name``; None where no row has this name, as for a share on a file system without a row."""
    return next((row for row in FILE_SYSTEMS if row.name == name), None)


def by_name(name: str) -> FileSystem:
    """The row called ``name``.

    :raises InvalidParameter: there is none.
    """
    row = find(name)
    if row is None:
        raise InvalidParameter(f"fstype {name!r}", "this file system is not known", "choose one of " + ", ".join(NAMES))
    return row


def by_kernel_type(kernel_type: str) -> FileSystem | None:
    """The row of a mounted file system by the type that mountinfo shows; None for one without a row, and for directories and bind mounts."""
    for row in FILE_SYSTEMS:
        if kernel_type in row.kernel_types:
            return row
    return None


def by_mount_type(mount_type: str) -> FileSystem | None:
    """The row of a line of fstab by its third field, or by a kernel type; None for any other file system."""
    for row in FILE_SYSTEMS:
        if row.mount_type and mount_type in (row.mount_type,) + row.kernel_types:
            return row
    return None
