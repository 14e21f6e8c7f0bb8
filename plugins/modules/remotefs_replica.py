#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep a second copy of volumes on another share, with their snapshots."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_replica
short_description: Keep copies of volumes and their snapshots on another share
version_added: 1.1.0
description:
  - Makes a volume on another share that has the same snapshots as its source, and keeps it up. Of each snapshot only what differs from the
    one before is sent, however large the volume is.
  - The replica is an ordinary volume. It shows its newest snapshot, and can be cloned, exported, or used in the place of its source.
  - Snapshots are sent, not the present of the source. Take one first with M(remotefs.storage.remotefs_snapshot). The source may be in use.
  - Retention is each side's own. A snapshot that went on the source stays on the replica until that side deletes it.
  - Every snapshot is compared with its source before it has a name. An interrupted task leaves nothing that counts, and the next one goes on
    with the snapshot at which it was.
author:
  - remotefs.storage contributors (@remotefs)
requirements:
  - qemu-img 7.2 or newer (package qemu-utils) for sources that are not plain, such as compressed ones
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group_changes
  - remotefs.storage.store
  - remotefs.storage.store.change
  - remotefs.storage.store.many
options:
  volume:
    description: The source.
    type: str
  to:
    description:
      - The share of the replica, as O(share) is given. It is locked for changes, and O(share) for reading. A lock is a file on the share, so that both
        must be writable.
    type: str
  name:
    description: The name of the replica. By default it is that of the source.
    type: str
  match:
    description: A glob for the names of the snapshots that are sent. Others are skipped, and their changes come with the next one that matches.
    type: str
    default: "*"
  verify:
    description:
      - V(sent) reads what was sent from the replica again and compares it.
      - V(all) also compares every snapshot that both sides have, and reads each file of both sides once. Files of snapshots that only the replica
        has are compared with the checksums that were recorded of them. Where there is none, it is recorded.
      - V(none) compares nothing.
    type: str
    choices: [sent, all, none]
    default: sent
  discard:
    description:
      - Whether to drop what is in the way on the replica. That is what somebody has written to it, snapshots that were made there, and a received
        snapshot whose name the source has given to a new one. Otherwise it is a C(conflict). No other received snapshot is dropped.
    type: bool
    default: false
  max_chain:
    description: How many files the chain of the replica may have.
    type: int
    default: 64
  state:
    description:
      - V(present) sends what the replica lacks.
      - V(verified) changes nothing. It compares every snapshot that both sides have. If one differs, the task fails with C(verify_failed), which names
        the snapshot, the files and the first byte.
      - It compares files of snapshots that only the replica has with their checksums, too. A warning names those of which none is recorded.
    type: str
    choices: [present, verified]
    default: present
  volumes:
    description: Several replicas in one task. Each item takes the options of one, and the task's own are its defaults.
    type: list
    elements: dict
    suboptions:
      volume: {description: See O(volume)., type: str}
      share: {description: See O(share)., type: raw}
      mount_base: {description: See O(mount_base)., type: path}
      to: {description: See O(to)., type: str}
      name: {description: See O(name)., type: str}
      match: {description: See O(match)., type: str}
      verify: {description: See O(verify)., type: str, choices: [sent, all, none]}
      discard: {description: See O(discard)., type: bool}
      max_chain: {description: See O(max_chain)., type: int}
      state: {description: See O(state)., type: str, choices: [present, verified]}
notes:
  - Snapshots are known by an identity that is recorded with them, not by their names. It holds only as long as nobody else has worked on them.
    Where it is lost, such as after OpenStack Cinder or a revert, snapshots of the same name are compared and, if they are the same, taken for one.
  - Snapshots that are older than the newest one that both sides have are never sent.
  - C(expires) and C(protected) are not sent. Labels and descriptions are sent with the snapshot, and not again.
  - See docs/replicas.md for a nightly copy, a restore, and what happens after a crash.
seealso:
  - module: remotefs.storage.remotefs_snapshot
  - module: remotefs.storage.remotefs_volume
"""

EXAMPLES = r"""
- name: Take a snapshot of the day
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    name: "nightly-{{ now(utc=true, fmt='%Y-%m-%d') }}"
    keep: {match: nightly-*, last: 7}

- name: Send it to the second share, which keeps more of them
  remotefs.storage.remotefs_replica:
    share: /srv/volumes
    volume: db01
    to: /srv/backup
  register: replica

- name: Say what was sent
  ansible.builtin.debug:
    msg: "{{ replica.points.sent | length }} snapshots, {{ replica.sent | human_readable }}"

- name: Keep a month of them there
  remotefs.storage.remotefs_snapshot:
    share: /srv/backup
    volume: db01
    keep: {match: nightly-*, daily: 31}

- name: Compare every snapshot that both sides have
  remotefs.storage.remotefs_replica:
    share: /srv/volumes
    volume: db01
    to: /srv/backup
    state: verified
"""

RETURN = r"""
volume:
  description: The replica as it is afterwards. Sizes are bytes.
  returned: success, without O(volumes)
  type: dict
  contains: &volume
    name: {description: Its name., type: str, returned: always}
    share: {description: 'The source of its share as given; for a directory, what is mounted there, or the directory.', type: str, returned: always}
    mountpoint: {description: The directory of the share., type: str, returned: always}
    path: {description: 'The active image, which a virtual machine must open.', type: str, returned: always}
    format:
      description: Format of the active image; null where nothing records it, and in check mode of a volume that an earlier task is assumed to make.
      type: str
      returned: always
    base_format: {description: 'Format of the file at the bottom of the chain; null as C(format) is.', type: str, returned: always}
    size: {description: 'Virtual size; in check mode null where it follows from a volume that does not exist yet.', type: int, returned: always}
    allocated: {description: What all its own files take on disk., type: int, returned: always}
    snapshots:
      description: 'Its snapshots, oldest first: name, file, created, description, labels, protected and expires.'
      type: list
      elements: dict
      returned: always
    stale:
      description:
        - Entries of C(.info) whose file is no overlay of the chain, as OpenStack Cinder leaves some behind; each has C(name) and C(file).
        - They are no snapshots. M(remotefs.storage.remotefs_snapshot) with V(state=absent) takes one away, and the removal of the volume all.
      type: list
      elements: dict
      returned: always
    chain:
      description: 'Its files, active first: file, format, backing_file, size and allocated. Of a linked clone it ends with files of its parent.'
      type: list
      elements: dict
      returned: always
    created: {description: 'When it was made (UTC); null where nobody recorded it, such as of an adopted volume.', type: str, returned: always}
    description: {description: The text kept with it., type: str, returned: always}
    labels: {description: The names and values kept with it., type: dict, returned: always}
    lease: {description: The id of the lease that it was made under; null where it was made without one., type: str, returned: always}
    replica: {description: Whether it was made as a replica., type: bool, returned: always}
    parent: {description: 'What a linked clone rests on: volume and snapshot. Null for a volume that rests on no other.', type: dict, returned: always}
    dependents:
      description: 'What rests on it: volume, a linked clone or the name of a file that belongs to none, and snapshot of this one.'
      type: list
      elements: dict
      returned: always
    in_use: {description: Whether somebody has it open; null where the file system cannot tell., type: bool, returned: always}
    pending:
      description:
        - 'What an interrupted task left to be finished: operation, started, and the snapshots whose data may be damaged, or is not certain yet,
          until then.'
        - C(attachment) names the monitor of the machine that had the volume open, if one had.
      type: dict
      returned: always
    connection:
      description:
        - What a virtualization host needs to attach it, in the form that OpenStack's os-brick takes. For a directory below a mount C(export) is the
          mount's source, and C(name) leads to the file in it. C(options) are words of a mount command, or null.
        - A driver type C(local) is a file of this host, C(device_path).
      type: dict
      returned: always
  sample:
    name: db01
    share: /srv/volumes
    mountpoint: /srv/volumes
    path: /srv/volumes/db01
    format: raw
    base_format: raw
    size: 10737418240
    allocated: 0
    snapshots: []
    stale: []
    chain: [{file: db01, format: raw, backing_file: null, size: 10737418240, allocated: 0}]
    created: '2026-11-22T14:40:00Z'
    description: ''
    labels: {}
    parent: null
    dependents: []
    in_use: false
    pending: null
    connection:
      driver_volume_type: local
      data: {export: /srv/volumes, name: db01, format: raw, options: null, device_path: /srv/volumes/db01}
      mount_point_base: /var/lib/remotefs/mnt
volumes:
  description: All replicas of a bulk task that exist afterwards.
  returned: with O(volumes)
  type: list
  elements: dict
results:
  description:
    - 'One for each item, in its order: name (of the replica), volume_name (of the source), changed, failed, error_code, msg, actions, recovered,
      sent, points and volume.'
  returned: with O(volumes)
  type: list
  elements: dict
actions:
  description: The steps done, in order; in check mode those to be done, with bytes as an estimate.
  returned: without O(volumes)
  type: list
  elements: dict
  sample: [{step: receive, file: db01.monday-1, backing_file: db01, size: 10737418240, source: db01@tuesday, bytes: 1310720}]
recovered:
  description:
    - 'Interrupted operations that this task ended first: operation, outcome (finished, undone or discarded) and steps; where one was
      discarded also left, the files that it leaves.'
  returned: without O(volumes)
  type: list
  elements: dict
sent:
  description: Bytes of data that were written to the replica. In bulk it is in each of RV(results).
  returned: success, without O(volumes)
  type: int
  sample: 1310720
points:
  description:
    - 'Names of snapshots: those that were C(sent), in check mode those to be sent; those that both sides had (C(present)); those that only the
      replica has (C(kept)). In bulk it is in each of RV(results).'
  returned: success, without O(volumes)
  type: dict
  sample: {sent: [nightly-2026-11-27], present: [nightly-2026-11-26], kept: [nightly-2026-10-31]}
log:
  description: The steps with their times, each as O(log_path) has it.
  returned: when the task runs with C(-vvv)
  type: list
  elements: dict
cmd:
  description: The program that failed; RV(rc) is its exit status and RV(stderr) what it said. In bulk they stand in RV(results).
  returned: when a program failed
  type: str
rc:
  description: The exit status of the program that failed.
  returned: when a program failed
  type: int
stderr:
  description: What the program that failed said.
  returned: when a program failed
  type: str
traceback:
  description: Where a fault that nobody foresaw happened.
  returned: when there was one
  type: str
error_code:
  description: The kind of failure, see docs/errors.md.
  returned: failure
  type: str
  sample: conflict
"""

import functools
from typing import TYPE_CHECKING

from ..module_utils import arguments, changes, errors

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

_REPLICA = {
    "volume": {"type": "str"},
    "share": arguments.STORE["share"],
    "mount_base": arguments.STORE["mount_base"],
    "to": {"type": "str"},
    "name": {"type": "str"},
    "match": {"type": "str", "default": "*"},
    "verify": {"type": "str", "choices": ["sent", "all", "none"], "default": "sent"},
    "discard": {"type": "bool", "default": False},
    "max_chain": {"type": "int", "default": 64},
    "state": {"type": "str", "choices": ["present", "verified"], "default": "present"},
}


def _run(params: dict, options, finder):
    """Bring one replica to what its parameters say, or compare it."""
    from ..module_utils.operations import replicas

    changes.require(params, "volume", "share", "to")
    request = _request(params, finder)
    return replicas.verify(request, options) if params["state"] == "verified" else replicas.replicate(request, options)


def _request(params: dict, finder):
    from ..module_utils.operations.up_to_date import ReplicaRequest
    from ..module_utils.plan.desired import check_max_chain

    return ReplicaRequest(
        finder.find(params["share"], params["mount_base"]),
        params["volume"],
        finder.find(params["to"], params["mount_base"]),
        params["name"] or params["volume"],
        params["match"],
        params["verify"],
        params["discard"],
        check_max_chain(params["max_chain"]),
    )


def _run_many(module: AnsibleModule) -> None:
    from ..module_utils import results

    every = [changes.merged(given, module.params) for given in module.params["volumes"]]
    results.run_many(module, every, _item, "replicas", "volume", _claims)


def _claims(params: dict, finder) -> dict:
    """The replica on its share: no other item may say it otherwise."""
    found = finder.prepare(params["to"], params["mount_base"])
    shares = (*found.shares, *found.missing) if found else ()
    name = params["name"] or params["volume"]
    return {(share.path, name): f"volume {name}" for share in shares}


def _item(params: dict, finder):
    from ..module_utils import results
    from ..module_utils.operations.bulk import runner
    from ..module_utils.operations.options import LOOKED_AT

    volume, name = str(params["volume"]), str(params["name"] or params["volume"])
    for share in ("share", "to"):  # before threads start, because asking a server forks
        finder.prepare(params[share], params["mount_base"])

    def run(options):
        options.task.kept.setdefault(LOOKED_AT, {})
        return _run(params, options, finder)

    return runner.Item(name, frozenset([name]), run, reads=frozenset([volume]), keeps_lock=True, told=results.naming(volume))


def _run_one(module: AnsibleModule) -> dict:
    from ..module_utils.operations.candidates import Finder

    return changes.result(_run(module.params, changes.options(module), Finder()))


def main() -> None:
    items = {"type": "list", "elements": "dict", "options": arguments.without_defaults(_REPLICA)}
    spec = {**_REPLICA, **changes.CHANGE, **changes.MANY, "volumes": items}
    module = changes.make_module(spec, required_one_of=[("volume", "volumes")], mutually_exclusive=[("volume", "volumes")])
    try:
        if module.params["volumes"] is not None:
            _run_many(module)
        outcome = changes.run_watched(module, functools.partial(_run_one, module))
    except Exception as error:  # one that nobody foresaw is a failure with a code too
        outcome = changes.failure(errors.as_storage_error(error, "this task"))
    changes.leave(module, outcome, str(module.params["name"] or module.params["volume"]))


if __name__ == "__main__":
    main()
