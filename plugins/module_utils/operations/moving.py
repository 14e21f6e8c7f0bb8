# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes that move to another share: all points and the present are sent and compared, then the source is removed.

What has been begun is on record on the new share (:class:`model.Move`). Until it is complete there, the source counts, and the task can be
run again at any time. Then the source is removed, if nobody has written to it since it was compared. Last of all the record is cleared.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

from ..apply.unchanged import marks
from ..errors import Conflict, HasDependents, VerifyFailed, VolumeNotFound
from ..model import Image, Move, Share, Volume, check_volume_name, listed, now
from ..plan import moving, planner, replicas
from ..plan.desired import DesiredVolume
from ..plan.headers import DEPENDENTS_REMEDY
from ..plan.plan import MUCH
from ..store.files.directory import ShareDirectory
from . import placement, sources
from .applying import engine_for
from .candidates import Candidates
from .capacity import Demand
from .options import Options, TakesLong
from .replication import Held, Replication, held_side
from .transaction import Outcome, carry_out, each_once, joined, recover
from .up_to_date import ReplicaRequest, told_of
from .updating import OtherShare, VolumeRequest, located
from .workspace import Workspace


class _Places(NamedTuple):
    """Where the volume is: on the share that it moves from (None: it is not there), and where it is or goes to."""

    source: Share | None
    target: Share


def move(request: VolumeRequest, elsewhere: OtherShare, options: Options) -> Outcome | None:
    """Move a volume to one of the request's shares. None: it is there, and nothing is left to be done.

    :param elsewhere: the share that it is moved from.
    :raises VolumeNotFound: it is on neither. :raises Conflict: it is on both, and no move of it was begun.
    :raises HasDependents: linked clones rest on it. :raises InUse: a machine has it open.
    """
    options = replace(options, attachment=None)  # it moves while no machine has it open
    foretold = _assumed(request, elsewhere, options) if options.assume else None
    if foretold is not None:
        return foretold
    with Workspace(options) as work:
        work.ends_moves = True
        places = _find(work, request, elsewhere)
        if places.source is None and not _is_begun(work, places.target, request.desired.name):
            return None
        return _locked(work, places, request, elsewhere).run()


def _assumed(request: VolumeRequest, elsewhere: OtherShare, options: Options) -> Outcome | None:
    """What check mode says where the volume or one of the shares is not there yet; None where nothing is assumed."""
    from . import assumptions

    name, there = check_volume_name(request.desired.name), elsewhere.find()
    here = assumptions.reachable(request.candidates, options)
    if here.shares and (there.missing or located(here, name, options) is not None or located(there, name, options) is not None):
        return None
    here.require_all()
    if not there.missing and located(there, name, options) is None:
        options.task.warn(f"volume {name} does not exist yet on {elsewhere.name}: check mode assumes that an earlier task makes it")
    share = (here.shares or request.candidates.missing)[0]
    after = assumptions.told_of(share, assumptions.assumed_volume(name), options)
    return Outcome(name, True, [], [], None, after, told=_told(0))


def _told(sent: int) -> dict:
    return {"sent": told_of(sent)["sent"]}


def _find(work: Workspace, request: VolumeRequest, elsewhere: OtherShare) -> _Places:
    """:raises Conflict: both are one share. :raises VolumeNotFound: the volume is on neither."""
    name, options = check_volume_name(request.desired.name), work.options
    there = elsewhere.find()
    directories = {_directory(share) for share in there.shares}
    here = request.candidates._replace(shares=tuple(share for share in request.candidates.shares if _directory(share) not in directories))
    if not here.shares:
        here.require_all()
        raise Conflict(f"volume {name}", f"it cannot move from {elsewhere.name} to the same share", "name another share")
    target = located(here, name, options, work.directory)
    if target is not None and there.missing and not _is_begun(work, target, name):
        unseen = f"whether it is still on {elsewhere.name} as well is not known, because that share is not mounted"
        options.task.warn(f"volume {name} is on {target.label}; {unseen}")
        return _Places(None, target)
    source = located(there, name, options, work.directory)
    if target is None:
        if source is None:
            problem = f"it is neither on {elsewhere.name} nor on {listed(share.source for share in here.shares)}"
            raise VolumeNotFound(f"volume {name}", problem, "check the name, or leave moved_from out to make a new volume")
        target = _choose(work, here, source, request)
    return _Places(source, target)


def _directory(share: Share) -> tuple[int, int]:
    """What is the same under all names of a directory that this host knows."""
    status = os.stat(share.path)
    return status.st_dev, status.st_ino


def _choose(work: Workspace, here: Candidates, source: Share, request: VolumeRequest) -> Share:
    """The share with the most free space that has room for all of it."""
    volume = work.mode.observe(source, request.desired.name)
    demand = Demand(0, 0) if volume is None else Demand(volume.size, sum(image.allocated for image in volume.chain))
    return placement.choose(here, demand.size, demand.at_once, request.policy, work.options.task.capacity)


def _begin_watched(options: Options, volume: Volume | None) -> None:
    """Before anything is recorded. :raises TakesLong: somebody wants to see how far it is, since all data is sent or compared."""
    count = 0 if volume is None else sum(image.allocated for image in volume.chain)
    if options.task.may_begin_anew and (count > MUCH or (count and options.speed)):
        raise TakesLong


def _is_begun(work: Workspace, target: Share, name: str) -> bool:
    volume = work.mode.observe(target, name)
    return volume is not None and volume.move is not None


def _locked(work: Workspace, places: _Places, request: VolumeRequest, elsewhere: OtherShare) -> _Moving:
    """Lock both sides, look at both, and see to it that all points of the source have an identity."""
    name, (source, target) = request.desired.name, places
    work.locks.take_families([(target, name)] if source is None else [(target, name), (source, name)])
    volume, of_source = (None, []) if source is None else recover(work, source, name)
    if source is not None and volume is not None and volume.move is not None:
        raise moving.unfinished(volume, source.label)
    here, of_target = recover(work, target, name)
    recovered = each_once(of_source, of_target)
    side = Held(source or target, None) if source is None else held_side(work, source, volume)
    longest = max(request.max_chain, sum(len(one.chain) for one in (volume, here) if one is not None) + 1)
    asked = ReplicaRequest(Candidates((side.share,)), name, Candidates((target,)), name, max_chain=longest)
    task = _Moving(work, asked, side, held_side(work, target, here), recovered, elsewhere.name)
    task.require_movable()
    _begin_watched(work.options, volume)
    unknown = task.unidentified()
    if volume is None or source is None or not (unknown or (volume.snapshots and not volume.replicated)):
        return task
    plan = replicas.identify(volume, unknown)
    if not work.options.check:
        carry_out(work, source, plan, [])
    again = held_side(work, source, plan.after if work.options.check else work.mode.observe(source, name))
    return _Moving(work, asked, again, held_side(work, target, here), recovered, elsewhere.name)


class _Moving(Replication):
    """One move, under the locks of both sides."""

    def __init__(self, work: Workspace, request: ReplicaRequest, source: Held, replica: Held, recovered: list, place: str) -> None:
        """:param place: the share that it moves from, as the user names it."""
        super().__init__(work, request, source, replica, recovered)
        self._place = place
        begun = replica.volume.move if replica.volume is not None else None
        self._was_begun = begun is not None
        self._move = begun or Move(source.share.source, now())

    def run(self) -> Outcome:
        """Go on from where it is. See :func:`move`."""
        if self.source.volume is None:
            return self._end()
        source, share = self.source.present, self.source.share
        before = self._work.mode.described(share, source)
        seen = marks(self._work.directory(share), source.own_files)
        self._begin()
        if self._move.is_complete:
            self._require_same()
        else:
            self._send_all()
        self._remove_source(seen)
        outcome = self._end()
        return replace(outcome, before=before)

    # -- what has to be so -----------------------------------------------------------------------------------------------

    def require_movable(self) -> None:
        """Before anything is changed. :raises HasDependents, InUse: it cannot go, or cannot be taken over.

        :raises Conflict: what is on the new share is no part of this move, or would stay behind.
        """
        if self.source.volume is None:
            return
        source, share, here = self.source.volume, self.source.share, self.replica.volume
        if self._was_begun and self._move.source != share.source:
            problem = f"it is being moved there from {self._move.source}, and not from {share.source}"
            raise Conflict(self._subject, problem, f"say moved_from: {self._move.source}, or remove it there first")
        if source.stale:
            names = listed(f"{snapshot} ({file})" for snapshot, file in source.stale)
            problem = f"its .info names snapshots whose files are no overlays of its chain, and which would stay behind: {names}"
            raise Conflict(f"volume {source.name} on {share.label}", problem, "take these entries away first (remotefs_snapshot with state: absent)")
        self._require_independent(share, source)
        if here is not None:
            self._require_independent(self.replica.share, here)
            self._require_two(source, here)
        with engine_for(self._work, share) as engine:
            engine.require_unused(source.active.file, check_only=self._work.mode.checks_only)
        if here is not None and not self._was_begun:
            self._find_lack()
            if self._is_written():
                raise replicas.written(self._subject)

    def _require_independent(self, share: Share, volume: Volume) -> None:
        dependents = self._work.mode.dependents(share, volume, self._work.mode.still_there(self.recovered))
        if dependents:
            names = listed(sorted({clone for clone, _file in dependents}))
            raise HasDependents(f"volume {volume.name} on {share.label}", f"linked clones or other files rest on it: {names}", DEPENDENTS_REMEDY)

    def _require_two(self, source: Volume, here: Volume) -> None:
        """:raises Conflict: both shares are one directory, under two names. Then the volume would be compared with itself, and removed."""
        sides = ((self.source.share, source), (self.replica.share, here))
        first, second = ([self._mark_of(self._work.directory(share), image.file) for image in volume.own] for share, volume in sides)
        if set(first).intersection(second):
            raise Conflict(self._subject, f"its files are those of the volume on {self.source.share.label}", "name another share: both are one directory")

    def _mark_of(self, directory: ShareDirectory, file: str) -> tuple[int, int, int]:
        status = directory.root.status(file)
        return (0, 0, 0) if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)

    # -- sending ---------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Record on what is there already that it is being moved there."""
        if self.replica.volume is None or self._was_begun:
            return
        before = self.replica.present
        self._do(moving.record(before, self._move))
        if self._options.check:
            return
        self._work.look_anew()
        source = self._work.mode.observe(self.source.share, self._request.volume)
        if source is None or source.move is not None:
            self._do(moving.record(self.replica.present, before.move))
            raise Conflict(self._subject, f"it is the volume on {self.source.share.label}", "name another share: both are one directory")

    def _send_all(self) -> None:
        """Send what is missing, compare what was there before, and record that it is complete."""
        lack = self._find_lack()
        newest = self._send_points(lack)
        self._send_present(newest)
        if not self._options.check:
            self._verify_all([one.name for one in lack.sent])
        self._do(moving.complete(self.replica.present, self.source.present))

    def _find_lack(self) -> replicas.Lack:
        """As of :class:`Replication`. What was sent before is in nobody's way."""
        if self._was_begun:
            newer = self.replica.points[self._common.replica + 1 if self._common else 0 :]
            own = [point.name for point in newer if not point.snapshot.received]
            if own:
                raise Conflict(self._subject, f"it has snapshots that were made there since the move was begun: {listed(own)}", "delete them, and go on")
            self._request = self._request._replace(discards=True)
        return super()._find_lack()

    def _is_written(self) -> bool:
        """What was sent of the present before is no reason to drop anything."""
        return not self._was_begun and super()._is_written()

    def _send_present(self, newest: tuple[str, str] | None) -> None:
        source, label = self.source.present, self._request.volume
        images = sources.seen(self._work, self.source.share, source, None)
        here = self.replica.volume
        if here is not None and not here.snapshots:
            if not self._differs(images, here, None):
                return
            self._require_room(sum(image.allocated for image in images), sum(image.allocated for image in here.own))
            self._do(planner.delete_volume(here, cascade=False))
            here = None
        if here is None:
            self._create(images, label)
            return
        if self._is_shown(images, newest) or (not here.active.empty and not self._differs(images, here, newest)):
            return
        self._receive(images, newest, lambda count: replicas.receive_present(here, images[0].size, label, count))

    def _differs(self, images: tuple[Image, ...], here: Volume, newest: tuple[str, str] | None) -> bool:
        """Whether the volume there shows something else than these images of the source."""
        theirs = None if newest is None else self.source.present.point_file(newest[0])
        ours = None if newest is None else here.point_file(newest[1])
        one, other = self._shown(self.source, images, theirs), self._shown(self.replica, here.chain, ours)
        return images[0].size != here.size or self._differ(one, other) is not None

    def _like_source(self, desired: DesiredVolume) -> DesiredVolume:
        """With all labels, and the owner: it is the same volume."""
        volume, of_source = self.source.present, super()._like_source(desired)
        if not self.source.share.keeps_modes:
            return of_source._replace(labels=dict(volume.labels), created=volume.created)
        return of_source._replace(labels=dict(volume.labels), created=volume.created, uid=volume.active.uid, gid=volume.active.gid)

    def _begun(self, volume: Volume) -> Volume:
        """With the move on record from the beginning."""
        return replace(super()._begun(volume), move=self._move)

    # -- the end ---------------------------------------------------------------------------------------------------------

    def _require_same(self) -> None:
        """All was there, and the task ended before the source was gone. :raises Conflict: somebody has worked on one of them since."""
        source, here = self.source.present, self.replica.present
        remedy = f"find out which of both is right, and remove the other one (state: absent); then {moving.FINISH}"
        missing = [point.name for point in self.source.points if not any(point.is_surely(other) for other in self.replica.points)]
        if missing:
            raise Conflict(self._subject, f"its move from {self._place} was complete, and there are other snapshots now: {listed(missing)}", remedy)
        try:
            self._verify_all()
        except VerifyFailed as error:
            raise Conflict(self._subject, f"its move from {self._place} was complete, and now both differ: {error.problem}", remedy) from error
        newest = (source.snapshots[-1].name, self._named(source.snapshots[-1].point)) if source.snapshots else None
        if self._differs(sources.seen(self._work, self.source.share, source, None), here, newest):
            problem = f"its move from {self._place} was complete, and since then somebody has written to one of both"
            raise Conflict(self._subject, problem, remedy)

    def _named(self, point: str | None) -> str:
        """The name of a point on the new share."""
        return next(one.name for one in self.replica.present.snapshots if one.point == point)

    def _remove_source(self, seen: dict[str, tuple[int, int]]) -> None:
        """:param seen: as of :func:`marks`, from before it was read. :raises Conflict: somebody has written to it since."""
        share, volume = self.source.share, self.source.present
        self._require_independent(share, volume)
        plan = replace(planner.delete_volume(volume, cascade=True), intent=True, unchanged=seen)  # so that nothing of it stays, not even a record
        self._outcome = joined(self._outcome, carry_out(self._work, share, plan, []))
        self._work.mode.forget_groups(share, volume.name)
        self.source = Held(share, None)

    def _end(self) -> Outcome:
        """The source is gone: the move is over. :raises Conflict: not all of it had arrived."""
        here = self.replica.volume
        if here is None:
            problem = f"it is neither on {self._place} nor on {self.replica.share.label} any more"
            raise VolumeNotFound(f"volume {self._request.volume}", problem, "find out who removed it")
        if here.move is not None and not here.move.is_complete and not self._options.check:
            problem = f"its move from {here.move.source} was interrupted, and the volume is not there any more, so that not all of it is here"
            raise Conflict(self._subject, problem, "find out who removed it; say recover: discard (without moved_from) to keep what is here")
        if here.move is not None:
            self._do(moving.record(here, None))
        self._work.locks.forget_files()
        return replace(self._outcome, told=_told(self._sent_bytes))
