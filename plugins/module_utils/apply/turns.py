# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks that work with the same machine take turns."""

from __future__ import annotations

import errno
import os
import socket
import time

from .. import errors

_PAUSE = 0.1  # seconds between two attempts to get one's turn


def take_turn(path: str, patience: float) -> socket.socket | None:
    """Wait until no other task on this host works with the monitor at ``path``. Whoever holds what is returned has the turn, until it is
    closed or its last holder ends. None if nothing is at ``path``.

    :param patience: seconds to wait. :raises InUse: others had it all the time.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return take(f"monitor-{status.st_dev}-{status.st_ino}", f"monitor {path}", patience)


def take(name: str, subject: str, patience: float) -> socket.socket | None:
    """As :func:`take_turn`, with the machine of this name. None where there are no such names.

    :param subject: how messages name it.
    """
    until = time.monotonic() + patience
    while True:
        turn = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            turn.bind(f"\0remotefs-{name}")  # a name without a file (unix(7)), which goes with its holder
            return turn
        except OSError as error:
            turn.close()
            if error.errno != errno.EADDRINUSE:
                return None
        if time.monotonic() > until:
            raise errors.InUse(subject, "another task works with this machine", "run the task again when that has ended, or raise lock_timeout")
        time.sleep(_PAUSE)
