# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What we keep of a volume in ``.remotefs/volumes/NAME.json``: formats, snapshot details, the intent of a running task.

It is trusted no more than the share itself: names in it are checked, formats must still be possible, and recovery acts
only on states that the recorded intent can have left.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Callable, NamedTuple

from ...errors import ChainBroken, NeedsRecovery
from ...model import FORMATS, Parent, Volume, are_safe_file_names

if TYPE_CHECKING:
    from ..files.directory import ShareDirectory

_VERSION = 1


class Garbage(NamedTuple):
    """A file that the final record allows to unlink, with what proves it to be unchanged since."""

    file: str
    inode: int
    size: int


class Disk(NamedTuple):
    """A file as it was when it was made, or first recorded: its inode (0 where the file system keeps none) and its length in bytes.
    ``generation`` tells files apart that had the same inode one after the other, 0 where the file system does not tell it."""

    inode: int
    length: int
    generation: int = 0


SAME, OTHER, UNKNOWN = "same", "other", "unknown"  # what :func:`identity` finds


@dataclass(frozen=True)
class Record:
    """The record of one volume: ``formats`` of its own files; ``snapshots`` maps a name to file, created, description, labels,
    protected and expires; ``created``, ``description`` and ``labels`` are the volume's own; ``parent`` is what a linked clone rests
    on; ``active`` is the file that ``.info`` had last named; ``disks`` has those of its raw files whose content is known to be a
    guest's, ``marks`` which file its base is (records of older releases have none)."""

    formats: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, dict] = field(default_factory=dict)
    intent: dict | None = None
    garbage: tuple[Garbage, ...] = ()
    parent: Parent | None = None
    active: str | None = None
    disks: dict[str, Disk] = field(default_factory=dict)
    created: str | None = None
    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    marks: dict[str, Disk] = field(default_factory=dict)

    def to_bytes(self, volume: str) -> bytes:
        content = {
            "version": _VERSION,
            "volume": volume,
            "formats": self.formats,
            "snapshots": self.snapshots,
            "intent": self.intent,
            "garbage": [[item.file, item.inode, item.size] for item in self.garbage],
            "parent": None if self.parent is None else asdict(self.parent),
            "active": self.active,
            "disks": {file: list(disk[:2]) for file, disk in self.disks.items()},  # older releases read no more
            "marks": {file: list(disk) for file, disk in self.marks.items()},
            "created": self.created,
            "description": self.description,
            "labels": self.labels,
        }
        return json.dumps(content, sort_keys=True).encode("utf-8")  # on one line: json indents ten times slower

    def with_intent(self, intent: dict) -> Record:
        return replace(self, intent=intent)


def describing(
    volume: Volume, garbage: tuple[Garbage, ...] = (), disks: dict[str, Disk] | None = None, marks: dict[str, Disk] | None = None
) -> Record:
    """The record that a volume has once a task is done: formats of its files, details of its snapshots, no intent."""
    details = {
        snapshot.name: {
            "file": snapshot.file,
            "created": snapshot.created,
            "description": snapshot.description,
            "labels": dict(snapshot.labels),
            "protected": snapshot.protected,
            "expires": snapshot.expires,
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
    )


def file_name(volume: str) -> str:
    return volume + ".json"


def read(directory: ShareDirectory, volume: str) -> Record | None:
    """The record of a volume on a share; None where there is none. Raises as :func:`parse` does."""
    private = directory.private("volumes")
    return parse(volume, private.read_small(file_name(volume))) if private else None


def parse(volume: str, data: bytes | None) -> Record | None:
    """:raises ChainBroken: the record cannot be understood. :raises NeedsRecovery: a newer release wrote it."""
    if data is None:
        return None
    subject = f"record .remotefs/volumes/{file_name(volume)}"
    remedy = "move the file away and adopt the volume anew with remotefs_volume"
    try:
        content = _last_whole_line(data)
        version = content["version"]
        record = Record(
            formats={str(name): str(value) for name, value in content["formats"].items()},
            snapshots={str(name): _details(value) for name, value in content["snapshots"].items()},
            intent=_intent(content["intent"]),
            garbage=tuple(Garbage(str(name), int(inode), int(size)) for name, inode, size in content["garbage"]),
            parent=None if content.get("parent") is None else Parent(**content["parent"]),
            active=content.get("active"),
            disks={str(name): Disk(int(inode), int(length)) for name, (inode, length) in content.get("disks", {}).items()},
            created=_text(content.get("created")),
            description=str(content.get("description", "")),
            labels=_labels(content.get("labels", {})),
            marks={str(name): Disk(*(int(number) for number in disk)) for name, disk in content.get("marks", {}).items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ChainBroken(subject, f"it is damaged ({error!r})", remedy) from error
    if version != _VERSION:
        raise NeedsRecovery(subject, f"its version {version!r} is not known here", "use the release of the collection that wrote it")
    names = list(record.formats) + [item.file for item in record.garbage]
    names += [record.parent.volume, record.parent.file] if record.parent else []
    names += [record.active] if record.active is not None else []
    names += [details["file"] for details in record.snapshots.values() if details["file"] is not None]
    if not are_safe_file_names(names) or not set(record.formats.values()) <= set(FORMATS):
        raise ChainBroken(subject, "it names files or formats that cannot be", remedy)
    return record


def _last_whole_line(data: bytes) -> dict:
    """The content of a record: one line, to which a full share may have had others added in place. One that is torn never was."""
    lines = data.splitlines()
    if len(lines) > 1:
        from ..files import packed_lines  # late: nearly all have one

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
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _labels(value: dict) -> dict[str, str]:
    return {str(key): str(item) for key, item in value.items()} if value else {}


def _intent(value: object) -> dict | None:
    if value is not None and not isinstance(value, dict):
        raise TypeError("intent")
    return value


def is_disk(record: Record, file: str, inode: int, length: int) -> bool:
    """Whether a file with this inode and length is the very raw disk that a record knows, so that what stands in it is a guest's.

    A disk only grows; a shorter file is another one, which got the inode after the disk was gone. Where the file system keeps no
    inodes, the length has to do as proof.
    """
    disk = record.disks.get(file)
    if disk is None or record.formats.get(file) != "raw":
        return False
    return disk.inode == inode and length >= disk.length if disk.inode else disk.length == length


def identity(record: Record, file: str, status: os.stat_result, generation: Callable[[], int] | None = None) -> str:
    """Whether a file is the very one that a record speaks of: SAME, OTHER, or UNKNOWN where the record does not say which it was.

    A raw disk only grows. Inodes are used again, so one that is longer than it was may be another file.

    :param generation: finds that of the file, 0 where it cannot be told; without it, one that is longer is UNKNOWN.
    """
    mark = record.marks.get(file) or record.disks.get(file)
    if mark is None:
        return UNKNOWN
    raw = record.formats.get(file) == "raw"
    if not mark.inode:  # the length of a raw disk has to do
        return UNKNOWN if not raw else SAME if status.st_size == mark.length else OTHER
    if mark.inode != status.st_ino or (raw and status.st_size < mark.length):
        return OTHER
    if not mark.generation or (raw and status.st_size == mark.length):
        return SAME
    return UNKNOWN if generation is None else SAME if generation() in (0, mark.generation) else OTHER
