# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of items that depend on each other, against its definition."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import order, runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume

MIB = 1 << 20


@given(st.integers(1, 12).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))))))
def test_everything_once_and_behind_what_it_waits_for(given_edges: tuple) -> None:
    count, edges = given_edges
    edges = {(first, then) for first, then in edges if first != then}
    found = order._sorted(count, edges)
    assert sorted(found) == list(range(count))
    place = {index: position for position, index in enumerate(found)}
    if all(first < then for first, then in edges):
        assert found == list(range(count))
    if acyclic(count, edges):
        assert all(place[first] < place[then] for first, then in edges)


def acyclic(count: int, edges: set) -> bool:
    left = set(range(count))
    while left:
        free = {index for index in left if not any(then == index and first in left for first, then in edges)}
        if not free:
            return False
        left -= free
    return True


def put(path: Path, *names: str) -> Candidates:
    shares = Candidates((Share(str(path), str(path), "directory"),))
    for name in names:
        volumes.ensure_present(updating.VolumeRequest(shares, DesiredVolume(name, size=MIB)), Options())
    return shares


def link(shares: Candidates, clone: str, parent: str) -> None:
    source = updating.SourceRequest(parent, linked=True)
    volumes.ensure_present(updating.VolumeRequest(shares, DesiredVolume(clone), source), Options())


@pytest.mark.parametrize(
    "wanted, expected",
    [
        ("new<a a", [0, 1]),  # a stands: as asked for
        ("new<x x", [1, 0]),  # x does not stand yet
        ("new<x y<new x", [2, 0, 1]),
        ("y<new new<x x", [2, 1, 0]),
        ("-a new<a", [1, 0]),  # before it goes
        ("-a new<a a", [0, 2, 1]),  # of the one that is made anew
        ("-a a new<a", [0, 1, 2]),
        ("-a -c1 -c2", [2, 1, 0]),
        ("-a -b -c2 -c1", [1, 2, 3, 0]),
        ("-c2 -c1 -a", [0, 1, 2]),
        ("-a =c1 -c2", [2, 1, 0]),  # c1 is cut loose from a, and c2, which rests on both, has to be gone by neither but a
        ("-b -a", [0, 1]),
        ("x<y y<x", [0, 1]),  # round in a circle
        ("x<x", [0]),
        ("-a -none", [0, 1]),
    ],
)
def test_orders(tmp_path: Path, wanted: str, expected: list[int]) -> None:
    shares = put(tmp_path, "a", "b")
    link(shares, "c1", "a")
    link(shares, "c2", "c1")
    items = []
    for word in wanted.split():
        name, _sign, source = word.lstrip("-=").partition("<")
        change = order.Change(shares, name, word[0] == "-", source or None, word[0] == "=")
        items.append(runner.Item(name, frozenset([name]), lambda _options: None, change=change))
    found, _names = order.arrange(items)
    if wanted == "-a =c1 -c2":
        assert found[-1] == 0 and sorted(found) == [0, 1, 2]
    else:
        assert found == expected


def test_items_that_wait_share_a_name(tmp_path: Path) -> None:
    """So that they are never under way side by side, even where a batch leaves them to be run alone."""
    shares = put(tmp_path, "a")
    link(shares, "c", "a")
    items = [runner.Item(name, frozenset([name]), lambda _options: None, change=order.Change(shares, name, True)) for name in ("a", "c")]
    found, names = order.arrange(items)
    assert found == [1, 0] and names == {0: frozenset({"c"})}


@pytest.mark.parametrize(
    "wanted, expected",
    [
        ([("vol", "here", "vol", "there"), ("vol", "there", None, None)], [1, 0]),  # made there later: first
        ([("vol", "here", "a", "there"), ("a", "there", "-", None)], [0, 1]),
        ([("a", "there", "-", None), ("vol", "here", "a", "there")], [1, 0]),  # before it goes
        ([("a", "there", "-", None), ("a", "here", "a", "there")], [1, 0]),  # of one name on two shares
        ([("a", "here", "-", None), ("a", "here", "a", "there")], [0, 1]),  # the copy goes and comes again
        ([("x", "here", "a", "there"), ("a", "here", None, None)], [0, 1]),  # another volume of that name
        ([("x", "here", "new", "alias"), ("new", "there", None, None)], [1, 0]),  # a directory under two names
        ([("x", "here", "x", "here")], [0]),
        ([("vol", "here", "vol", "there"), ("vol", "there", "vol", "here")], [0, 1]),  # round in a circle
    ],
)
def test_orders_between_shares(tmp_path: Path, wanted: list, expected: list[int]) -> None:
    """(volume, share, source or "-" for its removal, the share of the source)."""
    shares = {}
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        shares[name] = put(tmp_path / name, *(["a"] if name == "there" else []))
    (tmp_path / "alias").symlink_to(tmp_path / "there")
    shares["alias"] = put(tmp_path / "alias")
    items = []
    for name, share, source, elsewhere in wanted:
        absent = source == "-"
        change = order.Change(shares[share], name, absent, None if absent else source, source_candidates=shares.get(elsewhere))
        items.append(runner.Item(name, frozenset([name]), lambda _options: None, change=change))
    assert order.arrange(items)[0] == expected
