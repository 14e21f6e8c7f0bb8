# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of QEMU's answers, as far as they are read. This is the one place where an answer is checked.

What listens at a path that a user names can be anything. After this check the rest of the engine takes an answer as it is.
"""

from __future__ import annotations

from typing import Any, Callable

_LONGEST_PATH = 4096  # bytes
_JOB = {"id": str, "type": str, "status": str, "error?": str}
_NODE = {
    "node-name": str,
    "drv": str,
    "ro": bool,
    "file": str,
    "image": {"virtual-size": int},
    "cache?": {"direct": bool, "no-flush": bool},
    "dirty-bitmaps?": [{"name?": str}],
}
_GRAPH = {"nodes": [{"id": int, "type": str, "name": str}], "edges": [{"parent": int, "child": int, "name": str, "shared-perm?": [str]}]}
# A type, a dictionary of keys (with "?": may be missing), or a list of what its only element says.
_SHAPES: dict[str, Any] = {
    "query-commands": [{"name": str}],
    "query-status": {"status": str},
    "query-migrate": {"status?": str},
    "query-jobs": [_JOB],
    "query-named-block-nodes": [_NODE],
    "query-block-exports": [{"node-name": str}],
    "x-debug-query-block-graph": _GRAPH,
    "query-chardev": [{"label": str, "filename": str, "frontend-open": bool}],
    "qom-list": [{"name": str, "type": str}],
}


class Strange(Exception):
    """What listens at the monitor's path says what no QEMU says."""


def check(command: str, answer: object) -> None:
    """Check the answer to a command. Of commands that only act, nothing is read. :raises Strange: it has another shape."""
    holds = _CHECKS.get(command)
    if holds is not None and not holds(answer):
        raise Strange(f"the answer to {command} is none that QEMU gives")


def require_greeting(value: object) -> None:
    """:raises Strange: it is no greeting of QEMU's."""
    if not _is_greeting(value):
        raise Strange("its greeting is none that QEMU gives")


def require_error(value: object, command: str) -> None:
    """:raises Strange: it is not what QEMU says when it refuses a command."""
    if not _is_error(value):
        raise Strange(f"the answer to {command} is none that QEMU gives")


def _check_of(shape: Any) -> Callable[[object], bool]:
    """What tells whether a value that was read from JSON has a shape. It is made once: the graph of a long chain has thousands of values."""
    if isinstance(shape, list):
        one = _check_of(shape[0])
        return lambda value: isinstance(value, list) and all(map(one, value))
    if isinstance(shape, dict):
        return _check_of_keys(shape)
    return lambda value: value.__class__ is shape  # a bool is an int, too, and not the one that is meant


def _check_of_keys(shape: dict[str, Any]) -> Callable[[object], bool]:
    plain = [(key, inner) for key, inner in shape.items() if isinstance(inner, type) and not key.endswith("?")]
    others = [(key.rstrip("?"), key.endswith("?"), _check_of(inner)) for key, inner in shape.items() if (key, inner) not in plain]

    def holds(value: object) -> bool:
        if not isinstance(value, dict):
            return False
        for key, kind in plain:
            if value.get(key).__class__ is not kind:
                return False
        for key, may_lack, inner in others:
            if not (inner(value[key]) if key in value else may_lack):
                return False
        return True

    return holds


_CHECKS = {command: _check_of(shape) for command, shape in _SHAPES.items()}
_is_greeting = _check_of({"QMP": dict})
_is_error = _check_of({"class": str, "desc": str})


def is_path(told: str) -> bool:
    """Whether a file can have this name."""
    try:
        return 0 < len(told.encode()) <= _LONGEST_PATH and "\0" not in told
    except UnicodeEncodeError:
        return False
