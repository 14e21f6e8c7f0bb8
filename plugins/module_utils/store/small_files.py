# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records and ``.info``, written whole and durable, also where the share is full."""

from __future__ import annotations

import os

from ..errors import NoSpace, StorageError, from_os_error
from . import access, ballast, records
from .directory import Directory, ShareDirectory


def write(
    share: ShareDirectory, volume: str, directory: Directory, name: str, data: bytes, like: str | None, warn: access.Warn, last: str
) -> None:
    """Write a small file of a volume, with the access of the volume's file ``like`` (None: as private as its directory).

    :param last: what may be used where the share is full: "ballast", or also the "blocks" that the file has.
    :raises NoSpace: the share is full.
    """
    try:
        _write_new(share, volume, directory, name, data, like, warn, share.create_temporary(volume))
    except NoSpace:
        lent = ballast.lend(share, volume, len(data)) if last else None
        if lent is not None:
            _write_new(share, volume, directory, name, data, like, warn, lent)
        elif last != "blocks" or not _write_in_place(share, directory, name, data):
            raise


def _write_new(
    share: ShareDirectory,
    volume: str,
    directory: Directory,
    name: str,
    data: bytes,
    like: str | None,
    warn: access.Warn,
    made: tuple[int, str],
) -> None:
    fd, temporary = made
    try:
        try:
            ballast.overwrite(fd, data)
            if like is not None:
                with share.root.opened(like) as original:
                    access.copy_access(original, fd, share.share.keeps_modes, warn, directory.subject(name))
            else:
                share.keep_as_private(fd, directory)
            share.pace.sync_file(fd)
        finally:
            os.close(fd)
        source = share.make_private("tmp")
        share.verify(volume)
        os.rename(temporary, name, src_dir_fd=source.fd, dst_dir_fd=directory.fd)
        directory.sync()
    except OSError as error:
        share.discard_temporary(temporary)
        raise from_os_error(error, directory.subject(name)) from error


def _write_in_place(share: ShareDirectory, directory: Directory, name: str, data: bytes) -> bool:
    """Whether the file could be changed within the blocks that it has."""
    is_list = directory is not share.root
    try:
        fd = ballast.add_in_place(directory, name, records.packed(data) if is_list else data, is_list)
    except (FileNotFoundError, StorageError):
        return False
    if fd < 0:
        return False
    try:
        share.pace.sync_file(fd)
    finally:
        os.close(fd)
    return True
