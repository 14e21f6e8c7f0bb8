# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is recorded of a volume on the share that it moves to: begun, complete, over. Pure functions."""

from __future__ import annotations

from dataclasses import replace

from .. import errors, model
from . import plan, steps

FINISH = "run the task with moved_from again"
GIVE_UP = "or remove the volume here (state: absent), or say recover: discard to keep what is here as it is"
LOST = "or, if the old share is lost, say recover: discard"


def unfinished(volume: model.Volume, place: str) -> errors.Conflict:
    """The error for a volume that is used while it is moved here. :param place: how messages name the share."""
    move = volume.move or model.Move("another share", None)
    subject = f"volume {volume.name} on {place}"
    if move.is_complete:
        problem = f"its move from {move.source} was interrupted after all had arrived here, and the volume there may be half removed"
        return errors.Conflict(subject, problem, f"{FINISH}, {LOST}")
    problem = f"its move from {move.source} was interrupted, so that not all of it is here; the volume there counts"
    return errors.Conflict(subject, problem, f"{FINISH}, {GIVE_UP}")


def describe(move: model.Move) -> dict:
    """``pending`` as modules return it: operation, started, snapshots (none), the share that it comes from (``source``), and the copy that
    ``counts``: "source", or "target" where the source is gone, or shows the same."""
    counts = "target" if move.is_complete else "source"
    return {"operation": "move", "started": move.started, "snapshots": [], "source": move.source, "counts": counts}


def record(volume: model.Volume, move: model.Move | None) -> plan.Plan:
    """Plan to record how far the move is; None: it is over."""
    return _recorded(volume, replace(volume, move=move))


def complete(volume: model.Volume, source: model.Volume) -> plan.Plan:
    """Plan to record that all of the source is here, with all that is said of it and of its snapshots.

    Which snapshots are received ones, and whether there are replicas of it, is as it was there.
    """
    originals = {str(one.point): one for one in source.snapshots if one.point is not None}
    snapshots = [replace(originals.get(str(own.point), own), file=own.file) for own in volume.snapshots]
    after = replace(
        volume,
        snapshots=tuple(snapshots),
        created=source.created,
        description=source.description,
        labels=dict(source.labels),
        received=source.received,
        replicated=source.replicated,
        move=None if volume.move is None else volume.move._replace(is_complete=True),
    )
    return _recorded(volume, after)


def _recorded(volume: model.Volume, after: model.Volume) -> plan.Plan:
    return plan.Plan(plan.PRESENT, volume.name, (steps.WriteRecord(volume.name),), volume, replace(after, adopted=True))
