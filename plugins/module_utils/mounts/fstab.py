# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes of fstab, one line at a time, and files of the host that are replaced whole and durably."""
from __future__ import annotations

import errno
import os
import re

from ..errors import InvalidParameter, ToolFailed, from_os_error
from .tables import Entry, parse_entry, read_fstab

_TO_ESCAPE = re.compile(r"[ \t\n\\#]")


def escape(text: str) -> str:
    return _TO_ESCAPE.sub(lambda match: f"\\{ord(match.group(0)):03o}", text)


def render_entry(entry: Entry) -> str:
    options = ",".join(escape(option) for option in entry.options) or "defaults"
    return f"{escape(entry.source)} {escape(entry.path)} {entry.fstype} {options} {entry.dump} {entry.passno}"


def edit_fstab(text: str, path: str, entry: Entry | None) -> str:
    """``text`` with ``entry`` as the only line that mounts at ``path`` (None: with no such line). Every other byte stays.

    A line that says the same already is not touched, whatever its spacing; a new one goes to the end.
    """
    lines = text.split("\n")
    kept, placed = [], False
    for line in lines:
        found = parse_entry(line)
        if found is None or found.path != path:
            kept.append(line)
        elif entry is not None and not placed:
            kept.append(line if found == entry else render_entry(entry))
            placed = True
    if entry is not None and not placed:
        if kept[-1] == "":
            kept.pop()
        kept += [render_entry(entry), ""]
    return "\n".join(kept)


def check_fstab(path: str) -> None:
    """:raises InvalidParameter: it exists and is not a plain file, so that it cannot be replaced (nothing is followed on writing)."""
    import stat

    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
        raise InvalidParameter(f"fstab {path}", f"it is {what} and is not written through", "name the file itself in fstab, or set persist: false")


def change_fstab(path: str, mountpoint: str, entry: Entry | None) -> None:
    """Make :func:`edit_fstab` on the file ``path``: read and replaced under a lock of its directory, durable when this returns.

    :raises StorageError: it cannot be written; it is unchanged then.
    """
    import fcntl

    directory = os.path.dirname(path) or "/"
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, f"fstab {path}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        check_fstab(path)
        text = read_fstab(path)
        changed = edit_fstab(text, mountpoint, entry)
        if changed != text:
            replace_file(path, os.fsencode(changed))
    finally:
        os.close(folder)


def replace_file(path: str, content: bytes, mode: int = 0o644, keep: bool = True) -> None:
    """Replace a file whole and durably: temporary file beside it, fsync, rename, fsync of the directory.

    Mode, owner and label of the old file stay with ``keep``; ``mode`` is for any other. Nothing is followed.

    :raises StorageError: the old file stays as it is.
    """
    import tempfile

    directory = os.path.dirname(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix="." + os.path.basename(path) + ".", dir=directory)
    except OSError as error:
        raise from_os_error(error, path) from error
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
        if error.errno == errno.EBUSY:  # containers mount such files singly
            raise ToolFailed(path, "it is a mount point of its own and cannot be replaced as a whole", "name another fstab, or set persist: false") from error
        raise from_os_error(error, path) from error
    except BaseException:
        _discard(temporary)
        raise


def _take_attributes(descriptor: int, path: str | None, mode: int) -> None:
    if path is None or not os.path.lexists(path):
        os.fchmod(descriptor, mode)
        return
    old = os.lstat(path)
    os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o7777)
    try:
        os.setxattr(descriptor, "security.selinux", os.getxattr(path, "security.selinux", follow_symlinks=False))
    except OSError:
        pass  # no SELinux here


def _discard(temporary: str) -> None:
    try:
        os.unlink(temporary)
    except OSError:
        pass


def sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
