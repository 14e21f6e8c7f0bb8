# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a host that does not have the share mounted mounts it, in the form of os-brick: an export, the directory above its mount, and options.

os-brick takes a share for mounted if something is mounted at the directory that the MD5 of the export names. Else it calls mount(8).
The mount table does not show every option, and it shows the source in another spelling. Our record of the mount and fstab have both as they were given.
"""
from __future__ import annotations

import os
from typing import Iterator, NamedTuple

from . import record, resolve, sources, tables, types, witnesses


class Known(NamedTuple):
    """What is known of a mount besides the line in the mount table."""

    spellings: tuple[str, ...]  # the source, as users spelled it
    given: tuple[str, ...]  # the options with which it was mounted
    source: str  # the source, as users spell it where the mount table does not


def read(mount: tables.Mount, source: str | None, fstab: str, entries: tuple[tables.Entry, ...] | None) -> Known:
    """What the record of the mount and fstab say. :param source: the user's name for the share. :param entries: the lines of fstab; None: read them."""
    recorded = record.read(mount.path, mount)
    if entries is None:
        entries = tables.parse_fstab(tables.read_fstab(fstab))
    lines = [entry for entry in entries if entry.path == mount.path]
    spellings = [source or "", recorded.source if recorded else "", *(entry.source for entry in lines)]
    given = recorded.words if recorded else next((entry.options for entry in lines if witnesses.is_mount_of(mount, entry.source, entries)), ())
    spelled = tuple(spelling for spelling in spellings if spelling and not resolve.is_directory_name(spelling))
    return Known(spelled, given, witnesses.source_of(mount, entries))


def export(mount: tables.Mount, row: types.FileSystem, spellings: tuple[str, ...], mount_base: str) -> tuple[str, str]:
    """(the source, the directory above the mount) such that os-brick finds the mount that is there, if its directory is named as os-brick names it.

    A share that is mounted elsewhere has the source of the mount table, and ``mount_base``.
    """
    base = os.path.dirname(mount.path)
    plain = sources.bare(mount.source, row)
    for spelling in (*spellings, *_spelled(plain, row)):
        if resolve.default_path(spelling, base) == mount.path:
            return spelling, base
    return plain, os.path.normpath(mount_base)


def _spelled(source: str, row: types.FileSystem) -> Iterator[str]:
    """Usual spellings of a source, of which the mount table shows only the first."""
    yield source
    yield source + "/"
    if row.slash_optional:
        yield source.replace(":/", ":", 1) if ":/" in source else source.replace(":", ":/", 1)


def words(mount: tables.Mount, row: types.FileSystem, given: tuple[str, ...]) -> str:
    """The options of the mount that the mount helper of another host accepts, separated by commas. The helper hears nothing that it assumes anyway.

    What the mount table shows is in force. Options that it hides are those with which we mounted. An option that would be several
    words of a command is left out, because os-brick splits them. Where it is not known what the helper accepts, there are none.
    """
    if not row.attachable:
        return ""
    unspelt = dict(row.unspellings)
    told: dict[str, str] = {"ro": "ro"} if "ro" in mount.options else {}
    for option in mount.options:
        option = unspelt.get(option, option)
        if _name(option) in row.attachable + tuple(unspelt.values()) and option not in row.silent + row.assumed:
            told[_name(option)] = option
    for option in given:
        if _name(option) in row.attachable_given:
            told[_name(option)] = option
    return ",".join(option for option in told.values() if option.split() == [option] and option.isprintable())


def _name(option: str) -> str:
    return option.partition("=")[0]
