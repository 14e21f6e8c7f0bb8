# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots that only the replica has any more: a byte that has changed in one of their files is found by its checksum."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations.replicas import verify
from ansible_collections.remotefs.storage.plugins.module_utils.operations.up_to_date import ReplicaRequest

from .test_clones import write
from .test_replicas_attacked import Pair, flipped, make, pair

__all__ = ["make", "pair"]  # fixtures


def told(pair: Pair) -> list[str]:
    """What a comparison warns of, if it fails for nothing."""
    warnings: list[str] = []
    request = ReplicaRequest(pair.source.candidates, "vol", pair.target.candidates, "vol")
    assert not verify(request, pair.target.options(warn=warnings.append)).changed
    return warnings


def checksums(pair: Pair) -> dict[str, Any]:
    content = json.loads((pair.target.path / ".remotefs" / "volumes" / "vol.json").read_text())
    return {name: (details["checksum"] or [None, None])[1] for name, details in content["snapshots"].items()}


def gone_at_home(pair: Pair) -> None:
    """The source has only a newer snapshot, which shows nothing of what the older ones do."""
    write(pair.source, "vol", 7, "0 256k")
    pair.source.snapshot("s4")
    pair.send()
    pair.source.delete("s1", "s2", "s3")


@pytest.mark.parametrize("base", ["raw", "qcow2"])
@pytest.mark.parametrize("number, file", [(1, "vol"), (2, "vol.s1-1"), (3, "vol.s2-1")])
def test_a_flipped_bit_in_any_file_is_found_and_named(make: Any, base: str, number: int, file: str) -> None:
    found = make()
    if base == "qcow2":
        found.source.absent(cascade=True)
        found.target.absent(cascade=True)
        found.source.present(size=1 << 20, format="qcow2")
        for step in (1, 2, 3):
            write(found.source, "vol", step, f"{(step - 1) * 64}k 64k")
            found.source.snapshot(f"s{step}")
        found.send()
    gone_at_home(found)
    assert told(found) == []
    with flipped(found.target.path / file, number), pytest.raises(errors.VerifyFailed, match=f"snapshot s{number} .*{file}"):
        found.compare()
    assert told(found) == []


def test_zeros_that_come_back_to_life(pair: Pair) -> None:
    """A file that hides data below it by zeros holds nothing but tables."""
    write(pair.source, "vol", 0, "0 64k")
    write(pair.source, "vol", 9, "512k 64k")
    pair.source.snapshot("zeros")
    pair.send()
    gone_at_home(pair)
    pair.source.delete("zeros")
    assert told(pair) == []
    path = pair.target.path / "vol.s3-1"
    status, content = path.stat(), bytearray(path.read_bytes())
    tables = int.from_bytes(content[40:48], "big")
    entries = int.from_bytes(content[tables : tables + 8], "big") & 0x00FFFFFFFFFFFE00
    assert int.from_bytes(content[entries : entries + 8], "big") == 1  # a cluster of zeros
    content[entries : entries + 8] = bytes(8)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(errors.VerifyFailed, match="snapshot zeros "):
        pair.compare()


def test_what_was_sent_without_a_comparison_gets_its_checksum_when_all_is_compared(make: Any) -> None:
    pair = make()
    pair.target.absent(cascade=True)
    pair.send(verify="none")
    assert set(checksums(pair).values()) == {None}
    gone_at_home(pair)
    (warning,) = told(pair)
    assert "s1, s2 and s3" in warning or "s1, s2, s3" in warning
    before = checksums(pair)
    for _again in range(2):
        assert not pair.send(verify="all").changed
        assert all(checksums(pair)[name] for name in ("s1", "s2", "s3"))
    assert before["s4"] == checksums(pair)["s4"] and told(pair) == []
    with flipped(pair.target.path / "vol.s1-1", 2), pytest.raises(errors.VerifyFailed):
        pair.send(verify="all")


def test_merges_on_the_replica_raise_no_alarm(pair: Pair) -> None:
    """A file into which another one was merged has no checksum until all is compared again; the others keep theirs."""
    gone_at_home(pair)
    known = checksums(pair)
    pair.target.delete("s2")
    after = checksums(pair)
    assert after["s1"] == known["s1"] and after["s3"] is None and after["s4"] == known["s4"]
    (warning,) = told(pair)
    assert "s3" in warning and "s1" not in warning
    pair.send(verify="all")
    assert told(pair) == [] and checksums(pair)["s3"]


def test_a_received_snapshot_leaves_the_checksums_below_as_they_are(pair: Pair) -> None:
    """Its receipt replaces the overlay of the newest snapshot, and no file below it."""
    known = checksums(pair)
    assert all(known.values()) and len(set(known.values())) == len(known)
    write(pair.source, "vol", 8)
    pair.source.snapshot("s4")
    pair.send()
    assert {name: checksums(pair)[name] for name in known} == known and checksums(pair)["s4"]


def test_the_same_content_has_the_same_checksum_on_all_replicas(make: Any, tmp_path: Any) -> None:
    pair = make()
    (tmp_path / "third").mkdir()
    third = Pair(pair.source, type(pair.source)(tmp_path / "third"))
    third.send()
    assert checksums(third) == checksums(pair)


def test_forged_checksums(pair: Pair) -> None:
    """What is no checksum counts as none; another one is a difference. No name in it is followed anywhere."""
    gone_at_home(pair)
    path = pair.target.path / ".remotefs" / "volumes" / "vol.json"
    honest = path.read_text()
    for forged in (["../../etc/passwd", "0"], ["vol", ""], ["vol", "x" * 64], 7, ["vol"], {"a": 1}, ["vol", 1]):
        content = json.loads(honest)
        content["snapshots"]["s1"]["checksum"] = forged
        path.write_text(json.dumps(content))
        if isinstance(forged, list) and [type(part) for part in forged] == [str, str]:
            with pytest.raises(errors.VerifyFailed):
                pair.compare()
        else:
            assert "s1" in told(pair)[0]


@pytest.mark.parametrize("how", ["an ordinary write", "a touched base", "other inodes"])
def test_a_lost_identity_hides_nothing(pair: Pair, how: str) -> None:
    """Whoever writes to a file in the usual way changes its time, too. Then the identity is lost, and the checksum is not."""
    gone_at_home(pair)
    path = pair.target.path / "vol"
    if how == "a touched base":
        os.utime(path)
        path = pair.target.path / "vol.s1-1"
    if how == "other inodes":
        for file in ("vol", "vol.s1-1", "vol.s2-1"):
            copy = pair.target.path / f"{file}.copy"
            shutil.copy2(pair.target.path / file, copy)
            os.replace(copy, pair.target.path / file)
    status, place = path.stat(), path.read_bytes().index(bytes([1 if path.name == "vol" else 2]) * 65536) + 100
    with path.open("r+b") as image:
        image.seek(place)
        image.write(b"X")
    if how != "an ordinary write":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for action in (pair.compare, lambda: pair.send(verify="all"), pair.compare):
        with pytest.raises(errors.VerifyFailed, match="is not what it was"):
            action()


def test_a_rebased_file_keeps_its_checksum(pair: Pair) -> None:
    """A merge below it changes its header alone."""
    gone_at_home(pair)
    known = checksums(pair)
    pair.target.delete("s1")
    after = checksums(pair)
    assert [name for name in after if after[name] != known[name]] == ["s2"]
    (warning,) = told(pair)
    assert "s2" in warning and "s3" not in warning


def test_the_file_that_has_changed_is_named(pair: Pair) -> None:
    """It lies below the file that the compared point ends with, because the snapshot in between is gone at home."""
    pair.source.delete("s1")
    with flipped(pair.target.path / "vol", 1), pytest.raises(errors.VerifyFailed, match="snapshot s2 .* of the source and vol of the replica"):
        pair.compare()
