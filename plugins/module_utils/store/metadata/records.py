# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a volume, ``.remotefs/volumes/NAME.json``: formats, details of snapshots, the intent of a running task.

A record is trusted no more than the share itself. Names in it are checked, formats must still be possible, and recovery acts
only on states that the recorded intent can have left.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Callable, NamedTuple

from ... import errors, model

if TYPE_CHECKING:
    from ..files.directory import ShareDirectory

_VERSION = 1


class Garbage(NamedTuple):
    """A file that a finished task may unlink. Its inode and size (bytes) prove that it is unchanged since the record was written."""

    file: str
    inode: int
    size: int


class Disk(NamedTuple):
    """A file as it was when it was made or first recorded: its inode (0 if the file system has no lasting inodes) and length in bytes.
    ``generation`` differs between files that had the same inode one after the other; 0 if the file system does not show it."""

    inode: int
    length: int
    generation: int = 0


class PointMark(NamedTuple):
    """The identity of a snapshot's point, and what its overlay was when it was recorded: inode, generation (both as of :class:`Disk`) and
    backing file; of that file the inode, the length in bytes and the time of the last write (ns). The identity holds as long as all that is so."""

    point: str
    inode: int
    generation: int
    backing_file: str
    backing_inode: int
    length: int
    written: int


class Checksum(NamedTuple):
    """The file that a snapshot's point ends with, and the checksum of what it holds by itself (see apply/offline/layer_sums.py)."""

    file: str
    digits: str


SAME, OTHER, UNKNOWN = "same", "other", "unknown"  # results of :func:`identity`


@dataclass(frozen=True)
class Record:
    """The record of one volume. ``formats``: own file → format. ``snapshots``: name → dict with the keys file, created, description, labels,
    protected, expires, point (a :class:`PointMark` or None), received and checksum (a :class:`Checksum` or None). ``intent``: see plan/intent.py.
    ``parent``: what a linked clone rests on. ``active``: the file that ``.info`` named last. ``disks``: those raw files that only a guest writes to.
    ``marks``: which file the base is (older releases wrote none). ``created``, ``description``, ``labels``, ``received``, ``replicated``, ``move`` and
    ``lease`` are the volume's own."""

    formats: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, dict] = field(default_factory=dict)
    intent: dict | None = None
    garbage: tuple[Garbage, ...] = ()
    parent: model.Parent | None = None
    active: str | None = None
    disks: dict[str, Disk] = field(default_factory=dict)
    created: str | None = None
    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    marks: dict[str, Disk] = field(default_factory=dict)
    received: bool = False
    replicated: bool = False
    move: model.Move | None = None
    lease: str | None = None

    def to_bytes(self, volume: str) -> bytes:
        """The record as one line of JSON."""
        content = {
            "version": _VERSION,
            "volume": volume,
            "formats": self.formats,
            "snapshots": self.snapshots,
            "intent": self.intent,
            "garbage": [[item.file, item.inode, item.size] for item in self.garbage],
            "parent": None if self.parent is None else asdict(self.parent),
            "active": self.active,
            "disks": {file: list(disk[:2]) for file, disk in self.disks.items()},  # older releases expect two numbers
            "marks": {file: list(disk) for file, disk in self.marks.items()},
            "created": self.created,
            "description": self.description,
            "labels": self.labels,
            **{key: True for key, value in (("received", self.received), ("replicated", self.replicated)) if value},
            **({} if self.move is None else {"move": list(self.move)}),
            **({} if self.lease is None else {"lease": self.lease}),
        }
        return json.dumps(content, sort_keys=True).encode("utf-8")  # not indented: that takes json ten times as long

    def with_intent(self, intent: dict) -> Record:
        """A copy with this intent."""
        return replace(self, intent=intent)


def describing(
    volume: model.Volume,
    garbage: tuple[Garbage, ...] = (),
    disks: dict[str, Disk] | None = None,
    marks: dict[str, Disk] | None = None,
    points: dict[str, PointMark] | None = None,
    checksums: dict[str, Checksum] | None = None,
) -> Record:
    """The record of a volume after a task: formats of its files, details of its snapshots, no intent. :param points: by snapshot, as checksums."""
    known = points or {}
    details = {
        snapshot.name: {
            "file": snapshot.file,
            "created": snapshot.created,
            "description": snapshot.description,
            "labels": dict(snapshot.labels),
            "protected": snapshot.protected,
            "expires": snapshot.expires,
            "point": known.get(snapshot.name),
            "received": snapshot.received,
            "checksum": (checksums or {}).get(snapshot.name),
        }
        for snapshot in volume.snapshots
    }
    return Record(
        {image.file: image.format for image in volume.own if image.format},
        details,
        None,
        garbage,
        volume.parent,
        volume.active.file,
        disks or {},
        volume.created,
        volume.description,
        dict(volume.labels),
        marks or {},
        volume.received,
        volume.replicated,
        volume.move,
        volume.lease,
    )


def file_name(volume: str) -> str:
    """The name of a volume's record in ``.remotefs/volumes``."""
    return volume + ".json"


def read(directory: ShareDirectory, volume: str) -> Record | None:
    """Read the record of a volume. None if there is none. Raises what :func:`parse` raises."""
    private = directory.private("volumes")
    return parse(volume, private.read_small(file_name(volume))) if private else None


def parse(volume: str, data: bytes | None) -> Record | None:
    """Parse a record; None stays None. :raises ChainBroken: it is damaged. :raises NeedsRecovery: a newer release wrote it."""
    if data is None:
        return None
    subject = f"record .remotefs/volumes/{file_name(volume)}"
    remedy = "move the file away and adopt the volume anew with remotefs_volume"
    try:
        content = last_whole_line(data)
        version = content["version"]
        record = Record(
            formats={str(name): str(value) for name, value in content["formats"].items()},
            snapshots={str(name): _details(value) for name, value in content["snapshots"].items()},
            intent=_intent(content["intent"]),
            garbage=tuple(Garbage(str(name), int(inode), int(size)) for name, inode, size in content["garbage"]),
            parent=None if content.get("parent") is None else model.Parent(**content["parent"]),
            active=content.get("active"),
            disks={str(name): Disk(int(inode), int(length)) for name, (inode, length) in content.get("disks", {}).items()},
            created=_text(content.get("created")),
            description=str(content.get("description", "")),
            labels=_labels(content.get("labels", {})),
            marks={str(name): Disk(*(int(number) for number in disk)) for name, disk in content.get("marks", {}).items()},
            received=content.get("received") is True,
            replicated=content.get("replicated") is True,
            move=model.move_from_json(content.get("move")),
            lease=_text(content.get("lease")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise errors.ChainBroken(subject, f"it is damaged ({error!r})", remedy) from error
    if version != _VERSION:
        raise errors.NeedsRecovery(subject, f"its version {version!r} is not known here", "use the release of the collection that wrote it")
    names = list(record.formats) + [item.file for item in record.garbage]
    names += [record.parent.volume, record.parent.file] if record.parent else []
    names += [record.active] if record.active is not None else []
    names += [details["file"] for details in record.snapshots.values() if details["file"] is not None]
    if not model.are_safe_file_names(names) or not set(record.formats.values()) <= set(model.FORMATS):
        raise errors.ChainBroken(subject, "it names files or formats that cannot be", remedy)
    return record


def last_whole_line(data: bytes) -> dict:
    """The content of a record. It has one line; on a full share more were added in place, and the last whole one counts."""
    lines = data.splitlines()
    if len(lines) > 1:
        from ..files import packed_lines  # late: nearly all records have one line

    for line in reversed(lines[1:]):
        try:
            return json.loads(packed_lines.unpacked(line).decode("utf-8"))
        except ValueError:
            continue
    return json.loads((lines[0] if len(lines) > 1 else data).decode("utf-8"))


def _details(value: dict) -> dict:
    return {
        "file": value.get("file"),
        "created": _text(value.get("created")),
        "description": str(value.get("description", "")),
        "labels": _labels(value.get("labels", {})),
        "protected": value.get("protected") is True,
        "expires": _text(value.get("expires")),
        "point": _point(value.get("point")),
        "received": value.get("received") is True,
        "checksum": _checksum(value.get("checksum")),
    }


def _point(value: object) -> PointMark | None:
    """What is no identity counts as none: then the point gets a new one."""
    if not isinstance(value, list) or len(value) != 7 or not model.are_safe_file_names(value[:4:3]):
        return None
    return PointMark(*value) if all(isinstance(one, int) for one in (*value[1:3], *value[4:])) else None


def _checksum(value: object) -> Checksum | None:
    """What is no checksum counts as none: then nothing can be compared with it."""
    is_one = isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    return Checksum(*value) if is_one and isinstance(value, list) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _labels(value: dict) -> dict[str, str]:
    return {str(key): str(item) for key, item in value.items()} if value else {}


def _intent(value: object) -> dict | None:
    if value is not None and not isinstance(value, dict):
        raise TypeError("intent")
    return value


def is_disk(record: Record, file: str, inode: int, length: int) -> bool:
    """Whether a file with this inode and length (bytes) is exactly the raw disk that a record knows, so that a guest wrote its content.

    A disk only grows. A shorter file is another one, which got the inode after the disk was gone. If the file system has no lasting
    inodes, the length must be equal.
    """
    disk = record.disks.get(file)
    if disk is None or record.formats.get(file) != "raw":
        return False
    return disk.inode == inode and length >= disk.length if disk.inode else disk.length == length


def identity(record: Record, file: str, status: os.stat_result, generation: Callable[[], int] | None = None) -> str:
    """Whether a file is the one that a record is about: SAME, OTHER, or UNKNOWN if the record does not identify it.

    A raw disk only grows. Inodes are used again, so a file that is longer than recorded may be another file.

    :param generation: returns the generation of the file, 0 if unknown. Without it, a longer file is UNKNOWN.
    """
    mark = record.marks.get(file) or record.disks.get(file)
    if mark is None:
        return UNKNOWN
    raw = record.formats.get(file) == "raw"
    if not mark.inode:  # only the length of a raw disk is left to compare
        return UNKNOWN if not raw else SAME if status.st_size == mark.length else OTHER
    if mark.inode != status.st_ino or (raw and status.st_size < mark.length):
        return OTHER
    if not mark.generation or (raw and status.st_size == mark.length):
        return SAME
    return UNKNOWN if generation is None else SAME if generation() in (0, mark.generation) else OTHER
