# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference counts of an image: which are understood, how many blocks new clusters need, and what is written where."""

from __future__ import annotations

import struct
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.clusters import Unsuited
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.reading import read_header
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.refcounts import Counts
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.writing import write_image

from .small_images import CLUSTER, PER_BLOCK, PER_TABLE, make, patch

GUESTS = 300


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "image", GUESTS, {0: 11})
    return tmp_path / "image"


@contextmanager
def counts_of(path: Path) -> Iterator[Counts]:
    with open(path, "r+b", buffering=0) as stream:
        yield Counts(stream.fileno(), read_header(stream.fileno()))


def block_of(path: Path, index: int = 0) -> int:
    """Where a block is in the file."""
    return struct.unpack_from(">Q", path.read_bytes(), CLUSTER + index * 8)[0]


def counted(path: Path) -> dict[int, int]:
    """What an independent reader sees: cluster → count, if not 0."""
    data, found = path.read_bytes(), {}
    for index in range(PER_TABLE):
        block = block_of(path, index)
        if block:
            numbers = struct.unpack(f">{PER_BLOCK}H", data[block : block + CLUSTER].ljust(CLUSTER, b"\0"))
            found.update({index * PER_BLOCK + position: number for position, number in enumerate(numbers) if number})
    return found


# -- which are understood ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset, data", [(96, struct.pack(">I", 3)), (96, struct.pack(">I", 5)), (88, struct.pack(">Q", 1)), (88, struct.pack(">Q", 1 << 62))])
def test_counts_of_another_width_or_features_that_a_writer_ends(path: Path, offset: int, data: bytes) -> None:
    patch(path, offset, data)
    with pytest.raises(Unsuited, match="not of 16 bits, or it has features"), counts_of(path):
        pass


def test_version_2_has_no_such_fields(tmp_path: Path) -> None:
    make(tmp_path / "image", GUESTS, version=2, backing=b"x" * 60)
    with counts_of(tmp_path / "image") as counts:
        assert counts.end() == 4


def test_a_table_that_is_cut_short(path: Path) -> None:
    patch(path, 56, struct.pack(">I", 6))
    with pytest.raises(Unsuited, match="cut short"), counts_of(path):
        pass
    with open(path, "r+b") as stream:
        stream.truncate(7 * CLUSTER)
    patch(path, 2 * CLUSTER, bytes(5 * CLUSTER))
    patch(path, CLUSTER, bytes(8))
    with counts_of(path) as counts:
        assert sorted(counts.clusters()) == [1, 2, 3, 4, 5, 6] and counts.end() == 0


def test_blocks_where_none_can_be(path: Path) -> None:
    last = path.stat().st_size - CLUSTER
    for entry in (last + CLUSTER, last + 1, 1, CLUSTER + 8, 1 << 63 | last, 1 << 62, 3 * CLUSTER // 2):
        patch(path, CLUSTER + 8, struct.pack(">Q", entry))
        with pytest.raises(Unsuited, match="not where it can be"), counts_of(path):
            pass
    patch(path, CLUSTER, struct.pack(">QQ", last, 0))
    with counts_of(path) as counts:
        assert sorted(counts.clusters()) == [1, last // CLUSTER]


def test_a_block_that_is_not_at_the_begin_of_a_cluster(tmp_path: Path) -> None:
    path, cluster = tmp_path / "image", 64 << 10
    with open(path, "w+b") as stream:
        write_image(stream.fileno(), 1 << 20)
    with counts_of(path) as counts:
        assert counts.end() == path.stat().st_size // cluster
    patch(path, cluster + 8, struct.pack(">Q", cluster + CLUSTER))
    with pytest.raises(Unsuited, match="not where it can be"), counts_of(path):
        pass


# -- what they say -----------------------------------------------------------------------------------------------------


def test_clusters_and_the_end(path: Path) -> None:
    end = path.stat().st_size // CLUSTER
    with counts_of(path) as counts:
        assert sorted(counts.clusters()) == [1, end - 1] and counts.end() == end
    patch(path, block_of(path) + 2 * (PER_BLOCK - 1), b"\1\0")  # 256 times: its lower byte is zero
    with counts_of(path) as counts:
        assert counts.end() == PER_BLOCK
    patch(path, CLUSTER * end, bytes(20) + b"\0\1" + bytes(CLUSTER - 22))
    for index in (3, PER_TABLE - 1):
        patch(path, CLUSTER + 8 * index, struct.pack(">Q", end * CLUSTER))
        with counts_of(path) as counts:
            assert sorted(counts.clusters()) == [1, end - 1, end] and counts.end() == index * PER_BLOCK + 11
        patch(path, CLUSTER + 8 * index, bytes(8))
    patch(path, CLUSTER + 8 * 3, struct.pack(">Q", end * CLUSTER))
    patch(path, CLUSTER * end, bytes(CLUSTER))  # a block that counts nothing
    with counts_of(path) as counts:
        assert counts.end() == PER_BLOCK


def test_a_longer_table(tmp_path: Path) -> None:
    make(tmp_path / "image", GUESTS, table_clusters=8)
    with counts_of(tmp_path / "image") as counts:
        assert sorted(counts.clusters()) == [1, 2, 3, 4, 5, 6, 7, 8, 10]


# -- new blocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first, end, whole, new",
    [
        (5, 5, 5, {}),
        (5, 10, 10, {}),
        (5, PER_BLOCK, PER_BLOCK, {}),
        (5, PER_BLOCK + 1, PER_BLOCK + 2, {1: PER_BLOCK + 1}),
        (PER_BLOCK, PER_BLOCK, PER_BLOCK, {}),
        (PER_BLOCK + 5, PER_BLOCK + 5, PER_BLOCK + 5, {}),  # nothing new needs nothing
        (PER_BLOCK, PER_BLOCK + 1, PER_BLOCK + 2, {1: PER_BLOCK + 1}),
        (5, 2 * PER_BLOCK - 1, 2 * PER_BLOCK, {1: 2 * PER_BLOCK - 1}),
        (5, 2 * PER_BLOCK, 2 * PER_BLOCK + 2, {1: 2 * PER_BLOCK, 2: 2 * PER_BLOCK + 1}),  # the block itself needs another one
        (3 * PER_BLOCK + 1, 3 * PER_BLOCK + 2, 3 * PER_BLOCK + 3, {3: 3 * PER_BLOCK + 2}),
    ],
)
def test_blocks_for_new_clusters(path: Path, first: int, end: int, whole: int, new: dict[int, int]) -> None:
    with counts_of(path) as counts:
        assert counts.blocks_for(first, end) == (whole, {index: number * CLUSTER for index, number in new.items()})


def test_the_room_of_the_table(path: Path) -> None:
    most = PER_TABLE * PER_BLOCK
    with counts_of(path) as counts:
        assert counts.blocks_for(most - 10, most - 1) == (most, {PER_TABLE - 1: (most - 1) * CLUSTER})
        with pytest.raises(Unsuited, match="full"):
            counts.blocks_for(most - 10, most)


def test_counts_are_written_and_those_behind_are_taken_back(path: Path) -> None:
    """What lies behind was leaked by an attempt before; also in another block, and in the same one."""
    end = path.stat().st_size // CLUSTER
    block = block_of(path)
    patch(path, block + 2 * (end + 30), b"\0\1" * 5)
    other = end + 200
    patch(path, other * CLUSTER, b"\0\1" * 9 + bytes(CLUSTER - 18))
    patch(path, CLUSTER + 8 * 2, struct.pack(">Q", other * CLUSTER))
    mine = dict.fromkeys(range(end), 1)
    with counts_of(path) as counts:
        counts.write(end, end + 3, {})
    assert counted(path) == {**mine, end: 1, end + 1: 1, end + 2: 1}
    with counts_of(path) as counts:
        counts.write(end, end, {})
    assert counted(path) == mine


def test_counts_in_several_blocks(path: Path) -> None:
    end = path.stat().st_size // CLUSTER
    with counts_of(path) as counts:
        last, new = counts.blocks_for(end, 2 * PER_BLOCK + 40)
        counts.write(end, last, new)
        assert counted(path) == dict.fromkeys(range(PER_BLOCK), 1), "the table leads to no block that may not be durable"
        counts.publish(new)
        assert counted(path) == dict.fromkeys(range(last), 1) and counts.end() == last
        assert counts.blocks_for(last, last + 1) == (last + 1, {})
        counts.write(PER_BLOCK + 3, PER_BLOCK + 5, {})
    assert counted(path) == dict.fromkeys(range(PER_BLOCK + 5), 1)


def test_counts_are_lowered_once_for_each_time(path: Path) -> None:
    end = path.stat().st_size // CLUSTER
    block = block_of(path)
    patch(path, block + 2 * 3, struct.pack(">HH", 300, 2))
    before = counted(path)
    with counts_of(path) as counts:
        counts.release([3, 4, 4, 2])
        assert counted(path) == {number: count for number, count in {**before, 3: 299, 4: 0, 2: 0}.items() if count}
        whole = path.read_bytes()
        counts.release([4, 2, end + 20, PER_BLOCK, PER_BLOCK + 1, PER_BLOCK * PER_TABLE + 1])  # nobody counts them
    assert path.read_bytes() == whole and counted(path) == {number: count for number, count in {**before, 3: 299, 4: 0, 2: 0}.items() if count}
