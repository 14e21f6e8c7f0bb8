# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Raises the size of images that nobody knows yet, where it cannot be done in place."""

from __future__ import annotations

from typing import Iterable, Sequence

from ...model import Image
from ...store import qcow2
from ...store.files.directory import ShareDirectory
from ...store.qcow2.clusters import Unsuited
from . import qemu_img


def can_grow(fd: int, size: int) -> bool:
    """Raise the size of an opened image in place; false, and nothing of it changed that shows, where that cannot be."""
    try:
        return qcow2.grow(fd, size)
    except Unsuited:
        return False


def grow_copy(directory: ShareDirectory, images: Sequence[Image], fd: int, size: int, zero: bool, locks: Iterable[int]) -> None:
    """Raise the size of a copy of ``images[0]``, whose new part would not show zeros by itself.

    That is an overlay that is shorter than what lies beneath it (``zero``), or an image with data behind its end that cannot be
    taken away in place. qemu-img records the new size before the zeros that belong to it, and a crash in between would bring
    old data to light: so it works on a copy, which takes the image's place when it is complete.

    :param images: the chain, top first. :raises Qcow2Error: the image is damaged or hostile.
    """
    file, old = images[0].file, images[0].size
    stop = min(size, qcow2.tail_end(fd)) if qcow2.has_fixed_tail(fd) else old
    if stop == old:
        qcow2.clear_tail(fd)
    with qemu_img.OpenedChain(directory, images, instead={file: fd}) as chain:
        if zero and qcow2.read_header(fd).version == 2:  # which has no clusters of zeros
            qemu_img.upgrade(chain, file, locks)
        qemu_img.resize(chain, file, size, locks)
        if stop > old:
            qemu_img.write_zeros(chain, file, old, stop, locks)
