# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What rests on a volume of which something is to be destroyed, and what does not count because the user says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Collection, Mapping, NamedTuple

from .. import errors, model
from ..store.files import folders
from ..store.files.directory import ShareDirectory
from ..store.files.names import shown
from ..store.volumes import ownership

if TYPE_CHECKING:
    from ..store.volumes.dependents import Backings
    from .options import Options


SHARES_READ = "shares read"  # key of what a task keeps: what rests on what, by share, for tasks whose changes nothing else can rest on


class Found(NamedTuple):
    """``dependents`` as of :class:`Volume`, and the files that would have been among them but for the user's word."""

    dependents: tuple[tuple[str, str], ...]
    not_counted: tuple[str, ...]


def dependents_of(directory: ShareDirectory, volume: model.Volume, options: Options, excluding: Collection[str] = ()) -> Found:
    """Ask every file of the share. One that this user may not read may rest on anything, and counts.

    :raises StorageError: a file cannot be read for another reason, and the user did not say that it does not count.
    :raises OSError: the share cannot be listed.
    """
    backings = _backings(directory, volume, options)
    for sentence in backings.unreached:
        options.task.warn(sentence)
    own = {*volume.files, *excluding}
    unread = _unread(directory, backings, own, options.not_dependent)
    files = tuple(dict.fromkeys((*volume.own_files, *(file for _snapshot, file in volume.stale))))
    resting = {file for backing in files for file in backings.above(backing) if file not in own}
    overruled = {file for file in resting if _is_named(directory, file, options.not_dependent)}
    found = ownership.dependents_on(directory, files, {*own, *overruled}, backings)
    doubts = tuple((label, file) for label in unread for file in files)
    ignored = [file for file in backings.unread if file not in own and _is_named(directory, file, options.not_dependent)]
    return Found(found + doubts, tuple(sorted({*map(shown, overruled), *map(shown, ignored)})))


def _backings(directory: ShareDirectory, volume: model.Volume, options: Options) -> Backings:
    batch_locks, shares = options.task.batch_locks, options.task.kept.get(SHARES_READ)
    if batch_locks is not None:
        return batch_locks.backings()
    if shares is None:
        return folders.scan_all(directory, _just_read(volume))
    path = directory.share.path
    if path not in shares:
        shares[path] = folders.scan_all(directory)
    found: Backings = shares[path]
    return found


def _just_read(volume: model.Volume) -> dict[str, str | None]:
    """What the files of the volume rest on, and that its ``.info`` rests on nothing."""
    read: dict[str, str | None] = {image.file: image.backing_file for image in volume.chain if image.format is not None}
    return {**read, model.info_name(volume.name): None} if volume.info else read


def _unread(directory: ShareDirectory, backings: Backings, own: Collection[str], ignored: Collection[str]) -> list[str]:
    labels = []
    for file, error in sorted(backings.unread.items()):
        if file in own or _is_named(directory, file, ignored):
            continue
        if not isinstance(error, PermissionError):
            raise errors.from_os_error(error, directory.root.subject(shown(file))) from error
        labels.append(f"{shown(file)} (which this user may not read, so that it may rest on anything)")
    return labels


def _is_named(directory: ShareDirectory, file: str, names: Collection[str]) -> bool:
    """Whether a file, or the volume that it belongs to, is among these names, as messages show it or as it is."""
    return bool(names) and (file in names or shown(file) in names or ownership.owner_of(directory, file) in names)


def as_predicted(world: Mapping, share: model.Share, name: str, found: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Dependents as earlier items of a prediction would leave them: those removed or cut loose gone, and new ones added.

    :param world: volumes as check mode remembers them, by (share path, name).
    """
    known = {other: volume for (path, other), volume in world.items() if path == share.path and other != name}
    resting = [(other, volume.parent.file) for other, volume in known.items() if volume and volume.parent and volume.parent.volume == name]
    return tuple(sorted({*(pair for pair in found if pair[0] not in known), *resting}))
