# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tests are about which room: the quickest first, since the first one that fails ends the run of a mutant. Data, and nothing that runs."""

from __future__ import annotations

ENGINE = "tests/unit/apply/test_engine.py"
FULL = "tests/functional/test_full_share.py::test_a_lock"
CHAINS = "tests/property/test_chains.py"
FENCING = "tests/property/test_fencing.py"
MOVING = "tests/property/test_moving.py"
BITMAPS, CLONES, REFUSALS, VOLUMES = (f"tests/functional/test_{name}.py" for name in ("bitmaps", "clones", "refusals", "volumes"))

#: The rooms where data rests. The nightly sample is of these, and each survivor has its reason in survivors.toml.
ROOMS: dict[str, tuple[str, ...]] = {
    "plan/planner.py": ("tests/unit/plan/test_planner.py", "tests/unit/plan/test_desired.py", VOLUMES, REFUSALS),
    "plan/merge.py": ("tests/unit/plan/test_merge.py", BITMAPS, CLONES, CHAINS),
    "plan/intent.py": ("tests/unit/plan/test_intent.py", "tests/unit/plan/test_plan.py", "tests/functional/test_in_use.py", CLONES),
    "plan/retention.py": ("tests/unit/plan/test_retention.py", "tests/functional/test_retention.py"),
    "apply/executor.py": (ENGINE, "tests/functional/test_killed_removal.py", "tests/functional/test_2014.py", VOLUMES, CLONES, FENCING,
                          "tests/functional/test_operation_costs.py"),
    "apply/recovery.py": ("tests/unit/apply", "tests/functional/test_killed_removal.py", "tests/functional/test_in_use.py", FENCING),
    "apply/offline/session.py": ("tests/functional/test_2014.py", BITMAPS, "tests/functional/test_access.py", "tests/functional/test_dropped_data.py", CLONES,
                                 REFUSALS, CHAINS, "tests/functional/test_operation_costs.py"),
    "apply/offline/guard.py": (ENGINE, "tests/functional/test_in_use.py", REFUSALS),
    "store/metadata/records.py": ("tests/unit/store/test_records.py", "tests/unit/store/test_formats.py", VOLUMES,
                                  "tests/functional/test_outlived_records.py", REFUSALS),
    "store/volumes/ownership.py": ("tests/functional/test_outlived_records.py", CLONES, "tests/functional/test_dependents.py"),
    "store/locks/lock.py": ("tests/unit/store/test_lock.py", "tests/unit/store/test_lock_children.py", f"{FULL}_is_taken_on_a_full_share",
                            f"{FULL}_that_cannot_be_made_gets_room"),
    "store/qcow2/cluster_writer.py": ("tests/functional/test_2014.py", MOVING),
    "store/qcow2/refcounts.py": ("tests/functional/test_2014.py", MOVING),
}

#: What else can be mutated by name, by the beginning of its path. Nobody has looked at all survivors there.
OTHERS = {
    "plan/": ("tests/unit/plan", VOLUMES, CLONES, REFUSALS, CHAINS),
    "apply/": ("tests/unit/apply", "tests/functional/test_2014.py", VOLUMES, CLONES, REFUSALS, CHAINS, FENCING),
    "store/": ("tests/unit/store", VOLUMES, CLONES, REFUSALS, CHAINS),
}


def tests_of(room: str) -> tuple[str, ...]:
    """:raises KeyError: nobody said which tests are about it."""
    if room in ROOMS:
        return ROOMS[room]
    for folder, tests in OTHERS.items():
        if room.startswith(folder):
            return tests
    raise KeyError(room)
