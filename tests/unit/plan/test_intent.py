# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Intents survive their record, and recovery acts only on states that their plan can have left."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import NeedsRecovery
from ansible_collections.remotefs.storage.plugins.module_utils.model import Parent
from ansible_collections.remotefs.storage.plugins.module_utils.plan import clones, intent, planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.merge import delete_snapshots
from ansible_collections.remotefs.storage.plugins.module_utils.plan.steps import Pull, Repoint, Unlink, WriteInfo, WriteRecord

from .test_merge import volume

BEFORE = volume(8, 8, 8)  # v.s2 on v.s1 on v
INFO_BEFORE = (("s1", "v.s1"), ("s2", "v.s2"))
PLAN = delete_snapshots(BEFORE, ["s1"], {})
INODES = {"v": 1, "v.s1": 2, "v.s2": 3}
LENGTH = 65536


def recorded(plan, group: str | None = None) -> intent.Intent:
    return intent.of_plan(plan, "2026-01-01T00:00:00Z", {file: intent.Proof(INODES[file], LENGTH) for file in plan.before.own_files}, group)


INTENT = recorded(PLAN)


def found(files: dict | None = None, **changes) -> intent.ObservedState:
    """The share as it was before, with other ``files`` (None: gone) and other values of ``.info``."""
    present = {image.file: intent.ObservedFile(INODES[image.file], LENGTH, image.size, image.backing_file) for image in BEFORE.chain}
    for file, changed in (files or {}).items():
        if changed is None:
            del present[file]
        else:
            present[file] = replace(present.get(file, intent.ObservedFile(9, LENGTH, 8)), **changed)
    return replace(intent.ObservedState("v.s2", INFO_BEFORE, present), **changes)


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        planner.create_snapshot(BEFORE, planner.DesiredSnapshot("new")),
        planner.revert(BEFORE, "s1", True),
        planner.delete_volume(BEFORE, True),
        clones.flatten(replace(BEFORE, parent=Parent("p", "golden", "v")), {}),
    ],
)
def test_round_through_json(plan) -> None:
    written = recorded(plan, "g")
    read = intent.from_json("v", json.loads(json.dumps(written.to_json())))
    assert (read.operation, read.steps, read.proofs, read.before, read.group) == (
        written.operation,
        written.steps,
        written.proofs,
        replace(written.before, adopted=True, dependents=()),
        "g",
    )
    assert (read.after is None) == (plan.after is None)
    assert not read.after or read.after.parent == plan.after.parent


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"operation": "x"},
        {**INTENT.to_json(), "steps": [{"type": "Format"}]},
        {**INTENT.to_json(), "proofs": 5},
        {**INTENT.to_json(), "engine": ["offline"]},
        {**INTENT.to_json(), "engine": "e" * 41},
        {**INTENT.to_json(), "engine": "a\nb"},
        {**INTENT.to_json(), "engine": None},
        {**INTENT.to_json(), "group": "../../x"},
        {**INTENT.to_json(), "steps": [{"type": "Unlink", "file": "../x"}]},
        {**INTENT.to_json(), "before": {**INTENT.to_json()["before"], "chain": []}},
        {**INTENT.to_json(), "before": {**INTENT.to_json()["before"], "snapshots": [{"name": "s1", "file": "../x"}]}},
    ],
)
def test_what_cannot_be_understood(content: dict) -> None:
    with pytest.raises(NeedsRecovery):
        intent.from_json("v", content)


def test_what_info_shows_of_it() -> None:
    assert intent.summary(INTENT.to_json()) == {"operation": "delete_snapshot", "started": "2026-01-01T00:00:00Z", "snapshots": ["s1"]}
    assert intent.summary({"operation": "x"})["snapshots"] == []


def test_before_the_first_step_everything_is_done() -> None:
    assert intent.resume("v", BEFORE, INTENT, found()).plan.steps == PLAN.steps


def test_a_repointed_child_is_put_back_first() -> None:
    resumed = intent.resume("v", BEFORE, INTENT, found({"v.s2": {"backing_file": "v"}}))
    assert resumed.plan.steps == (Repoint("v.s2", "v.s1", "qcow2"), *PLAN.steps)


DONE = {"snapshots": (("s2", "v.s2"),)}


def test_after_the_info_only_the_end_is_left() -> None:
    resumed = intent.resume("v", BEFORE, INTENT, found({"v.s2": {"backing_file": "v"}}, **DONE))
    assert [type(step) for step in resumed.plan.steps] == [WriteInfo, Unlink]
    assert intent.resume("v", BEFORE, INTENT, found({"v.s2": {"backing_file": "v"}, "v.s1": None}, **DONE)).outcome == "finished"


@pytest.mark.parametrize(
    "state",
    [
        found(active="v.other"),  # somebody took a snapshot
        found(snapshots=(*INFO_BEFORE, ("s3", "v.s2"))),
        found(active=None, snapshots=()),  # .info is gone
        found({"v.s2": None}),
        found({"v": None}),
        found({"v.s2": {"backing_file": "elsewhere"}}),
        found({"v.s1": {"backing_file": None}}),
        found({"v": {"inode": 77}}),  # restored, or made anew under the old name
        found({"v.s2": {"inode": 77}}),
        found({"v.s2": {"size": 16}}),  # somebody grew the volume
        found({"v.s1": {"size": None}}),  # its header is not valid any more
        found({"v.s2": {"backing_file": "v.s1"}}, **DONE),  # the final .info, but not the chain that belongs to it
        found({"v.s2": {"backing_file": "v"}, "v.s1": {"length": LENGTH + 1}}, **DONE),  # somebody wrote into what is to go
    ],
    ids=range(13),
)
def test_a_share_that_somebody_changed_since_is_not_touched(state: intent.ObservedState) -> None:
    with pytest.raises(NeedsRecovery) as caught:
        intent.resume("v", BEFORE, INTENT, state)
    assert "expected" in str(caught.value) and "found" in str(caught.value)


def test_inodes_count_only_where_the_file_system_keeps_them() -> None:
    forgetful = replace(INTENT, proofs={file: intent.Proof(0, LENGTH) for file in INODES})
    assert intent.resume("v", BEFORE, forgetful, found({"v": {"inode": 77}})).plan.steps == PLAN.steps


def test_a_deleted_volume_whose_name_was_taken_anew_is_not_touched() -> None:
    written = recorded(planner.delete_volume(BEFORE, True))
    assert intent.resume("v", None, written, found({"v.s2": None})).outcome == "finished"
    with pytest.raises(NeedsRecovery):
        intent.resume("v", None, written, found({"v.s2": None, "v": {"inode": 77}}))


def test_an_overlay_that_was_replaced_is_not_replaced_again() -> None:
    """Somebody may have written to it between the crash and the recovery."""
    plan = planner.revert(BEFORE, "s1", True)
    resumed = intent.resume("v", BEFORE, recorded(plan), found({"v.s2": {"backing_file": "v", "inode": 50}}))
    assert [step.name for step in resumed.plan.steps] == ["write_info", "unlink"]


def test_a_snapshot_without_its_overlay_is_undone_and_with_it_finished() -> None:
    plan = planner.create_snapshot(BEFORE, planner.DesiredSnapshot("new"))
    published = found({"v.new": {"backing_file": "v.s2"}})
    assert intent.resume("v", BEFORE, recorded(plan), found()).outcome == "undone"
    assert intent.resume("v", BEFORE, recorded(plan), published).outcome == "finished"
    undone = intent.resume("v", BEFORE, recorded(plan, "g"), replace(published, decided=False))
    assert undone.outcome == "undone" and Unlink("v.new") in undone.plan.steps
    with pytest.raises(NeedsRecovery):
        intent.resume("v", BEFORE, recorded(plan), found({"v.new": {"backing_file": "somewhere"}}))
    with pytest.raises(NeedsRecovery):
        intent.resume("v", BEFORE, recorded(plan), replace(published, active="v.else"))


def test_a_clone_that_was_cut_loose_is_not_put_back_on_its_parent() -> None:
    clone = replace(BEFORE, parent=Parent("p", "golden", "v"))  # its own are v.s2 and v.s1
    written = recorded(clones.flatten(clone, {}))
    again = intent.resume("v", clone, written, found()).plan.steps
    assert [type(step) for step in again] == [Pull, WriteRecord]
    ended = intent.resume("v", clone, written, found({"v.s1": {"backing_file": None}, "v": None})).plan.steps
    assert [type(step) for step in ended] == [WriteRecord]
