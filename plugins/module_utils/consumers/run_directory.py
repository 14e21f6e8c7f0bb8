# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of a host in which each machine has a folder: with its record, and the sockets of its monitor and its guest agent.

Who can write there could let tasks stop any program or write to any file, so it must belong to the user of the task alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import contextmanager
from typing import Iterator

from .. import attachments, errors
from ..apply import turns
from ..mounts import host_files
from . import described, private_files

_REMEDY = "end the machine if it still runs, and remove its folder"
_RECORD, _MONITOR, _AGENT, _PID = "machine.json", "qmp.sock", "agent.sock", "pid"


class Place:
    """The folder of a machine. Its paths are plain texts, as QEMU's command line has them."""

    def __init__(self, directory: str, name: str) -> None:
        self.name, self.folder = name, os.path.join(directory, name)
        self.record, self.pid = os.path.join(self.folder, _RECORD), os.path.join(self.folder, _PID)
        self.monitor, self.agent = os.path.join(self.folder, _MONITOR), os.path.join(self.folder, _AGENT)


class RunDirectory:
    """The directory at ``path``. It need not be there."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def exists(self) -> bool:
        """Whether it is there."""
        return os.path.isdir(self.path)

    def place(self, name: str) -> Place:
        """The folder of a machine. :raises InvalidParameter: its sockets would have too long names."""
        place = Place(self.path, name)
        if not _is_short(place):
            problem = f"the paths of sockets may have {attachments.LONGEST_SOCKET} bytes, and {place.agent} has more"
            raise errors.InvalidParameter("option run_dir", problem, "give a shorter directory")
        return place

    def names(self) -> list[str]:
        """The machines that have a folder there. :raises ToolFailed: it is somebody else's."""
        if not self.exists():
            return []
        private_files.require_own(self.path)
        try:
            names = [entry.name for entry in os.scandir(self.path) if entry.is_dir(follow_symlinks=False)]
            return sorted(name for name in names if _is_short(Place(self.path, name)))  # no machine has a longer one
        except OSError as error:
            raise private_files.failed(error, self.path) from error

    def make(self, place: Place) -> None:
        """Make the folder of a machine. :raises ToolFailed: the directory is somebody else's, or it cannot be made."""
        private_files.make(self.path, place.folder)

    def read(self, place: Place) -> described.Record | None:
        """What is recorded of a machine. :raises ToolFailed: it is no record, or somebody else's directory."""
        if not os.path.isdir(place.folder):
            return None
        record = private_files.read_record(self.path, place.folder, place.record, described.Record.from_text, _REMEDY)
        if record is not None and record.name != place.name:
            raise errors.ToolFailed(place.record, "it is the record of another machine", _REMEDY)
        return record

    def write(self, place: Place, record: described.Record) -> None:
        """Record a machine. :raises StorageError: there is no room for it."""
        host_files.replace_file(place.record, record.to_text().encode(), mode=0o600)

    def forget(self, place: Place) -> None:
        """Remove the folder of a machine. :raises ToolFailed: it cannot be removed."""
        try:
            shutil.rmtree(place.folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise private_files.failed(error, place.folder) from error

    @contextmanager
    def locked(self, name: str, patience: float) -> Iterator[None]:
        """A context in which this task alone works with a machine. :param patience: seconds to wait. :raises InUse: another task does."""
        known = hashlib.sha256(os.fsencode(os.path.join(self.path, name))).hexdigest()[:32]  # names of sockets are short
        turn = turns.take(f"machine-{known}", f"machine {name}", patience)
        try:
            yield
        finally:
            if turn is not None:
                turn.close()


def _is_short(place: Place) -> bool:
    return len(os.fsencode(place.agent)) <= attachments.LONGEST_SOCKET
