# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which plans may take long."""

from __future__ import annotations

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.plan.plan import Plan
from ansible_collections.remotefs.storage.plugins.module_utils.plan.steps import (
    Commit,
    CopyImage,
    CreateImage,
    CreateOverlay,
    Grow,
    Pull,
    Repoint,
    Step,
    WriteRecord,
)

GIB = 1 << 30


@pytest.mark.parametrize(
    "step, much",
    [
        (Commit("a", "b", "raw", GIB), True),
        (Commit("a", "b", "raw", 65536), False),
        (Commit("a", "b", "raw"), True),  # nobody knows
        (Pull("a", None, None, GIB), True),
        (Pull("a", None, None, 0), False),
        (CopyImage("a", "raw", GIB, "b", GIB), True),
        (CopyImage("a", "raw", GIB, "b", 4096), False),
        (CreateImage("a", "raw", GIB), False),
        (CreateImage("a", "qcow2", GIB, "metadata"), False),
        (CreateImage("a", "raw", GIB, "full"), True),
        (CreateImage("a", "raw", GIB, "falloc"), True),  # where there is no fallocate, zeros are written
        (Grow("a", "qcow2", GIB), False),
        (Grow("a", "qcow2", GIB, zero=True), True),
        (CreateOverlay("a", "b", "raw", GIB), False),
        (Repoint("a", "b", "raw"), False),
    ],
    ids=str,
)
def test_what_moves_much(step: Step, much: bool) -> None:
    plan = Plan("present", "vol", (WriteRecord("vol"), step), None, None)
    assert plan.moves_much is much
