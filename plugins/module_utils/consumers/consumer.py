# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who runs machines on volumes: a small protocol, which QEMU alone and libvirt both fulfil."""

from __future__ import annotations

from typing import Callable, Protocol

from . import described, run_directory


class Consumer(Protocol):
    """Starts, finds and ends machines of this host. Every method may raise StorageError."""

    name: str

    def runs(self, place: run_directory.Place, record: described.Record) -> bool:
        """Whether the machine runs."""

    def prepared(self, record: described.Record) -> described.Record:
        """What is to be recorded of a machine before it is started."""

    def start(self, wanted: described.Wanted, place: run_directory.Place, record: described.Record) -> described.Record:
        """Start it, and return when its disks are open: what is to be recorded of it from now on."""

    def known(self, place: run_directory.Place, record: described.Record) -> described.Record:
        """What is to be recorded of a machine that runs. It may be more than the task wrote that started it, and was killed then."""

    def stop(self, place: run_directory.Place, record: described.Record, patience: float) -> None:
        """End it, and return when it has nothing open. ``patience``: seconds for its guest to shut down; 0: it is not asked."""

    def told(self, place: run_directory.Place, record: described.Record) -> dict:
        """How it can be reached, for users."""

    def usual_sign(self, wanted: described.Wanted) -> str:
        """By what to see that the guest answers, if the user does not say: one of the words of :mod:`answering`."""

    def answers(self, place: run_directory.Place, record: described.Record, sign: str) -> Callable[[], bool]:
        """What tells whether the guest answers. :raises InvalidParameter: that cannot be seen by this sign."""

    def halted(self, place: run_directory.Place, record: described.Record) -> str:
        """Why the guest stands still although its machine is there, in the consumer's words, such as ``io-error``; empty if it runs or nobody knows."""

    def last_words(self, place: run_directory.Place) -> str:
        """What the guest wrote to its console last; empty if nobody knows."""


def of_record(record: described.Record, warn: Callable[[str], None]) -> Consumer:
    """Who runs a machine that is recorded."""
    if record.consumer == described.LIBVIRT:
        from .domains import Libvirt

        return Libvirt(record.uri or "", warn)
    from .qemu import Qemu

    return Qemu(None, warn)
