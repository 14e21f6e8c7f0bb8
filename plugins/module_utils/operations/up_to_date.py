# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a replica, and whether it lacks anything: for most of them, on most days, nothing. That is seen without locks."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Callable, NamedTuple, Sequence

from .. import errors, model
from ..apply import interrupted
from ..plan import desired, replicas
from ..plan.replicas import Point
from ..store.files.directory import ShareDirectory
from ..store.metadata.points import held
from ..store.volumes import chains, images
from ..store.volumes.look import Look
from . import report, transaction
from .candidates import Candidates
from .options import LOOKED_AT, Options

_MOMENT = 1.0  # seconds
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
    max_chain: int = desired.MAX_CHAIN


def told_of(sent: int, names: Sequence[str] = (), present: Sequence[str] = (), kept: Sequence[str] = ()) -> dict:
    """What the result of a task says of a replica: bytes that were sent, and the names of points that were, that both sides had, and that only the
    replica has."""
    return {"sent": sent, "points": {"sent": list(names), "present": list(present), "kept": list(kept)}}


def unchanged(request: ReplicaRequest, options: Options) -> transaction.Outcome | None:
    """As :func:`_unchanged`. A task that is about one volume closes what it has opened."""
    if LOOKED_AT in options.task.kept:
        return _unchanged(request, options)
    options.task.kept[LOOKED_AT] = {}
    try:
        return _unchanged(request, options)
    finally:
        close_all(options)


def _unchanged(request: ReplicaRequest, options: Options) -> transaction.Outcome | None:
    """What a task returns that has nothing to do, which is seen without locks; None where there may be something to do."""
    if request.verify == ALL or len(request.candidates.shares) != 1:
        return None
    try:
        theirs = _at_rest(_opened(request.candidates.shares[0], options), request.volume, options)
        target = request.target.shares[0]
        ours = _at_rest(_opened(target, options), request.name, options, partial(images.UseProbe, full=True)) if theirs is not None else None
        if theirs is None or ours is None or not ours[0].volume.active.empty:
            return None
        common = replicas.surely_common(theirs[1], ours[1])
        found = replicas.lack(theirs[1], ours[1], common, request.match, "", False)
    except (errors.StorageError, OSError):
        return None  # whatever it is, it is told under the locks
    if common is None or found.sent:
        return None
    after = report.volume(ours[0].volume, target, ours[0].in_use)
    ids = {point.snapshot.point for point in theirs[1]}
    names = [(point.name, point.snapshot.point in ids) for point in ours[1]]
    told = told_of(0, (), [name for name, is_there in names if is_there], [name for name, is_there in names if not is_there])
    return transaction.Outcome(request.name, False, [], [], after, after, told=told)


def _opened(share: model.Share, options: Options) -> ShareDirectory:
    """A share that is opened for a moment, in which a thread looks at several volumes there. What it shows later may be old."""
    kept: dict = options.task.kept.setdefault(LOOKED_AT, {})
    key, now = (share.path, threading.get_ident()), time.monotonic()
    directory, opened = kept.get(key, (None, 0.0))
    if directory is not None and now - opened > _MOMENT:
        directory.close()
        directory = None
    if directory is None:
        directory = ShareDirectory(share)
        kept[key] = (directory, now)
    found: ShareDirectory = directory
    return found


def close_all(options: Options) -> None:
    """The task looks at no more volumes."""
    for directory, _opened_at in options.task.kept.pop(LOOKED_AT, {}).values():
        directory.close()


def _at_rest(
    directory: ShareDirectory, name: str, options: Options, use_probe: Callable[[], images.UseProbe | None] = lambda: None
) -> tuple[chains.Observed, tuple[Point, ...]] | None:
    """A volume, and its points; None where it is not there, is foretold, or has anything to be ended or mended first."""
    look = Look(directory, name)
    if (directory.share.path, name) in options.task.predicted or look.leftovers:
        return None
    observed = chains.observe(directory, name, use_probe=use_probe, look=look)
    if observed is None or not desired.DesiredVolume(name).is_satisfied_by(observed.volume) or interrupted.find_interrupted(look):
        return None
    volume = observed.volume
    certain = held(directory, volume, look.record)
    points = tuple(Point(one, one.name in certain) for one in volume.snapshots)
    return (observed, points) if all(point.holds for point in points) else None
