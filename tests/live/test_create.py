# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots and growth while a machine runs, however it was started; every point and the present by content."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.client import Monitor

from .guest import MIB, SIZE, Live, digest, digest_of, may_mount

KINDS = [("raw", "blockdev"), ("raw", "drive"), ("raw", "relative"), ("raw", "bare"), ("raw", "filter"), ("raw", "direct")]
KINDS += [("qcow2", "blockdev"), ("qcow2", "drive"), ("qcow2", "filter"), ("qcow2", "direct")]


@pytest.mark.parametrize("image_format, kind", KINDS)
def test_a_life(make: Callable[..., Live], image_format: str, kind: str) -> None:
    live = make(image_format)
    guest = live.start(kind)
    for number, name in enumerate("abc"):
        guest.scribble(number)
        live.snapshot(name)
        guest.scribble(number + 10)
        live.require_right()
    live.grow(SIZE + 3 * MIB)
    guest.write(SIZE + MIB, MIB, 77)
    live.snapshot("d")
    guest.scribble(99)
    live.require_right()
    live.require_nothing_left()
    guest.quit()
    live.require_right()


@pytest.mark.root
def test_a_machine_in_another_mount_namespace(make: Callable[..., Live]) -> None:
    if not may_mount():
        pytest.skip("this process may not mount")
    live = make("qcow2")
    guest = live.start(unshare=True)
    guest.scribble(1)
    live.snapshot("a")
    guest.scribble(2)
    guest.kill()
    live.require_right()


def test_the_overlay_goes_below_a_filter_and_keeps_the_cache_mode(make: Callable[..., Live]) -> None:
    """With the filter's name QEMU would put it above: the guest would lose its limits, and a later merge would leave a header wrong."""
    live = make("qcow2")
    guest = live.start("filter")
    live.snapshot("a")
    (root,) = [one["inserted"]["node-name"] for one in guest.qmp("query-block")]
    assert root == "disk0", "the guest's device has another root than its throttle"
    live = make("qcow2")
    guest = live.start("direct")
    live.snapshot("a")
    nodes = guest.qmp("query-named-block-nodes", flat=True)
    assert {node["cache"]["direct"] for node in nodes if node["file"].endswith("/v.a")} == {True}


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_writes_go_on(make: Callable[..., Live], image_format: str) -> None:
    """The point of a snapshot that is taken while the guest writes is some state between its beginning and its end; nothing is lost."""
    live = make(image_format)
    guest = live.start()
    with guest.busy():
        for name in "abcd":
            live.take(name)
        live.grow(SIZE + MIB)
    assert guest.written > 5
    told = live.info()
    assert [one["name"] for one in told["snapshots"]] == list("abcd")
    guest.kill()
    assert digest(told["path"], told["format"]) == digest_of(live.data)


def test_the_same_snapshot_again_is_no_change(make: Callable[..., Live]) -> None:
    live = make()
    live.start()
    live.snapshot("a")
    again = live.take("a")
    assert not again.changed and not again.actions
    assert not live.present(size=SIZE).changed


def test_check_mode_says_what_the_run_does_and_sends_nothing_that_writes(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    run = Monitor.run

    def noted(self: Monitor, command: str, **arguments: object) -> object:
        sent.append(command)
        return run(self, command, **arguments)

    monkeypatch.setattr(Monitor, "run", noted)
    live = make()
    guest = live.start()
    guest.scribble(3)
    for name in "ab":
        before = live.tree()
        predicted = live.take(name, check=True)
        assert live.tree() == before
        assert all(command.startswith(("query-", "x-debug-query", "qmp_capabilities")) for command in sent), sent
        done = live.take(name)
        assert (predicted.changed, predicted.actions) == (done.changed, done.actions)
        sent.clear()
    predicted = live.present(size=2 * SIZE, check=True)
    assert all(command.startswith(("query-", "x-debug-query", "qmp_capabilities")) for command in sent), sent
    done = live.present(size=2 * SIZE)
    assert (predicted.changed, predicted.actions) == (done.changed, done.actions)


def test_what_is_done_is_the_same_as_offline(make: Callable[..., Live]) -> None:
    one, other = make(), make()
    one.start()
    for name in "ab":
        assert one.take(name).actions == other.take(name).actions
    assert one.present(size=2 * SIZE).actions == other.present(size=2 * SIZE).actions


def test_nobody_at_the_monitor_is_offline_work(make: Callable[..., Live]) -> None:
    live = make()
    guest = live.start()
    guest.scribble(4)
    guest.quit()
    live.snapshot("a")  # the socket refuses connections, or is gone
    live.require_right()
    live.guest = None
    assert live.take("b", attachment="/nowhere/at/all").changed


def test_absolute_backing_names_are_healed(make: Callable[..., Live]) -> None:
    live = make("qcow2")
    live.snapshot("a")
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(live.path / "v"), str(live.path / "v.a")], check=True)
    guest = live.start()
    guest.scribble(5)
    done = live.take("b")
    assert [step["step"] for step in done.actions] == ["repoint", "create_overlay", "write_info"]
    told = subprocess.run(["qemu-img", "info", "-U", "--output=json", str(live.path / "v.a")], check=True, capture_output=True, text=True)
    assert json.loads(told.stdout)["backing-filename"] == "v"


def test_qemu_describes_its_nodes_once(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs a time that grows with the square of the chain's length, and the guest's disk waits meanwhile. A pair of nodes of another program's
    makes it once more."""
    live = make("qcow2")
    guest = live.start()
    asked: list[str] = []
    run = Monitor.run

    def counted(self: Monitor, command: str, **arguments: Any) -> Any:
        asked.append(command)
        return run(self, command, **arguments)

    def added_by_others(self: Monitor, command: str, **arguments: Any) -> Any:
        done = counted(self, command, **arguments)
        if command == "blockdev-add":
            guest.qmp("blockdev-add", driver="raw", node_name="somebody", file={"driver": "null-co", "size": SIZE})
        return done

    for number, (snapshot, way, times) in enumerate([("a", counted, 1), ("b", added_by_others, 2)]):
        guest.scribble(number)
        asked.clear()
        monkeypatch.setattr(Monitor, "run", way)
        live.snapshot(snapshot)
        monkeypatch.setattr(Monitor, "run", run)
        assert asked.count("query-named-block-nodes") == times
    guest.qmp("blockdev-del", node_name="somebody")
    guest.scribble(3)
    live.snapshot("c")
    live.require_right()
    live.require_nothing_left()


@pytest.mark.parametrize("instead", ["nothing", "another file", "with a filter below"])
def test_the_node_of_the_overlay_is_another_one_at_the_switch(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, instead: str) -> None:
    """Another client took it away, and gave its name to something else. The guest gets the overlay that is on the share, or nothing happens."""
    live = make("qcow2")
    guest = live.start()
    guest.scribble(1)
    other = live.path.parent / "other"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(other), str(SIZE)], check=True)
    run, done = Monitor.run, []

    def exchanged(self: Monitor, command: str, **arguments: Any) -> Any:
        answer = run(self, command, **arguments)
        if command == "blockdev-add" and not done:
            done.append(command)
            guest.qmp("blockdev-del", node_name=arguments["node_name"])
            if instead == "another file":
                again = {**arguments, "file": {"driver": "file", "filename": str(other)}}
                guest.qmp("blockdev-add", **again)
            elif instead == "with a filter below":
                guest.qmp("blockdev-add", **{**arguments, "file": {"driver": "throttle", "throttle-group": "limits", "file": arguments["file"]}})
        return answer

    if instead == "with a filter below":
        guest.qmp("object-add", **{"qom-type": "throttle-group", "id": "limits"})
    monkeypatch.setattr(Monitor, "run", exchanged)
    live.snapshot("a")
    monkeypatch.setattr(Monitor, "run", run)
    guest.scribble(2)
    guest.quit()
    live.require_right()
    assert qcow2_is_empty(other)


def qcow2_is_empty(path: Path) -> bool:
    """Whether nothing was ever written to an image."""
    told = subprocess.run(["qemu-img", "map", "--output=json", str(path)], check=True, capture_output=True).stdout
    return not any(one["data"] for one in json.loads(told))
