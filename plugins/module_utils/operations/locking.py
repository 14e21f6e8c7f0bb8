# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The locks of one change: taken in one order, verified before each change of a file, given back together."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Callable, Iterable, Tuple

from .. import model
from ..store.files.directory import ShareDirectory
from ..store.locks.lock import VolumeLock
from ..store.volumes import chains, ownership

if TYPE_CHECKING:
    from .options import Options

Name = Tuple[model.Share, str]  # a share, and the name of a volume or file on it


class Locks:
    """Locks that one change holds.

    :param directory: has each share opened. :param changed: is called whenever what was read before may be true no more.
    :param siblings: the names are a group, in which each lock protects the files of its own name alone. Otherwise a change rests on
        all of them.
    """

    def __init__(self, options: Options, directory: Callable[[model.Share], ShareDirectory], changed: Callable[[], None], siblings: bool) -> None:
        self._options, self._directory, self._changed, self._siblings = options, directory, changed, siblings
        self._stack = ExitStack()
        self._locks: list[VolumeLock] = []
        self._wanted: set[Name] = set()
        self._reading: set[Name] = set()
        self._names: set[Name] = set()
        self.rounds = 0  # how often locks were taken

    def take(self, wanted: Iterable[Name], shared: Iterable[Name] = ()) -> None:
        """Take the locks of several names in one fixed order, so that tasks never wait for each other in a circle.

        This is done once. A change that needs other locks gives these back (:meth:`give_back`), takes all again, and reads all again.

        :param shared: names whose files are only read. Many tasks may hold them at once; a task that changes them waits.
        """
        self._note(wanted, shared)
        exclusive = {(share.path, name): share for share, name in self._wanted}
        every = {(share.path, name): share for share, name in self._names}
        batch_locks = self._options.task.batch_locks
        if batch_locks is not None:
            self._locks = [batch_locks.lock_of(every[pair], pair[1], pair not in exclusive) for pair in sorted(every)]
            return
        for path, name in sorted(every):
            directory, reading = self._directory(every[(path, name)]), (path, name) not in exclusive
            lock, began = self._lock(directory, name, reading), time.monotonic()
            self._locks.append(self._stack.enter_context(lock))
            if self._options.task.log is not None:
                told = {"share": directory.share.source, "step": "lock", "shared": reading}
                self._options.task.log(name, told, time.monotonic() - began)
        self._outwait_caches(set(every.values()))

    def _lock(self, directory: ShareDirectory, name: str, reading: bool) -> VolumeLock:
        return VolumeLock(directory, name, self._options.lock_timeout, self._options.break_lock, reading)

    def _note(self, wanted: Iterable[Name], reading: Iterable[Name]) -> None:
        self._changed()
        self.rounds += 1
        self._wanted = set(wanted)
        self._names = self._wanted | set(reading)

    def take_families(self, wanted: Iterable[Name], reading: Iterable[Name] = ()) -> None:
        """Lock volumes whose data is going to be moved. Lock for reading others, and all volumes that any of these rest on: their files
        must not change meanwhile. What they rest on is only certain under the locks, so it is read again then."""
        own, others = set(wanted), set(reading)
        marks = self._marks_of(own | others)
        family = others | self._ancestors_of(own | others)
        while True:
            self.take(own, family)
            self._reading = others
            if family == others and marks == self._marks_of(own | others):
                return  # they have not changed since they were found to rest on nothing
            now = self._ancestors_of(own | others)
            if now <= family:
                return
            family = family | now
            self.give_back()

    def add(self, share: model.Share, names: Iterable[str]) -> None:
        """Lock further volumes, and for reading what all of them rest on, unless they are locked. This may give all locks back and take
        them again: what was read before may be true no more."""
        wanted, reading = self._wanted | {(share, name) for name in names}, self._reading
        if wanted > self._wanted or not self._ancestors_of(wanted) <= self._names:
            self.give_back()
            self.take_families(wanted, reading)

    def _ancestors_of(self, pairs: Iterable[Name]) -> set[Name]:
        return {(share, one) for share, name in pairs for one in ownership.ancestors_of(self._directory(share), name)}

    def _marks_of(self, pairs: Iterable[Name]) -> dict[Name, tuple]:
        return {(share, name): chains.change_marks(self._directory(share), name) for share, name in pairs}

    def verify(self, name: str) -> None:
        """The fence of all directories here: the locks that protect a change of file or volume ``name`` must still be ours.

        :raises LockTimeout: one was lost.
        """
        locks = self._locks
        if self._siblings and any(lock.protects(name) for lock in locks):
            locks = [lock for lock in locks if lock.shared or lock.protects(name)]
        for lock in locks:
            lock.verify()
        if self._options.lease is not None:
            self._options.lease.verify()

    def give_back(self) -> None:
        """Give all locks back. What was read under them may be true no more."""
        self._changed()
        self._locks = []
        self._wanted, self._reading, self._names = set(), set(), set()
        self._stack.close()

    def _outwait_caches(self, shares: set[model.Share]) -> None:
        """No other task changes anything now. Wait until this client cannot show any more what the last task has replaced.

        A lock orders tasks, but on some file systems a client goes on showing old names, sizes and content for a while: a
        snapshot would be taken of an image that is no longer the active one.
        """
        seconds = max((share.stale_seconds for share in shares), default=0.0)
        if seconds:
            self._options.task.waiting.sleep(seconds)
            for share in shares:
                self._directory(share).look_afresh()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors of the held locks, which programs inherit."""
        return tuple(fd for lock in self._locks for fd in lock.descriptors)

    def forget_files(self) -> None:
        """The lock files of these names are removed with the locks: the volumes are gone."""
        for lock in self._locks:
            lock.forget_file()
