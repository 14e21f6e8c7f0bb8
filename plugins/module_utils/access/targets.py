# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file or socket of this host that shows a point: whether it may be made there, and the file that is mounted on.

A mount is made by its path. So whoever could exchange a part of that path could let it hide any file of the host.
"""

from __future__ import annotations

import errno
import os
import stat

from .. import attachments, errors
from . import guard, record

_LONGEST = 4000  # bytes of a path
_DEVICE = "/dev/fuse"


def target_at(kind: str, path: str) -> record.Target:
    """What is shown at a path, by one name for it. :raises InvalidParameter: there can be no such file or socket."""
    option = record.Target(kind, path).option
    if not os.path.isabs(path) or not path.isprintable() or not os.path.basename(path) or os.path.basename(path) in (".", ".."):
        raise errors.InvalidParameter(f"option {option}", f"{path[:80]!r} is no absolute path of a file", "give one, such as /mnt/db01.img")
    folder, name = os.path.split(path)
    found = record.Target(kind, os.path.join(os.path.realpath(folder), name))
    most = attachments.LONGEST_SOCKET if kind == guard.NBD else _LONGEST
    if len(os.fsencode(found.path)) > most:
        raise errors.InvalidParameter(f"option {option}", f"{found.path[:80]} has more than {most} bytes", "give a shorter path")
    return found


def require_fuse() -> None:
    """:raises ToolMissing: this user cannot make files that a program shows."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        problem = f"it cannot be used here ({error.strerror}), so that no file can show a point"
        raise errors.ToolMissing(
            f"device {_DEVICE}", problem, "use nbd, which needs no FUSE; or load the module fuse, or let this user open the device"
        ) from error


def require_free(target: record.Target, share_path: str | None) -> None:
    """Check that a point may be shown there. :param share_path: the directory of its share.

    :raises Conflict: something else is there, or it would be taken for a volume. :raises ToolFailed: others could exchange it.
    """
    subject, folder = f"{target.option} {target.path}", os.path.dirname(target.path)
    if share_path is not None and (folder + "/").startswith(os.path.realpath(share_path) + "/"):
        raise errors.Conflict(subject, "it lies on the share", "give a path on a file system of this host")
    _require_safe(folder)
    if is_left(target):
        return
    try:
        os.lstat(target.path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise errors.from_os_error(error, subject) from error
    raise errors.Conflict(subject, "something else is there", "give a path at which nothing is")


def is_left(target: record.Target) -> bool:
    """Whether there is what a holder has left that ended."""
    try:
        if target.kind == guard.NBD:
            return stat.S_ISSOCK(os.lstat(target.path).st_mode) and not guard.is_served(target.path)
        return guard.is_dead_mount(target.path) or guard.is_placeholder(target.path)
    except OSError:
        return False


def make_file(target: record.Target) -> None:
    """Make the file that is mounted on. :raises Conflict: something came there meanwhile. :raises StorageError: it cannot be made."""
    subject = f"{target.option} {target.path}"
    try:
        fd = os.open(target.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)  # fusermount3 wants to be able to write
        try:
            os.write(fd, guard.PLACEHOLDER)
        finally:
            os.close(fd)
    except FileExistsError as error:
        raise errors.Conflict(subject, "something has come there meanwhile", "give a path at which nothing is") from error
    except OSError as error:
        raise errors.from_os_error(error, subject) from error


def _require_safe(folder: str) -> None:
    """:raises ToolFailed: the folder is not there, or others than this user and root could exchange parts of its path."""
    part = folder
    while True:
        try:
            found = os.lstat(part)
        except OSError as error:
            remedy = "make it first" if error.errno == errno.ENOENT else "mend that"
            raise errors.ToolFailed(f"directory {part} of this host", error.strerror or str(error), f"{remedy}, or give another path") from error
        is_open = found.st_mode & 0o022 and not (found.st_mode & stat.S_ISVTX)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()) or is_open:
            problem = "others than the user of this task can write there, or it is no directory"
            raise errors.ToolFailed(f"directory {part} of this host", problem, "give a path below directories that only root or this user can change")
        if part == "/":
            return
        part = os.path.dirname(part)
