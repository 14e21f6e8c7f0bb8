# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume on another share that holds the same points as its source, kept up by sending what is missing.

First it is found out which points both sides have (see :mod:`plan.replicas`). Then the source's points that are newer are sent, each on top of
the one before. The source is locked for reading, and changed only for a moment, to record identities of points that have none.
"""

from __future__ import annotations

from dataclasses import replace

from .. import errors, model
from ..plan import replicas
from ..store.metadata.points import state_of
from . import capacity, replication, snapshots, transaction, up_to_date, workspace
from .options import Options
from .up_to_date import ReplicaRequest

_ATTEMPTS = 3  # to find the source as it was a moment ago


def replicate(request: ReplicaRequest, options: Options) -> transaction.Outcome:
    """Bring a replica up to date. :raises Conflict: something there is in the way. :raises VerifyFailed: what was sent is not what is there."""
    foretold = _checked(request, options)
    if foretold is not None:
        return foretold
    known = up_to_date.unchanged(request, options)
    if known is not None:
        return known
    ended: list = []
    for _attempt in range(_ATTEMPTS):
        with workspace.Workspace(options) as work:
            task = replication.Replication.locked(work, request, ended)
            if task.replica.volume is None:
                capacity.require_placeable(task.replica.share, request.name)
            unknown = {} if options.check else task.unidentified()
            if not unknown and (options.check or task.source.present.replicated or not task.source.points):
                return task.run()
            before, ended = state_of(work.directory(task.source.share), task.source.present), task.recovered
        _identify(request, task.source.share, before, unknown, options)
    raise errors.LockTimeout(f"volume {request.volume}", "other tasks change its snapshots all the time", "run the task again")


def verify(request: ReplicaRequest, options: Options) -> transaction.Outcome:
    """Compare all points that both sides have. Nothing is changed. :raises VerifyFailed: they differ."""
    foretold = _checked(request, options)
    if foretold is not None:
        return replace(foretold, changed=False, actions=[], told=up_to_date.told_of(0))
    with workspace.Workspace(options) as work:
        return replication.Replication.locked(work, request).verify()


def _checked(request: ReplicaRequest, options: Options) -> transaction.Outcome | None:
    """What check mode says where the source or the share of the replica is not there yet; None where both are.

    :raises InvalidName: of a volume. :raises ShareNotMounted: the share of the replica cannot be read.
    """
    model.check_volume_name(request.volume, "give each volume an item of volumes")
    model.check_volume_name(request.name)
    if options.assume:
        from . import assumptions

        source, target = assumptions.missing_volume(request.candidates, request.volume, options), assumptions.reachable(request.target, options)
        target.require_all()
        if source is not None or not target.shares:
            share = (target.shares or request.target.missing)[0]
            if source is None:
                from . import foretold_replicas

                return foretold_replicas.to_missing_share(request, share, options)
            after = assumptions.told_of(share, assumptions.assumed_volume(request.name), options)
            return transaction.Outcome(request.name, True, [], [], None, after, told=up_to_date.told_of(0))
    request.target.require_all()
    return None


def _identify(request: ReplicaRequest, share: model.Share, before: tuple, points: dict[str, str | None], options: Options) -> None:
    """Record identities of the source's points, if the volume is still as it was (see :func:`state_of`). Nobody watches this."""
    is_first = "begun" not in options.task.kept
    with workspace.Workspace(options) as work:
        work.locks.take([(share, request.volume)])
        volume, _recovered = snapshots.recovered_volume(work, share, request.volume)
        if state_of(work.directory(share), volume) == before:
            transaction.carry_out(work, share, replicas.identify(volume, points), [])
    if is_first:
        options.task.kept.pop("begun", None)
