# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is checked before a change begins: its new names must be free, and what it gives up must be allowed to go."""

from __future__ import annotations

from typing import Callable, Container

from .. import errors, model
from ..plan.plan import Plan
from ..store.files.directory import ShareDirectory
from ..store.volumes import ownership
from . import applying, workspace


def require_free_name(directory: ShareDirectory, file: str, volume: str, still_there: Container[str]) -> None:
    """:param still_there: files that a recovery removes which was only predicted.

    :raises Conflict: as of :func:`ownership.require_free_name`.
    """
    if file not in still_there:
        ownership.require_free_name(directory, file, volume)


def plan_that_gives_up(work: workspace.Workspace, share: model.Share, plan: Callable[[bool], Plan], allowed: bool) -> Plan:
    """The plan that ``plan`` makes when it is told whether snapshots may go with what is asked for.

    Who would have to stop a machine first is told that first: a permission to drop snapshots would not help.

    :raises HasSnapshots, HasNewerSnapshots: they may not go. :raises InUse: nor could they, because of the machine that the user names.
    """
    try:
        return plan(allowed)
    except (errors.HasSnapshots, errors.HasNewerSnapshots):
        if work.options.attachment is not None:
            with applying.engine_for(work, share, [plan(True)]):
                pass
        raise
