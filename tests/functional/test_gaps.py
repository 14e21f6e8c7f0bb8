# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume in whose chain files are missing can be removed: what is left of it goes, nothing else does, and what is missing is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import order, runner

from .test_clones import write
from .test_refusals import MIB, Store, refused

VOLUME = ("vol", "vol.s1", "vol.s2", "vol.s3")
CLONE = ("copy", "copy.c1")
RECORDS = ("vol.json", "copy.json", "other.json")


class Described(Store):
    """Keeps the warnings of its tasks."""

    def options(self, **changes):
        self.warnings: list[str] = []
        return super().options(warn=self.warnings.append, **changes)


def make(path: Path, clone: bool) -> None:
    """``vol`` with three snapshots, ``other`` with one and, with ``clone``, ``copy`` on s2 with a snapshot of its own."""
    store = Store(path)
    store.present(size=MIB)
    for value, name in ((1, "s1"), (2, "s2"), (3, "s3")):
        write(store, "vol", value)
        store.snapshot(name)
    write(store, "vol", 4)
    store.present("other", size=MIB, format="qcow2")
    write(store, "other", 5)
    store.snapshot("o1", "other")
    if clone:
        store.present("copy", updating.SourceRequest("vol", "s2", linked=True))
        write(store, "copy", 6)
        store.snapshot("c1", "copy")
    (path / "stranger").write_bytes(b"somebody's")


@pytest.fixture(scope="session", params=[False, True], ids=["alone", "with clone"])
def template(request, tmp_path_factory) -> tuple[Path, bool]:
    path = tmp_path_factory.mktemp("template") / "share"
    path.mkdir()
    make(path, request.param)
    return path, request.param


@pytest.fixture(scope="session")
def cloned(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cloned") / "share"
    path.mkdir()
    make(path, True)
    return path


@pytest.fixture(scope="session")
def alone(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "share"
    path.mkdir()
    make(path, False)
    return path


def fresh(template: Path, tmp_path: Path) -> Described:
    path = tmp_path / "share"
    shutil.rmtree(path, ignore_errors=True)
    subprocess.run(["cp", "-a", str(template), str(path)], check=True)
    return Described(path)


def without(state: dict, name: str) -> dict:
    """A share's content without all that is of one volume."""
    mine = (name, f".remotefs/volumes/{name}.json")
    return {file: value for file, value in state.items() if file not in mine and not file.startswith(name + ".")}


def in_bulk(store: Described, *names: str, check: bool = False, cascade: bool = True) -> list:
    options = store.options(check=check)

    def item(name: str) -> runner.Item:
        change = order.Change(store.candidates, name, absent=True)
        run: Callable = lambda given: volumes.ensure_absent(store.candidates, name, cascade, given)  # noqa: E731
        return runner.Item(name, frozenset({name}), run, runner.Deletion(store.candidates, name), change=change)

    return runner.run_all([item(name) for name in names], 2, options)


def gaps(files: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [gone for count in (1, 2, len(files)) for gone in combinations(files, count)]


def removed(store: Described, name: str, gone: tuple[str, ...], how: str, left: tuple[str, ...] = ()) -> None:
    """The removal in check mode and in earnest, alone or as items; what it leaves is all that was not the volume's, and files that
    nothing but their name makes the volume's."""
    before = store.state()
    run = {"single": lambda check: store.absent(name, cascade=True, check=check), "bulk": lambda check: in_bulk(store, name, "none", check=check)[0]}[how]
    predicted, warned = run(True), [*store.warnings]
    assert store.state() == before
    done = run(False)
    assert done.changed and (done.actions, done.recovered) == (predicted.actions, predicted.recovered)
    assert warned == store.warnings and done.before == predicted.before and done.after is None
    assert [step for step in done.actions if step["file"] in gone] == []
    assert store.state() == {**without(before, name), **{file: before[file] for file in left}}
    assert all(f"{file} is left where it is" in " ".join(warned) for file in left)
    if left:
        return  # a lone file of which nothing is on record is not ours: the next removal is a conflict
    assert not run(False).changed and store.warnings == []


@pytest.mark.parametrize("how", ["single", "bulk"])
@pytest.mark.parametrize("gone", gaps(VOLUME), ids="+".join)
def test_own_files(alone: Path, tmp_path: Path, gone: tuple[str, ...], how: str) -> None:
    store = fresh(alone, tmp_path)
    for file in gone:
        (store.path / file).unlink()
    assert store.info()["error_code"] == "chain_broken"
    found = refused(store, errors.HasSnapshots, lambda check: store.absent(check=check))
    assert "s1" in str(found)
    told = " ".join(store.warnings)
    assert "missing" in told and all(file in told for file in gone)
    removed(store, "vol", gone, how)


@pytest.mark.parametrize("how", ["single", "bulk"])
@pytest.mark.parametrize("record", ["record", "no record"])
@pytest.mark.parametrize("gone", [one for one in gaps(VOLUME) if one[0] != "vol" or len(one) == 1], ids="+".join)
def test_without_our_record_or_without_info(alone: Path, tmp_path: Path, gone: tuple[str, ...], record: str, how: str) -> None:
    """.info alone names them, or the record alone."""
    store = fresh(alone, tmp_path)
    for file in (*gone, ".remotefs/volumes/vol.json" if record == "no record" else "vol.info"):
        (store.path / file).unlink()
    refused(store, errors.HasSnapshots, lambda check: store.absent(check=check))
    removed(store, "vol", gone, how, ("vol",) if record == "no record" and "vol" not in gone else ())


@pytest.mark.parametrize("how", ["single", "bulk"])
@pytest.mark.parametrize("leading", ["complete", "gap", "parent gone", "only .info"])
def test_somebodys_file_called_as_the_volume(tmp_path: Path, leading: str, how: str) -> None:
    """Its base was merged away long since, nothing is on record, and no header leads to the file."""
    share = tmp_path / "share"
    share.mkdir()
    store = Described(share)
    (share / "vol").write_bytes(b"an installation medium, and no disk of this volume")
    (share / "vol.info").write_text(json.dumps({"active": "vol.s2", "s2": "vol.s2"}))
    if leading != "only .info":
        below = "tmpl" if leading == "parent gone" else "vol.s1"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(share / below), "1M"], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", str(share / "vol.s2")], check=True)
        if leading != "complete":
            (share / below).unlink()
    (in_bulk(store, "vol") if how == "bulk" else [store.absent("vol", cascade=True)])
    assert (share / "vol").read_bytes().startswith(b"an installation medium")
    assert not (share / "vol.info").exists() and not (share / "vol.s2").exists()
    assert leading == "complete" or "vol is left where it is" in " ".join(store.warnings)


@pytest.mark.parametrize("how", ["single", "bulk"])
@pytest.mark.parametrize("parent", ["parent known", "parent's records gone"])
@pytest.mark.parametrize("gone", [("vol",), ("vol.s1",), ("vol", "vol.s1"), ("copy", "vol.s1"), ("copy.c1", "vol"), ("copy",), ("copy.c1",)], ids="+".join)
def test_a_linked_clone(cloned: Path, tmp_path: Path, gone: tuple[str, ...], parent: str, how: str) -> None:
    """Never touches its parent's files."""
    store = fresh(cloned, tmp_path)
    for file in gone + (() if parent == "parent known" else ("vol.info", ".remotefs/volumes/vol.json")):
        (store.path / file).unlink()
    refused(store, errors.HasSnapshots, lambda check: store.absent("copy", check=check))
    assert all(file in " ".join(store.warnings) for file in gone if file != "vol" or "copy" not in gone[0])
    removed(store, "copy", gone, how)


def test_a_linked_clone_of_a_volume_that_is_gone(cloned: Path, tmp_path: Path) -> None:
    store = fresh(cloned, tmp_path)
    for file in (*VOLUME, "vol.info", ".remotefs/volumes/vol.json"):
        (store.path / file).unlink()
    removed(store, "copy", ("vol.s1",), "single")


def test_a_clone_without_snapshots_needs_no_cascade(cloned: Path, tmp_path: Path) -> None:
    store = fresh(cloned, tmp_path)
    store.present("second", updating.SourceRequest("vol", "s1", linked=True))
    (store.path / "vol").unlink()
    before = store.state()
    assert store.absent("second").changed and "missing: vol" in " ".join(store.warnings)
    assert store.state() == without(before, "second")


@pytest.mark.parametrize("gone", gaps(VOLUME)[:-1], ids="+".join)
def test_who_rests_on_it_is_kept(cloned: Path, tmp_path: Path, gone: tuple[str, ...]) -> None:
    """Also where what the clone rests on is what is missing; in one task, both go in the order that works."""
    store = fresh(cloned, tmp_path)
    for file in gone:
        (store.path / file).unlink()
    refused(store, errors.HasDependents, lambda check: store.absent(cascade=True, check=check))
    before = store.state()
    predicted = in_bulk(store, "vol", "copy", check=True)
    assert store.state() == before
    done = in_bulk(store, "vol", "copy")
    assert [one.actions for one in done] == [one.actions for one in predicted] and all(one.changed for one in done)
    assert store.state() == without(without(before, "vol"), "copy")


def test_an_image_that_somebody_has_open(alone: Path, tmp_path: Path) -> None:
    for gone, opened in (("vol.s2", "vol.s3"), ("vol.s2", "vol.s1"), ("vol.s2", "vol"), ("vol.s3", "vol.s2")):
        store = fresh(alone, tmp_path)
        (store.path / gone).unlink()
        image_format = "raw" if opened == "vol" else "qcow2"
        node = f"driver={image_format},node-name=n,file.driver=file,file.filename={store.path / opened}" + (",backing=" if opened != "vol" else "")
        daemon = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev", node, "--export", f"vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path={tmp_path}/s"],
            stdout=subprocess.DEVNULL,
        )
        try:
            for _attempt in range(100):
                if (tmp_path / "s").exists():
                    break
                subprocess.run(["sleep", "0.05"], check=True)
            refused(store, errors.InUse, lambda check, store=store: store.absent(cascade=True, check=check))
        finally:
            daemon.kill()
            daemon.wait()
            (tmp_path / "s").unlink(missing_ok=True)


def damage(store: Store, file: str) -> None:
    with open(store.path / file, "r+b") as stream:
        stream.seek(4)
        stream.write(b"\xff\xff\xff\xff")


@pytest.mark.parametrize("damaged", ["vol.s3", "vol.s1"])
def test_a_damaged_header_is_not_followed_and_not_removed(alone: Path, tmp_path: Path, damaged: str) -> None:
    store = fresh(alone, tmp_path)
    (store.path / "vol.s2").unlink()
    damage(store, damaged)
    refused(store, errors.UnsafeImage, lambda check: store.absent(cascade=True, check=check))


def test_names_on_record_alone_make_nothing_ours(alone: Path, tmp_path: Path) -> None:
    """A record and an .info that name a stranger, another volume and a file of another volume."""
    store = fresh(alone, tmp_path)
    (store.path / "vol.s2").unlink()
    (store.path / "lone").write_bytes(bytes(MIB))
    record = store.path / ".remotefs/volumes/vol.json"
    told = json.loads(record.read_text())
    told["formats"].update({"stranger": "raw", "lone": "raw", "other": "qcow2", "vol.info": "raw", "other.info": "raw"})
    record.write_text(json.dumps(told))
    info = store.path / "vol.info"
    info.write_text(json.dumps({**json.loads(info.read_text()), "x1": "other.o1", "x2": "lone"}))
    before = store.state()
    store.absent(cascade=True)
    assert store.state() == without(before, "vol") and "lone" in " ".join(store.warnings)


def test_a_file_that_two_claim(alone: Path, tmp_path: Path) -> None:
    store = fresh(alone, tmp_path)
    store.present("vol.s9", size=MIB)
    (store.path / "vol.s2").unlink()
    info = store.path / "vol.info"
    info.write_text(json.dumps({**json.loads(info.read_text()), "s9": "vol.s9"}))
    refused(store, errors.Conflict, lambda check: store.absent(cascade=True, check=check))


def test_an_overlay_that_nothing_names_is_a_dependent(alone: Path, tmp_path: Path) -> None:
    store = fresh(alone, tmp_path)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "vol.s1", "-F", "qcow2", str(store.path / "vol.byhand"), str(MIB)], check=True)
    (store.path / "vol.s2").unlink()
    refused(store, errors.HasDependents, lambda check: store.absent(cascade=True, check=check))


def test_other_tasks_say_both_remedies(alone: Path, tmp_path: Path) -> None:
    store = fresh(alone, tmp_path)
    (store.path / "vol.s2").unlink()
    for action in (lambda check: store.delete("s1", check=check), lambda check: store.snapshot("s4", check=check)):
        found = str(refused(store, errors.ChainBroken, action))
        assert "vol.s2 is missing" in found and "put the file back" in found and "state: absent" in found and "cascade: true" in found


@pytest.mark.parametrize("gone", ["vol.s3", "vol.s2", "vol.s1", "vol"])
@pytest.mark.parametrize("last", ["vol.s3", "vol.s2", "vol.s1", "vol", "vol.info"])
def test_a_killed_removal_is_ended(alone: Path, tmp_path: Path, gone: str, last: str) -> None:
    if gone == last:
        return  # nothing of that name is removed
    store = fresh(alone, tmp_path)
    (store.path / gone).unlink()
    before = store.state()
    child = os.fork()
    if child == 0:
        unlink = os.unlink

        def killed(name: str, **where: int) -> None:
            unlink(name, **where)
            if name == last:
                os.kill(os.getpid(), signal.SIGKILL)

        os.unlink = killed
        store.absent(cascade=True)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    predicted = store.absent(cascade=True, check=True)
    done = store.absent(cascade=True)
    assert done.changed and [one["operation"] for one in done.recovered] == ["delete_volume"] and done.recovered == predicted.recovered
    assert store.state() == without(before, "vol") and not store.absent(cascade=True).changed


@pytest.mark.parametrize("gone", ["vol.s3", "vol.s1", "vol"])
def test_unfinished_work_is_given_up(alone: Path, tmp_path: Path, gone: str) -> None:
    """A merge was killed, and then a file went away: with cascade, also what the merge was about goes."""
    store = fresh(alone, tmp_path)
    child = os.fork()
    if child == 0:
        unlink = os.unlink

        def killed(name: str, **where: int) -> None:
            if name in VOLUME:
                os.kill(os.getpid(), signal.SIGKILL)
            unlink(name, **where)

        os.unlink = killed
        store.delete("s2")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    before = store.state()
    (store.path / gone).unlink()
    predicted = store.absent(cascade=True, check=True)
    done = store.absent(cascade=True)
    assert done.changed and done.actions == predicted.actions and store.state() == without(before, "vol")
    assert not store.absent(cascade=True).changed


SHARE = (*VOLUME, *CLONE, "vol.info", "copy.info", "other", "other.o1", "other.info", *(f".remotefs/volumes/{file}" for file in RECORDS))
REASONS = (errors.HasSnapshots, errors.HasDependents, errors.ChainBroken, errors.Conflict)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gone=st.sets(st.sampled_from(SHARE), min_size=1, max_size=8), name=st.sampled_from(["vol", "copy", "other"]), cascade=st.booleans())
def test_whatever_vanishes(cloned: Path, tmp_path: Path, gone: set, name: str, cascade: bool) -> None:
    """Any files and records vanish. A removal is refused for a reason that has a name, or leaves exactly what is not the volume's."""
    store = fresh(cloned, tmp_path)
    for file in gone:
        (store.path / file).unlink()
    before = store.state()
    found = []
    for check in (True, False):
        try:
            found.append(store.absent(name, cascade=cascade, check=check).actions)
        except REASONS as error:
            found.append(type(error).__name__)
        if check:
            assert store.state() == before
        elif isinstance(found[-1], str):  # an .info that can be told for certain was written anew, with its record
            records = {f"{name}.info", f".remotefs/volumes/{name}.json"}
            assert {file: value for file, value in store.state().items() if file not in records} == {
                file: value for file, value in before.items() if file not in records
            }
    assert found[0] == found[1]
    if not isinstance(found[1], str):
        others = without(before, name)
        after = store.state()
        assert {file: value for file, value in after.items() if file in others} == others
        only_named = {name} if f".remotefs/volumes/{name}.json" in gone else set()  # nothing but its name makes it the volume's
        assert set(after) - set(others) <= ({*before} if not found[1] else only_named), "something of the volume is left"
        if name not in after:
            assert not store.absent(name, cascade=cascade).changed
