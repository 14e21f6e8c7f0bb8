# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on a domain that is off: on the files, and then on its definition, so that the next start finds the volume's active image."""

from __future__ import annotations

from typing import Callable, ContextManager, Iterable, Mapping

from ... import errors
from ...plan import intent_fields
from ...plan.plan import CREATE_SNAPSHOT, Plan
from ...plan.steps import Pull, Step, WriteInfo
from ...store.metadata import records
from .. import engine
from . import definition, domain


class ShutOffSession:
    """The :class:`engine.Session` for a domain that is off. Its images are held by their lock bytes meanwhile, so that it cannot be started.

    :param files: the session that works on the files. :param known: all files that the definition may name.
    """

    def __init__(self, machine: domain.VolumeDomain, plan: Plan, files: engine.Session, known: tuple[str, ...]) -> None:
        self._machine, self._plan, self._files, self._known = machine, plan, files, known

    def __enter__(self) -> ShutOffSession:
        self._files.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._files.__exit__(*exc)

    def can(self, step: Step) -> bool:
        """See :meth:`engine.Session.can`."""
        return self._files.can(step)

    def do(self, step: Step) -> None:
        """See :meth:`engine.Session.do`. Where no ``.info`` follows, the definition may still name files below that are not there any more."""
        self._files.do(step)
        if isinstance(step, Pull) and not any(isinstance(one, WriteInfo) for one in self._plan.steps):
            self._follow(lambda _phase: None)

    def prepared(self, steps: Iterable[Step]) -> ContextManager[Mapping[str, records.Disk]]:
        """See :meth:`engine.Session.prepared`."""
        return self._files.prepared(steps)

    def closing(self, file: str) -> ContextManager[None]:
        """See :meth:`engine.Session.closing`."""
        return self._files.closing(file)

    def settle(self, announce: Callable[[str], None]) -> None:
        """See :meth:`engine.Session.settle`. All data is durable by now."""
        self._files.settle(announce)
        self._follow(announce)

    def withdraw(self) -> bool | None:
        """See :meth:`engine.Session.withdraw`."""
        return self._files.withdraw()

    def _follow(self, announce: Callable[[str], None]) -> None:
        """Let the definition name the active image that the volume is going to have, unless it does."""
        after = self._plan.after
        if after is None:
            return
        machine, active = self._machine, after.active
        with domain.told(machine.subject, machine.attachment):
            disk = machine.disk(True, self._known)
            image = disk.images[0]
            is_same = machine.file_of(image.path, [active.file]) is not None
            if is_same and image.format == active.format and len(disk.images) == 1:
                return
            if not is_same and self._plan.operation != CREATE_SNAPSHOT:
                announce(intent_fields.SWITCHING)
            machine.domain.define(definition.with_image(machine.domain.xml(True), disk.target, machine.path_like(image, active.file), str(active.format)))
            if machine.file_of(machine.disk(True, self._known).images[0].path, [active.file]) is None:
                raise errors.ToolFailed(
                    machine.subject, f"libvirt says that {machine.attachment} has {active.file} now, and it has not", "look at its definition"
                )
