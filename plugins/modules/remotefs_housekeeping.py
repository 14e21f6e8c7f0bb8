#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove what killed tasks left on shares."""
from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_housekeeping
short_description: Remove files that killed tasks left on a share
version_added: 1.0.0
description:
  - Removes leftovers. A leftover is a temporary file of this collection, a part of an image that nobody has gone on with, or a file that a finished
    task was about to remove when it was killed. M(remotefs.storage.remotefs_share_info) tells them.
  - A leftover goes only if it is older than O(grace), if no task works at it, and if no process of this host has it open. All others stay, and the
    result says why.
  - Volumes do not depend on this. The next task that changes a volume removes what a killed task left of it. This module is for volumes that nobody
    changes any more, and for names that no volume ever got.
  - Nothing else is removed. Files that nobody on the share names are somebody's.
author:
  - remotefs.storage contributors (@remotefs)
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group_volumes
options:
  share:
    description:
      - The source of a mounted share, or an absolute directory, or a list of them. Commas in a text belong to the name.
    type: raw
    required: true
  mount_base:
    description: The directory under which shares are mounted by default. A directory below it is a share only while something is mounted there.
    type: path
    default: /var/lib/remotefs/mnt
  grace:
    description:
      - How old a leftover must be. A number with V(s), V(m), V(h), V(d) or V(w).
      - The clock of the share counts. Check mode writes nothing there, so it takes the clock of its host, and says so.
    type: str
    default: 1d
  lock_timeout:
    description: Seconds to wait for another task that reads the clock of the share. Locks of volumes are not waited for.
    type: float
    default: 90
  break_lock:
    description: Take locks away from a host that is known to be dead. See M(remotefs.storage.remotefs_volume).
    type: bool
    default: false
seealso:
  - module: remotefs.storage.remotefs_share_info
"""

EXAMPLES = r"""
- name: What would go, and what stays
  remotefs.storage.remotefs_housekeeping:
    share: /srv/volumes
  check_mode: true
  register: found

- name: Tell it
  ansible.builtin.debug:
    msg: "{{ found.removed | length }} files go, {{ found.kept | length }} stay"

- name: Remove what is older than three days
  remotefs.storage.remotefs_housekeeping:
    share: /srv/volumes
    grace: 3d
"""

RETURN = r"""
removed:
  description: The files that went, or in check mode would go.
  returned: always
  type: list
  elements: dict
  contains:
    share:
      description: The share.
      type: str
      sample: nas1:/vols
    file:
      description: The path in the share.
      type: str
      sample: .remotefs/tmp/db01~5c0f3e9a71d2
    bytes:
      description: Bytes on the disk.
      type: int
kept:
  description: The leftovers that stay.
  returned: always
  type: list
  elements: dict
  contains:
    share:
      description: The share.
      type: str
    file:
      description: The path in the share.
      type: str
    bytes:
      description: Bytes on the disk.
      type: int
    why:
      description: Why it stays.
      type: str
      sample: a task works at it
freed:
  description: Bytes on the disk of all files in RV(removed).
  returned: always
  type: int
actions:
  description: The steps that were done, in order. In check mode, the steps that would be done.
  returned: always
  type: list
  elements: dict
  sample:
    - {step: unlink, share: "nas1:/vols", file: .remotefs/tmp/db01~5c0f3e9a71d2, bytes: 196624}
error_code:
  description: Why the task failed, as a code for programs, such as C(share_not_mounted).
  returned: failure
  type: str
"""

from ..module_utils import arguments, changes, errors


def _result(params: dict, options, finder) -> dict:
    from ..module_utils.operations import leftovers, share_contents
    from ..module_utils.plan.retention import parse_duration

    grace = parse_duration(params["grace"], "option grace")
    candidates = finder.find(params["share"], params["mount_base"])
    candidates.require_all()
    return leftovers.clean_all(((share, share_contents.find_leftovers(share)) for share in candidates.shares), grace, options)


def main() -> None:
    """Run the module: one use case, one exit."""
    spec = {
        "share": {**arguments.STORE["share"], "required": True},
        "mount_base": arguments.STORE["mount_base"],
        "grace": {"type": "str", "default": "1d"},
        "lock_timeout": changes.CHANGE["lock_timeout"],
        "break_lock": changes.CHANGE["break_lock"],
    }
    module = changes.make_module(spec)
    try:
        from ..module_utils.operations.candidates import Finder

        result = _result(module.params, changes.plain_options(module), Finder())
    except Exception as error:  # one that nobody foresaw is a failure with a code too
        result = changes.failure(errors.as_storage_error(error, "this task"))
    changes.leave(module, result, "leftovers")


if __name__ == "__main__":
    main()
