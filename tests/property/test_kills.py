# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL before every changing system call of an operation, then the same task again: nothing may be lost.

A forked child runs the operation and kills itself before its n-th write, rename, link, unlink, truncate or fsync, or before
it starts its n-th program; n runs until the child gets through. After each kill the task runs again, first in check mode,
which must predict the recovery, and all contents are compared with the model.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Callable

import pytest
from engines import leave_to_qemu_img

from ansible_collections.remotefs.storage.plugins.module_utils import command
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img
from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import groups, reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .world import World, candidates

MIB = 1 << 20
_CHANGING = ("pwrite", "copy_file_range", "fsync", "rename", "link", "unlink", "ftruncate", "mkdir")


def _chain(share: Path, scratch: Path) -> World:
    """Base and four snapshots with content in each layer, the volume grown on the way."""
    world = World(share, scratch, "raw", 2 * MIB)
    for number in range(1, 5):
        world.write(number * 128 * 1024, 256 * 1024, number)
        world.snapshot()
        if number == 2:
            world.grow(3 * MIB)
    world.write(MIB, 64 * 1024, 99)
    return world


Operation = Callable[[World], None]
OPERATIONS: dict[str, Operation] = {
    "snapshot": lambda world: world.snapshot_named("new"),
    "delete oldest": lambda world: world.delete(["s1"]),
    "delete middle": lambda world: world.delete(["s3"]),
    "delete newest": lambda world: world.delete(["s4"]),
    "delete several": lambda world: world.delete(["s1", "s3", "s4"]),
    "delete all": lambda world: world.delete(["s1", "s2", "s3", "s4"]),
    "revert": lambda world: world.revert("s4"),
    "revert and discard": lambda world: world.revert("s2"),
    "grow": lambda world: world.grow(5 * MIB),
}
# The same without the comparisons that World makes: what the child does until it is killed.
BARE = {
    "snapshot": lambda w: snapshots.take(snapshots.SnapshotRequest(w.candidates, "vol", DesiredSnapshot("new")), w.options()),
    "delete oldest": lambda w: snapshots.delete(w.candidates, "vol", ["s1"], w.options()),
    "delete middle": lambda w: snapshots.delete(w.candidates, "vol", ["s3"], w.options()),
    "delete newest": lambda w: snapshots.delete(w.candidates, "vol", ["s4"], w.options()),
    "delete several": lambda w: snapshots.delete(w.candidates, "vol", ["s1", "s3", "s4"], w.options()),
    "delete all": lambda w: snapshots.delete(w.candidates, "vol", ["s1", "s2", "s3", "s4"], w.options()),
    "revert": lambda w: snapshots.revert(w.candidates, "vol", "s4", True, w.options()),
    "revert and discard": lambda w: snapshots.revert(w.candidates, "vol", "s2", True, w.options()),
    "grow": lambda w: volumes.ensure_present(updating.VolumeRequest(w.candidates, DesiredVolume("vol", size=5 * MIB)), w.options()),
}


def run_until(operation: Callable[[], object], limit: int) -> bool:
    """Run it in a child that kills itself before its ``limit``-th change; whether it got through."""
    child = os.fork()
    if child == 0:
        try:
            _kill_before(limit)
            operation()
            os._exit(0)
        except BaseException as error:  # noqa: B036
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    _pid, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the operation failed instead of being killed"
    return os.WIFEXITED(status)


def _kill_before(limit: int) -> None:
    left = [limit]

    def counted(function: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    for name in _CHANGING:
        setattr(os, name, counted(getattr(os, name)))
    command.run = counted(command.run)


def states(tmp_path: Path, prepare: Callable[[Path, Path], World], operation: Callable[[World], object], most: int = 400):
    """Yield a fresh copy of the prepared world for every kill point of ``operation``, after the kill."""
    (tmp_path / "prepared").mkdir()
    (tmp_path / "scratch").mkdir()
    world = prepare(tmp_path / "prepared", tmp_path / "scratch")
    for limit in range(1, most):
        share = tmp_path / "share"
        shutil.rmtree(share, ignore_errors=True)
        shutil.copytree(tmp_path / "prepared", share)
        world_here = World.__new__(World)
        world_here.__dict__.update(
            vars(world), share=share, candidates=candidates(share), active=bytearray(world.active), points=dict(world.points)
        )
        done = run_until(lambda here=world_here: operation(here), limit)
        yield limit, world_here
        if done:
            return
    raise AssertionError("the operation never got through")


_IN_FAST_RUNS = ("snapshot", "delete middle")


@pytest.mark.parametrize("name", [name if name in _IN_FAST_RUNS else pytest.param(name, marks=pytest.mark.slow) for name in OPERATIONS])
def test_killed_at_every_change(tmp_path: Path, name: str) -> None:
    count = 0
    for limit, world in states(tmp_path, _chain, BARE[name]):
        try:
            _nothing_lost(world, name)
        except (AssertionError, Exception) as error:
            raise AssertionError(f"after a kill before change {limit} of '{name}': {error}") from error
        count = limit
    assert count > 5


def _nothing_lost(world: World, name: str) -> None:
    """Before anything is recovered the volume can be read; after the task ran again everything is as the model has it."""
    found = reading.list_volumes(world.candidates.shares[0], ["vol"])
    assert found and "error_code" not in found[0], found
    _run_again(world, name)
    world.check()


def _run_again(world: World, name: str) -> None:
    predicted = BARE[name](_checking(world))
    done = BARE[name](world)
    assert (predicted.changed, predicted.actions, predicted.recovered) == (done.changed, done.actions, done.recovered)
    again = BARE[name](world)
    assert not again.changed and not again.recovered
    _follow_in_model(world, name)


def _checking(world: World) -> World:
    other = World.__new__(World)
    other.__dict__.update(vars(world))
    other.options = lambda check=True: World.options(world, True)  # type: ignore[method-assign]
    return other


def _follow_in_model(world: World, name: str) -> None:
    if name == "snapshot":
        world.points["new"] = bytes(world.active)
    elif name == "grow":
        world.active.extend(bytes(5 * MIB - len(world.active)))
    elif name.startswith("revert"):
        point = "s4" if name == "revert" else "s2"
        for newer in list(world.points)[list(world.points).index(point) + 1 :]:
            del world.points[newer]
        world.active = bytearray(world.points[point].ljust(len(world.active), b"\0"))
    else:
        gone = {
            "delete oldest": ["s1"],
            "delete middle": ["s3"],
            "delete newest": ["s4"],
            "delete several": ["s1", "s3", "s4"],
            "delete all": list(world.points),
        }
        for point in gone[name]:
            del world.points[point]


@pytest.mark.slow
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_killed_while_creating_and_cloning(tmp_path: Path, image_format: str) -> None:
    desired = DesiredVolume("copy", format=image_format, size=4 * MIB)

    def clone(world: World):
        return volumes.ensure_present(updating.VolumeRequest(world.candidates, desired, updating.SourceRequest("vol", "s2")), world.options())

    for limit, world in states(tmp_path, _chain, clone):
        clone(world)
        assert not clone(world).changed, f"after a kill before change {limit}"
        world._compare("clone", str(world.share / "copy"), image_format, world.points["s2"].ljust(4 * MIB, b"\0"))
        (world.share / "copy").unlink()
        (world.share / ".remotefs" / "volumes" / "copy.json").unlink()
        world.check()


@pytest.mark.slow
def test_killed_while_deleting_the_volume(tmp_path: Path) -> None:
    def remove(world: World):
        return volumes.ensure_absent(world.candidates, "vol", True, world.options())

    for limit, world in states(tmp_path, _chain, remove):
        predicted = volumes.ensure_absent(world.candidates, "vol", True, world.options(check=True))
        done = remove(world)
        assert (predicted.changed, predicted.actions, predicted.recovered) == (done.changed, done.actions, done.recovered), (
            f"after a kill before change {limit}"
        )
        left = [path.name for path in world.share.rglob("*") if path.is_file() and path.parent.name != "ballast"]
        assert set(left) <= {"vol.lock"}, f"after a kill before change {limit}: {left}"
        assert not remove(world).changed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["snapshot", "delete several", "revert and discard"])
def test_a_volume_with_interrupted_work_can_be_removed_whole(tmp_path: Path, name: str) -> None:
    for limit, world in states(tmp_path, _chain, BARE[name]):
        predicted = volumes.ensure_absent(world.candidates, "vol", True, world.options(check=True))
        done = volumes.ensure_absent(world.candidates, "vol", True, world.options())
        assert (predicted.changed, predicted.actions, predicted.recovered) == (done.changed, done.actions, done.recovered), f"kill {limit}"
        left = [path.name for path in world.share.rglob("*") if path.is_file() and path.parent.name != "ballast"]
        assert not left, f"after a kill before change {limit}: {left}"


@pytest.mark.slow
def test_a_volume_made_anew_after_a_killed_deletion(tmp_path: Path) -> None:
    """What the deletion left is ended and told, as check mode foretold it, before the new volume is made."""

    def remove(world: World):
        return volumes.ensure_absent(world.candidates, "vol", True, world.options())

    def make(world: World, check: bool):
        request = updating.VolumeRequest(world.candidates, DesiredVolume("vol", size=MIB))
        return volumes.ensure_present(request, world.options(check))

    ended = 0
    for limit, world in states(tmp_path, _chain, remove):
        if _intact(world):
            continue  # killed before its intent was on record: the old volume is there, and larger than what is asked for
        predicted, done = make(world, True), make(world, False)
        assert (predicted.changed, predicted.actions, predicted.recovered) == (done.changed, done.actions, done.recovered), f"kill {limit}"
        ended += any(one["operation"] == "delete_volume" for one in done.recovered)
        assert done.after["size"] == MIB and not make(world, False).changed
    assert ended


def _intact(world: World) -> bool:
    found = reading.list_volumes(world.candidates.shares[0], ["vol"])
    return bool(found) and "error_code" not in found[0] and found[0]["pending"] is None


@pytest.mark.slow
def test_killed_while_taking_a_group(tmp_path: Path) -> None:
    """Whatever recovery does, the volumes of a group agree: all of them have the snapshot or none has."""

    def prepare(share: Path, scratch: Path) -> World:
        world = _chain(share, scratch)
        for name in ("a", "b", "c"):
            volumes.ensure_present(updating.VolumeRequest(world.candidates, DesiredVolume(name, size=MIB)), world.options())
        return world

    def take(world: World):
        return groups.take_group(world.candidates, ["a", "b", "c"], DesiredSnapshot("g"), world.options())

    for limit, world in states(tmp_path, prepare, take):
        for name in ("c", "a", "b"):  # each volume is recovered by a task of its own
            volumes.ensure_present(updating.VolumeRequest(world.candidates, DesiredVolume(name, size=2 * MIB)), world.options())
        having = [name for name in ("a", "b", "c") if _has_snapshot(world.candidates.shares[0], name)]
        assert having in ([], ["a", "b", "c"]), f"after a kill before change {limit}: {having}"
        if not having:
            take(world)


def _has_snapshot(share: Share, name: str) -> bool:
    (found,) = reading.list_volumes(share, [name])
    assert found["pending"] is None
    return any(snapshot["name"] == "g" for snapshot in found["snapshots"])


# -- inside qemu-img -------------------------------------------------------------------------------------------------

_INSIDE = "pwrite64,pwritev,fdatasync,ftruncate,fallocate"
_WRAPPER = """#!/bin/sh
case "$1" in --version) exec {program} "$@";; esac
exec strace -f -qq -o /dev/null -e trace={calls} -e inject={calls}:signal=KILL:when={limit} {program} "$@"
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="missing program: strace")
@pytest.mark.parametrize("name", ["delete oldest", "delete middle", "delete newest", "delete several", "delete all", "delete with pull"])
def test_qemu_img_killed_at_its_calls(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu-img alone dies before the n-th call of one of its threads; the task fails, and the next one finishes the work."""
    leave_to_qemu_img(monkeypatch.setattr)
    program = shutil.which("qemu-img")
    operation = BARE["delete middle" if name == "delete with pull" else name]
    killed = 0
    for limit in range(1, 60):
        (tmp_path / str(limit) / "scratch").mkdir(parents=True)
        (tmp_path / str(limit) / "share").mkdir()
        world = (_chain_that_pulls if name == "delete with pull" else _chain)(tmp_path / str(limit) / "share", tmp_path / str(limit) / "scratch")
        wrapper = tmp_path / str(limit) / "qemu-img"
        wrapper.write_text(_WRAPPER.format(program=program, calls=_INSIDE, limit=limit))
        wrapper.chmod(0o755)
        with monkeypatch.context() as patched:
            patched.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
            patched.setattr(qemu_img, "_version_checked", [])
            try:
                operation(world)
            except StorageError as error:
                assert error.error_code == "tool_failed"
                killed += 1
            else:
                assert killed
                return
        monkeypatch.setattr(qemu_img, "_version_checked", [])
        assert [one["outcome"] for one in operation(world).recovered] == ["finished"]
        _follow_in_model(world, "delete middle" if name == "delete with pull" else name)
        world.check(leaks=True)
    raise AssertionError("the operation never got through")


def _chain_that_pulls(share: Path, scratch: Path) -> World:
    """The overlay of s3 holds more than that of s2, so that deleting s3 pulls s2's into it."""
    world = World(share, scratch, "qcow2", 4 * MIB)
    world.snapshot()
    world.write(0, 128 * 1024, 1)
    world.snapshot()
    world.write(64 * 1024, 192 * 1024, 2)
    world.snapshot()
    world.write(MIB, 2 * MIB, 3)
    world.snapshot()
    world.write(0, 64 * 1024, 4)
    return world
