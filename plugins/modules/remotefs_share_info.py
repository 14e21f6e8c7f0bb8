#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Return shares with their mount options and capacity."""
from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_share_info
short_description: Return which shares are mounted and how much space they have
version_added: 1.0.0
description:
  - Returns shares with their source, path, options in force and capacity, as the kernel reports them.
  - A share that cannot be read is returned with RV(shares[].error_code) and RV(shares[].msg). The task does not fail because of it.
    The task waits O(timeout) seconds for a server that does not answer, and no longer.
author:
  - remotefs.storage contributors (@remotefs)
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.info
  - remotefs.storage.attributes.action_group_volumes
options:
  share:
    description:
      - The source of a mounted share, or an absolute directory, or a list of them. Commas in a text belong to the name.
      - Without this option, the module returns every mount of a network file system that this collection supports, and every mount under O(mount_base).
    type: raw
  mount_base:
    description: The directory under which shares are mounted by default. A directory below it is a share only while something is mounted there.
    type: path
    default: /var/lib/remotefs/mnt
  fstab:
    description: The administrator's table of mounts. A directory that it names as a mount point is a share only while something is mounted there.
    type: path
    default: /etc/fstab
  timeout:
    description: Seconds that one share may take to answer.
    type: int
    default: 10
seealso:
  - module: remotefs.storage.remotefs_share
"""

EXAMPLES = r"""
- name: Every mounted share
  remotefs.storage.remotefs_share_info:
  register: found

- name: Shares that are nearly full
  ansible.builtin.debug:
    msg: "{{ item.src }} has {{ item.free }} bytes left"
  loop: "{{ found.shares | selectattr('error_code', 'undefined') | list }}"
  loop_control:
    label: "{{ item.path }}"
  when: item.free < item.total * 0.1

- name: Two shares by name
  remotefs.storage.remotefs_share_info:
    share:
      - nas1:/vols
      - /srv/volumes
"""

RETURN = r"""
shares:
  description: The shares, in the order of O(share), or of the mount table.
  returned: always
  type: list
  elements: dict
  contains:
    src:
      description: The source, as given in O(share) or as the mount table shows it.
      type: str
      sample: nas1:/vols
    path:
      description: The directory where it is mounted. Null if it is not mounted and O(share) has its source.
      type: str
      sample: /var/lib/remotefs/mnt/15e1e4a2e0c67b0d4ae2ac2f33eb35e8
    fstype:
      description:
        - The file system. Null if it is not mounted.
        - For a directory on a file system that is neither supported nor known to be local, it is the type that the kernel shows,
          such as V(9p) or V(fuse.rclone).
      type: str
      sample: nfs
    opts:
      description: The options in force, without secrets.
      type: str
      sample: rw,relatime,vers=4.2,hard
    mounted:
      description: Whether it is mounted. For a plain directory, whether it exists.
      type: bool
    total:
      description: Its size in bytes. This key and the next three are null for a share that cannot be read.
      type: int
    free:
      description: Bytes that can still be stored.
      type: int
    used:
      description: Bytes in use.
      type: int
    writable:
      description: Whether the user of the task may write to it, as far as the kernel and the server report that before a write.
      type: bool
    error_code:
      description: Why it cannot be read, as a code for programs, such as C(share_not_mounted).
      type: str
      returned: for a share that cannot be read
    msg:
      description: Why it cannot be read, and what to do.
      type: str
      returned: for a share that cannot be read
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.errors import as_storage_error
from ..module_utils.model import MOUNT_BASE
from ..module_utils.mounts import tables


def main() -> None:
    """Run the module: one use case, one exit."""
    module = AnsibleModule(
        argument_spec={
            "share": {"type": "raw"},
            "mount_base": {"type": "path", "default": MOUNT_BASE},
            "fstab": {"type": "path", "default": tables.FSTAB},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    from ..module_utils.operations import shares as use_cases

    params = module.params
    try:
        shares = use_cases.describe_all(params["share"], params["mount_base"], params["fstab"], params["timeout"])
    except Exception as error:  # an unexpected exception also becomes a failure with a code
        known = as_storage_error(error, "this task")
        module.fail_json(msg=str(known), error_code=known.error_code, shares=[], **known.details)
    module.exit_json(changed=False, shares=shares)


if __name__ == "__main__":
    main()
