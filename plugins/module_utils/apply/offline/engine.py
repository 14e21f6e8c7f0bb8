# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The offline engine. It works on images as files that nobody has open. QEMU's lock bytes on them keep others away."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, Sequence

from ... import errors, model
from ...plan import intent as intents
from ...plan import steps
from ...plan.abilities import OFFLINE, Abilities
from ...plan.plan import Plan
from ...plan.resumption import ObservedFile
from ...store import qcow2
from ...store.files import second_names
from ...store.files.directory import ShareDirectory
from ...store.metadata import info_file
from .. import engine
from . import guard as guards
from .guard import Guard

if TYPE_CHECKING:
    from ... import attachments


def _written(plan: Plan) -> frozenset[str]:
    """Existing files that a plan writes to. To those that it removes or replaces it does not."""
    return frozenset(file for step in plan.steps if not isinstance(step, (steps.Unlink, steps.WriteSeed)) for file in step.touches())


class OfflineEngine:
    """The :class:`engine.Engine` for images that nobody has open."""

    name = OFFLINE
    abilities = Abilities()
    attachment: attachments.Attachment | None = None
    agent: str | None = None

    def __init__(self, directory: ShareDirectory, terms: engine.Terms) -> None:
        self._directory, self._terms = directory, terms

    def session(self, plan: Plan, source: engine.CopySource | None = None) -> engine.Session:
        """See :meth:`engine.Engine.session`. It takes the lock bytes of the images that the steps touch."""

        def hold(guard: Guard) -> None:
            guard.take(self._present(guards.taken(plan)), _written(plan))
            guards.check_unwritten(self._directory, plan, self._terms.assume_unused)

        with self._naming_the_machine():
            return self._begin(plan, hold, source, on_record=plan.intent)

    def session_to_end(self, resumption: intents.Resumption) -> engine.Session:
        """See :meth:`engine.Engine.session_to_end`. Others may still read images that the steps do not touch."""

        def hold(guard: Guard) -> None:
            guard.take(self._present(resumption.closed), _written(resumption.plan))
            guard.watch(self._present(resumption.unwritten))

        with self._naming_the_machine(resumption):
            return self._begin(resumption.plan, hold, None, on_record=True)

    def _begin(self, plan: Plan, hold: Callable[[Guard], None], source: engine.CopySource | None, on_record: bool) -> engine.Session:
        """:param hold: takes the files that others may not use. :param on_record: there is an intent, so that a revert may give up data."""
        from ...plan.room import given_up  # both are imported late, because a prediction does not need them
        from .session import OfflineSession

        guard = Guard(self._directory, self._terms.assume_unused)
        try:
            hold(guard)
        except BaseException:
            guard.drop_all()
            raise
        pace = self._terms.pace(f"volume {plan.volume} on {self._directory.share.label}", plan.steps, self._directory.waiting.sleep)
        return OfflineSession(self._directory, self._terms, plan.volume, guard, source, given_up(plan.steps) if on_record else (), pace)

    def _present(self, files: Iterable[str]) -> list[str]:
        return guards.existing(self._directory, files)

    def barrier(self, sessions: Sequence[engine.Session]) -> None:
        """Nothing to do: nobody uses the images, and the next user of the volume opens what ``.info`` names."""

    def withdraw(self, sessions: Sequence[engine.Session]) -> bool:
        """There is no machine: what was decided for a group stays, and the next task finishes it."""
        return False

    def written(self, volume: model.Volume, files: Sequence[str]) -> str | None:
        """Nobody can be asked."""
        return None

    def thaw(self, agent: str, volume: str) -> None:
        """There is no guest."""

    def quiesced(self, volume: str) -> engine.Quiesced:
        """There is no guest."""
        return engine.UNUSED

    def predict(self, plan: Plan, foretold: bool = False) -> None:
        """See :meth:`engine.Engine.predict`. What is there can be asked, and what is only predicted nobody has open."""
        chain = plan.before.files if plan.before else ()
        with self._naming_the_machine():
            touched = sorted({file for step in plan.steps for file in step.touches()} & set(chain))
            second_names.require_one_name(self._directory, plan.volume, touched)
            for file in sorted(guards.taken(plan) & set(chain)):
                guards.check_unused(self._directory, file, self._terms.assume_unused)
            guards.check_unwritten(self._directory, plan, self._terms.assume_unused)

    def predict_end(self, resumption: intents.Resumption) -> None:
        """See :meth:`engine.Engine.predict_end`."""
        with self._naming_the_machine(resumption):
            guards.check_resumption(self._directory, resumption, self._terms.assume_unused)

    def require_unused(self, file: str, check_only: bool) -> None:
        """See :meth:`engine.Engine.require_unused`. Without ``check_only`` the lock bytes of ``file`` are taken, and released at once."""
        share = self._directory.share
        if check_only or not share.locks_visible or not os.access(share.path, os.W_OK):
            guards.check_unused(self._directory, file, self._terms.assume_unused)
        elif self._directory.root.status(file) is not None:
            with Guard(self._directory, self._terms.assume_unused) as guard:
                guard.take([file], ())

    def close(self) -> None:
        """Nothing to do."""

    def observe(self, volume: str, intent: intents.Intent) -> intents.ObservedState:
        """See :meth:`engine.Engine.observe`. It reads ``.info`` and the headers of the files."""
        info = info_file.read(self._directory, volume)
        files = {file: found for file in intent.files for found in [self._observed_file(file)] if found is not None}
        written = self._directory.root.status(model.info_name(volume))
        return intents.ObservedState(info.active if info else None, info.snapshots if info else (), files, written.st_mtime_ns if written else 0)

    def _observed_file(self, file: str) -> ObservedFile | None:
        status = self._directory.root.status(file)
        if status is None:
            return None
        try:
            with self._directory.root.opened(file) as fd:
                header = qcow2.read_header(fd)
        except qcow2.Qcow2Error:
            return ObservedFile(status.st_ino, status.st_size, changed=status.st_mtime_ns)
        backing = os.path.basename(header.backing_file) if header.backing_file else None
        return ObservedFile(status.st_ino, status.st_size, header.size, backing, status.st_mtime_ns)

    @contextmanager
    def _naming_the_machine(self, resumption: intents.Resumption | None = None) -> Iterator[None]:
        """A context in which an error about an image that is open says that nobody listens at the monitor that the user named, and names
        the machine which an interrupted task worked with."""
        try:
            yield
        except errors.InUse as error:
            then, now = resumption.attachment if resumption is not None else None, self._terms.attachment
            if then is None and now is None:
                raise
            from ..openers import nobody_at  # late: hardly any task needs it

            problem = error.problem + (f", and {nobody_at(now.monitor)}" if now is not None and now.monitor else "")
            if then is None:
                raise errors.InUse(error.subject, problem, "give the monitor of the machine that uses it, or stop that machine first") from error
            problem += f", and a task was interrupted that worked with {then}"
            raise errors.InUse(error.subject, problem, "run the task with that attachment, or stop the machine first") from error
