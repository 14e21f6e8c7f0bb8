# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong with mounts: the code and the advice for each; versions of NFS that the helper does not try; mounts that can lose data."""
from __future__ import annotations

import os

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import command
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import applier, options, parameters, record, tables, types
from ansible_collections.remotefs.storage.plugins.module_utils.operations import shares

NFS = "rw,vers=4.2,hard,proto=tcp"


class Host:
    """Programs that answer as told, and the kernel's table."""

    def __init__(self, lines):
        self.lines, self.ran, self.answers = list(lines), [], lambda argv: (0, "")

    def mounts(self, *_args):
        numbered = [f"{9 + number} 1 0:5{number} / {line}" for number, line in enumerate(self.lines)]
        return tables.parse_mountinfo("\n".join(["1 0 8:1 / / rw - ext4 /dev/vda rw", *numbered]))

    def run(self, argv, **_how):
        self.ran.append(argv)
        code, said = self.answers(argv)
        if os.path.basename(argv[0]) == "umount":
            self.lines = [line for line in self.lines if line.split()[0] != argv[-1]]
        elif code == 0:
            live = argv[argv.index("-o") + 1] if "-o" in argv else "vers=4.2,hard"
            self.lines.append(f"{argv[-1]} rw,relatime - nfs4 {argv[-2]} rw,{live}")
        return command.Result(code, "", said, argv=tuple(argv))

    def versions(self):
        """What ``vers`` was in each mount command; None where it was not named."""
        words = [argv[argv.index("-o") + 1].split(",") if "-o" in argv else [] for argv in self.ran]
        return [next((word for word in given if word.startswith("vers=")), None) for given in words]


@pytest.fixture
def host(tmp_path, monkeypatch):
    made = Host([])
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path / "records"))
    monkeypatch.setattr(parameters, "CREDENTIALS", str(tmp_path / "credentials"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(command, "find", lambda program, _package: f"/sbin/{program}")
    monkeypatch.setattr(command, "run", made.run)
    monkeypatch.setattr(tables, "read_mounts", made.mounts)
    monkeypatch.setattr(applier, "_PAUSE", 0.01)
    return made


def params(tmp_path, **given):
    values = {
        "src": "nas1:/vols", "path": str(tmp_path / "mnt"), "mount_base": str(tmp_path / "base"), "fstype": "auto", "type": None, "opts": None,
        "credentials": None, "state": "mounted", "persist": False, "fstab": str(tmp_path / "fstab"), "attempts": 1, "timeout": 5,
    }
    return {**values, **given}


# -- the message of a helper, and the advice for it

CASES = [
    ("nas:/x", "nfs", "mount.nfs: Failed to resolve server nas: Name or service not known", "the name of the server in src"),
    ("nas:/x", "nfs", "mount.nfs: No route to host for nas:/x on /mnt", "network and routes"),
    ("nas:/x", "nfs", "mount.nfs: Network is unreachable for nas:/x on /mnt", "network and routes"),
    ("nas:/x", "nfs", "mount.nfs: Connection refused for nas:/x on /mnt", "start the service on the server"),
    ("nas:/x", "nfs", "mount.nfs: Connection timed out for nas:/x on /mnt", "no firewall is in between"),
    ("nas:/x", "nfs", "mount.nfs: access denied by server while mounting nas:/x", "/etc/exports"),
    ("nas:/x", "nfs", "mount.nfs: mounting nas:/x failed, reason given by server: No such file or directory", "nothing has the name that src says"),
    ("nas:/x", "nfs", "mount.nfs: Operation not permitted", "/etc/exports"),
    ("//nas/x", "cifs", "mount error(13): Permission denied", "the user, the password and the domain"),
    ("//nas/x", "cifs", "mount error(126): Required key not available", "the user, the password and the domain"),
    ("//nas/x", "cifs", "mount error(2): No such file or directory", "nothing has the name that src says"),
    ("//nas/x", "cifs", "mount error: could not resolve address for nas: Unknown error", "the name of the server in src"),
    ("//nas/x", "cifs", "mount error(112): Host is down", "no firewall is in between"),
    ("//nas/x", "cifs", "mount error(113): could not connect to 192.0.2.9Unable to find suitable address.", "no firewall is in between"),
    ("mon:/x", "cephfs", "mount error 13 = Permission denied", "ceph auth get"),
    ("mon:/x", "cephfs", "mount error: no mds server is up or the cluster is laggy", "a wrong user or key can sound like"),
    ("mon:/x", "cephfs", "mount error: ceph filesystem not supported by the system", "modprobe ceph"),
    ("mon:/x", "cephfs", "server name not found: mon (Name or service not known)\nfailed to resolve source", "the name of the server in src"),
    ("tag", "9p", "mount: /mnt: bad option; for several filesystems you might need a helper program.", "mount_tag"),
    ("tag", "virtiofs", "mount: /mnt: wrong fs type, bad option, bad superblock on tag", "the tag of the device"),
    ("tag", "virtiofs", "mount: /mnt: unknown filesystem type 'virtiofs'.", "modprobe virtiofs"),
    ("c1", "vzstorage", "Unable to find cluster c1", "auth-node"),
    ("r1/x", "quobyte", "Failed to mount", "the log of its client"),
]


@pytest.mark.parametrize(("src", "fstype", "said", "advice"), CASES)
def test_the_advice_follows_from_what_was_said(host, tmp_path, src, fstype, said, advice):
    host.answers = lambda argv: (32, said)
    result = shares.ensure(params(tmp_path, src=src, fstype=fstype))
    assert result["error_code"] == "mount_failed" and result["stderr"] == said and result["actions"] == []
    assert advice in result["msg"] and said.splitlines()[0].rstrip(".") in result["msg"]
    assert not os.path.exists(tmp_path / "mnt")


def test_a_helper_that_fails_with_success_is_quoted(host, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run", lambda argv, **_how: command.Result(0, "Mount failed with status code: 1\n", "ceph mount failed\n", argv=tuple(argv)))
    result = shares.ensure(params(tmp_path, src="mon1:/vols", fstype="ceph-fuse"))
    assert result["error_code"] == "mount_failed" and "the helper said: ceph mount failed" in result["msg"] and "/var/log/ceph" in result["msg"]


# -- two shares, one place; one share, another place


def test_two_shares_at_one_path(host, tmp_path):
    host.lines = [f"{tmp_path}/mnt rw - nfs4 nas2:/vols {NFS}"]
    for state in ("mounted", "remounted", "unmounted", "absent"):
        result = shares.ensure(params(tmp_path, state=state))
        assert result["error_code"] == "conflict" and "nas2:/vols (nfs4) is mounted there, not nas1:/vols" in result["msg"]
        assert "choose another path or unmount that one" in result["msg"] and host.ran == []
    host.lines = []
    (tmp_path / "fstab").write_text(f"nas2:/vols {tmp_path}/mnt nfs ro 0 0\n")
    listed = shares.ensure(params(tmp_path, persist=True))
    assert listed["error_code"] == "conflict" and "mounts nas2:/vols there" in listed["msg"] and "state: absent" in listed["msg"]
    both = [{"src": "nas1:/vols"}, {"src": "nas2:/vols"}]
    many = shares.ensure_all({**params(tmp_path, src=None), "shares": [{**one, "path": f"{tmp_path}/m"} for one in both], "shares_file": None})
    assert [one.get("error_code") for one in many["results"]] == [None, "invalid_parameter"] and "name every share once" in many["msg"]


@pytest.mark.parametrize("state", ["unmounted", "absent"])
def test_a_share_that_stays_mounted_elsewhere_is_told(host, tmp_path, state):
    host.lines = [f"/mnt/by-hand rw - nfs4 nas1:/vols {NFS}"]
    result = shares.ensure(params(tmp_path, path=None, state=state))
    (warning,) = result["warnings"]
    assert not result["changed"] and "stays mounted at /mnt/by-hand; name that path" in warning
    assert shares.ensure(params(tmp_path, state=state))["warnings"] == [], "the path was named"
    host.lines = []
    assert shares.ensure(params(tmp_path, path=None, state=state))["warnings"] == []


def test_a_share_may_be_mounted_twice(host, tmp_path):
    host.lines = [f"/mnt/by-hand rw - nfs4 nas1:/vols {NFS}"]
    result = shares.ensure(params(tmp_path))
    assert result["failed"] is False and [action["step"] for action in result["actions"]] == ["create_directory", "mount"]


# -- versions of NFS

STUCK = "mount.nfs: mount system call failed for /mnt"


def answering(*working, said=STUCK):
    return lambda argv: (0, "") if any(f"vers={version}" in argv[argv.index("-o") + 1] for version in working if "-o" in argv) else (32, said)


def test_versions_are_tried_where_the_helper_gives_up(host, tmp_path):
    host.answers = answering("4.0", "3")
    result = shares.ensure(params(tmp_path, persist=True, opts=["hard"]))
    assert not result["failed"] and host.versions() == [None, "vers=4.2", "vers=4.1", "vers=4.0"]
    assert result["actions"][1] == {"step": "mount", "path": f"{tmp_path}/mnt", "src": "nas1:/vols", "fstype": "nfs", "opts": "hard,vers=4.0"}
    (warning,) = result["warnings"]
    assert "vers=4.0 only" in warning and "name it in opts" in warning
    assert (tmp_path / "fstab").read_text().split()[3] == "hard"
    again = shares.ensure(params(tmp_path, persist=True, opts=["hard"]))
    assert not again["changed"] and again["warnings"] == []


def test_the_first_failure_is_told_if_none_works(host, tmp_path):
    said = iter([STUCK, *(f"mount.nfs: {number}" for number in range(9))])
    host.answers = lambda argv: (32, next(said))
    result = shares.ensure(params(tmp_path))
    assert "mount system call failed" in result["msg"] and host.versions() == [None, "vers=4.2", "vers=4.1", "vers=4.0", "vers=3"]


@pytest.mark.parametrize("named", ["vers=4.1", "nfsvers=3", "v4.2", "v3", "minorversion=1"])
def test_a_version_that_is_named_is_the_only_one(host, tmp_path, named):
    host.answers = lambda argv: (32, STUCK)
    assert shares.ensure(params(tmp_path, opts=[named]))["error_code"] == "mount_failed" and len(host.ran) == 1


@pytest.mark.parametrize("said", ["Connection refused", "Connection timed out", "No route to host", "access denied by server", "No such file or directory"])
def test_what_no_version_changes_is_not_tried_again(host, tmp_path, said):
    host.answers = lambda argv: (32, f"mount.nfs: {said}")
    assert shares.ensure(params(tmp_path))["failed"] and len(host.ran) == 1


def test_no_other_file_system_has_versions_to_try(host, tmp_path):
    host.answers = lambda argv: (32, "mount error(95): Operation not supported")
    assert shares.ensure(params(tmp_path, src="//nas/x"))["failed"] and len(host.ran) == 1


# -- mounts that can lose data


@pytest.mark.parametrize(
    ("opts", "warned"),
    [
        (None, []),
        (["hard"], []),
        (["soft"], ["soft"]),
        (["softerr", "timeo=50"], ["softerr"]),
        (["soft", "hard"], []),
        (["hard", "soft"], ["soft"]),
    ],
)
def test_soft_mounts_give_a_warning(host, tmp_path, opts, warned):
    for check_mode in (True, False):
        told = shares.ensure(params(tmp_path, opts=opts), check_mode)["warnings"]
        assert len(told) == len(warned) and all(f"with {name}, a write" in text and "leave" in text for name, text in zip(warned, told))
    assert shares.ensure(params(tmp_path, state="absent", opts=opts))["warnings"] == []


def test_hard_is_the_default_and_needs_no_word():
    assert options.drift(types.by_name("nfs"), ("hard",), ("rw", "vers=4.2", "hard")) == ()
    assert options.complete(types.by_name("nfs"), ()) == ()
