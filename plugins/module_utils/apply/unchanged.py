# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether files are as they were when the task looked at them."""

from __future__ import annotations

import os
from typing import Iterable, Mapping

from .. import errors
from ..store.files.directory import ShareDirectory


def mark_of(status: os.stat_result) -> tuple[int, int]:
    """What is different once somebody has written to a file: its length in bytes and the time of the last write (ns)."""
    return status.st_size, status.st_mtime_ns


def marks(directory: ShareDirectory, files: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Of each of these files that is there, :func:`mark_of` it."""
    found = {file: directory.root.status(file) for file in files}
    return {file: mark_of(status) for file, status in found.items() if status is not None}


def require_unchanged(directory: ShareDirectory, volume: str, known: Mapping[str, tuple[int, int]]) -> None:
    """:param known: as of :func:`marks`, from before. :raises Conflict: somebody has written to one of the files since."""
    now = marks(directory, known)
    for file, mark in known.items():
        if now.get(file) != mark:
            subject = f"volume {volume} on {directory.share.label}"
            raise errors.Conflict(subject, f"somebody has written to {file} while the task read it", "run the task again when nobody uses it")
