#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take, keep, delete and revert to snapshots."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_snapshot
short_description: Manage snapshots of volumes on a share
version_added: 1.0.0
description:
  - Takes snapshots of volumes, deletes them at any position, and reverts volumes to them. Nobody may have a volume open, unless O(attachment) names
    the machine that has.
  - A snapshot is a new qcow2 overlay, which becomes the active image, the file that a virtual machine must open from then on; C(path) of RV(volume) names it.
  - Deleting a snapshot merges its overlay with the overlay's own backing file, with as few bytes as possible. Nothing is unlinked before what
    replaces it is durable.
  - A name is taken once and then is no change. For repeated runs use dated names and O(keep), as in the examples.
author:
  - remotefs.storage contributors (@remotefs)
requirements:
  - qemu-img 7.2 or newer (package qemu-utils) for deleting snapshots of images that are not plain, such as compressed ones
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group_changes
  - remotefs.storage.store
  - remotefs.storage.store.change
  - remotefs.storage.store.many
  - remotefs.storage.store.attachment
options:
  volume:
    description: The volume.
    type: str
  volumes:
    description:
      - Several volumes. With O(state=present) and O(name) they get the snapshot as one consistent group of one share, all or none of them.
        O(keep) then removes snapshots of each.
      - With O(attachment) the group's disks of that machine are switched at one instant. It must have at least one of the volumes, and nobody
        may have the others open.
      - With any other O(state), and with O(keep) and no O(name), each of them by itself.
      - Names may be globs such as V(ci-*), which stand for all volumes that match. A file of which nothing records that it is a volume is left
        out with a warning. That nothing matches is a warning too.
    type: list
    elements: str
  name:
    description:
      - The snapshot.
      - Letters, digits, V(.), V(_) and V(-), starting with a letter or digit; not V(active), V(info) or a name ending in V(.info).
        Globs are refused here, whatever O(state) says; O(names) takes them.
    type: str
  names:
    description:
      - With O(state=absent), several snapshots that go in one pass.
      - A glob such as V(daily-*) stands for all that match it and are not protected. One that matches nothing is no change.
    type: list
    elements: str
  state:
    description:
      - V(present) takes the snapshot, V(absent) deletes it.
      - V(reverted) makes the volume's content the snapshot's. The volume keeps its size; what lies beyond the snapshot's reads as zeros.
      - V(pruned) deletes the snapshots that have expired (O(expires)), and takes none.
    type: str
    choices: [present, absent, reverted, pruned]
    default: present
  discard_newer:
    description: With O(state=reverted), also lose the snapshots that are newer. Without it they block it.
    type: bool
    default: false
  not_dependent:
    version_added: 1.1.0
    description:
      - Files on the share that do not count as resting on what is destroyed, although they name it or may mean it.
      - Before files are merged or removed, every file of the share is asked whether it rests on them, in the share's directory and in its
        folders (up to 50,000 entries and 10 seconds; the rest is a warning). A doubt counts. Name the file here, as the message does, if it does not.
      - What was overruled is told in RV(not_counted) and in a warning.
    type: list
    elements: str
  description:
    description: A text that is kept with the snapshot. A snapshot that exists gets it too; where it is not given, it stays as it is.
    type: str
  labels:
    description:
      - Names and values that are kept with the snapshot. Both are texts; a value that is given otherwise is made one.
      - They replace all labels of a snapshot that exists; where they are not given, those stay.
    type: dict
  protected:
    description:
      - Protect the snapshot from O(keep), or protect it no longer. Where this is not said, it stays as it is; a new snapshot is not protected.
      - This is no protection from being named. O(state=absent) deletes a protected snapshot, O(discard_newer) discards it, and so does the
        removal of its volume with O(remotefs.storage.remotefs_volume#module:cascade).
    type: bool
  expires:
    version_added: 1.1.0
    description:
      - When the snapshot expires, as a time (V(2027-01-31T18:00:00Z); without a zone it is UTC), or as a duration from now, which is a number
        with V(s), V(m), V(h), V(d) or V(w). V(never) takes an expiry back.
      - Nothing goes by itself. What has expired is deleted by the next task with O(state=pruned), or with O(keep), whatever that matches.
        What O(keep) never removes stays.
      - Where this is not said, it stays as it is. A duration is counted once, so that a repeated run does not put the end off.
    type: str
  keep:
    description:
      - Retention. Of the snapshots that V(match), those stay that at least one rule keeps; the others are deleted in one pass.
      - A dictionary of V(match), which is required, and at least one of the rules V(last), V(hourly), V(daily), V(weekly),
        V(monthly), V(yearly) and V(within) above 0.
      - V(match) is a glob of names such as V(daily-*), or a dictionary of labels that a snapshot must have, all of them and with equal values.
        What does not match is neither counted nor touched.
      - V(last) keeps that many of the newest snapshots. The other rules keep the newest snapshot of each hour, day, week, month or year, for as
        many of these periods as the rule says. Periods are of UTC, and weeks those of ISO 8601, from Monday on. A period without a snapshot does not count.
      - V(within) keeps all that are less than that (V(30d)) older than the newest one that matches.
      - What has expired goes too, whether it matches or not, and takes no rule's place.
      - Which snapshot is newer is told by the chain and never by a clock. The time of the task does not matter either, so that a
        volume whose snapshots stopped keeps the last ones.
      - Whatever the rules say, a snapshot stays that is protected, whose time of creation is not known, on which a linked clone rests, or that
        is O(name) itself. A protected one takes a rule's place like any other, one without a time only that of V(last).
      - Beside O(name), that snapshot is taken first and counts. Without it, nothing is taken.
      - Only for O(state=present). See docs/retention.md.
    type: raw
  max_chain:
    description:
      - How many files the chain of the volume may have. A snapshot that would make it longer is refused with V(invalid_parameter).
      - Each snapshot is a file more, and a linked clone has the files of its parent beneath its own. From 2 to 200.
    type: int
    default: 64
  lease:
    version_added: 1.1.0
    description:
      - The lease under which the task works, as M(remotefs.storage.remotefs_lease) returns it. If it is not the task's any more, the task fails with
        C(lease_lost), and nothing is changed.
      - A volume that was not made under it is a C(conflict). So a reset never touches what another environment made.
      - Or the options of M(remotefs.storage.remotefs_lease), but for C(share) and C(mount_base), with C(state) V(held). Then the task takes the
        lease or renews it first, which saves a task. It returns RV(lease), RV(lease_changed), and with C(collect) also RV(collected) and RV(left).
    type: dict
  drop_bitmaps:
    version_added: 1.1.0
    description:
      - A file that goes when snapshots are deleted can hold persistent dirty bitmaps, by which backup programs know what to back up next. They
        would be lost, so that the deletion is refused with V(conflict), naming them.
      - With V(true) they are given up. The next backup then has to be a full one.
    type: bool
    default: false
  quiesce:
    version_added: 1.1.0
    description:
      - Whether the guest's file systems are frozen (through the guest agent) at the instant of a snapshot that is taken. Then the snapshot has all
        that programs have written to files. Without it, it is like a power cut. See docs/live.md.
      - With V(true) the agent is asked before anything is changed, in check mode too. If it does not answer or the guest cannot be frozen, the
        task fails with C(in_use) and no snapshot is taken.
      - With V(auto) the snapshot is taken in any case.
      - RV(quiesced) and RV(quiesce_reason) say what came of it. The guest goes on as soon as its disks are switched, whatever happens.
      - A volume that no machine has open needs none. Its snapshot is taken as without this option.
      - Only for O(state=present) with O(name).
    type: str
    choices: ['false', 'true', auto]
    default: 'false'
  snapshots:
    description:
      - Many independent snapshots in one task. Each item takes the options above but O(volumes), with the task's own as defaults.
      - All are attempted; the task fails at the end if any did.
      - Items of one volume are done in their order. Two that want the same of one snapshot are refused.
      - P(remotefs.storage.items#filter) makes such a list from a dictionary of dictionaries by name.
    type: list
    elements: dict
    suboptions:
      share: {description: 'See O(share).', type: raw}
      mount_base: {description: 'See O(mount_base).', type: path}
      volume: {description: 'See O(volume).', type: str}
      name: {description: 'See O(name).', type: str}
      names: {description: 'See O(names).', type: list, elements: str}
      state: {description: 'See O(state).', type: str, choices: [present, absent, reverted, pruned]}
      discard_newer: {description: 'See O(discard_newer).', type: bool}
      not_dependent: {description: 'See O(not_dependent).', type: list, elements: str, version_added: 1.1.0}
      description: {description: 'See O(description).', type: str}
      labels: {description: 'See O(labels).', type: dict}
      protected: {description: 'See O(protected).', type: bool}
      expires: {description: 'See O(expires).', type: str, version_added: 1.1.0}
      keep: {description: 'See O(keep).', type: raw}
      max_chain: {description: 'See O(max_chain).', type: int}
      drop_bitmaps: {description: 'See O(drop_bitmaps).', type: bool, version_added: 1.1.0}
      quiesce: {description: 'See O(quiesce).', type: str, choices: ['false', 'true', auto], version_added: 1.1.0}
      lease: {description: See O(lease)., type: dict, version_added: 1.1.0}
      attachment:
        version_added: 1.1.0
        description: See O(attachment).
        type: dict
        suboptions:
          qmp: {description: 'See O(attachment.qmp).', type: path}
          agent: {description: 'See O(attachment.agent).', type: path}
          libvirt:
            description: See O(attachment.libvirt).
            type: dict
            suboptions:
              uri: {description: 'See O(attachment.libvirt.uri).', type: str, default: 'qemu:///system'}
              domain: {description: 'See O(attachment.libvirt.domain).', type: str}
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

- name: Take one each day, and keep those of 7 days, 4 weeks and 12 months
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    name: "daily-{{ now(utc=true, fmt='%Y-%m-%d') }}"
    keep:
      match: daily-*
      daily: 7
      weekly: 4
      monthly: 12
  register: nightly

- name: Tell what went
  ansible.builtin.debug:
    msg: "{{ nightly.retention | rejectattr('keep') | map(attribute='name') | join(', ') | default('nothing', true) }}"

- name: Keep one whatever the rules say
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    name: before-upgrade
    protected: true

- name: Thin out what has a label, on two volumes, without taking a snapshot
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volumes: [db01, db01-log]
    keep:
      match:
        made-by: nightly
      last: 14

- name: One that goes by itself after a week, with the next run of the task below
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    name: before-test
    expires: 7d

- name: Delete what has expired, on all database volumes
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volumes: [db*]
    state: pruned

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

- name: Delete several in one pass, and leave the server some of its speed for others
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    names: [before-upgrade, consistent]
    state: absent
    speed: 200M
    timeout: 7200

- name: One of a volume whose machine runs (if the machine is off, nobody listens at its monitor, and that is fine)
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    name: while-it-runs
    attachment:
      qmp: /run/machines/db01.qmp

- name: Database and log of a machine that runs, at one point in time
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volumes: [db01, db01-log]
    name: consistent-while-it-runs
    attachment:
      qmp: /run/machines/db01.qmp

- name: One of a volume of a domain of libvirt, whether the domain runs or is off
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    name: nightly
    attachment:
      libvirt: {domain: db01}

- name: The same with the guest's file systems at rest, if the domain runs and its guest agent answers
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db01
    name: clean
    attachment:
      libvirt: {domain: db01}
    quiesce: auto

- name: One of two disks with the guest's file systems at rest, or not at all (if the machine runs, its guest agent must answer)
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volumes: [db01, db01-log]
    name: clean-while-it-runs
    attachment:
      qmp: /run/machines/db01.qmp
    quiesce: true
  register: taken

- name: Tell of which volumes the guest was not frozen, and why
  ansible.builtin.debug:
    msg: "{{ taken.results | selectattr('quiesce_reason', 'defined') | items2dict(key_name='name', value_name='quiesce_reason') }}"

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
    - 'One for each item, in its order: name, volume_name, snapshot, changed, failed, error_code, msg, actions, recovered, volume and with O(keep)
      or O(state=pruned) retention.'
    - The name is the snapshot's for O(snapshots) and the volume's for O(volumes), or where an item only keeps. C(volume_name) and C(snapshot)
      are there whether the item failed or not; an item that names no snapshot has no C(snapshot).
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
retention:
  description:
    - The verdicts of O(keep) or O(state=pruned) on all snapshots that match or have expired, oldest first; in check mode those that the run
      would come to.
    - One whose C(keep) is false is deleted by this task and has no reasons.
  returned: success, with O(volume), and O(keep) or O(state=pruned)
  type: list
  elements: dict
  contains:
    name: {description: The snapshot., type: str, returned: always}
    created: {description: 'When it was taken (UTC); null where that is not recorded.', type: str, returned: always}
    expires: {description: 'When it expires (UTC); null where it does not.', type: str, returned: always}
    keep: {description: Whether it stays., type: bool, returned: always}
    reasons:
      description: 'Why it stays: each rule that keeps it, and what keeps it whatever the rules say.'
      type: list
      elements: str
      returned: always
  sample:
    - {name: daily-2026-11-20, created: '2026-11-20T01:00:04Z', expires: null, keep: false, reasons: []}
    - {name: before-upgrade, created: '2026-11-20T14:12:40Z', expires: null, keep: true, reasons: [protected]}
    - {name: daily-2026-11-21, created: '2026-11-21T01:00:03Z', expires: null, keep: true, reasons: [last 1 of 1, daily 2026-11-21, weekly 2026-W47]}
quiesced:
  description:
    - Whether the guest was frozen at the instant of the snapshot. In check mode, whether its agent answers.
    - In bulk and for a group it is in each of RV(results).
  returned: when a snapshot was taken and O(quiesce) is not V(false)
  type: bool
quiesce_reason:
  description: Why the guest was not frozen, or why that is not certain. In bulk and for a group it is in each of RV(results).
  returned: when RV(quiesced) is false
  type: str
  sample: its guest agent does not answer in time
recovered:
  description: 'Interrupted operations that this task finished or undid first: operation, outcome (finished, undone or discarded) and steps.'
  returned: with O(volume)
  type: list
  elements: dict
not_counted:
  description: Files that rest on what was destroyed, or may do so, and were overruled by O(not_dependent). In bulk it is in each of RV(results).
  returned: when O(not_dependent) overruled any
  type: list
  elements: str
  sample: [old copy.qcow2]
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
lease:
  description: The lease that the task took or renewed, as M(remotefs.storage.remotefs_lease) returns it.
  returned: when O(lease) has C(state)
  type: dict
lease_changed:
  description: Whether that was a change. RV(ignore:changed) is true then.
  returned: when O(lease) has C(state)
  type: bool
renewed:
  description: Whether the lease was held before.
  returned: when O(lease) has C(state)
  type: bool
collected:
  description: The leases and volumes that were removed first, by name.
  returned: when O(lease) has C(collect)
  type: dict
left:
  description: 'What could not be removed: name, error_code and msg.'
  returned: when O(lease) has C(collect)
  type: list
  elements: dict
error_code:
  description: The kind of failure, see docs/errors.md.
  returned: failure
  type: str
  sample: has_newer_snapshots
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ..module_utils import arguments, changes, errors

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

_SNAPSHOT = {
    "share": arguments.STORE["share"],
    "mount_base": arguments.STORE["mount_base"],
    "volume": {"type": "str"},
    "name": {"type": "str"},
    "names": {"type": "list", "elements": "str"},
    "state": {"type": "str", "choices": ["present", "absent", "reverted", "pruned"], "default": "present"},
    "discard_newer": {"type": "bool", "default": False},
    "not_dependent": {"type": "list", "elements": "str"},
    "description": {"type": "str"},
    "labels": {"type": "dict"},
    "protected": {"type": "bool"},
    "expires": {"type": "str"},
    "keep": {"type": "raw"},
    "max_chain": {"type": "int", "default": 64},
    "drop_bitmaps": {"type": "bool", "default": False},
    "quiesce": {"type": "str", "choices": ["false", "true", "auto"], "default": "false"},
    "attachment": changes.ATTACHMENT,
    "lease": {"type": "dict"},
}
_DETAILS = ("description", "labels", "protected", "expires")


def _check(params: dict) -> None:
    """:raises InvalidParameter: options that do not go together, or a length that no chain may have."""
    from ..module_utils.plan.desired import check_max_chain

    subject = f"snapshot task on volume {params['volume']}" if params["volume"] else "snapshot task"
    if params["names"] and params["state"] != "absent":
        raise errors.InvalidParameter(subject, "names goes with state: absent only", "use name, or a list of snapshots")
    if params["names"] and params["name"]:
        raise errors.InvalidParameter(subject, "name and names do not go together", "give one of them")
    if params["name"] and params["state"] == "pruned":
        raise errors.InvalidParameter(subject, "name does not go with state: pruned, which deletes what has expired", "leave it out, or say absent")
    for option in (*_DETAILS, "keep"):
        if params["state"] != "present" and params[option] is not None:
            raise errors.InvalidParameter(subject, f"{option} goes with state: present only", "leave it out")
    for option in _DETAILS:
        if params[option] is not None and not params["name"] and params["keep"] is not None:
            raise errors.InvalidParameter(subject, f"{option} is of a snapshot, and none is named", "leave it out, or give a name")
    if params["quiesce"] != "false" and (params["state"] != "present" or (not params["name"] and params["keep"] is not None)):
        raise errors.InvalidParameter(subject, "quiesce is of a snapshot that is taken, and none is", "leave it out, or give a name and state: present")
    check_max_chain(params["max_chain"])


def _run(params: dict, options, finder):
    """Bring one volume's snapshots to what the parameters say."""
    from ..module_utils.model import check_snapshot_name
    from ..module_utils.operations import snapshots

    _check(params)
    options = _with_word(options, params)
    keep = _policy(params)
    changes.require(params, "volume", "share", *_asked_by_name(params, keep))
    options = _with_machine(options, params)
    candidates = finder.find(params["share"], params["mount_base"])
    options = changes.with_lease(options, params, candidates)
    if params["state"] == "absent":
        if params["name"]:
            check_snapshot_name(params["volume"], params["name"])  # a glob that deletes is asked for by names
        return snapshots.delete(candidates, params["volume"], params["names"] or list(filter(None, [params["name"]])), options)
    if params["state"] == "reverted":
        return snapshots.revert(candidates, params["volume"], params["name"], params["discard_newer"], options)
    if params["state"] == "pruned" or not params["name"]:
        return snapshots.retain(candidates, params["volume"], keep, options)
    return snapshots.take(snapshots.SnapshotRequest(candidates, params["volume"], _desired(params), keep), options)


def _asked_by_name(params: dict, keep) -> tuple:
    """The option that has to be given where nothing else says which snapshots are meant. A computed list to delete may have come out empty."""
    is_listed = params["names"] or (params["state"] == "absent" and params["names"] is not None)
    return () if is_listed or keep or params["state"] == "pruned" else ("name",)


def _with_word(options, params: dict):
    """The task's options with what the user says of files that rest on nothing."""
    return replace(options, not_dependent=tuple(params["not_dependent"] or ()))


def _with_machine(options, params: dict):
    """The task's options with what the user says of a machine that runs."""
    return replace(changes.with_machine(options, params), drop_bitmaps=params["drop_bitmaps"], quiesce=params["quiesce"])


def _policy(params: dict):
    if params["keep"] is None:
        return None
    from ..module_utils.plan import retention

    return retention.parse(params["keep"])


def _desired(params: dict):
    from ..module_utils.plan.desired import DesiredSnapshot, label_texts

    return DesiredSnapshot(
        name=params["name"],
        description=params["description"],
        labels=None if params["labels"] is None else label_texts(params["labels"]),
        protected=params["protected"],
        max_chain=params["max_chain"],
        expires=None if params["expires"] is None else _expiry(params["expires"]),
    )


def _expiry(given: str):
    from ..module_utils.model import now
    from ..module_utils.plan.retention import parse_expiry

    return parse_expiry(given, now())


def _item_name(params: dict) -> str:
    """What a result is called: by its snapshots, or by its volume where it names none."""
    return ", ".join(params["names"] or []) or str(params["name"] or params["volume"])


def _run_many(module: AnsibleModule, wanted: list, kind: str) -> None:
    from ..module_utils import results

    make = partial(_item, by_volume=kind == "volumes")
    results.run_many(module, [_completed(given, module.params) for given in wanted], make, kind, "volume", _claims)


def _claims(params: dict, finder) -> dict:
    """Each snapshot with what shall become of it: no other item may say the same. One may be deleted and then taken anew.

    :raises InvalidParameter: the item is wrong by itself, which is what it tells then.
    """
    _check(params)
    found = finder.prepare(params["share"], params["mount_base"])
    names = params["names"] or filter(None, [params["name"]])
    shares = (*found.shares, *found.missing) if found else ()
    volume, state = params["volume"], params["state"]
    return {(share.path, volume, name, state): f"snapshot {name} of volume {volume}" for name in names for share in shares}


def _completed(given: dict, params: dict) -> dict:
    """An item with what the whole task says: snapshots that it names by itself are not joined by the task's one."""
    names_its_own = given.get("names") and not given.get("name")
    return {**changes.merged(given, params), **({"name": None} if names_its_own else {})}


def _item(params: dict, finder, by_volume: bool = False):
    from ..module_utils import results
    from ..module_utils.operations.bulk import runner

    candidates, volume = finder.prepare(params["share"], params["mount_base"]), str(params["volume"])
    attached = changes.one_after_the_other(params)
    deletes = candidates and not attached and (params["state"] != "present" or params["keep"])
    deletion = runner.Deletion(candidates, volume) if deletes else None
    keeps_lock = bool(deletion and params["state"] == "present" and params["name"])  # taken first, then what it replaces is merged
    name = volume if by_volume else _item_name(params)
    told = results.naming(volume, *(params["names"] or filter(None, [params["name"]])))
    return runner.Item(name, frozenset([volume]) | attached, partial(_run, params, finder=finder), deletion, keeps_lock=keeps_lock, told=told)


def _run_volumes(module: AnsibleModule) -> None:
    """A consistent group where a snapshot is taken, else each volume by itself."""
    from ..module_utils import results
    from ..module_utils.operations import candidates, groups, matching

    params = module.params
    _check(params)
    keep = _policy(params)
    changes.require(params, "share", *_asked_by_name(params, keep))
    finder = candidates.Finder()
    found = finder.find(params["share"], params["mount_base"])
    options = _with_machine(_with_word(changes.options(module), params), params)
    volumes = matching.volumes_named(found, params["volumes"], options)
    if params["state"] != "present" or not params["name"]:
        _run_many(module, [{"volume": volume} for volume in volumes], "volumes")
    with changes.under_leases(options, [params], finder):
        outcomes = groups.take_group(found, volumes, _desired(params), changes.with_lease(options, params, found), keep) if volumes else []
    named = [(volume, results.naming(volume, params["name"])) for volume in volumes]
    results.leave_many(module, named, outcomes, "volumes")


def _run_one(module: AnsibleModule) -> dict:
    from ..module_utils.operations.candidates import Finder

    options, finder = changes.options(module), Finder()
    with changes.under_leases(options, [module.params], finder):
        return changes.result(_run(module.params, options, finder))


def main() -> None:
    spec = {
        **_SNAPSHOT,
        **changes.CHANGE,
        **changes.MANY,
        "volumes": {"type": "list", "elements": "str"},
        "snapshots": {"type": "list", "elements": "dict", "options": arguments.without_defaults(_SNAPSHOT)},
    }
    alternatives = ("volume", "volumes", "snapshots")
    module = changes.make_module(spec, required_one_of=[alternatives], mutually_exclusive=[alternatives])
    try:
        if module.params["snapshots"] is not None:
            _run_many(module, module.params["snapshots"], "items")
        if module.params["volumes"] is not None:
            _run_volumes(module)
        outcome = changes.run_watched(module, partial(_run_one, module))
    except Exception as error:  # one that nobody foresaw is a failure with a code too
        outcome = changes.failure(errors.as_storage_error(error, "this task"))
    label = "@".join(filter(None, [module.params["volume"], module.params["name"] or ", ".join(module.params["names"] or ())]))
    changes.leave(module, outcome, label)


if __name__ == "__main__":
    main()
