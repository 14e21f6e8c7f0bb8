# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A point that is opened on this host, as a task wants it and as it is recorded. Values only; nothing here opens a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from .. import errors
from .guard import FUSE, NBD

_MOST_PID = 1 << 31
_VERSION = 1
_LONGEST = 4096  # letters of a text


class Target(NamedTuple):
    """Where a point is shown: ``kind`` is :data:`guard.FUSE` or :data:`guard.NBD`, ``path`` that of the file or socket, an absolute one."""

    kind: str
    path: str

    @property
    def name(self) -> str:
        """The name of its folder, which no other has."""
        return hashlib.sha256(os.fsencode(f"{self.kind}:{self.path}")).hexdigest()[:20]

    @property
    def option(self) -> str:
        """The option that names it."""
        return "path" if self.kind == FUSE else "nbd"


class Part(NamedTuple):
    """A file of the chain: its name, and which file that was when it was opened."""

    file: str
    device: int
    inode: int


@dataclass(frozen=True)
class Point:
    """What is shown: a snapshot of a volume, or its present (None), on the share of this ``source`` and directory.

    :ivar parts: its chain, top first. :ivar size: its virtual size in bytes.
    """

    share: str
    source: str
    volume: str
    snapshot: str | None
    parts: tuple[Part, ...]
    size: int

    @property
    def label(self) -> str:
        """How messages name it. It is the name of the export of NBD, too."""
        return f"{self.volume}@{self.snapshot}" if self.snapshot else self.volume


@dataclass(frozen=True)
class Record:
    """What is recorded of a point from before it is opened until it is closed.

    :ivar boot, ends: the start of the host, and the seconds after it (:func:`guard.clock`) when the time is over. :ivar opened: when that was (UTC).
    :ivar guard, daemon: their processes (0: not known yet). :ivar mark: the name of its mark on the share, if it has one.
    """

    target: Target
    point: Point
    boot: str
    ends: float
    opened: str
    guard: int = 0
    daemon: int = 0
    mark: str | None = None

    def to_text(self) -> str:
        """As JSON."""
        flat = {"version": _VERSION, **asdict(self), "target": self.target._asdict()}
        return json.dumps(flat, indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_text(text: str, where: str) -> Record:
        """:raises ToolFailed: it is no record. ``where`` is the file's path, for the message."""
        try:
            told = json.loads(text)
            _require(isinstance(told, dict) and told["version"] == _VERSION)
            return Record(
                Target(_one_of(told["target"]["kind"], (FUSE, NBD)), _path(told["target"]["path"])),
                _point(told["point"]),
                _text(told["boot"]),
                _time(told["ends"]),
                _text(told["opened"]),
                _number(told["guard"], _MOST_PID),
                _number(told["daemon"], _MOST_PID),
                None if told["mark"] is None else _mark(told["mark"]),
            )
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise errors.ToolFailed(where, f"it is no record of an opened point ({error})", "end what it is about, and remove its folder") from error


def _point(told: Any) -> Point:
    _require(isinstance(told, dict) and isinstance(told["parts"], list))
    parts = tuple(Part(_text(file), _number(device, 1 << 64), _number(inode, 1 << 64)) for file, device, inode in told["parts"])
    snapshot = None if told["snapshot"] is None else _text(told["snapshot"])
    return Point(_absolute(_name(told["share"])), _name(told["source"]), _text(told["volume"]), snapshot, parts, _number(told["size"], 1 << 63))


def _text(value: Any) -> str:
    _require(isinstance(value, str) and value.isprintable() and 0 < len(value) <= _LONGEST)
    return str(value)


def _name(value: Any) -> str:
    """Of a share, which may have any letters. Messages escape them."""
    _require(isinstance(value, str) and "\0" not in value and 0 < len(value) <= _LONGEST)
    return str(value)


def _mark(value: Any) -> str:
    _require(_text(value).isalnum())
    return str(value)


def _path(value: Any) -> str:
    return _absolute(_text(value))


def _absolute(path: str) -> str:
    _require(path.startswith("/") and path == os.path.normpath(path))
    return path


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    _require(value in known)
    return str(value)


def _number(value: Any, beyond: int) -> int:
    _require(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < beyond)
    return int(value)


def _time(value: Any) -> float:
    _require(isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value < 1 << 40)
    return float(value)


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("a value of it is missing or of another kind")
