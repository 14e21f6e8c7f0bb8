# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How ``.info`` is written, by the executor or by who goes on for it."""

from __future__ import annotations

from ..plan import steps
from ..store.files import access
from ..store.files.directory import ShareDirectory
from ..store.metadata import info_file


def write_info(directory: ShareDirectory, volume: str, step: steps.WriteInfo, warn: access.Warn | None) -> None:
    """Write the ``.info`` of a volume, whole and durable. It has the access of the one that it replaces, or else of the active image."""
    like = next((file for file in (step.file, step.active) if directory.root.status(file) is not None), None)
    data = info_file.Info(step.active, step.snapshots).to_bytes()
    directory.write_record(volume, directory.root, step.file, data, like, warn, "blocks")
