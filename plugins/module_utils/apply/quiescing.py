# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest whose file systems rest while its disks are switched. So a snapshot has all that its programs have written to files, and its file
system is clean.

How a guest is reached is the business of a :class:`Freezer`: an engine has one. This room has the order. A guardian is started before
the guest is asked to freeze. Whatever happens then, the guest is told to go on: by the task, by the guardian if the task
died, or by the next task if both died (see ``Intent.thaw``).
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, Protocol

from .. import errors
from . import engine, guardians

_REMEDY = "see that the guest agent runs in it and that nobody else uses its channel, or say quiesce: auto or false"
_CONTINUES = "a process goes on telling it to; look at the guest"
_HOLD = 10.0  # seconds for which a guardian keeps others waiting
_AT_LAST = 3600.0  # seconds after which a guardian gives up
_PAUSE = 0.5  # seconds between two attempts to let a guest go on
_REFUSALS = 5  # after so many answers that are none, a guest is left alone: it can be asked, and does not want


def shown(text: str, most: int) -> str:
    """Words that may be the guest's, harmless for a terminal and not more than so many characters."""
    harmless = "".join(letter if letter.isprintable() else "?" for letter in text[:most])
    return harmless + ("..." if len(text) > most else "")


class NotFrozen(Exception):
    """The guest cannot be frozen, or it is not known whether it is. The text says why."""


class Declined(NotFrozen):
    """The guest can be asked. It refuses, or what it says is no answer."""


class Freezer(Protocol):
    """Lets the file systems of one guest rest, and go on."""

    place: str  # how the guest is reached, which an intent records; empty before it has answered

    def require_answer(self) -> None:
        """Check that the guest can be asked and is not frozen. Nothing is changed. :raises NotFrozen: otherwise."""

    def freeze(self) -> None:
        """Let its file systems rest. :raises NotFrozen: they do not, or that is not known."""

    def require_frozen(self) -> None:
        """Check that they have rested until now. :raises NotFrozen: they have not, or that is not known."""

    def thaw(self) -> bool:
        """Let them go on. False: it is not known whether they do. A guest that is not frozen is none to worry about."""

    def thaw_at_last(self) -> None:
        """The same in the process of a guardian. It tries for long, and holds up nobody after a while."""

    def close(self) -> None:
        """Give up the connection."""


class Quiescing:
    """What a task asks of a guest, and what came of it: ``outcome``. In check mode that is what can be expected.

    :param subject: how messages name the machine's volumes. :param required: without the guest's help nothing is to be done.
    :param warn: takes sentences for the user.
    """

    def __init__(self, subject: str, freezer: Freezer, required: bool, warn: Callable[[str], None]) -> None:
        self._subject, self._freezer, self._required, self._warn = subject, freezer, required, warn
        self.outcome = engine.Quiesced(True)

    @property
    def place(self) -> str | None:
        """How the guest is reached if it is going to be frozen."""
        return self._freezer.place if self.outcome.quiesced and self._freezer.place else None

    def require_answer(self) -> None:
        """Ask the guest before anything is changed. :raises InUse: it does not answer, and must."""
        try:
            self._freezer.require_answer()
        except NotFrozen as error:
            self._give_up(str(error))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """A context in which the guest is frozen, if it can be. It is as short as can be: the guest's programs wait.

        :raises InUse: it cannot be frozen, and must be. :raises ToolFailed: no guardian can be started.
        """
        guardian = self._freeze() if self.outcome.quiesced else None
        try:
            yield
            if guardian is not None:
                self._look_again()
        finally:
            if guardian is not None:
                self._thaw(guardian)

    def close(self) -> None:
        """Give up the connection to the guest."""
        self._freezer.close()

    def _freeze(self) -> guardians.GuardianProcess | None:
        """The guardian of the frozen guest. None if it is not frozen."""
        try:
            guardian = guardians.GuardianProcess(self._subject, self._freezer.thaw_at_last)
        except errors.ToolFailed as error:
            if self._required:
                raise
            self.outcome = engine.Quiesced(False, error.problem)
            return None
        try:
            self._freezer.freeze()
            return guardian
        except NotFrozen as error:
            self._thaw(guardian)
            self._give_up(str(error))
            return None
        except BaseException:
            self._thaw(guardian)
            raise

    def _look_again(self) -> None:
        """After the switch: some agents let a guest go on by themselves after some seconds."""
        try:
            self._freezer.require_frozen()
        except NotFrozen as error:
            self.outcome = engine.Quiesced(False, str(error))
            if self._required:
                self._warn(f"{self._subject}: the snapshot is taken, and the guest was not frozen for certain at that instant: {error}")

    def _thaw(self, guardian: guardians.GuardianProcess) -> None:
        if self._freezer.thaw():
            guardian.dismiss()
            return
        guardian.let_decide()
        self._warn(f"{self._subject}: the guest may be frozen still, because its agent has not said that it goes on; {_CONTINUES}")

    def _give_up(self, reason: str) -> None:
        if self._required:
            raise errors.InUse(self._subject, f"the guest cannot be frozen: {reason}", _REMEDY)
        self.outcome = engine.Quiesced(False, reason)


# -- how a guest is told to go on --------------------------------------------------------------------------------------

Attempt = Callable[[float], object]  # tells it to, within so many seconds. It raises NotFrozen if it is not known that the guest goes on


def let_go_on(attempt: Attempt, limit: float) -> bool:
    """Tell a guest to go on until it says that it does. False: it does not, for so many seconds."""
    until, declined = time.monotonic() + limit, 0
    while True:
        try:
            attempt(max(_PAUSE, until - time.monotonic()))
            return True
        except Declined:
            declined += 1
        except NotFrozen:
            pass
        if declined >= _REFUSALS or time.monotonic() > until:
            return False
        time.sleep(_PAUSE)


def let_go_on_at_last(attempt: Attempt, kept: Callable[[], int | None]) -> None:
    """The same in the process of a guardian. What goes on for long has neither the locks of the task nor its machine.

    :param kept: the descriptor that is needed for an attempt.
    """
    if let_go_on(attempt, _HOLD):
        return
    with suppress(OSError):
        if os.fork():
            return  # who waits for this process need not wait for that one
    _keep_only(kept())
    let_go_on(attempt, _AT_LAST)


def _keep_only(kept: int | None) -> None:
    """Close all descriptors but the standard ones and this one, and be in no directory that somebody may want to unmount."""
    os.chdir("/")
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            with suppress(OSError):
                os.close(int(name))
