# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The merge of the image that the guest writes to, after which it writes to the one below (an active commit).

The finished job rests (``pending``). Until it is told how to end, both images show the same and the guest's writes wait. In that
moment ``.info`` is changed. So the file that ``.info`` names shows every write that the guest has flushed, at every instant.
"""

from __future__ import annotations

import os

from ...store.files.directory import ShareDirectory
from .guardian import Guardian, leave_behind
from .machine import Machine
from .merging import Merging, end, flush, job_name, wait


class Switch:
    """One active commit.

    :param new: the file that the guest is to write to.
    """

    def __init__(self, directory: ShareDirectory, machine: Machine, merging: Merging, new: str) -> None:
        self._directory, self._machine, self._merging, self.new = directory, machine, merging, new
        self._name = job_name("switch", machine.volume.name, new)
        self._guardian: Guardian | None = None
        self._old = ""  # the node of the image that the guest leaves

    def is_under_way(self) -> bool:
        """Whether an interrupted task began it."""
        found = self._machine.monitor.job(self._name)
        return found is not None and found["status"] != "concluded"

    def prepare(self) -> None:
        """Bring the job to where both images show the same. From then on the guest's writes wait, and a guardian sees to it that they do
        not wait for ever."""
        machine = self._machine
        graph = machine.graph()
        old, base = machine.node(graph, self._merging.top), self._merging.in_chain(graph, self.new)
        self._old = old.name
        if not self.is_under_way():
            base_name = base.name if base is not None else machine.node(graph, self.new).name
            self._merging.start(self._name, "block-commit", device=self._merging.root(graph), top_node=old.name, base_node=base_name)
        wait(machine, self._name, "ready", "pending")
        found = machine.monitor.job(self._name)
        rests = found is not None and found["status"] == "pending"
        if not rests:
            flush(machine, old.name)  # what is left to write of it afterwards is little
        self._guardian = Guardian(machine.monitor, self._directory, machine.volume.name, self.new, self._name, old.name)
        if not rests:
            machine.monitor.run("job-complete", id=self._name)
            wait(machine, self._name, "pending")
        with self._directory.root.opened(self.new) as fd:
            os.fsync(fd)

    def complete(self) -> None:
        """Let the guest go on, on the new image. ``.info`` names it durably."""
        if self._guardian is None:
            return
        self._machine.monitor.run("job-finalize", id=self._name)
        end(self._machine, self._name)
        leave_behind(self._machine.monitor, self._directory, self._machine.volume.name, self._old)
        self._guardian.dismiss()
        self._guardian = None

    def give_up(self) -> None:
        """If the task failed before its end, let the guardian decide now what it would decide if the task had died."""
        if self._guardian is not None:
            self._guardian.let_decide()
            self._guardian = None
