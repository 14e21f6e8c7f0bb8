# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many examples a property is tried with, where real programs take part in each: a sample in a usual run, more at night."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_PROFILE = os.environ.get("HYPOTHESIS_PROFILE")
_TIMES = {"fast": 1.0, "full": 2.0}.get(_PROFILE or "", 0.35)
FAST = _PROFILE == "fast"


def property_settings(examples: int) -> settings:
    """:param examples: of a fast run. A usual run tries a third of them, and a night twice as many."""
    return settings(max_examples=round(examples * _TIMES), deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
