# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads steps that an intent records. Anybody on the share may have written the record."""

from __future__ import annotations

from .. import model
from . import steps

# Without FreeLeaks: a plan that has it needs no intent.
_TYPES = {
    kind.__name__: kind
    for kind in (
        steps.CreateImage,
        steps.CopyImage,
        steps.WriteSeed,
        steps.CreateClone,
        steps.CreateOverlay,
        steps.ReceiveOverlay,
        steps.ReplaceOverlay,
        steps.Grow,
        steps.Commit,
        steps.Truncate,
        steps.Pull,
        steps.Repoint,
        steps.SetAttributes,
        steps.WriteInfo,
        steps.WriteRecord,
        steps.Unlink,
    )
}

_FILE_FIELDS = ("file", "backing_file", "into", "active", "volume", "instead_of")


def from_json(content: dict) -> steps.Step:
    """The step that :meth:`steps.Step.to_json` wrote. :raises ValueError: it is no step, or a file name leads out of the share."""
    try:
        fields = dict(content)
        kind = _TYPES[fields.pop("type")]
        if kind is steps.WriteRecord:
            fields["identified"] = tuple(str(file) for file in fields.get("identified", ()))
        if kind is steps.WriteInfo:
            fields["snapshots"] = tuple((str(name), str(file)) for name, file in fields["snapshots"])
        step = kind(**fields)
        files = [getattr(step, name) for name in _FILE_FIELDS if getattr(step, name, None) is not None]
        files += [file for _name, file in step.snapshots] if isinstance(step, steps.WriteInfo) else []
        if not all(model.is_safe_file_name(file) for file in files):
            raise ValueError("a file name that leads out of the share")
        return step
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no step: {content!r}") from error
