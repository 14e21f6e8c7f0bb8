# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What diffs tell beside the volume before and after (content that goes back, volumes of a task about many in one line), and why objects failed."""

from __future__ import annotations

from typing import Sequence

from ..errors import StorageError
from ..model import listed, told_size
from ..plan.plan import Plan

_MOST_REASONS = 20  # in one message


def content_goes_back(plan: Plan, snapshot: str) -> tuple[str, str] | None:
    """How a diff tells a revert: the content before and after it. None where nothing is discarded."""
    if plan.before is None or plan.after is None or not plan.changed:
        return None
    point = plan.before.point_file(snapshot)
    dropped = sum(image.allocated for image in plan.before.chain[: plan.before.files.index(point)])
    taken = plan.before.snapshot(snapshot).created
    said = f"snapshot {snapshot}" + (f" of {taken}" if taken else "")
    about = f"about {told_size(dropped)}" if plan.before.size else "nobody knows how much"
    return f"as written since {said} ({about}), which is dropped", f"goes back to {said}"


def one_line(found: dict) -> str:
    """A volume that came or went, for the diff of a task about many."""
    size = "size unknown" if found["size"] is None else told_size(found["size"]).split(" (", 1)[0]
    parent = f", on {found['parent']['volume']}@{found['parent']['snapshot']}" if found["parent"] else ""
    snapshots = f", snapshots {listed((one['name'] for one in found['snapshots']), 5)}" if found["snapshots"] else ""
    return f"volume {found['name']}: {found['format']}, {size}, {found['path']}{parent}{snapshots}"


def reasons(said: Sequence[tuple[str, StorageError]]) -> str:
    """Why objects failed, each reason once: who has the same one is named together."""
    groups: dict[tuple, list[tuple[str, StorageError]]] = {}
    for label, error in said:
        groups.setdefault((error.problem, error.remedy), []).append((label, error))
    told = []
    for (problem, remedy), several in groups.items():
        alike = len({str(error) for _label, error in several}) == 1  # else the object of each is its own
        told.append(f"{listed(label for label, _error in several)}: {several[0][1] if alike else f'{problem}; {remedy}.'}")
    more = f" (and {len(told) - _MOST_REASONS} more reasons, see results)" if len(told) > _MOST_REASONS else ""
    return " ".join(told[:_MOST_REASONS]) + more
