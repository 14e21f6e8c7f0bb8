# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a chain that are opened for reading, with lock bytes that keep writers away for as long as anybody has them open.

qemu-storage-daemon locks what it reads, but it lets others write a raw image that has nothing above it. So its files are locked here before it
inherits them. These locks belong to the open file (fcntl_locking(2)), and end with the last process that has it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import Iterator, Sequence

from .. import errors, model
from ..store import qcow2
from ..store.files.directory import ShareDirectory
from ..store.locks import in_use
from . import record

_SNAPSHOT = "take a snapshot and open that, which may be done while a machine runs"


@contextmanager
def opened(directory: ShareDirectory, images: Sequence[model.Image]) -> Iterator[list[int]]:
    """A context with the files of a chain, top first, opened for reading and locked.

    :raises InUse: somebody writes to one. :raises ChainBroken: a header is not as it was. :raises StorageError: one cannot be opened.
    """
    with ExitStack() as stack:
        found = []
        for image in images:
            fd = stack.enter_context(directory.root.opened(image.file))
            if image.format == "qcow2":
                _require_same(fd, image)
            in_use.hold_for_reading(fd, image.file, directory.share)
            found.append(fd)
        yield found


def parts(directory: ShareDirectory, images: Sequence[model.Image]) -> tuple[record.Part, ...]:
    """Which files these are. :raises StorageError: one cannot be opened."""
    found = []
    for image in images:
        with directory.root.opened(image.file) as fd:
            status = os.fstat(fd)
        found.append(record.Part(image.file, status.st_dev, status.st_ino))
    return tuple(found)


def _require_same(fd: int, image: model.Image) -> None:
    try:
        same = qcow2.read_header(fd).backing_file == image.backing_file
    except qcow2.Qcow2Error:
        same = False
    if not same:
        raise errors.ChainBroken(f"image {image.file}", "its header changed while the task held the volume's lock", "find out who else works on the share")


def require_unwritten(directory: ShareDirectory, images: Sequence[model.Image], assume_unused: bool, check_only: bool) -> None:
    """Check that nobody writes to the present of a volume.

    :param check_only: take nothing, not even for a moment. :raises InUse: somebody does, or it cannot be known and the user does not promise it.
    """
    share = directory.share
    for image in images:
        try:
            if not share.locks_visible and not assume_unused:
                raise in_use.image_use_unknown(image.file, share.label)
            if check_only or not share.locks_visible or not _keeps_writers_out(directory, image.file):
                with directory.root.opened(image.file) as fd:
                    in_use.refuse_kernel_user(directory, fd, image.file, writing=True)
                    if in_use.is_written(fd, share):
                        raise in_use.image_in_use(image.file, share.label)
        except errors.InUse as error:
            raise errors.InUse(error.subject, error.problem, f"{_SNAPSHOT}; or {error.remedy}") from error


def _keeps_writers_out(directory: ShareDirectory, file: str) -> bool:
    """Try whether there are writers, which is right where a query is not. False: this user may not try. :raises InUse: there are."""
    try:
        with directory.root.opened(file, write=True) as fd:
            in_use.refuse_kernel_user(directory, fd, file, writing=True)
            in_use.keep_writers_out(fd, file, directory.share.label)
    except (errors.ShareNotWritable, errors.UnsafeImage):  # it has another owner, or a second name
        return False
    return True
