# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes that move to another share: what arrives, what goes, what is refused, and what an interruption at each step leaves."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.executor import Executor
from ansible_collections.remotefs.storage.plugins.module_utils.operations import exporting, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, TakesLong, Task
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.plan.retention import parse_expiry

from .test_clones import opened, write
from .test_exporting import Life, lived
from .test_importing import content
from .test_refusals import MIB, Store
from .test_replicas import names, replicate, shown


@pytest.fixture
def new(tmp_path: Path) -> Store:
    """The share that volumes move to."""
    (tmp_path / "new").mkdir()
    return Store(tmp_path / "new")


def move(source: Store, target: Store, name: str = "vol", **more: Any) -> Outcome:
    """:param more: options of the task (check, warn, timeout, discard), and what is desired."""
    options = target.options(**{key: more.pop(key) for key in ("check", "warn", "timeout", "speed", "discard", "attachment") if key in more})
    elsewhere = updating.OtherShare(str(source.path), lambda: source.candidates)
    return volumes.ensure_present(updating.VolumeRequest(target.candidates, DesiredVolume(name, **more), moved_from=elsewhere), options)


def only_there(life: Life, target: Store) -> None:
    """The new share has all of a life, and nothing else; the old one has nothing of it."""
    points = {name: data for name, data in life.points.items() if name is not None}
    assert names(target, life.name) == list(points)
    for name, data in points.items():
        assert shown(target, name, life.name) == data, name
    told = target.info(life.name)
    assert content(told["path"], told["format"]) == bytes(life.shown)
    assert told["pending"] is None and not told["in_use"]
    left = [path for path in life.store.path.rglob(f"*{life.name}*") if path.suffix != ".lock" and not path.is_dir()]
    assert left == []


def complete(life: Life, *stores: Store) -> bool:
    """Whether one of these shows the whole volume: nothing is lost, whatever happened."""
    found = []
    for store in stores:
        try:
            told = store.info(life.name)
        except (ValueError, errors.StorageError):
            continue
        found.append("chain" in told and told["chain"] and content(told["path"], told["format"]) == bytes(life.shown))
    return any(found)


# -- what arrives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed, desired", [(1, {}), (2, {"format": "qcow2"}), (3, {}), (4, {"format": "qcow2"})])
def test_all_points_and_the_present_arrive(store: Store, new: Store, seed: int, desired: dict) -> None:
    """Check mode foretells the same steps. The second time is no change. The volume goes back in the same way."""
    life = lived(store, seed, **desired)
    before = store.info()
    foretold, done = move(store, new, check=True), move(store, new)
    only_there(life, new)
    assert foretold.changed and done.changed
    assert [step["step"] for step in foretold.actions] == [step["step"] for step in done.actions]
    assert done.before == before and done.after == new.info() and foretold.after is not None
    assert {**foretold.after, "chain": 0, "allocated": 0, "created": 0} == {**done.after, "chain": 0, "allocated": 0, "created": 0}
    assert done.told is not None and done.told["sent"] > 0
    for check in (True, False):
        again = move(store, new, check=check)
        assert not again.changed and not again.actions
    back = Life.__new__(Life)
    back.__dict__.update(life.__dict__, store=new)
    move(new, store)
    only_there(back, store)


@pytest.mark.parametrize("desired", [{}, {"format": "qcow2"}])
def test_a_volume_without_snapshots(store: Store, new: Store, desired: dict) -> None:
    life = Life(store, 7, **desired)
    life.write()
    move(store, new)
    only_there(life, new)
    assert [image["format"] for image in new.info()["chain"]] == [desired.get("format", "raw")]


def test_a_present_that_was_not_written_since_its_newest_snapshot(store: Store, new: Store) -> None:
    life = lived(store, 8)
    life.snapshot("s3")
    done = move(store, new)
    only_there(life, new)
    assert "present" not in str([step for step in done.actions if step["step"] == "receive"])
    assert len(new.info()["chain"]) == len(life.points)


def test_a_volume_that_has_grown_since_its_newest_snapshot(store: Store, new: Store) -> None:
    life = lived(store, 9)
    life.snapshot("s3")
    life.grow()
    move(store, new)
    only_there(life, new)


def test_all_that_is_said_of_it_comes_along(store: Store, new: Store) -> None:
    """Labels, also that of the role, times, protection and expiry; whether it is a replica; mode and owner of the file."""
    store.present(size=MIB, description="of the shop", labels={"remotefs_role": "volumes", "team": "blue"}, mode=0o640)
    desired = DesiredSnapshot("s1", description="before", labels={"a": "b"}, protected=True, expires=parse_expiry("10d", "2026-11-27T10:00:00Z"))
    snapshots.take(snapshots.SnapshotRequest(store.candidates, "vol", desired), store.options())
    write(store, "vol", 5)
    if os.geteuid() == 0:
        for file in ("vol", "vol.s1"):
            os.chown(store.path / file, 4711, 4712)
    before = store.info()
    foretold = move(store, new, check=True).after
    move(store, new)
    after = new.info()
    assert foretold is not None and {**foretold, "allocated": 0, "chain": 0} == {**after, "allocated": 0, "chain": 0}
    for key in ("description", "labels", "created", "size", "base_format"):
        assert after[key] == before[key]
    assert [{**one, "file": 0} for one in after["snapshots"]] == [{**one, "file": 0} for one in before["snapshots"]]
    status = os.stat(after["path"])
    assert status.st_mode & 0o777 == 0o640
    assert os.geteuid() != 0 or (status.st_uid, status.st_gid) == (4711, 4712)
    record = (new.path / ".remotefs/volumes/vol.json").read_text()
    assert '"received": true' not in record and '"move"' not in record


def test_a_linked_clone_moves_with_the_data_of_its_parent(store: Store, new: Store) -> None:
    life = lived(store, 10)
    store.present("copy", updating.SourceRequest("vol", "s1", linked=True))
    write(store, "copy", 77, "64k 64k")
    expected = bytearray(life.points["s1"])
    expected[65536:131072] = b"\x4d" * 65536
    move(store, new, "copy")
    assert content(new.info("copy")["path"], new.info("copy")["format"]) == bytes(expected)
    assert new.info("copy")["parent"] is None and not store.info()["dependents"]


def test_onto_its_replica_only_what_is_missing_is_sent(store: Store, new: Store) -> None:
    """Days before, most of it was replicated. What the replica has kept stays, and replicas elsewhere go on."""
    store.present(size=64 * MIB)
    write(store, "vol", 1, "0 16M")
    store.snapshot("s1")
    store.snapshot("s2")
    replicate(store, new)
    store.delete("s1")
    write(store, "vol", 2, "0 128k")
    done = move(store, new)
    assert done.told == {"sent": 131072} and names(new) == ["s1", "s2"]
    assert content(new.info()["path"], "qcow2")[: 16 * MIB] == b"\x02" * 131072 + b"\x01" * (16 * MIB - 131072)


def test_a_replica_moves_and_its_source_goes_on_sending_there(store: Store, new: Store, tmp_path: Path) -> None:
    (tmp_path / "third").mkdir()
    third = Store(tmp_path / "third")
    life = lived(store, 11)
    replicate(store, new)
    move(new, third)
    life.snapshot("s3")
    assert replicate(store, third).told["points"]["sent"] == ["s3"]  # type: ignore[index]
    move(store, new)
    life.points["s4"] = life.points["s3"]
    new.snapshot("s4")
    assert replicate(new, third).told["points"]["sent"] == ["s4"]  # type: ignore[index]


def test_what_else_is_desired_is_done_after_the_move(store: Store, new: Store) -> None:
    life = lived(store, 12)
    done = move(store, new, size=8 * MIB, description="new", snapshot="arrived")
    told = new.info()
    assert told["size"] == 8 * MIB and told["description"] == "new" and names(new)[-1] == "arrived" and done.told["sent"] > 0
    assert content(told["path"], told["format"]) == bytes(life.shown).ljust(8 * MIB, b"\0")


def test_a_long_move_is_watched_from_the_beginning(store: Store, new: Store) -> None:
    """The task begins anew where it is watched, so nothing may be recorded before."""
    store.present(size=64 * MIB)
    write(store, "vol", 1, "0 24M")
    store.snapshot("s1")
    before = store.state(), new.state()
    options = Options(lock_timeout=1, task=Task(begins_anew=True))
    elsewhere = updating.OtherShare(str(store.path), lambda: store.candidates)
    with pytest.raises(TakesLong):
        volumes.ensure_present(updating.VolumeRequest(new.candidates, DesiredVolume("vol"), moved_from=elsewhere), options)
    assert (store.state(), new.state()) == before


# -- what is refused ---------------------------------------------------------------------------------------------------


def refuse(kind: type, source: Store, target: Store, said: str, **more: Any) -> errors.StorageError:
    """The same in check mode and in earnest, and nothing of both shares is changed."""
    before = source.state(), target.state()
    for check in (True, False):
        with pytest.raises(kind, match=said) as caught:
            move(source, target, check=check, **more)
        assert (source.state(), target.state()) == before
    return caught.value


def test_neither_here_nor_there(store: Store, new: Store) -> None:
    refuse(errors.VolumeNotFound, store, new, "leave moved_from out")


def test_another_volume_of_that_name(store: Store, new: Store) -> None:
    lived(store, 1)
    new.present(size=2 * MIB)
    refuse(errors.Conflict, store, new, "is no replica of that one")


def test_the_same_share(store: Store, tmp_path: Path) -> None:
    """Also under another name, where the volume would be compared with itself and removed."""
    life = lived(store, 1)
    refuse(errors.Conflict, store, store, "to the same share")
    (tmp_path / "alias").symlink_to(store.path)
    alias = Store(tmp_path / "alias")
    for received in (False, True):
        with pytest.raises(errors.Conflict):
            move(alias, store)
        if not received:
            (tmp_path / "second").mkdir()
            replicate(store, Store(tmp_path / "second"))
            record = store.path / ".remotefs/volumes/vol.json"
            record.write_text(record.read_text().replace('"received": false', '"received": true'))
    assert complete(life, store)


def test_a_clone_rests_on_it(store: Store, new: Store) -> None:
    lived(store, 1)
    store.present("copy", updating.SourceRequest("vol", "s1", linked=True))
    refuse(errors.HasDependents, store, new, "copy")


def test_a_clone_rests_on_its_replica(store: Store, new: Store) -> None:
    lived(store, 1)
    replicate(store, new)
    new.present("copy", updating.SourceRequest("vol", "s1", linked=True))
    refuse(errors.HasDependents, store, new, "copy")


def test_a_machine_has_it(store: Store, new: Store) -> None:
    life = lived(store, 1)
    with opened(store, "vol"):
        refuse(errors.InUse, store, new, "vol.s2")
    move(store, new)
    only_there(life, new)


def test_a_replica_that_was_written_to(store: Store, new: Store) -> None:
    lived(store, 1)
    replicate(store, new)
    write(new, "vol", 9)
    refuse(errors.Conflict, store, new, "somebody has written to it")


def test_entries_of_info_without_a_place_in_the_chain(store: Store, new: Store) -> None:
    lived(store, 1)
    info = store.path / "vol.info"
    info.write_text(info.read_text().replace("{", '{"gone": "vol.gone", ', 1))
    refuse(errors.Conflict, store, new, "gone")


def test_it_is_written_to_while_it_is_read(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was started and stopped again between the reading and the removal: nothing is removed, and the next task sends that, too."""
    life = lived(store, 13)
    apply = Executor.apply

    def late(self: Executor, plan: Any, source: Any = None) -> None:
        if plan.operation == "delete_volume":
            life.write()
        apply(self, plan, source)

    with monkeypatch.context() as patched:
        patched.setattr(Executor, "apply", late)
        with pytest.raises(errors.Conflict, match="somebody has written to vol.s2"):
            move(store, new)
    assert new.info()["pending"]["counts"] == "target" and complete(life, store)
    with pytest.raises(errors.Conflict, match="since then somebody has written to one of both"):
        move(store, new)
    volumes.ensure_absent(new.candidates, "vol", True, new.options(discard=True))
    move(store, new)
    only_there(life, new)


# -- interruptions -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The end of a process, as far as one test can do it."""


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch, after: bool) -> Iterator[list]:
    """The task ends before or after its plan of this number is carried out."""
    plans: list = []
    apply = Executor.apply

    def counted(self: Executor, plan: Any, source: Any = None) -> None:
        plans.append(plan)
        if len(plans) == number + 1 and not after:
            raise Killed
        apply(self, plan, source)
        if len(plans) == number + 1:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Executor, "apply", counted)
        yield plans


def test_an_interruption_at_each_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every instant one of both has everything, ``pending`` says which one, and the next task goes on."""
    for number in range(12):
        for after in (False, True):
            stores = []
            for which in ("old", "new"):
                path = tmp_path / f"{which}-{number}-{after}"
                path.mkdir()
                stores.append(Store(path))
            old, new = stores
            life = lived(old, 20 + number)
            with killed_at(number, monkeypatch, after) as plans:
                try:
                    move(old, new)
                except Killed:
                    pass
                else:
                    assert len(plans) <= number
                    return
            _look_at(life, old, new)
            move(old, new)
            only_there(life, new)
    pytest.fail("a move has more plans than expected")


def _look_at(life: Life, old: Store, new: Store) -> None:
    try:
        pending = new.info()["pending"]
    except ValueError:
        pending = None
    counts = "source" if pending is None else pending["counts"]
    assert complete(life, old if counts == "source" and (old.path / "vol.info").exists() else new)
    if pending is None:
        return
    assert pending["operation"] == "move" and pending["source"] == str(old.path)
    actions: list[Callable[[], Any]] = [
        lambda: new.snapshot("x"),
        lambda: new.present(size=16 * MIB),
        lambda: new.revert("s0", True),
        lambda: new.delete("s0"),
        lambda: new.present("y", updating.SourceRequest("vol")),
        lambda: new.present("y", updating.SourceRequest("vol", "s0", linked=True)),
        lambda: replicate(new, old, name="z"),
        lambda: exporting.export(exporting.ExportRequest(new.candidates, "vol", "s0", exporting.ToFile(str(new.path.parent / "out.raw"))), new.options()),
    ]
    for action in actions:
        with pytest.raises(errors.Conflict, match="its move from .* was interrupted"):
            action()


def test_the_source_goes_on_after_an_interruption(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume was used on the old share meanwhile: writes, a snapshot, one that was deleted and a name that was given anew."""
    life = lived(store, 30)
    with killed_at(4, monkeypatch, True), pytest.raises(Killed):
        move(store, new)
    assert new.info()["pending"]["counts"] == "source"
    life.write()
    store.delete("s1", "s2")
    del life.points["s1"], life.points["s2"]
    life.snapshot("s2")
    life.write()
    move(store, new)
    points = {name: data for name, data in life.points.items() if name is not None}
    assert set(points) <= set(names(new))
    for name, data in points.items():
        assert shown(new, name) == data
    told = new.info()
    assert content(told["path"], told["format"]) == bytes(life.shown) and not (store.path / "vol").exists()


@pytest.mark.parametrize("snapshots_first", [True, False])
def test_the_present_changes_after_it_was_sent(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch, snapshots_first: bool) -> None:
    life = lived(store, 31) if snapshots_first else Life(store, 31)
    life.write()
    plans: list = []
    apply = Executor.apply

    def before_complete(self: Executor, plan: Any, source: Any = None) -> None:
        plans.append(plan)
        if plan.after is not None and plan.after.move is not None and plan.after.move.is_complete:
            raise Killed
        apply(self, plan, source)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Executor, "apply", before_complete)
        move(store, new)
    life.write()
    move(store, new)
    only_there(life, new)


def test_a_present_that_was_sent_is_not_sent_again(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    life = lived(store, 32)
    with killed_at(6, monkeypatch, False) as plans, pytest.raises(Killed):
        move(store, new)
    assert plans[-1].after.move.is_complete
    assert move(store, new).told == {"sent": 0}
    only_there(life, new)


def test_the_old_share_is_gone_before_all_was_sent(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has arrived is kept on request."""
    life = lived(store, 33)
    with killed_at(4, monkeypatch, True), pytest.raises(Killed):
        move(store, new)
    had = names(new)
    store.absent(cascade=True)
    with pytest.raises(errors.Conflict, match="not all of it is here"):
        move(store, new)
    assert new.info()["pending"] is not None
    for check in (True, False):
        new_options = new.options(check=check, discard=True)
        volumes.ensure_present(updating.VolumeRequest(new.candidates, DesiredVolume("vol")), new_options)
    assert new.info()["pending"] is None and had and names(new) == had
    for name in had:
        assert shown(new, name) == life.points[name]


def test_a_share_that_is_not_there_any_more(store: Store, new: Store) -> None:
    """Once it has moved, the old share may be gone: the user is told that nobody looked there."""
    life = lived(store, 34)
    move(store, new)
    told: list[str] = []
    gone = Candidates((), (errors.ShareNotMounted("share old", "it is not mounted", "mount it"),), (store.share,), ())
    gone = gone._replace(excused=gone.unreadable)
    elsewhere = updating.OtherShare("old", lambda: gone)
    request = updating.VolumeRequest(new.candidates, DesiredVolume("vol"), moved_from=elsewhere)
    for check in (True, False):
        done = volumes.ensure_present(request, new.options(warn=told.append, check=check))
        assert not done.changed
    assert "not known" in told[-1]
    only_there(life, new)


def test_removed_instead(store: Store, new: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gives the move up removes what has arrived; the source is as it was."""
    life = lived(store, 35)
    with killed_at(4, monkeypatch, True), pytest.raises(Killed):
        move(store, new)
    new.absent(cascade=True)
    assert complete(life, store) and store.info()["pending"] is None
    move(store, new)
    only_there(life, new)


def test_another_share_than_the_move_was_begun_from(store: Store, new: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "third").mkdir()
    third = Store(tmp_path / "third")
    life = lived(store, 36)
    lived(third, 37)
    with killed_at(4, monkeypatch, True), pytest.raises(Killed):
        move(store, new)
    with pytest.raises(errors.Conflict, match="is being moved there from"):
        move(third, new)
    with pytest.raises(errors.Conflict):
        volumes.ensure_present(updating.VolumeRequest(Candidates((store.share, new.share)), DesiredVolume("vol")), new.options())
    move(store, new)
    only_there(life, new)


def test_what_has_not_arrived_as_a_whole_does_not_move_on(store: Store, new: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "third").mkdir()
    third = Store(tmp_path / "third")
    life = lived(store, 39)
    with killed_at(4, monkeypatch, True), pytest.raises(Killed):
        move(store, new)
    refuse(errors.Conflict, new, third, "not all of it is here")
    move(store, new)
    move(new, third)
    life.store = new
    only_there(life, third)


def test_a_flipped_byte_of_what_was_there_before_is_found(store: Store, new: Store) -> None:
    """Nothing is removed."""
    life = lived(store, 38)
    replicate(store, new)
    path = new.path / "vol"
    with path.open("r+b") as disk:
        disk.seek(MIB)
        byte = disk.read(1)
        disk.seek(MIB)
        disk.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(os.stat(path).st_atime_ns, 0))
    with pytest.raises((errors.VerifyFailed, errors.Conflict)):
        move(store, new)
    assert complete(life, store)
