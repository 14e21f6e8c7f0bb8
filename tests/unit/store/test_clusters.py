# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""L2 tables as runs: both say the same, and a run ends only where it must."""

from __future__ import annotations

import array

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.clusters import run_of, split

CLUSTER = 4096
ENTRIES = CLUSTER // 8
COPIED = 1 << 63

RUNS = st.tuples(
    st.sampled_from([0, 0, 1, CLUSTER, 7 * CLUSTER, COPIED | 5 * CLUSTER, COPIED | 6 * CLUSTER, COPIED | 5 * CLUSTER | 1]),
    st.sampled_from([1, 1, 2, 63, 64, 65, 130]),
)


@given(st.lists(RUNS, max_size=12))
def test_tables_as_runs(parts: list[tuple[int, int]]) -> None:
    table = array.array("Q")
    for entry, count in parts:
        table.extend(run_of(entry, count, CLUSTER))
    table = (table + array.array("Q", bytes(CLUSTER)))[:ENTRIES]
    runs = list(split(table, CLUSTER))
    again = array.array("Q")
    for position, count, first in runs:
        assert position == len(again)
        again.extend(run_of(first, count, CLUSTER))
    assert again == table
    for run, following in zip(runs, runs[1:]):
        assert run_of(run[2], run[1] + 1, CLUSTER)[-1] != following[2], "it could go on"
