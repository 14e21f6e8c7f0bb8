# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A large share is read by several processes, and says what one process says of it: whatever else is on it, whoever dies."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import pytest
from benchmark import measuring
from benchmark import reading as bench

from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.names import Names
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import in_use
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import chains, listing

SIZE = 64 << 20
HERE = os.getpid()


def overlay(path: Path, below: str, below_format: str | None) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o660)
    qcow2.write_image(fd, SIZE, below, below_format)
    os.close(fd)


@pytest.fixture
def share(tmp_path: Path) -> Share:
    """Volumes with chains of three; among them one of every kind of trouble, and linked clones of the first two."""
    path = tmp_path / "share"
    bench.Share(path, 3).grow(60)
    os.mkfifo(path / "fifo")
    os.symlink("/etc/passwd", path / "link")
    (path / "link.info").write_text(json.dumps({"active": "link"}))
    (path / "vol00007").unlink()  # its chain ends in nothing
    (path / "vol00011.info").write_text('{"active": "vol000')
    (path / ".remotefs" / "volumes" / "vol00012.json").write_text("{")
    with open(path / "vol00020.s2", "r+b") as stream:
        stream.write(b"QFI\xfb\xff")
    with open(path / "vol00030.s1", "r+b") as stream:
        qcow2.repoint(stream.fileno(), "vol00030.s2", "qcow2")  # a loop
    os.unlink(path / "vol00040.s1")
    os.mkfifo(path / "vol00040.s1")
    overlay(path / "clone", "vol00001.s1", "qcow2")
    overlay(path / "clone.s1", "clone", "qcow2")
    (path / "clone.info").write_text(json.dumps({"active": "clone.s1", "s1": "clone.s1"}))
    overlay(path / "other", "vol00001.s1", "qcow2")
    overlay(path / "third", "vol00002", "raw")
    (path / "lone").write_bytes(b"QFI\xfb" + b"x" * 508)
    return Share(str(path), str(path), "directory")


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any share is large."""
    monkeypatch.setattr(listing, "_SHARED_OUT_FROM", 1)
    monkeypatch.setattr(listing, "_PART", 4)
    monkeypatch.setattr(reading.listing, "processors", lambda: 3)


def alone(share: Share, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    with monkeypatch.context() as patched:
        patched.setattr(reading.listing, "processors", lambda: 1)
        return reading.list_volumes(share, [])


def test_trouble_stays_with_its_volume(share: Share, several: None) -> None:
    found = {one["name"]: one for one in reading.list_volumes(share, [])}
    assert sorted(found) == list(found) and {f"vol{number:05d}" for number in range(60)} <= set(found)
    trouble = {name: one["error_code"] for name, one in found.items() if "error_code" in one}
    assert trouble == {
        "fifo": "unsafe_image",
        "link": "unsafe_image",
        "vol00007": "chain_broken",
        "vol00012": "chain_broken",
        "vol00020": "unsafe_image",
        "vol00030": "chain_broken",
        "vol00040": "unsafe_image",
    }
    whole = [one for name, one in found.items() if name.startswith("vol") and name not in trouble]
    assert all([image["file"] for image in one["chain"]] == [f"{one['name']}{end}" for end in (".s2", ".s1", "")] for one in whole)
    assert all(
        [(item["name"], item["file"]) for item in one["snapshots"]] == [(s, f"{one['name']}.{s}") for s in ("s1", "s2")] for one in whole
    )
    assert found["lone"]["format"] is None and found["lone"]["size"] == 512
    assert {image["size"] for one in whole for image in one["chain"]} == {SIZE}


def test_who_rests_on_whom_is_known_across_processes(share: Share, several: None) -> None:
    found = {one["name"]: one for one in reading.list_volumes(share, [])}
    assert found["vol00001"]["dependents"] == [{"volume": "clone", "snapshot": "s2"}, {"volume": "other", "snapshot": "s2"}]
    assert found["vol00002"]["dependents"] == [{"volume": "third", "snapshot": "s1"}]
    assert found["clone"]["parent"] == {"volume": "vol00001", "snapshot": "s2"}
    others = set(found) - {"vol00001", "vol00002"}
    assert not any(found[name].get("dependents") for name in others)


def test_several_processes_say_what_one_says(share: Share, several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reading.list_volumes(share, []) == alone(share, monkeypatch)
    for patterns in (["vol0001*"], ["*lo*", "fifo"], ["nothing"]):
        wanted = reading.list_volumes(share, patterns)
        with monkeypatch.context() as patched:
            patched.setattr(reading.listing, "processors", lambda: 1)
            assert wanted == reading.list_volumes(share, patterns)


def test_one_process_reads_as_a_single_volume_is_read(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing trusts a listing's kinds and glimpses at headers; a task on one volume does neither."""
    for one in alone(share, monkeypatch):
        with listing.ShareDirectory(share) as directory:
            try:
                found = chains.observe(directory, one["name"])
            except chains.errors.StorageError as error:
                assert (one["error_code"], one["msg"]) == (error.error_code, str(error))
                continue
        assert found is not None
        told = reading.report.volume(found.volume, share, False)
        assert told == {**one, "dependents": []}


def test_a_killed_process_takes_no_volume_with_it(share: Share, several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(share, monkeypatch)
    observe = chains.observe

    def deadly(directory: listing.ShareDirectory, name: str, **named: object) -> object:
        if name == "vol00025" and os.getpid() != HERE:
            os.kill(os.getpid(), signal.SIGKILL)
        return observe(directory, name, **named)

    monkeypatch.setattr(chains, "observe", deadly)
    assert reading.list_volumes(share, []) == expected


def test_an_unforeseen_error_is_that_volume_s_alone(share: Share, several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    observe = chains.observe

    def broken(directory: listing.ShareDirectory, name: str, **named: object) -> object:
        if name == "vol00025":
            raise ZeroDivisionError("unforeseen")
        return observe(directory, name, **named)

    monkeypatch.setattr(chains, "observe", broken)
    found = {one["name"]: one for one in reading.list_volumes(share, [])}
    broken_one = found.pop("vol00025")
    assert broken_one["error_code"] == "tool_failed" and "unforeseen" in broken_one["msg"]
    assert len(found) >= 60 and all(one.get("error_code") != "tool_failed" for one in found.values())


def test_use_is_seen_in_every_process(share: Share, several: None) -> None:
    with open(Path(share.path, "vol00033.s2"), "r+b") as user, open(Path(share.path, "vol00034.s2"), "r+b") as elsewhere:
        in_use.hold(user.fileno(), "vol00033.s2", share.label)
        fcntl.fcntl(elsewhere.fileno(), 37, in_use._FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 150, 1, 0))  # between the bytes that count
        found = {one["name"]: one["in_use"] for one in reading.list_volumes(share, []) if "error_code" not in one}
    assert [name for name, used in found.items() if used is not False] == ["vol00033"]


def test_a_file_exchanged_behind_the_listing_is_refused(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the listing called a regular file is not looked at again before it is opened, and no less safe for that."""
    take = listing.Listing.read

    def exchanged(self: listing.Listing, volumes: list) -> None:
        for name, make in (("vol00003.s1", lambda at: os.symlink("/etc/passwd", at)), ("vol00004.s1", os.mkfifo)):
            at = Path(share.path, name)
            if at.is_file() and not at.is_symlink():
                at.unlink()
                make(at)
        take(self, volumes)

    monkeypatch.setattr(listing.Listing, "read", exchanged)
    found = {one["name"]: one.get("error_code") for one in reading.list_volumes(share, [])}
    assert found["vol00003"] == found["vol00004"] == "unsafe_image" and found["vol00005"] is None


def test_the_tasks_take_the_same_way(tmp_path: Path) -> None:
    """Both modules as Ansible starts them, on a share that is large without help, beside the same with one processor."""
    path = tmp_path / "share"
    bench.Share(path, 10).grow(listing._SHARED_OUT_FROM // 11 + 1)
    for module, key, count in (("remotefs_volume_info", "volumes", 1), ("remotefs_snapshot_info", "snapshots", 9)):
        argv, given = measuring.module_call(module, {"share": [str(path)]})
        both = [json.loads(measuring.run([*way, *argv], given).out) for way in ([], ["taskset", "-c", "0"])]
        assert both[0] == both[1] and both[0]["changed"] is False
        assert len(both[0][key]) == count * (listing._SHARED_OUT_FROM // 11 + 1)


@pytest.mark.usefixtures("no_devices")
def test_a_file_costs_one_open_one_look_and_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes, files = 20, 6
    bench.Share(tmp_path / "share", files).grow(volumes)
    counted: Counter = Counter()
    names: Counter = Counter()

    def counting(name: str) -> Callable:
        call = getattr(os, name)

        def counted_call(*given: Any, **named: Any) -> Any:
            counted[name] += 1
            if name == "open":
                names[given[0]] += 1
            return call(*given, **named)

        return counted_call

    with monkeypatch.context() as patched:
        for name in ("open", "fstat", "stat", "lstat", "pread", "read", "close", "listdir", "scandir"):
            patched.setattr(os, name, counting(name))
        found = reading.list_volumes(Share(str(tmp_path / "share"), str(tmp_path / "share"), "directory"), [])
    assert len(found) == volumes and all(len(one["chain"]) == files for one in found)
    opened, few = volumes * (files + 2), 4  # .info and the record; the directories
    assert counted["pread"] == volumes * (files - 1) and counted["read"] == volumes * 2, "raw files are not read"
    assert opened <= counted["open"] <= opened + few, names.most_common(8)
    assert counted["close"] == counted["open"] and counted["fstat"] <= opened + few
    assert counted["stat"] + counted["lstat"] + counted["listdir"] <= few and counted["scandir"] == 2


def _steps(action: Callable[[], object]) -> int:
    """How many functions Python enters: a measure that no other load disturbs, nor what earlier tests left to the garbage collector."""
    counted = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    gc.collect()
    gc.disable()
    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
        gc.enable()
    return counted


class _Left:
    """What goes only when the garbage collector comes by, and then enters functions."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        for _number in range(100):
            len(())


def test_what_others_left_to_the_garbage_collector_is_not_counted() -> None:
    def action() -> list:
        return [[number] for number in range(100_000)]  # the collector comes by on its own

    alone = _steps(action)
    for _number in range(10):
        _Left()
    assert _steps(action) == alone


# name of the n-th stranger: no record says anything of them, as on a share that was filled by hand
STRANGERS: dict[str, Callable[[int], str]] = {
    "plain": lambda number: f"x{number}",
    "with an extension": lambda number: f"disk{number}.img",
    "many dots": lambda number: f"a.b.c.{number}.d.e",
    "one stem": lambda number: f"vol.{number}",
    "blanks": lambda number: f"disk {number}",
    "links": lambda number: f"link{number}",
    "broken volumes": lambda number: f"b{number}",
}


def _unknown(path: Path, kind: str, count: int) -> Share:
    path.mkdir()
    for number in range(count):
        at = path / STRANGERS[kind](number)
        if kind == "links":
            at.symlink_to("/nowhere")
        elif kind == "broken volumes":  # overlays without their .info
            at.write_bytes(b"x" * 512)
            overlay(path / f"{at.name}.s1", at.name, "raw")
        else:
            at.write_bytes(b"x" * 512)
    share = Share(str(path), str(path), "directory")
    _create(share, "first")
    return share


def _create(share: Share, name: str, source: updating.SourceRequest | None = None) -> None:
    desired = DesiredVolume(name, size=None if source else 1 << 20)
    volumes.ensure_present(updating.VolumeRequest(Candidates((share,)), desired, source), Options())


def _take(share: Share) -> None:
    snapshots.take(snapshots.SnapshotRequest(Candidates((share,)), "first", DesiredSnapshot("s1")), Options())


BESIDE: dict[str, Callable[[Share], object]] = {
    "a new volume": lambda share: _create(share, "new"),
    "a linked clone": lambda share: _create(share, "clone", updating.SourceRequest("first", None, linked=True)),
    "info": lambda share: reading.list_volumes(share, []),
    "info of one": lambda share: reading.list_volumes(share, ["first"]),
    "a snapshot": _take,
    "deletion of a snapshot": lambda share: (_take(share), snapshots.delete(Candidates((share,)), "first", ["s1"], Options())),
    "removal": lambda share: volumes.ensure_absent(Candidates((share,)), "first", True, Options()),
}


@pytest.mark.usefixtures("no_devices")
@pytest.mark.parametrize("task", BESIDE)
@pytest.mark.parametrize("kind", STRANGERS)
def test_what_a_stranger_costs_does_not_grow_with_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, task: str) -> None:
    monkeypatch.setattr(reading.listing, "processors", lambda: 1)
    listings: list = []
    naps: list = []
    monkeypatch.setattr(chains.time, "sleep", naps.append)
    listdir, scandir = os.listdir, os.scandir
    monkeypatch.setattr(os, "listdir", lambda *given: (listings.append(given), listdir(*given))[1])
    monkeypatch.setattr(os, "scandir", lambda *given: (listings.append(given), scandir(*given))[1])

    def costs(count: int) -> tuple[int, int]:
        share = _unknown(tmp_path / f"{len(os.listdir(tmp_path))} of {count}", kind, count)
        listings.clear()
        naps.clear()
        return _steps(lambda: BESIDE[task](share)), len(listings)

    costs(1)  # whatever is imported late
    (few, listed), (more, _listed), (many, listed_again) = costs(100), costs(200), costs(400)
    assert many - more < 2.6 * (more - few) + 200, f"{few} steps beside 100, {more} beside 200 and {many} beside 400"
    assert listed == listed_again < 16, "the share is not listed for each of them"
    assert len(naps) <= 2, "those that cannot be read are waited for together"


# task → how often each stranger may be opened, as what it may rest on is written in it
OPENS = {"a new volume": 0, "info of one": 1, "info": 2, "removal": 1, "deletion of a snapshot": 1}


@pytest.mark.usefixtures("no_devices")
@pytest.mark.parametrize("task", OPENS)
def test_how_often_a_stranger_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """A new volume asks for the sizes alone; who destroys something, and who tells of dependents, opens each file once."""
    monkeypatch.setattr(reading.listing, "processors", lambda: 1)
    count = 300
    share = _unknown(tmp_path / "share", "with an extension", count)
    for number in range(10):
        overlay(Path(share.path, f"lone{number}.qcow2"), "elsewhere.img", "raw")
    opened: Counter = Counter()
    call = os.open
    monkeypatch.setattr(os, "open", lambda path, *given, **named: (opened.update([path]), call(path, *given, **named))[1])
    BESIDE[task](share)
    strangers = Counter({path: number for path, number in opened.items() if str(path).startswith(("disk", "lone"))})
    assert max(strangers.values(), default=0) == OPENS[task] and len(strangers) == (count + 10 if OPENS[task] else 0)
    assert sum(opened.values()) - sum(strangers.values()) < 150


def test_what_cannot_be_read_is_read_again_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that is changing just now is told as it is a moment later; a share full of broken ones is not waited for one by one."""
    path = tmp_path / "share"
    bench.Share(path, 2).grow(20)
    for number in range(10):
        (path / f"vol{number:05d}").rename(path / f"gone{number}")
    naps: list = []

    def mended(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 1:
            for number in range(5):
                (path / f"gone{number}").rename(path / f"vol{number:05d}")

    monkeypatch.setattr(chains.time, "sleep", mended)
    found = {one["name"]: one.get("error_code") for one in reading.list_volumes(Share(str(path), str(path), "directory"), [])}
    assert [found[f"vol{number:05d}"] for number in range(20)] == [None] * 5 + ["chain_broken"] * 5 + [None] * 10
    assert len(naps) <= 2, "one for volumes with .info, one for the others"


def test_names_and_globs_choose_the_same_as_before(tmp_path: Path) -> None:
    share = _unknown(tmp_path / "share", "with an extension", 5)
    (tmp_path / "share" / "a[b").write_bytes(b"x" * 512)
    wanted = {"first": ["first"], "disk?.img": [f"disk{number}.img" for number in range(5)], "disk[12].img": ["disk1.img", "disk2.img"], "nothing": []}
    for pattern, names in wanted.items():
        assert [one["name"] for one in reading.list_volumes(share, [pattern])] == names
    assert [one["name"] for one in reading.list_volumes(share, list(wanted))] == sorted({name for names in wanted.values() for name in names})


def test_names_that_begin_alike_are_found_without_a_walk() -> None:
    """Neither the names before them nor those behind are looked at."""
    looked: list = []

    class Counted(list):
        def __getitem__(self, index: object) -> object:
            looked.append(index)
            return super().__getitem__(index)  # type: ignore[index]

        def __iter__(self) -> object:
            looked.extend(self[:])
            return super().__iter__()

    found = Names(-1)
    found._listing = Counted(sorted([f"v{number:05d}.s" for number in range(20_000)] + ["v1", "v1.", "v1.a", "v1.\udcff", "v1.\U0010ffff", "v1/"]))
    assert found.names_from("v1.") == ["v1.", "v1.a", "v1.\udcff", "v1.\U0010ffff"] and len(looked) < 40
    assert found.names_from("v") == found._listing[:] and found.names_from("w") == []
