# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Points that are sent from a volume on one share to one on another, on top of the newest point that both have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Collection, Sequence

from .. import errors, model
from ..apply import engine
from ..pace import Pace
from ..plan import planner, replicas
from ..plan.desired import DesiredVolume, Source
from ..plan.plan import MUCH, Plan
from ..plan.replicas import Pair, Point
from ..store.metadata.points import checksum, held, new_point
from . import candidates, capacity, dependency_check, refusals, snapshots, sources, transaction, up_to_date, workspace
from .options import TakesLong

_MARK = "remotefs_role"  # the label by which the role volumes knows, and may remove, what it has made: it has not made the replica


@dataclass
class Held:
    """One side as it is now: its share, the volume (None: there is none), and its points, oldest first."""

    share: model.Share
    volume: model.Volume | None
    points: tuple[Point, ...] = ()

    @property
    def present(self) -> model.Volume:
        """The volume. :raises VolumeNotFound: there is none."""
        if self.volume is None:
            raise errors.VolumeNotFound(f"volume on {self.share.label}", "it does not exist", "replicate first, with state: present")
        return self.volume

    @property
    def is_replica(self) -> bool:
        """Whether the volume, or a point of it, was sent there from another share."""
        return self.present.received or any(point.snapshot.received for point in self.points)

    def images(self, name: str) -> tuple[model.Image, ...]:
        """The images that show a snapshot, top first."""
        return self.present.view(self.present.point_file(name))


def held_side(work: workspace.Workspace, share: model.Share, volume: model.Volume | None) -> Held:
    """One side, with the points of which the identity holds."""
    if volume is None:
        return Held(share, None)
    record, directory = work.look(share, volume.name).record, work.directory(share)
    certain = held(directory, volume, record, work.options.check)
    return Held(share, volume, tuple(Point(one, one.name in certain) for one in volume.snapshots))


def held_above(images: tuple[model.Image, ...], known: str | None) -> int:
    """Bytes that images hold above the file ``known``, or all together where it is none of them."""
    files = [image.file for image in images]
    return sum(image.allocated for image in (images[: files.index(known)] if known in files else images))


class Replication:
    """One task on both sides, under locks."""

    def __init__(self, work: workspace.Workspace, request: up_to_date.ReplicaRequest, source: Held, replica: Held, recovered: list) -> None:
        """:param recovered: what was ended of both on the way here."""
        self._work, self._request, self._options = work, request, work.options
        self.source, self.replica, self.recovered = source, replica, recovered
        self._own_files = replica.volume.own_files if replica.volume is not None else ()  # of the replica, before anything of it is dropped
        self._subject = f"volume {request.name} on {replica.share.label}"
        self._knows_dependents = False
        self._matched: list[Pair] = []  # pairs of which only the contents could tell that they are one point
        self._outcome = transaction.Outcome(request.name, bool(recovered), [], recovered, None, None)
        self._sent_bytes = 0
        self._sums: dict[str, str] = {}  # checksums of the replica's files that were received or read
        self._read: dict[str, tuple[int, int]] = {}  # what they were then
        self._common = replicas.surely_common(self.source.points, self.replica.points)
        self._compare_names()

    @classmethod
    def locked(cls, work: workspace.Workspace, request: up_to_date.ReplicaRequest, ended: Sequence = ()) -> Replication:
        """Lock the source for reading, and the replica for changes, and look at both.

        :param ended: what was recovered on the way here. :raises VolumeNotFound: there is no source.
        """
        source, target = snapshots.find(work, request.candidates, request.volume), request.target.shares[0]
        if (source.path, request.volume) == (target.path, request.name):
            raise errors.Conflict(f"volume {request.name}", "it cannot be a replica of itself", "name another share or another name")
        candidates.locate(request.target, request.name, work.directory)  # whether it can be read
        own = [(target, request.name)]
        if not sources.lock_for_reading(work, own, source, request.volume):
            work.locks.take_families([*own, (source, request.volume)])
        volume, of_source = snapshots.recovered_volume(work, source, request.volume)
        replica, of_replica = transaction.recover(work, target, request.name)
        return cls(work, request, held_side(work, source, volume), held_side(work, target, replica), transaction.each_once(list(ended), of_source, of_replica))

    # -- what both have ------------------------------------------------------------------------------------------------

    def _compare_names(self) -> None:
        for pair in replicas.perhaps_common(self.source.points, self.replica.points, self._common):
            if self._difference(pair) is None:
                self._matched.append(pair)
                self._common = pair

    def _difference(self, pair: Pair) -> engine.Difference | None:
        one, other = self.source.points[pair.source].name, self.replica.points[pair.replica].name
        common = self._common if self._common is not None and self._common.source < pair.source else None
        known = [side.present.point_file(side.points[at].name) for side, at in zip((self.source, self.replica), common)] if common else [None, None]
        return self._differ(self._shown(self.source, self.source.images(one), known[0]), self._shown(self.replica, self.replica.images(other), known[1]))

    def _shown(self, side: Held, images: tuple[model.Image, ...], known: str | None) -> engine.Side:
        return engine.Side(self._work.directory(side.share), images, known)

    def _differ(self, one: engine.Side, other: engine.Side) -> engine.Difference | None:
        options = self._options
        if options.task.may_begin_anew and sum(image.allocated for image in one.images) > MUCH:
            raise TakesLong
        pace = Pace(self._subject, options.speed, options.timeout, options.task.waiting.sleep)
        with pace.watched(options.task.meter):
            return engine.difference(one, other, pace)

    def unidentified(self) -> dict[str, str | None]:
        """The source's points whose identity has to be recorded, by name: that of the replica, or a new one."""
        found: dict[str, str | None] = {}
        same = {pair.source: self.replica.points[pair.replica] for pair in self._matched}
        for position, point in enumerate(self.source.points):
            if not point.holds:
                other = same.get(position)
                found[point.name] = other.snapshot.point if other is not None and other.holds else new_point()
        return found

    # -- bringing it up to date ------------------------------------------------------------------------------------------

    def run(self) -> transaction.Outcome:
        """Send what the replica lacks."""
        had = tuple(point.name for point in self.replica.points)
        lack = self._find_lack()
        if not lack.sent and self._common is None:
            self._options.task.warn(f"volume {self._request.volume} has no snapshot that matches {self._request.match}: nothing is sent")
        self._send_points(lack)
        if self._request.verify == up_to_date.ALL and not self._options.check:
            self._verify_all()
        return self._told([one.name for one in lack.sent], [name for name in had if name not in lack.dropped])

    def _find_lack(self) -> replicas.Lack:
        """What is to be sent and dropped. :raises Conflict: something is in the way, or it is no replica of this source."""
        if self.replica.volume is not None:
            replicas.require_replica(self.replica.is_replica, self._common, self._subject)
        lack = replicas.lack(self.source.points, self.replica.points, self._common, self._request.match, self._subject, self._request.discards)
        self._require_short(len(lack.sent), len(lack.dropped))
        return lack

    def _send_points(self, lack: replicas.Lack) -> tuple[str, str] | None:
        """Send points. Returns the names of the newest one that both have then, on the source and on the replica."""
        self._name_matched(lack.dropped)
        self._make_way(lack.dropped, lack.sent)
        newest = (self.source.points[self._common.source].name, self.replica.points[self._common.replica].name) if self._common else None
        for snapshot in lack.sent:
            newest = self._send(snapshot, newest)
        return newest

    def _require_short(self, sent: int, dropped: int) -> None:
        """:raises InvalidParameter: with all that is sent, the chain would be longer than it may be."""
        files = sent + (1 if self.replica.volume is None else len(self.replica.volume.chain) - dropped)
        if sent and files > self._request.max_chain:
            problem = f"it would have {files} files, which is more than max_chain ({self._request.max_chain})"
            raise errors.InvalidParameter(self._subject, problem, "delete snapshots on either side, send fewer of them (match), or raise max_chain")

    def _know_dependents(self) -> None:
        """Before anything of the replica goes: what rests on it. In a task about many, each share is read once for that: nothing that the task
        itself makes rests on files of another volume."""
        if self._knows_dependents or self.replica.volume is None:
            return
        self._options.task.kept.setdefault(dependency_check.SHARES_READ, {})
        volume, mode = self.replica.volume, self._work.mode
        found = mode.dependents(self.replica.share, volume, mode.still_there(self.recovered))
        self.replica, self._knows_dependents = replace(self.replica, volume=replace(volume, dependents=found)), True

    def _require_free(self, file: str) -> None:
        """:raises Conflict: somebody else has a file of that name. Check mode sees those of the replica that are gone by then."""
        if file not in self._own_files:
            share, name = self.replica.share, self._request.name
            refusals.require_free_name(self._work.directory(share), file, name, self._work.mode.still_there(self.recovered))

    def _do(self, plan: Plan, source: engine.CopySource | None = None) -> None:
        done = transaction.carry_out(self._work, self.replica.share, plan, [], source)
        self._outcome = transaction.joined(self._outcome, done)
        after = None if plan.after is None else self._work.mode.volume_after(self.replica.share, plan.after)
        self.replica = replace(self.replica, volume=after)

    def _name_matched(self, dropped: Sequence[str]) -> None:
        """Record on the replica what only the contents could tell. What has lost its identity, and is no point of the source, gets a new one."""
        same = {pair.replica: self.source.points[pair.source].snapshot.point for pair in self._matched}
        names = {*dropped, *(point.name for point in self.source.points)}
        points = {}
        for position, point in enumerate(self.replica.points):
            if not point.holds and (position in same or point.name not in names):
                points[point.name] = same[position] if position in same else new_point()
        if points:
            received = {self.replica.points[position].name for position in same}
            self._do(replicas.identify(self.replica.present, points, received))

    def _make_way(self, dropped: tuple[str, ...], sent: tuple[model.Snapshot, ...]) -> None:
        """Drop what is in the way of what is sent. :raises Conflict: it may not be dropped."""
        if self.replica.volume is None:
            return
        if dropped or sent:
            self._know_dependents()
        kept = [point.name for point in self.replica.points if point.name not in dropped]
        if not kept:
            self._begin_again(sent)
            return
        is_written = self._is_written()
        if is_written and not self._request.discards:
            raise replicas.written(self._subject)
        if is_written or set(dropped).intersection(self._above(kept[-1])):
            self._know_dependents()
            self._do(planner.revert(self.replica.present, kept[-1], True))
            newest = self.replica.present.snapshot(kept[-1])  # its overlay is another one now, and it has just got its identity if it had lost it
            self._do(replicas.identify(self.replica.present, {newest.name: newest.point or new_point()}, ()))
        left = [name for name in dropped if self.replica.present.has_snapshot(name)]
        if left:
            self._do(snapshots.plan_deletion(self._work, self.replica.share, self.replica.present, left))

    def _above(self, name: str) -> list[str]:
        names = [point.name for point in self.replica.points]
        return names[names.index(name) + 1 :]

    def _is_written(self) -> bool:
        """Whether somebody has written to the replica since its newest point."""
        volume = self.replica.present
        if volume.active.empty or volume.active.backing_file is None:
            return False
        below = volume.active.backing_file
        return self._differ(self._shown(self.replica, volume.chain, below), self._shown(self.replica, volume.view(below), below)) is not None

    def _begin_again(self, sent: tuple[model.Snapshot, ...]) -> None:
        """A replica without points: its first one was being sent, or somebody has removed them all."""
        volume = self.replica.present
        if not sent:
            if volume.snapshots:
                self._do(snapshots.plan_deletion(self._work, self.replica.share, volume, [one.name for one in volume.snapshots]))
            return
        if not volume.snapshots:
            images = self.source.images(sent[0].name)
            if self._differ(self._shown(self.source, images, None), self._shown(self.replica, volume.chain, None)) is None:
                return
        if not self._request.discards:
            raise errors.Conflict(self._subject, "it has no point that its source has, and shows something else", replicas.REMEDY)
        self._require_room(sum(image.allocated for image in self.source.images(sent[0].name)), sum(image.allocated for image in volume.own))
        self._do(planner.delete_volume(volume, cascade=True))

    def _send(self, snapshot: model.Snapshot, newest: tuple[str, str] | None) -> tuple[str, str]:
        """Send a point on top of the newest one. Returns the names of what is common now.

        :param newest: the names of the newest point that both have, on the source and on the replica.
        """
        images = sources.seen(self._work, self.source.share, self.source.present, snapshot.name)
        label = f"{self._request.volume}@{snapshot.name}"
        if self.replica.volume is None:
            self._create(images, label)
        volume = self.replica.present
        if not volume.snapshots or self._is_shown(images, newest):
            taken = replicas.take_received(volume, snapshot, self._request.max_chain)
            for file in replicas.made(taken):
                self._require_free(file)
            self._do(taken, self._copy_of(images))
            return snapshot.name, snapshot.name
        size, longest = images[0].size, self._request.max_chain
        self._receive(images, newest, lambda count: replicas.receive(volume, snapshot, size, label, count, longest))
        return snapshot.name, snapshot.name

    def _receive(self, images: tuple[model.Image, ...], newest: tuple[str, str] | None, plan_for: Callable[[int], Plan]) -> None:
        """Carry out a plan that receives what these images of the source show. :param plan_for: makes it from the bytes that it may have to write.
        :param newest: as of :meth:`_send`."""
        known = engine.Known(None, None, self._count)
        if newest is not None:
            known = engine.Known(self.source.present.point_file(newest[0]), self.replica.present.point_file(newest[1]), self._count)
        count = held_above(images, known.source)
        self._require_room(count)
        plan = plan_for(count)
        for file in replicas.made(plan):
            self._require_free(file)
        self._do(plan, replace(self._copy_of(images), known=known))

    def _copy_of(self, images: tuple[model.Image, ...]) -> engine.CopySource:
        return engine.CopySource(self._work.directory(self.source.share), images, None, self._request.verify != up_to_date.NONE, self._sums, self._read)

    def _is_shown(self, images: tuple[model.Image, ...], newest: tuple[str, str] | None) -> bool:
        """Whether the replica shows a point already, because nothing was written between it and the newest one."""
        volume = self.replica.present
        if newest is None or volume.snapshots[-1].name != newest[1] or images[0].size != volume.size or not volume.active.empty:
            return False
        below = self.source.present.point_file(newest[0])
        above = [image.file for image in images]
        return below in above and all(image.empty and image.size == volume.size for image in images[: above.index(below)])

    def _create(self, images: tuple[model.Image, ...], label: str) -> None:
        """Make the replica, with what these images of the source show. :param label: how ``actions`` name that."""
        name, held = self._request.name, sum(image.allocated for image in images)
        self._require_room(held)
        plan = planner.create_volume(self._like_source(DesiredVolume(name, images[0].size, source=Source(label, images[0].size, held))))
        if plan.after is None:
            raise ValueError("a volume is made")
        self._require_free(name)
        self._do(replace(plan, after=self._begun(plan.after)), self._copy_of(images))
        self._count(self.replica.present.base.allocated)

    def _like_source(self, desired: DesiredVolume) -> DesiredVolume:
        """A new replica with what is said of its source."""
        volume = self.source.present
        labels = {key: value for key, value in volume.labels.items() if key != _MARK}
        created = volume.created or model.now()
        return desired._replace(format=volume.own_base.format, mode=volume.active.mode, created=created, description=volume.description, labels=labels)

    def _begun(self, volume: model.Volume) -> model.Volume:
        """A new replica, with what is recorded of it from the beginning."""
        return replace(volume, received=True)

    def _require_room(self, count: int, freed: int = 0) -> None:
        """:raises NoSpace: the replica's share has no room for so many bytes. What is not seen here is met while they are written.

        :param freed: bytes that are there when something has gone.
        """
        share = self.replica.share
        figures = capacity.figures_of(share)
        free = figures.f_bavail * figures.f_frsize + freed
        if figures.f_blocks and free < count and not self._options.task.predicted:
            problem = f"{model.size_text(count)} have to be sent, and {share.label} has {model.size_text(free)} free"
            raise errors.NoSpace(self._subject, problem, "free some space there, or use another share")

    def _count(self, count: int) -> None:
        self._sent_bytes += count

    # -- verifying -------------------------------------------------------------------------------------------------------

    def verify(self) -> transaction.Outcome:
        """See :func:`verify`."""
        if self.replica.present.snapshots and self._is_written():
            raise errors.VerifyFailed(
                self._subject, "its present is not its newest point", "somebody has written to it; look at it, or replicate with discard: true"
            )
        self._verify_all()
        return self._told([], [point.name for point in self.replica.points])

    def _verify_all(self, certain: Collection[str] = ()) -> None:
        """Compare all points that both have, each layer once. :param certain: names of points that need not be compared.

        :raises VerifyFailed: they differ.
        """
        self.replica = held_side(self._work, self.replica.share, self.replica.volume)
        self._common = None
        alone = []
        for position, point in enumerate(self.replica.points):
            pairs = [Pair(at, position) for at, other in enumerate(self.source.points) if other.is_surely(point)]
            if not pairs:
                pairs = [Pair(at, position) for at, other in enumerate(self.source.points) if other.may_be(point)]
            alone += [] if pairs else [point]
            for pair in pairs:
                found = None if point.name in certain else self._difference(pair)
                if found is not None:
                    theirs, ours = found.files
                    problem = f"its content differs from that of its source at byte {found.offset} ({theirs} of the source and {ours} of the replica)"
                    raise errors.VerifyFailed(
                        f"snapshot {point.name} of {self._subject}", problem, "find out which of both is right before anything is removed"
                    )
                self._common = pair
        self._verify_alone([point for point in alone if point.name not in certain])

    def _verify_alone(self, points: Sequence[Point]) -> None:
        """Compare files of points that only the replica has with the checksums that were recorded when they were received, or when all was
        compared before. Where none was, that is told, or it is recorded now if all is to be compared. :raises VerifyFailed: one has changed."""
        record, unknown = self._work.look(self.replica.share, self._request.name).record, []
        for point in points:
            images, known = self.replica.images(point.name), checksum(record, point.snapshot)
            file = images[0].file
            if known is None and self._request.verify != up_to_date.ALL:
                unknown.append(point.name)
                continue
            found = self._layer_sum(images)
            if known is None and found is not None:
                self._sums[file] = found
            elif known is not None and (known.file, known.digits) != (file, found):
                problem = f"{file} is not what it was when its checksum was recorded, and its source has this snapshot no more"
                remedy = "take it from another copy, or delete it; if a program such as Cinder has merged into that file, nobody can tell any more"
                raise errors.VerifyFailed(f"snapshot {point.name} of {self._subject}", problem, remedy)
        if unknown:
            sentence = "it has snapshots that its source has no more, and of which no checksum is recorded; remotefs_replica with verify: all records it"
            self._options.task.warn(f"{self._subject}: {sentence}: {model.listed(unknown)}")
        if self._sums and self._request.verify == up_to_date.ALL and points:
            transaction.carry_out(self._work, self.replica.share, replicas.identify(self.replica.present, {}, ()), [], self._copy_of(()))

    def _layer_sum(self, images: tuple[model.Image, ...]) -> str | None:
        if self._options.task.may_begin_anew and images[0].allocated > MUCH:
            raise TakesLong
        pace = Pace(self._subject, self._options.speed, self._options.timeout, self._options.task.waiting.sleep)
        with pace.watched(self._options.task.meter):
            return engine.layer_sum(self._shown(self.replica, images, None), pace)

    # -- what is told ----------------------------------------------------------------------------------------------------

    def _told(self, sent: Sequence[str], had: Sequence[str]) -> transaction.Outcome:
        ids = {point.snapshot.point for point in self.source.points if point.snapshot.point is not None}
        volume = self.replica.volume
        there = [] if volume is None else [name for name in had if name not in sent and volume.has_snapshot(name)]
        matched = {self.replica.points[pair.replica].name for pair in self._matched if pair.replica < len(self.replica.points)}
        both = [point.name for point in self.replica.points if point.name in there and (point.snapshot.point in ids or point.name in matched)]
        kept = [name for name in there if name not in both]
        after = self._outcome.after or (None if volume is None else self._work.mode.described(self.replica.share, volume))
        told = up_to_date.told_of(self._sent_bytes, sent, both, kept)
        return replace(self._outcome, after=after, before=self._outcome.before if self._outcome.changed else after, told=told)
