# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shares that autofs mounts: with a played table, and with the kernel's own autofs and a daemon of ours."""
from __future__ import annotations

import hashlib
import os
import subprocess
import time

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import ShareNotMounted
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import automount, planner, probe, record, resolve, tables, types
from ansible_collections.remotefs.storage.plugins.module_utils.operations import shares

from .automounter import Automounter, in_a_namespace

ROOT = "1 1 8:1 / / rw - ext4 /dev/vda rw\n"
OPTIONS = "rw,fd=4,pgrp=1,timeout=60,minproto=5,maxproto=5"


class Played:
    """A mount table that names the trigger until somebody goes there."""

    def __init__(self, monkeypatch, before, after, goes=True):
        self.table, self.after, self.went = before, after, []
        monkeypatch.setattr(tables, "read_mounts", lambda *_a: tables.parse_mountinfo(ROOT + self.table))
        monkeypatch.setattr(probe, "bounded", lambda look, timeout, subject: self.go() if goes else (2,))

    def go(self):
        self.went.append(1)
        self.table = self.after
        return (0,)


def trigger(path, kind="direct", number=50):
    return f"{number} 1 0:40 / {path} rw,relatime - autofs systemd-1 {OPTIONS},{kind}\n"


def share(path, kind="cifs", source="//nas1/vols", options="rw,vers=3.1.1,nobrl,hard", parent=50, number=51):
    return f"{number} {parent} 0:{number} / {path} rw,relatime - {kind} {source} {options}\n"


def test_a_directory_behind_a_trigger_is_what_it_mounts(tmp_path, monkeypatch):
    played = Played(monkeypatch, trigger(tmp_path), trigger(tmp_path) + share(tmp_path))
    found = resolve.find_share(str(tmp_path), fstab="/dev/null")
    assert (found.fstype, found.locks_visible, found.source) == ("cifs", False, "//nas1/vols") and played.went == [1]
    assert resolve.find_share(str(tmp_path), fstab="/dev/null").fstype == "cifs" and played.went == [1]


def test_a_share_of_an_indirect_map(tmp_path, monkeypatch):
    (tmp_path / "vols" / "deep").mkdir(parents=True)
    Played(monkeypatch, trigger(tmp_path, "indirect"), trigger(tmp_path, "indirect") + share(tmp_path / "vols", "nfs4", "nas1:/vols", "rw,vers=4.2"))
    found = resolve.find_share(f"{tmp_path}/vols/deep", fstab="/dev/null")
    assert (found.fstype, found.export, found.below) == ("nfs", "nas1:/vols", "deep")


def test_triggers_in_what_triggers_mount(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    first, inner = trigger(tmp_path), f"52 51 0:52 / {tmp_path}/b rw - autofs map {OPTIONS},offset\n"
    last = first + share(tmp_path, "nfs4", "nas1:/", "rw") + inner + share(f"{tmp_path}/b", "nfs4", "nas1:/b", "rw", parent=52, number=53)
    played = Played(monkeypatch, first, first + share(tmp_path, "nfs4", "nas1:/", "rw") + inner)
    real = played.go

    def go():
        real()
        played.after = last
        return (0,)

    monkeypatch.setattr(probe, "bounded", lambda look, timeout, subject: go())
    assert resolve.find_share(f"{tmp_path}/b", fstab="/dev/null").source == "nas1:/b"


@pytest.mark.parametrize("goes", [True, False])
def test_a_trigger_that_mounts_nothing(tmp_path, monkeypatch, goes):
    Played(monkeypatch, trigger(tmp_path), trigger(tmp_path), goes)
    with pytest.raises(ShareNotMounted, match="autofs manages .* mounted nothing"):
        resolve.find_share(str(tmp_path), fstab="/dev/null")


def test_a_trigger_whose_server_is_dead_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "read_mounts", lambda *_a: tables.parse_mountinfo(ROOT + trigger(tmp_path)))
    monkeypatch.setattr(os, "open", lambda *_a: time.sleep(60))
    began = time.monotonic()
    with pytest.raises(ShareNotMounted, match="does not answer within"):
        resolve.find_share(str(tmp_path), fstab="/dev/null", timeout=0.3)
    assert time.monotonic() - began < 5


def test_a_source_that_expired_is_found_through_fstab_and_at_its_default_path(tmp_path, monkeypatch):
    fstab = tmp_path / "fstab"
    fstab.write_text(f"nas1://vols {tmp_path}/mnt nfs noauto,x-systemd.automount 0 0\n")
    (tmp_path / "mnt").mkdir()
    where = f"{tmp_path}/mnt"
    Played(monkeypatch, trigger(where), trigger(where) + share(where, "nfs4", "nas1:/vols", "rw,vers=4.2"))
    assert resolve.find_share("nas1:/vols", fstab=str(fstab)).path == where
    where = f"{tmp_path}/{hashlib.md5(b'nas1:/vols').hexdigest()}"
    os.mkdir(where)
    Played(monkeypatch, trigger(where), trigger(where) + share(where, "nfs4", "nas1:/vols", "rw,vers=4.2"))
    assert resolve.find_share("nas1:/vols", mount_base=str(tmp_path), fstab="/dev/null").path == where
    Played(monkeypatch, trigger(where), trigger(where))
    with pytest.raises(ShareNotMounted, match="autofs"):
        resolve.find_share("nas1:/vols", mount_base=str(tmp_path), fstab="/dev/null")
    with pytest.raises(ShareNotMounted, match="remotefs_share"):
        resolve.find_share("nas2:/vols", mount_base=str(tmp_path), fstab="/dev/null")


@pytest.mark.parametrize(
    ("table", "path", "managed"),
    [
        (trigger("/a"), "/a", True),
        (trigger("/a") + share("/a"), "/a", True),
        (trigger("/a") + share("/a") + share("/a", parent=51, number=52), "/a", True),  # mounted twice
        (trigger("/a", "indirect") + share("/a/b"), "/a/b", True),
        (trigger("/a", "indirect"), "/a/c", True),
        (trigger("/a") + share("/a"), "/a/sub", False),  # a directory of the share
        (trigger("/a") + share("/a") + share("/a/sub", parent=51, number=52), "/a/sub", False),  # mounted there by hand
        (share("/b", parent=1), "/b", False),
        ("", "/x", False),
    ],
)
def test_what_autofs_manages(table, path, managed):
    assert (automount.trigger(tables.parse_mountinfo(ROOT + table), path) is not None) is managed


NFS, SSHFS, CIFS = map(types.by_name, ("nfs", "sshfs", "cifs"))


def managed(row, live, wanted=(), **changes):
    source = {"nfs": "nas:/x", "sshfs": "u@h:/x", "cifs": "//n/x"}[row.name]
    mount = tables.Mount(2, 1, "0:9", "/", "/mnt/x", row.kernel_types[-1], source, tuple(live.split(",")), ())
    desired = planner.DesiredShare(source, "/mnt/x", row, tuple(wanted), persist=False, state=changes.pop("state", "mounted"), own_directory=True)
    return planner.plan(desired, planner.Seen(mount=mount, source=source, directory=True, trigger=True, **changes))


@pytest.mark.parametrize(
    ("row", "live", "wanted", "steps"),
    [
        (NFS, "rw,vers=4.2,hard", (), []),
        (NFS, "rw,vers=4.2,hard", ("vers=3",), []),  # the map decides: a warning tells
        (NFS, "rw,vers=4.2,hard", ("vers=3", "ro"), ["remount"]),
        (SSHFS, "rw", ("ro",), []),
        (CIFS, "rw,nobrl,file_mode=0755", ("file_mode=0660", "uid=5"), ["remount"]),
    ],
)
def test_nothing_is_mounted_on_top_of_what_autofs_mounted(row, live, wanted, steps):
    assert [step.name for step in managed(row, live, wanted)] == steps


def test_what_must_be_mounted_anew_is_mounted_by_the_automounter():
    for changes in ({"dead": True}, {"state": "remounted"}):
        unmount, mount = managed(SSHFS, "rw", **changes)
        assert (unmount.name, mount.name, mount.visit) == ("unmount", "mount", True) and "visit" not in mount.describe()
    assert [step.name for step in managed(NFS, "rw", state="absent")] == ["unmount"]  # the directory is the automounter's


def test_a_share_that_shall_go_is_not_visited(tmp_path, monkeypatch):
    where = tmp_path / "mnt"
    where.mkdir()
    played = Played(monkeypatch, trigger(where), trigger(where) + share(where))
    given = {
        "src": "//nas1/vols", "path": str(where), "mount_base": str(tmp_path), "fstype": "auto", "opts": None, "credentials": None, "state": "unmounted",
        "persist": True, "fstab": str(tmp_path / "fstab"), "attempts": 1, "timeout": 5,
    }
    for state in ("unmounted", "absent"):
        result = shares.ensure({**given, "state": state})
        assert not result["changed"] and not result["failed"] and played.went == []
    assert "autofs still manages" in result["warnings"][0]


# --- the kernel's own


def real(scenario, tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("needs root for mounts in a namespace")
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path / "records"))
    answer = in_a_namespace(scenario)
    if answer.startswith("skip: "):
        pytest.skip(answer[6:])
    assert not answer, answer


def at(path):
    return [mount.fstype for mount in tables.read_mounts() if mount.path == path]


@pytest.mark.root
def test_the_kernels_trigger_is_visited_and_what_it_mounted_is_the_share(tmp_path, monkeypatch):
    where = tmp_path / "auto"
    where.mkdir()

    def scenario():
        daemon = Automounter(str(where), ["mount", "-t", "tmpfs", "mounted", "{}"])
        try:
            assert at(str(where)) == ["autofs"]
            found = resolve.find_share(str(where), fstab="/dev/null")
            assert (found.fstype, at(str(where))) == ("directory", ["autofs", "tmpfs"])
            subprocess.run(["umount", str(where)], check=True)  # expired
            assert at(str(where)) == ["autofs"]
            automount.visit(str(where), tables.read_mounts(), 5, "share x")
            assert at(str(where)) == ["autofs", "tmpfs"]
        finally:
            daemon.stop()

    real(scenario, tmp_path, monkeypatch)


@pytest.mark.root
def test_the_kernels_trigger_that_fails(tmp_path, monkeypatch):
    where = tmp_path / "auto"
    where.mkdir()

    def scenario():
        daemon = Automounter(str(where), ["false"])
        try:
            with pytest.raises(ShareNotMounted, match="mounted nothing"):
                resolve.find_share(str(where), fstab="/dev/null")
        finally:
            daemon.stop()

    real(scenario, tmp_path, monkeypatch)


@pytest.mark.root
def test_the_kernels_indirect_map(tmp_path, monkeypatch):
    where = tmp_path / "net"
    where.mkdir()

    def scenario():
        daemon = Automounter(str(where), ["sh", "-c", 'test "$1" != "$2/none" && mount -t tmpfs vols "$1"', "sh", "{}", str(where)], indirect=True)
        try:
            found = resolve.find_share(f"{where}/vols", fstab="/dev/null")
            assert (found.path, at(f"{where}/vols")) == (f"{where}/vols", ["tmpfs"])
            with pytest.raises(ShareNotMounted, match="mounted nothing"):
                resolve.find_share(f"{where}/none", fstab="/dev/null")
        finally:
            daemon.stop()

    real(scenario, tmp_path, monkeypatch)


@pytest.mark.root
def test_nothing_is_stacked_on_the_kernels_trigger(tmp_path, monkeypatch):
    where, source = tmp_path / "auto", tmp_path / "source"
    where.mkdir()
    source.mkdir()
    given = {
        "src": str(source), "path": str(where), "mount_base": str(tmp_path / "base"), "fstype": "bind", "opts": None, "credentials": None, "state": "mounted",
        "persist": False, "fstab": str(tmp_path / "fstab"), "attempts": 1, "timeout": 10,
    }

    def scenario():
        daemon = Automounter(str(where), ["mount", "--bind", str(source), "{}"])
        try:
            first = shares.ensure(given)
            assert not first["failed"] and not first["changed"] and len(at(str(where))) == 2, first
            again = shares.ensure({**given, "state": "remounted"})
            assert [step["step"] for step in again["actions"]] == ["unmount", "mount"] and len(at(str(where))) == 2, (again, at(str(where)))
            read_only = shares.ensure({**given, "opts": ["ro"]})
            assert [step["step"] for step in read_only["actions"]] == ["remount"] and not shares.ensure({**given, "opts": ["ro"]})["changed"]
            assert shares.ensure({**given, "state": "unmounted"})["changed"] and at(str(where)) == ["autofs"]
            assert not shares.ensure({**given, "state": "absent"})["changed"] and at(str(where)) == ["autofs"]
        finally:
            daemon.stop()

    real(scenario, tmp_path, monkeypatch)
