# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file systems that a share can be on: one row each.

To add one, add its row. Everything that differs between file systems is a column here, so that no other module asks for
a file system by name. A second, smaller table tells the file systems
without a row apart, on which a directory that serves as a share may lie.
"""
from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import InvalidParameter

ALWAYS = ("*",)

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
    """What the rest of the collection needs to know of one file system."""

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
    network: bool = True  # False where no server can keep a caller waiting
    credentials: str = ""  # "file": an option names a file; "stdin": the helper reads the password; empty: it has none
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
    owners: tuple[str, ...] = ()  # options whose value is a user ("uid") or a group ("gid"), by name or number
    remountable: tuple[str, ...] = ()  # options that a remount changes in place; any other takes unmounting and mounting
    remount_options: tuple[str, ...] = ("remount",)
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
        kernel_module="nfs",
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
        credentials="file",
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
        by_hand="try `ssh {host} true` by hand as root, which says why in its own words; sshfs does not hand them on",
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


def normalise_source(source: str, row: FileSystem | None = None) -> str:
    """One spelling for what servers and clients treat alike.

    Doubled slashes, "." and a trailing slash go, backslashes of SMB become slashes, hosts and the names of SMB shares are in small
    letters. ``row`` tells what the form does not: whether ``host:name`` is the same as ``host:/name``.
    """
    if source.startswith(("//", "\\\\")) and (row is None or row.folds_case):
        parts = _parts(source.replace("\\", "/"))
        return "//" + "/".join([part.lower() for part in parts[:2]] + parts[2:])
    if source.startswith("/"):
        return "/" + "/".join(_parts(source))
    remote = re.fullmatch(r"((?:[^@:/]*@)?)((?:\[[^\]]*\]|[^\[\]:/@])+):(.*)", source, re.DOTALL)
    if remote is None:
        return source
    user, host, path = remote.groups()
    rooted = "/" if path.startswith("/") or (path and row is not None and row.slash_optional) else ""
    return f"{user}{_host(host.lower())}:{rooted}{'/'.join(_parts(path))}"


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _host(host: str) -> str:
    if not host.startswith("["):
        return host
    from socket import AF_INET6, inet_ntop, inet_pton  # late: such addresses are rare

    address, percent, zone = host.strip("[]").partition("%")
    try:
        return f"[{inet_ntop(AF_INET6, inet_pton(AF_INET6, address))}{percent}{zone}]"
    except OSError:
        return host


# --- file systems without a row


class Locality(NamedTuple):
    """A file system that a directory may lie on, by the type that mountinfo shows.

    It is trusted only where it is listed as local: every process that can open its files is known to the kernel that keeps the
    locks. Of all others, listed or not, locks of other hosts may be invisible, so they are never taken for seen. The rows of
    what is not local change nothing: they say why they should not be added to the local ones.
    """

    kernel_type: str
    local: bool  # only processes of this host use it, and their locks are seen; a look at it cannot hang
    why: str


_DISK = "on a block device, which one host mounts at a time"
_MEMORY = "in the memory of this host"
_IMAGE = "read-only, nobody writes it"
_HYPERVISOR = "the files of the host that runs this machine, which opens them too"
_SERVER = "served over the network"
_CLUSTER = "mounted by several hosts at once"
_PROCESS = "served by a process, which alone knows who else uses the files"

LOCALITIES: tuple[Locality, ...] = (
    *(Locality(name, True, _DISK) for name in ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "reiserfs", "reiser4", "nilfs2")),
    *(Locality(name, True, _DISK) for name in ("vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfs", "hfsplus", "udf", "minix", "ufs", "affs")),
    *(Locality(name, True, _DISK) for name in ("jffs2", "ubifs")),
    *(Locality(name, True, _MEMORY) for name in ("tmpfs", "ramfs", "rootfs", "devtmpfs", "hugetlbfs")),
    *(Locality(name, True, _MEMORY) for name in ("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "devpts", "mqueue")),
    *(Locality(name, True, _IMAGE) for name in ("squashfs", "erofs", "cramfs", "iso9660", "romfs")),
    Locality("overlay", True, "its upper directory belongs to one mount of one host"),
    *(Locality(name, False, _HYPERVISOR) for name in ("9p", "virtiofs", "vboxsf", "prl_fs", "vmhgfs", "hgfs", "fuse.vmhgfs-fuse", "hostfs", "drvfs")),
    *(Locality(name, False, _SERVER) for name in ("ceph", "afs", "coda", "ncpfs", "ncp", "smbfs", "davfs", "lustre", "orangefs", "pvfs2", "fuse.ceph")),
    *(Locality(name, False, _SERVER) for name in ("fuse.curlftpfs", "fuse.davfs2", "fuse.rclone", "fuse.s3fs", "fuse.mfs", "fuse.moosefs", "fuse.juicefs")),
    *(Locality(name, False, _SERVER) for name in ("beegfs", "gpfs", "panfs", "wekafs", "quobyte", "fuse.quobyte", "fuse.vzstorage", "fuse.goofys")),
    *(Locality(name, False, _CLUSTER) for name in ("ocfs2", "gfs2", "vmfs")),
    *(Locality(name, False, _PROCESS) for name in ("fuse", "fuse.mergerfs", "fuse.bindfs", "fuse.gocryptfs", "fuse.encfs", "fuse.fuse-overlayfs")),
    *(Locality(name, False, "stacked upon a directory that may be on any file system") for name in ("ecryptfs", "aufs", "unionfs")),
    Locality("autofs", False, "a trigger: what it mounts is known only when somebody went there"),
)

# Where the kernel shows its own state: nobody stores files there.
PSEUDO = frozenset((
    "proc", "sysfs", "cgroup", "cgroup2", "devpts", "debugfs", "tracefs", "securityfs", "configfs", "fusectl", "pstore", "bpf", "mqueue", "binfmt_misc",
    "efivarfs", "selinuxfs", "rpc_pipefs", "nfsd", "nsfs", "binder", "resctrl",
))

LOCAL = frozenset(row.kernel_type for row in LOCALITIES if row.local)


def is_local(kernel_type: str) -> bool:
    """Whether the file system is known to be this host's alone. What nobody has listed is not."""
    return kernel_type in LOCAL
