# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random lists of volumes on small shares: check mode, one item at a time and many at a time make the same ones, on the same
shares."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator, NamedTuple
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils import changes
from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.operations import capacity
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Finder
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.modules import remotefs_volume

MIB = 1 << 20
DEFAULTS = {name: option.get("default") for name, option in remotefs_volume._VOLUME.items()}
NEW = ["n0", "n1", "n2", "n3", "n4", "n5"]
OLD = ["golden", "lean"]  # both are there: four MiB of data in eight, and eight with nothing in them


class Figures(NamedTuple):
    """As of statvfs, of a share as large as the test says, in which its files take what they take."""

    f_blocks: int
    f_bavail: int
    f_frsize: int = 512


class World:
    """A few directories that are shares of these sizes (MiB), each with some volumes; the figures are made up, all else is real."""

    def __init__(self, root: Path, sizes: list[int]) -> None:
        self.sizes = {str(root / f"s{number}"): size * MIB for number, size in enumerate(sizes)}
        for path in self.sizes:
            os.mkdir(path)
        first = next(iter(self.sizes))
        self.run([{"name": "golden", "size": "8M", "snapshot": "p"}, {"name": "lean", "size": "8M"}], 1, {"share": first, "max_over_subscription_ratio": 1e9})
        with open(f"{first}/lean", "r+b") as base:
            base.write(os.urandom(4 * MIB))

    def statvfs(self, path: object) -> Figures:
        size = self.sizes[str(path)]
        used = sum(blocks(os.path.join(where, name)) for where, _folders, files in os.walk(str(path)) for name in files)
        return Figures(size // 512, max(0, size // 512 - used))

    def run(self, items: list[dict], parallel: int, task: dict, check: bool = False) -> list:
        finder = Finder()
        every = [changes.merged(item, {**DEFAULTS, "mount_base": "/nowhere", "share": list(self.sizes), **task}) for item in items]
        with mock.patch.object(capacity.os, "statvfs", self.statvfs):
            made = [remotefs_volume._item(params, finder) for params in every]
            return runner.run_all(made, parallel, Options(check=check, assume=check, lock_timeout=20))


def blocks(path: str) -> int:
    try:
        return os.lstat(path).st_blocks
    except FileNotFoundError:  # a temporary name that is gone by now
        return 0


def told(outcomes: list) -> list:
    """What a user sees of each item: its error, or where its volume is."""
    return [
        outcome.error_code if isinstance(outcome, StorageError) else (outcome.changed, outcome.after and os.path.basename(outcome.after["mountpoint"]))
        for outcome in outcomes
    ]


def three_ways(sizes: list[int], items: list[dict], task: dict) -> tuple[list, World]:
    """What all three ways tell, which has to be the same, and the world after the last one."""
    seen = []
    for parallel, check in ((1, True), (1, False), (8, False)):
        _remove_worlds()  # a hundred examples would fill a small disk
        root = Path(tempfile.mkdtemp(prefix="placement-"))
        ROOTS.append(root)
        world = World(root, sizes)
        seen.append(told(world.run(items, parallel, task, check)))
    assert seen[0] == seen[1] == seen[2], f"check, one at a time, many at a time:\n{seen[0]}\n{seen[1]}\n{seen[2]}"
    return seen[0], world


ROOTS: list[Path] = []


def _remove_worlds() -> None:
    while ROOTS:
        shutil.rmtree(ROOTS.pop())


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    _remove_worlds()


SIZES = st.sampled_from(["1M", "4M", "8M", "20M"])
EMPTY = st.fixed_dictionaries(
    {"name": st.sampled_from(NEW), "size": SIZES},
    optional={"format": st.sampled_from(["raw", "qcow2"]), "preallocation": st.just("falloc"), "reserved_percentage": st.sampled_from([0, 30, 60])},
)
CLONE = st.builds(
    lambda name, volume, snapshot, linked, rest: {
        "name": name,
        "source": {"volume": volume, "snapshot": "p" if snapshot and volume == "golden" else None, "method": "linked" if linked else "full"},
        **rest,
    },
    st.sampled_from(NEW),
    st.sampled_from([*OLD, *NEW[:3]]),
    st.booleans(),
    st.booleans(),
    st.fixed_dictionaries({}, optional={"size": st.sampled_from(["8M", "12M"])}),
)
STANDING = st.builds(lambda name, size: {"name": name, "size": size}, st.sampled_from(OLD), st.sampled_from(["4M", "8M", "16M"]))
GOING = st.builds(lambda name: {"name": name, "state": "absent", "cascade": True}, st.sampled_from([*OLD, *NEW]))
BAD = st.sampled_from([{"name": "bad name", "size": "1M"}, {"name": "n5"}, {"name": "n4", "size": "1M", "preallocation": "metadata"}])


def of_one_task(items: list[dict]) -> bool:
    """Whether each source is made in the task or was there, and none is missing because sources go round in a circle: of others check mode
    assumes that an earlier task makes them. A name is there once: lists that say two things of one volume are refused."""
    if len({item["name"] for item in items}) < len(items):
        return False
    made = {item["name"] for item in items if item.get("state") != "absent"} | set(OLD)
    sources = [(item["name"], item["source"]["volume"]) for item in items if "source" in item]
    if not all(volume in made for _name, volume in sources):
        return False
    while sources:
        clones = {name for name, _volume in sources}
        left = [(name, volume) for name, volume in sources if volume in clones]
        if len(left) == len(sources):
            return False
        sources = left
    return True


ITEMS = st.lists(st.one_of(EMPTY, EMPTY, CLONE, STANDING, GOING, BAD), min_size=2, max_size=9).filter(of_one_task)


@given(
    st.lists(st.sampled_from([12, 24, 40]), min_size=1, max_size=3),
    ITEMS,
    st.fixed_dictionaries({"max_over_subscription_ratio": st.sampled_from([0.5, 1.0, 2.0, 20.0])}),
)
def test_all_ways_make_the_same_volumes(sizes: list[int], items: list[dict], task: dict) -> None:
    made_here = {item["name"] for item in items}
    if any(item["source"]["volume"] in made_here for item in items if "source" in item):
        sizes = sizes[:1]  # how much room a copy of what is made in the task needs is known when that is there: where it goes then may differ
    three_ways(sizes, items, task)
    while ROOTS:
        shutil.rmtree(ROOTS.pop())


def names(number: int, **keys: object) -> list[dict]:
    return [{"name": f"n{count}", **keys} for count in range(number)]


def full(name: str, source: str) -> dict:
    return {"name": name, "source": {"volume": source, "snapshot": None, "method": "full"}}


NONE = "no_eligible_share"
AT_0, AT_1 = (True, "s0"), (True, "s1")
CASES: dict[str, tuple[list[int], list[dict], dict, list]] = {
    "virtual sizes on one share": ([40], names(6, size="256M"), {}, [AT_0] * 3 + [NONE] * 3),
    "virtual sizes on two": ([40, 40], names(8, size="256M"), {}, [AT_1, AT_1, AT_1, AT_0, AT_0, AT_0, NONE, NONE]),
    "reserved room": ([24], names(2, size="6M", preallocation="falloc", reserved_percentage=50), {}, [AT_0, NONE]),
    "preallocated on two": ([24, 24], names(6, size="9M", preallocation="falloc"), {}, [AT_1, AT_0, AT_1, AT_0, NONE, NONE]),
    "one as large as the share": ([40, 12], names(1, size="12M", preallocation="falloc") + [{"name": "lean"}], {}, [AT_0, (False, "s0")]),
    "full clones of what is made in the task": (
        [40],
        [{"name": "n0", "size": "9M", "preallocation": "falloc"}, full("n1", "n0"), full("n2", "n0"), full("n3", "n0"), full("n4", "n3")],
        {},
        [AT_0, AT_0, AT_0, NONE, "volume_not_found"],
    ),
    "linked clones count in full": (
        [12],
        [{"name": f"n{count}", "source": {"volume": "golden", "snapshot": "p", "method": "linked"}} for count in range(3)],
        {"max_over_subscription_ratio": 2.5},
        [AT_0, NONE, NONE],
    ),
    "a linked clone that is larger than its source": (
        [12],
        [{"name": "n0", "size": "24M", "source": {"volume": "golden", "snapshot": "p", "method": "linked"}}, {"name": "n1", "size": "4M"}],
        {"max_over_subscription_ratio": 3.0},
        [NONE, AT_0],
    ),
    "what goes first gives room": (
        [12],
        [{"name": "golden", "state": "absent", "cascade": True}, {"name": "lean", "state": "absent"}, *names(2, size="9M", preallocation="falloc")],
        {},
        [(True, None), (True, None), AT_0, NONE],
    ),
    "what fails gives its room to others": (
        [40],
        [{**full("n0", "golden"), "size": "4M"}, *names(4, size="12M")[1:]],
        {"max_over_subscription_ratio": 1.3},
        ["would_shrink", AT_0, AT_0, AT_0],
    ),
    "whoever had no room comes after one that failed": (
        [40],
        [{"name": "n0", "size": "20M", "preallocation": "metadata"}, *names(3, size="12M")[1:]],
        {"max_over_subscription_ratio": 1.0},
        ["invalid_parameter", AT_0, AT_0],
    ),
    "made anew in the task": (
        [24],
        [{"name": "golden", "state": "absent", "cascade": True}, {"name": "golden", "size": "12M"}, full("n0", "golden")],
        {},
        [(True, None), AT_0, AT_0],
    ),
    "removed twice": (
        [12],
        [{"name": "lean", "state": "absent"}, {"name": "lean", "state": "absent"}],
        {},
        [(True, None), (False, None)],
    ),
    "two of one name with another policy": (
        [12],
        [
            {"name": "n0", "size": "1M", "preallocation": "falloc", "reserved_percentage": 60},
            {"name": "n0", "size": "1M", "preallocation": "falloc", "reserved_percentage": 30},
        ],
        {},
        [NONE, AT_0],
    ),
    "what grows first takes its part": (
        [12],
        [{"name": "lean", "size": "16M"}, {"name": "n0", "size": "1M"}, {"name": "golden", "size": "100M"}],
        {"max_over_subscription_ratio": 2.0},
        [AT_0, NONE, AT_0],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_made_and_where(case: str) -> None:
    sizes, items, task, expected = CASES[case]
    seen, _world = three_ways(sizes, items, task)
    assert seen == expected
