# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The merge of the image that the guest writes to, after which it writes to the one below (an active commit).

The finished job rests (``pending``). Until it is told how to end, both images show the same and the guest's writes wait. In that
moment ``.info`` is changed. So the file that ``.info`` names shows every write that the guest has flushed, at every instant.
"""

from __future__ import annotations

import os
from typing import Callable

from ... import errors
from ...store.files.directory import ShareDirectory
from . import client, guardian, proving
from .machine import Machine
from .merging import Job, Merging, end, wait


class Switch:
    """One active commit.

    :param new: the file that the guest is to write to.
    """

    def __init__(self, directory: ShareDirectory, machine: Machine, merging: Merging, new: str) -> None:
        self._directory, self._machine, self._merging, self.new = directory, machine, merging, new
        self._guardian: guardian.Guardian | None = None
        self._name = ""  # of the job
        self._old = ""  # the node of the image that the guest leaves

    def prepare(self) -> None:
        """Bring the job to where both images show the same. From then on the guest's writes wait, and a guardian sees to it that they do
        not wait for ever. The graph proves that the job leads from the guest's image to the new one, before anybody relies on it."""
        machine = self._machine
        job = self._job()
        self._old, self._name = job.works_on[0], job.name
        rests = self._make_ready(job, self._merging.wait)
        self._guardian = guardian.Guardian(machine.monitor, self._directory, machine.volume.name, self.new, job.name, self._old)
        if not rests:
            self._let_rest(job)
        self._merging.require_proof(job)
        with self._directory.root.opened(self.new) as fd:
            os.fsync(fd)

    def _job(self) -> Job:
        machine = self._machine
        graph = machine.graph()
        old, base = machine.node(graph, self._merging.top), machine.node(graph, self.new)
        return Job(machine.job_name("switch", self._merging.top, self.new), "block-commit", (old.name, base.name))

    def _make_ready(self, job: Job, until: Callable[..., object]) -> bool:
        """Start the job, or go on with it, until hardly anything is left to copy. True if it rests already.

        :param until: waits until the job has one of the states that it is told.
        """
        machine, (old, base) = self._machine, job.works_on
        self._merging.start(job, device=self._merging.root(machine.shape()), top_node=old, base_node=base)
        until(job, "ready", "pending")
        self._merging.require_proof(job)
        found = machine.monitor.job(job.name)
        if found is not None and found["status"] == "pending":
            return True
        for file in (self._merging.top, self.new):  # what is left to write afterwards is little, and keeps nobody waiting for long
            with self._directory.root.opened(file) as fd:
                os.fsync(fd)
        proving.flush(machine, old)
        return False

    def _let_rest(self, job: Job) -> None:
        self._machine.monitor.run("job-complete", id=job.name)
        wait(self._machine, job.name, "pending")

    def complete(self) -> None:
        """Let the guest go on, on the new image. ``.info`` names it durably. :raises ToolFailed: the guest does not write to that."""
        if self._guardian is None:
            return
        machine = self._machine
        try:
            self._finalize()
        except client.QmpError:
            if not machine.shape().is_used(self._old):
                raise
            job = self._job()  # somebody cancelled it, and the guest must not stay where ``.info`` says that it is not
            if not self._make_ready(job, lambda one, *states: wait(machine, one.name, *states)):  # there is no way back, so no time limit
                self._let_rest(job)
            self._finalize()
        guardian.leave_behind(machine.monitor, self._directory, machine.volume.name, self._old)
        self._guardian.dismiss()
        self._guardian = None
        if machine.shape().is_used(self._old):
            raise errors.ToolFailed(
                machine.subject, f"QEMU says that the guest has left {self._merging.top}, and it has not", "stop the machine before anything else"
            )

    def _finalize(self) -> None:
        self._machine.monitor.run("job-finalize", id=self._name)
        end(self._machine, self._name)

    def give_up(self) -> None:
        """If the task failed before its end, let the guardian decide now what it would decide if the task had died."""
        if self._guardian is not None:
            self._guardian.let_decide()
            self._guardian = None
