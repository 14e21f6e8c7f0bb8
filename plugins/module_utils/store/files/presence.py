# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether something is there on a share that nobody has opened."""

from __future__ import annotations

import os

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def is_there(path: str, *parts: str) -> bool:
    """Whether something has that name below the directory of a share, which needs not be opened. Unlike with a path, no link among the folders is
    followed: one could lead to a server that never answers, or let an automounter mount what somebody else has chosen. False where that cannot be told."""
    *folders, name = parts
    opened = -1
    try:
        opened = os.open(path, _FOLDER)
        for folder in folders:
            inner = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=opened)
            os.close(opened)
            opened = inner
        os.stat(name, dir_fd=opened, follow_symlinks=False)
    except OSError:
        return False
    finally:
        if opened >= 0:
            os.close(opened)
    return True
