# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest of a machine with a monitor: how the channel of its agent is found, and how it is frozen and goes on."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import Callable

from ... import errors
from .. import quiescing, turns
from . import answers, client
from .agent import THAW, Absent, Agent, AgentError, Answered

_PORT = "org.qemu.guest_agent.0"
_PLACES = ("/machine/peripheral", "/machine/peripheral-anon")  # devices with and without an id
_KIND = "child<virtserialport>"
_FREE, _UNIX, _SERVER = "disconnected:", "unix:", ",server="  # parts of what QEMU tells of a socket
_LONGEST_SOCKET = 107  # bytes
_DEPARTURE = 1.0  # seconds for QEMU to notice that a client has gone
_PAUSE = 0.05  # seconds between two looks


class AgentFreezer:
    """The :class:`quiescing.Freezer` of a machine with a monitor.

    :param told: the socket of the agent's channel, as the user names it. Without it the monitor is asked.
    :param patience: seconds to wait for another task that uses the channel.
    """

    def __init__(self, monitor: client.Monitor, told: str | None, patience: float) -> None:
        self.place = ""
        self._monitor, self._told, self._patience = monitor, told, patience
        self._agent: Agent | None = None
        self._turn: socket.socket | None = None

    def require_answer(self) -> None:
        """See :meth:`quiescing.Freezer.require_answer`. The connection stays, so that nobody else takes the channel meanwhile."""
        if self._agent is not None:
            return
        path = self._told or _found(self._monitor)
        try:
            self._turn = turns.take_turn(path, self._patience)
        except errors.InUse as error:
            raise quiescing.NotFrozen(f"another task uses the channel of its guest agent ({path})") from error
        _require_free(self._monitor, path)
        self._agent = Agent(path)
        if self._asked(self._agent.is_frozen):
            raise quiescing.NotFrozen("it is frozen already, by somebody else")
        self.place = path

    def freeze(self) -> None:
        """See :meth:`quiescing.Freezer.freeze`."""
        if self._asked(self._reached().freeze) < 1:
            raise quiescing.NotFrozen("its guest agent has frozen no file system")

    def require_frozen(self) -> None:
        """See :meth:`quiescing.Freezer.require_frozen`."""
        if not self._asked(self._reached().is_frozen):
            raise quiescing.NotFrozen("it went on by itself before its disks were switched, or nobody knows when (its guest agent says that it is thawed)")

    def thaw(self) -> bool:
        """See :meth:`quiescing.Freezer.thaw`."""
        return quiescing.let_go_on(self._let_go_on, THAW)

    def thaw_at_last(self) -> None:
        """See :meth:`quiescing.Freezer.thaw_at_last`."""
        agent = self._reached()
        agent.inherit()
        quiescing.let_go_on_at_last(self._let_go_on, agent.fileno)

    def close(self) -> None:
        """See :meth:`quiescing.Freezer.close`."""
        if self._agent is not None:
            self._agent.close()
        if self._turn is not None:
            self._turn.close()

    def _reached(self) -> Agent:
        if self._agent is None:
            raise quiescing.NotFrozen("it was not asked")
        return self._agent

    def _let_go_on(self, limit: float) -> None:
        try:
            self._reached().thaw(min(THAW, limit))
        except Absent:
            pass  # there is no machine any more
        except Answered as error:
            raise quiescing.Declined(str(error)) from error
        except AgentError as error:
            raise quiescing.NotFrozen(str(error)) from error

    def _asked(self, question: Callable[[], int]) -> int:
        try:
            return question()
        except AgentError as error:
            raise quiescing.NotFrozen(str(error)) from error


def thaw_left(monitor: client.Monitor, told: str | None, recorded: str, subject: str, warn: Callable[[str], None]) -> None:
    """Let a guest go on that a task may have left frozen which was killed together with its guardian.

    :param told: the socket of its agent's channel, as the user names it. :param recorded: the one that the task has used. It is only named:
        who can write to the share has no say in where tasks connect. :param subject: how warnings name the volume.
    """
    agent = None
    try:
        agent = Agent(told or _found(monitor))
        if agent.is_frozen():
            agent.thaw(THAW)
            warn(f"{subject}: a task was interrupted that had frozen the guest, and left it so; it goes on now")
    except Absent:
        pass
    except (AgentError, quiescing.NotFrozen) as error:
        warn(f"{subject}: a task was interrupted that was going to freeze the guest, through {recorded}. It may be frozen still: {error}")
    finally:
        if agent is not None:
            agent.close()


# -- the channel -----------------------------------------------------------------------------------------------------


def _found(monitor: client.Monitor) -> str:
    """The socket of the channel of the guest's agent, by what the monitor says. :raises NotFrozen: there is none that can be used."""
    if not {"qom-list", "qom-get", "query-chardev"} <= monitor.commands:
        raise quiescing.NotFrozen("what has its disks open cannot tell how its guest agent is reached; give attachment.agent")
    try:
        label = _label(monitor)
        told = next((one for one in monitor.run("query-chardev") if one["label"] == label), None) if label else None
    except (client.QmpError, client.Lost, answers.Strange) as error:
        raise quiescing.NotFrozen(f"the monitor does not tell how its guest agent is reached ({error})") from error
    if told is None:
        raise quiescing.NotFrozen(f"the machine has no channel for a guest agent (a virtserialport with the name {_PORT})")
    path = _path(told["filename"])
    if path is None:
        raise quiescing.NotFrozen("the channel of its guest agent is no Unix socket on which QEMU listens; give attachment.agent")
    return _from_here(monitor.pid, path)


def _label(monitor: client.Monitor) -> str | None:
    """The name of the character device behind the agent's port. None if there is no such port."""
    for place in _PLACES:
        for child in monitor.run("qom-list", path=place):
            device = f"{place}/{child['name']}"
            if child["type"] == _KIND and monitor.run("qom-get", path=device, property="name") == _PORT:
                return str(monitor.run("qom-get", path=device, property="chardev"))
    return None


def _path(filename: str) -> str | None:
    """The path of a socket on which QEMU listens, from how QEMU tells it. None if it is something else."""
    told = filename[len(_FREE) :] if filename.startswith(_FREE) else filename
    path, server, more = told.rpartition(_SERVER)
    return path[len(_UNIX) :] if told.startswith(_UNIX) and server and more == "on" and path[len(_UNIX) :].isprintable() else None


def _from_here(pid: int, path: str) -> str:
    """How a socket is reached that QEMU has at ``path``: it may have another working directory, or see other mounts."""
    with suppress(OSError):
        path = os.path.join(os.readlink(f"/proc/{pid}/cwd"), path)
    there = f"/proc/{pid}/root{path}"
    with suppress(OSError):
        if os.path.isabs(path) and os.path.exists(there) and not (os.path.exists(path) and os.path.samefile(there, path)):
            path = there
    if not os.path.isabs(path) or len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise quiescing.NotFrozen("the path of its guest agent's channel leads nowhere, or is too long; give attachment.agent")
    return path


def _require_free(monitor: client.Monitor, path: str) -> None:
    """:raises NotFrozen: QEMU says that somebody else uses the channel, or that nobody in the guest does."""
    until = time.monotonic() + _DEPARTURE
    while True:
        told = _told_of(monitor, path)
        if told is None:
            return
        if told["filename"].startswith(_FREE):
            break
        if time.monotonic() > until:
            who = "libvirtd, or the process of an earlier task that still tells the guest to go on"
            raise quiescing.NotFrozen(f"another program is connected to the channel of its guest agent ({path}): {who}")
        time.sleep(_PAUSE)
    if not told["frontend-open"]:
        raise quiescing.NotFrozen("no guest agent runs in it")


def _told_of(monitor: client.Monitor, path: str) -> dict | None:
    """What QEMU says of the channel at ``path``. None if it says nothing of it."""
    if "query-chardev" not in monitor.commands:
        return None
    try:
        every = monitor.run("query-chardev")
    except (client.QmpError, client.Lost, answers.Strange):
        return None
    for one in every:
        named = _path(one["filename"])
        with suppress(OSError, quiescing.NotFrozen):
            if named is not None and os.path.samefile(_from_here(monitor.pid, named), path):
                return one
    return None
