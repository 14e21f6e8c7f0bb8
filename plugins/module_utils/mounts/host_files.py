# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replace small files of the host (fstab, credentials, records of mounts) whole and durably. The files of a share belong to store/."""
from __future__ import annotations

import errno
import os
import stat

from .. import errors


def replace_file(path: str, content: bytes, mode: int = 0o644, keep: bool = True) -> None:
    """Replace the file ``path`` whole and durably: temporary file in the same directory, fsync, rename, fsync of the directory.

    No link is followed.

    :param mode: the mode of a new file. :param keep: keep the mode, owner and SELinux label of a regular file that is there.
    :raises StorageError: the file cannot be written. The old file is unchanged in that case.
    """
    import tempfile

    directory = os.path.dirname(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix="." + os.path.basename(path) + ".", dir=directory)
    except OSError as error:
        raise errors.from_os_error(error, path) from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            _take_attributes(descriptor, path if keep else None, mode)
            stream.flush()
            os.fsync(descriptor)
        os.rename(temporary, path)
        sync_directory(directory)
    except OSError as error:
        _discard(temporary)
        if error.errno == errno.EBUSY:  # containers bind-mount single files such as fstab
            raise errors.ToolFailed(
                path, "it is a mount point of its own and cannot be replaced as a whole", "name another fstab, or set persist: false"
            ) from error
        raise errors.from_os_error(error, path) from error
    except BaseException:
        _discard(temporary)
        raise


def _take_attributes(descriptor: int, path: str | None, mode: int) -> None:
    old = os.lstat(path) if path is not None and os.path.lexists(path) else None
    if path is None or old is None or not stat.S_ISREG(old.st_mode):  # everybody may write to a link, and to many a device
        os.fchmod(descriptor, mode)
        return
    os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o7777)
    try:
        os.setxattr(descriptor, "security.selinux", os.getxattr(path, "security.selinux", follow_symlinks=False))
    except OSError:
        pass  # this host or this file has no SELinux label


def _discard(temporary: str) -> None:
    try:
        os.unlink(temporary)
    except OSError:
        pass


def sync_directory(path: str) -> None:
    """Make the creation and removal of names in the directory ``path`` durable. :raises OSError: they may not be durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
