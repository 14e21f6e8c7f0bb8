# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random lives of volumes that rest on each other: whatever happens to one, all others hold what they held."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from engines import leave_to_qemu_img
from hypothesis import given
from hypothesis import strategies as st

from .examples import property_settings
from .family import Family
from .test_chains import KIB

NAMES = ("a", "a.b", "c", "d")  # a name that could be an overlay of another one is among them
PICK = st.integers(0, 5)
OPERATION = st.one_of(
    st.tuples(st.just("write"), PICK, st.integers(0, 2048 * KIB), st.integers(512, 256 * KIB), st.integers(1, 255)),
    st.tuples(st.just("write"), PICK, st.integers(0, 2048 * KIB), st.integers(512, 256 * KIB), st.integers(1, 255)),
    st.tuples(st.just("snapshot"), PICK),
    st.tuples(st.just("snapshot"), PICK),
    st.tuples(st.just("clone"), PICK, PICK, st.booleans(), st.integers(0, 3)),
    st.tuples(st.just("clone"), PICK, PICK, st.just(True), st.integers(0, 3)),
    st.tuples(st.just("delete"), PICK, st.sets(PICK, min_size=1, max_size=3)),
    st.tuples(st.just("delete"), PICK, st.sets(PICK, min_size=1, max_size=3)),
    st.tuples(st.just("many"), st.integers(1, 3), st.lists(st.tuples(PICK, st.sets(PICK, max_size=3)), min_size=2, max_size=5)),
    st.tuples(st.just("revert"), PICK, PICK),
    st.tuples(st.just("grow"), PICK, st.integers(1, 600)),
    st.tuples(st.just("flatten"), PICK),
    st.tuples(st.just("remove"), PICK),
)


def apply(family: Family, operation: tuple, number: int) -> None:
    kind, pick, *arguments = operation
    names = list(family.models)
    if not names:
        family.create("a", "raw", 256 * KIB)
        return
    name = names[pick % len(names)]
    points = list(family.models[name].points)
    if kind == "write":
        family.write(name, *arguments)
    elif kind == "snapshot":
        family.snapshot(name, f"s{number}")
    elif kind == "clone" and (free := [one for one in NAMES if one not in family.models]):
        index, linked, more = arguments
        snapshot = points[index % len(points)] if points and index else None
        if f"clone-{free[0]}" not in points or snapshot:
            family.clone(free[0], name, snapshot, linked, more * 4 * KIB)
    elif kind == "delete" and points:
        family.delete(name, sorted({points[index % len(points)] for index in arguments[0]}))
    elif kind == "many":
        family.delete_many([_one_of_many(family, names, *one) for one in arguments[0]], pick)
    elif kind == "revert" and points:
        family.revert(name, points[arguments[0] % len(points)])
    elif kind == "grow":
        family.grow(name, len(family.models[name].active) + arguments[0] * 512)
    elif kind == "flatten":
        family.flatten(name)
    elif kind == "remove":
        family.remove(name)


def _one_of_many(family: Family, names: list[str], pick: int, indexes: set[int]) -> tuple[str, list[str] | None]:
    """A volume, and which of its snapshots are to go: none of them means all of the volume."""
    name = names[pick % len(names)]
    points = list(family.models[name].points)
    return name, sorted({points[index % len(points)] for index in indexes}) if indexes and points else None


def live(image_format: str, clone_of: int, operations: list) -> None:
    """A chain of four points, a linked clone of one of them that was written to, and then ``operations``."""
    with tempfile.TemporaryDirectory(prefix="remotefs-property-") as directory:
        share, scratch = Path(directory, "share"), Path(directory, "scratch")
        share.mkdir()
        scratch.mkdir()
        family = Family(share, scratch)
        family.create("a", image_format, 512 * KIB)
        for number in range(4):
            family.write("a", number * 64 * KIB, 160 * KIB, number + 1)
            family.snapshot("a", f"p{number}")
        family.clone("a.b", "a", f"p{clone_of}", True)
        family.write("a.b", 32 * KIB, 64 * KIB, 99)
        for number, operation in enumerate(operations):
            apply(family, operation, number)
            family.check()


@given(st.sampled_from(["raw", "qcow2"]), st.integers(0, 3), st.lists(OPERATION, min_size=2, max_size=6))
@property_settings(8)
def test_families(image_format: str, clone_of: int, operations: list) -> None:
    live(image_format, clone_of, operations)


@pytest.mark.slow
@given(st.sampled_from(["raw", "qcow2"]), st.integers(0, 3), st.lists(OPERATION, min_size=4, max_size=14))
@property_settings(40)
def test_many_families(image_format: str, clone_of: int, operations: list) -> None:
    live(image_format, clone_of, operations)


@pytest.mark.slow
@given(st.sampled_from(["raw", "qcow2"]), st.integers(0, 3), st.lists(OPERATION, min_size=4, max_size=14))
@property_settings(16)
def test_families_with_qemu_img(image_format: str, clone_of: int, operations: list) -> None:
    """The same where qemu-img moves all data, as it does for images that are not plain."""
    with pytest.MonkeyPatch.context() as patched:
        leave_to_qemu_img(patched.setattr)
        live(image_format, clone_of, operations)
