#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the volumes of a share."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_volume_info
short_description: Read the volumes of a share
version_added: 1.0.0
description:
  - Reads the volumes of one or more shares from the headers of their files, without starting a program and without a lock that blocks others.
  - A volume that cannot be read comes with its RV(volumes[].error_code) and RV(volumes[].msg); the task does not fail for it.
  - A share with thousands of files is read by as many processes as the host has processors, at most eight.
  - A server of which nothing is heard for 30 seconds is given up, also in the middle of reading. The task fails with C(share_not_mounted).
author:
  - remotefs.storage contributors (@remotefs)
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.info
  - remotefs.storage.attributes.action_group_volumes
  - remotefs.storage.store
options:
  share:
    required: true
  names:
    description: Names or globs of the volumes to read; none means all.
    type: list
    elements: str
seealso:
  - module: remotefs.storage.remotefs_volume
  - module: remotefs.storage.remotefs_snapshot_info
"""

EXAMPLES = r"""
- name: All volumes for databases
  remotefs.storage.remotefs_volume_info:
    share: /srv/volumes
    names: ["db*"]
  register: found

- name: Their sizes
  ansible.builtin.debug:
    msg: "{{ found.volumes | items2dict(key_name='name', value_name='size') }}"
"""

RETURN = r"""
volumes:
  description:
    - The volumes, sorted by name, as RV(remotefs.storage.remotefs_volume#module:volume) has them.
    - One that cannot be read has RV(volumes[].name), RV(volumes[].share), RV(volumes[].error_code) and RV(volumes[].msg), and where a task
      on it was interrupted RV(volumes[].pending), but nothing else.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: Its name., type: str, returned: always}
    share: {description: 'The source of its share as given; for a directory, what is mounted there, or the directory.', type: str, returned: always}
    error_code: {description: 'Why it cannot be read, see docs/errors.md.', type: str, returned: when it cannot be read}
    msg: {description: What is wrong and what to do., type: str, returned: when it cannot be read}
    pending:
      description: What an interrupted task left to be ended; null where none did. Of a move also the copy that counts.
      type: dict
      returned: when it can be read or has such work
error_code:
  description: The kind of failure, when a share itself cannot be read.
  returned: failure
  type: str
  sample: share_not_mounted
"""

from ..module_utils import arguments


def main() -> None:
    arguments.run_info(
        {"names": {"type": "list", "elements": "str"}},
        lambda params, warn: arguments.read_volumes(params, params["names"], lambda volume: {"volumes": [volume]}, ["volumes"], warn),
    )


if __name__ == "__main__":
    main()
