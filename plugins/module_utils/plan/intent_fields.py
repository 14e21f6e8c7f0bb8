# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fields of an intent as records have them. Whoever can write to the share can have written them, so each is checked."""

from __future__ import annotations

from dataclasses import replace

from .. import model

SWITCHING = "switching"  # a phase: from now on a machine may be on the new active image, which shows the same as the old one at this instant
SWITCHING_SUSPENDED = "switching suspended"  # the same, and the task has suspended the machine, which has to go on afterwards
_MOST_MEMBERS = 4096  # of a group
_LONGEST_PATH = 4096
_LONGEST_ENGINE = 40  # letters of an engine's name


def group(value: object) -> str | None:
    """A group's name. :raises ValueError: it cannot be the name of a file."""
    if value is not None and not model.is_safe_file_name(value):
        raise ValueError(f"no group: {value!r}")
    return None if value is None else str(value)


def engine(value: object) -> str:
    """An engine's name. :raises ValueError: it is no name."""
    if not isinstance(value, str) or not value.isidentifier() or len(value) > _LONGEST_ENGINE:
        raise ValueError("no name of an engine")
    return value


def phase(value: object) -> str:
    """A phase. :raises ValueError: it is none that this release knows."""
    if value not in ("", SWITCHING, SWITCHING_SUSPENDED):
        raise ValueError("no phase")
    return str(value)


def socket(value: object) -> str | None:
    """The path of a socket. :raises ValueError: it is no path."""
    if value is not None and (not isinstance(value, str) or len(value) > _LONGEST_PATH or not value.isprintable()):
        raise ValueError("no path of a socket")
    return value


def members(value: object) -> tuple[str, ...]:
    """Names of volumes. :raises ValueError: they cannot be."""
    if not isinstance(value, (list, tuple)) or len(value) > _MOST_MEMBERS or not all(model.is_safe_file_name(name) for name in value):
        raise ValueError("no names of volumes")
    return tuple(value)


def volume(content: dict) -> model.Volume:
    """:raises KeyError, TypeError, ValueError: it is no volume that can be, or a file name leads out of the share."""
    chain = tuple(model.Image(**image) for image in content["chain"])
    snapshots = tuple(model.Snapshot(**snapshot) for snapshot in content["snapshots"])
    parent = None if content["parent"] is None else model.Parent(**content["parent"])
    stale = tuple((str(name), str(file)) for name, file in content.get("stale", ()))
    found = replace(
        model.Volume(content["name"], chain, snapshots, info=content["info"] is True, adopted=True, parent=parent, stale=stale),
        created=content.get("created"),  # older records do not have these fields
        description=str(content.get("description", "")),
        labels=dict(content.get("labels", {})),
        received=content.get("received") is True,
        replicated=content.get("replicated") is True,
        move=model.move_from_json(content.get("move")),
        lease=None if content.get("lease") is None else str(content["lease"]),
    )
    names = [*found.files, *(snapshot.file for snapshot in snapshots), *((parent.file, parent.volume) if parent else ())]
    names += [file for _name, file in stale]
    if not all(isinstance(snapshot.point, (str, type(None))) for snapshot in snapshots):
        raise ValueError("an identity that cannot be")
    if not chain or not all(model.is_safe_file_name(name) for name in names) or (parent and parent.file not in found.files):
        raise ValueError("a chain that cannot be")
    return found
