# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change must not meet, asked before it begins: a name that is taken."""

from __future__ import annotations

from ..store.files.directory import ShareDirectory
from ..store.volumes import ownership


def require_free_name(directory: ShareDirectory, file: str, volume: str, predicted: list) -> None:
    """:param predicted: what a prediction has told to be recovered: it has not removed what the run will have removed by then.

    :raises Conflict: as of :func:`ownership.require_free_name`.
    """
    going = {step["file"] for one in predicted for step in one["steps"] if step["step"] == "unlink"}
    if file not in going:
        ownership.require_free_name(directory, file, volume)
