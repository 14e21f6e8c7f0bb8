# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hammer sees of locks: how long tasks wait for them, and whether two ever hold one at once."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Callable

from ansible_collections.remotefs.storage.plugins.module_utils.operations.workspace import Workspace
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock


class Figures:
    """What a worker did and how long it waited for locks (seconds)."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.overtaken = self.locks = self.waits = 0
        self.longest = self.waited = 0.0
        self.errors: list[str] = []

    def count(self, operation: str) -> None:
        self.done[operation] = self.done.get(operation, 0) + 1

    def add(self, other: dict) -> None:
        for operation, number in other["done"].items():
            self.done[operation] = self.done.get(operation, 0) + number
        for name in ("overtaken", "locks", "waits", "waited"):
            setattr(self, name, getattr(self, name) + other[name])
        self.longest = max(self.longest, other["longest"])
        self.errors += other["errors"]

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} {operation}" for operation, number in sorted(self.done.items()))
        return (
            f"{sum(self.done.values())} operations ({kinds}; {self.overtaken} overtaken), {self.locks} locks taken, {self.waits} waited "
            f"for ({self.waited / max(self.waits, 1):.2f} s on average, {self.longest:.2f} s at most), {len(self.errors)} errors"
        )


class Witness:
    """Notices two holders of one lock, and calls back at the end of a change while its locks are still held.

    :param scratch: a local directory, where whoever holds a lock also locks a file: at once or never.
    :param one_share: all directories are mounts of one share, so that a volume's name is one lock.
    """

    def __init__(self, scratch: Path, figures: Figures, one_share: bool) -> None:
        self.scratch, self.figures, self.one_share = scratch, figures, one_share
        self.before_unlocking: Callable[[], None] | None = None
        self._files: dict[int, int] = {}

    def install(self) -> None:
        enter, leave, forget = VolumeLock.__enter__, VolumeLock.__exit__, VolumeLock.forget_file
        attempt, end = VolumeLock._try, Workspace.__exit__
        tries = [0]

        def tried(lock: VolumeLock) -> bool:
            tries[0] += 1
            return attempt(lock)

        def entered(lock: VolumeLock) -> VolumeLock:
            started, tries[0] = time.monotonic(), 0
            enter(lock)
            self.figures.locks += 1
            if tries[0] > 1:
                waited = time.monotonic() - started
                self.figures.waits += 1
                self.figures.waited += waited
                self.figures.longest = max(self.figures.longest, waited)
            self._enter(lock)
            return lock

        def left(lock: VolumeLock, *error: object) -> None:
            self._leave(lock)
            leave(lock, *error)

        def forgotten(lock: VolumeLock) -> None:
            self._leave(lock)  # once its file is gone, the next one may begin
            forget(lock)

        def ended(work: Workspace, kind: object, error: object, trace: object) -> None:
            callback = self.before_unlocking if work.locks._names else None  # one that only looked has changed nothing
            try:
                if callback is not None:
                    self.before_unlocking = None
                    if error is None:
                        callback()
            finally:
                end(work, kind, error, trace)

        VolumeLock._try, VolumeLock.__enter__, VolumeLock.__exit__ = tried, entered, left  # type: ignore[method-assign] # each calls the real one
        VolumeLock.forget_file, Workspace.__exit__ = forgotten, ended  # type: ignore[method-assign] # so do these

    def _enter(self, lock: VolumeLock) -> None:
        share = "" if self.one_share else lock._directory.share.label.replace("/", "_")
        fd = os.open(self.scratch / f"{share}{lock.volume}.witness", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if lock.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AssertionError(f"two tasks hold the lock of {lock.volume} at once") from error
        self._files[id(lock)] = fd

    def _leave(self, lock: VolumeLock) -> None:
        fd = self._files.pop(id(lock), -1)
        if fd >= 0:
            os.close(fd)
