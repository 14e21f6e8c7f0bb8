# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that plans are made of: small frozen values that describe themselves and survive a round through JSON.

``describe()`` is what users see in ``actions``. Bytes are estimates made before the run. A step that recovery may meet
half done is written so that doing it again gives the same result.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..model import Volume, info_name, is_safe_file_name


@dataclass(frozen=True)
class Step:
    """Base of all steps. ``name`` is its public name in ``actions``."""

    name = ""

    def describe(self) -> dict:
        """The step as ``actions`` shows it."""
        return {"step": self.name, **{key: value for key, value in asdict(self).items() if value is not None and key not in self.hidden()}}

    def hidden(self) -> tuple[str, ...]:
        return ()

    def touches(self) -> tuple[str, ...]:
        """Existing files that the step writes or removes, for the question whether somebody uses them."""
        return ()

    def moves(self) -> int | None:
        """Bytes that it is expected to write beside headers and tables; None where nobody knows."""
        return 0

    def to_json(self) -> dict:
        return {"type": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class CreateImage(Step):
    """Make the base file of a volume. ``size`` bytes; ``preallocation`` as qemu-img names it."""

    file: str
    format: str
    size: int
    preallocation: str = "off"
    mode: int = 0o660
    uid: int | None = None
    gid: int | None = None

    name = "create"

    def describe(self) -> dict:
        return {**super().describe(), "mode": f"{self.mode:04o}"}

    def moves(self) -> int | None:
        return 0 if self.preallocation in ("off", "metadata") else self.size


@dataclass(frozen=True)
class CopyImage(Step):
    """Make the base file of a full clone from what ``source`` shows, ``bytes`` being what its chain holds."""

    file: str
    format: str
    size: int
    source: str
    bytes: int | None = None
    mode: int = 0o660
    uid: int | None = None
    gid: int | None = None

    name = "copy"

    def describe(self) -> dict:
        return {**super().describe(), "mode": f"{self.mode:04o}"}

    def moves(self) -> int | None:
        return self.bytes


@dataclass(frozen=True)
class CreateClone(Step):
    """Make the base file of a linked clone: an empty qcow2 overlay over a file of its parent, which is only read."""

    file: str
    backing_file: str
    backing_format: str
    size: int
    mode: int = 0o660
    uid: int | None = None
    gid: int | None = None

    name = "create_clone"

    def hidden(self) -> tuple[str, ...]:
        return ("backing_format",)

    def describe(self) -> dict:
        return {**super().describe(), "mode": f"{self.mode:04o}"}


@dataclass(frozen=True)
class CreateOverlay(Step):
    """Make an empty qcow2 overlay over ``backing_file``, with the ownership of that file."""

    file: str
    backing_file: str
    backing_format: str
    size: int

    name = "create_overlay"

    def hidden(self) -> tuple[str, ...]:
        return ("backing_format",)

    def touches(self) -> tuple[str, ...]:
        return (self.backing_file,)


@dataclass(frozen=True)
class ReplaceOverlay(Step):
    """Put an empty overlay over ``backing_file`` in the place of the active image ``file``, in one rename."""

    file: str
    backing_file: str
    backing_format: str
    size: int

    name = "replace_overlay"

    def hidden(self) -> tuple[str, ...]:
        return ("backing_format",)

    def touches(self) -> tuple[str, ...]:
        return (self.file,)


@dataclass(frozen=True)
class Grow(Step):
    """Raise the virtual size of ``file`` to ``size`` bytes; ``zero`` where its backing file is longer than it was."""

    file: str
    format: str
    size: int
    zero: bool = False

    name = "grow"

    def hidden(self) -> tuple[str, ...]:
        return ("format", "zero")

    def touches(self) -> tuple[str, ...]:
        return (self.file,)

    def moves(self) -> int | None:
        return None if self.zero else 0


@dataclass(frozen=True)
class Commit(Step):
    """Write what ``file`` and the layers down to ``into`` (not included) hold into ``into``."""

    file: str
    into: str
    into_format: str
    bytes: int | None = None

    name = "commit"

    def hidden(self) -> tuple[str, ...]:
        return ("into_format",)

    def touches(self) -> tuple[str, ...]:
        return (self.file, self.into)

    def moves(self) -> int | None:
        return self.bytes


@dataclass(frozen=True)
class Truncate(Step):
    """Cut the raw file ``file`` down to ``size`` bytes, after a shorter overlay was committed into it."""

    file: str
    size: int

    name = "truncate"

    def touches(self) -> tuple[str, ...]:
        return (self.file,)


@dataclass(frozen=True)
class Pull(Step):
    """Copy into ``file`` what lies between it and ``backing_file``, then make that its backing file (None: none)."""

    file: str
    backing_file: str | None
    backing_format: str | None
    bytes: int | None = None

    name = "pull"

    def hidden(self) -> tuple[str, ...]:
        return ("backing_format",)

    def touches(self) -> tuple[str, ...]:
        return (self.file,)

    def moves(self) -> int | None:
        return self.bytes


@dataclass(frozen=True)
class Repoint(Step):
    """Make the header of ``file`` name ``backing_file``, which shows the same content as the one named before."""

    file: str
    backing_file: str
    backing_format: str

    name = "repoint"

    def hidden(self) -> tuple[str, ...]:
        return ("backing_format",)

    def touches(self) -> tuple[str, ...]:
        return (self.file,)


@dataclass(frozen=True)
class SetAttributes(Step):
    """Set owner, group (numeric) and mode of ``file`` where given."""

    file: str
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None

    name = "set_attributes"

    def describe(self) -> dict:
        shown = super().describe()
        if self.mode is not None:
            shown["mode"] = f"{self.mode:04o}"
        return shown


@dataclass(frozen=True)
class WriteInfo(Step):
    """Write ``.info`` whole and durable: which file is active, which overlay belongs to which snapshot."""

    file: str
    active: str
    snapshots: tuple[tuple[str, str], ...] = ()

    name = "write_info"

    def describe(self) -> dict:
        return {"step": self.name, "file": self.file, "active": self.active, "snapshots": dict(self.snapshots)}


@dataclass(frozen=True)
class WriteRecord(Step):
    """Write the record of formats and snapshot details."""

    volume: str

    name = "write_record"


@dataclass(frozen=True)
class Unlink(Step):
    """Remove ``file``, which nothing needs any more."""

    file: str

    name = "unlink"

    def touches(self) -> tuple[str, ...]:
        return (self.file,)


def write_info(volume: Volume) -> WriteInfo:
    entries = [(snapshot.name, snapshot.file) for snapshot in volume.snapshots]
    return WriteInfo(info_name(volume.name), volume.active.file, (*entries, *volume.stale))


_TYPES = {
    kind.__name__: kind
    for kind in (
        CreateImage,
        CopyImage,
        CreateClone,
        CreateOverlay,
        ReplaceOverlay,
        Grow,
        Commit,
        Truncate,
        Pull,
        Repoint,
        SetAttributes,
        WriteInfo,
        WriteRecord,
        Unlink,
    )
}


_FILE_FIELDS = ("file", "backing_file", "into", "active", "volume")


def from_json(content: dict) -> Step:
    """The step that :meth:`Step.to_json` wrote. :raises ValueError: it is none."""
    try:
        fields = dict(content)
        kind = _TYPES[fields.pop("type")]
        if kind is WriteInfo:
            fields["snapshots"] = tuple((str(name), str(file)) for name, file in fields["snapshots"])
        step = kind(**fields)
        files = [getattr(step, name) for name in _FILE_FIELDS if getattr(step, name, None) is not None]
        files += [file for _name, file in step.snapshots] if isinstance(step, WriteInfo) else []
        if not all(is_safe_file_name(file) for file in files):
            raise ValueError("a file name that leads out of the share")
        return step
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no step: {content!r}") from error
