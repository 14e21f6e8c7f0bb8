# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Points of volumes written out as images, to a file of this host or to a server. The volume is only read.

The present of a volume that a machine is writing is read from a snapshot that is taken for it, and goes again (:mod:`temporary`).
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Union

from .. import errors, model
from ..apply.engine import Shown, Sums, Terms, Written, shown
from ..images import fetching, leaving, sending
from ..pace import Pace
from ..plan import plan
from ..store.files import passing
from . import snapshots, sources, workspace
from .candidates import Candidates
from .options import Options, TakesLong

if TYPE_CHECKING:
    from . import shapes

Access = leaving.Access  # who asks for an image says with it to whom the file belongs
HASHED = 64 << 30  # bytes: the checksum of a larger content takes longer than many want to wait
COMPRESSED = ("qcow2", "vmdk")
_LARGEST = {"vpc": 2040 << 30}  # bytes


class ToFile(NamedTuple):
    """An absolute ``path`` of this host. ``keeps_old``: what is there is kept under another name."""

    path: str
    access: Access = Access()
    keeps_old: bool = False

    @property
    def label(self) -> str:
        """How results name it."""
        return self.path


class ToServer(NamedTuple):
    """A URL that takes the image by PUT. ``scratch`` is a directory for what has to be whole before it is sent."""

    url: str
    access: fetching.Access
    scratch: str

    @property
    def label(self) -> str:
        """How results name it, without secrets."""
        return fetching.shown(self.url)


class ExportRequest(NamedTuple):
    """A point of a volume on one of ``candidates`` (``snapshot``; None: its present), where it goes and in which form.

    ``hashes_content``: None for contents up to :data:`HASHED`.
    """

    candidates: Candidates
    volume: str
    snapshot: str | None
    target: Union[ToFile, ToServer]
    format: str = "raw"
    compressed: bool = False
    hashes_content: bool | None = None

    @property
    def label(self) -> str:
        """How messages name what is exported."""
        return f"{self.volume}@{self.snapshot}" if self.snapshot else self.volume


@dataclass(frozen=True)
class Exported:
    """What an export did, or in check mode would do. ``sums``: None where nobody can know them. ``size`` is the virtual size, ``length`` that
    of the file (None: not known), both in bytes. ``before`` and ``after`` are what a diff shows."""

    changed: bool
    size: int | None
    volume: shapes.VolumeResult | dict | None
    sums: Sums | None = None
    length: int | None = None
    actions: tuple[shapes.Action, ...] = ()
    recovered: tuple[shapes.Recovered, ...] = ()
    kept: str | None = None
    before: dict | None = None
    after: dict | None = None


class MachineWrites(Exception):
    """A machine is writing the present of the volume on ``share``, and it is one that the task names."""

    def __init__(self, share: model.Share) -> None:
        super().__init__(share)
        self.share = share


def check(request: ExportRequest) -> None:
    """:raises InvalidName: of the volume or the snapshot. :raises InvalidParameter: the options do not go together."""
    model.check_volume_name(request.volume, "a task exports one volume")
    if request.snapshot is not None:
        model.check_snapshot_name(request.volume, request.snapshot)
    if request.compressed and request.format not in COMPRESSED:
        raise errors.InvalidParameter("option compressed", f"the format {request.format} has no compression", f"use {' or '.join(COMPRESSED)}")


def export(request: ExportRequest, options: Options) -> Exported:
    """Write a point out, where it is not there already."""
    check(request)
    if options.assume:
        foretold = _foretold_anew(request, options)
        if foretold is not None:
            return foretold
    try:
        return _export(request, request.snapshot, options)
    except MachineWrites as found:
        if options.task.may_begin_anew:
            raise TakesLong from None
        share = found.share
    from . import reading, temporary

    with temporary.snapshot(share, request.volume, request.target.label, options) as name:
        done = _export(request, name, replace(options, attachment=None))
    (volume,) = reading.list_volumes(share, [request.volume])  # without the snapshot that it was read from
    return replace(done, volume=volume)


def _foretold_anew(request: ExportRequest, options: Options) -> Exported | None:
    """What check mode says of a volume that is not there yet; None where it is."""
    from . import assumptions

    found = assumptions.missing_volume(request.candidates, request.volume, options)
    return None if found is None else _assumed(request, *found, options)


def _assumed(request: ExportRequest, share: model.Share, volume: model.Volume, options: Options) -> Exported:
    """What check mode says where the volume or its snapshot is not there yet."""
    from . import assumptions

    if request.snapshot:
        volume = assumptions.with_snapshot(volume, request.snapshot, options)
    told = assumptions.told_of(share, volume, options)
    return Exported(True, volume.size or None, told, actions=(_action(request, volume.active.file, None),), **_diff(request, False))


def _export(request: ExportRequest, snapshot: str | None, options: Options) -> Exported:
    with workspace.Workspace(options) as work:
        share = snapshots.find(work, request.candidates, request.volume)
        if not sources.lock_for_reading(work, [], share, request.volume):
            work.locks.take_families([(share, request.volume)])
        volume, recovered = snapshots.recovered_volume(work, share, request.volume)
        if snapshot and options.assume and not volume.has_snapshot(snapshot):
            return _assumed(request, share, volume, options)
        images = sources.seen(work, share, volume, snapshot)
        _require_fit(request, images[0].size)
        if snapshot is None and options.attachment is not None and _is_written(work, share, volume):
            if options.check:
                return replace(_changed(work, share, volume, request, images), recovered=tuple(recovered))
            raise MachineWrites(share)
        done = _deliver(work, share, volume, images, request, snapshot is None)
        return replace(done, recovered=tuple(recovered), changed=done.changed or bool(recovered))


def _require_fit(request: ExportRequest, size: int) -> None:
    if not size and request.format != "raw":
        raise errors.InvalidParameter("option format", f"volume {request.volume} has no bytes, which only a raw image can show", "use raw, or grow the volume")
    most = _LARGEST.get(request.format, size)
    if size > most:
        problem = f"the format {request.format} holds at most {model.size_text(most)}, and the disk has {model.size_text(size)}"
        raise errors.InvalidParameter("option format", problem, "use another format")


def _is_written(work: workspace.Workspace, share: model.Share, volume: model.Volume) -> bool:
    """Whether the machine that the user names, or anybody, has the volume open."""
    from .applying import engine_for

    with engine_for(work, share, known=[volume]) as engine:
        try:
            engine.require_unused(volume.active.file, check_only=True)
        except errors.InUse:
            return True
    return False


def _deliver(
    work: workspace.Workspace, share: model.Share, volume: model.Volume, images: tuple[model.Image, ...], request: ExportRequest, is_present: bool
) -> Exported:
    target, options = request.target, work.options
    hashes = images[0].size <= HASHED if request.hashes_content is None else request.hashes_content
    terms = Terms(work.locks.descriptors, options.assume_unused and options.attachment is None)
    pace = Pace(f"volume {request.label}", options.speed, options.timeout, options.task.waiting.sleep)
    with pace.watched(options.task.meter) as expect:
        expect(sum(image.allocated for image in images))
        point = partial(shown, work.directory(share), images, terms, pace, is_present, hashes)
        if isinstance(target, ToServer):
            if options.check:
                with point():
                    return _changed(work, share, volume, request, images)
            _begin(options, images)
            with point() as content:
                sums, length = _put(content, target, request, pace, hashes)
            return _changed(work, share, volume, request, images, sums, length)
        try:
            with leaving.Destination(target.path, target.keeps_old) as place:
                _require_apart(place, share)
                with point() as content:
                    return _write(work, share, volume, images, request, target, place, content)
        except leaving.NoFolder as error:
            if not options.check:
                raise
            options.task.warn(f"{error.problem}: check mode assumes that an earlier task makes it")
            return _changed(work, share, volume, request, images)
        except OSError as error:
            raise errors.from_os_error(error, f"file {target.path}") from error


def _write(
    work: workspace.Workspace,
    share: model.Share,
    volume: model.Volume,
    images: tuple[model.Image, ...],
    request: ExportRequest,
    target: ToFile,
    place: leaving.Destination,
    content: Shown,
) -> Exported:
    options, status, same = work.options, place.status(), None
    if status is not None:
        _begin(options, images)
        with place.opened() as fd:
            same = content.compare(fd, request.format) if fd is not None else None
            if fd is not None and same is None:
                place.require_unused(fd)
    if same is not None and status is not None:
        told = Exported(False, content.size, work.mode.described(share, volume), same, status.st_size)
        if target.access.is_that_of(status):
            return replace(told, **_diff(request, True, True))
        if not options.check:
            place.set_access(target.access)
        return replace(told, changed=True, actions=({"step": "set_access", "file": place.path},), **_access_diff(target.access, status))
    if options.check:
        return _changed(work, share, volume, request, images, existed=status is not None)
    _begin(options, images)
    with place.part(options.lock_timeout, options.task.waiting.sleep) as fd:
        sums = content.write(fd, Written(request.format, request.compressed, _kept_name(place)))
        length = os.fstat(fd).st_size
        kept = place.publish(fd, target.access, target.keeps_old)
    return replace(_changed(work, share, volume, request, images, sums, length, status is not None), kept=kept)


def _kept_name(place: leaving.Destination) -> str:
    """The name that an image has of itself within, as VMDK does: that of its file, if every program can read it there."""
    return place.name if re.fullmatch(r"[A-Za-z0-9._ -]+", place.name) else "disk"


def _put(content: Shown, target: ToServer, request: ExportRequest, pace: Pace, hashes: bool) -> tuple[Sums, int]:
    """Send it. A raw image goes as it is read. Others are made in a file without a name first, because their beginning is known last."""
    try:
        if request.format == "raw":
            tally = sending.Tally(content.pieces)
            sending.send(target.url, target.access, content.size, tally.pieces, pace.nap, pace.left)
            content.verify()
            return Sums(tally.digits, tally.digits if hashes else None), content.size
        with tempfile.TemporaryFile(dir=target.scratch) as file:
            sums = content.write(file.fileno(), Written(request.format, request.compressed, "image"))
            length = os.fstat(file.fileno()).st_size
            sending.send(target.url, target.access, length, partial(passing.file_pieces, file.fileno()), pace.nap, pace.left)
            return sums, length
    except sending.SendFailed as error:
        raise errors.ToolFailed(f"server {target.label}", str(error), "check the URL, the headers and the server, and run the task again") from error
    except OSError as error:
        raise errors.from_os_error(error, f"directory {target.scratch} of this host") from error


def _require_apart(place: leaving.Destination, share: model.Share) -> None:
    """:raises Conflict: the file would be taken for a volume, or replace one."""
    if place.is_in_share or os.path.dirname(place.path) == os.path.realpath(share.path):
        problem = "it lies in the directory of a share, where every file is a volume's"
        raise errors.Conflict(place.subject, problem, "use another directory (one below the share's is fine), or clone the volume with remotefs_volume")


def _begin(options: Options, images: tuple[model.Image, ...]) -> None:
    """Work begins that may take long. :raises TakesLong: somebody wants to see how far it is."""
    if options.task.may_begin_anew and (options.speed or sum(image.allocated for image in images) > plan.MUCH):
        raise TakesLong
    options.task.kept["begun"] = True


# -- what is told ----------------------------------------------------------------------------------------------------------


def _changed(
    work: workspace.Workspace,
    share: model.Share,
    volume: model.Volume,
    request: ExportRequest,
    images: tuple[model.Image, ...],
    sums: Sums | None = None,
    length: int | None = None,
    existed: bool = False,
) -> Exported:
    action = _action(request, images[0].file, sum(image.allocated for image in images))
    told = work.mode.described(share, volume)
    return Exported(True, images[0].size, told, sums, length, (action,), **_diff(request, existed))


def _action(request: ExportRequest, file: str, count: int | None) -> shapes.Action:
    return {"step": "export", "file": file, "into": request.target.label, "format": request.format, "bytes": count}


def _diff(request: ExportRequest, existed: bool, is_same: bool = False) -> dict:
    after = {"dest": request.target.label, "format": request.format, "content": request.label}
    before = after if is_same else {"dest": request.target.label, "content": "something else"} if existed else {}
    return {"before": before, "after": after}


def _access_diff(access: Access, status: os.stat_result) -> dict:
    wanted = access.completed(status)

    def told(mode: int | None, uid: int | None, gid: int | None) -> dict:
        return {"mode": f"{mode or 0:04o}", "owner": uid, "group": gid}

    return {"before": told(status.st_mode & 0o7777, status.st_uid, status.st_gid), "after": told(wanted.mode, wanted.uid, wanted.gid)}
