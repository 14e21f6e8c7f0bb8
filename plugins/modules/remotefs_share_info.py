#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Return shares with their mount options, capacity and contents."""
from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_share_info
short_description: Return which shares are mounted, how much space they have, and what they hold
version_added: 1.0.0
description:
  - Returns shares with their source, path, options in force and capacity, as the kernel reports them.
  - Also returns what they hold. That are the sizes of all volumes together, what the file system can do, files that killed tasks left behind,
    and files that nobody on the share names. It only reads. It removes nothing.
  - A share that cannot be read is returned with RV(shares[].error_code) and RV(shares[].msg). The task does not fail because of it.
    The task waits O(timeout) seconds for a server that does not answer, and no longer, also if it stops while its contents are read.
author:
  - remotefs.storage contributors (@remotefs)
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.info
  - remotefs.storage.attributes.action_group_volumes
  - remotefs.storage.store.shares
options:
  contents:
    version_added: 1.1.0
    description:
      - Whether to read what the shares hold. It takes as long as M(remotefs.storage.remotefs_volume_info) takes.
      - With V(false), the task reads no volume, and the keys from RV(shares[].volumes) on are missing.
    type: bool
    default: true
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

- name: Shares that promise more than five times what they have
  ansible.builtin.debug:
    msg: "{{ item.src }} has volumes of {{ item.virtual }} bytes and a size of {{ item.total }}"
  loop: "{{ found.shares | selectattr('over_subscription', 'number') | selectattr('over_subscription', 'gt', 5) | list }}"
  loop_control:
    label: "{{ item.path }}"

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
      description: Its size in bytes. This key and the next four are null for a share that cannot be read.
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
    maintenance:
      description: Whether no new volumes are placed there. See O(remotefs.storage.remotefs_share#module:maintenance).
      type: bool
    volumes:
      description: How many volumes have a record or an C(.info) there.
      type: int
      returned: with O(contents)
    virtual:
      description:
        - The virtual sizes of all volumes together in bytes, as O(remotefs.storage.remotefs_volume#module:max_over_subscription_ratio) counts them.
          A file in RV(shares[].unknown) counts with its length, because it may be a volume that was not adopted yet.
      type: int
      returned: with O(contents)
    allocated:
      description: Bytes on the disk of the files of all volumes. Files in RV(shares[].unknown) do not count.
      type: int
      returned: with O(contents)
    held_by_snapshots:
      description:
        - Bytes on the disk that a removal of all snapshots gives back at most. These are the files of each volume that has snapshots, without the largest
          one. Less comes back where a machine has not written the same places again.
      type: int
      returned: with O(contents)
    over_subscription:
      description: How many times the size of the share its volumes have together. Null where the size is unknown.
      type: float
      returned: with O(contents)
      sample: 1.25
    leftovers:
      description:
        - Files of this collection that only a task needs while it runs, and files that a finished task was about to remove. Paths in the share.
        - A task that runs now has such files too. What a killed task left goes with the next task that changes the volume.
      type: list
      elements: str
      returned: with O(contents)
      sample: [.remotefs/tmp/db01~5c0f3e9a71d2]
    leftovers_allocated:
      description: Bytes on the disk of RV(shares[].leftovers).
      type: int
      returned: with O(contents)
    unknown:
      description:
        - What else lies in the directory of the share, and is named by no record, no C(.info) and no other file. A folder ends with a slash.
        - It is somebody's, and no task removes it. It may be a volume of Cinder without snapshots, which this collection has not adopted yet.
        - Folders in which servers show older states, such as C(.snapshot), and C(lost+found) are left out.
      type: list
      elements: str
      returned: with O(contents)
      sample: [README.txt, iso/]
    unknown_allocated:
      description: Bytes on the disk of RV(shares[].unknown). What folders contain does not count.
      type: int
      returned: with O(contents)
    locks:
      description:
        - Locks of tasks that are files on the share. Where the hosts do not see each other's kernel locks, as on SMB with C(nobrl), a task makes one for
          each volume that it changes. It stays if the host of the task dies.
        - A task that runs now has such files too. Null if the folder of the locks cannot be read.
      type: list
      elements: dict
      returned: with O(contents)
      contains:
        name: {description: 'The volume that is locked. What begins with C(@) is a lease or another part of the share.', type: str}
        host: {description: The host whose task holds it; null where the file names nobody., type: str}
        task: {description: The module that holds it; null where the file names nobody., type: str}
        since: {description: 'When it was taken, by the clock of that host (UTC); null where that cannot be read.', type: str}
        dead:
          description: Whether this host can prove that the task is gone. The next task on this host that needs the lock then removes it.
          type: bool
    abilities:
      description:
        - What the file system can do. Each is V(true), V(false), or null where nobody knows.
        - The first task that changes something on a share tries most of it out and keeps the answers on the share. Until then, the tables of file
          systems answer.
      type: dict
      returned: with O(contents)
      contains:
        locks_between_hosts:
          description: Tasks on other hosts see the locks of tasks on this host. From the table.
          type: bool
        in_use_seen:
          description: It can be seen whether another process, on this host or another one, has an image open. From the table.
          type: bool
        reflink:
          description: A full clone can share the blocks of its source. It then takes no time and no space.
          type: bool
        fallocate:
          description: Space can be reserved without writing zeros.
          type: bool
        holes:
          description: Blocks of a file that were never written take no space and can be skipped by readers.
          type: bool
        case_sensitive:
          description: Names that differ only in letter case are different files.
          type: bool
        modes:
          description: A file keeps the mode that it is given.
          type: bool
        acl:
          description: Files can have access control lists, of POSIX or of NFSv4.
          type: bool
    pool:
      description: The same figures in the terms that Cinder reports a pool in. Sizes are GiB.
      type: dict
      returned: with O(contents)
      contains:
        total_capacity_gb: {description: Size of the share., type: float}
        free_capacity_gb: {description: What can still be stored., type: float}
        provisioned_capacity_gb: {description: The virtual sizes of all volumes together., type: float}
        total_volumes: {description: 'How many volumes there are, with those that were not adopted yet.', type: int}
    contents_error:
      description: Why it cannot be told what the share holds, and what to do. The keys from RV(shares[].volumes) on are null then.
      type: str
      returned: with O(contents), if the user of the task may not read what lies there, or it cannot be read
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

from ..module_utils import arguments, errors


def main() -> None:
    """Run the module: one use case, one exit."""
    module = AnsibleModule(
        argument_spec={
            **arguments.SHARES,
            "contents": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    from ..module_utils.operations import shares as use_cases

    params = module.params
    try:
        shares = use_cases.describe_all(params["share"], params["mount_base"], params["fstab"], params["timeout"], params["contents"])
    except Exception as error:  # an unexpected exception also becomes a failure with a code
        known = errors.as_storage_error(error, "this task")
        module.fail_json(msg=str(known), error_code=known.error_code, shares=[], **known.details)
    module.exit_json(changed=False, shares=shares)


if __name__ == "__main__":
    main()
