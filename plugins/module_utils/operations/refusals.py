# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change must not meet, asked before it begins: a name that is taken, an image that somebody has open."""

from __future__ import annotations

import os

from ..plan.plan import Plan
from ..store import in_use, kinship
from ..store.directory import ShareDirectory


def require_free_name(directory: ShareDirectory, file: str, volume: str, foretold: list) -> None:
    """:param foretold: what a prediction has told to be recovered: it has not removed what the run will have removed by then.

    :raises Conflict: as of :func:`kinship.require_free_name`.
    """
    going = {step["file"] for one in foretold for step in one["steps"] if step["step"] == "unlink"}
    if file not in going:
        kinship.require_free_name(directory, file, volume)


def predict_in_use(directory: ShareDirectory, plan: Plan, assume_unused: bool) -> None:
    """Fail where the run would fail because somebody has an image open, by asking only."""
    chain = plan.before.files if plan.before else ()
    for file in sorted({file for step in plan.steps for file in step.touches()} & set(chain)):
        require_unused(directory, file, assume_unused, check=True)


def require_unused(directory: ShareDirectory, file: str, assume_unused: bool, check: bool) -> None:
    """Check mode asks who has an image open; in earnest its lock bytes are tried, and given back at once.

    :raises InUse: somebody has, or the file system cannot tell and the user does not vouch for it.
    """
    share = directory.share
    if not share.locks_visible and not assume_unused:
        raise in_use.untold(file, share.label)
    if not share.locks_visible or directory.root.status(file) is None:
        return  # vouched for, or made by an earlier item of a prediction
    if not check and os.access(share.path, os.W_OK):
        with directory.root.opened(file, write=True) as fd:
            in_use.hold(fd, file, share.label)
        return
    with directory.root.opened(file) as fd:
        if in_use.ask(fd, share):
            raise in_use.met(file, share.label)
