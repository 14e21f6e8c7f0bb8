# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile tables for the engine that moves clusters: it refuses or succeeds, and never writes where it may not.

What it may write of a file that takes clusters is worked out here from the bytes alone, by another reading of the format.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from property.moving_world import Chain, LayerPlan, pattern

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.moving import Mover
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Share
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2 import Qcow2Error, cluster_writer, refcounts

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

SECONDS = 8 if os.environ.get("HYPOTHESIS_PROFILE") == "fast" else 20
SEEDS = range(20)
INPUTS = 200  # of each seed
MOST_CPU = 2  # seconds of processor for one input
OFFSET = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63


class Finding(AssertionError):
    """The engine did what it must not do."""


@contextmanager
def bounded() -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise Finding("it takes too long")

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


# -- what the bytes say ------------------------------------------------------------------------------------------------


def numbers(data: bytes, offset: int, length: int) -> list[int]:
    part = data[offset : offset + length].ljust(length, b"\0")
    return list(struct.unpack(f">{length // 8}Q", part))


@dataclass(frozen=True)
class Tables:
    """Where things are in the bytes of a version 3 image; offsets."""

    cluster: int
    l1_at: int
    l1: list[int]
    table_at: int
    table: list[int]

    @classmethod
    def of(cls, data: bytes) -> Tables:
        bits, entries, l1_at, table_at, clusters = struct.unpack_from(">I12xI2QI", data, 20)
        cluster = 1 << bits
        return cls(cluster, l1_at, numbers(data, l1_at, entries * 8), table_at, numbers(data, table_at, clusters * cluster))

    def l2(self, data: bytes) -> dict[int, int]:
        """Offset of each entry of all L2 tables → entry."""
        found = {}
        for entry in self.l1:
            if entry & OFFSET:
                for number, one in enumerate(numbers(data, entry & OFFSET, self.cluster)):
                    found[(entry & OFFSET) + number * 8] = one
        return found

    def kinds(self) -> dict[int, str]:
        """Number of a cluster → what table it holds, a part of."""
        found = {0: "header"}
        for start, length, kind in ((self.l1_at, len(self.l1) * 8, "L1"), (self.table_at, len(self.table) * 8, "refcount table")):
            found.update(dict.fromkeys(range(start // self.cluster, -(-(start + length) // self.cluster)), kind))
        found.update({(entry & OFFSET) // self.cluster: "L2" for entry in self.l1 if entry & OFFSET})
        found.update({entry // self.cluster: "refcount block" for entry in self.table if entry})
        return found


def changed_clusters(before: bytes, after: bytes, cluster: int) -> list[int]:
    starts = range(0, min(len(before), len(after)), cluster)
    return [
        start // cluster for start in starts if before[start : start + cluster] != after[start : start + cluster][: len(before) - start]
    ]


def judge(before: bytes, after: bytes, taken: int) -> None:
    """Compare a file that took clusters with what it was. :param taken: clusters that the others hold at most.

    :raises Finding: something else changed than may change.
    """
    tables, kinds = Tables.of(before), Tables.of(before).kinds()
    old, cluster = tables.l2(before), tables.cluster
    in_use = {entry & OFFSET for entry in old.values() if entry & OFFSET}
    end = max([*kinds, *(offset // cluster for offset in in_use)]) + 1
    if after[:cluster] != before[:cluster]:
        raise Finding("the header was changed")
    if len(after) > -(-len(before) // cluster) * cluster + cluster * (taken + len(tables.l1) + taken // 100 + 8):
        raise Finding("the file grew by more than was moved")
    now = Tables.of(after)
    # An L1 entry without an offset names nothing, whatever its other bits are: so QEMU reads it.
    for name, mask, one, other in (("L1", OFFSET, tables.l1, now.l1), ("refcount table", -1, tables.table, now.table)):
        for was, becomes in zip(one, other):
            if was != becomes and (was & mask or (becomes & OFFSET) // cluster < end):
                raise Finding(f"the {name} entry {was:#x} became {becomes:#x}")
    for number in changed_clusters(before, after, cluster):
        start = number * cluster
        kind = kinds.get(number, "data" if any(offset // cluster == number for offset in in_use) else "free")
        if kind in ("header",) or (kind == "data" and not owned(old, number, cluster)):
            raise Finding(f"{kind} in cluster {number} was changed")
        if kind == "L2":
            judge_table(old, after, start, cluster, end)
        elif kind == "refcount block":
            judge_block(tables, before, after, start, end)


def owned(old: dict[int, int], number: int, cluster: int) -> bool:
    """Whether an entry leads to just this cluster, as its only owner."""
    return any(entry & COPIED and entry & OFFSET == number * cluster for entry in old.values())


def judge_table(old: dict[int, int], after: bytes, start: int, cluster: int, end: int) -> None:
    for place in range(start, start + cluster, 8):
        (entry,) = numbers(after, place, 8)
        if entry == old[place]:
            continue
        kept = old[place] & OFFSET and entry & OFFSET == old[place] & OFFSET
        if not kept and entry not in (1, 0) and (entry & OFFSET) // cluster < end:
            raise Finding(f"the L2 entry {old[place]:#x} became {entry:#x}")


def judge_block(tables: Tables, before: bytes, after: bytes, start: int, end: int) -> None:
    first = tables.table.index(start) * (tables.cluster // 2)
    free = max(0, min(end - first, tables.cluster // 2)) * 2
    if before[start : start + free] != after[start : start + free]:
        raise Finding("a count of a cluster in use was changed")


# -- inputs ------------------------------------------------------------------------------------------------------------


def templates(path: Path) -> list[Chain]:
    """Small chains: data, zeros with and without a cluster, several tables, and a raw file beneath."""
    found = []
    for name, bits, base in (("a", 9, "qcow2"), ("b", 12, "qcow2"), ("c", 9, "raw")):
        (path / name).mkdir()
        options, c = f"cluster_size={1 << bits}", 1 << bits
        writes = [
            (pattern(1, 0, 70 * c), pattern(2, 80 * c, 2 * c), f"write -z {66 * c} {3 * c}"),
            (pattern(3, 60 * c, 12 * c), f"write -z -u {4 * c} {2 * c}", pattern(9, 50 * c, 2 * c), f"write -z {50 * c} {c}"),
            (pattern(4, 5 * c, 40 * c), f"write -z -u {61 * c} {2 * c}", pattern(5, 90 * c, 20 * c), pattern(6, 66 * c, 2 * c)),
        ]
        plans = [
            LayerPlan(130 * c, *((base, "") if base == "raw" and not number else ("qcow2", options)), one)
            for number, one in enumerate(writes)
        ]
        found.append(Chain(path / name, plans))
    return found


def hostile(rng: random.Random, data: bytes, tables: Tables) -> int:
    """A value for an entry of a table."""
    own = [0, tables.l1_at, tables.table_at, *(entry & OFFSET for entry in tables.l1), *tables.table[:2]]
    others = [entry & OFFSET for entry in tables.l2(data).values()]
    place = rng.choice(
        [
            rng.choice(own),
            rng.choice(others),
            len(data),
            len(data) - tables.cluster,
            len(data) // 512 * 512,
            len(data) + tables.cluster * rng.randrange(1, 1 << 20),
            rng.choice(others) + 512,
            rng.choice(own) + rng.choice([1, 8, 512]),
            rng.randrange(1 << 56),
            1 << rng.randrange(64),
        ]
    )
    return (place | rng.choice([0, COPIED, COPIED, COPIED, COPIED | 1, COPIED | 1, 1, 1 << 62, 1 << 56])) & (1 << 64) - 1


def places(rng: random.Random, tables: Tables) -> int:
    """The offset of eight bytes that are worth changing."""
    kind = rng.choice(["L1", "L2", "L2", "L2", "table", "block", "header"])
    l2 = [entry & OFFSET for entry in tables.l1 if entry & OFFSET]
    if kind == "L1":
        return tables.l1_at + 8 * rng.randrange(len(tables.l1))
    if kind == "L2" and l2:
        return rng.choice(l2) + 8 * rng.randrange(tables.cluster // 8)
    if kind == "table":
        return tables.table_at + 8 * rng.randrange(min(4, len(tables.table)))
    if kind == "block":
        return tables.table[0] + 8 * rng.randrange(tables.cluster // 8)
    return rng.choice([16, 20, 24, 32, 36, 40, 48, 52, 56, 60, 64, 72, 80, 88, 96, 100])


def mutated(rng: random.Random, data: bytes) -> bytes:
    tables, changed = Tables.of(data), bytearray(data)
    for _number in range(rng.choice([1, 1, 2, 3, 6])):
        place = places(rng, tables)
        changed[place : place + 8] = hostile(rng, data, tables).to_bytes(8, "big")
    if rng.randrange(8) == 0:
        del changed[rng.randrange(len(changed)) :]
    return bytes(changed)


class Arena:
    """Chains that are made again from their bytes, with some of these changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chains = [(chain, chain.bytes(), chain.images()) for chain in templates(path)]
        self.outcomes = {"done": 0, "refused": 0}

    def one(self, rng: random.Random) -> None:
        chain, plain, images = rng.choice(self.chains)
        victims = [file for file in plain if chain.formats[file] == "qcow2"]
        now = dict(plain)
        for file in rng.sample(victims, rng.choice([1, 1, 1, 2])):
            now[file] = mutated(rng, plain[file])
        for file, data in now.items():
            (chain.path / file).write_bytes(data)
        target, action = self.action(rng, images, chain)
        refused = self.attempt(chain, action)
        self.compare(chain, now, target, refused, images)
        self.outcomes["refused" if refused else "done"] += 1

    def action(self, rng: random.Random, images: tuple[Image, ...], chain: Chain) -> tuple[str | None, Callable[[Mover, ShareDirectory], None]]:
        files = [image.file for image in images]
        kind = rng.choice(["commit", "commit", "pull", "copy"])
        if kind == "commit":
            top = rng.randrange(len(files) - 1)
            into = files[rng.randrange(top + 1, len(files))]
            return into, lambda mover, _share: mover.commit(images[top:], into)
        if kind == "pull":
            below = rng.choice([None, files[-1]])
            return files[0], lambda mover, _share: mover.pull(images, below)
        return None, lambda mover, share: copied(chain.path / "copy", mover, share, images)

    def attempt(self, chain: Chain, action: Callable[[Mover, ShareDirectory], None]) -> bool:
        with bounded(), ShareDirectory(Share(str(chain.path), str(chain.path), "directory")) as directory:
            try:
                action(Mover(directory, "vol"), directory)
            except Qcow2Error:
                return True
        return False

    def compare(self, chain: Chain, was: dict[str, bytes], target: str | None, refused: bool, images: tuple[Image, ...]) -> None:
        for file, data in was.items():
            after = (chain.path / file).read_bytes()
            if file != target or refused:
                grown = len(data) > 72 and file == target and data[:24] + data[40:] == after[:24] + after[40 : len(data)]
                if data != after and not grown:
                    raise Finding(f"{file} was changed, and {target} was to be")
            elif chain.formats[file] == "qcow2" and not self.grew(data, after):
                judge(data, after, sum(len(one) // 512 for name, one in was.items() if name != file))

    def grew(self, data: bytes, after: bytes) -> bool:
        """Whether the engine had to raise the size first, which rewrites the header: the fields for it alone."""
        if data[24:40] == after[24:40]:
            return False
        if data[:24] + data[40:88] + data[96:512] != after[:24] + after[40:88] + after[96:512]:
            raise Finding("more of the header was changed than the size")
        judge(after[:512] + data[512:], after, len(after))
        return True


def copied(path: Path, mover: Mover, share: ShareDirectory, images: tuple[Image, ...]) -> None:
    with open(path, "w+b") as stream:
        os.ftruncate(stream.fileno(), images[0].size)
        mover.copy(share, images, stream.fileno(), "raw")
        if os.fstat(stream.fileno()).st_size != images[0].size:
            raise Finding("the copy has another size")


def fuzz(path: Path, inputs: int, seconds: float) -> dict[str, int]:
    arena, stop = Arena(path), time.monotonic() + seconds
    for seed in SEEDS:
        rng = random.Random(seed)
        for number in range(inputs):
            if time.monotonic() > stop:
                return arena.outcomes
            try:
                arena.one(rng)
            except Exception as error:
                raise Finding(f"seed {seed}, input {number}: {error!r}") from error
    return arena.outcomes


# -- tests -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hostile_tables(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, INPUTS, SECONDS)
    print(outcomes)
    assert min(outcomes.values()) > 100, "the inputs do not reach what they are for"


def blind_to_owners(self: cluster_writer.ClusterWriter, entry: int) -> None:
    """Overwrites whatever an entry leads to."""


def no_metadata(_self: cluster_writer.ClusterWriter) -> frozenset[int]:
    return frozenset([0])


def counts_from_the_start(self: refcounts.Counts, first: int, end: int, new: Any) -> None:
    write_counts(self, 0, end, new)


write_counts = refcounts.Counts.write

BUGS: dict[str, tuple] = {
    "it does not ask who owns a cluster": (cluster_writer.ClusterWriter, "_overwrite", blind_to_owners),
    "it does not know where the tables are": (cluster_writer.ClusterWriter, "_metadata", no_metadata),
    "it counts what was counted": (refcounts.Counts, "write", counts_from_the_start),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BUGS[bug])
    with pytest.raises(Finding):
        fuzz(tmp_path, INPUTS, SECONDS)
