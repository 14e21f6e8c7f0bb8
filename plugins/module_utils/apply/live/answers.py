# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of QEMU's answers, as far as they are read. This is the one place where an answer is checked.

What listens at a path that a user names can be anything. After this check the rest of the engine takes an answer as it is.
"""

from __future__ import annotations

from typing import Any

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
GREETING = {"QMP": dict}
ERROR = {"class": str, "desc": str}


class Strange(Exception):
    """What listens at the monitor's path says what no QEMU says."""


def check(command: str, answer: object) -> None:
    """Check the answer to a command. Of commands that only act, nothing is read. :raises Strange: it has another shape."""
    shape = _SHAPES.get(command)
    if shape is not None:
        require_shape(answer, shape, f"the answer to {command}")


def require_shape(value: object, shape: Any, where: str) -> None:
    """:raises Strange: the value has another shape. ``where`` is how the message names it."""
    if isinstance(shape, list):
        _require(isinstance(value, list), where)
        for one in value:  # type: ignore[attr-defined]
            require_shape(one, shape[0], where)
    elif isinstance(shape, dict):
        _require(isinstance(value, dict), where)
        for key, inner in shape.items():
            name = key.rstrip("?")
            if name in value or name == key:  # type: ignore[operator]
                _require(name in value, where)  # type: ignore[operator]
                require_shape(value[name], inner, where)  # type: ignore[index]
    else:
        _require(isinstance(value, shape) and (shape is bool or not isinstance(value, bool)), where)


def _require(holds: bool, where: str) -> None:
    if not holds:
        raise Strange(f"{where} is none that QEMU gives")


def is_path(told: str) -> bool:
    """Whether a file can have this name."""
    try:
        return 0 < len(told.encode()) <= _LONGEST_PATH and "\0" not in told
    except UnicodeEncodeError:
        return False
