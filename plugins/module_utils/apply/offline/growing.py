# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Raises the size of images that are not published yet. Their size cannot always be raised in place."""

from __future__ import annotations

from typing import Iterable, Sequence

from ... import model
from ...store import qcow2
from ...store.files.directory import ShareDirectory
from ...store.qcow2 import clusters
from . import qemu_img


def can_grow(fd: int, size: int) -> bool:
    """Raise the size of an opened image to ``size`` bytes in place. False where that is not possible. Then its content is unchanged."""
    try:
        return qcow2.grow(fd, size)
    except clusters.Unsuited:
        return False


def grow_copy(directory: ShareDirectory, images: Sequence[model.Image], fd: int, size: int, zero: bool, locks: Iterable[int]) -> None:
    """Raise the size of a copy of ``images[0]``, whose new part would not read as zeros by itself.

    There are two such images: an overlay that is shorter than a file below it (``zero``), and an image with data behind its end
    that cannot be removed in place. qemu-img records the new size before it writes the zeros. A crash in between would make old
    data visible. So qemu-img works on a copy, which replaces the image when it is complete.

    :param images: the chain, top first. :param fd: the copy. :param size: the new size in bytes.
    :param locks: descriptors of locks that qemu-img inherits. :raises Qcow2Error: the image is damaged or hostile.
    """
    file, old = images[0].file, images[0].size
    stop = min(size, qcow2.tail_end(fd)) if qcow2.has_fixed_tail(fd) else old
    if stop == old:
        qcow2.clear_tail(fd)
    with qemu_img.OpenedChain(directory, images, instead={file: fd}) as chain:
        if zero and qcow2.read_header(fd).version == 2:  # version 2 has no clusters of zeros
            qemu_img.upgrade(chain, file, locks)
        qemu_img.resize(chain, file, size, locks)
        if stop > old:
            qemu_img.write_zeros(chain, file, old, stop, locks)
