#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say who has a name on a share, until when, and which volumes go with it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_lease
short_description: Take, renew and release a lease on a share, and collect what ran out
version_added: 1.1.0
description:
  - A lease is one file on the share. It says who has a name, until when, and which volumes were made under it. A second owner is refused.
  - Volumes that are made with O(remotefs.storage.remotefs_volume#module:lease) have the lease on record. So a pipeline that is killed leaves
    nothing that nobody owns. When its lease has ended, any host removes what is left (V(state=collected)).
  - Only volumes that the lease lists, and that have its id on record, are ever removed with it. Names alone do not count.
  - The clock of the share decides when a lease has ended, so that hosts need not agree on the time. Where clients give the times of files
    (GlusterFS), it is the clock of the host. A warning says so.
author:
  - remotefs.storage contributors (@remotefs)
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group_volumes
  - remotefs.storage.store
options:
  name:
    description: The name of the lease. It follows the rules for names of volumes. It is required but with V(state=collected) or O(leases).
    type: str
  owner:
    description:
      - Who holds it. The same owner renews it from any host, so give what only one pipeline has, such as the number of its job.
      - It is required but with V(state=collected).
    type: str
  ttl:
    description: How long the lease is from now on. A whole number with V(s), V(m), V(h), V(d) or V(w), or V(0) for a lease that does not end.
    type: str
    default: 2h
  id:
    description: The C(id) of the lease that this task is about. If the lease is another one by now, even of the same owner, the task fails with
      C(lease_lost).
    type: str
  renew_only:
    description: Whether a lease that is not there, or is not the owner's, is C(lease_lost). Otherwise it is taken.
    type: bool
    default: false
  volumes:
    description:
      - Names of the volumes that may be made under the lease. List them before the first one is made.
      - Without it, the list stays as it is.
    type: list
    elements: str
  uses:
    description: Names of volumes on which the volumes of the lease rest, such as a golden one. O(golden_keep) does not count them.
    type: list
    elements: str
  labels:
    description: Names and values that are kept with the lease. Without it, they stay as they are.
    type: dict
  state:
    description:
      - V(held) takes the lease, or renews it. To renew it is no change. The result has RV(renewed).
      - V(released) gives it up.
      - V(collected) removes every lease of the share that ended more than O(grace) ago, with its volumes. What is in use stays, under its lease,
        and is told in RV(left). The next collection tries it again.
    type: str
    choices: [held, released, collected]
    default: held
  cascade:
    description:
      - With V(state=released), whether the volumes of the lease are removed with it. Otherwise it is a C(conflict) if there are any.
      - With V(state=held), whether volumes are removed that O(volumes) lists no more.
    type: bool
    default: false
  collect:
    description: With V(state=held), whether leases that have ended are collected first, as with V(state=collected).
    type: bool
    default: false
  grace:
    description:
      - How long a lease must have ended before it is collected. The clock of the share may go wrong by so much, and an owner who is late may
        still renew.
      - A whole number with a unit, or V(0).
    type: str
    default: 15m
  golden_keep:
    description:
      - When leases are collected, how many golden volumes stay that no lease O(uses). The oldest go first, and none on which a volume rests.
      - Golden volumes are those named C(golden-*) with the label C(remotefs_golden), as the role P(remotefs.storage.ci_environment#role) makes them.
      - Without it, all stay.
    type: int
  stop_machines:
    description:
      - Whether machines that M(remotefs.storage.remotefs_machine) started under the lease on this host are ended before volumes are removed with
        O(cascade). Otherwise such volumes are C(in_use).
      - When leases that have ended are collected, their machines are ended always.
    type: bool
    default: false
  run_dir:
    description: Where machines that are ended with the lease are recorded, as for M(remotefs.storage.remotefs_machine).
    type: path
    default: /run/remotefs
  leases:
    description: Several leases in one task. Each item takes the options of one, and the task's own are its defaults.
    type: list
    elements: dict
    suboptions:
      name: {description: See O(name)., type: str}
      share: {description: See O(share)., type: raw}
      mount_base: {description: See O(mount_base)., type: path}
      owner: {description: See O(owner)., type: str}
      ttl: {description: See O(ttl)., type: str}
      id: {description: See O(id)., type: str}
      renew_only: {description: See O(renew_only)., type: bool}
      volumes: {description: See O(volumes)., type: list, elements: str}
      uses: {description: See O(uses)., type: list, elements: str}
      labels: {description: See O(labels)., type: dict}
      state: {description: See O(state)., type: str, choices: [held, released, collected]}
      cascade: {description: See O(cascade)., type: bool}
      collect: {description: See O(collect)., type: bool}
      grace: {description: See O(grace)., type: str}
      golden_keep: {description: See O(golden_keep)., type: int}
      stop_machines: {description: See O(stop_machines)., type: bool}
      run_dir: {description: See O(run_dir)., type: path}
  lock_timeout:
    description: Seconds to wait for another task that works on the same lease or volume, on this host or another.
    type: float
    default: 90
  break_lock:
    description: Take a lock from a task whose host died. Only CIFS mounted with C(nobrl) leaves such a lock behind.
    type: bool
    default: false
  assume_unused:
    description: Where the file system cannot show whether volumes that would be removed are in use (CIFS with C(nobrl), sshfs), take them as unused.
    type: bool
    default: false
  parallel:
    description: How many volumes are removed at a time. The default is the number of processors, at most 8.
    type: int
notes:
  - An owner whose lease has ended still renews it, if nobody has taken it over.
  - A lease whose volumes are still there is not given to another owner. Collect it first.
  - In check mode nothing is written, so that the clock of this host decides which leases have ended. A warning says so.
  - See docs/leases.md for what a crash leaves and when it goes.
seealso:
  - module: remotefs.storage.remotefs_lease_info
  - module: remotefs.storage.remotefs_volume
"""

EXAMPLES = r"""
- name: Take a lease before anything is made, and remove what killed pipelines left
  remotefs.storage.remotefs_lease:
    share: /srv/volumes
    name: ci-main
    owner: job-4711
    ttl: 2h
    volumes: [ci-main-00, ci-main-01]
    collect: true
  register: taken

- name: Make the volumes under it
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    lease: "{{ taken.lease }}"
    size: 1G
    volumes:
      - name: ci-main-00
      - name: ci-main-01

- name: Renew it, and stop here if somebody else has it by now
  remotefs.storage.remotefs_lease:
    share: /srv/volumes
    name: ci-main
    owner: job-4711
    id: "{{ taken.lease.id }}"

- name: Give it up, with its volumes
  remotefs.storage.remotefs_lease:
    share: /srv/volumes
    name: ci-main
    owner: job-4711
    state: released
    cascade: true

- name: Remove what is left of leases that have ended
  remotefs.storage.remotefs_lease:
    share: /srv/volumes
    state: collected
"""

RETURN = r"""
lease:
  description: The lease as it is afterwards; null where it is not there. In check mode C(id) is null for one that would be taken.
  returned: success, without O(leases) and without V(state=collected)
  type: dict
  contains: &lease
    name: {description: Its name., type: str, returned: always}
    share: {description: 'The source of its share as given; for a directory, what is mounted there, or the directory.', type: str, returned: always}
    id: {description: Another one each time that the lease is taken. Its volumes have it on record., type: str, returned: always}
    owner: {description: Who holds it., type: str, returned: always}
    acquired: {description: When it was taken (UTC)., type: str, returned: always}
    expires: {description: When it ends (UTC); null where it does not., type: str, returned: always}
    renewed: {description: Whether this task has renewed it., type: bool, returned: always}
    renewed_at: {description: When it was taken or renewed last (UTC)., type: str, returned: always}
    ttl: {description: Seconds from the last renewal to its end; null where it does not end., type: int, returned: always}
    labels: {description: The names and values kept with it., type: dict, returned: always}
    volumes: {description: Names of the volumes that may be made under it., type: list, elements: str, returned: always}
    uses: {description: Names of the volumes on which those of the lease rest., type: list, elements: str, returned: always}
    collector: {description: Who removes what is left of it; null where nobody does., type: str, returned: always}
  sample:
    name: ci-main
    share: /srv/volumes
    id: 3f9a41cc02d87be5
    owner: job-4711
    acquired: '2026-11-28T03:00:00Z'
    expires: '2026-11-28T05:00:00Z'
    renewed: false
    renewed_at: '2026-11-28T03:00:00Z'
    ttl: 7200
    labels: {}
    volumes: [ci-main-00, ci-main-01]
    uses: []
    collector: null
renewed:
  description: Whether the lease was there, and was renewed. In bulk it is in each of RV(results).
  returned: success, without O(leases) and without V(state=collected)
  type: bool
actions:
  description: The steps done, in order; in check mode those to be done. To renew a lease is none.
  returned: success, without O(leases)
  type: list
  elements: dict
  sample: [{step: take_lease, lease: ci-main}]
collected:
  description: Names of leases and volumes that were collected.
  returned: when leases were to be collected
  type: dict
  sample: {leases: [ci-old], volumes: [ci-old-00]}
left:
  description: 'What could not go: name of a volume or lease, error_code and msg.'
  returned: when leases were to be collected, or volumes could not go
  type: list
  elements: dict
results:
  description: 'One for each item, in its order: name, changed, failed, error_code, msg, and what a task about one lease returns.'
  returned: with O(leases)
  type: list
  elements: dict
traceback:
  description: Where a fault that nobody foresaw happened.
  returned: when there was one
  type: str
error_code:
  description: The kind of failure, see docs/errors.md.
  returned: failure
  type: str
  sample: lease_held
"""

from typing import TYPE_CHECKING

from ..module_utils import arguments, changes, errors, leasing

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

_TASK = {
    "lock_timeout": changes.CHANGE["lock_timeout"],
    "break_lock": changes.CHANGE["break_lock"],
    "assume_unused": changes.CHANGE["assume_unused"],
    "parallel": changes.MANY["parallel"],
}


def _run_many(module: AnsibleModule, options, finder) -> dict:
    """All items are attempted, in their order."""
    from ..module_utils.together import failure_of_all

    told, failed = [], []
    for number, given in enumerate(module.params["leases"]):
        params = changes.merged(given, {**module.params, "of_all": True})
        name = str(params["name"] or params["share"] or f"item {number + 1}")
        try:
            told.append({"name": name, "failed": False, **leasing.run(params, options, finder)})
        except Exception as error:  # whatever it is, it is this item's
            known = errors.as_storage_error(error, f"item {number + 1}")
            failed.append(([name], known))
            told.append({"name": name, "failed": True, **_failure(known)})
    diffs = [{"before_header": one["name"], "after_header": one["name"], **diff} for one, diff in ((one, one.pop("diff", None)) for one in told) if diff]
    everything = {"changed": any(one["changed"] for one in told), "results": told, "diff": diffs}
    return {**everything, **failure_of_all("leases", len(told), failed)} if failed else everything


def _failure(error: errors.StorageError) -> dict:
    return {"changed": False, "msg": str(error), "error_code": error.error_code, **error.details}


def main() -> None:
    spec = {**leasing.LEASE, **_TASK, "leases": {"type": "list", "elements": "dict", "options": arguments.without_defaults(leasing.LEASE)}}
    module = changes.make_module(spec, mutually_exclusive=[("name", "leases")])
    try:
        from ..module_utils.operations.candidates import Finder

        options, finder = changes.plain_options(module), Finder()
        told = _run_many(module, options, finder) if module.params["leases"] is not None else leasing.run(module.params, options, finder)
    except Exception as error:  # one that nobody foresaw is a failure with a code too
        told = _failure(errors.as_storage_error(error, "this task"))
    if not module._diff:
        told.pop("diff", None)
    if "error_code" in told:
        module.fail_json(**told)
    module.exit_json(**told)


if __name__ == "__main__":
    main()
