# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What not every engine can do is refused before anything begins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse
from ansible_collections.remotefs.storage.plugins.module_utils.model import Parent
from ansible_collections.remotefs.storage.plugins.module_utils.plan import clones, planner, seeds
from ansible_collections.remotefs.storage.plugins.module_utils.plan.abilities import Abilities
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.plan.merge import delete_snapshots

from .test_merge import volume

CUTS = delete_snapshots(volume(8, 4, 8), ["s1"], {})  # the raw base is longer than the overlay above it
REPLACES = planner.revert(volume(8, 8, 8), "s2", False)
NEITHER = delete_snapshots(volume(8, 8, 8), ["s1"], {})
REMOVES = planner.delete_volume(volume(8), False)
FLATTENS = clones.flatten(replace(volume(8, 8, 8), parent=Parent("p", "golden", "v")), {})
GROWS = planner.ensure_volume(volume(16, 8), DesiredVolume("v", size=24))  # over a longer file
RESEEDS = seeds.replaced(volume(8), DesiredVolume("v", seed=2048), 2048)
WANTS = [(CUTS, "truncates"), (REPLACES, "replaces_active"), (RESEEDS, "replaces_active")]
WANTS += [(REMOVES, "removes"), (FLATTENS, "flattens"), (GROWS, "grows_over_longer")]


@pytest.mark.parametrize("plan, missing", WANTS)
def test_what_an_engine_cannot_do(plan: planner.Plan, missing: str) -> None:
    for name in [name for _plan, name in WANTS]:
        abilities = replace(Abilities(), **{name: False})
        if name == missing:
            with pytest.raises(InUse, match="volume v: .+, which cannot be done through a running machine; stop the machine that uses it"):
                abilities.require_for(plan)
        else:
            abilities.require_for(plan)


def test_what_every_engine_can_do() -> None:
    nothing = Abilities(**dict.fromkeys([name for _plan, name in WANTS], False))
    nothing.require_for(NEITHER)
    nothing.require_for(planner.ensure_volume(volume(8, 8), DesiredVolume("v", size=24)))
    nothing.require_for(planner.create_snapshot(volume(8), DesiredSnapshot("s")))
    nothing.require_for(seeds.create(DesiredVolume("v", seed=2048), 2048))
    for plan, _name in WANTS:
        Abilities().require_for(plan)
