# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks that work under a lease: nobody takes it over while they do, and they change nothing but its volumes.

A task has the lock of its lease for reading. Whoever takes the lease over needs it alone, so that no volume is made under a lease that is
gone. No clock is asked: a lease that has ended and that nobody has taken over is still its owner's.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Callable, Iterable, Iterator, Mapping, NamedTuple

from .. import errors, model
from ..lease import Lease
from ..plan import leases as plans
from ..store.files.directory import ShareDirectory
from ..store.metadata import leases
from . import named_locks
from .candidates import Candidates
from .options import Options

_KEPT = "leases"  # in ``kept``: those under which the task works, by (path of the share, name, id)


class HeldLease(NamedTuple):
    """A lease under which a task works. ``id`` is what its volumes have on record (None: check mode assumes the lease), ``volumes`` are the
    names that it lists. ``verify`` raises LockTimeout if somebody may have taken it over."""

    name: str
    id: str | None
    volumes: frozenset[str]
    verify: Callable[[], None] = lambda: None

    def require_listed(self, volume: str) -> None:
        """:raises Conflict: the lease does not list it, so that nobody would remove it."""
        if self.id is not None and volume not in self.volumes:
            raise errors.Conflict(f"volume {volume}", f"lease {self.name} does not list it", "list it with remotefs_lease (volumes) before it is made")

    def permit(self, volume: model.Volume) -> None:
        """:raises Conflict: the volume was not made under this lease."""
        self.require_made_under(volume.name, volume.lease)

    def require_made_under(self, name: str, lease: str | None) -> None:
        """:raises Conflict: a volume that has the id ``lease`` on record was not made under this lease."""
        if self.id is not None and lease != self.id:
            problem = f"it is not one of lease {self.name}: " + ("another lease has it" if lease else "it was made without a lease")
            raise errors.Conflict(f"volume {name}", problem, "take another name, or leave option lease out if it is really this volume that you mean")


class Named(NamedTuple):
    """A lease as an option names it: what remotefs_lease returns."""

    name: str
    id: str | None
    owner: str

    @staticmethod
    def of_option(given: Mapping) -> Named:
        """:raises InvalidParameter: it is no lease, or one that could not be read."""
        if "error_code" in given:
            raise errors.InvalidParameter(f"option lease, {given.get('name')}", f"it could not be read: {given.get('msg')}", "read it again before it is used")
        name, identity, owner = (given.get(key) for key in ("name", "id", "owner"))
        if not isinstance(name, str) or not isinstance(owner, str) or not isinstance(identity, (str, type(None))):
            raise errors.InvalidParameter("option lease", "it is no lease", "give what remotefs_lease returns as lease")
        return Named(model.check_volume_name(name), identity, owner)


def require_one(candidates: Candidates, options: Options) -> model.Share:
    """The share of a lease and of its volumes. In check mode it may be one that an earlier task of the playbook is going to mount.

    :raises InvalidParameter: several are named. :raises StorageError: it cannot be read.
    """
    if options.assume and candidates.missing:
        from . import assumptions

        if len(candidates.missing) == 1 and not candidates.shares and not assumptions.reachable(candidates, options).unreadable:
            return candidates.missing[0]
    candidates.require_all()
    if len(candidates.shares) != 1:
        raise errors.InvalidParameter("option share", "a lease is about volumes of one share", "name one share")
    return candidates.shares[0]


@contextmanager
def holding(wanted: Iterable[tuple[Mapping, Candidates]], options: Options) -> Iterator[None]:
    """A context in which the task works under these leases, each given as the option has it, with the shares of its item.

    :raises LeaseLost: one is not the task's any more. :raises LockTimeout: somebody takes one over right now.
    """
    found: dict[tuple[str, Named], model.Share] = {}
    for given, candidates in wanted:
        share = require_one(candidates, options)
        found[share.path, Named.of_option(given)] = share
    held: dict[tuple[str, Named], HeldLease] = {}
    with ExitStack() as stack:
        for path, named in sorted(found, key=lambda key: (key[0], key[1].name)):
            held[path, named] = _held(stack, found[path, named], named, options)
        options.task.kept[_KEPT] = held
        try:
            yield
        finally:
            options.task.kept.pop(_KEPT, None)


@contextmanager
def held_one(given: Mapping, candidates: Candidates, options: Options) -> Iterator[HeldLease]:
    """As :func:`holding`, under one lease, which is returned."""
    with ExitStack() as stack:
        yield _held(stack, require_one(candidates, options), Named.of_option(given), options)


def _held(stack: ExitStack, share: model.Share, named: Named, options: Options) -> HeldLease:
    if options.check and named.id is None:
        return HeldLease(named.name, None, frozenset())
    with ShareDirectory(share) as directory:  # first without its lock, of which a lease that is gone leaves no file
        lease = _require_own(directory, named)
    if options.check:
        return HeldLease(named.name, lease.id, frozenset(lease.volumes))
    lock_name = leases.lock_name(named.name)
    directory, lock = stack.enter_context(named_locks.locked_name(share, lock_name, options, options.lock_timeout, options.break_lock, shared=True))
    named_locks.outwait_caches(directory, leases.FOLDER, options)
    lease = _require_own(directory, named)
    return HeldLease(named.name, lease.id, frozenset(lease.volumes), lock.verify)


def _require_own(directory: ShareDirectory, named: Named) -> Lease:
    """The lease as it is. :raises LeaseLost: it is another one by now, or none."""
    subject = f"lease {named.name} on {directory.share.label}"
    return plans.require_held(leases.read(directory, named.name), named.owner, named.id, subject)


def under(options: Options, given: Mapping | None, candidates: Candidates) -> Options:
    """The options of an item that works under a lease."""
    if not given:
        return options
    held = options.task.kept[_KEPT][require_one(candidates, options).path, Named.of_option(given)]
    return replace(options, lease=held, permit=held.permit)
