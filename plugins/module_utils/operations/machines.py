# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines on volumes are started and ended, on this host.

A machine is recorded before it is started. So whatever is killed, the record that is left names what may run, and the next task, or whoever
removes the volumes of its lease, finds it. Volumes are not locked: QEMU's own locks on images, and what modules look at before and after each
change, keep them apart.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Callable, Collection, ContextManager, Mapping, NamedTuple, Sequence

from .. import errors, model
from ..consumers import answering, described, run_directory
from ..consumers.consumer import Consumer, of_record
from ..lease import Lease
from . import candidates, lease_holding, reading
from .lease_holding import HeldLease
from .options import Options

STARTED, STOPPED, ABSENT = "started", "stopped", "absent"
_SEED_FORMAT = "raw"
# Of a guest that stands still, by the words of QEMU and of libvirt for it.
_REMEDIES = {
    "internal-error": "the processor or KVM cannot run it: stop it, and give other accelerators, such as tcg alone",
    **dict.fromkeys(("io-error", "ioerror"), "its share failed or is full: mend that, and stop it"),
}


@dataclass(frozen=True)
class Asked:
    """A machine as a task names it, by its volumes. ``seed`` is one that the guest only reads. ``memory`` is in bytes."""

    name: str
    volumes: tuple[str, ...]
    seed: str | None = None
    memory: int = 1 << 30
    cpus: int = 1
    arguments: tuple[str, ...] = ()
    definition: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All its volumes."""
        return (*self.volumes, *([self.seed] if self.seed else []))


@dataclass(frozen=True)
class Request:
    """What a task wants of machines.

    :ivar sign: by what to see that a guest answers (see :mod:`answering`); None: what the consumer finds usual. :ivar answers_within: seconds.
    :ivar shuts_down_within: seconds that a guest has before its machine is ended. :ivar lease: under which they run, as the option has it.
    """

    share: model.Share
    machines: tuple[Asked, ...]
    state: str
    directory: run_directory.RunDirectory
    consumer: Consumer
    sign: str | None = None
    answers_within: float = 300
    shuts_down_within: float = 0
    lease: Mapping | None = None
    parallel: int = 4


class Done(NamedTuple):
    """What became of a machine. ``consumer``: how it can be reached; None if it does not run."""

    name: str
    before: str
    after: str
    consumer: dict | None = None
    error: errors.StorageError | None = None

    @property
    def changed(self) -> bool:
        """Whether it is, or would be, in another state."""
        return self.error is None and self.before != self.after


def ensure(request: Request, options: Options) -> list[Done]:
    """Bring machines to a state. What fails with one of them does not keep the others. :raises LeaseLost: the lease is not the task's any more."""
    if request.state != STARTED:
        return _each(request, partial(_end, request, options))
    with _holding(request, options) as held:
        found = _resolved(request, held, options.check)
        done = _each(request, lambda asked: _start(request, found[asked.name], held, options))
    if options.check:
        return done
    return _all_answering(request, found, done)


def _holding(request: Request, options: Options) -> ContextManager[HeldLease | None]:
    """A context in which nobody takes the lease over: the lease, or None."""
    if not request.lease:
        return nullcontext(None)
    return lease_holding.held_one(request.lease, candidates.Candidates((request.share,)), options)


def _each(request: Request, work: Callable[[Asked], Done]) -> list[Done]:
    def one(asked: Asked) -> Done:
        try:
            return work(asked)
        except Exception as error:  # one machine must not keep the others
            return Done(asked.name, STOPPED, STOPPED, None, errors.as_storage_error(error, f"machine {asked.name}"))

    with ThreadPoolExecutor(max_workers=max(1, min(request.parallel, len(request.machines)))) as pool:
        return list(pool.map(one, request.machines))


def _alone(directory: run_directory.RunDirectory, name: str, options: Options) -> ContextManager[None]:
    """A context in which this task alone works with a machine. Check mode changes none."""
    return nullcontext() if options.check else directory.locked(name, options.lock_timeout)


# -- starting ------------------------------------------------------------------------------------------------------------


def _resolved(request: Request, held: HeldLease | None, is_check: bool) -> dict[str, described.Wanted | errors.StorageError]:
    """The machines with the disks that they get, by name; or why one cannot have them."""
    names = sorted({name for asked in request.machines for name in asked.names})
    told = {volume["name"]: volume for volume in reading.list_volumes(request.share, names)}
    found: dict[str, described.Wanted | errors.StorageError] = {}
    for asked in request.machines:
        try:
            there = [name for name in asked.names if name in told or not is_check]  # check mode takes the others for granted
            disks = tuple(_disk(name, told.get(name), name == asked.seed, request.share, held) for name in there)
            found[asked.name] = described.Wanted(asked.name, disks, asked.memory, asked.cpus, asked.arguments, asked.definition)
        except errors.StorageError as error:
            found[asked.name] = error
    return found


def _disk(name: str, told: dict | None, is_seed: bool, share: model.Share, held: HeldLease | None) -> described.Disk:
    if told is None:
        raise errors.VolumeNotFound(f"volume {name}", f"it is not on {share.label}", "make it first")
    if "error_code" in told:
        raise errors.Conflict(f"volume {name}", f"it cannot be used ({told['error_code']}: {told['msg']})", "mend that first")
    if told.get("pending"):
        raise errors.Conflict(f"volume {name}", "a task on it was interrupted", "run that task again first")
    if told["format"] is None:
        raise errors.Conflict(f"volume {name}", "nobody knows its format", "let remotefs_volume adopt it first, with its format")
    if held is not None:
        held.require_made_under(name, told["lease"])
    if is_seed and told["format"] != _SEED_FORMAT:
        raise errors.InvalidParameter("option seed", f"volume {name} is {told['format']}, and a seed is raw", "name a volume that was made with source.seed")
    return described.Disk(name, told["path"], told["format"], is_seed)


def _start(request: Request, wanted: described.Wanted | errors.StorageError, held: HeldLease | None, options: Options) -> Done:
    if isinstance(wanted, errors.StorageError):
        raise wanted
    directory, place = request.directory, request.directory.place(wanted.name)
    with _alone(directory, wanted.name, options):
        record, consumer = directory.read(place), request.consumer
        if record is not None and of_record(record, options.task.warn).runs(place, record):
            if not options.check or len(wanted.disks) == len(record.volumes):
                _require_same(wanted, record, request, held)
            known = record if options.check else consumer.known(place, record)
            if known != record:
                directory.write(place, known)
            return Done(wanted.name, STARTED, STARTED, consumer.told(place, known) if options.check else None)
        if options.check:
            return Done(wanted.name, STOPPED, STARTED)
        directory.make(place)
        ports = record.ports if record is not None and record.consumer == consumer.name else {}
        lease, lease_id = (held.name, held.id) if held is not None else (None, None)
        fresh = consumer.prepared(described.Record(wanted.name, consumer.name, request.share.path, wanted.volumes, lease, lease_id, ports))
        directory.write(place, fresh)
        if held is not None:
            held.verify()
        started = consumer.start(wanted, place, fresh)
        try:
            directory.write(place, started)
        except errors.StorageError:
            consumer.stop(place, started, 0)  # what fails leaves nothing that runs
            raise
        return Done(wanted.name, STOPPED, STARTED)


def _require_same(wanted: described.Wanted, record: described.Record, request: Request, held: HeldLease | None) -> None:
    """:raises Conflict: another machine has that name."""
    if record.consumer != request.consumer.name or record.share != request.share.path or record.volumes != wanted.volumes:
        problem = f"a machine of this name runs with {record.consumer} on volumes of {record.share}: {model.listed(record.volumes)}"
        raise errors.Conflict(f"machine {wanted.name}", problem, "stop that one first, or give another run_dir")
    if held is not None and held.id and record.lease_id not in (None, held.id):  # volumes belong to one lease, so that it has others of these names open
        problem = "it runs since an earlier lease, on disks that have been removed meanwhile"
        raise errors.Conflict(f"machine {wanted.name}", problem, "end it with remotefs_machine (state: absent), and run the task again")


def _all_answering(request: Request, found: Mapping[str, described.Wanted | errors.StorageError], done: Sequence[Done]) -> list[Done]:
    """The same, once each guest answers. All wait at the same time."""
    waiting = [(one, wanted) for one in done for wanted in [found[one.name]] if one.error is None and isinstance(wanted, described.Wanted)]
    if not waiting:
        return list(done)
    until = time.monotonic() + request.answers_within
    with ThreadPoolExecutor(max_workers=len(waiting)) as pool:
        told = {one.name: one for one in pool.map(lambda pair: _answering(request, pair[1], pair[0], until), waiting)}
    return [told.get(one.name, one) for one in done]


def _answering(request: Request, wanted: described.Wanted, one: Done, until: float) -> Done:
    """The machine once its guest answers, with how it can be reached, or with why it does not."""
    place, consumer, error = request.directory.place(one.name), None, None
    try:
        record = request.directory.read(place)
        if record is not None:
            error = _silence(request, wanted, place, record, until)
            consumer = request.consumer.told(place, record)
    except errors.StorageError as problem:
        error = problem
    return one._replace(consumer=consumer, error=error)


def _silence(request: Request, wanted: described.Wanted, place: run_directory.Place, record: described.Record, until: float) -> errors.StorageError | None:
    """Wait for a guest. Why it does not answer; None: it does, or nobody waits for it."""
    consumer, sign = request.consumer, request.sign or request.consumer.usual_sign(wanted)
    if sign == answering.NONE:
        return None
    if answering.wait(consumer.answers(place, record, sign), lambda: consumer.runs(place, record) and not consumer.halted(place, record), until):
        return None
    return _silent(request, place, record)


def _silent(request: Request, place: run_directory.Place, record: described.Record) -> errors.ToolFailed:
    words = request.consumer.last_words(place)
    halted = request.consumer.halted(place, record)
    if halted:
        problem, remedy = f"its guest stands still ({halted})", _REMEDIES.get(halted, "look at what it boots, and stop it")
    elif request.consumer.runs(place, record):
        problem = f"its guest does not answer within {request.answers_within:g} s"
        remedy = "look at its console and at what it boots, then run the task again; it runs on"
    else:
        problem, remedy = "it has ended before its guest answered", "look at what it boots"
    return errors.ToolFailed(f"machine {place.name}", problem + (f"; its console ends with: {words}" if words else ""), remedy)


# -- ending --------------------------------------------------------------------------------------------------------------


def _end(request: Request, options: Options, asked: Asked) -> Done:
    directory, place = request.directory, request.directory.place(asked.name)
    with _alone(directory, asked.name, options):
        record = directory.read(place)
        if record is None:
            return Done(asked.name, request.state, request.state)
        if record.share != request.share.path:
            raise errors.Conflict(f"machine {asked.name}", f"it runs on volumes of {record.share}", "give the share of its volumes, or another run_dir")
        ran = _ended(directory, place, record, request.shuts_down_within, request.state == ABSENT, options)
        return Done(asked.name, STARTED if ran else STOPPED, request.state)


def _ended(
    directory: run_directory.RunDirectory, place: run_directory.Place, record: described.Record, patience: float, is_forgotten: bool, options: Options
) -> bool:
    """End a machine that this task has for itself, if this is no check mode. Returns whether it ran. :raises StorageError: it cannot be ended."""
    consumer = of_record(record, options.task.warn)
    ran = consumer.runs(place, record)
    if not options.check:
        consumer.stop(place, record, patience)
        if is_forgotten:
            directory.forget(place)
    return ran


def end_those_of(lease: Lease, share: model.Share, run_dir: str, names: Collection[str], options: Options) -> frozenset[str]:
    """End the machines of this host that were started under a lease and have one of these volumes, and forget them. Returns the volumes that
    they had open. :raises StorageError: one cannot be ended.
    """

    def found(name: str) -> described.Record | None:
        try:
            record = directory.read(directory.place(name))
        except errors.StorageError as error:  # if it is of this lease, its volumes turn out to be in use
            options.task.warn(str(error))
            return None
        is_meant = record is not None and (record.lease_id, record.share) == (lease.id, share.path) and not set(record.volumes).isdisjoint(names)
        return record if is_meant else None

    directory = run_directory.RunDirectory(run_dir)
    ended: set[str] = set()
    try:
        recorded = directory.names()
    except errors.StorageError as error:  # nothing there can be believed; most leases have no machines
        options.task.warn(str(error))
        return frozenset()
    for name in recorded:
        if found(name) is None:
            continue
        with _alone(directory, name, options):
            record = found(name)  # again: another task may have had it meanwhile
            if record is not None and _ended(directory, directory.place(name), record, 0, True, options):
                ended.update(record.volumes)
    return frozenset(ended)
