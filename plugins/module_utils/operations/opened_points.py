# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Points of volumes that are opened read-only on this host, as a file or as a socket of NBD, and closed again.

A point is recorded before it is shown. So whatever is killed, the record that is left names what may be there, and the next task takes it away.
The volume is locked only until its files are open. From then on the lock bytes of the files keep others from changing them.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ContextManager, NamedTuple, Sequence
from urllib.parse import quote

from .. import errors, model
from ..access import chain, folders, guard, holder, targets
from ..access.record import Point, Record, Target
from ..store.files.directory import ShareDirectory
from ..store.metadata import opened_marks
from . import snapshots, sources, workspace
from .candidates import Candidates, find_candidates
from .options import Options

if TYPE_CHECKING:
    from . import shapes


class OpenRequest(NamedTuple):
    """A point of a volume on one of ``candidates`` (``snapshot``; None: its present), where it is shown, and for how many seconds."""

    candidates: Candidates
    volume: str
    snapshot: str | None
    target: Target
    seconds: int
    directory: folders.AccessDirectory


class CloseRequest(NamedTuple):
    """What is to be closed: what is shown at ``target``, or all points of a volume (``snapshot``: only that one).

    :ivar shares: names and directories of the share of the volume, of which a record has one; empty: any share.
    """

    target: Target | None
    volume: str | None
    snapshot: str | None
    shares: frozenset[str]
    directory: folders.AccessDirectory


@dataclass(frozen=True)
class Done:
    """What became of points. ``access``: the one that is open, as users see it. ``closed`` are those that were closed, and ``cleaned`` the paths
    of those whose holders had been killed."""

    changed: bool
    access: dict | None = None
    renewed: bool = False
    closed: tuple[dict, ...] = ()
    cleaned: tuple[str, ...] = ()
    actions: tuple[shapes.Action, ...] = ()
    recovered: tuple[shapes.Recovered, ...] = ()
    before: dict | None = None
    after: dict | None = None


def describe(record: Record) -> dict:
    """An opened point for users."""
    target, point = record.target, record.point
    is_file = target.kind == guard.FUSE
    return {
        "volume": point.volume,
        "snapshot": point.snapshot,
        "share": point.source,
        "path": target.path if is_file else None,
        "nbd": None if is_file else target.path,
        "export": None if is_file else point.label,
        "uri": None if is_file else f"nbd+unix:///{quote(point.label, safe='')}?socket={quote(target.path)}",
        "format": "raw",
        "size": point.size,
        "pid": record.daemon or None,
        "opened": record.opened,
        "expires": model.time_text(time.time() + record.ends - guard.clock()),
    }


# -- opening -------------------------------------------------------------------------------------------------------------


def open_point(request: OpenRequest, options: Options) -> Done:
    """Show a point, or renew the time of one that is shown already.

    :raises Conflict: another point is shown there, or something else is there. :raises InUse: a machine writes to the present of the volume.
    :raises ToolMissing: the daemon is not installed, or this user cannot use FUSE. :raises StorageError: the point cannot be read.
    """
    model.check_volume_name(request.volume, "name one volume")
    if request.snapshot is not None:
        model.check_snapshot_name(request.volume, request.snapshot)
    holder.program()
    if request.target.kind == guard.FUSE:
        targets.require_fuse()
    cleaned = _clean(request.directory, options, request.target.name)
    if options.assume:
        foretold = _foretold_anew(request, options)
        if foretold is not None:
            return foretold
    with _alone(request.directory, request.target, options):
        done = _open(request, options)
    steps = tuple({"step": "clean_point", "path": path} for path in cleaned)
    return replace(done, cleaned=cleaned, changed=done.changed or bool(cleaned), actions=steps + done.actions)


def _alone(directory: folders.AccessDirectory, target: Target, options: Options) -> ContextManager[None]:
    """A context in which this task alone works with what is shown there. Check mode changes nothing."""
    return nullcontext() if options.check else directory.alone(target, options.lock_timeout)


def _foretold_anew(request: OpenRequest, options: Options) -> Done | None:
    """What check mode says of a volume or snapshot that is not there yet; None where it is."""
    from . import assumptions

    found = assumptions.missing_volume(request.candidates, request.volume, options)
    if found is None:
        return None
    share, volume = found
    if request.snapshot:
        volume = assumptions.with_snapshot(volume, request.snapshot, options)
    return _foretold(request, Point(share.path, share.source, request.volume, request.snapshot, (), volume.size))


def _foretold(request: OpenRequest, point: Point, recovered: Sequence[shapes.Recovered] = ()) -> Done:
    record = Record(request.target, point, guard.boot(), guard.clock() + request.seconds, model.now())
    return _opened(record, None, recovered)


def _open(request: OpenRequest, options: Options) -> Done:
    with workspace.Workspace(options) as work:
        share = snapshots.find(work, request.candidates, request.volume)
        if not sources.lock_for_reading(work, [], share, request.volume):
            work.locks.take_families([(share, request.volume)])
        volume, recovered = snapshots.recovered_volume(work, share, request.volume)
        if request.snapshot and options.assume and not volume.has_snapshot(request.snapshot):
            from . import assumptions

            assumptions.with_snapshot(volume, request.snapshot, options)
            return _foretold(request, Point(share.path, share.source, request.volume, request.snapshot, (), volume.size), recovered)
        images = sources.seen(work, share, volume, request.snapshot)
        point = Point(share.path, share.source, volume.name, request.snapshot, chain.parts(work.directory(share), images), images[0].size)
        return _shown(work, request, share, point, images, recovered)


def _shown(
    work: workspace.Workspace, request: OpenRequest, share: model.Share, point: Point, images: Sequence[model.Image], recovered: Sequence[shapes.Recovered]
) -> Done:
    options, directory, target = work.options, request.directory, request.target
    ends = guard.clock() + request.seconds
    with nullcontext() if options.check else directory.steady(target, options.lock_timeout):
        record = directory.read(target.name)
        found = holder.find(directory, target.name, record)
        if record is not None and found.is_whole:
            _require_same(record, point)
            if record.point == point:
                renewed = replace(record, ends=ends)
                if not options.check:
                    _mark(work, share, renewed, request.seconds)
                    directory.replace(renewed)
                return Done(bool(recovered), describe(renewed), True, recovered=tuple(recovered), before=_lasting(record), after=_lasting(renewed))
    if request.snapshot is None:
        chain.require_unwritten(work.directory(share), images, options.assume_unused, options.check)
    old = record if found.is_whole else None
    if found.is_gone:
        targets.require_free(target, share.path)
    if options.check:
        return replace(_foretold(request, point, recovered), before=_lasting(old))
    with chain.opened(work.directory(share), images) as descriptors:
        if record is not None or not found.is_gone or targets.is_left(target):
            _end(directory, target, record, options)
            targets.require_free(target, share.path)
        work.directory(share).verify(images[0].file)
        fresh = Record(target, point, guard.boot(), ends, model.now(), mark=None if share.locks_visible else opened_marks.new_name())
        directory.write(fresh)
        try:
            _mark(work, share, fresh, request.seconds)
            started = holder.start(directory, fresh, [str(image.format) for image in images], descriptors, share.locks_visible)
        except BaseException:
            _end(directory, target, fresh, options)
            raise
    return _opened(started, old, recovered)


def _mark(work: workspace.Workspace, share: model.Share, record: Record, seconds: int) -> None:
    """Say on the share that the point is opened, where nobody sees its locks."""
    if record.mark is not None:
        point = record.point
        opened_marks.write(work.directory(share), point.volume, record.mark, point.label, [part.file for part in point.parts], seconds)


def _end(directory: folders.AccessDirectory, target: Target, record: Record | None, options: Options) -> bool:
    """As :func:`holder.end`, and take the mark away from the share. One that cannot be reached is told: it counts until its end."""
    was_there = holder.end(directory, target, record)
    if record is not None and record.mark is not None:
        try:
            for share in find_candidates(record.point.share, model.MOUNT_BASE).shares:
                with ShareDirectory(share) as opened:
                    opened_marks.remove(opened, record.mark)
        except (errors.StorageError, OSError) as error:
            options.task.warn(f"the mark of {record.point.label} on {record.point.source} cannot be removed, and keeps others away until its end: {error}")
    return was_there


def _require_same(record: Record, point: Point) -> None:
    """:raises Conflict: the path shows another point."""
    old = record.point
    if (old.share, old.volume, old.snapshot) != (point.share, point.volume, point.snapshot):
        raise errors.Conflict(f"{record.target.option} {record.target.path}", f"it shows {old.label} on {old.source}", "close that first, or give another path")


def _opened(record: Record, old: Record | None, recovered: Sequence[shapes.Recovered]) -> Done:
    told = describe(record)
    step: shapes.Action = {"step": "open_point", "point": record.point.label, record.target.option: record.target.path}
    return Done(True, told, actions=(step,), recovered=tuple(recovered), before=_lasting(old), after=_lasting(record))


def _lasting(record: Record | None) -> dict:
    """What a diff shows: not what every renewal changes."""
    if record is None:
        return {}
    told = {key: value for key, value in describe(record).items() if key in ("volume", "snapshot", "share", "path", "nbd", "size")}
    return {**told, "files": [part.file for part in record.point.parts]}


# -- closing -------------------------------------------------------------------------------------------------------------


def close_points(request: CloseRequest, options: Options) -> Done:
    """Close what is shown. What is not shown is no change.

    :raises Conflict: the path shows another point than is asked for. :raises InUse: what shows it cannot be ended. The others are closed then.
    """
    directory = request.directory
    meant = [request.target] if request.target is not None else [record.target for record in _records(request, options)]
    closed, actions, failed = [], [], None
    for target in meant:
        try:
            with _alone(directory, target, options):
                record, was_there = _close(request, target, options)
        except errors.StorageError as error:
            failed = failed or error
            continue
        if was_there:
            actions.append({"step": "close_point", target.option: target.path})
            closed.append(_lasting(record) if record is not None else {target.option: target.path})
    if failed is not None:
        raise failed
    cleaned = _clean(directory, options, *(target.name for target in meant))
    steps = [{"step": "clean_point", "path": path} for path in cleaned]
    return Done(bool(closed or cleaned), closed=tuple(closed), cleaned=cleaned, actions=(*actions, *steps), before={"opened": closed}, after={"opened": []})


def _records(request: CloseRequest, options: Options) -> list[Record]:
    """Those of the points that are meant."""
    known = [_known(request.directory, name, options) for name in request.directory.names()]
    return [record for record in known if record is not None and _is_meant(request, record)]


def _known(directory: folders.AccessDirectory, name: str, options: Options) -> Record | None:
    """What is recorded of a point; None also if that cannot be believed, with a warning."""
    try:
        return directory.read(name)
    except errors.StorageError as error:
        options.task.warn(str(error))
        return None


def _is_meant(request: CloseRequest, record: Record) -> bool:
    point = record.point
    if request.volume is not None and point.volume != request.volume:
        return False
    if request.snapshot is not None and point.snapshot != request.snapshot:
        return False
    return not request.shares or not request.shares.isdisjoint((point.share, point.source))


def _close(request: CloseRequest, target: Target, options: Options) -> tuple[Record | None, bool]:
    """Close what is shown at a target. Returns what was recorded of it, and whether there was anything."""
    directory = request.directory
    record = directory.read(target.name)
    if record is not None and not _is_meant(request, record):
        problem = f"it shows {record.point.label} on {record.point.source}"
        raise errors.Conflict(f"{target.option} {target.path}", problem, "name that one, or leave out volume, snapshot and share")
    if options.check:
        return record, record is not None or targets.is_left(target)
    return record, _end(directory, target, record, options)


# -- what was killed -----------------------------------------------------------------------------------------------------


def _clean(directory: folders.AccessDirectory, options: Options, *besides: str) -> tuple[str, ...]:
    """Take away what holders left that were killed. Returns the paths at which they showed points. :param besides: names that are not looked at."""
    cleaned = []
    for name in directory.names():
        if name in besides:
            continue
        record = _known(directory, name, options)
        if record is None or holder.find(directory, name, record).is_whole:
            continue
        try:
            if options.check or _cleaned(directory, record, options):
                cleaned.append(record.target.path)
        except errors.StorageError as error:
            options.task.warn(str(error))
    return tuple(cleaned)


def _cleaned(directory: folders.AccessDirectory, record: Record, options: Options) -> bool:
    """Take away what is left of one, if no task works with it. Returns whether it did."""
    name = record.target.name
    try:
        with directory.alone(record.target, 0):
            again = _known(directory, name, options)
            if again is None or holder.find(directory, name, again).is_whole:
                return False
            return _end(directory, again.target, again, options)
    except errors.InUse:
        return False  # another task opens or closes it, or the kernel does not let it end
