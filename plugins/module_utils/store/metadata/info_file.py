# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``NAME.info``: the name of the active image, and the overlay that each snapshot made. OpenStack Cinder's remotefs has the same file.

It is flat JSON, ``{"active": FILE, SNAPSHOT: FILE, ...}``, with basenames only. File names are taken from the values, never built from keys.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from ... import errors, model

if TYPE_CHECKING:
    from ..files.directory import ShareDirectory

_ACTIVE = "active"
_MOST_ENTRIES = 512  # twice the number of files that a chain may have; more would not fit into a record of ours


class Info(NamedTuple):
    """Content of an ``.info`` file: the name of the active image, and (snapshot, file) pairs sorted by snapshot."""

    active: str
    snapshots: tuple[tuple[str, str], ...] = ()

    def to_bytes(self) -> bytes:
        """The content as JSON, written exactly as Cinder writes it, so that taking turns with Cinder makes no differences."""
        content = dict(self.snapshots)
        content[_ACTIVE] = self.active
        return json.dumps(content, indent=1, sort_keys=True).encode("utf-8")


def read(directory: ShareDirectory, volume: str) -> Info | None:
    """Read the ``.info`` of a volume. None if there is none. Raises what :func:`parse` raises."""
    data = directory.root.read_small(model.info_name(volume))
    return None if data is None else parse(volume, data)


def parse(volume: str, data: bytes) -> Info:
    """Parse the content of ``.info``. :raises ChainBroken: it is torn or no flat JSON. :raises UnsafeImage: a value is no plain file name."""
    subject = f"snapshot record {model.info_name(volume)}"
    remedy = "restore it from a backup or write it anew by hand as docs/worst-day.md shows"
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise errors.ChainBroken(subject, f"it is damaged ({error})", remedy) from error
    if not isinstance(content, dict) or not isinstance(content.get(_ACTIVE), str):
        raise errors.ChainBroken(subject, "it does not name the active file", remedy)
    if len(content) > _MOST_ENTRIES:
        raise errors.UnsafeImage(subject, f"it has {len(content)} entries, more than any chain has files", remedy)
    if not model.are_safe_file_names(content.values()):
        wrong = next(key for key, value in content.items() if not model.is_safe_file_name(value))
        raise errors.UnsafeImage(subject, f"the value of {wrong!r} is no plain file name", remedy)
    return Info(content[_ACTIVE], tuple(sorted((key, value) for key, value in content.items() if key != _ACTIVE)))
