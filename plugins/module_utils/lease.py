# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lease: a value that is passed around. Nothing here opens a file or asks for the time."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_NAMES = 16384  # that a lease lists
LONGEST_OWNER = 200  # letters


@dataclass(frozen=True)
class Lease:
    """A name on a share that somebody has for a time. It begins to run out when its file is written, by the clock of the share: so hosts need
    not agree on the time. All times are seconds since 1970 by that clock.

    :ivar id: random; it is another one when the lease is taken anew. Volumes that are made under the lease have it on record.
    :ivar ttl: seconds from the last renewal to its end; None: it does not end.
    :ivar acquired: when it was taken. :ivar written: when it was taken or renewed last.
    :ivar volumes: the names that may be made under it. :ivar uses: volumes that those rest on, and that are not removed meanwhile.
    :ivar collector: who removes what is left of it, if anybody does.
    """

    name: str
    id: str
    owner: str
    ttl: int | None
    acquired: float
    written: float
    labels: dict = field(default_factory=dict)  # label → value, both str
    volumes: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    collector: str | None = None

    @property
    def ends(self) -> float:
        """When it ends."""
        return float("inf") if self.ttl is None else self.written + self.ttl

    def is_over(self, at: float, grace: float = 0) -> bool:
        """Whether it has ended for ``grace`` seconds at the time ``at``."""
        return at > self.ends + grace
