# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks want volumes and snapshots to be, and whether they are so already.

Most tasks find what they want. Then nothing has to be planned, and the planner is not even imported.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple

from ..errors import InvalidParameter
from ..model import Image, Volume

MAX_CHAIN = 64  # files, where the user says nothing: a read of something never written looks through all of them


class Source(NamedTuple):
    """What a full clone is made from: a label for ``actions``, its size and the bytes that its chain holds."""

    label: str
    size: int
    allocated: int


class DesiredVolume(NamedTuple):
    """What a playbook wants a volume to be. None means that the playbook says nothing of it; ``size`` is in bytes, ``created`` is
    for a volume that is made."""

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
    snapshot: str | None = None  # taken of the volume once it is there

    def is_met_by(self, volume: Volume) -> bool:
        """Whether :func:`planner.ensure_volume` has nothing to do and nothing to refuse: a volume that is on record, whose
        headers are in order, and which has the asked format, size, ownership, description and labels."""
        return (
            volume.adopted
            and volume.own_base.format is not None
            and self.format in (None, volume.own_base.format)
            and self.size in (None, volume.size)
            and self.description in (None, volume.description)
            and self.labels in (None, volume.labels)
            and all(is_spelled_out(image) and self._owns(image) for image in volume.own)
        )

    def _owns(self, image: Image) -> bool:
        return self.uid in (None, image.uid) and self.gid in (None, image.gid) and self.mode in (None, image.mode)


class Expiry(NamedTuple):
    """When a snapshot expires: at a ``time`` as records spell it, None for never.

    ``relative`` says that the time was counted from now. That is done once: a snapshot that has an expiry keeps it, or each run
    of a task would put it off.
    """

    time: str | None
    relative: bool = False

    def for_one_with(self, present: str | None) -> str | None:
        return present if self.relative and present is not None else self.time


class DesiredSnapshot(NamedTuple):
    """What a playbook wants a snapshot to be; description, labels, protected and expires are left alone where they are None.

    ``created`` is for a snapshot that is taken, ``max_chain`` the number of files that its volume's chain may have then.
    """

    name: str
    created: str | None = None
    description: str | None = None
    labels: dict | None = None
    protected: bool | None = None
    max_chain: int = MAX_CHAIN
    expires: Expiry | None = None

    def is_met_by(self, volume: Volume) -> bool:
        """Whether :func:`planner.create_snapshot` has nothing to do: the snapshot exists, as it is described."""
        return any(
            snapshot.name == self.name
            and self.description in (None, snapshot.description)
            and self.labels in (None, snapshot.labels)
            and self.protected in (None, snapshot.protected)
            and (self.expires is None or self.expires.for_one_with(snapshot.expires) == snapshot.expires)
            for snapshot in volume.snapshots
        )


def label_texts(labels: Mapping) -> dict[str, str]:
    """Labels as they are kept and compared: texts, nothing at all as the empty one."""
    return {str(name): "" if value is None else str(value) for name, value in labels.items()}


def is_spelled_out(image: Image) -> bool:
    """Whether its header names its backing file as it should, relative to the share and with its format.

    A header without the format would let qemu-img guess it from content that a guest may have written.
    """
    return not image.backing_file or not (image.absolute or image.backing_format is None)


def check_max_chain(max_chain: int) -> int:
    """:raises InvalidParameter: no limit for a chain that leaves room for a snapshot and can still be read."""
    if not 2 <= max_chain <= 200:
        raise InvalidParameter("option max_chain", f"{max_chain} is no limit for the files of a chain", "give a number from 2 to 200")
    return max_chain
