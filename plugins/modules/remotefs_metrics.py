#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write figures of shares, volumes and leases as a text file for Prometheus."""
from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_metrics
short_description: Write figures of shares, volumes and leases for Prometheus
version_added: 1.1.0
description:
  - Writes a text file in the exposition format of Prometheus. The textfile collector of node_exporter reads such files.
  - The file is replaced in one step, so no reader sees a part of it.
  - A share that cannot be read has the figure C(remotefs_share_up) with the value 0, and no other. The file is written all the same, and a rule can alert.
  - The shares are only read.
author:
  - remotefs.storage contributors (@remotefs)
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group_volumes
  - remotefs.storage.store.shares
options:
  dest:
    description: The file. Its directory must be there, and nothing else than a file may be in its place. The textfile collector reads names that end with
      C(.prom).
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

import time

from ..module_utils import arguments, changes, errors


def _result(params: dict, check_mode: bool) -> dict:
    from ..module_utils.operations import metrics

    mode = changes.parse_mode(params["mode"])
    found = metrics.of_shares(params["share"], params["mount_base"], params["fstab"], params["timeout"], params["volumes"], time.time())
    return metrics.write(found, params["dest"], 0o644 if mode is None else mode, check_mode)


def main() -> None:
    """Run the module: one use case, one exit."""
    spec = {
        **arguments.SHARES,
        "dest": {"type": "path", "required": True},
        "mode": {"type": "str", "default": "0644"},
        "volumes": {"type": "bool", "default": True},
    }
    module = changes.make_module(spec)
    try:
        result = _result(module.params, module.check_mode)
    except Exception as error:  # one that nobody foresaw is a failure with a code too
        result = changes.failure(errors.as_storage_error(error, "this task"))
    changes.leave(module, result, module.params["dest"])


if __name__ == "__main__":
    main()
