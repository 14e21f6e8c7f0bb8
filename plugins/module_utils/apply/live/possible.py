# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a running machine can do the steps of a plan. Asked before anything is changed, and in check mode."""

from __future__ import annotations

import os
from typing import Iterable

from ...errors import Conflict
from ...model import listed
from ...plan.plan import Plan
from ...plan.steps import Commit, CreateOverlay, Grow, Pull, Repoint, Unlink
from ...store import qcow2
from ...store.files.directory import ShareDirectory
from ...store.qcow2.clusters import Unsuited
from .graph import Graph, Node
from .machine import Machine

_STOP = "stop the machine, and run the task again"


def require_possible(plan: Plan, machine: Machine, graph: Graph, drop_bitmaps: bool = False) -> None:
    """:param drop_bitmaps: bitmaps may be lost. :raises InUse: a step cannot be done while the machine runs. :raises Conflict: bitmaps would be lost."""
    merges = [step for step in plan.steps if isinstance(step, (Commit, Pull, Repoint, Unlink))]
    if any(not isinstance(step, Repoint) for step in merges):
        _require_mergeable(plan, machine, graph)
        machine.require_no_other((file for step in merges for file in step.touches()), writing=False)
        if not drop_bitmaps:
            _require_no_bitmaps(machine, graph, (file for step in merges for file in step.touches()))
    for step in plan.steps:
        if isinstance(step, CreateOverlay):
            active = machine.node(graph, step.backing_file)
            require_size(machine, active, step.size)
            directory_of(machine, active)
        elif isinstance(step, Grow):
            _require_growable(machine, graph, step)
        elif isinstance(step, Commit):
            _require_committable(machine, step)
        elif isinstance(step, (Pull, Repoint)) and step.backing_file is not None:
            _require_format_layer(machine, graph, step.backing_file)


def _require_mergeable(plan: Plan, machine: Machine, graph: Graph) -> None:
    """QEMU must be able to make data durable before a header shows it. And a client that connects while a job rests is not kept waiting:
    what it writes then would be lost."""
    monitor = machine.monitor
    if "human-monitor-command" not in monitor.commands:
        machine.refuse("its files would be merged, and what has them open (qemu-storage-daemon) has no command that makes data durable", _STOP)
    if plan.before is None or plan.after is None or plan.before.active.file == plan.after.active.file:
        return
    chain = set(graph.chain(machine.node(graph, plan.before.active.file).name))
    chain |= {graph.root_of(name) for name in chain}
    exports = monitor.run("query-block-exports") if "query-block-exports" in monitor.commands else ()
    if any(one.get("node-name") in chain for one in exports):
        machine.refuse("the machine exports its disk (block-export), and clients could write while the newest snapshot is merged", "end the export first")


def _require_format_layer(machine: Machine, graph: Graph, backing: str) -> None:
    """QEMU would write the name of a protocol as the format of the backing file. That could not be mended while the machine runs."""
    if any(node.bare for node in machine.images(graph, backing)):
        machine.refuse(f"the machine has {backing} open without a format layer, and a header would name it without its format", _STOP)


def _require_no_bitmaps(machine: Machine, graph: Graph, files: Iterable[str]) -> None:
    lost = [f"{name} of {file}" for file in dict.fromkeys(files) for node in machine.images(graph, file) for name in node.bitmaps]
    if lost:
        raise Conflict(
            machine.subject,
            f"deleting these snapshots would lose dirty bitmaps of the running machine: {listed(lost)}",
            "let the backup program end with them first, or say drop_bitmaps: true, after which the next backup has to be a full one",
        )


def _require_committable(machine: Machine, step: Commit) -> None:
    into, top = machine.volume.image(step.into), machine.volume.image(step.file)
    if into.format == "qcow2" and into.size < top.size and _has_tail(machine.directory, step.into):
        machine.refuse(f"{step.into} holds old data behind its end, which would become visible", _STOP)


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
