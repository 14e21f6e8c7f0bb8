# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What both engines for machines do alike: they ask one guest whether it can be frozen, for all of its disks, and
read no image that is being written."""

from __future__ import annotations

from typing import Callable

from .. import errors
from ..plan.plan import Plan
from . import engine, merges, quiescing


class MachineEngine:
    """The part of an :class:`engine.Engine` that has to do with its machine's guest."""

    def __init__(self, terms: engine.Terms) -> None:
        self._terms = terms
        self._quiescing: quiescing.Quiescing | None = None  # of the guest, once it was asked whether it can be frozen
        self._taken: set[str] = set()  # volumes of which snapshots are taken with its help

    @property
    def agent(self) -> str | None:
        """See :attr:`engine.Engine.agent`."""
        return self._quiescing.place if self._quiescing is not None else None

    def quiesced(self, volume: str) -> engine.Quiesced:
        """See :meth:`engine.Engine.quiesced`."""
        return self._quiescing.outcome if self._quiescing is not None and volume in self._taken else engine.UNUSED

    def close(self) -> None:
        """See :meth:`engine.Engine.close`. Here the guest is given up."""
        if self._quiescing is not None:
            self._quiescing.close()

    def _ask_guest(self, plan: Plan, subject: str, freezer: Callable[[], quiescing.Freezer]) -> None:
        """Ask the guest whether it can be frozen, before anything is changed. Disks of one machine have one guest.

        :param freezer: makes what reaches it. :raises InUse: it does not answer, and must.
        """
        if self._terms.quiesce == engine.NEVER or not merges.takes_snapshot(plan):
            return
        self._taken.add(plan.volume)
        if self._quiescing is None:
            self._quiescing = quiescing.Quiescing(subject, freezer(), self._terms.quiesce == engine.REQUIRED, self._terms.warn)
            self._quiescing.require_answer()


def require_readable(files: engine.Engine, file: str, check_only: bool) -> None:
    """Check that nobody has a file open that is to be read: what a machine writes at present cannot be.

    :param files: the engine that reads it. :raises InUse: somebody has it open.
    """
    try:
        files.require_unused(file, check_only)
    except errors.InUse as error:
        raise errors.InUse(error.subject, error.problem, "take a snapshot with attachment and use that as the source, or stop the machine") from error
