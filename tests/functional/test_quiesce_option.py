# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the option quiesce goes with, and what is told of volumes that nobody has open. tests/live has machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .test_errors import module

UNUSED = {"quiesced": False, "quiesce_reason": "no machine has it open"}


def told(found: dict) -> dict:
    return {key: found[key] for key in ("quiesced", "quiesce_reason") if key in found}


@pytest.fixture
def share(tmp_path: Path) -> str:
    for name in ("v", "w"):
        assert module("remotefs_volume", {"share": str(tmp_path), "name": name, "size": "1M"})["changed"]
    return str(tmp_path)


@pytest.mark.parametrize("quiesce", [True, "true", "auto"])
def test_a_machine_that_is_off(share: str, quiesce: object) -> None:
    """A snapshot of it is consistent, so that it does not fail. A second run takes none, and has nothing to tell."""
    wanted: dict[str, Any] = {"share": share, "volume": "v", "name": "s", "quiesce": quiesce}
    for check in (True, False):
        found = module("remotefs_snapshot", {**wanted, "_ansible_check_mode": check})
        assert found["changed"] and told(found) == UNUSED, found
    again = module("remotefs_snapshot", wanted)
    assert not again["changed"] and told(again) == {}
    attachment = {"qmp": "/nobody/here", "agent": "/nobody/there"}
    gone = module("remotefs_snapshot", {**wanted, "name": "t", "attachment": attachment, "keep": {"match": "s", "last": 1}})
    assert gone["changed"] and told(gone) == UNUSED, "retention does not hide it"


def test_groups_and_items(share: str) -> None:
    group = module("remotefs_snapshot", {"share": share, "volumes": ["v", "w"], "name": "g", "quiesce": True})
    assert [told(one) for one in group["results"]] == [UNUSED] * 2 and told(group) == {}
    items = [{"volume": "v", "name": "i"}, {"volume": "w", "name": "i", "quiesce": False}]
    bulk = module("remotefs_snapshot", {"share": share, "quiesce": "auto", "snapshots": items})
    assert [told(one) for one in bulk["results"]] == [UNUSED, {}]
    assert told(module("remotefs_snapshot", {"share": share, "volume": "v", "name": "plain"})) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"name": "s", "state": "absent"},
        {"name": "s", "state": "reverted"},
        {"state": "pruned"},
        {"keep": {"match": "*", "last": 1}},
    ],
)
def test_where_no_snapshot_is_taken_it_is_refused(share: str, options: dict) -> None:
    found = module("remotefs_snapshot", {"share": share, "volume": "v", "quiesce": True, **options})
    assert found["failed"] and found["error_code"] == "invalid_parameter" and "quiesce is of a snapshot" in found["msg"]
    items = module("remotefs_snapshot", {"share": share, "quiesce": True, "snapshots": [{"volume": "v", **options}, {"volume": "w", "name": "t"}]})
    assert [one["failed"] for one in items["results"]] == [True, False] and items["results"][0]["error_code"] == "invalid_parameter"
    assert not module("remotefs_snapshot", {"share": share, "volume": "v", "quiesce": False, "keep": {"match": "*", "last": 1}}).get("failed")


@pytest.mark.parametrize("value", ["maybe", 2, ["true"]])
def test_other_values_are_refused(share: str, value: object) -> None:
    found = module("remotefs_snapshot", {"share": share, "volume": "v", "name": "s", "quiesce": value})
    assert found["failed"] and found["error_code"] == "invalid_parameter"


@pytest.mark.parametrize("name", ["remotefs_snapshot", "remotefs_volume"])
def test_what_is_no_path_of_a_channel_is_refused(share: str, name: str) -> None:
    options = {"volume": "v", "name": "s"} if name == "remotefs_snapshot" else {"name": "v", "size": "1M"}
    found = module(name, {"share": share, **options, "attachment": {"qmp": "/run/q", "agent": "/" + "x" * 200}})
    assert found["failed"] and "attachment.agent" in found["msg"]
