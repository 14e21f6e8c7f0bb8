# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shares that a server has: what a mount of one is to tasks, and to another host that shall attach its volumes."""
from __future__ import annotations

from .. import model
from . import resolve, tables, types


def describe(
    mount: tables.Mount,
    row: types.FileSystem,
    path: str,
    source: str | None,
    mount_base: str,
    below: str,
    fstab: str,
    entries: tuple[tables.Entry, ...] | None,
) -> model.Share:
    """See :func:`resolve.describe`; ``below`` is the place of the directory in the mount."""
    part = _part(mount)
    return model.Share(
        source=source or (path if part else mount.source),
        path=path,
        fstype=row.name,
        options=resolve.public_options(mount, row),
        mount_base=mount_base,
        keeps_modes=row.keeps_modes,
        locks_visible=row.locks_visible(mount.options),
        locks_readable=row.locks_readable(mount.options),
        stale_seconds=row.stale_seconds,
        keeps_inodes=row.keeps_inodes(mount.options),
        export=_export(mount, source, mount_base, fstab, entries),
        below="/".join(filter(None, (part, below.strip("/")))),
        mount_words=_mount_words(mount, row),
    )


def _part(mount: tables.Mount) -> str:
    """The place in its source that a bind mount shows; empty for the whole."""
    if not tables.shows_part(mount):
        return ""
    inside = "/" + "/".join(types.normalise_source(mount.source).split("/")[4:])  # //server/share/INSIDE
    within = mount.source.startswith("//") and inside != "/" and tables.is_within(mount.root, inside)
    return (mount.root[len(inside):] if within else mount.root).strip("/")


def _export(mount: tables.Mount, given: str | None, mount_base: str, fstab: str, entries: tuple[tables.Entry, ...] | None) -> str:
    """The source as another host mounts it: in the spelling that names the mount directory, for os-brick goes by its MD5."""
    if not tables.is_within(mount.path, mount_base.rstrip("/")):
        return mount.source
    for spelling in (given, mount.source):
        if spelling and not resolve.is_directory_name(spelling) and resolve.default_path(spelling, mount_base) == mount.path:
            return spelling
    for entry in tables.parse_fstab(tables.read_fstab(fstab)) if entries is None else entries:
        if entry.path == mount.path and resolve.default_path(entry.source, mount_base) == mount.path:
            return entry.source
    return mount.source


def _mount_words(mount: tables.Mount, row: types.FileSystem) -> str:
    """The options in force that the mount helper of another host takes."""
    options: tuple[str, ...] = ("ro",) if "ro" in mount.options else ()
    options += tuple(option for option in mount.super_options if option.split("=", 1)[0] in row.attachable and option not in row.silent)
    return ",".join(options)
