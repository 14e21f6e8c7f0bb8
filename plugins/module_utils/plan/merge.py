# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deleting snapshots: which files merge into which.

Files are numbered from the base f0 to the active image fn. The point Pk is what fk shows. The overlay of snapshot S is a
file fk, and S is the point P(k-1). Deleting S drops that point: fk and its **backing** file become one. Adjacent dropped
points form one group fi…fj. It becomes a single file with the content of Pj. One file of the group, the pivot p, stays:

1. commit fj (and all layers down to p) into fp,   where p < j
2. pull what lies below into fp and put it on f(i-1), where p > i
3. repoint the child f(j+1) to fp
4. write ``.info``, 5. unlink the others.

At every instant Pj and all points outside the group show the same content as before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Container, Iterable, Mapping, NamedTuple

from .. import errors, model
from . import cost, headers
from .plan import DELETE_SNAPSHOT, Plan
from .steps import Commit, Pull, Repoint, Step, Truncate, Unlink, write_info


class Bitmap(NamedTuple):
    """A persistent dirty bitmap. ``tracks``: programs that write to its image mark the writes in it."""

    name: str
    tracks: bool


Bitmaps = Mapping[str, "tuple[Bitmap, ...]"]  # by file


@dataclass(frozen=True)
class _Group:
    """Files that become one, bottom first. ``below`` is the image under them, ``child`` the one on them (None: there is none).

    ``must_stay``: linked clones rest on the topmost file. It must stay, and can only pull. ``longest_below`` is the size in bytes of
    the longest file under the group.
    """

    files: tuple[model.Image, ...]
    below: model.Image | None
    child: model.Image | None
    must_stay: bool = False
    longest_below: int = 0


def delete_snapshots(
    volume: model.Volume,
    names: Iterable[str],
    known: cost.Allocations,
    fixed_tails: Container[str] = (),
    bitmaps: Bitmaps | None = None,
    commits_only: bool = False,
) -> Plan:
    """Plan to delete the snapshots ``names`` together. Names that do not exist change nothing.

    :param known: allocated clusters by file, to choose pivots and to estimate bytes. Files may be missing.
    :param fixed_tails: files that no commit may make larger, because old data behind their end would become visible.
    :param bitmaps: dirty bitmaps that must not be lost, by file.
    :param commits_only: pull only where nothing else is possible.
    :raises HasDependents: a linked clone rests on the data of one of them. :raises Conflict: dirty bitmaps would be lost.
    :raises UnsafeImage: a format in the chain is unknown, or a header of a linked clone's parent must be repaired first.
    """
    deleted = [snapshot for snapshot in volume.snapshots if snapshot.name in set(names)]
    if not deleted:
        return Plan(DELETE_SNAPSHOT, volume.name, (), volume, volume)
    headers.require_known_formats(volume)
    headers.require_repaired_parent(volume)
    steps, current = headers.header_repairs(volume)
    all_steps = list(steps)
    garbage: list[str] = []
    remaining = tuple(snapshot for snapshot in volume.snapshots if snapshot not in deleted)
    kept_overlays = {snapshot.file for snapshot in remaining}
    dropped_points = [snapshot for snapshot in deleted if snapshot.file not in kept_overlays and not _rests_on_parent(volume, snapshot)]
    _refuse_dependents(volume, dropped_points)
    dropped = [snapshot.file for snapshot in dropped_points]
    while dropped:
        group = _next_group(current, dropped)
        merged, pivot = _merge(group, known, fixed_tails, bitmaps or {}, commits_only)
        _refuse_losing_bitmaps(volume, group, pivot, merged, bitmaps or {})
        all_steps += merged
        removed = [image.file for image in group.files if image.file != pivot.file]
        garbage += removed
        dropped = [file for file in dropped if file not in [image.file for image in group.files]]
        remaining = _snapshots_after_merge(remaining, group, pivot)
        current = _after_merge(current, group, pivot)
    after = replace(current, snapshots=remaining, info=True, adopted=True, pending=None)
    all_steps.append(write_info(after))
    all_steps += [Unlink(file) for file in garbage]
    return Plan(DELETE_SNAPSHOT, volume.name, tuple(all_steps), volume, after, intent=True)


def drop_stale(volume: model.Volume, plan: Plan, leftovers: tuple[str, ...]) -> Plan:
    """A plan that also removes stale entries from ``.info``.

    :param plan: what happens to the real snapshots. It may have no steps. ``plan.after`` is without the stale entries.
    :param leftovers: files that only those entries name. They are removed.
    """
    if plan.after is None:
        raise ValueError("a deletion of snapshots leaves a volume")
    steps, after = plan.steps, plan.after
    if not steps:
        repairs, after = headers.header_repairs(after)
        after = replace(after, info=True, adopted=True, pending=None)
        steps = (*repairs, write_info(after))
    return Plan(DELETE_SNAPSHOT, volume.name, (*steps, *(Unlink(file) for file in leftovers)), volume, after, intent=True)


def _next_group(volume: model.Volume, dropped: list[str]) -> _Group:
    """The lowest adjacent files that become one: overlays of snapshots that are deleted, and the file under the lowest overlay.

    A raw base stays raw and keeps its place. Where the topmost file must stay too, the base is left out of the group. It then
    stays without a snapshot that names it, until a later deletion above it can merge it.
    """
    bottom_up = tuple(reversed(volume.chain))
    with_dependents = {file for _clone, file in volume.dependents}
    first = min(index for index, image in enumerate(bottom_up) if image.file in dropped) - 1
    last = first
    while last + 1 < len(bottom_up) and bottom_up[last + 1].file in dropped:
        last += 1
    must_stay = bottom_up[last].file in with_dependents
    if bottom_up[0].format == "raw" and volume.parent is None:
        if first == 0 and must_stay:
            first = 1
        elif first == 1 and not must_stay and bottom_up[0].file not in with_dependents and not _is_named(volume, bottom_up[1]):
            first = 0
    below = bottom_up[first - 1] if first else None
    child = bottom_up[last + 1] if last + 1 < len(bottom_up) else None
    longest_below = max((image.size for image in bottom_up[:first]), default=0)
    return _Group(bottom_up[first : last + 1], below, child, must_stay, longest_below)


def _is_named(volume: model.Volume, overlay: model.Image) -> bool:
    """Whether the image is the overlay of a snapshot."""
    return any(snapshot.file == overlay.file for snapshot in volume.snapshots)


def _rests_on_parent(volume: model.Volume, snapshot: model.Snapshot) -> bool:
    """Whether the snapshot's point is a file of the parent. Nothing may be merged into that. Only the snapshot's name is removed."""
    return volume.parent is not None and snapshot.file == volume.own_base.file


def _refuse_losing_bitmaps(volume: model.Volume, group: _Group, pivot: model.Image, merged: list[Step], bitmaps: Bitmaps) -> None:
    """A bitmap says what changed since a backup. It is lost with its file. In the file that stays, everything that is committed into
    that file must be marked in the bitmap. qemu-img does so for a bitmap that tracks writes.

    :raises Conflict: a bitmap would be lost, or would no longer be right.
    """
    filled = any(isinstance(step, Commit) and step.into == pivot.file for step in merged)
    removed = [image.file for image in group.files if image.file != pivot.file]
    lost = [f"{one.name} of {file}" for file in removed for one in bitmaps.get(file, ())]
    lost += [f"{one.name} of {pivot.file}" for one in bitmaps.get(pivot.file, ()) if filled and not one.tracks]
    if lost:
        raise errors.Conflict(
            f"volume {volume.name}",
            f"deleting these snapshots would lose dirty bitmaps: {model.listed(lost)}",
            "let the backup program end with them first, or say drop_bitmaps: true, after which the next backup has to be a full one",
        )


def _merge(
    group: _Group, known: cost.Allocations, fixed_tails: Container[str], bitmaps: Bitmaps, commits_only: bool
) -> tuple[list[Step], model.Image]:
    """Steps after which the pivot shows what the top of the group showed, and the pivot as it is then."""
    files = group.files
    if group.below is None and files[0].format == "raw":
        steps, pivot = _commit_into_raw(files, known)
    else:
        costs = cost.estimates([image.file for image in files], group.below is not None, known)
        steps, pivot = _commit_and_pull(group, _pivot(group, None if commits_only else costs, fixed_tails, bitmaps), costs)
    if group.child is not None and group.child.backing_file != pivot.file:
        steps.append(Repoint(group.child.file, pivot.file, str(pivot.format)))
    return steps, pivot


def _pivot(group: _Group, costs: list[cost.Estimate] | None, fixed_tails: Container[str], bitmaps: Bitmaps) -> int:
    """Index of the file that stays: one that has dirty bitmaps, or else the cheapest. The lowest one where costs are unknown or equal.

    A commit into p is wrong in three cases. First: a file from p to the top is shorter than one below it. What the longer file
    holds beyond the end of the shorter one would become visible again. Second: p would grow, and a file below it is longer than p.
    qemu-img records the new size before it writes the zeros. A crash in between makes visible what lies below. Third: p would
    grow and cannot (``fixed_tails``). The top itself only pulls. It is always possible.
    """
    sizes = [image.size for image in group.files]
    top = len(sizes) - 1
    if group.must_stay:
        return top
    sizes_below = [max([group.longest_below, *sizes[:index]]) for index in range(top + 1)]
    possible = [
        index
        for index in range(top + 1)
        if all(sizes[k] <= sizes[k + 1] for k in range(index, top))
        and (sizes[index] == sizes[top] or (sizes[index] >= sizes_below[index] and group.files[index].file not in fixed_tails))
    ]
    marked = [index for index in possible if bitmaps.get(group.files[index].file)]
    possible = marked or possible
    if costs is None:
        return possible[0]
    return min(possible, key=lambda index: (_commit_bytes(group.files, index, costs) + costs[index].pull, index))


def _commit_bytes(files: tuple[model.Image, ...], index: int, costs: list[cost.Estimate]) -> int:
    return 0 if _nothing_to_commit(files[index], files[index + 1 :]) else costs[index].commit


def _commit_and_pull(group: _Group, index: int, costs: list[cost.Estimate] | None) -> tuple[list[Step], model.Image]:
    files = group.files
    pivot, above, under = files[index], files[index + 1 :], files[:index]
    steps: list[Step] = []
    if not _nothing_to_commit(pivot, above):
        steps.append(Commit(files[-1].file, pivot.file, str(pivot.format), costs[index].commit if costs else None))
        pivot = replace(pivot, size=max(pivot.size, files[-1].size), empty=False)
    if under:
        below, below_format = (group.below.file, group.below.format) if group.below else (None, None)
        steps.append(Pull(pivot.file, below, below_format, costs[index].pull if costs else None))
        pivot = replace(pivot, backing_file=below, backing_format=below_format, empty=False)
    return steps, pivot


def _commit_into_raw(files: tuple[model.Image, ...], known: cost.Allocations) -> tuple[list[Step], model.Image]:
    """A raw base can only be committed into. Where an overlay is shorter than the file below it, everything up to that file is
    committed first. Then the base is cut to the overlay's size, because beyond its end the overlay shows zeros."""
    base = files[0]
    steps: list[Step] = []
    waiting: list[model.Image] = []
    for image in files[1:]:
        if image.size < (waiting[-1] if waiting else base).size:
            _commit_waiting(base, waiting, steps, known)
            waiting = []
            steps.append(Truncate(base.file, image.size))
            base = replace(base, size=image.size)
        waiting.append(image)
    return steps, _commit_waiting(base, waiting, steps, known)


def _commit_waiting(base: model.Image, waiting: list[model.Image], steps: list[Step], known: cost.Allocations) -> model.Image:
    """Add the commit of ``waiting`` (bottom first) to ``steps``, if one is needed. Returns the base as it is then."""
    if not waiting or _nothing_to_commit(base, tuple(waiting)):
        return base
    steps.append(Commit(waiting[-1].file, base.file, str(base.format), cost.committed_into_raw([image.file for image in waiting], known)))
    return replace(base, size=max(base.size, waiting[-1].size), empty=False)


def _nothing_to_commit(pivot: model.Image, above: tuple[model.Image, ...]) -> bool:
    """Whether a commit is not needed: empty overlays of the same size add nothing to what the pivot shows."""
    return all(image.empty and image.size == pivot.size for image in above)


def _snapshots_after_merge(snapshots: tuple[model.Snapshot, ...], group: _Group, pivot: model.Image) -> tuple[model.Snapshot, ...]:
    """The remaining snapshots after a merge. One whose overlay was the group's lowest file now has the pivot as its overlay."""
    lowest = group.files[0].file
    return tuple(replace(snapshot, file=pivot.file) if snapshot.file == lowest else snapshot for snapshot in snapshots)


def _after_merge(volume: model.Volume, group: _Group, pivot: model.Image) -> model.Volume:
    changes: dict[str, model.Image | None] = {image.file: None for image in group.files}
    changes[pivot.file] = pivot
    if group.child is not None:
        changes[group.child.file] = replace(group.child, backing_file=pivot.file, backing_format=pivot.format)
    return volume.with_images(**changes)


def _refuse_dependents(volume: model.Volume, dropped_points: list[model.Snapshot]) -> None:
    blocked = [
        f"{clone} on {snapshot.name}" for snapshot in dropped_points for clone, file in volume.dependents if file == volume.point_file(snapshot.name)
    ]
    if blocked:
        raise errors.HasDependents(
            f"volume {volume.name}", f"linked clones or other files rest on what would go: {model.listed(blocked)}", headers.DEPENDENTS_REMEDY
        )
