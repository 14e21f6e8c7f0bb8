# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a change waits for the disk and for other changes."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import Iterator


class NotBegun(Exception):
    """A change was not begun, because other changes took too long. The caller makes it later."""


class Waiting:
    """Waits alone and at once. Tasks on many objects wait together (see ``operations/bulk/shared_syncs.py``)."""

    def sync_file(self, fd: int) -> None:
        """Return when all data written to an opened file is durable. :raises OSError: it may not be durable."""
        os.fsync(fd)

    def sync_directory(self, fd: int) -> None:
        """Return when all names that this thread made or removed in an opened directory are durable. :raises OSError: they may not be."""
        os.fsync(fd)

    @contextmanager
    def long_work(self, _deadline: float | None = None) -> Iterator[None]:
        """Wraps work that moves much data. :raises NotBegun: no turn came before ``_deadline`` (monotonic seconds); nothing was begun."""
        yield

    def sleep(self, seconds: float) -> None:
        """Sleep for some seconds."""
        time.sleep(seconds)
