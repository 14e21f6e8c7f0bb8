# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What not every engine can do is refused before anything begins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse
from ansible_collections.remotefs.storage.plugins.module_utils.plan import planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.abilities import Abilities
from ansible_collections.remotefs.storage.plugins.module_utils.plan.merge import delete_snapshots

from .test_merge import volume

CUTS = delete_snapshots(volume(8, 4, 8), ["s1"], {})  # the raw base is longer than the overlay above it
REPLACES = planner.revert(volume(8, 8, 8), "s2", False)
NEITHER = delete_snapshots(volume(8, 8, 8), ["s1"], {})


@pytest.mark.parametrize("plan, missing", [(CUTS, "truncates"), (REPLACES, "replaces_active")])
def test_what_an_engine_cannot_do(plan: planner.Plan, missing: str) -> None:
    for name in ("truncates", "replaces_active"):
        abilities = replace(Abilities(), **{name: False})
        if name == missing:
            with pytest.raises(InUse, match="volume v: .*v.*; stop the machine that uses it"):
                abilities.require_for(plan)
        else:
            abilities.require_for(plan)


def test_what_every_engine_can_do() -> None:
    Abilities(truncates=False, replaces_active=False).require_for(NEITHER)
    for plan in (CUTS, REPLACES):
        Abilities().require_for(plan)
