# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What volumes, snapshots and reverts lead to: each rule of the planner from both of its sides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import (
    Conflict,
    HasDependents,
    HasNewerSnapshots,
    HasSnapshots,
    InvalidParameter,
    InvalidSize,
    UnsafeImage,
    WouldShrink,
)
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Parent, Snapshot, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.plan import planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume, Expiry, Source
from ansible_collections.remotefs.storage.plugins.module_utils.plan.steps import (
    CopyImage,
    CreateImage,
    CreateOverlay,
    Grow,
    ReplaceOverlay,
    Repoint,
    SetAttributes,
    Unlink,
    WriteInfo,
    WriteRecord,
)

from .test_merge import volume

MOST = 2**51
SOURCE = Source("vol@s", 4096, 512)


# ---------------------------------------------------------------------------------------------------------- new volumes


def test_a_new_volume_has_what_is_asked_and_defaults_for_the_rest() -> None:
    plain = planner.create_volume(DesiredVolume("v", 4096, created="now"))
    assert plain.steps == (WriteRecord("v"), CreateImage("v", "raw", 4096, "off", 0o660, None, None))
    assert plain.after == Volume("v", (Image("v", "raw", 4096),), adopted=True, created="now") and plain.before is None and not plain.intent
    asked = planner.create_volume(DesiredVolume("v", 4096, "qcow2", "metadata", mode=0, uid=7, gid=8, description="what", labels={"a": "b"}))
    assert asked.steps == (WriteRecord("v"), CreateImage("v", "qcow2", 4096, "metadata", 0, 7, 8))
    assert asked.after is not None and asked.after.active == Image("v", "qcow2", 4096, mode=0, uid=7, gid=8)
    assert (asked.after.description, asked.after.labels) == ("what", {"a": "b"})


def test_a_copy_is_as_large_as_its_source_or_larger() -> None:
    for size, made in ((None, 4096), (4096, 4096), (8192, 8192)):
        plan = planner.create_volume(DesiredVolume("v", size, source=SOURCE, uid=7))
        assert plan.steps[1] == CopyImage("v", "raw", made, "vol@s", 512, 0o660, 7, None)
        assert plan.after is not None and plan.after.size == made
    with pytest.raises(WouldShrink):
        planner.create_volume(DesiredVolume("v", 3584, source=SOURCE))


@pytest.mark.parametrize(
    "desired",
    [
        DesiredVolume("v"),
        DesiredVolume("v", 4096, "raw", "metadata"),
        DesiredVolume("v", 4096, None, "metadata"),
        DesiredVolume("v", source=SOURCE, preallocation="falloc"),
        DesiredVolume("v", source=SOURCE, preallocation="metadata", format="qcow2"),
    ],
)
def test_a_new_volume_that_cannot_be(desired: DesiredVolume) -> None:
    with pytest.raises(InvalidParameter):
        planner.create_volume(desired)


def test_only_qcow2_images_have_a_largest_size_and_it_is_allowed() -> None:
    assert planner.create_volume(DesiredVolume("v", MOST, "qcow2")).changed and planner.create_volume(DesiredVolume("v", 2 * MOST)).changed
    small, large = volume(8, 8), volume(MOST, MOST)
    assert planner.ensure_volume(small, DesiredVolume("v", MOST)).changed and planner.create_snapshot(large, DesiredSnapshot("n")).changed
    for refused in (
        lambda: planner.create_volume(DesiredVolume("v", MOST + 512, "qcow2")),
        lambda: planner.ensure_volume(small, DesiredVolume("v", MOST + 512)),
        lambda: planner.create_snapshot(volume(MOST + 512), DesiredSnapshot("n")),
    ):
        with pytest.raises(InvalidSize):
            refused()


# ------------------------------------------------------------------------------------------------- volumes that are there


def test_a_volume_that_is_as_asked_is_left_alone() -> None:
    for desired in (DesiredVolume("v"), DesiredVolume("v", 8, "raw", mode=0o660, uid=0, gid=0, description="", labels={})):
        plan = planner.ensure_volume(volume(8, 8), desired)
        assert not plan.changed and plan.after == plan.before and not plan.intent


def test_what_is_not_on_record_is_recorded() -> None:
    stranger = replace(volume(8, 8), adopted=False)
    plan = planner.ensure_volume(stranger, DesiredVolume("v"))
    assert plan.steps == (WriteRecord("v"),) and plan.after == replace(stranger, adopted=True)
    for desired in (DesiredVolume("v", description="x"), DesiredVolume("v", labels={"a": "b"})):
        plan = planner.ensure_volume(volume(8, 8), desired)
        assert plan.steps == (WriteRecord("v"),) and plan.after is not None
        assert (plan.after.description, plan.after.labels) == (desired.description or "", desired.labels or {})


@pytest.mark.parametrize("sizes, zero", [((8, 8), False), ((8, 4), True), ((4, 8, 8), False), ((8, 4, 4), True), ((4, 8), False)])
def test_a_volume_grows_in_its_active_image_and_shows_zeros_there(sizes: tuple, zero: bool) -> None:
    """Where a file beneath is longer than the active image, what that one holds beyond must not come to light."""
    plan = planner.ensure_volume(volume(*sizes), DesiredVolume("v", 16))
    assert plan.steps == (Grow("v.s%d" % (len(sizes) - 1), "qcow2", 16, zero=zero),)
    assert plan.after is not None and [image.size for image in plan.after.chain] == [16, *reversed(sizes[:-1])]
    assert planner.ensure_volume(volume(8), DesiredVolume("v", 16)).steps == (Grow("v", "raw", 16),)


def test_a_volume_does_not_shrink_or_change_its_format() -> None:
    with pytest.raises(WouldShrink):
        planner.ensure_volume(volume(8, 8), DesiredVolume("v", 7))
    with pytest.raises(Conflict):
        planner.ensure_volume(volume(8, 8), DesiredVolume("v", format="qcow2"))
    with pytest.raises(InvalidParameter):
        planner.ensure_volume(volume(8, 8, base=None), DesiredVolume("v"))


def test_a_clone_whose_parent_has_no_known_format_is_not_touched() -> None:
    clone = replace(volume(8, 8, base=None), parent=Parent("p", None, "v"))
    with pytest.raises(InvalidParameter):
        planner.ensure_volume(clone, DesiredVolume("v"))


@pytest.mark.parametrize(
    "asked, step",
    [
        ({"uid": 5}, (5, None, None)),
        ({"gid": 6}, (None, 6, None)),
        ({"mode": 0o600}, (None, None, 0o600)),
        ({"uid": 5, "gid": 0, "mode": 0o660}, (5, None, None)),
        ({"uid": 0, "gid": 6, "mode": 0o600}, (None, 6, 0o600)),
    ],
)
def test_owner_group_and_mode_are_set_where_they_differ(asked: dict, step: tuple) -> None:
    plan = planner.ensure_volume(volume(8, 8), DesiredVolume("v", **asked))
    assert plan.steps == tuple(SetAttributes(file, *step) for file in ("v.s1", "v"))
    given = {key: asked[key] for key in asked}
    right = tuple(replace(image, **given) for image in volume(8, 8).chain)
    assert not planner.ensure_volume(replace(volume(8, 8), chain=right), DesiredVolume("v", **asked)).changed
    clone = replace(volume(8, 8), parent=Parent("p", None, "v"))
    assert planner.ensure_volume(clone, DesiredVolume("v", **asked)).steps == (SetAttributes("v.s1", *step),)


def crooked(*sizes: int, file: str) -> Volume:
    found = volume(*sizes)
    return replace(found, chain=tuple(replace(image, absolute=image.file == file) for image in found.chain))


def test_every_change_mends_headers_first() -> None:
    mended = Repoint("v.s1", "v", "raw")
    assert planner.ensure_volume(crooked(8, 8, file="v.s1"), DesiredVolume("v")).steps == (mended,)
    assert planner.ensure_volume(crooked(8, 8, file="v.s1"), DesiredVolume("v", 16)).steps == (mended, Grow("v.s1", "qcow2", 16))
    taken = planner.create_snapshot(crooked(8, 8, file="v.s1"), DesiredSnapshot("n"))
    reverted = planner.revert(crooked(8, 8, 8, file="v.s1"), "s2", False)
    for plan in (taken, reverted):
        assert plan.steps[0] == mended and plan.after is not None and not any(image.absolute for image in plan.after.chain)


# ---------------------------------------------------------------------------------------------------------------- removals


def test_a_removal_takes_all_of_its_own_files_and_no_other() -> None:
    plan = planner.delete_volume(volume(8, 8, 8), True, leftovers=("v.old",), missing=("v.s1",))
    assert plan.steps == (Unlink("v.s2"), Unlink("v"), Unlink("v.old"), Unlink("v.info")) and plan.after is None and plan.intent
    clone = replace(volume(8, 8, 8), parent=Parent("p", None, "v"))
    assert plan_files(planner.delete_volume(clone, True)) == ["v.s2", "v.s1", "v.info"]
    assert plan_files(planner.delete_volume(replace(volume(8), info=False), False)) == ["v"]


def plan_files(plan: planner.Plan) -> list[str]:
    return [step.file for step in plan.steps if isinstance(step, Unlink)]


@pytest.mark.parametrize("files, info, missing, intent", [(1, False, (), False), (1, True, (), True), (2, False, (), True), (2, False, ("v",), True)])
def test_a_removal_of_several_files_is_recorded_before_it_begins(files: int, info: bool, missing: tuple, intent: bool) -> None:
    """So is one of a volume in which files are missing: what is left of it must not be taken for a whole one."""
    before = replace(volume(*[8] * files), info=info, snapshots=())
    assert planner.delete_volume(before, False, missing=missing).intent is intent


def test_a_removal_is_refused_where_snapshots_or_clones_would_be_lost() -> None:
    stale = replace(volume(8), stale=(("old", "v.old"),))
    for before in (volume(8, 8), stale):
        with pytest.raises(HasSnapshots):
            planner.delete_volume(before, False)
        assert planner.delete_volume(before, True).changed
    for cascade in (True, False):
        with pytest.raises(HasDependents):
            planner.delete_volume(replace(volume(8), dependents=(("clone", "v"),)), cascade)


# --------------------------------------------------------------------------------------------------------------- snapshots


def test_a_snapshot_is_an_empty_overlay_with_the_access_of_what_it_stands_on() -> None:
    before = replace(volume(8), info=False, adopted=False, stale=(("n", "v.gone"), ("other", "v.other")))
    before = replace(before, chain=(replace(before.chain[0], mode=0o600, uid=7, gid=8),))
    plan = planner.create_snapshot(before, DesiredSnapshot("n", "now", "why", {"a": "b"}, True, expires=Expiry("later")))
    assert plan.steps == (CreateOverlay("v.n", "v", "raw", 8), WriteInfo("v.info", "v.n", (("n", "v.n"), ("other", "v.other")))) and plan.intent
    assert plan.after is not None and (plan.after.info, plan.after.adopted) == (True, True)
    assert plan.after.active == Image("v.n", "qcow2", 8, 0, "v", "raw", True, False, 0o600, 7, 8)
    assert plan.after.snapshots == (Snapshot("n", "v.n", "now", "why", {"a": "b"}, True, "later"),)
    bare = planner.create_snapshot(before, DesiredSnapshot("n")).after
    assert bare is not None and bare.snapshots == (Snapshot("n", "v.n", None, "", {}, False, None),)


def test_snapshots_stand_in_the_order_in_which_they_were_taken() -> None:
    plan = planner.create_snapshot(volume(8, 8), DesiredSnapshot("n"))
    assert plan.after is not None and [one.name for one in plan.after.snapshots] == ["s1", "n"]
    assert plan.after.files == ("v.n", "v.s1", "v")


@pytest.mark.parametrize("files, most, allowed", [(1, 2, True), (2, 2, False), (2, 3, True), (3, 3, False)])
def test_a_chain_does_not_become_longer_than_asked(files: int, most: int, allowed: bool) -> None:
    desired = DesiredSnapshot("n", max_chain=most)
    if allowed:
        assert planner.create_snapshot(volume(*[8] * files), desired).changed
    else:
        with pytest.raises(InvalidParameter):
            planner.create_snapshot(volume(*[8] * files), desired)


def test_a_snapshot_on_what_has_no_known_format_is_refused() -> None:
    with pytest.raises(UnsafeImage):
        planner.create_snapshot(volume(8, base=None), DesiredSnapshot("n"))


@pytest.mark.parametrize(
    "names, taken",
    [(["v"], "v.n"), (["v", "v.n"], "v.n-1"), (["v", "v.N"], "v.n-1"), (["v", "v.n", "v.n-1"], "v.n-2"), (["v", "v.N", "v.N-1", "v.n-2"], "v.n-3")],
)
def test_a_name_that_a_file_kept_from_an_earlier_merge_is_not_taken_again(names: list, taken: str) -> None:
    """Also where only capitals tell them apart: some shares do not."""
    chain = tuple(Image(name, "qcow2", 8, backing_file=below, backing_format="qcow2") for name, below in zip(names[::-1], [*names[-2::-1], None]))
    assert planner.overlay_name(Volume("v", chain), "n") == taken


PRESENT = Snapshot("s1", "v.s1", "then", "what", {"a": "b"}, False, "later")


@pytest.mark.parametrize(
    "desired, wanted",
    [
        ({}, PRESENT),
        ({"description": "what", "labels": {"a": "b"}, "protected": False, "expires": Expiry("later")}, PRESENT),
        ({"description": ""}, replace(PRESENT, description="")),
        ({"labels": {}}, replace(PRESENT, labels={})),
        ({"protected": True}, replace(PRESENT, protected=True)),
        ({"expires": Expiry(None)}, replace(PRESENT, expires=None)),
        ({"expires": Expiry("soon", relative=True)}, PRESENT),  # counted from now: that is done once
    ],
)
def test_of_a_snapshot_that_is_there_what_is_said_is_updated(desired: dict, wanted: Snapshot) -> None:
    before = replace(volume(8, 8, 8), snapshots=(PRESENT, Snapshot("s2", "v.s2")))
    plan = planner.create_snapshot(before, DesiredSnapshot("s1", "now", max_chain=2, **desired))
    assert plan.after == replace(before, snapshots=(wanted, Snapshot("s2", "v.s2"))) and not plan.intent
    assert plan.steps == (() if wanted == PRESENT else (WriteRecord("v"),))


# ------------------------------------------------------------------------------------------------------------------ reverts


def test_a_revert_puts_an_empty_overlay_on_the_point_and_keeps_the_size() -> None:
    before = replace(volume(4, 8, 8, 16), adopted=False)
    newest = planner.revert(before, "s3", False)
    assert newest.steps == (ReplaceOverlay("v.s3", "v.s2", "qcow2", 16),) and not newest.intent
    assert newest.after is not None and newest.after.adopted and newest.after.snapshots == before.snapshots
    assert newest.after.active == replace(before.active, empty=True) and newest.after.files == before.files
    middle = planner.revert(before, "s2", True)
    assert middle.steps == (
        ReplaceOverlay("v.s3", "v.s1", "qcow2", 16), WriteInfo("v.info", "v.s3", (("s1", "v.s1"), ("s2", "v.s3"))), Unlink("v.s2"),
    )  # fmt: skip
    assert middle.intent and middle.after is not None and middle.after.files == ("v.s3", "v.s1", "v") and middle.after.size == 16
    lowest = planner.revert(before, "s1", True)
    assert lowest.steps[0] == ReplaceOverlay("v.s3", "v", "raw", 16) and plan_files(lowest) == ["v.s2", "v.s1"]
    assert lowest.after is not None and lowest.after.active.backing_format == "raw" and lowest.after.snapshots == (Snapshot("s1", "v.s3"),)


def test_a_revert_to_what_is_there_already_is_no_change() -> None:
    assert not planner.revert(volume(8, 8, empty=(1,)), "s1", False).changed
    assert planner.revert(volume(8, 8), "s1", False).changed
    assert planner.revert(volume(8, 8, 8, empty=(2,)), "s1", True).changed  # empty, and on another point


def test_a_revert_loses_newer_snapshots_only_where_that_is_said() -> None:
    with pytest.raises(HasNewerSnapshots):
        planner.revert(volume(8, 8, 8), "s1", False)
    assert planner.revert(volume(8, 8, 8), "s2", False).changed
    twice = replace(volume(8, 8), snapshots=(Snapshot("s1", "v.s1"), Snapshot("again", "v.s1")))
    plan = planner.revert(twice, "s1", False)  # another name of the same point is not newer
    assert plan.after is not None and [one.name for one in plan.after.snapshots] == ["s1", "again"]


@pytest.mark.parametrize("held, name, allowed", [("v", "s1", True), ("v.s1", "s1", False), ("v.s1", "s2", True), ("v.s2", "s2", False), ("v.s2", "s1", False)])
def test_a_revert_takes_nothing_on_which_a_clone_rests(held: str, name: str, allowed: bool) -> None:
    before = volume(8, 8, 8, dependents=(("clone", held),))
    if allowed:
        assert planner.revert(before, name, True).changed
    else:
        with pytest.raises(HasDependents):
            planner.revert(before, name, True)


def test_a_revert_on_what_has_no_known_format_is_refused() -> None:
    with pytest.raises(UnsafeImage):
        planner.revert(volume(8, 8, base=None), "s1", False)
