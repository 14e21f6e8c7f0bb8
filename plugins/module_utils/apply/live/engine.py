# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine for images that a running machine has open. The machine's own QEMU does the work, told through its monitor (QMP)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from ... import errors
from ...plan.abilities import QMP, Abilities
from ...plan.plan import CREATE_SNAPSHOT, Plan
from ...store.files.directory import ShareDirectory
from .. import machine_engine, machine_session, merges, openers, turns
from . import client, possible
from .graph import Seen
from .machine import Machine, told

if TYPE_CHECKING:
    from ... import model
    from ...plan.intent import Intent, ObservedState, Resumption
    from ..engine import CopySource, Engine, Session, Terms
    from .session import LiveSession


class QmpEngine(machine_engine.MachineEngine):
    """The :class:`engine.Engine` for images that a machine has open.

    :param files: the engine that works on files. It makes new ones here, and tells what is on the share.
    :param monitor: the machine's. None: the engine is only asked what an interrupted task left.
    """

    name = QMP
    abilities = Abilities(truncates=False, replaces_active=False, removes=False, flattens=False, grows_over_longer=False)

    def __init__(self, directory: ShareDirectory, terms: Terms, files: Engine, monitor: client.Monitor | None = None) -> None:
        super().__init__(terms)
        self._directory, self._files, self._monitor = directory, files, monitor
        self._seen = Seen()
        self.attachment = terms.attachment

    def session(self, plan: Plan, source: CopySource | None = None) -> Session:
        """See :meth:`engine.Engine.session`. Here the machine must be ready for the plan."""
        machine = self._ready_for(plan, check_only=False)
        return self._begin(plan, machine, machine.volume.active.file)

    def session_to_end(self, resumption: Resumption) -> Session:
        """See :meth:`engine.Engine.session_to_end`. Here the machine must have one of the states that the interrupted task can have left.
        A volume that is not there is no machine's."""
        if resumption.plan.before is None:
            return self._files.session_to_end(resumption)
        return self._begin(resumption.plan, *self._ready_to_end(resumption, check_only=False))

    def _begin(self, plan: Plan, machine: Machine, top: str) -> LiveSession:
        """:param top: the file that the guest writes to."""
        from .session import LiveSession  # late: a prediction does not need it

        files = self._files.session(machine_session.without_steps(plan))
        return LiveSession(self._directory, plan, machine, files, top, self._terms.pace(machine.subject, plan.steps), self._terms.end)

    def barrier(self, sessions: Sequence[Session]) -> None:
        """See :meth:`engine.Engine.barrier`."""
        from .session import LiveSession

        for session in sessions:
            if isinstance(session, LiveSession):
                session.switch(self._quiescing)

    def withdraw(self, sessions: Sequence[Session]) -> bool:
        """See :meth:`engine.Engine.withdraw`. QEMU answers one after the other: what was sent before is done by then, or will never be."""
        from .session import LiveSession

        live = [session for session in sessions if isinstance(session, LiveSession)]
        return bool(live) and all(session.withdraw() for session in live)

    def written(self, volume: model.Volume, files: Sequence[str]) -> str | None:
        """See :meth:`engine.Engine.written`."""
        if self._monitor is None:
            return None
        machine = Machine(self._monitor, self._directory, volume, check_only=True, seen=self._seen)
        with told(machine):
            return machine.written(machine.require_able(), files)

    def thaw(self, agent: str, volume: str) -> None:
        """See :meth:`engine.Engine.thaw`."""
        if self._monitor is not None:
            from .freezing import thaw_left

            thaw_left(self._monitor, self._terms.agent, agent, f"volume {volume} on {self._directory.share.label}", self._terms.warn)

    def predict(self, plan: Plan, foretold: bool = False) -> None:
        """See :meth:`engine.Engine.predict`. If the volume's state is only predicted, the machine has another one. Where that differs only by
        snapshots that are still to be taken, it is asked all that does not depend on them."""
        if not foretold:
            self._ready_for(plan, check_only=True)
            return
        machine = self._machine(plan, check_only=True)
        self._require_guest(plan, machine)
        with told(machine):
            found = machine.foreseen()
            if found is not None:
                possible.require_mergeable(plan, machine, *found, drop_bitmaps=self._terms.drop_bitmaps)

    def predict_end(self, resumption: Resumption) -> None:
        """See :meth:`engine.Engine.predict_end`."""
        if resumption.plan.before is None:
            self._files.predict_end(resumption)
        else:
            self._ready_to_end(resumption, check_only=True)

    def require_unused(self, file: str, check_only: bool) -> None:
        """See :meth:`engine.Engine.require_unused`. A machine's present content cannot be read."""
        machine_engine.require_readable(self._files, file, check_only)

    def observe(self, volume: str, intent: Intent) -> ObservedState:
        """See :meth:`engine.Engine.observe`. What counts is what is on the share."""
        return self._files.observe(volume, intent)

    def close(self) -> None:
        """See :meth:`engine.Engine.close`."""
        super().close()
        if self._monitor is not None:
            self._monitor.close()

    # -- readiness ---------------------------------------------------------------------------------------------------

    def _machine(self, plan: Plan, check_only: bool) -> Machine:
        if self._monitor is None or plan.before is None:
            raise errors.InUse(f"volume {plan.volume}", "a machine may have it open, and no monitor is given", "give attachment")
        return Machine(self._monitor, self._directory, plan.before, check_only, self._seen)

    def _ready_for(self, plan: Plan, check_only: bool) -> Machine:
        machine = self._machine(plan, check_only)
        if any(step.touches() for step in plan.steps):
            with told(machine):
                graph = machine.require_ready(shape_only=plan.operation == CREATE_SNAPSHOT)  # it looks at the size once more before it switches
                possible.require_possible(plan, machine, graph, self._terms.drop_bitmaps)
                merges.require_own_files(plan, self._directory)
        self._require_guest(plan, machine)
        return machine

    def _require_guest(self, plan: Plan, machine: Machine) -> None:
        from .freezing import AgentFreezer  # late: hardly any task freezes a guest

        self._ask_guest(plan, machine.subject, lambda: AgentFreezer(machine.monitor, self._terms.agent, self._terms.patience))

    def _ready_to_end(self, resumption: Resumption, check_only: bool) -> tuple[Machine, str]:
        """The machine, and the file that its guest writes to.

        :raises InUse: the machine is not ready, or cannot do what is left.
        :raises NeedsRecovery: it is not the one that ``.info`` names, and no job is about to change that.
        """
        plan, machine = resumption.plan, self._machine(resumption.plan, check_only)
        self.abilities.require_for(plan)
        after = plan.after or machine.volume
        tops = [*resumption.images[:1], machine.volume.active.file, after.active.file]
        allowed = {*resumption.images, *machine.volume.files, *after.files}
        creates = plan.operation == CREATE_SNAPSHOT
        needed = after.files[1:] if creates else after.files
        if creates:
            tops += machine.volume.files[:2] + after.files[:2]
        with told(machine):
            top = machine.require_ready_to_end(tops, allowed, needed)
            if not creates and top not in (machine.volume.active.file, after.active.file):
                self._require_under_way(machine, top, after.active.file)
            if creates and not merges.is_taken(plan) and top != after.active.file:
                machine.refuse(f"the machine writes to {top}, which would be removed", "stop the machine, and run the task again")
            if not creates:
                possible.require_harmless(plan, machine, machine.graph(), top)
                merges.require_own_files(plan, self._directory)
        return machine, top

    def _require_under_way(self, machine: Machine, top: str, new: str) -> None:
        """The guest writes to a file that ``.info`` does not name any more. That is right only while the job rests that switches it."""
        name = machine.job_name("switch", top, new)
        job, graph = machine.monitor.job(name), machine.graph()
        if job is not None and job["status"] == "pending":
            old, base = machine.node(graph, top), machine.node(graph, new)
            machine.require_proof(graph, name, (old.name, base.name), old.name)
        else:
            raise errors.NeedsRecovery(
                machine.subject,
                f"the machine writes to {top}, and the volume's data is in {new}: it was started on the wrong file",
                f"stop the machine, and decide which of the two counts; see docs/worst-day.md. Then start it on {new}",
            )


def attached(directory: ShareDirectory, terms: Terms, files: Engine, volumes: Sequence[model.Volume], are_group: bool) -> Engine | None:
    """The engine for the machine that the user names. None if nobody listens at that monitor.

    :param volumes: what is worked on, for ``terms.mixed``. If the machine has none of them open, the engine is ``files``.
    :param are_group: then that is an error.
    :raises InUse: nobody listens there and the share cannot show whether somebody has the images open, or the monitor does not greet.
    """
    path = terms.attachment.monitor if terms.attachment is not None else ""
    monitor = client.connect(path, turns.take_turn(path, terms.patience), terms.patience)
    if monitor is None and not directory.share.locks_visible:
        raise errors.InUse(
            f"share {directory.share.label}",
            f"{openers.nobody_at(path)}, and this file system cannot tell whether somebody has the images open",
            "name the monitor of the machine; or make sure that no machine runs, leave attachment out and say assume_unused: true",
        )
    if monitor is None:
        return None
    if not terms.mixed:
        return QmpEngine(directory, terms, files, monitor)
    from .together import MixedEngine  # late: there is hardly ever a group

    engine = MixedEngine(directory, terms, files, monitor)
    try:
        if not volumes or engine.has_some(volumes, required=are_group):
            return engine
    except BaseException:
        engine.close()
        raise
    engine.close()
    return files
