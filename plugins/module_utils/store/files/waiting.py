# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a change waits for the disk and for others."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import Iterator


class NotBegun(Exception):
    """Others are at work for so long that a change was not begun. It is to be made later."""


class Waiting:
    """Waiting alone, at once. Tasks on many objects wait together (see ``operations/bulk/shared_syncs.py``)."""

    def sync_file(self, fd: int) -> None:
        """Return when what was written to an opened file is durable. :raises OSError: it may not be."""
        os.fsync(fd)

    def sync_directory(self, fd: int) -> None:
        """Return when all names are durable that this thread gave or took in an opened directory. :raises OSError: they may not be."""
        os.fsync(fd)

    @contextmanager
    def long_work(self, _deadline: float | None = None) -> Iterator[None]:
        """Around what moves much data. :raises NotBegun: there was no place for it until ``_deadline`` (monotonic); nothing is begun."""
        yield

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
