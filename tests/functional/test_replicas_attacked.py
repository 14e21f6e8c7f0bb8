# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas whose files, records and shares somebody else has worked on: what is wrong is found, and nothing is lost that nobody gave up."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.receiving import Receiver
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating
from ansible_collections.remotefs.storage.plugins.module_utils.operations.replicas import ReplicaRequest, replicate, verify
from ansible_collections.remotefs.storage.plugins.module_utils.operations.replication import Replication
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot

from .test_clones import opened, write
from .test_refusals import MIB, Store, refused


class Pair:
    """A source and the share of its replica."""

    def __init__(self, source: Store, target: Store) -> None:
        self.source, self.target = source, target

    def send(self, check: bool = False, volume: str = "vol", **more: Any) -> Outcome:
        request = ReplicaRequest(self.source.candidates, volume, self.target.candidates, "vol", **more)
        return replicate(request, self.target.options(check=check))

    def compare(self) -> Outcome:
        return verify(ReplicaRequest(self.source.candidates, "vol", self.target.candidates, "vol"), self.target.options())

    def differ(self) -> list[str]:
        """Names of snapshots that show something else on both sides."""
        one, other = shown(self.source), shown(self.target)
        return [name for name in one if name in other and one[name] != other[name]]

    def names(self) -> list[str]:
        return [one["name"] for one in self.target.info()["snapshots"]]


def shown(store: Store, volume: str = "vol") -> dict[str, str]:
    """What each snapshot shows, as QEMU reads it."""
    found, told = store.path.parent / "shown.raw", store.info(volume)
    chain = {image["file"]: image for image in told["chain"]}
    hashes = {}
    for one in told["snapshots"]:
        below = chain[chain[one["file"]]["backing_file"]]
        subprocess.run(["qemu-img", "convert", "-f", below["format"], "-O", "raw", store.path / below["file"], found], check=True)
        hashes[one["name"]] = hashlib.sha256(found.read_bytes()).hexdigest()
    return hashes


def fill(source: Store) -> None:
    """Snapshots s1 to s3, each with 64 KiB of its own, in the files vol, vol.s1 and vol.s2."""
    source.present(size=MIB)
    for number in (1, 2, 3):
        write(source, "vol", number, f"{(number - 1) * 64}k 64k")
        source.snapshot(f"s{number}")
    write(source, "vol", 4)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Pair]:
    """Makes the pair; what is given describes both shares."""

    def made(**share: Any) -> Pair:
        for name in ("source", "target"):
            (tmp_path / name).mkdir()
        pair = Pair(Store(tmp_path / "source", **share), Store(tmp_path / "target", **share))
        fill(pair.source)
        pair.send()
        return pair

    return made


@pytest.fixture
def pair(make: Callable[..., Pair]) -> Pair:
    return make()


def record(store: Store, change: Callable[[dict], None], volume: str = "vol") -> None:
    """Change a record by hand."""
    path = store.path / ".remotefs" / "volumes" / f"{volume}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def retaken(store: Store, name: str, in_place: bool = False) -> None:
    """Somebody else deletes the newest snapshot, the volume is written to, and it is taken again under the same name.

    :param in_place: its file is written over. So it has the old inode, as a new file may have by chance.
    """
    file = json.loads((store.path / "vol.info").read_text())[name]
    image = store.info()["chain"][1]
    subprocess.run(["qemu-img", "commit", "-q", "-d", file], cwd=store.path, check=True)
    if not in_place:
        (store.path / file).unlink()
    subprocess.run(["qemu-io", "-f", image["format"], "-c", "write -q -P 99 256k 64k", image["file"]], cwd=store.path, check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image["file"], "-F", image["format"], file], cwd=store.path, check=True)


# -- bytes that went bad -------------------------------------------------------------------------------------------------


@contextmanager
def flipped(path: Path, value: int) -> Iterator[None]:
    """A bit of the data that is all ``value`` is another one, and nothing says that anybody wrote to the file."""
    before, status = path.read_bytes(), path.stat()
    position = before.index(bytes([value]) * 65536) + 4242
    with path.open("r+b") as image:
        image.seek(position)
        image.write(bytes([before[position] ^ 0x10]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    yield
    with path.open("r+b") as image:
        image.seek(position)
        image.write(before[position : position + 1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_flipped_bit_in_any_layer_of_either_side_is_found_and_named(pair: Pair, side: str, number: int) -> None:
    theirs, ours = ({1: "vol", 2: f"vol.s1{more}", 3: f"vol.s2{more}"}[number] for more in ("", "-1"))
    damaged = pair.source.path / theirs if side == "source" else pair.target.path / ours
    told = f"snapshot s{number} of .* at byte {(number - 1) * 65536 + 4242} \\({theirs} of the source and {ours} of the replica\\)"
    assert pair.compare().changed is False
    with flipped(damaged, number):
        with pytest.raises(errors.VerifyFailed, match=told):
            pair.compare()
        with pytest.raises(errors.VerifyFailed, match=told):
            pair.send(verify="all")
    assert pair.send(verify="all").changed is False


def test_what_does_not_come_back_from_the_share_is_never_named(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk below the replica loses what is written to it."""
    write(pair.source, "vol", 5, "512k 64k")
    pair.source.snapshot("s4")
    real = Receiver._read_back

    def loses(self: Receiver, fd: int, size: int) -> None:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        os.pwrite(fd, bytes(512), data.index(bytes([5]) * 65536))
        real(self, fd, size)

    with monkeypatch.context() as patch:
        patch.setattr(Receiver, "_read_back", loses)
        with pytest.raises(errors.VerifyFailed, match="does not come back"):
            pair.send()
    assert pair.names() == ["s1", "s2", "s3"] and pair.differ() == []
    assert pair.send().changed and pair.names()[-1] == "s4" and pair.differ() == []


def test_a_present_that_somebody_wrote_to_is_found(pair: Pair) -> None:
    write(pair.target, "vol", 9, "512k 512")
    with pytest.raises(errors.VerifyFailed, match="its present is not its newest point"):
        pair.compare()
    refused(pair.target, errors.Conflict, lambda check: pair.send(check=check))
    assert pair.send(discards=True).changed and pair.compare().changed is False and pair.names() == ["s1", "s2", "s3"]


# -- identities that are not what they say -------------------------------------------------------------------------------


def test_a_snapshot_that_others_took_anew_is_another_one(pair: Pair) -> None:
    retaken(pair.source, "s3")
    refused(pair.target, errors.Conflict, lambda check: pair.send(check=check))
    assert pair.send(discards=True).changed and pair.differ() == []


@pytest.mark.parametrize("operation", ["delete", "revert"])
def test_an_identity_that_was_lost_stays_lost_whatever_a_task_does(pair: Pair, operation: str) -> None:
    retaken(pair.source, "s3")
    if operation == "revert":
        pair.source.snapshot("s4")
        pair.source.revert("s3", True)
    else:
        pair.source.delete("s2", "s1")
    with pytest.raises(errors.Conflict):
        pair.send()


def _swapped(content: dict) -> None:
    marks = {name: details["point"] for name, details in content["snapshots"].items()}
    marks["s1"][0], marks["s3"][0] = marks["s3"][0], marks["s1"][0]


def test_identities_that_are_swapped_on_the_replica_do_not_pass_a_comparison(pair: Pair) -> None:
    record(pair.target, _swapped)
    with pytest.raises(errors.VerifyFailed, match="its content differs"):
        pair.compare()
    with pytest.raises(errors.VerifyFailed, match="its content differs"):
        pair.send(verify="all")


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("identity", ["../../victim", "", "a" * 300, "x\n", None, 5, ["a"]])
def test_what_is_no_identity_counts_as_none(pair: Pair, side: str, identity: object) -> None:
    """Snapshots of one name are compared then, so that nothing is sent twice."""

    def forged(content: dict) -> None:
        for details in content["snapshots"].values():
            details["point"][0] = identity

    record(getattr(pair, side), forged)
    assert pair.send().told == {"sent": 0, "points": {"sent": [], "present": ["s1", "s2", "s3"], "kept": []}}
    write(pair.source, "vol", 5, "512k 64k")
    pair.source.snapshot("s4")
    done = pair.send().told
    assert done is not None and done["sent"] == 2 << 16  # fours and fives
    assert pair.differ() == [] and pair.compare().changed is False


def test_the_record_of_another_volume_makes_no_point_of_it_the_same(pair: Pair) -> None:
    """Volume ``other`` has snapshots of the same names and, by its record, the same points."""
    source = pair.source
    source.present("other", size=MIB)
    for name in ("s1", "s2", "s3"):
        write(source, "other", 77)
        snapshots.take(snapshots.SnapshotRequest(source.candidates, "other", DesiredSnapshot(name)), source.options())
    known = (source.path / ".remotefs" / "volumes" / "vol.json").read_text()
    (source.path / ".remotefs" / "volumes" / "other.json").write_text(known.replace('"vol', '"other'))
    before = shown(pair.target)
    refused(pair.target, errors.Conflict, lambda check: pair.send(check=check, volume="other"))
    assert shown(pair.target) == before


@pytest.mark.parametrize("side", ["source", "target", "both"])
def test_records_that_are_lost_cost_a_comparison(pair: Pair, side: str) -> None:
    for store in (pair.source, pair.target):
        if side in (store.path.name, "both"):
            (store.path / ".remotefs" / "volumes" / "vol.json").unlink()
    done = pair.send().told
    assert done is not None and done["sent"] == 0 and done["points"]["present"] == ["s1", "s2", "s3"]
    assert pair.send().changed is False and pair.compare().changed is False


# -- what is in the way on the target ------------------------------------------------------------------------------------


def test_another_volume_of_that_name_is_left_alone_even_with_discard(pair: Pair) -> None:
    pair.target.present("other", size=MIB)
    write(pair.target, "other", 50)
    before = pair.target.state()
    for discards in (False, True):
        request = ReplicaRequest(pair.source.candidates, "vol", pair.target.candidates, "other", discards=discards)
        for check in (True, False):
            with pytest.raises(errors.Conflict, match="was not made as a replica"):
                replicate(request, pair.target.options(check=check))
            assert pair.target.state() == before


@pytest.mark.parametrize(("file", "is_written"), [("vol.s4", False), ("vol.s4", True), ("vol.s3-1", True)])
def test_a_file_that_has_the_name_of_a_new_one_is_left_alone(pair: Pair, file: str, is_written: bool) -> None:
    """The overlay of s4 becomes ``vol.s4``. If the replica does not show it already, the data go into ``vol.s3-1``."""
    pair.source.revert("s3")
    if is_written:
        write(pair.source, "vol", 5, "512k 64k")
    pair.source.snapshot("s4")
    (pair.target.path / file).write_bytes(b"precious")
    before = _files(pair.target)
    for check in (True, False):
        with pytest.raises(errors.Conflict, match=f"file {file} .* is taken"):
            pair.send(check=check)
        assert _files(pair.target) == before and pair.target.info()["pending"] is None
    (pair.target.path / file).unlink()
    assert pair.send().changed and pair.differ() == []


@pytest.mark.parametrize("content", ["precious", "overlay"])
@pytest.mark.parametrize("file", ["vol.s4", "vol.s3-1"])
def test_a_file_that_takes_the_name_in_the_last_moment_is_left_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, file: str, content: str
) -> None:
    """Neither the task that fails on it nor the next one, which ends what was begun, takes it for its own."""
    write(pair.source, "vol", 5, "512k 64k")
    pair.source.snapshot("s4")
    if content == "precious":
        (pair.target.path / file).write_bytes(b"precious")
    else:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "vol", "-F", "raw", file], cwd=pair.target.path, check=True)
    before = _files(pair.target)
    with monkeypatch.context() as patch:
        patch.setattr(Replication, "_require_free", lambda *_file: None)
        for _attempt in range(2):
            with pytest.raises(errors.Conflict, match=f"file {file} .* is taken"):
                pair.send()
            assert _files(pair.target) == before
    pair.target.delete("nothing")
    assert _files(pair.target) == before
    (pair.target.path / file).unlink()
    assert pair.send().changed and pair.differ() == []


def _files(store: Store) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.path.iterdir() if path.is_file()}


def test_clones_that_rest_on_the_active_image_keep_it(pair: Pair) -> None:
    active = pair.target.info()["chain"][0]["file"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", active, "-F", "qcow2", "foreign"], cwd=pair.target.path, check=True)
    write(pair.source, "vol", 5, "512k 64k")
    pair.source.snapshot("s4")
    refused(pair.target, errors.HasDependents, lambda check: pair.send(check=check))


def test_a_linked_clone_of_a_received_point_goes_on_showing_it(pair: Pair) -> None:
    pair.target.present("clone", updating.SourceRequest("vol", "s2", linked=True))
    write(pair.target, "clone", 66, "700k 64k")
    before = _content(pair.target, "clone")
    write(pair.source, "vol", 5, "512k 64k")
    pair.source.snapshot("s4")
    assert pair.send().changed and pair.differ() == []
    assert _content(pair.target, "clone") == before


def _content(store: Store, volume: str) -> bytes:
    told, found = store.info(volume), store.path.parent / "content.raw"
    subprocess.run(["qemu-img", "convert", "-f", told["format"], "-O", "raw", told["path"], found], check=True)
    return found.read_bytes()


def test_a_machine_on_either_side(pair: Pair) -> None:
    """It may write to the source while that is sent. The image that it has open on the target may not go."""
    write(pair.source, "vol", 5, "512k 64k")
    pair.source.snapshot("s4")
    with opened(pair.target, "vol"):
        refused(pair.target, errors.InUse, lambda check: pair.send(check=check))
    with opened(pair.source, "vol"):
        assert pair.send().changed and pair.differ() == []


def test_beginning_again_in_check_mode(pair: Pair) -> None:
    """All points of the replica are others now, so that all of it is dropped."""
    pair.source.delete("s1", "s2", "s3")
    for name in ("s1", "s2", "s3"):
        write(pair.source, "vol", 8)
        pair.source.snapshot(name)
    refused(pair.target, errors.Conflict, lambda check: pair.send(check=check))
    foretold = pair.send(check=True, discards=True)
    assert foretold.actions == pair.send(discards=True).actions and pair.differ() == []


def test_what_others_took_anew_on_the_replica_is_no_point_of_the_source_after_a_revert(pair: Pair) -> None:
    """Its source has not s3 any more, so that it stays, and what is written to the replica is dropped."""
    before = _identities(pair.target)
    retaken(pair.target, "s3")
    write(pair.target, "vol", 9, "512k 64k")
    pair.source.delete("s3")
    write(pair.source, "vol", 5, "512k 64k")
    pair.source.snapshot("s4")
    assert pair.send(discards=True).changed and pair.names() == ["s1", "s2", "s3", "s4"] and pair.differ() == []
    after = _identities(pair.target)
    assert (after["s1"], after["s2"]) == (before["s1"], before["s2"]) and after["s3"] not in (None, before["s3"])
    assert not pair.send().changed


def _identities(store: Store) -> dict[str, str | None]:
    content = json.loads((store.path / ".remotefs" / "volumes" / "vol.json").read_text())
    return {name: (details["point"] or [None])[0] for name, details in content["snapshots"].items()}


def _twice(content: dict) -> None:
    content["snapshots"]["s3"]["point"][0] = content["snapshots"]["s2"]["point"][0]


def test_an_identity_that_two_snapshots_have_is_none(pair: Pair) -> None:
    pair.target.revert("s2", True)
    record(pair.source, _twice)
    assert pair.send().changed and pair.names() == ["s1", "s2", "s3"] and pair.differ() == []


def test_discarding_begins_when_there_is_room(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.source.delete("s1", "s2", "s3")
    write(pair.source, "vol", 8, "0 768k")
    for name in ("s1", "s2", "s3"):
        pair.source.snapshot(name)
    figures = os.statvfs(pair.target.path)
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result((*figures[:3], 0, 0, *figures[5:])))
    with pytest.raises(errors.NoSpace):
        pair.send(discards=True)
    assert pair.names() == ["s1", "s2", "s3"]


def test_what_was_dropped_is_not_told_as_kept(pair: Pair) -> None:
    pair.target.snapshot("own")
    done = pair.send(discards=True).told
    assert done is not None and done["points"]["kept"] == [] and pair.names() == ["s1", "s2", "s3"]


# -- faults that are known -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [{}, {"local": False}, {"local": False, "keeps_inodes": False}], ids=["local", "server", "no inodes"])
def test_a_snapshot_that_others_took_anew_in_the_same_file_is_another_one(make: Callable[..., Pair], share: dict) -> None:
    pair = make(**share)
    retaken(pair.source, "s3", in_place=True)
    with pytest.raises(errors.Conflict):
        pair.send()


def test_a_layer_that_was_put_in_the_place_of_another_is_not_taken_for_it(pair: Pair) -> None:
    """Another ``vol.s2`` than the one that s3 showed, by a rename."""
    path = pair.source.path / "vol.s2"
    shutil.copy(path, pair.source.path.parent / "copy")
    with flipped(pair.source.path.parent / "copy", 3):
        os.replace(pair.source.path.parent / "copy", path)
        (pair.source.path.parent / "copy").write_bytes(path.read_bytes())  # for flipped to end on
    with pytest.raises(errors.Conflict):
        pair.send()
