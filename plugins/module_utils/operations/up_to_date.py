# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a replica, and whether it lacks anything: for most of them, on most days, nothing. That is seen without locks."""

from __future__ import annotations

from functools import partial
from typing import Callable, NamedTuple, Sequence

from ..apply.interrupted import find_interrupted
from ..errors import StorageError
from ..plan import replicas
from ..plan.desired import MAX_CHAIN, DesiredVolume
from ..plan.replicas import Point
from ..store.files.directory import ShareDirectory
from ..store.metadata.points import holds
from ..store.volumes import chains
from ..store.volumes.images import UseProbe
from ..store.volumes.look import Look
from . import report
from .candidates import Candidates
from .options import Options
from .transaction import Outcome

SENT, ALL, NONE = "sent", "all", "none"  # what is verified


class ReplicaRequest(NamedTuple):
    """A volume on one of ``candidates``, and where its replica is: the share ``target``, under ``name``.

    ``match`` is a glob for the names of snapshots that are sent, ``verify`` says what is read again, ``discards``: what is in the way goes.
    """

    candidates: Candidates
    volume: str
    target: Candidates
    name: str
    match: str = "*"
    verify: str = SENT
    discards: bool = False
    max_chain: int = MAX_CHAIN


def told_of(sent: int, names: Sequence[str] = (), present: Sequence[str] = (), kept: Sequence[str] = ()) -> dict:
    """What the result of a task says of a replica: bytes that were sent, and the names of points that were, that both sides had, and that only the
    replica has."""
    return {"sent": sent, "points": {"sent": list(names), "present": list(present), "kept": list(kept)}}


def unchanged(request: ReplicaRequest, options: Options) -> Outcome | None:
    """What a task returns that has nothing to do, which is seen without locks; None where there may be something to do."""
    if request.verify == ALL or len(request.candidates.shares) != 1:
        return None
    with ShareDirectory(request.candidates.shares[0]) as source, ShareDirectory(request.target.shares[0]) as target:
        try:
            theirs = _at_rest(source, request.volume, options)
            ours = _at_rest(target, request.name, options, partial(UseProbe, full=True)) if theirs is not None else None
            if theirs is None or ours is None or not ours[0].volume.active.empty:
                return None
            common = replicas.surely_common(theirs[1], ours[1])
            found = replicas.lack(theirs[1], ours[1], common, request.match, "", False)
        except (StorageError, OSError):
            return None  # whatever it is, it is told under the locks
        if common is None or found.sent:
            return None
        after = report.volume(ours[0].volume, target.share, ours[0].in_use)
        ids = {point.snapshot.point for point in theirs[1]}
        names = [(point.name, point.snapshot.point in ids) for point in ours[1]]
        told = told_of(0, (), [name for name, is_there in names if is_there], [name for name, is_there in names if not is_there])
        return Outcome(request.name, False, [], [], after, after, told=told)


def _at_rest(
    directory: ShareDirectory, name: str, options: Options, use_probe: Callable[[], UseProbe | None] = lambda: None
) -> tuple[chains.Observed, tuple[Point, ...]] | None:
    """A volume, and its points; None where it is not there, is foretold, or has anything to be ended or mended first."""
    look = Look(directory, name)
    if (directory.share.path, name) in options.task.predicted or look.leftovers:
        return None
    observed = chains.observe(directory, name, use_probe=use_probe, look=look)
    if observed is None or not DesiredVolume(name).is_satisfied_by(observed.volume) or find_interrupted(look):
        return None
    volume = observed.volume
    points = tuple(Point(one, holds(directory, volume, one, look.record)) for one in volume.snapshots)
    return (observed, points) if all(point.holds for point in points) else None
