# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt says when it asks a guest's agent, and what is made of that. The domain is a scripted one."""

from __future__ import annotations

import json
import os
import socket
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply import quiescing, turns
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt import freezing
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt.agent import Asked
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt.connection import OFF, RUNNING, Nonsense, Refused, State, Unreachable
from ansible_collections.remotefs.storage.plugins.module_utils.apply.quiescing import Declined, NotFrozen

CHANNEL = "<domain><devices><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='{}'/></channel></devices></domain>"
SILENT = Refused("Guest agent is not responding: Guest agent not available for now")
NO = Refused("internal error: unable to execute QEMU agent command 'guest-fsfreeze-thaw': no\x1b[2J" + "z" * 500)


class Scripted(Asked):
    """A domain whose guest answers each command as its script says. Bytes are the whole answer, and an exception is raised."""

    uuid, name = "1-2-3", "d"

    def __init__(self, **script: object) -> None:
        self.script: dict[str, list] = {verb: list(answers) if isinstance(answers, list) else [answers] for verb, answers in script.items()}
        self.asked: list[str] = []
        self.described, self.is_on = CHANNEL.format("connected"), State(RUNNING, "")

    def xml(self, inactive: bool) -> str:
        assert not inactive
        return self.described

    def state(self) -> State:
        return self.is_on

    def ask_agent(self, request: str, limit: int) -> str:
        verb = json.loads(request)["execute"].rpartition("-")[2]
        self.asked.append(verb)
        answers = self.script[verb]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer.decode() if isinstance(answer, bytes) else json.dumps({"return": answer})


def raising(error: Exception) -> Callable[..., object]:
    def raise_it(*_words: object) -> object:
        raise error

    return raise_it


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiescing, "_PAUSE", 0.001)
    monkeypatch.setattr(freezing, "_ON_THE_WAY", 0.05)
    monkeypatch.setattr(freezing, "_LOOK", 0.001)
    monkeypatch.setattr(freezing, "process_of", lambda _uuid: 1)
    monkeypatch.setattr(turns, "take", lambda *_words: None)
    monkeypatch.setattr(os, "fork", raising(AssertionError("it went on alone")))


def freezer(domain: Scripted) -> freezing.DomainFreezer:
    return freezing.DomainFreezer(domain, "qemu:///system", 0)  # type: ignore[arg-type]


def warned_by(domain: Scripted) -> list[str]:
    """The warnings of the next task, if both were killed."""
    found: list[str] = []
    freezing.thaw_left(domain, "recorded", "volume v", found.append)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("text", ["", "[", "[" * 100000, "[1]", "{}", '{"error": {}}', '"frozen"', "null"])
def test_what_is_no_answer(text: str) -> None:
    domain = Scripted(status=text.encode(), freeze=text.encode(), thaw=text.encode())
    for ask in (domain.is_frozen, domain.freeze, domain.thaw):
        with pytest.raises(Nonsense, match="something else"):
            ask(1)


@pytest.mark.parametrize("value", ["2", True, None, [2], 1.5])
def test_what_is_no_number(value: object) -> None:
    for ask in (Scripted(freeze=[value]).freeze, Scripted(thaw=[value]).thaw):
        with pytest.raises(Nonsense, match="no number"):
            ask(1)


def test_all_is_well() -> None:
    domain = Scripted(status=["thawed", "frozen"], freeze=2, thaw=2)
    one = freezer(domain)
    assert one.place == ""
    one.require_answer()
    one.require_answer()
    assert one.place == "libvirt (domain 1-2-3)"
    one.freeze()
    one.require_frozen()
    assert one.thaw() and domain.asked == ["status", "freeze", "status", "thaw"]


@pytest.mark.parametrize(
    "described, expected",
    [
        ("<domain><devices/></domain>", "has no channel for a guest agent"),
        (CHANNEL.replace("guest_agent", "other"), "has no channel for a guest agent"),
        (CHANNEL.replace("virtio", "xen"), "has no channel for a guest agent"),
        (CHANNEL.format("disconnected"), "no guest agent runs in it"),
    ],
)
def test_there_is_nobody_to_ask(described: str, expected: str) -> None:
    """That is seen before libvirt is asked, which would mark the domain."""
    domain = Scripted()
    domain.described = described
    with pytest.raises(NotFrozen, match=expected):
        freezer(domain).require_answer()
    assert expected in warned_by(domain)[0] and domain.asked == []


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("frozen", "frozen already, by somebody else"),
        (SILENT, "does not answer in time"),
        (Refused("Timed out during operation: cannot acquire state change lock (held by agent=x)"), "another program has a command"),
        (Refused("Requested operation is not valid: domain is not running"), "domain is not running"),
        (Unreachable("gone"), "libvirt cannot be reached"),
        (NO, "refuses"),
        (b"{}", "something else"),
    ],
)
def test_a_guest_that_cannot_be_asked(answer: object, expected: str) -> None:
    one = freezer(Scripted(status=answer))
    with pytest.raises(NotFrozen, match=expected) as caught:
        one.require_answer()
    assert one.place == "" and str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize("count", [0, -1])
def test_nothing_is_frozen(count: int) -> None:
    with pytest.raises(NotFrozen, match="no file system"):
        freezer(Scripted(freeze=count)).freeze()
    with pytest.raises(NotFrozen, match="went on by itself"):
        freezer(Scripted(status="thawed")).require_frozen()


def test_it_is_told_until_it_goes_on() -> None:
    domain = Scripted(thaw=[SILENT, Refused("anything"), SILENT, 1])
    assert freezer(domain).thaw() and domain.asked == ["thaw"] * 4


def test_a_guest_that_declines_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (NO, b"x"):
        domain = Scripted(thaw=answer)
        assert not freezer(domain).thaw() and len(domain.asked) == quiescing._REFUSALS
    monkeypatch.setattr(freezing, "THAW", 0)
    assert not freezer(Scripted(thaw=SILENT)).thaw()
    assert issubclass(Declined, NotFrozen)


@pytest.mark.parametrize("end", ["off", "absent"])
def test_a_domain_that_is_off_needs_nothing(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    domain = Scripted(thaw=Refused("no domain", is_absent=True) if end == "absent" else Refused("domain is not running"))
    if end == "off":
        domain.is_on = State(OFF, "")
    else:
        monkeypatch.setattr(domain, "state", raising(Refused("no domain", is_absent=True)))
    assert freezer(domain).thaw() and domain.asked == ["thaw"]


class Connected:
    """A connection that finds this."""

    def __init__(self, domain: Scripted | None) -> None:
        self.domain, self.is_closed = domain, False

    def find(self, _name: str) -> Scripted | None:
        return self.domain

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("is_there", [True, False])
def test_a_libvirt_that_was_started_again(monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    """The connection is lost. By another one the guest is told, or the domain is not there any more."""
    domain, again = Scripted(thaw=Unreachable("gone")), Scripted(thaw=1)
    made = Connected(again if is_there else None)
    ways = [raising(Unreachable("not yet")), raising(Unreachable("not yet")), lambda _uri: made]

    def connect(uri: str) -> Connected:
        way = ways.pop(0) if len(ways) > 1 else ways[0]
        return way(uri)

    monkeypatch.setattr(freezing.connection, "separate_connection", connect)
    one = freezer(domain)
    assert one.thaw() and again.asked == ["thaw"] * is_there
    one.close()
    assert made.is_closed


def test_what_goes_on_alone_has_the_turn_and_a_new_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Connected(Scripted(thaw=SILENT)), Connected(Scripted(thaw=1, status="thawed"))
    ways, turn = [first, second], socket.socket()
    monkeypatch.setattr(freezing.connection, "separate_connection", lambda _uri: ways.pop(0))
    monkeypatch.setattr(turns, "take", lambda *_words: turn)
    monkeypatch.setattr(quiescing, "_HOLD", 0)
    monkeypatch.setattr(os, "fork", lambda: 0)
    kept: list[int | None] = []
    monkeypatch.setattr(quiescing, "_keep_only", kept.append)
    one = freezer(Scripted(status="thawed"))
    one.require_answer()
    one.thaw_at_last()
    assert kept == [turn.fileno()] and first.is_closed and not ways
    one.close()
    assert turn.fileno() == -1 and second.is_closed


def test_without_libvirt_the_process_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing.connection, "separate_connection", raising(Unreachable("gone")))
    monkeypatch.setattr(freezing, "process_of", lambda _uuid: None)
    assert freezer(Scripted(thaw=Unreachable("gone"))).thaw()


def test_a_freeze_that_arrives_after_the_death_of_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guardian uses a connection of its own, and looks for a while."""
    domain, again = Scripted(), Scripted(thaw=[0, 1], status=["thawed", "frozen", "thawed"])
    monkeypatch.setattr(freezing.connection, "separate_connection", lambda _uri: Connected(again))
    freezer(domain).thaw_at_last()
    assert domain.asked == [] and again.asked.count("thaw") == 2 and again.asked[:4] == ["thaw", "status", "status", "thaw"]


def test_the_next_task_lets_it_go_on() -> None:
    domain = Scripted(status="frozen", thaw=1)
    (text,) = warned_by(domain)
    assert "left it so" in text and domain.asked == ["status", "thaw"]
    domain = Scripted(status="thawed")
    assert warned_by(domain) == [] and domain.asked == ["status"]
    (text,) = warned_by(Scripted(status=Refused("Requested operation is not valid: domain is not running")))
    assert "may be frozen still: Requested operation" in text.replace("It", "it")
    for script in ({"status": SILENT}, {"status": "frozen", "thaw": SILENT}):
        (text,) = warned_by(Scripted(**script))
        assert "may be frozen still" in text and "recorded" in text and "does not answer in time" in text
