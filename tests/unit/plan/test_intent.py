# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Intents survive their record, and recovery acts only on states that their plan can have left."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import NeedsRecovery
from ansible_collections.remotefs.storage.plugins.module_utils.plan import intent, planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.merge import delete_snapshots
from ansible_collections.remotefs.storage.plugins.module_utils.plan.steps import Repoint, Unlink, WriteInfo

from .test_merge import volume

BEFORE = volume(8, 8, 8)
INFO_BEFORE = (("s1", "v.s1"), ("s2", "v.s2"))
PLAN = delete_snapshots(BEFORE, ["s1"], {})
INTENT = intent.of_plan(PLAN, "2026-01-01T00:00:00Z")


def found(**changes) -> intent.Found:
    return replace(intent.Found("v.s2", INFO_BEFORE, {"v.s2": "v.s1"}), **changes)


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        planner.create_snapshot(BEFORE, planner.SnapshotWish("new")),
        planner.revert(BEFORE, "s1", True),
        planner.delete_volume(BEFORE, True),
    ],
)
def test_round_through_json(plan) -> None:
    written = intent.of_plan(plan, "2026-01-01T00:00:00Z", "g")
    read = intent.from_json("v", json.loads(json.dumps(written.to_json())))
    assert (read.operation, read.steps, read.old, read.active_before, read.group) == (
        written.operation,
        written.steps,
        written.old,
        written.active_before,
        "g",
    )
    assert (read.after is None) == (plan.after is None)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"operation": "x"},
        {**INTENT.to_json(), "steps": [{"type": "Format"}]},
        {**INTENT.to_json(), "old": 5},
        {**INTENT.to_json(), "group": "../../x"},
        {**INTENT.to_json(), "steps": [{"type": "Unlink", "file": "../x"}]},
    ],
)
def test_what_cannot_be_understood(content: dict) -> None:
    with pytest.raises(NeedsRecovery):
        intent.from_json("v", content)


def test_before_the_first_step_everything_is_done() -> None:
    assert intent.resume("v", BEFORE, INTENT, found()).plan.steps == PLAN.steps


def test_a_repointed_child_is_put_back_first() -> None:
    resumed = intent.resume("v", BEFORE, INTENT, found(backing={"v.s2": "v"}))
    assert resumed.plan.steps == (Repoint("v.s2", "v.s1", "qcow2"), *PLAN.steps)


def test_after_the_info_only_the_end_is_left() -> None:
    resumed = intent.resume("v", BEFORE, INTENT, found(snapshots=(("s2", "v.s2"),), backing={"v.s2": "v"}))
    assert [type(step) for step in resumed.plan.steps] == [WriteInfo, Unlink]


@pytest.mark.parametrize("changes", [{"active": "v.other"}, {"backing": {}}, {"backing": {"v.s2": "elsewhere"}}])
def test_a_share_that_somebody_changed_since_is_not_touched(changes: dict) -> None:
    with pytest.raises(NeedsRecovery) as caught:
        intent.resume("v", BEFORE, INTENT, found(**changes))
    assert "expected" in str(caught.value) and "found" in str(caught.value)


def test_an_overlay_that_was_replaced_is_not_replaced_again() -> None:
    """Somebody may have written to it between the crash and the recovery."""
    plan = planner.revert(BEFORE, "s1", True)
    resumed = intent.resume("v", BEFORE, intent.of_plan(plan, "now"), found(backing={"v.s2": "v"}))
    assert [step.name for step in resumed.plan.steps] == ["write_info", "unlink"]


def test_a_snapshot_without_its_overlay_is_undone_and_with_it_finished() -> None:
    plan = planner.create_snapshot(BEFORE, planner.SnapshotWish("new"))
    written = intent.of_plan(plan, "now")
    assert intent.resume("v", BEFORE, written, found(backing={})).outcome == "undone"
    assert intent.resume("v", BEFORE, written, found(backing={"v.new": "v.s2"})).outcome == "finished"
    grouped = intent.of_plan(plan, "now", "g")
    undone = intent.resume("v", BEFORE, grouped, found(backing={"v.new": "v.s2"}, decided=False))
    assert undone.outcome == "undone" and Unlink("v.new") in undone.plan.steps
    with pytest.raises(NeedsRecovery):
        intent.resume("v", BEFORE, written, found(backing={"v.new": "somewhere"}))
