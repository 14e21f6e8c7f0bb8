# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the list of dictionaries that bulk options take from shorter ways to write it. Documented in items.yml."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from ansible.errors import AnsibleFilterError

_NAME = "remotefs.storage.items"
_SHOWN = 40  # how many characters of a wrong value a message shows


def items(given: object, key: str = "name") -> list:
    """A list of dictionaries, each with its name under ``key``.

    :param given: a list of names and dictionaries, or a dictionary of dictionaries by name.
    :raises AnsibleFilterError: ``given`` is neither, or a dictionary contains another name than its key.
    """
    if not isinstance(key, str) or not key:
        raise AnsibleFilterError(f"{_NAME}: the key must be the name of an option, not {_shown(key)}; give for example 'volume', or leave it out.")
    if isinstance(given, Mapping):
        return [_named(name, options, key) for name, options in given.items()]
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise AnsibleFilterError(
            f"{_NAME}: the input must be a list of names, a list of dictionaries or a dictionary of dictionaries by name, not {_shown(given)}; "
            "put a single one into a list."
        )
    members = sorted(given, key=str) if isinstance(given, Set) else given
    return [_listed(number, item, key) for number, item in enumerate(members, start=1)]


def _listed(number: int, item: object, key: str) -> dict:
    """The dictionary for one element of a list."""
    if isinstance(item, str):
        return {key: item}
    if isinstance(item, Mapping):
        return dict(item)
    raise AnsibleFilterError(f"{_NAME}: item {number} must be a name or a dictionary, not {_shown(item)}; {_advice(item)}.")


def _named(name: object, options: object, key: str) -> dict:
    """The dictionary for one entry of a dictionary by name. No value after the name (``db01:`` in YAML) means that it has no options."""
    if not isinstance(name, str):
        raise AnsibleFilterError(f"{_NAME}: a name must be a string, not {_shown(name)}; put it in quotes.")
    if options is None:
        return {key: name}
    if not isinstance(options, Mapping):
        raise AnsibleFilterError(
            f"{_NAME}: what stands under {name!s} must be a dictionary of options, not {_shown(options)}; put a single item into a list: [{{{key}: ...}}]."
        )
    if key in options and options[key] != name:
        raise AnsibleFilterError(f"{_NAME}: what stands under {name!s} has another {key}, {_shown(options[key])}; leave one of them out.")
    return {key: name, **options}


def _advice(item: object) -> str:
    if isinstance(item, (bool, int, float)):
        return "put it in quotes"
    return "leave it out" if item is None else "give one list, without lists in it"


def _shown(value: object) -> str:
    """A value for a message: its kind, and its first characters."""
    kinds = {bool: "the boolean", int: "the number", float: "the number", str: "the string", bytes: "the string"}
    if value is None:
        return "null"
    for kind, word in kinds.items():
        if isinstance(value, kind):
            text = str(value).lower() if kind is bool else repr(str.__str__(value)) if isinstance(value, str) else str(value)
            return f"{word} {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"
    if isinstance(value, Mapping):
        return "a dictionary"
    return "a list" if isinstance(value, (list, tuple)) else f"a value of type {type(value).__name__}"


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict:
        """The filters by name."""
        return {"items": items}
