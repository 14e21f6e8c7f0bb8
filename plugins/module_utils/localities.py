# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file systems that a directory of this host may lie on: one row each, by the type that the mount table shows.

File systems that can be mounted as a share have a row in :mod:`mounts.types` instead. No other module compares a type's name.
"""

from __future__ import annotations

from typing import NamedTuple


class Locality(NamedTuple):
    """One file system without a row in :mod:`mounts.types`.

    A file system is trusted only if its row is local. On all others, listed or not, locks of other hosts may be invisible, so the
    collection never relies on them. A row that is not local does not change this: it records why it must not be made local.
    """

    kernel_type: str
    local: bool  # only processes of this host use it, their locks are visible, and no access can hang
    why: str  # the reason for ``local``
    kernel_state: bool = False  # the kernel shows its own state there, so that no files can be stored
    trigger: bool = False  # an automounter's placeholder: it mounts something at the first access
    subvolumes: bool = False  # its subvolumes look like bind mounts in the mount table
    shares_blocks: bool = False  # a copy of a file can share the blocks of the original (reflink)


_DISK = "on a block device, which one host mounts at a time"
_MEMORY = "in the memory of this host"
_IMAGE = "read-only, nobody writes it"
_KERNEL = "the kernel's own state"
_HYPERVISOR = "the files of the host that runs this machine, which opens them too"
_SERVER = "served over the network"
_CLUSTER = "mounted by several hosts at once"
_PROCESS = "served by a process, and only that process knows who else uses the files"

ROOT = Locality("rootfs", True, _MEMORY)

LOCALITIES: tuple[Locality, ...] = (
    *(Locality(name, True, _DISK) for name in ("ext2", "ext3", "ext4", "zfs", "f2fs", "jfs", "reiserfs", "reiser4", "nilfs2")),
    *(Locality(name, True, _DISK, shares_blocks=True) for name in ("xfs", "bcachefs")),
    Locality("btrfs", True, _DISK, subvolumes=True, shares_blocks=True),
    *(Locality(name, True, _DISK) for name in ("vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfs", "hfsplus", "udf", "minix", "ufs", "affs")),
    *(Locality(name, True, _DISK) for name in ("jffs2", "ubifs")),
    *(Locality(name, True, _MEMORY) for name in ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")),
    ROOT,
    *(Locality(name, True, _KERNEL, kernel_state=True) for name in ("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs")),
    *(Locality(name, True, _KERNEL, kernel_state=True) for name in ("configfs", "devpts", "mqueue")),
    *(Locality(name, False, _KERNEL, kernel_state=True) for name in ("fusectl", "pstore", "bpf", "binfmt_misc", "efivarfs", "selinuxfs", "rpc_pipefs")),
    *(Locality(name, False, _KERNEL, kernel_state=True) for name in ("nfsd", "nsfs", "binder", "resctrl")),
    *(Locality(name, True, _IMAGE) for name in ("squashfs", "erofs", "cramfs", "iso9660", "romfs")),
    Locality("overlay", True, "its upper directory belongs to one mount of one host"),
    *(Locality(name, False, _HYPERVISOR) for name in ("vboxsf", "prl_fs", "vmhgfs", "hgfs", "fuse.vmhgfs-fuse", "hostfs", "drvfs")),
    *(Locality(name, False, _SERVER) for name in ("afs", "coda", "ncpfs", "ncp", "smbfs", "davfs", "lustre", "orangefs", "pvfs2")),
    *(Locality(name, False, _SERVER) for name in ("fuse.curlftpfs", "fuse.davfs2", "fuse.rclone", "fuse.s3fs", "fuse.mfs", "fuse.moosefs", "fuse.juicefs")),
    *(Locality(name, False, _SERVER) for name in ("beegfs", "gpfs", "panfs", "wekafs", "fuse.goofys")),
    Locality("ocfs2", False, _CLUSTER, shares_blocks=True),
    *(Locality(name, False, _CLUSTER) for name in ("gfs2", "vmfs")),
    *(Locality(name, False, _PROCESS) for name in ("fuse", "fuse.mergerfs", "fuse.bindfs", "fuse.gocryptfs", "fuse.encfs", "fuse.fuse-overlayfs")),
    *(Locality(name, False, "stacked upon a directory that may be on any file system") for name in ("ecryptfs", "aufs", "unionfs")),
    Locality("autofs", False, "it belongs to an automounter", trigger=True),
)

_UNLISTED = Locality("", False, "it is not listed")
_BY_TYPE = {row.kernel_type: row for row in LOCALITIES}


def locality(kernel_type: str) -> Locality:
    """The row of ``kernel_type``, the type that the mount table shows. For a type without a row it is one that is not local."""
    return _BY_TYPE.get(kernel_type, _UNLISTED)


def holds_local_files(kernel_type: str) -> bool:
    """Whether users can store files on a file system of this type and only processes of this host can open them."""
    return locality(kernel_type).local and not locality(kernel_type).kernel_state
