# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever has an image open is met: by what recovery does, in the whole chain, and where the kernel itself is the user."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply import executor
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import in_use, kernel_users
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import records

MIB = 1 << 20
WRITER, READER = (100, 101, 103, 201, 203), (100, 201, 203)


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up after it."""


class Store:
    def __init__(self, path: Path, **share: object) -> None:
        self.path = path
        self.share = Share(str(path), str(path), "directory")._replace(**share)
        self.where = Candidates((self.share,))

    def options(self, **changes: object) -> Options:
        return Options(**{"lock_timeout": 1, **changes})  # type: ignore[arg-type]

    def present(self, name: str = "v", source: updating.SourceRequest | None = None, **desired: object):
        check, discard = bool(desired.pop("check", False)), bool(desired.pop("discard", False))
        request = updating.VolumeRequest(self.where, DesiredVolume(name, **desired), source)  # type: ignore[arg-type]
        return volumes.ensure_present(request, self.options(check=check, discard=discard))

    def take(self, name: str, check: bool = False):
        return snapshots.take(snapshots.SnapshotRequest(self.where, "v", DesiredSnapshot(name)), self.options(check=check))

    def delete(self, *names: str):
        return snapshots.delete(self.where, "v", list(names), self.options())

    def info(self, name: str = "v") -> dict:
        (found,) = reading.list_volumes(self.share, [name])
        return found

    def state(self) -> dict:
        return {
            str(path.relative_to(self.path)): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in self.path.rglob("*")
            if ".remotefs/locks" not in str(path) and path.is_file()
        }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.present(size=MIB)
    made.take("a")
    return made


@contextmanager
def opened(path: Path, places: tuple[int, ...] = WRITER) -> Iterator[None]:
    """QEMU's lock bytes of somebody who has a file open."""
    with open(path, "r+b") as stream:
        for place in places:
            fcntl.fcntl(stream.fileno(), 37, in_use._request(fcntl.F_RDLCK, place))
        yield


@contextmanager
def killed_in(target: type, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def die(*_arguments: object, **_names: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(target, name, die)
        with pytest.raises(Killed):
            yield


def unfinished_snapshot(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_in(executor.Executor, "_write_info", monkeypatch):
        store.take("b")


def snapshot_to_undo(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_in(executor.Executor, "_do", monkeypatch):
        store.take("b")


def unlinked_garbage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.take("b")
    with killed_in(executor.Executor, "_unlink", monkeypatch):
        store.delete("b")


def unfinished_merge(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.take("b")
    with killed_in(executor.Executor, "_write_info", monkeypatch):
        store.delete("a")


def lost_info(store: Store, _monkeypatch: pytest.MonkeyPatch) -> None:
    (store.path / "v.info").unlink()


LEFT: dict[str, Callable[[Store, pytest.MonkeyPatch], None]] = {
    "finish": unfinished_snapshot,
    "undo": snapshot_to_undo,
    "unlink": unlinked_garbage,
    "merge": unfinished_merge,
    "rebuild .info": lost_info,
}


@pytest.mark.parametrize("check", [True, False], ids=["check", "run"])
@pytest.mark.parametrize("file", ["before", "after", "base"])
@pytest.mark.parametrize("left", LEFT)
def test_recovery_beside_a_machine(store: Store, monkeypatch: pytest.MonkeyPatch, left: str, file: str, check: bool) -> None:
    """Whichever image of the volume a machine was started on, nothing is ended beside it; without it all is."""
    before = store.info()["chain"][0]["file"]
    LEFT[left](store, monkeypatch)
    names = sorted(path.name for path in store.path.iterdir() if path.is_file() and not path.name.endswith(".info"))
    image = {"before": before, "after": names[-1], "base": "v"}[file]
    state = store.state()
    with opened(store.path / image):
        if left != "rebuild .info":
            assert store.info()["in_use"] is True, "pending work counts"
        with pytest.raises(InUse):
            store.present(check=check)
    assert store.state() == state
    done = store.present(check=check)
    assert done.recovered and done.changed


@pytest.mark.parametrize("check", [True, False], ids=["check", "run"])
def test_giving_a_record_up_beside_a_machine(store: Store, check: bool) -> None:
    path = store.path / ".remotefs" / "volumes" / "v.json"
    record = records.parse("v", path.read_bytes())
    assert record is not None
    path.write_bytes(record.with_intent({"operation": "nobody knows"}).to_bytes("v"))
    with opened(store.path / "v"), pytest.raises(InUse):
        store.present(check=check, discard=True)
    assert store.present(check=check, discard=True).recovered[0]["outcome"] == "discarded"


def test_machines_on_clones_do_not_keep_a_recovery_from_the_parent(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.present("copy", updating.SourceRequest("v", "a", True))
    unfinished_snapshot(store, monkeypatch)
    with opened(store.path / "copy"), opened(store.path / "v", READER):
        assert store.info()["in_use"] is False and store.info("copy")["in_use"] is True
        assert store.present(check=True).recovered
        assert store.present().recovered[0]["outcome"] == "finished"
    assert [one["name"] for one in store.info()["snapshots"]] == ["a", "b"]


@pytest.mark.parametrize("check", [True, False], ids=["check", "run"])
def test_a_machine_on_a_file_that_is_no_longer_active(store: Store, check: bool) -> None:
    with opened(store.path / "v"):
        assert store.info()["in_use"] is True
        with pytest.raises(InUse):
            store.take("b", check=check)


def test_where_nobody_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = Store(tmp_path, locks_visible=False)
    monkeypatch.setattr(Store, "options", lambda self, **changes: Options(**{"lock_timeout": 1, "assume_unused": True, **changes}))
    blind.present(size=MIB)
    unfinished_snapshot(blind, monkeypatch)
    blind.share = blind.share._replace()
    for check in (True, False):
        with pytest.raises(InUse):
            volumes.ensure_present(updating.VolumeRequest(blind.where, DesiredVolume("v")), Options(check=check, break_lock=True))
    assert blind.present().recovered


# -- the kernel as user ----------------------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root directory with a sysfs and a procfs that a test fills."""
    root = tmp_path_factory.mktemp("kernel")
    monkeypatch.setattr(kernel_users, "ROOT", str(root))
    return root


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def on_a_loop(root: Path, path: Path) -> str:
    put(root, "sys/block/loop7/loop/backing_file", str(path))
    put(root, "sys/block/loop7/ro", "0")
    put(root, "sys/class/block/loop7/dev", "7:7")
    put(root, "proc/self/mountinfo", "36 35 7:7 / /mnt/a\\040b rw - ext4 /dev/loop7 rw")
    return "/dev/loop7, mounted at /mnt/a b"


def on_a_partition(root: Path, path: Path) -> str:
    on_a_loop(root, path)
    put(root, "sys/class/block/loop7/loop7p1/dev", "259:0")
    put(root, "sys/class/block/loop7p1/dev", "259:0")
    put(root, "sys/class/block/loop7p1/holders/dm-3/dev", "253:3")
    put(root, "sys/class/block/dm-3/dev", "253:3")
    put(root, "proc/self/mountinfo", "36 35 253:3 / /data rw - xfs /dev/mapper/x rw")
    return "/dev/loop7, mounted at /data"


def on_swap(root: Path, path: Path) -> str:
    text = str(path).replace(" ", "\\040")
    put(root, "proc/swaps", f"Filename\tType\tSize\tUsed\tPriority\n/dev/vda2 partition 1 0 -2\n{text} file 1023 0 -2")
    return "swap space"


def on_lio(root: Path, path: Path) -> str:
    put(root, "sys/kernel/config/target/core/fileio_0/disk1/udev_path", str(path))
    return "the LIO backstore disk1"


def on_lio_by_hand(root: Path, path: Path) -> str:
    put(root, "sys/kernel/config/target/core/fileio_2/d/udev_path", "")
    put(root, "sys/kernel/config/target/core/fileio_2/d/info", f"Status: ACTIVATED\n        TCM FILEIO ID: 0        File: {path}  Size: 1048576")
    return "the LIO backstore d"


def on_nvme(root: Path, path: Path) -> str:
    put(root, "sys/kernel/config/nvmet/subsystems/nqn.x/namespaces/1/device_path", str(path))
    return "namespace 1 of the NVMe target nqn.x"


USERS = (on_a_loop, on_a_partition, on_swap, on_lio, on_lio_by_hand, on_nvme)


@pytest.mark.parametrize("attach", USERS)
def test_the_kernel_has_it_open(store: Store, kernel: Path, attach: Callable[[Path, Path], str]) -> None:
    """It is asked before every change, foretold, shown by info, and named."""
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q 0 4096", str(store.path / "v.a")], check=True)
    user = attach(kernel, store.path / "v.a")
    assert store.info()["in_use"] is True
    changes = (
        lambda check: store.take("b", check=check),
        lambda check: snapshots.revert(store.where, "v", "a", False, store.options(check=check)),
        lambda check: snapshots.delete(store.where, "v", ["a"], store.options(check=check)),
        lambda check: volumes.ensure_absent(store.where, "v", True, store.options(check=check)),
        lambda check: store.present("full", updating.SourceRequest("v"), check=check),
        lambda check: store.present(size=2 * MIB, check=check),
    )
    state = store.state()
    for change in changes:
        for check in (True, False):
            with pytest.raises(InUse) as refused:
                change(check)
            assert f"({user})" in str(refused.value)
    assert store.state() == state
    shutil.rmtree(kernel)
    assert store.info()["in_use"] is False and store.take("b").changed


def test_the_kernel_has_a_lower_image(store: Store, kernel: Path) -> None:
    """Where it may write: a device that only reads harms nobody who rests on the image."""
    on_a_loop(kernel, store.path / "v")
    assert store.info()["in_use"] is True
    with pytest.raises(InUse):
        store.take("b")
    put(kernel, "sys/block/loop7/ro", "1")
    assert store.info()["in_use"] is False and store.take("b").changed


def test_it_is_seen_where_locks_are_not(tmp_path: Path, kernel: Path) -> None:
    blind = Store(tmp_path, locks_visible=False)
    vouched = blind.options(assume_unused=True)
    volumes.ensure_present(updating.VolumeRequest(blind.where, DesiredVolume("v", size=MIB)), vouched)
    assert blind.info()["in_use"] is None
    on_a_loop(kernel, tmp_path / "v")
    assert blind.info()["in_use"] is True
    with pytest.raises(InUse):
        snapshots.take(snapshots.SnapshotRequest(blind.where, "v", DesiredSnapshot("b")), vouched)


def test_other_names_are_no_users(store: Store, kernel: Path, tmp_path: Path) -> None:
    """A deleted file, another file of the same name, a path on a server that may be dead, and words that are no paths."""
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "v.a").write_bytes(b"")
    put(kernel, "proc/self/mountinfo", "1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:99 / /dead rw - nfs4 nas:/vols rw")
    for number, path in enumerate((other / "v.a", "/dead/v.a", f"{store.path}/gone (deleted)", "")):
        put(kernel, f"sys/block/loop{number}/loop/backing_file", str(path))
    put(kernel, "sys/block/vda/ro", "0")
    put(kernel, "proc/swaps", "Filename Type Size\nnonsense\n")
    assert store.info()["in_use"] is False and store.take("b").changed


@pytest.mark.parametrize(("below", "top", "seen"), [("autofs", "ext4", True), ("ext4", "autofs", False), ("autofs", "nfs4", False), ("ext4", "newfs", False)])
def test_what_is_mounted_last_decides_whether_a_look_may_hang(store: Store, kernel: Path, below: str, top: str, seen: bool) -> None:
    """An automounter's trigger has its mount on top of it; what nobody has listed is not looked at either."""
    on_a_loop(kernel, store.path / "v.a")
    lines = [f"{number} 1 0:9{number} / {store.path} rw - {kind} source rw" for number, kind in enumerate((below, top))]
    put(kernel, "proc/self/mountinfo", "\n".join(["1 0 0:1 / / rw - ext4 /dev/vda rw", *lines]))
    assert store.info()["in_use"] is seen


def test_a_real_loop_device(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("needs root and losetup")
    real = Store(tmp_path)
    real.present(size=4 * MIB, format="raw")
    other = tmp_path / "other name"
    other.touch()
    if subprocess.run(["mount", "--bind", str(tmp_path / "v"), str(other)], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine allows no bind mounts")
    try:
        made = subprocess.run(["losetup", "-f", "--show", str(other)], check=False, capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"no loop device here: {made.stderr.strip()}")
        try:
            assert real.info()["in_use"] is True, "whatever name it was opened under"
            with pytest.raises(InUse, match=made.stdout.strip()):
                real.take("b")
        finally:
            subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)
    finally:
        subprocess.run(["umount", str(other)], check=True)
    assert real.info()["in_use"] is False and real.take("b").changed
