# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mark on a share that is in maintenance: no new volumes are placed there. What is there goes on as before.

The mark is a file, ``.remotefs/marks/maintenance``. That it exists is all it says, so no content of it can be wrong.
"""

from __future__ import annotations

from ... import errors
from ..files import presence
from ..files.directory import PRIVATE, ShareDirectory

FOLDER, FILE = "marks", "maintenance"
_WRITER = ".maintenance"  # what the temporary file is called after: no volume can have that name


def is_marked(path: str) -> bool:
    """Whether the share at ``path`` is in maintenance. A share that does not answer is not."""
    return presence.is_there(path, PRIVATE, FOLDER, FILE)


def mark(directory: ShareDirectory) -> None:
    """Put the share into maintenance, durably. On a full share the mark may use the ballast: it keeps new volumes away.

    :raises NoSpace: not even the mark has room. :raises StorageError: it cannot be written to.
    """
    from ..files import ballast  # late: most tasks only ask for the mark

    while True:
        try:
            directory.write_record(_WRITER, directory.make_private(FOLDER), FILE, b"no new volumes are placed here\n", last="ballast")
            return
        except errors.NoSpace as error:
            if not ballast.release(directory):  # there may be no room for the folders
                remedy = "remove something there, such as a snapshot, or leftovers with remotefs_housekeeping, and run the task again"
                raise errors.NoSpace(f"share {directory.share.label}", "it is so full that not even the mark of maintenance fits", remedy) from error


def clear(directory: ShareDirectory) -> None:
    """End the maintenance, durably, which needs no room. :raises StorageError: the mark is a directory. :raises OSError: it cannot be removed."""
    folder = directory.private(FOLDER)
    if folder is not None:
        folder.remove(FILE)
