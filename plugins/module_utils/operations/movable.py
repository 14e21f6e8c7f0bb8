# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a volume may move, asked before anything is changed, and how it is noticed that somebody works on it meanwhile."""

from __future__ import annotations

import os
from typing import Collection, Mapping

from .. import errors, model
from ..apply import unchanged
from ..plan import headers
from ..store import qcow2
from ..store.files.directory import ShareDirectory
from . import applying, replication, workspace

_SECOND = 1_000_000_000  # ns
_TICK, _COARSE = 0.02, 2.1  # seconds after which a file system gives a write another time: most of them, and those that count seconds


class Seen:
    """What the files of both sides were when they were looked at, by which it is noticed that somebody has written to one since."""

    def __init__(self, work: workspace.Workspace, source: replication.Held, target: replication.Held) -> None:
        """The files are read after this. It waits until a write would give a file another time than it has now."""
        self._work = work
        self.source, self._target = self._marks(source), self._marks(target)
        if not work.options.check:
            work.options.task.waiting.sleep(_COARSE if _is_coarse({**self.source, **self._target}) else _TICK)

    def _marks(self, side: replication.Held) -> dict[str, tuple[int, int]]:
        if side.volume is None or self._work.options.check:
            return {}
        return unchanged.marks(self._work.directory(side.share), side.volume.own_files)

    def follow(self, target: replication.Held, changed: Collection[str], read: Mapping[str, tuple[int, int]]) -> None:
        """The task itself has changed these files of the volume on the new share, or made them.

        :param read: what those of them were when their content was read again, before anybody else knew their names.
        """
        now = {file: read.get(file, mark) if file in changed else self._target.get(file, mark) for file, mark in self._marks(target).items()}
        self._target = now

    def settle(self, target: replication.Held) -> bool:
        """Whether the time of a write tells it from those of the task itself on the new share. If not, it waits until that is so for what is
        written from now on, and what is there has to be read again."""
        if not _is_coarse(self._target):
            return True
        self._target = self._marks(target)
        self._work.options.task.waiting.sleep(_COARSE)
        return False

    def require_target(self, target: replication.Held) -> None:
        """:raises Conflict: somebody has written to the volume on the new share since the task has read or made its files."""
        if target.volume is not None:
            unchanged.require_unchanged(self._work.directory(target.share), target.volume.name, self._target)


def _is_coarse(seen: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a file system counts the times of writes in seconds."""
    return any(written % _SECOND == 0 for _length, written in seen.values())


def require_unused(work: workspace.Workspace, side: replication.Held) -> None:
    """:raises InUse: a program has one of the files open."""
    if side.volume is None:
        return
    with applying.engine_for(work, side.share) as engine:
        for file in side.volume.own_files:
            try:
                engine.require_unused(file, check_only=work.mode.checks_only)
            except errors.InUse as error:
                remedy = "a volume moves while nobody has it open: stop that program, and run the task again"
                raise errors.InUse(error.subject, error.problem, remedy if side.share.locks_visible else error.remedy) from error


def require_independent(work: workspace.Workspace, side: replication.Held, recovered: list) -> None:
    """:param recovered: what was ended of it first. :raises HasDependents: a file rests on it."""
    if side.volume is None:
        return
    dependents = work.mode.dependents(side.share, side.volume, work.mode.still_there(recovered))
    if dependents:
        names = model.listed(sorted({clone for clone, _file in dependents}))
        subject = f"volume {side.volume.name} on {side.share.label}"
        raise errors.HasDependents(subject, f"linked clones or other files rest on it: {names}", headers.DEPENDENTS_REMEDY)


def require_whole(work: workspace.Workspace, side: replication.Held, target: replication.Held) -> None:
    """:param target: what is on the new share. :raises Conflict: something of it would not come along."""
    volume = side.volume
    if volume is None:
        return
    subject = f"volume {volume.name} on {side.share.label}"
    if volume.stale:
        names = model.listed(f"{snapshot} ({file})" for snapshot, file in volume.stale)
        problem = f"its .info names snapshots whose files are no overlays of its chain, and which would stay behind: {names}"
        raise errors.Conflict(subject, problem, "take these entries away first (remotefs_snapshot with state: absent)")
    is_copied = len(volume.chain) == 1 and target.volume is None  # as it is, file for file
    held = [] if is_copied else _bitmaps(work.directory(side.share), volume)
    if held:
        problem = f"it has dirty bitmaps, which would be lost: {model.listed(held)}"
        raise errors.Conflict(subject, problem, "let the backup program end with them first, after which the next backup has to be a full one")


def _bitmaps(directory: ShareDirectory, volume: model.Volume) -> list[str]:
    found = []
    for image in volume.own:
        if image.format == "qcow2" and directory.root.status(image.file) is not None:
            with directory.root.opened(image.file) as fd:
                try:
                    found += [f"{one.name} of {image.file}" for one in qcow2.read_bitmaps(fd, qcow2.read_header(fd))]
                except qcow2.Qcow2Error:
                    continue  # what is wrong with it is told when it is read
    return found


def require_two(work: workspace.Workspace, source: replication.Held, target: replication.Held) -> None:
    """:raises Conflict: both shares are one directory, under two names. Then the volume would be compared with itself, and removed."""
    if source.volume is None or target.volume is None:
        return
    are_local = source.share.local and target.share.local  # a server's directory may be mounted twice, as two devices
    first, second = (_identities(work.directory(side.share), side.volume, are_local) for side in (source, target) if side.volume is not None)
    if first == second:
        subject = f"volume {target.volume.name} on {target.share.label}"
        raise errors.Conflict(subject, f"its files are those of the volume on {source.share.label}", "name another share: both are one directory")


def _identities(directory: ShareDirectory, volume: model.Volume, are_local: bool) -> set[tuple]:
    """What says which files those of a volume are."""
    found = [(file, directory.root.status(file)) for file in volume.own_files]
    known = [(file, status.st_ino, status.st_size, status.st_mtime_ns, status.st_dev if are_local else 0) for file, status in found if status]
    return set(known) or {(id(directory),)}  # nothing is there: it is only foretold


def owner_for(work: workspace.Workspace, source: model.Share, target: model.Share, volume: model.Volume) -> tuple[int | None, int | None]:
    """User and group of the volume's files, where both shares keep them, and this user may give files to others."""
    if not (source.keeps_modes and target.keeps_modes):
        return None, None
    active = volume.active
    if os.geteuid() == 0 or (active.uid, active.gid) == (os.geteuid(), os.getegid()):
        return active.uid, active.gid
    work.options.task.warn(f"volume {volume.name}: only root can give its files to the user and group that they have on {source.label}")
    return None, None
