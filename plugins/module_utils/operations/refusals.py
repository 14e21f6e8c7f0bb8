# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is checked before a change begins: its new names must be free."""

from __future__ import annotations

from typing import Container

from ..store.files.directory import ShareDirectory
from ..store.volumes import ownership


def require_free_name(directory: ShareDirectory, file: str, volume: str, still_there: Container[str]) -> None:
    """:param still_there: files that a recovery removes which was only predicted.

    :raises Conflict: as of :func:`ownership.require_free_name`.
    """
    if file not in still_there:
        ownership.require_free_name(directory, file, volume)
