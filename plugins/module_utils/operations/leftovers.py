# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that killed tasks left on a share: which they are, and how they go.

Only what has a name of our own grammar, or stands on the garbage list of a record, is a leftover. Each goes under the lock of the task that
made it, so that nothing is taken from a task that still works.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from typing import Iterable, NamedTuple, Sequence

from .. import errors, model
from ..apply import openers
from ..images import arriving
from ..store.files.directory import PRIVATE, Directory, ShareDirectory
from ..store.metadata import leases, records
from ..store.volumes import chains
from . import named_locks, transaction, workspace
from .options import Options

_TEMPORARY = re.compile(r"([A-Za-z0-9.@_~-]+)~[0-9a-f]{12}")
_IMAGE_PART = re.compile(r"([0-9a-f]{32})(\.state|\.unpacked)?")
_GRAMMARS = (("tmp", _TEMPORARY), ("images", _IMAGE_PART))  # folders under .remotefs, and the names that our own files have there
OF_THE_FILE = (
    errors.ChainBroken,
    errors.Conflict,
    errors.HasDependents,
    errors.InUse,
    errors.NeedsRecovery,
    errors.UnsafeImage,
)  # errors that are about one of them
AT_WORK, IN_USE = "a task works at it", "a machine or another program has it open"  # why what is about volumes stays
_WITHOUT_LOCK = "."  # files of tasks that take no lock begin so, which no volume does


class Leftover(NamedTuple):
    """One file: its path in the share, the name of the lock under which it was made, and its bytes on the disk. ``written``: when, in seconds since
    1970 by the clock of the share. ``folder`` is "" for a file that the record of volume ``holder`` has on its garbage list."""

    path: str
    folder: str
    holder: str
    allocated: int
    written: float

    @property
    def name(self) -> str:
        """Its name in its folder."""
        return self.path.rsplit("/", 1)[-1]


class Cleaned(NamedTuple):
    """What went, and what stayed: each with why. ``failure``: why the rest was not attempted, because the share itself fails."""

    removed: tuple[Leftover, ...] = ()
    kept: tuple[tuple[Leftover, str], ...] = ()
    failure: errors.StorageError | None = None


def find(directory: ShareDirectory, garbage: Iterable[tuple[str, str]]) -> list[Leftover]:
    """All leftovers of a share, by path. :param garbage: volumes, and files on the garbage lists of their records.

    :raises StorageError, OSError: a folder of ours cannot be read.
    """
    found = []
    for volume, file in garbage:
        status, finished = _status(directory.root, file), _status_of_record(directory, volume)
        if status is not None:
            found.append(Leftover(file, "", volume, model.allocated(status), finished.st_mtime if finished is not None else status.st_mtime))
    for folder, grammar in _GRAMMARS:
        opened = directory.private(folder)
        for match in map(grammar.fullmatch, opened.names()) if opened is not None else ():
            status = _status(opened, match[0]) if match and opened is not None else None
            if match and status is not None:
                found.append(Leftover(f"{PRIVATE}/{folder}/{match[0]}", folder, match[1], model.allocated(status), status.st_mtime))
    newest: dict[str, float] = {}
    for one in found:
        newest[one.folder + one.holder] = max(one.written, newest.get(one.folder + one.holder, 0.0))
    return sorted(one._replace(written=newest[one.folder + one.holder]) if one.folder == "images" else one for one in found)


def _status(folder: Directory, name: str) -> os.stat_result | None:
    """Of anything of that name; None if it has gone meanwhile. :raises OSError: that cannot be told."""
    try:
        return os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def allocated(folder: Directory, name: str) -> int:
    """Bytes on the disk of anything of that name; 0 for what has gone meanwhile. :raises OSError: that cannot be told."""
    status = _status(folder, name)
    return model.allocated(status) if status is not None else 0


def _status_of_record(directory: ShareDirectory, volume: str) -> os.stat_result | None:
    folder = directory.private("volumes")
    return _status(folder, records.file_name(volume)) if folder is not None else None


def clean_all(shares: Iterable[tuple[model.Share, Sequence[Leftover]]], grace: float, options: Options) -> dict:
    """Clean shares, each with its leftovers, one after the other. One that fails in the middle stops no other. Returns what the module does."""
    removed: list[dict] = []
    kept: list[dict] = []
    failures: list[errors.StorageError | None] = []
    for share, found in shares:
        cleaned = clean(share, found, grace, options)
        failures.append(cleaned.failure)
        removed += [{"share": share.source, "file": one.path, "bytes": one.allocated} for one in cleaned.removed]
        kept += [{"share": share.source, "file": one.path, "bytes": one.allocated, "why": why} for one, why in cleaned.kept]
    return {
        **errors.told_of(failures),
        "changed": bool(removed),
        "removed": removed,
        "kept": kept,
        "freed": sum(one["bytes"] for one in removed),
        "actions": [{"step": "unlink", **one} for one in removed],
        "diff": {"before": {"leftovers": [one["file"] for one in removed + kept]}, "after": {"leftovers": [one["file"] for one in kept]}},
    }


def clean(share: model.Share, found: Sequence[Leftover], grace: float, options: Options) -> Cleaned:
    """Remove leftovers that are older than ``grace`` seconds. What a task still works at, or any process of this host has open, stays.

    :raises StorageError: the share cannot be asked for its time.
    """
    if not found:
        return Cleaned()
    limit = _time(share, options) - grace
    removed: list[Leftover] = []
    kept: list[tuple[Leftover, str]] = []
    failure = None
    for one in found:
        try:
            why = "it is younger than the grace" if one.written > limit else _remove(share, one, limit, options)
        except (errors.StorageError, OSError) as error:
            failure = errors.as_storage_error(error, f"file {one.path} on {share.label}")
            break
        if why:
            kept.append((one, why))
        else:
            removed.append(one)
    if removed and failure is None and not options.check:
        failure = _sync(share, {one.folder for one in removed if one.folder})
    return Cleaned(tuple(removed), tuple(kept), failure)


def _sync(share: model.Share, folders: set[str]) -> errors.StorageError | None:
    """Make durable that files of these folders are gone. Returns why that is not certain."""
    try:
        with ShareDirectory(share) as directory:
            for folder in sorted(folders):
                opened = directory.private(folder)
                if opened is not None:
                    opened.sync()
    except (errors.StorageError, OSError) as error:
        return errors.as_storage_error(error, f"share {share.label}")
    return None


def _time(share: model.Share, options: Options) -> float:
    """The time by the clock of the share. Check mode writes nothing, so it takes this host's."""
    if options.check:
        options.task.warn("check mode writes nothing to the share, so that the clock of this host decides which leftovers are old enough")
        return time.time()
    with named_locks.locked_name(share, leases.CLOCK, options, options.lock_timeout) as (directory, lock):
        found = leases.time_of_share(directory, leases.CLOCK)
        lock.forget_file()
    return found


def _remove(share: model.Share, one: Leftover, limit: float, options: Options) -> str:
    """Why it stays; empty if it is gone. :raises StorageError, OSError: the share fails."""
    try:
        if not one.folder:
            return _end(share, one, options)
        if options.check or one.holder.startswith(_WITHOUT_LOCK):
            with ShareDirectory(share) as directory:
                return _unlink(directory, one, limit, options)
        with named_locks.locked_name(share, one.holder, options) as (directory, lock):
            why = _unlink(directory, one, limit, options)
            if not chains.exists(directory, one.holder):
                lock.forget_file()  # no volume has that name
            return why
    except errors.LockTimeout:
        return AT_WORK
    except OF_THE_FILE as error:
        return reason(error)


def reason(error: errors.StorageError) -> str:
    """Why something stays, in the words of an error about it."""
    return f"{error.problem}; {error.remedy}"


def _unlink(directory: ShareDirectory, one: Leftover, limit: float, options: Options) -> str:
    folder = directory.private(one.folder)
    status = folder.status(one.name) if folder is not None else None
    if folder is None or status is None:
        return ""
    if status.st_mtime > limit:
        return "it was written to just now"
    users = openers.other_users(0, {(status.st_dev, status.st_ino)}, writing=False)
    if users:
        return f"process {next(iter(users.values()))} has it open"
    if options.check:
        return ""
    if one.folder == "images":
        arriving.remove(directory, one.holder)
    else:
        folder.unlink(one.name)
    return ""


def _end(share: model.Share, one: Leftover, options: Options) -> str:
    """A file that a finished task was about to remove goes as the next task that changes the volume would remove it."""
    with workspace.Workspace(replace(options, lock_timeout=0)) as work:
        work.locks.take([(share, one.holder)])
        transaction.recover(work, share, one.holder)
    return ""
