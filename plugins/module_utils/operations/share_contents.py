# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a share holds: sizes of its volumes together, what killed tasks left, and what belongs to nobody. Changes nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import Iterable, NamedTuple

from .. import errors, limited, model
from ..limited import Alive
from ..mounts import types
from ..store.files import folders
from ..store.files.directory import PRIVATE, ShareDirectory
from ..store.files.names import shown
from ..store.metadata import share_abilities
from ..store.volumes import chains, listing
from ..store.volumes.chains import Observed
from . import capacity, leftovers
from .leftovers import Leftover

KEYS: tuple[str, ...] = ("volumes", "virtual", "allocated", "held_by_snapshots", "over_subscription", "leftovers", "leftovers_allocated")
KEYS += ("unknown", "unknown_allocated", "locks", "abilities", "pool")
_GIB = 1 << 30
_NOT_TOLD = folders.SNAPSHOT_FOLDERS | {PRIVATE, "lost+found"}  # a file system makes the last one


class VolumeFigures(NamedTuple):
    """Of one volume: virtual size, bytes on the disk, and bytes that its snapshots may hold. ``garbage``: files that a finished task was about to
    remove. ``named``: further files that work which was interrupted names. ``files``: how many its chain has, those of a parent too. ``snapshots``: each
    with when it was taken (as records have it, or None) and how many bytes were written since then until the next one. ``is_read``: False for a volume
    that cannot be read, of which nothing else is known. Plain values, because another process may have read it."""

    size: int = 0
    allocated: int = 0
    held: int = 0
    garbage: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    files: int = 0
    snapshots: tuple[tuple[str | None, int], ...] = ()
    is_pending: bool = False
    is_replica: bool = False
    is_read: bool = True


class _Files(NamedTuple):
    """Files as users see them: paths relative to the share, sorted, and their bytes on the disk."""

    names: list[str]
    allocated: int


def of_share(share: model.Share, total: int, free: int, alive: Alive = limited.heard_by_nobody) -> dict:
    """What ``share`` holds, as remotefs_share_info documents it: see :func:`read`."""
    return read(share, total, free, alive)[0]


def unknown(why: str) -> dict:
    """The keys of :func:`of_share` for a share of which it cannot be told what it holds, and why."""
    return {**dict.fromkeys(KEYS), "contents_error": why}


def read(share: model.Share, total: int, free: int, alive: Alive = limited.heard_by_nobody) -> tuple[dict, dict[str, VolumeFigures]]:
    """What ``share`` holds, as remotefs_share_info documents it, and figures of the volumes that have a record or an ``.info``. Sizes are bytes.

    :param total: size of its file system. :param free: what users can still store there. :param alive: called whenever something was read.
    :raises StorageError, OSError: its directory cannot be read.
    """
    with ShareDirectory(share) as directory:
        found, volumes = _read(directory, alive)
        ours = {name for name in volumes if found.may_claim(name)}
        left = leftovers.find(directory, _garbage(volumes))
        unknown = _unknown(directory, found, volumes, ours, alive)
        able = _abilities(directory)
        locks = _locks(directory)
    virtual = sum(one.size for one in volumes.values())
    told = {
        "volumes": len(ours),
        "virtual": virtual,
        "allocated": sum(one.allocated for one in volumes.values()),
        "held_by_snapshots": sum(one.held for one in volumes.values()),
        "over_subscription": round(virtual / total, 4) if total else None,
        "leftovers": [one.path for one in left],
        "leftovers_allocated": sum(one.allocated for one in left),
        "unknown": unknown.names,
        "unknown_allocated": unknown.allocated,
        "locks": locks,
        "abilities": able,
        "pool": _pool(sum(one.size > 0 for one in volumes.values()), virtual, total, free),
    }
    return told, {name: volumes[name] for name in sorted(ours)}


def _told(directory: ShareDirectory, found: Observed | errors.StorageError) -> VolumeFigures:
    if isinstance(found, errors.StorageError):
        return VolumeFigures(is_read=False)
    volume = found.volume
    sizes = [image.allocated for image in volume.own]
    held = sum(sizes) - max(sizes, default=0) if volume.snapshots else 0
    written = {image.file: image.allocated for image in volume.chain}
    snapshots = tuple((one.created, written.get(one.file, 0)) for one in volume.snapshots)
    garbage: list[str] = []
    with suppress(OSError, errors.StorageError):
        garbage = chains.garbage_of(directory, found.record) if found.record is not None else []
    named = chains.images_of(volume.pending)
    is_pending = volume.pending is not None or volume.move is not None
    return VolumeFigures(volume.size, sum(sizes), held, tuple(garbage), named, len(volume.chain), snapshots, is_pending, volume.received)


def find_leftovers(share: model.Share) -> list[Leftover]:
    """What killed tasks left on the share. :raises StorageError, OSError: it cannot be read."""
    with ShareDirectory(share) as directory:
        _found, volumes = _read(directory, limited.heard_by_nobody)
        return leftovers.find(directory, _garbage(volumes))


def _read(directory: ShareDirectory, alive: Alive) -> tuple[listing.Listing, dict[str, VolumeFigures]]:
    def tell(_name: str, one: Observed | errors.StorageError) -> tuple:
        alive()
        return tuple(_told(directory, one))

    def tell_unopened(size: int) -> tuple:
        alive()
        return (model.round_to_sector(size),)

    found: listing.Listing = listing.read_volumes(directory, tell, listing.processors(), tell_unopened)
    return found, {name: VolumeFigures(*told) for name, told in found.descriptions.items()}


def _garbage(volumes: dict[str, VolumeFigures]) -> list[tuple[str, str]]:
    return [(name, file) for name, told in volumes.items() for file in told.garbage]


def _unknown(directory: ShareDirectory, found: listing.Listing, volumes: dict[str, VolumeFigures], ours: set[str], alive: Alive) -> _Files:
    """What no record, no ``.info`` and no other file names. A folder has a slash at its end."""
    known = found.members(ours)
    for name, told in volumes.items():
        chain = found.chains.get(name)
        known.update(chain.files[0 if name in ours else 1 :] if chain is not None else (), told.garbage, told.named)
    entries = [entry for entry in directory.root.read_entries() if entry.name not in _NOT_TOLD and entry.name not in known and not _is_info(entry.name, ours)]

    def size(name: str) -> int:
        alive()
        return leftovers.allocated(directory.root, name)

    return _files((entry.name + "/" * entry.is_dir(follow_symlinks=False), size(entry.name)) for entry in entries)


def _is_info(name: str, ours: set[str]) -> bool:
    return name.endswith(".info") and name[: -len(".info")] in ours


def _files(found: Iterable[tuple[str, int]]) -> _Files:
    every = sorted(found)
    return _Files([shown(name) for name, _size in every], sum(size for _name, size in every))


def _abilities(directory: ShareDirectory) -> dict[str, bool | None]:
    """What was tried out on the share, else what the tables of file systems say, else None."""
    share, tried = directory.share, share_abilities.read(directory)
    seen = share.locks_visible if types.find(share.fstype) is not None else None
    below = capacity.locality_of(share)
    assumed = {
        share_abilities.LOCKS_BETWEEN_HOSTS: seen,
        share_abilities.IN_USE_SEEN: seen,
        share_abilities.REFLINK: below.shares_blocks if below is not None and below.local else None,
        share_abilities.MODES: share.keeps_modes if seen is not None else None,
    }
    return {name: assumed.get(name) if tried.get(name) is None else tried[name] for name in share_abilities.ALL}


def _locks(directory: ShareDirectory) -> list[dict] | None:
    """Locks that are files, as plain values. There are some only where the kernel's locks are not seen between hosts. None if it cannot be told."""
    try:
        folder = directory.private("locks")
        if folder is None or not any(name.endswith(".lease") for name in folder.names()):
            return []
        from ..store.locks import lock_files  # late: few shares have any

        return [{**one._asdict(), "name": shown(one.name)} for one in lock_files.find(directory)]
    except errors.StorageError:
        return None  # somebody has put something else there; tasks that need a lock say so


def _pool(volumes: int, virtual: int, total: int, free: int) -> dict:
    """In the terms of Cinder's report of a pool."""
    return {
        "total_capacity_gb": round(total / _GIB, 2),
        "free_capacity_gb": round(free / _GIB, 2),
        "provisioned_capacity_gb": round(virtual / _GIB, 2),
        "total_volumes": volumes,
    }
