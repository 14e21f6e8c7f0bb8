# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest goes on whose task is killed while it is frozen: by the guardian, or if that is killed too, by the next task.

A sample runs in each run of the stage; with LIVE_SWEEP=full every instant does, those before and after each command to the agent too.
"""

from __future__ import annotations

import os
import random
import time
from typing import Callable, ContextManager
from unittest import mock

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.guardians import GuardianProcess
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.agent import Agent
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Task

from .disks import Disks
from .guest import Live
from .instants import Counting, instants, killed_at
from .scripted_agent import ScriptedAgent, begun, quiet, silent
from .test_kills import Case, cases

SAMPLE = int(os.environ.get("LIVE_SAMPLE", "4"))


def commands(count: Counting) -> ContextManager:
    """Finds instants before and after each command to the agent."""
    return mock.patch.object(Agent, "_ask", count.around(Agent._ask, lambda _self, command, _limit: command))


class QuietCase(Case):
    """A snapshot with the guest frozen."""

    def __init__(self, live: Live, agent: ScriptedAgent) -> None:
        super().__init__(live, "create")
        live.common = {"agent": agent.path, "task": Task()}
        self.agent = agent

    def run(self) -> object:
        """The task itself."""
        return self.live.take("new", quiesce="true")

    def kill_at(self, number: int, victim: str) -> None:
        """As :meth:`kill`, with the instants of the agent."""
        guest = self.live.guest
        assert guest is not None
        self.before = self.live.point_now()
        killed_at(self.run, number, victim, guest.process.pid, commands, GuardianProcess)
        if victim in ("machine", "both"):
            guest.end()
        if victim != "guardian too":
            self.agent.wait_until_thawed(5)


def test_killed(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent]) -> None:
    counted = QuietCase(make("qcow2"), scripted())
    found = instants(counted.run, commands)
    assert counted.live.guest is not None
    counted.live.guest.kill()
    frozen = [one.what for one in found]
    assert len(found) > 20 and {"after guest-fsfreeze-freeze", "before guest-fsfreeze-thaw"} <= set(frozen)
    every = [(instant, victim, aftermath) for instant in found for victim, aftermath in cases()]
    if os.environ.get("LIVE_SWEEP") != "full":
        first, last = frozen.index("before guest-fsfreeze-freeze"), frozen.index("after guest-fsfreeze-thaw")
        every = random.Random(os.environ.get("LIVE_SEED", time.strftime("%j"))).sample([one for one in every if first <= one[0].number <= last], SAMPLE)
    for instant, victim, aftermath in every:
        case = QuietCase(make("qcow2"), scripted())
        try:
            case.kill_at(instant.number, victim)
            case.end(aftermath)
            assert not case.agent.frozen or aftermath != "reattach", "the guest is frozen for ever"
        except Exception as error:
            raise AssertionError(f"{victim} killed {instant.what} ({instant.number}), {aftermath}") from error
        finally:
            case.live.give_back()


@pytest.mark.parametrize("victim", ["module", "group", "guardian too"])
@pytest.mark.parametrize("what", ["before blockdev-snapshot", "after blockdev-snapshot"])
def test_killed_while_frozen(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], what: str, victim: str) -> None:
    """The guardian lets the guest go on. If that is killed, too, the next task does, whatever it is."""
    trial, agent = begun(make), scripted()
    (number,) = [one.number for one in instants(lambda: quiet(trial, agent, "a")) if one.what == what]
    live, agent = begun(make), scripted()
    guest = live.guest
    assert guest is not None
    live.points["a"] = live.point_now()
    killed_at(lambda: quiet(live, agent, "a"), number, victim, guest.process.pid, kind=GuardianProcess)
    assert agent.froze == 1
    if victim != "guardian too":
        agent.wait_until_thawed(5)
    else:
        time.sleep(0.5)
        assert agent.frozen
    warned: list[str] = []
    before = live.tree()
    predicted = live.present(size=len(live.data), agent=agent.path, task=Task(warn=warned.append), check=True)
    assert live.tree() == before and not warned and agent.frozen == (victim == "guardian too")
    done = live.present(size=len(live.data), agent=agent.path, task=Task(warn=warned.append))
    assert not agent.frozen and [one["outcome"] for one in done.recovered] == ["finished"] and predicted.recovered == done.recovered
    assert [("left it so" in text, "not known whether" in text) for text in warned] == [(True, False)] * (victim == "guardian too") + [(False, True)]
    guest.scribble(5)
    live.require_right()
    live.require_nothing_left()


@pytest.mark.parametrize("victim", ["module", "guardian too"])
def test_a_group_killed_while_frozen(make_disks: Callable[..., Disks], scripted: Callable[..., ScriptedAgent], victim: str) -> None:
    def task(disks: Disks, agent: ScriptedAgent) -> list:
        return disks.together("g", quiesce="true", agent=agent.path)

    trial, agent = make_disks(), scripted()
    trial.start()
    (number,) = [one.number for one in instants(lambda: task(trial, agent)) if one.what == "after transaction"]
    disks, agent = make_disks(), scripted()
    guest = disks.start()
    disks.scribble(1)
    for name in disks.names:
        disks.points.setdefault(name, {})["g"] = disks.now(name)
    killed_at(lambda: task(disks, agent), number, victim, guest.process.pid, kind=GuardianProcess)
    if victim == "module":
        agent.wait_until_thawed(5)
    disks.task_on("o", agent=agent.path)
    assert agent.froze == 1 and not agent.frozen
    disks.require_right()
    disks.require_nothing_left()


@pytest.mark.parametrize("is_named", [True, False])
def test_the_next_task_cannot_reach_the_agent(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent], is_named: bool) -> None:
    """It says that the guest may be frozen still, and does its work."""
    trial, agent = begun(make), scripted()
    (number,) = [one.number for one in instants(lambda: quiet(trial, agent, "a")) if one.what == "after blockdev-snapshot"]
    live, agent = begun(make), scripted()
    killed_at(lambda: quiet(live, agent, "a"), number, "guardian too", 0, kind=GuardianProcess)
    agent.script["guest-sync-delimited"] = silent
    warned: list[str] = []
    named = {"agent": agent.path} if is_named else {}
    assert live.take("b", task=Task(warn=warned.append), **named).changed
    (text,) = [text for text in warned if "may be frozen still" in text]
    assert agent.path in text and ("does not answer in time" if is_named else "no channel for a guest agent") in text
    assert agent.heard.count("guest-sync-delimited") == 1 + is_named, "what a record says is not followed"


def test_the_guardian_goes_on_while_the_agent_is_silent(make: Callable[..., Live], scripted: Callable[..., ScriptedAgent]) -> None:
    """The task is dead, and the agent hears nothing for longer than the guardian keeps others waiting."""
    deaf = [True]

    def stalled(agent: ScriptedAgent, request: dict) -> bytes:
        while deaf:
            time.sleep(0.02)
        return agent.usual(request)

    trial, agent = begun(make), scripted()
    (number,) = [one.number for one in instants(lambda: quiet(trial, agent, "a")) if one.what == "after blockdev-snapshot"]
    live, agent = begun(make), scripted()
    agent.script["guest-fsfreeze-thaw"] = stalled
    live.points["a"] = live.point_now()
    killed_at(lambda: quiet(live, agent, "a"), number, "group", 0, kind=GuardianProcess)
    time.sleep(1.5)
    warned: list[str] = []
    assert live.take("b", agent=agent.path, task=Task(warn=warned.append)).recovered and [text for text in warned if "may be frozen still" in text]
    live.points["b"] = live.point_now()
    deaf.clear()
    agent.wait_until_thawed(5)
    live.require_right()
