# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All volumes of a share, each read once and told at once: a share can hold very many, and what was read of one is let go
before the next one is read. What stays is small: which files each chain has.
"""

from __future__ import annotations

import os
from typing import Callable, Generic, Iterable, Iterator, NamedTuple, TypeVar

from ..errors import StorageError, understood
from ..model import safe_file_names
from . import dependents, inventory, kinship, records
from .directory import ShareDirectory
from .images import Glance
from .inventory import Observed

Told = TypeVar("Told")
Tell = Callable[[str, "Observed | StorageError"], Told]
_INFO = ".info"
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


class Survey(Generic[Told]):
    """What was told of each volume, by name, the chains of those that can be read, and what stands on the share: ``listed``, and the
    ``names`` in it that a volume's file can have."""

    def __init__(self, directory: ShareDirectory, tell: Tell, processes: int) -> None:
        self._directory = directory
        self._tell = tell
        self.told: dict[str, Told] = {}
        self.chains: dict[str, Chain] = {}
        entries = directory.root.take_stock()
        self.listed = dependents.sorted_out(directory, entries)
        self.names = safe_file_names([entry.name for entry in entries])
        self._processes = processes if len(self.names) >= _SHARED_OUT_FROM else 1
        try:
            directory.take_stock_of_private("volumes")
        except (OSError, StorageError):
            pass  # each volume will say so

    def read(self, volumes: list[str]) -> None:
        size = max(1, min(_PART, len(volumes) // (_PARTS * self._processes)))
        parts = [volumes[start : start + size] for start in range(0, len(volumes), size)]
        for found in self._read_parts(parts):
            for name, told, chain in found:
                self.told[name] = told
                if chain is not None:
                    self.chains[name] = Chain(*chain)

    def _read_parts(self, parts: list[list[str]]) -> Iterable[list]:
        processes = min(self._processes, len(parts))
        if processes < 2:
            return map(self._read_part, parts)
        from . import crew  # late: few shares are that large

        return crew.share_out(parts, self._read_part, processes)

    def _read_part(self, volumes: list[str]) -> list[tuple[str, Told, tuple | None]]:
        return list(self._observed(volumes))

    def _observed(self, volumes: list[str]) -> Iterator[tuple[str, Told, tuple | None]]:
        """A volume that cannot be read has its error told; one that went away meanwhile is left out."""
        for name in volumes:
            try:
                observed: Observed | StorageError | None = inventory.observe(self._directory, name, look=Glance)
            except Exception as error:  # whatever it is, it is this volume's
                observed = understood(error, f"volume {name} on {self._directory.share.label}")
            if observed is not None:
                chain = tuple(Chain.of(observed)) if isinstance(observed, Observed) else None
                yield name, self._tell(name, observed), chain

    def pass_over(self, names: Iterable[str], tell: Callable[[int], Told]) -> set[str]:
        """Tell of those of these names that are lone files of nobody. Returns their names."""
        root = self._directory.root
        private = self._directory.private("volumes")
        passed = set()
        for name in names:
            recorded = private is not None and not private.lacks(records.file_name(name))
            if recorded or name not in self.listed.files or root.names_from(name + "."):
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
                found.update((name, *self._directory.root.names_from(name + ".")))
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


def survey(directory: ShareDirectory, tell: Tell, processes: int = 1, tell_of_nobodys: Callable[[int], Told] | None = None) -> Survey:
    """All volumes of a share: those with an ``.info``, and every other file that belongs to no chain of theirs.

    :param tell: makes what is to be known of a volume from how it was observed, or from why it cannot be read. For a large
        share that happens in other processes, so it has to be plain values only.
    :param processes: how many may read a large share. More than one only where this process has no other threads.
    :param tell_of_nobodys: makes the same from the length in bytes of a lone file of which nothing on the share says anything, so
        that such files need not be opened.
    """
    found: Survey = Survey(directory, tell, processes)
    with_info = sorted([name[: -len(_INFO)] for name in found.names if name.endswith(_INFO)])
    found.read(with_info)
    others = set(found.names) - found.members(with_info)
    lone = [name for name in others if not name.endswith(_INFO) and inventory.is_there(directory, name)]
    claims: dict[str, set[str]] = {}
    owners = {kinship.owner_of(directory, name, besides=name, known=claims) or name for name in lone}  # a volume can have lost its .info
    left = owners - set(found.told)
    if tell_of_nobodys is not None:
        left -= found.pass_over(left, tell_of_nobodys)
    found.read(sorted(left))
    return found


def processors() -> int:
    """How many processes can read at the same time."""
    return min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)
