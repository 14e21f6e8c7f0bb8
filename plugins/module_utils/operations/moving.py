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
from typing import NamedTuple, Sequence

from .. import errors, model
from ..apply import engine
from ..plan import moving, planner, replicas
from ..plan.desired import DesiredVolume
from ..plan.plan import MUCH, Plan
from ..plan.replicas import Lack, Point
from . import candidates, capacity, movable, placement, replication, sources, transaction, up_to_date, updating, workspace
from .options import Options, TakesLong


class _Places(NamedTuple):
    """Where the volume is: on the share that it moves from (None: it is not there), and where it is or goes to."""

    source: model.Share | None
    target: model.Share


def move(request: updating.VolumeRequest, elsewhere: updating.OtherShare, options: Options) -> transaction.Outcome | None:
    """Move a volume to one of the request's shares. None: it is there, and nothing is left to be done.

    :param elsewhere: the share that it is moved from.
    :raises VolumeNotFound: it is on neither. :raises Conflict: it is on both, and no move of it was begun.
    :raises HasDependents: linked clones rest on it. :raises InUse: a machine has it open.
    """
    options = replace(options, attachment=None)  # it moves while no machine has it open
    foretold = _assumed(request, elsewhere, options) if options.assume else None
    if foretold is not None:
        return foretold
    with workspace.Workspace(options) as work:
        work.ends_moves = True
        places = _find(work, request, elsewhere)
        if places.source is None and not _is_begun(work, places.target, request.desired.name):
            return None
        return _locked(work, places, request, elsewhere).run()


def _assumed(request: updating.VolumeRequest, elsewhere: updating.OtherShare, options: Options) -> transaction.Outcome | None:
    """What check mode says where the volume or one of the shares is not there yet; None where nothing is assumed."""
    from . import assumptions

    name, there = model.check_volume_name(request.desired.name), elsewhere.find()
    here = assumptions.reachable(request.candidates, options)
    if here.shares and (there.missing or updating.located(here, name, options) is not None or updating.located(there, name, options) is not None):
        return None
    here.require_all()
    if not there.missing and updating.located(there, name, options) is None:
        options.task.warn(f"volume {name} does not exist yet on {elsewhere.name}: check mode assumes that an earlier task makes it")
    share = (here.shares or request.candidates.missing)[0]
    after = assumptions.told_of(share, assumptions.assumed_volume(name), options)
    return transaction.Outcome(name, True, [], [], None, after, told=_told(0))


def _told(sent: int) -> dict:
    return {"sent": up_to_date.told_of(sent)["sent"]}


def _find(work: workspace.Workspace, request: updating.VolumeRequest, elsewhere: updating.OtherShare) -> _Places:
    """:raises Conflict: both are one share. :raises VolumeNotFound: the volume is on neither."""
    name, options = model.check_volume_name(request.desired.name), work.options
    there = elsewhere.find()
    directories = {_directory(share) for share in there.shares}
    here = request.candidates._replace(shares=tuple(share for share in request.candidates.shares if _directory(share) not in directories))
    if not here.shares:
        here.require_all()
        raise errors.Conflict(f"volume {name}", f"it cannot move from {elsewhere.name} to the same share", "name another share")
    target = updating.located(here, name, options, work.directory)
    if target is not None and there.missing and not _is_begun(work, target, name):
        unseen = f"whether it is still on {elsewhere.name} as well is not known, because that share is not mounted"
        options.task.warn(f"volume {name} is on {target.label}; {unseen}")
        return _Places(None, target)
    source = updating.located(there, name, options, work.directory)
    if target is None:
        if source is None:
            problem = f"it is neither on {elsewhere.name} nor on {model.listed(share.source for share in here.shares)}"
            raise errors.VolumeNotFound(f"volume {name}", problem, "check the name, or leave moved_from out to make a new volume")
        target = _choose(work, here, source, request)
    return _Places(source, target)


def _directory(share: model.Share) -> tuple[int, int]:
    """What is the same under all names of a directory that this host knows."""
    status = os.stat(share.path)
    return status.st_dev, status.st_ino


def _choose(work: workspace.Workspace, here: candidates.Candidates, source: model.Share, request: updating.VolumeRequest) -> model.Share:
    """The share that the policy prefers of those that have room for all of it."""
    volume = work.mode.observe(source, request.desired.name)
    demand = capacity.Demand(0, 0) if volume is None else capacity.Demand(volume.size, sum(image.allocated for image in volume.chain))
    return placement.choose(here, demand.size, demand.at_once, request.policy, work.options.task.capacity)


def _begin_watched(options: Options, volume: model.Volume | None) -> None:
    """Before anything is recorded. :raises TakesLong: somebody wants to see how far it is, since all data is sent or compared."""
    count = 0 if volume is None else sum(image.allocated for image in volume.chain)
    if options.task.may_begin_anew and (count > MUCH or (count and options.speed)):
        raise TakesLong


def _is_begun(work: workspace.Workspace, target: model.Share, name: str) -> bool:
    volume = work.mode.observe(target, name)
    return volume is not None and volume.move is not None


def _locked(work: workspace.Workspace, places: _Places, request: updating.VolumeRequest, elsewhere: updating.OtherShare) -> _Moving:
    """Lock both sides, look at both, refuse what cannot move, and see to it that all points of the source have an identity."""
    name, (left, target) = request.desired.name, places
    work.locks.take_families([(target, name)] if left is None else [(target, name), (left, name)])
    volume, of_source = (None, []) if left is None else transaction.recover(work, left, name)
    here, of_target = transaction.recover(work, target, name)
    recovered, source = transaction.each_once(of_source, of_target), left or target
    if volume is not None and volume.move is not None:
        raise moving.unfinished(volume, source.label)
    seen = movable.Seen(work, replication.Held(source, volume), replication.Held(target, here))
    if not work.options.check:  # what counts is read after that
        work.look_anew()
        volume = None if volume is None else work.mode.observe(source, name)
        here = None if here is None else work.mode.observe(target, name)
    longest = max(request.max_chain, sum(len(one.chain) for one in (volume, here) if one is not None) + 1)
    asked = up_to_date.ReplicaRequest(candidates.Candidates((source,)), name, candidates.Candidates((target,)), name, max_chain=longest)
    task = _Moving(work, asked, replication.held_side(work, source, volume), replication.held_side(work, target, here), recovered, elsewhere, seen)
    task.require_movable(request.desired)
    _begin_watched(work.options, volume)
    unknown = task.unidentified()
    if volume is None or not (unknown or (volume.snapshots and not volume.replicated)):
        return task
    plan = replicas.identify(volume, unknown)
    if work.options.check and plan.after is not None:
        again = replication.Held(source, plan.after, tuple(Point(one, True) for one in plan.after.snapshots))
    else:
        transaction.carry_out(work, source, plan, [])
        again = replication.held_side(work, source, work.mode.observe(source, name))
    return _Moving(work, asked, again, replication.held_side(work, target, here), recovered, elsewhere, seen)


class _Moving(replication.Replication):
    """One move, under the locks of both sides."""

    def __init__(
        self,
        work: workspace.Workspace,
        request: up_to_date.ReplicaRequest,
        source: replication.Held,
        replica: replication.Held,
        recovered: list,
        elsewhere: updating.OtherShare,
        seen: movable.Seen,
    ) -> None:
        """:param elsewhere: the share that it moves from. :param seen: what the files of both sides were before they were looked at."""
        super().__init__(work, request, source, replica, recovered)
        self._elsewhere, self._seen = elsewhere, seen
        begun = replica.volume.move if replica.volume is not None else None
        self._was_begun = begun is not None
        self._move = begun or model.Move(source.share.source, model.now(), kept=tuple(point.name for point in replica.points))

    def run(self) -> transaction.Outcome:
        """Go on from where it is. See :func:`move`."""
        if self.source.volume is None:
            return self._end()
        before = self._work.mode.described(self.source.share, self.source.volume)
        self._begin()
        if self._move.is_complete:
            self._require_same()
        else:
            self._send_all()
        self._do(moving.complete(self.replica.present, self.source.present))
        self._remove_source()
        return replace(self._end(), before=before)

    def _do(self, plan: Plan, source: engine.CopySource | None = None) -> None:
        super()._do(plan, source)
        self._seen.follow(self.replica, {file for step in plan.steps for file in step.changes()}, self._read)
        self._read.clear()

    # -- what has to be so -----------------------------------------------------------------------------------------------

    def require_movable(self, desired: DesiredVolume) -> None:
        """Before anything is changed. :param desired: what the volume is to be afterwards.

        :raises HasDependents, InUse: it cannot go, or cannot be taken over. :raises WouldShrink: it cannot become what is desired.
        :raises Conflict: what is on the new share is no part of this move, or something of the source would not come along.
        """
        source, target = self.source, self.replica
        if self._was_begun and self._move.source not in {share.source for share in self._elsewhere.find().shares}:
            problem = f"it is being moved there from {self._move.source}, and not from {self._elsewhere.name}"
            raise errors.Conflict(self._subject, problem, f"say moved_from: {self._move.source}")
        if source.volume is None:
            return
        movable.require_two(self._work, source, target)
        movable.require_whole(self._work, source, target)
        for side in (source, target):
            movable.require_independent(self._work, side, self.recovered)
            movable.require_unused(self._work, side)
        planner.ensure_volume(source.volume, desired)
        if self._move.is_complete:
            return
        if target.volume is not None and not self._was_begun:
            self._require_replica(source.volume)
        self._find_lack()

    def _require_replica(self, source: model.Volume) -> None:
        """:raises Conflict: what is on the new share cannot become the volume."""
        remedy = "find out which of both you need, and remove the other one (state: absent), or leave moved_from out"
        if source.received or not self.replica.is_replica:
            problem = f"the volume is on {self.source.share.label} as well, and is no replica of that one"
            if source.received:
                problem = f"the volume is on {self.source.share.label} as well, and that one is a replica itself"
            raise errors.Conflict(self._subject, problem, remedy)
        if self._is_written():
            raise errors.Conflict(self._subject, "somebody has written to it since its newest point was received", remedy)

    def _require_all_points(self, points: Sequence[Point]) -> None:
        """:raises Conflict: the new share lacks one of these points of the source."""
        matched = {pair.source for pair in self._matched}
        certain = [point.name for at, point in enumerate(self.source.points) if at in matched or any(point.is_surely(one) for one in self.replica.points)]
        missing = [point.name for point in points if point.name not in certain]
        if missing:
            problem = f"it lacks snapshots that are older than what both have, and that would be lost: {model.listed(missing)}"
            raise errors.Conflict(self._subject, problem, "remove it there (state: absent) to send all anew, or delete them on the old share first")

    # -- sending ---------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Record on what is there already that it is being moved there."""
        if self.replica.volume is None or self._was_begun:
            return
        common = None if self._common is None else self.source.present.point_file(self.source.points[self._common.source].name)
        self._require_room(replication.held_above(self.source.present.chain, common))
        self._do(moving.record(self.replica.present, self._move))
        if self._options.check:
            return
        self._work.look_anew()
        source = self._work.mode.observe(self.source.share, self._request.volume)
        if source is None or source.move is not None:
            self._do(moving.record(self.replica.present, None))
            raise errors.Conflict(self._subject, f"it is the volume on {self.source.share.label}", "name another share: both are one directory")

    def _send_all(self) -> None:
        """Send what is missing, and compare what was there before."""
        lack = self._find_lack()
        newest = self._send_points(lack)
        self._send_present(newest)
        if not self._options.check:
            self._verify_here([one.name for one in lack.sent])
        self.replica = replication.held_side(self._work, self.replica.share, self.replica.volume)
        self._matched = []
        self._require_all_points(self.source.points)
        self._take_access()

    def _verify_here(self, sent: Sequence[str]) -> None:
        """Compare what was there before; where times of writes tell too little, all of it once more. :param sent: names of points just sent.

        :raises VerifyFailed: it differs. :raises Conflict: somebody has written to it since.
        """
        is_certain = self._seen.settle(self.replica)
        self._verify_all(sent if is_certain else ())
        if not is_certain and self._present_differs():
            raise errors.VerifyFailed(self._subject, "its present is not that of its source", "run the task again when nobody uses it")
        self._seen.require_target(self.replica)

    def _take_access(self) -> None:
        """Bring mode and owner of what was there before to those of the source."""
        source = self.source.present
        if self.source.share.keeps_modes and self.replica.share.keeps_modes:
            uid, gid = movable.owner_for(self._work, self.source.share, self.replica.share, source)
            plan = planner.ensure_volume(self.replica.present, DesiredVolume(self._request.name, mode=source.active.mode, uid=uid, gid=gid))
            if plan.changed:
                self._do(plan)

    def _find_lack(self) -> Lack:
        """As of :class:`Replication`. What was sent before is in nobody's way."""
        if self._was_begun:
            newer = self.replica.points[self._common.replica + 1 if self._common else 0 :]
            own = [point.name for point in newer if not point.snapshot.received]
            if own:
                raise errors.Conflict(
                    self._subject, f"it has snapshots that were made there since the move was begun: {model.listed(own)}", "delete them, and go on"
                )
            self._request = self._request._replace(discards=True)
        try:
            lack = super()._find_lack()
        except errors.Conflict as error:
            remedy = "delete what is in the way on the old share, or remove the volume here (state: absent) to send all anew"
            raise errors.Conflict(error.subject, error.problem, remedy) from error
        lost = [name for name in lack.dropped if name in self._move.kept]
        if lost:
            problem = f"it had snapshots before the move, and the source has given their names to others since: {model.listed(lost)}"
            raise errors.Conflict(self._subject, problem, "delete those snapshots on the old share, and go on")
        self._require_all_points(self.source.points[: self._common.source + 1] if self._common else ())
        return lack

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

    def _differs(self, images: tuple[model.Image, ...], here: model.Volume, newest: tuple[str, str] | None) -> bool:
        """Whether the volume there shows something else than these images of the source."""
        theirs = None if newest is None else self.source.present.point_file(newest[0])
        ours = None if newest is None else here.point_file(newest[1])
        one, other = self._shown(self.source, images, theirs), self._shown(self.replica, here.chain, ours)
        return images[0].size != here.size or self._differ(one, other) is not None

    def _like_source(self, desired: DesiredVolume) -> DesiredVolume:
        """With all labels, and the owner: it is the same volume."""
        volume = self.source.present
        uid, gid = movable.owner_for(self._work, self.source.share, self.replica.share, volume)
        return super()._like_source(desired)._replace(labels=dict(volume.labels), created=volume.created, uid=uid, gid=gid)

    def _begun(self, volume: model.Volume) -> model.Volume:
        """With the move on record from the beginning."""
        return replace(super()._begun(volume), move=self._move)

    # -- the end ---------------------------------------------------------------------------------------------------------

    def _require_same(self) -> None:
        """All was there, and the task ended before the source was gone. :raises Conflict: somebody has worked on one of them since."""
        since = f"its move from {self._elsewhere.name} was complete"
        remedy = "find out which of both is right; remove the old one (state: absent there), or the new one (state: absent with recover: discard)"
        missing = [point.name for point in self.source.points if not any(point.is_surely(other) for other in self.replica.points)]
        if missing:
            raise errors.Conflict(self._subject, f"{since}, and there are other snapshots now: {model.listed(missing)}", remedy)
        if self._options.check:
            return
        try:
            self._verify_all()
        except errors.VerifyFailed as error:
            raise errors.Conflict(self._subject, f"{since}, and now both differ: {error.problem}", remedy) from error
        if self._present_differs():
            raise errors.Conflict(self._subject, f"{since}, and since then somebody has written to one of both", remedy)

    def _present_differs(self) -> bool:
        """Whether both show something else now. They have all points of the source, known by their identities."""
        source, here = self.source.present, self.replica.present
        common = [(one.name, other.name) for one in source.snapshots[-1:] for other in here.snapshots if one.point == other.point]
        return self._differs(sources.seen(self._work, self.source.share, source, None), here, common[0] if common else None)

    def _remove_source(self) -> None:
        """:raises Conflict: somebody has written to a file of either side since it was read or made. :raises InUse: a program has one open."""
        share, volume = self.source.share, self.source.present
        movable.require_independent(self._work, self.source, [])
        if not self._options.check:
            movable.require_unused(self._work, self.replica)
            self._seen.require_target(self.replica)
        plan = replace(planner.delete_volume(volume, cascade=True), intent=True, unchanged=self._seen.source)  # nothing of it stays, not even a record
        self._outcome = transaction.joined(self._outcome, transaction.carry_out(self._work, share, plan, []))
        self._work.mode.forget_groups(share, volume.name)
        self.source = replication.Held(share, None)

    def _end(self) -> transaction.Outcome:
        """The source is gone: the move is over. :raises Conflict: not all of it had arrived."""
        here = self.replica.volume
        if here is None:
            problem = f"it is neither on {self._elsewhere.name} nor on {self.replica.share.label} any more"
            raise errors.VolumeNotFound(f"volume {self._request.volume}", problem, "find out who removed it")
        if here.move is not None and not here.move.is_complete:
            problem = f"its move from {here.move.source} was interrupted, and the volume is not there any more, so that not all of it is here"
            raise errors.Conflict(self._subject, problem, "find out who removed it; say recover: discard (without moved_from) to keep what is here")
        if here.move is not None:
            self._do(moving.record(here, None))
        self._work.locks.forget_files()
        return replace(self._outcome, told=_told(self._sent_bytes))
