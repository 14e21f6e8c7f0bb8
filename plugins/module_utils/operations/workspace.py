# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where one change works: how its task works, the shares that it has opened, the locks that it holds, what it has seen under them."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Collection, Iterable

from ..errors import ShareNotWritable, StorageError, from_os_error, share_gone
from ..model import Share, Volume
from ..store.files.directory import ShareDirectory
from ..store.files.waiting import Waiting
from ..store.locks.lock import VolumeLock
from ..store.volumes import chains, ownership
from ..store.volumes.look import Look

if TYPE_CHECKING:
    from .bulk.batch_locks import BatchLocks
    from .capacity import Capacity


@dataclass(frozen=True)
class Options:
    """How a task works, whatever it does. ``lock_timeout`` in seconds; ``discard`` gives up a record that cannot be honoured.

    ``not_dependent`` are files that do not count as resting on what is destroyed, because the user says so.
    ``assume`` lets check mode assume what is not there yet (see :mod:`assumptions`), ``assumed`` is what it has assumed, by (share
    path, name). ``drop_bitmaps`` gives up dirty bitmaps that a merge cannot carry.

    ``world`` is check mode's memory within one task: volumes as earlier items would leave them, by (share path, name);
    ``failed`` are volumes that items of the task were to make or to change, and could not;
    ``told`` are warnings that it has given; ``log`` takes each step with its seconds;
    ``capacity`` is what all volumes of a share together take (in ``kept`` from its first use on);
    ``batch_locks`` the locks under which a part of a bulk task works; ``waiting`` how its parts wait.
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
    batch_locks: BatchLocks | None = None
    waiting: Waiting = field(default_factory=Waiting)
    log: Callable[[str, dict, float], None] | None = None

    @property
    def capacity(self) -> Capacity:
        if "capacity" not in self.kept:
            from .capacity import Capacity  # late: most tasks find all as it should be

            self.kept.setdefault("capacity", Capacity())  # threads that come at once get the same
        return self.kept["capacity"]


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
        self.begun = False  # whether it has changed anything, or tried
        self._held_names: set[tuple[Share, str]] = set()
        self._looks: dict[tuple[str, str], Look] = {}
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
            self._directories[share.path] = self._stack.enter_context(ShareDirectory(share, self._verify, self.options.waiting))
        return self._directories[share.path]

    def look(self, share: Share, name: str) -> Look:
        """What is known of a volume. Whatever changes it, or lets others change it, makes the next one look anew."""
        return self._looks.setdefault((share.path, name), Look(self.directory(share), name))

    def look_anew(self) -> None:
        """What is known is true no more."""
        self._looks.clear()

    def lock(self, wanted: Iterable[tuple[Share, str]], shared: Iterable[tuple[Share, str]] = ()) -> None:
        """Take the locks of several names in one fixed order, so that tasks never wait for each other in a circle. Once: who
        needs other ones after all gives these back with :meth:`unlock_all`, locks again, and looks again.

        :param shared: names whose files are only read: many tasks may hold them so at once, while nobody changes them.
        """
        self.look_anew()
        self._wanted = set(wanted)
        self._held_names = self._wanted | set(shared)
        exclusive = {(share.path, name): share for share, name in self._wanted}
        every = {(share.path, name): share for share, name in self._held_names}
        if self.options.check:
            for share in every.values():
                _require_writable(share)
            return
        batch_locks = self.options.batch_locks
        if batch_locks is not None:
            self._locks = [batch_locks.lock_of(every[pair], pair[1], pair not in exclusive) for pair in sorted(every)]
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
        marks = self._marks_of(own | others)
        family = others | self._ancestors_of(own | others)
        while True:
            self.lock(own, family)
            self._reading = others
            if self.options.check or (family == others and marks == self._marks_of(own | others)):
                return  # nobody has changed them since they were found to rest on nothing
            now = self._ancestors_of(own | others)
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
        return {(share, one) for share, name in pairs for one in ownership.ancestors_of(self.directory(share), name)}

    def _marks_of(self, pairs: Iterable[tuple[Share, str]]) -> dict[tuple[Share, str], tuple]:
        return {(share, name): chains.change_marks(self.directory(share), name) for share, name in pairs}

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
        self.look_anew()
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
            self.options.waiting.sleep(seconds)
            for share in shares:
                self.directory(share).look_afresh()

    def dependents(self, share: Share, volume: Volume, excluding: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
        """Who rests on a volume, as :attr:`Volume.dependents`, asked under the locks that are held before something is destroyed.

        :param excluding: files that go with the volume.
        :raises StorageError, OSError: the share cannot be read.
        """
        from .dependency_check import as_predicted, dependents_of  # late: only what destroys asks

        found = dependents_of(self.directory(share), volume, self.options, excluding)
        self.not_counted[volume.name] = found.not_counted
        return as_predicted(self.options.world, share, volume.name, found.dependents) if self.options.check else found.dependents

    @property
    def lock_descriptors(self) -> tuple[int, ...]:
        """Descriptors of the held locks, which programs inherit."""
        return tuple(fd for lock in self._locks for fd in lock.descriptors)

    def forget_locks(self) -> None:
        for lock in self._locks:
            lock.forget_file()


def _require_writable(share: Share) -> None:
    if not os.access(share.path, os.W_OK):
        raise ShareNotWritable(
            f"share {share.source}", "this user may not write to it", "check the export, the mount options and the permissions of the share"
        )
