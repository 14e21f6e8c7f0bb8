# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arithmetic of clusters, against the same done on dictionaries; tests/benchmark compares the bytes with what is written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.plan import cost
from ansible_collections.remotefs.storage.plugins.module_utils.plan.cost import Allocation, Estimate

CLUSTER = 65536
LAYERS = st.dictionaries(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=6, max_size=6).map(bytes), max_size=3)


def layer(tables: dict[int, bytes]) -> Allocation:
    return Allocation(CLUSTER, 6, tables)


def row(*kinds: int) -> Allocation:
    return layer({0: bytes(kinds)})


def cells(allocation: Allocation) -> dict[tuple[int, int], int]:
    return {(index, entry): kind for index, table in allocation.tables.items() for entry, kind in enumerate(table) if kind}


@given(LAYERS, LAYERS)
def test_layers_over_each_other(upper: dict, lower: dict) -> None:
    a, b = layer(upper), layer(lower)
    assert cells(a.over(b)) == {**cells(b), **cells(a)}
    assert cells(a.outside(b)) == {where: kind for where, kind in cells(a).items() if where not in cells(b)}
    assert a.data == CLUSTER * sum(kind == 1 for kind in cells(a).values())


@given(st.lists(LAYERS, min_size=1, max_size=5), st.booleans())
def test_each_choice_moves_what_it_must(tables: list, onto: bool) -> None:
    """By the definition: a commit moves what the layers above hold together, a pull what those below hold and no other."""
    layers = [layer(one) for one in tables]
    known = {str(number): one for number, one in enumerate(layers)}
    found = cost.estimates(list(known), onto, known)
    assert found is not None and len(found) == len(layers)
    for index, estimate in enumerate(found):
        above: dict = {}
        for one in layers[index + 1 :]:
            above.update(cells(one))
        under: dict = {}
        for one in layers[:index]:
            under.update(cells(one))
        pulled = [kind for where, kind in under.items() if where not in above and where not in cells(layers[index]) and (kind == 1 or onto)]
        assert estimate.commit >= CLUSTER * sum(kind == 1 for kind in above.values())
        assert estimate.pull >= CLUSTER * sum(kind == 1 for kind in pulled)
        assert (estimate.commit == 0) == (not above)


def test_tables_are_counted() -> None:
    known = {"base": row(1, 0, 0, 0, 0, 0), "top": row(0, 1, 1, 0, 1, 0)}
    keeping_base, keeping_top = cost.estimates(["base", "top"], False, known) or []
    assert keeping_base == Estimate(commit=CLUSTER * 3 + 4 * 8, pull=0)  # data, entries from the first to the last
    assert keeping_top == Estimate(commit=0, pull=CLUSTER + 8 + 512)  # data, an entry, a sector of the header


def test_what_is_overwritten_in_its_place_changes_no_table() -> None:
    known = {"base": row(1, 1, 1, 1, 1, 1), "top": row(1, 1, 0, 0, 0, 0)}
    assert (cost.estimates(["base", "top"], False, known) or [])[0].commit == 2 * CLUSTER


def test_zeros_take_no_room_but_hide() -> None:
    known = {"base": row(1, 1, 0, 0, 0, 0), "top": row(2, 2, 0, 0, 0, 0)}
    assert cost.committed_into_raw(["top"], known) == 0
    assert cost.committed_into_raw(["base", "top"], known) == 0
    assert cost.pulled(["base"], ["top"], False, known) == 512  # the header alone
    zeros = {"top": row(0, 0, 2, 2, 0, 0), "base": known["base"]}
    assert cost.pulled(["top"], ["base"], True, zeros) == 2 * 8 + 512  # entries that hide what lies beneath
    assert cost.pulled(["top"], ["base"], False, zeros) == 512


def test_unknown_is_unknown() -> None:
    known = {"a": row(1, 0, 0, 0, 0, 0), "b": Allocation(2 * CLUSTER, 6, {})}
    assert cost.estimates(["a", "missing"], True, known) is None
    assert cost.estimates(["a", "b"], True, known) is None
    assert cost.committed_into_raw(["missing"], known) is None
    assert cost.pulled(["a"], ["b"], False, known) is None
