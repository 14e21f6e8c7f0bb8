# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records keep what users say of volumes and snapshots, and those of older releases stay readable."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import ChainBroken, NeedsRecovery
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Parent, Share, Snapshot, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.plan import intent, planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.packed_lines import packed
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import records
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata.records import OTHER, SAME, UNKNOWN, Disk, Garbage, Record

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


# ------------------------------------------------------------------------------------------------ what is not believed

FULL = records.describing(volume(), (Garbage("v.old", 3, 9),), {"v": Disk(7, 100)}, {"v": Disk(7, 100, 5)})


def read_with(**changes: object) -> Record | None:
    return records.parse("v", json.dumps({**json.loads(FULL.to_bytes("v")), **changes}).encode())


def test_a_round_of_all_that_a_record_can_have() -> None:
    for parent in (None, Parent("p", "golden", "p.s"), Parent("p", None, "p")):
        for plan in (None, planned()):
            point = {"s": {**FULL.snapshots["s"], "point": records.PointMark("ab12", 7, 0, "v", 6, 512, 99), "received": True}}
            record = Record(FULL.formats, point, plan, FULL.garbage, parent, None, FULL.disks, None, "", {}, FULL.marks, True)
            assert records.parse("v", record.to_bytes("v")) == record
    assert records.parse("v", FULL.to_bytes("v")) == FULL and FULL.active == "v.s"
    assert records.describing(volume()).snapshots["s"]["protected"] is True
    assert records.parse("v", None) is None


def test_only_files_of_its_own_with_a_format_are_described() -> None:
    odd = Volume("c", (Image("c", "qcow2", 512, backing_file="p"), Image("p", "raw", 512)), parent=Parent("p", None, "p"))
    assert records.describing(odd).formats == {"c": "qcow2"}
    assert records.describing(Volume("c", (Image("c", None, 512),))).formats == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"formats": {"../x": "raw"}},
        {"formats": {"v": "vmdk"}},
        {"garbage": [["/etc/passwd", 1, 1]]},
        {"garbage": [["v.old", 1]]},
        {"parent": {"volume": "../p", "snapshot": None, "file": "p"}},
        {"parent": {"volume": "p", "snapshot": None, "file": "a/b"}},
        {"active": "../x"},
        {"snapshots": {"s": {"file": "../x"}}},
        {"snapshots": {"s": ["file"]}},
        {"intent": "text"},
        {"intent": [1]},
        {"disks": {"v": [1]}},
        {"marks": {"v": [1, 2, 3, 4]}},
    ],
    ids=range(13),
)
def test_a_record_that_cannot_be_is_damaged(changes: dict) -> None:
    with pytest.raises(ChainBroken):
        read_with(**changes)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000, b'{"version": 1}'], ids=range(7))
def test_what_is_no_record_is_damaged(data: bytes) -> None:
    with pytest.raises(ChainBroken):
        records.parse("v", data)


def test_a_mark_without_a_generation_has_none() -> None:
    found = read_with(marks={"v": [7, 100]})
    assert found is not None and found.marks["v"] == Disk(7, 100, 0) == Disk(7, 100)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_version_of_another_release_is_left_alone(version: object) -> None:
    with pytest.raises(NeedsRecovery):
        read_with(version=version)
    assert json.loads(FULL.to_bytes("v"))["version"] == 1


def test_what_is_not_said_is_not_guessed() -> None:
    found = read_with(snapshots={"s": {}, "t": {"protected": "yes", "labels": None, "created": 5, "description": 7, "file": "v.t"}}, labels=None)
    assert found is not None and found.labels == {}
    no_point = {"point": None, "received": False, "checksum": None}
    assert found.snapshots["s"] == {"file": None, "created": None, "description": "", "labels": {}, "protected": False, "expires": None, **no_point}
    assert found.snapshots["t"] == {"file": "v.t", "created": "5", "description": "7", "labels": {}, "protected": False, "expires": None, **no_point}


@pytest.mark.parametrize(
    "point",
    [5, [], ["ab"], ["ab", 1, 2, "v"], {"a": 1}]
    + [["ab", 1, 2, "v", 3, 4, 5][:at] + [wrong] + ["ab", 1, 2, "v", 3, 4, 5][at + 1 :] for at in range(7) for wrong in ("../v", 1.5, None, {}, "")],
)
def test_what_is_no_identity_of_a_point_is_none(point: object) -> None:
    found = read_with(snapshots={"s": {"file": "v.s", "point": point}})
    assert found is not None and found.snapshots["s"]["point"] is None


def test_the_last_line_that_is_whole_counts() -> None:
    """A full share had them added in place; one that is torn never was."""
    first, second, third = (Record(description=text).to_bytes("v") for text in ("first", "second", "third"))
    for lines, wanted in (
        ([first], "first"),
        ([first, second], "second"),
        ([first, packed(second)], "second"),
        ([first, packed(second), packed(third)], "third"),
        ([first, packed(second), packed(third)[:-9]], "second"),
        ([first, packed(second)[:-9], packed(third)[:-9]], "first"),
        ([first, second[:-9]], "first"),
    ):
        found = records.parse("v", b"\n".join(lines))
        assert found is not None and found.description == wanted
    with pytest.raises(ChainBroken):
        records.parse("v", first[:-9] + b"\n" + second[:-9])


def test_a_share_without_records_has_none(tmp_path: Path) -> None:
    with ShareDirectory(Share(str(tmp_path), str(tmp_path), "directory")) as directory:
        assert records.read(directory, "v") is None
        directory.make_private("volumes")
        assert records.read(directory, "v") is None
        (tmp_path / ".remotefs/volumes" / records.file_name("v")).write_bytes(FULL.to_bytes("v"))
        assert records.read(directory, "v") == FULL and records.read(directory, "other") is None


# ------------------------------------------------------------------------------------------------------- which file it is


@pytest.mark.parametrize(
    "disk, format, inode, length, is_it",
    [
        (Disk(7, 100), "raw", 7, 100, True),
        (Disk(7, 100), "raw", 7, 101, True),  # it grew
        (Disk(7, 100), "raw", 7, 99, False),
        (Disk(7, 100), "raw", 8, 100, False),
        (Disk(7, 100), "qcow2", 7, 100, False),  # a guest's content is not looked at in raw disks alone
        (Disk(0, 100), "raw", 8, 100, True),  # without inodes the length has to do
        (Disk(0, 100), "raw", 8, 101, False),
        (Disk(0, 100), "raw", 0, 99, False),
        (None, "raw", 7, 100, False),
    ],
)
def test_a_raw_disk_in_which_a_guest_writes(disk: Disk | None, format: str, inode: int, length: int, is_it: bool) -> None:
    record = Record({"v": format}, disks={"v": disk} if disk else {})
    assert records.is_disk(record, "v", inode, length) is is_it


def test_a_file_without_a_mark_is_told_by_its_disk_and_a_longer_one_by_its_generation() -> None:
    status = os.stat_result((0o100660, 7, 0, 1, 0, 0, 200, 0, 0, 0))
    by_disk, marked = Record({"v": "raw"}, disks={"v": Disk(7, 200)}), Record({"v": "raw"}, marks={"v": Disk(7, 100, 1)}, disks={"v": Disk(8, 1)})
    assert records.identity(by_disk, "v", status) == SAME and records.identity(by_disk, "w", status) == UNKNOWN
    assert records.identity(marked, "v", status) == UNKNOWN  # nobody asked for the generation
    assert records.identity(marked, "v", status, lambda: 2) == OTHER
    same_length = Record({"v": "raw"}, marks={"v": Disk(7, 200, 1)})
    assert records.identity(same_length, "v", status, lambda: 2) == SAME
