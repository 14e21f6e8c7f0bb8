# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names in an opened directory: listed anew, or remembered for callers that read very many files and change nothing."""

from __future__ import annotations

import bisect
import os

from ... import errors


class Names:
    """The names in the directory that ``fd`` has open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._listing: list[str] | None = None
        self._listed_files: frozenset[str] = frozenset()
        self._listed_names: frozenset[str] | None = None

    def names(self) -> list[str]:
        """All names, sorted, from a new listing."""
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)  # a new one: descriptors share their position
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def read_entries(self) -> list[os.DirEntry]:
        """All entries, unsorted, for callers that read most of them and change nothing.

        Until the directory is opened anew, the listing is relied on: a regular file in it is opened without an lstat before, and a
        record that is not in it is not looked for.
        """
        with os.scandir(self.fd) as found:
            entries = list(found)
        self._listed_files = frozenset([entry.name for entry in entries if entry.is_file(follow_symlinks=False)])
        self._listed_names = frozenset([entry.name for entry in entries])
        return entries

    def is_not_listed(self, name: str) -> bool:
        """Whether :meth:`read_entries` listed the directory, and this name was not in it."""
        return self._listed_names is not None and name not in self._listed_names

    def is_listed_file(self, name: str) -> bool:
        """Whether :meth:`read_entries` saw a regular file of exactly this name. False proves nothing."""
        return name in self._listed_files

    def names_from(self, prefix: str) -> list[str]:
        """Sorted names that begin with ``prefix``, from one listing that is kept until the directory is opened anew."""
        if self._listing is None:
            self._listing = self.names()
        first = bisect.bisect_left(self._listing, prefix)
        behind = prefix[:-1] + chr(ord(prefix[-1]) + 1)  # sorts after all names that begin with the prefix
        return self._listing[first : bisect.bisect_left(self._listing, behind, first)]


def shown(file: str) -> str:
    """A file's name in printable characters, for messages and results. Other bytes and characters are escaped."""
    return errors.printable(os.fsencode(file).decode("utf-8", "backslashreplace"))
