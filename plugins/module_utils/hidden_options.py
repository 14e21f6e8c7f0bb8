# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options with whole documents of which every value may be secret. They are taken out of what a result shows of its task.

Ansible itself blanks what looks like one of their values, wherever it stands in a result: each "1" where one is 1, and the name of a machine
in the path of its volume.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Iterator

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

_SHORTEST = 8  # letters of a value that is blanked as well, should it stand in a result all the same


class _Hidden(str):
    """Stands in the place of an option, and has its value."""

    value: Any = None


def hide(module: AnsibleModule, every: Iterable[dict], names: Iterable[str], secret: Iterable[str]) -> None:
    """Take options out of the parameters of a task. :func:`revealed` gives them back. Results may then show words that they have, if these are short
    or stand in another option in the open.

    :param every: what has the options. :param names: the options. :param secret: names of other ones with secrets, which stay what they are.
    """
    found: set[str] = set()
    for given in every:
        for name in names:
            if given.get(name) is not None:
                hidden = _Hidden("VALUE_SPECIFIED_IN_NO_LOG_PARAMETER")  # as Ansible calls it
                hidden.value, given[name] = given[name], hidden
                found.update(_words(hidden.value))
    kept, others = frozenset(secret), set(_words(module.params, only=frozenset(secret)))
    shown = "\n".join(_words(module.params, kept))
    module.no_log_values -= {word for word in found - others if len(word) < _SHORTEST or word in shown}


def revealed(given: dict) -> dict:
    """Options with the values of those that :func:`hide` took out."""
    return {name: value.value if isinstance(value, _Hidden) else value for name, value in given.items()}


def _words(value: object, without: frozenset[str] = frozenset(), only: frozenset[str] = frozenset()) -> Iterator[str]:
    """All texts and numbers in a value, but for what stands under a name of ``without``. :param only: if there are any, what stands under one."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in without:
                yield from _words(item, without, frozenset() if name in only else only)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _words(item, without, only)
    elif value is not None and not isinstance(value, (bool, _Hidden)) and not only:
        yield str(value)
