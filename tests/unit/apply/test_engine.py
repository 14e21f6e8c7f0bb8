# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The seam between the executor and engines: an engine that only takes notes sees each call in its order."""

from __future__ import annotations

import errno
import inspect
import json
import os
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.engine import open_engine
from ansible_collections.remotefs.storage.plugins.module_utils.apply.executor import Executor
from ansible_collections.remotefs.storage.plugins.module_utils.apply.recovery import discard_interrupted, find_interrupted
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, NeedsRecovery, NoSpace, StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.plan import merge, planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.abilities import Abilities
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.plan.intent import Resumption
from ansible_collections.remotefs.storage.plugins.module_utils.plan.plan import Plan
from ansible_collections.remotefs.storage.plugins.module_utils.store.files import access
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import Directory, ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import in_use
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import records
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import chains
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes.look import Look

MIB = 1 << 20


class Noted:
    """An engine that takes notes of what it is asked, and lets the offline engine do it."""

    name = "noted"
    abilities = Abilities()
    attachment = None
    agent = None

    def __init__(self, directory: ShareDirectory, fails: str = "") -> None:
        self.notes: list[str] = []
        self._real = open_engine("offline", directory)
        self._directory, self._fails = directory, fails
        self.fails_after = ""

    def _note(self, text: str) -> None:
        self.notes.append(text)
        if text == self._fails:
            raise NoSpace("share", f"is full at {text}", "make room")

    def session(self, plan: Plan, source: object = None) -> NotedSession:
        self._note(f"session of {plan.volume}")
        return NotedSession(self, self._real.session(plan), plan.volume)

    def predict_end(self, resumption: Resumption) -> None:
        self._note(f"predict the end of {resumption.operation}")
        self._real.predict_end(resumption)

    def session_to_end(self, resumption: Resumption) -> NotedSession:
        self._note(f"session to end {resumption.operation}")
        return NotedSession(self, self._real.session_to_end(resumption), resumption.plan.volume)

    def withdraw(self, _sessions: object) -> bool:
        return False

    def barrier(self, sessions: list[NotedSession]) -> None:
        infos = [json.loads((Path(self._directory.share.path) / f"{one.volume}.info").read_text())["active"] for one in sessions]
        records = [engine_on_record(self._directory, one.volume) for one in sessions]
        self._note(f"barrier: {infos} on record of {records}")


def engine_on_record(directory: ShareDirectory, volume: str) -> str:
    record = json.loads((Path(directory.share.path) / ".remotefs/volumes" / f"{volume}.json").read_text())
    return record["intent"]["engine"] if record["intent"] else "nobody"


class NotedSession:
    def __init__(self, engine: Noted, real: object, volume: str) -> None:
        self._engine, self._real, self.volume = engine, real, volume

    def __enter__(self) -> NotedSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self._engine._note(f"end of {self.volume}")
        self._real.__exit__(*exc)

    def can(self, step: object) -> bool:
        return self._real.can(step)

    def do(self, step: object) -> None:
        self._engine._note(f"{step.name} {step.file}")
        self._real.do(step)
        if self._engine.fails_after == step.file:
            raise NoSpace("share", f"is full after {step.file}", "make room")

    def settle(self, announce: object) -> None:
        pass

    def withdraw(self) -> None:
        return None

    @contextmanager
    def prepared(self, steps: object) -> Iterator[dict]:
        with self._real.prepared(steps) as made:
            yield made

    @contextmanager
    def closing(self, file: str) -> Iterator[None]:
        self._engine._note(f"closing {file}")
        with self._real.closing(file):
            yield


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[ShareDirectory]:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(MIB))
    with ShareDirectory(Share(str(tmp_path), str(tmp_path), "directory")) as opened:
        yield opened


def observed(directory: ShareDirectory, name: str):
    return chains.observe(directory, name, "raw").volume


def snapshot_of(directory: ShareDirectory, name: str) -> Plan:
    return planner.create_snapshot(observed(directory, name), DesiredSnapshot("s", created="2026-01-01T00:00:00Z"))


def executor(directory: ShareDirectory, engine: Noted) -> Executor:
    return Executor(directory, engine, lambda _text: None)


def test_one_plan(directory: ShareDirectory) -> None:
    engine = Noted(directory)
    executor(directory, engine).apply(snapshot_of(directory, "a"))
    assert engine.notes == ["session of a", "create_overlay a.s", "barrier: ['a.s'] on record of ['noted']", "end of a"]


def test_files_go_at_the_end(directory: ShareDirectory) -> None:
    executor(directory, Noted(directory)).apply(snapshot_of(directory, "a"))
    engine = Noted(directory)
    executor(directory, engine).apply(merge.delete_snapshots(observed(directory, "a"), ["s"], {}))
    assert engine.notes == ["session of a", "barrier: ['a'] on record of ['noted']", "closing a.s", "end of a"]


def test_a_group_has_one_barrier(directory: ShareDirectory) -> None:
    """All overlays, the decision, every ``.info``, the barrier of all, and only then the records."""
    engine = Noted(directory)
    plans = [snapshot_of(directory, name) for name in ("a", "b")]
    executor(directory, engine).apply_together(plans, "g")
    assert engine.notes[:4] == ["session of a", "session of b", "create_overlay a.s", "create_overlay b.s"]
    assert engine.notes[4:] == ["barrier: ['a.s', 'b.s'] on record of ['noted', 'noted']", "end of b", "end of a"]
    assert all(observed(directory, name).has_snapshot("s") for name in ("a", "b"))


def test_the_next_release_was_here(directory: ShareDirectory) -> None:
    """Work that an engine began which this release does not have is left alone, and the message names it."""
    engine = Noted(directory, fails="barrier: ['a.s'] on record of ['noted']")
    with pytest.raises(NoSpace):
        executor(directory, engine).apply(snapshot_of(directory, "a"))
    with pytest.raises(NeedsRecovery, match="'noted', which this release does not have"):
        find_interrupted(Look(directory, "a"))


# ------------------------------------------------------------------------------------------- what a failure leaves behind


class Ours(Noted):
    """Work of the offline engine, which recovery finishes."""

    name = "offline"


def outcomes(directory: ShareDirectory) -> list[list[str]]:
    return [[item.outcome for item in find_interrupted(Look(directory, name)).resumptions] for name in ("a", "b")]


def left(directory: ShareDirectory) -> set[str]:
    return {path.name for path in Path(directory.share.path).rglob("*") if path.is_file()}


def test_a_group_is_decided_before_any_info_names_an_overlay(directory: ShareDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash from there on finishes all of it: some clients may have seen the first snapshot."""

    def crash(*_args: object) -> None:
        raise KeyboardInterrupt

    plans = [snapshot_of(directory, name) for name in ("a", "b")]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Executor, "_write_info", crash)
        executor(directory, Ours(directory)).apply_together(plans, "g")
    assert outcomes(directory) == [["finished"], ["finished"]]


def test_the_decision_goes_once_all_of_the_group_is_on_record(directory: ShareDirectory) -> None:
    executor(directory, Ours(directory)).apply_together([snapshot_of(directory, name) for name in ("a", "b")], "g")
    assert not [name for name in left(directory) if name.startswith("g")] and outcomes(directory) == [[], []]


def test_a_group_of_one(directory: ShareDirectory) -> None:
    """Several names that are one volume, or all others of which have the snapshot already."""
    executor(directory, Ours(directory)).apply_together([snapshot_of(directory, "a")], "g")
    assert observed(directory, "a").has_snapshot("s") and outcomes(directory) == [[], []]


@pytest.mark.parametrize("file", ["a.s", "b.s"])
def test_a_group_of_which_one_fails_is_taken_back_at_once(directory: ShareDirectory, file: str) -> None:
    engine = Ours(directory)
    engine.fails_after = file
    with pytest.raises(NoSpace):
        executor(directory, engine).apply_together([snapshot_of(directory, name) for name in ("a", "b")], "g")
    assert not {"a.s", "b.s"} & left(directory) and outcomes(directory) == [[], []]


def test_a_snapshot_that_fails_is_taken_back_at_once(directory: ShareDirectory) -> None:
    with pytest.raises(NoSpace):
        executor(directory, Ours(directory, fails="create_overlay a.s")).apply(snapshot_of(directory, "a"))
    assert "a.s" not in left(directory) and outcomes(directory) == [[], []]
    executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))


def test_of_a_volume_that_could_not_be_made_no_record_stays(directory: ShareDirectory) -> None:
    plan = planner.create_volume(DesiredVolume("c", MIB))
    with pytest.raises(NoSpace):
        executor(directory, Ours(directory, fails="create c")).apply(plan)
    assert not {"c", "c.json"} & left(directory)
    engine = Ours(directory)
    engine.fails_after = "c"  # it is there, so its record stays: nothing else knows its format
    with pytest.raises(NoSpace):
        executor(directory, engine).apply(plan)
    assert {"c", "c.json"} <= left(directory)


# ------------------------------------------------------------------------------------------------- which records are believed


def rewrite(directory: ShareDirectory, name: str, **changes: object) -> None:
    path = Path(directory.share.path) / ".remotefs/volumes" / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_snapshot(directory: ShareDirectory) -> None:
    for name in ("a", "b"):
        executor(directory, Ours(directory)).apply(snapshot_of(directory, name))


def garbage(directory: ShareDirectory, file: str, inode: int | None = None) -> list:
    status = (Path(directory.share.path) / file).stat()
    return [file, status.st_ino if inode is None else inode, status.st_size]


def on_record(directory: ShareDirectory, name: str) -> records.Record:
    found = records.read(directory, name)
    assert found is not None
    return found


@pytest.mark.parametrize("keeps_inodes", [True, False])
def test_an_intent_proves_which_files_it_is_about(tmp_path: Path, directory: ShareDirectory, keeps_inodes: bool) -> None:
    """And has the format of each, since nothing else may know them: here it is the first record of the volume."""
    share = directory.share._replace(keeps_inodes=keeps_inodes)
    with ShareDirectory(share) as opened:
        executor(opened, Ours(opened)).record_intent(snapshot_of(opened, "a"))
        record = on_record(opened, "a")
    assert record.formats == {"a": "raw"} and record.garbage == () and record.intent is not None
    assert record.intent["proofs"] == {"a": [(tmp_path / "a").stat().st_ino if keeps_inodes else 0, MIB]}
    with ShareDirectory(share) as opened:  # what is gone proves nothing
        plan = snapshot_of(opened, "a")
        (tmp_path / "a").unlink()
        executor(opened, Ours(opened)).record_intent(plan)
        assert (on_record(opened, "a").intent or {})["proofs"] == {}


def test_an_intent_of_a_volume_that_is_made_has_nothing_before_it(directory: ShareDirectory) -> None:
    plan = planner.create_volume(DesiredVolume("c", MIB))
    executor(directory, Ours(directory)).apply(plan)
    record, status = on_record(directory, "c"), (Path(directory.share.path) / "c").stat()
    assert record.formats == {"c": "raw"} and record.intent is None
    assert record.marks["c"][:2] == (status.st_ino, MIB)  # by which a file that gets its name later is known to be another one


def test_all_files_that_have_to_go_are_on_record_before_the_first_one_goes(directory: ShareDirectory) -> None:
    executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))
    executor(directory, Ours(directory)).apply(planner.create_snapshot(observed(directory, "a"), DesiredSnapshot("t")))
    plan = merge.delete_snapshots(observed(directory, "a"), ["s", "t"], {})
    with pytest.raises(NoSpace):
        executor(directory, Ours(directory, fails="closing a.s")).apply(plan)
    files = [step.file for step in plan.steps if step.name == "unlink"]
    share = Path(directory.share.path)
    assert len(files) == 2 and list(on_record(directory, "a").garbage) == [
        (file, (share / file).stat().st_ino, (share / file).stat().st_size) for file in files
    ]
    (resumption,) = find_interrupted(Look(directory, "a")).resumptions
    assert [step.file for step in resumption.plan.steps if step.name == "unlink"] == files


def test_what_was_to_go_and_is_in_use_again_is_not_removed(directory: ShareDirectory) -> None:
    with_snapshot(directory)
    rewrite(directory, "a", garbage=[garbage(directory, "a.s")])
    with pytest.raises(NeedsRecovery, match="in use again"):
        find_interrupted(Look(directory, "a"))


@pytest.mark.parametrize("inode, goes", [(None, True), (0, True), (1, False)])
def test_only_the_file_that_was_to_go_goes(directory: ShareDirectory, inode: int | None, goes: bool) -> None:
    """Where inodes are not kept, none is recorded, and the length has to do."""
    with_snapshot(directory)
    (Path(directory.share.path) / "a.old").write_bytes(bytes(512))
    rewrite(directory, "a", garbage=[garbage(directory, "a.old", inode)])
    found = find_interrupted(Look(directory, "a")).resumptions
    assert [step.file for one in found for step in one.plan.steps if step.name == "unlink"] == (["a.old"] if goes else [])
    (Path(directory.share.path) / "a.old").write_bytes(bytes(1024))
    assert not find_interrupted(Look(directory, "a")).resumptions


def test_a_record_that_names_files_of_another_volume_is_not_followed(directory: ShareDirectory) -> None:
    with_snapshot(directory)
    engine = Ours(directory, fails="session of a")
    plan = merge.delete_snapshots(observed(directory, "a"), ["s"], {})
    executor(directory, engine).record_intent(plan)
    assert outcomes(directory)[0] == ["finished"]
    record = json.loads((Path(directory.share.path) / ".remotefs/volumes/a.json").read_text())
    for step in record["intent"]["steps"]:
        if step["type"] == "Unlink":
            step["file"] = "b"
    rewrite(directory, "a", intent=record["intent"])
    with pytest.raises(NeedsRecovery, match="belongs to volume b"):
        find_interrupted(Look(directory, "a"))


def test_where_inodes_are_not_kept_none_is_on_record(directory: ShareDirectory) -> None:
    executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))
    with ShareDirectory(directory.share._replace(keeps_inodes=False)) as opened, pytest.raises(NoSpace):
        executor(opened, Ours(opened, fails="closing a.s")).apply(merge.delete_snapshots(observed(opened, "a"), ["s"], {}))
    assert [item[:2] for item in on_record(directory, "a").garbage] == [("a.s", 0)]


@pytest.mark.parametrize("mode, synced", [(0o600, True), (0o644, False)])
def test_who_may_open_the_new_active_image_is_durable_before_info_names_it(
    directory: ShareDirectory, monkeypatch: pytest.MonkeyPatch, mode: int, synced: bool
) -> None:
    """A host that loses its power must not leave a volume open to those who could not open it before."""
    share, order = Path(directory.share.path), []
    (share / "a").chmod(0o644)
    executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))
    (share / "a.s").chmod(mode)
    kind = type(directory.waiting)
    real_sync, real_info = kind.sync_file, Executor._logged
    monkeypatch.setattr(kind, "sync_file", lambda waiting, fd: (order.append(os.readlink(f"/proc/self/fd/{fd}")), real_sync(waiting, fd))[1])
    monkeypatch.setattr(Executor, "_logged", lambda one, volume, told: (order.append(told["step"]), real_info(one, volume, told))[1])
    executor(directory, Ours(directory)).apply(merge.delete_snapshots(observed(directory, "a"), ["s"], {}))
    assert (share / "a").stat().st_mode & 0o777 == mode
    assert (str(share / "a") in order[: order.index("write_info")]) is synced


def test_an_active_image_that_cannot_be_given_to_its_owner_is_told(directory: ShareDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server maps root to nobody. The data are right, so the change is finished, and the user hears who may not open them."""
    share, told = Path(directory.share.path), []
    executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))
    os.chown(share / "a.s", 12345, 12345)
    (share / "a.s").chmod(0o600)

    def refuse(*_args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patched:
        patched.setattr(access.os, "fchown", refuse)
        Executor(directory, Ours(directory), told.append).apply(merge.delete_snapshots(observed(directory, "a"), ["s"], {}))
    assert [file.file for file in observed(directory, "a").chain] == ["a"] and outcomes(directory)[0] == []
    (words,) = [text for text in told if "active image" in text]
    assert "file a on " in words and "uid 12345" in words and words.endswith("It has become the active image of volume a.")


def test_of_a_removed_volume_no_record_stays(directory: ShareDirectory) -> None:
    with_snapshot(directory)
    executor(directory, Ours(directory)).apply(planner.delete_volume(observed(directory, "a"), True))
    assert not {name for name in left(directory) if name.startswith("a")} and "b.json" in left(directory)


@pytest.mark.parametrize("removed", ["a snapshot", "the volume"])
def test_a_file_that_cannot_be_removed_stays_on_record(directory: ShareDirectory, monkeypatch: pytest.MonkeyPatch, removed: str) -> None:
    executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))
    volume, real = observed(directory, "a"), Directory.unlink

    def refuse(opened: Directory, name: str) -> bool:
        if name == "a.s":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return real(opened, name)

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="file a.s on "):
        patched.setattr(Directory, "unlink", refuse)
        plan = merge.delete_snapshots(volume, ["s"], {}) if removed == "a snapshot" else planner.delete_volume(volume, True)
        executor(directory, Ours(directory)).apply(plan)
    assert {"a.s", "a.json"} <= left(directory) and outcomes(directory)[0] == ["finished"]
    executor(directory, Ours(directory)).finish(find_interrupted(Look(directory, "a")))
    assert "a.s" not in left(directory) and ("a" in left(directory)) is (removed == "a snapshot")

# --------------------------------------------------------------------------------------------- records that are given up


def interrupted_deletion(directory: ShareDirectory) -> None:
    executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))
    executor(directory, Ours(directory)).apply(planner.create_snapshot(observed(directory, "a"), DesiredSnapshot("t")))
    executor(directory, Ours(directory)).record_intent(merge.delete_snapshots(observed(directory, "a"), ["s"], {}))


def given_up(directory: ShareDirectory, name: str = "a") -> Resumption:
    (found,) = discard_interrupted(Look(directory, name)).resumptions
    assert found.outcome == "discarded"
    return found


def test_a_deletion_that_is_given_up_takes_the_names_whose_data_may_be_damaged(directory: ShareDirectory) -> None:
    interrupted_deletion(directory)
    found = given_up(directory)
    assert (found.operation, found.left, set(found.images)) == ("delete_snapshot", (), {"a", "a.s", "a.t"})
    assert [step.name for step in found.plan.steps] == ["write_info"] and found.plan.after is not None and found.plan.after.pending is None
    assert [one.name for one in found.plan.after.snapshots] == ["t"] and found.plan.after.files == ("a.t", "a.s", "a")


def test_an_intent_that_cannot_be_understood_takes_no_name(directory: ShareDirectory) -> None:
    interrupted_deletion(directory)
    rewrite(directory, "a", intent={"operation": "delete_snapshot"})
    found = given_up(directory)
    assert (found.operation, found.images, found.left) == ("unknown", (), ())
    assert found.plan.after is not None and [one.name for one in found.plan.after.snapshots] == ["s", "t"]


def test_files_that_were_to_go_and_are_not_of_the_volume_are_left_and_told(directory: ShareDirectory) -> None:
    with_snapshot(directory)
    old = Path(directory.share.path) / "a.old"
    old.write_bytes(bytes(512))
    rewrite(directory, "a", garbage=[garbage(directory, "a.old"), garbage(directory, "a.s"), ["a.gone", 1, 1]])
    found = given_up(directory)
    assert (found.operation, found.left) == ("unknown", ("a.old",))
    executor(directory, Ours(directory)).record_intent(merge.delete_snapshots(observed(directory, "a"), ["s"], {}))
    for file in ("a.s", "a.info"):
        (Path(directory.share.path) / file).rename(Path(directory.share.path) / f"kept-{file}")
    shorter = given_up(directory)  # the overlay that the intent names is gone, and what is left of the volume counts
    assert shorter.left == () and [step.name for step in shorter.plan.steps] == ["write_record"]


def test_of_a_volume_that_is_gone_nothing_is_left_to_do(directory: ShareDirectory) -> None:
    interrupted_deletion(directory)
    for path in Path(directory.share.path).glob("a*"):
        path.unlink()
    found = given_up(directory)
    assert (found.operation, found.plan.steps, found.plan.after, found.left) == ("delete_snapshot", (), None, ())


def test_a_volume_without_a_record_is_taken_as_it_stands(directory: ShareDirectory) -> None:
    with_snapshot(directory)
    (Path(directory.share.path) / ".remotefs/volumes/b.json").unlink()
    found = given_up(directory, "b")
    assert (found.operation, found.left, found.images) == ("unknown", (), ()) and [step.name for step in found.plan.steps] == ["write_info"]
    assert found.plan.after is not None and [one.name for one in found.plan.after.snapshots] == ["s"]


def test_beside_an_image_that_cannot_be_read_nothing_is_removed(directory: ShareDirectory) -> None:
    with_snapshot(directory)
    (Path(directory.share.path) / "a.old").write_bytes(bytes(512))
    rewrite(directory, "a", garbage=[garbage(directory, "a.old")])
    (Path(directory.share.path) / "a.s").write_bytes(b"QFI\xfb" + bytes(508))
    with pytest.raises(NeedsRecovery):
        find_interrupted(Look(directory, "a"))


# ------------------------------------------------------------------------------------------ how an interrupted task is ended


def test_nothing_is_ended_before_all_of_it_may_be(directory: ShareDirectory) -> None:
    """A user of a file that has to go keeps all traces where they are, also those that nobody can use."""
    with_snapshot(directory)
    (Path(directory.share.path) / "a.old").write_bytes(bytes(512))
    rewrite(directory, "a", garbage=[garbage(directory, "a.old")])
    (Path(directory.share.path) / ".remotefs/tmp/a~0123").touch()
    found, before = find_interrupted(Look(directory, "a")), left(directory)
    assert found.resumptions and found.leftovers == ("a~0123",)
    with open(Path(directory.share.path) / "a.old", "r+b") as stream:
        in_use.hold(stream.fileno(), "a.old", "share")
        engine = Ours(directory)
        with pytest.raises(InUse):
            executor(directory, engine).finish(found)
        assert left(directory) == before and engine.notes == ["predict the end of unlink"]
    engine = Ours(directory)
    executor(directory, engine).finish(found)
    assert engine.notes == [
        "predict the end of unlink",
        "session to end unlink",
        "barrier: ['a.s'] on record of ['nobody']",
        "closing a.old",
        "end of a",
    ]
    assert before - left(directory) == {"a.old", "a~0123"} and outcomes(directory) == [[], []]


# ------------------------------------------------------------------------------------- what may be used on a full share


@pytest.fixture
def last_resorts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Each small file that is written from now on, and what may be used for it if the share is full."""
    found: list[tuple[str, str]] = []
    real = ShareDirectory.write_record

    def noted(opened: ShareDirectory, volume: str, where: Directory, name: str, data: bytes, *more: object, **named: object) -> None:
        given = inspect.signature(real).bind(opened, volume, where, name, data, *more, **named)
        given.apply_defaults()
        intent = name.endswith(".json") and json.loads(data).get("intent") is not None
        found.append(("intent" if intent else "record" if name.endswith(".json") else ".info", given.arguments["last"]))
        real(opened, volume, where, name, data, *more, **named)

    monkeypatch.setattr(ShareDirectory, "write_record", noted)
    return found


def test_what_needs_room_takes_none_of_what_is_kept_for_deletions(directory: ShareDirectory, last_resorts: list) -> None:
    """But an overlay that is published gets its name in ``.info``, and the intent its end."""
    executor(directory, Ours(directory)).apply(planner.create_volume(DesiredVolume("c", MIB)))
    assert last_resorts == [("record", "")]
    executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))
    assert last_resorts[1:] == [("intent", ""), (".info", "blocks"), ("record", "blocks")]


@pytest.mark.parametrize("moves, last", [(False, "blocks"), (True, "")])
def test_a_deletion_begins_on_a_full_share_if_it_moves_no_data(directory: ShareDirectory, last_resorts: list, moves: bool, last: str) -> None:
    executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))
    volume = observed(directory, "a")
    if moves:
        volume = replace(volume, chain=(replace(volume.active, empty=False), *volume.chain[1:]))
    plan = merge.delete_snapshots(volume, ["s"], {})
    assert any(step.moves() != 0 for step in plan.steps) is moves
    del last_resorts[:]
    executor(directory, Ours(directory)).apply(plan)
    assert last_resorts == [("intent", last), (".info", "blocks"), ("record", "blocks")]


@pytest.mark.parametrize("much, last", [(False, "ballast"), (True, "blocks")])
def test_a_revert_that_gives_up_too_little_begins_only_with_ballast(directory: ShareDirectory, last_resorts: list, much: bool, last: str) -> None:
    """It makes a new file. With what the present content takes it can go on, and with a piece of ballast."""
    executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))
    executor(directory, Ours(directory)).apply(planner.create_snapshot(observed(directory, "a"), DesiredSnapshot("t")))
    if much:
        with open(Path(directory.share.path) / "a.t", "r+b") as stream:
            stream.seek(0, os.SEEK_END)
            stream.write(b"x" * MIB)
    volume = observed(directory, "a")
    del last_resorts[:]
    executor(directory, Ours(directory)).apply(planner.revert(volume, "s", True))
    assert last_resorts[0] == ("intent", last)

# -------------------------------------------------------------------------------------------------------- what is told


def test_each_step_is_told_with_its_time_and_one_that_failed_with_its_reason(directory: ShareDirectory) -> None:
    told: list = []
    for fails in ("", "create_overlay b.s"):
        name = "b" if fails else "a"
        work = Executor(directory, Ours(directory, fails), lambda _text: None, lambda *words: told.append(words))
        with pytest.raises(NoSpace) if fails else nullcontext():
            work.apply(snapshot_of(directory, name))
    steps = [(volume, words["step"]) for volume, words, _seconds in told]
    assert steps[:4] == [("a", "write_intent"), ("a", "create_overlay"), ("a", "write_info"), ("a", "write_record")]
    assert steps[4:6] == [("b", "write_intent"), ("b", "create_overlay")]
    assert [number for number, (_volume, words, _seconds) in enumerate(told) if "failed" in words] == [5] and "is full" in told[5][1]["failed"]
    assert all(words["share"] == directory.share.source and 0 <= seconds < 60 for _volume, words, seconds in told)


def test_an_error_of_the_system_is_told_as_one_of_the_volume(directory: ShareDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_session: object, _step: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(NotedSession, "do", fail)
    with pytest.raises(StorageError, match="volume a on "):
        executor(directory, Ours(directory)).apply(snapshot_of(directory, "a"))
