# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``speed`` and ``timeout`` of work on files: nothing moves faster, and what ran out of time can be ended or was taken back; by content.

Only the least time is looked at: a busy machine may always be slower.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable

import pytest
from engines import leave_to_qemu_img

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.pace import OutOfTime
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume
from ansible_collections.remotefs.storage.tests.property.world import World, read_content

MIB = 1 << 20
SHORT = {"speed": MIB, "timeout": 0.4}  # the data of each test would take some seconds


@pytest.fixture(params=["plain", "left to qemu-img"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], World]:
    """Makes a volume with 4 MiB in its base, 3 in the overlay of ``s1`` and 3 others in that of ``s2``."""
    if request.param != "plain":
        leave_to_qemu_img(monkeypatch.setattr)

    def make(image_format: str) -> World:
        for name in ("share", "scratch"):
            (tmp_path / name).mkdir()
        made = World(tmp_path / "share", tmp_path / "scratch", image_format, 128 * MIB)
        made.write(0, 4 * MIB, 1)
        made.snapshot()
        made.write(2 * MIB, 3 * MIB, 2)
        made.snapshot()
        made.write(8 * MIB, 3 * MIB, 3)
        return made

    return make


def delete(world: World, name: str, **options: object) -> list[str]:
    """The names of the steps."""
    done = snapshots.delete(world.candidates, "vol", [name], Options(**options))  # type: ignore[arg-type]
    return [step["step"] for step in done.actions]


def files(world: World) -> set[str]:
    return {path.name for path in world.share.iterdir() if path.is_file()}


COMMITS = [("raw", "s1"), ("qcow2", "s2")]  # deletions that write into an older file


@pytest.mark.parametrize("image_format, name", COMMITS)
def test_a_deletion_keeps_to_its_speed(world: Callable[[str], World], image_format: str, name: str) -> None:
    made = world(image_format)
    began = time.monotonic()
    steps = delete(made, name, speed=4 * MIB)
    assert "commit" in steps and time.monotonic() - began > 0.4
    del made.points[name]
    made.check(leaks=True)


@pytest.mark.parametrize("image_format, name", COMMITS)
def test_a_commit_that_runs_out_of_time_is_pending(world: Callable[[str], World], image_format: str, name: str) -> None:
    made = world(image_format)
    with pytest.raises(OutOfTime, match=f"did not move within 0.4 s, and the deletion of {name} is pending now .*longer timeout") as caught:
        delete(made, name, **SHORT)
    assert caught.value.error_code == "tool_failed"
    told = made.volume()
    assert told["pending"]["snapshots"] == [name] and [one["name"] for one in told["snapshots"]] == ["s1", "s2"]
    with pytest.raises(OutOfTime, match="is pending now"):  # the next one has no more time
        delete(made, name, **SHORT)
    delete(made, name)
    del made.points[name]
    assert made.volume()["pending"] is None
    made.check(leaks=True)


def test_a_pull_that_runs_out_of_time_leaves_nothing(world: Callable[[str], World]) -> None:
    """qemu-img is stopped while it works, not before. On a busy machine it may have ended when it is first looked at; then once more."""
    made = world("qcow2")
    for _attempt in range(5):
        name = pulled_at_once(made)
        if name is None:
            break
        del made.points[name]
    else:
        pytest.fail("the pull always ended in time")
    made.check(leaks=True)
    oldest = next(iter(made.points))
    made.write(MIB, 4 * MIB, 4)
    assert "pull" in delete(made, oldest)
    del made.points[oldest]
    made.check(leaks=True)


def pulled_at_once(made: World) -> str | None:
    """Have the oldest snapshot pulled, with more data than there is time for. Its name if that ended all the same, else None."""
    made.write(48 * MIB, 64 * MIB, 5)
    made.snapshot()
    made.write(48 * MIB, 68 * MIB, 6)
    oldest, before = next(iter(made.points)), files(made)
    try:
        steps = delete(made, oldest, **SHORT)
    except OutOfTime as error:
        assert "did not move within 0.4 s; run the task again with a longer timeout" in str(error)
        assert made.volume()["pending"] is None and files(made) == before
        return None
    assert "pull" in steps
    return oldest


@pytest.mark.parametrize("name", ["s1", "s2"])
def test_time_that_is_over_when_all_is_done(world: Callable[[str], World], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """qemu-img is stopped when it has done its work and has not ended yet: then the header does not lead where it led."""
    made = world("qcow2")
    for verb in ("commit", "rebase"):
        monkeypatch.setattr(qemu_img, verb, late(getattr(qemu_img, verb)))
    try:
        delete(made, name)
    except OutOfTime as error:
        assert "is pending now" in str(error)
        monkeypatch.undo()
        delete(made, name)
    del made.points[name]
    assert made.volume()["pending"] is None
    made.check(leaks=True)


def late(verb: Callable[..., None]) -> Callable[..., None]:
    def do(*words: object) -> None:
        verb(*words)
        raise OutOfTime("volume vol", "it was planted", "go on")

    return do


def test_what_gets_its_own_data_and_runs_out_of_time_stays_a_linked_clone(world: Callable[[str], World]) -> None:
    made = world("raw")
    link = updating.SourceRequest("vol", "s1", linked=True)
    volumes.ensure_present(updating.VolumeRequest(made.candidates, DesiredVolume("own"), link), Options())
    desired = updating.VolumeRequest(made.candidates, DesiredVolume("own", flatten=True))
    with pytest.raises(OutOfTime):
        volumes.ensure_present(desired, Options(**SHORT))  # type: ignore[arg-type]
    (own,) = reading.list_volumes(made.candidates.shares[0], ["own"])
    assert own["pending"] is None and own["parent"]["volume"] == "vol"
    assert read_content(own["path"], own["format"], made.scratch) == made.points["s1"]
    volumes.ensure_present(desired, Options())
    (own,) = reading.list_volumes(made.candidates.shares[0], ["own"])
    assert own["parent"] is None and read_content(own["path"], own["format"], made.scratch) == made.points["s1"]


def test_a_full_clone_that_runs_out_of_time_leaves_nothing(world: Callable[[str], World]) -> None:
    made = world("qcow2")
    before = files(made)
    request = updating.VolumeRequest(made.candidates, DesiredVolume("copy"), updating.SourceRequest("vol", "s1"))
    with pytest.raises(OutOfTime):
        volumes.ensure_present(request, Options(**SHORT))  # type: ignore[arg-type]
    made.check()
    assert files(made) == before and not list((made.share / ".remotefs" / "volumes").glob("copy*"))
    volumes.ensure_present(request, Options(speed=40 * MIB))
    (copy,) = reading.list_volumes(made.candidates.shares[0], ["copy"])
    assert read_content(copy["path"], copy["format"], made.scratch) == made.points["s1"]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_reserved_space_that_takes_too_long(world: Callable[[str], World], image_format: str) -> None:
    made = world("raw")
    before = files(made)
    request = updating.VolumeRequest(made.candidates, DesiredVolume("wide", size=256 * MIB, format=image_format, preallocation="full"))
    with pytest.raises(OutOfTime):
        volumes.ensure_present(request, Options(**SHORT))  # type: ignore[arg-type]
    assert files(made) == before
