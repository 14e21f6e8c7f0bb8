# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a replica lacks: pure functions over the points of both sides.

A point that both sides have is known by its identity. Where an identity is lost (somebody else worked on the volume), a name that both
have is a guess, which the contents of both decide. What is sent goes on top of the newest point that both have.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Collection, Mapping, NamedTuple, Sequence

from .. import errors, model
from . import desired, headers, planner
from .plan import PRESENT, RECEIVE, Plan
from .steps import CreateOverlay, ReceiveOverlay, Step, Unlink, WriteRecord, write_info

REMEDY = "look at it, and say discard: true to drop it, or replicate to another name"


class Point(NamedTuple):
    """A snapshot of one side. ``holds``: its identity is still that of its overlay, so that it is certain which point it is."""

    snapshot: model.Snapshot
    holds: bool

    @property
    def name(self) -> str:
        """The name of its snapshot."""
        return self.snapshot.name

    def is_surely(self, other: Point) -> bool:
        """Whether it is certainly the same point."""
        return self.holds and other.holds and self.snapshot.point == other.snapshot.point

    def may_be(self, other: Point) -> bool:
        """Whether only the contents of both can tell if it is the same point."""
        return self.name == other.name and not (self.holds and other.holds)


class Pair(NamedTuple):
    """A point of the source and one of the replica, by their positions."""

    source: int
    replica: int


def surely_common(source: Sequence[Point], replica: Sequence[Point]) -> Pair | None:
    """The newest point that certainly both have. :param source: oldest first, as :param replica:."""
    for position in range(len(source) - 1, -1, -1):
        for other in range(len(replica) - 1, -1, -1):
            if source[position].is_surely(replica[other]):
                return Pair(position, other)
    return None


def perhaps_common(source: Sequence[Point], replica: Sequence[Point], since: Pair | None) -> list[Pair]:
    """Points newer than ``since`` that both may have, oldest first, in an order that both have."""
    found: list[Pair] = []
    last = since or Pair(-1, -1)
    for position in range(last.source + 1, len(source)):
        for other in range(last.replica + 1, len(replica)):
            if source[position].may_be(replica[other]):
                last = Pair(position, other)
                found.append(last)
                break
    return found


class Lack(NamedTuple):
    """What is to be done: points of the source that are sent, oldest first, and names of snapshots of the replica that go before that."""

    sent: tuple[model.Snapshot, ...]
    dropped: tuple[str, ...]


def lack(source: Sequence[Point], replica: Sequence[Point], common: Pair | None, match: str, subject: str, discards: bool) -> Lack:
    """What the replica lacks, once it is known which is the newest point that both have.

    Points of the source that are older are not sent: whoever keeps the replica has removed them, or never wanted them.

    :param match: a glob for names of points that are sent. :param subject: how messages name the replica.
    :param discards: what is in the way goes. :raises Conflict: something is in the way.
    """
    sent = tuple(point.snapshot for point in source[common.source + 1 if common else 0 :] if fnmatchcase(point.name, match))
    newer = replica[common.replica + 1 if common else 0 :]
    own = [point.name for point in newer if not point.snapshot.received]
    names = {snapshot.name for snapshot in sent}
    reused = [point.name for point in replica if point.name in names and point.name not in own]
    if own and not discards:
        raise errors.Conflict(subject, f"it has snapshots that were made there: {model.listed(own)}", REMEDY)
    if reused and not discards:
        raise errors.Conflict(subject, f"it has other points with names that the source gave anew: {model.listed(reused)}", REMEDY)
    doomed = {*own, *reused}
    protected = [point.name for point in replica if point.name in doomed and point.snapshot.protected]
    if protected:
        raise errors.Conflict(
            subject, f"it has protected snapshots that are in the way: {model.listed(protected)}", "protect them no longer, or replicate to another name"
        )
    return Lack(sent, tuple(point.name for point in replica if point.name in doomed))


def require_replica(is_replica: bool, common: Pair | None, subject: str) -> None:
    """:raises Conflict: it is another volume that happens to have this name."""
    if not is_replica and common is None:
        raise errors.Conflict(subject, "it exists, and was not made as a replica of this source", "choose another name, or remove that volume")


def written(subject: str) -> errors.Conflict:
    """The error for a replica to which somebody has written."""
    return errors.Conflict(subject, "somebody has written to it since its newest point was received", REMEDY)


def take_received(volume: model.Volume, point: model.Snapshot, max_chain: int) -> Plan:
    """Plan a snapshot of what the replica shows already: this point of the source."""
    plan = planner.create_snapshot(volume, desired.DesiredSnapshot(point.name, point.created, point.description, point.labels, max_chain=max_chain))
    return replace(plan, after=_with_identity(plan.after, point)) if plan.after is not None else plan


def receive(volume: model.Volume, point: model.Snapshot, size: int, label: str, count: int | None, max_chain: int) -> Plan:
    """Plan to receive a point of the source on top of the replica's newest one.

    The overlay that is active now is replaced by one that shows the point, with another one on top. Both have new names, which nobody knows
    until ``.info`` has them. So the replica shows its newest point all the time, and never a mixture.

    :param size: bytes of the point. :param label: how ``actions`` name it. :param count: bytes that are expected to move.
    :raises InvalidParameter: the chain would have more than ``max_chain`` files. :raises InvalidSize: no qcow2 overlay can be as large.
    """
    subject = f"snapshot {point.name} of volume {volume.name}"
    planner.check_chain_length(subject, len(volume.chain), max_chain)
    repairs, current, filled = _filled(volume, size, subject)
    renamed = replace(current, chain=(current.active, *filled.chain))
    overlay = replace(filled.active, file=planner.overlay_name(renamed, point.name), empty=True, backing_file=filled.active.file, backing_format="qcow2")
    taken = model.Snapshot(point.name, overlay.file, point.created, point.description, dict(point.labels))
    stale = tuple(pair for pair in current.stale if pair[0] != point.name)
    after = replace(filled, chain=(overlay, *filled.chain), snapshots=(*filled.snapshots, taken), stale=stale)
    after = _with_identity(after, point)
    steps = (
        *repairs,
        _receipt(current, filled, label, count),
        CreateOverlay(overlay.file, filled.active.file, "qcow2", size),
        write_info(after),
        Unlink(current.active.file),
    )
    return Plan(RECEIVE, volume.name, steps, volume, after, intent=True)


def receive_present(volume: model.Volume, size: int, label: str, count: int | None) -> Plan:
    """Plan to receive what the source shows now, on top of the newest point: in the overlay that is active then.

    The parameters and errors are those of :func:`receive`, but for those about the length of the chain, which stays the same.
    """
    repairs, current, filled = _filled(volume, size, f"volume {volume.name}")
    steps = (*repairs, _receipt(current, filled, label, count), write_info(filled), Unlink(current.active.file))
    return Plan(RECEIVE, volume.name, steps, volume, filled, intent=True)


def _filled(volume: model.Volume, size: int, subject: str) -> tuple[tuple[Step, ...], model.Volume, model.Volume]:
    """Steps that repair headers, the volume after them, and that with another active image, which rests on the newest point."""
    headers.require_known_formats(volume)
    _require_replaceable(volume)
    planner.check_qcow2_size(subject, "qcow2", size)
    repairs, current = headers.header_repairs(volume)
    active, newest = current.active, current.snapshots[-1]
    below = current.image(current.point_file(newest.name))
    filled = replace(active, file=planner.overlay_name(current, newest.name), size=size, empty=False, backing_file=below.file, backing_format=below.format)
    snapshots = (*current.snapshots[:-1], replace(newest, file=filled.file))
    return repairs, current, replace(current, chain=(filled, *current.chain[1:]), snapshots=snapshots, adopted=True)


def _receipt(current: model.Volume, filled: model.Volume, label: str, count: int | None) -> ReceiveOverlay:
    image = filled.active
    return ReceiveOverlay(image.file, str(image.backing_file), str(image.backing_format), image.size, current.active.file, label, count)


def made(plan: Plan) -> tuple[str, ...]:
    """Files that a plan makes, whose names must be free before it begins."""
    return tuple(step.file for step in plan.steps if isinstance(step, (CreateOverlay, ReceiveOverlay)))


def _require_replaceable(volume: model.Volume) -> None:
    """:raises HasDependents, ChainBroken: the active image cannot go."""
    resting = sorted({clone for clone, file in volume.dependents if file == volume.active.file})
    if resting:
        raise errors.HasDependents(
            f"volume {volume.name}", f"linked clones or other files rest on its active image: {model.listed(resting)}", headers.DEPENDENTS_REMEDY
        )
    if not volume.snapshots or volume.snapshots[-1].file != volume.active.file:
        problem = "its active image is not the overlay of its newest snapshot"
        raise errors.ChainBroken(f"volume {volume.name}", problem, "look at the chain with remotefs_volume_info")


def _with_identity(volume: model.Volume, point: model.Snapshot) -> model.Volume:
    """The volume whose snapshot of that name is this point, received."""
    snapshots = tuple(replace(one, point=point.point, received=True) if one.name == point.name else one for one in volume.snapshots)
    return replace(volume, snapshots=snapshots)


def identify(volume: model.Volume, points: Mapping[str, str | None], received: Collection[str] | None = None) -> Plan:
    """Plan to record that snapshots of a volume are these points, by name.

    :param received: those of them that were sent here; of others that stays as it is. None: the volume is a source.
    """
    snapshots = tuple(
        replace(one, point=points[one.name], received=one.received or one.name in (received or ())) if one.name in points else one for one in volume.snapshots
    )
    files = tuple(one.file for one in volume.snapshots if one.name in points)
    after = replace(volume, snapshots=snapshots, adopted=True, replicated=volume.replicated or received is None)
    return Plan(PRESENT, volume.name, (WriteRecord(volume.name, files),), volume, after)
