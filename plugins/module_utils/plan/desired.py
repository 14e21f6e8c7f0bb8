# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks want volumes and snapshots to be, and whether they are so already.

Most tasks find that nothing has to change. They need no plan and do not import the planner.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple

from .. import errors, model

MAX_CHAIN = 64  # files of a chain, by default: a read of a part that was never written looks through all of them


class Source(NamedTuple):
    """What a full clone is made from: a label for ``actions``, its size in bytes, and the bytes that its chain holds (None: nobody knows)."""

    label: str
    size: int
    allocated: int | None


class DesiredVolume(NamedTuple):
    """What a playbook wants a volume to be. None: the playbook does not say. ``size`` is in bytes. ``created`` is the time for a
    new volume. ``labels`` maps texts to texts. ``seed`` is the length in bytes of the image for cloud-init that it is to be, if it is one."""

    name: str
    size: int | None = None
    format: str | None = None
    preallocation: str = "off"
    source: Source | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    flatten: bool = False
    created: str | None = None
    description: str | None = None
    labels: dict | None = None
    snapshot: str | None = None  # the name of a snapshot that is taken after the volume exists
    lease: str | None = None  # the id of the lease under which a new volume is made
    seed: int | None = None

    def is_satisfied_by(self, volume: model.Volume) -> bool:
        """Whether :func:`planner.ensure_volume` has nothing to do and nothing to refuse. Then the volume has a record, its headers
        are in order, and format, size, ownership, description and labels are as desired."""
        return (
            volume.adopted
            and volume.move is None
            and volume.own_base.format is not None
            and self.format in (None, volume.own_base.format)
            and self.size in (None, volume.size)
            and self.description in (None, volume.description)
            and self.labels in (None, volume.labels)
            and all(is_spelled_out(image) and self._owns(image) for image in volume.own)
        )

    def _owns(self, image: model.Image) -> bool:
        return self.uid in (None, image.uid) and self.gid in (None, image.gid) and self.mode in (None, image.mode)


class Expiry(NamedTuple):
    """When a snapshot expires. ``time`` is in the form that records use; None means never. ``relative``: it was counted from now.

    A relative time is set once only. A snapshot that has an expiry keeps it, because otherwise each run of a task would delay it.
    """

    time: str | None
    relative: bool = False

    def time_for(self, present: str | None) -> str | None:
        """When a snapshot expires from now on. :param present: its expiry so far; None for never."""
        return present if self.relative and present is not None else self.time


class DesiredSnapshot(NamedTuple):
    """What a playbook wants a snapshot to be. Where description, labels, protected or expires is None, it stays as it is.

    ``created`` is the time for a new snapshot. ``max_chain`` is the number of files that the chain may have with its overlay.
    """

    name: str
    created: str | None = None
    description: str | None = None
    labels: dict | None = None
    protected: bool | None = None
    max_chain: int = MAX_CHAIN
    expires: Expiry | None = None

    def is_satisfied_by(self, volume: model.Volume) -> bool:
        """Whether :func:`planner.create_snapshot` has nothing to do: the snapshot exists and is as desired."""
        return any(
            snapshot.name == self.name
            and self.description in (None, snapshot.description)
            and self.labels in (None, snapshot.labels)
            and self.protected in (None, snapshot.protected)
            and (self.expires is None or self.expires.time_for(snapshot.expires) == snapshot.expires)
            for snapshot in volume.snapshots
        )


def label_texts(labels: Mapping) -> dict[str, str]:
    """Labels in the form that is stored and compared: every value is a text, and None is the empty text."""
    return {str(name): "" if value is None else str(value) for name, value in labels.items()}


def is_spelled_out(image: model.Image) -> bool:
    """Whether the header names its backing file as it should: relative to the share, and with its format.

    Without the format in the header, qemu-img would guess it from content that a guest may have written.
    """
    return not image.backing_file or not (image.absolute or image.backing_format is None)


def check_max_chain(max_chain: int) -> int:
    """Return ``max_chain``. :raises InvalidParameter: it leaves no room for a snapshot, or such a chain could not be read."""
    if not 2 <= max_chain <= 200:
        raise errors.InvalidParameter("option max_chain", f"{max_chain} is no limit for the files of a chain", "give a number from 2 to 200")
    return max_chain
