# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of docs/how-it-works.md: what a record is worth for a file that may be another one than the recorded."""

from __future__ import annotations

import itertools
import os
from typing import NamedTuple

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import formats, records
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata.records import OTHER, SAME, UNKNOWN, Disk, Record

ASK, BROKEN = "ask", "broken"
QCOW2, VMDK = formats.QCOW2, "a VMDK image"


def outcome(verdict: formats.Verdict) -> str:
    """The format, with ``!`` where nothing else of the record counts and ``+`` where it has to learn of the file; or the question."""
    if verdict.format is None:
        assert verdict.doubt and not verdict.unmarked
        return ASK
    assert verdict.doubt is None and not (verdict.outlived and verdict.unmarked)
    return verdict.format + "!" * verdict.outlived + "+" * verdict.unmarked


# (recorded, identity, looks like): outcomes where the user says nothing, raw, qcow2
ALONE = {
    ("raw", SAME, None): ("raw", "raw", "raw"),
    ("raw", SAME, QCOW2): ("raw", "raw", "raw"),
    ("raw", SAME, VMDK): ("raw", "raw", "raw"),
    ("raw", UNKNOWN, None): ("raw", "raw", "raw"),
    ("raw", UNKNOWN, QCOW2): ("raw", "raw", "raw"),
    ("raw", UNKNOWN, VMDK): ("raw", "raw", "raw"),
    ("raw", OTHER, None): ("raw+", "raw+", "raw+"),
    ("raw", OTHER, QCOW2): (ASK, "raw+", "qcow2!"),
    ("raw", OTHER, VMDK): (ASK, "raw+", ASK),
    ("qcow2", SAME, None): ("qcow2", "qcow2", "qcow2"),
    ("qcow2", SAME, QCOW2): ("qcow2", "qcow2", "qcow2"),
    ("qcow2", SAME, VMDK): ("qcow2", "qcow2", "qcow2"),
    ("qcow2", UNKNOWN, None): ("qcow2", "raw!", "qcow2"),
    ("qcow2", UNKNOWN, QCOW2): ("qcow2", "qcow2", "qcow2"),
    ("qcow2", UNKNOWN, VMDK): ("qcow2", "raw!", "qcow2"),
    ("qcow2", OTHER, None): (ASK, "raw!", ASK),
    ("qcow2", OTHER, QCOW2): ("qcow2", "qcow2", "qcow2"),
    ("qcow2", OTHER, VMDK): (ASK, "raw!", ASK),
}


def test_a_file_of_which_only_the_record_speaks() -> None:
    for key in itertools.product(("raw", "qcow2"), (SAME, UNKNOWN, OTHER), (None, QCOW2, VMDK)):
        recorded, identity, looks = key
        found = tuple(outcome(formats.decide(recorded, None, False, identity, looks, said)) for said in (None, "raw", "qcow2"))
        assert found == ALONE[key], key


def test_a_header_above() -> None:
    """One that agrees is an answer by itself; of one that does not, the record is right unless it is of another file."""
    everything = itertools.product(("raw", "qcow2"), ("raw", "qcow2"), (SAME, UNKNOWN, OTHER), (None, QCOW2, VMDK), (None, "raw", "qcow2"))
    for recorded, above, identity, looks, said in everything:
        found = outcome(formats.decide(recorded, above, False, identity, looks, said))
        if recorded == above:
            assert found == recorded
        elif identity == OTHER and (above == "raw" or said == "qcow2"):
            assert found == above + "!"
        else:
            assert found == ASK


def test_an_overlay_is_never_raw() -> None:
    for identity, looks, said in itertools.product((SAME, UNKNOWN, OTHER), (None, QCOW2, VMDK), (None, "raw", "qcow2")):
        assert outcome(formats.decide("qcow2", None, True, identity, looks, said)) == "qcow2"


def test_no_guest_makes_a_raw_disk_an_image() -> None:
    """Whatever it looks like, a file that is recorded as raw becomes qcow2 by a user's word alone, and only where it is another one."""
    for above, overlay, identity, looks in itertools.product((None, "raw"), (False, True), (SAME, UNKNOWN, OTHER), (None, QCOW2, VMDK)):
        for said in (None, "raw") + (("qcow2",) if identity != OTHER else ()):
            assert formats.decide("raw", above, overlay, identity, looks, said).format in (None, "raw")


def test_a_base_whose_overlays_are_gone() -> None:
    assert formats.without_overlays(OTHER, None).doubt and formats.without_overlays(OTHER, "raw") == formats.Verdict("raw", outlived=True)
    for identity in (SAME, UNKNOWN):
        assert not formats.without_overlays(identity, "raw").outlived


class Case(NamedTuple):
    mark: Disk | None
    raw: bool
    inode: int
    length: int
    generation: int
    found: str


@pytest.mark.parametrize(
    "case",
    [
        Case(None, True, 7, 100, 1, UNKNOWN),
        Case(Disk(7, 100), True, 7, 100, 0, SAME),
        Case(Disk(7, 100), True, 7, 200, 0, SAME),
        Case(Disk(7, 100), True, 7, 99, 0, OTHER),
        Case(Disk(7, 100), True, 8, 100, 0, OTHER),
        Case(Disk(7, 100, 1), True, 7, 200, 1, SAME),
        Case(Disk(7, 100, 1), True, 7, 200, 2, OTHER),
        Case(Disk(7, 100, 1), True, 7, 200, 0, SAME),
        Case(Disk(7, 100), False, 7, 99, 0, SAME),
        Case(Disk(7, 100, 1), False, 7, 100, 2, OTHER),
        Case(Disk(7, 100), False, 8, 100, 0, OTHER),
        Case(Disk(0, 100), True, 8, 100, 0, SAME),
        Case(Disk(0, 100), True, 8, 101, 0, OTHER),
        Case(Disk(0, 100), True, 8, 99, 0, OTHER),
        Case(Disk(0, 100), False, 8, 100, 0, UNKNOWN),
    ],
)
def test_identity(case: Case) -> None:
    record = Record({"v": "raw" if case.raw else "qcow2"}, marks={"v": case.mark} if case.mark else {})
    status = os.stat_result((0o100660, case.inode, 0, 1, 0, 0, case.length, 0, 0, 0))
    assert records.identity(record, "v", status, lambda: case.generation) == case.found


def test_marks_in_a_record() -> None:
    record = Record({"v": "raw"}, disks={"v": Disk(7, 100)}, marks={"v": Disk(7, 100, 5)})
    assert records.parse("v", record.to_bytes("v")) == record
