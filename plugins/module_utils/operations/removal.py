# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes that are to go, with whatever an interrupted task left of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from .. import errors, model
from ..apply.interrupted import Interrupted
from ..plan import moving, planner, steps
from ..store.metadata import stale
from ..store.volumes import chains
from . import refusals, transaction, updating, workspace

if TYPE_CHECKING:
    from ..store.volumes import broken_chains


def remove(work: workspace.Workspace, share: model.Share, name: str, cascade: bool) -> transaction.Outcome:
    """Remove a volume that was there, or whose remains were, before its lock was taken."""
    work.ends_moves = True  # by removing what has arrived
    work.locks.take([(share, name)])
    leftovers = tuple(work.directory(share).leftovers(name))
    missing: tuple[str, ...] = ()
    try:
        if cascade:
            volume, recovered, strays = _recover_for_removal(work, share, name)
        else:
            volume, recovered = transaction.recover(work, share, name, dependents=True)
            strays = ()
    except errors.ChainBroken:
        broken = _broken(work, share, name, cascade)
        if broken is None:
            raise
        volume, missing, strays = broken.volume, broken.missing, ()
        recovered = _given_up(work, share, name, leftovers)
    if volume is None:
        work.locks.forget_files()
        return transaction.Outcome(name, bool(recovered), [], recovered, None, None)
    updating.refuse_member(work, share, volume)
    if work.options.permit is not None:
        work.options.permit(volume)
    if volume.move is not None and volume.move.is_complete and not work.options.discard:
        raise moving.unfinished(volume, share.label)
    if not missing:
        _refuse_foreign(volume)
        strays += stale.left_by_stale(work.directory(share), volume)
    plan = refusals.plan_that_gives_up(work, share, partial(planner.delete_volume, volume, leftovers=strays, missing=missing), cascade)
    outcome = transaction.carry_out(work, share, plan, recovered)
    work.mode.forget_groups(share, name)
    work.locks.forget_files()
    return outcome


def _broken(work: workspace.Workspace, share: model.Share, name: str, cascade: bool) -> broken_chains.Broken | None:
    """The volume as far as it is there, if files of its chain are missing; a warning names them. None otherwise, or where it has
    unfinished work and not all of it is to go."""
    from ..store.metadata import records  # late: hardly any volume has gaps
    from ..store.volumes import broken_chains

    directory = work.directory(share)
    directory.refresh()
    record = records.read(directory, name)
    broken = broken_chains.find(directory, name)
    if broken is None or (record is not None and record.intent is not None and not cascade):
        return None
    told = f"volume {name} on {share.label}: files of its chain are missing: {model.listed(broken.missing)}"
    told += f"; {model.listed(broken.left)} is left where it is, because nothing but a name makes it this volume's" if broken.left else ""
    work.options.task.warn(told)
    # A file of a parent that rests on one of this volume's own counts as well, and what rests on one that is left: then .info may be wrong.
    asked = replace(broken.volume, chain=broken.volume.own, parent=None, stale=(*broken.volume.stale, *((file, file) for file in broken.left)))
    found = work.mode.dependents(share, asked, broken.left)
    return broken._replace(volume=replace(broken.volume, dependents=found))


def _given_up(work: workspace.Workspace, share: model.Share, name: str, leftovers: tuple[str, ...]) -> list:
    """What an interrupted task left of a volume with gaps: its temporary files are removed, other work is not ended any more."""
    from ..store.metadata import records, unfinished

    directory = work.directory(share)
    record = records.read(directory, name)
    work.mode.finish(share, Interrupted((), tuple(directory.leftovers(name))))
    told = Interrupted((), leftovers).describe()
    if record is not None and record.intent is not None:
        told.append({"operation": unfinished.operation(record.intent), "outcome": "discarded", "steps": [], "left": []})
    return told


def _refuse_foreign(volume: model.Volume) -> None:
    """:raises Conflict: nothing says that the lone file is a disk; it may be anything."""
    if volume.base.format is None:
        raise errors.Conflict(
            f"volume {volume.name}",
            f"the format of {volume.base.file} {volume.doubt}, and foreign files are never removed"
            if volume.doubt
            else "it is a file of which nothing records that it is a volume, and foreign files are never removed",
            "adopt it first by saying its format with state: present, or remove the file by hand",
        )


def _recover_for_removal(work: workspace.Workspace, share: model.Share, name: str) -> tuple[model.Volume | None, list, tuple[str, ...]]:
    """As :func:`recover`, for a volume that is to go with all its snapshots. A merge that was interrupted is not finished: a full share
    might not allow it. The third value names the volume's files outside the chain. Where the share was changed since, they are left
    alone and named in the result."""
    directory = work.directory(share)
    interrupted = transaction.find_left(work, share, name, discard=True)
    begun = [one for one in interrupted.resumptions if one.plan.after is not None]
    observed = chains.observe(directory, name) if begun else None
    if observed is None or (share.path, name) in work.options.task.predicted:
        return (*transaction.recover(work, share, name, dependents=True), ())
    left = Interrupted((), interrupted.leftovers)
    work.mode.finish(share, left)
    volume, told = observed.volume, [replace(one, outcome="discarded", plan=replace(one.plan, steps=())).describe() for one in begun]
    made = {file for one in begun if one.plan.after for file in one.plan.after.own_files}
    strays = (made | {step.file for one in begun for step in one.plan.steps if isinstance(step, steps.Unlink)}) - set(volume.files)
    volume = replace(volume, dependents=work.mode.dependents(share, volume, strays))
    return volume, told + left.describe(), tuple(sorted(file for file in strays if directory.root.status(file) is not None))
