# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One snapshot of several disks of a running machine, and of volumes that nobody has open: one instant, all or none."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.client import Lost, Monitor, QmpError
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, NeedsRecovery, NoSpace, StorageError, ToolFailed, ToolMissing
from ansible_collections.remotefs.storage.plugins.module_utils.operations import groups
from ansible_collections.remotefs.storage.plugins.module_utils.plan import grouping, retention
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory

from .disks import Disks, Log, entries_at
from .group_case import GroupCase
from .guest import SIZE, Guest
from .instants import instants

ASKING = ("query-", "x-debug-query", "qmp_capabilities")


def refused(disks: Disks, kind: type[StorageError] = InUse, **options: Any) -> str:
    """The message with which the group is refused, in check mode and in the run. Nothing is sent and nothing changed."""
    before, said = disks.tree(), []
    for mode in ({"check": True}, {}):
        with pytest.raises(kind) as caught:
            disks.together("g", **options, **mode)
        said.append(str(caught.value))
        assert disks.tree() == before
        if disks.guest is not None and disks.guest.alive:
            assert not any(node["node-name"].startswith("rfs-") for node in disks.guest.qmp("query-named-block-nodes", flat=True))
    assert said[0] == said[1], "check mode gives another reason than the run"
    return said[0]


def failing(monkeypatch: pytest.MonkeyPatch, command: str, error: Callable[[], Exception], after: bool, times: int = 1) -> None:
    """Let a command fail: before QEMU gets it, or after it was done."""
    run, left = Monitor.run, [times]

    def planted(self: Monitor, name: str, **arguments: Any) -> Any:
        if name != command or not left[0]:
            return run(self, name, **arguments)
        left[0] -= 1
        if after:
            run(self, name, **arguments)
        raise error()

    monkeypatch.setattr(Monitor, "run", planted)


# -- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formats", [("raw", "raw"), ("qcow2", "raw"), ("raw", "qcow2", "qcow2")])
def test_a_life(make_disks: Callable[..., Disks], formats: tuple[str, ...]) -> None:
    disks = make_disks(*formats)
    disks.start()
    for number, name in enumerate("xyz"):
        disks.scribble(number)
        done = disks.snapshot(name)
        assert [one.name for one in done] == list(disks.names)
        assert all([step["step"] for step in one.actions] == ["create_overlay", "write_info"] for one in done)
        disks.scribble(number + 10)
        disks.require_right()
        disks.require_nothing_left()
    assert not any(one.changed for one in disks.together("z"))
    disks.end("quit")
    disks.require_right()


def test_disks_of_the_machine_alone_and_one_of_them(make_disks: Callable[..., Disks]) -> None:
    disks = make_disks()
    disks.start()
    disks.scribble(1)
    disks.snapshot("both", "a", "b")
    disks.scribble(2)
    disks.snapshot("mixed", "a", "o")
    disks.scribble(3)
    disks.snapshot("alone", "b")
    disks.require_right()
    disks.require_nothing_left()


@pytest.mark.parametrize("kind", ["drive", "filter", "direct", "iothread", "bare"])
def test_disks_of_several_kinds(make_disks: Callable[..., Disks], kind: str) -> None:
    """The first one is of that kind, the second one a plain one."""
    disks = make_disks("raw", "qcow2")
    disks.start(kind=kind)
    for number, name in enumerate("xy"):
        disks.scribble(number)
        disks.snapshot(name)
        disks.scribble(number + 10)
    disks.require_right()
    disks.require_nothing_left()
    disks.end()
    disks.require_right()


def test_it_is_one_transaction(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch) -> None:
    """All is ready and durable before it, and no disk is switched by anything else."""
    disks, run = make_disks("raw", "qcow2", "qcow2"), Monitor.run
    disks.start()
    disks.scribble(1)
    sent: list[str] = []

    def noted(self: Monitor, command: str, **arguments: Any) -> Any:
        if not command.startswith(ASKING):
            sent.append(command)
        if command == "transaction":
            assert [disks.info(name)["path"].endswith(f"{name}.g") for name in disks.names] == [True] * 4
            assert [disks.info(name)["pending"]["snapshots"] for name in disks.names] == [["g"]] * 4
            assert len(list((disks.path / ".remotefs" / "groups").iterdir())) == 1
            assert [action["type"] for action in arguments["actions"]] == ["blockdev-snapshot"] * 3
        return run(self, command, **arguments)

    monkeypatch.setattr(Monitor, "run", noted)
    disks.snapshot("g")
    assert sent == ["blockdev-add"] * 3 + ["transaction"]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_one_instant(make_disks: Callable[..., Disks], order: tuple[str, str]) -> None:
    """While the guest writes first on the one and then on the other disk."""
    disks = make_disks()
    disks.start()
    with Log(disks, *order) as log:
        for number in range(5):
            until = log.entries + 3
            while log.entries < until:
                time.sleep(0.005)
            disks.together(f"g{number}", "a", "b")
    counts = [(entries_at(disks, order[0], f"g{number}"), entries_at(disks, order[1], f"g{number}")) for number in range(5)]
    assert all(first - second in (0, 1) for first, second in counts), counts
    assert counts[-1][0] > counts[0][0] > 0
    disks.points = {name: {f"g{number}": disks.point(name, f"g{number}") for number in range(5)} for name in "ab"}
    disks.require_right()


def test_disks_one_after_the_other_are_noticed(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that the test above is for: without a transaction the two points are of two instants."""
    disks, run = make_disks(), Monitor.run
    disks.start()

    def one_by_one(self: Monitor, command: str, **arguments: Any) -> Any:
        if command != "transaction":
            return run(self, command, **arguments)
        for action in arguments["actions"]:
            run(self, "blockdev-snapshot", **action["data"])
            time.sleep(0.3)
        return {}

    monkeypatch.setattr(Monitor, "run", one_by_one)
    with Log(disks):
        disks.together("g", "a", "b")
    assert entries_at(disks, "a", "g") < entries_at(disks, "b", "g")


def test_check_mode_says_what_the_run_does_and_sends_nothing_that_writes(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch) -> None:
    disks, sent, run = make_disks(), [], Monitor.run

    def noted(self: Monitor, command: str, **arguments: Any) -> Any:
        sent.append(command)
        return run(self, command, **arguments)

    disks.start()
    disks.scribble(1)
    before = disks.tree()
    monkeypatch.setattr(Monitor, "run", noted)
    predicted = disks.together("g", check=True)
    assert disks.tree() == before and all(command.startswith(ASKING) for command in sent), sent
    done = disks.together("g")
    assert [(one.name, one.changed, one.actions) for one in predicted] == [(one.name, one.changed, one.actions) for one in done]
    offline = make_disks()
    assert [one.actions for one in offline.together("g")] == [one.actions for one in done]


def test_check_mode_where_one_of_them_is_not_there_yet(make_disks: Callable[..., Disks]) -> None:
    """The others are predicted each by itself, those that the machine does not have, too."""
    disks = make_disks()
    disks.start()
    told = disks.together("g", *disks.names, "later", check=True, assume=True)
    assert [(one.name, one.changed) for one in told if not isinstance(one, StorageError)] == [(name, True) for name in (*disks.names, "later")]


@pytest.mark.parametrize("check", [True, False])
def test_retention_of_each(make_disks: Callable[..., Disks], check: bool) -> None:
    """Of the disks through the machine, of the others on the files."""
    disks = make_disks()
    disks.start()
    for number, name in enumerate(("n-1", "n-2")):
        disks.scribble(number)
        disks.snapshot(name)
    disks.scribble(5)
    disks.note("n-3")
    policy = retention.parse({"match": "n-*", "last": 2})
    done = groups.take_group(disks.where, list(disks.names), DesiredSnapshot("n-3"), disks.options(check=check), policy)
    assert not [one for one in done if isinstance(one, StorageError)], done
    assert [[verdict["name"] for verdict in one.retention if not verdict["keep"]] for one in done] == [["n-1"]] * 3
    for name in disks.names:
        del disks.points[name]["n-3" if check else "n-1"]
    disks.scribble(6)
    disks.require_right()
    disks.require_nothing_left()


def test_nobody_at_the_monitor_is_offline_work(make_disks: Callable[..., Disks]) -> None:
    disks = make_disks()
    guest = disks.start()
    disks.scribble(1)
    guest.quit()
    disks.snapshot("g")
    disks.guest = None
    disks.snapshot("h", attachment="/nowhere/at/all")
    disks.require_right()
    disks.require_nothing_left()


@pytest.mark.parametrize("planted", ["no lost", "undone after the switch"])
def test_faults_that_would_leave_a_part_of_a_group(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    """They are noticed by the judgement of the kills, or lock bytes keep them from harm."""
    case = GroupCase(make_disks())
    trial = GroupCase(make_disks())
    found = instants(trial.run)
    trial.disks.end()
    if planted == "no lost":  # each volume for itself, as its .info says
        monkeypatch.setattr(grouping, "verdict", lambda _decision, _members, _monitor: grouping.FINISH)
        case.kill(next(one.number for one in found if one.what == "after rename of a.info"), "both")
        with pytest.raises(StorageError):  # a part of the overlays is used, which the barrier notices
            case.end("restarted", "a")
        return
    case.kill(next(one.number for one in found if one.what == "after transaction"), "module")
    monkeypatch.setattr(grouping, "verdict", lambda _decision, _members, _monitor: grouping.UNDO)
    case.disks.scribble(3)
    files = {path.name for path in case.disks.path.iterdir()}
    with suppress(StorageError):
        case.disks.task_on("a")
    assert {"a.g", "b.g"} <= files & {path.name for path in case.disks.path.iterdir()}


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_disk_of_a_second_machine(make_disks: Callable[..., Disks]) -> None:
    disks = make_disks()
    disks.start(only=("a",))
    second = Guest(str(disks.path / "b"), "qcow2", bytearray(SIZE))
    try:
        assert "image b on" in refused(disks) and second.alive
    finally:
        second.kill()
    disks.snapshot("g")
    disks.require_right()


def test_somebody_has_the_other_volume_open(make_disks: Callable[..., Disks]) -> None:
    disks = make_disks()
    disks.start()
    other = Guest(str(disks.path / "o"), "qcow2", bytearray(SIZE))
    try:
        assert "has it open" in refused(disks)
    finally:
        other.kill()


def test_a_machine_without_any_of_them(make_disks: Callable[..., Disks], tmp_path: Path) -> None:
    disks, other = make_disks(), make_disks()
    guest = other.start()
    assert "does not have the images of any of them open" in refused(disks, attachment=guest.socket)


def test_a_machine_that_runs_and_no_attachment(make_disks: Callable[..., Disks]) -> None:
    disks = make_disks()
    disks.start()
    assert "has it open" in refused(disks, attachment=None)
    assert "nobody listens at /nowhere" in refused(disks, attachment="/nowhere")


def test_a_disk_on_the_wrong_file(make_disks: Callable[..., Disks]) -> None:
    disks = make_disks()
    disks.snapshot("x")
    disks.start(paths={"b": "b"})
    assert "does not have its active image b.x open" in refused(disks)


def test_locks_that_are_not_seen(make_disks: Callable[..., Disks]) -> None:
    """Of the machine's disks its monitor tells; of the others nothing does."""
    disks = make_disks()
    disks.share = disks.share._replace(locks_visible=False)
    disks.where = disks.where._replace(shares=(disks.share,))
    disks.start()
    assert "cannot tell whether somebody else has" in refused(disks, assume_unused=True)
    disks.snapshot("g", "a", "b")


def test_qemu_lacks_transactions(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch) -> None:
    disks, greet = make_disks(), Monitor.greet

    def lacking(self: Monitor) -> None:
        greet(self)
        self.commands = self.commands - {"transaction"}

    disks.start()
    monkeypatch.setattr(Monitor, "greet", lacking)
    assert "it lacks transaction" in refused(disks, ToolMissing)


def test_a_job_on_one_of_the_disks(make_disks: Callable[..., Disks]) -> None:
    disks = make_disks()
    guest = disks.start()
    disks.scribble(1)
    disks.end("quit")
    disks.snapshot("x")
    guest = disks.start()
    guest.qmp("block-stream", job_id="backup", device="disk1", speed=1)
    time.sleep(0.5)
    assert "another program's job works on its disk (backup)" in refused(disks)


def test_qemu_describes_its_nodes_once_for_all_disks(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs a time that grows with all their chains, and the guest's disks wait meanwhile."""
    disks, asked, run = make_disks("raw", "qcow2", "qcow2"), [], Monitor.run
    disks.start()

    def counted(self: Monitor, command: str, **arguments: Any) -> Any:
        asked.append(command)
        return run(self, command, **arguments)

    monkeypatch.setattr(Monitor, "run", counted)
    for number, name in enumerate(("g", "h")):
        disks.scribble(number)
        asked.clear()
        disks.snapshot(name)
        assert asked.count("query-named-block-nodes") == 1 and asked.count("blockdev-add") == 3
    disks.scribble(9)
    disks.require_right()


def test_a_disk_grows_before_all_switch(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU would take the smaller overlay, and the guest's disk would shrink. No disk gets the snapshot."""
    disks, run, grown = make_disks(), Monitor.run, []
    guest = disks.start()

    def resized(self: Monitor, command: str, **arguments: Any) -> Any:
        done = run(self, command, **arguments)
        if command == "blockdev-add" and not grown:
            grown.append(command)
            guest.qmp("block_resize", node_name="disk1", size=2 * SIZE)
        return done

    disks.scribble(1)
    monkeypatch.setattr(Monitor, "run", resized)
    with pytest.raises(InUse, match=str(2 * SIZE)):
        disks.together("g")
    monkeypatch.setattr(Monitor, "run", run)
    disks.data["b"] += bytes(SIZE)
    assert all(disks.info(name)["snapshots"] == [] for name in disks.names)
    disks.scribble(2)
    disks.snapshot("h")
    disks.require_right()


# -- what fails in the middle ----------------------------------------------------------------------------------------


def require_all_undone(disks: Disks) -> None:
    disks.require_right()
    disks.require_nothing_left()
    disks.scribble(30)
    disks.snapshot("g")
    disks.scribble(31)
    disks.require_right()
    disks.end()
    disks.require_right()


@pytest.mark.parametrize("command, times", [("blockdev-add", 1), ("transaction", 1)])
def test_qemu_refuses(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch, command: str, times: int) -> None:
    """Nothing was switched, and nothing of the group stays."""
    disks = make_disks()
    disks.start()
    disks.scribble(1)
    failing(monkeypatch, command, lambda: QmpError(command, "GenericError", "planted"), after=False, times=times)
    with pytest.raises(ToolFailed, match="planted"):
        disks.together("g")
    require_all_undone(disks)


def test_one_bad_disk_in_the_transaction(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU itself refuses the second action, and takes the first one back."""
    disks, run = make_disks(), Monitor.run
    disks.start()
    disks.scribble(1)

    def spoilt(self: Monitor, command: str, **arguments: Any) -> Any:
        if command == "transaction":
            arguments["actions"][1]["data"]["overlay"] = arguments["actions"][0]["data"]["overlay"]
        return run(self, command, **arguments)

    monkeypatch.setattr(Monitor, "run", spoilt)
    with pytest.raises(StorageError, match="QEMU refuses"):
        disks.together("g")
    monkeypatch.setattr(Monitor, "run", run)
    require_all_undone(disks)


def test_a_record_that_cannot_be_written(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the decision, before the transaction: the second .info."""
    disks, replace, left = make_disks(), ShareDirectory.replace, [1]

    def full(self: ShareDirectory, temporary: str, name: str, *more: Any) -> None:
        if name == "b.info" and left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(self, temporary, name, *more)

    disks.start()
    disks.scribble(1)
    monkeypatch.setattr(ShareDirectory, "replace", full)
    with pytest.raises(NoSpace):
        disks.together("g")
    require_all_undone(disks)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("volume", ["a", "b", "o"])
def test_the_answer_to_the_transaction_is_lost(make_disks: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch, done: bool, volume: str) -> None:
    """The graph tells. Whoever is asked first, all have the point afterwards, of one instant."""
    disks = make_disks()
    disks.start()
    disks.scribble(1)
    before = {name: disks.content(name) for name in disks.names}
    run = Monitor.run

    def lost(self: Monitor, command: str, **arguments: Any) -> Any:
        if command == "transaction":
            if done:
                run(self, command, **arguments)
            self.close()
            raise Lost("planted")
        return run(self, command, **arguments)

    disks.flush()
    before = {name: disks.content(name) for name in disks.names}
    monkeypatch.setattr(Monitor, "run", lost)
    with pytest.raises(StorageError, match="planted"):
        disks.together("g")
    monkeypatch.setattr(Monitor, "run", run)
    for name in disks.names:
        assert disks.info(name)["pending"]["snapshots"] == ["g"] and not disks.info(name)["snapshots"]
    disks.scribble(2)
    disks.note("g")
    if done:
        disks.points = {name: {"g": before[name]} for name in disks.names}
    try:
        disks.task_on(volume)
    except InUse:
        assert volume == "o", "the machine does not have it open"  # but what was interrupted is ended
    disks.require_right()
    disks.require_nothing_left()
    assert any("it is finished on all of them" in text for text in disks.warned)


# -- what others find of an interrupted one ----------------------------------------------------------------------------


def killed(make_disks: Callable[..., Disks], what: str) -> GroupCase:
    """A group whose task was killed at the first instant of that kind."""
    trial = GroupCase(make_disks())
    number = next(one.number for one in instants(trial.run) if one.what == what)
    trial.disks.end()
    case = GroupCase(make_disks())
    case.kill(number, "module")
    return case


@pytest.mark.parametrize("what, aftermath", [("after blockdev-add", "reattach"), ("before transaction", "reattach"), ("after rename of a.info", "restarted")])
def test_a_group_after_an_interrupted_one(make_disks: Callable[..., Disks], what: str, aftermath: str) -> None:
    """Of each volume it is told what was ended of it, and check mode foretells that."""
    case = killed(make_disks, what)
    disks = case.disks
    case.go_on(aftermath)
    now = {name: disks.info(name)["pending"] for name in disks.names}
    before = disks.tree()
    predicted = disks.together("after", check=True)
    assert disks.tree() == before
    disks.note("after")
    done = disks.together("after")
    assert [one.recovered for one in predicted] == [one.recovered for one in done]
    assert all(now.values()) and [len(one.recovered) for one in done] == [1] * 3
    if what == "before transaction":  # its instant is that of the task that finished it
        for name in disks.names:
            disks.points[name]["g"] = disks.points[name]["after"]
    disks.scribble(40)
    disks.require_right()
    disks.require_nothing_left()


@pytest.mark.parametrize("what", ["before transaction", "after transaction", "after rename of a.info"])
def test_without_attachment_the_recorded_one_is_named(make_disks: Callable[..., Disks], what: str) -> None:
    """Also by a volume that the machine does not have, and nothing is changed."""
    case = killed(make_disks, what)
    disks = case.disks
    assert disks.guest is not None
    before = disks.tree()
    for name in disks.names:
        for check in (True, False):
            with pytest.raises(InUse, match=disks.guest.socket):
                disks.task_on(name, attachment=None, check=check)
        assert {place: found[:2] for place, found in disks.tree().items()} == {place: found[:2] for place, found in before.items()}
    case.end("reattach", "o")


def test_another_machine_has_a_disk_by_now(make_disks: Callable[..., Disks]) -> None:
    """The group cannot be finished for all, so it is finished for none."""
    case = killed(make_disks, "before transaction")
    disks = case.disks
    disks.end()
    disks.start(only=("a",))
    second = Guest(disks.info("b")["path"], "qcow2", bytearray(SIZE))
    try:
        before = disks.tree()
        with pytest.raises(InUse):
            disks.task_on("a")
        assert disks.tree() == before
    finally:
        second.kill()
    case.end("nothing", "a")


def test_a_volume_of_it_was_removed(make_disks: Callable[..., Disks]) -> None:
    """No disk was switched: the others do not get a snapshot that this one cannot have."""
    case = killed(make_disks, "before transaction")
    disks = case.disks
    for path in disks.path.glob("o*"):
        path.unlink()
    (disks.path / ".remotefs" / "volumes" / "o.json").unlink()
    disks.names = disks.live
    disks.scribble(5)
    assert disks.task_on("b").recovered[0]["outcome"] == "undone"
    assert any("given up on all of them" in text for text in disks.warned)
    disks.require_right()
    disks.require_nothing_left()


def test_a_decision_that_cannot_be_understood(make_disks: Callable[..., Disks]) -> None:
    case = killed(make_disks, "before transaction")
    (file,) = (case.disks.path / ".remotefs" / "groups").iterdir()
    file.write_text('{"lost": 7}')
    before = case.disks.tree()
    for name in case.disks.names:
        with pytest.raises(NeedsRecovery, match="cannot be understood"):
            case.disks.task_on(name)
    assert case.disks.tree() == before
