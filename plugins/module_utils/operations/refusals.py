# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change must not meet, asked before it begins: a name that is taken, an image that somebody has open."""

from __future__ import annotations

import os

from ..apply.guard import Guard, ask_resumption, ask_unused, ask_unwritten
from ..apply.remains import Interrupted
from ..plan.plan import Plan
from ..store import kinship
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
        ask_unused(directory, file, assume_unused)
    ask_unwritten(directory, plan, assume_unused)


def predict_recovery(directory: ShareDirectory, interrupted: Interrupted, assume_unused: bool) -> None:
    """Fail where the end of what an interrupted task left would meet a user of the volume's images, by asking only."""
    for resumption in interrupted.resumptions:
        ask_resumption(directory, resumption, assume_unused)


def require_unused(directory: ShareDirectory, file: str, assume_unused: bool, check: bool) -> None:
    """Check mode asks who has an image open; in earnest its lock bytes are tried, and given back at once.

    :raises InUse: somebody has, or the file system cannot tell and the user does not vouch for it.
    """
    share = directory.share
    if check or not share.locks_visible or not os.access(share.path, os.W_OK):
        ask_unused(directory, file, assume_unused)
    elif directory.root.status(file) is not None:
        with Guard(directory, assume_unused) as guard:
            guard.take([file])
