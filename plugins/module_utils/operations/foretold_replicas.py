# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode before the share of a replica is there: what would be sent to an empty one."""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

from .. import model
from ..apply import engine
from ..plan.plan import Plan
from . import assumptions, replication, snapshots, sources, transaction, up_to_date, workspace
from .options import Options


def to_missing_share(request: up_to_date.ReplicaRequest, target: model.Share, options: Options) -> transaction.Outcome:
    """What a task says that sends a volume, which is there, to a share that is not there yet.

    :raises StorageError: as the task would for its source.
    """
    with workspace.Workspace(options) as work:
        source = snapshots.find(work, request.candidates, request.volume)
        if not sources.lock_for_reading(work, [], source, request.volume):
            work.locks.take_families([(source, request.volume)])
        volume, recovered = snapshots.recovered_volume(work, source, request.volume)
        task = _ToMissingShare(work, request, replication.held_side(work, source, volume), replication.Held(target, None), recovered)
        sent = task.run()
    if task.replica.volume is None:
        return sent  # no point matches
    foretold = assumptions.assumed_outcome(target, options, task.plans, None)
    return replace(foretold, recovered=recovered, told=sent.told)


class _ToMissingShare(replication.Replication):
    """Keeps the plans. Nothing is there that could be in the way, and nobody knows how much room there is."""

    def __init__(self, work: workspace.Workspace, request: up_to_date.ReplicaRequest, source: replication.Held, replica: replication.Held, ended: list) -> None:
        self.plans: list[Plan] = []
        super().__init__(work, request, source, replica, ended)

    def _do(self, plan: Plan, source: engine.CopySource | None = None) -> None:
        self.plans.append(plan)
        self.replica = replace(self.replica, volume=plan.after)

    def _require_free(self, file: str) -> None:
        pass

    def _require_room(self, count: int, freed: int = 0) -> None:
        pass

    def _told(self, sent: Sequence[str], had: Sequence[str]) -> transaction.Outcome:
        return replace(self._outcome, told=up_to_date.told_of(self._sent_bytes, sent))
