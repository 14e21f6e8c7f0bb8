#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start and end disposable machines on volumes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_machine
short_description: Start and end disposable machines on volumes
version_added: 1.1.0
description:
  - Starts virtual machines on volumes of this host, waits until their guests answer, and ends them.
  - The machines are for work that can be done again, such as the jobs of a pipeline. They are not started again with the host, and ending one may
    cost what its guest has not written yet. For machines that live long, use libvirt or a platform.
  - O(consumer=qemu) needs no service. The guest has a network of QEMU's own, and ports of the host lead to ports of the guest.
    O(consumer=libvirt) starts a transient domain from a definition of yours.
  - Each machine has a folder in O(run_dir), with a record, the socket of its monitor (QMP) and that of its guest agent. So
    M(remotefs.storage.remotefs_snapshot) takes snapshots while it runs (O(remotefs.storage.remotefs_snapshot#module:attachment)), and a task that
    was killed leaves no machine that nobody knows.
  - A machine that was started under a lease is ended by whoever removes the volumes of that lease on this host, see
    M(remotefs.storage.remotefs_lease).
author:
  - remotefs.storage contributors (@remotefs)
requirements:
  - QEMU for the architecture of the host, such as the package qemu-system-x86, for O(consumer=qemu).
  - libvirt with its binding for Python or with virsh, for O(consumer=libvirt).
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group_volumes
  - remotefs.storage.store
options:
  share:
    description: The share of the volumes, its source or its directory.
    required: true
  name:
    description: The name of the machine. Give this or O(machines).
    type: str
  volumes:
    description: The names of the volumes that are its disks, in order. It boots from the first one. By default the one volume of its name.
    type: list
    elements: str
  seed:
    description: The name of a volume that was made with C(source.seed). The guest only reads it.
    type: str
  memory:
    description: How much memory the guest has, in bytes or with K, M or G (IEC).
    type: str
    default: 1G
  cpus:
    description: How many processors the guest has.
    type: int
    default: 1
  arguments:
    description: Further words of QEMU's command line, for O(consumer=qemu).
    type: list
    elements: str
  definition:
    description:
      - The XML of the domain, for O(consumer=libvirt), usually a template of yours.
      - Its name must be that of the machine, and the active image of each volume must be one of its disks, with its format, or the task fails.
        What else it names is up to you.
    type: str
  machines:
    description: Several machines, each with O(name) and what else differs.
    type: list
    elements: dict
    suboptions:
      name: {description: See O(name)., type: str}
      volumes: {description: See O(volumes)., type: list, elements: str}
      seed: {description: See O(seed)., type: str}
      memory: {description: See O(memory)., type: str}
      cpus: {description: See O(cpus)., type: int}
      arguments: {description: See O(arguments)., type: list, elements: str}
      definition: {description: See O(definition)., type: str}
  state:
    description:
      - V(started) starts it where it does not run, and waits until its guest answers. A machine that runs is not changed, but it must have the same
        volumes.
      - V(stopped) ends it. Its ports are kept for its next start.
      - V(absent) ends it and forgets it.
    type: str
    choices: [started, stopped, absent]
    default: started
  consumer:
    description: Who runs the machines.
    type: str
    choices: [qemu, libvirt]
    default: qemu
  lease:
    description:
      - The lease under which machines run, as M(remotefs.storage.remotefs_lease) returns it. All volumes must have been made under it.
      - If it is not the task's any more, the task fails with C(lease_lost), and nothing is started.
    type: dict
  run_dir:
    description:
      - The directory for the folders of machines. It must belong to the user of the task alone, and to this host, so that it cannot be on the share.
      - Each task on a machine needs the same one. Who collects its lease needs it, too.
    type: path
    default: /run/remotefs
  program:
    description: QEMU, as a name or a path. By default it is the one for the architecture of this host.
    type: str
  board:
    description: The machine that QEMU emulates (C(-machine)). By default q35 on x86_64, and what is usual elsewhere.
    type: str
  accelerators:
    description: What QEMU tries to be fast with, in order (C(-accel)). V(tcg) works everywhere.
    type: list
    elements: str
    default: [kvm, tcg]
  listen:
    description: The address of this host at which ports of guests can be reached.
    type: str
    default: 127.0.0.1
  ports:
    description: The TCP ports of guests that can be reached. Which port of the host leads there is returned.
    type: list
    elements: int
    default: [22]
  restricted:
    description: Whether guests reach nothing, neither this host nor a network. Their O(ports) can be reached all the same.
    type: bool
    default: false
  uri:
    description: The libvirt of this host.
    type: str
    default: qemu:///system
  wait_for:
    description:
      - By what to see that a guest answers. V(ssh) is the greeting of an SSH server at port 22, V(agent) the guest agent. V(none) does not wait.
      - With O(consumer=libvirt), V(ssh) needs an address of the guest, see RV(machine.consumer.host).
      - By default V(ssh) with O(consumer=qemu), and with O(consumer=libvirt) V(agent) if the definition has its channel.
    type: str
    choices: [ssh, agent, none]
  wait_timeout:
    description: Seconds that guests have to answer. Otherwise the task fails with the last words of the console, and the machine runs on.
    type: float
    default: 300
  stop_timeout:
    description: Seconds that a guest has to shut down, before its machine is ended; V(0) ends it at once.
    type: float
    default: 0
  lock_timeout:
    description: Seconds to wait for another task that works with the same machine or lease.
    type: float
    default: 90
  break_lock:
    description: Take the lock of the lease from a task whose host died, where the file system leaves such a lock behind.
    type: bool
    default: false
  parallel:
    description: How many machines to start or end at a time.
    type: int
    default: 4
notes:
  - QEMU runs with the rights of the task's user. Run the task as a user who can write to the share and to nothing else.
  - A guest on QEMU's own network reaches services of this host that listen on any of its addresses, unless it is O(restricted).
  - Check mode starts and ends nothing. It takes volumes for granted that are not there yet.
seealso:
  - module: remotefs.storage.remotefs_lease
  - module: remotefs.storage.remotefs_volume
"""

EXAMPLES = r"""
- name: Run a machine on a volume, and go on when one can log in
  remotefs.storage.remotefs_machine:
    share: /srv/volumes
    name: ci-00
    seed: ci-00-seed
    memory: 2G
  register: run

- name: Log in
  ansible.builtin.command:
    argv: [ssh, -p, "{{ run.machine.consumer.port }}", "ci@{{ run.machine.consumer.host }}", uname]
  changed_when: false

- name: End it
  remotefs.storage.remotefs_machine:
    share: /srv/volumes
    name: ci-00
    state: absent

- name: Run two machines that reach no network, each with two disks
  remotefs.storage.remotefs_machine:
    share: /srv/volumes
    machines:
      - name: ci-00
        volumes: [ci-00, ci-00-data]
      - name: ci-01
        volumes: [ci-01, ci-01-data]
    restricted: true
    wait_for: agent
"""

RETURN = r"""
machine:
  description: The machine, without O(machines).
  returned: without O(machines), and success
  type: dict
  contains:
    name: {description: Its name., type: str, returned: always}
    state: {description: 'V(started), V(stopped) or V(absent).', type: str, returned: always}
    changed: {description: Whether this task started or ended it., type: bool, returned: always}
    consumer:
      description: How it can be reached; null where it does not run.
      type: dict
      returned: always
      contains:
        kind: {description: 'V(qemu) or V(libvirt).', type: str, returned: always}
        pid: {description: The number of QEMU's process., type: int, returned: with QEMU}
        qmp: {description: The socket of its monitor., type: str, returned: with QEMU}
        agent: {description: The socket of its guest agent., type: str, returned: with QEMU}
        host:
          description:
            - With QEMU the address of the host for its ports.
            - With libvirt the address of the guest. The network of libvirt knows it, or else the guest agent says it. Null where nobody does.
          type: str
          returned: always
        port: {description: 'With QEMU the port of the host that leads to port 22 of the guest; with libvirt 22.', type: int, returned: always}
        ports: {description: Ports of the host by those of the guest., type: dict, returned: with QEMU}
        uri: {description: The libvirt that runs it., type: str, returned: with libvirt}
        domain: {description: The name of the domain., type: str, returned: with libvirt}
        uuid: {description: The UUID of the domain., type: str, returned: with libvirt}
machines:
  description: One for each machine, in the order of O(machines), as RV(machine); one that failed has C(failed), C(error_code) and C(msg).
  returned: always
  type: list
  elements: dict
actions:
  description: 'What was done, or would be in check mode: C(step), and C(machine).'
  returned: always
  type: list
  elements: dict
error_code:
  description: The kind of failure, see docs/errors.md.
  returned: failure
  type: str
  sample: in_use
"""

from typing import TYPE_CHECKING

from ..module_utils import arguments, changes, errors, leasing

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

_MACHINE = {
    "name": {"type": "str"},
    "volumes": {"type": "list", "elements": "str"},
    "seed": {"type": "str"},
    "memory": {"type": "str", "default": "1G"},
    "cpus": {"type": "int", "default": 1},
    "arguments": {"type": "list", "elements": "str"},
    "definition": {"type": "str"},
}
_TASK = {
    "share": {**arguments.STORE["share"], "required": True},
    "mount_base": arguments.STORE["mount_base"],
    "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
    "consumer": {"type": "str", "choices": ["qemu", "libvirt"], "default": "qemu"},
    "lease": {"type": "dict"},
    "run_dir": leasing.LEASE["run_dir"],
    "program": {"type": "str"},
    "board": {"type": "str"},
    "accelerators": {"type": "list", "elements": "str", "default": ["kvm", "tcg"]},
    "listen": {"type": "str", "default": "127.0.0.1"},
    "ports": {"type": "list", "elements": "int", "default": [22]},
    "restricted": {"type": "bool", "default": False},
    "uri": {"type": "str", "default": "qemu:///system"},
    "wait_for": {"type": "str", "choices": ["ssh", "agent", "none"]},
    "wait_timeout": {"type": "float", "default": 300},
    "stop_timeout": {"type": "float", "default": 0},
    "lock_timeout": changes.CHANGE["lock_timeout"],
    "break_lock": changes.CHANGE["break_lock"],
    "parallel": {"type": "int", "default": 4},
}


def _done(module: AnsibleModule) -> list:
    """What became of each machine."""
    from ..module_utils.operations import machine_options, machines
    from ..module_utils.operations.candidates import Finder
    from ..module_utils.operations.lease_holding import require_one

    params = module.params
    options = changes.plain_options(module)
    every = [changes.merged(item, params) for item in params["machines"]] if params["machines"] is not None else [params]
    share = require_one(Finder().find(params["share"], params["mount_base"]), options)
    return machines.ensure(machine_options.request(params, every, share, options.task.warn), options)


def _told(one) -> dict:
    told = {"name": one.name, "state": one.after, "changed": one.changed, "consumer": one.consumer}
    if one.error is None:
        return told
    return {**told, "failed": True, "error_code": one.error.error_code, "msg": str(one.error)}


def _result(every: list, single: bool) -> dict:
    told = [_told(one) for one in every]
    changed = [one for one in every if one.changed]
    states = [{one.name: state for one in changed for state in [getattr(one, side)]} for side in ("before", "after")]
    result = {
        "changed": bool(changed),
        "machines": told,
        "actions": [{"step": "start_machine" if one.after == "started" else "end_machine", "machine": one.name} for one in changed],
        "diff": {"before": states[0], "after": states[1]},
    }
    if single and every[0].error is None:
        result["machine"] = told[0]
    return result


def main() -> None:
    spec = {**_MACHINE, "machines": {"type": "list", "elements": "dict", "options": arguments.without_defaults(_MACHINE)}, **_TASK}
    module = changes.make_module(spec, required_one_of=[["name", "machines"]], mutually_exclusive=[["name", "machines"]])
    if module.params["consumer"] == "libvirt":
        from ..module_utils.operations.machine_options import go_on_with_binding

        go_on_with_binding()
    try:
        every = _done(module)
    except Exception as error:  # an unexpected one is a failure with a code, too
        changes.leave(module, changes.failure(errors.as_storage_error(error, "this task")), "machines")
        return
    result = _result(every, module.params["machines"] is None)
    failed = [([one.name], one.error) for one in every if one.error is not None]
    if len(every) == 1 and failed:
        error = every[0].error
        result.update({"error_code": error.error_code, "msg": str(error), **error.details})
    elif failed:
        from ..module_utils.together import failure_of_all

        result.update(failure_of_all("machines", len(every), failed))
    changes.leave(module, result, str(module.params["name"] or "machines"))


if __name__ == "__main__":
    main()
