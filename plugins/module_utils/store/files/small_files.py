# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records and ``.info``, written whole and durable, also where the share is full."""

from __future__ import annotations

import os

from ...errors import NoSpace, UnsafeImage, from_os_error
from . import access, ballast, packed_lines
from .directory import SMALL_FILE, Directory, ShareDirectory


def write(
    share: ShareDirectory, volume: str, directory: Directory, name: str, data: bytes, like: str | None, warn: access.Warn | None, last: str
) -> None:
    """Write a small file of a volume, with the access of the volume's file ``like`` (None: as private as its directory).

    :param last: what may be used where the share is full: "ballast", or also the "blocks" that the file has.
    :raises UnsafeImage: it would be too large to be read again. :raises NoSpace: the share is full.
    """
    if len(data) > SMALL_FILE:
        raise UnsafeImage(directory.subject(name), "it would grow beyond what a record can be", "look at the volume's .info for what makes it so large")
    try:
        temporary = _written(share, directory, name, data, like, warn, share.create_temporary(volume))
    except NoSpace:
        over = _over_ballast(share, volume, directory, name, data, like, warn) if last else None
        if over is None and last == "blocks" and _write_in_place(share, directory, name, data):
            return
        if over is None:
            raise
        temporary = over
    try:
        share.replace(temporary, name, directory, volume)
    except OSError as error:
        share.discard_temporary(temporary)
        raise from_os_error(error, directory.subject(name)) from error


def _over_ballast(
    share: ShareDirectory, volume: str, directory: Directory, name: str, data: bytes, like: str | None, warn: access.Warn | None
) -> str | None:
    """As :func:`_written`, with what ballast there is; None where there is none, or not enough."""
    for made in ballast.places(share, volume, len(data)):
        try:
            return _written(share, directory, name, data, like, warn, made)
        except NoSpace:
            continue
    return None


def _unheard(_warning: str) -> None:
    """For records, whose access nobody but us needs."""


def _written(
    share: ShareDirectory, directory: Directory, name: str, data: bytes, like: str | None, warn: access.Warn | None, made: tuple[int, str]
) -> str:
    """Write and sync a temporary file that is to be ``name``, and close it; returns its name."""
    fd, temporary = made
    try:
        try:
            ballast.overwrite(fd, data)
            if like is not None:
                with share.root.opened(like) as original:
                    access.copy_access(original, fd, share.share.keeps_modes, warn or _unheard, directory.subject(name))
            else:
                share.keep_as_private(fd, directory)
            share.waiting.sync_file(fd)
        finally:
            os.close(fd)
    except OSError as error:
        share.discard_temporary(temporary)
        raise from_os_error(error, directory.subject(name)) from error
    return temporary


def _write_in_place(share: ShareDirectory, directory: Directory, name: str, data: bytes) -> bool:
    """Whether the file could be changed within the blocks that it has."""
    is_list = directory is not share.root
    try:
        fd = ballast.add_in_place(directory, name, packed_lines.packed(data) if is_list else data, is_list)
    except FileNotFoundError:
        return False
    if fd < 0:
        return False
    try:
        share.waiting.sync_file(fd)
    finally:
        os.close(fd)
    return True
