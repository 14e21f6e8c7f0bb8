# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change fstab, one line at a time."""
from __future__ import annotations

import os
import re

from .. import errors
from . import host_files, tables

_TO_ESCAPE = re.compile(r"[ \t\n\\#]")


def escape(text: str) -> str:
    """``text`` as a field of fstab: blanks, line breaks, backslashes and ``#`` as octal escapes. :func:`tables.unescape` undoes it."""
    return _TO_ESCAPE.sub(lambda match: f"\\{ord(match.group(0)):03o}", text)


def render_entry(entry: tables.Entry) -> str:
    """``entry`` as a line of fstab, without the line break. :func:`tables.parse_entry` reads it back."""
    options = ",".join(escape(option) for option in entry.options) or "defaults"
    return f"{escape(entry.source)} {escape(entry.path)} {entry.fstype} {options} {entry.dump} {entry.passno}"


def edit_fstab(text: str, path: str, entry: tables.Entry | None) -> str:
    """The text of fstab with ``entry`` as the only line that mounts at ``path``; None: with no such line. All other bytes stay.

    A line that already means the same stays as it is, with its spacing. A new line is added at the end.
    """
    lines = text.split("\n")
    kept, placed = [], False
    for line in lines:
        found = tables.parse_entry(line)
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
    """Check that the file ``path`` can be replaced. A symbolic link cannot: writing never follows one.

    :raises InvalidParameter: the file exists and is not a plain file.
    """
    import stat

    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
        raise errors.InvalidParameter(f"fstab {path}", f"it is {what} and is not written through", "name the file itself in fstab, or set persist: false")


def change_fstab(path: str, mountpoint: str, entry: tables.Entry | None) -> None:
    """Edit the file ``path`` as :func:`edit_fstab` edits a text, under a lock on its directory. The change is durable afterwards.

    :param mountpoint: the path where ``entry`` mounts. :param entry: None removes the lines for that path.
    :raises StorageError: the file cannot be written. It is unchanged in that case.
    """
    import fcntl

    directory = os.path.dirname(path) or "/"
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise errors.from_os_error(error, f"fstab {path}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        check_fstab(path)
        text = tables.read_fstab(path)
        changed = edit_fstab(text, mountpoint, entry)
        if changed != text:
            host_files.replace_file(path, os.fsencode(changed))
    finally:
        os.close(folder)
