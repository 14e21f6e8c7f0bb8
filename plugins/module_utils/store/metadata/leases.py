# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases as files, ``.remotefs/leases/NAME.json``, and the clock of the share.

The file says for how long a lease is, and the time of its last write when that began. A server sets this time. On some file systems the
client does, by the clock of its host (:attr:`Share.client_times`).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from ... import errors, model
from ...lease import LONGEST_OWNER, MOST_NAMES, Lease
from ..files import ballast, replaced, small_files
from ..files.directory import SMALL_FILE
from ..locks.lock import LEASE
from . import records

if TYPE_CHECKING:
    from ..files.directory import ShareDirectory

FOLDER = "leases"  # in .remotefs
_SUFFIX = ".json"
_VERSION = 1
_REMEDY = "find out who changed it; remove the file to give the lease up"
_LONGEST_TTL = _LATEST = 1 << 40  # seconds
CLOCK = f"{LEASE}~clock"  # the name of the lock under which the clock of the share is read


def _subject(name: str) -> str:
    return f"lease .remotefs/{FOLDER}/{name}{_SUFFIX}"


def lock_name(lease: str) -> str:
    """The name of a lease's lock."""
    return LEASE + lease


def names(directory: ShareDirectory) -> list[str]:
    """The names of all leases, sorted."""
    return sorted(name for name in small_files.names(directory, FOLDER, _SUFFIX) if model.is_safe_file_name(name + _SUFFIX))


def left_behind(directory: ShareDirectory) -> list[str]:
    """The names of locks, sorted, of which a killed task has left the file or temporary files, and that are about no lease that is there."""
    found = set()
    for place, end in (("tmp", "~"), ("locks", ".")):
        folder = directory.private(place)
        found |= {name.rpartition(end)[0] for name in (folder.names() if folder is not None else []) if name.startswith(LEASE)}
    there = {lock_name(name) for name in names(directory)}
    return sorted(name for name in found - there if name == CLOCK or model.is_safe_file_name(name[len(LEASE) :]))


def read(directory: ShareDirectory, name: str) -> Lease | None:
    """Read a lease; None if there is none.

    :raises ChainBroken: it is damaged. :raises NeedsRecovery: a newer release wrote it. :raises UnsafeImage: it is no file that can be one.
    """
    folder = directory.private(FOLDER)
    if folder is None:
        return None
    found = replaced.read_file(folder, name + _SUFFIX, lambda fd, status: (os.read(fd, SMALL_FILE + 1), os.fstat(fd).st_mtime_ns))
    if found is not None and len(found[0]) > SMALL_FILE:
        raise errors.UnsafeImage(_subject(name), "it is too large for a lease", _REMEDY)
    return None if found is None else _parsed(name, found[0], found[1] / 1e9)


def _parsed(name: str, data: bytes, written: float) -> Lease:
    subject = _subject(name)
    try:
        content = records.last_whole_line(data)
        if content["version"] != _VERSION:
            raise errors.NeedsRecovery(subject, f"its version {content['version']!r} is not known here", "use the release of the collection that wrote it")
        lease = Lease(
            name,
            _text_of(content["id"]),
            _text_of(content["owner"]),
            None if content["ttl"] is None else _number_of(content["ttl"], int, _LONGEST_TTL),
            written if content["acquired"] is None else _number_of(content["acquired"], (int, float), _LATEST),
            written,
            _labels_of(content["labels"]),
            _names_of(content["volumes"]),
            _names_of(content["uses"]),
            None if content["collector"] is None else _text_of(content["collector"]),
        )
        if content["name"] != name:
            raise ValueError("it is of another name")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise errors.ChainBroken(subject, f"it is damaged ({error!r})", _REMEDY) from error
    return lease


# A value of another kind is never taken for one that it looks like: a lease with another id than its volumes have seems to have none, and
# whoever collects a lease removes them.


def _text_of(value: object) -> str:
    """:raises ValueError: it is no name of an owner, which users are shown."""
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= LONGEST_OWNER:
        raise ValueError("a text that cannot be")
    return value


def _number_of(value: Any, kinds: Any, most: int) -> Any:
    """:raises ValueError: it is no such number, of a time."""
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError("a time that cannot be")
    return value


def _labels_of(value: object) -> dict[str, str]:
    """:raises ValueError: they are no names and values."""
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise ValueError("no labels")
    return value


def _names_of(value: object) -> tuple[str, ...]:
    """Each once. :raises ValueError: they are no names of volumes."""
    if not isinstance(value, list) or len(value) > MOST_NAMES or not all(model.is_safe_file_name(name) for name in value):
        raise ValueError("no names of volumes")
    return tuple(dict.fromkeys(value))  # the record of each is read: thousands of the same name would take hours


def write(directory: ShareDirectory, lease: Lease, is_new: bool) -> Lease:
    """Write a lease, durable; the caller holds its lock. Returns it with the time of the share. One that is there can be renewed and taken over
    on a full share, too, so that its volumes can go. :raises StorageError: it may not be there."""
    content = {
        "version": _VERSION,
        "name": lease.name,
        "id": lease.id,
        "owner": lease.owner,
        "ttl": lease.ttl,
        "acquired": lease.acquired or None,
        "labels": lease.labels,
        "volumes": list(lease.volumes),
        "uses": list(lease.uses),
        "collector": lease.collector,
    }
    folder = directory.make_private(FOLDER)
    data = json.dumps(content, sort_keys=True).encode("utf-8")
    directory.write_record(lock_name(lease.name), folder, lease.name + _SUFFIX, data, last="" if is_new else "blocks")
    found = read(directory, lease.name)
    if found is None:
        raise errors.NeedsRecovery(f"lease {lease.name} on {directory.share.label}", "it went away while the task wrote it", "run the task again")
    return found


def remove(directory: ShareDirectory, name: str) -> None:
    """Remove a lease, durably; the caller holds its lock."""
    directory.make_private(FOLDER).remove(name + _SUFFIX)


def time_of_share(directory: ShareDirectory, lock: str) -> float:
    """The time by the clock of the share, in seconds since 1970: that of a file that is written now, or on a full share of one that is made now.
    The caller holds this lock."""
    fd, temporary = directory.create_temporary(lock)
    try:
        try:
            try:
                os.pwrite(fd, b"?", 0)
                os.fsync(fd)
            except OSError as error:
                if error.errno not in ballast.FULL:
                    raise
            return os.fstat(fd).st_mtime_ns / 1e9
        except OSError as error:
            raise errors.from_os_error(error, f"share {directory.share.label}") from error
        finally:
            os.close(fd)
    finally:
        directory.discard_temporary(temporary)
