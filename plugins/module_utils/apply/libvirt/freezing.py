# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest of a domain: how it is frozen and goes on. libvirt has the channel of its agent, and is asked.

libvirt's own way to freeze a guest for a snapshot (the flag QUIESCE) is not used. It begins no process that thaws a guest if libvirt dies in
between, nobody can look after the switch whether the guest was frozen still, and a guest that cannot be thawed is not told of.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Callable

from ... import errors
from .. import quiescing, turns
from . import connection, definition
from .domain import process_of

if TYPE_CHECKING:
    import socket

ANSWER, FREEZE, THAW = 5, 20, 10  # seconds for the agent to answer a question, to freeze, to thaw; after five to say that it is there
_ON_THE_WAY = 2.0  # seconds after its death in which a command of a task may still reach a guest
_LOOK = 0.25  # seconds between two looks in that time
_LONGEST_SHOWN = 300  # characters of words in a message that a guest may have chosen
_HELD = "state change lock"  # libvirt's words, where another command has the agent for half a minute
_SILENT = "not responding"  # where it does not answer
_DECLINES = "execute QEMU agent command"  # where it refuses


class DomainFreezer:
    """The :class:`quiescing.Freezer` of a domain that runs.

    :param uri: of its libvirt. :param patience: seconds to wait for another task that has it frozen.
    """

    def __init__(self, domain: connection.Domain, uri: str, patience: float) -> None:
        self.place = ""
        self._domain: connection.Domain | None = domain  # None: the connection was lost
        self._uuid, self._uri, self._patience = domain.uuid, uri, patience
        self._own: connection.Connection | None = None
        self._turn: socket.socket | None = None

    def require_answer(self) -> None:
        """See :meth:`quiescing.Freezer.require_answer`."""
        if self.place:
            return
        try:
            self._turn = turns.take(f"agent-{self._uuid}", "guest", self._patience)
        except errors.InUse as error:
            raise quiescing.NotFrozen("the process of an earlier task still tells the guest to go on") from error
        _require_channel(self._reached())
        if self._asked(lambda domain: domain.is_frozen(ANSWER)):
            raise quiescing.NotFrozen("it is frozen already, by somebody else")
        self.place = f"libvirt (domain {self._uuid})"

    def freeze(self) -> None:
        """See :meth:`quiescing.Freezer.freeze`."""
        if self._asked(lambda domain: domain.freeze(FREEZE)) < 1:
            raise quiescing.NotFrozen("its guest agent has frozen no file system")

    def require_frozen(self) -> None:
        """See :meth:`quiescing.Freezer.require_frozen`."""
        if not self._asked(lambda domain: domain.is_frozen(ANSWER)):
            raise quiescing.NotFrozen("it went on by itself before its disks were switched, or nobody knows when (its guest agent says that it is thawed)")

    def thaw(self) -> bool:
        """See :meth:`quiescing.Freezer.thaw`."""
        return quiescing.let_go_on(self._let_go_on, THAW)

    def thaw_at_last(self) -> None:
        """See :meth:`quiescing.Freezer.thaw_at_last`. It keeps the turn, so that it thaws nobody else's guest."""
        self._domain = None  # of a connection that the task may have left in the middle of a call
        quiescing.let_go_on_at_last(self._let_go_on_for_good, self._kept)

    def close(self) -> None:
        """See :meth:`quiescing.Freezer.close`."""
        self._disconnect()
        if self._turn is not None:
            self._turn.close()

    # -- attempts to let it go on ------------------------------------------------------------------------------------

    def _let_go_on(self, limit: float) -> None:
        """An attempt, see :func:`quiescing.let_go_on`."""
        try:
            self._asked(lambda domain: domain.thaw(max(1, min(THAW, int(limit)))))
        except quiescing.NotFrozen:
            if not self._is_gone():
                raise

    def _let_go_on_for_good(self, limit: float) -> None:
        """The same after the death of the task. Its command that freezes may be on its way, and reach the guest after the one that thaws."""
        self._let_go_on(limit)
        until = time.monotonic() + _ON_THE_WAY
        while time.monotonic() < until and not self._is_gone():
            time.sleep(_LOOK)
            if self._asked(lambda domain: domain.is_frozen(ANSWER)):
                self._let_go_on(limit)

    def _kept(self) -> int | None:
        """What an attempt needs: nothing but the turn, because it makes a new connection."""
        self._disconnect()
        return self._turn.fileno() if self._turn is not None else None

    def _is_gone(self) -> bool:
        """Whether there is no guest any more, because the domain is off."""
        try:
            return self._reached().state().state == connection.OFF
        except connection.Refused as error:
            return error.is_absent
        except (connection.Unreachable, errors.StorageError):
            self._domain = None
            return process_of(self._uuid) is None  # without libvirt only its process tells

    # -- what libvirt is asked ---------------------------------------------------------------------------------------

    def _asked(self, question: Callable[[connection.Domain], int]) -> int:
        """:raises NotFrozen: there is no answer."""
        try:
            return _answer(question, self._reached())
        except connection.Refused as error:
            raise quiescing.NotFrozen(_shown(error.text)) from error
        except (connection.Unreachable, errors.StorageError) as error:
            self._domain = None
            raise quiescing.NotFrozen(f"libvirt cannot be reached ({_shown(str(error))})") from error

    def _reached(self) -> connection.Domain:
        """The domain, by a new connection if one was lost. :raises Refused: it is absent. :raises Unreachable, StorageError: there is no libvirt."""
        if self._domain is None:
            self._disconnect()
            self._own = connection.separate_connection(self._uri)
            self._domain = self._own.find(self._uuid)
            if self._domain is None:
                raise connection.Refused("there is no such domain any more", is_absent=True)
        return self._domain

    def _disconnect(self) -> None:
        """End the connection that took the place of a lost one."""
        if self._own is not None:
            self._own.close()
            self._own = self._domain = None


def thaw_left(domain: connection.Domain, recorded: str, subject: str, warn: Callable[[str], None]) -> None:
    """Let a guest go on that a task may have left frozen which was killed together with its guardian.

    :param domain: the one that the user names. :param recorded: how the task has reached the guest. It is only named: who can write to the
        share has no say in where tasks connect. :param subject: how warnings name the volume.
    """
    try:
        _require_channel(domain)
        if _answer(lambda one: one.is_frozen(ANSWER), domain):
            _answer(lambda one: one.thaw(THAW), domain)
            warn(f"{subject}: a task was interrupted that had frozen the guest, and left it so; it goes on now")
    except (quiescing.NotFrozen, connection.Refused) as error:
        text = f"{subject}: a task was interrupted that was going to freeze the guest, through {recorded}"
        warn(f"{text}. It may be frozen still: {_shown(str(error))}")


def _require_channel(domain: connection.Domain) -> None:
    """:raises NotFrozen: nobody in the guest can be asked."""
    state = definition.agent_channel(domain.xml(False))
    if state is None:
        raise quiescing.NotFrozen(f"its definition has no channel for a guest agent (a virtio channel with the name {definition.AGENT})")
    if state == "disconnected":
        raise quiescing.NotFrozen("no guest agent runs in it")


def _answer(question: Callable[[connection.Domain], int], domain: connection.Domain) -> int:
    """:raises NotFrozen: the agent does not answer, or refuses. :raises Refused: libvirt does, for another reason."""
    try:
        return question(domain)
    except connection.Nonsense as error:
        raise quiescing.Declined(error.text) from error
    except connection.Refused as error:
        if _HELD in error.text:
            raise quiescing.NotFrozen(f"another program has a command to its guest agent under way (libvirt says: {_shown(error.text)})") from error
        if _SILENT in error.text:
            raise quiescing.NotFrozen(f"its guest agent does not answer in time (libvirt says: {_shown(error.text)})") from error
        if _DECLINES in error.text:
            raise quiescing.Declined(f"its guest agent refuses (libvirt says: {_shown(error.text)})") from error
        raise


def _shown(text: str) -> str:
    return quiescing.shown(text, _LONGEST_SHOWN)
