# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the files of a share's directory that a path means: through links, other mounts, hard links and letter case.

Paths come from untrusted content. So they are followed component by component, and only on file systems of this host and on the
share itself. Other network file systems and automounts are never touched; there a file of the same name counts.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import Iterator, NamedTuple

from ... import localities
from ..files import folders, replaced
from ..files.directory import ShareDirectory
from ..locks import kernel_users
from ..qcow2 import MAGIC
from . import backing_names, dependents
from .backing_names import last_part

_MOST_LINKS = 40  # the kernel follows as many
_MOST_BEHIND = 5000  # entries of a folder outside the share, with those below it
_OPENING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Place(NamedTuple):
    """Where a path leads: the path without links, and the lstat of what is there."""

    path: str
    status: os.stat_result


class NotLookedAt(Exception):
    """The path leads to a file system that may hang, so it was not followed."""


class Places:
    """Follows paths, but only on file systems of this host and on the share itself."""

    def __init__(self, directory: ShareDirectory) -> None:
        root = os.fstat(directory.root.fd)
        self._device, self._inode = root.st_dev, root.st_ino
        self._looked: dict[str, bool] | None = None  # path of a mount point or folder → whether it may be looked at

    def is_share(self, path: str) -> bool:
        """Whether an absolute path leads to the share's directory."""
        try:
            place = self.walk(path)
        except (NotLookedAt, OSError):
            return False
        return place is not None and (place.status.st_dev, place.status.st_ino) == (self._device, self._inode)

    def walk(self, path: str) -> Place | None:
        """Follow an absolute path and all links in it. None if nothing is there. :raises NotLookedAt: a part of it may hang."""
        ahead, here, links = _parts(path), "/", 0
        status: os.stat_result | None = None
        while ahead:
            part = ahead.pop()
            if part == "..":
                here = os.path.dirname(here)
                continue
            step = os.path.join(here, part)
            if not self.may_look(step):
                raise NotLookedAt(step)
            try:
                status = os.lstat(step)
                if not stat.S_ISLNK(status.st_mode):
                    here = step
                    continue
                links += 1
                target = os.readlink(step)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise NotLookedAt(step) from error
            if links > _MOST_LINKS:
                return None
            here = "/" if target.startswith("/") else here
            ahead += _parts(target)
        return Place(here, os.lstat(here)) if here != "/" else None

    def may_look(self, path: str) -> bool:
        """Whether the file system at ``path`` belongs to this host, or is the share itself."""
        if self._looked is None:
            self._looked = _mounts(self._device)
        known = self._looked.get(path)
        return self._may_look_into(os.path.dirname(path)) if known is None else known

    def _may_look_into(self, folder: str) -> bool:
        """The same for entries of a folder that are no mount points: the answer for the mount that the folder is on."""
        looked = self._looked or {}
        here = folder
        while here not in looked and here != "/":
            here = os.path.dirname(here)
        looked[folder] = looked.get(here, False)
        return looked[folder]


class Resolver:
    """Resolves names that were read on one share. ``unreached``: sentences about what links lead to and was not read."""

    def __init__(self, directory: ShareDirectory, listed: dependents.Listing) -> None:
        self._directory = directory
        self._listed = listed
        self._places = Places(directory)
        self._path = os.path.realpath(directory.share.path)
        self._spellings = (os.path.normpath(directory.share.path), self._path)
        self._inodes: dict[int, list[str]] | None = None
        self._by_lower: dict[str, set[str]] | None = None
        self.unreached: list[str] = []

    def resolve(self, name: str, folder: str, plain: bool) -> set[str]:
        """The names in the share's directory that ``name`` may mean, which was read from a file in ``folder``.

        :param plain: it follows the notation of qcow2 images."""
        targets = backing_names.targets(name) if plain else backing_names.foreign_targets(name)
        found: set[str] = set()
        if backing_names.shows_folders(name) and any(self._places.is_share(self._absolute(target.path, folder)) for target in targets):
            return set(self._listed.files)  # vvfat shows every file of the folder
        for target in targets:
            found |= self._of_path(target.path, folder) if target.sure else self._all_names_of(last_part(target.path))
        return found

    def of_link(self, folder_fd: int, name: str, folder: str, outside: bool) -> frozenset[str]:
        """The files that a link leads to, and those that its target rests on. Relative names in the target may count from the folder
        of the link or from that of the target.

        :param outside: also read a target that is not on the share. :raises OSError: the target cannot be read.
        """
        try:
            target = os.readlink(name, dir_fd=folder_fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            return frozenset()  # it went away, or is no link any more
        found = self._of_path(target, folder)
        try:
            place = self._places.walk(self._absolute(target, folder))
        except NotLookedAt:
            if outside:
                self.unreached.append(f"the link {os.path.join(folder, name)} leads to another file system, where nobody looked")
            return frozenset(found)
        inside = place is not None and place.path.startswith(self._path + "/")
        if place is not None and stat.S_ISDIR(place.status.st_mode) and outside and not inside and not self._is_share_or_snapshots(place):
            return frozenset(found | self._in_folder(place, os.path.join(folder, name)))
        if place is None or not stat.S_ISREG(place.status.st_mode) or not place.status.st_blocks:
            return frozenset(found)  # files of proc and sysfs have no blocks, and reading some of them has effects
        if (inside or outside) and os.path.dirname(place.path) != self._path:
            found |= self._behind(place, folder)
        return frozenset(found)

    def _in_folder(self, place: Place, link: str) -> set[str]:
        """The files that files in a folder outside the share rest on, to which a link leads. Folders below are read too; the search
        is bounded."""
        found: set[str] = set()
        waiting, left, device = [place.path], _MOST_BEHIND, place.status.st_dev
        while waiting and left > 0:
            here = waiting.pop()
            try:
                with os.scandir(here) as entries:
                    for entry in entries:
                        left -= 1
                        if entry.is_dir(follow_symlinks=False):
                            waiting += [entry.path] if self._is_searched(entry) else []
                        elif entry.is_file(follow_symlinks=False):
                            found |= replaced.read_again_if_replaced(partial(self._of_file_outside, entry.path, device))
                        if left <= 0:
                            break
            except FileNotFoundError:
                continue
            except OSError:
                self.unreached.append(f"the link {link} leads to a folder of which {here} cannot be read")
        if left <= 0:
            self.unreached.append(f"the link {link} leads to a folder with more files than are looked at ({_MOST_BEHIND})")
        return found

    def _of_file_outside(self, path: str, device: int) -> set[str]:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return set()  # it went away; the files after it in its folder still count
        wanted = stat.S_ISREG(status.st_mode) and status.st_dev == device and status.st_blocks
        return self._behind(Place(path, status), os.path.dirname(path)) if wanted else set()

    def _is_searched(self, entry: os.DirEntry) -> bool:
        """Whether a folder outside is read. Not the share itself, which is searched anyway, and not the snapshots of a server."""
        if entry.name in folders.SNAPSHOT_FOLDERS or not self._places.may_look(entry.path):
            return False
        return entry.path != self._path and not self._places.is_share(entry.path)

    def _behind(self, place: Place, folder: str) -> set[str]:
        fd = os.open(place.path, _OPENING)
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != (place.status.st_dev, place.status.st_ino):
                raise OSError(errno.ESTALE, "the file behind a link was replaced while it was read", place.path)
            names, plain = dependents.names_in(fd), os.pread(fd, 4, 0) == MAGIC
        finally:
            os.close(fd)
        return {found for name in names for where in (folder, os.path.dirname(place.path)) for found in self.resolve(name, where, plain)}

    # -- names in the share's directory ---------------------------------------------------------------------------------

    def _all_names_of(self, name: str, depth: int = 0) -> set[str]:
        """A name in the share's directory, with all other names that the same file has there."""
        if not name or name in (".", ".."):
            return set()
        found = {name, *self._listed.twins.get(name, ())}
        if name not in self._listed.files:
            if name in self._listed.links and depth < _MOST_LINKS:
                try:
                    found |= self._of_path(os.readlink(name, dir_fd=self._directory.root.fd), "", depth + 1)
                except OSError:
                    pass  # it went away
            found |= self._lower().get(name.lower(), set())
        return found

    def _lower(self) -> dict[str, set[str]]:
        """Name in small letters → files of the directory, if the share ignores case; else empty."""
        if self._by_lower is None:
            self._by_lower = {}
            if self._ignores_case():
                for name in self._listed.files:
                    self._by_lower.setdefault(name.lower(), set()).add(name)
        return self._by_lower

    def _ignores_case(self) -> bool:
        fd = self._directory.root.fd
        for name in (name for name in self._listed.files if name.swapcase() != name and name.swapcase() not in self._listed.files):
            try:
                return os.stat(name.swapcase(), dir_fd=fd, follow_symlinks=False).st_ino == os.lstat(name, dir_fd=fd).st_ino
            except OSError:
                return False
        return False

    # -- paths ----------------------------------------------------------------------------------------------------------

    def _absolute(self, path: str, folder: str) -> str:
        return os.path.join(self._path, folder, path)

    def _of_path(self, path: str, folder: str, depth: int = 0) -> set[str]:
        """The names that a path may mean. It is absolute or relative to ``folder``."""
        absolute = self._absolute(path, folder)
        parent, name = os.path.split(os.path.normpath(absolute))
        found = self._all_names_of(name, depth) if parent in self._spellings else set()
        if found and ".." not in path.split("/"):
            return found
        try:
            place = self._places.walk(absolute)
        except (NotLookedAt, OSError):
            return found | self._all_names_of(name, depth)
        if place is None:
            if folder and not path.startswith("/") and parent.startswith(self._path + "/"):
                return found  # a relative name in a folder counts from there, and there is no such file
            return found | self._all_names_of(name, depth)  # another host may have something there
        return found | (self._same_files(place, name) if stat.S_ISREG(place.status.st_mode) else set())

    def _same_files(self, place: Place, name: str) -> set[str]:
        """The files of the directory that are the same file as ``place``: by device and inode, or, because another mount shows the
        same file with another device, by name, size and modification time."""
        found = {other for other in self._with_inode(place.status.st_ino) if self._is(other, place.status)}
        for other in dict.fromkeys((name, os.path.basename(place.path))):
            own_status = self._status(other)
            alike = own_status is not None and (own_status.st_size, own_status.st_mtime_ns) == (place.status.st_size, place.status.st_mtime_ns)
            if alike and own_status is not None and place.status.st_dev != own_status.st_dev:
                found.add(other)
        return {same for other in found for same in self._all_names_of(other)}

    def _is_share_or_snapshots(self, place: Place) -> bool:
        return place.path == self._path or not folders.SNAPSHOT_FOLDERS.isdisjoint(place.path.split("/")) or self._places.is_share(place.path)

    def _is(self, name: str, status: os.stat_result) -> bool:
        own_status = self._status(name)
        return own_status is not None and (own_status.st_dev, own_status.st_ino) == (status.st_dev, status.st_ino)

    def _status(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._directory.root.fd, follow_symlinks=False)
        except OSError:
            return None

    def _with_inode(self, inode: int) -> list[str]:
        if self._inodes is None:
            self._inodes = {}
            for name in self._names_with_inodes():
                self._inodes.setdefault(name[1], []).append(name[0])
        return self._inodes.get(inode, [])

    def _names_with_inodes(self) -> Iterator[tuple[str, int]]:
        with os.scandir(self._directory.root.fd) as entries:
            for entry in entries:
                yield entry.name, entry.inode()


def _parts(path: str) -> list[str]:
    """The components of a path in reverse order."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _mounts(device: int) -> dict[str, bool]:
    """Mount point → whether it may be looked at. Of several mounts on one point only the last one counts. The table does not show
    the root of a chroot that is no mount point. Nothing works without that root, so it may always be looked at."""
    table = list(kernel_users.mounts())
    found = {"/": True} if table else {}
    for number, path, kind in table:
        major, _colon, minor = number.partition(":")
        is_share = os.makedev(int(major), int(minor)) == device
        found[path] = is_share or major != "0" or localities.holds_local_files(kind)
    return found
