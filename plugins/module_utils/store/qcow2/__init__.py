# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The qcow2 codec: reads headers and tables of untrusted files, and makes those changes that need no qemu-img.

It follows docs/interop/qcow2 of QEMU ("The qcow2 image format"); section names in this folder are those of that text. All numbers
in a qcow2 file are big-endian. Reads are bounded, and everything unknown or contradictory is refused.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .layout import MAGIC, CutShort, Qcow2Error

if TYPE_CHECKING:
    from .bitmaps import Bitmap, read_bitmaps
    from .cluster_uses import require_single_owners
    from .completeness import require_whole
    from .discarding import drop_data
    from .growing import grow
    from .holding import require_held
    from .leaks import Leaks, find_leaks
    from .reading import Header, HeaderSummary, has_magic, is_empty, read_backing_name, read_header, read_summary
    from .tables import allocation
    from .tails import clear_tail, has_fixed_tail, has_tail, tail_end
    from .writing import bytes_of_image, repoint, write_image

__all__ = [
    "MAGIC",
    "Bitmap",
    "CutShort",
    "HeaderSummary",
    "Header",
    "Leaks",
    "Qcow2Error",
    "allocation",
    "clear_tail",
    "drop_data",
    "read_summary",
    "grow",
    "has_magic",
    "is_empty",
    "find_leaks",
    "has_fixed_tail",
    "has_tail",
    "read_backing_name",
    "read_bitmaps",
    "read_header",
    "repoint",
    "bytes_of_image",
    "require_held",
    "require_single_owners",
    "require_whole",
    "tail_end",
    "write_image",
]

_HOMES = {
    **dict.fromkeys(("HeaderSummary", "Header", "read_summary", "has_magic", "is_empty", "read_backing_name", "read_header"), "reading"),
    **dict.fromkeys(("Bitmap", "read_bitmaps"), "bitmaps"),
    "allocation": "tables",
    **dict.fromkeys(("clear_tail", "has_fixed_tail", "has_tail", "tail_end"), "tails"),
    "drop_data": "discarding",
    "require_held": "holding",
    "require_whole": "completeness",
    "require_single_owners": "cluster_uses",
    **dict.fromkeys(("Leaks", "find_leaks"), "leaks"),
    "grow": "growing",
    **dict.fromkeys(("bytes_of_image", "repoint", "write_image"), "writing"),
}


def __getattr__(name: str) -> Any:
    """Import a part of the codec at its first use, because raw volumes have no header and most tasks write none."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module("." + _HOMES[name], __name__), name)
    return found
