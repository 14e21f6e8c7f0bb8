# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes records and ``.info`` whole and durable, even on a full share; which records there are."""

from __future__ import annotations

import os

from ... import errors
from . import access, ballast, packed_lines
from .directory import SMALL_FILE, Directory, ShareDirectory


def names(share: ShareDirectory, folder: str, end: str) -> list[str]:
    """What the records in ``.remotefs/FOLDER`` are about: their names without ``end``."""
    opened = share.private(folder)
    return [name[: -len(end)] for name in (opened.names() if opened is not None else []) if name.endswith(end)]


def write(
    share: ShareDirectory, volume: str, directory: Directory, name: str, data: bytes, like: str | None, warn: access.Warn | None, last: str
) -> None:
    """Write a small file of a volume, durable, with the access of the volume's file ``like`` (None: as private as its directory).

    :param last: what may be used on a full share: "" nothing, "ballast", or "blocks" for ballast and then the blocks of the file.
    :raises UnsafeImage: the file would be too large to be read again. :raises NoSpace: the share is full.
    """
    if len(data) > SMALL_FILE:
        raise errors.UnsafeImage(directory.subject(name), "it would grow beyond what a record can be", "look at the volume's .info for what makes it so large")
    try:
        temporary = _written(share, directory, name, data, like, warn, share.create_temporary(volume))
    except errors.NoSpace:
        over = _written_using_ballast(share, volume, directory, name, data, like, warn) if last else None
        if over is None and last == "blocks" and _write_in_place(share, directory, name, data):
            return
        if over is None:
            raise
        temporary = over
    try:
        share.replace(temporary, name, directory, volume)
    except OSError as error:
        share.discard_temporary(temporary)
        raise errors.from_os_error(error, directory.subject(name)) from error


def _written_using_ballast(
    share: ShareDirectory, volume: str, directory: Directory, name: str, data: bytes, like: str | None, warn: access.Warn | None
) -> str | None:
    """As :func:`_written`, using ballast. None if there is none, or not enough."""
    for made in ballast.places(share, volume, len(data)):
        try:
            return _written(share, directory, name, data, like, warn, made)
        except errors.NoSpace:
            continue
    return None


def _ignore_warning(_warning: str) -> None:
    """Ignores warnings about records, because only this collection needs access to them."""


def _written(
    share: ShareDirectory, directory: Directory, name: str, data: bytes, like: str | None, warn: access.Warn | None, made: tuple[int, str]
) -> str:
    """Write, sync and close a temporary file that will become ``name``. Returns its temporary name."""
    fd, temporary = made
    try:
        try:
            ballast.overwrite(fd, data)
            if like is not None:
                with share.root.opened(like) as original:
                    access.copy_access(original, fd, share.share.keeps_modes, warn or _ignore_warning, directory.subject(name))
            else:
                share.keep_as_private(fd, directory)
            share.waiting.sync_file(fd)
        finally:
            os.close(fd)
    except OSError as error:
        share.discard_temporary(temporary)
        raise errors.from_os_error(error, directory.subject(name)) from error
    return temporary


def _write_in_place(share: ShareDirectory, directory: Directory, name: str, data: bytes) -> bool:
    """Change the file within the blocks that it has, and sync it. Returns False if that is not possible."""
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
