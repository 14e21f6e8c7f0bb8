# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest is frozen while its disks are switched, and goes on whatever happens. The agent is a scripted one, which can do anything; one in a
real guest is in test_real_guest.py."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import time
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply import guardians, quiescing
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live import answers as shapes
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live import freezing
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.client import Monitor, QmpError
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, StorageError, ToolFailed
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Task

from .disks import Disks
from .guest import Live
from .scripted_agent import MARK, Answer, ScriptedAgent, begun, instead, quiet, refused, silent, told

ASKING = ["guest-sync-delimited", "guest-fsfreeze-status"]
WHOLE = [*ASKING, "guest-fsfreeze-freeze", "guest-fsfreeze-status", "guest-fsfreeze-thaw"]


# -- what works ------------------------------------------------------------------------------------------------------


def test_frozen_for_the_switch_alone(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else is done before, ``.info`` is durable, or comes afterwards."""
    live, agent, run = begun(make), scripted(), Monitor.run
    while_frozen: list[str] = []

    def noted(self: Monitor, command: str, **arguments: Any) -> Any:
        if agent.frozen:
            while_frozen.append(command)
            assert live.info()["path"].endswith("v.a") and not os.listdir(live.path / ".remotefs" / "tmp")
        return run(self, command, **arguments)

    monkeypatch.setattr(Monitor, "run", noted)
    before = live.tree()
    predicted = quiet(live, agent, "a", check=True)
    assert live.tree() == before and agent.heard == ASKING and predicted.quiesced == (True, "")
    agent.heard.clear()
    live.points["a"] = live.point_now()
    done = quiet(live, agent, "a")
    assert done.quiesced == (True, "") and done.changed and agent.heard == WHOLE
    assert while_frozen == ["blockdev-snapshot"] and agent.froze == 1 and not agent.frozen
    again = quiet(live, agent, "a")
    assert not again.changed and again.quiesced is None, "nothing was taken"
    live.guest.scribble(2)  # type: ignore[union-attr]
    live.require_right()
    live.require_nothing_left()


def test_a_group_is_frozen_once(make_disks: Callable[..., Disks], scripted: Callable[..., ScriptedAgent], monkeypatch: pytest.MonkeyPatch) -> None:
    disks, agent, run = make_disks("raw", "qcow2"), scripted(), Monitor.run
    disks.start()
    disks.scribble(1)
    while_frozen: list[str] = []

    def noted(self: Monitor, command: str, **arguments: Any) -> Any:
        if agent.frozen:
            while_frozen.append(command)
        return run(self, command, **arguments)

    monkeypatch.setattr(Monitor, "run", noted)
    for name in disks.names:
        disks.points.setdefault(name, {})["g"] = disks.now(name)
    predicted = disks.together("g", quiesce="true", agent=agent.path, check=True)
    done = disks.together("g", quiesce="true", agent=agent.path)
    assert [one.quiesced for one in done] == [one.quiesced for one in predicted] == [(True, ""), (True, ""), (False, "no machine has it open")]
    assert while_frozen == ["transaction"] and agent.froze == 1 and not agent.frozen
    disks.scribble(2)
    disks.require_right()
    disks.require_nothing_left()


@pytest.mark.parametrize("quiesce", ["true", "auto"])
@pytest.mark.parametrize("attachment", [None, "/nobody/listens/here"])
def test_a_machine_that_is_off(make: Callable[..., Live], quiesce: str, attachment: str | None) -> None:
    """What nobody has open needs no help."""
    live = make("raw")
    for check in (True, False):
        done = live.take("a", quiesce=quiesce, attachment=attachment, check=check)
        assert done.changed and done.quiesced == (False, "no machine has it open")


def test_old_answers_are_skipped(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent]) -> None:
    """Whole ones, torn ones, marked ones, long ones, and ones that are no JSON."""
    old = told("frozen") + told(7) + MARK + told(12345) + MARK + b'{"return": ' + MARK + told("x" * 9000) + MARK * 3
    old += b"\x00\xf0 [" * 3000 + b"\n" + refused("old") + b'{"ret'
    live, agent = begun(make), scripted(before=old)
    assert quiet(live, agent, "a").quiesced == (True, "")


def test_an_agent_that_answers_late(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent]) -> None:
    """It has answered before, and this time the answer comes when its task has given up. That answer is not taken for another one."""
    slow = [1.2]

    def late(agent: ScriptedAgent, request: dict) -> bytes:
        time.sleep(slow.pop() if slow else 0)
        return agent.usual(request)

    live, agent = begun(make), scripted({"guest-fsfreeze-status": late})
    with pytest.raises(InUse, match="does not answer in time"):
        quiet(live, agent, "a")
    time.sleep(1)
    assert quiet(live, agent, "a").quiesced == (True, "")


# -- an agent that is of no use is found out before anything is changed ----------------------------------------------


def endless(agent: ScriptedAgent, _request: dict) -> bytes:
    return b"x" * (1 << 20)


def flood(agent: ScriptedAgent, _request: dict) -> bytes:
    """More than anybody should keep, for as long as the client is there."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        agent._client.sendall(MARK + b"y" * (1 << 20))  # type: ignore[union-attr]
    return b""


SYNC, STATUS = "guest-sync-delimited", "guest-fsfreeze-status"
USELESS = {
    "never answers": ({SYNC: silent}, "does not answer in time"),
    "never answers the question": ({STATUS: silent}, "does not answer in time"),
    "hangs up": ({SYNC: lambda _agent, _request: None}, "was closed"),
    "garbage": ({SYNC: instead(MARK + bytes(range(256)) * 50)}, "does not answer in time"),
    "another number": ({SYNC: instead(MARK + told(1))}, "does not answer in time"),
    "floods": ({SYNC: flood}, "does not answer in time"),
    "an endless line": ({STATUS: endless}, "has no end"),
    "a long line": ({STATUS: instead(told("frozen" * 5000))}, "no end|too long"),
    "a deep answer": ({STATUS: instead(b"[" * 4000 + b"\n")}, "something else"),
    "a number": ({STATUS: instead(told(1))}, "neither that it is frozen nor"),
    "a dictionary": ({STATUS: instead(told({"status": "thawed"}))}, "neither that it is frozen nor"),
    "another word": ({STATUS: instead(told("fine"))}, "neither that it is frozen nor"),
    "null": ({STATUS: instead(told(None))}, "neither that it is frozen nor"),
    "a list": ({STATUS: instead(b"[1]\n")}, "something else"),
    "no answer": ({STATUS: instead(b"{}\n")}, "something else"),
    "refuses": ({STATUS: instead(refused("Command guest-fsfreeze-status has been disabled"))}, r"refuses guest-fsfreeze-status \('Command .* disabled'\)"),
    "words for a terminal": ({STATUS: instead(refused("\x1b[2J\x1b]0;x\x07\u202e\n{{ 7 * 7 }}" + "z" * 1500))}, r"\('\?\[2J\?\]0;x"),
    "no words": ({STATUS: instead(refused({"a": 1}))}, "without a reason"),
    "frozen already": ({STATUS: instead(told("frozen"))}, "frozen already, by somebody else"),
}


@pytest.mark.parametrize("case", USELESS)
def test_an_agent_of_no_use(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], case: str) -> None:
    script, expected = USELESS[case]
    live, agent = begun(make), scripted(script)
    before, said = live.tree(), []
    for check in (True, False):
        began = time.monotonic()
        with pytest.raises(InUse, match=expected) as caught:
            quiet(live, agent, "a", check=check)
        assert time.monotonic() - began < 4
        said.append(str(caught.value))
        assert live.tree() == before and live.left_open() == []
        assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    assert said[0] == said[1] and not {"guest-fsfreeze-freeze", "guest-fsfreeze-thaw"} & set(agent.heard)
    live.points["a"] = live.point_now()
    warned: list[str] = []
    predicted = quiet(live, agent, "a", "auto", warned, check=True)
    done = quiet(live, agent, "a", "auto", warned)
    assert done.changed and not done.quiesced.quiesced and predicted.quiesced == done.quiesced and not warned
    assert "guest-fsfreeze-freeze" not in agent.heard
    live.require_right()
    live.require_nothing_left()


def test_nobody_listens_at_the_channel(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent]) -> None:
    live, agent = begun(make), scripted()
    agent.end()
    with pytest.raises(InUse, match="nobody listens at"):
        quiet(live, agent, "a")
    assert quiet(live, agent, "a", "auto").quiesced.reason.startswith("nobody listens at")


# -- the freezing fails: without it there is no snapshot -------------------------------------------------------------


def frozen_and(answer: bytes | None, seconds: float = 0) -> Answer:
    """It is frozen, and the answer is another one."""

    def script(agent: ScriptedAgent, request: dict) -> bytes | None:
        time.sleep(seconds)
        agent.set(True)
        return answer

    return script


FREEZE = "guest-fsfreeze-freeze"
FAILING = {
    "refuses": (instead(refused("Command guest-fsfreeze-freeze has been disabled: the command is not allowed")), "refuses guest-fsfreeze-freeze"),
    "freezes and never answers": (frozen_and(b""), "does not answer in time"),
    "freezes late": (frozen_and(told(2), 1.2), "does not answer in time"),
    "freezes and hangs up": (frozen_and(None), "was closed"),
    "freezes and says nonsense": (frozen_and(told("two")), "no number"),
    "freezes and says true": (frozen_and(told(True)), "no number"),
    "freezes and says an endless line": (frozen_and(b"z" * 100000), "has no end"),
    "has no file systems": (instead(told(0)), "no file system"),
    "a negative number": (frozen_and(told(-3)), "no file system"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_freeze_that_fails(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], case: str) -> None:
    script, expected = FAILING[case]
    live, agent = begun(make), scripted({FREEZE: script})
    warned: list[str] = []
    live.snapshot("x")
    before = {name: found for name, found in live.tree().items() if not name.startswith(".remotefs")}
    with pytest.raises(InUse, match=expected):
        quiet(live, agent, "a", "true", warned)
    after = {name: found for name, found in live.tree().items() if not name.startswith(".remotefs")}
    assert {name: found[2] for name, found in after.items()} == {name: found[2] for name, found in before.items()}
    assert not agent.frozen and live.left_open() == [] and not warned
    live.require_right()
    live.require_nothing_left()
    live.points["a"] = live.point_now()
    done = quiet(live, agent, "a", "auto", warned)
    assert done.changed and not done.quiesced.quiesced and not agent.frozen and not warned
    live.guest.scribble(3)  # type: ignore[union-attr]
    live.require_right()
    live.require_nothing_left()


def test_a_group_whose_freeze_fails(make_disks: Callable[..., Disks], scripted: Callable[..., ScriptedAgent]) -> None:
    disks, agent = make_disks("raw", "qcow2"), scripted({FREEZE: frozen_and(b"")})
    disks.start()
    disks.scribble(1)
    disks.snapshot("x")
    with pytest.raises(InUse, match="does not answer in time"):
        disks.together("g", quiesce="true", agent=agent.path)
    assert not agent.frozen
    disks.require_right()
    disks.require_nothing_left()


def test_qemu_refuses_the_switch(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], monkeypatch: pytest.MonkeyPatch) -> None:
    live, agent, run = begun(make), scripted(), Monitor.run

    def failing(self: Monitor, command: str, **arguments: Any) -> Any:
        if command == "blockdev-snapshot":
            assert agent.frozen
            raise QmpError(command, "GenericError", "planted")
        return run(self, command, **arguments)

    monkeypatch.setattr(Monitor, "run", failing)
    with pytest.raises(ToolFailed, match="planted"):
        quiet(live, agent, "a")
    assert agent.froze == 1 and not agent.frozen and agent.heard[-1] == "guest-fsfreeze-thaw"
    live.require_right()
    live.require_nothing_left()


@pytest.mark.parametrize("quiesce", ["true", "auto"])
def test_no_guardian_can_be_started(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], monkeypatch: pytest.MonkeyPatch, quiesce: str) -> None:
    """Without one the guest is not frozen."""
    live, agent = begun(make), scripted()

    def no_process() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", no_process)
    if quiesce == "true":
        with pytest.raises(ToolFailed, match="no process can be started"):
            quiet(live, agent, "a")
    else:
        assert not quiet(live, agent, "a", quiesce).quiesced.quiesced
        live.points["a"] = live.point_now()
    assert agent.froze == 0
    live.require_right()
    live.require_nothing_left()


# -- after the switch ------------------------------------------------------------------------------------------------


def test_a_guest_that_goes_on_by_itself(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with Windows does after ten seconds. The snapshot is there then, and the task says what it is."""
    live, agent, run = begun(make), scripted(), Monitor.run

    def slow(self: Monitor, command: str, **arguments: Any) -> Any:
        done = run(self, command, **arguments)
        if command == "blockdev-snapshot":
            agent.set(False)
        return done

    monkeypatch.setattr(Monitor, "run", slow)
    warned: list[str] = []
    live.points["a"] = live.point_now()
    done = quiet(live, agent, "a", "true", warned)
    assert done.changed and not done.quiesced.quiesced and "went on by itself" in done.quiesced.reason
    assert len(warned) == 1 and "was not frozen for certain" in warned[0] and agent.heard[-1] == "guest-fsfreeze-thaw"
    live.require_right()
    assert not quiet(live, agent, "b", "auto", warned).quiesced.quiesced and len(warned) == 1


def test_an_agent_that_dies_in_between(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent]) -> None:
    """It is started again and knows that the guest is frozen, as qemu-ga does: it goes on."""
    dead = ["once"]

    def dying(agent: ScriptedAgent, request: dict) -> bytes | None:
        if agent.frozen and dead:
            dead.pop()
            return None
        return agent.usual(request)

    live, agent = begun(make), scripted({STATUS: dying})
    warned: list[str] = []
    done = quiet(live, agent, "a", "true", warned)
    assert done.changed and not done.quiesced.quiesced and "was closed" in done.quiesced.reason and len(warned) == 1
    assert agent.froze == 1 and not agent.frozen


@pytest.mark.parametrize("seconds", [1.2, 6])
def test_a_thaw_that_is_late(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], seconds: float) -> None:
    """Longer than the task waits, and longer than the guardian keeps it: somebody goes on, and holds up nobody."""
    began: list[float] = []

    def stalled(agent: ScriptedAgent, request: dict) -> bytes:
        if agent.frozen and agent.heard.count(FREEZE) == 1:
            began.append(time.monotonic())
            time.sleep(max(0.0, seconds - (time.monotonic() - began[0])))
        return agent.usual(request)

    live, agent = begun(make), scripted({"guest-fsfreeze-thaw": stalled})
    warned: list[str] = []
    done = quiet(live, agent, "a", "true", warned)
    assert done.changed and done.quiesced.quiesced and len(warned) == 1 and "may be frozen still" in warned[0]
    assert agent.frozen or seconds < 6, "the task has waited for it"
    began_again = time.monotonic()
    assert live.take("b").changed, "the locks and the monitor are free again"
    assert time.monotonic() - began_again < 4
    agent.wait_until_thawed()
    time.sleep(0.5)
    assert quiet(live, agent, "c").quiesced == (True, "")


def test_a_thaw_that_is_refused(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent]) -> None:
    """A guest that can be asked and does not want is asked some times, and not for ever."""
    live, agent = begun(make), scripted({"guest-fsfreeze-thaw": instead(refused("no"))})
    warned: list[str] = []
    assert quiet(live, agent, "a", "true", warned).changed
    assert len(warned) == 1 and "may be frozen still" in warned[0]
    time.sleep(1)
    heard = len(agent.heard)
    time.sleep(1)
    assert len(agent.heard) == heard


def test_the_machine_ends_while_frozen(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nobody to let go on, and the task says what became of the machine."""
    live, agent, run = begun(make), scripted(), Monitor.run
    guest = live.guest
    assert guest is not None

    def ending(self: Monitor, command: str, **arguments: Any) -> Any:
        if command == "blockdev-snapshot":
            agent.end()
            guest.kill()
        return run(self, command, **arguments)

    monkeypatch.setattr(Monitor, "run", ending)
    began = time.monotonic()
    with pytest.raises(StorageError, match="the monitor was lost"):
        quiet(live, agent, "a")
    assert time.monotonic() - began < 3
    live.guest = None
    live.points["a"] = live.points["after"] = live.point_now()
    warned: list[str] = []
    live.take("after", task=Task(warn=warned.append))
    live.require_right()


# -- the channel -----------------------------------------------------------------------------------------------------


def channel(path: str, backend: str = "socket", name: str = "org.qemu.guest_agent.0", device_id: str = "") -> tuple[str, ...]:
    """A machine's channel; nobody in it uses that."""
    chardev = f"socket,id=qga,path={path},server=on,wait=off" if backend == "socket" else f"{backend},id=qga"
    named = f",id={device_id}" if device_id else ""
    return ("-device", "virtio-serial-pci", "-chardev", chardev, "-device", f"virtserialport,chardev=qga,name={name}{named}")


@pytest.mark.parametrize("device_id", ["", "channel0"])
def test_the_channel_is_found(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], device_id: str) -> None:
    live = make("raw")
    path = scripted().path + "-of-qemu"
    live.start(more=channel(path, device_id=device_id))
    for said in (None, path):
        with pytest.raises(InUse, match="no guest agent runs in it"):
            live.take("a", quiesce="true", agent=said)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(path)
        with pytest.raises(InUse, match="another program is connected to the channel"):
            live.take("a", quiesce="true")
    with pytest.raises(InUse, match="no guest agent runs in it"):
        live.take("a", quiesce="true")


@pytest.mark.parametrize("what", ["none", "pty", "another name"])
def test_no_channel(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], what: str) -> None:
    live = make("raw")
    path = scripted().path + "-of-qemu"
    more = {"none": (), "pty": channel(path, "pty"), "another name": channel(path, name="org.example.other")}[what]
    live.start(more=more)
    expected = "is no Unix socket" if what == "pty" else "has no channel for a guest agent"
    before = live.tree()
    for check in (True, False):
        with pytest.raises(InUse, match=expected):
            live.take("a", quiesce="true", check=check)
    assert live.tree() == before
    done = live.take("a", quiesce="auto")
    assert done.changed and expected.split()[-1] in done.quiesced.reason


def test_a_monitor_that_lies_about_the_channel(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    live, run = begun(make), Monitor.run
    answers: list[Any] = [[{"name": 1}], [{"name": "x", "type": "child<virtserialport>"}], "x"]

    def lying(self: Monitor, command: str, **arguments: Any) -> Any:
        if command == "qom-list":
            shapes.check(command, answers[0])
            return answers[0]
        return run(self, command, **arguments)

    monkeypatch.setattr(Monitor, "run", lying)
    while answers:
        with pytest.raises(InUse, match="does not tell how its guest agent is reached"):
            live.take("a", quiesce="true")
        answers.pop(0)


def test_qemu_storage_daemon(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], tmp_path: Any) -> None:
    """It has no guest. The agent of the machine that it serves can be named."""
    live, agent = make("qcow2"), scripted()
    monitor = agent.path + "-qmp"
    node = {"driver": "qcow2", "node-name": "disk0", "file": {"driver": "file", "filename": str(live.path / "v")}}
    export = "nbd,id=e,node-name=disk0,writable=on,name=x"
    command = ["qemu-storage-daemon", "--blockdev", json.dumps(node), "--nbd-server", f"addr.type=unix,addr.path={agent.path}-nbd"]
    command += ["--export", export, "--chardev", f"socket,id=q,path={monitor},server=on,wait=off", "--monitor", "chardev=q"]
    daemon = subprocess.Popen(command)
    try:
        until = time.monotonic() + 20
        while not os.path.exists(monitor):
            assert time.monotonic() < until and daemon.poll() is None
            time.sleep(0.02)
        before = live.tree()
        with pytest.raises(InUse, match="guest"):
            live.take("a", quiesce="true", attachment=monitor)
        assert live.tree() == before
        assert not live.take("a", quiesce="auto", attachment=monitor).quiesced.quiesced
        assert live.take("b", quiesce="true", attachment=monitor, agent=agent.path).quiesced == (True, "")
        assert agent.froze == 1 and not agent.frozen
    finally:
        daemon.kill()
        daemon.wait(20)


def test_two_tasks_and_one_agent(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent]) -> None:
    """A machine with two monitors: who has the agent has it alone."""
    live, agent = begun(make), scripted()
    freezer = freezing.AgentFreezer(Monitor("", None), agent.path, 0)  # type: ignore[arg-type]
    freezer.require_answer()
    with pytest.raises(InUse, match="another task uses the channel"):
        quiet(live, agent, "a", lock_timeout=0.3)
    freezer.close()
    assert quiet(live, agent, "a").quiesced == (True, "")


def test_a_task_does_not_wait_for_what_goes_on_alone() -> None:
    assert guardians._WAIT > quiescing._HOLD
