# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files a deletion merges, in which direction, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import Conflict, HasDependents, UnsafeImage
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Parent, Snapshot, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.plan.cost import Allocation
from ansible_collections.remotefs.storage.plugins.module_utils.plan.merge import Bitmap, delete_snapshots, drop_stale
from ansible_collections.remotefs.storage.plugins.module_utils.plan.steps import Commit, Pull, Repoint, Step, Truncate, Unlink, WriteInfo

KIB64 = 65536


def volume(*sizes: int, base: str | None = "raw", empty: tuple[int, ...] = (), **changes) -> Volume:
    """``v`` with snapshots s1, s2, … and one file for each size given, base first."""
    names = ["v"] + [f"v.s{number}" for number in range(1, len(sizes))]
    images = []
    for index, (name, size) in enumerate(zip(names, sizes)):
        backing = names[index - 1] if index else None
        backing_format = (base if index == 1 else "qcow2") if index else None
        images.append(
            Image(name, base if index == 0 else "qcow2", size, backing_file=backing, backing_format=backing_format, empty=index in empty)
        )
    snapshots = tuple(Snapshot(f"s{number}", f"v.s{number}") for number in range(1, len(sizes)))
    return Volume("v", tuple(reversed(images)), snapshots, info=True, adopted=True, **changes)


def clusters(**numbers: list[int]) -> dict[str, Allocation]:
    known = {}
    for name, taken in numbers.items():
        table = bytearray(8192)
        for number in taken:
            table[number] = 1
        known["v" if name == "base" else f"v.{name}"] = Allocation(KIB64, 8192, {0: bytes(table)})
    return known


def brief(steps: tuple[Step, ...]) -> list[tuple]:
    told: list[tuple] = []
    for step in steps:
        if isinstance(step, Commit):
            told.append(("commit", step.file, step.into))
        elif isinstance(step, (Pull, Repoint)):
            told.append((step.name, step.file, step.backing_file))
        elif isinstance(step, (Unlink, Truncate)):
            told.append((step.name, step.file))
        elif isinstance(step, WriteInfo):
            told.append(("info", step.active, dict(step.snapshots)))
    return told


def test_the_case_that_the_2014_algorithm_corrupts() -> None:
    """base <- s1 <- s2: deleting s1 merges s1's file with its own backing file, so s2's point stays what it is."""
    plan = delete_snapshots(volume(8, 8, 8), ["s1"], {})
    assert brief(plan.steps) == [("commit", "v.s1", "v"), ("repoint", "v.s2", "v"), ("info", "v.s2", {"s2": "v.s2"}), ("unlink", "v.s1")]


def test_newest_of_all() -> None:
    plan = delete_snapshots(volume(8, 8, 8), ["s2"], {})
    assert brief(plan.steps) == [("commit", "v.s2", "v.s1"), ("info", "v.s1", {"s1": "v.s1"}), ("unlink", "v.s2")]


def test_all_in_one_pass() -> None:
    plan = delete_snapshots(volume(8, 8, 8, 8), ["s1", "s2", "s3"], {})
    assert brief(plan.steps) == [("commit", "v.s3", "v"), ("info", "v", {}), ("unlink", "v.s1"), ("unlink", "v.s2"), ("unlink", "v.s3")]


def test_two_groups() -> None:
    plan = delete_snapshots(volume(8, 8, 8, 8, 8), ["s1", "s4"], {})
    assert brief(plan.steps) == [
        ("commit", "v.s1", "v"), ("repoint", "v.s2", "v"),
        ("commit", "v.s4", "v.s3"),
        ("info", "v.s3", {"s2": "v.s2", "s3": "v.s3"}),
        ("unlink", "v.s1"), ("unlink", "v.s4"),
    ]  # fmt: skip


def test_the_file_with_most_visible_clusters_stays() -> None:
    known = clusters(s1=[0, 1], s2=[1, 2, 3, 4, 5])
    plan = delete_snapshots(volume(8, 8, 8, 8), ["s2"], known)
    assert brief(plan.steps) == [("pull", "v.s2", "v"), ("info", "v.s3", {"s1": "v.s2", "s3": "v.s3"}), ("unlink", "v.s1")]
    data, entry_and_header = KIB64, 8 + 512
    assert [step.bytes for step in plan.steps if isinstance(step, Pull)] == [data + entry_and_header]


def test_a_pivot_between_two_others_commits_first_and_pulls_then() -> None:
    known = clusters(s1=[0], s2=[1, 2, 3, 4, 5, 6], s3=[1])
    plan = delete_snapshots(volume(8, 8, 8, 8, 8), ["s2", "s3"], known)
    assert brief(plan.steps)[:3] == [("commit", "v.s3", "v.s2"), ("pull", "v.s2", "v"), ("repoint", "v.s4", "v.s2")]


@pytest.mark.parametrize("known", [{}, clusters(s1=[0, 1, 2, 3], s2=[1])], ids=["unknown costs", "the shorter one holds more"])
def test_a_pivot_does_not_grow_over_a_longer_file_beneath(known: dict[str, Allocation]) -> None:
    """s1's file ends at 4, the base at 8: made longer, it would show what the base has there until the zeros are written."""
    plan = delete_snapshots(volume(8, 4, 8, 8), ["s2"], known)
    assert brief(plan.steps) == [("pull", "v.s2", "v"), ("info", "v.s3", {"s1": "v.s2", "s3": "v.s3"}), ("unlink", "v.s1")]


def test_a_pivot_may_grow_over_files_that_end_where_it_does() -> None:
    plan = delete_snapshots(volume(4, 4, 8, 8), ["s2"], clusters(s1=[0, 1, 2, 3], s2=[1]))
    assert brief(plan.steps)[0] == ("commit", "v.s2", "v.s1")


def test_a_qcow2_base_goes_where_that_is_cheaper() -> None:
    known = clusters(base=[0], s1=[1, 2, 3, 4, 5, 6])
    plan = delete_snapshots(volume(8, 8, 8, base="qcow2"), ["s1"], known)
    assert brief(plan.steps) == [("pull", "v.s1", None), ("info", "v.s2", {"s2": "v.s2"}), ("unlink", "v")]
    assert plan.after is not None and plan.after.base.backing_file is None


def test_a_base_stays_where_it_holds_more_or_is_raw() -> None:
    for base, known in (("qcow2", clusters(base=[0, 1, 2, 3, 4], s1=[5])), ("raw", clusters(s1=[1, 2, 3, 4, 5, 6]))):
        plan = delete_snapshots(volume(8, 8, 8, base=base), ["s1"], known)
        assert brief(plan.steps)[0] == ("commit", "v.s1", "v")


def test_empty_overlays_move_nothing() -> None:
    plan = delete_snapshots(volume(8, 8, 8, empty=(1, 2)), ["s1", "s2"], {})
    assert brief(plan.steps) == [("info", "v", {}), ("unlink", "v.s1"), ("unlink", "v.s2")]


def test_an_empty_but_longer_overlay_still_grows_what_it_merges_into() -> None:
    plan = delete_snapshots(volume(8, 16, empty=(1,)), ["s1"], {})
    assert brief(plan.steps)[0] == ("commit", "v.s1", "v")
    assert plan.after is not None and plan.after.size == 16


def test_a_short_file_over_a_long_raw_base_cuts_the_base() -> None:
    plan = delete_snapshots(volume(8, 4, 8), ["s1"], {})
    assert brief(plan.steps)[:3] == [("truncate", "v"), ("commit", "v.s1", "v"), ("repoint", "v.s2", "v")]


@pytest.mark.parametrize("sizes, gone", [((8, 8, 4, 8), ["s2"]), ((8, 8, 8, 4, 8), ["s2", "s3"])])
def test_a_short_overlay_pulls(sizes: tuple, gone: list) -> None:
    plan = delete_snapshots(volume(*sizes), gone, {})
    steps = brief(plan.steps)
    assert steps[0][0] == "pull" and steps[0][1] == f"v.{gone[-1]}" and not any(step[0] == "commit" for step in steps)


def test_a_short_overlay_over_a_long_qcow2_base_takes_its_place() -> None:
    plan = delete_snapshots(volume(8, 4, 8, base="qcow2"), ["s1"], {})
    assert brief(plan.steps) == [("pull", "v.s1", None), ("info", "v.s2", {"s2": "v.s2"}), ("unlink", "v")]


def test_nothing_to_delete_is_no_plan() -> None:
    plan = delete_snapshots(volume(8, 8), ["none"], {})
    assert not plan.changed and plan.after == plan.before


def test_unlinking_comes_after_the_record() -> None:
    for names in (["s1"], ["s2"], ["s1", "s3"], ["s1", "s2", "s3"]):
        kinds = [type(step) for step in delete_snapshots(volume(8, 8, 8, 8), names, {}).steps]
        assert kinds.index(WriteInfo) < kinds.index(Unlink)
        assert all(kind in (WriteInfo, Unlink) for kind in kinds[kinds.index(WriteInfo) :])


def test_clones_are_not_changed_under() -> None:
    with pytest.raises(HasDependents):
        delete_snapshots(volume(8, 8, 8, dependents=(("clone", "v.s1"),)), ["s2"], {})
    with pytest.raises(HasDependents):
        delete_snapshots(volume(8, 8, 8, dependents=(("clone", "v"),)), ["s1"], {})
    assert delete_snapshots(volume(8, 8, 8, 8, dependents=(("clone", "v"),)), ["s3"], {}).changed


def test_unknown_format_stops_everything() -> None:
    with pytest.raises(UnsafeImage):
        delete_snapshots(volume(8, 8, base=None), ["s1"], {})


def test_absolute_names_are_healed_on_the_way() -> None:
    broken = volume(8, 8, 8)
    chain = tuple(Image(**{**vars(image), "absolute": image.file == "v.s2"}) for image in broken.chain)
    plan = delete_snapshots(Volume("v", chain, broken.snapshots, info=True, adopted=True), ["s2"], {})
    assert brief(plan.steps)[0] == ("repoint", "v.s2", "v.s1")


def test_a_file_with_old_data_behind_its_end_is_not_made_larger() -> None:
    """It would be the cheaper one to keep. Where the sizes are equal, nothing grows."""
    known = clusters(base=[0, 1, 2, 3], s1=[1])
    short, equal = volume(8 * KIB64, 16 * KIB64, base="qcow2"), volume(16 * KIB64, 16 * KIB64, base="qcow2")
    commit, pull = ("commit", "v.s1", "v"), ("pull", "v.s1", None)
    assert brief(delete_snapshots(short, ["s1"], known).steps)[0] == commit
    assert brief(delete_snapshots(short, ["s1"], known, {"v"}).steps)[0] == pull
    assert brief(delete_snapshots(equal, ["s1"], known, {"v"}).steps)[0] == commit


# ------------------------------------------------------------------------------------- what is on record afterwards


def test_a_deletion_is_recorded_before_it_begins_and_leaves_a_volume_with_records() -> None:
    plan = delete_snapshots(replace(volume(8, 8, 8), info=False, adopted=False, pending="of another task"), ["s1"], {})
    assert plan.intent and plan.after is not None
    assert (plan.after.info, plan.after.adopted, plan.after.pending) == (True, True, None)


@pytest.mark.parametrize(
    "sizes, gone, stays, size",
    [
        ((4, 4, 8, 8), ["s2"], "v.s1", 8),  # what is committed into grows
        ((8, 8, 8), ["s1"], "v", 8),
        ((8, 16, 16), ["s1"], "v", 16),
        ((8, 8, 4, 8), ["s2"], "v.s2", 4),  # what pulls keeps its size
    ],
)
def test_the_file_that_stays_holds_data_and_is_as_large_as_the_point_that_it_shows(sizes: tuple, gone: list, stays: str, size: int) -> None:
    """Also where it was empty before: the next plan believes ``empty``, and would merge nothing."""
    number = int(stays[len("v.s") :] or 0)
    for empty in ((), (number,)):
        after = delete_snapshots(volume(*sizes, empty=empty), gone, clusters(base=[0, 1, 2], s1=[0, 1, 2, 3], s2=[1])).after
        assert after is not None and (after.image(stays).size, after.image(stays).empty) == (size, False)


def test_of_two_names_of_one_point_one_goes_without_a_merge() -> None:
    both = replace(volume(8, 8, 8), snapshots=(Snapshot("s1", "v.s1"), Snapshot("again", "v.s1"), Snapshot("s2", "v.s2")))
    plan = delete_snapshots(both, ["again"], {})
    assert brief(plan.steps) == [("info", "v.s2", {"s1": "v.s1", "s2": "v.s2"})]
    assert brief(delete_snapshots(both, ["s1", "again"], {}).steps)[0] == ("commit", "v.s1", "v")


# ------------------------------------------------------------------------------------------------- entries of .info


def test_stale_entries_go_alone_or_with_real_snapshots() -> None:
    before = replace(volume(8, 8, 8), info=False, adopted=False, stale=(("old", "v.old"),))
    after = replace(before, stale=())
    alone = drop_stale(before, replace(delete_snapshots(before, [], {}), after=after), ("v.old",))
    assert brief(alone.steps) == [("info", "v.s2", {"s1": "v.s1", "s2": "v.s2"}), ("unlink", "v.old")]
    real = delete_snapshots(before, ["s2"], {})
    assert real.after is not None
    together = drop_stale(before, replace(real, after=replace(real.after, stale=())), ("v.old",))
    assert together.steps == (*real.steps, Unlink("v.old"))
    for plan in (alone, together):
        assert plan.intent and plan.after is not None and (plan.after.info, plan.after.adopted, plan.after.stale) == (True, True, ())


# ---------------------------------------------------------------------------------------- clones, and what they rest on


def clone(*sizes: int, **changes) -> Volume:
    """Of the files of ``volume``, the base is the parent's."""
    return replace(volume(*sizes), parent=Parent("p", "golden", "v"), **changes)


def test_nothing_is_merged_into_a_parent() -> None:
    """The raw base that a clone rests on is not its own: the files above it merge among themselves, whatever costs less."""
    assert brief(delete_snapshots(clone(8, 8, 8), ["s1"], {}).steps) == [("info", "v.s2", {"s2": "v.s2"})]
    assert brief(delete_snapshots(clone(8, 8, 8), ["s2"], {}).steps) == [("commit", "v.s2", "v.s1"), ("info", "v.s1", {"s1": "v.s1"}), ("unlink", "v.s2")]
    assert brief(delete_snapshots(clone(8, 8, 8, 8), ["s1", "s2"], {}).steps)[0] == ("commit", "v.s2", "v.s1")
    unnamed = clone(8, 8, 8, 8, snapshots=(Snapshot("s2", "v.s2"), Snapshot("s3", "v.s3")))
    assert brief(delete_snapshots(unnamed, ["s2"], {}).steps)[:2] == [("commit", "v.s2", "v.s1"), ("repoint", "v.s3", "v.s1")]


def test_a_parent_whose_headers_are_not_as_they_should_be_is_mended_first() -> None:
    deep = replace(volume(8, 8, 8, 8), parent=Parent("p", "golden", "v.s1"))
    chain = tuple(replace(image, absolute=image.file == "v.s1") for image in deep.chain)
    with pytest.raises(UnsafeImage):
        delete_snapshots(replace(deep, chain=chain), ["s3"], {})
    assert delete_snapshots(deep, ["s3"], {}).changed


def test_a_file_that_clones_rest_on_stays_and_what_a_raw_base_cannot_take_in_lies_there_without_a_name() -> None:
    """The clone rests on the overlay that shows s2, which is no point that goes."""
    held = volume(8, 8, 8, 8, dependents=(("clone", "v.s2"),))
    assert brief(delete_snapshots(held, ["s1", "s2"], {}).steps) == [
        ("pull", "v.s2", "v"), ("info", "v.s3", {"s3": "v.s3"}), ("unlink", "v.s1"),
    ]  # fmt: skip
    # The lowest alone: there is nothing between it and the base that could be pulled, so only its name goes.
    lowest = volume(8, 8, 8, dependents=(("clone", "v.s1"),))
    plan = delete_snapshots(lowest, ["s1"], {})
    assert brief(plan.steps) == [("info", "v.s2", {"s2": "v.s2"})]
    # A qcow2 base can be pulled.
    assert brief(delete_snapshots(volume(8, 8, 8, base="qcow2", dependents=(("clone", "v.s1"),)), ["s1"], {}).steps)[0] == ("pull", "v.s1", None)


def test_a_base_without_a_name_is_taken_in_as_soon_as_nothing_holds_what_lies_on_it() -> None:
    nameless = replace(volume(8, 8, 8, 8), snapshots=(Snapshot("s2", "v.s2"), Snapshot("s3", "v.s3")))  # nothing names v.s1, and what v shows
    assert brief(delete_snapshots(nameless, ["s2"], {}).steps) == [
        ("commit", "v.s2", "v"), ("repoint", "v.s3", "v"), ("info", "v.s3", {"s3": "v.s3"}), ("unlink", "v.s1"), ("unlink", "v.s2"),
    ]  # fmt: skip
    above = delete_snapshots(nameless, ["s3"], {})
    assert brief(above.steps)[0] == ("commit", "v.s3", "v.s2")  # the base is not beneath this one
    for holder in (("clone", "v"), ("clone", "v.s2")):
        steps = brief(delete_snapshots(replace(nameless, dependents=(holder,)), ["s2"], {}).steps)
        assert not any(step[0] in ("commit", "truncate") and step[-1] == "v" for step in steps)
    named = volume(8, 8, 8, 8)
    assert brief(delete_snapshots(named, ["s2"], {}).steps)[0] == ("commit", "v.s2", "v.s1")
    qcow2 = replace(volume(8, 8, 8, 8, base="qcow2"), snapshots=nameless.snapshots)
    assert brief(delete_snapshots(qcow2, ["s2"], {}).steps)[0] == ("commit", "v.s2", "v.s1")


# ---------------------------------------------------------------------------------------- costs, sizes, dirty bitmaps


def test_what_a_raw_base_takes_in_before_it_is_cut_is_not_lost() -> None:
    """v.s2 ends at 4. Up to there it may show what v.s1 holds, which therefore goes into the base before v.s2 does."""
    plan = delete_snapshots(volume(8, 8, 4, 8), ["s1", "s2"], {})
    assert brief(plan.steps)[:4] == [("commit", "v.s1", "v"), ("truncate", "v"), ("commit", "v.s2", "v"), ("repoint", "v.s3", "v")]


def test_a_pivot_on_which_only_empty_overlays_lie_costs_no_commit() -> None:
    known = clusters(base=[0, 1], s1=[0, 1, 2], s2=[])
    plan = delete_snapshots(volume(8, 8, 8, 8, base="qcow2", empty=(2,)), ["s2"], known)
    assert brief(plan.steps) == [("repoint", "v.s3", "v.s1"), ("info", "v.s3", {"s1": "v.s1", "s3": "v.s3"}), ("unlink", "v.s2")]


def test_an_empty_top_does_not_make_the_base_cheap() -> None:
    """v.s2 adds nothing, and v.s1 would still have to be committed."""
    known = clusters(base=[0], s1=[1, 2, 3, 4, 5, 6], s2=[])
    plan = delete_snapshots(volume(8, 8, 8, 8, base="qcow2", empty=(2,)), ["s1", "s2"], known)
    assert brief(plan.steps)[:2] == [("pull", "v.s1", None), ("repoint", "v.s3", "v.s1")]


@pytest.mark.parametrize("base, entries", [("raw", 3), ("qcow2", 0)])
def test_zeros_are_pulled_as_entries_where_something_lies_beneath(base: str, entries: int) -> None:
    """Three clusters of zeros hide what the base holds. Where they lie in the base itself, nothing is left to hide."""
    known = clusters(base=[], s1=[], s2=[5])
    zeros = Allocation(KIB64, 8192, {0: bytes([2, 2, 2]) + bytes(8189)})
    known["v.s1" if base == "raw" else "v"] = zeros
    if base == "raw":
        plan = delete_snapshots(volume(8, 4, 8, 8), ["s2"], known)  # v.s1 is too short to stay
    else:
        plan = delete_snapshots(volume(8, 4, 8, base="qcow2"), ["s1"], known)
    assert [step.bytes for step in plan.steps if isinstance(step, Pull)] == [entries * 8 + 512]


@pytest.mark.parametrize("stays", ["v", "v.s1"])
def test_a_file_with_dirty_bitmaps_stays(stays: str) -> None:
    """Whichever costs less: the bitmap goes with its file. One that marks what is written into its file is right after a commit."""
    known = {"v": clusters(base=[0, 1, 2, 3, 4], s1=[5]), "v.s1": clusters(base=[5], s1=[0, 1, 2, 3, 4])}
    for costs in known.values():
        plan = delete_snapshots(volume(8, 8, 8, base="qcow2"), ["s1"], costs, bitmaps={stays: (Bitmap("b", True),), "v.s2": (Bitmap("other", False),)})
        assert brief(plan.steps)[-1] == ("unlink", "v.s1" if stays == "v" else "v")


@pytest.mark.parametrize(
    "bitmaps, allowed",
    [
        ({"v": (Bitmap("b", True),)}, True),
        ({"v": (Bitmap("b", False),)}, False),  # nobody marks in it what is committed
        ({"v.s1": (Bitmap("b", True),)}, False),  # it would go with its file
        ({"v.s2": (Bitmap("b", False),)}, True),  # this file is neither
    ],
)
def test_no_dirty_bitmap_is_lost_or_made_wrong(bitmaps: dict, allowed: bool) -> None:
    """The base is raw, so it is what stays."""
    if allowed:
        assert brief(delete_snapshots(volume(8, 8, 8), ["s1"], {}, bitmaps=bitmaps).steps)[0] == ("commit", "v.s1", "v")
    else:
        with pytest.raises(Conflict, match="b of v"):
            delete_snapshots(volume(8, 8, 8), ["s1"], {}, bitmaps=bitmaps)


def test_a_bitmap_that_nobody_marks_is_right_where_nothing_is_committed() -> None:
    still = {"v.s1": (Bitmap("b", False),)}
    assert brief(delete_snapshots(volume(8, 8, 8, base="qcow2"), ["s1"], {}, bitmaps=still).steps)[0] == ("pull", "v.s1", None)
