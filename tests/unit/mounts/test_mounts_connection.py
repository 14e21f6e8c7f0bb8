# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`connection` is what os-brick takes as it is: an export that another host can mount, words of a mount command, a path on this host otherwise."""
from __future__ import annotations

import hashlib
import shlex

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import resolve, tables, types
from ansible_collections.remotefs.storage.plugins.module_utils.operations import report

BASE = "/var/lib/remotefs/mnt"
NFS = "rw,vers=4.2,rsize=262144,wsize=262144,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=192.0.2.2,local_lock=none,addr=192.0.2.1"
CIFS = "rw,vers=3.1.1,sec=none,cache=strict,uid=0,noforceuid,addr=127.0.0.1,file_mode=0755,soft,nounix,serverino,mapposix,nobrl,bsize=1048576,password=x"
FUSE = "rw,user_id=0,group_id=0,default_permissions,allow_other,max_read=131072"


def default(source):
    return f"{BASE}/{hashlib.md5(source.encode()).hexdigest()}"


def connection(monkeypatch, share, *lines, fstab="/dev/null"):
    table = "1 1 8:1 / / rw - ext4 /dev/vda rw\n" + "".join(f"{9 + number} 1 0:5{number} / {line}\n" for number, line in enumerate(lines))
    monkeypatch.setattr(tables, "read_mounts", lambda *_a: tables.parse_mountinfo(table))
    image = Image("db01.s", "qcow2", 1 << 20, backing_file="db01")
    found = resolve.find_share(share, fstab=fstab)
    return report.volume(Volume(name="db01", chain=(image, Image("db01", "raw", 1 << 20)), snapshots=()), found, None)["connection"]


@pytest.mark.parametrize(
    ("share", "line", "driver", "export", "name", "options"),
    [
        ("nas1:/vols", f"{default('nas1:/vols')} rw,relatime - nfs4 nas1:/vols {NFS}", "nfs", "nas1:/vols", "", "-o vers=4.2,proto=tcp,sec=sys"),
        ("/mnt/v/sub/dir", f"/mnt/v ro - nfs4 nas1:/vols {NFS}", "nfs", "nas1:/vols", "sub/dir/", "-o ro,vers=4.2,proto=tcp,sec=sys"),
        ("//nas/v", f"/mnt/v rw - cifs //nas/v {CIFS}", "smbfs", "//nas/v", "", "-o vers=3.1.1,cache=strict,uid=0,file_mode=0755,nobrl"),
        ("gl1:/vols", f"/mnt/v rw,relatime - fuse.glusterfs gl1:/vols {FUSE}", "glusterfs", "gl1:/vols", "", None),
        ("/mnt/v/a", f"/mnt/v ro,relatime - fuse.glusterfs gl1:/vols {FUSE}", "glusterfs", "gl1:/vols", "a/", "-o ro"),
        ("u@h:/x", f"/mnt/v rw - fuse.sshfs u@h:/x {FUSE}", "local", "u@h:/x", "", None),
        ("/mnt/v", f"/mnt/v rw - 9p hostshare {FUSE}", "local", "/mnt/v", "", None),
        ("/mnt", f"/mnt rw - tmpfs none {FUSE}", "local", "/mnt", "", None),
    ],
)
def test_what_another_host_can_attach(monkeypatch, share, line, driver, export, name, options):
    told = connection(monkeypatch, share, line)
    data = told["data"]
    assert (told["driver_volume_type"], data["export"], data["name"], data["options"]) == (driver, export, name + "db01.s", options)
    assert told["mount_point_base"] == BASE and data["format"] == "qcow2"
    assert data.get("device_path") == (f"{resolve.find_share(share, fstab='/dev/null').path}/db01.s" if driver == "local" else None)


@pytest.mark.parametrize("mounted_as", ["nas1:/vols", "nas1:/vols/", "nas1://vols", "NAS1:/vols"])
@pytest.mark.parametrize("asked", ["nas1:/vols", "nas1:/vols/", "nas1://vols", "path"])
def test_the_export_is_the_spelling_that_names_the_directory(monkeypatch, tmp_path, mounted_as, asked):
    fstab = tmp_path / "fstab"
    fstab.write_text(f"{mounted_as} {default(mounted_as)} nfs vers=4.2 0 0\n")
    asked = default(mounted_as) if asked == "path" else asked
    told = connection(monkeypatch, asked, f"{default(mounted_as)} rw - nfs4 nas1:/vols {NFS}", fstab=str(fstab))
    assert default(told["data"]["export"]) == default(mounted_as)


@pytest.mark.parametrize("row", [row for row in types.FILE_SYSTEMS if row.kernel_types], ids=lambda row: row.name)
def test_options_are_words_that_the_helper_takes_and_no_secrets(monkeypatch, row):
    live = ",".join(["rw", *row.shown, *row.local_options, "password=hidden", "password2=hidden", "noatime", *types.GENERAL])
    (mount,) = tables.parse_mountinfo(f"9 1 0:50 / /mnt/v rw - {row.kernel_types[0]} {row.example} {live}")
    words = resolve.describe(mount, (mount,), "/mnt/v", None, fstab="/dev/null").mount_words
    assert "hidden" not in words and set(filter(None, words.split(","))) <= {*row.attachable, "ro"}
    assert len(shlex.split(words)) <= 1
