# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows that QEMU has written a merge to the disk, before a header may lead to it.

QEMU keeps tables in memory until it is told to flush, and its monitor does not say whether that failed. A flush also keeps the whole
machine waiting until it has ended. So the task first syncs the file itself, which keeps nobody waiting, then tells QEMU to flush the
little that is left, and then reads the tables from the file.
"""

from __future__ import annotations

from typing import Sequence

from ... import model
from ...store.files.directory import ShareDirectory
from .. import merges
from .machine import Machine


def flush(machine: Machine, node: str) -> None:
    """Let QEMU write what it holds of a node to its file. Whether it could, the file must show. qemu-storage-daemon has no command for it."""
    if "human-monitor-command" in machine.monitor.commands:
        machine.monitor.run("human-monitor-command", command_line=f'qemu-io {node} "flush"')


class Merged:
    """A merge that QEMU does: ``target`` is the image that is written, ``layers`` are those whose data it gets, the upper ones first.

    :param is_above: the target rests on the layers.
    """

    def __init__(self, directory: ShareDirectory, machine: Machine, target: model.Image, layers: Sequence[model.Image], is_above: bool) -> None:
        self._directory, self._machine = directory, machine
        self._target, self._layers, self._is_above = target, layers, is_above

    def make_durable(self, fd: int, node: str) -> None:
        """Return when all of it is on the disk.

        :param fd: the target, opened before the merge. So this process sees errors of writing that came since. :param node: its node.
        :raises ToolFailed: QEMU has not written all of it. :raises OSError: the kernel has not.
        """
        waiting = self._directory.waiting
        waiting.sync_file(fd)
        flush(self._machine, node)
        if self._target.format == "qcow2":
            raw = next((image.file for image in self._layers if image.format == "raw"), None)
            upper = [image.file for image in self._layers if image.format != "raw"]
            merges.require_held(self._directory, self._target.file, upper, raw, self._is_above)
        waiting.sync_file(fd)
