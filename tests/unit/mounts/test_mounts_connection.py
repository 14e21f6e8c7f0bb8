# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`connection` is what os-brick takes as it is: an export that another host can mount, words of a mount command, a path on this host otherwise.

The real os-brick attaches them in tests/interop and tests/integration/os_brick.py; here are the tables behind them.
"""
from __future__ import annotations

import hashlib
import os
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import attaching, options, record, resolve, tables, types
from ansible_collections.remotefs.storage.plugins.module_utils.operations import report

BASE = "/var/lib/remotefs/mnt"
NFS = "rw,vers=4.2,rsize=262144,wsize=262144,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=192.0.2.2,local_lock=none,addr=192.0.2.1"
NFS3 = NFS.replace("4.2", "3").replace("local_lock=none", "mountaddr=192.0.2.1,mountvers=3,mountport=20048,mountproto=udp,local_lock=none")
CIFS = "rw,vers=3.1.1,sec=none,cache=strict,uid=0,noforceuid,addr=127.0.0.1,file_mode=0755,soft,nounix,serverino,mapposix,nobrl,bsize=1048576,password=x"
MEMBER = CIFS.replace("sec=none,cache=strict", "cache=strict,username=ann,domain=LAB")
FUSE = "rw,user_id=0,group_id=0,default_permissions,allow_other,max_read=131072"
WITHIN = ("nas1:/vols", "nas1:/vols/", "nas1://vols", "NAS1:/vols")
SERVED = [row for row in types.rows() if row.kernel_types]


@pytest.fixture(autouse=True)
def records(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path / "records"))


def default(source, base=BASE):
    return f"{base}/{hashlib.md5(source.encode()).hexdigest()}"


def connection(monkeypatch, share, *lines, fstab="/dev/null", base=BASE):
    table = "1 1 8:1 / / rw - ext4 /dev/vda rw\n" + "".join(f"{9 + number} 1 0:5{number} / {line}\n" for number, line in enumerate(lines))
    monkeypatch.setattr(tables, "read_mounts", lambda *_a: tables.parse_mountinfo(table))
    image = Image("db01.s", "qcow2", 1 << 20, backing_file="db01")
    found = resolve.find_share(share, base, fstab=fstab)
    return report.volume(Volume(name="db01", chain=(image, Image("db01", "raw", 1 << 20)), snapshots=()), found, None)["connection"]


@pytest.mark.parametrize(
    ("share", "line", "driver", "export", "name", "words"),
    [
        ("nas1:/vols", f"{default('nas1:/vols')} rw,relatime - nfs4 nas1:/vols {NFS}", "nfs", "nas1:/vols", "", "-o vers=4.2,proto=tcp,sec=sys"),
        ("/mnt/v/sub/dir", f"/mnt/v ro - nfs4 nas1:/vols {NFS}", "nfs", "nas1:/vols", "sub/dir/", "-o ro,vers=4.2,proto=tcp,sec=sys"),
        ("nas1:/v/s", f"/mnt/v rw,relatime - nfs4 nas1:/v/s {NFS}", "nfs", "nas1:/v/s", "", "-o vers=4.2,proto=tcp,sec=sys"),
        ("[::1]:/v", f"/mnt/v rw - nfs4 [::1]:/v {NFS.replace('=tcp', '=tcp6')}", "nfs", "[::1]:/v", "", "-o vers=4.2,proto=tcp6,sec=sys"),
        ("nas1:/vols", f"/mnt/v rw,noatime - nfs nas1:/vols {NFS3}", "nfs", "nas1:/vols", "", "-o noatime,vers=3,proto=tcp,sec=sys"),
        (
            "nas1:/vols",
            f"/mnt/v rw,nosuid,nodev,noexec,relatime - nfs4 nas1:/vols {NFS.replace('hard', 'soft,nosharecache').replace('600', '50')}",
            "nfs",
            "nas1:/vols",
            "",
            "-o nosuid,nodev,noexec,vers=4.2,soft,proto=tcp,timeo=50,sec=sys",
        ),
        ("//nas/v", f"/mnt/v rw - cifs //nas/v {CIFS}", "smbfs", "//nas/v", "", "-o vers=3.1.1,guest,cache=strict,uid=0,noforceuid,file_mode=0755,nobrl"),
        (
            "/mnt/v/a",
            f"/mnt/v rw - cifs //nas/v/in {MEMBER}",
            "smbfs",
            "//nas/v/in",
            "a/",
            "-o vers=3.1.1,cache=strict,username=ann,domain=LAB,uid=0,noforceuid,file_mode=0755,nobrl",
        ),
        ("gl1:/vols", f"/mnt/v rw,relatime - fuse.glusterfs gl1:/vols {FUSE}", "glusterfs", "gl1:/vols", "", None),
        ("/mnt/v/a", f"/mnt/v ro,relatime - fuse.glusterfs gl1:/vols {FUSE}", "glusterfs", "gl1:/vols", "a/", "-o ro"),
        ("gl1:/v/s", f"/mnt/v rw,nosuid,nodiratime - fuse.glusterfs gl1:/v/s {FUSE}", "glusterfs", "gl1:/v/s", "", "-o nosuid"),
        ("u@h:/x", f"/mnt/v rw - fuse.sshfs u@h:/x {FUSE}", "local", "u@h:/x", "", None),
        ("/mnt/v", f"/mnt/v rw - 9p hostshare {FUSE}", "local", "hostshare", "", None),
        ("/mnt/v", f"/mnt/v ro - fuse.vstorage vstorage://c1 {FUSE}", "vzstorage", "c1", "", None),
        (default("c1"), f"{default('c1')} rw - fuse.vstorage vstorage://c1 {FUSE}", "vzstorage", "c1", "", None),
        ("r1/vols", f"/mnt/v rw,noatime - fuse.quobyte quobyte@r1/vols {FUSE}", "quobyte", "r1/vols", "", None),
        ("/mnt/v", f"/mnt/v rw - vboxsf hostshare {FUSE}", "local", "/mnt/v", "", None),
        ("/mnt", f"/mnt rw - tmpfs none {FUSE}", "local", "/mnt", "", None),
    ],
)
def test_what_another_host_can_attach(monkeypatch, share, line, driver, export, name, words):
    told = connection(monkeypatch, share, line)
    data = told["data"]
    assert (told["driver_volume_type"], data["export"], data["name"], data["options"]) == (driver, export, name + "db01.s", words)
    assert told["mount_point_base"] == BASE and data["format"] == "qcow2"
    assert data.get("device_path") == (f"{resolve.find_share(share, fstab='/dev/null').path}/db01.s" if driver == "local" else None)


# -- the directory that os-brick looks at


@pytest.mark.parametrize("mounted_as", WITHIN)
@pytest.mark.parametrize("asked", [*WITHIN[:3], "path"])
@pytest.mark.parametrize("witness", ["fstab", "record"])
def test_the_export_is_the_spelling_that_names_the_directory(monkeypatch, tmp_path, mounted_as, asked, witness):
    fstab, line = tmp_path / "fstab", f"{default(mounted_as)} rw - nfs4 nas1:/vols {NFS}"
    fstab.write_text(f"{mounted_as} {default(mounted_as)} nfs vers=4.2 0 0\n" if witness == "fstab" else "")
    if witness == "record":
        (mount,) = tables.parse_mountinfo(f"9 1 0:50 / {line}")
        record.write(mount.path, mount, (), mounted_as)
    told = connection(monkeypatch, default(mounted_as) if asked == "path" else asked, line, fstab=str(fstab))
    assert default(told["data"]["export"]) == default(mounted_as)


@pytest.mark.parametrize(
    ("mounted_as", "shown", "kind"),
    [
        ("nas1:/vols/", "nas1:/vols", f"nfs4 nas1:/vols {NFS}"),
        ("gl1:vols", "gl1:vols", f"fuse.glusterfs gl1:vols {FUSE}"),
        ("gl1:vols", "gl1:/vols", f"fuse.glusterfs gl1:/vols {FUSE}"),
        ("gl1:/vols/", "gl1:/vols", f"fuse.glusterfs gl1:/vols {FUSE}"),
        ("//nas/V/", "//nas/V/", f"cifs //nas/V/ {CIFS}"),
    ],
)
def test_usual_spellings_need_no_witness(monkeypatch, mounted_as, shown, kind):
    told = connection(monkeypatch, default(mounted_as), f"{default(mounted_as)} rw - {kind}")
    assert told["data"]["export"] == mounted_as


@pytest.mark.parametrize("asked", ["nas1:/vols", "path"])
@pytest.mark.parametrize("base", ["/var/lib/remotefs/mnt", "/var/lib/remotefs/mnt/", "/var/lib//nova/mnt"])
def test_the_directory_above_is_that_of_the_mount(monkeypatch, asked, base):
    """A share that was mounted with another ``mount_base`` than this task has is not mounted a second time by os-brick."""
    place = default("nas1:/vols", "/srv/mounts")
    told = connection(monkeypatch, place if asked == "path" else asked, f"{place} rw - nfs4 nas1:/vols {NFS}", base=base)
    assert os.path.join(told["mount_point_base"], hashlib.md5(told["data"]["export"].encode()).hexdigest()) == place
    elsewhere = connection(monkeypatch, "nas1:/vols", f"/mnt/v rw - nfs4 nas1:/vols {NFS}", base=base)
    assert elsewhere["mount_point_base"] == os.path.normpath(base) and elsewhere["data"]["export"] == "nas1:/vols"


# -- the options


GIVEN = [
    ("nfs", "vers=4.2,rsize=8192,nofail,_netdev,x-systemd.automount,bg,retry=5,fsc", "vers=4.2,rsize=8192", "vers=4.2,rsize=8192"),
    ("nfs", "vers=4.2,rsize=8192,rsize=4096", "vers=4.2,rsize=4096", "vers=4.2,rsize=4096"),
    ("nfs", "vers=4.2,noresvport,nosharecache", "vers=4.2,noresvport,nosharecache", "vers=4.2,noresvport"),
    ("cifs", "credentials=/etc/c,nosharesock,password=x", "username=ann,nobrl,password=x", "username=ann,nobrl,credentials=/etc/c"),
    ("cifs", "guest,nobrl", "sec=none,nobrl", "guest,nobrl"),
    ("cifs", "cred=/etc/two words,rsize=1 ", "username=ann", "username=ann"),
    ("cifs", "credentials=/etc/two\nlines,rsize=1\x7f", "username=two words,vers=3.0", "vers=3.0"),
    ("glusterfs", "backup-volfile-servers=gl2:gl3,_netdev,log-file=/var/log/x,acl,nofail", FUSE, "backup-volfile-servers=gl2:gl3,acl"),
    ("glusterfs", "defaults", FUSE + ",relatime,nodiratime", ""),
]


@pytest.mark.parametrize(("name", "given_words", "live", "told"), GIVEN)
@pytest.mark.parametrize("witness", ["record", "fstab"])
def test_what_the_mount_table_hides_is_told_as_it_was_given(tmp_path, name, given_words, live, told, witness):
    row, fstab = types.by_name(name), tmp_path / "fstab"
    mount = tables.Mount(9, 1, "0:50", "/", "/mnt/v", row.kernel_types[0], row.example, ("rw", "relatime"), tuple(live.split(",")))
    entry = tables.Entry(row.example, "/mnt/v", row.mount_type, tuple(given_words.split(",")))
    if witness == "record":
        record.write("/mnt/v", mount, entry.options, row.example)
    share = resolve.describe(mount, (mount,), "/mnt/v", None, fstab=str(fstab), entries=() if witness == "record" else (entry,))
    assert share.mount_words == told


def test_a_line_of_fstab_for_another_source_is_no_witness():
    mount = tables.Mount(9, 1, "0:50", "/", "/mnt/v", "nfs4", "nas1:/vols", ("rw",), ("vers=4.2",))
    known = attaching.read(mount, None, "/dev/null", (tables.Entry("nas2:/vols", "/mnt/v", "nfs", ("rsize=1",)),))
    assert known.given == ()


@pytest.mark.parametrize("row", SERVED, ids=lambda row: row.name)
def test_options_are_words_that_the_helper_takes_and_no_secrets(row):
    live = ",".join(["rw", *row.shown, *row.local_options, "password=hidden", "password2=hidden", *types.GENERAL])
    (mount,) = tables.parse_mountinfo(f"9 1 0:50 / /mnt/v rw - {row.kernel_types[0]} {row.example} {live}")
    words = resolve.describe(mount, (mount,), "/mnt/v", None, fstab="/dev/null").mount_words
    assert "hidden" not in words and set(filter(None, words.split(","))) <= {*row.attachable, "ro"}
    assert len(shlex.split(words)) <= 1


@pytest.mark.parametrize("row", SERVED, ids=lambda row: row.name)
@given(data=st.data())
def test_whatever_was_given_or_is_shown(row, data):
    """os-brick splits the options at blanks and hands them to mount(8): one word, only what the helper takes, each once, no secret."""
    names = sorted({*row.shown, *row.local_options, *row.attachable, *row.attachable_given, *row.default_options, *types.GENERAL, *types.FSTAB_ONLY})
    names += [*options.SECRETS, "x-systemd.automount", "-o", "unheard-of"]
    values = st.one_of(st.just(""), st.text(max_size=6).filter(lambda text: "," not in text).map("=".__add__))
    drawn = st.lists(st.builds(str.__add__, st.sampled_from(names), values), max_size=8).map(tuple)
    mount = tables.Mount(9, 1, "0:50", "/", "/mnt/v", row.kernel_types[0], row.example, ("rw",), data.draw(drawn))
    told = attaching.words(mount, row, data.draw(drawn))
    words = [word for word in told.split(",") if word]
    assert len(told.split()) == (1 if told else 0) and not told.startswith("-")
    helper_takes = {"ro", *row.attachable, *row.attachable_given, *(spelt for _shown, spelt in row.unspellings)}
    names_told = [word.partition("=")[0] for word in words]
    assert set(names_told) <= helper_takes - set(options.SECRETS) and len(set(names_told)) == len(names_told)


@pytest.mark.parametrize("row", SERVED, ids=lambda row: row.name)
def test_the_columns_agree(row):
    """What is only this host's is never told as shown, and what every host assumes is something that would be told."""
    assert not set(row.attachable) & {*row.local_options, *options.SECRETS, *types.FSTAB_ONLY, "rw", "relatime"}
    assert {word.partition("=")[0] for word in row.assumed} <= set(row.attachable)
    assert not set(row.attachable_given) & {*row.attachable, *options.SECRETS, *types.FSTAB_ONLY}
    assert all(shown.partition("=")[0] in row.shown for shown, _spelt in row.unspellings)
    assert not row.attachable or row.cinder_type != types.BY_PATH
