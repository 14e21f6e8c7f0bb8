# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the volumes of a share take together, in one task: what was there, and what the task has promised since.

Free space is read once and followed from there. So a task decides the same whether its items run one after the other, side by
side, or not at all (check mode). What the file system tells later only ever lowers it: others may have taken room.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterable, NamedTuple

from .. import errors, model
from ..store.files import presence
from ..store.files.directory import ShareDirectory
from ..store.metadata import maintenance
from ..store.volumes import chains
from .candidates import Candidates

if TYPE_CHECKING:
    from .. import localities

_FIRST = 576 << 10  # bytes that the first change of a share takes for .remotefs: its folders and the ballast
EACH = 32 << 10  # bytes that a volume takes besides its data: a record, and a lock on each candidate
_NOISE = 1 << 20  # bytes by which the file system's figures may differ from what was foreseen before others must have taken them


class Demand(NamedTuple):
    """What a new volume takes, in bytes: its virtual ``size``, what its creation writes (``at_once``), and of that what stays taken
    (``kept``), which is less where a clone shares blocks with its source. ``small`` is what records, locks and empty tables take."""

    size: int
    at_once: int = 0
    kept: int = 0
    small: int = EACH


class Figures(NamedTuple):
    """The size of a file system and what of it users may still take, in bytes. Shares on one file system have one ``system``."""

    total: int
    free: int
    system: tuple


@dataclass
class Claim:
    """What an item was promised on a share. ``before`` is what was counted of its volume, and ``made`` says that it is so by now."""

    key: tuple
    share: model.Share
    name: str
    demand: Demand
    new: bool
    before: int | None
    made: bool = False


class Followed(NamedTuple):
    """A change of a volume: its virtual size since then (None: it is gone), and what it took before, both in bytes."""

    share: model.Share
    name: str
    size: int | None
    allocated: int


class Capacity:
    """The virtual sizes of all volumes of a share together, and the room on it, in bytes: read once in a task, which then follows
    what it promises and changes itself. What other tasks create meanwhile is not in it, nor could it be: placement takes no lock
    on a share.

    A caller that asks and then promises holds ``lock`` meanwhile. ``followed`` are all changes that it was told of.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.followed: list[Followed] = []
        self._figures: dict[str, Figures] = {}
        self._in_maintenance: dict[str, bool] = {}
        self._taken: dict[tuple, int] = {}  # by file system; below zero where removals gave room
        self._small: dict[tuple, int] = {}  # records and locks, by file system
        self._found: dict[str, dict[str, int]] = {}  # virtual sizes of what was there, by share and name
        self._own: dict[str, dict[str, int]] = {}  # those that this task has promised or changed
        self._claims: dict[tuple, Claim] = {}
        self._standing: dict[tuple[str, str], Claim] = {}  # by share and name

    # -- room ----------------------------------------------------------------------------------------------------------

    def look(self, shares: Iterable[model.Share]) -> None:
        """Read the figures of these shares, unless that was done. :raises OSError: one of them cannot be asked."""
        with self.lock:
            for share in shares:
                if share.path not in self._figures:
                    self._figures[share.path] = read = _figures(share)
                    self._in_maintenance[share.path] = maintenance.is_marked(share.path)
                    if not presence.is_there(share.path, ".remotefs", "ballast"):
                        self._small[read.system] = self._small.get(read.system, 0) + _FIRST

    def look_again(self, shares: Iterable[model.Share]) -> None:
        """Lower the room to what the file system reports now: others may have taken some. :raises OSError: as :meth:`look`."""
        with self.lock:
            for share in shares:
                self.look([share])
                known = self._figures[share.path]
                own = self._taken.get(known.system, 0) + self._small.get(known.system, 0)
                free = _figures(share).free + own
                if free < known.free - _NOISE:
                    self._figures[share.path] = known._replace(free=free)

    def room(self, share: model.Share) -> tuple[int, int]:
        """(total size, bytes that are free and not promised)."""
        with self.lock:
            self.look([share])
            known = self._figures[share.path]
            return known.total, known.free - self._taken.get(known.system, 0)

    def small(self, share: model.Share) -> int:
        """What records and locks take of that room, with those of one more volume."""
        return self._small.get(self._figures[share.path].system, 0) + EACH

    def in_maintenance(self, share: model.Share) -> bool:
        """Whether no new volumes are to be placed there."""
        with self.lock:
            self.look([share])
            return self._in_maintenance[share.path]

    # -- virtual sizes -------------------------------------------------------------------------------------------------

    def provisioned(self, share: model.Share) -> int:
        """The virtual sizes of all volumes of the share, in bytes, as this task leaves them."""
        return sum(self._as_left(share).values())

    def volumes(self, share: model.Share) -> int:
        """How many volumes of a known size the share has, as this task leaves them."""
        return sum(size > 0 for size in self._as_left(share).values())

    def size_of(self, share: model.Share, name: str) -> int | None:
        """The virtual size of a volume, as this task leaves it; None where there is none that can be read."""
        with self.lock:
            return self._own.get(share.path, {}).get(name, self._sizes(share).get(name))

    def _as_left(self, share: model.Share) -> dict[str, int]:
        """The sizes of volumes as this task leaves them; 0 for one that goes."""
        with self.lock:
            return {**self._sizes(share), **self._own.get(share.path, {})}

    def _sizes(self, share: model.Share) -> dict[str, int]:
        if share.path not in self._found:
            self._found[share.path] = _sizes(share)
        return self._found[share.path]

    # -- promises ------------------------------------------------------------------------------------------------------

    def promise(self, candidates: Candidates, share: model.Share, name: str, demand: Demand, new: bool = True) -> None:
        """Volume ``name``, asked for on ``candidates``, gets its room on ``share``; one that is not ``new`` only its larger size."""
        with self.lock:
            self.look([share])
            own = self._own.setdefault(share.path, {})
            claim = Claim(_key(candidates, name), share, name, demand, new, own.get(name))
            self._claims[claim.key] = self._standing[share.path, name] = claim
            own[name] = demand.size
            if new:
                self._take(share, demand.kept, demand.small)

    def promised(self, candidates: Candidates, name: str) -> Claim | None:
        """What :meth:`promise` gave to this volume on these candidates, unless it was given back."""
        return self._claims.get(_key(candidates, name))

    def standing(self, share: model.Share, name: str) -> Claim | None:
        """What this task has promised, or given already, to the volume of that name on a share."""
        return self._standing.get((share.path, name))

    def give_back(self, candidates: Candidates, name: str) -> None:
        """What was promised and has not come to be is free for others."""
        with self.lock:
            claim = self._claims.get(_key(candidates, name))
            if claim is None or claim.made:
                return
            self._forget(claim)
            own = self._own[claim.share.path]
            del own[name]
            if claim.before is not None:
                own[name] = claim.before
            if claim.new:
                self._take(claim.share, -claim.demand.kept, -claim.demand.small)

    def follow(self, share: model.Share, before: model.Volume | None, after: model.Volume | None) -> None:
        """A volume of the share was ``before`` and is ``after``."""
        volume = after or before
        if volume is not None:
            self.follow_again(Followed(share, volume.name, after.size if after else None, before.allocated if before else 0))

    def follow_again(self, change: Followed) -> None:
        """As :meth:`follow`, for a change that another process of this task was told of."""
        share, name, size, allocated = change
        with self.lock:
            self.followed.append(change)
            self._own.setdefault(share.path, {})[name] = size or 0
            claim = self.standing(share, name)
            if size is not None and claim is not None:
                claim.made = True
            elif size is None and share.path in self._figures:
                self._take(share, -(claim.demand.kept if claim is not None and claim.new else allocated), 0)
                if claim is not None:
                    self._forget(claim)

    def _forget(self, claim: Claim) -> None:
        self._claims.pop(claim.key, None)
        self._standing.pop((claim.share.path, claim.name), None)

    def _take(self, share: model.Share, much: int, small: int) -> None:
        system = self._figures[share.path].system
        self._taken[system] = self._taken.get(system, 0) + much
        self._small[system] = self._small.get(system, 0) + small


def _key(candidates: Candidates, name: str) -> tuple:
    return (name, *(share.path for share in candidates.shares))


def locality_of(share: model.Share) -> localities.Locality | None:
    """What is known of the file system on which the directory of a share lies. None: no mount has it."""
    from ..localities import locality  # late: most tasks do not ask
    from ..mounts.tables import enclosing, read_mounts

    mount = enclosing(read_mounts(), os.path.realpath(share.path))
    return locality(mount.fstype) if mount is not None else None


def require_placeable(share: model.Share, name: str) -> None:
    """Check that a new volume may go to the one share that is asked for. :raises NoEligibleShare: it is in maintenance."""
    if maintenance.is_marked(share.path):
        raise errors.NoEligibleShare(f"new volume {name}", f"share {share.label} is in maintenance", "end that with maintenance: false, or name another share")


def figures_of(share: model.Share) -> os.statvfs_result:
    """What the file system of a share tells of its space. :raises StorageError: the share does not answer."""
    try:
        return os.statvfs(share.path)
    except OSError as error:
        raise errors.from_os_error(error, f"share {share.source}") from error


def _figures(share: model.Share) -> Figures:
    told = figures_of(share)
    try:
        system = (os.stat(share.path).st_dev, told.f_fsid) if hasattr(told, "f_fsid") else (share.path,)
    except OSError as error:
        raise errors.from_os_error(error, f"share {share.source}") from error
    return Figures(told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize, system)


def _sizes(share: model.Share) -> dict[str, int]:
    """The virtual sizes of all volumes that can be read, in bytes."""
    from ..store.volumes.listing import read_volumes  # late: only creation asks

    with ShareDirectory(share) as directory:
        return read_volumes(
            directory, lambda _name, found: found.volume.size if isinstance(found, chains.Observed) else 0, describe_unclaimed=model.round_to_sector
        ).descriptions
