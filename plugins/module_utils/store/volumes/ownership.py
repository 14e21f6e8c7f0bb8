# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose a file is, and who rests on whom: the relations between the volumes of a share.

A linked clone's chain goes on into files of its parent. The headers say that it does; records and ``.info`` say whose each
file is. A file that nobody claims is a volume of its own name.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Collection, Sequence

from ...errors import Conflict, StorageError, UnsafeImage
from ...model import Image, Parent, Volume, is_safe_file_name
from .. import qcow2
from ..files.directory import ShareDirectory
from ..files.names import shown
from ..metadata import info_file, records

if TYPE_CHECKING:
    from .dependents import Backings

_MOST_FILES = 256  # followed in a chain that nobody vouches for


def owner_of(directory: ShareDirectory, file: str, excluding: str | None = None, known: dict[str, set[str]] | None = None) -> str | None:
    """The volume that claims ``file``, ``excluding`` one that is not asked; None where no record and no ``.info`` does.

    Files of a volume are called ``NAME`` or ``NAME.something``, so only the parts of the file's own name are asked.

    :param known: what volumes claim, remembered from call to call: without it a long chain is read once for each of its files.
    """
    parts = file.split(".")
    for length in range(len(parts), 0, -1):
        volume = ".".join(parts[:length])
        if volume != excluding and is_safe_file_name(volume) and _claims(directory, volume, file, known):
            if excluding != file or not is_its_own(directory, volume, file):
                return volume
    return None


def is_its_own(directory: ShareDirectory, volume: str, file: str) -> bool:
    """Whether a file is a volume of its own, which was made after ``volume`` was gone: it has a record of its own name, and of the
    other volume nothing but the record tells that the file was its."""
    try:
        record = records.read(directory, file)
        return record is not None and file in record.formats and info_file.read(directory, volume) is None
    except (OSError, StorageError):
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
    except (OSError, StorageError):
        return False
    return info is not None and (file == volume or file in _names_from(directory, info, record))


def _claimed(directory: ShareDirectory, volume: str) -> set[str]:
    """All files that a volume claims."""
    own: set[str] = set()
    try:
        record = records.read(directory, volume)
        own = set(record.formats) if record is not None else own
        info = info_file.read(directory, volume)
    except (OSError, StorageError):
        return own
    return own if info is None else own | {volume} | _names_from(directory, info, record)


def _names_from(directory: ShareDirectory, info: info_file.Info, record: records.Record | None) -> set[str]:
    """The files of ``.info`` and what their headers lead to, down to the first file of another name or format."""
    found = {info.active, *dict(info.snapshots).values()}
    recorded = record.formats if record else {}
    file: str | None = info.active
    seen: set[str] = set()
    while file is not None and file not in seen and len(seen) < _MOST_FILES and recorded.get(file) != "raw":
        seen.add(file)
        file = _qcow2_backing_of(directory, file)
    return found | seen


def _qcow2_backing_of(directory: ShareDirectory, file: str) -> str | None:
    """What is under an overlay; a raw disk's guest has no say, so only overlays that name their backing file's format count."""
    try:
        with directory.root.opened(file) as fd:
            header = qcow2.read_header(fd)
    except (OSError, StorageError, qcow2.Qcow2Error):
        return None
    name = os.path.basename(header.backing_file or "")
    return name if is_safe_file_name(name) and header.backing_format else None


def parent_of(
    directory: ShareDirectory, name: str, chain: tuple[Image, ...], info: info_file.Info | None, record: records.Record | None
) -> Parent | None:
    """What volume ``name`` rests on, if its chain goes on into files of another volume.

    The record says so, as long as the chain agrees. Without one the names decide: below the last file that is surely its
    own, everything that another volume claims, or that has a foreign name, is the parent's.
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
            return Parent(owner or file, _snapshot_showing(directory, owner or file, file), file)
    return None


def format_of_another(directory: ShareDirectory, name: str, file: str) -> str | None:
    """The format of a file beneath volume ``name`` as the record of the volume has it that owns the file."""
    owner = owner_of(directory, file, excluding=name)
    try:
        record = records.read(directory, owner) if owner is not None else None
        status = directory.root.status(file)
    except StorageError:
        return None
    if record is None or status is None:
        return None
    mark = record.marks.get(file) or record.disks.get(file)
    if mark is not None and mark.inode and records.identity(record, file, status, lambda: 0) == records.OTHER:
        return None  # the record may have outlived its file
    return record.formats.get(file)


def ancestors_of(directory: ShareDirectory, name: str) -> set[str]:
    """The volumes in whose files the chain of volume ``name`` goes on: their tasks and this one's must not meet."""
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
    """The volume on which ``name`` rests directly, from headers alone, so that nothing has to be readable beyond them."""
    try:
        record, info = records.read(directory, name), info_file.read(directory, name)
    except (OSError, StorageError):
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
    """The snapshot of ``volume`` whose data is what ``file`` shows."""
    try:
        info = info_file.read(directory, volume)
    except (OSError, StorageError):
        return None
    for snapshot, overlay in info.snapshots if info else ():
        if _qcow2_backing_of(directory, overlay) == file:
            return snapshot
    return None


def overlays_named_after(directory: ShareDirectory, name: str) -> dict[str, str]:
    """Overlays called ``NAME.something`` that no other volume claims, which is what taking snapshots leaves, and what each
    rests on."""
    found = {}
    for file in directory.root.names_from(name + "."):
        if not is_safe_file_name(file) or file.endswith(".info") or owner_of(directory, file, excluding=name):
            continue
        backing = _backing_of_unknown(directory, file)
        if backing is not None:
            found[file] = backing
    return found


def dependents_on(
    directory: ShareDirectory, files: Sequence[str], excluding: Collection[str], backings: Backings
) -> tuple[tuple[str, str], ...]:
    """(linked clone, file out of ``files`` that it rests on), ``excluding`` files that do not count. A file that no volume claims is
    told by its own name."""
    found = [(file, backing) for backing in files for file in backings.above(backing) if file not in excluding]
    return tuple((owner_of(directory, file) or shown(file), backing) for file, backing in sorted(found))


def _backing_of_unknown(directory: ShareDirectory, file: str) -> str | None:
    """The plain name of what a qcow2 image rests on."""
    try:
        with directory.root.opened(file) as fd:
            name = qcow2.read_backing_name(fd)
    except (FileNotFoundError, UnsafeImage):
        return None  # it went away, or is no file that could be an overlay
    return (os.path.basename(name) or None) if name else None


def require_own_files(directory: ShareDirectory, volume: Volume) -> None:
    """:raises Conflict: ``.info`` gives the volume a file that another volume claims as its own."""
    for file in (*volume.own_files, *(file for _snapshot, file in volume.stale)):
        owner = None if file == volume.name else owner_of(directory, file, excluding=volume.name)
        if owner is not None:
            raise Conflict(
                directory.root.subject(file), f"volume {volume.name} and volume {owner} both claim it", "see which .info is wrong and mend it"
            )


def require_free_name(directory: ShareDirectory, file: str, volume: str) -> None:
    """:raises Conflict: something has the name already, whatever it is."""
    subject = directory.root.subject(file)
    remedy = "remove or rename it, or choose another name"
    try:
        status = os.stat(file, dir_fd=directory.root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise Conflict(subject, "something that is no regular file has this name", remedy)
    owner = owner_of(directory, file)
    told = f"the name belongs to volume {owner}" if owner not in (None, volume) else "the name is taken by a file that is not this volume's"
    raise Conflict(subject, told, remedy)
