# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One change of one volume: lock, observe, recover, plan, apply, observe again.

Check mode is the same path without the lock and without apply: it plans on the state that a recovery would leave, and
what it returns is the plan's prediction.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Callable, Collection, ContextManager, Iterable

from ..apply.remains import Interrupted
from ..apply.traces import find_interrupted, forget_groups
from ..errors import NeedsRecovery, ShareNotWritable, StorageError, from_os_error, share_gone
from ..model import Share, Volume
from ..plan.plan import Plan
from ..store import inventory, kinship
from ..store.directory import ShareDirectory
from ..store.lock import VolumeLock
from ..store.pace import Pace
from . import report

if TYPE_CHECKING:
    from ..apply.engine import CopySource, Engine
    from ..apply.executor import Executor
    from .holding import Holding
    from .ledger import Ledger


@dataclass(frozen=True)
class Options:
    """How a task works, whatever it does. ``lock_timeout`` in seconds; ``discard`` gives up a record that cannot be honoured.

    ``not_dependent`` are files that do not count as resting on what is destroyed, because the user says so.
    ``assume`` lets check mode assume what is not there yet (see :mod:`foretelling`), ``assumed`` is what it has assumed, by (share
    path, name). ``drop_bitmaps`` gives up dirty bitmaps that a merge cannot carry.

    ``world`` is check mode's memory within one task: volumes as earlier items would leave them, by (share path, name);
    ``failed`` are volumes that items of the task were to make or to change, and could not;
    ``told`` are warnings that it has given; ``log`` takes each step with its seconds;
    ``ledger`` is what all volumes of a share together take (in ``kept`` from its first use on);
    ``holding`` the locks under which a part of a bulk task works; ``pace`` how its parts wait.
    """

    check: bool = False
    lock_timeout: float = 90
    break_lock: bool = False
    assume_unused: bool = False
    discard: bool = False
    not_dependent: tuple[str, ...] = ()
    drop_bitmaps: bool = False
    assume: bool = False
    assumed: set = field(default_factory=set)
    warn: Callable[[str], None] = lambda _text: None
    world: dict = field(default_factory=dict)
    failed: set = field(default_factory=set)
    told: set = field(default_factory=set)
    kept: dict = field(default_factory=dict)
    holding: Holding | None = None
    pace: Pace = field(default_factory=Pace)
    log: Callable[[str, dict, float], None] | None = None

    @property
    def ledger(self) -> Ledger:
        if "ledger" not in self.kept:
            from .ledger import Ledger  # late: most tasks find all as it should be

            self.kept.setdefault("ledger", Ledger())  # threads that come at once get the same
        return self.kept["ledger"]


@dataclass(frozen=True)
class Outcome:
    """What a change did, or in check mode would do. ``before`` and ``after`` are volumes as modules return them, ``retention``
    the verdicts on snapshots where a policy was applied, ``not_counted`` the files that ``not_dependent`` overruled, ``content`` how a
    diff tells content that goes back: before and after."""

    name: str
    changed: bool
    actions: list
    recovered: list
    before: dict | None
    after: dict | None
    retention: list | None = None
    not_counted: tuple[str, ...] = ()
    content: tuple[str, str] | None = None


def joined(first: Outcome, second: Outcome) -> Outcome:
    """Two changes of one volume that a task made one after the other, as one."""
    return Outcome(
        second.name,
        first.changed or second.changed,
        first.actions + second.actions,
        first.recovered + second.recovered,
        first.before,
        second.after,
        not_counted=tuple(dict.fromkeys((*first.not_counted, *second.not_counted))),
    )


class Workspace:
    """Opened shares and held locks of one change; a context manager.

    :param siblings: the names that it locks are a group, in which each lock protects the files of its own name alone. Otherwise
        a change rests on all of them.
    """

    def __init__(self, options: Options, siblings: bool = False) -> None:
        self.options = options
        self._siblings = siblings
        self._stack = ExitStack()
        self._held = ExitStack()
        self._directories: dict[str, ShareDirectory] = {}
        self._locks: list[VolumeLock] = []
        self._wanted: set[tuple[Share, str]] = set()
        self._reading: set[tuple[Share, str]] = set()
        self._begun = False
        self._held_names: set[tuple[Share, str]] = set()
        self.not_counted: dict[str, tuple[str, ...]] = {}  # by volume

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        gone = [directory.share.label for directory in self._directories.values() if directory.is_gone()] if error is not None else []
        try:
            self.unlock_all()
        except (StorageError, OSError):
            if not gone:
                raise
        finally:
            self._stack.close()
        if gone:
            raise share_gone(gone[0]) from error if isinstance(error, BaseException) else None
        if isinstance(error, OSError):
            places = ", ".join(directory.share.label for directory in self._directories.values())
            raise from_os_error(error, f"share {places}") from error

    def directory(self, share: Share) -> ShareDirectory:
        if share.path not in self._directories:
            self._directories[share.path] = self._stack.enter_context(ShareDirectory(share, self._verify, self.options.pace))
        return self._directories[share.path]

    def lock(self, wanted: Iterable[tuple[Share, str]], shared: Iterable[tuple[Share, str]] = ()) -> None:
        """Take the locks of several names in one fixed order, so that tasks never wait for each other in a circle. Once: who
        needs other ones after all gives these back with :meth:`unlock_all`, locks again, and looks again.

        :param shared: names whose files are only read: many tasks may hold them so at once, while nobody changes them.
        """
        self._wanted = set(wanted)
        self._held_names = self._wanted | set(shared)
        exclusive = {(share.path, name): share for share, name in self._wanted}
        every = {(share.path, name): share for share, name in self._held_names}
        if self.options.check:
            for share in every.values():
                _require_writable(share)
            return
        holding = self.options.holding
        if holding is not None:
            self._locks = [holding.lock_of(every[pair], pair[1], pair not in exclusive) for pair in sorted(every)]
            return
        for path, name in sorted(every):
            directory, reading = self.directory(every[(path, name)]), (path, name) not in exclusive
            lock, began = VolumeLock(directory, name, self.options.lock_timeout, self.options.break_lock, reading), time.monotonic()
            self._locks.append(self._held.enter_context(lock))
            if self.options.log is not None:
                told = {"share": directory.share.source, "step": "lock", "shared": reading}
                self.options.log(name, told, time.monotonic() - began)
        self._outwait_caches(set(every.values()))

    def lock_families(self, wanted: Iterable[tuple[Share, str]], reading: Iterable[tuple[Share, str]] = ()) -> None:
        """Lock volumes whose data is going to be moved, and for reading others and all volumes that any of them rest on, whose
        files must not change meanwhile. Who they rest on is only certain under the locks, so it is asked again then."""
        own, others = set(wanted), set(reading)
        family = others | self._ancestors_of(own | others)
        while True:
            self.lock(own, family)
            self._reading = others
            now = family if self.options.check else self._ancestors_of(own | others)
            if now <= family:
                return
            family = family | now
            self.unlock_all()

    def lock_ancestors(self, share: Share, name: str) -> None:
        """Lock for reading what a volume rests on, unless it is locked. This may give all locks back and take them again, so
        that nothing that was read under them counts any more."""
        if not self.options.check and not self._ancestors_of([(share, name)]) <= self._held_names:
            wanted, reading = self._wanted, self._reading
            self.unlock_all()
            self.lock_families(wanted, reading)

    def _ancestors_of(self, pairs: Iterable[tuple[Share, str]]) -> set[tuple[Share, str]]:
        return {(share, one) for share, name in pairs for one in kinship.ancestors_of(self.directory(share), name)}

    def _verify(self, name: str) -> None:
        """The fence of all directories here: the locks that a change of file or volume ``name`` rests on must still be ours.

        :raises LockTimeout: one was lost.
        """
        locks = self._locks
        if self._siblings and any(lock.protects(name) for lock in locks):
            locks = [lock for lock in locks if lock.shared or lock.protects(name)]
        for lock in locks:
            lock.verify()

    def unlock_all(self) -> None:
        """Give all locks back. What was read under them is no longer to be relied on."""
        self._locks = []
        self._wanted, self._reading, self._held_names = set(), set(), set()
        self._held.close()

    def _outwait_caches(self, shares: set[Share]) -> None:
        """Now that nobody else changes anything, wait until this client cannot show what the last one has replaced.

        A lock orders tasks, but on some file systems a client goes on showing old names, sizes and content for a while: a
        snapshot would be taken of an image that is no longer the active one.
        """
        seconds = max((share.stale_seconds for share in shares), default=0.0)
        if seconds:
            self.options.pace.sleep(seconds)
            for share in shares:
                self.directory(share).look_afresh()

    def dependents(self, share: Share, volume: Volume, besides: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
        """Who rests on a volume, as :attr:`Volume.dependents`, asked under the locks that are held before something is destroyed.

        :param besides: files that go with the volume.
        :raises StorageError, OSError: the share cannot be read.
        """
        from .resting import as_foretold, dependents_of  # late: only what destroys asks

        found = dependents_of(self.directory(share), volume, self.options, besides)
        self.not_counted[volume.name] = found.not_counted
        return as_foretold(self.options.world, share, volume.name, found.dependents) if self.options.check else found.dependents

    def engine(self, share: Share) -> Engine:
        """What reaches the images of volumes on this share."""
        from ..apply.engine import Terms, open_engine  # late: a task that changes nothing starts faster without
        from ..plan.abilities import OFFLINE

        locks = tuple(fd for lock in self._locks for fd in lock.descriptors)
        return open_engine(OFFLINE, self.directory(share), Terms(locks, self.options.assume_unused, self.options.warn))

    def executor(self, share: Share) -> Executor:
        from ..apply.executor import Executor

        self.keep_ballast(share)
        return Executor(self.directory(share), self.engine(share), self.options.warn, self.options.log)

    def keep_ballast(self, share: Share) -> None:
        """Make room for later deletions, before a change as far as there is room, and with what a deletion has freed."""
        from ..store import ballast

        ballast.keep(self.directory(share))

    def apply(self, share: Share, plan: Plan, source: CopySource | None = None) -> None:
        """Carry out a plan. :raises StorageError: as :meth:`Executor.apply` does. :raises NoTurn: it was not begun."""
        with self._in_its_time([plan]):
            try:
                self.executor(share).apply(plan, source)
            finally:
                self._follow([plan])
        if any(step.name == "unlink" for step in plan.steps):
            self.keep_ballast(share)

    def finish(self, share: Share, interrupted: Interrupted) -> None:
        """End what an interrupted task left."""
        plans = [one.plan for one in interrupted.resumptions]
        with self._in_its_time(plans):
            try:
                self.executor(share).finish(interrupted)
            finally:
                self._follow(plans)

    def _in_its_time(self, plans: list[Plan]) -> ContextManager[None]:
        """What moves much data waits for its place; under a holding not for ever, unless this change has begun already."""
        holding, begun, self._begun = self.options.holding, self._begun, True
        if not any(plan.moves_much for plan in plans):
            return nullcontext()
        return self.options.pace.long_work(holding.until if holding is not None and not begun else None)

    def _follow(self, plans: Iterable[Plan]) -> None:
        if self.options.holding is not None:
            for plan in plans:
                self.options.holding.follow(plan)

    def forget_locks(self) -> None:
        for lock in self._locks:
            lock.forget_file()


def _require_writable(share: Share) -> None:
    if not os.access(share.path, os.W_OK):
        raise ShareNotWritable(
            f"share {share.source}", "this user may not write to it", "check the export, the mount options and the permissions of the share"
        )


def settle(work: Workspace, share: Share, name: str, said: str | None = None, dependents: bool = False) -> tuple[Volume | None, list]:
    """The volume after what an interrupted task left has been ended (in check mode: as it would be), and ``recovered``."""
    directory = work.directory(share)
    interrupted = find_left(work, directory, name)
    if interrupted.resumptions:
        work.lock_ancestors(share, name)  # what is to be ended may read their files
        interrupted = find_left(work, directory, name)
    recovered = interrupted.describe()
    if interrupted.resumptions and work.options.check:
        engine = work.engine(share)
        for resumption in interrupted.resumptions:
            engine.predict_end(resumption)
    elif interrupted and not work.options.check:
        work.finish(share, interrupted)
    if not work.options.check:
        forget_groups(directory)
    volume = _look(work, share, name, said, interrupted)
    if volume is not None and volume.info and not volume.adopted:
        kinship.require_own_files(directory, volume)
    if volume is not None and volume.stale:
        _tell_stale(work, share, volume)
    if volume is not None and dependents:
        volume = replace(volume, dependents=work.dependents(share, volume))
    return volume, recovered


def _tell_stale(work: Workspace, share: Share, volume: Volume) -> None:
    names = ", ".join(f"{snapshot} ({file})" for snapshot, file in volume.stale)
    sentence = (
        f"volume {volume.name} on {share.label}: its .info names snapshots whose files are no overlays of its chain: {names}; "
        "remotefs_snapshot with state: absent takes such an entry away"
    )
    if sentence not in work.options.told:
        work.options.told.add(sentence)
        work.options.warn(sentence)


def find_left(work: Workspace, directory: ShareDirectory, name: str, discard: bool = False) -> Interrupted:
    """:raises NeedsRecovery: the share is in no state that the interrupted task can have left, and its record is not to be
    given up."""
    try:
        return find_interrupted(directory, name)
    except NeedsRecovery:
        if not (discard or work.options.discard):
            raise
        from ..apply.recovery import give_up

        return give_up(directory, name)


def _look(work: Workspace, share: Share, name: str, said: str | None, interrupted: Interrupted) -> Volume | None:
    if work.options.check:
        if (share.path, name) in work.options.world:
            return work.options.world[(share.path, name)]
        if interrupted.resumptions:
            return interrupted.after
    observed = inventory.observe(work.directory(share), name, said)
    return observed.volume if observed else None


def carry_out(work: Workspace, share: Share, plan: Plan, recovered: list, source: CopySource | None = None) -> Outcome:
    """Apply a plan, or in check mode say what it would do, and look at the result."""
    directory = work.directory(share)
    before = report.read_volume(directory, plan.before) if plan.before else None
    if any(step.name in ("commit", "pull") for step in plan.steps):
        from . import layers

        layers.require_single_owners(directory, plan)
    if plan.changed:
        engine = work.engine(share)
        engine.abilities.require_for(plan)
        if work.options.check:
            engine.predict(plan)
    if work.options.check:
        work.options.world[(share.path, plan.volume)] = plan.after
        after = report.volume(plan.after, share, before["in_use"] if before else False) if plan.after else None
    else:
        if plan.changed:
            work.apply(share, plan, source)
        looked = not plan.changed and plan.before is plan.after  # at this very volume, under the lock
        after = before if looked else _observed_after(directory, plan)
    if plan.changed:
        work.options.ledger.follow(share, plan.before, plan.after)
    overruled = work.not_counted.get(plan.volume, ()) if plan.changed else ()
    if overruled:
        work.options.warn(f"volume {plan.volume} on {share.label}: not counted as resting on it, as not_dependent says: {', '.join(overruled)}")
    return Outcome(plan.volume, plan.changed or bool(recovered), plan.actions, recovered, before, after, not_counted=overruled)


def _observed_after(directory: ShareDirectory, plan: Plan) -> dict | None:
    if plan.after is None:
        return None
    observed = inventory.observe(directory, plan.volume)
    if observed is None:
        return None
    dependents = plan.after.dependents
    return report.read_volume(directory, replace(observed.volume, dependents=dependents))
