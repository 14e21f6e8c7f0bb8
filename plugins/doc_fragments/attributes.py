# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes that every module of the collection has."""
from __future__ import annotations


class ModuleDocFragment:
    """The attributes; each constant is a fragment of its own."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return the same RV(ignore:changed) and the same steps without touching the target.
  diff_mode:
    description: Returns what changes (in C(check_mode), what would change) when in diff mode.
  idempotent:
    description: A second run with the same parameters changes nothing and returns RV(ignore:changed=false).
  platform:
    description: Target operating systems.
    support: full
    platforms: posix
"""

    # What a module that changes something supports. A module extends the plain fragment and either this one or INFO.
    CHANGE = r"""
options: {}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
"""

    # What a module that only reads supports.
    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    details: It changes nothing in any mode.
  diff_mode:
    support: N/A
    details: It changes nothing, so there is no difference to show.
  idempotent:
    support: full
"""

    ACTION_GROUP = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/remotefs.storage.remotefs) in C(module_defaults) to set defaults for all modules of this collection.
    support: full
    membership:
      - remotefs.storage.remotefs
"""

    # The first is for a module that takes a share, the second for a module that changes volumes. Extend one of these instead of ACTION_GROUP.
    ACTION_GROUP_VOLUMES = r"""
options: {}
attributes:
  action_group:
    description:
      - Use C(group/remotefs.storage.volumes) in C(module_defaults) to set O(ignore:share) and O(ignore:mount_base) for all modules that take a share.
      - C(group/remotefs.storage.remotefs) has all modules of this collection.
    support: full
    membership:
      - remotefs.storage.remotefs
      - remotefs.storage.volumes
"""

    ACTION_GROUP_CHANGES = r"""
options: {}
attributes:
  action_group:
    description:
      - Use C(group/remotefs.storage.volumes) in C(module_defaults) to set O(ignore:share) and O(ignore:mount_base) for all modules that take a share,
        and C(group/remotefs.storage.changes) for the common options of all modules that change volumes, such as O(ignore:lock_timeout).
      - C(group/remotefs.storage.remotefs) has all modules of this collection.
    support: full
    membership:
      - remotefs.storage.remotefs
      - remotefs.storage.volumes
      - remotefs.storage.changes
"""
