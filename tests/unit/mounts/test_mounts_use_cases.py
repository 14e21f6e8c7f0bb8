# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole runs: on plain directories as anyone, with bind mounts as root, and against servers that never answer."""
from __future__ import annotations

import os
import subprocess
import time

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import command
from ansible_collections.remotefs.storage.plugins.module_utils.errors import MountFailed, ShareNotMounted, StorageError, ToolFailed
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import applier, observer, parameters, planner, probe, record, resolve, tables, types
from ansible_collections.remotefs.storage.plugins.module_utils.operations import shares

NFS = types.by_name("nfs")


@pytest.fixture(autouse=True)
def _records(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path / "records"))


def params(tmp_path, **given):
    values = {
        "src": None, "path": None, "mount_base": str(tmp_path / "base"), "fstype": "auto", "opts": None, "credentials": None, "state": "mounted",
        "persist": True, "fstab": str(tmp_path / "fstab"), "attempts": 1, "timeout": 5, "shares": None, "shares_file": None,
    }
    return {**values, **given}


def steps(result):
    return [action["step"] for action in result["actions"]]


def test_a_directory_is_made_once_and_never_removed(tmp_path):
    there = str(tmp_path / "deep" / "share")
    predicted = shares.ensure(params(tmp_path, src=there), check_mode=True)
    assert predicted["changed"] and not os.path.exists(there)
    made = shares.ensure(params(tmp_path, src=there))
    assert made["actions"] == predicted["actions"] == [{"step": "create_directory", "path": there}]
    assert made["share"]["total"] > 0 and made["share"]["writable"] and made["share"]["fstype"] == "directory"
    again = shares.ensure(params(tmp_path, src=there))
    assert not again["changed"] and not again["failed"]
    assert not shares.ensure(params(tmp_path, src=there, state="absent"))["changed"] and os.path.isdir(there)
    assert not os.path.exists(tmp_path / "fstab")


def test_a_directory_meant_for_a_mount_is_refused_and_not_made(tmp_path):
    result = shares.ensure(params(tmp_path, src=str(tmp_path / "base" / "x")))
    assert result["failed"] and result["error_code"] == "share_not_mounted" and not result["changed"]
    assert not os.path.exists(tmp_path / "base")


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    assert shares.ensure(params(tmp_path, src=str(tmp_path / "file")))["error_code"] == "invalid_parameter"


@pytest.mark.parametrize(("key", "value"), [("timeout", 0), ("attempts", 0), ("timeout", -1)])
def test_limits_are_positive(tmp_path, key, value):
    assert shares.ensure(params(tmp_path, src="nas:/x", **{key: value}))["error_code"] == "invalid_parameter"


def test_present_writes_the_table_only(tmp_path):
    given = params(tmp_path, src="nas:/x", path=str(tmp_path / "mnt"), state="present", opts=["vers=4.2", "_netdev"])
    predicted = shares.ensure(given, check_mode=True)
    assert not os.path.exists(tmp_path / "fstab")
    result = shares.ensure(given)
    assert result["actions"] == predicted["actions"] and steps(result) == ["create_directory", "write_fstab"]
    assert result["diff"]["before"]["fstab"] is None and result["diff"]["after"]["fstab"].startswith("nas:/x ")
    assert (tmp_path / "fstab").read_text() == f"nas:/x {tmp_path}/mnt nfs vers=4.2,_netdev 0 0\n"
    assert not shares.ensure(given)["changed"]
    gone = shares.ensure({**given, "state": "absent"})
    assert steps(gone) == ["remove_fstab"] and (tmp_path / "fstab").read_text() == ""
    assert not shares.ensure({**given, "state": "absent"})["changed"]


def test_a_missing_helper_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(command, "_STANDARD_PATH", "/nowhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for check_mode in (True, False):
        result = shares.ensure(params(tmp_path, src="//nas/x"), check_mode)
        assert result["error_code"] == "tool_missing" and "cifs-utils" in result["msg"] and not result["changed"]


def test_mounting_without_root_is_refused_before_anything_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = shares.ensure(params(tmp_path, src="nas:/x"))
    assert result["error_code"] == "mount_failed" and "become" in result["msg"] and not os.path.exists(tmp_path / "base")


def test_bulk_attempts_all_and_keeps_the_order(tmp_path):
    (tmp_path / "list").write_text(f"{tmp_path}/c\nbad line\n{tmp_path}/d -o password=hidden\n", encoding="utf-8")
    items = [{"src": f"{tmp_path}/a"}, {"src": "nonsense"}, {"src": f"{tmp_path}/b"}, {"src": f"{tmp_path}/a"}]
    result = shares.ensure_all(params(tmp_path, shares=items, shares_file=str(tmp_path / "list")))
    assert [one["name"] for one in result["results"]] == [f"{tmp_path}/a", "nonsense", f"{tmp_path}/b", f"{tmp_path}/a", f"{tmp_path}/c", f"{tmp_path}/d"]
    assert [one["failed"] for one in result["results"]] == [False, True, False, True, False, True]
    assert [one["changed"] for one in result["results"]] == [True, False, True, False, True, False]
    assert result["failed"] and result["changed"] and result["error_code"] == "invalid_parameter" and "3 of 6" in result["msg"]
    assert len(result["shares"]) == 3 and len(result["warnings"]) == 1 and "line 2" in result["warnings"][0]
    assert "hidden" not in repr(result)


def test_bulk_names_each_share_that_failed_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(command, "_STANDARD_PATH", "/nowhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    items = [{"src": f"{tmp_path}/a"}, {"src": "//nas/vols"}, {"src": "nas:/x"}, {"fstype": "nfs"}]
    result = shares.ensure_all(params(tmp_path, shares=items))
    start, *reasons = result["msg"].split("failed. ")
    assert start == "3 of 4 shares " and len(reasons) == 1 and result["error_code"] == "tool_missing"
    assert "//nas/vols: program mount.cifs: it is not installed" in reasons[0] and "nas:/x: program mount.nfs: it is not" in reasons[0]
    assert "item 4: share: neither src nor path is given" in reasons[0] and result["results"][3]["name"] == "item 4"
    one = shares.ensure_all(params(tmp_path, shares=[{"src": "//nas/vols"}]))
    assert one["msg"].startswith("1 of 1 shares failed. //nas/vols: program mount.cifs: ")


def test_a_fault_that_nobody_foresaw_is_one_shares_failure(tmp_path, monkeypatch):
    observe = observer.observe
    monkeypatch.setattr(observer, "observe", lambda desired, *more: int("b") if desired.src.endswith("/b") else observe(desired, *more))
    result = shares.ensure_all(params(tmp_path, shares=[{"src": f"{tmp_path}/{name}"} for name in "abc"]))
    assert [one["failed"] for one in result["results"]] == [False, True, False]
    assert "traceback" in result["results"][1] and result["error_code"] == "tool_failed" and f"share {tmp_path}/b: an unexpected fault" in result["msg"]


MODULE = "a container has its host's kernel"
HELPERS = [  # what helpers say, and what the advice has and has not
    ("nas:/x", "nfs", "mount.nfs: No such device", "modprobe nfs", "check the server"),
    ("//nas/x", "cifs", "mount error: cifs filesystem not supported by the system", "modprobe cifs", "check the server"),
    ("nas:/x", "nfs", "mount: unknown filesystem type 'nfs'", MODULE, "check the server"),
    ("user@nas:/x", "sshfs", "fuse: device not found, try 'modprobe fuse' first", MODULE, "ssh user@nas"),
    ("gl1:/x", "glusterfs", "Mount failed. Check the log file", "/var/log/glusterfs", MODULE),
    ("user@nas:/x", "sshfs", "read: Connection reset by peer", "`ssh user@nas true` by hand", MODULE),
    ("user@[::1]:/x", "sshfs", "read: Connection reset by peer", "`ssh user@[::1] true`", MODULE),
    ("nas:/x", "nfs", "mount.nfs: access denied by server", "check the server", MODULE),
]


@pytest.mark.parametrize(("src", "fstype", "said", "has", "lacks"), HELPERS)
def test_what_a_helper_said_is_told_whole_and_the_advice_fits(tmp_path, monkeypatch, src, fstype, said, has, lacks):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("mount", "mount.nfs", "mount.cifs", "mount.glusterfs", "sshfs"):
        (programs / name).write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 32\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/bin:/usr/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path = tmp_path / "mnt"
    given = params(tmp_path, src=src, fstype=fstype, path=str(path), persist=False, attempts=1)
    item = {"src": src, "fstype": fstype, "path": str(path)}
    alone, many = shares.ensure(given), shares.ensure_all({**given, "src": None, "path": None, "shares": [item]})
    for result in (alone, many["results"][0]):
        assert result["error_code"] == "mount_failed" and result["rc"] == 32 and said in result["stderr"] and src in result["cmd"]
        assert said.rstrip(".") in result["msg"] and has in result["msg"] and lacks not in result["msg"]
    assert "error" not in alone and "error" not in many["results"][0]


def test_a_server_that_does_not_answer_leaves_the_command(tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("mount", "mount.nfs"):
        (programs / name).write_text("#!/bin/sh\nexec sleep 60\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/bin:/usr/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    result = shares.ensure(params(tmp_path, src="nas:/x", path=str(tmp_path / "mnt"), persist=False, attempts=1, timeout=1))
    assert result["error_code"] == "mount_failed" and "did not answer within" in result["msg"] and "nas:/x" in result["cmd"] and result["rc"] < 0


@pytest.mark.parametrize("where", ["/proc", "/proc/sys", "/sys/kernel"])
def test_where_the_kernel_shows_itself_is_no_share(tmp_path, where):
    result = shares.ensure(params(tmp_path, src=where))
    assert result["error_code"] == "invalid_parameter" and "nobody can store files" in result["msg"]
    with pytest.raises(StorageError, match="nobody can store files"):
        resolve.find_share(where)


@pytest.mark.parametrize(("share", "several"), [("/no/a,/no/b", True), ("nas:/a,nas2:/b", True), ("/no/a,b", False), ("/no/a", False), ("nas:/a,b", False)])
def test_one_text_for_several_shares_is_told_apart(share, several):
    with pytest.raises(ShareNotMounted) as caught:
        resolve.find_share(share)
    assert ("several candidates want a YAML list" in str(caught.value)) == several


def test_nothing_to_do_is_no_failure(tmp_path):
    result = shares.ensure_all(params(tmp_path, shares=[]))
    assert not result["failed"] and not result["changed"] and result["results"] == []


def test_a_share_that_does_not_answer_is_given_up():
    began = time.monotonic()
    with pytest.raises(ShareNotMounted, match="does not answer within"):
        probe.bounded(lambda: (time.sleep(60),), 0.3, "share x")
    assert time.monotonic() - began < 30


def test_what_a_look_meets_is_told():
    with pytest.raises(ShareNotMounted, match="not there"):  # it was there when the mount table was read
        probe.capacity("/no/such/directory", 2, "share x")
    with pytest.raises(StorageError) as caught:
        probe.capacity("/" + "x" * 256, 2, "share x")
    assert caught.value.error_code == "tool_failed"
    with pytest.raises(ShareNotMounted):
        probe.bounded(lambda: os.stat_result and (item for item in ()).throw(OSError(107, "gone")), 2, "share x")


def _step():
    return planner.MountShare("/nowhere/x", "nas:/x", "nfs", NFS, ("ro",))


def _mounting(monkeypatch, answer):
    """Replace mount(8); what it was called with."""
    calls = []

    def run(argv, timeout=None, secret=None):
        calls.append((argv, timeout))
        return answer(argv)

    monkeypatch.setattr(command, "find", lambda name, package: f"/bin/{name}")
    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(applier, "_PAUSE", 0.01)
    return calls


def test_mounting_is_tried_as_often_as_asked(monkeypatch):
    calls = _mounting(monkeypatch, lambda argv: command.Result(32, "", "mount.nfs: Connection refused\n"))
    with pytest.raises(MountFailed, match="Connection refused"):
        applier.apply(_step(), probe.Deadline(5), 3, "share nas:/x")
    assert len(calls) == 3 and calls[0][0] == ["/bin/mount", "-t", "nfs", "-o", "ro", "nas:/x", "/nowhere/x"]
    assert all(timeout <= 5 for dummy, timeout in calls)


def test_a_mount_that_hangs_ends_in_time(monkeypatch):
    def hang(argv):
        raise ToolFailed("program mount", "it did not end", "x")

    calls = _mounting(monkeypatch, hang)
    with pytest.raises(MountFailed, match="did not answer within 0 s"):
        applier.apply(_step(), probe.Deadline(0), 9, "share nas:/x")
    assert len(calls) == 1


def test_a_success_that_mounted_nothing_is_none(monkeypatch):
    _mounting(monkeypatch, lambda argv: command.Result(0, "", ""))
    with pytest.raises(MountFailed, match="nothing is mounted"):
        applier.apply(_step(), probe.Deadline(5), 1, "share nas:/x")


@pytest.fixture
def bind(tmp_path):
    """A bind mount, if this user and machine can have one."""
    for name in ("src", "other", "mnt"):
        (tmp_path / name).mkdir()
    mnt = str(tmp_path / "mnt")
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", tmp_path / "src", mnt], capture_output=True, check=False).returncode:
        pytest.skip("needs root and a kernel that lets it bind-mount")
    subprocess.run(["umount", mnt], check=True)
    yield params(tmp_path, src=str(tmp_path / "src"), path=mnt)
    subprocess.run(["umount", "-q", mnt], check=False)


@pytest.mark.root
def test_a_bind_mount_from_end_to_end(bind, tmp_path):
    mounted = shares.ensure(bind)
    assert steps(mounted) == ["mount", "write_fstab"] and mounted["share"]["fstype"] == "bind" and mounted["share"]["src"] == bind["src"]
    assert not shares.ensure(bind)["changed"]
    read_only = {**bind, "opts": ["ro"]}
    assert steps(shares.ensure(read_only, check_mode=True)) == steps(shares.ensure(read_only)) == ["remount", "write_fstab"]
    assert "ro" in tables.mounted_at(tables.read_mounts(), bind["path"]).options
    assert shares.ensure({**bind, "src": str(tmp_path / "other")})["error_code"] == "conflict"
    with open(os.path.join(str(tmp_path / "src"), "data"), "w", encoding="utf-8"):
        pass
    with open(os.path.join(bind["path"], "data"), encoding="utf-8"):
        for check_mode in (True, False):
            busy = shares.ensure({**bind, "state": "unmounted"}, check_mode)
            assert busy["error_code"] == "in_use" and str(os.getpid()) in busy["msg"]
    assert steps(shares.ensure({**bind, "state": "absent"})) == ["unmount", "remove_fstab"]
    assert not shares.ensure({**bind, "state": "absent"})["changed"]
    assert os.path.exists(tmp_path / "src" / "data") and os.path.isdir(bind["path"])


@pytest.mark.root
def test_a_drift_behind_our_back_is_mended(bind):
    shares.ensure(bind)
    subprocess.run(["mount", "-o", "remount,bind,ro", bind["path"]], check=True)
    mended = shares.ensure(bind)
    assert steps(mended) == ["remount"] and mended["share"]["writable"]


@pytest.mark.root
def test_what_a_mount_hides_is_told_and_kept(bind, tmp_path):
    (tmp_path / "mnt" / "hidden").touch()
    mounted = shares.ensure(bind)
    assert "hidden while" in mounted["warnings"][0]
    assert steps(shares.ensure({**bind, "state": "absent"})) == ["unmount", "remove_fstab"]
    assert (tmp_path / "mnt" / "hidden").exists()


@pytest.mark.root
def test_a_bind_mount_of_nothing_fails_in_check_mode_too(bind, tmp_path):
    for check_mode in (True, False):
        result = shares.ensure({**bind, "src": str(tmp_path / "none")}, check_mode)
        assert result["error_code"] == "mount_failed" and not result["changed"]


def test_info_tells_what_it_can(tmp_path):
    (tmp_path / "share").mkdir()
    told = shares.describe_all([str(tmp_path / "share"), "nas:/x", "nonsense"], str(tmp_path / "base"), str(tmp_path / "fstab"), 2)
    assert told[0]["total"] > 0 and "error_code" not in told[0]
    assert [share.get("error_code") for share in told[1:]] == ["share_not_mounted", "invalid_parameter"]


def test_a_mount_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(parameters, "CREDENTIALS", str(tmp_path / "secrets"))
    _mounting(monkeypatch, lambda argv: command.Result(32, "", "mount error(13): Permission denied\n"))
    given = params(tmp_path, src="//nas/x", credentials={"username": "me", "password": "hidden-word", "domain": None})
    result = shares.ensure(given)
    assert result["error_code"] == "mount_failed" and "Permission denied" in result["msg"] and "hidden-word" not in repr(result)
    assert not result["changed"] and result["actions"] == []
    assert os.listdir(tmp_path / "secrets") == [] and os.listdir(tmp_path / "base") == [] and not os.path.exists(tmp_path / "fstab")


@pytest.mark.root
def test_what_was_mounted_comes_back_if_its_replacement_fails(bind, monkeypatch):
    shares.ensure(bind)
    real, calls = applier._mount_once, []

    def fail_first(argv, *rest):
        calls.append(argv)
        if len(calls) == 1:
            raise MountFailed("share", "it failed", "try again")
        real(argv, *rest)

    monkeypatch.setattr(applier, "_mount_once", fail_first)
    result = shares.ensure({**bind, "state": "remounted"})
    assert result["failed"] and not result["changed"]
    assert tables.mounted_at(tables.read_mounts(), bind["path"]) is not None


@pytest.mark.root
def test_words_that_no_table_shows_are_remembered_without_fstab(bind, tmp_path):
    private, unbindable = ({**bind, "persist": False, "opts": [word]} for word in ("private", "unbindable"))
    assert steps(shares.ensure(private, check_mode=True)) == ["mount"] and not (tmp_path / "records").exists()
    assert steps(shares.ensure(private)) == ["mount"]
    assert not shares.ensure(private)["changed"]
    assert steps(shares.ensure(unbindable)) == ["unmount", "mount"]
    assert not shares.ensure(unbindable)["changed"]
    assert steps(shares.ensure({**unbindable, "state": "absent"})) == ["unmount"] and os.listdir(tmp_path / "records") == []
    assert not shares.ensure({**unbindable, "state": "absent"})["changed"]


@pytest.mark.root
def test_mounted_twice_at_one_path_is_unmounted_twice(bind):
    shares.ensure(bind)
    subprocess.run(["mount", "--bind", bind["src"], bind["path"]], check=True)
    assert not shares.ensure(bind)["changed"]
    assert steps(shares.ensure({**bind, "state": "absent"})) == ["unmount", "unmount", "remove_fstab"]
    assert tables.mounted_at(tables.read_mounts(), bind["path"]) is None and not shares.ensure({**bind, "state": "absent"})["changed"]
