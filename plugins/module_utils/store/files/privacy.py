# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may use ``.remotefs``. If the group may write to the share's directory, it may use ``.remotefs``, too; else only the owner may."""

from __future__ import annotations

import os
import stat

from ... import errors


def allow_group(share: int, parent: int, name: str) -> None:
    """Give a new folder, ``.remotefs`` itself or one in it, to the group that may write to its parent directory.

    :param share: descriptor of the share's directory. :param parent: descriptor of the directory that the folder is in.
    """
    from . import access  # late: not needed to open such a folder

    above = os.fstat(parent)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(fd).st_gid != above.st_gid:
            os.fchown(fd, -1, above.st_gid)
        os.fchmod(fd, 0o2770)
        access.share_folder(share, fd)
    except PermissionError:
        pass  # this user is not a member of that group, so the folder stays private
    finally:
        os.close(fd)


def refused_error(share: int, path: str, parent: int, name: str, subject: str, error: OSError) -> errors.StorageError:
    """The error for a user who may not open a folder of ours. ``path``: that of ``.remotefs`` on this host, for the message."""
    refused = errors.from_os_error(error, subject, os.geteuid())
    try:
        found, above = os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(share)
    except OSError:
        return refused
    if not above.st_mode & stat.S_IWGRP:
        return refused
    remedy = f"let uid {found.st_uid}, whose it is, run chgrp -R {above.st_gid} and chmod -R g+rwX,g+s on {path}"
    return errors.ToolFailed(subject, f"reading was refused to uid {os.geteuid()} although the group may write to the share", remedy)
