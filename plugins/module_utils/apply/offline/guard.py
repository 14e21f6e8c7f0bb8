# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nobody has the images open that a plan works on: asked before it, and kept so until it is done."""

from __future__ import annotations

import os
from typing import Iterable

from ...errors import ShareNotWritable, UnsafeImage
from ...plan.intent import Resumption
from ...plan.plan import Plan
from ...store.files.directory import ShareDirectory
from ...store.locks import in_use


class Guard:
    """QEMU's lock bytes on every file that a plan touches, held from before the first step to after the last one.

    They are lent out where qemu-img takes its own, and where a name is removed or replaced (some file systems refuse that
    for a file that is open here).
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

    def take(self, files: Iterable[str]) -> None:
        """:raises InUse: one is open somewhere, or the file system cannot tell and the user does not vouch for it."""
        share = self._directory.share
        for file in files:
            if file in self._fds:
                continue
            require_vouched(self._directory, file, self._assume_unused)
            fd = self._directory.root.open(file, write=True)
            self._fds[file] = fd
            refuse_kernel_user(self._directory, fd, file)
            if share.locks_visible:
                in_use.hold(fd, file, share.label)

    def watch(self, files: Iterable[str]) -> None:
        """Keep writers away from files that the plan does not touch; those who read them may go on, and others may begin to.

        :raises InUse: somebody writes to one, or the file system cannot tell and the user does not vouch for it.
        """
        share = self._directory.share
        for file in files:
            if file in self._fds:
                continue
            require_vouched(self._directory, file, self._assume_unused)
            writable, fd = True, -1
            try:
                fd = self._directory.root.open(file, write=True)
            except (ShareNotWritable, UnsafeImage):  # of another owner, or with a second name: nothing is written there
                writable, fd = False, self._directory.root.open(file)
            self._fds[file] = fd
            self._watched.add(file)
            refuse_kernel_user(self._directory, fd, file, writing=True)
            if share.locks_visible and writable:
                in_use.keep_writers_out(fd, file, share.label)
            elif share.locks_visible:
                in_use.hold_for_reading(fd, file, share)

    def __contains__(self, file: object) -> bool:
        return file in self._fds

    def held(self, files: Iterable[str]) -> list[str]:
        """Those of the files whose lock bytes keep even readers out."""
        return [file for file in files if file in self._fds and file not in self._watched]

    def drop_all(self) -> None:
        self.drop(list(self._fds))

    def drop(self, files: Iterable[str]) -> None:
        for file in files:
            fd = self._fds.pop(file, -1)
            self._watched.discard(file)
            if fd >= 0:
                os.close(fd)


def require_vouched(directory: ShareDirectory, file: str, assume_unused: bool) -> None:
    """:raises InUse: the file system cannot tell whether the image is open, and the user does not vouch for it."""
    if not directory.share.locks_visible and not assume_unused:
        raise in_use.image_use_unknown(file, directory.share.label)


def refuse_kernel_user(directory: ShareDirectory, fd: int, file: str, writing: bool = False) -> None:
    """:param writing: only who may write to the file counts. :raises InUse: the kernel of this host has it open."""
    user = directory.kernel_users.of(os.fstat(fd))
    if user is not None and (user.writes or not writing):
        raise in_use.kernel_uses_image(user, file, directory.share.label)


def ask_unused(directory: ShareDirectory, file: str, assume_unused: bool, writing: bool = False) -> None:
    """Fail where :meth:`Guard.take` would (``writing``: :meth:`Guard.watch`), by asking only.

    :raises InUse: as there.
    """
    share = directory.share
    require_vouched(directory, file, assume_unused)
    if directory.root.status(file) is None:
        return  # made by an earlier item of a prediction
    with directory.root.opened(file) as fd:
        refuse_kernel_user(directory, fd, file, writing)
        if in_use.is_written(fd, share) if writing else in_use.ask(fd, share):
            raise in_use.image_in_use(file, share.label)


def ask_resumption(directory: ShareDirectory, resumption: Resumption, assume_unused: bool) -> None:
    """Fail where the end of an interrupted task would meet a user of the volume's images. :raises InUse: it would."""
    for file in existing(directory, resumption.closed):
        ask_unused(directory, file, assume_unused)
    for file in existing(directory, resumption.unwritten):
        ask_unused(directory, file, assume_unused, writing=True)


def ask_unwritten(directory: ShareDirectory, plan: Plan, assume_unused: bool) -> None:
    """Ask whether somebody writes to an image of the volume that a plan which works on others does not touch, as a machine does
    that was started on a file which is no longer the active one. :raises InUse: somebody does."""
    touched = {file for step in plan.steps for file in step.touches()}
    if touched and plan.before is not None:
        for file in existing(directory, set(plan.before.own_files) - touched):
            ask_unused(directory, file, assume_unused, writing=True)


def existing(directory: ShareDirectory, files: Iterable[str]) -> list[str]:
    """Those of these names that files have, in one order."""
    return sorted(file for file in set(files) if directory.root.status(file) is not None)
