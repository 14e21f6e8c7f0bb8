# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What remotefs_share_info tells of what a share holds: sizes, what killed tasks left, what belongs to nobody, what the file system can do."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import types
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import model
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import trying
from ansible_collections.remotefs.storage.plugins.module_utils.operations import share_contents, shares
from ansible_collections.remotefs.storage.plugins.module_utils.operations.capacity import Capacity
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import Directory, ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import lock_files
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import share_abilities

from .conftest import with_two_snapshots
from .test_examples import play
from .test_refusals import MIB, Store
from .test_return_detail import check


def told(store: Store) -> dict:
    """What the module returns of the share."""
    (found,) = shares.describe_all(str(store.path), "/nowhere", "/dev/null", 5, contents=True)
    assert "error_code" not in found and "contents_error" not in found, found
    return found


def overlay(path: Path, backing: str, name: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "raw", name], cwd=path, check=True)


# -- whose is what ---------------------------------------------------------------------------------------------------


def test_what_nobody_names_is_told(layered: Store) -> None:
    path = layered.path
    strange = os.fsdecode(b"caf\xe9\n")
    for name in ("README.txt", strange, ".hidden", "orphan.info", "vol.iso"):
        (path / name).write_text("x")
    for name in ("iso", ".snapshot", "lost+found"):
        (path / name).mkdir()
    os.mkfifo(path / "pipe")
    (path / "link").symlink_to("vol")
    overlay(path, "vol", "foreign")  # it names a file of ours, and nobody names it
    assert set(told(layered)["unknown"]) == {"README.txt", "caf\\xe9\\n", ".hidden", "vol.iso", "iso/", "pipe", "link", "foreign"}
    assert told(layered)["leftovers"] == []


def test_what_cinder_has_made_is_named_by_its_info(store: Store) -> None:
    """With snapshots there is an ``.info``. A lone volume nobody names, so it is told; it counts among the virtual sizes."""
    (store.path / "volume-1").write_bytes(bytes(MIB))
    overlay(store.path, "volume-1", "volume-1.aaa")
    (store.path / "volume-1.info").write_text(json.dumps({"active": "volume-1.aaa", "aaa": "volume-1.aaa"}))
    (store.path / "volume-2").write_bytes(bytes(MIB))
    found = told(store)
    assert found["unknown"] == ["volume-2"] and found["volumes"] == 1 and found["virtual"] == 2 * MIB
    store.present("volume-2", format="raw")
    assert told(store)["unknown"] == [] and told(store)["volumes"] == 2


def test_a_volume_that_cannot_be_read_keeps_its_files(layered: Store) -> None:
    (layered.path / "vol.info").write_text("{torn")
    found = told(layered)
    assert found["unknown"] == [] and found["volumes"] == 1


def test_reading_makes_nothing(store: Store) -> None:
    (store.path / "disk").write_bytes(bytes(MIB))
    before = store.state()
    assert told(store)["maintenance"] is False
    assert store.state() == before and not (store.path / ".remotefs").exists()


def test_sums(layered: Store) -> None:
    layered.present("other", size=3 * MIB, format="qcow2")
    found = told(layered)
    assert found["virtual"] == 4 * MIB == Capacity().provisioned(layered.share) and found["volumes"] == 2
    assert found["over_subscription"] == round(4 * MIB / found["total"], 4)
    sizes = {name: (layered.path / name).stat().st_blocks * 512 for name in ("vol", "vol.s1", "vol.s2", "other")}
    assert found["allocated"] == sum(sizes.values())
    assert found["held_by_snapshots"] == sum(sizes.values()) - sizes["other"] - max(size for name, size in sizes.items() if name != "other")
    assert found["pool"]["total_volumes"] == 2 and found["pool"]["provisioned_capacity_gb"] == 0.0


def test_a_share_that_cannot_be_listed_is_told_as_such(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    (found,) = shares.describe_all([str(store.path)], "/nowhere", "/dev/null", 5, contents=True)
    assert "error_code" not in found and found["total"] and "Permission denied" in found["contents_error"]
    assert {found[name] for name in share_contents.KEYS} == {None}


def test_keys_of_what_cannot_be_told(store: Store) -> None:
    assert set(share_contents.KEYS) == set(share_contents.of_share(store.share, 1, 1))


# -- what killed tasks leave -----------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Store], object]] = {
    "create": lambda store: store.present("new", size=MIB, format="qcow2", snapshot="s"),
    "snapshot": lambda store: store.snapshot("s3"),
    "delete": lambda store: store.delete("s1", "s2"),
    "revert": lambda store: store.revert("s1", discard=True),
    "remove": lambda store: store.absent(cascade=True),
}
CALLS = ("rename", "unlink", "link")


def killed_at(store: Store, change: str, number: int) -> bool:
    """Do it in another process that is killed at a call that changes names. Returns whether it came to that."""
    child = os.fork()
    if child == 0:
        count = [0]

        def counting(real: Callable) -> Callable:
            def called(*given: object, **named: object) -> object:
                count[0] += 1
                if count[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*given, **named)

            return called

        for name in CALLS:
            setattr(os, name, counting(getattr(os, name)))
        CHANGES[change](store)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_killed_task_left_is_never_somebody_elses(tmp_path: Path, change: str) -> None:
    """Files of volumes are not told, files of ours are told as leftovers only, and the next tasks remove them."""
    number, left = 1, 0
    while True:
        path = tmp_path / f"share{number}"
        store = with_two_snapshots(path)
        if not killed_at(store, change, number):
            break
        found = told(store)
        assert found["unknown"] == [], number
        assert all((path / name).exists() for name in found["leftovers"])
        left += len(found["leftovers"])
        for name in ("vol", "new"):
            store.present(name, size=2 * MIB)
            store.absent(name, cascade=True)
        assert (told(store)["leftovers"], told(store)["unknown"]) == ([], []), number
        number += 1
    assert number > 3 and left > 0


# -- locks that are files ---------------------------------------------------------------------------------------------


def test_locks_of_dead_and_of_unknown_tasks_are_told(tmp_path: Path) -> None:
    """On SMB a lock is a file, which the death of its task does not remove. Nothing here takes one or removes one."""
    smb = Store(tmp_path, locks_visible=False)
    smb.present(size=MIB)
    assert told(smb)["locks"] == []
    child = os.fork()
    if child == 0:
        VolumeLock(ShareDirectory(smb.share), "vol").__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    locks = smb.path / ".remotefs" / "locks"
    owner = {"host": "host2", "machine": "m", "boot": "b", "pid_namespace": "p", "pid": 1, "started": "1", "since": "2026-01-31T12:00:00Z", "task": "x"}
    (locks / "far.lease").write_text(json.dumps(owner))
    (locks / "torn.lease").write_text("{")
    os.utime(locks / "torn.lease", (0, 0))
    os.mkfifo(locks / "pipe.lease")
    (locks / "vol2.lock").touch()
    before = smb.state()
    with VolumeLock(ShareDirectory(smb.share), "here"):
        far, here, pipe, torn, vol = told(smb)["locks"]
    assert far == {"name": "far", "host": "host2", "task": "x", "since": "2026-01-31T12:00:00Z", "dead": False}
    assert (here["name"], here["dead"], here["host"]) == ("here", False, socket.gethostname())
    assert pipe == {"name": "pipe", "host": None, "task": None, "since": None, "dead": False}
    assert torn == {"name": "torn", "host": None, "task": None, "since": "1970-01-01T00:00:00Z", "dead": False}
    assert (vol["name"], vol["dead"]) == ("vol", True)
    assert smb.state() == before
    with VolumeLock(ShareDirectory(smb.share), "vol", timeout=0):
        assert [one["dead"] for one in told(smb)["locks"] if one["name"] == "vol"] == [False], "the next task took it away from the dead one"
    assert "vol" not in {one["name"] for one in told(smb)["locks"]}


@pytest.mark.parametrize("when", [2**62, -(2**62), 2**40, -1])
def test_times_that_cannot_be(layered: Store, when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several file systems and servers take any number of 64 bits as the time of a file."""
    (layered.path / ".remotefs" / "locks" / "torn.lease").write_text("{")
    monkeypatch.setattr(lock_files.Directory, "status", lambda *_more: types.SimpleNamespace(st_mtime=float(when)))
    (lock,) = told(layered)["locks"]
    assert lock == {"name": "torn", "host": None, "task": None, "since": model.time_text(when), "dead": False}
    assert (lock["since"] is None) == (abs(when) == 2**62)


def test_where_the_kernel_keeps_locks_there_are_none(layered: Store) -> None:
    with VolumeLock(ShareDirectory(layered.share), "vol"):
        assert told(layered)["locks"] == []


def test_a_folder_of_locks_that_is_something_else(layered: Store) -> None:
    """Tasks that need a lock refuse it. What the share holds is told nevertheless."""
    locks = layered.path / ".remotefs" / "locks"
    locks.rename(layered.path / "elsewhere")
    locks.symlink_to(layered.path / "elsewhere")
    assert told(layered)["locks"] is None and told(layered)["volumes"] == 1


# -- what the file system can do -------------------------------------------------------------------------------------

YES, NO = True, False
FILE_SYSTEMS = {  # how it is made, and: reflink, fallocate, holes, case_sensitive, modes
    "tmpfs": ([], (NO, YES, YES, YES, YES)),
    "ext4": (["mkfs.ext4", "-q"], (NO, YES, YES, YES, YES)),
    "xfs": (["mkfs.xfs", "-q", "-m", "reflink=1"], (YES, YES, YES, YES, YES)),
    "btrfs": (["mkfs.btrfs", "-q"], (YES, YES, YES, YES, YES)),
}


@pytest.fixture(params=FILE_SYSTEMS)
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, dict[str, bool]]]:
    make, able = FILE_SYSTEMS[request.param]
    where, disk = tmp_path / "mnt", tmp_path / "disk"
    where.mkdir()
    with disk.open("wb") as file:
        file.truncate(320 * MIB)
    if make:
        subprocess.run([*make, str(disk)], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", "-o", "loop", str(disk), str(where)], check=True)
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(where)], check=True)
    yield Store(where, keeps_modes=able[4]), dict(zip(("reflink", "fallocate", "holes", "case_sensitive", "modes"), able))
    subprocess.run(["umount", str(where)], check=True)


@pytest.mark.root
def test_the_first_change_finds_out_what_the_share_can(mounted: tuple[Store, dict[str, bool]]) -> None:
    store, able = mounted
    assert told(store)["abilities"]["case_sensitive"] is None
    store.present(size=MIB)
    found = told(store)["abilities"]
    assert {name: found[name] for name in able} == able and set(found) == set(share_abilities.ALL)
    assert os.listdir(store.path / ".remotefs" / "tmp") == []


def test_where_nothing_is_possible(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on SMB or FAT: each trial has its answer, and one that fails for another reason is not taken for a no."""

    def refuse(number: int) -> Callable[..., None]:
        def refused(*_given: object) -> None:
            raise OSError(number, os.strerror(number))

        return refused

    monkeypatch.setattr(trying.fcntl, "ioctl", refuse(errno.ENOTTY))
    monkeypatch.setattr(trying.os, "getxattr", refuse(errno.EOPNOTSUPP))
    monkeypatch.setattr(trying.os, "fchmod", lambda *_given: None)
    monkeypatch.setattr(trying.os, "lseek", lambda *_given: 0)
    status = Directory.status
    monkeypatch.setattr(Directory, "status", lambda folder, name: status(folder, name.lower()))
    monkeypatch.setattr(trying.allocate, "can_fallocate", refuse(errno.EIO))
    with ShareDirectory(store.share) as directory:
        trying.try_out(directory, "vol")
        found = share_abilities.read(directory)
    assert found == {"reflink": False, "holes": False, "case_sensitive": False, "modes": False, "acl": False, "fallocate": None}


@pytest.mark.parametrize("content", [b"", b"null", b"[1]", b'{"reflink": "yes", "holes": 1}', b"{" * 100000, b"\xff\xfe", b'{"reflink":' * 5000])
def test_answers_that_cannot_be_believed_are_none(store: Store, content: bytes) -> None:
    store.present(size=MIB)
    file = store.path / ".remotefs" / "ballast" / share_abilities.FILE
    assert file.stat().st_size
    file.write_bytes(content)
    assert [told(store)["abilities"][name] for name in ("holes", "acl", "fallocate")] == [None, None, None]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path), lambda path: Path(path).write_bytes(bytes(9 << 20))])
def test_things_in_the_place_of_the_answers(store: Store, make: Callable[[str], None]) -> None:
    store.present(size=MIB)
    file = store.path / ".remotefs" / "ballast" / share_abilities.FILE
    file.unlink()
    make(str(file))
    assert told(store)["abilities"]["holes"] is None
    assert store.snapshot().changed  # and nothing follows from it


def test_answers_that_went_are_found_again(store: Store) -> None:
    store.present(size=MIB)
    (store.path / ".remotefs" / "ballast" / share_abilities.FILE).unlink()
    store.snapshot()
    with ShareDirectory(store.share) as directory:
        assert share_abilities.read(directory)["holes"] is True


# -- as a playbook has it --------------------------------------------------------------------------------------------

SHARE, INFO, VOLUME = (f"remotefs.storage.remotefs_{name}" for name in ("share", "share_info", "volume"))


def of(module: str, **options: object) -> dict:
    return {module: options, "register": "done", "ignore_errors": True}


@pytest.mark.slow
def test_maintenance_in_a_playbook(tmp_path: Path, ansible_environment: dict) -> None:
    share, other = tmp_path / "share", tmp_path / "other"
    share.mkdir()
    marks = {"src": "SHARE", "maintenance": True}
    step = [{"step": "set_maintenance", "path": str(share), "maintenance": True}]
    both = of(SHARE, shares=[{"src": "SHARE", "maintenance": False}, {"src": str(other)}], maintenance=True)
    tasks = [
        of(SHARE, src="SHARE", maintenance=False),
        check("done is not changed", "not done.share.maintenance"),
        {**of(SHARE, **marks), "check_mode": True, "diff": True},
        check("done is changed", f"done.actions == {step}", "not done.diff.before.maintenance", "done.diff.after.maintenance"),
        of(INFO, share="SHARE"),
        check("not done.shares[0].maintenance", "done.shares[0].volumes == 0"),
        of(SHARE, **marks),
        check("done is changed", f"done.actions == {step}", "done.share.maintenance"),
        of(SHARE, **marks),
        check("done is not changed", "done.actions == []"),
        of(SHARE, src="SHARE"),
        check("done is not changed", "done.share.maintenance"),
        of(VOLUME, share="SHARE", name="v", size="1M"),
        check("done is failed", "done.error_code == 'no_eligible_share'", "'is in maintenance' in done.msg"),
        {**both, "check_mode": True},
        check("done is changed", "done.results | map(attribute='changed') | list == [true, true]", "done.shares | length == 2"),
        both,
        check("done is changed", "done.shares | map(attribute='maintenance') | list == [false, true]"),
        of(SHARE, src="nas1:/vols", state="present", fstab=str(tmp_path / "fstab"), maintenance=True),
        check("done is failed", "done.error_code == 'invalid_parameter'", "'state present does not mount' in done.msg"),
        of(VOLUME, share="SHARE", name="v", size="1M"),
        check("done is changed"),
        of(INFO, share=["SHARE", "/nowhere"], contents=False),
        check("'volumes' not in done.shares[0]", "done.shares[0].total > 0", "done.shares[1].error_code == 'share_not_mounted'"),
        of(INFO, share=["SHARE", "/nowhere"]),
        check("done.shares[0].volumes == 1", "done.shares[0].abilities.holes", "done.shares[1].total is none"),
    ]
    play(tasks, share, tmp_path, ansible_environment)
    assert not (tmp_path / "fstab").exists()
