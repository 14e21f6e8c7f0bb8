# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of options that Ansible itself refuses. Imported only then: most tasks have none."""

from __future__ import annotations

_DICTIONARIES = "{0} takes a list of dictionaries: {{{{ names | remotefs.storage.items }}}} makes one of names, or of a dictionary by name"


def no_such_value(error: Exception) -> str:
    """The message where an option is given what its type cannot hold."""
    return f"an option has a value that its kind cannot have ({error}); see the types of the options in ansible-doc."


def printable(params: dict) -> dict:
    """The options without those that the result of a task cannot hold: Python writes no number of more than 4300 digits."""
    return {name: value for name, value in params.items() if _is_printable(value)}


def _is_printable(value: object) -> bool:
    try:
        str(value)
    except ValueError:
        return False
    return True


def with_advice(msg: str, given: dict[str, object]) -> str:
    """The message, and how a list of dictionaries is made where an option is something else.

    :param given: what the options that take such lists were given, as the playbook has it.
    """
    wrong = [name for name, value in given.items() if _is_something_else(value)]
    return f"option '{wrong[0]}': {msg.rstrip('.')}; {_DICTIONARIES.format(wrong[0])}." if wrong else msg


def _is_something_else(given: object) -> bool:
    return given is not None and not (isinstance(given, list) and all(isinstance(item, dict) for item in given))
