# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks of many volumes held together, and one reading of what rests on what under them.

A deletion must know every linked clone of its volume, which only all headers of the share can tell, read while the volume's
lock keeps new clones from being made. Bulk deletions therefore take the locks of many volumes first and read the headers once.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any, Iterable

from ... import errors, model
from ...plan.plan import Plan
from ...store.files import directory, folders
from ...store.locks.lock import VolumeLock
from ...store.volumes import dependents, ownership


class NotLocked(Exception):
    """A change needs a lock that its batch does not hold. It must be made on its own, with locks of its own."""


class BatchLocks:
    """Locks of volumes of one share; a context manager. What works under it is safe to run in several threads, as long as
    volumes that rest on each other are not changed at the same time (see :meth:`look`).

    ``until`` is when what has not begun yet is to be given back, because others may wait for it (monotonic; None: never).
    """

    def __init__(self, share: model.Share, break_lock: bool = False) -> None:
        self.share = share
        self.until: float | None = None
        self._break_lock = break_lock
        self._stack = ExitStack()
        self._directory = self._stack.enter_context(directory.ShareDirectory(share))
        self._locks: dict[str, VolumeLock] = {}
        self._backings: dependents.Backings | None = None
        self._mutex = threading.Lock()

    def __enter__(self) -> BatchLocks:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def take(self, names: Iterable[str]) -> dict[str, frozenset]:
        """Lock these volumes, and for reading those that they rest on, as far as no other task holds them just now. Returns those
        that are locked, as :meth:`look` does.

        This never waits while locks are held, so that no two tasks can wait for each other.
        """
        wanted = set(names)
        for name in sorted(wanted):
            self._try(name, shared=False)
        families = self.look(name for name in wanted if self.has(name))
        for name in sorted(frozenset().union(*families.values()) - wanted):
            self._try(name, shared=True)
        if self.share.stale_seconds:
            time.sleep(self.share.stale_seconds)  # as Workspace does for one change
            self._directory.look_afresh()
        self._directory.private("locks")  # opened now, before threads ask for it
        return families

    def look(self, names: Iterable[str]) -> dict[str, frozenset]:
        """Each of these volumes with all that it rests on."""
        return {name: frozenset({name} | ownership.ancestors_of(self._directory, name)) for name in names}

    def _try(self, name: str, shared: bool) -> None:
        lock = VolumeLock(self._directory, name, 0, self._break_lock, shared)
        try:
            self._locks[name] = self._stack.enter_context(lock)
        except errors.StorageError:
            pass  # another task has it, or the share fails; the change on its own will wait, or report the error

    def has(self, name: str) -> bool:
        """Whether the volume is locked, for a change or for reading."""
        return name in self._locks

    def lock_of(self, share: model.Share, name: str, shared: bool) -> VolumeLock:
        """:raises NotLocked: it is not held, or only for reading."""
        lock = self._locks.get(name) if share.path == self.share.path else None
        if lock is None or (lock.shared and not shared):
            raise NotLocked(name)
        return lock

    def release(self, name: str) -> None:
        """Let others have a volume with which this task is done, if it is held."""
        lock = self._locks.pop(name, None)
        if lock is not None:
            lock.__exit__(None, None, None)

    def keep_only(self, names: Iterable[str]) -> None:
        """In a copy of this process: let go of all others, which this process keeps. A lock lasts until all have let go of it."""
        for name in set(self._locks) - set(names):
            self._locks.pop(name).let_go()

    def backings(self) -> dependents.Backings:
        """What rests on what: from all headers, read once, and kept up to date since.

        :raises StorageError, OSError: the share cannot be listed.
        """
        with self._mutex:
            if self._backings is None:
                self._backings = folders.scan_all(self._directory)
            return self._backings

    def follow(self, plan: Plan) -> None:
        """A plan was carried out, or tried: read the headers of all files anew that it can have changed, made or removed."""
        files = {file for step in plan.steps for file in step.touches()}
        for volume in (plan.before, plan.after):
            files |= set(volume.own_files) if volume else set()
        with self._mutex:
            if self._backings is not None:
                dependents.look_again(self._backings, files)


class PredictedBatchLocks(BatchLocks):
    """Takes no locks: for predictions."""

    def take(self, names: Iterable[str]) -> dict[str, frozenset]:
        """As of :meth:`look`, for all of them."""
        return self.look(names)
