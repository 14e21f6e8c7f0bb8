# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CephFS, Virtuozzo Storage, Quobyte, 9p, virtiofs and ``other``: whole runs with programs that play mount(8) and the kernel's table.

tests/integration/ceph_keys.py runs the rows of CephFS against real servers.
"""
from __future__ import annotations

import os

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import command
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter, ShareNotMounted, ToolMissing
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import other_types, parameters, record, resolve, sources, tables, types
from ansible_collections.remotefs.storage.plugins.module_utils.operations import shares

# fstype, type, source as given, options; then: the type, the source and the options of the mount command; the type, source and options of the mount table.
KEYFILE = "/KEYFILE"
MOUNTS = [
    ("cephfs", None, "mon1:6789,mon2:/vols", ["name=ann", "_netdev"], "ceph", "mon1:6789,mon2:/vols", "name=ann,secretfile=/KEYFILE",
     "ceph", "192.0.2.1:6789,192.0.2.2:/vols", "name=ann,secret=<hidden>,acl"),
    ("auto", None, "ann@0a-1.vol=/vols", [], "ceph", "ann@0a-1.vol=/vols", "secretfile=/KEYFILE", "ceph", "ann@0a-1.vol=/vols", "name=ann,secret=<hidden>"),
    ("ceph-fuse", None, "mon1:/vols", ["ceph.id=ann"], "fuse.ceph", "mon1:/vols",
     "ceph.mon_host=mon1,ceph.client_mountpoint=/vols,fsname=mon1:/vols,subtype=ceph-fuse,ceph.id=ann,ceph.keyfile=/KEYFILE",
     "fuse.ceph-fuse", "mon1:/vols", "user_id=0,group_id=0,allow_other"),
    ("ceph-fuse", None, ":/vols", [], "fuse.ceph", ":/vols", "ceph.client_mountpoint=/vols,fsname=:/vols,subtype=ceph-fuse,ceph.keyfile=/KEYFILE",
     "fuse.ceph-fuse", ":/vols", "user_id=0,group_id=0,allow_other"),
    ("vzstorage", None, "cluster1", [], "fuse.vstorage", "vstorage://cluster1", "", "fuse.vstorage", "vstorage://cluster1", "user_id=0,allow_other"),
    ("auto", None, "vstorage://cluster1", ["nosuid"], "fuse.vstorage", "vstorage://cluster1", "nosuid", "fuse.vstorage", "vstorage://cluster1", "nosuid"),
    ("quobyte", None, "reg1:7861,reg2/vols", [], "quobyte", "reg1:7861,reg2/vols", "", "fuse.quobyte", "quobyte@reg1:7861,reg2/vols", "allow_other"),
    ("auto", None, "quobyte://reg1/vols", [], "quobyte", "reg1/vols", "", "fuse.quobyte", "quobyte@reg1/vols", "allow_other"),
    ("9p", None, "vols", ["msize=262144"], "9p", "vols", "trans=virtio,version=9p2000.L,msize=262144", "9p", "vols", "sync,access=client,trans=virtio"),
    ("9p", None, "192.0.2.1", ["trans=tcp", "version=9p2000.u"], "9p", "192.0.2.1", "trans=tcp,version=9p2000.u", "9p", "192.0.2.1", "access=user,trans=tcp"),
    ("virtiofs", None, "vols", [], "virtiofs", "vols", "", "virtiofs", "vols", ""),
    ("other", "lustre", "mds1@tcp:/vols", ["flock"], "lustre", "mds1@tcp:/vols", "flock", "lustre", "mds1@tcp:/vols", "flock,lazystatfs"),
    ("other", "moosefs", "mfsmaster:/", [], "moosefs", "mfsmaster:/", "", "fuse.mfs", "mfsmaster:9421", "user_id=0,allow_other"),
    ("other", "fuse.juicefs", "redis://r1/1", [], "fuse.juicefs", "redis://r1/1", "", "fuse.juicefs", "JuiceFS:vols", "allow_other"),
    ("other", "ocfs2", "/dev/vdc", [], "ocfs2", "/dev/vdc", "", "ocfs2", "/dev/vdc", "heartbeat=local"),
]
IDS = [f"{case[1] or case[0]}-{case[2]}" for case in MOUNTS]


class Host:
    """Mounts as told, and shows it as the kernel and the helper would."""

    def __init__(self, path, shown):
        self.path, self.shown, self.commands, self.flags, self.number = path, shown, [], None, 50

    def mounts(self, *_args):
        lines = ["1 0 8:1 / / rw - ext4 /dev/vda rw"]
        if self.flags is not None:
            kind, source, live = self.shown
            lines.append(f"{self.number} 1 0:41 / {self.path} {self.flags} - {kind} {source} {','.join(filter(None, ('rw', live)))}")
        return tables.parse_mountinfo("\n".join(lines))

    def run(self, argv, **_how):
        self.commands.append([os.path.basename(argv[0]), *argv[1:]])
        options = argv[argv.index("-o") + 1].split(",") if "-o" in argv else []
        self.flags = None if self.commands[-1][0] == "umount" else ",".join(["ro" if "ro" in options else "rw", "relatime"])
        self.number += 1
        return command.Result(0, "", "", argv=tuple(argv))


@pytest.fixture
def play(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path / "records"))
    monkeypatch.setattr(parameters, "CREDENTIALS", str(tmp_path / "credentials"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(command, "find", lambda program, _package: f"/sbin/{program}")

    def start(shown):
        host = Host(str(tmp_path / "mnt"), shown)
        monkeypatch.setattr(tables, "read_mounts", host.mounts)
        monkeypatch.setattr(command, "run", host.run)
        return host

    return start


def params(tmp_path, **given):
    values = {
        "src": None, "path": str(tmp_path / "mnt"), "mount_base": str(tmp_path / "base"), "fstype": "auto", "type": None, "opts": None, "credentials": None,
        "state": "mounted", "persist": True, "fstab": str(tmp_path / "fstab"), "attempts": 1, "timeout": 5, "shares": None, "shares_file": None,
    }
    return {**values, **given}


def steps(result):
    assert not result["failed"], result["msg"]
    return [action["step"] for action in result["actions"]]


@pytest.mark.parametrize("case", MOUNTS, ids=IDS)
def test_the_life_of_a_share(play, tmp_path, case):
    fstype, kind, src, opts, mount_type, told, words, *shown = case
    host = play(shown)
    key = {"password": "hidden-key"} if KEYFILE in words else None
    given = params(tmp_path, src=src, fstype=fstype, type=kind, opts=opts, credentials=key)
    predicted = shares.ensure(given, check_mode=True)
    assert host.commands == [] and not os.path.exists(tmp_path / "fstab")
    made = shares.ensure(given)
    words = words.replace(KEYFILE, parameters.credentials_file(host.path))
    assert host.commands == [["mount", "-t", mount_type, *(["-o", words] if words else []), told, host.path]]
    assert made["actions"] == predicted["actions"] and made["diff"] == predicted["diff"] and "hidden-key" not in repr(made)
    line = (tmp_path / "fstab").read_text().split()
    assert line[:3] == [told, host.path, mount_type] and set(filter(None, words.split(","))) <= set(line[3].split(","))
    for again in (given, {**given, "credentials": None}):
        assert steps(shares.ensure(again)) == []
    for name in filter(None, (None if src.startswith("/") else src, host.path)):
        share = resolve.find_share(name, fstab=str(tmp_path / "fstab"))
        proved = mount_type in ("ceph", "fuse.ceph")
        assert share.path == host.path and not share.local and share.stale_seconds > 0 and share.client_times
        assert (share.locks_visible, share.locks_readable, share.keeps_inodes) == (proved, proved, proved)
    if kind is None:
        assert share.fstype == types.by_mount_type(mount_type).name and sources.bare(src, types.by_mount_type(mount_type)) in (src, share.source)
    else:
        assert share.fstype == shown[0]
    for file in (tmp_path / "records").iterdir():
        file.unlink()
    assert steps(shares.ensure(given)) == [], "after a reboot fstab tells whose mount it is"
    other = shares.ensure({**given, "src": src[:-1] + ("9" if src[-1] != "9" else "8")})
    assert other["error_code"] == "conflict" and "choose another path" in other["msg"]
    read_only = shares.ensure({**given, "opts": [*opts, "ro"]})
    assert "write_fstab" in steps(read_only) and steps(shares.ensure({**given, "opts": [*opts, "ro"]})) == []
    gone = steps(shares.ensure({**given, "credentials": None, "state": "absent"}))
    assert gone == ["unmount", "remove_fstab", *(["remove_credentials"] if key else [])]
    assert steps(shares.ensure({**given, "credentials": None, "state": "absent"})) == [] and host.flags is None
    assert not os.listdir(tmp_path / "credentials") if key else True


@pytest.mark.parametrize("case", MOUNTS, ids=IDS)
def test_what_is_not_unmounted_is_found_by_its_path(play, tmp_path, case):
    fstype, kind, src, opts, *_told = case
    host = play(case[-3:])
    given = params(tmp_path, src=src, fstype=fstype, type=kind, opts=opts)
    shares.ensure(given)
    by_path = {**given, "src": None, "state": "absent"} if kind else params(tmp_path, state="absent")
    assert steps(shares.ensure(by_path)) == ["unmount", "remove_fstab"] and host.flags is None


def test_many_at_once_each_with_its_own_type(play, tmp_path):
    host = play(("lustre", "mds1@tcp:/vols", ""))
    items = [{"src": "mds1@tcp:/vols", "path": host.path}, {"src": "tag", "fstype": "virtiofs", "path": str(tmp_path / "v"), "state": "present"}]
    result = shares.ensure_all(params(tmp_path, src=None, path=None, fstype="other", type="lustre", shares=items))
    assert not result["failed"], result
    assert [one["share"]["fstype"] for one in result["results"]] == ["other", "virtiofs"]
    assert (tmp_path / "fstab").read_text().split("\n")[1] == f"tag {tmp_path}/v virtiofs defaults 0 0"
    assert not shares.ensure_all(params(tmp_path, src=None, path=None, fstype="other", type="lustre", shares=items))["changed"]


@pytest.mark.parametrize(
    ("fstype", "kind", "says"),
    [
        ("other", None, "name the type"),
        ("other", "", "name the type"),
        ("other", "nfs4", "use fstype nfs and leave type out"),
        ("other", "fuse.sshfs", "use fstype sshfs"),
        ("other", "ceph", "use fstype cephfs"),
        ("other", "9p", "use fstype 9p"),
        ("other", "glusterfs", "use fstype glusterfs"),
        ("other", "ext4", "fstype directory"),
        ("other", "tmpfs", "fstype directory"),
        ("other", "autofs", "fstype directory"),
        ("other", "proc", "fstype directory"),
        ("other", "none", "write it as after mount -t"),
        ("other", "auto", "write it as after mount -t"),
        ("other", "a,b", "write it as after mount -t"),
        ("other", "-x", "write it as after mount -t"),
        ("other", "x y", "write it as after mount -t"),
        ("nfs", "lustre", "set fstype: other"),
        ("auto", "lustre", "set fstype: other"),
    ],
)
def test_the_type_belongs_to_other(play, tmp_path, fstype, kind, says):
    host = play(("nfs4", "nas:/x", ""))
    result = shares.ensure(params(tmp_path, src="nas:/x", fstype=fstype, type=kind))
    assert result["error_code"] == "invalid_parameter" and says in result["msg"] and host.commands == []


@pytest.mark.parametrize(
    ("fstype", "src", "says"),
    [
        ("cephfs", "mon1", "write it like mon1:6789,mon2:/vols"),
        ("cephfs", ":/vols", "write it like"),
        ("cephfs", "user@fsid=/vols", "write it like"),
        ("ceph-fuse", "mon1,mon2:/vols", "ceph.conf"),
        ("vzstorage", "mds1,mds2:/cluster:word", "auth-node"),
        ("vzstorage", "cluster:word", "auth-node"),
        ("quobyte", "registry", "registry1,registry2/vols"),
        ("quobyte", "registry/", "registry1,registry2/vols"),
        ("9p", "/vols", "write it like vols"),
        ("9p", "a b", "write it like vols"),
        ("virtiofs", "a,b", "write it like vols"),
    ],
)
def test_other_forms_of_sources_are_refused(play, tmp_path, fstype, src, says):
    play(("nfs4", "nas:/x", ""))
    result = shares.ensure(params(tmp_path, src=src, fstype=fstype))
    assert result["error_code"] == "invalid_parameter" and says in result["msg"]


@pytest.mark.parametrize(
    ("fstype", "one", "other", "same"),
    [
        ("cephfs", "mon1:6789,mon2:/vols", "MON2,mon1://vols/", True),
        ("cephfs", "[2001:db8::1]:6789:/v", "[2001:DB8:0::1]:/v", True),
        ("cephfs", "mon1:6789:/vols", "mon1:3300:/vols", False),
        ("cephfs", "mon1:/vols", "mon1:/Vols", False),
        ("cephfs", "mon1:/vols", "mon1,mon2:/vols", False),
        ("cephfs", "ann@0a.vol=/vols", "ann@0a.vol=//vols/", True),
        ("cephfs", "ann@0a.vol=/vols", "bob@0a.vol=/vols", False),
        ("vzstorage", "c1", "vstorage://c1", True),
        ("vzstorage", "c1", "pstorage://c1", True),
        ("vzstorage", "c1", "C1", False),
        ("quobyte", "r1/v", "quobyte://r1/v/", True),
        ("quobyte", "r1/v", "quobyte@r1/v", True),
        ("quobyte", "r1/v", "r1/w", False),
    ],
)
def test_spellings(fstype, one, other, same):
    assert sources.is_same_share(one, other, types.by_name(fstype)) == same


def test_a_key_among_the_options_is_refused(play, tmp_path):
    play(("ceph", "mon1:/vols", ""))
    for fstype, option in (("cephfs", "secret=KEY"), ("ceph-fuse", "ceph.key=KEY"), ("cephfs", "SECRET=KEY")):
        result = shares.ensure(params(tmp_path, src="mon1:/vols", fstype=fstype, opts=[option]))
        assert result["error_code"] == "invalid_parameter" and "'credentials'" in result["msg"] and "KEY" not in result["msg"]


@pytest.mark.parametrize(("fstype", "place"), [("cephfs", "name=USER"), ("ceph-fuse", "ceph.id=USER")])
def test_the_user_of_ceph_is_no_part_of_the_credentials(play, tmp_path, fstype, place):
    play(("ceph", "mon1:/vols", ""))
    result = shares.ensure(params(tmp_path, src="mon1:/vols", fstype=fstype, credentials={"username": "ann", "password": "x"}))
    assert result["error_code"] == "invalid_parameter" and place in result["msg"]
    twice = shares.ensure(params(tmp_path, src="mon1:/vols", fstype=fstype, opts=["secretfile=/x", "ceph.keyfile=/x"], credentials={"password": "x"}))
    assert twice["error_code"] == "invalid_parameter" and "keep one of the two" in twice["msg"]


@pytest.mark.parametrize("given", [{"src": "mon1:/$(id)"}, {"opts": ["ceph.id=a;b"]}, {"path": "/mnt/a b"}, {"opts": ["x=`id`"]}, {"src": "mon1:/a'b"}])
def test_nothing_that_a_shell_would_read_goes_to_a_helper_with_a_shell(play, tmp_path, given):
    host = play(("fuse.ceph-fuse", "mon1:/vols", ""))
    result = shares.ensure(params(tmp_path, **{"src": "mon1:/vols", "fstype": "ceph-fuse", **given}))
    assert result["error_code"] == "invalid_parameter" and "shell" in result["msg"] and host.commands == []


def test_a_word_is_a_source_while_something_has_that_name(play, tmp_path):
    host, fstab = play(("virtiofs", "tag", "")), tmp_path / "fstab"
    with pytest.raises(InvalidParameter, match="while it is mounted"):
        resolve.find_share("tag", fstab=str(fstab))
    shares.ensure(params(tmp_path, src="tag", fstype="virtiofs"))
    assert resolve.find_share("tag", fstab=str(fstab)).path == host.path
    host.flags = None
    with pytest.raises(ShareNotMounted, match="not mounted on this host"):
        resolve.find_share("tag", fstab=str(fstab))


# -- whether a type can be mounted at all


def test_a_type_that_nobody_can_mount_is_a_missing_tool(tmp_path, monkeypatch):
    (tmp_path / "filesystems").write_text("nodev\tsysfs\n\text4\nnodev\torangefs\n")
    modules = tmp_path / "modules" / os.uname().release
    modules.mkdir(parents=True)
    (modules / "modules.alias").write_text("alias fs-lustre lustre\nalias fs-xlustre xlustre\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("mount.moosefs", "mount.fuse", "juicefs"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(command, "_STANDARD_PATH", "/nowhere")
    monkeypatch.setattr(other_types, "FILE_SYSTEMS", str(tmp_path / "filesystems"))
    monkeypatch.setattr(other_types, "MODULES", str(tmp_path / "modules"))
    for known in ("orangefs", "lustre", "moosefs", "fuse.juicefs"):
        other_types.check(known)
    for unknown in ("lus", "ustre", "sysf", "fuse.rclone", "beegfs"):
        with pytest.raises(ToolMissing, match="install the client of"):
            other_types.check(unknown)
    (programs / "mount.fuse").unlink()
    with pytest.raises(ToolMissing, match=r"mount.fuse.juicefs \(or mount.fuse with juicefs\)"):
        other_types.check("fuse.juicefs")


@pytest.mark.parametrize("check_mode", [True, False])
def test_that_is_said_before_anything_changes(tmp_path, monkeypatch, check_mode):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    result = shares.ensure(params(tmp_path, src="x:/y", fstype="other", type="nobodysfs"), check_mode)
    assert result["error_code"] == "tool_missing" and "mount.nobodysfs" in result["msg"] and not os.path.exists(tmp_path / "mnt")
    named = shares.ensure(params(tmp_path, src="c1", fstype="vzstorage"), check_mode)
    assert named["error_code"] == "tool_missing" and "vstorage-client of Virtuozzo" in named["msg"]
