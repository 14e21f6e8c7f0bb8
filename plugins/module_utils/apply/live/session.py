# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out the steps of one plan while a machine has the images open."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Callable, ContextManager, NamedTuple

from ... import errors
from ...pace import Pace
from ...plan import steps
from ...plan.plan import CREATE_SNAPSHOT, Plan
from ...store import qcow2
from ...store.files.directory import ShareDirectory
from .. import engine, machine_session, merges
from . import answers, client, merging, possible, proving, switching
from .graph import Graph, Node
from .machine import OURS, Machine, told

if TYPE_CHECKING:
    from ..quiescing import Quiescing


class NextOverlay(NamedTuple):
    """The arguments of ``blockdev-snapshot``, both names of nodes: after it the guest writes to ``overlay``, which rests on ``node``."""

    node: str
    overlay: str


class LiveSession(machine_session.MachineSession):
    """The :class:`engine.Session` of the engine for running machines.

    :param top: the file that the guest writes to. The others are those of :class:`machine_session.MachineSession`.
    """

    def __init__(
        self, directory: ShareDirectory, plan: Plan, machine: Machine, files: engine.Session, top: str, pace: Pace, ended: Callable[[Pace], None]
    ) -> None:
        super().__init__(directory, plan, machine.subject, files, pace, ended)
        self._machine = machine
        self._merging = merging.Merging(directory, machine, top, pace)
        self._switch: switching.Switch | None = None
        if plan.operation != CREATE_SNAPSHOT and plan.after is not None and plan.after.active.file != top:
            self._switch = switching.Switch(directory, machine, self._merging, plan.after.active.file)
        self._methods = {
            steps.CreateOverlay: self._create_overlay,
            steps.Grow: self._grow,
            steps.Repoint: self._merging.repoint,
            steps.Commit: self._commit,
            steps.Pull: self._merging.pull,
            steps.SetAttributes: files.do,
        }

    @property
    def machine(self) -> Machine:
        """The machine that has the images open."""
        return self._machine

    def _told(self) -> ContextManager[None]:
        return told(self._machine)

    def _give_up(self) -> None:
        if self._switch is not None:
            self._switch.give_up()

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def _create_overlay(self, step: steps.CreateOverlay) -> None:
        """Publish the overlay and let QEMU open it. The machine does not use it before :meth:`switch`, which looks at the graph anew."""
        active = self._machine.node(self._machine.graph_seen(), step.backing_file)
        possible.require_size(self._machine, active, step.size)
        self._files.do(step)
        self._add(active, step.file)

    def _add(self, active: Node, file: str) -> str:
        """Let QEMU open an overlay, cached as the present active image is. Returns the name of its node."""
        name, cache = f"{OURS}{os.urandom(6).hex()}", dict(zip(("direct", "no-flush"), active.cache))
        path = os.path.join(possible.directory_of(self._machine, active), file)
        protocol = {"driver": "file", "filename": path, "cache": cache}
        self._machine.monitor.run("blockdev-add", driver="qcow2", node_name=name, backing=None, cache=cache, file=protocol)
        self._machine.note_added(Node(name, "qcow2", False, active.size, active.cache, path=path), file)
        return name

    def settle(self, announce: Callable[[str], None]) -> None:
        """See :meth:`engine.Session.settle`."""
        plan = self._plan
        if plan.operation == CREATE_SNAPSHOT or plan.after is None:
            return
        with told(self._machine):
            self._merging.require_chain(plan.after.files)
            if self._switch is not None:
                self._switch.prepare()

    def switch(self, quiescing: Quiescing | None = None) -> None:
        """Let the guest use the image that ``.info`` names now, and let QEMU close the files that are to go. Again, this changes nothing.

        :param quiescing: freezes the guest for that instant.
        """
        if self._plan.after is None or self._withdrawn:
            return
        with told(self._machine):
            action = self.next_overlay()
            if action is not None:
                with self.resting([self], quiescing):
                    self._machine.monitor.run("blockdev-snapshot", **action._asdict())
                self.require_used(action)
            if self._switch is not None:
                self._switch.complete()
            self.drop()

    def _write_out(self, file: str) -> None:
        super()._write_out(file)
        proving.flush(self._machine, self._machine.node(self._machine.graph(), file).name)

    def drop(self) -> None:
        """Let QEMU close the files that are to go."""
        self._merging.drop([step.file for step in self._plan.steps if isinstance(step, steps.Unlink)])

    def next_overlay(self) -> NextOverlay | None:
        """What has to be done so that the guest writes to the overlay that a snapshot makes. None if it does, or if there is none."""
        plan = self._plan
        if self._withdrawn or plan.after is None or not merges.is_taken(plan):
            return None
        overlay, backing = plan.after.active.file, str(plan.after.active.backing_file)
        graph = self._machine.shape()
        active = self._machine.node(graph, backing)
        if graph.overlay_on(active.name) in {node.name for node in self._machine.images(graph, overlay)}:
            return None
        self._require_empty(overlay)
        possible.require_size_kept(self._machine, backing, plan.after.size)
        return NextOverlay(active.name, self._waiting(graph, overlay) or self._add(active, overlay))

    def require_used(self, action: NextOverlay) -> None:
        """:raises ToolFailed: the guest does not write to the overlay, although QEMU says so."""
        if self._machine.shape().backing_of(action.overlay) != action.node:
            overlay = self._plan.after.active.file if self._plan.after is not None else ""
            problem = f"QEMU says that the guest writes to {overlay}, and it does not"
            raise errors.ToolFailed(self._machine.subject, problem, "stop the machine, and run the task again")

    def _waiting(self, graph: Graph, overlay: str) -> str | None:
        """The node of an overlay that QEMU has open and does not use."""
        return next((node.name for node in self._machine.images(graph, overlay)), None)

    def withdraw(self) -> bool | None:
        """See :meth:`engine.Session.withdraw`."""
        plan = self._plan
        if plan.after is None:
            return False
        if plan.operation != CREATE_SNAPSHOT:
            return not self._merging.begun
        overlay = plan.after.active.file
        try:
            graph = self._machine.graph()
            for node in self._machine.images(graph, overlay):
                if graph.backing_of(node.name) is not None:
                    return False
                self._machine.monitor.run("blockdev-del", node_name=node.name)
        except (client.QmpError, client.Lost, answers.Strange, errors.InUse):
            return None if self._directory.root.status(overlay) is None else False
        self._withdrawn = True
        return True

    # -- merges, growth and headers ------------------------------------------------------------------------------------------

    def _commit(self, step: steps.Commit) -> None:
        """What the guest writes to is merged last, by :meth:`settle`, whether the plan says that there is anything in it or not."""
        if self._switch is None or step.file != self._merging.top:
            self._merging.commit(step)

    def _grow(self, step: steps.Grow) -> None:
        """QEMU compares no sizes, and would also shrink. A filter on the image would not follow, so it is told and passes it on."""
        graph = self._machine.graph()
        node = self._machine.node(graph, step.file)
        root = graph.root_of(node.name)
        if max(node.size, graph.size_of(root)) > step.size:
            self._machine.refuse(f"the machine's disk has {node.size} bytes already", "ask for that size")
        if min(node.size, graph.size_of(root)) < step.size:
            self._machine.monitor.run("block_resize", node_name=root, size=step.size)
            if self._machine.graph().size_of(node.name) < step.size:
                problem = f"QEMU says that its disk has {step.size} bytes, and the disk has another size still"
                raise errors.ToolFailed(self._machine.subject, problem, "stop the machine, and run the task again")
        with self._directory.root.opened(step.file) as fd:
            self._directory.waiting.sync_file(fd)  # so that QEMU's own flush does not keep the machine waiting
            proving.flush(self._machine, node.name)
            self._directory.waiting.sync_file(fd)
            if step.format == "qcow2" and qcow2.read_header(fd).size != step.size:
                problem = f"QEMU has not written the new size to {step.file}"
                raise errors.ToolFailed(self._machine.subject, problem, "look at the share's storage and at QEMU's log, and run the task again")
