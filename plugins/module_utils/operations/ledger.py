# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the volumes of a share take together, in one task."""

from __future__ import annotations

import threading

from ..model import Share, Volume, round_to_sector
from ..store.directory import ShareDirectory
from ..store.inventory import Observed


class Ledger:
    """The virtual sizes of all volumes of a share together, in bytes: read once in a task, which then follows what it changes
    itself. What other tasks create meanwhile is not in it, nor could it be: placement takes no lock on a share."""

    def __init__(self) -> None:
        self._provisioned: dict[str, int] = {}
        self._lock = threading.Lock()

    def provisioned(self, share: Share) -> int:
        with self._lock:
            if share.path not in self._provisioned:
                self._provisioned[share.path] = _provisioned(share)
            return self._provisioned[share.path]

    def follow(self, share: Share, before: Volume | None, after: Volume | None) -> None:
        """A volume of the share was ``before`` and is ``after``."""
        change = (after.size if after else 0) - (before.size if before else 0)
        with self._lock:
            if share.path in self._provisioned:
                self._provisioned[share.path] += change


def _provisioned(share: Share) -> int:
    """Sum of the virtual sizes of all volumes that can be read, in bytes."""
    from ..store.survey import survey  # late: only creation asks

    with ShareDirectory(share) as directory:
        sizes = survey(directory, lambda _name, found: found.volume.size if isinstance(found, Observed) else 0, tell_of_nobodys=round_to_sector)
    return sum(sizes.told.values())
