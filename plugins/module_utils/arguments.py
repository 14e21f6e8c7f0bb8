# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules of volumes and snapshots share: argument specs, the way in and the way out.

The documentation of these options is in doc_fragments/store.py; a test compares both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Sequence

from .errors import InvalidParameter, StorageError

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from .operations.transaction import Options, Outcome

STORE = {
    "share": {"type": "list", "elements": "str"},
    "mount_base": {"type": "path", "default": "/var/lib/remotefs/mnt"},
}
CHANGE = {
    "lock_timeout": {"type": "float", "default": 90},
    "break_lock": {"type": "bool", "default": False},
    "assume_unused": {"type": "bool", "default": False},
    "parallel": {"type": "int"},
    "return_detail": {"type": "bool", "default": True},
}
_LARGE = 100  # objects in a result


def without_defaults(spec: dict) -> dict:
    """The spec for items of a bulk list: the task's own values are their defaults."""
    return {name: {key: value for key, value in option.items() if key not in ("default", "required")} for name, option in spec.items()}


def merged(item: dict, params: dict) -> dict:
    """An item of a bulk list, completed with the task's values."""
    own = {key: value for key, value in item.items() if value is not None}
    return {**params, **own}


def require(params: dict, *names: str) -> None:
    """:raises InvalidParameter: one of the options is not given."""
    for name in names:
        if params.get(name) in (None, "", []):
            raise InvalidParameter(f"option {name}", "it is missing", "give it in the item or for the whole task")


def check_numbers(params: dict) -> None:
    """:raises InvalidParameter: a number is out of its range."""
    if params["lock_timeout"] < 0:
        raise InvalidParameter("option lock_timeout", f"{params['lock_timeout']:g} is negative", "give seconds, 0 for not waiting at all")
    if params["parallel"] is not None and params["parallel"] < 1:
        raise InvalidParameter("option parallel", f"{params['parallel']} is less than 1", "give the number of volumes to work on at a time")


def parse_mode(value: object) -> int | None:
    """A file mode from an octal string or a number. :raises InvalidParameter: it is neither."""
    if value is None:
        return None
    try:
        mode = value if isinstance(value, int) and not isinstance(value, bool) else int(str(value), 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise InvalidParameter(f"mode {value!r}", "it is no octal file mode", "give a quoted octal string such as '0660'")
    return mode


def parse_owner(value: str | None) -> int | None:
    """The numeric id of a user name or number. :raises InvalidParameter: this host does not know it."""
    import pwd

    return _number_or(value, "owner", lambda name: pwd.getpwnam(name).pw_uid)


def parse_group(value: str | None) -> int | None:
    """The numeric id of a group name or number. :raises InvalidParameter: this host does not know it."""
    import grp

    return _number_or(value, "group", lambda name: grp.getgrnam(name).gr_gid)


def _number_or(value: str | None, option: str, look_up: Callable[[str], int]) -> int | None:
    if value is None or value.isdigit():
        return None if value is None else int(value)
    try:
        return look_up(value)
    except KeyError as error:
        raise InvalidParameter(f"{option} {value!r}", "this host knows no such name", "create it or give a number") from error


def options(module: AnsibleModule) -> Options:
    """How the task works, from the common options of a changing module."""
    from .operations.transaction import Options

    params = module.params
    check_numbers(params)
    return Options(module.check_mode, params["lock_timeout"], params["break_lock"], params["assume_unused"], warn=module.warn)


def result(outcome: Outcome) -> dict:
    """What a single change returns."""
    from .operations import report

    judged = {} if outcome.retention is None else {"retention": outcome.retention}
    return {
        "changed": outcome.changed,
        "actions": outcome.actions,
        "recovered": outcome.recovered,
        **judged,
        "volume": outcome.after,
        "diff": {"before": report.difference(outcome.before), "after": report.difference(outcome.after)},
    }


def run_info(spec: dict, read: Callable[[dict], dict]) -> None:
    """The whole of a module that reads: ``read`` gets the parameters and returns what the module does."""
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(argument_spec={**STORE, "share": {**STORE["share"], "required": True}, **spec}, supports_check_mode=True)
    try:
        found = read(module.params)
    except StorageError as error:
        module.fail_json(msg=str(error), error_code=error.error_code)
    _leave_reading(module, found)


def _leave_reading(module: AnsibleModule, found: dict) -> None:
    """End a task that reads.

    Ansible copies a result value by value to look for secrets in it, which for thousands of volumes takes as long as reading
    them and doubles the memory. A large result is written as it is, where there are no secrets to look for and no warnings.
    """
    from ansible.module_utils.common.warnings import get_deprecation_messages, get_warning_messages

    large = sum(len(objects) for objects in found.values()) > _LARGE
    if not large or module.no_log_values or get_warning_messages() or get_deprecation_messages():
        module.exit_json(changed=False, **found)
    import json
    import sys

    sys.stdout.write("\n")
    sys.stdout.write(json.dumps({"changed": False, **found}))
    raise SystemExit(0)


def read_volumes(params: dict, globs: Sequence[str] | None) -> list[dict]:
    """Volumes of all given shares. :raises StorageError: one of the shares cannot be read."""
    from .operations import candidates, reading

    found = candidates.find_candidates(params["share"], params["mount_base"])
    found.require_all()
    return [volume for share in found.shares for volume in reading.list_volumes(share, list(globs or ()))]


def failure(error: StorageError) -> dict:
    return {"changed": False, "actions": [], "recovered": [], "msg": str(error), "error_code": error.error_code}


def leave(module: AnsibleModule, single: dict) -> None:
    """End a task about one object."""
    if not module._diff:
        single.pop("diff", None)
    if "error_code" in single:
        module.fail_json(**single)
    module.exit_json(**single)


def _in_short(results: Sequence[dict]) -> dict:
    """``results`` and ``volumes`` for tasks about so many objects that nobody looks at each."""
    kept = ("name", "share", "path", "format", "size", "allocated")
    return {
        "results": [{key: value for key, value in one.items() if key not in ("actions", "retention", "volume")} for one in results],
        "volumes": [{key: one["volume"][key] for key in kept} for one in results if one.get("volume")],
    }


def leave_many(module: AnsibleModule, names: Sequence[str], outcomes: Sequence, what: str) -> None:
    """End a bulk task: ``results`` in input order; it fails if any of them did."""
    results, diffs = [], []
    for name, outcome in zip(names, outcomes):
        one = failure(outcome) if isinstance(outcome, StorageError) else result(outcome)
        diffs.append({"before_header": name, "after_header": name, **one.pop("diff", {})})
        results.append({"name": name, "failed": isinstance(outcome, StorageError), **one})
    everything = {
        "changed": any(one["changed"] for one in results),
        "results": results,
        "volumes": [one["volume"] for one in results if one.get("volume")],
    }
    if not module.params["return_detail"]:
        everything = {**everything, **_in_short(results)}
    if module._diff:
        everything["diff"] = [diff for diff in diffs if diff.get("before") != diff.get("after")]
    failed = [one for one in results if one["failed"]]
    if failed:
        told = " ".join(f"{one['name']}: {one['msg']}" for one in failed[:20])
        more = f" (and {len(failed) - 20} more, see results)" if len(failed) > 20 else ""
        module.fail_json(
            msg=f"{len(failed)} of {len(results)} {what} failed. {told}{more}", error_code=failed[0]["error_code"], **everything
        )
    module.exit_json(**everything)
