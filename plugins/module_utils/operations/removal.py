# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an interrupted task left of a volume that is to go."""

from __future__ import annotations

from dataclasses import replace

from ..apply.traces import Interrupted
from ..model import Share, Volume
from ..plan.steps import Unlink
from ..store import inventory, kinship
from .transaction import Workspace, find_left, settle


def settle_for_removal(work: Workspace, share: Share, name: str) -> tuple[Volume | None, list, tuple[str, ...]]:
    """As :func:`settle`, for a volume that is to go with all its snapshots: what an interrupted task had begun to merge
    is not merged any more, which a full share might not allow. The third value names its files outside the chain; where
    somebody changed the share since, those are left alone and told."""
    directory = work.directory(share)
    interrupted = find_left(work, directory, name, discard=True)
    begun = [one for one in interrupted.resumptions if one.plan.after is not None]
    observed = inventory.observe(directory, name) if begun else None
    if observed is None or (share.path, name) in work.options.world:
        return (*settle(work, share, name, dependents=True), ())
    left = Interrupted((), interrupted.leftovers)
    if not work.options.check:
        work.finish(share, left)
    volume, told = observed.volume, [replace(one, outcome="discarded", plan=replace(one.plan, steps=())).describe() for one in begun]
    made = {file for one in begun if one.plan.after for file in one.plan.after.own_files}
    strays = (made | {step.file for one in begun for step in one.plan.steps if isinstance(step, Unlink)}) - set(volume.files)
    dependents = kinship.dependents_of(directory, volume, work.backings(share), strays)
    volume = replace(volume, dependents=dependents)
    return volume, told + left.describe(), tuple(sorted(file for file in strays if directory.root.status(file) is not None))
