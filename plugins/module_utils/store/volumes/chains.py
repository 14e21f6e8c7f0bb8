# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes with their chains, read from ``.info``, our records and the headers.

Only this file decides formats, and never by looking at content: see :func:`decide_format`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import Callable, NamedTuple

from ... import errors, model
from .. import qcow2
from ..files.directory import ShareDirectory
from ..metadata import info_file, records
from . import images, ownership
from .look import Look

MAX_CHAIN = 256  # files that are followed before a chain is taken for an attack
PAUSE = 0.02  # seconds before a volume is read again, the first time; then more
_READ_AGAIN = 4  # times, if another task changes the volume while it is read
AT_FIRST, AGAIN = range(1), range(1, _READ_AGAIN + 1)  # attempts, for callers that read many volumes and wait once for all of them


@dataclass
class Findings:
    """What reading a chain shows about the record. ``outlived``: it is about other files. ``unmarked``: it does not say which file
    the base is. ``doubt``: why the user has to give the format."""

    outlived: bool = False
    unmarked: bool = False
    doubt: str | None = None


class Observed(NamedTuple):
    """A volume and what it was read from. ``in_use``: whether its images are open, None if unknown or if no :class:`UseProbe` asked."""

    volume: model.Volume
    info: info_file.Info | None
    record: records.Record | None
    in_use: bool | None = None
    rests_on_nothing: bool = False  # the lowest file of the chain names no other file, as a :class:`UseProbe` found out
    lone: bool = False  # no record, no .info and no other file on the share mentions it


def _no_probe() -> None:
    """Makes no probe, for callers that may change the volume. With this default, a repeated read also lists the directory anew."""


def observe(
    directory: ShareDirectory,
    name: str,
    user_format: str | None = None,
    use_probe: Callable[[], images.UseProbe | None] = _no_probe,
    attempts: range = range(_READ_AGAIN + 1),
    look: Look | None = None,
) -> Observed | None:
    """Read volume ``name`` as it is now. None if the share has no such volume.

    :param user_format: the format of the base file as the user gave it. It counts only if nothing on the share records the format.
    :param use_probe: makes a :class:`UseProbe`, for callers that want to know whether the images are in use.
    :param attempts: which attempts to make: :data:`AT_FIRST`, or :data:`AGAIN` after that has failed and a :data:`PAUSE` is over.
    :param look: what was already read of the volume under its lock.

    Takes no lock. If a read fails while another task changes the volume, it is repeated before the failure counts.

    :raises StorageError: the volume cannot be read (chain_broken, unsafe_image, needs_recovery).
    """
    before: tuple = ()
    for attempt in attempts:
        before = change_marks(directory, name) if attempt else before
        try:
            return _observe(look if look is not None and not attempt else Look(directory, name), user_format, use_probe)
        except OSError as error:
            failure: errors.StorageError = errors.from_os_error(error, f"volume {name} on {directory.share.label}", os.geteuid())
        except errors.StorageError as error:
            failure = error
        if attempt == attempts[-1] or (attempt > 0 and change_marks(directory, name) == before):
            raise failure
        time.sleep(PAUSE * (attempt + 1))
        directory.refresh(keep_listing=use_probe is not _no_probe)
    raise AssertionError("unreachable")


def observe_lone(directory: ShareDirectory, name: str) -> Observed:
    """As :func:`observe`, for a volume that is one lone file: the listing of the share shows no record, no ``.info`` and no other file
    of it. For callers that change nothing. Makes one attempt.

    :raises StorageError, OSError: the file cannot be read, or went away.
    """
    use_probe = images.UseProbe()
    image = images.read_image(directory, name, None, use_probe)
    return Observed(model.Volume(name, (image,)), None, None, use_probe.in_use, name in use_probe.rests_on_nothing, lone=True)


def exists(directory: ShareDirectory, name: str, look: Look | None = None) -> bool:
    """Whether the share has the volume's base file or its ``.info`` (of any file type), or another file that its record names.

    :raises Conflict: the share ignores case, and the name there has other letter case.
    """
    for file in (name, model.info_name(name)):
        if directory.root.is_listed_file(file):
            return True
        try:
            found = os.stat(file, dir_fd=directory.root.fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        _require_same_spelling(directory, file, found)
        return True
    try:
        record = (look or Look(directory, name)).record
    except errors.StorageError:
        return True  # a later read of the volume reports what is wrong
    own = [file for file in record.formats if file.startswith(name + ".")] if record else []
    return any(is_there(directory, file) and not ownership.is_its_own(directory, name, file) for file in own)


def is_there(directory: ShareDirectory, name: str) -> bool:
    """Whether anything has that name. If it is not a regular file, a later read reports that."""
    try:
        return directory.root.is_listed_file(name) or directory.root.status(name) is not None
    except errors.StorageError:
        return True


def _require_same_spelling(directory: ShareDirectory, file: str, found: os.stat_result) -> None:
    try:
        other = os.stat(file.swapcase(), dir_fd=directory.root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if file != file.swapcase() and other.st_ino == found.st_ino and file not in directory.root.names():
        spelling = next((name for name in directory.root.names() if name.lower() == file.lower()), "another name")
        raise errors.Conflict(
            directory.root.subject(file), f"the share ignores case, and the file there is spelt {spelling}", "use that spelling, or another name"
        )


def change_marks(directory: ShareDirectory, name: str) -> tuple:
    """What changes when a task works on the volume: (inode, mtime in ns) or None, each for its ``.info``, its record and its base file."""
    private = directory.private("volumes")
    found = []
    for place, file in ((directory.root, model.info_name(name)), (private, records.file_name(name)), (directory.root, name)):
        try:
            status = os.stat(file, dir_fd=place.fd, follow_symlinks=False) if place else None
        except OSError:
            status = None
        found.append((status.st_ino, status.st_mtime_ns) if status else None)
    return tuple(found)


def _observe(look: Look, user_format: str | None, make_probe: Callable[[], images.UseProbe | None]) -> Observed | None:
    directory, name, record = look.directory, look.name, look.record
    if not exists(directory, name, look):
        return None
    found = Findings()
    try:
        info, _rebuilt = read_info(look)
    except errors.ChainBroken:
        from ..metadata import formats

        if record is None or not formats.is_new_without_overlays(directory, name, record, user_format, found):
            raise
        info, record = None, None
    active = info.active if info else name
    if info is None and directory.root.status(name) is None:
        return None
    use_probe = make_probe()
    chain = walk(directory, name, active, info, record, user_format, use_probe, found)
    if found.outlived and record is not None:
        record = records.Record(intent=record.intent, garbage=record.garbage, move=record.move)
    snapshots, stale = _snapshots(directory, name, chain, info, record)
    pending = record.intent if record else None
    parent = ownership.parent_of(directory, name, chain, info, record)
    make = partial(model.Volume, name, chain, snapshots, info is not None, pending=pending, parent=parent, stale=stale)
    if record is not None:
        make = partial(make, created=record.created, description=record.description, labels=record.labels)
        make = partial(make, received=record.received, replicated=record.replicated, move=record.move)
    if record is not None and record.lease is not None:
        from ..metadata import formats  # late: most volumes were made without a lease

        make = partial(make, lease=formats.lease_of(directory, record))
    adopted = not found.unmarked and _is_adopted(make(), record)
    make = partial(make, doubt=found.doubt)
    if use_probe is None:
        return Observed(make(adopted=adopted), info, record)
    if record is not None and (pending is not None or record.garbage):
        images.probe_all(use_probe, directory, (*images_of(pending), *garbage_of(directory, record)))
    rests_on_nothing = chain[-1].format == "qcow2" or chain[-1].file in use_probe.rests_on_nothing
    return Observed(make(adopted=adopted), info, record, use_probe.in_use, rests_on_nothing)


def read_info(look: Look) -> tuple[info_file.Info | None, bool]:
    """Read ``.info``, or rebuild it if it is missing or torn: (content, whether it was rebuilt).

    It is rebuilt from our own record, and only if the chain agrees with that in every point. Then nobody can have changed the volume
    since. While the record has the intent of a task, nothing is rebuilt: the intent decides.

    :raises ChainBroken: it is torn, or missing although there are overlays, and its content is not certain.
    """
    directory, name, record, torn = look.directory, look.name, look.record, None
    try:
        info = look.info
        if info is not None or (record is not None and record.intent is not None):
            return info, False
    except errors.ChainBroken as error:
        torn = error
    if torn is None and not _must_have_had_info(directory, name, record):
        return None, False
    from ..metadata.rebuilding import rebuilt_info  # late: .info is hardly ever missing or torn

    return rebuilt_info(look, torn), True


def _must_have_had_info(directory: ShareDirectory, name: str, record: records.Record | None) -> bool:
    if record is not None and (record.snapshots or record.active not in (None, name)):
        return True
    known_as_lone = record is not None and set(record.formats) == {name}
    return not known_as_lone and bool(ownership.overlays_named_after(directory, name))


def _is_adopted(volume: model.Volume, record: records.Record | None) -> bool:
    return record is not None and record.parent == volume.parent and all(file in record.formats for file in volume.own_files)


def walk(
    directory: ShareDirectory,
    name: str,
    active: str,
    info: info_file.Info | None,
    record: records.Record | None,
    user_format: str | None = None,
    use_probe: images.UseProbe | None = None,
    found: Findings | None = None,
) -> tuple[model.Image, ...]:
    """Read the chain from file ``active`` down, the active image first.

    :raises ChainBroken: a file is missing, formats contradict each other, the chain loops or has more than MAX_CHAIN files.
    :raises UnsafeImage: a header is damaged or hostile, or a backing name leads out of the share.
    """
    chain: list[model.Image] = []
    seen: set[str] = set()
    file: str | None = active
    format_above: str | None = None
    while file is not None:
        if file in seen or len(chain) >= MAX_CHAIN:
            raise errors.ChainBroken(f"volume {name} on {directory.share.label}", f"its chain comes back to {file} or never ends", images.WORST_DAY)
        image_format = decide_format(name, file, format_above, info, record)
        judge = _judge(directory, name, file, format_above, info, record, user_format, found or Findings())
        if image_format is None and chain:
            image_format = ownership.format_of_another(directory, name, file)
        if image_format is None and user_format is not None:
            image_format, user_format = _checked_user_format(directory, file, user_format), None  # it counts for one file, not for those below
        try:
            image = images.read_image(directory, file, image_format, use_probe, record, judge)
        except FileNotFoundError as error:
            raise errors.ChainBroken(f"volume {name} on {directory.share.label}", f"{file} is missing from its chain", images.PUT_BACK) from error
        chain.append(image)
        seen.add(file)
        file, format_above = image.backing_file, image.backing_format
    return tuple(chain)


def _judge(
    directory: ShareDirectory,
    name: str,
    file: str,
    above: str | None,
    info: info_file.Info | None,
    record: records.Record | None,
    user_format: str | None,
    found: Findings,
) -> images.Judge | None:
    """What decides the format if a record has one and no header above agrees, because the record may be about another file."""
    recorded = record.formats.get(file) if record is not None else None
    if record is None or recorded is None or recorded == above:
        return None

    def decide(fd: int, status: os.stat_result) -> str | None:
        marked = file in record.marks or file in record.disks
        if above is None and recorded == "raw" and (not marked or records.identity(record, file, status) == records.SAME):
            return recorded
        from ..metadata import formats  # late: a record is hardly ever about another file

        return formats.judge(directory, name, file, fd, record, above, _is_overlay(name, file, info), user_format, found)

    return images.Judge(decide, at_once=recorded == "raw" or above is not None)


def _is_overlay(name: str, file: str, info: info_file.Info | None) -> bool:
    return info is not None and file != name and (file == info.active or file in dict(info.snapshots).values())


def decide_format(name: str, file: str, format_above: str | None, info: info_file.Info | None, record: records.Record | None) -> str | None:
    """The format of a file. This is the one place that decides it; :mod:`formats` decides for files that may not be the recorded ones.

    It is taken from, in this order: our record; the format field of the header above; ``.info``, if that calls the file an overlay.
    None if nothing of these has it. Then the record of the volume that owns the file may (:func:`ownership.format_of_another`).
    Content never decides, because a guest can write any header into a raw disk.
    """
    recorded = record.formats.get(file) if record else None
    return recorded or format_above or ("qcow2" if _is_overlay(name, file, info) else None)


def _checked_user_format(directory: ShareDirectory, file: str, user_format: str) -> str:
    """The format that the user gave for a file. :raises Conflict: the file cannot have it."""
    with directory.root.opened(file) as fd:
        if user_format == "qcow2" and not qcow2.has_magic(fd):
            raise errors.Conflict(directory.root.subject(file), "it is no qcow2 image", "say format: raw, if that is what it is")
    return user_format


def _snapshots(
    directory: ShareDirectory, name: str, chain: tuple[model.Image, ...], info: info_file.Info | None, record: records.Record | None
) -> tuple[tuple[model.Snapshot, ...], tuple[tuple[str, str], ...]]:
    """(Snapshots, oldest first in the order of the chain; stale entries of ``.info`` as (snapshot, file) pairs).

    A task may be at work, or was interrupted, between its merge and its new ``.info``. Then a snapshot whose overlay has left the
    chain is looked up in the intent of that task. If it is not there either, the task is deleting it.

    :raises ChainBroken: the file of an entry is no overlay of the chain, and may be the one that ``.info`` should call active.
    """
    depth = {image.file: position for position, image in enumerate(chain) if image.backing_file is not None}
    planned: dict[str, str] | None = None
    left: set[tuple[str, str]] = set()
    if record is not None and record.intent is not None:
        from ..metadata import unfinished

        planned, left = unfinished.planned_files(record.intent), unfinished.planned_stale(record.intent)
    found, stale = [], []
    is_ours = info is not None and record is not None and _is_as_recorded(info, record)
    for snapshot, recorded in info.snapshots if info else ():
        file = recorded if recorded in depth or planned is None else planned.get(snapshot, "")
        if file not in depth:
            if planned is None:
                from ..metadata.stale import require_stale  # late: such entries are rare

                require_stale(directory, name, {image.file for image in chain}, snapshot, file)
                stale.append((snapshot, file))
            elif (snapshot, recorded) in left:
                stale.append((snapshot, recorded))
            continue
        details = record.snapshots.get(snapshot) if record else None
        fields = tuple(details[key] for key in ("created", "description", "labels", "protected", "expires")) if details else ()
        mark = details["point"] if details and is_ours else None
        found.append(model.Snapshot(snapshot, file, *fields, *((mark.point if mark else None, details["received"]) if details else ())))
    return tuple(sorted(found, key=lambda snapshot: (-depth[snapshot.file], snapshot.name))), tuple(stale)


def _is_as_recorded(info: info_file.Info, record: records.Record) -> bool:
    """Whether ``.info`` is as our last task wrote it. If not, somebody else was at work, and no identity of a point can be relied on."""
    recorded = {snapshot: details["file"] for snapshot, details in record.snapshots.items()}
    found = dict(info.snapshots)
    return info.active == record.active and all(found.get(snapshot) == file for snapshot, file in recorded.items())


def used_by_somebody(directory: ShareDirectory, volume: model.Volume) -> bool | None:
    """Whether the active image of a volume is open anywhere, or another image of its chain or of pending work is open for writing.
    None if the file system cannot show this."""
    use_probe = images.UseProbe()
    images.probe_all(use_probe, directory, (*volume.files, *images_of(volume.pending)))
    return use_probe.in_use


def images_of(intent: object) -> tuple[str, ...]:
    """The images that the intent on a record names; none where there is no intent."""
    if not isinstance(intent, dict):
        return ()
    from ..metadata import unfinished

    return unfinished.images(intent)


def garbage_of(directory: ShareDirectory, record: records.Record) -> list[str]:
    """Files that a task was about to remove and that still exist unchanged. :raises StorageError: one is no regular file now."""
    found = []
    for item in record.garbage:
        status = directory.root.status(item.file)
        if status is not None and status.st_size == item.size and item.inode in (0, status.st_ino):
            found.append(item.file)
    return found
