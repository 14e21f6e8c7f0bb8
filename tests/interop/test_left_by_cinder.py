# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Cinder leaves on a share, made by its own code: the collection adopts it, works on it, and Cinder goes on with it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from unittest import mock

import pytest
from cinder.volume.drivers import remotefs

from ansible_collections.remotefs.storage.plugins.module_utils.errors import ChainBroken
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading

from .cinder_driver import CinderSnapshot
from .turns import PAGE, Turns

BLOCK = 16 * PAGE


class Killed(BaseException):
    """Where Cinder's process ends."""


class Nova:
    """Does to the files what Nova has QEMU do when Cinder deletes a snapshot of an attached volume."""

    def __init__(self, world: Turns) -> None:
        self.world = world

    def delete_volume_snapshot(self, _context: object, _snapshot: str, told: dict) -> None:
        share = self.world.share
        if told["merge_target_file"] is None:
            active = share / self.world.info()["active"]
            below = told["file_to_merge"]
            image_format = self.world.base_format if below == self.world.name else "qcow2"
            onto = ["-b", below, "-F", image_format] if below else ["-b", ""]
            subprocess.run(["qemu-img", "rebase", "-q", "-f", "qcow2", *onto, str(active)], check=True)
            return
        raise AssertionError("these tests delete the newest snapshot only")


def delete_while_attached(world: Turns, name: str) -> None:
    """The driver's own deletion of a snapshot of a volume that a virtual machine has open."""
    driver, volume = world.cinder.driver, world.volume
    done = mock.Mock(snapshot_get=lambda _context, _id: {"status": "deleting", "progress": "90%"})
    with mock.patch.object(driver, "_nova", Nova(world)), mock.patch.object(remotefs, "db", done):
        volume.attach_status = "attached"
        driver.delete_snapshot(CinderSnapshot(volume, name))
    volume.attach_status = "detached"
    del world.points[name]


def three_snapshots(world: Turns) -> list[str]:
    """A chain in which every layer holds something of its own and something of its neighbours'."""
    names = []
    for number in range(3):
        world.write(number * BLOCK, 2 * BLOCK, number + 1)
        names.append(world.cinder_snapshot())
    world.write(3 * BLOCK, 2 * BLOCK, 9)
    world.check()
    return names


def work_in_turns(world: Turns) -> None:
    """Both sides do all they can, and both show the right contents after each turn."""
    for turn in (world.our_snapshot, world.cinder_snapshot, world.cinder_extend, world.our_extend, world.cinder_snapshot):
        turn()
        world.check()
        world.write(PAGE * len(world.points), BLOCK, 20 + len(world.points))
    names = list(world.points)
    world.cinder_delete(names[-2])
    world.check()
    world.our_revert(names[-1])
    world.check()
    world.our_copy(names[0])
    world.end(by_cinder=True)


def test_names_that_drifted(turns: Turns) -> None:
    first, second, third = three_snapshots(turns)
    delete_while_attached(turns, third)
    assert turns.info()[second] == f"{turns.name}.{third}", "Cinder kept the name of the deleted snapshot's file"
    turns.check()
    work_in_turns(turns)


def test_a_base_file_that_is_gone(turns: Turns) -> None:
    for name in reversed(three_snapshots(turns)):
        delete_while_attached(turns, name)
    assert turns.name not in turns.files() and list(turns.info()) == ["active"]
    turns.base_format = "qcow2"
    turns.check()
    turns.our_snapshot()
    turns.check()
    turns.write(0, BLOCK, 30)
    turns.cinder_snapshot()
    turns.our_extend()
    turns.check()
    turns.cinder_delete(list(turns.points)[0])
    turns.check()
    turns.end(by_cinder=False)


def test_a_base_file_that_our_merge_took_away(directory: Path) -> None:
    """Cinder preallocates the tables of an empty qcow2 volume, but not of one made from a snapshot or an image: there the
    base is the smaller file when much was written since, and goes."""
    world = Turns(directory, qcow2=True)
    world.write(0, BLOCK, 1)
    source, name = world.volume, world.cinder_snapshot()
    world.volume = world.cinder.from_snapshot(source, name)
    world.cinder.delete_snapshot(source, name)
    world.cinder.delete_volume(source)
    world.points.clear()
    world.check()
    gone = world.cinder_snapshot()
    world.write(PAGE, 20 * BLOCK, 2)
    kept = world.cinder_snapshot()
    world.write(0, PAGE, 3)
    world.our_delete([gone])
    assert world.name not in world.files(), "this test wants the base file to go"
    world.check()
    world.cinder_copy(kept)
    world.cinder_copy(None)
    world.check()
    work_in_turns(world)
    world.close()


def test_info_left_behind(turns: Turns) -> None:
    for name in three_snapshots(turns):
        turns.cinder_delete(name)
    assert turns.info() == {"active": turns.name}
    turns.adopt()
    turns.check()
    work_in_turns(turns)


def test_a_snapshot_that_we_deleted_is_gone_for_cinder_too(turns: Turns) -> None:
    """Cinder's database still has it: asking Cinder to delete it changes nothing on the share and succeeds."""
    _first, second, third = three_snapshots(turns)
    turns.our_delete([second, third])
    before = [(path.name, path.stat().st_mtime_ns) for path in sorted(turns.share.iterdir())]
    turns.cinder.delete_snapshot(turns.volume, second)
    turns.cinder.delete_snapshot(turns.volume, third)
    assert before == [(path.name, path.stat().st_mtime_ns) for path in sorted(turns.share.iterdir())]
    turns.check()


def test_absolute_backing_names_are_healed(turns: Turns) -> None:
    first, _second, _third = three_snapshots(turns)
    for image in turns.look()["chain"][:2]:
        below = turns.base_format if image["backing_file"] == turns.name else "qcow2"
        path = str(turns.share / image["backing_file"])
        subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", below, "-b", path, str(turns.share / image["file"])], check=True)
    turns.our_delete([first])
    turns.check()
    for image in turns.look()["chain"][:-1]:
        shown = subprocess.run(
            ["qemu-img", "info", "--output=json", "-f", "qcow2", str(turns.share / image["file"])], check=True, capture_output=True
        )
        assert json.loads(shown.stdout)["backing-filename"] == image["backing_file"]
    work_in_turns(turns)


# -- Cinder's process ends in the middle ---------------------------------------------------------------------------------


def killed_while_writing_info(world: Turns, letters: int) -> None:
    """Cinder takes a snapshot and ends when so many letters of ``.info``, which it writes in place, are written."""

    def dump(content: dict, file, **options) -> None:
        file.write(json.dumps(content, **options)[:letters])
        raise Killed

    with mock.patch.object(remotefs.json, "dump", dump), pytest.raises(Killed):
        world.cinder_snapshot()


def refused_or_right(world: Turns) -> None:
    """Either the volume says what is wrong with it and every task refuses to touch it, or all that is shown is right."""
    (found,) = [one for one in reading.list_volumes(world.candidates.shares[0], []) if one["name"] == world.name]
    if "error_code" not in found:
        world.check()
        return
    assert found["error_code"] == "chain_broken" and world.name in found["msg"]
    before = {path.name: path.stat().st_mtime_ns for path in world.share.iterdir() if path.is_file()}
    for task in (world.our_snapshot, world.our_extend, lambda: world.our_delete(list(world.points)[:1])):
        with pytest.raises(ChainBroken):
            task()
    assert before == {path.name: path.stat().st_mtime_ns for path in world.share.iterdir() if path.is_file()}


@pytest.mark.parametrize("letters", [0, 1, 40, 150])
def test_a_torn_info(turns: Turns, letters: int) -> None:
    three_snapshots(turns)
    killed_while_writing_info(turns, letters)
    refused_or_right(turns)


@pytest.mark.parametrize("letters", [0, 40])
def test_a_torn_first_info(turns: Turns, letters: int) -> None:
    turns.write(0, BLOCK, 1)
    killed_while_writing_info(turns, letters)
    refused_or_right(turns)


def test_an_info_that_is_gone(turns: Turns) -> None:
    """Cinder never removes it while there are snapshots; a restored share or a person may."""
    three_snapshots(turns)
    (turns.share / f"{turns.name}.info").unlink()
    refused_or_right(turns)


@pytest.mark.parametrize("left", [None, 0, 77])
def test_an_info_that_is_lost_after_cinders_turn(turns: Turns, left: int | None) -> None:
    """Our record knows the chain as it was before Cinder's turn: nothing is rebuilt from that."""
    _first, second, _third = three_snapshots(turns)
    turns.adopt()
    turns.cinder_delete(second)
    turns.cinder_snapshot()
    turns.write(0, BLOCK, 44)
    info = turns.share / f"{turns.name}.info"
    if left is None:
        info.unlink()
    else:
        info.write_bytes(info.read_bytes()[:left])
    refused_or_right(turns)


@pytest.mark.parametrize("left", [None, 0, 77])
def test_an_info_that_is_lost_after_our_turn(turns: Turns, left: int | None) -> None:
    first, _second, _third = three_snapshots(turns)
    turns.our_delete([first])
    turns.write(0, BLOCK, 44)
    info = turns.share / f"{turns.name}.info"
    whole = info.read_bytes()
    if left is None:
        info.unlink()
    else:
        info.write_bytes(whole[:left])
    assert "error_code" not in [one for one in reading.list_volumes(turns.candidates.shares[0], []) if one["name"] == turns.name][0]
    turns.our_snapshot()
    turns.check()
    work_in_turns(turns)


def test_an_info_that_was_repaired_by_hand(turns: Turns) -> None:
    """docs/worst-day.md: the chain tells what ``.info`` must say."""
    three_snapshots(turns)
    whole = (turns.share / f"{turns.name}.info").read_text()
    (turns.share / f"{turns.name}.info").write_text(whole[:77])
    refused_or_right(turns)
    (turns.share / f"{turns.name}.info").write_text(whole)
    turns.check()
    work_in_turns(turns)


@pytest.mark.parametrize("command", ["create", "rebase"])
def test_an_overlay_that_never_got_into_info(turns: Turns, command: str) -> None:
    """Killed after ``qemu-img create`` the overlay even names its backing file by its absolute path. It is nobody's: the
    volume is what it was before, and works on. Cinder's next try, or a person, takes it away."""
    first, _second, third = three_snapshots(turns)
    execute = turns.cinder.driver._execute

    def ended(*argv: str, **options: object) -> tuple:
        said = execute(*argv, **options)
        if argv[:2] == ("qemu-img", command):
            raise Killed
        return said

    with mock.patch.object(turns.cinder.driver, "_execute", ended), pytest.raises(Killed):
        turns.cinder_snapshot()
    (orphan,) = set(turns.files()) - {image["file"] for image in turns.look()["chain"]} - {turns.name + ".info"}
    turns.our_delete([first])
    (turns.share / orphan).unlink()
    turns.check()
    turns.our_delete([third])
    turns.check()


def test_a_file_that_cinder_removed_before_it_was_killed(turns: Turns) -> None:
    """Its deletion commits, removes and only then repoints: the chain has a hole, which is told and never papered over."""
    _first, second, _third = three_snapshots(turns)
    with mock.patch.object(turns.cinder.driver, "_rebase_img", side_effect=Killed), pytest.raises(Killed):
        turns.cinder_delete(second)
    (found,) = [one for one in reading.list_volumes(turns.candidates.shares[0], []) if one["name"] == turns.name]
    assert found["error_code"] == "chain_broken" and f"{turns.name}.{second} is missing" in found["msg"]
    refused_or_right(turns)
