# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes sure that nobody else has the images of a plan open: checks it before the plan, and keeps others away until its end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Collection, Iterable

from ... import errors
from ...plan import intent
from ...plan.plan import Plan
from ...store.files.directory import ShareDirectory
from ...store.locks import in_use

if TYPE_CHECKING:
    from ... import model


class Guard:
    """QEMU's lock bytes on every file that a plan touches. They are held from before the first step until after the last one.

    They are released for a while in two cases: qemu-img takes its own lock bytes, or a name is removed or replaced (some file
    systems refuse that for a file that this process has open).
    """

    def __init__(self, directory: ShareDirectory, assume_unused: bool) -> None:
        self._directory = directory
        self._assume_unused = assume_unused
        self._fds: dict[str, int] = {}
        self._watched: set[str] = set()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.drop_all()

    def take(self, files: Iterable[str], written: Collection[str] | None = None) -> None:
        """Open the files and take their lock bytes, so that nobody else can open them.

        :param written: those that the caller writes to; None: all. Of another one that nobody may write to, as of a seed, only readers are not kept
            out: a user who is not root cannot take their lock bytes. They lose nothing, because a name is all that goes or leads to another file.
        :raises InUse: one is open somewhere, or this cannot be checked and the user does not promise that it is unused.
        """
        share = self._directory.share
        for file in files:
            if file in self._fds:
                continue
            require_checkable(self._directory, file, self._assume_unused)
            _refuse_marked(self._directory, file)
            try:
                fd, writable = self._directory.root.open(file, write=True), True
            except errors.ShareNotWritable:
                if written is None or file in written or not _is_read_only(self._directory, file):
                    raise
                fd, writable = self._directory.root.open(file), False
            self._fds[file] = fd
            in_use.refuse_kernel_user(self._directory, fd, file)
            if not writable:
                _hold_read_only(fd, file, share, self._assume_unused)
            elif share.locks_visible:
                in_use.hold(fd, file, share.label)

    def watch(self, files: Iterable[str]) -> None:
        """Keep writers away from files that the plan does not touch. Others may read them, now and later.

        :raises InUse: somebody writes to one, or this cannot be checked and the user does not promise that it is unused.
        """
        share = self._directory.share
        for file in files:
            if file in self._fds:
                continue
            require_checkable(self._directory, file, self._assume_unused)
            writable = True
            try:
                fd = self._directory.root.open(file, write=True)
            except (errors.ShareNotWritable, errors.UnsafeImage):  # it has another owner, or a second name. Nothing is written to it.
                writable, fd = False, self._directory.root.open(file)
            self._fds[file] = fd
            self._watched.add(file)
            in_use.refuse_kernel_user(self._directory, fd, file, writing=True)
            if share.locks_visible and writable:
                in_use.keep_writers_out(fd, file, share.label)
            elif share.locks_visible:
                in_use.hold_for_reading(fd, file, share)

    def __contains__(self, file: object) -> bool:
        return file in self._fds

    def held(self, files: Iterable[str]) -> list[str]:
        """Those of the files whose lock bytes keep readers away, too."""
        return [file for file in files if file in self._fds and file not in self._watched]

    def drop_all(self) -> None:
        """Release all files."""
        self.drop(list(self._fds))

    def drop(self, files: Iterable[str]) -> None:
        """Close those of the files that are held, which releases their lock bytes."""
        for file in files:
            self._watched.discard(file)
            if file in self._fds:
                os.close(self._fds.pop(file))


def _is_read_only(directory: ShareDirectory, file: str) -> bool:
    """Whether nobody but root may write to a file."""
    status = directory.root.status(file)
    return status is not None and not status.st_mode & 0o222


def _hold_read_only(fd: int, file: str, share: model.Share, assume_unused: bool) -> None:
    """Keep writers away from a file that is opened for reading. :raises InUse: somebody has it open, or it cannot be known."""
    found = in_use.ask(fd, share)
    if found:
        raise in_use.image_in_use(file, share.label)
    if found is None and not assume_unused:
        raise in_use.image_use_unknown(file, share.label)
    in_use.hold_for_reading(fd, file, share)


class LockBytesReleased:
    """A context in which the lock bytes of a chain's files are released. qemu-img takes its own, and cannot while we hold ours. After an
    error they stay so."""

    def __init__(self, guard: Guard, images: Iterable[model.Image]) -> None:
        self._guard = guard
        self._files = guard.held(image.file for image in images)

    def __enter__(self) -> None:
        self._guard.drop(self._files)

    def __exit__(self, kind: object, _error: object, _traceback: object) -> None:
        if kind is None:
            self._guard.take(self._files)


def require_checkable(directory: ShareDirectory, file: str, assume_unused: bool) -> None:
    """:raises InUse: it cannot be checked on this share whether ``file`` is open, and the user does not promise that it is unused."""
    if not directory.share.locks_visible and not assume_unused:
        raise in_use.image_use_unknown(file, directory.share.label)


def _refuse_marked(directory: ShareDirectory, file: str) -> None:
    """Where no locks are seen: :raises InUse: a host has marked the file as one that it has opened."""
    if not directory.share.locks_visible:
        from ...store.metadata import opened_marks  # late: few shares are so

        opened_marks.require_none(directory, file)


def check_unused(directory: ShareDirectory, file: str, assume_unused: bool, writing: bool = False) -> None:
    """Check whether :meth:`Guard.take` (``writing``: :meth:`Guard.watch`) would fail, without taking anything.

    :raises InUse: it would.
    """
    share = directory.share
    require_checkable(directory, file, assume_unused)
    if not writing:
        _refuse_marked(directory, file)
    if directory.root.status(file) is None:
        return  # an earlier item of the same prediction would create it
    with directory.root.opened(file) as fd:
        in_use.refuse_kernel_user(directory, fd, file, writing)
        if in_use.is_written(fd, share) if writing else in_use.ask(fd, share):
            raise in_use.image_in_use(file, share.label)


def taken(plan: Plan) -> set[str]:
    """The files that nobody else may have open while a plan is carried out: those that its steps touch, and an image of the volume that becomes
    the active one. Steps need not touch that, but machines write to it afterwards."""
    files = {file for step in plan.steps for file in step.touches() if not file.endswith(".info")}
    if files and plan.before is not None and plan.after is not None and plan.after.active.file in plan.before.own_files[1:]:
        files.add(plan.after.active.file)
    return files


def check_resumption(directory: ShareDirectory, resumption: intent.Resumption, assume_unused: bool) -> None:
    """Check that nobody uses the volume's images, before an interrupted task is ended. :raises InUse: somebody does."""
    for file in existing(directory, resumption.closed):
        check_unused(directory, file, assume_unused)
    for file in existing(directory, resumption.unwritten):
        check_unused(directory, file, assume_unused, writing=True)


def check_unwritten(directory: ShareDirectory, plan: Plan, assume_unused: bool) -> None:
    """Check that nobody writes to images of the volume that the plan does not touch. A machine does so if it was started on a file that
    is no longer the active image. A plan that touches no files is not checked.

    :raises InUse: somebody writes to one.
    """
    if plan.before is not None and any(step.touches() for step in plan.steps):
        for file in existing(directory, set(plan.before.own_files) - taken(plan)):
            check_unused(directory, file, assume_unused, writing=True)


def existing(directory: ShareDirectory, files: Iterable[str]) -> list[str]:
    """Those of the files that exist, sorted by name."""
    return sorted(file for file in set(files) if directory.root.status(file) is not None)
