# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may use ``.remotefs``: it is as private as the share's own directory, so that a group which shares that shares all of it."""

from __future__ import annotations

import os
import stat

from ...errors import StorageError, ToolFailed, from_os_error


def let_group_in(share: int, parent: int, name: str) -> None:
    """Open a new folder, ``.remotefs`` itself or one in it, to the group that may write where it was made.

    :param share: the descriptor of the share's directory; ``parent`` is that of the folder's own one.
    """
    from . import access  # late: who only opens such a folder needs it not

    above = os.fstat(parent)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(fd).st_gid != above.st_gid:
            os.fchown(fd, -1, above.st_gid)
        os.fchmod(fd, 0o2770)
        access.share_folder(share, fd)
    except PermissionError:
        pass  # not a member of that group: then it is for this user alone
    finally:
        os.close(fd)


def shut_out(share: int, path: str, parent: int, name: str, subject: str, error: OSError) -> StorageError:
    """The error of who may not open a folder of ours; ``path`` is that of ``.remotefs`` as users know it."""
    refused = from_os_error(error, subject, os.geteuid())
    try:
        found, above = os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(share)
    except OSError:
        return refused
    if not above.st_mode & stat.S_IWGRP:
        return refused
    remedy = f"let uid {found.st_uid}, whose it is, run chgrp -R {above.st_gid} and chmod -R g+rwX,g+s on {path}"
    return ToolFailed(subject, f"reading was refused to uid {os.geteuid()} although the group may write to the share", remedy)
