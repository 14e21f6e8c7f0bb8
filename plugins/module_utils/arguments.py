# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules of volumes and snapshots share: the options that say where, and the whole of a module that reads.

The documentation of these options is in doc_fragments/store.py; a test compares both.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Callable, Sequence

from . import errors, model

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from .operations import reading

STORE = {
    "share": {"type": "raw"},  # one share or a list: Ansible would split a list's text at commas, which names of directories may have
    "mount_base": {"type": "path", "default": model.MOUNT_BASE},
}
# Of modules that are about shares as wholes. Without ``share`` they are about all that are mounted.
SHARES = {**STORE, "fstab": {"type": "path", "default": model.FSTAB}, "timeout": {"type": "int", "default": 10}}
_LARGE = 50_000  # characters of a result


def without_defaults(spec: dict) -> dict:
    """The spec for items of a bulk list: the task's own values are their defaults."""
    return {name: {key: value for key, value in option.items() if key not in ("default", "required")} for name, option in spec.items()}


def run_info(spec: dict, read: Callable[[dict, Callable[[str], None] | None], dict[str, list[str]]]) -> None:
    """The whole of a module that reads: ``read`` gets the parameters, and in check mode how to warn of shares that are not there yet,
    and returns lists of the result, each as pieces of JSON."""
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(argument_spec={**STORE, "share": {**STORE["share"], "required": True}, **spec}, supports_check_mode=True)
    try:
        found = read(module.params, module.warn if module.check_mode else None)
    except Exception as error:  # an unexpected one is a failure with a code, too
        known = errors.as_storage_error(error, "this task")
        module.fail_json(msg=str(known), error_code=known.error_code, **known.details)
    _leave_reading(module, found)


def _leave_reading(module: AnsibleModule, found: dict[str, list[str]]) -> None:
    """End a task that reads.

    Ansible copies a result value by value to look for secrets in it, which for thousands of volumes takes as long as reading
    them and doubles the memory. A large result is written as it is, where there are no secrets to look for and no warnings.
    """
    from ansible.module_utils.common.warnings import get_deprecation_messages, get_warning_messages

    large = sum(len(piece) for pieces in found.values() for piece in pieces) > _LARGE
    if not large or module.no_log_values or get_warning_messages() or get_deprecation_messages():
        import json

        module.exit_json(changed=False, **{key: json.loads(f"[{', '.join(pieces)}]") for key, pieces in found.items()})
    import sys

    sys.stdout.write('\n{"changed": false')
    for key, pieces in found.items():
        sys.stdout.write(f', "{key}": [')
        sys.stdout.writelines(f", {piece}" if position else piece for position, piece in enumerate(pieces))
        sys.stdout.write("]")
    sys.stdout.write("}")
    raise SystemExit(0)


def shares_to_read(params: dict, warn: Callable[[str], None] | None = None) -> Sequence[model.Share]:
    """The shares that the parameters name.

    :param warn: takes a warning for each share that is not there yet, which counts as empty; None: such a share is an error.
    :raises StorageError: one of the shares cannot be read.
    """
    from .operations import candidates

    given = candidates.find_candidates(params["share"], params["mount_base"])
    if warn is not None and given.missing:
        from .operations import assumptions

        given = assumptions.reachable_for_reading(given, warn)
    given.require_all()
    return given.shares


def read_volumes(
    params: dict,
    globs: Sequence[str] | None,
    shape: reading.Shape,
    keys: Sequence[str],
    warn: Callable[[str], None] | None = None,
) -> dict[str, list[str]]:
    """What ``shape`` makes of the volumes of all given shares, under these keys, as pieces of JSON.

    :param warn: takes a warning for each share that is not there yet, which counts as empty; None: such a share is an error.
    :raises StorageError: one of the shares cannot be read, or its server stops answering meanwhile.
    """
    from .operations import candidates, reading

    found: dict[str, list[str]] = {key: [] for key in keys}
    for share in shares_to_read(params, warn):
        for told in candidates.heard(share, partial(reading.told_volumes, share, list(globs or ()), shape)):
            for key, piece in told.items():
                found[key].append(piece)
    return found
