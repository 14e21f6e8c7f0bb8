# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each rule of docs/cinder.md, shown with Cinder's own code: what happens to those who keep it, and to those who do not."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Iterator

import pytest
from cinder import exception
from oslo_concurrency import processutils

from ansible_collections.remotefs.storage.plugins.module_utils.errors import HasDependents
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume

from .turns import PAGE, Turns, digest_of

BLOCK = 16 * PAGE


@pytest.fixture
def untold(directory: Path) -> Iterator[Turns]:
    """A raw volume, and a database that nobody keeps in line with what the collection does."""
    world = Turns(directory, qcow2=False, told=False)
    yield world
    world.close()


def test_snapshot_names_are_hexadecimal_digits_and_dashes(turns: Turns) -> None:
    turns.our_snapshot("2026-11-22")
    turns.cinder_snapshot()
    turns.check()
    turns.our_snapshot("nightly")
    turns.check()
    with pytest.raises(exception.RemoteFSInvalidBackingFile):
        turns.cinder_snapshot()
        turns.cinder.attached(turns.volume)


def test_a_name_that_is_taken_again(turns: Turns) -> None:
    """Its old file serves another snapshot meanwhile, so the new overlay gets a number, in a spelling that Cinder accepts."""
    turns.write(0, PAGE, 1)
    _first, again = turns.cinder_snapshot(), str(uuid.uuid4())
    turns.write(0, PAGE, 2)
    turns.cinder_snapshot(again)
    turns.write(0, 4 * BLOCK, 3)
    turns.cinder_snapshot()
    turns.our_delete([again])
    assert f"{turns.name}.{again}" in turns.files(), "this test wants the deleted snapshot's file to stay"
    turns.our_snapshot(again)
    assert turns.info()[again] != f"{turns.name}.{again}"
    turns.write(PAGE, PAGE, 4)
    turns.cinder_snapshot()
    turns.check()
    turns.cinder_delete(again)
    turns.check()
    turns.end(by_cinder=True)


def test_the_first_snapshot_is_for_cinder_or_the_database_must_be_told(untold: Turns) -> None:
    untold.write(0, BLOCK, 1)
    untold.our_snapshot()
    path, image_format = untold.cinder.attached(untold.volume)
    assert (path, image_format) == (untold.look()["path"], "raw"), "a virtual machine would be shown the overlay file itself"
    untold.cinder.told(untold.volume, 1, "qcow2", "raw")
    untold.check()


def test_the_last_snapshot_is_for_cinder_or_the_database_must_be_told(untold: Turns) -> None:
    untold.write(0, BLOCK, 1)
    untold.our_delete([untold.cinder_snapshot()])
    untold.check()
    with pytest.raises(processutils.ProcessExecutionError, match="not in qcow2 format"):
        untold.cinder_extend()
    untold.cinder_delete(untold.cinder_snapshot())
    untold.cinder_extend()
    untold.check()


def test_all_in_between_needs_no_telling(untold: Turns) -> None:
    kept = []
    for number in range(5):
        untold.write(number * BLOCK, BLOCK, number + 1)
        kept.append(untold.cinder_snapshot())
    untold.our_delete([kept[0], kept[2], kept[4]])
    untold.check()
    taken = untold.our_snapshot()
    untold.check()
    untold.our_revert(kept[3])
    untold.check()
    assert taken not in untold.points
    untold.our_copy(kept[1])
    untold.cinder_extend()
    untold.check()
    untold.cinder_delete(kept[1])
    untold.cinder_delete(kept[3])
    untold.check()
    assert untold.cinder.attached(untold.volume)[1] == "raw"


def test_cinder_does_not_delete_what_it_does_not_know(untold: Turns) -> None:
    untold.our_snapshot()
    untold.cinder.delete_volume(untold.volume)
    assert untold.files() == [untold.name], "what the snapshot stood on is left behind"


def test_the_size_must_be_told(untold: Turns) -> None:
    untold.our_extend()
    with pytest.raises(exception.InvalidVolume, match="virtual_size does not match"):
        untold.cinder.attached(untold.volume)
    untold.cinder.told(untold.volume, 2, "raw", "raw")
    untold.check()


def linked_clone(world: Turns, snapshot: str, flatten: bool = False) -> str:
    source = updating.SourceRequest(world.name, snapshot, linked=True)
    desired = DesiredVolume("clone", flatten=flatten)
    volumes.ensure_present(updating.VolumeRequest(world.candidates, desired, source), Options())
    return digest_of(str(world.share / "clone"), "qcow2")


def test_linked_clones_are_flattened_before_cinder_deletes_what_they_rest_on(turns: Turns) -> None:
    """Cinder merges into the file below without asking who else rests on it; the collection refuses."""
    turns.write(0, BLOCK, 1)
    name = turns.cinder_snapshot()
    turns.write(PAGE, BLOCK, 2)
    before = linked_clone(turns, name)
    with pytest.raises(HasDependents):
        snapshots.delete(turns.candidates, turns.name, [name], Options())
    turns.cinder_delete(name)
    assert digest_of(str(turns.share / "clone"), "qcow2") != before, "the clone shows what the volume has written since"


def test_a_flattened_clone_is_safe(turns: Turns) -> None:
    turns.write(0, BLOCK, 1)
    name = turns.cinder_snapshot()
    turns.write(PAGE, BLOCK, 2)
    before = linked_clone(turns, name)
    assert linked_clone(turns, name, flatten=True) == before
    turns.cinder_delete(name)
    assert digest_of(str(turns.share / "clone"), "qcow2") == before


def test_a_linked_clone_cannot_be_a_volume_of_cinders(turns: Turns) -> None:
    turns.write(0, BLOCK, 1)
    linked_clone(turns, turns.cinder_snapshot())
    other = turns.cinder.create_volume(1)
    (turns.share / "clone").replace(turns.share / other.name)
    other.admin_metadata["format"] = "qcow2"
    with pytest.raises(exception.RemoteFSInvalidBackingFile):
        turns.cinder.attached(other)
