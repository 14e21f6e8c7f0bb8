# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of a diff about many volumes, and the message of a task in which several failed."""

from __future__ import annotations

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors, together
from ansible_collections.remotefs.storage.plugins.module_utils.operations import diffs

GIB = 1 << 30


def point(name: str, file: str | None = None, **details: object) -> dict:
    return {"name": name, "file": file or f"v.{name}", "description": "", "labels": {}, "protected": False, "expires": None, **details}


def volume(*points: dict, **given: object) -> dict:
    """As a diff has it: a raw base, and an overlay for each snapshot."""
    files = ["v", *(one["file"] for one in points)]
    chain = [{"file": file, "format": "qcow2", "backing_file": below, "size": GIB} for file, below in zip(files[1:], files)][::-1]
    found = {
        "name": "v", "share": "s", "path": f"/s/{files[-1]}", "format": "qcow2" if points else "raw", "base_format": "raw", "size": GIB, "description": "",
        "labels": {}, "parent": None, "snapshots": list(points), "chain": [*chain, {"file": "v", "format": "raw", "backing_file": None, "size": GIB}],
    }
    return {**found, **given}


A, B, C = point("a"), point("b"), point("c")
CREATED = {"step": "create", "file": "v", "mode": "0640", "preallocation": "full", "uid": 0, "gid": 7}
CASES = [
    ({}, volume(), [], ["+ volume v: raw, 1 GiB, /s/v"]),
    ({}, volume(size=None, format=None), [], ["+ volume v: format unknown, size unknown, /s/v"]),
    ({}, volume(), [{"step": "create", "mode": "0660", "preallocation": "off"}], ["+ volume v: raw, 1 GiB, /s/v"]),
    ({}, volume(), [CREATED], ["+ volume v: raw, 1 GiB, /s/v, preallocation full, mode 0640, owner 0, group 7"]),
    ({}, volume(labels={"a": "b\n- volume x"}), [], ['+ volume v: raw, 1 GiB, /s/v, labels "a=b\\n- volume x"']),
    ({}, volume(parent={"volume": "g", "snapshot": "s"}), [], ["+ volume v: raw, 1 GiB, /s/v, on g@s"]),
    (volume(A), {}, [], ["- volume v: qcow2, 1 GiB, /s/v.a, snapshots a"]),
    (volume(), volume(A), [], ["+ snapshot v@a, the active image is now /s/v.a"]),
    (volume(), volume(point("a", protected=True, expires="T", labels={"k": "v"})), [], [
        "+ snapshot v@a, labels k=v, protected, expires T, the active image is now /s/v.a"]),
    (volume(A, B), volume(A), [], ["- snapshot v@b, merged into v.a, the active image is now /s/v.a"]),
    (volume(A, B, C), volume(C, chain=[{"file": "v.c"}, {"file": "v.a"}]), [], ["- snapshot v@a, merged into v.a", "- snapshot v@b, merged into v.a"]),
    (volume(A, B, C), volume(point("a", "v.b"), C, chain=[{"file": "v.c"}, {"file": "v.b"}, {"file": "v"}]), [], ["- snapshot v@b, merged into v.b"]),
    (volume(A, B), volume(A, C), [], ["+ snapshot v@c, the active image is now /s/v.c", "- snapshot v@b, merged into v.a"]),
    (volume(A), volume(point("a", description="x")), [], ['~ snapshot v@a: description "" -> "x"']),
    (volume(), volume(size=2 * GIB, labels={"a": "b"}), [], ["~ volume v: labels none -> a=b, 1 GiB -> 2 GiB"]),
    (volume(), volume(), [{"step": "set_attributes", "mode": "0660"}, {"step": "set_attributes", "mode": "0660"}], ["~ volume v: mode 0660"]),
    (volume(parent={"volume": "g", "snapshot": "s"}), volume(), [], ["~ volume v: rests no longer on g"]),
    (volume(A), volume(point("a", "v.a-1"), share="t", path="/t/v.a-1"), [], [
        "~ volume v: is on t now, and removed on s, the active image is now /t/v.a-1"]),
    (volume(A, B, content="old"), volume(A, content="new"), [], [
        "- snapshot v@b, discarded, the active image is now /s/v.a", "- content of v: old", "+ content of v: new"]),
    (volume(), volume(chain=[]), [], None),  # a header that was healed: only the whole tells it
    (volume(), volume(), [], []),
    ({}, {}, [], []),
]


@pytest.mark.parametrize("before, after, actions, told", CASES)
def test_lines(before: dict, after: dict, actions: list, told: list | None) -> None:
    assert diffs.lines(before, after, actions) == told


def test_each_failure_is_named_once_and_long_lists_are_cut() -> None:
    def failure(subject: str) -> errors.StorageError:
        return errors.Conflict(subject, "it is so", "mend it")

    told = together.combined_message("items", 9, [
        (["v"], failure("volume v")), (["v", "s"], failure("snapshot s of volume v")), (["v", "s"], failure("volume v")), (["v"], failure("owner 'x'")),
        (["item 4"], failure("item 4")), (["v1"], failure("volume w")),
    ])
    assert told == "6 of 9 items failed. " + " ".join(f"{one}: it is so; mend it." for one in (
        "v, v@s: volume v", "snapshot s of volume v", "v: owner 'x'", "item 4", "v1: volume w"))
    told = together.combined_message("volumes", 30, [([f"a{number}"], failure("new volume of 1 GiB")) for number in range(30)])
    assert told.endswith("a19 and 10 more: new volume of 1 GiB: it is so; mend it.")
    told = together.combined_message("volumes", 30, [([f"v{number}"], failure(f"volume v{number}")) for number in range(25)])
    assert told.endswith("volume v19: it is so; mend it. (and 5 more reasons, see results)")
