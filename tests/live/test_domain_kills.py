# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks on domains of libvirt, off and running, killed at every instant: the task, its process group, QEMU, both, or the guardian too.

Afterwards the next task finds the domain as it is, off, or started again by libvirt on what its definition says. What was begun is finished
or undone, every point and the present are right, and libvirt starts the domain on the file that ``.info`` names.

A sample runs in each run of the stage; with LIVE_SWEEP=full all of them do.
"""

from __future__ import annotations

import json
import os
import random
import time
from contextlib import closing, contextmanager
from typing import Callable, Iterator
from unittest import mock

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.guardians import GuardianProcess
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt import definition, freezing
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt.connection import RUNNING, Refused
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt.virsh import SpokenDomain
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.agent import Agent, AgentError
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Task

from . import instants
from .guest import MIB, digest_of
from .libvirtd import DomainGuest, LiveDomain
from .operation import Operation
from .scripted_agent import ScriptedAgent

IS_FULL = os.environ.get("LIVE_SWEEP") == "full"
SAMPLE = int(os.environ.get("LIVE_SAMPLE", "4")) // 4  # cases of each operation
OPERATIONS = ("create", "grow", "oldest", "newest", "all")
CHANGES = ("take_snapshot", "commit", "cancel", "pivot", "resize", "suspend", "resume", "define", "freeze", "thaw")
_GONE_ON = 30  # seconds


@contextmanager
def libvirt_watched(count: instants.Counting) -> Iterator[None]:
    """Each call that changes a domain is an instant, too."""
    with mock.patch.multiple(
        SpokenDomain, **{name: count.around(getattr(SpokenDomain, name), lambda *_args, name=name, **_named: name) for name in CHANGES}
    ):
        yield


class DomainCase(Operation):
    """An operation on a volume of a domain."""

    def __init__(self, live: LiveDomain, operation: str, state: str) -> None:
        super().__init__(live, operation)
        self.live: LiveDomain = live
        self.state, self.victim = state, ""
        for number, name in enumerate("abc"):
            live.scribble(number)
            live.snapshot(name, attachment=None)
        live.scribble(9)
        if state == "off":
            live.define()
            live.guest = DomainGuest(live.libvirtd, live.name, live.data)
        else:
            live.run(transient=state == "transient").scribble(10, 1)

    def kill(self, number: int, victim: str) -> None:
        self.before, self.victim = digest_of(self.live.data), victim
        guest = self.live.guest
        assert guest is not None
        pid = guest.pid if self.state != "off" else 0  # type: ignore[attr-defined]
        instants.killed_at(self.run, number, victim, pid, libvirt_watched, GuardianProcess)

    def end(self, aftermath: str) -> None:
        """What happens next, and the next task."""
        live = self.live
        if aftermath == "as it is" and self.state != "off":
            self._await_guardian()
        if aftermath != "as it is" and self._is_there() and live.guest is not None and live.guest.alive:
            live.guest.kill()
        is_lagging = not (self._is_there() and live.guest is not None and live.guest.alive) and self._is_lagging()
        started_on = ""
        if aftermath == "restarted":
            if self._is_there():
                started_on = live.defined()[0]
                guest = live.run(define=False)
            else:
                started_on = os.path.basename(live.info()["path"])
                guest = live.run(transient=True)
            if is_lagging:
                with pytest.raises(InUse, match="the domain has run since on what may be incomplete"):
                    live.take("after")
                guest.kill()
            else:
                guest.scribble(20, 2)
        if self.operation == "grow" and live.info()["size"] > len(live.data):
            live.data += bytes(MIB)
        done = live.take("after")
        assert done.changed
        live.points["after"] = digest_of(live.data)
        self.adopt_outcome(started_on)
        if live.guest is not None and self._is_there() and live.guest.alive:
            assert live.libvirtd("domstate", live.name).strip() == "running", "nobody is left suspended"
            live.guest.scribble(21, 2)
        live.require_right()
        live.require_nothing_left()
        if self._is_there() and live.libvirtd("dominfo", live.name).count("Persistent:     yes"):
            assert live.defined()[0] == os.path.basename(live.info()["path"])

    def _is_lagging(self) -> bool:
        """A file below the active image may show a merge before QEMU has written all of it, if QEMU dies in that instant: libvirt ends merges by itself.
        All that was merged is there still, and the next task merges it again. Otherwise the active image shows all that the guest has flushed."""
        try:
            self.require_invariant()
        except AssertionError:
            pending = self.live.info()["pending"]
            if self.victim in ("module", "group") or not pending or pending["operation"] != "delete_snapshot":
                raise
            return True
        return False

    def _await_guardian(self) -> None:
        """A guest that the task has suspended goes on, if its guardian lives."""
        until = time.monotonic() + _GONE_ON
        while self.victim != "guardian too" and self._is_there() and "paused" in self.live.libvirtd("domstate", self.live.name):
            assert time.monotonic() < until, "the guest is suspended for ever"
            time.sleep(0.05)

    def _is_there(self) -> bool:
        return self.live.name in self.live.libvirtd("list", "--all", "--name").split()

    def adopt_outcome(self, started_on: str) -> None:
        """Take over into the model what may have been done or not. It was done wholly or not at all."""
        names = {one["name"] for one in self.live.info()["snapshots"]}
        if self.operation == "create" and "new" in names:
            self.live.points["new"] = self.before if started_on in ("", "v.new") else self.live.points["after"]
        if self.gone and not names & set(self.gone):
            self.live.forget(*self.gone)
        assert names >= set(self.live.points), "a part of the snapshots is gone"


class QuietDomainCase(DomainCase):
    """A snapshot with the guest frozen. Its agent is a scripted one: these domains have no guest."""

    def __init__(self, live: LiveDomain, state: str, agent: ScriptedAgent) -> None:
        super().__init__(live, "create", state)
        self.agent = agent

    def run(self) -> object:
        """The task itself."""
        return self.live.take("new", quiesce="true", task=Task())

    def kill(self, number: int, victim: str) -> None:
        super().kill(number, victim)
        if victim in ("module", "group"):
            self.agent.wait_until_thawed()

    def end(self, aftermath: str) -> None:
        if aftermath != "as it is" or self.victim in ("machine", "both"):
            self.agent.set(False)  # that guest is no more
        super().end(aftermath)
        assert not self.agent.frozen, "the guest is frozen for ever"


@contextmanager
def guest_of(agent: ScriptedAgent) -> Iterator[None]:
    """A context in which libvirt asks this agent, as long as the domain runs."""

    def ask_agent(self: SpokenDomain, request: str, limit: int) -> str:
        if self.state().state != RUNNING:
            raise Refused("Requested operation is not valid: domain is not running")
        with closing(Agent(agent.path)) as asked:
            try:
                return json.dumps({"return": asked._ask(json.loads(request)["execute"], limit)})
            except AgentError as error:
                raise Refused(f"Guest agent is not responding: {error}") from error

    with mock.patch.object(SpokenDomain, "ask_agent", ask_agent), mock.patch.object(definition, "agent_channel", lambda _xml: "connected"):
        yield


def cases(state: str) -> list[tuple[str, str]]:
    if state == "off":
        return [(victim, aftermath) for victim in ("module", "group") for aftermath in ("as it is", "restarted")]
    found = [(victim, aftermath) for victim in instants.VICTIMS for aftermath in ("as it is", "off", "restarted")]
    return [(victim, aftermath) for victim, aftermath in found if victim not in ("machine", "both") or aftermath != "as it is"]


@pytest.mark.parametrize("operations", OPERATIONS if IS_FULL else ["two of them"])
@pytest.mark.parametrize("state", ["persistent", "transient", "off"])
def test_killed(make_domain: Callable[..., LiveDomain], state: str, operations: str) -> None:
    """In full each operation is a test of its own, because one alone takes a good part of an hour."""
    chance = random.Random(os.environ.get("LIVE_SEED", time.strftime("%j")) + state)
    for operation in [operations] if IS_FULL else chance.sample(OPERATIONS, 2):
        image_format = chance.choice(["raw", "qcow2"])
        counted = DomainCase(make_domain(image_format), operation, state)
        every = [(instant, *case) for instant in instants.instants(counted.run, libvirt_watched) for case in cases(state)]
        counted.live.remove()
        for instant, victim, aftermath in every if IS_FULL else chance.sample(every, min(SAMPLE, len(every))):
            case = DomainCase(make_domain(image_format), operation, state)
            try:
                case.kill(instant.number, victim)
                case.end(aftermath)
            except Exception as error:
                raise AssertionError(f"{operation} ({image_format}, {state}), {victim} killed {instant.what} ({instant.number}), {aftermath}") from error
            finally:
                case.live.give_back()


def test_killed_with_a_guest_that_is_frozen(
    make_domain: Callable[..., LiveDomain], scripted: Callable[..., ScriptedAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed around the verbs that freeze and thaw and the switch between them: nobody leaves the guest frozen."""
    chance = random.Random(os.environ.get("LIVE_SEED", time.strftime("%j")))
    state = chance.choice(["persistent", "transient"])
    agent = scripted()
    monkeypatch.setattr(freezing, "_ON_THE_WAY", 0.3)
    with guest_of(agent):
        counted = QuietDomainCase(make_domain("qcow2"), state, agent)
        found = instants.instants(counted.run, libvirt_watched)
        counted.live.remove()
        assert agent.froze == 1 and not agent.frozen
        told = [one.what for one in found]
        first, last = told.index("before freeze"), told.index("after thaw")
        assert {"after freeze", "before take_snapshot", "after take_snapshot", "before thaw"} <= set(told[first:last])
        every = [(instant, *case) for instant in found[first : last + 1] for case in cases(state)]
        for instant, victim, aftermath in every if IS_FULL else chance.sample(every, SAMPLE):
            case = QuietDomainCase(make_domain("qcow2"), state, agent)
            try:
                case.kill(instant.number, victim)
                case.end(aftermath)
            except Exception as error:
                raise AssertionError(f"{state}, {victim} killed {instant.what} ({instant.number}), {aftermath}") from error
            finally:
                case.live.give_back()
                agent.set(False)
