# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which plans may take long, and which steps of a record are believed."""

from __future__ import annotations

from dataclasses import fields

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.plan import recorded_steps, steps
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


NO_FILES = {"format", "backing_format", "into_format", "preallocation", "source", "identified"}  # texts of steps that are no file of the share


def test_every_text_of_a_step_is_a_file_or_is_known_to_be_none() -> None:
    """Names in a record are checked before they are believed. A new field has to be in one of both lists."""
    for kind in recorded_steps._TYPES.values():
        texts = {field.name for field in fields(kind) if "str" in str(field.type)}
        assert texts <= {*recorded_steps._FILE_FIELDS, *NO_FILES, *({"snapshots"} if kind is steps.WriteInfo else ())}, kind


@pytest.mark.parametrize("kind", recorded_steps._TYPES)
def test_no_step_from_a_record_leads_out_of_the_share(kind: str) -> None:
    sound = {"int": 512, "str": "vol", "bool": False}
    step = {field.name: next((value for name, value in sound.items() if name in str(field.type)), None) for field in fields(recorded_steps._TYPES[kind])}
    step = {**step, "type": kind, **({"snapshots": [["s1", "vol.s1"]]} if kind == "WriteInfo" else {})}
    recorded_steps.from_json(step)
    for name in set(step) & set(recorded_steps._FILE_FIELDS):
        with pytest.raises(ValueError):
            recorded_steps.from_json({**step, name: "../vol"})
    if kind == "WriteInfo":
        with pytest.raises(ValueError):
            recorded_steps.from_json({**step, "snapshots": [["s1", "../vol.s1"]]})
