# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merges of images while a machine has them open, below the image that the guest writes to.

Each is a job of QEMU's that rests when its data is written (``pending``). Then the data is made durable, and only then the job may
write the header that shows it: otherwise a machine that dies could leave a header that leads to data which never reached the disk.

Each verb may find the work done, or its job under way, because an interrupted task began it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple, Sequence

from ... import errors, model
from ...pace import OutOfTime, Pace
from ...plan import steps
from ...store import qcow2
from ...store.files.directory import ShareDirectory
from .. import positions
from . import client, proving
from .graph import Graph, Node
from .machine import Machine


class Job(NamedTuple):
    """A job of QEMU's: its name, the command that starts it, and nodes that it must work on."""

    name: str
    command: str
    works_on: tuple[str, ...]


class Merging:
    """The verbs for one volume.

    :param top: the file that the guest writes to. :param pace: how fast data moves, and for how long.
    """

    def __init__(self, directory: ShareDirectory, machine: Machine, top: str, pace: Pace) -> None:
        self._directory, self._machine, self.top, self._pace = directory, machine, top, pace
        self.begun = False  # whether anything may have been changed

    # -- places in the graph -----------------------------------------------------------------------------------------

    def chain(self, graph: Graph) -> list[str]:
        """The nodes of images from the guest's down."""
        return list(graph.chain(self._machine.node(graph, self.top).name))

    def in_chain(self, graph: Graph, file: str | None) -> Node | None:
        """The node of a file in the guest's chain. None if it is not there (any more)."""
        chain = self.chain(graph)
        return next((node for node in self._machine.images(graph, file) if node.name in chain), None) if file is not None else None

    def _must_be(self, graph: Graph, file: str) -> Node:
        node = self.in_chain(graph, file)
        if node is None:
            self._machine.refuse(f"{file} is not in the machine's chain any more", "look at what the machine has open, and run the task again")
        return node

    def root(self, graph: Graph) -> str:
        """What the device has, which jobs are told."""
        return graph.root_of(self._machine.node(graph, self.top).name)

    # -- verbs -------------------------------------------------------------------------------------------------------

    def commit(self, step: steps.Commit) -> None:
        """Write into ``into`` what the layers above it hold, up to ``file``. QEMU takes them out of the chain in the same step."""
        graph = self._machine.graph()
        upper = self.in_chain(graph, step.file)
        if upper is not None:
            self._commit_range(graph, upper.name, step.into)

    def _commit_range(self, graph: Graph, upper: str, into: str) -> None:
        base = self._must_be(graph, into)
        child = self._file_above(graph, upper)
        job = Job(self._machine.job_name("commit", child, into), "block-commit", (upper, base.name))
        layers = self._files_between(graph, upper, base.name)
        self._run(job, base.name, into, layers, child, device=self.root(graph), top_node=upper, base_node=base.name, backing_file=into)
        self._require_header(child, into)

    def pull(self, step: steps.Pull) -> None:
        """Copy into ``file`` what lies between it and ``backing_file``, and make that its backing file."""
        graph = self._machine.graph()
        node = self._must_be(graph, step.file)
        target = self._must_be(graph, step.backing_file) if step.backing_file is not None else None
        if graph.backing_of(node.name) == (target.name if target else None):
            return
        to = {} if target is None else {"base_node": target.name, "backing_file": step.backing_file}
        job = Job(self._machine.job_name("pull", step.file, step.backing_file), "block-stream", (node.name,))
        layers = self._files_between(graph, graph.backing_of(node.name), target.name if target else None)
        self._run(job, node.name, step.file, layers, step.file, device=node.name, **to)
        self._require_header(step.file, step.backing_file)

    def repoint(self, step: steps.Repoint) -> None:
        """Let ``file`` rest on ``backing_file``, in the header and in the machine. What lies between them is empty.

        A file that is not in the chain any more was merged by the interrupted task: then the machine is further than the record.
        """
        graph = self._machine.graph()
        node, target = self.in_chain(graph, step.file), self.in_chain(graph, step.backing_file)
        if node is None or target is None:
            return
        below = graph.backing_of(node.name)
        if below is not None and below != target.name:
            self._commit_range(graph, below, step.backing_file)
        elif self._header(step.file) != (step.backing_file, step.backing_format):
            self.begun = True
            self._machine.monitor.run("change-backing-file", device=self.root(graph), image_node_name=node.name, backing_file=step.backing_file)
            self._require_header(step.file, step.backing_file, step.backing_format)

    def require_chain(self, files: tuple[str, ...]) -> None:
        """Check that the merges have left these files, the upper ones first; above them only what the guest is going to leave.

        :raises InUse: there are others.
        """
        graph = self._machine.graph()
        chain = self.chain(graph)
        expected = [node.name for node in (self.in_chain(graph, file) for file in files) if node is not None]
        if len(expected) < len(files) or chain[len(chain) - len(files) :] != expected or (files[0] == self.top and len(chain) > len(files)):
            self._machine.refuse("the machine's chain is not what the merges should have left", "look at what it has open, and run the task again")

    def drop(self, files: list[str]) -> None:
        """Let QEMU close files that are not in the chain any more. A node can go when none rests on it. One that does not go is found by
        its file's lock bytes."""
        going = bool(files)
        while going:
            graph = self._machine.shape()
            nodes = [node for file in files for node in self._machine.images(graph, file)]
            names = [name for name in dict.fromkeys(name for node in nodes for name in (node.name, node.protocol)) if not name.startswith("#")]
            going = len([name for name in names if self._delete(name)]) > 0

    def _delete(self, name: str) -> bool:
        try:
            self._machine.monitor.run("blockdev-del", node_name=name)
        except client.QmpError:
            return False  # something rests on it
        return True

    # -- jobs --------------------------------------------------------------------------------------------------------

    def _run(self, job: Job, node: str, file: str, layers: list[model.Image], child: str, **arguments: object) -> None:
        """Run a job, or go on with it, and let it end when what it wrote to ``file`` is durable.

        :param node: of ``file``. :param layers: the images whose data it gets. :param child: the file whose header QEMU writes at the end.
        """
        machine, begun = self._machine, self.begun
        merged = proving.Merged(self._directory, machine, machine.volume.image(file), layers, is_above=file == child)
        with self._directory.root.opened(file) as fd:
            if machine.monitor.job(job.name) is None:
                self._require_writable_header(child)
            header = self._header(child)
            self.start(job, **arguments)
            try:
                self.wait(job, "pending", layers=layers, above=machine.volume.image(file) if file == child else None)
            except OutOfTime:  # what a pull has copied until then its file shows anyway
                self.begun = begun or job.command != "block-stream" or self._header(child) != header
                raise
            self.require_proof(job)
            try:
                merged.make_durable(fd, node)
            except (errors.StorageError, OSError):
                self._cancel(job)
                raise
        machine.monitor.run("job-finalize", id=job.name)
        end(machine, job.name)

    def _require_writable_header(self, child: str) -> None:
        """Let QEMU write a header as it is already. One that it cannot write at the end of a merge makes QEMU 7.2 crash.

        QEMU would write the image's own format as that of the backing file, so that a header which names a raw one is not touched.

        :raises QmpError: it cannot.
        """
        backing, backing_format = self._header(child)
        graph = self._machine.graph()
        node = self.in_chain(graph, child)
        if node is not None and backing is not None and backing_format == "qcow2":
            self._machine.monitor.run("change-backing-file", device=self.root(graph), image_node_name=node.name, backing_file=backing)

    def start(self, job: Job, **arguments: object) -> None:
        """Start a job that does not end by itself, unless it is there already. One that has failed is started anew. If QEMU refuses the job,
        nothing has been changed by it.

        A pull that has ended vanishes, because QEMU 7.2 crashes if another task then asks it for its nodes. What it did the header tells.
        """
        monitor = self._machine.monitor
        found = monitor.job(job.name)
        if found is not None and found["status"] == "concluded":
            monitor.run("job-dismiss", id=job.name)
            found = None
        if found is not None:
            self.require_proof(job)
            self.begun = True
            if found["status"] in ("running", "paused", "ready"):
                monitor.run("block-job-set-speed", device=job.name, speed=self._pace.speed)
            return
        monitor.failures.pop(job.name, None)
        try:
            monitor.run(job.command, job_id=job.name, auto_finalize=False, auto_dismiss=job.command == "block-stream", speed=self._pace.speed, **arguments)
        except client.QmpError:
            raise
        except BaseException:
            self.begun = True
            raise
        self.begun = True

    def wait(self, job: Job, *states: str, layers: Sequence[model.Image] = (), above: model.Image | None = None) -> None:
        """Wait until a job has one of these states. If the time is over before, it is cancelled: it changes nothing any more.

        :param layers: the images whose data moves, if the job tells its position on the disk, and not bytes that have moved. :param above: see
            :func:`positions.telling`.
        :raises OutOfTime: it was cancelled. :raises QmpError: it has failed. :raises ToolFailed: it vanished.
        """
        tell = positions.telling(self._directory, self._pace.part, layers, above)
        if wait(self._machine, job.name, *states, until=self._pace.until(), sharing=True, tell=tell):
            return
        self._cancel(job)
        raise self._pace.out_of_time()

    def _cancel(self, job: Job) -> None:
        """End a job so that it changes nothing any more."""
        with suppress(client.QmpError):  # it has just ended
            self._machine.monitor.run("job-cancel", id=job.name)
        if self._machine.monitor.wait_for(job.name, "concluded") is not None:
            self._machine.monitor.run("job-dismiss", id=job.name)

    def require_proof(self, job: Job) -> None:
        """The graph must show that the job is what its name says. :raises InUse: it does not."""
        graph = self._machine.shape()
        self._machine.require_proof(graph, job.name, job.works_on, self.chain(graph)[0])

    def _sync(self, file: str) -> None:
        with self._directory.root.opened(file) as fd:
            self._directory.waiting.sync_file(fd)

    # -- headers -----------------------------------------------------------------------------------------------------

    def _header(self, file: str) -> tuple[str | None, str | None]:
        with self._directory.root.opened(file) as fd:
            header = qcow2.read_header(fd)
        return header.backing_file, header.backing_format

    def _require_header(self, file: str, backing: str | None, backing_format: str | None = None) -> None:
        """Before anything is removed that the header may still name. Past a filter that is buried in a chain QEMU changes no header.

        :param backing_format: None: any. :raises ChainBroken: the header does not name ``backing``, or another format.
        """
        self._sync(file)
        found, found_format = self._header(file)
        if found != backing or backing_format not in (None, found_format):
            raise errors.ChainBroken(
                self._directory.root.subject(file),
                f"after the merge its header names {found} ({found_format}), not {backing}",
                "nothing was removed; stop the machine and run the task again without attachment",
            )

    def _files_between(self, graph: Graph, upper: str | None, below: str | None) -> list[model.Image]:
        """The volume's images from the node ``upper`` down to the one above ``below`` (None: to the lowest)."""
        found: list[model.Image] = []
        for name in self.chain(graph) if upper is not None else ():
            if name == below:
                break
            if found or name == upper:
                found += [image for image in self._machine.volume.chain if name in {node.name for node in self._machine.images(graph, image.file)}]
        return found

    def _file_above(self, graph: Graph, name: str) -> str:
        """The file whose overlay rests on this node."""
        above = graph.overlay_on(name)
        found = [file for file in self._machine.volume.files if any(node.name == above for node in self._machine.images(graph, file))]
        if not found:
            self._machine.refuse(f"node {name} has no overlay of the volume on it", "look at what the machine has open, and run the task again")
        return found[0]


def wait(machine: Machine, name: str, *states: str, until: float | None = None, sharing: bool = False, tell: positions.Tell | None = None) -> bool:
    """Wait until a job has one of these states. False if it has none of them at ``until``, a time of :func:`time.monotonic`.

    :param sharing: if it takes longer, other tasks may use the monitor meanwhile. :param tell: is told how far the job is.

    :raises QmpError: it has failed; it is dismissed. :raises ToolFailed: it vanished.
    """
    found = machine.monitor.wait_for(name, *states, until=until, sharing=sharing, tell=tell)
    if found is None and name in machine.monitor.failures:
        raise client.QmpError(name, "GenericError", machine.monitor.failures[name])
    if found is None:
        raise errors.ToolFailed(machine.subject, f"job {name} vanished", "run the task again; it ends what was begun")
    if found["status"] == "concluded":
        machine.monitor.run("job-dismiss", id=name)
        raise client.QmpError(name, "GenericError", found.get("error") or "it ended early")
    return found["status"] in states


def end(machine: Machine, name: str) -> None:
    """Wait for the end of a job that may end, and dismiss it. What it did the caller must see from headers and from the graph.

    :raises QmpError: it failed at its end.
    """
    found = machine.monitor.wait_for(name, "concluded")
    if found is not None:
        machine.monitor.run("job-dismiss", id=name)
    error = found.get("error") if found is not None else machine.monitor.failures.get(name)
    if error:
        raise client.QmpError(name, "GenericError", error)
