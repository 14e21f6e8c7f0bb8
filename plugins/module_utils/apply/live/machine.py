# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running machine and the images of one volume that it has open: whether work on them may begin now.

Everything here only asks.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from typing import Collection, Iterable, Iterator, NoReturn, Sequence

from ... import errors, model
from ...store.files.directory import ShareDirectory
from .. import openers
from . import answers, client
from .graph import Added, Graph, Node, Seen

OURS = "rfs-"  # how the names of our jobs and nodes begin
JOBS = ("switch", "commit", "pull")
_AT_WORK = ("running", "paused", "prelaunch", "suspended", "io-error", "watchdog", "guest-panicked", "shutdown")
_NOT_MIGRATING = ("none", "completed", "failed", "cancelled")
_NEEDED = ("query-named-block-nodes", "x-debug-query-block-graph", "query-jobs", "blockdev-add", "blockdev-snapshot", "block_resize", "blockdev-del")


class Machine:
    """What is behind a monitor, and the volume's images in it.

    :param volume: the volume as ``.info`` describes it. :param check_only: nothing may be changed, not even what a killed task has left.
    :param seen: what the task has seen of the machine for other volumes.
    """

    def __init__(
        self, monitor: client.Monitor, directory: ShareDirectory, volume: model.Volume, check_only: bool = False, seen: Seen | None = None
    ) -> None:
        self.monitor, self.volume = monitor, volume
        self.directory, self._check_only = directory, check_only
        self._ended: set[str] = set()  # jobs of ours that have ended and stay
        self._seen = seen or Seen()
        self._statuses = {file: status for file in volume.files for status in [directory.root.status(file)] if status is not None}

    @property
    def share_status(self) -> os.stat_result:
        """The status of the share's directory."""
        return os.fstat(self.directory.root.fd)

    @property
    def subject(self) -> str:
        """How messages name the volume."""
        return f"volume {self.volume.name} on {self.directory.share.label}"

    def refuse(self, problem: str, remedy: str) -> NoReturn:
        """:raises InUse: always."""
        raise errors.InUse(self.subject, problem, remedy)

    def graph(self) -> Graph:
        """The graph as it is now. :raises InUse, QmpError, Lost: see :class:`Graph`."""
        self._seen.graph = Graph(self.monitor, self._ended)
        return self._seen.graph

    def shape(self) -> Graph:
        """The graph as it is now, for a caller that asks which node is above which. What else is known of a node, such as its size, may be
        as it was when the whole graph was read. :raises InUse, QmpError, Lost: see :class:`Graph`."""
        self._seen.graph = Graph(self.monitor, self._ended, self._seen.graph, self._seen.added)
        return self._seen.graph

    def note_added(self, node: Node, file: str) -> None:
        """QEMU has opened a new file of the share under the name of this node."""
        status = self.directory.root.status(file)
        if status is not None:
            self._seen.added.append(Added(node, (status.st_dev, status.st_ino)))

    def graph_seen(self) -> Graph:
        """The graph as it was last read, for what does not depend on what others did since."""
        return self._seen.graph or self.graph()

    def images(self, graph: Graph, file: str) -> list[Node]:
        """The nodes of a file of the share."""
        status = self._statuses.get(file) or self.directory.root.status(file)
        return graph.images(status) if status is not None else []

    def node(self, graph: Graph, file: str) -> Node:
        """The one node of a file. :raises InUse: the machine does not have it open, or has it twice."""
        found = self.images(graph, file)
        if len(found) != 1:
            self.refuse(f"the machine behind {self.monitor.path} has {file} open {len(found)} times", "give the monitor of the machine that uses the volume")
        return found[0]

    def has_any(self, graph: Graph) -> bool:
        """Whether it has any image of the volume open."""
        return any(self.images(graph, file) for file in self.volume.own_files)

    def written(self, graph: Graph, files: Iterable[str]) -> str | None:
        """Which of these files the guest writes to; None if it is none of them."""
        return next((file for file in files if any(self._is_top(graph, node) for node in self.images(graph, file))), None)

    # -- jobs --------------------------------------------------------------------------------------------------------

    def job_name(self, kind: str, *files: str | None) -> str:
        """The name of a job on these files. It is the same for the task that ends interrupted work, and no other volume's: a machine may
        have volumes of one name from several shares."""
        return f"{self._jobs_named(kind)}{_digest(*map(self._key, files))}"

    def is_own(self, job: str) -> bool:
        """Whether a job is named as this volume's jobs are."""
        return job.startswith(tuple(map(self._jobs_named, JOBS)))

    def _jobs_named(self, kind: str) -> str:
        share = self.share_status
        return f"{OURS}{kind}-{_digest(share.st_dev, share.st_ino, self.volume.name)}-"

    def _key(self, file: str | None) -> str:
        status = self.directory.root.status(file) if file is not None else None
        return f"{status.st_dev} {status.st_ino}" if status is not None else ""

    def require_proof(self, graph: Graph, job: str, works_on: Sequence[str], top: str) -> None:
        """Check by the graph that a job of this name is ours: it works on these nodes and on no image outside of the guest's chain, and a
        commit ends in the last of them.

        :param top: the node that the guest writes to. :raises InUse: it is another one.
        """
        told, found, chain = self.monitor.job(job), graph.nodes_of(job), list(graph.chain(top))
        merged = [name for name in chain if name in found]
        kind = told["type"] if told is not None else ""
        if kind not in ("commit", "stream") or not set(works_on) <= found <= set(chain) or (kind == "commit" and merged[-1] != works_on[-1]):
            self.refuse(f"job {job} of the machine is not the one that this task began", "cancel that job, and run the task again")

    # -- what must hold before anything is sent ------------------------------------------------------------------------

    def require_ready(self, shape_only: bool) -> Graph:
        """Check that work on the volume may begin, and return the graph.

        :param shape_only: the work depends on nothing else of the nodes that may have changed since the task has seen them.
        :raises InUse: it may not. :raises ToolMissing: QEMU cannot do what is needed.
        """
        graph = self.require_able(shape_only)
        self._require_chain(graph, self.volume.files)
        self.require_no_other(self.volume.own_files, writing=True)
        self._require_no_jobs(graph, self.volume.files, ours=False)
        self._require_writable(graph, self.volume.active.file)
        self.require_alone(graph, self.volume.active.file, [self.volume.active.file])
        return graph

    def foreseen(self) -> tuple[Graph, str] | None:
        """The graph, and the file that the guest writes to now, if the volume is only predicted, and differs by snapshots that are still to
        be taken. None if it differs otherwise. :raises InUse: nothing could be done now."""
        graph = self.require_able()
        there = tuple(file for file in self.volume.files if file in self._statuses)
        nodes = [node for file in there for node in self.images(graph, file)]
        if not nodes or not self._is_top(graph, nodes[0]) or [*graph.chain(nodes[0].name)] != [node.name for node in nodes]:
            return None
        self.require_no_other(there, writing=True)
        self._require_no_jobs(graph, there, ours=True)
        self._require_writable(graph, there[0])
        self.require_alone(graph, there[0], there[:1])
        return graph, there[0]

    def require_ready_to_end(self, tops: Iterable[str], allowed: Collection[str], needed: Iterable[str]) -> str:
        """Check that interrupted work may be ended. Returns the file that the guest writes to.

        :param tops: files that the guest may write to. :param allowed: files that may be in its chain. :param needed: those that must be.
        :raises InUse: it may not. :raises ToolMissing: QEMU cannot do what is needed.
        """
        graph = self.require_able()
        found = [file for file in dict.fromkeys(tops) if any(self._is_top(graph, node) for node in self.images(graph, file))]
        if len(found) != 1:
            self.refuse(
                f"the machine behind {self.monitor.path} writes to {model.listed(found) or 'none'} of its images {model.listed(dict.fromkeys(tops))}",
                "give the monitor of the machine that uses it, or leave attachment out if nobody does",
            )
        names = {node.name: file for file in allowed for node in self.images(graph, file)}
        seen = [names.get(name) for name in graph.chain(self.node(graph, found[0]).name)]
        if None in seen or not set(needed) <= set(seen):
            self.refuse(f"the machine has other files under {found[0]} than the interrupted task can have left", "stop the machine, and run the task again")
        self.require_no_other(allowed, writing=True)
        self._require_no_jobs(graph, allowed, ours=True)
        self._require_writable(graph, found[0])
        self.require_alone(graph, found[0], found)
        return found[0]

    def require_alone(self, graph: Graph, top: str, files: Iterable[str]) -> None:
        """Check that nothing in the machine uses these files besides the chain, and the chain nothing but filters that are known.

        :param top: the file that the guest writes to. :raises InUse: something does.
        """
        chain = list(graph.chain(self.node(graph, top).name))
        for file in dict.fromkeys(files):
            nodes = self.images(graph, file)
            found = [one for node in nodes for one in graph.strangers(node, chain)]
            if found:
                self.refuse(f"in the machine something else uses {file}: {model.listed(found)}", "end that use, or stop the machine, and run the task again")
            if len(nodes) > 1:
                self.refuse(f"the machine has {file} open {len(nodes)} times", "close all but one, or stop the machine, and run the task again")

    def _is_top(self, graph: Graph, node: Node) -> bool:
        return graph.overlay_on(node.name) is None and bool(graph.users_of(node.name))

    def require_able(self, shape_only: bool = False) -> Graph:
        """Check what does not depend on the volume, and return the graph. :raises InUse: the machine is not at work, or not reachable."""
        lacking = sorted(set(_NEEDED) - self.monitor.commands)
        if lacking:
            raise errors.ToolMissing(f"QEMU behind {self.monitor.path}", f"it lacks {model.listed(lacking)}", "use QEMU 7.2 or newer")
        self._require_settled()
        self._clear_ended_jobs()
        return self.shape() if shape_only else self.graph()

    def _clear_ended_jobs(self) -> None:
        """Dismiss jobs of this volume that have ended and that a killed task did not dismiss: they keep files open, and what they did the
        graph tells. Where nothing may be changed they are passed over. Other jobs stay.

        :raises InUse: a pull is among those. QEMU 7.2 crashes when it is asked for its nodes while one has ended and is not dismissed. Ours
            dismiss themselves.
        """
        for found in self.monitor.run("query-jobs"):
            if found["status"] != "concluded":
                continue
            name, is_pull = found["id"], found["type"] == "stream"
            if is_pull:
                self.refuse(f"another program's job has ended and is not dismissed ({name})", "let that program dismiss it, and run the task again")
            elif self.is_own(name) and self._check_only:
                self._ended.add(name)
            elif self.is_own(name):
                self.monitor.run("job-dismiss", id=name)

    def _require_writable(self, graph: Graph, file: str) -> None:
        if not graph.is_used(self.node(graph, file).name):
            self.refuse(f"the machine has {file} open, and no device uses it", "delete its block node, or stop the machine, and run the task again")
        if self.node(graph, file).read_only:
            self.refuse("the machine has its disk read-only", "stop the machine, and run the task again")

    def _require_settled(self) -> None:
        """Check that the machine neither migrates nor waits for a migration. QEMU 7.2 aborts when such a disk is resized."""
        if "query-status" not in self.monitor.commands:
            return  # qemu-storage-daemon
        state = self.monitor.run("query-status")["status"]
        migration = self.monitor.run("query-migrate").get("status", "none") if "query-migrate" in self.monitor.commands else "none"
        if state not in _AT_WORK:
            self.refuse(f"the machine is in the state {state}", "run the task again when it runs")
        if migration not in _NOT_MIGRATING:
            self.refuse(f"the machine migrates ({migration})", "run the task again when that has ended")

    def _require_chain(self, graph: Graph, files: tuple[str, ...]) -> None:
        if not any(self.images(graph, file) for file in files):
            if any(graph.has_open(status) for status in self._statuses.values()):
                self.refuse(
                    "the machine has it open, and not under the name that it was told (a relative path with -daemonize, or -chroot)",
                    "stop the machine, and start it on the absolute path of the volume",
                )
            self.refuse(
                f"the machine behind {self.monitor.path} does not have its images open",
                "give the monitor of the machine that uses it, or leave attachment out if nobody does",
            )
        active = self.images(graph, files[0])
        if len(active) != 1:
            self.refuse(
                f"the machine does not have its active image {files[0]} open, but another one of its files"
                if not active
                else f"the machine has its active image {files[0]} open {len(active)} times",
                f"stop the machine, and start it on {files[0]}",
            )
        above = graph.overlay_on(active[0].name)
        if above is not None:
            self.refuse(f"in the machine another image ({above}) rests on {files[0]}", "undo what somebody else did to the disk, or stop the machine")
        seen = list(graph.chain(active[0].name))
        expected = [{node.name for node in self.images(graph, file)} for file in files]
        if len(seen) != len(expected) or any(name not in names for name, names in zip(seen, expected)):
            self.refuse(f"the machine has other files under {files[0]} than the share says ({model.listed(files)})", "stop the machine, and start it anew")

    def _require_no_jobs(self, graph: Graph, files: Iterable[str], ours: bool) -> None:
        """:param ours: jobs of this collection may be there."""
        names = {node.name for file in files for node in self.images(graph, file)}
        foreign = sorted(job for job in graph.jobs_on(names) if not (ours and self.is_own(job)))
        if foreign:
            self.refuse(f"another program's job works on its disk ({model.listed(foreign)})", "wait until it has ended, and run the task again")

    def require_no_other(self, files: Iterable[str], writing: bool) -> None:
        """:param writing: those that only read do not count. :raises InUse: another process of this host has one of these files open."""
        wanted = set(files)
        keys = {(status.st_dev, status.st_ino): file for file, status in self._statuses.items() if file in wanted}
        for key, pid in openers.other_users(self.monitor.pid, set(keys), writing).items():
            self.refuse(f"process {pid} has {keys[key]} open, too", "stop one of the two, and run the task again")


def refusal(subject: str, error: client.QmpError) -> errors.StorageError:
    """QEMU's refusal of a command, for users."""
    problem = f"QEMU refuses: {error}"
    if "Permission denied" in error.text:
        return errors.ToolFailed(subject, problem, "let QEMU open the volume's files (owner, mode, ACL, SELinux, AppArmor), and run the task again")
    if "No space left" in error.text:
        return errors.NoSpace(subject, problem, "make room on the share, and run the task again")
    if "Permission conflict" in error.text:
        remedy = "end what else uses the disk in the machine (an export, a job), or stop the machine; a device such as nvme never takes another size"
        return errors.InUse(subject, problem, f"{remedy}. Then run the task again")
    if "read-only" in error.text:
        return errors.InUse(subject, problem, "the machine opened the image so (read-only, without auto-read-only): stop it, and run the task again")
    if "Failed to get" in error.text or "Failed to lock" in error.text:
        return errors.InUse(subject, problem, "stop the other program that has the image open, and run the task again")
    return errors.ToolFailed(subject, problem, "run the task again; if that does not help, stop the machine first")


def loss(subject: str, error: client.Lost) -> errors.StorageError:
    """The loss of the monitor, for users."""
    return errors.ToolFailed(subject, f"the monitor was lost: {error}", "look whether the machine still runs, and run the task again; it ends what was begun")


@contextmanager
def told(machine: Machine) -> Iterator[None]:
    """A context in which errors of the monitor become errors for users."""
    try:
        yield
    except client.QmpError as error:
        raise refusal(machine.subject, error) from error
    except client.Lost as error:
        raise loss(machine.subject, error) from error
    except answers.Strange as error:
        raise client.strange(machine.monitor.path, error) from error


def _digest(*words: object) -> str:
    return hashlib.sha256("/".join(map(str, words)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
