# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task may say about a share."""
from __future__ import annotations

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter, StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import parameters, resolve, tables
from ansible_collections.remotefs.storage.plugins.module_utils.operations import shares

MOUNTS = tables.parse_mountinfo(
    """\
1 0 254:0 / / rw - ext4 /dev/vda rw
2 1 0:9 / /mnt/gl rw - fuse.glusterfs gl1:/vols rw
3 1 254:0 /srv /mnt/bound rw - ext4 /dev/vda rw
"""
)
ENTRIES = tables.parse_fstab("gl2:/vols /mnt/later glusterfs backup-volfile-servers=gl3,_netdev 0 0\n")


def params(**given):
    values = {
        "src": None, "path": None, "mount_base": resolve.MOUNT_BASE, "fstype": "auto", "opts": None, "credentials": None, "state": "mounted", "persist": True,
        "fstab": "/etc/fstab", "attempts": 1, "timeout": 5,
    }
    return {**values, **given}


def read(**given):
    return parameters.read_wish(params(**given), MOUNTS, ENTRIES)


@pytest.mark.parametrize(
    ("given", "name", "src", "path"),
    [
        ({"src": "nas:/x"}, "nfs", "nas:/x", resolve.default_path("nas:/x")),
        ({"src": "nas:/x", "path": "/mnt//x/"}, "nfs", "nas:/x", "/mnt/x"),
        ({"src": "//nas/x"}, "cifs", "//nas/x", resolve.default_path("//nas/x")),
        ({"src": "u@h:/x"}, "sshfs", "u@h:/x", resolve.default_path("u@h:/x")),
        ({"src": "/srv/x/"}, "directory", "/srv/x", "/srv/x"),
        ({"path": "/srv/x"}, "directory", "/srv/x", "/srv/x"),
        ({"src": "/srv/x", "path": "/srv/x"}, "directory", "/srv/x", "/srv/x"),
        ({"src": "/srv/x", "path": "/mnt/y"}, "bind", "/srv/x", "/mnt/y"),
        ({"src": "gl1:/vols", "path": "/mnt/gl"}, "glusterfs", "gl1:/vols", "/mnt/gl"),
        ({"src": "gl2:/vols", "path": "/mnt/later"}, "glusterfs", "gl2:/vols", "/mnt/later"),
        ({"path": "/mnt/gl", "state": "absent"}, "glusterfs", "gl1:/vols", "/mnt/gl"),
        ({"path": "/mnt/later", "state": "absent"}, "glusterfs", "gl2:/vols", "/mnt/later"),
        ({"path": "/mnt/bound", "state": "absent"}, "bind", "/srv", "/mnt/bound"),
        ({"src": "x:/y", "fstype": "glusterfs"}, "glusterfs", "x:/y", resolve.default_path("x:/y")),
    ],
)
def test_what_is_meant(given, name, src, path):
    desired = read(**given)
    assert (desired.row.name, desired.src, desired.path) == (name, src, path)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"src": "vols"},
        {"src": "nas:/x\n"},
        {"src": "nas:/x", "path": "relative"},
        {"src": "nas:/x", "path": "/mnt/../etc"},
        {"src": "nas:/x", "path": "/"},
        {"src": "nas:/x", "path": resolve.MOUNT_BASE},
        {"src": "nas:/x", "mount_base": "mnt"},
        {"src": "nas:/x", "fstab": "fstab"},
        {"src": "nas:/x", "fstype": "cifs"},
        {"src": "/srv/x", "fstype": "directory", "path": "/mnt/y"},
        {"src": "/srv/x", "fstype": "nfs"},
        {"path": "/mnt/none", "fstype": "nfs"},
        {"src": "nas:/x", "opts": ["ro", "password=x"]},
        {"src": "//nas/x", "opts": ["ro,pass=x"]},
        {"src": "nas:/x", "credentials": {"username": "me", "password": "x"}},
        {"src": "//nas/x", "credentials": {"username": "me", "password": "x\ny"}},
        {"src": "//nas/x", "opts": ["credentials=/f"], "credentials": {"username": "me", "password": "x"}},
        {"src": "u@h:/x", "credentials": {"password": "x"}},
        {"src": "u@h:/x", "persist": False, "credentials": {"password": "x", "username": "u"}},
        {"src": "-o@h:/x", "fstype": "sshfs"},
    ],
)
def test_what_is_refused(given):
    with pytest.raises(InvalidParameter) as caught:
        read(**given)
    assert "password=x" not in str(caught.value)


def test_a_password_for_sshfs_is_for_this_boot_only():
    assert read(src="u@h:/x", persist=False, credentials={"password": "x"}).credentials.password == "x"


def test_every_mount_has_a_credentials_file_of_its_own():
    one, other = (read(src="//nas/x", path=path).credentials_file for path in ("/mnt/a", "/mnt/b"))
    assert one != other and one.startswith("/etc/remotefs/credentials/")


def test_a_remount_keeps_the_options_of_fstab():
    assert read(path="/mnt/later", state="remounted").options == ("backup-volfile-servers=gl3", "_netdev")
    assert read(path="/mnt/later", state="remounted", opts=["ro"]).options == ("ro",)
    assert read(path="/mnt/later", src="gl2:/vols").options == ()


def test_items_take_the_task_s_values_but_not_its_source():
    task = params(src="a:/b", path="/p", opts=["ro"], timeout=9)
    task.update(shares=[], shares_file=None)
    merged = shares._with_defaults([{"src": "nas:/x", "opts": None, "timeout": 3}], task)
    assert merged == [params(src="nas:/x", opts=["ro"], timeout=3)]


def test_every_error_says_three_things():
    with pytest.raises(StorageError) as caught:
        read(src="vols")
    assert caught.value.subject and caught.value.problem and caught.value.remedy
