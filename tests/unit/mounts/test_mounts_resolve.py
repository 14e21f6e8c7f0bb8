# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user calls a share, and the directory that it is."""
from __future__ import annotations

import hashlib
import os

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter, ShareNotMounted
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import resolve, tables

BASE = "/var/lib/remotefs/mnt"
DEFAULT = f"{BASE}/{hashlib.md5(b'nas:/x').hexdigest()}"


def line(number, path, fstype, source, options="rw", root="/", parent=1, device=None):
    return f"{number} {parent} {device or f'0:{number}'} {root} {path} rw,relatime - {fstype} {source} {options}\n"


TABLE = (
    line(1, "/", "ext4", "/dev/vda", parent=0, device="254:0")
    + line(2, "/mnt/first", "nfs4", "nas:/x", "rw,vers=4.2,addr=192.0.2.1,clientaddr=192.0.2.2")
    + line(3, DEFAULT, "nfs4", "nas:/x", "rw,vers=4.2")
    + line(4, "/mnt/v3", "nfs", "nas:/old", "rw,vers=3,local_lock=none")
    + line(5, "/mnt/smb", "cifs", "//nas/vols", "rw,vers=3.1.1,username=me,nobrl,password=x")
    + line(6, "/mnt/gl", "fuse.glusterfs", "gl1:/vols", "rw,user_id=0")
    + line(7, "/mnt/gl", "tmpfs", "none", parent=6)
    + line(8, "/mnt/bound", "ext4", "/dev/vda", root="/srv/source", device="254:0")
    + line(9, BASE + "/other", "tmpfs", "none")
)
MOUNTS = tables.parse_mountinfo(TABLE)


@pytest.fixture(autouse=True)
def _mounts(monkeypatch):
    monkeypatch.setattr(tables, "read_mounts", lambda path="": MOUNTS)


@pytest.fixture
def fstab(tmp_path):
    return str(tmp_path / "fstab")


def test_a_source_is_found_at_its_default_path_first(fstab):
    share = resolve.find_share("nas:/x", fstab=fstab)
    assert (share.path, share.fstype, share.source) == (DEFAULT, "nfs", "nas:/x")
    assert resolve.find_share("nas:/x", mount_base="/elsewhere", fstab=fstab).path == "/mnt/first"
    assert resolve.find_share("nas:/x/", mount_base="/elsewhere", fstab=fstab).source == "nas:/x/"


def test_options_are_effective_and_neither_secret_nor_of_this_host(fstab):
    assert resolve.find_share("/mnt/first", fstab=fstab).options == "rw,relatime,vers=4.2"
    assert resolve.find_share("//nas/vols", fstab=fstab).options == "rw,relatime,vers=3.1.1,username=me,nobrl"


def test_what_the_file_system_keeps_and_shows(fstab):
    smb, old, new = (resolve.find_share(name, fstab=fstab) for name in ("\\\\nas\\vols", "nas:/old", "nas:/x"))
    assert (smb.keeps_modes, smb.locks_visible, smb.locks_readable) == (False, False, False)
    assert (old.keeps_modes, old.locks_visible, old.locks_readable) == (True, True, False)
    assert (new.keeps_modes, new.locks_visible, new.locks_readable) == (True, True, True)


def test_a_mount_that_is_covered_is_not_there(fstab):
    with pytest.raises(ShareNotMounted):
        resolve.find_share("gl1:/vols", fstab=fstab)


@pytest.mark.parametrize("share", ["nas:/none", "//nas/none", "user@host:/dir", "gl1:vols"])
def test_a_source_that_is_not_mounted(share, fstab):
    with pytest.raises(ShareNotMounted, match="remotefs_share"):
        resolve.find_share(share, fstab=fstab)


@pytest.mark.parametrize("share", ["vols", "", "./vols", "../x", "-o", "/srv/../etc", "/srv/a\nb"])
def test_what_is_no_share(share, fstab):
    with pytest.raises(InvalidParameter):
        resolve.find_share(share, fstab=fstab)


def test_a_plain_directory(tmp_path, fstab):
    share = resolve.find_share(f"{tmp_path}//", fstab=fstab)
    assert (share.source, share.path, share.fstype, share.options) == (str(tmp_path), str(tmp_path), "directory", "")


def test_a_missing_directory_and_a_file(tmp_path, fstab):
    with pytest.raises(ShareNotMounted, match="does not exist"):
        resolve.find_share(str(tmp_path / "none"), fstab=fstab)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidParameter, match="not a directory"):
        resolve.find_share(str(tmp_path / "file"), fstab=fstab)


def test_a_directory_inside_a_network_mount_has_its_properties_and_is_not_looked_at(fstab):
    share = resolve.find_share("/mnt/v3/sub/dir", fstab=fstab)
    assert (share.source, share.path, share.fstype, share.locks_readable) == ("/mnt/v3/sub/dir", "/mnt/v3/sub/dir", "nfs", False)
    assert resolve.find_share("/mnt/v3", fstab=fstab).source == "nas:/old"


def test_a_directory_under_mount_base_needs_a_mount(tmp_path, fstab):
    for path in (BASE, BASE + "/none", BASE + "/none/sub"):
        with pytest.raises(ShareNotMounted):
            resolve.find_share(path, fstab=fstab)
    base = tmp_path / "base"
    (base / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(base / "x")
    for path in (base / "x", tmp_path / "link"):
        with pytest.raises(ShareNotMounted, match="lies under"):
            resolve.find_share(str(path), mount_base=str(base), fstab=fstab)
    assert resolve.find_share(DEFAULT + "/sub", fstab=fstab).fstype == "nfs"


def test_a_mount_point_of_fstab_needs_a_mount(tmp_path, fstab):
    (tmp_path / "point" / "sub").mkdir(parents=True)
    with open(fstab, "w", encoding="utf-8") as stream:
        stream.write(f"nas:/y {tmp_path}/point nfs noauto 0 0\nnas:/old /mnt/v3 nfs defaults 0 0\n/dev/vda / ext4 defaults 0 1\n")
    for path in ("point", "point/sub"):
        with pytest.raises(ShareNotMounted, match="fstab mounts nas:/y"):
            resolve.find_share(str(tmp_path / path), fstab=fstab)
    assert resolve.find_share("/mnt/v3/sub", fstab=fstab).fstype == "nfs"
    assert resolve.find_share(str(tmp_path), fstab=fstab).fstype == "directory"


def test_links_are_followed_without_touching_the_network(tmp_path, fstab):
    (tmp_path / "link").symlink_to("/mnt/v3/deep")
    assert resolve.find_share(str(tmp_path / "link"), fstab=fstab).fstype == "nfs"
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(InvalidParameter, match="loop"):
        resolve.find_share(str(tmp_path / "loop"), fstab=fstab)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to("../../" + tmp_path.name)
    assert resolve.follow(str(tmp_path / "a" / "up"), MOUNTS) == str(tmp_path)


def test_the_default_path_is_that_of_os_brick():
    assert resolve.default_path("nas:/x") == DEFAULT
    assert resolve.default_path("nas:/x/") != DEFAULT
