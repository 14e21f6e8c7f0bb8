# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a disk can hold when the power goes: a model of a share, fed with recorded calls.

- Content that was written and then synced through its inode is there.
- A write, truncation or hole that was not synced is kept, lost, or, a write, kept in some of its 4 KiB pages.
- A change of names (create, link, rename, unlink, mkdir) is there once its directory was synced after it. Of the others an
  ordered prefix per directory is there. A rename is one change of two directories: it is there or not, as a whole, and a
  sync of either makes it so, together with everything earlier in both.

Harder than most disks and journals: nothing is ordered between directories, nor between names and content, unless synced.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable

from .interposer import Event

PAGE = 4096
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # fallocate(2)


@dataclass(frozen=True)
class Image:
    """Everything on a share at one time: inodes under their names, the directories, content by inode."""

    names: dict[str, int]
    directories: frozenset[str]
    contents: dict[int, bytes]

    def files(self) -> dict[str, bytes]:
        return {name: self.contents[inode] for name, inode in self.names.items()}

    def key(self) -> tuple:
        """Equal for images that are equal."""
        contents = frozenset((inode, hashlib.blake2b(data).digest()) for inode, data in self.contents.items())
        return frozenset(self.names.items()), self.directories, contents


def scan(share: Path) -> Image:
    names, directories, contents = {}, set(), {}
    for path in sorted(share.rglob("*")):
        name = str(path.relative_to(share))
        if path.is_dir():
            directories.add(name)
        else:
            names[name] = path.stat().st_ino
            contents[names[name]] = path.read_bytes()
    return Image(names, frozenset(directories), contents)


@dataclass(frozen=True)
class _Edit:
    """A change of one file's content: ``data`` at ``offset``, or zeros there (``length``), or a new size."""

    offset: int = 0
    data: bytes = b""
    zeros: int = 0
    size: int | None = None
    grow_to: int = 0

    def do(self, content: bytearray) -> None:
        if self.size is not None:
            del content[self.size :]
            content.extend(bytes(self.size - len(content)))
        content.extend(bytes(max(0, self.grow_to - len(content))))
        if self.zeros:
            last = min(self.offset + self.zeros, len(content))
            content[self.offset : last] = bytes(max(0, last - self.offset))
        if self.data:
            content.extend(bytes(max(0, self.offset + len(self.data) - len(content))))
            content[self.offset : self.offset + len(self.data)] = self.data

    def pages(self) -> list[_Edit]:
        """The parts that can reach the disk one without the other."""
        parts, at = [], 0
        while at < len(self.data):
            room = PAGE - (self.offset + at) % PAGE
            parts.append(_Edit(self.offset + at, self.data[at : at + room]))
            at += room
        return parts or [self]


@dataclass
class _File:
    synced: bytes = b""
    pending: list[_Edit] = field(default_factory=list)

    def content(self, edits: Iterable[_Edit] | None = None) -> bytes:
        content = bytearray(self.synced)
        for edit in self.pending if edits is None else edits:
            edit.do(content)
        return bytes(content)

    def sync(self) -> None:
        if self.pending:
            self.synced, self.pending = self.content(), []


@dataclass(frozen=True)
class _Naming:
    """A change of names: ``old`` goes, ``new`` comes and means ``inode`` (None: a directory)."""

    old: str | None
    new: str | None
    inode: int | None

    def places(self) -> set[str]:
        return {os.path.dirname(name) for name in (self.old, self.new) if name is not None}

    def do(self, names: dict[str, int], directories: set[str]) -> None:
        if self.old is not None:
            names.pop(self.old, None)
            directories.discard(self.old)
        if self.new is not None and self.inode is None:
            directories.add(self.new)
        elif self.new is not None and self.inode is not None:
            names[self.new] = self.inode


class Disk:
    """A share whose state is durable at first, and what recorded calls did to it since."""

    def __init__(self, start: Image) -> None:
        self._names = dict(start.names)
        self._directories = set(start.directories)
        self._pending: list[_Naming] = []
        self._files = {inode: _File(content) for inode, content in start.contents.items()}
        self._now = dict(start.names)

    def feed(self, events: Iterable[Event]) -> Disk:
        for event in events:
            getattr(self, "_" + event.kind)(event)
        return self

    # -- calls -------------------------------------------------------------------------------------------------------

    def _edit(self, event: Event, edit: _Edit) -> None:
        file = self._files.setdefault(event.inode, _File())
        file.pending.append(edit)
        if event.synced:
            file.sync()

    def _write(self, event: Event) -> None:
        assert len(event.data) == event.length
        self._edit(event, _Edit(event.offset, event.data))

    _copy = _write

    def _truncate(self, event: Event) -> None:
        self._edit(event, _Edit(size=event.length))

    def _fallocate(self, event: Event) -> None:
        known = _KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE
        assert not event.mode & ~known, f"fallocate mode {event.mode:#x} has no model"
        zeros = event.length if event.mode & (_PUNCH_HOLE | _ZERO_RANGE) else 0
        grow_to = 0 if event.mode & _KEEP_SIZE else event.offset + event.length
        self._edit(event, _Edit(event.offset, zeros=zeros, grow_to=grow_to))

    def _fsync(self, event: Event) -> None:
        if event.directory:
            self._sync_directory(event.name)
        elif event.inode in self._files:
            self._files[event.inode].sync()

    def _sync_directory(self, name: str) -> None:
        """Everything that touches this directory is durable, and what came before that in the other directories touched."""
        durable: set[int] = set()
        places = {name}
        for position in range(len(self._pending) - 1, -1, -1):
            touched = self._pending[position].places()
            if touched & places:
                durable.add(position)
                places |= touched
        for position in sorted(durable):
            self._pending[position].do(self._names, self._directories)
        self._pending = [naming for position, naming in enumerate(self._pending) if position not in durable]

    def _name(self, naming: _Naming) -> None:
        self._pending.append(naming)
        naming.do(self._now, set())

    def _create(self, event: Event) -> None:
        if self._now.get(event.name) != event.inode:
            self._name(_Naming(None, event.name, event.inode))
            self._files.setdefault(event.inode, _File())
        elif event.mode:  # O_TRUNC
            self._edit(event, _Edit(size=0))

    def _link(self, event: Event) -> None:
        self._name(_Naming(None, event.other, event.inode))

    def _rename(self, event: Event) -> None:
        if event.inode != event.replaced:
            self._name(_Naming(event.name, event.other or None, event.inode))

    def _unlink(self, event: Event) -> None:
        self._name(_Naming(event.name, None, None))

    def _mkdir(self, event: Event) -> None:
        self._name(_Naming(None, event.name, None))

    def _attribute(self, event: Event) -> None:
        """Owner and mode are taken as kept: no step relies on their order."""

    # -- what is left ------------------------------------------------------------------------------------------------

    def unsynced(self) -> bool:
        return bool(self._pending) or any(file.pending for file in self._files.values())

    def kept(self) -> Image:
        """Nothing was lost: what the share shows before the power goes."""
        return self.lose(1.0, 1.0, random.Random(0))

    def lose(self, data: float, names: float, dice: random.Random) -> Image:
        """One state that the disk can hold.

        :param data: the probability that an unsynced page, truncation or hole is kept (0 none, 1 all).
        :param names: the same for changes of names; one that is lost loses all later ones in its directories.
        """
        kept_names, directories = dict(self._names), set(self._directories)
        closed: set[str] = set()
        for naming in self._pending:
            if naming.places() & closed or dice.random() >= names:
                closed |= naming.places()
            else:
                naming.do(kept_names, directories)
        reachable = {name: inode for name, inode in kept_names.items() if _is_reachable(name, directories)}
        contents = {inode: self._lose_data(self._files[inode], data, dice) for inode in sorted(set(reachable.values()))}
        return Image(reachable, frozenset(name for name in directories if _is_reachable(name, directories)), contents)

    def _lose_data(self, file: _File, share: float, dice: random.Random) -> bytes:
        if not file.pending or share <= 0:
            return file.synced
        if share >= 1:
            return file.content()
        return file.content(part for edit in file.pending for part in edit.pages() if dice.random() < share)


def _is_reachable(name: str, directories: Iterable[str]) -> bool:
    parent = os.path.dirname(name)
    return not parent or (parent in directories and _is_reachable(parent, directories))


def materialise(share: Path, keep: Path, image: Image) -> None:
    """Turn the share into ``image``, every file keeping its inode number.

    :param keep: where the recording run kept the inodes that lost their names, called by their numbers.
    """
    for path in sorted(path for path in share.rglob("*") if not path.is_dir()):
        stored = keep / str(path.stat().st_ino)
        if stored.exists():
            path.unlink()
        else:
            path.rename(stored)
    for path in sorted((path for path in share.rglob("*") if path.is_dir()), reverse=True):
        if str(path.relative_to(share)) not in image.directories:
            path.rmdir()
    placed: dict[int, Path] = {}
    for name, inode in sorted(image.names.items()):
        if inode in placed:
            (share / name).hardlink_to(placed[inode])
            continue
        placed[inode] = share / name
        (keep / str(inode)).rename(placed[inode])
        _rewrite(placed[inode], image.contents[inode])
    for path in keep.iterdir():
        path.unlink()


def _rewrite(path: Path, content: bytes) -> None:
    if path.read_bytes() == content:
        return
    with open(path, "r+b") as stream:
        stream.truncate(0)
        stream.truncate(len(content))
        for offset in range(0, len(content), PAGE):
            page = content[offset : offset + PAGE]
            if page.count(0) != len(page):
                stream.seek(offset)
                stream.write(page)
