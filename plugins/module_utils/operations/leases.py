# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases are taken, renewed and released, and what is left of those that ran out is collected.

Each change has the lock of the lease, and reads it again under that. A collector first makes the lease its own, durably. Then it removes
the volumes that the lease lists and whose records have its id. The lease goes last. So whatever is killed, the lease that is left
names what is left.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Iterator, NamedTuple, Sequence

from .. import errors, limited, model
from ..lease import Lease
from ..limited import Alive
from ..plan import leases as plans
from ..plan.leases import Asked
from ..store.files.directory import ShareDirectory
from ..store.locks.lock import VolumeLock
from ..store.metadata import leases, records
from . import golden, named_locks, transaction, volumes
from .bulk import runner
from .candidates import Candidates
from .options import Options


@dataclass(frozen=True)
class LeaseRequest:
    """A lease as a task asks for it. ``cascade``: its volumes go with it, or with their names. ``parallel``: volumes to remove at a time.
    ``run_dir``: machines of this host on those volumes, which are recorded there, are ended first (see :mod:`machines`)."""

    share: model.Share
    asked: Asked
    cascade: bool = False
    parallel: int = 1
    run_dir: str | None = None


@dataclass(frozen=True)
class CollectRequest:
    """``grace``: seconds that must have passed since the end of a lease. ``golden_keep``: how many golden volumes stay that no lease uses; None:
    all. ``spared``: the name of a lease and its owner, who renews it. ``run_dir``: as of :class:`LeaseRequest`."""

    share: model.Share
    grace: float
    golden_keep: int | None = None
    parallel: int = 1
    spared: tuple[str, str] | None = None
    run_dir: str | None = None


class Collected(NamedTuple):
    """What a collector did: leases and volumes that are gone, by name, and what was skipped, each with ``name``, ``error_code`` and ``msg``."""

    leases: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    skipped: tuple[dict, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything was changed."""
        return bool(self.leases or self.volumes)

    def joined(self, other: Collected) -> Collected:
        """Both, as one."""
        return Collected(self.leases + other.leases, self.volumes + other.volumes, self.skipped + other.skipped)


class Done(NamedTuple):
    """What became of a lease. ``before`` and ``after`` are None where it is not there."""

    before: Lease | None
    after: Lease | None
    changed: bool
    renewed: bool = False
    removed: tuple[str, ...] = ()


def describe(lease: Lease | None, share: model.Share, renewed: bool = False) -> dict | None:
    """A lease for users."""
    if lease is None:
        return None
    known = lease.written > 0
    return {
        "name": lease.name,
        "share": share.source,
        "id": lease.id or None,
        "owner": lease.owner,
        "acquired": model.time_text(lease.acquired) if known else None,
        "expires": model.time_text(lease.ends) if known else None,
        "renewed": renewed,
        "renewed_at": model.time_text(lease.written) if known else None,
        "ttl": lease.ttl,
        "labels": dict(lease.labels),
        "volumes": list(lease.volumes),
        "uses": list(lease.uses),
        "collector": lease.collector,
    }


# -- taking, renewing, releasing ---------------------------------------------------------------------------------------


def hold(request: LeaseRequest, options: Options) -> Done:
    """Take a lease, or renew it. :raises LeaseHeld: somebody else has it. :raises LeaseLost: it was the task's and is not any more.

    :raises Conflict: volumes that it shall not list any more are still there. :raises InUse: they cannot go.
    """
    share, asked = request.share, request.asked
    subject = f"lease {asked.name} on {share.label}"
    _warn_of_clocks(share, options)
    if options.check:
        with ShareDirectory(share) as directory:
            before, now = leases.read(directory, asked.name), time.time()
            if before is None:
                return foretold_anew(share, asked, options)
            after = plans.held(before, asked, now, "", _left(directory, before), subject)
            removed = _dropped(directory, before, after, request, options)
            return _told(before, replace(after, acquired=after.acquired or now, written=now), removed)
    with _locked(share, asked.name, options) as directory:
        before = leases.read(directory, asked.name)
        at = leases.time_of_share(directory, leases.lock_name(asked.name)) if plans.needs_time(before, asked) else 0.0
        left = _left(directory, before) if before is not None and before.owner != asked.owner else ()
        after = plans.held(before, asked, at, os.urandom(8).hex(), left, subject)
        removed = _dropped(directory, before, after, request, options)
        return _told(before, leases.write(directory, after, before is None), removed)


def foretold_anew(share: model.Share, asked: Asked, options: Options) -> Done:
    """What check mode says of a lease that is not there: it would be taken, or an earlier task of the playbook would have.

    :raises LeaseLost: it was the task's, and is gone.
    """
    now, subject = time.time(), f"lease {asked.name} on {share.label}"
    is_assumed = options.assume and asked.renews_only and asked.id is None
    if is_assumed:
        options.task.warn(f"{subject} does not exist yet: check mode assumes that an earlier task takes it")
    after = replace(plans.held(None, replace(asked, renews_only=asked.renews_only and not is_assumed), now, "", (), subject), acquired=now, written=now)
    return _told(after if is_assumed else None, after, ())


def _told(before: Lease | None, after: Lease, removed: tuple[str, ...]) -> Done:
    is_renewal = before is not None and before.id == after.id
    return Done(before, after, not plans.is_same(before, after), is_renewal, removed)


def _dropped(directory: ShareDirectory, before: Lease | None, after: Lease, request: LeaseRequest, options: Options) -> tuple[str, ...]:
    """Remove volumes that the lease lists no more. Returns those that were there."""
    names = plans.dropped(before, after) if before is not None and before.id == after.id else ()
    there = tuple(name for name in names if _is_of(directory, name, after.id))
    if there and not request.cascade:
        raise plans.still_there(f"lease {after.name} on {request.share.label}", there)
    removed, skipped = _remove(request, after, there, options) if there else ((), ())
    _require_all(f"lease {after.name} on {request.share.label}", skipped)
    return removed


def release(request: LeaseRequest, options: Options) -> Done:
    """Give a lease up. One that is not there is no change.

    :raises LeaseHeld, LeaseLost: it is not the task's. :raises Conflict: its volumes are still there, and shall not go with it.
    :raises InUse: somebody has one of them open. The others are gone then, and the lease stays.
    """
    share, asked = request.share, request.asked
    subject = f"lease {asked.name} on {share.label}"
    with ShareDirectory(share) as directory:
        before = leases.read(directory, asked.name)
        if before is None:
            return Done(None, None, False)
        plans.require_own(before, asked, subject)
        if options.check:
            return Done(before, None, True, removed=_released(directory, before, request, options))
    with _locked(share, asked.name, options, forgets=True) as directory:
        before = leases.read(directory, asked.name)
        if before is None:
            return Done(None, None, False)
        plans.require_own(before, asked, subject)
        removed = _released(directory, before, request, options)
        leases.remove(directory, asked.name)
        return Done(before, None, True, removed=removed)


def _released(directory: ShareDirectory, lease: Lease, request: LeaseRequest, options: Options) -> tuple[str, ...]:
    subject, left = f"lease {lease.name} on {request.share.label}", _left(directory, lease)
    if left and not request.cascade:
        raise plans.still_there(subject, left)
    _forget_begun(request, directory, lease, options)
    removed, skipped = _remove(request, lease, left, options)
    _require_all(subject, skipped)
    return removed


def _require_all(subject: str, skipped: tuple[dict, ...]) -> None:
    """:raises InUse, Conflict: a volume could not go."""
    if skipped:
        kind = errors.InUse if all(one["error_code"] == errors.InUse.error_code for one in skipped) else errors.Conflict
        names = model.listed(one["name"] for one in skipped)
        raise kind(subject, f"not all of its volumes could be removed: {names}: {skipped[0]['msg']}", "run the task again", {"left": list(skipped)})


# -- collecting --------------------------------------------------------------------------------------------------------


def collect(request: CollectRequest, options: Options) -> Collected:
    """Remove what is left of leases that ran out. What cannot go now is skipped, and stays under its lease."""
    share, done = request.share, Collected()
    _warn_of_clocks(share, options)
    with ShareDirectory(share) as directory:
        names, left_behind = leases.names(directory), leases.left_behind(directory)
    for lock_name in left_behind if not options.check else ():
        with suppress(errors.StorageError), _having(share, lock_name, options, patience=0) as (_directory, lock):
            lock.forget_file()
    at = _time(share, options) if names and not options.check else time.time()
    for name in names:
        try:
            done = done.joined(_collect_one(request, name, at, options))
        except errors.StorageError as error:
            done = done.joined(Collected(skipped=(_failed(name, error),)))
    if request.golden_keep is None:
        return done
    try:
        return done.joined(_collect_golden(request, options))
    except errors.StorageError as error:  # such as a lease that cannot be read, so that nobody knows what it uses
        return done.joined(Collected(skipped=(_failed(f"{golden.NAMES}*", error),)))


def _time(share: model.Share, options: Options) -> float:
    """The time by the clock of the share."""
    with _having(share, leases.CLOCK, options, options.lock_timeout) as (directory, lock):
        found = leases.time_of_share(directory, leases.CLOCK)
        lock.forget_file()
        return found


def _collect_one(request: CollectRequest, name: str, at: float, options: Options) -> Collected:
    share = request.share
    with ShareDirectory(share) as directory:
        if not _is_due(leases.read(directory, name), request, at):
            return Collected()
    if options.check:
        with ShareDirectory(share) as directory:
            return _emptied(directory, leases.read(directory, name), request, options)
    with _locked(share, name, options, patience=0, forgets=True) as directory:
        lease = leases.read(directory, name)
        if not _is_due(lease, request, at):
            return Collected()
        if lease is not None and lease.collector is None:
            lease = leases.write(directory, replace(lease, collector=f"a collector on {socket.gethostname()}"), is_new=False)
        done = _emptied(directory, lease, request, options)
        if not done.skipped:
            leases.remove(directory, name)
        return done


def _is_due(lease: Lease | None, request: CollectRequest, at: float) -> bool:
    if lease is None or (lease.collector is None and request.spared == (lease.name, lease.owner)):
        return False
    return lease.collector is not None or lease.is_over(at, request.grace)


def _emptied(directory: ShareDirectory, lease: Lease | None, request: CollectRequest, options: Options) -> Collected:
    if lease is None:
        return Collected()
    _forget_begun(request, directory, lease, options)
    removed, skipped = _remove(request, lease, _left(directory, lease), options)
    return Collected(() if skipped else (lease.name,), removed, skipped)


def _collect_golden(request: CollectRequest, options: Options) -> Collected:
    """Remove golden volumes that environments made, that nothing rests on and that no lease uses, but for the newest ones."""
    share = request.share
    with ShareDirectory(share) as directory:
        doomed = golden.spare(directory, request.golden_keep or 0)

    def permit(volume: model.Volume) -> None:
        with ShareDirectory(share) as directory:
            golden.require_spare(directory, volume)

    removed, _skipped = _run(share, doomed, request.parallel, replace(options, permit=permit))
    return Collected(volumes=removed)


# -- volumes of a lease --------------------------------------------------------------------------------------------------


def _left(directory: ShareDirectory, lease: Lease | None) -> tuple[str, ...]:
    """Those of its volumes that are there: it lists them, and their records have its id."""
    return () if lease is None else tuple(name for name in lease.volumes if _is_of(directory, name, lease.id))


def _is_of(directory: ShareDirectory, name: str, identity: str) -> bool:
    """Whether the record of a volume has this lease. Whether the volume is still the one that was made under it is asked before it is changed.

    :raises OSError, StorageError: the record cannot be read. A lease does not go before it is known what is left of it.
    """
    try:
        record = records.read(directory, name)
    except (errors.ChainBroken, errors.NeedsRecovery, errors.UnsafeImage):
        return True  # it may be; who is going to change it will tell
    return record is not None and record.lease == identity


def _forget_begun(request: LeaseRequest | CollectRequest, directory: ShareDirectory, lease: Lease, options: Options) -> None:
    """Remove temporary files of volumes that a killed task began to make, and of which nothing else is there. No record has the lease yet."""
    folder, recorded = directory.private("tmp"), directory.private("volumes")
    begun = {name.partition("~")[0] for name in (folder.names() if folder is not None else [])}.intersection(lease.volumes)
    if not begun or options.check:
        return
    names, records_there = set(directory.root.names()), set(recorded.names() if recorded is not None else ())  # also of what is no file
    there = {name for name in begun if name in names or records.file_name(name) in records_there}
    if begun > there:
        _remove(request, lease, tuple(sorted(begun - there)), options)


def _remove(request: LeaseRequest | CollectRequest, lease: Lease, names: tuple[str, ...], options: Options) -> tuple[tuple[str, ...], tuple[dict, ...]]:
    def permit(volume: model.Volume) -> None:
        if volume.lease != lease.id:
            problem = f"it is not the one that was made under lease {lease.name}: another file has taken its place"
            raise errors.Conflict(f"volume {volume.name}", problem, "find out whose it is, and remove it or rename it")

    freed = _ended(request, lease, names, options)
    assumed = tuple(name for name in names if options.check and name in freed)  # machines have them open still, and would not
    removed, skipped = _run(request.share, [name for name in names if name not in assumed], request.parallel, replace(options, permit=permit))
    return assumed + removed, skipped


def _ended(request: LeaseRequest | CollectRequest, lease: Lease, names: tuple[str, ...], options: Options) -> frozenset[str]:
    """End the machines of this host that were started under the lease, and have one of these volumes. Returns their volumes."""
    if request.run_dir is None or not os.path.isdir(request.run_dir):
        return frozenset()
    if isinstance(request, CollectRequest) and os.lstat(request.run_dir).st_uid != os.geteuid():
        return frozenset()  # the machines of another user, who collects them; until then their volumes are in use
    from . import machines

    return machines.end_those_of(lease, request.share, request.run_dir, names, options)


def _run(share: model.Share, names: Sequence[str], parallel: int, options: Options) -> tuple[tuple[str, ...], tuple[dict, ...]]:
    """Remove volumes. Returns the names of those that are gone, and what was skipped."""
    candidates = Candidates((share,))
    items = [
        runner.Item(name, frozenset([name]), partial(volumes.ensure_absent, candidates, name, True), runner.Deletion(candidates, name)) for name in names
    ]
    outcomes = runner.run_all(items, 1 if options.check else parallel, options) if items else []
    removed = tuple(name for name, outcome in zip(names, outcomes) if isinstance(outcome, transaction.Outcome) and outcome.changed)
    return removed, tuple(_failed(name, outcome) for name, outcome in zip(names, outcomes) if isinstance(outcome, errors.StorageError))


def _failed(name: str, error: errors.StorageError) -> dict:
    """What users are told of a lease or a volume with which something could not be done."""
    return {"name": name, "error_code": error.error_code, "msg": str(error)}


# -- locks and clocks ----------------------------------------------------------------------------------------------------


@contextmanager
def _locked(share: model.Share, name: str, options: Options, patience: float | None = None, forgets: bool = False) -> Iterator[ShareDirectory]:
    """A context in which this task alone has a lease: its opened directory.

    :param patience: seconds to wait (None: as the task says). :param forgets: the file of the lock goes with the lease.
    """
    waits = options.lock_timeout if patience is None else patience
    with _having(share, leases.lock_name(model.check_volume_name(name)), options, waits) as (directory, lock):
        named_locks.outwait_caches(directory, leases.FOLDER, options)
        yield directory
        if forgets and leases.read(directory, name) is None:
            lock.forget_file()


@contextmanager
def _having(share: model.Share, lock_name: str, options: Options, patience: float) -> Iterator[tuple[ShareDirectory, VolumeLock]]:
    """A context in which this task alone has such a lock. What killed tasks have left under it is gone."""
    with named_locks.locked_name(share, lock_name, options, patience, options.break_lock) as (directory, lock):
        for left in directory.leftovers(lock_name):
            directory.discard_temporary(left)
        yield directory, lock


def _warn_of_clocks(share: model.Share, options: Options) -> None:
    if options.check:
        options.task.warn("check mode writes nothing to the share, so that the clock of this host decides which leases have ended")
    elif share.client_times:
        told = "its clients give the times of files, so that the clocks of all hosts must agree"
        options.task.warn(f"{share.source} ({share.fstype}): {told}; option grace is how far they may differ")


def read_all(share: model.Share, alive: Alive = limited.heard_by_nobody) -> list[dict]:
    """All leases of a share for users, by name; one that cannot be read has ``name``, ``error_code`` and ``msg``.

    :param alive: called whenever one was read.
    """
    found: list[dict] = []
    with ShareDirectory(share) as directory:
        for name in leases.names(directory):
            alive()
            try:
                lease = leases.read(directory, name)
            except errors.StorageError as error:
                found.append({**_failed(name, error), "share": share.source})
                continue
            told = describe(lease, share)
            if told is not None and lease is not None:
                found.append({**told, "expired": lease.is_over(time.time())})
    return found
