# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives back the leaked clusters of an image, and looks whether they are gone."""

from __future__ import annotations

from typing import Iterable

from ... import errors, model
from ...pace import Pace
from ...store import qcow2
from ...store.files.directory import ShareDirectory
from . import guard as guards
from . import qemu_img


def free(directory: ShareDirectory, guard: guards.Guard, image: model.Image, locks: Iterable[int], pace: Pace) -> None:
    """Give back the leaked clusters of a qcow2 image that the guard holds.

    :raises ToolFailed: qemu-img failed; or it said that all is well although its writes had failed, as it does.
    """
    with guards.LockBytesReleased(guard, [image]), qemu_img.OpenedChain(directory, [image], [image.file], pace=pace) as chain:
        qemu_img.free_leaks(chain, image.file, locks)
        if qcow2.find_leaks(chain.fd(image.file)).clusters:
            subject = directory.root.subject(image.file)
            raise errors.ToolFailed(subject, "its leaked clusters are still there after qemu-img gave them back", "look for errors of the share's server")
