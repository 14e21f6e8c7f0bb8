# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A task loses its lock at every point at which it asks whether it still has it; somebody else does a whole task there.

From that point on the first task must change nothing, not even clean up; the other's work must stand, and what the first one
had begun must be finished or undone. For every operation, every way to lose a lock, and every such point. And no change goes
without the question.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import command
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import moving, qemu_img
from ansible_collections.remotefs.storage.plugins.module_utils.errors import LockTimeout
from ansible_collections.remotefs.storage.plugins.module_utils.operations import groups, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.locking import Locks
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import in_use

from .test_kills import BARE, MIB, OPERATIONS, _chain
from .world import World, read_content

OFD_SETLK = 37


def by_a_server(locks: Locks) -> None:
    """The server gives the lock of a client that it believes to be dead to another one."""
    for lock in locks._locks:
        fcntl.fcntl(lock.descriptors[0], OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def by_hand(locks: Locks) -> None:
    """Somebody removes the lock files."""
    for path in {share.path for share, _name in locks._names}:
        for file in Path(path, ".remotefs", "locks").iterdir():
            file.unlink()


def by_breaking(_locks: Locks) -> None:
    """The other task says ``break_lock: true``: it is a lease."""


LOSSES: dict[str, Callable[[Locks], None]] = {"lock taken away": by_a_server, "lock file removed": by_hand, "lease broken": by_breaking}
CREATIONS: dict[str, Callable[[World], object]] = {
    "create": lambda w: volumes.ensure_present(updating.VolumeRequest(w.candidates, DesiredVolume("copy", size=4 * MIB)), w.options()),
    "create qcow2": lambda w: volumes.ensure_present(
        updating.VolumeRequest(w.candidates, DesiredVolume("copy", size=4 * MIB, format="qcow2", preallocation="metadata")), w.options()
    ),
    "full clone": lambda w: volumes.ensure_present(
        updating.VolumeRequest(w.candidates, DesiredVolume("copy", size=4 * MIB), updating.SourceRequest("vol", "s2")), w.options()
    ),
    "linked clone": lambda w: volumes.ensure_present(
        updating.VolumeRequest(w.candidates, DesiredVolume("copy", size=4 * MIB), updating.SourceRequest("vol", "s2", True)), w.options()
    ),
    "flatten": lambda w: volumes.ensure_present(updating.VolumeRequest(w.candidates, DesiredVolume("copy", flatten=True)), w.options()),
}


def _prepared(share: Path, scratch: Path, name: str) -> World:
    world = _chain(share, scratch)
    if name == "flatten":
        CREATIONS["linked clone"](world)
    return world


class Fenced(World):
    """A world in which tasks may break leases and vouch that nobody has an image open."""

    def options(self, check: bool = False) -> Options:
        return replace(super().options(check), assume_unused=True)


class Point:
    """Runs an action at the n-th question of the task under test, and what the share looked like right after it."""

    def __init__(self, number: int, action: Callable[[Locks], None], share: Path) -> None:
        self.left, self.action, self.share = number, action, share
        self.seen: dict | None = None

    def __call__(self, locks: Locks) -> None:
        self.left -= 1
        if self.left == 0:
            self.action(locks)
            self.seen = fingerprint(self.share)


def fingerprint(share: Path) -> dict:
    """Everything but leases: one that stands when the other is done is the first task's own, and it may give that back."""
    files = [path for path in share.rglob("*") if path.is_file() and path.suffix != ".lease"]
    return {str(path): (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: Callable, other: Callable, loss: Callable, name: str = ""
) -> Iterator[World]:
    """Yield a world for each point at which ``operation`` (``name`` says which) lost its lock to ``other``."""
    points: list[Point] = []
    real = Locks.verify

    def asked(locks: Locks, name: str) -> None:
        if points:
            point = points.pop()
            point(locks)
            if point.seen is None:
                points.append(point)
        real(locks, name)

    monkeypatch.setattr(Locks, "verify", asked)
    # Whoever loses a lock to a partition has lost QEMU's byte locks as well: the fence is all that is left.
    monkeypatch.setattr(in_use, "hold", lambda fd, file, label: None)
    (tmp_path / "prepared").mkdir()
    (tmp_path / "scratch").mkdir()
    prepared = _prepared(tmp_path / "prepared", tmp_path / "scratch", name)
    for number in range(1, 200):
        world = fresh(prepared, tmp_path / "share", leases=loss is by_breaking)

        def strike(locks: Locks, here: World = world) -> None:
            loss(locks)
            other(here)

        point = Point(number, strike, world.share)
        points[:] = [point]
        try:
            operation(world)
        except LockTimeout as error:
            assert "it was lost to " in str(error), error
            assert point.seen is not None and fingerprint(world.share) == point.seen, f"it went on after it had lost its lock at {number}"
            yield world
            continue
        assert point.left > 0, f"it did not notice at point {number} that it had lost its lock"
        return
    raise AssertionError("the operation never got through")


def fresh(prepared: World, share: Path, leases: bool) -> World:
    shutil.rmtree(share, ignore_errors=True)
    shutil.copytree(prepared.share, share)
    world = Fenced.__new__(Fenced)
    (known,) = prepared.candidates.shares
    known = known._replace(source=str(share), path=str(share), locks_visible=not leases)
    world.__dict__.update(
        vars(prepared),
        share=share,
        candidates=Candidates((known,)),
        active=bytearray(prepared.active),
        points=dict(prepared.points),
    )
    return world


def breaking(world: World) -> Options:
    return replace(world.options(), break_lock=True)


def grow(world: World) -> None:
    done = volumes.ensure_present(updating.VolumeRequest(world.candidates, DesiredVolume("vol", size=6 * MIB)), breaking(world))
    assert done.changed
    world.active.extend(bytes(6 * MIB - len(world.active)))


def snapshot(world: World) -> None:
    """Another snapshot; its size tells whether a growth that it met was finished or undone before."""
    done = snapshots.take(snapshots.SnapshotRequest(world.candidates, "vol", DesiredSnapshot("other")), breaking(world))
    assert done.changed
    world.points["other"] = bytes(world.active.ljust(done.after["size"], b"\0"))


def in_their_order(world: World) -> None:
    """Which of two snapshots came first depends on where the lock was lost; their contents do not."""
    order = [one["name"] for one in world.volume()["snapshots"]]
    assert set(order) == set(world.points)
    world.points = {name: world.points[name] for name in order}


_IN_FAST_RUNS = (("snapshot", "lock taken away"), ("delete middle", "lock taken away"), ("snapshot", "lease broken"))
_CASES = [
    pytest.param(name, loss, marks=() if (name, loss) in _IN_FAST_RUNS else pytest.mark.slow) for name in OPERATIONS for loss in LOSSES
]


@pytest.mark.parametrize(("name", "loss"), _CASES)
def test_lost_at_every_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, loss: str) -> None:
    assert lose_at_every_point(tmp_path, monkeypatch, name, loss) > 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["delete oldest", "delete middle"])
def test_lost_while_data_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, loss: str) -> None:
    """Much data is moved part by part, and each could be one too many."""
    monkeypatch.setattr(moving, "_FENCED", 16 << 10)
    assert lose_at_every_point(tmp_path, monkeypatch, name, loss) > 18  # 14 otherwise


def lose_at_every_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, loss: str) -> int:
    """Returns how many there are."""
    other = grow if name.startswith("revert") else snapshot
    count = 0
    for count, world in enumerate(taken_over(tmp_path, monkeypatch, BARE[name], other, LOSSES[loss]), 1):
        try:
            OPERATIONS[name](world)  # the user runs the task again, as the message says
            in_their_order(world)
            world.check()
        except (AssertionError, Exception) as error:
            raise AssertionError(f"lock lost at point {count} of '{name}': {error}") from error
    return count


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CREATIONS)
def test_lost_while_creating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, loss: str) -> None:
    """The other task creates the same volume."""

    def same(world: World) -> None:
        plain = world.options
        world.options = lambda check=False: replace(plain(check), break_lock=True)  # type: ignore[method-assign]
        assert CREATIONS[name](world).changed
        world.options = plain  # type: ignore[method-assign]

    expected = None if name.startswith("create") else "s2"
    count = 0
    for count, world in enumerate(taken_over(tmp_path, monkeypatch, CREATIONS[name], same, LOSSES[loss], name), 1):
        done = CREATIONS[name](world)
        assert not done.changed and not done.recovered, f"lock lost at point {count}"
        content = read_content(str(world.share / "copy"), done.after["format"], world.scratch)
        assert content == (world.points[expected] if expected else b"").ljust(4 * MIB, b"\0")
        assert not list((world.share / ".remotefs" / "tmp").iterdir())
    assert count > 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_lost_while_deleting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    """The other task removes the volume and makes a new one of its name, which the first one must not remove."""

    def absent(world: World, **changes) -> object:
        return volumes.ensure_absent(world.candidates, "vol", True, replace(world.options(), **changes))

    def anew(world: World) -> None:
        absent(world, break_lock=True)
        request = updating.VolumeRequest(world.candidates, DesiredVolume("vol", size=MIB))
        assert volumes.ensure_present(request, breaking(world)).changed

    count = 0
    for count, world in enumerate(taken_over(tmp_path, monkeypatch, absent, anew, LOSSES[loss]), 1):
        world.active, world.points = bytearray(MIB), {}
        try:
            world.check()
        except (AssertionError, Exception) as error:
            raise AssertionError(f"lock lost at point {count}: {error}") from error
    assert count > 1


# -- the question comes before every change --------------------------------------------------------------------------


class Watch:
    """Wraps what changes a share, and lists the changes that no question came right before.

    Several writes to one opened file count as one change: between them a header is half written anyway. What takes long (an
    fsync, another program) makes an answer too old.
    """

    BY_NAME = ("rename", "link", "unlink")
    BY_DESCRIPTOR = ("pwrite", "ftruncate", "fchmod", "fchown")
    BY_SECOND_DESCRIPTOR = ("copy_file_range",)

    def __init__(self, share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.share = str(share.resolve())
        self.may: object = None  # what was asked for: True for the next change, or the file that is being changed
        self.changes, self.unasked = 0, []
        asked = Locks.verify
        monkeypatch.setattr(Locks, "verify", lambda locks, name: (asked(locks, name), setattr(self, "may", True))[0])
        for name in self.BY_NAME:
            monkeypatch.setattr(os, name, self._watched(getattr(os, name), self._named))
        for name in self.BY_DESCRIPTOR:
            monkeypatch.setattr(os, name, self._watched(getattr(os, name), self._opened))
        for name in self.BY_SECOND_DESCRIPTOR:
            monkeypatch.setattr(os, name, self._watched(getattr(os, name), lambda _source, target, *rest: self._opened(target)))
        monkeypatch.setattr(os, "fsync", self._long(os.fsync))
        monkeypatch.setattr(qemu_img, "_program", self._long(qemu_img._program))
        monkeypatch.setattr(command, "run", self._watched(command.run, lambda _argv, **_rest: "qemu-img"))

    def _watched(self, function: Callable, touches: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            what = touches(*args, **kwargs)
            if what:
                self.changes += 1
                if self.may is not True and self.may != what:
                    self.unasked.append((function.__name__, what))
                self.may = what if "/" in what else None
            return function(*args, **kwargs)

        return wrapper

    def _long(self, function: Callable) -> Callable:
        def wrapper(*args):
            self.may = None if self.may is True else self.may
            return function(*args)

        return wrapper

    def _named(self, name: str, target: str = "", **directories: int) -> str:
        descriptor = directories.get("dst_dir_fd", directories.get("dir_fd"))
        directory = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor is not None else ""
        return target or name if directory.startswith(self.share) and not directory.endswith("/locks") else ""

    def _opened(self, descriptor: int, *_rest: object) -> str:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return path if path.startswith(self.share) and os.path.dirname(path) == self.share else ""


OTHERS: dict[str, Callable[[World], object]] = {
    **CREATIONS,
    "attributes": lambda w: volumes.ensure_present(updating.VolumeRequest(w.candidates, DesiredVolume("vol", mode=0o600)), w.options()),
    "group": lambda w: groups.take_group(w.candidates, ["vol", "vol2"], DesiredSnapshot("both"), w.options()),
    "remove": lambda w: volumes.ensure_absent(w.candidates, "vol", True, w.options()),
}


@pytest.mark.parametrize("name", [*BARE, *OTHERS])
def test_asked_before_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "scratch").mkdir()
    world = _prepared(tmp_path / "share", tmp_path / "scratch", name)
    volumes.ensure_present(updating.VolumeRequest(world.candidates, DesiredVolume("vol2", size=MIB)), world.options())
    qemu_img._program()  # from now on it starts no program to ask for its version
    watch = Watch(world.share, monkeypatch)
    {**BARE, **OTHERS}[name](world)
    assert watch.changes and not watch.unasked
