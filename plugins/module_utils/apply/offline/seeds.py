# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fills the files of seeds."""

from __future__ import annotations

from ... import errors
from ...plan import steps
from ...store.files import access
from ...store.files.directory import ShareDirectory, write_all
from .. import engine


def fill(directory: ShareDirectory, step: steps.WriteSeed, source: engine.CopySource | None, warn: access.Warn, fd: int) -> None:
    """Write the content of a seed into a new file, which is private until then, and give it its access: of the file that it replaces, or as the
    step says.

    :raises ChainBroken: nobody has the content. A step does not have it, so that only the task that was given it can carry it out.
    """
    if source is None or source.content is None or len(source.content) != step.size:
        raise errors.ChainBroken(f"seed {step.file}", "its content is on no record", "run the task again that makes it")
    write_all(fd, source.content)
    root, keeps_modes = directory.root, directory.share.keeps_modes
    if step.replaces:
        with root.opened(step.file) as original:
            access.copy_access(original, fd, keeps_modes, warn, root.subject(step.file))
        if keeps_modes:
            access.set_ownership(fd, step.uid, step.gid, step.mode, root.subject(step.file))
    elif keeps_modes:
        access.set_access_of_new(fd, root.fd, step.uid, step.gid, step.mode, warn, root.subject(step.file))
