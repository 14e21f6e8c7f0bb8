# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records keep what users say of volumes and snapshots, and those of older releases stay readable."""

from __future__ import annotations

import json

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import ChainBroken, NeedsRecovery
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Snapshot, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.plan import intent, planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import records

CREATED = "2026-11-22T14:40:00Z"


def volume() -> Volume:
    base = Image("v", "raw", 1 << 20)
    top = Image("v.s", "qcow2", 1 << 20, backing_file="v", backing_format="raw")
    snapshot = Snapshot("s", "v.s", CREATED, "why", {"a": "b"}, True, "2027-01-01T00:00:00Z")
    return Volume("v", (top, base), (snapshot,), info=True, adopted=True, created=CREATED, description="what", labels={"team": "web"})


def test_a_round() -> None:
    record = records.describing(volume())
    assert records.parse("v", record.to_bytes("v")) == record
    assert (record.created, record.description, record.labels) == (CREATED, "what", {"team": "web"})
    assert record.snapshots["s"]["expires"] == "2027-01-01T00:00:00Z"


def old(record: records.Record) -> dict:
    """As a release wrote it that knew none of these."""
    content = json.loads(record.to_bytes("v"))
    for key in ("created", "description", "labels"):
        del content[key]
    del content["snapshots"]["s"]["expires"]
    return content


def test_an_old_record() -> None:
    record = records.parse("v", json.dumps(old(records.describing(volume()))).encode())
    assert record is not None and (record.created, record.description, record.labels) == (None, "", {})
    assert record.snapshots["s"]["expires"] is None and record.snapshots["s"]["created"] == CREATED


@pytest.mark.parametrize("labels", [[1], 5, "text"])
def test_labels_that_are_none(labels: object) -> None:
    with pytest.raises(ChainBroken):
        records.parse("v", json.dumps({**old(records.describing(volume())), "labels": labels}).encode())


def planned() -> dict:
    plan = planner.create_snapshot(volume(), DesiredSnapshot("n", created=CREATED))
    return json.loads(json.dumps(intent.of_plan(plan, CREATED, {}).to_json()))


def test_an_intent_keeps_what_is_said_of_the_volume() -> None:
    """So that an operation that recovery finishes does not lose it."""
    found = intent.from_json("v", planned())
    assert found.after is not None and found.after.labels == {"team": "web"} and found.after.created == CREATED
    assert found.after.snapshots[0] == volume().snapshots[0]


def test_an_old_intent() -> None:
    content = planned()
    for place in (content["before"], content["after"]):
        for key in ("created", "description", "labels"):
            del place[key]
        for snapshot in place["snapshots"]:
            del snapshot["expires"]
    found = intent.from_json("v", content)
    assert found.after is not None and found.after.labels == {} and found.after.snapshots[0].expires is None


@pytest.mark.parametrize("labels", [[1], 5])
def test_an_intent_with_labels_that_are_none(labels: object) -> None:
    content = planned()
    content["after"]["labels"] = labels
    with pytest.raises(NeedsRecovery):
        intent.from_json("v", content)
