#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write figures of shares, volumes and leases as a text file for Prometheus."""
from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_metrics
short_description: Write figures of shares, volumes and leases for Prometheus
version_added: 1.0.0
description:
  - Writes a text file in the exposition format of Prometheus. The textfile collector of node_exporter reads such files.
  - The file is replaced in one step, so no reader sees a part of it.
  - A share that cannot be read has the figure C(remotefs_share_up) with the value 0, and no other. So the file is written in any case, and a rule can alert.
  - The shares are only read.
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
      - Without this option, it is every mount of a network file system that this collection supports, and every mount under O(mount_base).
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
  dest:
    description: The file. Its directory must be there. The textfile collector reads names that end with C(.prom).
    type: path
    required: true
  mode:
    description: The mode of a new file. A file that is there keeps its mode and its owner.
    type: str
    default: '0644'
  volumes:
    description: Whether each volume has figures of its own. With V(false) there are only those of shares and leases.
    type: bool
    default: true
seealso:
  - module: remotefs.storage.remotefs_share_info
"""

EXAMPLES = r"""
- name: Figures of a share, for the textfile collector
  remotefs.storage.remotefs_metrics:
    share: /srv/volumes
    dest: /var/lib/prometheus/node-exporter/remotefs.prom
"""

RETURN = r"""
changed:
  description:
    - Whether a figure has changed since the file was written, besides free space and what is told of growth. The file is written in any case, because
      it tells when that was.
  returned: always
  type: bool
dest:
  description: The file.
  returned: success
  type: str
  sample: /var/lib/prometheus/node-exporter/remotefs.prom
samples:
  description: How many values it has.
  returned: success
  type: int
unreadable:
  description: The shares that could not be read.
  returned: success
  type: list
  elements: str
actions:
  description: The step that was done. In check mode, the step that would be done.
  returned: always
  type: list
  elements: dict
  sample:
    - {step: write_metrics, file: /var/lib/prometheus/node-exporter/remotefs.prom}
error_code:
  description: Why the task failed, as a code for programs.
  returned: failure
  type: str
"""

import os
import stat
import time

from ..module_utils import changes
from ..module_utils.errors import as_storage_error
from ..module_utils.model import MOUNT_BASE
from ..module_utils.mounts import tables


def _run(params: dict, check_mode: bool) -> dict:
    from ..module_utils.mounts.host_files import replace_file
    from ..module_utils.operations import metrics

    mode = changes.parse_mode(params["mode"])
    found = metrics.of_shares(params["share"], params["mount_base"], params["fstab"], params["timeout"], params["volumes"], time.time())
    text, before = metrics.text(found), _content(params["dest"])
    if not check_mode:
        replace_file(params["dest"], text.encode("utf-8"), 0o644 if mode is None else mode)
    figures = metrics.lasting(text)
    return {
        "changed": before is None or metrics.lasting(before) != figures,
        "dest": params["dest"],
        "samples": len(found),
        "unreadable": metrics.unreadable(found),
        "actions": [{"step": "write_metrics", "file": params["dest"]}],
        "diff": {"before": metrics.lasting(before or ""), "after": figures, "before_header": params["dest"], "after_header": params["dest"]},
    }


def _content(path: str) -> str | None:
    """What a file has; None where there is none that can be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, encoding="utf-8", errors="replace") as stream:
            return stream.read() if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except OSError:
        return None


def main() -> None:
    """Run the module: one use case, one exit."""
    spec = {
        "share": {"type": "raw"},
        "mount_base": {"type": "path", "default": MOUNT_BASE},
        "fstab": {"type": "path", "default": tables.FSTAB},
        "timeout": {"type": "int", "default": 10},
        "dest": {"type": "path", "required": True},
        "mode": {"type": "str", "default": "0644"},
        "volumes": {"type": "bool", "default": True},
    }
    module = changes.make_module(spec)
    try:
        result = _run(module.params, module.check_mode)
    except Exception as error:  # one that nobody foresaw is a failure with a code too
        known = as_storage_error(error, "this task")
        module.fail_json(msg=str(known), error_code=known.error_code, actions=[], **known.details)
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
