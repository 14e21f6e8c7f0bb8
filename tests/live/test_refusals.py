# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task refuses while a machine runs: nothing is changed then, check mode says the same, and the machine goes on."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.live import possible
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.client import Monitor
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.machine import Machine
from ansible_collections.remotefs.storage.plugins.module_utils.errors import (
    Conflict,
    HasNewerSnapshots,
    HasSnapshots,
    InUse,
    StorageError,
    ToolFailed,
    UnsafeImage,
)
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.plan import retention
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .guest import CLUSTER, MIB, SIZE, Guest, Live, Qmp, digest, digest_of, qemu_version


def refused(live: Live, task: Callable[..., object], kind: type[StorageError] = InUse) -> str:
    """The message with which a task is refused, in check mode and in the run. Nothing is changed."""
    before, said = live.tree(), []
    for mode in ({"check": True}, {}):
        with pytest.raises(kind) as caught:
            task(**mode)
        said.append(str(caught.value))
        assert live.tree() == before
    assert len(set(said)) == 1, "check mode gives another reason than the run"
    return said[0]


def changes(live: Live) -> list[Callable[..., object]]:
    """Tasks that want the machine."""
    return [
        lambda **mode: live.take("new", **mode),
        lambda **mode: live.present(size=2 * SIZE, **mode),
        lambda **mode: live.delete("a", **mode),
    ]


@contextmanager
def listening(path: str, says: bytes = b"") -> Iterator[None]:
    """A server that is no monitor: it accepts, and says something or nothing."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(4)
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                kept.append(server.accept()[0])
                kept[-1].sendall(says)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        for one in [server, *kept]:
            one.close()


@pytest.fixture
def live(make: Callable[..., Live]) -> Live:
    """A volume with a snapshot and a machine."""
    made = make("qcow2")
    guest = made.start()
    guest.scribble(1)
    made.snapshot("a")
    guest.scribble(2)
    return made


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-OpenSSH\r\n", b'{"greeting": 1}\n'])
def test_what_listens_is_no_monitor(live: Live, sockets: Path, says: bytes) -> None:
    path = str(sockets / "s")
    with listening(path, says):
        began = time.monotonic()
        expected = "what listens there is no QEMU monitor" if says else "does not greet"
        assert expected in refused(live, lambda **mode: live.take("b", attachment=path, **mode))
        assert time.monotonic() - began < 15


def test_a_busy_monitor(live: Live) -> None:
    assert live.guest is not None
    other = Qmp(live.guest.socket)
    assert "one client at a time" in refused(live, changes(live)[0])
    other.close()
    assert live.take("b").changed


def test_another_machine(live: Live, make: Callable[..., Live]) -> None:
    other = make()
    guest = other.start()
    for task in changes(live):
        assert "does not have its images open" in refused(live, lambda task=task, **mode: task(attachment=guest.socket, **mode))
    assert guest.alive


def test_without_attachment_or_with_a_dead_one(live: Live) -> None:
    for attachment in (None, "/nowhere"):
        assert "has it open" in refused(live, lambda attachment=attachment, **mode: live.take("b", attachment=attachment, **mode))


def test_a_dead_monitor_where_locks_are_not_seen(live: Live) -> None:
    live.share = live.share._replace(locks_visible=False)
    live.where = live.where._replace(shares=(live.share,))
    said = refused(live, lambda **mode: live.take("b", attachment="/nowhere", assume_unused=True, **mode))
    assert "cannot tell" in said


def test_a_read_only_disk(make: Callable[..., Live]) -> None:
    live = make("qcow2")
    live.take("a")
    live.guest = Guest(str(live.path / "v.a"), "qcow2", live.data, "read only")
    for task in changes(live):
        assert "read-only" in refused(live, task)


def test_two_machines(make: Callable[..., Live]) -> None:
    live = make("qcow2")
    live.take("a")
    live.start("unlocked")
    second = Guest(str(live.path / "v.a"), "qcow2", bytearray(SIZE), "unlocked")
    try:
        for task in changes(live):
            assert f"process {second.process.pid} has v.a open" in refused(live, task)
        assert live.guest is not None and live.guest.alive and second.alive
    finally:
        second.kill()


def test_a_reader_of_what_would_be_merged(live: Live) -> None:
    with (live.path / "v").open("rb") as stream:
        reader = subprocess.Popen(["sleep", "60"], stdin=stream)
    try:
        assert f"process {reader.pid} has v open" in refused(live, changes(live)[2])
    finally:
        reader.kill()
        reader.wait()
    assert live.delete("a").changed


def test_a_reader_that_only_qemu_meets(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """One on another host: QEMU refuses the job, nothing was begun, and nothing is pending afterwards."""
    reader = subprocess.Popen(["qemu-io", "-r", "-f", "qcow2", str(live.path / "v"), "-c", "sleep 60000"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        monkeypatch.setattr(Machine, "require_no_other", lambda _self, _files, writing: None)
        with pytest.raises(InUse, match="Failed to get"):
            live.delete("a")
        assert live.info()["pending"] is None
    finally:
        reader.kill()
        reader.wait()
    live.require_right()
    assert live.delete("a").changed


def test_the_name_of_the_overlay_is_taken(live: Live) -> None:
    (live.path / "v.new").write_bytes(b"mine")
    assert "v.new" in refused(live, changes(live)[0], Conflict)


def test_a_disk_without_a_device(make: Callable[..., Live]) -> None:
    """It was unplugged, and its block node is still there."""
    live = make("qcow2")
    live.take("a")
    guest = live.start("usb")
    guest.qmp("device_del", id="d0")
    while guest.qmp("query-block"):
        time.sleep(0.01)
    for task in changes(live):
        assert "no device uses it" in refused(live, task)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_disk_that_is_unplugged_in_the_middle(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The job goes on, and so does the task."""
    live = make("qcow2")
    guest = live.start()
    for point in "ab":
        guest.scribble(ord(point))
        live.snapshot(point)
    guest.quit()
    guest = live.start("usb")
    run = Monitor.run

    def unplugging(self: Monitor, command: str, **arguments: Any) -> Any:
        done = run(self, command, **arguments)
        if command in ("block-commit", "block-stream"):
            guest.qmp("device_del", id="d0")
        return done

    monkeypatch.setattr(Monitor, "run", unplugging)
    assert live.delete(name).changed
    del live.points[name]
    live.require_right()
    live.require_nothing_left()


def test_a_foreign_job(live: Live) -> None:
    assert live.guest is not None
    (node,) = [one["inserted"]["node-name"] for one in live.guest.qmp("query-block")]
    live.guest.qmp("block-stream", job_id="backup", device=node, speed=1)
    time.sleep(0.5)  # its first part is written, and the next one comes in some hours
    for task in changes(live):
        assert "another program's job works on its disk (backup)" in refused(live, task)
    assert [job["id"] for job in live.guest.qmp("query-jobs")] == ["backup"]


def test_a_foreign_pull_that_has_ended(live: Live) -> None:
    """Asking for its nodes would crash QEMU 7.2."""
    assert live.guest is not None
    (node,) = [one["inserted"]["node-name"] for one in live.guest.qmp("query-block")]
    live.guest.qmp("block-stream", job_id="backup", device=node, auto_dismiss=False)
    while live.guest.qmp("query-jobs")[0]["status"] != "concluded":
        time.sleep(0.01)
    assert "has ended and is not dismissed (backup)" in refused(live, changes(live)[0])
    assert live.guest.alive


def test_a_machine_that_waits_for_a_migration(make: Callable[..., Live]) -> None:
    live = make("qcow2")
    live.take("a")
    guest = live.start(more=("-incoming", "defer"))
    for task in changes(live):
        assert "state inmigrate" in refused(live, task)
    assert guest.qmp("query-status")["status"] == "inmigrate"


def test_a_machine_that_has_migrated(live: Live) -> None:
    assert live.guest is not None
    live.guest.qmp("cont")
    live.guest.qmp("migrate", uri="exec:cat > /dev/null")
    while live.guest.qmp("query-status")["status"] != "postmigrate":
        time.sleep(0.05)
    for task in changes(live):
        assert "state postmigrate" in refused(live, task)
    assert live.guest.qmp("query-status")["status"] == "postmigrate", "QEMU 7.2 would have aborted"


def test_a_machine_on_the_wrong_file(make: Callable[..., Live]) -> None:
    live = make("qcow2")
    live.take("a")
    live.start(path=str(live.path / "v"))
    for task in changes(live):
        assert "does not have its active image v.a open" in refused(live, task)


def test_somebody_else_took_a_snapshot(live: Live) -> None:
    assert live.guest is not None
    (node,) = [one["inserted"]["node-name"] for one in live.guest.qmp("query-block")]
    live.guest.qmp("blockdev-snapshot-sync", node_name=node, snapshot_file=str(live.path / "foreign"), snapshot_node_name="theirs")
    for task in changes(live)[:2]:
        assert "another image (theirs) rests on v.a" in refused(live, task)
    assert "foreign" in refused(live, changes(live)[2], StorageError)  # it rests on what would be merged


def test_what_a_running_machine_cannot_have(live: Live) -> None:
    assert live.guest is not None
    where = live.where
    for allowed in (False, True):  # a permission to drop snapshots would not help
        assert "stop the machine" in refused(live, lambda allowed=allowed, **mode: snapshots.revert(where, "v", "a", allowed, live.options(**mode)))
        assert "stop the machine" in refused(live, lambda allowed=allowed, **mode: volumes.ensure_absent(where, "v", allowed, live.options(**mode)))
    live.snapshot("b")
    assert "stop the machine" in refused(live, lambda **mode: snapshots.revert(where, "v", "a", False, live.options(**mode)))
    live.guest.scribble(7)
    live.require_right()


def test_what_the_named_machine_has_nothing_to_do_with(live: Live) -> None:
    """The words do not say that it uses the volume, and say that attachment may be left out; a copy of the present is told its way."""
    made = updating.VolumeRequest(live.where, DesiredVolume("other", size=SIZE, format="qcow2"))
    assert volumes.ensure_present(made, live.options(attachment=None)).changed
    told = refused(live, lambda **mode: volumes.ensure_absent(live.where, "other", False, live.options(**mode)))
    assert "cannot be done through a running machine" in told and "leave attachment out if none does" in told
    clone = updating.VolumeRequest(live.where, DesiredVolume("clone"), updating.SourceRequest("v"))
    told = refused(live, lambda **mode: volumes.ensure_present(clone, live.options(**mode)))
    assert "take a snapshot with attachment and use that as the source" in told and "name the machine" not in told


def test_without_the_machine_the_permission_is_what_is_missing(live: Live) -> None:
    assert live.guest is not None
    live.snapshot("b")
    live.guest.quit()
    where, gone = live.where, live.options()
    for task in (lambda: snapshots.revert(where, "v", "a", False, gone), lambda: volumes.ensure_absent(where, "v", False, gone)):
        with pytest.raises((HasNewerSnapshots, HasSnapshots)):
            task()


def test_flatten_of_a_running_clone(make: Callable[..., Live]) -> None:
    live = make("qcow2")
    live.take("a")
    source = updating.SourceRequest("v", "a", linked=True)
    volumes.ensure_present(updating.VolumeRequest(live.where, DesiredVolume("clone"), source), live.options())
    live.guest = Guest(str(live.path / "clone"), "qcow2", live.data)
    wanted = updating.VolumeRequest(live.where, DesiredVolume("clone", flatten=True))
    assert "stop the machine" in refused(live, lambda **mode: volumes.ensure_present(wanted, live.options(**mode)))


def test_bitmaps_of_the_machine(live: Live) -> None:
    assert live.guest is not None
    (node,) = [one["inserted"]["node-name"] for one in live.guest.qmp("query-block")]
    live.guest.qmp("block-dirty-bitmap-add", node=node, name="since-monday")
    assert "since-monday of v.a" in refused(live, changes(live)[2], Conflict)
    assert live.delete("a", drop_bitmaps=True).changed
    del live.points["a"]
    live.require_right()


def test_an_exported_disk(live: Live, sockets: Path) -> None:
    """A client that connects while a merge rests would lose what it writes."""
    assert live.guest is not None
    live.snapshot("b")
    live.guest.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(sockets / "nbd")}})
    (node,) = [one["inserted"]["node-name"] for one in live.guest.qmp("query-block")]
    live.guest.qmp("block-export-add", type="nbd", id="e", node_name=node)
    assert "exports its disk" in refused(live, lambda **mode: live.delete("a", "b", **mode))
    live.guest.qmp("block-export-del", id="e")
    assert live.delete("a", "b").changed


@pytest.mark.root
def test_qemu_may_not_open_the_overlay(make: Callable[..., Live]) -> None:
    """The snapshot is undone at once."""
    live = make("qcow2")
    guest = live.start(more=("-runas", "nobody") if qemu_version() < (9, 1) else ("-run-with", "user=nobody"))
    guest.scribble(3)
    with pytest.raises(ToolFailed, match="let QEMU open the volume's files"):
        live.take("a")
    live.require_nothing_left()
    assert not (live.path / "v.a").exists() and live.info()["snapshots"] == []
    guest.scribble(4)
    live.require_right()


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_the_disk_grows_between_plan_and_switch(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, image_format: str) -> None:
    """QEMU would take the smaller overlay, and the guest's disk would shrink. The snapshot is undone."""
    live = make(image_format)
    guest = live.start()
    guest.scribble(3)
    run = Monitor.run

    def resized(self: Monitor, command: str, **arguments: Any) -> Any:
        done = run(self, command, **arguments)
        if command == "blockdev-add":
            guest.qmp("block_resize", node_name="disk0", size=SIZE + MIB)
        return done

    monkeypatch.setattr(Monitor, "run", resized)
    with pytest.raises(InUse, match=str(SIZE + MIB)):
        live.take("a")
    monkeypatch.setattr(Monitor, "run", run)
    live.data += bytes(MIB)
    live.require_nothing_left()
    guest.write(SIZE, MIB, 8)
    live.require_right()
    live.snapshot("a")


def test_an_interrupted_task_names_its_machine(live: Live) -> None:
    """Without attachment the next task says which machine it was; info shows the snapshot as pending, not as taken."""
    from .instants import instants, killed_at

    assert live.guest is not None
    trial = instants(lambda: live.take("b"))
    live.points["b"] = digest_of(live.data)
    number = next(one.number for one in trial if one.what == "before blockdev-snapshot")
    killed_at(lambda: live.take("c"), number, "module", live.guest.process.pid)
    told = live.info()
    assert told["pending"]["operation"] == "create_snapshot" and told["pending"]["snapshots"] == ["c"]
    assert told["pending"]["attachment"] == {"qmp": live.guest.socket}
    assert [one["name"] for one in told["snapshots"]] == ["a", "b"] and told["path"].endswith("/v.c")
    assert live.guest.socket in refused(live, lambda **mode: live.take("d", attachment=None, **mode))
    live.points["c"] = digest_of(live.data)
    live.snapshot("d")
    live.require_right()


@pytest.mark.parametrize("kind", ["blockdev", "filter"])
def test_an_export_keeps_its_size(make: Callable[..., Live], sockets: Path, kind: str) -> None:
    live = make("qcow2")
    guest = live.start(kind)
    guest.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(sockets / "nbd")}})
    guest.qmp("block-export-add", type="nbd", id="e", node_name="disk0")
    assert "does not let it grow: an export of node disk0" in refused(live, lambda **mode: live.present(size=2 * SIZE, **mode))
    guest.qmp("block-export-del", id="e")
    live.grow(2 * SIZE)
    live.require_right()


def test_a_cd_keeps_its_size(make: Callable[..., Live]) -> None:
    live = make("qcow2")
    live.start("cd")
    assert "does not let it grow: d0" in refused(live, lambda **mode: live.present(size=2 * SIZE, **mode))


def test_qemu_storage_daemon(make: Callable[..., Live], sockets: Path) -> None:
    """It takes snapshots. It cannot flush a single node, so it merges nothing, and its exports keep their size."""
    live = make("qcow2")
    monitor, server = str(sockets / "m"), str(sockets / "n")
    node = {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": str(live.path / "v")}}
    daemon = subprocess.Popen([
        "qemu-storage-daemon", "--chardev", f"socket,id=m,path={monitor},server=on,wait=off", "--monitor", "chardev=m",
        "--blockdev", json.dumps(node), "--nbd-server", f"addr.type=unix,addr.path={server}",
        "--export", "type=nbd,id=e,node-name=disk,name=x,writable=on",
    ])
    try:
        until = time.monotonic() + 20
        while not os.path.exists(server) and time.monotonic() < until:
            time.sleep(0.02)

        def write(offset: int, pattern: int) -> None:
            words = f"write -P {pattern} {offset} 64k"
            subprocess.run(["qemu-io", "-f", "raw", "-c", words, "-c", "flush", f"nbd+unix:///x?socket={server}"], check=True, capture_output=True)
            live.data[offset : offset + 65536] = bytes([pattern]) * 65536

        write(0, 1)
        live.snapshot("a", attachment=monitor)
        write(32768, 2)
        said = refused(live, lambda **mode: live.present(size=2 * SIZE, attachment=monitor, **mode))
        assert "end what else uses the disk" in said  # the export does not allow it
        assert "qemu-storage-daemon" in refused(live, lambda **mode: live.delete("a", attachment=monitor, **mode))
    finally:
        daemon.terminate()
        daemon.wait(20)
    live.require_right()
    told = live.info()
    assert digest(told["path"], told["format"]) == digest_of(live.data)


# -- raw images past the kernel's cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["direct", "direct drive"])
@pytest.mark.parametrize("size, grown", [(SIZE, SIZE + 1024), (SIZE, SIZE + 512), (SIZE + 512, 0)])
@pytest.mark.parametrize("names", ["a", "b", "ab"])
def test_a_raw_base_that_ends_in_the_middle_of_a_block(make: Callable[..., Live], kind: str, size: int, grown: int, names: str) -> None:
    """QEMU 7.2 aborts, or changes the size. A merge that does not write to it is done."""
    live = make("raw", size=size)
    live.take("a")
    live.take("b")
    if grown:
        live.grow(grown)
    live.points = dict.fromkeys("ab", digest_of(bytes(size)))
    guest = live.start(kind)
    guest.scribble(1)
    if names == "ab" or (names == "a" and not grown):
        assert "no multiple of 4096" in refused(live, lambda **mode: live.delete(*names, **mode))
    else:
        assert live.delete(names).changed
        del live.points[names]
    assert guest.alive
    guest.scribble(2)
    live.require_right()


@pytest.mark.parametrize("kind", ["direct", "direct drive", "direct file"])
def test_growth_to_the_middle_of_a_block(make: Callable[..., Live], kind: str) -> None:
    live = make("raw")
    guest = live.start(kind)
    assert "multiple of 4096" in refused(live, lambda **mode: live.present(size=SIZE + 512, **mode))
    live.grow(SIZE + 4096)
    guest.scribble(1)
    live.require_right()


def test_interrupted_work_that_would_harm_a_machine(make: Callable[..., Live]) -> None:
    """A deletion was interrupted while no machine ran. One that was started since would abort."""
    from .instants import killed_at

    live = make("raw", size=SIZE + 512)
    live.take("a")
    killed_at(lambda: live.delete("a"), 1, "module", 0)
    assert live.info()["pending"]["operation"] == "delete_snapshot"
    guest = live.start("direct")
    assert "no multiple of 4096" in refused(live, lambda **mode: live.take("b", **mode))
    assert guest.alive


def test_a_machine_that_was_started_by_a_link_elsewhere(make: Callable[..., Live], tmp_path: Path) -> None:
    """QEMU would look for the overlay beside the link."""
    live = make("qcow2")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "v").symlink_to(live.path / "v")
    guest = live.start(path=str(elsewhere / "v"))
    guest.scribble(1)
    assert f"the machine opened {elsewhere}/v, which is in another directory" in refused(live, lambda **mode: live.take("a", **mode))
    live.grow(SIZE + MIB)
    live.require_right()


# -- other users in the same machine ---------------------------------------------------------------------------------------


def second_reader(path: Path, **options: Any) -> tuple[str, ...]:
    """A read-only second disk of the machine on a file."""
    node = {"driver": "qcow2", "node-name": "second", "read-only": True, "file": {"driver": "file", "filename": str(path), **options}}
    return "-blockdev", json.dumps({**node, "force-share": True}), "-device", "virtio-blk-pci,id=d1,drive=second"


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_point_that_the_machine_has_as_a_second_disk(make: Callable[..., Live], name: str) -> None:
    """It would change under its reader. What does not touch it is done."""
    live = make("qcow2")
    for point in "abc":
        live.snapshot(point)
    live.start(more=second_reader(live.path / "v.b"))
    said = refused(live, lambda **mode: live.delete(name, **mode))
    assert "something else uses" in said or "open 2 times" in said
    live.snapshot("d")
    live.require_right()


@pytest.mark.parametrize("name", ["a", "b"])
def test_an_export_of_an_image_in_the_middle(make: Callable[..., Live], sockets: Path, name: str) -> None:
    live = make("qcow2")
    live.snapshot("a")
    live.snapshot("b")
    guest = live.start()
    node = next(one["node-name"] for one in guest.qmp("query-named-block-nodes", flat=True) if one["file"].endswith("/v.a") and one["drv"] == "qcow2")
    guest.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(sockets / "nbd")}})
    guest.qmp("block-export-add", type="nbd", id="e", node_name=node)
    assert "export" in refused(live, lambda **mode: live.delete(name, **mode))
    assert live.info()["pending"] is None
    keep = retention.parse({"match": "*", "last": 1})
    request = snapshots.SnapshotRequest(live.where, "v", DesiredSnapshot("c"), keep)
    before, said = live.tree(), []
    for mode in ({"check": True}, {}):  # the run takes the snapshot first
        with pytest.raises(InUse) as caught:
            snapshots.take(request, live.options(**mode))
        said.append(str(caught.value))
        assert not mode or live.tree() == before
    assert said[0] == said[1]
    guest.qmp("block-export-del", id="e")
    live.points["c"] = digest_of(live.data)
    assert live.delete(name).changed
    del live.points[name]
    live.require_right()


@pytest.mark.parametrize("kind", ["raw above", "debug below"])
def test_drivers_that_are_not_known(make: Callable[..., Live], kind: str) -> None:
    live = make("qcow2")
    live.snapshot("a")
    guest = live.start(kind)
    for task in changes(live):
        said = refused(live, task)
        assert "something else uses" in said or "other files under v.a" in said
    assert guest.alive


def test_encryption_by_the_machine(make: Callable[..., Live]) -> None:
    """Its disk is shorter than the file, and what is in the file is not what the guest sees."""
    live, disk = make("raw", size=16 * MIB), None
    command = ["qemu-img", "create", "-q", "--object", "secret,id=s,data=x", "-f", "luks", "-o", "key-secret=s,iter-time=10", str(live.path / "v"), "8M"]
    for _attempt in range(20):  # on a busy machine it finds no time to measure
        disk = subprocess.run(command, capture_output=True, check=False)
        if not disk.returncode:
            break
    assert disk is not None and not disk.returncode, disk
    os.truncate(live.path / "v", 16 * MIB)
    node = {"driver": "luks", "key-secret": "s", "node-name": "crypt", "file": {"driver": "file", "filename": str(live.path / "v")}}
    other = make("raw")
    more = ("-object", "secret,id=s,data=x", "-blockdev", json.dumps(node), "-device", "virtio-blk-pci,id=d1,drive=crypt")
    live.guest = other.start(more=more)
    assert "(luks)" in refused(live, changes(live)[0])
    assert "(luks)" in refused(live, lambda **mode: live.present(size=32 * MIB, **mode))


def test_a_machine_that_has_a_part_of_the_base(make: Callable[..., Live]) -> None:
    """A merge would write to other places than the files say."""
    live = make("raw", size=2 * MIB)
    live.take("a")
    live.start("part")
    assert "of v, and the file on the share" in refused(live, changes(live)[2])


# -- filters and second names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format, merges", [("raw", False), ("qcow2", True)])
def test_a_machine_that_compresses(make: Callable[..., Live], image_format: str, merges: bool) -> None:
    """On a raw image each write of the guest would fail from then on."""
    live = make(image_format)
    live.snapshot("a")
    guest = live.start("compressing")
    guest.write(0, CLUSTER, 1)
    live.snapshot("b")
    guest.write(CLUSTER, CLUSTER, 2)
    for number, name in enumerate("ba", 2):  # the one whose merge leaves the guest on the base is the last one
        if name == "b" or merges:
            assert live.delete(name, check=True).changed and live.delete(name).changed
            live.forget(name)
        else:
            assert "compresses what it writes (disk0), and v, to which it would write then, is raw" in refused(live, lambda **mode: live.delete("a", **mode))
        guest.write(number * CLUSTER, CLUSTER, 3)  # QEMU compresses no cluster twice
        live.require_right()


def test_a_machine_whose_disk_is_watched(make: Callable[..., Live]) -> None:
    """QEMU 7.2 aborts when it closes an image that a filter watches by a bitmap without a name."""
    live = make("qcow2")
    live.snapshot("a")
    live.snapshot("b")
    guest = live.start("watched")
    guest.write(0, CLUSTER, 1)
    for drop in (False, True):
        assert "something in the machine watches v.b" in refused(live, lambda drop=drop, **mode: live.delete("b", drop_bitmaps=drop, **mode))
    live.snapshot("c")
    guest.write(CLUSTER, CLUSTER, 2)
    assert "something in the machine watches v.b" in refused(live, lambda **mode: live.delete("c", drop_bitmaps=True, **mode))
    live.require_right()


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_an_image_whose_counts_are_of_an_earlier_time(make: Callable[..., Live], name: str) -> None:
    """A machine with lazy refcounts died. QEMU does not mend that in an image that it has as a backing file, and would overwrite data. To
    delete a wants a pull into that image, to delete b a commit, and to delete c leaves it alone."""
    live = make("qcow2")
    live.snapshot("a")
    words = [word for number in range(3) for word in ("-c", f"write -P {number + 1} {number * MIB} {MIB // 2}")]
    file = f"driver=qcow2,lazy-refcounts=on,file.filename={live.path}/v.a"
    subprocess.run(["qemu-io", "--image-opts", *words, "-c", "flush", "-c", "abort", file], check=False, capture_output=True)
    for number in range(3):
        live.data[number * MIB : number * MIB + MIB // 2] = bytes([number + 1]) * (MIB // 2)
    live.snapshot("b")
    guest = live.start()
    guest.write(3 * MIB, CLUSTER, 7)
    live.snapshot("c")
    guest.write(3 * MIB + CLUSTER, CLUSTER, 8)
    if name == "c":
        assert live.delete("c", check=True).changed and live.delete("c").changed
        live.forget("c")
        assert "reference counts" in refused(live, lambda **mode: live.delete("b", **mode), UnsafeImage)  # the guest would come to it now
    else:
        assert "file v.a on" in refused(live, lambda **mode: live.delete(name, **mode), UnsafeImage)
    live.snapshot("d")
    guest.write(0, CLUSTER, 9)
    live.require_right()


@pytest.mark.parametrize("file", ["v", "v.a", "v.b", "v.c"])
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_no_task_lets_a_machine_write_to_a_file_of_two_names(make: Callable[..., Live], tmp_path: Path, image_format: str, file: str) -> None:
    """Whatever it is: refused in check mode as in the run, or without a change to what the other name leads to."""
    live = make(image_format)
    guest = live.start()
    for number, name in enumerate("abc"):
        guest.write(number * CLUSTER, CLUSTER << number, number + 1)
        live.snapshot(name)
    foreign = tmp_path / "foreign"
    os.link(live.path / file, foreign)
    content, tried = foreign.read_bytes(), 0
    for names in ("c", "a", "b", "ab"):
        if not set(names) <= set(live.points):
            continue
        tried += 1
        try:
            assert live.delete(*names, check=True).changed
        except UnsafeImage as error:
            assert f"file {file} on" in str(error)
            assert str(error) == refused(live, lambda names=names, **mode: live.delete(*names, **mode), UnsafeImage)
        else:
            live.delete(*names)
            live.forget(*names)
        assert foreign.read_bytes() == content or file == "v.c"  # to which the guest writes
        live.require_right()
    assert tried > 1 and not live.info()["pending"]


# -- what is said, and what is sent ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what, reason",
    [
        ("absent", "No such file or directory"),
        ("file", "that is no socket"),
        ("directory", "that is no socket"),
        ("dead", "the process that made the socket has ended"),
    ],
)
def test_nobody_listens_at_the_monitor(live: Live, sockets: Path, what: str, reason: str) -> None:
    path = sockets / "monitor"
    if what == "file":
        path.write_text("")
    elif what == "directory":
        path.mkdir()
    elif what == "dead":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    for task in changes(live):
        assert f"nobody listens at {path} ({reason})" in refused(live, lambda task=task, **mode: task(attachment=str(path), **mode))


def test_an_ended_job_of_the_user(live: Live, tmp_path: Path) -> None:
    """Whatever its name is: it is left alone, and so is one that works elsewhere."""
    guest = live.guest
    assert guest is not None
    guest.qmp("blockdev-create", job_id="rfs-mine", options={"driver": "file", "filename": str(tmp_path / "other"), "size": 65536})
    while guest.qmp("query-jobs")[0]["status"] != "concluded":
        time.sleep(0.01)
    for mode in ({"check": True}, {}):
        assert live.take("b", **mode).changed
        assert [job["id"] for job in guest.qmp("query-jobs")] == ["rfs-mine"]


def test_check_mode_only_asks(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a killed task has left a job that has ended."""
    from .instants import instants, killed_at

    guest, sent = live.guest, []
    assert guest is not None
    for name in "bcd":
        live.snapshot(name)
    number = next(one.number for one in instants(lambda: live.delete("b")) if one.what == "before job-dismiss")
    killed_at(lambda: live.delete("c"), number, "module", guest.process.pid)
    assert [job["status"] for job in guest.qmp("query-jobs")] == ["concluded"]
    run = Monitor.run

    def noted(self: Monitor, command: str, **arguments: Any) -> Any:
        sent.append(command)
        return run(self, command, **arguments)

    monkeypatch.setattr(Monitor, "run", noted)
    predicted = [task(check=True).changed for task in (changes(live)[0], changes(live)[1], changes(live)[2])]
    assert predicted == [True] * 3 and sent and all(command.startswith(("query-", "x-debug-query-")) for command in sent)
    assert [job["status"] for job in guest.qmp("query-jobs")] == ["concluded"]
    monkeypatch.setattr(Monitor, "run", run)
    assert live.delete("a").changed and not guest.qmp("query-jobs")
    live.points = {name: point for name, point in live.points.items() if name == "d"}
    live.require_right()


def as_nobody(live: Live, monkeypatch: pytest.MonkeyPatch) -> Guest:
    """A machine of another user, to whom the volume's files belong."""
    account = pwd.getpwnam("nobody")
    for path in (live.path, *live.path.iterdir()):
        if path.name != ".remotefs":
            os.chown(path, account.pw_uid, account.pw_gid)
    made, started = tempfile.mkdtemp, subprocess.Popen

    def open_to_all(*words: Any, **more: Any) -> str:
        directory = made(*words, **more)
        os.chmod(directory, 0o777)
        return directory

    def by_nobody(argv: list[str], *words: Any, **more: Any) -> Any:
        other = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if "qemu-system" in str(argv) else {}
        return started(argv, *words, **more, **other)

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkdtemp", open_to_all)
        patched.setattr(subprocess, "Popen", by_nobody)
        return live.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_header_that_qemu_may_not_write(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At the end of the merge QEMU would crash. What it has open for writing already it can write."""
    for directory in {*tmp_path.parents, tmp_path, *Path(tempfile.gettempdir(), "x").parents} - {Path("/")}:
        os.chmod(directory, directory.stat().st_mode & 0o7777 | 0o055)  # also those of whoever made a place for this run
    live = make("raw")
    guest = as_nobody(live, monkeypatch)
    for number, name in enumerate("abc"):
        guest.scribble(number)
        live.snapshot(name)
    guest.scribble(7)
    for file in ("v.b", "v.c"):
        os.chown(live.path / file, 0, 0)
        os.chmod(live.path / file, 0o644)
    before = live.tree()
    for check in (True, False):
        with pytest.raises(InUse, match="QEMU may not write to v.b, of which the header would change; give its user the right to"):
            live.delete("a", check=check)
    assert live.tree() == before and guest.alive
    monkeypatch.setattr(possible.rights, "may_write", lambda *_all: True)  # what hides behind an ACL or a label
    with pytest.raises(ToolFailed, match="change-backing-file: .*Permission denied.*let QEMU open"):
        live.delete("a")
    assert guest.alive and live.info()["pending"] is None
    live.delete("b")
    os.chmod(live.path / "v.c", 0o666)
    live.delete("a")
    live.forget("a", "b")
    live.require_right()
    live.require_nothing_left()


def test_the_header_over_a_raw_base_cannot_be_mended(make: Callable[..., Live]) -> None:
    """QEMU would write that the raw image is a qcow2 image."""
    live = make("raw")
    live.snapshot("a")
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(live.path / "v"), str(live.path / "v.a")], check=True)
    guest = live.start()
    guest.scribble(5)
    before = live.tree()
    for check in (True, False):
        with pytest.raises(InUse, match="the header of v.a has to be mended"):
            live.take("b", check=check)
    assert live.tree() == before
    guest.quit()
    live.guest = None
    live.snapshot("b")
    live.require_right()


def test_a_machine_that_has_left_its_directory(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``-daemonize`` does after it has opened a file by a relative path. Nothing can be opened by that any more."""
    live = make("raw")
    live.start("relative").scribble(1)
    link = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path, **how: "/" if str(path).endswith("/cwd") else link(path, **how))
    assert "not under the name that it was told (a relative path with -daemonize, or -chroot)" in refused(live, lambda **mode: live.take("new", **mode))
