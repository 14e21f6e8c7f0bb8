# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All volumes of a share, each read once and told at once: a share can hold very many, and what was read of one is let go
before the next one is read. What stays is small: which files each chain has.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Callable, Generic, Iterable, Iterator, NamedTuple, TypeVar

from ...errors import StorageError, understood
from ...model import safe_file_names
from ..files.directory import ShareDirectory
from ..metadata import records
from . import chains, dependents, ownership
from .chains import Observed
from .images import UseProbe

Described = TypeVar("Described")
Describe = Callable[[str, "Observed | StorageError"], Described]
_INFO = ".info"
_RECORD = records.file_name("")
_SHARED_OUT_FROM = 4000  # names on a share, from which on it pays to start processes
_MOST_PROCESSES = 8
_PART = 64  # volumes at most that a process reads before it hands over what it has
_PARTS = 8  # for each process at least, so that all of them are done at about the same time


class Chain(NamedTuple):
    """The files of a volume, active first, joined to one string; the first ``own`` of them are its own. Only of the last one it
    can be uncertain whether it rests on anything (``silent``: it does not)."""

    joined: str
    own: int
    silent: bool

    @property
    def files(self) -> list[str]:
        return self.joined.split("/")

    @classmethod
    def of(cls, observed: Observed) -> Chain:
        volume = observed.volume
        return cls("/".join(volume.files), len(volume.own_files), observed.silent)


class Listing(Generic[Described]):
    """What was told of each volume, by name, the chains of those that can be read, and what stands on the share: ``listed``, and the
    ``names`` in it that a volume's file can have."""

    def __init__(self, directory: ShareDirectory, tell: Describe, processes: int) -> None:
        self.directory = directory
        self._tell = tell
        self.told: dict[str, Described] = {}
        self.chains: dict[str, Chain] = {}
        entries = directory.root.read_entries()
        self.listed = dependents.sorted_out(directory, entries)
        self.names = safe_file_names([entry.name for entry in entries])
        self._processes = processes if len(self.names) >= _SHARED_OUT_FROM else 1
        self._claimants: frozenset[str] | None = None
        self._unknown: frozenset[str] | None = None
        self._take_stock_of_records()

    def _take_stock_of_records(self) -> None:
        """Also find out which volumes can claim files: those with a record or an ``.info``."""
        try:
            recorded = [entry.name[: -len(_RECORD)] for entry in self.directory.take_stock_of_private("volumes") if entry.name.endswith(_RECORD)]
        except (OSError, StorageError):
            self._claimants = None  # each volume will say so
            return
        self._claimants = frozenset(recorded + [name[: -len(_INFO)] for name in self.names if name.endswith(_INFO)])

    def read(self, volumes: list[str]) -> None:
        """Read volumes. One that fails may be about to change: all of those are waited for together, and read again."""
        failed = self._read(volumes, chains.AT_FIRST)
        if not failed:
            return
        time.sleep(chains.PAUSE)
        self.directory.refresh(keep_listing=True)  # what is read again is to be seen as it is now, listed or not
        self._read(failed, chains.AGAIN)
        self.directory.root.read_entries()
        self._take_stock_of_records()

    def _read(self, volumes: list[str], attempts: range) -> list[str]:
        """Returns the names of those that are to be read again."""
        size = max(1, min(_PART, len(volumes) // (_PARTS * self._processes)))
        parts = [volumes[start : start + size] for start in range(0, len(volumes), size)]
        failed = []
        for found in self._read_parts(parts, attempts):
            for name, told, chain in found:
                if told is None:
                    failed.append(name)
                else:
                    self.told[name] = told
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
        """A volume that cannot be read has its error told, or None where it is to be read again; one that went away meanwhile is
        left out."""
        for name in volumes:
            try:
                observed: Observed | StorageError | None = self._observe(name, attempts)
            except Exception as error:  # whatever it is, it is this volume's
                observed = understood(error, f"volume {name} on {self.directory.share.label}")
                if attempts is chains.AT_FIRST and self._may_change(name):
                    yield name, None, None
                    continue
            if observed is not None:
                chain = tuple(Chain.of(observed)) if isinstance(observed, Observed) else None
                yield name, self._tell(name, observed), chain

    def _observe(self, name: str, attempts: range) -> Observed | None:
        """:raises StorageError, OSError: the volume cannot be read."""
        if attempts is chains.AT_FIRST and name in self.strangers():
            return chains.observe_lone(self.directory, name)
        return chains.observe(self.directory, name, use_probe=UseProbe, attempts=attempts)

    def _may_change(self, name: str) -> bool:
        """Whether somebody may be at work on a volume that cannot be read: not where a link, a folder or a device has its name, of
        which nothing says anything."""
        return name in self.listed.files or self.may_claim(name)

    def may_claim(self, volume: str) -> bool:
        """Whether there is a record or an ``.info`` by which a volume could claim files."""
        return self._claimants is None or volume in self._claimants

    def strangers(self) -> frozenset[str]:
        """The regular files of which nothing on the share says anything: no record and no ``.info`` could claim them, and no file is
        called as if it had been made by taking a snapshot of one."""
        if self._unknown is None:
            self._unknown = frozenset() if self._claimants is None else self._find_strangers(self._claimants)
        return self._unknown

    def _find_strangers(self, claimants: frozenset[str]) -> frozenset[str]:
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

    def is_nobodys(self, name: str) -> bool:
        """Whether nothing on the share says anything of a name, whatever stands there."""
        return name in self.strangers() or not (self.may_claim(name) or self.directory.root.names_from(name + "."))

    def pass_over(self, names: Iterable[str], tell: Callable[[int], Described]) -> set[str]:
        """Tell of those of these names that are lone files of nobody, or no files at all. Returns their names."""
        root = self.directory.root
        passed = set()
        for name in names:
            if not self.is_nobodys(name):
                continue
            if name not in self.listed.files:  # a link, a folder or a device
                self.told[name] = tell(0)
                passed.add(name)
                continue
            try:
                status = root.status(name)
            except StorageError:
                continue  # it was exchanged meanwhile
            if status is not None:
                self.told[name] = tell(status.st_size)
                passed.add(name)
        return passed

    def members(self, volumes: Iterable[str]) -> set[str]:
        """The files that belong to volumes that were read. Those of one that cannot be read go by their names."""
        found: set[str] = set()
        for name in volumes:
            chain = self.chains.get(name)
            if chain is not None:
                found.update(chain.files[: chain.own])
            elif name in self.told:
                found.update((name, *self.directory.root.names_from(name + ".")))
        return found

    def known_backings(self) -> dict[str, str | None]:
        """File → backing file, of all files that were read and of which it is certain. A file with several names has more resting
        on it than one of them tells."""
        known: dict[str, str | None] = dict.fromkeys([name + _INFO for name in self.chains])
        for chain in self.chains.values():
            files = chain.files
            known.update(zip(files, files[1:]))
            if chain.silent:
                known[files[-1]] = None
        if self.listed.twins:
            known = {file: backing for file, backing in known.items() if backing not in self.listed.twins}
        return known


def read_volumes(
    directory: ShareDirectory,
    tell: Describe,
    processes: int = 1,
    describe_unclaimed: Callable[[int], Described] | None = None,
    skip: Callable[[str], bool] | None = None,
) -> Listing:
    """All volumes of a share: those with an ``.info``, and every other file that belongs to no chain of theirs.

    :param tell: makes what is to be known of a volume from how it was observed, or from why it cannot be read. For a large
        share that happens in other processes, so it has to be plain values only.
    :param processes: how many may read a large share. More than one only where this process has no other threads.
    :param describe_unclaimed: makes the same from the length in bytes of a lone file of which nothing on the share says anything, so
        that such files need not be opened.
    :param skip: which names of such files need not be told at all.
    """
    found: Listing = Listing(directory, tell, processes)
    with_info = sorted([name[: -len(_INFO)] for name in found.names if name.endswith(_INFO)])
    found.read(with_info)
    others = set(found.names) - found.members(with_info)
    strangers = others & found.strangers()
    lone = [name for name in others - strangers if not name.endswith(_INFO) and chains.is_there(directory, name)]
    claims: dict[str, set[str]] = {}
    owners = {_owner_of(found, name, claims) for name in lone}  # a volume can have lost its .info
    left = owners.union(strangers if skip is None else [name for name in strangers if not skip(name)]).difference(found.told)
    if describe_unclaimed is not None:
        left -= found.pass_over(left, describe_unclaimed)
    found.read(sorted(left))
    return found


def _owner_of(found: Listing, name: str, claims: dict[str, set[str]]) -> str:
    """The volume that claims a file, which nearly always none can: nothing on the share has a part of its name."""
    end = name.rfind(".")
    while end > 0:
        if found.may_claim(name[:end]):
            return ownership.owner_of(found.directory, name, excluding=name, known=claims) or name
        end = name.rfind(".", 0, end)
    return name


def processors() -> int:
    """How many processes can read at the same time."""
    return min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)
