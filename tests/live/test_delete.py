# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots deleted while a machine runs and writes: the oldest, those in the middle, the newest, several; by content."""

from __future__ import annotations

import random
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.executor import Executor
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, NoSpace
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots
from ansible_collections.remotefs.storage.plugins.module_utils.plan import retention
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot
from ansible_collections.remotefs.storage.plugins.module_utils.plan.plan import Plan
from ansible_collections.remotefs.storage.plugins.module_utils.plan.steps import WriteInfo

from .guest import CLUSTER, MIB, SIZE, Live, digest_of

KINDS = [("raw", "blockdev"), ("raw", "drive"), ("raw", "filter"), ("qcow2", "blockdev"), ("qcow2", "drive"), ("qcow2", "filter")]
SETS = ["a", "b", "d", "ab", "bc", "cd", "abcd", "bd", "ac"]


def with_points(live: Live, names: str = "abcd", kind: str = "blockdev") -> None:
    """A machine, and snapshots with different data under them."""
    guest = live.start(kind)
    for number, name in enumerate(names):
        guest.scribble(number, 4)
        live.snapshot(name)
    guest.scribble(50, 4)


def delete(live: Live, names: str) -> None:
    """Delete them while the guest writes."""
    assert live.guest is not None
    with live.guest.busy():
        assert live.delete(*names).changed
    for name in names:
        del live.points[name]


@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_any_set(make: Callable[..., Live], image_format: str, names: str) -> None:
    live = make(image_format)
    with_points(live)
    assert live.guest is not None
    delete(live, names)
    live.require_right()
    live.require_nothing_left()
    assert {name for name in live.guest.opened() if name.startswith("v")} == {image["file"] for image in live.info()["chain"]}
    live.guest.scribble(60)
    live.guest.kill()
    live.require_right()


@pytest.mark.parametrize("image_format, kind", KINDS)
def test_one_after_the_other(make: Callable[..., Live], image_format: str, kind: str) -> None:
    live = make(image_format)
    with_points(live, kind=kind)
    assert live.guest is not None
    for name in "bdac":
        delete(live, name)
        live.require_right()
        live.require_nothing_left()
        live.guest.scribble(ord(name))
    live.guest.kill()
    live.require_right()
    assert [image["file"] for image in live.info()["chain"]] == ["v"] or image_format == "qcow2"


def test_a_base_without_a_format_layer(make: Callable[..., Live]) -> None:
    """No header may come to name it with the format ``file``. A merge after which no header names it is fine."""
    live = make("raw")
    with_points(live, "abc", kind="bare")
    assert live.guest is not None
    before = live.tree()
    with pytest.raises(InUse, match="without a format layer"):
        live.delete("a", check=True)
    with pytest.raises(InUse, match="without a format layer"):
        live.delete("a")
    assert live.tree() == before
    delete(live, "b")
    assert not live.present(size=SIZE).changed
    delete(live, "ac")
    live.require_right()
    live.require_nothing_left()
    assert not live.present(size=SIZE).changed
    live.guest.kill()
    live.require_right()


@pytest.mark.parametrize("names", ["a", "b", "c", "ab", "bc", "abc"])
def test_empty_layers_leave_the_graph(make: Callable[..., Live], names: str) -> None:
    """The plan moves nothing, and QEMU must close the files all the same."""
    live = make("qcow2")
    guest = live.start()
    guest.scribble(1)
    for name in "abc":
        live.snapshot(name)
    assert live.delete(*names).changed
    live.points = {name: point for name, point in live.points.items() if name not in names}
    assert {name for name in guest.opened() if name.startswith("v")} == {image["file"] for image in live.info()["chain"]}
    guest.scribble(2)
    live.require_right()
    guest.kill()
    live.require_right()
    live.require_nothing_left()


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_after_growth(make: Callable[..., Live], image_format: str) -> None:
    live = make(image_format)
    with_points(live, "ab")
    assert live.guest is not None
    live.grow(SIZE + 3 * MIB)
    live.guest.write(SIZE + MIB, 5 * CLUSTER, 9)
    live.snapshot("c")
    live.guest.scribble(4)
    for name in "abc":
        delete(live, name)
        live.require_right()
    live.guest.kill()
    live.require_right()


def test_check_mode_says_what_the_run_does(make: Callable[..., Live]) -> None:
    live = make("qcow2")
    with_points(live)
    before = live.tree()
    for names in ("b", "d"):
        before = live.tree()
        predicted = live.delete(*names, check=True)
        assert live.tree() == before
        done = live.delete(*names)
        without = [[{key: value for key, value in step.items() if key != "bytes"} for step in one.actions] for one in (predicted, done)]
        assert predicted.changed and without[0] == without[1]


def test_actions_are_those_of_offline_work(make: Callable[..., Live]) -> None:
    one, other = make("qcow2"), make("qcow2")
    for live in (one, other):
        with_points(live)
        assert live.guest is not None
        live.require_right()  # what the guest wrote is on disk
    assert other.guest is not None
    other.guest.quit()
    for names in ("b", "d", "ac"):
        assert one.delete(*names).actions == other.delete(*names).actions


@pytest.mark.parametrize("seed", range(6))
def test_random_lives(make: Callable[..., Live], seed: int) -> None:
    chance = random.Random(seed)
    image_format = chance.choice(["raw", "qcow2"])
    live = make(image_format)
    guest = live.start(chance.choice(["blockdev", "drive", "filter"]))
    made = 0
    for step in range(10):
        guest.scribble(seed * 100 + step, chance.randrange(0, 3))
        what = chance.random()
        if what < 0.45 or not live.points:
            made += 1
            live.snapshot(f"s{made}")
        elif what < 0.9:
            gone = chance.sample(sorted(live.points), chance.randrange(1, min(3, len(live.points)) + 1))
            with guest.busy():
                live.delete(*gone)
            for name in gone:
                del live.points[name]
        else:
            live.grow(len(live.data) + chance.choice([512, CLUSTER, MIB]))
        live.require_right()
        live.require_nothing_left()
    guest.kill()
    live.require_right()


def test_retention_is_foretold(make: Callable[..., Live]) -> None:
    """One task that takes a snapshot and removes others: the second half is planned on what the first would leave."""
    live = make("qcow2")
    with_points(live, "abc")
    request = snapshots.SnapshotRequest(live.where, "v", DesiredSnapshot("d"), retention.parse({"match": "*", "last": 2}))
    before = live.tree()
    predicted = snapshots.take(request, live.options(check=True))
    assert live.tree() == before
    live.points["d"] = digest_of(live.data)
    done = snapshots.take(request, live.options())
    names = [[step["step"] for step in one.actions] for one in (predicted, done)]
    assert names[0] == names[1] and "unlink" in names[0]
    for name in "ab":
        del live.points[name]
    live.require_right()
    live.require_nothing_left()


def test_no_room_for_info_while_writes_wait(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest goes on where it was, and the next task ends the deletion."""
    live = make("raw")
    with_points(live, "a")
    guest = live.guest
    assert guest is not None
    write = Executor._write_info

    def full(self: Executor, plan: Plan, step: WriteInfo) -> None:
        raise NoSpace("share", "is full", "make room")

    monkeypatch.setattr(Executor, "_write_info", full)
    with pytest.raises(NoSpace):
        live.delete("a")
    monkeypatch.setattr(Executor, "_write_info", write)
    guest.go_on()
    assert not guest.qmp("query-jobs") and "v.a" in guest.opened()
    guest.scribble(70)
    assert live.info()["path"].endswith("v.a")
    live.points = {"b": digest_of(live.data)}
    assert live.take("b").recovered[0]["outcome"] == "finished"
    live.require_right()
    live.require_nothing_left()
