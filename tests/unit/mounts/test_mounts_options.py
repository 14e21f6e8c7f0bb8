# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When live options differ from the wished ones. The live ones were recorded from real mounts (Linux 6.1)."""
from __future__ import annotations

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import options, types

NFS4 = (
    "rw,relatime,vers=4.2,rsize=262144,wsize=262144,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=127.0.0.1,local_lock=none,addr=127.0.0.1"
)
NFS_TUNED = "rw,relatime,vers=4.2,rsize=65536,wsize=262144,namlen=255,acregmin=5,acregmax=5,acdirmin=5,acdirmax=5,hard,nosharecache,proto=tcp,timeo=600"
CIFS = (
    "rw,relatime,vers=3.1.1,cache=strict,username=guest,uid=0,noforceuid,gid=0,noforcegid,addr=127.0.0.1,file_mode=0755,dir_mode=0755,soft,nounix,"
    "serverino,mapposix,nobrl,rsize=4194304,wsize=4194304,bsize=1048576,echo_interval=60,actimeo=1,closetimeo=1"
)
GLUSTER = "rw,relatime,user_id=0,group_id=0,default_permissions,allow_other,max_read=131072"
BIND = "rw,noatime"
LIVE = {"nfs": NFS4, "cifs": CIFS, "glusterfs": GLUSTER, "bind": BIND, "tuned": NFS_TUNED}


def drift(kind, wanted, previous=None):
    row = types.by_name({"tuned": "nfs"}.get(kind, kind))
    wished = options.complete(row, tuple(wanted.split(",")) if wanted else ())
    before = None if previous is None else options.complete(row, tuple(previous.split(",")) if previous else ())
    return options.drift(row, wished, tuple(LIVE[kind].split(",")), before)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("nfs", ""),
        ("nfs", "defaults,_netdev,nofail,x-systemd.automount,rw"),
        ("nfs", "vers=4"),
        ("nfs", "nfsvers=4.2,hard,tcp,sec=sys,timeo=600"),
        ("nfs", "v4.2,rsize=1048576,wsize=1048576"),  # the server lowered them
        ("nfs", "retry=1,bg"),  # never shown
        ("nfs", "acregmin=3,lookupcache=all"),  # the defaults are not shown
        ("tuned", "actimeo=5,nosharecache,rsize=65536"),
        ("cifs", ""),
        ("cifs", "vers=3,file_mode=755,uid=root,gid=0,user=guest,credentials=/some/file"),
        ("cifs", "vers=3.11,vers=default"),
        ("glusterfs", "log-level=WARNING,backup-volfile-servers=gl2"),
        ("bind", "noatime"),
    ],
)
def test_no_drift(kind, wanted):
    assert drift(kind, wanted) == ()


@pytest.mark.parametrize(
    ("kind", "wanted", "drifted"),
    [
        ("nfs", "ro", ("ro",)),
        ("nfs", "vers=4.1", ("vers=4.1",)),
        ("nfs", "vers=3", ("vers=3",)),
        ("nfs", "soft", ("soft",)),
        ("nfs", "softerr", ("softerr",)),
        ("nfs", "noatime,nosuid", ("noatime", "nosuid")),
        ("nfs", "rsize=65536", ("rsize=65536",)),
        ("nfs", "actimeo=5", ("actimeo=5",)),
        ("nfs", "nosharecache", ("nosharecache",)),
        ("nfs", "udp", ("udp",)),
        ("tuned", "actimeo=6", ("actimeo=6",)),
        ("tuned", "sharecache", ("sharecache",)),
        ("cifs", "brl", ("brl",)),
        ("cifs", "file_mode=0660", ("file_mode=0660",)),
        ("cifs", "uid=65534", ("uid=65534",)),
        ("cifs", "uid=no-such-user", ("uid=no-such-user",)),
        ("cifs", "username=other", ("username=other",)),
        ("cifs", "noserverino", ("noserverino",)),
        ("glusterfs", "ro", ("ro",)),
        ("bind", "", ()),
        ("bind", "ro,noatime", ("ro",)),
    ],
)
def test_drift(kind, wanted, drifted):
    assert drift(kind, wanted) == drifted


@pytest.mark.parametrize(
    ("kind", "wanted", "previous", "drifted"),
    [
        ("glusterfs", "log-level=DEBUG", "log-level=DEBUG", ()),
        ("glusterfs", "log-level=DEBUG", "log-level=INFO", ("log-level=DEBUG",)),
        ("glusterfs", "log-level=DEBUG", "", ("log-level=DEBUG",)),
        ("glusterfs", "", "log-level=DEBUG", ("log-level=DEBUG",)),
        ("nfs", "", "vers=4.2", ("vers=4.2",)),  # no longer asked for, still in force
        ("nfs", "", "vers=4.1", ()),  # no longer asked for, nor in force
        ("nfs", "", "ro", ()),
        ("nfs", "", "_netdev,nofail", ()),
        ("nfs", "soft", "hard", ("soft",)),
        ("cifs", "", "file_mode=0755", ("file_mode=0755",)),
        ("bind", "", "noatime", ("noatime",)),
    ],
)
def test_our_line_in_fstab_is_a_witness(kind, wanted, previous, drifted):
    assert drift(kind, wanted, previous) == drifted


@pytest.mark.parametrize(
    ("name", "drifted", "possible"),
    [
        ("nfs", "ro", True),
        ("nfs", "vers=4.1", False),
        ("nfs", "soft", False),
        ("cifs", "file_mode=0660", True),
        ("cifs", "uid=1", False),
        ("sshfs", "ro", False),
    ],
)
def test_what_a_remount_can_change(name, drifted, possible):
    assert options.can_remount(types.by_name(name), (drifted,)) is possible


def test_defaults_are_added_unless_spoken_about():
    cifs = types.by_name("cifs")
    assert options.complete(cifs, ("ro",)) == ("nobrl", "ro")
    assert options.complete(cifs, ("brl",)) == ("brl",)
    assert options.complete(cifs, ("nobrl", "ro")) == ("nobrl", "ro")
    assert options.complete(types.by_name("bind"), ()) == ("bind",)
    assert options.complete(types.by_name("bind"), ("rbind",)) == ("rbind",)


def test_a_remount_of_nfs_names_general_options_only():
    assert options.for_remount(types.by_name("nfs"), ("vers=4.2", "noatime", "_netdev")) == ("remount", "rw", "noatime")
    assert options.for_remount(types.by_name("bind"), ("bind", "ro")) == ("remount", "bind", "ro")
    assert options.for_remount(types.by_name("cifs"), ("nobrl", "file_mode=0660")) == ("remount", "rw", "nobrl", "file_mode=0660")


def test_what_belongs_to_fstab_stays_there():
    assert options.for_mount(("defaults", "_netdev", "nofail", "user", "user=me", "x-systemd.idle-timeout=1", "ro")) == ("user=me", "ro")


@pytest.mark.parametrize("option", ["password=x", "pass=x", "Password=x", "passwd=x", "username=me%x", "user=me%x"])
def test_a_password_is_refused_without_being_repeated(option):
    with pytest.raises(InvalidParameter, match="credentials") as caught:
        options.check((option,))
    assert "=x" not in str(caught.value) and "%" not in str(caught.value)


def test_a_line_break_is_refused():
    with pytest.raises(InvalidParameter):
        options.check(("ro\n/dev/x / ext4 x",))
