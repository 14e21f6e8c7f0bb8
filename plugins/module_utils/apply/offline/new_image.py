# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the base image of a new volume, with the space that is reserved for it."""

from __future__ import annotations

import os
from functools import partial
from typing import Callable, Sequence

from ...pace import Pace
from ...plan import steps
from ...store import qcow2
from ...store.files.directory import ShareDirectory
from . import allocate, qemu_img


def write(fd: int, step: steps.CreateImage, directory: ShareDirectory, locks: Sequence[int], warn: Callable[[str], None], pace: Pace) -> None:
    """Write an image into an empty file, as a step says. The caller makes it durable.

    :param locks: descriptors that programs inherit. :param warn: takes sentences for the user.
    """
    if step.format == "raw":
        _write_raw(fd, step, directory, warn, pace)
    elif step.preallocation == "off":
        qcow2.write_image(fd, step.size)
    else:
        verify = partial(directory.verify, step.file)
        qemu_img.create_preallocated(fd, step.size, _preallocation(fd, step, directory, warn), locks, verify, pace)


def _preallocation(fd: int, step: steps.CreateImage, directory: ShareDirectory, warn: Callable[[str], None]) -> str:
    """The preallocation that qemu-img shall use. Without fallocate its ``falloc`` writes into every block, slowly and with no warning."""
    if step.preallocation != "falloc" or allocate.can_fallocate(fd):
        return step.preallocation
    _warn_about_zeros(step, directory, warn)
    return "full"


def _write_raw(fd: int, step: steps.CreateImage, directory: ShareDirectory, warn: Callable[[str], None], pace: Pace) -> None:
    os.ftruncate(fd, step.size)
    if step.preallocation == "off" or (step.preallocation == "falloc" and allocate.fallocate(fd, step.size)):
        return
    if step.preallocation == "falloc":
        _warn_about_zeros(step, directory, warn)
    allocate.write_zeros(fd, step.size, pace=pace)


def _warn_about_zeros(step: steps.CreateImage, directory: ShareDirectory, warn: Callable[[str], None]) -> None:
    warn(f"{directory.share.label} has no fallocate: the space of {step.file} was reserved by writing zeros")
