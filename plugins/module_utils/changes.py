# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules that change volumes and snapshots share: the options that say how, checks of values, and the result.

The documentation of these options is in doc_fragments/store.py; a test compares both.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, ContextManager, Iterable

from . import errors, model

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from .background import Worker
    from .operations import step_log, transaction
    from .operations.candidates import Candidates, Finder
    from .operations.options import Options

_VERBOSE = 3  # -vvv
_LONGEST_MODE = 8  # digits
_LONGEST_ID, _NO_ID = 10, 2**32 - 1  # digits; the number that chown takes for "leave it"
_LONGEST_SHOWN = 40  # characters of a value in a message
_SHORTEST_SECRET = 8  # letters of a header's value that results must not show
_LONGEST_WAIT = 10 * 365 * 86400  # seconds
CHANGE = {
    "lock_timeout": {"type": "float", "default": 90},
    "break_lock": {"type": "bool", "default": False},
    "assume_unused": {"type": "bool", "default": False},
    "log_path": {"type": "path"},
    "speed": {"type": "str", "default": "0"},
    "timeout": {"type": "float"},
    "progress": {"type": "bool", "default": True},
}
MANY = {"parallel": {"type": "int"}, "return_detail": {"type": "bool", "default": True}}
_LIBVIRT = {"type": "dict", "options": {"uri": {"type": "str", "default": "qemu:///system"}, "domain": {"type": "str"}}}
_ONE_OF = [["qmp", "libvirt"]]
ATTACHMENT = {
    "type": "dict",
    "options": {"qmp": {"type": "path"}, "agent": {"type": "path"}, "libvirt": _LIBVIRT},
    "mutually_exclusive": [*_ONE_OF, ["agent", "libvirt"]],
}
_taken: list[dict] = []  # what this task has told of leases that it took first
_MANY_CHANGES = ("volumes", "snapshots", "keep", "flatten")  # options of tasks that may have changed something before what takes long


def merged(item: dict, params: dict) -> dict:
    """An item of a bulk list, completed with the task's values. ``of_all``: the machine was named for all of them."""
    own = {key: value for key, value in item.items() if value is not None}
    return {**params, **own, "of_all": "attachment" not in own}


def require(params: dict, *names: str) -> None:
    """:raises InvalidParameter: one of the options is not given."""
    for name in names:
        if params.get(name) in (None, "", []):
            raise errors.InvalidParameter(f"option {name}", "it is missing", "give it in the item or for the whole task")


def with_machine(options: Options, params: dict) -> Options:
    """The options with the machine that has the volume as a disk, as the task or its item names it.

    :raises InvalidParameter: there can be no such machine, or no such socket of its guest's agent.
    """
    if not (given := params.get("attachment")):
        return options
    from . import machines

    return replace(options, attachment=machines.named(given), agent=machines.agent(given), of_all=params.get("of_all", False))


def under_leases(options: Options, every: Iterable[dict], finder: Finder) -> ContextManager[None]:
    """A context in which the task works under the leases that its items name. :raises LeaseLost: one is not the task's any more."""
    if wanted := [params for params in every if params.get("lease")]:
        from . import leasing
        return leasing.working_under(wanted, options, finder, _taken.append)
    return nullcontext()


def add_leases(result: dict) -> None:
    """Add to the task's result what it did about leases that it took first."""
    if _taken:
        from . import leasing
        leasing.add(result, _taken)


def with_lease(options: Options, params: dict, candidates: Candidates) -> Options:
    """The options with the lease that the task or its item names."""
    if params.get("lease"):
        from .operations import lease_holding
        return lease_holding.under(options, params["lease"], candidates)
    return options


def one_after_the_other(params: dict) -> frozenset[str]:
    """What items of a task share that must not work at the same time."""
    if not params.get("attachment"):
        return frozenset()
    from . import machines

    return machines.shared(params["attachment"])


def check_numbers(params: dict) -> None:
    """:raises InvalidParameter: a number is out of its range."""
    if not 0 <= params["lock_timeout"] <= _LONGEST_WAIT:
        raise errors.InvalidParameter(
            "option lock_timeout",
            f"{params['lock_timeout']:g} is negative, endless or no number",
            f"give seconds up to {_LONGEST_WAIT}, 0 for not waiting at all",
        )
    if params["timeout"] is not None and not 0 < params["timeout"] <= _LONGEST_WAIT:
        raise errors.InvalidParameter(
            "option timeout",
            f"{params['timeout']:g} is no number of seconds for data to move in",
            f"give seconds above 0 and up to {_LONGEST_WAIT}, or leave it out",
        )
    if params.get("parallel") is not None and params["parallel"] < 1:
        raise errors.InvalidParameter("option parallel", f"{params['parallel']} is less than 1", "give the number of volumes to work on at a time")


def parse_speed(value: str) -> int:
    """Bytes a second from a number, with or without an IEC suffix (``0``, ``"50M"``). 0 is any speed. :raises InvalidParameter: it is none."""
    if value.strip() == "0":
        return 0
    try:
        return model.parse_bytes(value)
    except errors.InvalidSize as error:
        remedy = "give bytes a second, with or without K, M, G, T or P (IEC), such as 50M; or 0 for any speed"
        raise errors.InvalidParameter("option speed", f"{value[:_LONGEST_SHOWN]!r} is none", remedy) from error


def parse_mode(value: object) -> int | None:
    """A file mode from an octal string or a number. :raises InvalidParameter: it is neither."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        mode = value
    else:
        text = str(value)  # int() would take other scripts' digits, underscores and signs
        mode = int(text, 8) if text and len(text) <= _LONGEST_MODE and not text.strip("01234567") else -1
    if not 0 <= mode <= 0o777:
        raise errors.InvalidParameter(f"mode {value!r}", "it is no octal file mode", "give a quoted octal string such as '0660'")
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
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        if len(value) > _LONGEST_ID or int(value) >= _NO_ID:
            raise errors.InvalidParameter(f"{option} {value!r}", "it is no id that a file can have", f"give a number below {_NO_ID}, or a name")
        return int(value)
    try:
        return look_up(value)
    except (KeyError, ValueError) as error:
        raise errors.InvalidParameter(f"{option} {value!r}", "this host knows no such name", "create it or give a number") from error


def options(module: AnsibleModule) -> Options:
    """How the task works, from the common options of a changing module."""
    from .operations.options import Options, Task

    params = module.params
    check_numbers(params)
    work, watched = getattr(module, "work", None), getattr(module, "watched", None)
    task = Task(_once(module.warn), _step_log(module), meter=work.meter if work is not None else None, begins_anew=bool(watched))
    check = module.check_mode
    waits = params["lock_timeout"], params["break_lock"], params["assume_unused"]
    return Options(check, *waits, speed=parse_speed(params["speed"]), timeout=params["timeout"], assume=check, task=task)


def plain_options(module: AnsibleModule) -> Options:
    """As :func:`options`, of a module that moves no data."""
    from .operations.options import Options, Task

    params = module.params
    check_numbers({"timeout": None, **params})
    waits = params["lock_timeout"], params["break_lock"], params.get("assume_unused", False)
    return Options(module.check_mode, *waits, assume=module.check_mode, task=Task(_once(module.warn)))


def _once(warn: Callable[[str], None]) -> Callable[[str], None]:
    """Many objects of a task have the same reason to warn."""
    told: set[str] = set()

    def warn_once(text: str) -> None:
        if text not in told:
            told.add(text)
            warn(text)

    return warn_once


def make_module(spec: dict, **conditions: Any) -> AnsibleModule:
    """The module with these options, which takes check mode. What Ansible refuses of them has an ``error_code`` too, and where a list
    of dictionaries is something else, the message says how one is made."""
    from ansible.module_utils.basic import AnsibleModule

    lists = [name for name, option in spec.items() if option.get("elements") == "dict"]

    class Module(AnsibleModule):
        parsed = False
        work: Worker | None = None
        watched: dict | None = None  # what the action plugin asks that shows progress

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            try:
                super().__init__(*args, **kwargs)
            except (ArithmeticError, TypeError, ValueError) as error:  # of Ansible's own look at them
                from . import refused

                self.params = refused.printable(dict(vars(self)["params"]))
                self.fail_json(refused.no_such_value(error))

        def _load_params(self) -> None:
            super()._load_params()
            if "progress" in spec:
                self.watched = self.params.pop("_progress", None)  # no option of the module's: see background.py
            self.given = {name: self.params.get(name) for name in lists}  # a list that is refused is empty by the time of the failure

        def fail_json(self, msg: str, **kwargs: Any) -> None:
            if not self.parsed:
                kwargs.setdefault("error_code", errors.InvalidParameter.error_code)
                from . import refused

                msg = refused.with_advice(msg, self.given)
            with self.work or nullcontext():
                super().fail_json(msg, **kwargs)

        def add_path_info(self, kwargs: dict) -> dict:
            """Nothing: Ansible would put the length of a file ``dest`` in the place of a disk's size, and call a URL absent."""
            return kwargs

        def exit_json(self, **kwargs: Any) -> None:
            with self.work or nullcontext():
                super().exit_json(**kwargs)

    module = Module(argument_spec=spec, supports_check_mode=True, **conditions)
    module.parsed = True
    if not module.watched or "place" not in module.watched:
        _reach_libvirt(module)
    if module.watched and ("place" in module.watched or any(module.params.get(name) for name in _MANY_CHANGES)):
        _be_watched(module)
    return module


def show_short_words(module: AnsibleModule, headers: Iterable[dict | None]) -> None:
    """Let results keep words that are also short values of headers. Ansible would blank each "1" in a result if a header has it."""
    values = {str(value) for given in headers for value in (given or {}).values()}
    module.no_log_values -= {value for value in values if len(value) < _SHORTEST_SECRET}


def _reach_libvirt(module: AnsibleModule) -> None:
    """Go on under a Python that has libvirt's binding, if the task names a domain."""
    lists = (value for value in module.params.values() if isinstance(value, list))
    items = [module.params, *(item for items in lists for item in items if isinstance(item, dict))]
    if any((item.get("attachment") or {}).get("libvirt") is not None for item in items):
        from . import machines

        machines.go_on_with_binding()


def _be_watched(module: Any) -> None:
    """From here on the task is done in a process that is watched, and can take long."""
    from . import background  # late: a short task does not need it

    asked, module.watched = module.watched, None
    module.work = background.begin(module, asked)


def run_watched(module: AnsibleModule, run: Callable[[], dict]) -> dict:
    """What ``run`` returns, a task about one object. If it is going to take long, it is done in a process that is watched."""
    from .operations.options import TakesLong

    try:
        return run()
    except TakesLong:
        _be_watched(module)
        return run()


_logs: list[step_log.StepLog] = []  # of this task: at most one


def _step_log(module: AnsibleModule) -> step_log.StepLog | None:
    """Where steps are logged, if anywhere. Check mode touches no file. :raises InvalidParameter: the file cannot be opened."""
    path, keep = None if module.check_mode else module.params["log_path"], module._verbosity >= _VERBOSE
    if path is None and not keep:
        return None
    from .operations.step_log import StepLog

    _logs[:] = [StepLog(path, keep, module.warn)]
    return _logs[0]


def log_failure(volume: str, one: dict) -> None:
    """Add a line for an object that failed, whether a step had begun or not. :param one: its result."""
    if _logs:
        _logs[0](volume, {"step": "fail", "error_code": one["error_code"], "msg": one["msg"]}, 0.0)


def logged(module: AnsibleModule) -> dict:
    """``log`` for a result that is shown with ``-vvv``."""
    return {"log": _logs[0].lines} if _logs and module._verbosity >= _VERBOSE else {}


def result(outcome: transaction.Outcome) -> dict:
    """What a single change returns."""
    from .operations import report

    judged = {} if outcome.retention is None else {"retention": outcome.retention}
    return {
        "changed": outcome.changed,
        "actions": outcome.actions,
        "recovered": outcome.recovered,
        **judged,
        **({"not_counted": list(outcome.not_counted)} if outcome.not_counted else {}),
        **(outcome.quiesced.describe() if outcome.quiesced else {}),
        **(outcome.told or {}),
        "volume": outcome.after,
        "diff": _diff(report.difference(outcome.before), report.difference(outcome.after), outcome.content),
    }


def _diff(before: dict, after: dict, content: tuple[str, str] | None) -> dict:
    """``content`` is what a revert does to the data, which nothing else of a volume may show."""
    if content is None:
        return {"before": before, "after": after}
    return {"before": {**before, "content": content[0]}, "after": {**after, "content": content[1]}}


def failure(error: errors.StorageError) -> dict:
    """The result of an object whose change failed: ``msg``, ``error_code`` and what else the error says."""
    return {"changed": False, "actions": [], "recovered": [], "msg": str(error), "error_code": error.error_code, **error.details}


def leave(module: AnsibleModule, single: dict, label: str) -> None:
    """End a task about one object. :param label: what a diff calls it."""
    add_leases(single)
    if not module._diff:
        single.pop("diff", None)
    elif "diff" in single:
        single["diff"] = {"before_header": label, "after_header": label, **single["diff"]}
    if "error_code" in single:
        log_failure(str(module.params.get("volume", module.params.get("name")) or ""), single)
    single.update(logged(module))
    if "error_code" in single:
        module.fail_json(**single)
    module.exit_json(**single)
