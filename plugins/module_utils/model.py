# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The values that all other code passes around. They are frozen, and validated once, where they come in.

All sizes are in bytes. Nothing here opens a file or starts a program.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from typing import Collection, Iterable, NamedTuple, Protocol

from . import errors

SECTOR = 512
MAX_SIZE = 2**63  # 8 EiB, exclusive: the limit of an off_t
MAX_QCOW2_SIZE = 2**51  # the limit of QEMU's largest L1 table (32 MiB) with clusters of 64 KiB
FORMATS = ("raw", "qcow2")
MOUNT_BASE = "/var/lib/remotefs/mnt"  # the directory under which shares are mounted, unless a task names another one
FSTAB = "/etc/fstab"  # the administrator's table of mounts

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")
_SIZE = re.compile(r"([0-9]+)\s*(?:B|([KMGTP])(?:iB)?)?\Z", re.IGNORECASE)
_LONGEST_SIZE = 64  # characters
_SIZES = "give a positive whole multiple of 512 below 8 EiB, in bytes or with K, M, G, T or P (IEC)"
_AMBIGUOUS_SIZE = re.compile(r"([0-9]+)\s*([KMGTP])B\Z", re.IGNORECASE)
_FRACTION = re.compile(r"[0-9]+[.,][0-9]+\s*[KMGTP](iB)?\Z", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_RESERVED_SNAPSHOTS = ("active", "info")
_NAME_MAX = 255
_GLOBS = {
    "volume": "globs are not taken here; list the volumes with remotefs_volume_info (names: [...]) and remotefs.storage.items",
    "snapshot": "give one name; globs go into names of remotefs_snapshot, with state: absent",
}
_TEMPORARY_ROOM = 24  # characters that store.files.directory appends to make a temporary name, with a margin


def parse_size(value: object) -> int:
    """Parse the size of a disk, as :func:`parse_bytes` does. :raises InvalidSize: not a positive whole multiple of 512 below 8 EiB."""
    size = parse_bytes(value)
    if size % SECTOR:
        raise errors.InvalidSize(f"size {str(value).strip()!r}", f"{size_text(size)} is no valid disk size", _SIZES)
    return size


def parse_bytes(value: object) -> int:
    """Parse bytes from a number or from a string with an IEC suffix (``512``, ``"10G"``, ``"1 TiB"``).

    :raises InvalidSize: not a positive whole number below 8 EiB.
    """
    if (isinstance(value, int) and abs(value) >> 64) or (isinstance(value, str) and len(value) > _LONGEST_SIZE):
        raise errors.InvalidSize("option size", "it is longer than any size", _SIZES)  # Python itself fails on too many digits
    text = str(value).strip()
    match = _SIZE.match(text) if not isinstance(value, bool) else None
    ambiguous = _AMBIGUOUS_SIZE.match(text)
    if ambiguous:
        number, unit = ambiguous.group(1), ambiguous.group(2).upper()
        raise errors.InvalidSize(
            f"size {text!r}", f"{unit}B is read as powers of 1000 by some and of 1024 by others", f"say {number}{unit} for {number} {unit}iB"
        )
    if _FRACTION.match(text):
        raise errors.InvalidSize(f"size {text!r}", "it is not a whole number", "give it in a smaller unit, as 1536M for 1.5G")
    if not match:
        raise errors.InvalidSize(f"size {text!r}", "it is not a size", _SIZES)
    size = int(match.group(1)) << _UNITS[(match.group(2) or "").upper()]
    if size <= 0 or size >= MAX_SIZE:
        raise errors.InvalidSize(f"size {text!r}", f"{size_text(size)} is no valid disk size", _SIZES)
    return size


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names for a message, separated by commas. After ``most`` names only the number of the others follows."""
    every = [str(name) for name in names]
    shown = ", ".join(every[:most])
    return f"{shown} and {len(every) - most} more" if len(every) > most else shown


class _Status(Protocol):
    """Of stat(2)."""

    @property
    def st_blocks(self) -> int:
        """Blocks of 512 bytes."""


def allocated(status: _Status) -> int:
    """Bytes that a file takes on the disk. ``st_blocks`` counts 512 of them, whatever the block size of the file system is."""
    return status.st_blocks * 512


def size_text(size: int) -> str:
    """A size in bytes for a message, with a unit and in bytes ("10 GiB (10737418240 bytes)")."""
    if size < 1024:
        return f"{size} bytes"
    power = min((size.bit_length() - 1) // 10, 6)
    number = f"{size / (1 << 10 * power):.1f}"
    return f"{number[:-2] if number.endswith('.0') else number} {'KMGTPE'[power - 1]}iB ({size} bytes)"


def round_to_sector(size: int) -> int:
    """The virtual size in bytes that QEMU sees in a raw file of ``size`` bytes: whole sectors, rounded up."""
    return (size + SECTOR - 1) // SECTOR * SECTOR


def is_safe_file_name(name: object) -> bool:
    """Whether a file name from a share is safe to use: no path, and no syntax of options, protocols or lists."""
    return isinstance(name, str) and _FILE_NAME.match(name) is not None


def safe_file_names(names: Iterable[str]) -> list[str]:
    """Those file names that are safe to use; fast for very many names."""
    return list(filter(_FILE_NAME.match, names))


def are_safe_file_names(names: Collection[object]) -> bool:
    """Whether all names are safe to use. Repeated names are checked once."""
    try:
        return all(map(is_safe_file_name, set(names)))
    except TypeError:
        return False  # a value that cannot be in a set is no text


def is_glob(name: str) -> bool:
    """Whether ``name`` is a pattern for names. It is if it has a character that no name may have."""
    return any(mark in name for mark in "*?[")


def check_volume_name(name: str, globs: str = _GLOBS["volume"]) -> str:
    """Return a valid volume name. :param globs: the remedy for a glob. :raises InvalidName: some shares cannot store the name, or it is reserved."""
    _check_name("volume", name, name + ".info", globs)
    if name.lower().endswith(".info"):
        raise errors.InvalidName(f"volume name {name!r}", "names ending in .info are reserved for snapshot records", "choose another name")
    return name


def check_snapshot_name(volume: str, name: str) -> str:
    """Return a valid snapshot name. :raises InvalidName: the name is reserved, or ``VOLUME.NAME`` cannot be a file name."""
    _check_name("snapshot", name, f"{volume}.{name}", _GLOBS["snapshot"])
    if name.lower() in _RESERVED_SNAPSHOTS or name.lower().endswith(".info"):
        raise errors.InvalidName(f"snapshot name {name!r}", "'active', 'info' and names ending in .info are reserved", "choose another name")
    return name


def info_name(volume: str) -> str:
    """The name of the file that lists a volume's snapshots. OpenStack Cinder's remotefs drivers use the same file."""
    return volume + ".info"


def _check_name(kind: str, name: str, composed: str, globs: str) -> None:
    if not isinstance(name, str) or not _NAME.match(name):
        raise errors.InvalidName(
            f"{kind} name {name!r}",
            "it may hold letters, digits, '.', '_' and '-' only and must start with a letter or digit",
            globs if isinstance(name, str) and is_glob(name) else "choose another name",
        )
    limit = _NAME_MAX - _TEMPORARY_ROOM
    if len(composed) > limit:
        raise errors.InvalidName(f"{kind} name {name!r}", f"the file name {composed!r} would be longer than {limit} bytes", "choose a shorter name")


def now() -> str:
    """The present time as records have it: UTC, whole seconds, ISO 8601."""
    return time.strftime(_TIME, time.gmtime())


def time_text(seconds: float) -> str | None:
    """A time, in seconds since 1970, as :func:`now` writes it. None where there is none, as for the end of what does not end."""
    try:
        return time.strftime(_TIME, time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return None


def seconds_of(told: str) -> float | None:
    """The seconds since 1970 of a time that :func:`now` wrote. None for any other text."""
    import calendar  # late: hardly any task asks

    try:
        return float(calendar.timegm(time.strptime(told, _TIME)))
    except ValueError:
        return None


class Share(NamedTuple):
    """A mounted share, or a plain directory that is used as a share."""

    source: str  # as the user gave it or the mount table shows it
    path: str  # the directory where its files are
    fstype: str  # the name of a row of mounts.types; for a directory on a file system without a row that is not local, the kernel's type
    options: str = ""  # effective mount options, without secrets
    mount_base: str = MOUNT_BASE
    keeps_modes: bool = True  # False if chmod and chown have no lasting effect
    locks_visible: bool = True  # False if the locks of other processes and hosts cannot be seen at all
    stale_seconds: float = 0.0  # how long this client may show a file that another one has replaced, even after a new open
    keeps_inodes: bool = True  # False if a file's inode number changes with the next mount
    locks_readable: bool = True  # False if held locks make an attempt fail, but a query does not show them (NFSv3 answers GETLK wrongly)
    export: str = ""  # the source as another host mounts it; empty for a plain directory
    below: str = ""  # the path of the directory in the export; empty for the whole export
    mount_words: str = ""  # options in force that another host's mount helper accepts
    client_times: bool = False  # True if the clock of the host gives the times of files, and not that of the server
    local: bool = True  # False if processes of other hosts may open the files, or if a server can make a caller wait

    @property
    def label(self) -> str:
        """Its name in messages. If locks are not visible, the type of the file system is added as the reason."""
        return self.source if self.locks_visible else f"{self.source} ({self.fstype})"


@dataclass(frozen=True)
class Image:
    """One file of a chain, as its header and the records describe it.

    ``size`` is the virtual size, ``allocated`` the bytes that the file takes on disk. ``format`` is "raw" or "qcow2", None if unknown.
    ``empty``: a qcow2 image whose L1 table is all zero, which shows just its backing file. ``backing_file`` is always a basename.
    ``absolute``: the header has it as a path into the same share, or its format as a protocol; the next change corrects that.
    """

    file: str
    format: str | None
    size: int
    allocated: int = 0
    backing_file: str | None = None
    backing_format: str | None = None
    empty: bool = False
    absolute: bool = False
    mode: int = 0o660
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A named point in time. Its data is what the backing file of overlay ``file`` shows. ``created``, ``expires``: as :func:`now`, or None.
    ``point`` is its identity, the same on all replicas (None: it has none yet). ``received``: it was sent here from another share."""

    name: str
    file: str
    created: str | None = None
    description: str = ""
    labels: dict = field(default_factory=dict)  # label → value, both str
    protected: bool = False
    expires: str | None = None
    point: str | None = None
    received: bool = False


@dataclass(frozen=True)
class Parent:
    """What a linked clone rests on. ``file`` is the topmost file of its chain that belongs to ``volume``. It shows the data of
    ``snapshot`` (None if no snapshot of that volume names it)."""

    volume: str
    snapshot: str | None
    file: str


class Move(NamedTuple):
    """A volume that is being moved here from another share. ``source``: that share, as its volumes name it. ``started``: as :func:`now`.
    ``is_complete``: all of it has arrived and was compared, and the source may be going already. Until then the source counts.
    ``kept``: names of snapshots that were here before, as those of a replica."""

    source: str
    started: str | None
    is_complete: bool = False
    kept: tuple[str, ...] = ()


def move_from_json(value: object) -> Move | None:
    """The move that a record or an intent has. :raises ValueError: it is none. Then it is not known which copy counts."""
    if value is None:
        return None
    source, started, is_complete, kept = value if isinstance(value, (list, tuple)) and len(value) == 4 else (None, None, None, None)
    if not isinstance(source, str) or not isinstance(started, (str, type(None))) or not isinstance(is_complete, bool) or not isinstance(kept, (list, tuple)):
        raise ValueError("a move that cannot be")
    return Move(source, started, is_complete, tuple(str(name) for name in kept))


@dataclass(frozen=True)
class Volume:
    """A volume as it is on a share: its chain (active image first) and its snapshots (oldest first).

    The chain of a linked clone continues into files of its ``parent``, which only tasks on that volume may change.
    ``info``: ``NAME.info`` exists. ``adopted``: our own record has the formats of its files. ``pending``: the intent of an
    interrupted task. ``stale``: the entries of ``.info`` whose file is no overlay of the chain. They stay there until a task
    deletes the snapshot.
    """

    name: str
    chain: tuple[Image, ...]
    snapshots: tuple[Snapshot, ...] = ()
    info: bool = False
    adopted: bool = False
    pending: object = None
    dependents: tuple[tuple[str, str], ...] = ()  # (linked clone, own file that it rests on)
    parent: Parent | None = None
    stale: tuple[tuple[str, str], ...] = ()  # (snapshot, file)
    created: str | None = None  # as :func:`now`; None if it was not recorded
    description: str = ""
    labels: dict = field(default_factory=dict)  # label → value, both str
    received: bool = False  # it was made as a replica
    replicated: bool = False  # it is the source of a replica
    move: Move | None = None  # what is not over, if it is moved here
    lease: str | None = None  # the id of the lease that it was made under
    doubt: str | None = None  # why the user has to give a format although a record has one

    @property
    def active(self) -> Image:
        """The image that the guest writes to."""
        return self.chain[0]

    @property
    def base(self) -> Image:
        """The lowest image of the chain, which may be the parent's."""
        return self.chain[-1]

    @property
    def own(self) -> tuple[Image, ...]:
        """The images that belong to this volume, active first: those above the parent's."""
        return self.chain if self.parent is None else self.chain[: self.files.index(self.parent.file)]

    @property
    def own_base(self) -> Image:
        """Its own lowest image. In a linked clone this one rests on the parent."""
        return self.own[-1]

    @property
    def own_files(self) -> tuple[str, ...]:
        """File names of :attr:`own`."""
        return tuple(image.file for image in self.own)

    @property
    def allocated(self) -> int:
        """Bytes that its own files take on disk."""
        return sum(image.allocated for image in self.own)

    @property
    def size(self) -> int:
        """Virtual size in bytes."""
        return self.active.size

    @property
    def files(self) -> tuple[str, ...]:
        """File names of the whole chain, active first."""
        return tuple(image.file for image in self.chain)

    def image(self, file: str) -> Image:
        """The image of this file name. :raises ChainBroken: the chain has no such file."""
        for image in self.chain:
            if image.file == file:
                return image
        raise errors.ChainBroken(f"volume {self.name}", f"{file} is not in its chain", "look at the chain with remotefs_volume_info")

    def has_snapshot(self, name: str) -> bool:
        """Whether the volume has this snapshot."""
        return any(snapshot.name == name for snapshot in self.snapshots)

    def snapshot(self, name: str) -> Snapshot:
        """The snapshot of this name. :raises SnapshotNotFound: the volume has no such snapshot."""
        for snapshot in self.snapshots:
            if snapshot.name == name:
                return snapshot
        known = listed(snapshot.name for snapshot in self.snapshots) or "none"
        raise errors.SnapshotNotFound(f"snapshot {name} of volume {self.name}", f"it does not exist (existing: {known})", "check the name")

    def point_file(self, snapshot: str) -> str:
        """The file that shows the data of ``snapshot``: the backing file of its overlay. :raises ChainBroken: the overlay has none."""
        overlay = self.image(self.snapshot(snapshot).file)
        if overlay.backing_file is None:
            raise errors.ChainBroken(
                f"snapshot {snapshot} of volume {self.name}",
                f"its file {overlay.file} has no backing file",
                "see docs/worst-day.md for a repair by hand",
            )
        return overlay.backing_file

    def view(self, file: str) -> tuple[Image, ...]:
        """The images that together show the data of ``file``, from ``file`` down to the base."""
        return self.chain[self.files.index(file) :]

    def with_images(self, **changes: Image | None) -> Volume:
        """A copy with images replaced by file name (passed as ``with_images(**{file: image})``); None removes one."""
        chain = tuple(changes.get(image.file, image) for image in self.chain)
        return replace(self, chain=tuple(image for image in chain if image is not None))
