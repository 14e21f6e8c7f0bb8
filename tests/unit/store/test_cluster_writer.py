# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clusters that an image takes in: what it shows afterwards, and after a loss of power at any time; and what is not written to."""

from __future__ import annotations

import os
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2 import cluster_writer
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.cluster_writer import ClusterWriter, Place
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.clusters import ZEROS as NOWHERE
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.clusters import Unsuited

from .small_images import CLUSTER, COPIED, KEPT, OFFSET, PER_BLOCK, PER_TABLE, READS_ZERO, ZEROS, judge, make, patch, set_entry


class Disk:
    """What is durable of a file, and what was written to it since. A loss of power keeps any part of the latter.

    :ivar rest: whether a file lies beneath, so that a cluster of zeros is not the same as none.
    """

    def __init__(self, path: Path, rests: bool) -> None:
        self.durable = path.read_bytes()
        self.since: list[tuple[int, bytes | None]] = []  # offset, and what was written there; or the file's new length
        self.rests = rests
        self.before = self.shown(self.durable)
        self.after = dict(self.before)

    def shown(self, content: bytes) -> dict[int, object]:
        found = judge(content).shows
        return {guest: what if self.rests or what is not None else ZEROS for guest, what in found.items()}

    def sync(self) -> None:
        for number in range(len(self.since)):
            self._is_whole([self.since[number]])
            self._is_whole(self.since[:number] + self.since[number + 1 :])
        self.durable = _applied(self.durable, self.since)
        self.since = []

    def _is_whole(self, kept: list[tuple[int, bytes | None]]) -> None:
        found = self.shown(_applied(self.durable, kept))
        wrong = {guest: what for guest, what in found.items() if what not in (self.before[guest], self.after[guest])}
        assert not wrong, f"after a loss of power {wrong} instead of {[(self.before[guest], self.after[guest]) for guest in wrong]}"

    @contextmanager
    def watching(self, patched: pytest.MonkeyPatch) -> Iterator[None]:
        pwrite, truncate = os.pwrite, os.ftruncate
        with patched.context() as inner:
            inner.setattr(os, "pwrite", lambda fd, data, offset: (self.since.append((offset, bytes(data))), pwrite(fd, data, offset))[1])
            inner.setattr(os, "ftruncate", lambda fd, length: (self.since.append((length, None)), truncate(fd, length))[1])
            yield


def _applied(content: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    found = bytearray(content)
    for offset, data in changes:
        if data is None:
            found = found[:offset].ljust(offset, b"\0")
        else:
            found = found.ljust(offset + len(data), b"\0")
            found[offset : offset + len(data)] = data
    return bytes(found)


def put(writer: ClusterWriter, fd: int, guest: int, count: int, what: object, disk: Disk | None = None) -> list[Place]:
    """Places for clusters of one table, filled as a caller does it."""
    places = list(writer.place(guest // PER_TABLE, guest % PER_TABLE, count, what == ZEROS))
    for place in places:
        if place.offset != NOWHERE:
            os.pwrite(fd, bytes([what]) * place.clusters * CLUSTER, place.offset)  # type: ignore[list-item]
    if disk is not None:
        disk.after.update(dict.fromkeys(range(guest, guest + count), what))
    return places


@contextmanager
def writing(path: Path, hides: bool = False) -> Iterator[tuple[ClusterWriter, int]]:
    with open(path, "r+b", buffering=0) as stream:
        yield ClusterWriter(stream.fileno(), hides), stream.fileno()


def nothing() -> None:
    """Instead of a sync."""


# -- what it shows -----------------------------------------------------------------------------------------------------

GUESTS = 300
WHAT = st.sampled_from([1, 2, 3, ZEROS])


@st.composite
def rounds(draw: st.DrawFn) -> list[list[tuple[int, int, object]]]:
    found: list = [[] for _round in range(draw(st.integers(1, 3)))]
    free = set(range(GUESTS))
    for one in found:
        for _part in range(draw(st.integers(0, 4))):
            guest = draw(st.integers(0, GUESTS - 1))
            count = min(draw(st.integers(1, 70)), PER_TABLE - guest % PER_TABLE, GUESTS - guest)
            if set(range(guest, guest + count)) <= free:
                free -= set(range(guest, guest + count))
                one.append((guest, count, draw(WHAT)))
    return found


HELD = st.dictionaries(st.integers(0, GUESTS - 1), st.sampled_from([11, 12, ZEROS, KEPT]), max_size=20)


@given(HELD, rounds(), st.booleans(), st.integers(0, 220))
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_placed_shows_also_after_a_loss_of_power(
    tmp_path: Path, held: dict[int, object], todo: list[list[tuple[int, int, object]]], hides: bool, filled: int
) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {**dict.fromkeys(range(filled), 10), **held})
    disk = Disk(path, hides)
    with pytest.MonkeyPatch.context() as patched, disk.watching(patched), writing(path, hides) as (writer, fd):
        for one in todo:
            dropped: list[tuple[int, int]] = []
            now = {guest: (what, count) for guest, count, what in one}
            held_before = {guest: entry for guest, entry in judge(path.read_bytes()).entries.items() if entry & OFFSET and not entry & READS_ZERO}
            for guest, (what, count) in now.items():
                put(writer, fd, guest, count, what, disk)
            dropped = writer.finish(disk.sync)
            assert disk.since == [], "the end was not synced"
            assert disk.shown(path.read_bytes()) == disk.after
            disk.before = dict(disk.after)
            zeroed = {guest for guest, (what, count) in now.items() if what == ZEROS for guest in range(guest, guest + count)}
            freed = {offset + part for offset, length in dropped for part in range(0, length, CLUSTER)}
            assert freed == {entry & OFFSET for guest, entry in held_before.items() if guest in zeroed}
    found = judge(path.read_bytes())
    assert found.leaks == set() and found.counts.keys() == set(range(path.stat().st_size // CLUSTER))


def test_the_judge_sees_what_qemu_sees(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {**dict.fromkeys(range(250), 10), 255: 12, 256: KEPT, 258: ZEROS})
    for _time in "12":
        assert subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=False).returncode == 0
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "raw"], check=True)
        values = (what if isinstance(what, int) else 0 for what in judge(path.read_bytes()).shows.values())
        assert (tmp_path / "raw").read_bytes() == b"".join(bytes([value]) * CLUSTER for value in values)
        with writing(path) as (writer, fd):
            put(writer, fd, 254, 2, 3)
            put(writer, fd, 256, 3, 4)
            put(writer, fd, 0, 2, ZEROS)
            writer.finish(nothing)


def test_an_image_of_version_2(tmp_path: Path) -> None:
    """It has no clusters of zeros, so those that hide something cannot be taken in; behind its header is the name of its backing file."""
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11}, version=2, backing=b"a-name-that-is-as-long-as-what-version-3-has-there")
    with writing(path, hides=True) as (writer, fd):
        put(writer, fd, 0, 2, 5)
        for guest in (0, 1, 200):
            with pytest.raises(Unsuited):
                put(writer, fd, guest, 1, ZEROS)
        writer.finish(nothing)
    with writing(path) as (writer, fd):
        assert put(writer, fd, 200, 1, ZEROS) == [Place(200 % PER_TABLE, 1, NOWHERE, True)]  # nothing is beneath, so it shows zeros already
        assert writer.finish(nothing) == []
    assert [judge(path.read_bytes()).shows[guest] for guest in (0, 1, 2, 200)] == [5, 5, None, None]


def test_places(tmp_path: Path) -> None:
    """Which are new, which overwrite, and where they are: data of clusters that are taken one after the other lies in one piece."""
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11, 1: 12, 3: KEPT, 5: ZEROS})
    at = {guest: entry & OFFSET for guest, entry in judge(path.read_bytes()).entries.items()}
    end = path.stat().st_size
    with writing(path, hides=True) as (writer, fd):
        assert put(writer, fd, 0, 7, 1) == [
            Place(0, 2, at[0], False),
            Place(2, 1, end, True),
            Place(3, 1, at[3], False),
            Place(4, 1, end + CLUSTER, True),
            Place(5, 1, end + 2 * CLUSTER, True),
            Place(6, 1, end + 3 * CLUSTER, True),
        ]
        assert put(writer, fd, 7, 2, ZEROS) == [Place(7, 2, NOWHERE, True)]
        assert put(writer, fd, 64, 3, 2) == [Place(0, 3, end + 4 * CLUSTER, True)]  # and its table behind it
        writer.finish(nothing)
        assert put(writer, fd, 67, 1, 3) == [Place(3, 1, end + 8 * CLUSTER, True)]
        writer.finish(nothing)
    found = judge(path.read_bytes())
    assert found.leaks == set() and [found.shows[guest] for guest in (*range(9), 64, 67)] == [1] * 7 + [ZEROS] * 2 + [2, 3]


def test_zeros_give_their_place_back_once(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11, 1: 12, 2: KEPT, 3: ZEROS})
    at = judge(path.read_bytes()).entries[0] & OFFSET
    with writing(path) as (writer, fd):
        put(writer, fd, 0, 5, ZEROS)
        assert writer.finish(nothing) == [(at, 2 * CLUSTER)]
        put(writer, fd, 100, 1, 1)
        assert writer.finish(nothing) == []
    found = judge(path.read_bytes())
    assert [found.shows[guest] for guest in range(5)] == [ZEROS] * 4 + [None] and found.leaks == set()


def test_nothing_placed_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11, 100: ZEROS})
    disk, synced = Disk(path, True), []
    with disk.watching(monkeypatch), writing(path, True) as (writer, fd):
        assert writer.finish(lambda: synced.append(1)) == []
        put(writer, fd, 100, 1, ZEROS)  # as it is already
        assert disk.since == [] == synced
        assert writer.finish(disk.sync) == []
        put(writer, fd, 1, 1, 1, disk)
        writer.finish(disk.sync)
        before = path.read_bytes()
        assert writer.finish(lambda: synced.append(1)) == [] and synced == []
    assert path.read_bytes() == before and disk.since == []


def test_what_was_planned_only_is_forgotten(tmp_path: Path) -> None:
    """Callers look first whether there are places for all, and begin anew."""
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11})
    with writing(path) as (writer, fd):
        list(writer.place(0, 0, 60, False))
        writer.forget_tables()
        list(writer.place(3, 0, 60, False))
        list(writer.place(0, 60, 1, True))
        writer.restart()
        put(writer, fd, 0, 2, 1)  # what was taken to be overwritten may be so now
        put(writer, fd, 70, 1, 2)
        assert writer.finish(nothing) == []
    found = judge(path.read_bytes())
    assert [found.shows[guest] for guest in (0, 1, 2, 70, 192)] == [1, 1, None, 2, None] and found.leaks == set()
    assert path.stat().st_size == 8 * CLUSTER + 2 * CLUSTER - CLUSTER


def test_when_it_is_time_to_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    make(path, GUESTS)
    monkeypatch.setattr(cluster_writer, "_MOST_PENDING", 2)
    with writing(path) as (writer, fd):
        for guest, full in ((0, False), (1, False), (64, True)):
            put(writer, fd, guest, 1, 1)
            assert writer.is_full is full
        writer.finish(nothing)
        assert not writer.is_full


def test_what_lies_behind_the_last_cluster_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted attempt left it: counted or not, nothing leads to it. A new place reads as zeros."""
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11})
    end = path.stat().st_size
    patch(path, end, b"\xff" * 5 * CLUSTER)
    with writing(path) as (writer, _fd):
        list(writer.place(0, 1, 1, False))
        writer.restart()
        writer.begin()
        assert path.stat().st_size == end
        disk = Disk(path, False)
        with disk.watching(monkeypatch):
            writer.begin()
            assert disk.since == []
        list(writer.place(0, 1, 1, False))
        writer.finish(nothing)
    found = judge(path.read_bytes())
    assert path.stat().st_size == end + CLUSTER and found.shows[1] == 0 and found.leaks == set()


def test_the_last_cluster_in_use_may_be_one_of_zeros_or_behind_the_size(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, 10, {0: 11, 9: KEPT, 12: 13})
    with writing(path) as (writer, fd):
        writer.begin()
        put(writer, fd, 1, 1, 1)
        writer.finish(nothing)
    found = judge(path.read_bytes())
    assert [found.shows[guest] for guest in (0, 1, 9)] == [11, 1, ZEROS] and found.shows[12] == 13 and found.leaks == set()


def test_clusters_that_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {1: 11, 2: 12, 5: ZEROS})
    at = judge(path.read_bytes()).entries[1] & OFFSET
    with writing(path) as (writer, _fd):
        assert list(writer.holds(0)) == [(1, 2, at), (5, 1, NOWHERE)] and list(writer.holds(1)) == []


# -- what is not written to --------------------------------------------------------------------------------------------


@contextmanager
def unsuited(path: Path, words: str = "") -> Iterator[None]:
    before = path.read_bytes()
    with pytest.raises(Unsuited, match=words):
        yield
    assert path.read_bytes() == before


def test_a_cluster_with_several_owners(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11, 1: 12, 2: 13, 3: KEPT})
    entries = judge(path.read_bytes()).entries
    for entry in (entries[0], entries[0] | READS_ZERO):
        set_entry(path, 1, entry)
        with unsuited(path, "several owners"), writing(path) as (writer, _fd):
            list(writer.place(0, 0, 2, False))
    set_entry(path, 1, entries[1])
    for what in (False, True):
        with unsuited(path, "several owners"), writing(path) as (writer, _fd):
            list(writer.place(0, 2, 1, what))
            list(writer.place(0, 2, 1, what))  # it was overwritten a moment ago
    for guest in (2, 3):  # one of data, and one that kept its cluster
        set_entry(path, guest, entries[guest] & ~COPIED)
        with unsuited(path, "several owners"), writing(path):
            pass
        set_entry(path, guest, entries[guest])


def test_an_entry_with_flags_that_nobody_knows(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for version, flag, words in ((3, 2, "flags that nobody knows"), (2, READS_ZERO, "a flag that version 2 does not know")):
        make(path, GUESTS, {0: 11, 1: 12}, version=version)
        set_entry(path, 0, judge(path.read_bytes()).entries[0] | flag)
        for zeros in (False, True):
            with unsuited(path, words), writing(path) as (writer, _fd):
                list(writer.place(0, 0, 2, zeros))


@pytest.mark.parametrize("place", ["table of counts", "block of counts", "L1", "the rest of L1", "L2", "another L2"])
def test_a_cluster_that_is_a_table(tmp_path: Path, place: str) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11, 1: 12, 64: 13}, l1_entries=PER_TABLE + 1)
    found = judge(path.read_bytes())
    block = struct.unpack(">Q", path.read_bytes()[CLUSTER:][:8])[0] // CLUSTER
    number = {"table of counts": 1, "block of counts": block, "L1": 2, "the rest of L1": 3, "L2": found.tables[0], "another L2": found.tables[1]}
    set_entry(path, 0, COPIED | number[place] * CLUSTER)
    for zeros in (False, True):
        with unsuited(path, "several owners"), writing(path) as (writer, _fd):
            list(writer.place(0, 0, 1, zeros))


def test_a_run_of_which_a_later_cluster_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11, 1: 12})
    block = struct.unpack(">Q", path.read_bytes()[CLUSTER:][:8])[0]
    set_entry(path, 0, COPIED | block - CLUSTER)
    set_entry(path, 1, COPIED | block)
    with unsuited(path, "several owners"), writing(path) as (writer, _fd):
        list(writer.place(0, 0, 2, False))


def test_tables_that_share_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11, 64: 12})
    good = path.read_bytes()
    block = good[CLUSTER : CLUSTER + 8]
    for offset, data in ((CLUSTER + 8, block), (2 * CLUSTER, struct.pack(">Q", COPIED | int.from_bytes(block, "big")))):
        path.write_bytes(good)
        patch(path, offset, data)
        with unsuited(path, "two of its tables share a cluster"), writing(path):
            pass


def test_an_l2_table_with_several_owners(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11})
    table = judge(path.read_bytes()).tables[0]
    patch(path, 2 * CLUSTER, struct.pack(">Q", table * CLUSTER))
    with writing(path) as (writer, _fd):
        assert list(writer.place(0, 0, 1, False))  # the table stays as it is
    with unsuited(path, "an L2 table is not its own"), writing(path) as (writer, _fd):
        list(writer.place(0, 1, 1, False))


def test_an_l1_table_that_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, 2 * PER_TABLE)
    with unsuited(path, "L1 table is too short"), writing(path) as (writer, _fd):
        assert list(writer.place(1, 0, 1, False))
        list(writer.place(2, 0, 1, False))


def test_a_file_that_is_too_long_for_its_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    make(path, GUESTS, {0: 11})
    clusters = path.stat().st_size // CLUSTER
    monkeypatch.setattr(cluster_writer, "_MOST_CLUSTERS", clusters)
    with writing(path):
        pass
    monkeypatch.setattr(cluster_writer, "_MOST_CLUSTERS", clusters - 1)
    with unsuited(path, "its file is too long"), writing(path):
        pass


def test_a_table_of_counts_that_is_full(tmp_path: Path) -> None:
    """It names 64 blocks here, and each counts 256 clusters."""
    path, most = tmp_path / "image", PER_TABLE * PER_BLOCK
    make(path, 2 * most)
    with writing(path) as (writer, _fd):
        for index in range(most // PER_TABLE - 5):
            list(writer.place(index, 0, PER_TABLE, False))
            writer.forget_tables()
        with unsuited(path, "table of reference counts is full"):
            writer.require_room()
        writer.restart()
        list(writer.place(0, 0, PER_TABLE, False))
        writer.require_room()
