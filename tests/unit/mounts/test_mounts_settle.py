# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A share that was just mounted as asked is no change the second time, whatever its kernel shows, hides, alters or refuses to tell."""
from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.mounts import options, planner, record, tables, types

SOURCES = {"nfs": "nas:/x", "cifs": "//nas/x", "glusterfs": "gl1:/x", "sshfs": "user@host:/x", "bind": "/srv/x"}
NFS4 = (
    "rw,relatime,vers=4.2,rsize=262144,wsize=262144,namlen=255,{hard},proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=127.0.0.1,local_lock=none,"
    "addr=127.0.0.1"
)
NFS3 = (
    "rw,relatime,vers=3,rsize=1048576,wsize=1048576,namlen=255,hard{nolock},proto=tcp,timeo=600,retrans=2,sec=sys,mountaddr=127.0.0.1,mountvers=3,"
    "local_lock={lock}"
)
CIFS = (
    "rw,relatime,vers={vers},sec={sec},cache=strict{user},uid=0,noforceuid,gid=0,noforcegid,addr=127.0.0.1,file_mode=0755,dir_mode=0755,soft,nounix,"
    "serverino,mapposix,nobrl,rsize=4194304,wsize=4194304,bsize=1048576,echo_interval=60,actimeo=1,closetimeo=1"
)
GLUSTER = "rw,relatime,user_id=0,group_id=0,default_permissions,allow_other,max_read=131072"


def seen_after(row, wanted, live, persist=True, recorded=False, credentials=None, previous=None):
    """What there is after we mounted, as the kernel shows it; with ``previous`` another wish has been there before."""
    source = SOURCES[row.name]
    kind = row.kernel_types[-1] if row.kernel_types else "ext4"
    mount = tables.Mount(9, 1, "0:50", "/", "/mnt/t", kind, source, tuple(live.split(",")), ())
    desired = planner.DesiredShare(source, "/mnt/t", row, tuple(wanted), persist=persist, credentials=credentials, credentials_file="/c/file")
    seen = planner.Seen(directory=True, credentials=credentials.content() if credentials else None)
    first = planner.plan(desired if previous is None else dataclasses.replace(desired, options=tuple(previous)), seen)
    entry = next((step.entry for step in first if isinstance(step, planner.WriteFstab)), None)
    seen = dataclasses.replace(seen, mount=mount, source=source, bound=True, entry=entry)
    words = planner.effective_options(desired if previous is None else dataclasses.replace(desired, options=tuple(previous)), seen)
    return desired, dataclasses.replace(seen, record=record.Record(words, mount.options) if recorded else None)


def steps(*given, **more):
    desired, seen = seen_after(*given, **more)
    return [step.name for step in planner.plan(desired, seen)]


# Options, and what the kernel shows after a mount with them: no record is needed to see that all is as wished.
SETTLED = [
    ("nfs", "vers=4.2,nolock", NFS4.format(hard="hard")),
    ("nfs", "vers=4.2,lock", NFS4.format(hard="hard")),
    ("nfs", "vers=4.2,local_lock=flock", NFS4.format(hard="hard")),
    ("nfs", "vers=4.2,local_lock=all,nolock", NFS4.format(hard="hard")),
    ("nfs", "vers=4.2,noacl,mountproto=tcp,mountvers=3", NFS4.format(hard="hard")),
    ("nfs", "hard,soft", NFS4.format(hard="soft")),
    ("nfs", "soft,hard", NFS4.format(hard="hard")),
    ("nfs", "softerr,soft,hard", NFS4.format(hard="hard")),
    ("nfs", "ro,rw", NFS4.format(hard="hard")),
    ("nfs", "vers=3,vers=4.2", NFS4.format(hard="hard")),
    ("nfs", "v3,nfsvers=4", NFS4.format(hard="hard")),
    ("nfs", "nfsvers=4,minorversion=2", NFS4.format(hard="hard")),
    ("nfs", "udp,tcp", NFS4.format(hard="hard")),
    ("nfs", "sec=krb5:sys", NFS4.format(hard="hard")),
    ("nfs", "rsize=1048576,wsize=1048576", NFS4.format(hard="hard")),
    ("nfs", "rsize=100,wsize=1", NFS4.format(hard="hard")),
    ("nfs", "port=0", NFS4.format(hard="hard")),
    ("nfs", "port=2049", NFS4.format(hard="hard")),
    ("nfs", "nconnect=4", NFS4.format(hard="hard")),  # the first mount of a server decides
    ("nfs", "fsc,softreval", NFS4.format(hard="hard")),
    ("nfs", "sharecache,rdirplus,resvport,cto,ac", NFS4.format(hard="hard")),
    ("nfs", "actimeo=5,acregmin=3,acregmax=60,acdirmin=30,acdirmax=60", NFS4.format(hard="hard")),
    ("nfs", "timeo=600,retrans=2", NFS4.format(hard="hard")),
    ("nfs", "noatime,relatime", NFS4.format(hard="hard")),
    ("nfs", "atime,suid,dev,exec,async,diratime", NFS4.format(hard="hard")),
    ("nfs", "strictatime", NFS4.format(hard="hard").replace("relatime,", "")),
    ("nfs", "_netdev,nofail,noauto,user,users,defaults,x-systemd.automount,x-systemd.idle-timeout=60,comment=x", NFS4.format(hard="hard")),
    ("nfs", "bg,retry=2,fg", NFS4.format(hard="hard")),
    ("nfs", "vers=3,nolock", NFS3.format(nolock=",nolock", lock="all")),
    ("nfs", "vers=3,local_lock=flock", NFS3.format(nolock="", lock="flock")),
    ("nfs", "vers=3,nolock,lock", NFS3.format(nolock="", lock="none")),
    ("cifs", "guest,vers=3.1.1,nobrl,nosharesock", CIFS.format(vers="3.1.1", sec="none", user="")),
    ("cifs", "guest,vers=3.1.1,vers=3.0", CIFS.format(vers="3.0", sec="none", user="")),
    ("cifs", "guest,username=guest", CIFS.format(vers="3.1.1", sec="none", user="")),
    ("cifs", "guest", CIFS.format(vers="3.1.1", sec="ntlmssp", user=",username=guest")),
    ("cifs", "brl,nobrl", CIFS.format(vers="3.1.1", sec="none", user="")),
    ("cifs", "vers=default,vers=3", CIFS.format(vers="3.0", sec="none", user="")),
    ("cifs", "vers=3.11", CIFS.format(vers="3.1.1", sec="none", user="")),
    ("cifs", "vers=3.02", CIFS.format(vers="3.02", sec="none", user="")),
    ("cifs", "sec=ntlmssp,username=me", CIFS.format(vers="3.1.1", sec="ntlmsspi", user=",username=me")),
    ("cifs", "multiuser,username=me", CIFS.format(vers="3.1.1", sec="krb5", user=",multiuser")),
    ("cifs", "uid=root,gid=root,file_mode=755,dir_mode=00755", CIFS.format(vers="3.1.1", sec="none", user="")),
    ("cifs", "credentials=/etc/x,_netdev,iocharset=utf8,cruid=0", CIFS.format(vers="3.1.1", sec="none", user="")),
    ("glusterfs", "backup-volfile-servers=gl2,log-level=INFO,log-level=DEBUG,acl", GLUSTER),
    ("glusterfs", "xlator-option=a.b=c,xlator-option=d.e=f,direct-io-mode=disable", GLUSTER),
    ("sshfs", "reconnect,port=2222,IdentityFile=/root/key,ServerAliveInterval=15,dir_cache=no,allow_other", GLUSTER),
    ("bind", "rbind,private", "rw,relatime"),
]


@pytest.mark.parametrize(("name", "wanted", "live"), SETTLED, ids=[f"{name}: {wanted}" for name, wanted, dummy in SETTLED])
@pytest.mark.parametrize("persist", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
def test_no_change_the_second_time(name, wanted, live, persist, recorded):
    assert steps(types.by_name(name), wanted.split(","), live, persist, recorded) == []


DRIFTED = [
    ("nfs", "hard", NFS4.format(hard="soft"), "hard"),
    ("nfs", "soft,hard", NFS4.format(hard="soft"), "hard"),
    ("nfs", "vers=4.2,vers=3", NFS4.format(hard="hard"), "vers=3"),
    ("nfs", "vers=3,nolock", NFS3.format(nolock="", lock="none"), "nolock"),
    ("nfs", "vers=3", NFS4.format(hard="hard"), "vers=3"),
    ("nfs", "relatime,noatime", NFS4.format(hard="hard"), "noatime"),
    ("nfs", "strictatime", NFS4.format(hard="hard"), "strictatime"),
    ("nfs", "suid", NFS4.format(hard="hard").replace("rw,", "rw,nosuid,"), "suid"),
    ("nfs", "sec=krb5:krb5p", NFS4.format(hard="hard"), "sec=krb5:krb5p"),
    ("nfs", "rsize=8192", NFS4.format(hard="hard"), "rsize=8192"),
    ("nfs", "actimeo=5,acregmin=3", NFS4.format(hard="hard"), "actimeo=5"),
    ("nfs", "port=2049", NFS4.format(hard="hard") + ",port=20490", "port=2049"),
    ("cifs", "vers=3.0", CIFS.format(vers="3.02", sec="none", user=""), "vers=3.0"),
    ("cifs", "sec=krb5", CIFS.format(vers="3.0", sec="ntlmssp", user=""), "sec=krb5"),
    ("cifs", "username=other", CIFS.format(vers="3.0", sec="ntlmssp", user=",username=me"), "username=other"),
    ("cifs", "nobrl,brl", CIFS.format(vers="3.0", sec="none", user=""), "brl"),
]


@pytest.mark.parametrize(("name", "wanted", "live", "drifted"), DRIFTED, ids=[f"{name}: {wanted}" for name, wanted, *dummy in DRIFTED])
def test_what_can_be_compared_is(name, wanted, live, drifted):
    row = types.by_name(name)
    assert options.drift(row, options.complete(row, tuple(wanted.split(","))), tuple(live.split(",")), tuple(wanted.split(","))) == (drifted,)


@pytest.mark.parametrize(
    ("name", "before", "now", "live"),
    [
        ("nfs", "nconnect=4", "nconnect=8", NFS4.format(hard="hard")),
        ("cifs", "nosharesock", "", CIFS.format(vers="3.0", sec="none", user="")),
        ("glusterfs", "log-level=INFO", "log-level=DEBUG", GLUSTER),
        ("glusterfs", "xlator-option=a,xlator-option=b", "xlator-option=b", GLUSTER),
        ("sshfs", "reconnect", "reconnect,port=2222", GLUSTER),
        ("sshfs", "dir_cache=no", "", GLUSTER),
    ],
)
@pytest.mark.parametrize("persist", [True, False])
def test_other_words_for_what_is_never_shown_are_a_change(name, before, now, live, persist):
    row = types.by_name(name)
    there = seen_after(row, [word for word in now.split(",") if word], live, persist, True, previous=before.split(","))
    assert [step.name for step in planner.plan(*there)][:2] == ["unmount", "mount"]


def test_a_mount_that_altered_since_is_compared_anew():
    desired, seen = seen_after(types.by_name("nfs"), ["hard"], NFS4.format(hard="hard"), recorded=True)
    assert planner.plan(desired, seen) == ()
    altered = seen.mount._replace(mount_options=tuple(option.replace("rw", "ro") for option in seen.mount.mount_options))
    assert [step.name for step in planner.plan(desired, dataclasses.replace(seen, mount=altered))] == ["remount"]


def test_credentials_whose_user_the_kernel_does_not_show():
    secret = planner.Credentials("me", "hidden-word", None)
    live = CIFS.format(vers="3.1.1", sec="krb5", user=",multiuser")
    assert steps(types.by_name("cifs"), ["multiuser"], live, credentials=secret) == []
    plain = CIFS.format(vers="3.1.1", sec="ntlmssp", user="")
    assert steps(types.by_name("cifs"), [], plain, credentials=secret, recorded=True) == []


def test_credentials_left_out_later_are_no_change():
    secret = planner.Credentials("me", "hidden-word", None)
    live = CIFS.format(vers="3.1.1", sec="ntlmssp", user=",username=me")
    for recorded in (True, False):
        desired, seen = seen_after(types.by_name("cifs"), ["_netdev"], live, credentials=secret, recorded=recorded)
        assert planner.plan(desired, seen) == planner.plan(dataclasses.replace(desired, credentials=None), seen) == ()
        other = planner.Credentials("other", "hidden-word", None)
        seen = dataclasses.replace(seen, credentials=other.content())
        assert [step.name for step in planner.plan(dataclasses.replace(desired, credentials=other), seen)] == ["unmount", "mount"]


def words(row):
    """Options of a row: those that its columns name, with and without values, and some that nobody knows."""
    names = set(row.shown) | set(types.GENERAL) | {name for name, dummy in row.spellings}
    names |= {"nofail", "_netdev", "x-y.z", "log-level", "nosharesock", "unheard-of"}
    values = st.sampled_from(["", "=0", "=1", "=3", "=4.2", "=600", "=tcp", "=sys", "=krb5:sys", "=none", "=root", "=0660", "=100000", "=a b"])
    return st.lists(st.builds(lambda name, value: name if "=" in name else name + value, st.sampled_from(sorted(names)), values), max_size=6)


@pytest.mark.parametrize("name", sorted(SOURCES))
@given(data=st.data())
def test_whatever_the_kernel_makes_of_our_mount_settles(name, data):
    """It may show the words as given, some of them, or something else: we mounted it with these words, and it has not altered."""
    row = types.by_name(name)
    wanted = data.draw(words(row))
    shown = data.draw(st.lists(st.sampled_from(wanted + ["rw", "relatime", "hard", "vers=4.2", "nobrl", "noatime"]), max_size=8))
    desired, seen = seen_after(row, wanted, ",".join(["rw", *shown]), data.draw(st.booleans()), recorded=True)
    assert planner.plan(desired, seen) == ()


@pytest.mark.parametrize("name", sorted(SOURCES))
@given(data=st.data())
def test_words_that_are_all_in_force_need_no_record(name, data):
    """A kernel that shows exactly the last word about everything: fstab is the only witness."""
    row = types.by_name(name)
    wanted = [word for word in data.draw(words(row)) if options.split(word)[0] not in types.CONTRARIES]
    last: dict = {}
    for word in options.for_mount(("rw", *row.default_options, *wanted)):
        for atom in options.spell(row, word):
            last[options._subject(options.split(atom)[0])] = atom
    desired, seen = seen_after(row, wanted, ",".join(last.values()), recorded=False)
    assert planner.plan(desired, seen) == ()


def test_a_record_is_of_one_mount_only(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path / "records"))
    (mount,) = tables.parse_mountinfo("9 1 0:50 / /mnt/t rw - nfs4 nas:/x rw,vers=4.2")
    assert record.read("/mnt/t", mount) is None
    record.write("/mnt/t", mount, ("nolock",))
    assert record.read("/mnt/t", mount) == record.Record(("nolock",), ("rw", "vers=4.2"))
    for other in (mount._replace(id=10), mount._replace(device="0:51"), mount._replace(source="nas:/y"), None):
        assert record.read("/mnt/t", other) is None
    assert record.read("/mnt/u", mount) is None
    (name,) = (tmp_path / "records").iterdir()
    assert name.stat().st_mode & 0o777 == 0o600 and (tmp_path / "records").stat().st_mode & 0o777 == 0o700
    for broken in (b"", b"[]", b'{"mount": 1}', b"\xff"):
        name.write_bytes(broken)
        assert record.read("/mnt/t", mount) is None
    record.write("/mnt/t", None, ())
    assert not name.exists()
    record.write("/mnt/t", None, ())
    monkeypatch.setattr(record, "DIRECTORY", "/proc/none")
    record.write("/mnt/t", mount, ())  # no harm where it cannot be kept
