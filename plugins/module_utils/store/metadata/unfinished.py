# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads from a recorded intent which files it is about, so that the volume can be read while its task is unfinished.

An intent is JSON that anybody may have written. Parts that do not have the expected shape are skipped. The keys are those of
``plan.intent``. Imported only if a record has an intent.
"""

from __future__ import annotations

from ... import model


def operation(intent: dict) -> str:
    """What the task was about, as ``actions`` and ``pending`` name it."""
    return str(intent.get("operation"))


def group(intent: dict) -> str:
    """The name of the group that the snapshot belongs to; that of no group where it is taken alone."""
    return str(intent.get("group"))


def members(intent: dict) -> tuple[str, ...]:
    """The volumes of the group together with which the task ends; none where it ends by itself."""
    found = intent.get("members")
    return tuple(name for name in found if model.is_safe_file_name(name)) if isinstance(found, list) else ()


def planned_files(intent: dict) -> dict[str, str]:
    """Snapshot → overlay, as the task will write them to ``.info``."""
    after = intent.get("after")
    snapshots = after.get("snapshots") if isinstance(after, dict) else None
    return {str(one.get("name")): str(one.get("file")) for one in snapshots or () if isinstance(one, dict)}


def planned_stale(intent: dict) -> set[tuple[str, str]]:
    """The stale entries of ``.info`` that the task leaves as they are, as (snapshot, file) pairs."""
    after = intent.get("after")
    stale = after.get("stale") if isinstance(after, dict) else None
    return {(str(one[0]), str(one[1])) for one in stale or () if isinstance(one, (list, tuple)) and len(one) == 2}


def replaces_by(intent: dict, file: str, length: int) -> bool:
    """Whether the task puts another file of this length (bytes) in the place of ``file``, and gives it its record."""
    steps = intent.get("steps")
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and (step.get("type"), step.get("file"), step.get("size")) == ("WriteSeed", file, length):
            return True
    return False


def images(intent: dict) -> tuple[str, ...]:
    """File names of the images that the task works on or makes."""
    found: dict[str, None] = {}
    for when in ("before", "after"):
        volume = intent.get(when)
        chain = volume.get("chain") if isinstance(volume, dict) else None
        files = [image.get("file") for image in (chain if isinstance(chain, list) else ()) if isinstance(image, dict)]
        found.update(dict.fromkeys(str(file) for file in files if model.is_safe_file_name(file)))
    return tuple(found)


def own_images(intent: dict) -> tuple[str, ...]:
    """As :func:`images`, without the images of a parent."""
    shared: set[str] = set()
    for volume in (intent.get("before"), intent.get("after")):
        chain, parent = (volume.get("chain"), volume.get("parent")) if isinstance(volume, dict) else (None, None)
        names = [str(image.get("file")) for image in (chain if isinstance(chain, list) else ()) if isinstance(image, dict)]
        if isinstance(parent, dict):
            topmost = str(parent.get("file"))
            shared.update(names[names.index(topmost) :] if topmost in names else ())
    return tuple(file for file in images(intent) if file not in shared)
