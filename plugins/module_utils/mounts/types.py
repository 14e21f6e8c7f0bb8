# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file systems that a share can be on: one row each.

To add a file system, add its row. Each difference between file systems is a column, so that no other module compares a file
system's name; tests/unit/mounts/test_mounts_one_row.py checks that. :mod:`localities` has the file systems that cannot be mounted
as a share themselves, but that may hold a directory which serves as a share.
"""
from __future__ import annotations

from typing import NamedTuple

from ..errors import InvalidParameter

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

_HOST = r"(\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\]|[A-Za-z0-9][^/:@,\s]*)"


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
    credentials: str = ""  # "file": an option names a file; "stdin": the helper reads the password; empty: it takes no credentials
    identity_options: tuple[str, ...] = ()  # options that say which user mounts; the first one names the credentials file
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


_FLAGS = ("nosuid", "nodev", "noexec", "noatime", "nodiratime", "sync", "dirsync")  # those of the kernel that mount(8) applies by itself
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
    # The options of the file system beneath belong to another mount: a bind mount has only the general ones.
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
        # Without nconnect, fsc and softreval: the first mount of a server decides on them, or the kernel lacks them and shows nothing.
        silent=(
            "acregmin=3", "acregmax=60", "acdirmin=30", "acdirmax=60", "lookupcache=all", "nconnect=1", "port=0", "port=2049",
            "sharecache", "rdirplus", "resvport", "cto", "ac", "lock", "local_lock=none",
        ),
        # The protocol of NFSv4 includes locks and ACLs: the kernel drops options that are about the helper protocols of NFSv3.
        moot=(("vers=4", ("nolock", "lock", "local_lock", "acl", "noacl", "mountvers", "mountproto", "mountport", "mounthost", "mountaddr")),),
        negotiated=("rsize", "wsize"),
        listed=("sec",),
        versions=("vers",),
        separating="nosharecache",
        # A remount of NFS changes the general flags only; the kernel refuses the rest.
        remountable=GENERAL,
        local_options=("addr", "clientaddr", "mountaddr", "mountport", "mountvers", "mountproto", "namlen"),
        attachable=_FLAGS + (
            "vers", "proto", "port", "soft", "softerr", "timeo", "retrans", "sec", "noac", "nocto", "nolock", "local_lock", "nordirplus", "noresvport",
            "lookupcache", "nconnect", "acregmin", "acregmax", "acdirmin", "acdirmax",
        ),
        attachable_given=("rsize", "wsize", "mountport", "mountproto", "mountvers"),
        assumed=("timeo=600", "retrans=2"),
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
        # Without nobrl QEMU cannot create a qcow2 file: its own locks block it (EACCES).
        default_options=("nobrl",),
        spellings=(("user", ("username=*",)), ("dom", ("domain=*",)), ("workgroup", ("domain=*",))),
        shown=(
            "vers", "sec", "cache", "uid", "gid", "forceuid", "forcegid", "file_mode", "dir_mode", "hard", "soft", "serverino", "nobrl", "rsize", "wsize",
            "actimeo", "username", "domain", "seal", "multiuser", "mfsymlinks", "noperm", "cifsacl", "modefromsid", "echo_interval",
        ),
        silent=("vers=default", "sec=none"),
        # The mount table does not show the user of a multiuser mount or of a guest mount.
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
        # The helper takes uid alone for forceuid, and asks for a password where neither a guest nor a credentials file is named.
        attachable=_FLAGS + (
            "vers", "sec", "cache", "uid", "gid", "forceuid", "forcegid", "noforceuid", "noforcegid", "file_mode", "dir_mode", "nobrl", "noperm",
            "mfsymlinks", "seal", "actimeo", "hard", "multiuser", "cifsacl", "modefromsid", "username", "domain",
        ),
        attachable_given=("credentials", "cred", "guest", "rsize", "wsize", "port", "noserverino"),
        unspellings=(("sec=none", "guest"),),
        folds_case=True,
        keeps_modes=False,
        blind_with=("nobrl",),
        renumbered_with=("noserverino",),
        unreadable_with=ALWAYS,
    ),
    FileSystem(
        name="glusterfs",
        client_times=True,  # its translator ctime, which is on by default
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
        # The helper refuses what the kernel shows of FUSE. With nodiratime and relatime it mounts nothing, and says that all is well.
        attachable=("nosuid", "nodev", "noexec", "noatime"),
        attachable_given=("backup-volfile-servers", "backupvolfile-server", "server-port", "transport", "fetch-attempts", "acl", "selinux", "enable-ino32")
        + ("direct-io-mode", "attribute-timeout", "entry-timeout", "negative-timeout", "use-readdirp", "xlator-option"),
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
        by_hand="try `ssh {host} true` by hand as root, which shows the reason; sshfs does not pass on the messages of ssh",
        credentials="stdin",
        stdin_options=("password_stdin",),
        without_password="use a key (opts: IdentityFile=FILE)",
        shown=_FUSE_SHOWN,
        local_options=_FUSE_LOCAL,
        # The protocol has no locks: the kernel applies them only among the processes of one host. It has no inode numbers either.
        blind_with=ALWAYS,
        renumbered_with=ALWAYS,
    ),
)

AUTO = "auto"  # the value of fstype with which this table chooses the file system
NAMES: tuple[str, ...] = tuple(row.name for row in FILE_SYSTEMS)


def unknown_file_system(kernel_type: str) -> FileSystem:
    """A row for a file system that is not in the table. It assumes the worst of locks, inode numbers and caches, because nothing is known of them."""
    return FileSystem(kernel_type, "", "", blind_with=ALWAYS, unreadable_with=ALWAYS, renumbered_with=ALWAYS, client_times=True, stale_seconds=1.25)


def find(name: str) -> FileSystem | None:
    """The row with the name ``name``; None if there is none, as for a share on a file system without a row."""
    return next((row for row in FILE_SYSTEMS if row.name == name), None)


def by_name(name: str) -> FileSystem:
    """The row with the name ``name``.

    :raises InvalidParameter: there is none.
    """
    row = find(name)
    if row is None:
        raise InvalidParameter(f"fstype {name!r}", "this file system is not known", "choose one of " + ", ".join(NAMES))
    return row


def by_kernel_type(kernel_type: str) -> FileSystem | None:
    """The row of a mounted file system, by its type in mountinfo; None if there is none, as for directories and bind mounts."""
    for row in FILE_SYSTEMS:
        if kernel_type in row.kernel_types:
            return row
    return None


def by_mount_type(mount_type: str) -> FileSystem | None:
    """The row of a line of fstab, by its third field, which may be a mount type or a kernel type; None for any other file system."""
    for row in FILE_SYSTEMS:
        if row.mount_type and mount_type in (row.mount_type,) + row.kernel_types:
            return row
    return None
