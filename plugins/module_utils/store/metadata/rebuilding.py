# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rebuilds an ``.info`` that is missing or torn."""

from __future__ import annotations

from ... import errors, model
from ..volumes import chains, ownership
from ..volumes.look import Look
from . import info_file


def rebuilt_info(look: Look, torn: errors.ChainBroken | None) -> info_file.Info:
    """Rebuild the content of ``.info`` from our own record, if the chain agrees with the record in every point.

    :param torn: the error of the present ``.info``; None if it is missing. :raises ChainBroken: its content is not certain.
    """
    rebuilt = _from_record(look)
    if rebuilt is not None:
        return rebuilt
    seen = model.listed(f"{file} on {below}" for file, below in ownership.overlays_named_after(look.directory, look.name).items()) or "none"
    wrong = torn.problem if torn else "it is missing although snapshots were taken"
    raise errors.ChainBroken(
        f"snapshot record {model.info_name(look.name)} on {look.directory.share.label}",
        f"{wrong}, and nothing tells for certain what it said (overlays seen: {seen})",
        "restore it from a backup or write it anew by hand as docs/worst-day.md shows",
    ) from torn


def _from_record(look: Look) -> info_file.Info | None:
    directory, record = look.directory, look.record
    if record is None or record.intent is not None or record.active is None:
        return None
    info = info_file.Info(record.active, tuple(sorted((snapshot, str(one["file"])) for snapshot, one in record.snapshots.items())))
    try:
        chain = chains.walk(directory, look.name, record.active, info, record)
    except (OSError, errors.StorageError):
        return None
    own = {image.file for image in chain} & set(record.formats)
    overlays = {image.file for image in chain if image.backing_file}
    agrees = own == set(record.formats) and all(file in overlays & own for _snapshot, file in info.snapshots)
    has_overlay_above = record.active in ownership.overlays_named_after(directory, look.name).values()
    return info if agrees and not has_overlay_above else None
