# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Points that are opened read-only as a file or a socket: what they show, who may change what they rest on, and what stays of killed holders."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.access import guard, holder, targets
from ansible_collections.remotefs.storage.plugins.module_utils.access.folders import AccessDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.access.record import Record
from ansible_collections.remotefs.storage.plugins.module_utils.access.targets import target_at
from ansible_collections.remotefs.storage.plugins.module_utils.consumers import private_files
from ansible_collections.remotefs.storage.plugins.module_utils.consumers.run_directory import Place, RunDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.operations import opened_points
from ansible_collections.remotefs.storage.plugins.module_utils.operations.opened_points import CloseRequest, Done, OpenRequest
from ansible_collections.remotefs.storage.plugins.module_utils.operations.updating import SourceRequest
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import in_use

from .test_clones import content, write
from .test_documents import blocks, play
from .test_examples import examples, replaced
from .test_progress import call, start, wait_for
from .test_refusals import MIB, Store, refused

WRITTEN = 65536  # bytes, as ``write`` writes them
FILE_AND_SOCKET = [pytest.param(guard.FUSE, marks=pytest.mark.root), guard.NBD]


class Opener:
    """Opens points of a share, and ends all of them."""

    def __init__(self, store: Store, place: Path) -> None:
        self.store, self.place, self.directory = store, place, AccessDirectory(str(place / "run"))
        self.warned: list[str] = []
        self.guards: set[int] = set()

    def at(self, kind: str, name: str = "point") -> str:
        return str(self.place / f"{name}.{kind}")

    def open(self, kind: str, snapshot: str | None = "s1", volume: str = "vol", name: str = "point", seconds: int = 600, **options: object) -> Done:
        target = target_at(kind, self.at(kind, name))
        request = OpenRequest(self.store.candidates, volume, snapshot, target, seconds, self.directory)
        try:
            return opened_points.open_point(request, self.store.options(self.warned.append, **{"lock_timeout": 5, **options}))
        finally:
            with contextlib.suppress(errors.StorageError, OSError):
                record = self.directory.read(target.name)
                self.guards |= {record.guard} if record is not None and record.guard else set()

    def reap(self) -> None:
        """Ask how its guards ended, which no module outlives for that: other tests look for children that they have not asked."""
        until = time.monotonic() + 10
        for pid in self.guards:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(pid, os.WNOHANG)[0] == 0:
                    assert time.monotonic() < until, f"guard {pid} does not end"
                    time.sleep(0.01)

    def close(self, kind: str | None = None, volume: str | None = None, snapshot: str | None = None, name: str = "point", **options: object) -> Done:
        target = None if kind is None else target_at(kind, self.at(kind, name))
        shares = frozenset([str(self.store.path)] if kind is None else [])
        request = CloseRequest(target, volume, snapshot, shares, self.directory)
        return opened_points.close_points(request, self.store.options(self.warned.append, **{"lock_timeout": 5, **options}))

    def record(self, kind: str, name: str = "point") -> Record:
        found = self.directory.read(target_at(kind, self.at(kind, name)).name)
        assert found is not None
        return found

    def shown(self, kind: str, name: str = "point") -> bytes:
        """All that the point shows."""
        if kind == guard.FUSE:
            return Path(self.at(kind, name)).read_bytes()
        out = self.place / "out"
        export = {"driver": "nbd", "server": {"type": "unix", "path": self.at(kind, name)}, "export": self.record(kind, name).point.label}
        subprocess.run(["qemu-img", "convert", "-O", "raw", "json:" + json.dumps(export), str(out)], check=True)
        return out.read_bytes()

    def left(self) -> list[str]:
        """All that is there of points that were opened, but for what was copied out of them."""
        return sorted(str(path.relative_to(self.place)) for path in self.place.rglob("*") if path.name not in ("run", "out"))

    def is_gone(self) -> bool:
        return not self.left()


@pytest.fixture
def opener(layered: Store, sockets: Path, request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Of ``layered``: s1 shows ones, s2 twos, and the present threes."""
    if shutil.which("qemu-storage-daemon") is None:
        pytest.skip("needs qemu-storage-daemon, which Debian has in qemu-system-common")
    if guard.FUSE in request.node.name and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/fuse")
    made = Opener(layered, sockets)
    yield made
    for entry in (sockets / "run").glob("*"):
        with contextlib.suppress(errors.ToolFailed):
            record = made.directory.read(entry.name)
            if record is not None:
                for pid in (record.guard, record.daemon):
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGCONT)
                holder.end(made.directory, record.target, record)
    for path in sockets.glob("*.fuse"):
        guard.remove_traces(guard.FUSE, str(path))
    made.reap()


def are_all(data: bytes, value: int) -> bool:
    return data == (bytes([value]) * WRITTEN).ljust(MIB, b"\0")


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", FILE_AND_SOCKET)
def test_what_is_shown(opener: Opener, kind: str) -> None:
    """Each point shows its own data, from the base, an overlay and the active image. A second task changes nothing but the end."""
    for value, snapshot in ((1, "s1"), (2, "s2"), (3, None)):
        foretold = opener.open(kind, snapshot, name=f"p{value}", check=True)
        assert foretold.changed and not os.path.lexists(opener.at(kind, f"p{value}")) and foretold.access is not None and foretold.access["pid"] is None
        done = opener.open(kind, snapshot, name=f"p{value}", seconds=60)
        assert done.changed and not done.renewed and [step["step"] for step in done.actions] == ["open_point"] and done.actions == foretold.actions
        assert are_all(opener.shown(kind, f"p{value}"), value) and done.access is not None and done.access["size"] == MIB
        assert (foretold.before, foretold.after) == (done.before, done.after) == ({}, done.after)
        mode = os.lstat(opener.at(kind, f"p{value}")).st_mode
        assert mode & 0o077 == 0 and (stat.S_ISREG(mode) if kind == guard.FUSE else stat.S_ISSOCK(mode))
        for check in (True, False):
            again = opener.open(kind, snapshot, name=f"p{value}", seconds=3600, check=check)
            assert (again.changed, again.renewed, again.actions) == (False, True, ()) and again.before == again.after == done.after
            assert again.access is not None and again.access["expires"] > done.access["expires"] and again.access["pid"] == done.access["pid"]
    assert opener.store.info()["in_use"] is True  # the present is opened, too
    with pytest.raises(errors.Conflict, match=r"it shows vol@s1 on .*; close that first"):
        opener.open(kind, "s2", name="p1")
    for check in (True, False):
        done = opener.close(volume="vol", snapshot="s2", check=check)
        assert done.changed and [one["snapshot"] for one in done.closed] == ["s2"] and done.actions == ({"step": "close_point", **_place(opener, kind, "p2")},)
    with pytest.raises(errors.Conflict, match="it shows vol@s1"):
        opener.close(kind, "vol", "s2", name="p1")
    assert {one["snapshot"] for one in opener.close(volume="vol").closed} == {"s1", None} and opener.is_gone()
    assert not opener.close(volume="vol").changed and not opener.close(kind, name="p1").changed and opener.store.info()["in_use"] is False


def _place(opener: Opener, kind: str, name: str) -> dict:
    return {"path" if kind == guard.FUSE else "nbd": opener.at(kind, name)}


@pytest.mark.root
def test_nobody_writes(opener: Opener) -> None:
    """Not to the file, and not through the socket."""
    before = opener.store.state()
    opener.open(guard.FUSE)
    opener.open(guard.NBD)
    with open(opener.at(guard.FUSE), "rb") as reader:
        for attempt in (lambda: Path(opener.at(guard.FUSE)).write_bytes(b"x"), lambda: os.truncate(opener.at(guard.FUSE), 0)):
            with pytest.raises(OSError):
                attempt()
        with pytest.raises(OSError), open(opener.at(guard.FUSE), "r+b", buffering=0) as writer:
            writer.write(b"x" * 4096)
        assert len(reader.read()) == MIB
    uri = f"nbd+unix:///vol%40s1?socket={opener.at(guard.NBD)}"
    assert subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 9 0 4096", uri], capture_output=True, check=False).returncode != 0
    assert are_all(opener.shown(guard.FUSE), 1) and opener.store.state() == before


def test_a_machine_writes_the_present(opener: Opener) -> None:
    """The present is in use then. A snapshot is not, and is shown beside the machine. Where the present is opened, no machine starts."""
    with machine(opener.store):
        for check in (True, False):
            with pytest.raises(errors.InUse, match="take a snapshot and open that"):
                opener.open(guard.NBD, None, check=check)
        assert opener.is_gone()
        opener.open(guard.NBD, "s2")
        assert are_all(opener.shown(guard.NBD), 2)
    opener.close(guard.NBD)
    opener.open(guard.NBD, None)
    with pytest.raises(AssertionError, match="Failed to get \"write\" lock"), machine(opener.store):
        pass


@contextlib.contextmanager
def machine(store: Store, volume: str = "vol") -> Iterator[str]:
    """A program that has the volume open for writing, as a machine has. Yields the socket of its monitor."""
    found = store.info(volume)
    with tempfile.TemporaryDirectory(prefix="m-") as folder:  # a socket's path must be short
        yield from _machine(found, f"{folder}/m")


def _machine(found: dict, monitor: str) -> Iterator[str]:
    node = {"driver": found["format"], "node-name": "disk", "file": {"driver": "file", "filename": found["path"]}}
    words = ["qemu-storage-daemon", "--blockdev", json.dumps(node), "--chardev", f"socket,id=m,path={monitor},server=on,wait=off", "--monitor", "chardev=m"]
    words += ["--nbd-server", f"addr.type=unix,addr.path={monitor}.nbd", "--export", "type=nbd,id=e,node-name=disk,writable=on"]
    with subprocess.Popen([*words, "--pidfile", f"{monitor}.pid"], stderr=subprocess.PIPE, text=True) as process:
        try:
            while not os.path.exists(f"{monitor}.pid"):
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                time.sleep(0.01)
            yield monitor
        finally:
            process.terminate()


# -- who may change what is opened -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILE_AND_SOCKET)
def test_what_it_rests_on_is_in_use(opener: Opener, kind: str) -> None:
    """The base is opened: what would write to it, give it up or let a machine write to it is refused. What leaves it alone is done."""
    store = opener.store
    opener.open(kind, "s1")
    for action in (
        lambda check: store.delete("s1", check=check),
        lambda check: store.delete("s1", "s2", check=check),
        lambda check: store.absent(cascade=True, check=check),
    ):
        error = refused(store, errors.InUse, action)
        assert "close what remotefs_access opened" in str(error)
    store.snapshot("s3")
    store.delete("s3")
    store.present("clone", SourceRequest("vol", "s1", linked=True))
    assert content(store, "clone")[0] == 1
    store.absent("clone")
    store.revert("s2")
    store.revert("s1", discard=True)
    assert are_all(opener.shown(kind), 1) and content(store, "vol")[0] == 1
    refused(store, errors.InUse, lambda check: store.delete("s1", check=check))  # the overlay is empty, but a machine would write to the base
    opener.close(kind)
    store.delete("s1")
    assert content(store, "vol")[0] == 1


def test_an_overlay_is_in_use(opener: Opener) -> None:
    """An overlay in the middle of the chain is opened, and so is all that it rests on."""
    store = opener.store
    opener.open(guard.NBD, "s2")
    for action in (
        lambda check: store.delete("s1", check=check),
        lambda check: store.delete("s2", check=check),
        lambda check: store.revert("s1", discard=True, check=check),
        lambda check: store.absent(cascade=True, check=check),
    ):
        refused(store, errors.InUse, action)
    store.snapshot("s3")
    write(store, "vol", 4)
    store.delete("s3")
    assert are_all(opener.shown(guard.NBD), 2) and content(store, "vol")[0] == 4


def test_the_present_is_in_use(opener: Opener) -> None:
    """Nobody changes it, and nobody makes it a point that another present rests on while it is opened as the present."""
    store = opener.store
    opener.open(guard.NBD, None)
    for action in (
        lambda check: store.delete("s2", check=check),
        lambda check: store.revert("s2", check=check),
        lambda check: store.present(size=2 * MIB, check=check),
    ):
        refused(store, errors.InUse, action)
    assert are_all(opener.shown(guard.NBD), 3)


def test_a_clone_rests_on_its_parent(opener: Opener) -> None:
    """Files of the parent are opened with a point of a linked clone."""
    store = opener.store
    store.present("clone", SourceRequest("vol", "s1", linked=True))
    store.snapshot("c1", "clone")
    write(store, "clone", 7)
    opener.open(guard.NBD, "c1", "clone")
    assert are_all(opener.shown(guard.NBD), 1)
    refused(store, errors.InUse, lambda check: store.absent("clone", True, check=check))
    with (store.path / "vol").open("rb") as base:
        assert in_use.is_open(base.fileno())


def test_where_locks_are_not_seen(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark on the share keeps others away who confirm that nobody uses the volume. It goes with the point, or some time after its end."""
    store = opener.store
    store.share = store.share._replace(locks_visible=False)
    store.candidates = type(store.candidates)((store.share,))
    plain = store.options
    monkeypatch.setattr(store, "options", lambda *given, **changes: plain(*given, **{"assume_unused": True, **changes}))
    marks = store.path / ".remotefs" / "opened"
    with pytest.raises(errors.InUse, match="take a snapshot and open that, .*; or make sure that nobody has"):
        opener.open(guard.NBD, None, assume_unused=False)
    assert opener.is_gone() and not marks.exists()
    opener.open(guard.NBD, "s1", assume_unused=False, seconds=60)
    (mark,) = marks.iterdir()
    for action in (lambda check: store.delete("s1", check=check), lambda check: store.absent(cascade=True, check=check)):
        assert f"{socket.gethostname()} has vol@s1 opened until" in str(refused(store, errors.InUse, action))
    assert opener.open(guard.NBD, "s1", seconds=3600).renewed and json.loads(mark.read_text())["seconds"] == 3600
    store.snapshot("s3")
    store.delete("s3")
    opener.close(guard.NBD)
    assert list(marks.iterdir()) == [] and are_all(store_content(store), 3)
    opener.open(guard.NBD, "s1", seconds=60)
    record = opener.record(guard.NBD)
    os.kill(record.guard, signal.SIGSTOP)
    kill(record.daemon, record.guard)
    wait_for(lambda: is_zombie(record.daemon))
    shutil.rmtree(opener.directory.path)  # the host is restarted
    (left,) = marks.iterdir()
    for age, counts in ((0, True), (60 + 800, True), (60 + 1000, False)):
        os.utime(left, (time.time() - age,) * 2)
        if counts:
            refused(store, errors.InUse, lambda check: store.delete("s1", check=check))
    opener.open(guard.NBD, "s2", name="other")
    assert left not in marks.iterdir() and not opener.warned
    refused(store, errors.InUse, lambda check: store.delete("s1", check=check))
    opener.close(guard.NBD, name="other")
    store.delete("s1")
    for nonsense in (b"", b"[]", b"\xff", b'{"version": 1}', b"[" * 60000):
        (marks / "x.json").write_bytes(nonsense)
        assert "opened/x.json cannot be read" in str(refused(store, errors.InUse, lambda check: store.delete("s2", check=check)))
    (marks / "x.json").unlink()
    for thing in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/nowhere/x")):
        thing(marks / "x.json")
        assert "opened/x.json cannot be read" in str(refused(store, errors.InUse, lambda check: store.delete("s2", check=check)))
        assert opener.open(guard.NBD, "s2").changed and opener.open(guard.NBD, "s2").renewed and opener.close(guard.NBD).changed
        (marks / "x.json").rmdir() if thing is os.mkdir else (marks / "x.json").unlink()
    store.delete("s2")
    assert are_all(store_content(store), 3)


def store_content(store: Store) -> bytes:
    return content(store, "vol")


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILE_AND_SOCKET)
def test_it_ends_by_itself(opener: Opener, kind: str) -> None:
    """When its time is over, and nobody puts it off. A task that puts it off is heard."""
    opener.open(kind, seconds=1)
    opener.open(kind, seconds=3)
    pids = opener.record(kind).guard, opener.record(kind).daemon
    time.sleep(1.5)
    assert are_all(opener.shown(kind), 1)
    wait_for(opener.is_gone)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") and not is_zombie(pid) for pid in pids))
    opener.store.absent(cascade=True)


def is_zombie(pid: int) -> bool:
    """Whether all threads of a process have ended: until then it has its files."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX" and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except OSError:
        return True


@pytest.mark.parametrize("kind", FILE_AND_SOCKET)
@pytest.mark.parametrize("victims", ["daemon", "guard", "both", "stopped"])
def test_killed_holders(opener: Opener, kind: str, victims: str) -> None:
    """A daemon that is killed leaves nothing. Of a guard, or of both, the next task takes away what is left, and volumes are not in use."""
    opener.open(kind)
    record = opener.record(kind)
    if victims == "daemon":
        kill(record.daemon)
        wait_for(opener.is_gone)
    elif victims == "guard":
        kill(record.guard)
        wait_for(lambda: is_zombie(record.daemon))
        assert not guard.is_dead_mount(opener.at(kind))
    elif victims == "both":
        os.kill(record.guard, signal.SIGSTOP)
        kill(record.daemon, record.guard)
    else:
        for pid in (record.guard, record.daemon):
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        assert opener.close(kind).changed and opener.is_gone() and time.monotonic() - began < 10
    wait_for(lambda: is_zombie(record.daemon) and is_zombie(record.guard))
    if kind == guard.FUSE and victims == "both":
        assert guard.is_dead_mount(opener.at(kind))
    opener.store.snapshot("s3")
    if victims == "both":
        assert opener.close(kind, check=True).changed and opener.close(kind).changed
        assert not opener.close(kind).changed
    else:  # a task on another point
        done = opener.open(kind, "s2", name="other")
        assert done.cleaned == ((opener.at(kind),) if victims == "guard" else ()) and are_all(opener.shown(kind, "other"), 2)
        opener.close(kind, name="other")
    assert opener.is_gone()
    assert opener.open(kind).changed and are_all(opener.shown(kind), 1)


@pytest.mark.parametrize("kind", FILE_AND_SOCKET)
@pytest.mark.parametrize("state", ["opened", "closed"])
def test_after_a_restart_of_the_host(opener: Opener, kind: str, state: str) -> None:
    """The directory of records is empty then, and what was mounted on, or the socket, is still there."""
    opener.open(kind)
    record = opener.record(kind)
    os.kill(record.guard, signal.SIGSTOP)
    kill(record.daemon, record.guard)
    wait_for(lambda: is_zombie(record.daemon))
    if kind == guard.FUSE:
        subprocess.run(["umount", "-l", opener.at(kind)], check=True)
        assert b"can be removed" in Path(opener.at(kind)).read_bytes()
    shutil.rmtree(opener.directory.path)
    assert opener.left() == [os.path.basename(opener.at(kind))]
    if state == "opened":
        assert opener.open(kind).changed and are_all(opener.shown(kind), 1)
    assert opener.close(kind).changed and opener.is_gone()


def test_a_record_of_another_start_of_the_host(opener: Opener) -> None:
    """Its guard would not have outlived that. What it says of the end counts no more."""
    opener.open(guard.NBD)
    record = opener.record(guard.NBD)
    os.kill(record.guard, signal.SIGSTOP)
    kill(record.daemon, record.guard)
    wait_for(lambda: is_zombie(record.daemon))
    done = opener.open(guard.NBD)
    assert done.changed and not done.renewed and opener.record(guard.NBD).daemon != record.daemon


def test_a_folder_that_is_removed_ends_the_point(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator removes it by hand."""
    opener.open(guard.NBD)
    record = opener.record(guard.NBD)
    shutil.rmtree(opener.directory.folder(record.target.name))
    os.kill(record.guard, signal.SIGTERM)
    wait_for(lambda: is_zombie(record.daemon))
    wait_for(opener.is_gone)


def test_a_guard_that_is_killed_while_it_removes_its_folder(opener: Opener) -> None:
    """The number of the old daemon is left. The next task does not take it for the new one's, before that shows anything."""
    opener.open(guard.NBD)
    old, folder = opener.record(guard.NBD), Path(opener.directory.folder(target_at(guard.NBD, opener.at(guard.NBD)).name))
    os.kill(old.guard, signal.SIGSTOP)
    kill(old.daemon, old.guard)
    wait_for(lambda: is_zombie(old.daemon))
    os.unlink(opener.at(guard.NBD))
    (folder / guard.RECORD).unlink()
    assert [path.name for path in folder.iterdir()] == [guard.PID]
    opener.open(guard.NBD)
    record = opener.record(guard.NBD)
    assert record.daemon != old.daemon and os.readlink(f"/proc/{record.daemon}/exe").endswith(holder.PROGRAM) and are_all(opener.shown(guard.NBD), 1)
    assert opener.close(guard.NBD).changed and opener.is_gone()


def test_a_daemon_that_is_killed_while_its_end_is_put_off(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guard leaves the folder to the task until that has written the new end."""
    opener.open(guard.NBD)
    record, real = opener.record(guard.NBD), AccessDirectory.replace
    folder = opener.directory.folder(record.target.name)

    def is_waiting() -> bool:
        return any(" -> FLOCK " in line and f" {record.guard} " in line for line in Path("/proc/locks").read_text().splitlines())

    def replace(directory: AccessDirectory, renewed: Record) -> None:
        kill(record.daemon)
        wait_for(lambda: is_waiting() or not os.path.lexists(folder))
        real(directory, renewed)

    with monkeypatch.context() as patched:
        patched.setattr(AccessDirectory, "replace", replace)
        assert opener.open(guard.NBD).renewed
    wait_for(opener.is_gone)
    opener.open(guard.NBD)
    assert are_all(opener.shown(guard.NBD), 1)


def test_a_point_that_ends_at_this_moment(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guard removes its folder while a task looks at it: there is nothing to read, which is no error. It is the same with machines."""
    opener.open(guard.NBD, name="ends")
    target, real = target_at(guard.NBD, opener.at(guard.NBD, "ends")), private_files.require_own
    going = opener.directory.folder(target.name)

    def require_own(path: str) -> None:
        if path == going and os.path.lexists(going):
            holder.end(opener.directory, target, None)
        real(path)

    monkeypatch.setattr(private_files, "require_own", require_own)
    assert opener.close(guard.NBD).closed == () and not os.path.lexists(going) and not opener.warned
    machines, place = RunDirectory(str(opener.place / "run")), Place(str(opener.place / "run"), "m")
    os.mkdir(place.folder)
    monkeypatch.setattr(private_files, "require_own", lambda path: (os.rmdir(path) if path == place.folder else None, real(path))[1])
    assert machines.read(place) is None


def test_the_guard_is_small_and_keeps_no_file(opener: Opener) -> None:
    """Locks end with the daemon, because it alone has the files. No task's output is held open."""
    opener.open(guard.NBD, "s2")
    record = opener.record(guard.NBD)
    folder = f"/proc/{record.guard}/fd"
    there = {os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    assert there == {"/dev/null", opener.directory.folder(record.target.name)}
    (line,) = [one for one in Path(f"/proc/{record.guard}/status").read_text().splitlines() if one.startswith("VmRSS")]
    assert int(line.split()[1]) < 32 << 10  # KiB


# -- the present, seen again -----------------------------------------------------------------------------------------------


def test_another_present_at_the_same_path(opener: Opener) -> None:
    """A point is what its files are: of another present, or of a snapshot that was made anew, the old one is not taken for it."""
    opener.open(guard.NBD, None)
    opener.close(guard.NBD)
    opener.open(guard.NBD, "s2")
    opener.store.snapshot("s3")
    assert opener.open(guard.NBD, "s2").renewed
    opener.close(guard.NBD)
    opener.open(guard.NBD, "s3")
    assert are_all(opener.shown(guard.NBD), 3)


# -- what is in the way, and lies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILE_AND_SOCKET)
def test_what_is_in_the_way(opener: Opener, kind: str) -> None:
    """It stays as it is. Nothing is left of the attempt."""
    path = Path(opener.at(kind))
    victim = opener.place / "out"
    victim.write_bytes(b"precious")
    for plant in (
        lambda: path.write_bytes(b"precious"),
        lambda: path.write_bytes(b""),
        lambda: path.symlink_to(victim),
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: os.link(victim, path),
    ):
        plant()
        before = path.lstat()
        for check in (True, False):
            with pytest.raises(errors.Conflict, match="something else is there"):
                opener.open(kind, check=check)
            assert not opener.close(kind, check=check).changed
        assert path.lstat() == before and opener.left() == [path.name] and victim.read_bytes() == b"precious"
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(errors.Conflict):
            opener.open(kind)
        assert not opener.close(kind).changed and path.exists()


@pytest.mark.parametrize("name", ["a\nb", "caf\udce9", "\u202e"], ids=ascii)
def test_a_share_with_any_name(opener: Opener, name: str) -> None:
    """What is opened of it is found again, and can be closed."""
    moved = opener.store.path.with_name(name)
    opener.store.path.rename(moved)
    opener.store = Store(moved)
    opener.open(guard.NBD)
    assert opener.open(guard.NBD).renewed and are_all(opener.shown(guard.NBD), 1)
    assert opener.close(guard.NBD).changed and opener.is_gone() and not opener.warned


def test_paths_that_cannot_be(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others could exchange a part of the path, it lies on the share, or it is no path."""
    def open_at(kind: str, path: str) -> None:
        request = OpenRequest(opener.store.candidates, "vol", "s1", target_at(kind, path), 60, opener.directory)
        opened_points.open_point(request, opener.store.options())

    for path in ("relative", "/", str(opener.place) + "/..", f"{opener.place}/a\nb", f"{opener.place}/{'x' * 120}"):
        with pytest.raises(errors.InvalidParameter, match="option nbd"):
            open_at(guard.NBD, path)
    monkeypatch.setattr(targets.attachments, "LONGEST_SOCKET", 4000)  # the share of the test has a long path
    for path in (opener.store.path / "point", opener.store.path / ".remotefs" / "point"):
        with pytest.raises(errors.Conflict, match="it lies on the share"):
            open_at(guard.NBD, str(path))
    with pytest.raises(errors.ToolFailed, match="No such file or directory; make it first"):
        open_at(guard.NBD, f"{opener.place}/none/point")
    (opener.place / "open").mkdir()
    (opener.place / "open").chmod(0o777)
    with pytest.raises(errors.ToolFailed, match="others than the user of this task can write there"):
        open_at(guard.NBD, f"{opener.place}/open/point")
    (opener.place / "open").rmdir()
    assert opener.is_gone()


def lies(record: Path, victim: subprocess.Popen, precious: Path) -> dict[str, Callable[[], object]]:
    """What a record can be made of, by name."""
    told = json.loads(record.read_text())

    def with_(**changes: object) -> Callable[[], object]:
        return lambda: record.write_text(json.dumps({**told, **changes}))

    def instead(make: Callable[[], object]) -> Callable[[], object]:
        return lambda: (record.unlink(), make())

    return {
        "processes of others": with_(guard=victim.pid, daemon=victim.pid),
        "processes that cannot be": with_(guard=-1, daemon=1 << 40),
        "another path": with_(target={"kind": "fuse", "path": str(precious)}),
        "no path": with_(target={"kind": "fuse", "path": "../x"}),
        "another kind": with_(target={"kind": "disk", "path": str(precious)}),
        "no end": with_(ends=float("inf")),
        "no version": with_(version=2),
        "no JSON": lambda: record.write_text("{"),
        "deep": lambda: record.write_text("[" * 100000),
        "no object": lambda: record.write_text("[]"),
        "no text": lambda: record.write_bytes(b"\xff\xfe"),
        "endless": lambda: os.truncate(record, 1 << 30),
        "a link": instead(lambda: record.symlink_to(precious)),
        "a pipe": instead(lambda: os.mkfifo(record)),
        "a directory": instead(record.mkdir),
        "a device": instead(lambda: record.symlink_to("/dev/zero")),
    }


NAMES = ["processes of others", "processes that cannot be", "another path", "no path", "another kind", "no end", "no version", "no JSON", "deep"]
NAMES += ["no object", "no text", "endless", "a link", "a pipe", "a directory", "a device"]


@pytest.mark.parametrize("name", NAMES)
def test_records_that_lie(opener: Opener, name: str) -> None:
    """No other process is ended and no other file removed. Tasks on other points go on, with a warning where the record cannot be believed."""
    opener.open(guard.NBD)
    known = opener.record(guard.NBD)
    precious = opener.place / "out"
    precious.write_bytes(b"precious")
    record = Path(opener.directory.folder(known.target.name), guard.RECORD)
    with subprocess.Popen(["sleep", "60"]) as victim:
        try:
            os.kill(known.guard, signal.SIGSTOP)  # or it would end at its next look at the record
            kill(known.daemon)
            wait_for(lambda: is_zombie(known.daemon))
            lies(record, victim, precious)[name]()
            done = opener.open(guard.NBD, "s2", name="other")
            assert are_all(opener.shown(guard.NBD, "other"), 2) and victim.poll() is None
            assert bool(done.cleaned) != bool(opener.warned), (done.cleaned, opener.warned)
            if opener.warned:
                with pytest.raises(errors.ToolFailed, match="point.json: it (is|cannot be read)"):
                    opener.open(guard.NBD)
            assert victim.poll() is None and not precious.is_symlink()
        finally:
            victim.kill()
            kill(known.guard)
    shutil.rmtree(record.parent, ignore_errors=True)


def test_processes_and_directories_of_others(opener: Opener) -> None:
    """A process with the same words that is another user's is none of ours, and a directory of others is not used."""
    opener.open(guard.NBD)
    known = opener.record(guard.NBD)
    words = ["sh", "-c", "sleep 60; :", "--pidfile", opener.directory.pid_file(known.target.name)]
    with subprocess.Popen(words, executable="/bin/sh") as impostor:
        try:
            assert opener.close(guard.NBD).changed and impostor.poll() is None
        finally:
            impostor.kill()
    Path(opener.directory.path).chmod(0o777)
    with pytest.raises(errors.ToolFailed, match="can write there"):
        opener.open(guard.NBD)
    Path(opener.directory.path).rmdir()
    Path(opener.directory.path).symlink_to(opener.place)
    with pytest.raises(errors.ToolFailed, match="can write there"):
        opener.open(guard.NBD)
    Path(opener.directory.path).unlink()


def test_a_backing_name_is_never_followed(opener: Opener) -> None:
    """The daemon gets the opened files, and each overlay names the one below it, whatever its header says."""
    done = opener.open(guard.NBD, "s2")
    assert done.access is not None
    words = Path(f"/proc/{done.access['pid']}/cmdline").read_bytes().decode().split("\0")
    nodes = [json.loads(words[number + 1]) for number, word in enumerate(words) if word == "--blockdev"]
    assert [node["driver"] for node in nodes] == ["file", "raw", "file", "qcow2"] and nodes[-1]["backing"] == "layer1"
    assert all(node["read-only"] for node in nodes) and all(node["filename"].startswith("/proc/self/fd/") for node in nodes if node["driver"] == "file")
    assert str(opener.store.path) not in " ".join(words)


def test_a_hostile_raw_disk(opener: Opener) -> None:
    """A guest wrote the header of a qcow2 image with a backing file into its raw disk. That is what is shown."""
    store = opener.store
    store.present("evil", size=MIB)
    header = store.path.parent / "header"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", str(header), "1M"], check=True)
    with open(store.info("evil")["path"], "r+b") as disk:
        disk.write(header.read_bytes())
    store.snapshot("s1", "evil")
    opener.open(guard.NBD, "s1", "evil")
    assert opener.shown(guard.NBD).startswith(header.read_bytes()) and b"root:" not in opener.shown(guard.NBD)


# -- what is missing -------------------------------------------------------------------------------------------------------


def test_what_is_missing(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program or a device: said before anything is made. NBD does without FUSE."""
    with monkeypatch.context() as patched:
        patched.setattr(targets, "_DEVICE", "/dev/none")
        for check in (True, False):
            with pytest.raises(errors.ToolMissing, match="device /dev/none: it cannot be used here .*; use nbd, which needs no FUSE"):
                opener.open(guard.FUSE, check=check)
        assert opener.open(guard.NBD).changed
        opener.close(guard.NBD)
    with monkeypatch.context() as patched:
        patched.setattr(holder, "PROGRAM", "qemu-storage-daemon-none")
        with pytest.raises(errors.ToolMissing, match="program qemu-storage-daemon-none: it is not installed"):
            opener.open(guard.NBD)
    assert opener.is_gone()


@pytest.mark.parametrize(
    ("script", "kind", "error", "words"),
    [
        ("echo \"Parameter 'type' does not accept value 'fuse'\" >&2; exit 1", guard.FUSE, errors.ToolMissing, "it has no FUSE exports"),
        ("echo 'fuse: failed to exec fusermount3: No such file' >&2; exit 1", guard.FUSE, errors.ToolMissing, "install it .package fuse3."),
        ("echo 'Failed to get \"consistent read\" lock' >&2; exit 1", guard.NBD, errors.InUse, "open elsewhere"),
        ("echo 'out of luck' >&2; exit 1", guard.NBD, errors.ToolFailed, "qemu-storage-daemon said: out of luck"),
        ("exit 3", guard.NBD, errors.ToolFailed, "status 3 and said nothing"),
        ("kill -9 $$", guard.NBD, errors.ToolFailed, "status 137"),
    ],
)
def test_a_daemon_that_fails(opener: Opener, monkeypatch: pytest.MonkeyPatch, script: str, kind: str, error: type, words: str) -> None:
    """Its words are told, and nothing is left."""
    program = opener.store.path.parent / "qemu-storage-daemon"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(holder, "program", lambda: str(program))
    monkeypatch.setattr(targets, "_DEVICE", "/dev/null")
    with pytest.raises(error, match=words):
        opener.open(kind)
    assert opener.is_gone()


# -- users and tasks -------------------------------------------------------------------------------------------------------

NOBODY, PYTHON = 65534, "/usr/bin/python3"  # that of the system, which is often older
_WITHOUT_RIGHTS = """
import os, signal, subprocess, sys
from ansible_collections.remotefs.storage.plugins.module_utils.access import folders, guard, targets
from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import opened_points, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

place = sys.argv[1]
where, options = Candidates((Share(place + "/share", place + "/share", "directory"),)), Options(lock_timeout=5)
volumes.ensure_present(updating.VolumeRequest(where, DesiredVolume("vol", size=1 << 20)), options)
with open(place + "/share/vol", "r+b") as disk:
    disk.write(b"ones")
snapshots.take(snapshots.SnapshotRequest(where, "vol", DesiredSnapshot("s1")), options)
directory = folders.AccessDirectory(folders.usual_directory())
for kind in (guard.NBD, guard.FUSE):
    target = targets.target_at(kind, f"{place}/point.{kind}")
    try:
        told = opened_points.open_point(opened_points.OpenRequest(where, "vol", "s1", target, 60, directory), options).access
        shown = target.path if kind == guard.FUSE else told["uri"]
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", shown, place + "/out"], check=True)
        with open(place + "/out", "rb") as out:
            print(kind, out.read(4).decode())
        record = directory.read(target.name)
        os.kill(record.guard, signal.SIGSTOP)
        for pid in (record.daemon, record.guard):
            os.kill(pid, signal.SIGKILL)
        assert opened_points.close_points(opened_points.CloseRequest(target, None, None, frozenset(), directory), options).changed
    except StorageError as error:
        print(kind, error.error_code, error.subject.replace("device ", ""))
print(sorted(os.listdir(place)), os.listdir(directory.path))
"""


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that other users can reach, with a short path."""
    with tempfile.TemporaryDirectory(prefix="nobody-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.root
def test_a_user_without_rights(checkout: Path, open_place: Path) -> None:
    """NBD needs none. For a file the user must be able to open the device of FUSE, and fusermount3 mounts."""
    shutil.copytree(checkout / "plugins", open_place / "ansible_collections/remotefs/storage/plugins")
    for name in ("share", "run"):
        (open_place / name).mkdir()
        (open_place / name).chmod(0o700)
    for path in (open_place, *open_place.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(open_place), "TMPDIR": str(open_place), "PYTHONPATH": str(open_place), "LC_ALL": "C.UTF-8"}
    words = [*user, PYTHON, "-c", _WITHOUT_RIGHTS, str(open_place)]
    done = subprocess.run(words, env={**environment, "XDG_RUNTIME_DIR": str(open_place / "run")}, capture_output=True, text=True, check=False)
    may_mount = os.stat("/dev/fuse").st_mode & 0o006 == 0o006 and shutil.which("fusermount3") is not None
    assert done.stdout.splitlines()[:2] == ["nbd ones", "fuse ones" if may_mount else "fuse tool_missing /dev/fuse"], done.stdout + done.stderr
    assert done.stdout.splitlines()[2] == "['ansible_collections', 'out', 'run', 'share'] []"
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert "option run_dir: this user has no directory of its own" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4])
def test_a_task_that_is_killed(opener: Opener, after: float) -> None:
    """Whatever it had begun, the next task shows the point, and closing leaves nothing."""
    given = {"share": [str(opener.store.path)], "volume": "vol", "snapshot": "s1", "run_dir": opener.directory.path, "nbd": opener.at(guard.NBD)}
    task = start("remotefs_access", given)
    time.sleep(after)
    task.kill()
    task.communicate()
    opener.open(guard.NBD)
    assert are_all(opener.shown(guard.NBD), 1) and len(os.listdir(opener.directory.path)) == 1
    assert opener.close(guard.NBD).changed and opener.is_gone()
    opener.store.absent(cascade=True)


def test_tasks_at_once(opener: Opener) -> None:
    """Of many tasks that open and close the same point at once none fails, and nothing is left at the end."""
    from concurrent.futures import ThreadPoolExecutor

    def work(number: int) -> None:
        for turn in range(4):
            (opener.close if (number + turn) % 3 == 0 else opener.open)(guard.NBD, lock_timeout=60)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    opener.open(guard.NBD)
    assert are_all(opener.shown(guard.NBD), 1) and opener.close(guard.NBD).changed and opener.is_gone()


# -- modules -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_module_closes_points_of_a_share_that_is_gone(opener: Opener) -> None:
    """However its directory is spelt. Points of another share stay."""
    opener.open(guard.NBD)
    path, where = opener.store.path, {"volume": "vol", "state": "closed", "run_dir": opener.directory.path}
    path.rename(path.with_name("elsewhere"))
    assert not call("remotefs_access", {**where, "share": [f"{path.parent}/other"]})["changed"]
    closed = call("remotefs_access", {**where, "share": [f"{path.parent}//./{path.name}/"]})
    assert closed["changed"] and closed["closed"][0]["nbd"] == opener.at(guard.NBD) and opener.is_gone()


@pytest.mark.slow
def test_the_module(opener: Opener) -> None:
    """What it returns, and what it refuses."""
    store = opener.store
    where = {"share": [str(store.path)], "volume": "vol", "run_dir": opener.directory.path}
    told = call("remotefs_access", {**where, "snapshot": "s1", "nbd": opener.at(guard.NBD), "ttl": "2m", "_ansible_diff": True})
    assert told["changed"] and told["access"]["uri"] == f"nbd+unix:///vol%40s1?socket={opener.at(guard.NBD)}" and told["diff"]["before"] == {}
    again = call("remotefs_access", {**where, "snapshot": "s1", "nbd": opener.at(guard.NBD), "ttl": "2m", "_ansible_check_mode": True})
    assert not again["changed"] and again["renewed"] and again["access"]["pid"] == told["access"]["pid"]
    for given, code in (
        ({"nbd": "/x", "path": "/y"}, "invalid_parameter"),
        ({}, "invalid_parameter"),
        ({"nbd": opener.at(guard.NBD, "b"), "ttl": "0"}, "invalid_parameter"),
        ({"nbd": opener.at(guard.NBD, "b"), "snapshot": "s1", "ttl": "999999999999w"}, "invalid_parameter"),
        ({"nbd": opener.at(guard.NBD, "b"), "snapshot": "none"}, "snapshot_not_found"),
        ({"nbd": opener.at(guard.NBD, "b"), "volume": "none"}, "volume_not_found"),
        ({"nbd": opener.at(guard.NBD, "b"), "volume": "vol*"}, "invalid_name"),
        ({"state": "closed", "share": None}, "invalid_parameter"),
    ):
        failed = call("remotefs_access", {key: value for key, value in {**where, **given}.items() if value is not None})
        assert failed["failed"] and failed["error_code"] == code, failed
    closed = call("remotefs_access", {**where, "state": "closed", "_ansible_diff": True})
    assert closed["changed"] and closed["closed"][0]["nbd"] == opener.at(guard.NBD) and closed["diff"]["after"] == {"opened": []}
    assert not call("remotefs_access", {**where, "state": "closed"})["changed"] and opener.is_gone()


@pytest.mark.slow
def test_check_mode_before_the_first_run(opener: Opener) -> None:
    """What an earlier task of the playbook would make is taken for granted."""
    given = {"share": [str(opener.store.path)], "run_dir": opener.directory.path, "nbd": opener.at(guard.NBD), "_ansible_check_mode": True}
    for named in ({"volume": "new", "snapshot": "s1"}, {"volume": "vol", "snapshot": "new"}):
        told = call("remotefs_access", {**given, **named})
        assert told["changed"] and told["access"]["pid"] is None and told["warnings"], told
    assert opener.is_gone()


@pytest.mark.slow
@pytest.mark.root
def test_the_documentation(store: Store, sockets: Path, checkout: Path, ansible_environment: dict) -> None:
    """The examples of the module and the playbook of docs/restore.md run as they stand, on a disk with a file system. Check mode foretells them."""
    (sockets / "tree" / "etc").mkdir(parents=True)
    (sockets / "tree" / "etc" / "fstab").write_text("as it was\n")
    store.present("db01", size=16 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(sockets / "tree"), store.info("db01")["path"]], check=True)
    for name in ("tuesday", "monday"):
        store.snapshot(name, "db01")
    single = blocks((checkout / "docs" / "restore.md").read_text())[-1]
    book = [{"hosts": "localhost", "tasks": examples("remotefs_access")}, *single]
    defaults = {"module_defaults": {"remotefs.storage.remotefs_access": {"run_dir": str(sockets / "records")}}, "gather_facts": False}
    places = {"/run/": f"{sockets}/", "/root/": f"{sockets}/", "/var/tmp/": f"{sockets}/", "nas1:/vols": str(store.path), "hypervisor": "localhost"}
    ready = json.loads(replaced(json.dumps([{**one, **defaults} for one in book]), places))
    try:
        play(ready, sockets, ansible_environment)
        assert (sockets / "fstab.tuesday").read_text() == "as it was\n" and (sockets / "db01.qcow2").exists()
        assert not (sockets / "db01.img").exists() and not (sockets / "db01.nbd").exists()
        with (sockets / "db01-monday.img").open("rb") as shown:
            assert len(shown.read()) == 16 * MIB
        assert "changed=0" in play(ready[1:], sockets, ansible_environment, "--check", "--diff")
    finally:
        directory = AccessDirectory(str(sockets / "records"))
        for name in directory.names():
            record = directory.read(name)
            assert record is not None
            holder.end(directory, record.target, record)
    assert directory.names() == [] and not (sockets / "db01-monday.img").exists()
