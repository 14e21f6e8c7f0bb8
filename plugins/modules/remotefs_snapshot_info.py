#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the snapshots of volumes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_snapshot_info
short_description: Read the snapshots of volumes on a share
version_added: 1.0.0
description:
  - Reads the snapshots of one, some or all volumes of a share, without starting a program and without a lock that blocks others.
  - A volume that cannot be read comes under RV(volumes) with its error_code and msg; the task does not fail for it.
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
  volumes:
    description: Names or globs of the volumes; none means all.
    type: list
    elements: str
  names:
    description: Names or globs of the snapshots; none means all.
    type: list
    elements: str
seealso:
  - module: remotefs.storage.remotefs_snapshot
  - module: remotefs.storage.remotefs_volume_info
"""

EXAMPLES = r"""
- name: Daily snapshots of one volume
  remotefs.storage.remotefs_snapshot_info:
    share: /srv/volumes
    volumes: [db01]
    names: ["daily-*"]
  register: found

- name: The newest of them
  ansible.builtin.debug:
    msg: "{{ (found.snapshots | last).name }}"
  when: found.snapshots | length > 0

- name: Those that retention leaves alone
  ansible.builtin.debug:
    msg: "{{ found.snapshots | selectattr('protected') | map(attribute='name') }}"
"""

RETURN = r"""
snapshots:
  description: The snapshots, by volume and oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    volume: {description: The volume., type: str, returned: always}
    share: {description: 'The source of its share as given; for a directory, what is mounted there, or the directory.', type: str, returned: always}
    name: {description: The snapshot., type: str, returned: always}
    file: {description: The overlay that it made; its backing file shows the snapshot's data., type: str, returned: always}
    size: {description: Virtual size of the snapshot's data in bytes., type: int, returned: always}
    created: {description: 'When it was taken (UTC); null where that is not recorded.', type: str, returned: always}
    description: {description: The text kept with it., type: str, returned: always}
    labels: {description: The names and values kept with it., type: dict, returned: always}
    expires: {description: 'When it expires (UTC); null where it does not.', type: str, returned: always}
    protected: {description: 'Whether it is protected from retention (O(remotefs.storage.remotefs_snapshot#module:keep)).', type: bool, returned: always}
volumes:
  description: Volumes that cannot be read, with error_code and msg.
  returned: success
  type: list
  elements: dict
error_code:
  description: The kind of failure, when a share itself cannot be read.
  returned: failure
  type: str
  sample: share_not_mounted
"""

import fnmatch

from ..module_utils import arguments


def _read(params: dict, warn) -> dict:
    def shape(volume: dict) -> dict:
        return {"volumes": [volume]} if "error_code" in volume else {"snapshots": _snapshots(volume, params["names"] or [])}

    return arguments.read_volumes(params, params["volumes"], shape, ["snapshots", "volumes"], warn)


def _snapshots(volume: dict, globs: list) -> list:
    images = {image["file"]: image for image in volume["chain"]}
    wanted = [one for one in volume["snapshots"] if not globs or any(fnmatch.fnmatchcase(one["name"], glob) for glob in globs)]
    return [
        {"volume": volume["name"], "share": volume["share"], "size": images[images[one["file"]]["backing_file"]]["size"], **one}
        for one in wanted
    ]


def main() -> None:
    globs = {"type": "list", "elements": "str"}
    arguments.run_info({"volumes": globs, "names": globs}, _read)


if __name__ == "__main__":
    main()
