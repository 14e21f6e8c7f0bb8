# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Select from lists of volumes and from other data with JMESPath."""
from __future__ import annotations

DOCUMENTATION = r"""
name: select
short_description: Select from volumes, snapshots and other data with a JMESPath expression
version_added: 1.0.0
description:
  - Applies a JMESPath expression to a list or a dictionary, such as the volumes that M(remotefs.storage.remotefs_volume_info) returns.
  - Strings that ansible-core has tagged are converted to plain ones, so functions like C(starts_with) work on every supported ansible-core.
  - What the expression does not find is null, as everywhere in JMESPath. In particular a filter (C([?...])) on something that is not a list is null.
author:
  - remotefs.storage contributors (@remotefs)
requirements:
  - jmespath (Python package on the controller)
positional: _expression
options:
  _input:
    description: A list or a dictionary.
    type: raw
    required: true
  _expression:
    description:
      - The expression, see U(https://jmespath.org/).
      - Inside it, literal strings stand in single quotes and other literals in backticks, C([?size > `1073741824`]).
    type: str
    required: true
seealso:
  - module: remotefs.storage.remotefs_volume_info
  - plugin: remotefs.storage.volume_table
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Read all volumes
  remotefs.storage.remotefs_volume_info:
    share: /srv/volumes
  register: found

- name: Names of the volumes for databases that have no snapshot
  ansible.builtin.debug:
    msg: "{{ found.volumes | remotefs.storage.select(expression) }}"
  vars:
    expression: "[?starts_with(name, 'db') && !snapshots].name"

- name: The biggest volume
  ansible.builtin.debug:
    msg: "{{ found.volumes | remotefs.storage.select('max_by(@, &size).name') }}"
  when: found.volumes | length > 0

- name: Snapshots that somebody labelled for removal
  ansible.builtin.debug:
    msg: "{{ found.volumes | remotefs.storage.select(expression) }}"
  vars:
    expression: "[].snapshots[?labels.keep == 'no'].name[]"
"""

RETURN = r"""
_value:
  description: What the expression selects, in plain types; null where it selects nothing.
  type: raw
"""

from collections.abc import Mapping, Sequence
from datetime import date

from ansible.errors import AnsibleFilterError

_NAME = "remotefs.storage.select"


def select(data: object, expression: str) -> object:
    """What the JMESPath ``expression`` selects from ``data``, in plain types; None if it selects nothing. :param data: a list or a dictionary.

    :raises AnsibleFilterError: jmespath is not installed, an argument has a wrong type, or the expression is wrong.
    """
    try:
        import jmespath
        from jmespath.exceptions import JMESPathError
    except ImportError as error:
        raise AnsibleFilterError(
            f"{_NAME}: the Python package jmespath is missing on the controller; install it where ansible-core runs (pip install jmespath)."
        ) from error
    if not isinstance(expression, str):
        raise AnsibleFilterError(f"{_NAME}: the expression must be a string, not {type(expression).__name__}; put it in quotes.")
    if isinstance(data, (str, bytes)) or not isinstance(data, (Mapping, Sequence)):
        raise AnsibleFilterError(f"{_NAME}: the input must be a list or a dictionary, not {_type_name(data)}; give for example the volumes of a result.")
    plain_expression = plain(expression)
    try:
        return jmespath.search(plain_expression, plain(data))
    except JMESPathError as error:
        raise AnsibleFilterError(f"{_NAME}: the expression {plain_expression!r} is wrong: {_reason(error)}") from None


def plain(value: object) -> object:
    """A copy of ``value`` in the exact types of JSON. jmespath compares the name of a type, and tagged strings have another name."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    return value


def _type_name(value: object) -> str:
    if value is None:
        return "null"
    return "a string" if isinstance(value, (str, bytes)) else type(value).__name__


def _reason(error: Exception) -> str:
    """The error as one line. jmespath marks the position on a second line, which task output would not keep aligned, and prints whole values."""
    if hasattr(error, "expected_types"):
        wanted = " or ".join(error.expected_types)
        return f"{error.function_name}() wants {wanted} and got {error.actual_type}. What may be missing gets a value with ||, as in (snapshots || `[]`)."
    position = getattr(error, "lex_position", None)
    place = "" if position is None else f" at column {position + 1}"
    reason = str(error).split("\n", maxsplit=1)[0].split(": Parse error at")[0].rstrip(":. ")
    return reason[reason.find("expression: ") + len("expression: "):] + place + "." if "expression: " in reason else reason + place + "."


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict:
        """The filters by name."""
        return {"select": select}
