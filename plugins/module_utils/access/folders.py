# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of a host in which each opened point has a folder, with its record.

Who can write there could let tasks stop programs and remove files, so it must belong to the user of the task alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import contextmanager, suppress
from typing import Iterator

from .. import errors
from ..apply import turns
from ..consumers import private_files
from ..mounts import host_files
from . import guard
from .record import Record, Target

_OF_ROOT, _OF_OTHERS = "/run/remotefs-access", "remotefs-access"
_NAME = re.compile(r"[0-9a-f]{20}\Z")
_PAUSE = 0.05  # seconds
_REMEDY = "end what it is about, and remove its folder"


def usual_directory() -> str:
    """Where points are recorded by default. :raises InvalidParameter: the user has no directory that goes with the host."""
    if os.geteuid() == 0:
        return _OF_ROOT
    of_user = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(of_user):
        problem = "this user has no directory of its own that goes with the host (XDG_RUNTIME_DIR)"
        raise errors.InvalidParameter("option run_dir", problem, "give one that belongs to this user alone")
    return os.path.join(of_user, _OF_OTHERS)


class AccessDirectory:
    """The directory at ``path``. It need not be there."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def folder(self, name: str) -> str:
        """The path of the folder of a point, by :attr:`Target.name`."""
        return os.path.join(self.path, name)

    def pid_file(self, name: str) -> str:
        """The file in which the daemon writes its process number when it shows the point."""
        return os.path.join(self.folder(name), guard.PID)

    def names(self) -> list[str]:
        """Those of all folders. :raises ToolFailed: the directory is somebody else's."""
        if not os.path.lexists(self.path):
            return []
        private_files.require_own(self.path)
        try:
            return sorted(name for name in os.listdir(self.path) if _NAME.match(name))
        except OSError as error:
            raise private_files.failed(error, self.path) from error

    def read(self, name: str) -> Record | None:
        """What is recorded of a point; None: nothing is. :raises ToolFailed: it is no record, or somebody else's directory."""
        if not os.path.lexists(self.folder(name)):
            return None
        path = os.path.join(self.folder(name), guard.RECORD)
        found = private_files.read_record(self.path, self.folder(name), path, Record.from_text, _REMEDY)
        if found is not None and found.target.name != name:
            raise errors.ToolFailed(path, "it is the record of another point", _REMEDY)
        return found

    def write(self, record: Record) -> None:
        """Record a point, in a folder that is made if it is not there. :raises ToolFailed: it is somebody else's, or cannot be made."""
        private_files.make(self.path, self.folder(record.target.name))
        with suppress(FileNotFoundError):
            os.unlink(self.pid_file(record.target.name))  # of an older daemon: whoever removed that folder was killed before it was empty
        self.replace(record)

    def replace(self, record: Record) -> None:
        """Record a point whose folder is there. :raises StorageError: it is not, or there is no room."""
        host_files.replace_file(os.path.join(self.folder(record.target.name), guard.RECORD), record.to_text().encode(), mode=0o600)

    def forget(self, name: str) -> None:
        """Remove the folder of a point. :raises ToolFailed: it cannot be removed."""
        try:
            guard.remove_folder(self.folder(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise private_files.failed(error, self.path) from error

    def known_pid(self, name: str) -> int:
        """The process that the daemon wrote down when it showed the point; 0: it has not."""
        try:
            return int(private_files.content(self.pid_file(name)))
        except (OSError, ValueError):
            return 0

    @contextmanager
    def alone(self, target: Target, patience: float) -> Iterator[None]:
        """A context in which no other task works with what is shown there. :param patience: seconds to wait. :raises InUse: another task does."""
        turn = turns.take(f"access-{target.name}", f"{target.option} {target.path}", patience)
        try:
            yield
        finally:
            if turn is not None:
                turn.close()

    @contextmanager
    def steady(self, target: Target, patience: float) -> Iterator[None]:
        """A context in which the guard of what is shown there does not begin to end. :raises InUse: it is ending, and does not come to its end."""
        try:
            lock = os.open(self.folder(target.name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            yield
            return
        except OSError as error:
            raise private_files.failed(error, self.path) from error
        try:
            until = time.monotonic() + patience
            while not _is_taken(lock):
                if time.monotonic() > until:
                    raise errors.InUse(
                        f"{target.option} {target.path}", "what holds it is ending, and does not come to its end", "bring the share's server back"
                    )
                time.sleep(_PAUSE)
            yield
        finally:
            os.close(lock)


def _is_taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
