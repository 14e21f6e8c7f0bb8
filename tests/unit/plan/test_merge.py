# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files a deletion merges, in which direction, and in which order."""

from __future__ import annotations

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import HasDependents, UnsafeImage
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Snapshot, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.plan.cost import Allocation
from ansible_collections.remotefs.storage.plugins.module_utils.plan.merge import delete_snapshots
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
