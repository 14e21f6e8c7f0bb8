# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a plan. A step is a small frozen value. It describes itself, and can be written as JSON and read again.

Sizes and offsets are in bytes. ``bytes`` is an estimate that was made before the run. Users see ``describe()`` in ``actions``.
Recovery may find a step half done. Each such step is written so that doing it again gives the same result.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Iterable

from .. import model


@dataclass(frozen=True)
class Step:
    """Base of all steps. ``name`` is the public name of a step in ``actions``."""

    name = ""

    def describe(self) -> dict:
        """The step as ``actions`` shows it: ``step`` (its name) and its fields. Hidden ones and those that are None are left out. A mode is an
        octal text."""
        shown = {key: value for key, value in asdict(self).items() if value is not None and key not in self.hidden()}
        return {"step": self.name, **shown, **({"mode": f"{shown['mode']:04o}"} if "mode" in shown else {})}

    def hidden(self) -> tuple[str, ...]:
        """Names of the fields that :meth:`describe` leaves out."""
        return ()

    def touches(self) -> tuple[str, ...]:
        """Existing files that the step writes or removes, or that must not change. Nobody else may use them meanwhile."""
        return ()

    def changes(self) -> tuple[str, ...]:
        """Files that are other ones after the step than before it, or rest on another one."""
        file = getattr(self, "file", None)
        return () if file is None else (file,)

    def moves(self) -> int | None:
        """Bytes that it is expected to write, without headers and tables. None where nobody knows."""
        return 0

    def to_json(self) -> dict:
        """The step as an intent records it: ``type`` (the name of the class) and all fields. :mod:`recorded_steps` reads it."""
        return {"type": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class CreateImage(Step):
    """Make the base file of a volume, of ``size`` bytes. ``preallocation`` is one of the words of qemu-img."""

    file: str
    format: str
    size: int
    preallocation: str = "off"
    mode: int = 0o660
    uid: int | None = None
    gid: int | None = None

    name = "create"

    def moves(self) -> int | None:
        """The whole size where the data is preallocated."""
        return 0 if self.preallocation in ("off", "metadata") else self.size


@dataclass(frozen=True)
class CopyImage(Step):
    """Make the base file of a full clone with the content of ``source`` (a label). ``bytes``: what the chain of the source holds."""

    file: str
    format: str
    size: int
    source: str
    bytes: int | None = None
    mode: int = 0o660
    uid: int | None = None
    gid: int | None = None

    name = "copy"

    def moves(self) -> int | None:
        """What the chain of the source holds."""
        return self.bytes


@dataclass(frozen=True)
class WriteSeed(Step):
    """Make ``file`` an image of ``size`` bytes that cloud-init reads. What is in it may be secret, so no step and no record has it: it comes with
    the source of the plan. ``replaces``: one rename puts it in the place of the file of that name, whose access it gets where mode, uid and gid
    are None. Only the task that has the content can do this step again."""

    file: str
    size: int
    replaces: bool
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None

    name = "write_seed"

    def touches(self) -> tuple[str, ...]:
        """The file that is replaced."""
        return (self.file,) if self.replaces else ()


@dataclass(frozen=True)
class CreateClone(Step):
    """Make the base file of a linked clone: an empty qcow2 overlay over a file of its parent. The parent's file is only read."""

    file: str
    backing_file: str
    backing_format: str
    size: int
    mode: int = 0o660
    uid: int | None = None
    gid: int | None = None

    name = "create_clone"

    def hidden(self) -> tuple[str, ...]:
        """The format is only for the header."""
        return ("backing_format",)


@dataclass(frozen=True)
class CreateOverlay(Step):
    """Make an empty qcow2 overlay over ``backing_file``, with the ownership of that file."""

    file: str
    backing_file: str
    backing_format: str
    size: int

    name = "create_overlay"

    def hidden(self) -> tuple[str, ...]:
        """The format is only for the header."""
        return ("backing_format",)

    def touches(self) -> tuple[str, ...]:
        """The old active image, which must not change any more."""
        return (self.backing_file,)


@dataclass(frozen=True)
class ReceiveOverlay(Step):
    """Make a qcow2 overlay over ``backing_file`` that shows the content of ``source`` (a label), a point of another share. It takes the place
    of the active image ``instead_of``, whose access it gets. ``bytes``: what is expected to differ from the backing file."""

    file: str
    backing_file: str
    backing_format: str
    size: int
    instead_of: str
    source: str
    bytes: int | None = None

    name = "receive"

    def hidden(self) -> tuple[str, ...]:
        """What is only for the header, and for the engine."""
        return ("backing_format", "instead_of")

    def moves(self) -> int | None:
        """The estimate of the plan."""
        return self.bytes


@dataclass(frozen=True)
class ReplaceOverlay(Step):
    """Put an empty overlay over ``backing_file`` in the place of the active image ``file``, in one rename."""

    file: str
    backing_file: str
    backing_format: str
    size: int

    name = "replace_overlay"

    def hidden(self) -> tuple[str, ...]:
        """The format is only for the header."""
        return ("backing_format",)

    def touches(self) -> tuple[str, ...]:
        """The old active image, which is removed."""
        return (self.file,)


@dataclass(frozen=True)
class Grow(Step):
    """Raise the virtual size of ``file`` to ``size`` bytes. ``zero``: a file below it is longer than ``file`` was. The new part must
    read as zeros all the same."""

    file: str
    format: str
    size: int
    zero: bool = False

    name = "grow"

    def hidden(self) -> tuple[str, ...]:
        """How it is done, which does not matter to users."""
        return ("format", "zero")

    def touches(self) -> tuple[str, ...]:
        """The file that grows."""
        return (self.file,)

    def moves(self) -> int | None:
        """Unknown where a copy of the file is made, to write zeros into it."""
        return None if self.zero else 0


@dataclass(frozen=True)
class Commit(Step):
    """Write into ``into`` what ``file`` and the layers down to ``into`` (not included) hold."""

    file: str
    into: str
    into_format: str
    bytes: int | None = None

    name = "commit"

    def hidden(self) -> tuple[str, ...]:
        """The format is only for the engine."""
        return ("into_format",)

    def touches(self) -> tuple[str, ...]:
        """The top, which must not change, and the file that is written."""
        return (self.file, self.into)

    def changes(self) -> tuple[str, ...]:
        """The file that is written has another content, and shows that of the top."""
        return (self.file, self.into)

    def moves(self) -> int | None:
        """The estimate of the plan."""
        return self.bytes


@dataclass(frozen=True)
class Truncate(Step):
    """Cut the raw file ``file`` to ``size`` bytes, before a shorter overlay is committed into it. Beyond its end an overlay shows zeros."""

    file: str
    size: int

    name = "truncate"

    def touches(self) -> tuple[str, ...]:
        """The file that is cut."""
        return (self.file,)


@dataclass(frozen=True)
class Pull(Step):
    """Copy into ``file`` what lies between it and ``backing_file``. Then make that its backing file (None: it has none any more)."""

    file: str
    backing_file: str | None
    backing_format: str | None
    bytes: int | None = None

    name = "pull"

    def hidden(self) -> tuple[str, ...]:
        """The format is only for the header."""
        return ("backing_format",)

    def touches(self) -> tuple[str, ...]:
        """The file that is written."""
        return (self.file,)

    def moves(self) -> int | None:
        """The estimate of the plan."""
        return self.bytes


@dataclass(frozen=True)
class Repoint(Step):
    """Write ``backing_file`` into the header of ``file``. It shows the same content as the backing file that was named before."""

    file: str
    backing_file: str
    backing_format: str

    name = "repoint"

    def hidden(self) -> tuple[str, ...]:
        """The format is only for the header."""
        return ("backing_format",)

    def touches(self) -> tuple[str, ...]:
        """The file whose header is written."""
        return (self.file,)


@dataclass(frozen=True)
class FreeLeaks(Step):
    """Give the file system back what leaked clusters of the qcow2 image ``file`` take. It shows the same afterwards. ``bytes``: of these clusters."""

    file: str
    bytes: int

    name = "free_leaks"

    def touches(self) -> tuple[str, ...]:
        """The file whose counts are written."""
        return (self.file,)


@dataclass(frozen=True)
class SetAttributes(Step):
    """Set owner and group (numbers) and mode of ``file``. None leaves one as it is."""

    file: str
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None

    name = "set_attributes"


@dataclass(frozen=True)
class WriteInfo(Step):
    """Write ``.info`` as a whole, durably. ``active`` is the active image, ``snapshots`` are pairs (snapshot, its overlay)."""

    file: str
    active: str
    snapshots: tuple[tuple[str, str], ...] = ()

    name = "write_info"

    def describe(self) -> dict:
        """As :meth:`Step.describe`, with the snapshots as a dict from name to overlay."""
        return {"step": self.name, "file": self.file, "active": self.active, "snapshots": dict(self.snapshots)}


@dataclass(frozen=True)
class WriteRecord(Step):
    """Write the final record of ``volume``: formats, and the details of its snapshots. ``identified``: overlays that are looked at for that,
    because the identity of their point is recorded anew."""

    volume: str
    identified: tuple[str, ...] = ()

    name = "write_record"

    def hidden(self) -> tuple[str, ...]:
        """How it is done, which does not matter to users."""
        return ("identified",)

    def changes(self) -> tuple[str, ...]:
        """No file is another one, but what is recorded of these may be about another one."""
        return self.identified


@dataclass(frozen=True)
class Unlink(Step):
    """Remove ``file``, which nothing needs any more."""

    file: str

    name = "unlink"

    def touches(self) -> tuple[str, ...]:
        """The file that is removed."""
        return (self.file,)


def write_info(volume: model.Volume) -> WriteInfo:
    """The step that writes ``.info`` for a volume as it is given. Stale entries stay."""
    entries = [(snapshot.name, snapshot.file) for snapshot in volume.snapshots]
    return WriteInfo(model.info_name(volume.name), volume.active.file, (*entries, *volume.stale))


def written_by(steps: Iterable[Step]) -> set[str]:
    """Files of which steps change what they hold by themselves, whatever they rest on."""
    return {file for step in steps if not isinstance(step, (Repoint, FreeLeaks, SetAttributes, WriteRecord)) for file in step.changes()}
