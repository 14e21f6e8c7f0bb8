# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory on a file system without a row: local ones are trusted, all others are not, also those that nobody has thought of."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.apply.engine import Terms, open_engine
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse
from ansible_collections.remotefs.storage.plugins.module_utils.localities import LOCALITIES, holds_local_files, locality
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import resolve, tables, types
from ansible_collections.remotefs.storage.plugins.module_utils.operations import shares
from ansible_collections.remotefs.storage.plugins.module_utils.plan.abilities import OFFLINE
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import in_use

# Real names of mount tables, and whether other hosts can be at the same files behind this kernel's back.
LOCAL = "ext2 ext3 ext4 xfs btrfs zfs tmpfs ramfs overlay f2fs bcachefs vfat exfat ntfs3 fuseblk squashfs jfs reiserfs nilfs2 udf hfsplus".split()
UNTOLD = (
    "vboxsf lustre fuse.rclone fuse.mfs fuse.juicefs fuse.s3fs beegfs gpfs ocfs2 gfs2 afs orangefs pvfs2 fuse fuse.mergerfs davfs "
    "fuse.curlftpfs prl_fs vmhgfs hgfs ncpfs fuse.glusterfs-3 fuse.anything ecryptfs hostfs drvfs fuse.sshfs2 smb4 nfs5 newfs"
).split()


def table(kind, path, root="/"):
    return tables.parse_mountinfo(f"1 1 8:1 / / rw - ext4 /dev/vda rw\n51 1 0:41 {root} {path} rw,relatime - {kind} source rw\n")


@pytest.fixture
def found(tmp_path, monkeypatch):
    def find(kind, root="/", below=""):
        monkeypatch.setattr(tables, "read_mounts", lambda *_a: table(kind, tmp_path, root))
        return resolve.find_share(f"{tmp_path}{below}", fstab="/dev/null")

    return find


@pytest.mark.parametrize("kind", LOCAL)
def test_local_ones_are_trusted(found, kind):
    share = found(kind)
    assert (share.fstype, share.locks_visible, share.locks_readable, share.keeps_inodes, share.stale_seconds) == ("directory", True, True, True, 0.0)


@pytest.mark.parametrize("root", ["/", "/sub"])
@pytest.mark.parametrize("below", ["", "/sub"])
@pytest.mark.parametrize("kind", UNTOLD)
def test_no_other_one_is(found, kind, root, below, tmp_path):
    share = found(kind, root, below)
    assert (share.fstype, share.locks_visible, share.locks_readable, share.keeps_inodes) == (kind, False, False, False)
    assert share.source == share.path == f"{tmp_path}{below}" and kind in share.label


@given(st.text(st.sampled_from("abefnstx.9-_"), min_size=1, max_size=12))
def test_trust_is_listed(kind):
    row, known = types.by_kernel_type(kind), {one.kernel_type: one.local for one in LOCALITIES}
    share = resolve.describe(table(kind, "/mnt/x")[1], table(kind, "/mnt/x"), "/mnt/x", None)
    assert share.locks_visible == (known.get(kind, False) if row is None else row.locks_visible(("rw", "relatime")))


def test_the_table_names_each_once_and_says_why():
    names = [row.kernel_type for row in LOCALITIES]
    assert len(set(names)) == len(names) and all(row.why for row in LOCALITIES)
    assert not set(names) & {name for row in types.rows() for name in row.kernel_types}
    assert all(locality(kind).local for kind in LOCAL) and not any(locality(kind).local for kind in UNTOLD)


@pytest.mark.parametrize("kind", ["vboxsf", "fuse.rclone", "newfs"])
def test_in_use_is_null_there_and_the_way_out_is_said(found, kind, tmp_path):
    (tmp_path / "vol").write_bytes(bytes(4096))
    with ShareDirectory(found(kind)) as directory:
        with directory.root.opened("vol") as fd:
            assert in_use.ask(fd, directory.share) is None
        for check in (True, False):
            with pytest.raises(InUse) as caught:
                open_engine(OFFLINE, directory).require_unused("vol", check)
            assert f"({kind})" in str(caught.value) and "assume_unused: true" in str(caught.value)
            open_engine(OFFLINE, directory, Terms(assume_unused=True)).require_unused("vol", check)


def test_a_plain_directory_there_is_warned_about(tmp_path, monkeypatch):
    given = {
        "src": str(tmp_path), "path": None, "mount_base": "/var/lib/remotefs/mnt", "fstype": "auto", "opts": None, "credentials": None, "state": "mounted",
        "persist": True, "fstab": "/dev/null", "attempts": 1, "timeout": 5,
    }
    monkeypatch.setattr(tables, "read_mounts", lambda *_a: table("vboxsf", tmp_path))
    (warning,) = shares.ensure(given)["warnings"]
    assert "vboxsf" in warning and "assume_unused: true" in warning
    monkeypatch.setattr(tables, "read_mounts", lambda *_a: table("xfs", tmp_path))
    assert shares.ensure(given)["warnings"] == []


def test_links_on_it_are_not_followed_because_a_look_may_hang(tmp_path):
    (tmp_path / "link").symlink_to("elsewhere")
    assert resolve.follow(f"{tmp_path}/link", table("vboxsf", tmp_path)) == f"{tmp_path}/link"
    assert resolve.follow(f"{tmp_path}/link", table("ext4", tmp_path)) == f"{tmp_path}/elsewhere"
    root = tables.parse_mountinfo("1 1 0:1 / / rw - vboxsf root rw\n")
    assert resolve.follow(f"{tmp_path}/link", root) == f"{tmp_path}/elsewhere"  # without its root the host does nothing at all


@pytest.mark.parametrize("row", LOCALITIES, ids=lambda row: row.kernel_type)
def test_paths_in_images_are_followed_only_where_users_keep_files_of_this_host(row):
    assert holds_local_files(row.kernel_type) == (row.local and not row.kernel_state)
    assert not (row.trigger and row.local) and not (row.kernel_state and row.shares_blocks)


def test_what_nobody_has_listed_is_trusted_in_nothing():
    assert not any((locality("newfs").local, holds_local_files("newfs"), locality("newfs").shares_blocks, locality("").local))
