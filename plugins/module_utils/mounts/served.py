# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shares on servers: find them by their source, and describe their mount to tasks and to other hosts.

Only tasks that name a source, or a directory on a server, need this module.
"""
from __future__ import annotations

from .. import errors, model
from . import attaching, resolve, sources, tables, types


def find_share(share: str, mounts: tuple[tables.Mount, ...], mount_base: str, fstab: str, timeout: float) -> model.Share:
    """The part of :func:`resolve.find_share` for a source. :param mounts: the kernel's table at this moment.

    :param timeout: seconds that an automounter may take for each place.
    :raises InvalidParameter: ``share`` is not a source. :raises ShareNotMounted: it is not mounted.
    """
    entries = tables.parse_fstab(tables.read_fstab(fstab))
    mount = resolve.find_source(share, mounts, mount_base, entries)
    if mount is None and not sources.is_source(share) and not any(sources.is_entry_of(entry, share) for entry in entries):
        problem = "it is neither an absolute directory nor a source such as nas1:/vols or //nas1/vols"
        raise errors.InvalidParameter(
            f"share {share!r}", problem, "give one of these; a name of another kind, which some file systems have, is known only while it is mounted"
        )
    if mount is None and any(other.is_trigger for other in mounts):
        from . import automount  # late: most hosts have no automounter

        mounts = automount.visit_source(share, mounts, mount_base, fstab, timeout)
        mount = resolve.find_source(share, mounts, mount_base, entries)
    if mount is None:
        remedy = f"mount it with remotefs_share and run the task again{hint_for_several(share)}"
        raise errors.ShareNotMounted(f"share {share}", "it is not mounted on this host", remedy)
    return resolve.describe(mount, mounts, mount.path, share, mount_base, fstab, entries=entries)


def expected_share(share: str, mount_base: str) -> model.Share:
    """The share that ``share`` will name once it is mounted or created, for check mode. It reads neither tables nor files.

    :raises InvalidParameter: ``share`` is a directory name with '..' or a control character.
    """
    if resolve.is_directory_name(share):
        return model.Share(share, resolve.clean_path(share, "share"), types.DIRECTORY.name, mount_base=mount_base)
    row = sources.claim(share) or types.DIRECTORY
    return model.Share(share, resolve.default_path(share, mount_base), row.name, mount_base=mount_base, keeps_modes=row.keeps_modes, local=row.local)


def hint_for_several(share: str) -> str:
    """The hint that a message adds where the user may have written several shares as one text; empty otherwise. A comma belongs to the name."""
    parts = [part.strip() for part in share.split(",")]
    if len(parts) == 1:
        return ""
    several = all(resolve.is_directory_name(part) or sources.is_source(part) for part in parts)
    return "; several candidates want a YAML list" if several else ""


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
    """The part of :func:`resolve.describe` for a mount of the file system ``row``. :param below: the path of the directory within the mount."""
    part = _part(mount, row)
    known = attaching.read(mount, source, fstab, entries)
    export, base = attaching.export(mount, row, known.spellings, mount_base)
    return model.Share(
        source=source or (path if part else known.source),
        path=path,
        fstype=row.name,
        options=resolve.public_options(mount, row),
        mount_base=base,
        export=export,
        below="/".join(filter(None, (part, below.strip("/")))),
        mount_words=attaching.words(mount, row, known.given),
        **resolve.facts(row, mount.options),
    )


def _part(mount: tables.Mount, row: types.FileSystem) -> str:
    """The path within the source that a bind mount shows; empty if the mount shows the whole source."""
    if not sources.shows_part(mount):
        return ""
    inside = "/" + "/".join(sources.normalise(mount.source).split("/")[4:])  # //server/share/INSIDE
    within = row.root_in_source == "too" and inside != "/" and tables.is_within(mount.root, inside)
    return (mount.root[len(inside):] if within else mount.root).strip("/")
