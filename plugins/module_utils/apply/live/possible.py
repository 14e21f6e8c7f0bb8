# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a running machine can do the steps of a plan. Asked before anything is changed, and in check mode."""

from __future__ import annotations

import os

from ...plan.plan import Plan
from ...plan.steps import CreateOverlay, Grow
from ...store import qcow2
from ...store.files.directory import ShareDirectory
from ...store.qcow2.clusters import Unsuited
from .graph import Graph, Node
from .machine import Machine

_STOP = "stop the machine, and run the task again"


def require_possible(plan: Plan, machine: Machine, graph: Graph) -> None:
    """:raises InUse: a step cannot be done while the machine runs."""
    for step in plan.steps:
        if isinstance(step, CreateOverlay):
            active = machine.node(graph, step.backing_file)
            require_size(machine, active, step.size)
            directory_of(machine, active)
        elif isinstance(step, Grow):
            _require_growable(machine, graph, step)


def require_size(machine: Machine, node: Node, size: int) -> None:
    """QEMU itself compares no sizes: with a smaller overlay the guest's disk would shrink. :raises InUse: the disk has another size."""
    if node.size != size:
        machine.refuse(f"the machine's disk has {node.size} bytes, and the file on the share {size}", _STOP)


def directory_of(machine: Machine, node: Node) -> str:
    """The share's directory as the machine spells it, as an absolute path in its own root. :raises InUse: it opened the image by a link elsewhere."""
    pid, root = machine.monitor.pid, machine.share_status
    path = os.path.join(os.readlink(f"/proc/{pid}/cwd"), os.path.dirname(node.path))
    status = os.stat(f"/proc/{pid}/root{path}")
    if (status.st_dev, status.st_ino) != (root.st_dev, root.st_ino):
        machine.refuse(f"the machine opened {node.path}, which is in another directory than the volume", f"start it on the volume's path. First {_STOP}")
    return path


def _require_growable(machine: Machine, graph: Graph, step: Grow) -> None:
    node = machine.node(graph, step.file)
    if node.size > step.size:
        machine.refuse(f"the machine's disk has {node.size} bytes already", "ask for that size")
    require_size(machine, node, machine.volume.image(step.file).size)
    if step.format == "qcow2" and _has_tail(machine.directory, step.file):
        machine.refuse(f"{step.file} holds old data behind its end, which would become visible", _STOP)


def _has_tail(directory: ShareDirectory, file: str) -> bool:
    """Whether a qcow2 file holds anything but zeros behind its virtual end. Tables that the machine has not written yet cannot lead there:
    it fills new clusters with zeros."""
    with directory.root.opened(file) as fd:
        try:
            return qcow2.has_tail(fd)
        except Unsuited:
            return True
