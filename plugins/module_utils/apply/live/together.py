# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes of which a machine has some open, and nobody the others: the disks of the machine get their snapshots at one instant."""

from __future__ import annotations

from typing import Iterable, Sequence

from ... import errors, model
from ...plan.plan import Plan
from ...plan.resumption import Resumption
from ..engine import CopySource, Session
from .engine import QmpEngine
from .machine import Machine, told
from .session import LiveSession


class MixedEngine(QmpEngine):
    """The engine for running machines, for such volumes. Of those that the machine does not have open it works on the files, and their lock
    bytes show that nobody has."""

    def session(self, plan: Plan, source: CopySource | None = None) -> Session:
        """See :meth:`engine.Engine.session`."""
        return super().session(plan, source) if self._is_open(plan) else self._files.session(plan, source)

    def session_to_end(self, resumption: Resumption) -> Session:
        """See :meth:`engine.Engine.session_to_end`."""
        if self._is_open(resumption.plan, resumption.images):
            return super().session_to_end(resumption)
        return self._files.session_to_end(resumption)

    def predict(self, plan: Plan, foretold: bool = False) -> None:
        """See :meth:`engine.Engine.predict`."""
        if self._is_open(plan):
            super().predict(plan, foretold)
        else:
            self._files.predict(plan, foretold)

    def predict_end(self, resumption: Resumption) -> None:
        """See :meth:`engine.Engine.predict_end`."""
        if self._is_open(resumption.plan, resumption.images):
            super().predict_end(resumption)
        else:
            self._files.predict_end(resumption)

    def barrier(self, sessions: Sequence[Session]) -> None:
        """See :meth:`engine.Engine.barrier`. One transaction of QEMU's switches all disks or none. If QEMU refuses it, it has switched none."""
        live = [session for session in sessions if isinstance(session, LiveSession)]
        if len(live) < 2:
            super().barrier(live)
            return
        machine = live[0].machine
        with told(machine):
            todo = [(session, action) for session in live for action in [session.next_overlay()] if action is not None]
            if todo and len(todo) < len(live):
                machine.refuse("the guest uses the overlays of a part of its group only", "run the task again")
            if todo:
                actions = [{"type": "blockdev-snapshot", "data": action._asdict()} for _session, action in todo]
                with LiveSession.resting(live, self._quiescing):
                    machine.monitor.run("transaction", actions=actions)
            for session, action in todo:
                session.require_used(action)
            for session in live:
                session.drop()

    def has_some(self, volumes: Sequence[model.Volume], required: bool) -> bool:
        """Whether the machine has an image of one of these volumes open. :raises InUse: it has not, and that is ``required``."""
        found = any(self._has(volume, volume.own_files) for volume in volumes)
        if required and not found:
            raise errors.InUse(
                f"group of {len(volumes)} volumes",
                f"{self.attachment} does not have the images of any of them open",
                "give the monitor of the machine that uses them, or leave attachment out if nobody does",
            )
        return found

    def _has(self, volume: model.Volume, files: Iterable[str]) -> bool:
        if self._monitor is None:
            return False
        machine = Machine(self._monitor, self._directory, volume, check_only=True, seen=self._seen)
        with told(machine):
            graph = machine.require_able(shape_only=True)
            return any(machine.images(graph, file) for file in files)

    def _is_open(self, plan: Plan, images: Iterable[str] = ()) -> bool:
        """Whether the machine has an image of the plan's volume open.

        :param images: further files of it. :raises InUse: it does not, and the share cannot show whether somebody else has.
        :raises ToolMissing: QEMU cannot do what is needed.
        """
        if plan.before is None:
            return False
        if self._has(plan.before, {*plan.before.own_files, *images}):
            if self._monitor is not None and "transaction" not in self._monitor.commands:
                raise errors.ToolMissing(f"QEMU behind {self._monitor.path}", "it lacks transaction", "use QEMU 7.2 or newer")
            return True
        if not self._directory.share.locks_visible:
            raise errors.InUse(
                f"volume {plan.volume} on {self._directory.share.label}",
                f"{self.attachment} does not have it open, and this file system cannot tell whether somebody else has",
                "work on it by itself, without attachment",
            )
        return False
