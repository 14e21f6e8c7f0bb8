# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operations that the tests of kills do on a volume with the snapshots a, b and c."""

from __future__ import annotations

from .guest import MIB, SIZE, Live, digest, digest_of

_GONE = {"oldest": "a", "middle": "b", "pulled": "b", "newest": "c", "several": "ac", "all": "abc"}


class Operation:
    """An operation on a volume, and what must be true of that at every instant. ``gone`` are the snapshots that it deletes."""

    def __init__(self, live: Live, operation: str) -> None:
        self.live, self.operation = live, operation
        self.gone = _GONE.get(operation, "")

    def run(self) -> object:
        """The task itself."""
        if self.operation == "create":
            return self.live.take("new")
        if self.operation == "grow":
            return self.live.present(size=SIZE + MIB)
        return self.live.delete(*self.gone)

    def require_invariant(self) -> None:
        """The file that ``.info`` calls active shows all that the guest has flushed."""
        told = self.live.info()
        data = self.live.data + bytes(told["size"] - len(self.live.data))
        assert digest(told["path"], told["format"]) == digest_of(data), "the active image does not show what the guest has flushed"
