# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mark on a share that is in maintenance: no new volumes are placed there. What is there goes on as before.

The mark is a file, ``.remotefs/marks/maintenance``. That it exists is all it says, so no content of it can be wrong.
"""

from __future__ import annotations

from ..files import presence
from ..files.directory import PRIVATE, ShareDirectory

FOLDER, FILE = "marks", "maintenance"
_WRITER = ".maintenance"  # what the temporary file is called after: no volume can have that name


def is_marked(path: str) -> bool:
    """Whether the share at ``path`` is in maintenance. A share that does not answer is not."""
    return presence.is_there(path, PRIVATE, FOLDER, FILE)


def mark(directory: ShareDirectory) -> None:
    """Put the share into maintenance, durably. :raises StorageError: it cannot be written to."""
    directory.write_record(_WRITER, directory.make_private(FOLDER), FILE, b"no new volumes are placed here\n")


def clear(directory: ShareDirectory) -> None:
    """End the maintenance, durably. :raises StorageError: the mark is a directory. :raises OSError: it cannot be removed."""
    folder = directory.private(FOLDER)
    if folder is not None:
        folder.remove(FILE)
