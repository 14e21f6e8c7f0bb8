# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Intents survive their record, and recovery acts only on states that their plan can have left."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment
from ansible_collections.remotefs.storage.plugins.module_utils.errors import NeedsRecovery
from ansible_collections.remotefs.storage.plugins.module_utils.model import Parent
from ansible_collections.remotefs.storage.plugins.module_utils.plan import clones, intent, planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.merge import delete_snapshots
from ansible_collections.remotefs.storage.plugins.module_utils.plan.resumption import ObservedFile
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
    present = {image.file: ObservedFile(INODES[image.file], LENGTH, image.size, image.backing_file) for image in BEFORE.chain}
    for file, changed in (files or {}).items():
        if changed is None:
            del present[file]
        else:
            present[file] = replace(present.get(file, ObservedFile(9, LENGTH, 8)), **changed)
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
    assert json.dumps(written.to_json()["before"]) == json.dumps({**asdict(written.before), "pending": None})  # all fields, at all depths
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
        {**INTENT.to_json(), "attachment": 5},
        {**INTENT.to_json(), "attachment": {"uri": 5, "domain": "d", "boot": "b"}},
        {**INTENT.to_json(), "attachment": {"uri": "qemu:///system", "domain": "", "boot": "b"}},
        {**INTENT.to_json(), "attachment": {"uri": "qemu:///system", "domain": "d\n", "boot": "b"}},
        {**INTENT.to_json(), "attachment": {"uri": "qemu:///system", "domain": "d"}},
        {**INTENT.to_json(), "phase": "elsewhere"},
        {**INTENT.to_json(), "phase": ["switching"]},
        {**INTENT.to_json(), "attachment": "/run/a\nb"},
        {**INTENT.to_json(), "attachment": "/" + "a" * 4096},
        {**INTENT.to_json(), "agent": 5},
        {**INTENT.to_json(), "agent": "/run/a\x1b[2J"},
        {**INTENT.to_json(), "agent": "/" + "a" * 4096},
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


def test_what_info_shows_of_work_with_a_machine() -> None:
    """A snapshot behind which a machine may not write yet is not certain, and the monitor is named."""
    taken = replace(recorded(planner.create_snapshot(BEFORE, planner.DesiredSnapshot("new"))), engine="qmp", attachment=Attachment("/run/m"))
    assert intent.from_json("v", json.loads(json.dumps(taken.to_json()))).attachment == Attachment("/run/m")
    frozen = replace(taken, agent="/run/a")
    assert intent.from_json("v", json.loads(json.dumps(frozen.to_json()))) == frozen and "agent" not in taken.to_json()
    shown = intent.summary(taken.to_json())
    assert (shown["snapshots"], shown["attachment"]) == (["new"], {"qmp": "/run/m"})
    assert intent.summary(replace(taken, attachment=None).to_json())["snapshots"] == []


def test_a_file_that_a_machine_has_left_may_have_grown_before_and_not_after() -> None:
    """It wrote to the file while that was merged. Whoever wrote to it after ``.info`` was on the wrong file."""
    live = replace(INTENT, attachment=Attachment("/run/m"))
    left = {"v.s2": {"backing_file": "v"}, "v.s1": {"length": 2 * LENGTH, "changed": 7}}
    with pytest.raises(NeedsRecovery, match="which is to go"):
        intent.resume("v", BEFORE, INTENT, found(left, **DONE))
    assert intent.resume("v", BEFORE, live, found(left, info_changed=7, **DONE)).outcome == "finished"
    with pytest.raises(NeedsRecovery, match="started on the wrong file"):
        intent.resume("v", BEFORE, live, found(left, info_changed=6, **DONE))


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


# --------------------------------------------------------------------------------- what others must not be doing meanwhile


def test_recovery_is_shown_every_file_that_the_plan_had_or_makes() -> None:
    """Also an overlay that was to become the active image, and that of a plan which ends without a volume."""
    taken = recorded(planner.create_snapshot(BEFORE, planner.DesiredSnapshot("new")))
    assert set(taken.files) == {"v", "v.s1", "v.s2", "v.new"}
    assert set(replace(taken, after=None).files) == {"v", "v.s1", "v.s2", "v.new"}
    assert set(replace(taken, steps=()).files) == {"v", "v.s1", "v.s2", "v.new"}
    assert set(recorded(planner.delete_volume(BEFORE, True)).files) == {"v", "v.s1", "v.s2"}


def test_nobody_may_have_open_what_a_recovery_changes_or_write_into_what_is_beneath() -> None:
    """The image that is active before or after is closed also where no step touches it: a guest would go on writing into the wrong file."""
    deletion = intent.resume("v", BEFORE, INTENT, found())
    assert (deletion.closed, deletion.unwritten) == ({"v", "v.s1", "v.s2"}, set())
    newest = recorded(delete_snapshots(BEFORE, ["s2"], {}))
    ended = intent.resume("v", BEFORE, newest, found(active="v.s1", snapshots=INFO_BEFORE[:1]))
    assert (ended.closed, ended.unwritten) == ({"v.s1", "v.s2"}, {"v"})
    taken = recorded(planner.create_snapshot(BEFORE, planner.DesiredSnapshot("new")))
    finished = intent.resume("v", BEFORE, taken, found({"v.new": {"backing_file": "v.s2"}}))
    assert (finished.closed, finished.unwritten) == ({"v.new", "v.s2"}, {"v", "v.s1"})
    undone = intent.resume("v", BEFORE, taken, found())
    assert (undone.closed, undone.unwritten) == ({"v.s2"}, {"v", "v.s1"})
    gone = intent.resume("v", None, recorded(planner.delete_volume(BEFORE, True)), found())
    assert gone.closed == {"v", "v.s1", "v.s2"}
    assert replace(undone, images=("v.s1", "v.other", "v.s2")).unwritten == {"v", "v.s1", "v.other"}


def test_what_is_discarded_says_what_it_leaves() -> None:
    assert replace(intent.resume("v", BEFORE, INTENT, found()), outcome="discarded", left=("v.x",)).describe()["left"] == ["v.x"]
    assert "left" not in intent.resume("v", BEFORE, INTENT, found()).describe()


# ------------------------------------------------------------------------------------- what was changed since, once more


def test_the_end_of_a_removal_is_removals_alone() -> None:
    resumed = intent.resume("v", None, recorded(planner.delete_volume(BEFORE, True)), found({"v.s2": None}))
    assert resumed.plan.steps and all(isinstance(step, Unlink) for step in resumed.plan.steps) and resumed.plan.after is None


def test_a_raw_file_needs_no_header() -> None:
    assert intent.resume("v", BEFORE, INTENT, found({"v": {"size": None}})).plan.steps == PLAN.steps


def test_a_header_that_was_torn_since_stops_a_removal() -> None:
    """A removal looks at nothing else of the file."""
    with pytest.raises(NeedsRecovery, match=r"v\.s1 to be a qcow2 image"):
        intent.resume("v", None, recorded(planner.delete_volume(BEFORE, True)), found({"v.s1": {"size": None}}))


def test_a_volume_that_had_no_info_is_resumed_without_one() -> None:
    plain = replace(BEFORE, info=False)
    written = recorded(delete_snapshots(plain, ["s1"], {}))
    assert intent.resume("v", plain, written, found(active=None, snapshots=())).plan.steps == PLAN.steps
    assert intent.resume("v", plain, written, found()).plan.steps == PLAN.steps  # one that was made since says the same
    for other in (found(active="v.s1"), found(snapshots=())):
        with pytest.raises(NeedsRecovery):
            intent.resume("v", plain, written, other)


def test_what_the_final_state_wants_must_be_there_also_where_it_is_raw() -> None:
    with pytest.raises(NeedsRecovery, match="file v,"):
        intent.resume("v", BEFORE, INTENT, found({"v": None, "v.s2": {"backing_file": "v"}}, **DONE))


@pytest.mark.parametrize("length, goes", [(LENGTH, True), (LENGTH - 1, True), (LENGTH + 1, False)])
def test_what_a_revert_gives_up_may_have_been_made_shorter_by_it_and_by_nobody_else_longer(length: int, goes: bool) -> None:
    plan = planner.revert(BEFORE, "s1", True)
    state = found({"v.s2": {"backing_file": "v", "inode": 50}, "v.s1": {"length": length}}, snapshots=INFO_BEFORE[:1])
    assert plan.after is not None
    written = recorded(plan)
    state = replace(state, active=plan.after.active.file, snapshots=tuple((one.name, one.file) for one in plan.after.snapshots))
    going = next(step.file for step in plan.steps if isinstance(step, Unlink))
    state = replace(state, files={**state.files, going: replace(state.files[going], length=length)})
    if goes:
        assert intent.resume("v", BEFORE, written, state).outcome == "finished"
    else:
        with pytest.raises(NeedsRecovery, match="which is to go"):
            intent.resume("v", BEFORE, written, state)


def test_what_a_deletion_merged_away_is_as_long_as_it_was() -> None:
    """No step of it makes a file shorter, so somebody else did."""
    with pytest.raises(NeedsRecovery, match="which is to go"):
        intent.resume("v", BEFORE, INTENT, found({"v.s2": {"backing_file": "v"}, "v.s1": {"length": LENGTH - 1}}, **DONE))


@pytest.mark.parametrize(
    "without, present",
    [
        ("overlay", found()),
        ("info", found()),
        ("", found(active="v.s1")),  # no overlay yet, and yet another active image
        ("", found(snapshots=INFO_BEFORE[:1])),
    ],
)
def test_a_snapshot_is_not_undone_where_somebody_did_something_else(without: str, present: intent.Found) -> None:
    written = recorded(planner.create_snapshot(BEFORE, planner.DesiredSnapshot("new")))
    kinds = {"overlay": "create_overlay", "info": "write_info"}
    written = replace(written, steps=tuple(step for step in written.steps if step.name != kinds.get(without)))
    with pytest.raises(NeedsRecovery):
        intent.resume("v", BEFORE, written, present)


def test_a_snapshot_is_not_undone_on_a_volume_that_is_another_one_now() -> None:
    written = recorded(planner.create_snapshot(BEFORE, planner.DesiredSnapshot("new")))
    with pytest.raises(NeedsRecovery):
        intent.resume("v", None, written, found())
    with pytest.raises(NeedsRecovery, match="v.s1"):
        intent.resume("v", replace(BEFORE, chain=BEFORE.chain[1:]), written, found())


CLONE = replace(BEFORE, parent=Parent("p", "golden", "v"))


@pytest.mark.parametrize("state", [found(active="v.s1"), found(snapshots=()), found({"v.s2": None}), found({"v.s2": {"backing_file": "v"}})], ids=range(4))
def test_a_clone_that_somebody_changed_since_is_not_cut_loose(state: intent.Found) -> None:
    with pytest.raises(NeedsRecovery):
        intent.resume("v", CLONE, recorded(clones.flatten(CLONE, {})), state)


def replacement() -> intent.Intent:
    """A revert to the newest snapshot as it is on a full share: the active image is replaced by an empty one, and ``.info`` stays."""
    plan = planner.revert(BEFORE, "s2", True)
    return replace(recorded(plan), steps=tuple(step for step in plan.steps if not isinstance(step, WriteInfo)))


def test_an_active_image_that_was_replaced_in_its_place_is_not_replaced_again() -> None:
    written = replacement()
    kinds = [step.name for step in written.steps]
    assert "replace_overlay" in kinds
    once = intent.resume("v", BEFORE, written, found()).plan.steps
    assert [step.name for step in once] == kinds
    again = intent.resume("v", BEFORE, written, found({"v.s2": {"inode": 50}})).plan.steps
    assert [step.name for step in again] == [kind for kind in kinds if kind != "replace_overlay"]
    # Where inodes are not kept, nobody knows: it is done again, which loses nothing that was not to go.
    forgetful = replace(written, proofs={file: intent.Proof(0, LENGTH) for file in INODES})
    unknown = replace(written, proofs={})
    for one in (forgetful, unknown):
        assert [step.name for step in intent.resume("v", BEFORE, one, found({"v.s2": {"inode": 50}})).plan.steps] == kinds


@pytest.mark.parametrize("state", [found(active="v.s1"), found(snapshots=()), found({"v.s1": None}), found({"v.s1": {"backing_file": None}})], ids=range(4))
def test_an_active_image_is_not_replaced_where_somebody_changed_the_share_since(state: intent.Found) -> None:
    with pytest.raises(NeedsRecovery):
        intent.resume("v", BEFORE, replacement(), state)


def test_a_record_without_a_final_state_is_not_resumed() -> None:
    with pytest.raises(NeedsRecovery, match="final state"):
        intent.resume("v", BEFORE, replace(INTENT, steps=tuple(step for step in INTENT.steps if not isinstance(step, WriteInfo))), found())


def test_names_of_stale_entries_and_of_engines_are_checked_like_all_others() -> None:
    content = INTENT.to_json()
    with pytest.raises(NeedsRecovery):
        intent.from_json("v", {**content, "before": {**content["before"], "stale": [["old", "../x"]]}})
    assert intent.from_json("v", {**content, "engine": "e" * 40}).engine == "e" * 40
