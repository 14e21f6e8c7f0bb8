# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes with missing files in their chain, described so that a task can remove what is left of them.

Headers lead only to the first gap. The files below it are found by the names in ``.info`` and in the record. Such a name alone is
weak evidence: it counts only for files that are named after the volume and that no other volume claims. A file that headers lead to
belongs to the volume only if ``.info`` or the record names it too. So files of a parent never belong to it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ... import errors, model
from ..files.directory import ShareDirectory
from ..metadata import formats, info_file, records, unfinished
from . import chains, images, ownership


class Broken(NamedTuple):
    """A volume with gaps. In the chain of ``volume``, missing files are images without format and size. ``missing``: all known files
    that are gone, those of its parent included. ``left``: existing files that are named as its own but may not be."""

    volume: model.Volume
    missing: tuple[str, ...]
    left: tuple[str, ...]


def find(directory: ShareDirectory, name: str) -> Broken | None:
    """Read volume ``name`` if headers lead from its active image to a missing file. None if no file is missing.

    :raises ChainBroken: ``.info`` or the record is damaged, or the chain loops. :raises UnsafeImage: a header is damaged or hostile.
    :raises Conflict: another volume claims a file that is named after this one.
    """
    record = records.read(directory, name)
    written = info_file.read(directory, name)
    info = written if written is not None else _info_from_record(name, record)
    if info is None and record is None:
        return None
    look = _Search(directory, name, info, record)
    look.follow(info.active if info else name)
    if not look.missing:
        return None
    look.read_below_gaps()
    return Broken(look.volume(written is not None), tuple(look.missing), tuple(look.left))


def _info_from_record(name: str, record: records.Record | None) -> info_file.Info | None:
    """The content of ``.info`` as the record has it."""
    if record is None or record.active is None or (record.active == name and not record.snapshots):
        return None
    return info_file.Info(record.active, tuple(sorted((snapshot, str(one["file"])) for snapshot, one in record.snapshots.items())))


class _Search:
    """The search for the files of one volume, from its active image down."""

    def __init__(self, directory: ShareDirectory, name: str, info: info_file.Info | None, record: records.Record | None) -> None:
        self._directory, self._name, self._info, self._record = directory, name, info, record
        self._images: dict[str, model.Image] = {}
        self._own: set[str] = set()
        self._named = self._all_named()
        self.missing: dict[str, None] = {}
        self.left: list[str] = []

    def _all_named(self) -> list[str]:
        """The files that ``.info`` and the record name as this volume's. Files of unfinished work and garbage are included."""
        info, record = self._info, self._record
        named = [info.active, *reversed(list(dict(info.snapshots).values()))] if info else []
        if record is not None:
            named += [*record.formats, *(unfinished.own_images(record.intent) if record.intent else ())]
            named += [item.file for item in record.garbage if self._is_there(item.file)]
        return [file for file in dict.fromkeys(named) if model.is_safe_file_name(file) and not file.endswith(".info")]

    def _is_there(self, file: str) -> bool:
        return self._directory.root.status(file) is not None

    def follow(self, file: str | None) -> None:
        """Read images from ``file`` down to the first gap, including files of a parent."""
        seen: set[str] = set()
        format_above: str | None = None
        while file is not None:
            if file in seen or len(seen) >= chains.MAX_CHAIN:
                raise errors.ChainBroken(
                    f"volume {self._name} on {self._directory.share.label}", f"its chain comes back to {file} or never ends", images.WORST_DAY
                )
            seen.add(file)
            if file in self._named and self._belongs(file):
                self._own.add(file)
            image = self._read(file, format_above)
            file, format_above = (image.backing_file, image.backing_format) if image else (None, None)

    def _read(self, file: str, format_above: str | None) -> model.Image | None:
        """Read one file and remember its image. None if it is missing."""
        image_format = chains.decide_format(self._name, file, format_above, self._info, self._record)
        if image_format is None and self._images:
            image_format = ownership.format_of_another(self._directory, self._name, file)
        try:
            image = self._images[file] = images.read_image(self._directory, file, image_format, None, self._record)
        except FileNotFoundError:
            self._note_missing(file)
            return None
        return image

    def _note_missing(self, file: str) -> None:
        self.missing[file] = None
        self._images[file] = model.Image(file, None, 0)

    def _is_named_after(self, file: str) -> bool:
        return file == self._name or file.startswith(self._name + ".")

    def _belongs(self, file: str) -> bool:
        """Whether no other volume claims a file. :raises Conflict: one does, and the file is named after this volume."""
        owner = ownership.owner_of(self._directory, file, excluding=self._name)
        if owner is not None and self._is_named_after(file):
            problem = f"volume {self._name} and volume {owner} both claim it"
            raise errors.Conflict(self._directory.root.subject(file), problem, "see which .info is wrong and mend it")
        return owner is None

    def read_below_gaps(self) -> None:
        """Read the named files below a gap. The files that these rest on are noted but not read, because they are the parent's."""
        below = []
        for file in self._named:
            if file in self._images:
                continue
            if not self._is_named_after(file):
                self.left += [file] if self._is_there(file) else []
            elif self._belongs(file):
                self._own.add(file)
                image = self._read(file, None)
                below += [image.backing_file] if image and image.backing_file else []
        if self._record is not None and self._record.parent is not None:
            below.append(self._record.parent.file)
        if self._name not in self._images and self._name not in self._named and self._is_there(self._name):
            self.left.append(self._name)  # the base may have been merged away, and this file may be somebody else's
        for file in below:
            if file in self._images:
                continue
            if self._is_there(file):
                self._images[file] = model.Image(file, None, 0)
            else:
                self._note_missing(file)

    def volume(self, has_info: bool) -> model.Volume:
        """The volume, made of what was read. ``has_info``: its ``.info`` exists."""
        own = [image for file, image in self._images.items() if file in self._own]
        others = [image for file, image in self._images.items() if file not in self._own]
        parent = self._record.parent if self._record is not None else None
        if parent is None and others:
            file = others[0].file
            parent = model.Parent(ownership.owner_of(self._directory, file) or file, None, file)
        if parent is not None:
            others.sort(key=lambda image: image.file != parent.file)
        chain = (*own, *others)
        snapshots, stale = self._snapshots([image.file for image in own])
        found = model.Volume(self._name, chain, snapshots, has_info, True, parent=parent, stale=stale)
        if self._record is None:
            return found
        record, lease = self._record, formats.lease_of(self._directory, self._record)
        return replace(found, created=record.created, description=record.description, labels=record.labels, lease=lease)

    def _snapshots(self, own: list[str]) -> tuple[tuple[model.Snapshot, ...], tuple[tuple[str, str], ...]]:
        """The entries of ``.info``: (snapshots whose file is or was the volume's own, the others as stale (snapshot, file) pairs)."""
        found, stale = [], []
        for snapshot, file in self._info.snapshots if self._info else ():
            if file not in self._own:
                stale.append((snapshot, file))
                continue
            details = self._record.snapshots.get(snapshot) if self._record else None
            fields = tuple(details[key] for key in ("created", "description", "labels", "protected", "expires")) if details else ()
            found.append(model.Snapshot(snapshot, file, *fields))
        return tuple(sorted(found, key=lambda one: (-own.index(one.file), one.name))), tuple(stale)
