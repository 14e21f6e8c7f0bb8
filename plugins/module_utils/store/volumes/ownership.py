# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which volume a file belongs to, and which volume rests on which.

The chain of a linked clone continues into files of its parent. The headers show that; records and ``.info`` say which volume each
file belongs to. A file that no volume claims is a volume of its own name.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Collection, Sequence

from ... import errors, model
from .. import qcow2
from ..files import names, replaced
from ..files.directory import ShareDirectory
from ..metadata import info_file, records

if TYPE_CHECKING:
    from . import dependents

_MOST_FILES = 256  # followed in an untrusted chain


def owner_of(directory: ShareDirectory, file: str, excluding: str | None = None, known: dict[str, set[str]] | None = None) -> str | None:
    """The volume that claims ``file`` in its record or ``.info``; None if none does. The volume ``excluding`` is not asked.

    Files of a volume are named ``NAME`` or ``NAME.something``, so only volumes named like a beginning of the file's name are asked.

    :param known: volume → files that it claims, filled from call to call. Without it a long chain is read once for each of its files.
    """
    parts = file.split(".")
    for length in range(len(parts), 0, -1):
        volume = ".".join(parts[:length])
        if volume != excluding and model.is_safe_file_name(volume) and _claims(directory, volume, file, known):
            if excluding != file or not is_its_own(directory, volume, file):
                return volume
    return None


def is_its_own(directory: ShareDirectory, volume: str, file: str) -> bool:
    """Whether ``file`` is a volume of its own that was made after ``volume`` was gone. It is if it has a record of its own name, and
    ``volume`` has no ``.info``, so that only its old record claims the file."""
    try:
        record = records.read(directory, file)
        return record is not None and file in record.formats and info_file.read(directory, volume) is None
    except (OSError, errors.StorageError):
        return False


def _claims(directory: ShareDirectory, volume: str, file: str, known: dict[str, set[str]] | None) -> bool:
    if known is not None:
        if volume not in known:
            known[volume] = _claimed(directory, volume)
        return file in known[volume]
    try:
        record = records.read(directory, volume)
        if record is not None and file in record.formats:
            return True
        info = info_file.read(directory, volume)
    except (OSError, errors.StorageError):
        return False
    return info is not None and (file == volume or file in _names_from(directory, info, record))


def _claimed(directory: ShareDirectory, volume: str) -> set[str]:
    """All files that a volume claims."""
    own: set[str] = set()
    try:
        record = records.read(directory, volume)
        own = set(record.formats) if record is not None else own
        info = info_file.read(directory, volume)
    except (OSError, errors.StorageError):
        return own
    return own if info is None else own | {volume} | _names_from(directory, info, record)


def _names_from(directory: ShareDirectory, info: info_file.Info, record: records.Record | None) -> set[str]:
    """The files in ``.info`` and those that headers lead to, down to the first raw or unreadable file or name that is no plain one."""
    found = {info.active, *dict(info.snapshots).values()}
    recorded = record.formats if record else {}
    file: str | None = info.active
    seen: set[str] = set()
    while file is not None and file not in seen and len(seen) < _MOST_FILES and recorded.get(file) != "raw":
        seen.add(file)
        file = _qcow2_backing_of(directory, file)
    return found | seen


def _qcow2_backing_of(directory: ShareDirectory, file: str) -> str | None:
    """The backing file of an overlay. Only overlays that give the format of their backing file count. So no guest of a raw disk
    can influence this."""
    try:
        header = replaced.read_file(directory.root, file, lambda fd, _status: qcow2.read_header(fd))
    except (OSError, errors.StorageError, qcow2.Qcow2Error):
        return None
    if header is None:
        return None
    name = os.path.basename(header.backing_file or "")
    return name if model.is_safe_file_name(name) and header.backing_format else None


def parent_of(
    directory: ShareDirectory, name: str, chain: tuple[model.Image, ...], info: info_file.Info | None, record: records.Record | None
) -> model.Parent | None:
    """What volume ``name`` rests on, if its chain continues into files of another volume; else None.

    The record decides if the chain agrees with it. Otherwise names decide: below the last file that is certainly its own, the first
    file that another volume claims, or that is not named after the volume, is the parent's.
    """
    files = [image.file for image in chain]
    if record is not None and record.parent is not None and record.parent.file in files[1:]:
        return record.parent
    own = {name} | (set(record.formats) if record else set())
    if info is not None:
        own |= {info.active, *dict(info.snapshots).values()}
    lowest = max((index for index, file in enumerate(files) if file in own), default=0)
    for file in files[lowest + 1 :]:
        owner = owner_of(directory, file)
        if owner != name and not (owner is None and file.startswith(name + ".")):
            return model.Parent(owner or file, _snapshot_showing(directory, owner or file, file), file)
    return None


def format_of_another(directory: ShareDirectory, name: str, file: str) -> str | None:
    """The format of a file below volume ``name``, from the record of the volume that owns the file. None if unknown."""
    owner = owner_of(directory, file, excluding=name)
    try:
        record = records.read(directory, owner) if owner is not None else None
        status = directory.root.status(file)
    except errors.StorageError:
        return None
    if record is None or status is None:
        return None
    mark = record.marks.get(file) or record.disks.get(file)
    if mark is not None and mark.inode and records.identity(record, file, status, lambda: 0) == records.OTHER:
        return None  # the record may have outlived its file
    return record.formats.get(file)


def ancestors_of(directory: ShareDirectory, name: str) -> set[str]:
    """The volumes into whose files the chain of volume ``name`` continues. Their tasks must not run at the same time as this one."""
    found: set[str] = set()
    known: dict[str, set[str]] = {}
    here: str | None = name
    while here is not None and len(found) < _MOST_FILES:
        here = _parent_volume(directory, here, known)
        if here == name or here in found:
            break
        found |= {here} if here is not None else set()
    return found


def _parent_volume(directory: ShareDirectory, name: str, known: dict[str, set[str]]) -> str | None:
    """The volume that ``name`` rests on directly. Found from headers alone, so that nothing else has to be readable."""
    try:
        record, info = records.read(directory, name), info_file.read(directory, name)
    except (OSError, errors.StorageError):
        record = info = None
    file: str | None = info.active if info else name
    seen: set[str] = set()
    while file is not None and file not in seen and len(seen) < _MOST_FILES:
        seen.add(file)
        if record is not None and record.formats.get(file) == "raw":
            break
        if record is None or file not in record.formats:
            owner = owner_of(directory, file, known=known)
            if owner not in (None, name) or (owner is None and file != name and not file.startswith(name + ".")):
                return owner or file
        file = _qcow2_backing_of(directory, file)
    return record.parent.volume if record is not None and record.parent is not None else None


def _snapshot_showing(directory: ShareDirectory, volume: str, file: str) -> str | None:
    """The snapshot of ``volume`` whose data ``file`` shows; None if there is none."""
    try:
        info = info_file.read(directory, volume)
    except (OSError, errors.StorageError):
        return None
    for snapshot, overlay in info.snapshots if info else ():
        if _qcow2_backing_of(directory, overlay) == file:
            return snapshot
    return None


def overlays_named_after(directory: ShareDirectory, name: str) -> dict[str, str]:
    """Overlay → backing file, for overlays named ``NAME.something`` that no other volume claims. Snapshots make such overlays."""
    found = {}
    for file in directory.root.names_from(name + "."):
        if not model.is_safe_file_name(file) or file.endswith(".info") or owner_of(directory, file, excluding=name):
            continue
        backing = _backing_of_unknown(directory, file)
        if backing is not None:
            found[file] = backing
    return found


def dependents_on(
    directory: ShareDirectory, files: Sequence[str], excluding: Collection[str], backings: dependents.Backings
) -> tuple[tuple[str, str], ...]:
    """Pairs (linked clone, file out of ``files`` that it rests on), sorted by file. Files in ``excluding`` do not count as clones.
    If no volume claims the resting file, the file's own name stands for the clone."""
    found = [(file, backing) for backing in files for file in backings.above(backing) if file not in excluding]
    return tuple((owner_of(directory, file) or names.shown(file), backing) for file, backing in sorted(found))


def _backing_of_unknown(directory: ShareDirectory, file: str) -> str | None:
    """The basename of the backing file of a file that may be a qcow2 image; None if it has none."""
    try:
        name = replaced.read_file(directory.root, file, lambda fd, _status: qcow2.read_backing_name(fd))
    except errors.UnsafeImage:
        return None  # it is no file that could be an overlay
    return (os.path.basename(name) or None) if name else None


def require_own_files(directory: ShareDirectory, volume: model.Volume) -> None:
    """Check that no other volume claims a file that ``.info`` gives this volume. :raises Conflict: one does."""
    for file in (*volume.own_files, *(file for _snapshot, file in volume.stale)):
        owner = None if file == volume.name else owner_of(directory, file, excluding=volume.name)
        if owner is not None:
            raise errors.Conflict(
                directory.root.subject(file), f"volume {volume.name} and volume {owner} both claim it", "see which .info is wrong and mend it"
            )


def require_free_name(directory: ShareDirectory, file: str, volume: str) -> None:
    """Check that nothing is named ``file`` yet. :raises Conflict: something is, of any file type."""
    subject = directory.root.subject(file)
    remedy = "remove or rename it, or choose another name"
    try:
        status = os.stat(file, dir_fd=directory.root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise errors.Conflict(subject, "something that is no regular file has this name", remedy)
    owner = owner_of(directory, file)
    problem = f"the name belongs to volume {owner}" if owner not in (None, volume) else "the name is taken by a file that is not this volume's"
    raise errors.Conflict(subject, problem, remedy)
