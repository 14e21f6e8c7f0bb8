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
from typing import TYPE_CHECKING

from ...errors import ChainBroken, NeedsRecovery, from_os_error
from ...lease import MOST_NAMES, Lease
from ...model import is_safe_file_name
from ..files import small_files
from ..files.ballast import FULL
from ..files.directory import SMALL_FILE
from ..files.replaced import read_file
from ..locks.lock import LEASE
from .records import last_whole_line

if TYPE_CHECKING:
    from ..files.directory import ShareDirectory

FOLDER = "leases"  # in .remotefs
_SUFFIX = ".json"
_VERSION = 1
_LONGEST_TTL = 1 << 40  # seconds
CLOCK = f"{LEASE}~clock"  # the name of the lock under which the clock of the share is read


def lock_name(lease: str) -> str:
    """The name of a lease's lock."""
    return LEASE + lease


def names(directory: ShareDirectory) -> list[str]:
    """The names of all leases, sorted."""
    return sorted(name for name in small_files.names(directory, FOLDER, _SUFFIX) if is_safe_file_name(name + _SUFFIX))


def left_behind(directory: ShareDirectory) -> list[str]:
    """The names of locks, sorted, of which a killed task has left the file or temporary files, and that are about no lease that is there."""
    found = set()
    for place, end in (("tmp", "~"), ("locks", ".")):
        folder = directory.private(place)
        found |= {name.rpartition(end)[0] for name in (folder.names() if folder is not None else []) if name.startswith(LEASE)}
    there = {lock_name(name) for name in names(directory)}
    return sorted(name for name in found - there if name == CLOCK or is_safe_file_name(name[len(LEASE) :]))


def read(directory: ShareDirectory, name: str) -> Lease | None:
    """Read a lease; None if there is none. :raises ChainBroken: it is damaged. :raises NeedsRecovery: a newer release wrote it."""
    folder = directory.private(FOLDER)
    if folder is None:
        return None
    found = read_file(folder, name + _SUFFIX, lambda fd, status: (os.read(fd, SMALL_FILE + 1), os.fstat(fd).st_mtime_ns))
    return None if found is None else _parsed(name, found[0], found[1] / 1e9)


def _parsed(name: str, data: bytes, written: float) -> Lease:
    subject, remedy = f"lease .remotefs/{FOLDER}/{name}{_SUFFIX}", "find out who changed it; remove the file to give the lease up"
    try:
        content = last_whole_line(data)
        if content["version"] != _VERSION:
            raise NeedsRecovery(subject, f"its version {content['version']!r} is not known here", "use the release of the collection that wrote it")
        lease = Lease(
            name,
            str(content["id"]),
            str(content["owner"]),
            None if content["ttl"] is None else int(content["ttl"]),
            written if content["acquired"] is None else float(content["acquired"]),
            written,
            {str(key): str(value) for key, value in content["labels"].items()},
            _names_of(content["volumes"]),
            _names_of(content["uses"]),
            None if content["collector"] is None else str(content["collector"]),
        )
        if not (lease.owner.isprintable() and (lease.collector or "").isprintable()):
            raise ValueError("a name that cannot be shown")
        if content["name"] != name or not lease.id or not lease.owner or not 0 <= (lease.ttl or 0) <= _LONGEST_TTL:
            raise ValueError("a lease that cannot be")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ChainBroken(subject, f"it is damaged ({error!r})", remedy) from error
    return lease


def _names_of(value: object) -> tuple[str, ...]:
    """:raises ValueError: they are no names of volumes."""
    if not isinstance(value, list) or len(value) > MOST_NAMES or not all(is_safe_file_name(name) for name in value):
        raise ValueError("no names of volumes")
    return tuple(value)


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
        raise NeedsRecovery(f"lease {lease.name} on {directory.share.label}", "it went away while the task wrote it", "run the task again")
    return found


def remove(directory: ShareDirectory, name: str) -> None:
    """Remove a lease, durably; the caller holds its lock."""
    folder = directory.make_private(FOLDER)
    if folder.unlink(name + _SUFFIX):
        folder.sync()


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
                if error.errno not in FULL:
                    raise
            return os.fstat(fd).st_mtime_ns / 1e9
        except OSError as error:
            raise from_os_error(error, f"share {directory.share.label}") from error
        finally:
            os.close(fd)
    finally:
        directory.discard_temporary(temporary)
