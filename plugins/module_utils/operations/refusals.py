# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change must not meet, asked before it begins: a name that is taken, an image that somebody has open."""

from __future__ import annotations

import os

from ..model import Share
from ..plan.plan import Plan
from ..store import in_use, kinship
from ..store.directory import ShareDirectory
from .transaction import Workspace


def require_free_name(work: Workspace, share: Share, file: str, volume: str, recovered: list) -> None:
    """:raises Conflict: as of :func:`kinship.require_free_name`."""
    going = {step["file"] for one in recovered for step in one["steps"] if step["step"] == "unlink"} if work.options.check else set()
    if file not in going:  # a prediction has not removed what the run will have removed by then
        kinship.require_free_name(work.directory(share), file, volume)


def predict_in_use(work: Workspace, directory: ShareDirectory, plan: Plan) -> None:
    """Fail where the run would fail because somebody has an image open, by asking only."""
    chain = plan.before.files if plan.before else ()
    for file in sorted({file for step in plan.steps for file in step.touches()} & set(chain)):
        require_unused(work, directory, file)


def require_unused(work: Workspace, directory: ShareDirectory, file: str) -> None:
    """Check mode asks who has an image open; in earnest its lock bytes are tried, and given back at once.

    :raises InUse: somebody has, or the file system cannot tell and the user does not vouch for it.
    """
    share = directory.share
    if not share.locks_visible and not work.options.assume_unused:
        raise in_use.untold(file, share.label)
    if not share.locks_visible or directory.root.status(file) is None:
        return  # vouched for, or made by an earlier item of a prediction
    if not work.options.check and os.access(share.path, os.W_OK):
        with directory.root.opened(file, write=True) as fd:
            in_use.hold(fd, file, share.label)
        return
    with directory.root.opened(file) as fd:
        if in_use.ask(fd, share):
            raise in_use.met(file, share.label)
