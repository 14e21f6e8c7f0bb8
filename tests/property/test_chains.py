# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random lives of a volume: after every operation all contents equal the model's, with real qemu-img."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from engines import leave_to_qemu_img
from hypothesis import given
from hypothesis import strategies as st

from .examples import property_settings
from .world import World

KIB = 1024
SIZES = st.integers(1, 40).map(lambda units: units * 64 * KIB) | st.integers(1, 4000).map(lambda sectors: sectors * 512)

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 4 * 1024 * KIB), st.integers(512, 256 * KIB), st.integers(1, 255)),
        st.tuples(st.just("write"), st.integers(0, 4 * 1024 * KIB), st.integers(512, 256 * KIB), st.integers(1, 255)),
        st.tuples(st.just("snapshot")),
        st.tuples(st.just("snapshot")),
        st.tuples(st.just("delete"), st.sets(st.integers(0, 5), min_size=1, max_size=4)),
        st.tuples(st.just("revert"), st.integers(0, 5)),
        st.tuples(st.just("grow"), st.integers(1, 2000)),
        st.tuples(st.just("short"), st.integers(1, 40)),
        st.tuples(st.just("short by sectors"), st.integers(1, 5000)),
    ),
    min_size=3,
    max_size=14,
)


def apply(world: World, operation: tuple) -> None:
    kind, *arguments = operation
    names = list(world.points)
    if kind == "write":
        offset, length, value = arguments
        offset = offset % len(world.active) // 512 * 512
        world.write(offset, length // 512 * 512, value)
    elif kind == "snapshot":
        world.snapshot()
    elif kind == "delete" and names:
        world.delete(sorted({names[index % len(names)] for index in arguments[0]}))
    elif kind == "revert" and names:
        world.revert(names[arguments[0] % len(names)])
    elif kind == "grow":
        world.grow(len(world.active) + arguments[0] * 512)
    elif kind == "short" and arguments[0] * 64 * KIB < len(world.active):
        world.snapshot()
        world.shrink_by_hand(arguments[0] * 64 * KIB)
    elif kind == "short by sectors" and arguments[0] * 512 < len(world.active):
        world.snapshot()
        world.shrink_by_hand(arguments[0] * 512)


def live(image_format: str, size: int, operations: list) -> None:
    with tempfile.TemporaryDirectory(prefix="remotefs-property-") as directory:
        share, scratch = Path(directory, "share"), Path(directory, "scratch")
        share.mkdir()
        scratch.mkdir()
        world = World(share, scratch, image_format, size)
        for operation in operations:
            apply(world, operation)
            world.check()


@given(st.sampled_from(["raw", "qcow2"]), SIZES, OPERATIONS)
@property_settings(12)
def test_random_lives(image_format: str, size: int, operations: list) -> None:
    live(image_format, size, operations)


def live_on_a_tail(size: int, kept: int, packed: bool, options: str, operations: list) -> None:
    """A volume whose file was longer once, and then ``operations``."""
    with tempfile.TemporaryDirectory(prefix="remotefs-property-") as directory:
        share, scratch = Path(directory, "share"), Path(directory, "scratch")
        share.mkdir()
        scratch.mkdir()
        world = World(share, scratch, "qcow2", size)
        world.tail_by_hand(max(512, size * kept // 100 // 512 * 512), packed, options)
        world.check()
        for operation in operations:
            apply(world, operation)
            world.check(leaks=True)


TAILS = (
    SIZES,
    st.integers(1, 99),
    st.booleans(),
    st.sampled_from(["", "compat=0.10", "cluster_size=512", "cluster_size=4096,compat=0.10", "cluster_size=2M", "extended_l2=on"]),
    OPERATIONS,
)


@given(*TAILS)
@property_settings(6)
def test_lives_on_a_tail(size: int, kept: int, packed: bool, options: str, operations: list) -> None:
    live_on_a_tail(size, kept, packed, options, operations)


@pytest.mark.slow
@given(*TAILS)
@property_settings(80)
def test_many_lives_on_a_tail(size: int, kept: int, packed: bool, options: str, operations: list) -> None:
    live_on_a_tail(size, kept, packed, options, operations)


@pytest.mark.slow
@given(st.sampled_from(["raw", "qcow2"]), SIZES, OPERATIONS)
@property_settings(100)
def test_many_random_lives(image_format: str, size: int, operations: list) -> None:
    live(image_format, size, operations)


@pytest.mark.slow
@given(st.sampled_from(["raw", "qcow2"]), SIZES, OPERATIONS)
@property_settings(40)
def test_random_lives_with_qemu_img(image_format: str, size: int, operations: list) -> None:
    """The same where qemu-img moves all data, as it does for images that are not plain."""
    with pytest.MonkeyPatch.context() as patched:
        leave_to_qemu_img(patched.setattr)
        live(image_format, size, operations)
