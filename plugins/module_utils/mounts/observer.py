# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe one share: its mount, its line of fstab, its directory and its credentials. Nothing here changes anything."""
from __future__ import annotations

import os

from .. import errors
from . import automount, binds, planner, probe, record, resolve, tables, witnesses


def observe(
    desired: planner.DesiredShare, mounts: tuple[tables.Mount, ...], entries: tuple[tables.Entry, ...], deadline: probe.Deadline
) -> planner.Seen:
    """The state at the path of the desired share.

    :param mounts: the kernel's table. :param entries: the lines of fstab.
    :raises InvalidParameter: something other than a directory is there. :raises ShareNotMounted: the path lies on a share that does not answer.
    :raises StorageError: the credentials file cannot be read.
    """
    real = resolve.follow(desired.path, mounts)
    mount = tables.mounted_at(mounts, real)
    here = tables.enclosing(mounts, real)
    untouched = here is not None and here.is_trigger  # an access would make the automounter mount it
    directory, empty = (True, True) if untouched or (mount is not None and desired.row.mount_type) else _directory(desired, real, deadline)
    source = resolve.follow(desired.src, mounts) if desired.row.local and desired.src else None
    bound = mount is not None and source is not None and binds.shows(mounts, mount, source)
    return planner.Seen(
        mount=mount if desired.row.mount_type else None,
        source=(source if bound else source_of(mount, mounts, entries)) if desired.row.mount_type else None,
        bound=bound,
        told=mount is not None and desired.src is not None and witnesses.is_mount_of(mount, desired.src, entries),
        entry=next((entry for entry in entries if entry.path == desired.path), None) if desired.row.mount_type else None,
        directory=directory,
        empty=empty,
        credentials=_read_credentials(desired),
        shared=mount is not None and any(other.device == mount.device and other.path != mount.path for other in mounts),
        dead=mount is not None and desired.row.by_process and desired.state == "mounted" and _is_dead(real, deadline),
        trigger=automount.trigger(mounts, real) is not None,
        layers=_layers(desired, mount, source, mounts, entries),
        record=record.read(desired.path, mount),
    )


def _layers(
    desired: planner.DesiredShare,
    mount: tables.Mount | None,
    source: str | None,
    mounts: tuple[tables.Mount, ...],
    entries: tuple[tables.Entry, ...],
) -> int:
    """How many mounts of the desired source lie on top of each other at the path. Mounts beneath one of another source are not ours."""
    if mount is None:
        return 1
    count = 0
    for layer in _stacked(mounts, mount):
        if not (binds.shows(mounts, layer, source) if source is not None else witnesses.is_mount_of(layer, desired.src or mount.source, entries)):
            break
        count += 1
    return max(count, 1)


def _stacked(mounts: tuple[tables.Mount, ...], mount: tables.Mount) -> tuple[tables.Mount, ...]:
    """``mount`` and the mounts that it covers at the same path, topmost first."""
    parents = {other.id: other for other in mounts}
    layers = [mount]
    while True:
        below = parents.get(layers[-1].parent)
        if below is None or below.path != mount.path or below.is_trigger or below in layers:
            return tuple(layers)
        layers.append(below)


def source_of(mount: tables.Mount | None, mounts: tuple[tables.Mount, ...], entries: tuple[tables.Entry, ...] = ()) -> str | None:
    """The source of a mount, as a user would name it; for a bind mount the directory that it shows. None if ``mount`` is None."""
    if mount is None:
        return None
    return binds.origin(mounts, mount) or mount.source if resolve.is_bind(mount) else witnesses.source_of(mount, entries)


def _directory(desired: planner.DesiredShare, real: str, deadline: probe.Deadline) -> tuple[bool, bool]:
    exists, directory, empty = probe.directory_state(real, deadline.left, f"path {desired.path}")
    if exists and not directory:
        raise errors.InvalidParameter(f"path {desired.path}", "it is not a directory", "choose another path")
    return directory, empty


def _read_credentials(desired: planner.DesiredShare) -> bytes | None:
    try:
        with open(desired.credentials_file, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except PermissionError:
        return None  # this user is not root: the step that mounts reports that
    except OSError as error:
        raise errors.from_os_error(error, f"credentials of share {desired.name}") from error


def _is_dead(path: str, deadline: probe.Deadline) -> bool:
    """Whether the process that served a FUSE mount is gone, so that an unmount cannot lose anything."""
    import errno

    def query() -> tuple:
        """Runs in the child process."""
        try:
            os.statvfs(path)
        except OSError as error:
            return (int(error.errno == errno.ENOTCONN),)
        return (0,)

    return bool(probe.bounded(query, deadline.left, f"share at {path}")[0])
