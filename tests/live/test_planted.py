# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that lose data, planted one by one: the judgement of these tests notices each of them.

They show that the tests can fail, and that the traps are real in the QEMU that runs here.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.live import merging, possible, proving, session, switching
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.client import Lost, Monitor
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.graph import Graph
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.guardian import Guardian
from ansible_collections.remotefs.storage.plugins.module_utils.errors import ChainBroken, InUse, StorageError, ToolFailed

from .guest import CLUSTER, Live, qemu_version
from .instants import instants, killed_at
from .test_kills import Case


def pulled(live: Live) -> None:
    """A chain whose newest snapshot goes by a pull into the active image, because that holds more; then QEMU is killed."""
    guest = live.start()
    guest.write(0, 4 * CLUSTER, 1)
    live.snapshot("a")
    guest.write(8 * CLUSTER, CLUSTER, 2)
    live.snapshot("b")
    guest.write(16 * CLUSTER, 20 * CLUSTER, 3)
    done = live.delete("b")
    assert [(step["step"], step["file"]) for step in done.actions][0] == ("pull", "v.b")
    del live.points["b"]
    guest.kill()
    live.require_right()


def test_no_flush_before_a_pull_ends(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """The header would lead to tables that are in the memory of QEMU alone."""
    pulled(make("qcow2"))
    monkeypatch.setattr(proving, "flush", lambda _machine, _node: None)
    with pytest.raises(ToolFailed, match="has not written all of the merge"):
        pulled(make("qcow2"))
    monkeypatch.setattr(proving.Merged, "_require_tables", lambda _self, _fd: None)
    if qemu_version() >= (10,):
        return  # it flushes by itself before the header leads to the tables
    with pytest.raises((AssertionError, StorageError), match="is wrong"):
        pulled(make("qcow2"))


@pytest.mark.parametrize("names", ["a", "b", "ab", "bc"])
def test_a_flush_that_fails(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """QEMU's monitor does not tell it. The job is cancelled, and the next task does it all again, on the machine or without."""
    for aftermath in ("reattach", "offline"):
        live = make("qcow2")
        guest = live.start()
        for point in "abc":
            guest.write(ord(point) % 8 * CLUSTER, CLUSTER, ord(point))
            live.snapshot(point)
        guest.scribble(5)
        monkeypatch.setattr(proving, "flush", lambda _machine, _node: None)
        with pytest.raises(ToolFailed, match="QEMU has not written all of the merge"):
            live.delete(*names)
        monkeypatch.undo()
        assert live.info()["pending"]["snapshots"] == list(names) and not guest.qmp("query-jobs")
        if aftermath == "offline":
            guest.kill()
            live.guest = None
        live.delete(*names)
        live.forget(*names)
        live.require_right()
        live.require_nothing_left()


def test_a_snapshot_at_the_name_of_the_filter(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """The overlay would be above the filter, and the guest would lose its limits."""
    run = Monitor.run

    def at_the_root(self: Monitor, command: str, **arguments: Any) -> Any:
        if command == "blockdev-snapshot":
            arguments["node"] = Graph(self).root_of(arguments["node"])
        return run(self, command, **arguments)

    live = make("qcow2")
    guest = live.start("filter")
    monkeypatch.setattr(Monitor, "run", at_the_root)
    live.snapshot("a")
    (root,) = [one["inserted"]["node-name"] for one in guest.qmp("query-block")]
    assert root != "disk0", "test_create.py compares this"


def test_info_after_the_switch(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that dies in between would be started on the file that the guest had left."""
    prepare, complete = switching.Switch.prepare, switching.Switch.complete

    def too_early(self: switching.Switch) -> None:
        prepare(self)
        complete(self)

    monkeypatch.setattr(switching.Switch, "prepare", too_early)
    case = Case(make("raw"), "all")
    assert case.live.guest is not None
    trial = Case(make("raw"), "all")
    number = next(one.number for one in instants(trial.run) if one.what == "before rename of v.info")
    guest = case.live.guest
    killed_at(case.run, number, "module", guest.process.pid)
    guest.wait_for_no_job()
    guest.scribble(30)
    guest.kill()
    with pytest.raises(AssertionError, match="does not show what the guest has flushed"):
        case.require_invariant()


def test_a_guardian_that_always_cancels(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pipe alone it does not know that ``.info`` was just renamed."""
    trial = Case(make("raw"), "all")
    number = next(one.number for one in instants(trial.run) if one.what == "after rename of v.info")
    monkeypatch.setattr(Guardian, "_names_new", lambda _self: False)
    case = Case(make("raw"), "all")
    guest = case.live.guest
    assert guest is not None
    killed_at(case.run, number, "module", guest.process.pid)
    guest.wait_for_no_job()
    guest.scribble(30)
    guest.kill()
    with pytest.raises(AssertionError, match="does not show what the guest has flushed"):
        case.require_invariant()


def test_files_that_qemu_does_not_close(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay: their lock bytes are taken before they go."""
    monkeypatch.setattr(merging.Merging, "drop", lambda _self, _files: None)
    case = Case(make("qcow2"), "middle")
    with pytest.raises(InUse):
        case.run()
    monkeypatch.undo()
    case.before = ""
    case.end("reattach")


def test_a_snapshot_undone_after_the_switch(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is lost right after the switch. Whoever undid the snapshot then would remove what the guest writes to."""
    run = Monitor.run

    def lost(self: Monitor, command: str, **arguments: Any) -> Any:
        done = run(self, command, **arguments)
        if command == "blockdev-snapshot":
            raise Lost("planted")
        return done

    monkeypatch.setattr(Monitor, "run", lost)
    live = make("qcow2")
    guest = live.start()
    guest.scribble(1)
    with pytest.raises(StorageError, match="planted"):
        live.snapshot("a")
    monkeypatch.setattr(Monitor, "run", run)
    assert live.info()["pending"]["snapshots"] == ["a"] and (live.path / "v.a").exists()
    guest.scribble(2)
    live.snapshot("b")
    live.require_right()
    monkeypatch.setattr(Monitor, "run", lost)
    monkeypatch.setattr(session.LiveSession, "withdraw", lambda _self: True)
    with pytest.raises(StorageError):
        live.take("c")
    monkeypatch.undo()
    assert (live.path / "v.c").exists(), "its lock bytes were taken before it would have gone"


def with_a_buried_filter(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> Live:
    """A machine of which somebody took the last snapshot at the filter's name: the filter is between two images since."""
    run = Monitor.run

    def at_the_root(self: Monitor, command: str, **arguments: Any) -> Any:
        if command == "blockdev-snapshot":
            arguments["node"] = Graph(self).root_of(arguments["node"])
        return run(self, command, **arguments)

    live = make("raw")
    guest = live.start("filter")
    guest.scribble(1)
    live.snapshot("a")
    guest.scribble(2)
    monkeypatch.setattr(Monitor, "run", at_the_root)
    live.snapshot("b")
    monkeypatch.setattr(Monitor, "run", run)
    guest.scribble(3)
    return live


def test_a_buried_filter(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge past it ends without an error, and the header above still names what would be removed. So it is refused; if it were not, the
    header is read before anything is removed."""
    live = with_a_buried_filter(make, monkeypatch)
    before = live.tree()
    for mode in ({"check": True}, {}):
        with pytest.raises(InUse, match="between its images"):
            live.delete("a", **mode)
        assert live.tree() == before
    live.require_right()
    monkeypatch.setattr(possible, "_require_no_buried_filter", lambda *_all: None)
    with pytest.raises(ChainBroken, match=r"its header names v.a \(qcow2\), not v;"):
        live.delete("a")
    assert (live.path / "v.a").exists()
    planted = with_a_buried_filter(make, monkeypatch)
    monkeypatch.setattr(possible, "_require_no_buried_filter", lambda *_all: None)
    monkeypatch.setattr(merging.Merging, "_require_header", lambda _self, _file, _backing, _format=None: None)
    guest = planted.guest
    assert guest is not None
    with suppress(StorageError):
        planted.delete("a")
    monkeypatch.undo()
    planted.forget("a")
    guest.kill()
    with pytest.raises((AssertionError, StorageError)):
        planted.require_right()


@pytest.mark.parametrize("names", ["a", "b", "ab"])
def test_jobs_that_vanish_when_they_have_ended(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """Nothing rests on what a job says at its end: headers and the graph are looked at. If a job fails, that is told."""
    run, full = Monitor.run, False

    def vanishing(self: Monitor, command: str, **arguments: Any) -> Any:
        if command in ("block-commit", "block-stream"):
            arguments["auto_dismiss"] = True
        done = run(self, command, **arguments)
        if command in ("block-commit", "block-stream") and full:
            run(self, "job-cancel", id=arguments["job_id"])
        return done

    live = make("raw")
    guest = live.start()
    for point in "ab":
        guest.scribble(ord(point))
        live.snapshot(point)
    guest.scribble(3)
    monkeypatch.setattr(Monitor, "run", vanishing)
    full = True
    with pytest.raises(ToolFailed, match="ancel"):
        live.delete(*names)
    full = False
    guest.go_on()
    assert live.delete(*names).changed
    live.forget(*names)
    live.require_right()
    live.require_nothing_left()
    guest.kill()
    live.require_right()
