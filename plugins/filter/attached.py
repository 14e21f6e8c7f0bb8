# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say for each volume which machine has it as a disk."""
from __future__ import annotations

DOCUMENTATION = r"""
name: attached
short_description: Say for each item of a bulk option which machine has its volume as a disk
version_added: 1.1.0
description:
  - Adds the key C(attachment) to items that do not have it, such as those that P(remotefs.storage.items#filter) makes.
  - What it is says a JMESPath expression, which gets the volume as M(remotefs.storage.remotefs_volume_info) returns it. Where the expression is null,
    the item stays as it is. An expression needs the Python package jmespath on the controller.
  - With V(auto) it is the domain of libvirt on the managed host that has the volume as a disk.
author:
  - remotefs.storage contributors (@remotefs)
positional: _expression
options:
  _input:
    description: A list of dictionaries, each with the key C(volume).
    type: list
    elements: dict
    required: true
  _expression:
    description: The expression, or V(auto). An empty text adds nothing.
    type: str
    required: true
  volumes:
    description: The volumes, as M(remotefs.storage.remotefs_volume_info) returns them. V(auto) does not need them.
    type: list
    elements: dict
    default: []
seealso:
  - module: remotefs.storage.remotefs_snapshot
  - plugin: remotefs.storage.select
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Read all volumes
  remotefs.storage.remotefs_volume_info:
    share: /srv/volumes
  register: found

- name: The machine of each volume, by a label that says its domain
  ansible.builtin.debug:
    msg: "{{ ['db01', 'db02'] | remotefs.storage.items('volume') | remotefs.storage.attached(expression, volumes=found.volumes) }}"
  vars:
    expression: "labels.domain && {libvirt: {domain: labels.domain}}"
"""

RETURN = r"""
_value:
  description: The items in the same order.
  type: list
  elements: dict
"""

from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

from ansible_collections.remotefs.storage.plugins.filter.select import select

_AUTO = "auto"


def attached(items: object, expression: str, volumes: object = ()) -> list:
    """Items with the key ``attachment``. :param items: dictionaries with the key ``volume``. :param volumes: as the info module returns them.

    :raises AnsibleFilterError: an argument has a wrong type, the expression is wrong, or it makes something that is no attachment.
    """
    if not isinstance(items, list) or not all(isinstance(item, Mapping) and "volume" in item for item in items):
        raise AnsibleFilterError("remotefs.storage.attached: the input must be a list of dictionaries with the key volume; remotefs.storage.items makes one.")
    if not expression:
        return items
    if expression == _AUTO:
        return [{"attachment": {"libvirt": {}}, **item} for item in items]
    found = {str(volume["name"]): _attachment(volume, expression) for volume in volumes if isinstance(volume, Mapping) and "name" in volume}
    machines = ((item, found.get(str(item["volume"]))) for item in items)
    return [{"attachment": machine, **item} if machine is not None else item for item, machine in machines]


def _attachment(volume: Mapping, expression: str) -> dict | None:
    """What the expression makes of a volume. :raises AnsibleFilterError: it is no attachment."""
    made = select(volume, expression)
    if made is None or made is False:
        return None
    if not isinstance(made, dict) or set(made) - {"qmp", "agent", "libvirt"}:
        raise AnsibleFilterError(
            f"remotefs.storage.attached: of volume {volume['name']} the expression {expression!r} makes {made!r}, which is no attachment; "
            "it must make a dictionary with qmp or libvirt, or null."
        )
    return made


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict:
        """By name."""
        return {"attached": attached}
