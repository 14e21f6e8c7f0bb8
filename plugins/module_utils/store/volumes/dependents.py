# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files rest on which files of a share. Every file there is read, whatever its name or format; doubts count as yes.

:mod:`foreign` reads which files a file names, and :mod:`backing_names` splits these names. Here they become names of files in the
share's directory. If it is not certain which file is meant, a file of the same name counts.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Callable, Collection, Iterable, Mapping, NamedTuple, Sequence

from ... import errors, model
from ..files import replaced
from ..files.directory import Directory, ShareDirectory
from ..metadata import records

if TYPE_CHECKING:
    from . import resolving


Known = Mapping[str, "str | None"]  # file → backing file, or None where it has none
Alive = Callable[[], None]
# The first bytes of files that can name other files. No other file has to be parsed. A test compares this with :mod:`foreign`.
MAGICS = frozenset((b"QFI\xfb", b"QED\0", b"KDMV", b"COWD", b"cone", b"vhdx", b"OOOM", b"MOOO"))
_QCOW2 = b"QFI\xfb"  # a relative name in such a file counts from the file's own folder only
TEXT = frozenset(b"#vVcCpP \t\n\r<\xef")


class Backings:
    """Which files rest on which: :meth:`put` records what a file names, :meth:`above` returns the files that rest on another one.

    ``unread``: file that could not be read → its error. ``unreached``: sentences about folders that were not searched.
    """

    def __init__(self, known: Mapping[str, str | None] | None = None) -> None:
        below = {file: backing for file, backing in (known or {}).items() if backing is not None}
        self._below: dict[str, str | frozenset[str]] = {}  # a plain str saves memory: nearly always there is one name
        self._above: dict[str, str | frozenset[str]] = {}
        self.unread: dict[str, OSError] = {}
        self.unreached: tuple[str, ...] = ()
        self.search: Search | None = None  # the search that filled this, for :func:`look_again`
        if len(set(below.values())) == len(below):
            self._below.update(below)
            self._above.update({backing: file for file, backing in below.items()})
        else:
            for file, backing in below.items():
                self.put(file, (backing,))

    def above(self, file: str) -> list[str]:
        """The files that rest on ``file`` directly, sorted by name."""
        return sorted(_members(self._above.get(file)))

    def only_within(self, files: Sequence[str]) -> bool:
        """Whether only the file before it rests on each file of a chain, and nothing rests on the first one."""
        return list(map(self._above.get, files)) == [None, *files[:-1]]

    def put(self, file: str, backings: Collection[str]) -> None:
        """Record that ``file`` rests on ``backings`` and on nothing else. Replaces what was recorded of it before."""
        for before in _members(self._below.pop(file, None)):
            rest = _members(self._above.pop(before, None)) - {file}
            if rest:
                self._above[before] = _packed(rest)
        self.unread.pop(file, None)
        if backings:
            self._below[file] = _packed(backings)
        for backing in backings:
            self._above[backing] = _packed({*_members(self._above.get(backing)), file})


def _members(packed: str | frozenset[str] | None) -> frozenset[str]:
    return frozenset() if packed is None else frozenset([packed]) if isinstance(packed, str) else packed


def _packed(members: Collection[str]) -> str | frozenset[str]:
    return next(iter(members)) if len(members) == 1 else frozenset(members)


class Listing(NamedTuple):
    """The names in the share's directory: of regular files, of symbolic links and of folders. ``twins``: name of a file that has
    several names there → all its names."""

    files: frozenset[str]
    links: frozenset[str]
    folders: frozenset[str]
    twins: Mapping[str, frozenset[str]]


def listing(directory: ShareDirectory) -> Listing:
    """List the share's directory, grouped by file type."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.root.fd)
    try:
        with os.scandir(fd) as entries:
            return group_entries(directory, list(entries))
    finally:
        os.close(fd)


def group_entries(directory: ShareDirectory, entries: Sequence[os.DirEntry]) -> Listing:
    """Group entries of the share's directory by file type."""
    files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    others = [entry for entry in entries if not entry.is_file(follow_symlinks=False)]
    links = frozenset([entry.name for entry in others if entry.is_symlink()])
    folders = frozenset([entry.name for entry in others if entry.is_dir(follow_symlinks=False)])
    return Listing(frozenset([entry.name for entry in files]), links, folders, _twins(directory, files))


def _twins(directory: ShareDirectory, files: Sequence[os.DirEntry]) -> dict[str, frozenset[str]]:
    """Name → all names of the same inode. The inodes of a listing are only a hint, because some file systems invent them."""
    if not directory.share.keeps_inodes:
        return {}
    inodes = [entry.inode() for entry in files]
    if len(set(inodes)) == len(inodes):
        return {}
    named: dict[int, list[str]] = {}
    for entry in files:
        named.setdefault(entry.inode(), []).append(entry.name)
    found: dict[str, frozenset[str]] = {}
    for names in (names for names in named.values() if 1 < len(names) <= 64):
        same = {name for name in names if _has_several_names(directory, name)}
        found.update(dict.fromkeys(same, frozenset(same)) if len(same) > 1 else {})
    return found


def _has_several_names(directory: ShareDirectory, name: str) -> bool:
    try:
        status = directory.root.status(name)
    except (OSError, errors.StorageError):
        return False  # it was replaced meanwhile
    return status is not None and status.st_nlink > 1


class Search:
    """One search of a share for the files that each of its files rests on.

    :param listed: the listing of the share's directory.
    :param outside: also follow symbolic links that lead out of the share, and read the files there.
    """

    def __init__(self, directory: ShareDirectory, listed: Listing, outside: bool = False) -> None:
        self._directory = directory
        self._listed = listed
        self._outside = outside
        self._places: resolving.Resolver | None = None
        self._recorded: frozenset[str] | None = None  # file names of all records on the share; None before they are listed
        self._records: dict[str, records.Record | None] = {}  # volume → record, for those that were read

    def look_anew(self) -> None:
        """Forget the records that were read, because they may have been written since."""
        self._recorded, self._records = None, {}

    def of_file(self, file: str) -> frozenset[str]:
        """The files that a file in the share's directory rests on. Empty for our own raw disks. :raises OSError: it cannot be read."""
        return self.read(self._directory.root, file, "", lambda status: self._is_our_disk(file, status))

    def _is_our_disk(self, file: str, status: os.stat_result) -> bool:
        """Whether a file is exactly the raw disk that a record knows. Then its guest wrote its content, which names no files."""
        if not model.is_safe_file_name(file):
            return False
        for volume in [file, *(file[:position] for position, letter in enumerate(file) if letter == ".")]:
            record = self._record_of(volume)
            if record is not None and records.is_disk(record, file, status.st_ino, status.st_size):
                return True
        return False

    def _record_of(self, volume: str) -> records.Record | None:
        """The record of a volume. None if there is none or it cannot be read."""
        if volume not in self._records:
            try:
                self._records[volume] = records.read(self._directory, volume) if self._is_recorded(volume) else None
            except (OSError, errors.StorageError):
                self._records[volume] = None
        return self._records[volume]

    def _is_recorded(self, volume: str) -> bool:
        """Whether a volume has a record. One listing answers this, because most beginnings of a file's name are no volume's name."""
        if self._recorded is None:
            private = self._directory.private("volumes")
            self._recorded = frozenset(private.names()) if private is not None else frozenset()
        return records.file_name(volume) in self._recorded

    def read(self, place: Directory, name: str, folder: str, is_ours: Callable[[os.stat_result], bool] = lambda _status: False) -> frozenset[str]:
        """The files that regular file ``name`` of an opened folder rests on. Empty if there is no such file.

        :param is_ours: takes the fstat; whether the file is a raw disk of ours. :raises OSError: the file cannot be read.
        """

        def backings(fd: int, status: os.stat_result) -> frozenset[str]:
            names = names_in(fd)
            return frozenset() if not names or is_ours(status) else self.meant(names, folder, os.pread(fd, 4, 0) == _QCOW2)

        try:
            return replaced.read_file(place, name, backings) or frozenset()
        except errors.UnsafeImage:
            return frozenset()  # it is no regular file
        except errors.StorageError as error:
            raise error.__cause__ if isinstance(error.__cause__, OSError) else error from error

    def meant(self, names: Iterable[str], folder: str, plain: bool = True) -> frozenset[str]:
        """The files of the share's directory that may be meant by ``names``, which were read from a file in ``folder``.

        :param folder: a folder of the share, "" for its own directory, or an absolute path for a folder elsewhere.
        :param plain: the names follow the notation of qcow2 images.
        """
        found: set[str] = set()
        for name in names:
            if plain and not folder and name in self._listed.files and name not in self._listed.twins and model.is_safe_file_name(name):
                found.add(name)
            else:
                found |= self._resolver().resolve(name, folder, plain)
        return frozenset(found)

    def of_link(self, folder_fd: int, name: str, folder: str) -> frozenset[str]:
        """The files that a symbolic link leads to, and those that its target rests on."""
        return replaced.read_again_if_replaced(lambda: self._resolver().of_link(folder_fd, name, folder, self._outside))

    @property
    def unreached(self) -> list[str]:
        """Sentences about targets of symbolic links that were not read."""
        return self._places.unreached if self._places is not None else []

    def _resolver(self) -> resolving.Resolver:
        """The resolver, made when first needed. Nearly all names are plain ones, for which the listing is enough."""
        if self._places is None:
            from .resolving import Resolver

            self._places = Resolver(self._directory, self._listed)
        return self._places


def names_in(fd: int) -> tuple[str, ...]:
    """The names of other files in an opened file, as :func:`foreign.names_in`. :raises OSError: it cannot be read."""
    first = os.pread(fd, 16, 0)
    if first[:4] not in MAGICS and (not first or first[0] not in TEXT or b"\0" in first):
        return ()
    from . import foreign  # late: most files name nothing

    return foreign.names_in(fd)


def scan(directory: ShareDirectory, known: Known | None = None, listed: Listing | None = None, alive: Alive = lambda: None) -> Backings:
    """Find out which files rest on which in the share's directory. Files that cannot be read are put into ``unread``.

    :param known: file → backing file, of files that the caller has just read. Their headers are not read again.
    :param listed: the listing of the directory, if the caller has just made one. :param alive: called for each other file.
    """
    listed = listed or listing(directory)
    found = Backings(known)
    search = Search(directory, listed)
    search_root(directory, search, listed, found, known or {}, alive)
    return found


def search_root(directory: ShareDirectory, search: Search, listed: Listing, found: Backings, known: Known, alive: Alive = lambda: None) -> None:
    """Record in ``found`` what the files and links of the share's directory rest on, except the ``known`` ones. :param alive: called for each."""
    for file in listed.files.difference(known):
        alive()
        record_backings(found, file, search.of_file, file)
    for link in listed.links:
        record_backings(found, link, search.of_link, directory.root.fd, link, "")


def record_backings(found: Backings, file: str, look: Callable[..., Collection[str]], *arguments: object) -> None:
    """Record in ``found`` what ``file`` rests on, as ``look(*given)`` returns it, or that it cannot be read."""
    try:
        backings = look(*arguments)
    except OSError as error:
        found.unread[file] = error
        return
    if backings:
        found.put(file, backings)


def look_again(found: Backings, files: Iterable[str]) -> None:
    """Read ``files`` of the share's directory again, because a task may have changed, made or removed them."""
    search = found.search
    if search is None:
        return
    search.look_anew()
    for file in files:
        found.put(file, ())
        record_backings(found, file, search.of_file, file)
