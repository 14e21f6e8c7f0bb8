# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random lives of a volume and its replica: both sides take, delete and revert, Cinder takes turns, and after each replication every point
of both sides shows what the model has."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.errors import Conflict
from ansible_collections.remotefs.storage.plugins.module_utils.operations.replicas import replicate, verify
from ansible_collections.remotefs.storage.plugins.module_utils.operations.up_to_date import ReplicaRequest

from .examples import property_settings
from .world import World, candidates, run

KIB = 1024
SIZES = st.integers(1, 40).map(lambda units: units * 64 * KIB) | st.integers(1, 4000).map(lambda sectors: sectors * 512)
WRITES = st.tuples(st.just("write"), st.integers(0, 4 * 1024 * KIB), st.integers(512, 256 * KIB), st.integers(0, 255))
REPLICATIONS = st.tuples(st.just("replicate"), st.booleans(), st.sampled_from(["sent", "all", "none"]))
OPERATIONS = st.lists(
    st.one_of(
        WRITES,
        WRITES,
        st.tuples(st.just("snapshot")),
        st.tuples(st.just("snapshot")),
        REPLICATIONS,
        REPLICATIONS,
        st.tuples(st.just("delete"), st.sets(st.integers(0, 5), min_size=1, max_size=3)),
        st.tuples(st.just("revert"), st.integers(0, 5)),
        st.tuples(st.just("grow"), st.integers(1, 2000)),
        st.tuples(st.just("anew"), st.integers(1, 255)),
        st.tuples(st.just("cinder takes"), st.integers(1, 255)),
        st.tuples(st.just("cinder deletes"), st.integers(0, 5)),
        st.tuples(st.just("replica deletes"), st.sets(st.integers(0, 5), min_size=1, max_size=3)),
        st.tuples(st.just("replica reverts"), st.integers(0, 5)),
        st.tuples(st.just("replica writes"), st.integers(0, 4 * 1024 * KIB), st.integers(1, 255)),
        st.tuples(st.just("replica takes"), st.booleans()),
    ),
    min_size=4,
    max_size=16,
)


class Source(World):
    """The source. ``tokens`` tells points apart that have the same name one after the other."""

    def __init__(self, share: Path, scratch: Path, image_format: str, size: int) -> None:
        super().__init__(share, scratch, image_format, size)
        self.numbers = itertools.count(1)
        self.tokens: dict[str, int] = {}

    def snapshot_named(self, name: str) -> str:
        super().snapshot_named(name)
        self.tokens[name] = next(self.numbers)
        return name

    def cinder_takes(self) -> None:
        """As OpenStack Cinder does it, which knows nothing of our records."""
        self.taken += 1
        name, volume = f"c{self.taken}", self.volume()
        file = f"vol.{name}"
        active = volume["chain"][0]
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(self.share / active["file"]), "-F", active["format"], str(self.share / file))
        run("qemu-img", "rebase", "-q", "-u", "-b", active["file"], "-F", active["format"], str(self.share / file))
        info = self.share / "vol.info"
        content = json.loads(info.read_text()) if info.exists() else {}
        info.write_text(json.dumps({**content, "active": file, name: file}))
        self.points[name], self.tokens[name] = bytes(self.active), next(self.numbers)

    def cinder_deletes(self, name: str) -> None:
        volume = self.volume()
        (file,) = [one["file"] for one in volume["snapshots"] if one["name"] == name]
        chain = {image["file"]: image for image in volume["chain"]}
        backing = chain[file]["backing_file"]
        run("qemu-img", "commit", "-q", "-d", str(self.share / file))
        above = [image["file"] for image in volume["chain"] if image["backing_file"] == file]
        info = self.share / "vol.info"
        content = json.loads(info.read_text())
        for other in above:
            run("qemu-img", "rebase", "-q", "-u", "-b", backing, "-F", chain[backing]["format"], str(self.share / other))
        if content["active"] == file:
            content["active"] = backing
        del content[name]
        info.write_text(json.dumps(content))
        (self.share / file).unlink()
        del self.points[name]


class Replica(World):
    """The replica, which replication makes. ``tokens``: those of received points."""

    def __init__(self, share: Path, scratch: Path) -> None:
        self.share, self.scratch = share, scratch
        self.candidates = candidates(share)
        self.warnings: list[str] = []
        self.active, self.points, self.taken, self.tokens = bytearray(), {}, 0, {}
        self.exists = False

    def expect(self, source: Source, discards: bool) -> bool:
        """Change the model as a replication shall change the replica. False: it shall be a conflict, and nothing changes."""
        ours, theirs = list(self.points), list(source.points)
        pairs = [(theirs.index(name), ours.index(name)) for name in ours if name in theirs and self.tokens.get(name) == source.tokens[name]]
        last = max(pairs, default=(-1, -1))
        sent = theirs[last[0] + 1 :]
        own = [name for name in ours[last[1] + 1 :] if name not in self.tokens]
        reused = [name for name in ours if name in sent and name not in own]
        kept = [name for name in ours if name not in (*own, *reused)]
        is_written = bool(kept) and bytes(self.active) != self.points[ours[-1]].ljust(len(self.active), b"\0")[: len(self.active)]
        lost = self.exists and not kept and bool(sent) and (bool(ours) or bytes(self.active) != source.points[sent[0]])
        if (own or reused or is_written or lost) and not discards:
            return False
        for name in (*own, *reused):
            del self.points[name]
            self.tokens.pop(name, None)
        for name in sent:
            self.points[name], self.tokens[name] = source.points[name], source.tokens[name]
        if self.points:
            newest = list(self.points)[-1]
            self.exists, self.active = True, self._present(newest, sent)
        return True

    def _present(self, newest: str, sent: list[str]) -> bytearray:
        """A revert keeps the size of the volume; what is received has the size of its point."""
        content = self.points[newest]
        return bytearray(content if newest in sent else content[: len(self.active)].ljust(len(self.active), b"\0"))


def replicate_both(source: Source, replica: Replica, discards: bool, verified: str) -> None:
    request = ReplicaRequest(source.candidates, "vol", replica.candidates, "vol", verify=verified, discards=discards)
    before = list(source.points), list(source.tokens)
    if not replica.expect(source, discards):
        for check in (True, False):
            with pytest.raises(Conflict):
                replicate(request, replica.options(check))
    else:
        done = replica.both_ways(lambda options: replicate(request, options))
        assert done.told is not None and {*done.told["points"]["present"], *done.told["points"]["kept"], *done.told["points"]["sent"]} == set(replica.points)
        if replica.exists:
            assert verify(request, replica.options()).changed is False
    assert before == (list(source.points), list(source.tokens))


def change(source: Source, operation: tuple) -> None:
    """What happens to the source alone."""
    kind, *arguments = operation
    names = list(source.points)
    if kind == "write":
        offset, length, value = arguments
        source.write(offset % len(source.active) // 512 * 512, length // 512 * 512, value)
    elif kind == "snapshot":
        source.snapshot()
    elif kind == "delete" and names:
        source.delete(sorted({names[index % len(names)] for index in arguments[0]}))
    elif kind == "revert" and names:
        source.revert(names[arguments[0] % len(names)])
    elif kind == "grow":
        source.grow(len(source.active) + arguments[0] * 512)
    elif kind == "anew" and names:
        name = names[-1]
        source.delete([name])
        source.write(0, 512, arguments[0])
        source.snapshot_named(name)
    elif kind == "cinder takes":
        source.write(512, 512, arguments[0])
        source.cinder_takes()
    elif kind == "cinder deletes" and names:
        source.cinder_deletes(names[arguments[0] % len(names)])


def apply(source: Source, replica: Replica, operation: tuple) -> None:
    kind, *arguments = operation
    ours = list(replica.points)
    change(source, operation)
    if kind == "replicate":
        replicate_both(source, replica, *arguments)
    elif kind == "replica deletes" and ours:
        replica.delete(sorted({ours[index % len(ours)] for index in arguments[0]}))
    elif kind == "replica reverts" and ours:
        replica.revert(ours[arguments[0] % len(ours)])
    elif kind == "replica writes" and replica.exists:
        replica.write(arguments[0] % len(replica.active) // 512 * 512, 512, arguments[1])
    elif kind == "replica takes" and replica.exists:
        if arguments[0]:
            replica.write(0, 512, 0xA5)
        replica.taken += 1
        replica.snapshot_named(f"own{replica.taken}")
    for gone in set(replica.tokens) - set(replica.points):
        del replica.tokens[gone]
    for gone in set(source.tokens) - set(source.points):
        del source.tokens[gone]


def live(image_format: str, size: int, operations: list) -> None:
    with tempfile.TemporaryDirectory(prefix="remotefs-property-") as directory:
        places = [Path(directory, name) for name in ("source", "replica", "scratch")]
        for place in places:
            place.mkdir()
        source, replica = Source(places[0], places[2], image_format, size), Replica(places[1], places[2])
        for operation in operations:
            apply(source, replica, operation)
            source.check() if not operation[0].startswith("cinder") else None
            if replica.exists:
                replica.check()


@given(st.sampled_from(["raw", "qcow2"]), SIZES, OPERATIONS)
@property_settings(10)
def test_random_lives(image_format: str, size: int, operations: list) -> None:
    live(image_format, size, operations)


@pytest.mark.slow
@given(st.sampled_from(["raw", "qcow2"]), SIZES, OPERATIONS)
@property_settings(100)
def test_many_random_lives(image_format: str, size: int, operations: list) -> None:
    live(image_format, size, operations)


def test_a_life_with_everything() -> None:
    """One life in which each operation comes, in an order that once was difficult."""
    live(
        "raw",
        1 << 20,
        [
            ("write", 0, 65536, 1),
            ("snapshot",),
            ("replicate", False, "sent"),
            ("write", 131072, 65536, 2),
            ("snapshot",),
            ("cinder takes", 3),
            ("replicate", False, "all"),
            ("revert", 1),
            ("replicate", False, "sent"),
            ("replica deletes", {0}),
            ("grow", 1000),
            ("write", 1048576, 65536, 4),
            ("snapshot",),
            ("cinder deletes", 1),
            ("replicate", True, "sent"),
            ("replica writes", 65536, 5),
            ("replicate", False, "sent"),
            ("replicate", True, "sent"),
            ("anew", 9),
            ("replicate", False, "none"),
            ("replicate", True, "all"),
        ],
    )
