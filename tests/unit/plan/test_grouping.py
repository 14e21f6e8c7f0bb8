# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an interrupted snapshot of several volumes ends, from what is left of each of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, NeedsRecovery
from ansible_collections.remotefs.storage.plugins.module_utils.plan import grouping, intent, planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot
from ansible_collections.remotefs.storage.plugins.module_utils.plan.grouping import DECIDED, DONE, FINISH, GIVE_UP, GONE, HERE, LOST, UNDECIDED, UNDO, Member
from ansible_collections.remotefs.storage.plugins.module_utils.plan.resumption import ObservedFile, ObservedState

from .test_merge import volume

PLAN = planner.create_snapshot(volume(8), DesiredSnapshot("g", created="2026-01-01T00:00:00Z"))
INTENT = intent.of_plan(PLAN, "2026-01-01T00:00:00Z", {"v": intent.Proof(1, 8)}, "0123", "qmp", Attachment("/run/vm"), ("v", "w", "x"))


def member(word: str) -> Member:
    """old or new: what .info names. data: in the overlay. on old, on new: what the machine writes to. none: there is no overlay."""
    if word in (DONE, GONE):
        return Member("v", word)
    files = {"v": ObservedFile(1, 8)}
    if "none" not in word:
        files["v.g"] = ObservedFile(2, 8, 8, "v")
    observed = ObservedState("v.g" if word.startswith("new") else "v", (), files)
    written = "v" if "on old" in word else "v.g" if "on new" in word else None
    return Member("v", HERE, INTENT, observed, is_empty="data" not in word, written=written)


TABLE = [
    (("old", "old"), FINISH),
    (("old on old", "old on old", "old"), FINISH),  # one transaction, and the files
    (("new on old", "old on old", "old"), FINISH),
    (("new on old", "new on old", "new"), FINISH),
    (("new on new", "new on new", "new"), FINISH),  # it was switched
    (("new data on new", "new data on new", "new"), FINISH),
    (("new data on new", "new on new", "new data"), FINISH),
    (("new data", "new"), FINISH),  # the machine is off, and wrote to one of them only
    (("new", "new"), FINISH),
    (("new on old", "new"), FINISH),  # one was unplugged: what it holds now is what it holds at the instant of the other one
    (("new data on new", "new"), FINISH),
    (("new on new", "old on old"), GIVE_UP),  # started on some new and some old files
    (("new data on new", "old on old"), GIVE_UP),
    (("new data on new", "new on old"), GIVE_UP),
    (("new data", "old"), GIVE_UP),  # that, and off again
    (("new on new", "old"), GIVE_UP),
    (("old none", "old"), GIVE_UP),
    ((GONE, "old"), GIVE_UP),
    ((GONE, "new data", "new"), GIVE_UP),
    ((GONE, "new data"), FINISH),
    ((GONE, "new on new"), FINISH),
    ((DONE, "new on new"), FINISH),
    ((DONE, "new data"), FINISH),
    ((DONE, "new"), FINISH),
    ((DONE, "new on old"), InUse),
    ((DONE, "old none"), NeedsRecovery),
    (("new data on old", "new on new"), NeedsRecovery),  # both files were written to
    (("old data on old", "old"), NeedsRecovery),
]


@pytest.mark.parametrize("words, end", TABLE)
def test_decided(words: tuple[str, ...], end: object) -> None:
    members = [member(word) for word in words]
    for order in (members, members[::-1]):
        if isinstance(end, str):
            assert grouping.verdict(DECIDED, order, "/run/vm") == end
        else:
            with pytest.raises(end):  # type: ignore[call-overload]
                grouping.verdict(DECIDED, order, "/run/vm")


@pytest.mark.parametrize("words", [words for words, end in TABLE if end is not NeedsRecovery])
def test_not_decided_and_lost(words: tuple[str, ...]) -> None:
    members = [member(word) for word in words]
    assert grouping.verdict(UNDECIDED, members, "/run/vm") == UNDO
    assert grouping.verdict(LOST, members, "/run/vm") == GIVE_UP


def test_the_members_are_on_record() -> None:
    assert intent.from_json("v", INTENT.to_json()) == INTENT
    assert "members" not in replace(INTENT, members=()).to_json()
    for wrong in ("v", [1], ["../v"], ["v"] * 5000, {"v": 1}):
        with pytest.raises(NeedsRecovery):
            intent.from_json("v", {**INTENT.to_json(), "members": wrong})


@pytest.mark.parametrize("info_is_new, published", [(True, True), (False, True), (False, False)])
def test_what_is_lost_is_undone_whatever_info_says(info_is_new: bool, published: bool) -> None:
    assert PLAN.before is not None and PLAN.after is not None
    files = {"v": ObservedFile(1, 8), **({"v.g": ObservedFile(2, 8, 8, "v")} if published else {})}
    info = ("v.g", (("g", "v.g"),)) if info_is_new else ("v", ())
    found = intent.resume("v", PLAN.after if info_is_new else PLAN.before, INTENT, ObservedState(*info, files, lost=True))
    assert found.outcome == "undone" and found.empty == ("v.g",)
    assert found.plan.after is not None and found.plan.after.active.file == "v" and not found.plan.after.snapshots
    assert [step.name for step in found.plan.steps] == (["write_info", "unlink"] if published else ["write_record"])
