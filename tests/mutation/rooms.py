# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tests are about which room: the quickest first, since the first one that fails ends the run of a mutant. Data, and nothing that runs."""

from __future__ import annotations

PLANS = ("tests/unit/plan",)
LIVES = ("tests/functional/test_refusals.py", "tests/functional/test_clones.py", "tests/functional/test_volumes.py", "tests/property/test_chains.py")

#: Survivors of these rooms were all looked at: each has a test, or its reason in survivors.toml. The nightly sample is of these.
ROOMS: dict[str, tuple[str, ...]] = {
    "plan/merge.py": ("tests/unit/plan/test_merge.py",), "plan/intent.py": ("tests/unit/plan/test_intent.py",), "plan/retention.py": ("tests/unit/plan/test_retention.py",),"plan/planner.py": ("tests/unit/plan",),"store/metadata/records.py": ("tests/unit/store/test_records.py", "tests/unit/store/test_formats.py"), "store/locks/lock.py":("tests/unit/store/test_lock.py",),"apply/executor.py":("tests/unit/apply",), 
}

#: What else can be mutated by name, by the beginning of its path.
OTHERS = {
    "plan/": (*PLANS, *LIVES),
    "apply/": ("tests/unit/apply", "tests/property/test_fencing.py", *LIVES),
    "store/": ("tests/unit/store", *LIVES),
}


def tests_of(room: str) -> tuple[str, ...]:
    """:raises KeyError: nobody said which tests are about it."""
    if room in ROOMS:
        return ROOMS[room]
    for folder, tests in OTHERS.items():
        if room.startswith(folder):
            return tests
    raise KeyError(room)
