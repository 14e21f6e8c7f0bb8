# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change would do to shares: the verbs of :mod:`run_mode` and its locks, which change nothing and remember what they predict.

The memory is the task's, so that later items meet what earlier ones would leave. Imported in check mode only.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Collection, Iterable, Sequence

from .. import errors, model
from ..apply.engine import predict_end
from ..apply.interrupted import Interrupted, forget_groups
from ..plan import grouping
from ..plan.plan import Plan
from . import applying, dependency_check, locking, report, run_mode
from .candidates import Candidates

if TYPE_CHECKING:
    from ..apply.engine import CopySource, Engine
    from . import shapes, workspace


class PredictedLocks(locking.Locks):
    """Takes no locks, and fails where they could not be taken: because nothing may be written, or because another task has them."""

    def take(self, wanted: Iterable[locking.Name], shared: Iterable[locking.Name] = ()) -> None:
        """Wait for other tasks as long as the run would. What they do meanwhile is none of what this task would find.

        :raises ShareNotWritable: this user may not write to one of the shares. :raises LockTimeout: another task held a lock all the time.
        """
        self._note(wanted, shared)
        for share in {share for share, _name in self._names}:
            if not os.access(share.path, os.W_OK):
                remedy = "check the export, the mount options and the permissions of the share"
                raise errors.ShareNotWritable(f"share {share.source}", "this user may not write to it", remedy)
        for share, name in sorted(self._names, key=lambda pair: (pair[0].path, pair[1])):
            self._lock(self._directory(share), name, reading=(share, name) not in self._wanted).require_free()

    def take_families(self, wanted: Iterable[locking.Name], reading: Iterable[locking.Name] = ()) -> None:
        """As of :class:`Locks`, asked once."""
        own, others = set(wanted), set(reading)
        self.take(own, others | self._ancestors_of(own | others))
        self._reading = others

    def add(self, share: model.Share, names: Iterable[str]) -> None:
        """Nothing that was read becomes untrue."""


class CheckMode(run_mode.RunMode):
    """The verbs of a change that is predicted."""

    checks_only = True

    def __init__(self, work: workspace.Workspace) -> None:
        super().__init__(work)
        self._predicted = work.options.task.predicted
        self._ended: set[tuple[str, str]] = set()  # volumes of which interrupted work would be ended first
        # Of volumes that the task predicts, because their images cannot be asked.
        self._in_use: dict[tuple[str, str], bool | None] = work.options.task.kept.setdefault("in use", {})

    def finish(self, share: model.Share, interrupted: Interrupted) -> None:
        """:raises InUse: the images that it needs are open."""
        self._ended |= {(share.path, resumption.plan.volume) for resumption in interrupted.resumptions}
        group = interrupted.group
        together = group.others if group is not None and group.end == grouping.FINISH else ()
        for resumption in (*interrupted.resumptions, *(resumption for other in together for resumption in other.resumptions)):
            plans = [one.plan for part in (interrupted, *(group.others if group is not None else ())) for one in part.resumptions]
            with applying.engine_for(self._work, share, mixed=group is not None, known=applying.volumes_of(plans)) as engine:
                predict_end(engine, resumption)

    def forget_groups(self, share: model.Share, name: str) -> tuple[str, ...]:
        """They stay."""
        return forget_groups(self._work.directory(share), name, check=True)

    def located(self, candidates: Candidates, name: str) -> model.Share | None:
        """Nobody is locked out, so that it is where it was."""
        return None

    def observe(self, share: model.Share, name: str, said: str | None = None, interrupted: Interrupted | None = None) -> model.Volume | None:
        """A volume as earlier items of the task, or the end of an interrupted one, would leave it."""
        if (share.path, name) in self._predicted:
            return self._predicted[(share.path, name)]
        if interrupted is not None and interrupted.resumptions:
            return interrupted.after
        return super().observe(share, name, said)

    def without_itself(self, volume: model.Volume) -> model.Volume:
        """Files that are only predicted to be gone still stand on the volume's own."""
        return replace(volume, dependents=tuple(pair for pair in volume.dependents if pair[0] != volume.name))

    def dependents(self, share: model.Share, volume: model.Volume, excluding: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
        """As earlier items would leave them."""
        found = super().dependents(share, volume, excluding)
        return dependency_check.as_predicted(self._predicted, share, volume.name, found)

    def apply(self, share: model.Share, plan: Plan, source: CopySource | None = None) -> None:
        """:raises InUse: an image is open that the plan needs for itself. :raises Conflict: no engine can carry it out."""
        with applying.engine_for(self._work, share, [plan]) as engine:
            self._predict(engine, share, plan)
            applying.note_quiesced(self._work, engine, [plan])

    def _predict(self, engine: Engine, share: model.Share, plan: Plan) -> None:
        engine.predict(plan, foretold=(share.path, plan.volume) in self._ended.union(self._predicted))

    def apply_together(self, share: model.Share, plans: Sequence[Plan]) -> None:
        """As of :meth:`apply`, of each plan."""
        with applying.engine_for(self._work, share, plans, are_group=True) as engine:
            for plan in plans:
                self._predict(engine, share, plan)
            applying.note_quiesced(self._work, engine, plans)

    def described(self, share: model.Share, volume: model.Volume) -> shapes.VolumeResult:
        """As of :class:`RunMode`. For a volume that is predicted here, ``in_use`` is remembered."""
        if (share.path, volume.name) in self._in_use:
            return report.volume(volume, share, self._in_use[(share.path, volume.name)])
        return super().described(share, volume)

    def described_after(self, share: model.Share, plan: Plan, before: shapes.VolumeResult | None) -> shapes.VolumeResult | None:
        """The volume as the plan would leave it."""
        key = (share.path, plan.volume)
        self._predicted[key] = plan.after
        self._in_use[key] = before["in_use"] if before else False
        return report.volume(plan.after, share, self._in_use[key]) if plan.after else None

    def volume_after(self, share: model.Share, planned: model.Volume) -> model.Volume:
        """What was planned."""
        return planned

    def still_there(self, recovered: list) -> frozenset[str]:
        """Files that the run will have removed by then."""
        return frozenset(step["file"] for one in recovered for step in one["steps"] if step["step"] == "unlink")

    def promised(self, share: model.Share, name: str) -> int:
        """What the room that was promised to it amounts to."""
        claim = self._work.options.task.capacity.standing(share, name)
        return claim.demand.at_once if claim is not None else 0
