# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a running machine can do the steps of a plan. Asked before anything is changed, and in check mode."""

from __future__ import annotations

import os
from typing import Iterable

from ... import errors, model
from ...plan import steps
from ...plan.plan import Plan
from ...store import qcow2
from .. import merges
from . import rights
from .graph import Graph, Node
from .machine import Machine

_STOP = "stop the machine, and run the task again"


def require_possible(plan: Plan, machine: Machine, graph: Graph, drop_bitmaps: bool = False) -> None:
    """:param drop_bitmaps: bitmaps may be lost. :raises InUse: a step cannot be done while the machine runs. :raises Conflict: bitmaps would be lost."""
    require_mergeable(plan, machine, graph, machine.volume.active.file, drop_bitmaps)
    for step in plan.steps:
        if isinstance(step, steps.CreateOverlay):
            active = machine.node(graph, step.backing_file)
            require_size(machine, active, step.size)
            directory_of(machine, active)
        elif isinstance(step, steps.Grow):
            _require_growable(machine, graph, step)
        elif isinstance(step, (steps.Pull, steps.Repoint)):
            _require_header(machine, graph, step)
    for write in merges.writes(plan, machine.volume, machine.volume.active.file):
        _require_committable(machine, write)


def require_mergeable(plan: Plan, machine: Machine, graph: Graph, top: str, drop_bitmaps: bool = False) -> None:
    """Check what merges need that are to begin. :param top: the file that the guest writes to. :raises InUse, Conflict: it does not hold."""
    files = merges.merged(plan, machine.volume, top)
    require_harmless(plan, machine, graph, top)
    if files:
        machine.require_no_other(files, writing=False)
        if not drop_bitmaps:
            _require_no_bitmaps(machine, graph, files)


def require_harmless(plan: Plan, machine: Machine, graph: Graph, top: str) -> None:
    """Check what would lose data or harm the machine, also of merges that were interrupted. :raises InUse: something would."""
    files = merges.merged(plan, machine.volume, top)
    if not files:
        return
    monitor = machine.monitor
    if "human-monitor-command" not in monitor.commands:  # data must be durable before a header shows it
        machine.refuse("its files would be merged, and what has them open (qemu-storage-daemon) has no command that makes data durable", _STOP)
    machine.require_alone(graph, top, files)
    _require_no_buried_filter(machine, graph, top)
    _require_not_watched(machine, graph, files)
    _require_settled(plan, machine, graph, top)
    if merges.switches(plan, top) and plan.after is not None:
        _require_not_exported(machine, graph, top)
        _require_not_compressed(machine, graph, top, plan.after.active)
    _require_aligned(machine, graph, merges.writes(plan, machine.volume, top))
    for file in files:
        _require_whole(machine, graph, file)


def _require_no_buried_filter(machine: Machine, graph: Graph, top: str) -> None:
    """QEMU merges past it, and leaves in the header above it the name of the file that is to go."""
    found = graph.buried(machine.node(graph, top).name)
    if found is not None:
        machine.refuse(f"the machine has a filter ({found}) between its images", _STOP)


def _require_not_exported(machine: Machine, graph: Graph, top: str) -> None:
    """A client that connects while a job rests is not kept waiting: what it writes then would be lost."""
    monitor = machine.monitor
    chain = set(graph.chain(machine.node(graph, top).name))
    chain |= {graph.root_of(name) for name in chain}
    exports = monitor.run("query-block-exports") if "query-block-exports" in monitor.commands else ()
    if any(one["node-name"] in chain for one in exports):
        machine.refuse("the machine exports its disk (block-export), and clients could write while the newest snapshot is merged", "end the export first")


def _require_not_watched(machine: Machine, graph: Graph, files: Iterable[str]) -> None:
    """A ``copy-before-write`` of the user watches an image by a bitmap without a name. QEMU 7.2 aborts when it closes such an image. A job that
    is under way has such bitmaps, too, and is one of ours here."""
    nodes = {file: machine.images(graph, file) for file in dict.fromkeys(files)}
    found = [file for file in nodes if any(node.watched for node in nodes[file])]
    if found and not graph.jobs_on({node.name for file in found for node in nodes[file]}):
        machine.refuse(f"something in the machine watches {model.listed(found)} (a backup, a copy-before-write filter)", "end that first")


def _require_settled(plan: Plan, machine: Machine, graph: Graph, top: str) -> None:
    """The image that the guest writes to was mended when it was opened. A job of ours that is under way began on one that was in order."""
    written = [write.into for write in merges.writes(plan, machine.volume, top)] + [step.file for step in plan.steps if isinstance(step, steps.Pull)]
    formats = {image.file: image.format for image in machine.volume.chain}
    for file in dict.fromkeys(written):
        names = {node.name for node in machine.images(graph, file)}
        if file != top and formats.get(file) == "qcow2" and not graph.jobs_on(names):
            merges.require_settled(machine.directory, file)


def _require_not_compressed(machine: Machine, graph: Graph, top: str, new: model.Image) -> None:
    """What a ``compress`` filter writes only qcow2 takes. On a raw image each of the guest's writes would fail."""
    found = [node.name for node in graph.filters_on(machine.node(graph, top).name) if node.driver == "compress"]
    if found and new.format != "qcow2":
        machine.refuse(f"the machine compresses what it writes ({model.listed(found)}), and {new.file}, to which it would write then, is {new.format}", _STOP)


def _require_whole(machine: Machine, graph: Graph, file: str) -> None:
    """A machine can have a part of a raw file as its disk (options ``offset`` and ``size``). A merge would write to other places than the
    share's files say."""
    status = machine.directory.root.status(file)
    for node in machine.images(graph, file):
        if node.driver != "qcow2" and status is not None and not status.st_size <= node.size < status.st_size + merges.ALIGNMENT:  # QEMU rounds it up
            machine.refuse(f"the machine's disk has {node.size} bytes of {file}, and the file on the share {status.st_size}", _STOP)


def _require_aligned(machine: Machine, graph: Graph, writes: Iterable[merges.Write]) -> None:
    """QEMU 7.2 aborts, or changes the size, when it merges into a raw file of which the end is in the middle of a block, past the kernel's
    cache (``cache=none``)."""
    for file, size in writes:
        status = machine.directory.root.status(file)
        ends = [size, status.st_size if status is not None else 0]
        for node in machine.images(graph, file):
            if node.driver != "qcow2" and node.direct and any(end % merges.ALIGNMENT for end in ends):
                machine.refuse(f"the machine has the raw image {file} open with cache=none, and its size is no multiple of {merges.ALIGNMENT} bytes", _STOP)


def _require_header(machine: Machine, graph: Graph, step: steps.Pull | steps.Repoint) -> None:
    """QEMU has to write the header of the step's file. QEMU 7.2 crashes at the end of a merge if it cannot."""
    if step.backing_file is not None:
        _require_format_layer(machine, graph, step.backing_file)
    if step.file != machine.volume.active.file and machine.directory.share.keeps_modes:  # the active one it has open for writing
        with machine.directory.root.opened(step.file) as fd:
            if not rights.may_write(machine.monitor.pid, fd):
                machine.refuse(f"QEMU may not write to {step.file}, of which the header would change", "give its user the right to, and run the task again")
    image = machine.volume.image(step.file)
    if step.backing_file == image.backing_file and step.backing_format != "qcow2":
        machine.refuse(f"the header of {step.file} has to be mended, and QEMU writes no other format than qcow2 there by itself", _STOP)


def _require_format_layer(machine: Machine, graph: Graph, backing: str) -> None:
    """QEMU would write the name of a protocol as the format of the backing file. That could not be mended while the machine runs."""
    if any(node.bare for node in machine.images(graph, backing)):
        machine.refuse(f"the machine has {backing} open without a format layer, and a header would name it without its format", _STOP)


def _require_no_bitmaps(machine: Machine, graph: Graph, files: Iterable[str]) -> None:
    lost = [f"{name} of {file}" for file in dict.fromkeys(files) for node in machine.images(graph, file) for name in node.bitmaps]
    if lost:
        raise errors.Conflict(
            machine.subject,
            f"deleting these snapshots would lose dirty bitmaps of the running machine: {model.listed(lost)}",
            "let the backup program end with them first, or say drop_bitmaps: true, after which the next backup has to be a full one",
        )


def _require_committable(machine: Machine, write: merges.Write) -> None:
    into = machine.volume.image(write.into)
    if into.format == "qcow2" and into.size < write.size and merges.has_tail(machine.directory, write.into):
        machine.refuse(f"{write.into} holds old data behind its end, which would become visible", _STOP)


def require_size(machine: Machine, node: Node, size: int) -> None:
    """QEMU itself compares no sizes: with a smaller overlay the guest's disk would shrink. :raises InUse: the disk has another size."""
    _require_equal(machine, node.size, size)


def require_size_kept(machine: Machine, file: str, size: int) -> None:
    """The same, of the image that the guest writes to, by its file: QEMU writes a new size there before it says that the disk has it."""
    with machine.directory.root.opened(file) as fd:
        is_qcow2 = machine.volume.image(file).format == "qcow2"
        _require_equal(machine, qcow2.read_header(fd).size if is_qcow2 else model.round_to_sector(os.fstat(fd).st_size), size)


def _require_equal(machine: Machine, disk: int, size: int) -> None:
    if disk != size:
        machine.refuse(f"the machine's disk has {disk} bytes, and the file on the share {size}", _STOP)


def directory_of(machine: Machine, node: Node) -> str:
    """The share's directory as the machine spells it, as an absolute path in its own root. :raises InUse: it opened the image by a link elsewhere."""
    pid, root = machine.monitor.pid, machine.share_status
    path = os.path.join(os.readlink(f"/proc/{pid}/cwd"), os.path.dirname(node.path))
    status = os.stat(f"/proc/{pid}/root{path}")
    if (status.st_dev, status.st_ino) != (root.st_dev, root.st_ino):
        machine.refuse(f"the machine opened {node.path}, which is in another directory than the volume", f"start it on the volume's path. First {_STOP}")
    return path


def _require_growable(machine: Machine, graph: Graph, step: steps.Grow) -> None:
    node = machine.node(graph, step.file)
    if node.size > step.size:
        machine.refuse(f"the machine's disk has {node.size} bytes already", "ask for that size")
    require_size(machine, node, machine.volume.image(step.file).size)
    holders = graph.keep_size(node.name)
    if holders:
        machine.refuse(f"what has the disk open does not let it grow: {model.listed(holders)}", f"end what else uses the disk, or {_STOP}")
    if step.format != "qcow2" and node.direct and step.size % merges.ALIGNMENT:
        machine.refuse(
            f"it would have {step.size} bytes, and the machine has its raw image open with cache=none",
            f"ask for a multiple of {merges.ALIGNMENT} bytes, or stop the machine, and run the task again",
        )
    if step.format == "qcow2" and merges.has_tail(machine.directory, step.file):
        machine.refuse(f"{step.file} holds old data behind its end, which would become visible", _STOP)
