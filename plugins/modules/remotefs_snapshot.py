#!/usr/bin/python
# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take, delete and revert to snapshots."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_snapshot
short_description: Manage snapshots of volumes on a share
version_added: 1.0.0
description:
  - Takes snapshots of volumes that nobody has open, deletes them at any position, and reverts volumes to them.
  - A snapshot is a new qcow2 overlay, which becomes the active image, the file that a virtual machine must open from then on; C(path) of RV(volume) names it.
  - Deleting a snapshot merges its overlay with the overlay's own backing file, with as few bytes as possible. Nothing is unlinked before what
    replaces it is durable.
  - A name is taken once and then is no change. For repeated runs use dated names, as in the examples.
author:
  - remotefs.storage contributors (@remotefs)
requirements:
  - qemu-img 7.2 or newer (package qemu-utils) for deleting snapshots; nothing else needs it
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group
  - remotefs.storage.store
  - remotefs.storage.store.change
options:
  volume:
    description: The volume.
    type: str
  volumes:
    description:
      - Several volumes of one share that get O(name) as one consistent group, all or none of them.
      - Only for O(state=present).
    type: list
    elements: str
  name:
    description:
      - The snapshot.
      - Letters, digits, V(.), V(_) and V(-), starting with a letter or digit; not V(active), V(info) or a name ending in V(.info).
    type: str
  names:
    description: With O(state=absent), several snapshots that go in one pass.
    type: list
    elements: str
  state:
    description:
      - V(present) takes the snapshot, V(absent) deletes it.
      - V(reverted) makes the volume's content the snapshot's. The volume keeps its size; what lies beyond the snapshot's reads as zeros.
    type: str
    choices: [present, absent, reverted]
    default: present
  discard_newer:
    description: With O(state=reverted), also lose the snapshots that are newer. Without it they block it.
    type: bool
    default: false
  description:
    description: A text that is kept with the snapshot.
    type: str
  labels:
    description: Names and values that are kept with the snapshot.
    type: dict
  snapshots:
    description:
      - Many independent snapshots in one task. Each item takes the options above, with the task's own as defaults.
      - All are attempted; the task fails at the end if any did.
    type: list
    elements: dict
    suboptions:
      share: {description: 'See O(share).', type: list, elements: str}
      mount_base: {description: 'See O(mount_base).', type: path}
      volume: {description: 'See O(volume).', type: str}
      name: {description: 'See O(name).', type: str}
      names: {description: 'See O(names).', type: list, elements: str}
      state: {description: 'See O(state).', type: str, choices: [present, absent, reverted]}
      discard_newer: {description: 'See O(discard_newer).', type: bool}
      description: {description: 'See O(description).', type: str}
      labels: {description: 'See O(labels).', type: dict}
seealso:
  - module: remotefs.storage.remotefs_volume
  - module: remotefs.storage.remotefs_snapshot_info
"""

EXAMPLES = r"""
- name: Take a snapshot before an upgrade
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    name: before-upgrade
    description: The state that was known to work
    labels:
      keep: manual

- name: Take one each day
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    name: "daily-{{ now(utc=true, fmt='%Y-%m-%d') }}"

- name: Two volumes at one point in time
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volumes: [db01, db01-log]
    name: consistent

- name: Go back
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    name: before-upgrade
    state: reverted
    discard_newer: true

- name: Delete several in one pass
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    names: [before-upgrade, consistent]
    state: absent

- name: Clean snapshots of many volumes, in one task
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    name: clean
    snapshots:
      - volume: db01
      - volume: db01-log
"""

RETURN = r"""
volume:
  description: The volume as it is afterwards, see RV(remotefs.storage.remotefs_volume#module:volume).
  returned: success, with O(volume)
  type: dict
volumes:
  description: The volumes of a group or of a bulk task.
  returned: with O(volumes) or O(snapshots)
  type: list
  elements: dict
results:
  description:
    - 'One for each item, in its order: name, changed, failed, error_code, msg, actions, recovered and volume.'
    - The name is the snapshot's for O(snapshots) and the volume's for a group.
  returned: with O(volumes) or O(snapshots)
  type: list
  elements: dict
actions:
  description: The steps done, in order; in check mode those to be done, with bytes as an estimate.
  returned: with O(volume)
  type: list
  elements: dict
  sample:
    - {step: create_overlay, file: db01.nightly, backing_file: db01, size: 10737418240}
    - {step: write_info, file: db01.info, active: db01.nightly, snapshots: {nightly: db01.nightly}}
recovered:
  description: 'Interrupted operations that this task finished or undid first: operation, outcome (finished, undone or discarded) and steps.'
  returned: with O(volume)
  type: list
  elements: dict
error_code:
  description: The kind of failure, see docs/errors.md.
  returned: failure
  type: str
  sample: has_newer_snapshots
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import arguments
from ..module_utils.errors import InvalidParameter, StorageError

_SNAPSHOT = {
    "share": arguments.STORE["share"],
    "mount_base": arguments.STORE["mount_base"],
    "volume": {"type": "str"},
    "name": {"type": "str"},
    "names": {"type": "list", "elements": "str"},
    "state": {"type": "str", "choices": ["present", "absent", "reverted"], "default": "present"},
    "discard_newer": {"type": "bool", "default": False},
    "description": {"type": "str"},
    "labels": {"type": "dict"},
}


def _check(params: dict) -> None:
    """:raises InvalidParameter: options that do not go together."""
    subject = f"snapshot task on volume {params['volume']}"
    if params["names"] and params["state"] != "absent":
        raise InvalidParameter(subject, "names goes with state: absent only", "use name, or a list of snapshots")
    if params["names"] and params["name"]:
        raise InvalidParameter(subject, "name and names do not go together", "give one of them")
    if params["state"] != "present" and (params["description"] is not None or params["labels"] is not None):
        raise InvalidParameter(subject, "description and labels go with state: present only", "leave them out")


def _run(params: dict, options, finder):
    """Bring one volume's snapshots to what the parameters say."""
    from ..module_utils.operations import snapshots

    _check(params)
    arguments.require(params, "volume", "share", *(() if params["names"] else ("name",)))
    candidates = finder.find(params["share"], params["mount_base"])
    if params["state"] == "absent":
        return snapshots.delete(candidates, params["volume"], params["names"] or [params["name"]], options)
    if params["state"] == "reverted":
        return snapshots.revert(candidates, params["volume"], params["name"], params["discard_newer"], options)
    return snapshots.take(snapshots.SnapshotRequest(candidates, params["volume"], _wish(params)), options)


def _wish(params: dict):
    from ..module_utils.plan.planner import SnapshotWish

    labels = params["labels"]
    return SnapshotWish(
        name=params["name"],
        description=params["description"],
        labels=None if labels is None else {str(key): "" if value is None else str(value) for key, value in labels.items()},
    )


def _run_many(module: AnsibleModule) -> None:
    from ..module_utils.operations import bulk, placement

    options, finder, items = arguments.options(module), placement.Finder(), []
    for given in module.params["snapshots"]:
        params = arguments.merged(given, module.params)
        if given.get("names") and not given.get("name"):
            params["name"] = None
        finder.prepare(params["share"], params["mount_base"])
        name = ", ".join(params["names"] or [str(params["name"])])
        items.append(bulk.Item(name, frozenset([str(params["volume"])]), lambda params=params: _run(params, options, finder)))
    parallel = 1 if module.check_mode else module.params["parallel"] or bulk.default_parallel()
    arguments.leave_many(module, [item.name for item in items], bulk.run_all(items, parallel), "items")


def _run_group(module: AnsibleModule) -> None:
    from ..module_utils.operations import placement, snapshots

    params = module.params
    if params["state"] != "present":
        raise InvalidParameter("group of volumes", "a group is for taking snapshots only", "delete and revert with a list of snapshots")
    arguments.require(params, "name", "share", "volumes")
    volumes = list(dict.fromkeys(params["volumes"]))
    candidates = placement.find_candidates(params["share"], params["mount_base"])
    outcomes = snapshots.take_group(candidates, volumes, _wish(params), arguments.options(module))
    arguments.leave_many(module, volumes, outcomes, "volumes")


def _run_one(module: AnsibleModule) -> dict:
    from ..module_utils.operations import placement

    return arguments.result(_run(module.params, arguments.options(module), placement.Finder()))


def main() -> None:
    spec = {
        **_SNAPSHOT,
        **arguments.CHANGE,
        "volumes": {"type": "list", "elements": "str"},
        "snapshots": {"type": "list", "elements": "dict", "options": arguments.without_defaults(_SNAPSHOT)},
    }
    alternatives = ("volume", "volumes", "snapshots")
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True, required_one_of=[alternatives], mutually_exclusive=[alternatives])
    try:
        if module.params["snapshots"] is not None:
            _run_many(module)
        if module.params["volumes"] is not None:
            _run_group(module)
        outcome = _run_one(module)
    except StorageError as error:
        outcome = arguments.failure(error)
    arguments.leave(module, outcome)


if __name__ == "__main__":
    main()
