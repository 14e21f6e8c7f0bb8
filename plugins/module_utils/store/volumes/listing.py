# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists all volumes of a share. Each is read once and described at once.

A share can have very many volumes, so what was read of one is dropped before the next is read. Only the file names are kept.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Callable, Generic, Iterable, Iterator, NamedTuple, TypeVar

from ... import errors, model
from ..files.directory import ShareDirectory
from ..metadata import records
from . import chains, dependents, images, ownership
from .chains import Observed

Described = TypeVar("Described")
Describe = Callable[[str, "Observed | errors.StorageError"], Described]
_INFO = ".info"
_RECORD = records.file_name("")
_SHARED_OUT_FROM = 4000  # names on a share; from this number on it pays to start processes
_MOST_PROCESSES = 8
_PART = 64  # the most volumes that a process reads before it returns their results
_PARTS = 8  # the fewest parts for each process, so that all processes end at about the same time


class Chain(NamedTuple):
    """The files of a chain, active first, ``joined`` with "/" to one string. The first ``own`` of them belong to the volume.
    ``rests_on_nothing``: the last file is known to rest on nothing. Only for the last one this can be unknown."""

    joined: str
    own: int
    rests_on_nothing: bool

    @property
    def files(self) -> list[str]:
        """The names of the files, active first."""
        return self.joined.split("/")

    @classmethod
    def of(cls, observed: Observed) -> Chain:
        """The chain of a volume that was read."""
        volume = observed.volume
        return cls("/".join(volume.files), len(volume.own_files), observed.rests_on_nothing)


class Listing(Generic[Described]):
    """The volumes of a share. ``descriptions``: volume name → what ``describe`` made. ``chains``: volume name → chain, for volumes that can be read.
    ``listed``: the listing of the directory. ``names``: those names in it that a file of a volume can have."""

    def __init__(self, directory: ShareDirectory, describe: Describe, processes: int) -> None:
        self.directory = directory
        self._describe = describe
        self.descriptions: dict[str, Described] = {}
        self.chains: dict[str, Chain] = {}
        entries = directory.root.read_entries()
        self.listed = dependents.group_entries(directory, entries)
        self.names = model.safe_file_names([entry.name for entry in entries])
        self._processes = processes if len(self.names) >= _SHARED_OUT_FROM else 1
        self._claimants: frozenset[str] | None = None
        self._unmentioned: frozenset[str] | None = None
        self._list_records()

    def _list_records(self) -> None:
        """List the records, and find out which volumes can claim files: those with a record or an ``.info``."""
        try:
            recorded = [entry.name[: -len(_RECORD)] for entry in self.directory.read_private_entries("volumes") if entry.name.endswith(_RECORD)]
        except (OSError, errors.StorageError):
            self._claimants = None  # reading each volume reports the error
            return
        self._claimants = frozenset(recorded + [name[: -len(_INFO)] for name in self.names if name.endswith(_INFO)])

    def read(self, volumes: list[str]) -> None:
        """Read volumes. If one fails, a task may be changing it. After one common pause, all that failed are read again."""
        failed = self._read(volumes, chains.AT_FIRST)
        if not failed:
            return
        time.sleep(chains.PAUSE)
        self.directory.refresh(keep_listing=True)  # the second read must see the present state, not the listed one
        self._read(failed, chains.AGAIN)
        self.directory.root.read_entries()
        self._list_records()

    def _read(self, volumes: list[str], attempts: range) -> list[str]:
        """Read volumes with these attempts. Returns the names of those that have to be read again."""
        size = max(1, min(_PART, len(volumes) // (_PARTS * self._processes)))
        parts = [volumes[start : start + size] for start in range(0, len(volumes), size)]
        failed = []
        for found in self._read_parts(parts, attempts):
            for name, description, chain in found:
                if description is None:
                    failed.append(name)
                else:
                    self.descriptions[name] = description
                if chain is not None:
                    self.chains[name] = Chain(*chain)
        return failed

    def _read_parts(self, parts: list[list[str]], attempts: range) -> Iterable[list]:
        work = partial(self._read_part, attempts=attempts)
        processes = min(self._processes, len(parts))
        if processes < 2:
            return map(work, parts)
        from . import forked_readers  # late: few shares are that large

        return forked_readers.in_processes(parts, work, processes)

    def _read_part(self, volumes: list[str], attempts: range) -> list[tuple[str, Described | None, tuple | None]]:
        return list(self._observed(volumes, attempts))

    def _observed(self, volumes: list[str], attempts: range) -> Iterator[tuple[str, Described | None, tuple | None]]:
        """Yield (name, description, chain) of each volume. If it cannot be read, its error is described, or the description is None
        if it has to be read again. A volume that went away meanwhile is left out."""
        for name in volumes:
            try:
                observed: Observed | errors.StorageError | None = self._observe(name, attempts)
            except Exception as error:  # any error counts for this volume only
                observed = errors.as_storage_error(error, f"volume {name} on {self.directory.share.label}")
                if attempts is chains.AT_FIRST and self._may_change(name):
                    yield name, None, None
                    continue
            if observed is not None:
                chain = tuple(Chain.of(observed)) if isinstance(observed, Observed) else None
                yield name, self._describe(name, observed), chain

    def _observe(self, name: str, attempts: range) -> Observed | None:
        """Read one volume; None if it went away. :raises StorageError, OSError: it cannot be read."""
        if attempts is chains.AT_FIRST and name in self.unmentioned_files():
            return chains.observe_lone(self.directory, name)
        return chains.observe(self.directory, name, use_probe=images.UseProbe, attempts=attempts)

    def _may_change(self, name: str) -> bool:
        """Whether a task may be at work on a volume that cannot be read: its name is that of a file, or it has a record or an ``.info``."""
        return name in self.listed.files or self.may_claim(name)

    def may_claim(self, volume: str) -> bool:
        """Whether a volume has a record or an ``.info``, by which it could claim files."""
        return self._claimants is None or volume in self._claimants

    def unmentioned_files(self) -> frozenset[str]:
        """Regular files that no record and no ``.info`` could claim, and of which no other file is named like an overlay."""
        if self._unmentioned is None:
            self._unmentioned = frozenset() if self._claimants is None else self._find_unmentioned(self._claimants)
        return self._unmentioned

    def _find_unmentioned(self, claimants: frozenset[str]) -> frozenset[str]:
        stems = set()
        for name in self.names:
            end = name.find(".", 1)
            while end > 0:
                stems.add(name[:end])
                end = name.find(".", end + 1)
        claimed: set[str] = set()
        for volume in stems & claimants:
            claimed.update(self.directory.root.names_from(volume + "."))
        return self.listed.files.intersection(self.names) - stems - claimants - claimed

    def is_unmentioned(self, name: str) -> bool:
        """Whether nothing on the share mentions this name, whatever has it."""
        return name in self.unmentioned_files() or not (self.may_claim(name) or self.directory.root.names_from(name + "."))

    def describe_unopened(self, names: Iterable[str], describe: Callable[[int], Described]) -> set[str]:
        """Describe unmentioned files without opening them, from their length in bytes (0: no regular file). Returns the names described."""
        root = self.directory.root
        described = set()
        for name in names:
            if not self.is_unmentioned(name):
                continue
            if name not in self.listed.files:  # a link, a folder or a device
                self.descriptions[name] = describe(0)
                described.add(name)
                continue
            try:
                status = root.status(name)
            except errors.StorageError:
                continue  # it was replaced meanwhile
            if status is not None:
                self.descriptions[name] = describe(status.st_size)
                described.add(name)
        return described

    def members(self, volumes: Iterable[str]) -> set[str]:
        """The files that belong to ``volumes``, which were read. For a volume that cannot be read, file names decide."""
        found: set[str] = set()
        for name in volumes:
            chain = self.chains.get(name)
            if chain is not None:
                found.update(chain.files[: chain.own])
            elif name in self.descriptions:
                found.update((name, *self.directory.root.names_from(name + ".")))
        return found

    def known_backings(self) -> dict[str, str | None]:
        """File → backing file, or None where it has none, for all files of which this is certain. Left out are files whose backing
        file has several names: more may rest on that file than one of its names shows."""
        known: dict[str, str | None] = dict.fromkeys([name + _INFO for name in self.chains])
        for chain in self.chains.values():
            files = chain.files
            known.update(zip(files, files[1:]))
            if chain.rests_on_nothing:
                known[files[-1]] = None
        if self.listed.twins:
            known = {file: backing for file, backing in known.items() if backing not in self.listed.twins}
        return known


def read_volumes(
    directory: ShareDirectory,
    describe: Describe,
    processes: int = 1,
    describe_unclaimed: Callable[[int], Described] | None = None,
    skip: Callable[[str], bool] | None = None,
) -> Listing:
    """Read all volumes of a share: those with an ``.info``, and every other file that belongs to no chain of these.

    :param describe: makes the description of a volume, from its name and what was read of it or the error. For a large share this runs in
        other processes, so it must return plain values only.
    :param processes: how many may read a large share. More than one is allowed only if this process has no other threads.
    :param describe_unclaimed: makes the description of a lone file that nothing on the share mentions, from its length in bytes. Then
        such files are not opened.
    :param skip: takes the name of such a file; whether it is left out.
    """
    found: Listing = Listing(directory, describe, processes)
    with_info = sorted([name[: -len(_INFO)] for name in found.names if name.endswith(_INFO)])
    found.read(with_info)
    others = set(found.names) - found.members(with_info)
    unmentioned_files = others & found.unmentioned_files()
    lone = [name for name in others - unmentioned_files if not name.endswith(_INFO) and chains.is_there(directory, name)]
    claims: dict[str, set[str]] = {}
    owners = {_owner_of(found, name, claims) for name in lone}  # a volume can have lost its .info
    left = owners.union(unmentioned_files if skip is None else [name for name in unmentioned_files if not skip(name)]).difference(found.descriptions)
    if describe_unclaimed is not None:
        left -= found.describe_unopened(left, describe_unclaimed)
    found.read(sorted(left))
    return found


def _owner_of(found: Listing, name: str, claims: dict[str, set[str]]) -> str:
    """The volume that claims a file, or the file's own name. Nearly always no volume can: none is named like a beginning of it."""
    end = name.rfind(".")
    while end > 0:
        if found.may_claim(name[:end]):
            return ownership.owner_of(found.directory, name, excluding=name, known=claims) or name
        end = name.rfind(".", 0, end)
    return name


def processors() -> int:
    """How many processes can read at the same time on this host."""
    return min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)
