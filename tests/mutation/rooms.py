# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tests are about which room: the quickest first, since the first one that fails ends the run of a mutant. Data, and nothing that runs."""

from __future__ import annotations

ENGINE = "tests/unit/apply/test_engine.py"
CHAINS, FENCING, MOVING = (f"tests/property/test_{name}.py" for name in ("chains", "fencing", "moving"))
ACCESS, BITMAPS, CLONES, COSTS, EXPORTING, FULL, IN_USE, LEAKS, LEASES, OUTLIVED, REFUSALS, REMOVAL, SEEDS, SENDING, VOLUMES = (
    f"tests/functional/test_{name}.py"
    for name in ("access", "bitmaps", "clones", "operation_costs", "exporting", "full_share", "in_use", "leaked_clusters", "leases", "outlived_records",
                 "refusals", "killed_removal", "seeds", "sending", "volumes")
)

LEASED = (LEASES, "tests/functional/test_lease_module.py", "tests/property/test_leases.py")

#: The rooms where data rests, of which the nightly sample is.
ROOMS: dict[str, tuple[str, ...]] = {
    "plan/planner.py": ("tests/unit/plan/test_planner.py", "tests/unit/plan/test_desired.py", VOLUMES, REFUSALS),
    "plan/merge.py": ("tests/unit/plan/test_merge.py", BITMAPS, CLONES, CHAINS),
    "plan/intent.py": ("tests/unit/plan/test_intent.py", "tests/unit/plan/test_plan.py", IN_USE, CLONES, SEEDS),
    "plan/retention.py": ("tests/unit/plan/test_retention.py", "tests/functional/test_retention.py"),
    "store/metadata/records.py": ("tests/unit/store/test_records.py", "tests/unit/store/test_formats.py", VOLUMES, OUTLIVED),
    "store/locks/lock.py": ("tests/unit/store/test_lock.py", "tests/unit/store/test_lock_children.py", f"{FULL}::test_a_lock_is_taken_on_a_full_share",
                            f"{FULL}::test_a_lock_that_cannot_be_made_gets_room"),
    "apply/executor.py": (ENGINE, REMOVAL, "tests/functional/test_2014.py", ACCESS, VOLUMES, CLONES, f"{FULL}::test_present_content_makes_room_for_a_revert",
                          FENCING, COSTS, SEEDS),
    "apply/recovery.py": ("tests/unit/apply", REMOVAL, IN_USE, FENCING),
    "apply/offline/session.py": ("tests/unit/apply/test_session.py", "tests/functional/test_2014.py", BITMAPS, ACCESS,
                                 "tests/functional/test_dropped_data.py", CLONES, REFUSALS, CHAINS, COSTS, SEEDS),
    "apply/offline/guard.py": ("tests/unit/apply/test_guard.py", ENGINE, IN_USE, REFUSALS, SEEDS),
    "apply/offline/viewing.py": (f"{EXPORTING}::test_views", EXPORTING),
    "apply/offline/exporting.py": (EXPORTING, SENDING),
    "images/leaving.py": (EXPORTING,),
    "store/volumes/ownership.py": ("tests/unit/store/test_ownership.py", OUTLIVED, CLONES, "tests/functional/test_dependents.py"),
    "store/qcow2/cluster_writer.py": ("tests/unit/store/test_cluster_writer.py", "tests/functional/test_2014.py", MOVING),
    "plan/leases.py": LEASED,
    "plan/seeds.py": (SEEDS,),
    "operations/leases.py": LEASED,
    "operations/lease_holding.py": LEASED,
    "operations/leaked_clusters.py": (LEAKS,),
    "operations/empty_overlays.py": ("tests/functional/test_empty_overlays.py",),
    "operations/share_parts.py": ("tests/functional/test_share_parts.py",),
    "store/metadata/leases.py": ("tests/unit/store/test_records.py", *LEASED),
    "store/qcow2/leaks.py": (LEAKS,),
    "images/iso9660.py": (SEEDS,),
    "store/qcow2/refcounts.py": ("tests/unit/store/test_refcounts.py", "tests/unit/store/test_cluster_writer.py", "tests/functional/test_2014.py",
                                 MOVING),
}
#: Those in which each survivor has its reason in survivors.toml. One that has none fails the run; in the other rooms it is told only, until
#: somebody has looked at all of theirs.
EXPLAINED = ("plan/planner.py", "plan/merge.py", "plan/intent.py", "plan/retention.py", "apply/executor.py", "apply/recovery.py",
             "apply/offline/guard.py", "apply/offline/session.py", "store/metadata/records.py", "store/locks/lock.py", "store/volumes/ownership.py",
             "store/qcow2/cluster_writer.py", "store/qcow2/refcounts.py")

#: What else can be mutated by name, by the beginning of its path.
OTHERS = {
    "plan/": ("tests/unit/plan", VOLUMES, CLONES, REFUSALS, CHAINS),
    "apply/live/": ("tests/live/test_create.py", "tests/live/test_planted.py", "tests/hostile/test_monitor.py", "tests/live/test_refusals.py",
                    "tests/live/test_machines_of_others.py", "tests/live/test_delete.py", "tests/live/test_groups.py"),
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
