# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which image a domain has, if a task was killed while the domain got another one."""

from __future__ import annotations

from ... import attachments, command, errors, model
from ...store.files.directory import ShareDirectory
from . import definition
from .connection import OFF, Domain, Refused, Unreachable, open_connection
from .domain import VolumeDomain, having

_ALIKE, _DIFFERENT = 0, 1  # exit statuses of qemu-img compare


def is_switched(directory: ShareDirectory, attachment: attachments.Attachment, before: model.Volume, after: model.Volume) -> bool | None:
    """Whether the domain has the new active image, or is going to start with it. None if libvirt cannot be asked.

    :raises NeedsRecovery: it has neither; or it is gone, and the two images show different data.
    """
    try:
        connection = open_connection(attachment.uri)
    except (Unreachable, errors.StorageError):
        return None
    try:
        files = [*before.own_files, *after.own_files]
        domain = connection.find(attachment.domain) if attachment.domain else next(iter(having(connection, directory, files)), None)
        if domain is None:
            return _are_alike(directory, before, after)
        return _on_new(domain, attachment, directory, before, after)
    except (Refused, Unreachable, definition.Unreadable):
        return None
    finally:
        connection.close()


def _on_new(domain: Domain, attachment: attachments.Attachment, directory: ShareDirectory, before: model.Volume, after: model.Volume) -> bool:
    machine = VolumeDomain(domain, attachment, directory, before)
    files = tuple(dict.fromkeys([*before.files, *after.files]))
    disk = machine.disk(domain.state().state == OFF, files)
    found = machine.file_of(disk.images[0].path, files)
    if found in (before.active.file, after.active.file):
        return found == after.active.file
    raise errors.NeedsRecovery(
        machine.subject,
        f"{attachment} has {disk.images[0].path}, and the interrupted task was changing it from {before.active.file} to {after.active.file}",
        "find out who changed it, and decide which of the files counts; see docs/worst-day.md",
    )


def _are_alike(directory: ShareDirectory, before: model.Volume, after: model.Volume) -> bool:
    """There is nobody to ask any more. As long as nobody has written to either of the two images, both are right."""
    old, new = before.active, after.active
    program = command.find("qemu-img", "qemu-utils")
    argv = [program, "compare", "-U", "-f", str(old.format), "-F", str(new.format), f"./{old.file}", f"./{new.file}"]
    result = command.run(argv, cwd=directory.share.path)
    if result.rc == _ALIKE:
        return True
    subject = f"volume {before.name} on {directory.share.label}"
    problem = f"its domain is gone, and {old.file} and {new.file} differ" if result.rc == _DIFFERENT else f"its domain is gone, and {result.reason}"
    raise errors.NeedsRecovery(subject, problem, "decide which of the two counts; see docs/worst-day.md", result.details)
