# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans carried out under the locks of a workspace. Imported late: a task that changes nothing starts faster without."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Iterator, Sequence

from .. import model
from ..apply.engine import NEVER, CopySource, Engine, Terms, attached_engine, open_engine, try_out
from ..apply.interrupted import Interrupted
from ..plan import abilities
from ..plan.plan import CREATE_SNAPSHOT, Plan
from ..store.files import ballast
from ..store.metadata import share_abilities
from . import workspace
from .options import TakesLong

if TYPE_CHECKING:
    from ..apply.executor import Executor

_CHECK_PATIENCE = 5.0  # seconds for which check mode waits for another task that works with the machine


@contextmanager
def engine_for(
    work: workspace.Workspace, share: model.Share, plans: Sequence[Plan] = (), mixed: bool = False, are_group: bool = False, known: Sequence[model.Volume] = ()
) -> Iterator[Engine]:
    """What reaches the images of volumes on this share, while the context lasts. Where the user names the machine that has them open, it
    is that machine. A volume that is only to be made is nobody's yet.

    :param mixed: the machine may have some of the volumes open, and nobody the others. :param are_group: these plans are one snapshot of
        several volumes, of which it must have some.
    :param known: what is worked on, where no plans are given.
    :raises InUse: it cannot carry out one of these plans, or the machine does not answer.
    """
    options = work.options
    terms = Terms(
        work.locks.descriptors,
        options.assume_unused,
        options.task.warn,
        partial(work.look, share),
        options.attachment,
        options.drop_bitmaps,
        mixed or work.is_group or options.of_all,
        options.speed,
        options.timeout,
        min(options.lock_timeout, _CHECK_PATIENCE) if options.check else options.lock_timeout,
        options.quiesce,
        options.agent,
        options.task.meter,
    )
    volumes = [plan.before for plan in plans if plan.before is not None]
    if options.attachment is None or (plans and not volumes):
        engine = open_engine(abilities.OFFLINE, work.directory(share), terms)
    else:
        engine = attached_engine(work.directory(share), terms, volumes, are_group, known)
    try:
        for plan in plans:
            engine.abilities.require_for(plan)
        yield engine
    finally:
        engine.close()


def volumes_of(plans: Sequence[Plan]) -> list[model.Volume]:
    """The volumes before and after some plans."""
    return [volume for plan in plans for volume in (plan.before, plan.after) if volume is not None]


def apply(work: workspace.Workspace, share: model.Share, plan: Plan, source: CopySource | None = None) -> None:
    """Carry out a plan. :raises StorageError: as :meth:`Executor.apply` does. :raises NotBegun: it was not begun."""
    with engine_for(work, share, [plan]) as engine, _executor(work, share, engine, [plan]) as executor:
        executor.apply(plan, source)
        note_quiesced(work, engine, [plan])
    if any(step.name == "unlink" for step in plan.steps):
        ballast.keep(work.directory(share))  # with what was freed


def apply_together(work: workspace.Workspace, share: model.Share, plans: Sequence[Plan]) -> None:
    """Take one snapshot of several volumes, as :meth:`Executor.apply_together` does, with a name for the group that no other has."""
    with engine_for(work, share, plans, are_group=True) as engine, _executor(work, share, engine, plans) as executor:
        executor.apply_together(plans, os.urandom(8).hex())
        note_quiesced(work, engine, plans)


def note_quiesced(work: workspace.Workspace, engine: Engine, plans: Sequence[Plan]) -> None:
    """Keep whether the guest was frozen for the snapshots of these plans, or in check mode would be, for the task to tell."""
    if work.options.quiesce != NEVER:
        work.quiesced.update({plan.volume: engine.quiesced(plan.volume) for plan in plans if plan.operation == CREATE_SNAPSHOT and plan.intent})


def finish(work: workspace.Workspace, share: model.Share, interrupted: Interrupted) -> None:
    """End what an interrupted task left. What was ended of other volumes is kept, for a later part of this task to tell."""
    group = interrupted.group
    every = (interrupted, *(group.others if group is not None else ()))
    plans = [one.plan for part in every for one in part.resumptions]
    with engine_for(work, share, mixed=group is not None, known=volumes_of(plans)) as engine, _executor(work, share, engine, plans) as executor:
        ended = executor.finish(interrupted)
    if ended:
        told = work.options.task.kept.setdefault("ended", {})
        told.update({(share.path, one.resumptions[0].plan.volume): one.describe() for one in ended})


@contextmanager
def _executor(work: workspace.Workspace, share: model.Share, engine: Engine, plans: Sequence[Plan]) -> Iterator[Executor]:
    """Carries out these plans, once it is their time and there is room for records."""
    from ..apply.executor import Executor  # late: a prediction needs the engine alone

    directory, task = work.directory(share), work.options.task
    with _in_their_time(work, plans):
        if share_abilities.FILE not in ballast.keep(directory) and plans:
            try_out(directory, plans[0].volume)
        yield Executor(directory, engine, task.warn, task.log, partial(work.look, share))


@contextmanager
def _in_their_time(work: workspace.Workspace, plans: Sequence[Plan]) -> Iterator[None]:
    """What moves much data waits for its place; under the locks of a batch not for ever, unless this change has begun already. Afterwards
    nothing is known any more of what was there before."""
    options, task = work.options, work.options.task
    if task.may_begin_anew and any(plan.takes_long(options.speed) for plan in plans):
        raise TakesLong
    task.kept["begun"] = True
    batch_locks, begun, work.begun = task.batch_locks, work.begun, True
    try:
        if any(plan.moves_much for plan in plans):
            with task.waiting.long_work(batch_locks.until if batch_locks is not None and not begun else None):
                yield
        else:
            yield
    finally:
        work.look_anew()
        if batch_locks is not None:
            for plan in plans:
                batch_locks.follow(plan)
