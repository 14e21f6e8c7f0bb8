# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The block graph of a running QEMU: which of its nodes are the images of a volume.

Files are found by device and inode, as the process itself sees them: in its own root and from its own working directory. So it does
not matter how the machine was started, and by which path it opened a file.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Collection, Iterator, NamedTuple

from ... import errors
from .. import openers
from . import answers, client

_PROTOCOLS = ("file", "host_device")
_FORMATS = ("qcow2", "raw")
# They show what is under them, and write to it what they are given. Anything else, such as encryption (luks), shows another content.
_FILTERS = ("throttle", "copy-on-read", "preallocate", "compress", "commit_top", "mirror_top", "backup-top", "copy-before-write")
_JOB_FILTERS = ("commit_top", "mirror_top", "backup-top", "copy-before-write")
_JOB, _DEVICE, _NODE = "block-job", "block-backend", "block-driver"
_ATTEMPTS = 5  # to ask for nodes and edges of one instant


@dataclass(frozen=True)
class Node:
    """A node of the graph. ``path`` is the file as QEMU spells it (of a protocol node), ``size`` the virtual size in bytes.

    ``bare``: it has no format layer; its content is the file's. ``protocol`` names the node of its file.
    """

    name: str
    driver: str
    read_only: bool
    size: int
    cache: tuple[bool, bool]  # direct, no-flush
    bitmaps: tuple[str, ...] = ()
    watched: bool = False  # something in QEMU watches it by a bitmap of its own
    path: str = ""
    protocol: str = ""
    direct: bool = False  # the kernel does not cache what is written to its file (O_DIRECT)

    @property
    def bare(self) -> bool:
        """Whether it has no format layer."""
        return self.driver in _PROTOCOLS


class Added(NamedTuple):
    """An image that this task has made, with a name that nobody else gives, and that it has let QEMU open. ``key``: its file."""

    node: Node
    key: openers.Key


class Seen:
    """What a task has seen of a machine's graph: ``graph`` as it was last read, and the images that were ``added`` meanwhile."""

    def __init__(self) -> None:
        self.graph: Graph | None = None
        self.added: list[Added] = []


class Graph:
    """The graph as it is at one instant.

    :param without: names of jobs that have ended. What they still hold does not count.
    :param before: an earlier graph. If it has the same nodes, besides those that were ``added``, they are taken from it, and QEMU is asked for
        the edges only: to describe the nodes, it needs a time that grows with the square of the length of the chain. Nothing else runs in QEMU then.
    :raises InUse: this process may not see which files QEMU has open. :raises QmpError, Lost, Strange: see :meth:`Monitor.run`.
    """

    def __init__(self, monitor: client.Monitor, without: Collection[str] = (), before: Graph | None = None, added: Collection[Added] = ()) -> None:
        self._pid = monitor.pid
        known = before._edges_only(monitor, added) if before is not None else None
        self._nodes: dict[str, Node]
        self._nodes, graph = known[:2] if known is not None else _asked(monitor)
        names = {one["id"]: (one["type"], one["name"]) for one in graph["nodes"]}
        self._above: dict[str, list[tuple[str, str, str]]] = {}  # of a node: (type, name, kind of edge) of what is on it
        self._below: dict[str, dict[str, str]] = {}  # of a node: kind of edge → node under it
        self._of_jobs: dict[str, set[str]] = {}
        self._holders: dict[str, list[str]] = {}  # of a node: users with which it keeps its size
        for edge in graph["edges"]:
            (kind, above), (_kind, below) = names[edge["parent"]], names[edge["child"]]
            if kind == _JOB and above in without:
                continue
            self._above.setdefault(below, []).append((kind, above, edge["name"]))
            if kind == _JOB:
                self._of_jobs.setdefault(above, set()).add(below)
            elif kind == _NODE:
                self._below.setdefault(above, {})[edge["name"]] = below
            if kind == _DEVICE and "resize" not in edge.get("shared-perm", ["resize"]):
                self._holders.setdefault(below, []).append(above or f"an export of node {below}")
        self._require_no_circle()
        self._by_file: dict[openers.Key, list[str]] = known[2] if known is not None else self._files()

    def _edges_only(self, monitor: client.Monitor, added: Collection[Added]) -> tuple[dict[str, Node], dict, dict[openers.Key, list[str]]] | None:
        """The nodes of this graph and those that were added, the graph as it is now, and the protocol nodes by their files. None if it has other nodes.
        That an added node shows its file is proved by this: QEMU has the file open, and has said that it opened it under this name."""
        graph = monitor.run("x-debug-query-block-graph")
        named, nodes, by_file = _named(graph), self._nodes, self._by_file
        for one in added:
            protocol = _file_node(graph, one.node.name)
            if protocol is not None and one.node.name not in nodes and one.key not in by_file and one.key in self._opened():
                nodes = {**nodes, one.node.name: one.node, protocol: Node(protocol, "file", False, 0, one.node.cache, path=one.node.path)}
                by_file = {**by_file, one.key: [protocol]}
        return (nodes, graph, by_file) if named == set(nodes) else None

    def _require_no_circle(self) -> None:
        """:raises Strange: a node is above itself."""
        ends: dict[str, int] = {}  # how many are under a node and were not seen
        for kind, above, _edge in (one for on in self._above.values() for one in on):
            if kind == _NODE:
                ends[above] = ends.get(above, 0) + 1
        free = [name for name in self._nodes if not ends.get(name)]
        seen = 0
        while free:
            seen += 1
            for kind, above, _edge in self._above.get(free.pop(), ()):
                if kind == _NODE:
                    ends[above] -= 1
                    if not ends[above]:
                        free.append(above)
        if seen < len(self._nodes):
            raise answers.Strange("its block graph has a circle")

    # -- files -------------------------------------------------------------------------------------------------------

    def _files(self) -> dict[openers.Key, list[str]]:
        """Protocol nodes by the file that they have open."""
        root, there = f"/proc/{self._pid}/root", self._opened()
        try:
            here = os.readlink(f"/proc/{self._pid}/cwd")
        except OSError as error:
            raise self._hidden() from error
        found: dict[openers.Key, list[str]] = {}
        for node in self._nodes.values():
            if node.driver not in _PROTOCOLS or not answers.is_path(node.path):
                continue
            try:
                status = os.stat(root + os.path.join(here, node.path))
            except PermissionError as error:
                raise self._hidden() from error
            except OSError:
                continue  # its name is gone, so that it is none of ours
            if (status.st_dev, status.st_ino) in there:  # and not another file that has its name now
                found.setdefault((status.st_dev, status.st_ino), []).append(node.name)
        return found

    def has_open(self, status: os.stat_result) -> bool:
        """Whether the process has a file open, by whatever name."""
        return (status.st_dev, status.st_ino) in self._opened()

    def _opened(self) -> set[openers.Key]:
        try:
            return openers.opened_by(self._pid)
        except OSError as error:
            raise self._hidden() from error

    def _hidden(self) -> errors.InUse:
        return errors.InUse(
            f"process {self._pid} behind the monitor",
            "this task may not see which files it has open",
            "run the task as root (become), outside of containers",
        )

    def images(self, status: os.stat_result) -> list[Node]:
        """The nodes that show what an image holds: its format nodes, or the file's own node where there is no format layer."""
        found = []
        for protocol in self._by_file.get((status.st_dev, status.st_ino), ()):
            name = self._format_on(protocol)
            node, file = self._nodes[name], self._nodes[protocol]
            direct, watched = node.cache[0] or file.cache[0], node.watched or file.watched
            found.append(Node(name, node.driver, node.read_only, node.size, node.cache, node.bitmaps, watched, file.path, protocol, direct))
        return found

    def _format_on(self, protocol: str) -> str:
        name = protocol
        while True:
            above = [other for kind, other, edge in self._above.get(name, ()) if kind == _NODE and edge == "file"]
            above = [other for other in above if self._nodes[other].driver in _FORMATS + _FILTERS]
            if not above:
                return protocol
            name = above[0]
            if self._nodes[name].driver in _FORMATS:
                return name

    def filters_on(self, name: str) -> list[Node]:
        """The filters between a node and the device or the export that has it."""
        found: list[Node] = []
        while True:
            above = [other for other in self._nodes_on(name) if self._is_filter(other)]
            if not above:
                return found
            name = above[0]
            found.append(self._nodes[name])

    # -- shape -------------------------------------------------------------------------------------------------------

    def root_of(self, name: str) -> str:
        """The topmost node above this one through filters: what the device or the export has."""
        return ([name] + [node.name for node in self.filters_on(name)])[-1]

    def overlay_on(self, name: str) -> str | None:
        """The node of the overlay that rests on this one; None where the guest writes to this one itself. A chain that nobody uses any
        more does not count. It stays after a merge until its nodes are deleted."""
        while True:
            above = self._nodes_on(name)
            overlays = [other for other in above if self._nodes[other].driver in _FORMATS and self._below[other].get("backing") == name]
            overlays = [other for other in overlays if self.is_used(other)]
            if overlays:
                return overlays[0]
            filters = [other for other in above if self._is_filter(other)]
            if not filters:
                return None
            name = filters[0]

    def is_used(self, name: str) -> bool:
        """Whether a device, an export or a job is above this node."""
        waiting, seen = [name], {name}
        while waiting:
            for kind, above, _edge in self._above.get(waiting.pop(), ()):
                if kind != _NODE:
                    return True
                if above not in seen:
                    seen.add(above)
                    waiting.append(above)
        return False

    def backing_of(self, name: str) -> str | None:
        """The node of the image under this one; None if it rests on nothing."""
        below = self._below.get(name, {}).get("backing")
        while below is not None and self._is_filter(below):
            edges = self._below.get(below, {})
            below = edges.get("backing") or edges.get("file")
        return below

    def buried(self, name: str) -> str | None:
        """A filter somewhere under this node and above an image. Filters of jobs do not count: they go with the job. That of a pull is a
        ``copy-on-read``, as users have it, too."""
        for image in self.chain(name):
            below = self._below.get(image, {}).get("backing")
            while below is not None and self._is_filter(below):
                if self._nodes[below].driver not in _JOB_FILTERS and not any(below in nodes for nodes in self._of_jobs.values()):
                    return below
                below = self._below[below].get("backing") or self._below[below].get("file")
        return None

    def chain(self, name: str) -> Iterator[str]:
        """The nodes of images from this one down."""
        seen: set[str] = set()
        found: str | None = name
        while found is not None and found not in seen:
            seen.add(found)
            yield found
            found = self.backing_of(found)

    def _nodes_on(self, name: str) -> list[str]:
        return [other for kind, other, _edge in self._above.get(name, ()) if kind == _NODE]

    def _is_filter(self, name: str) -> bool:
        return self._nodes[name].driver in _FILTERS and bool(set(self._below.get(name, {})) & {"file", "backing"})

    def jobs_on(self, names: set[str]) -> set[str]:
        """Jobs that work on one of these nodes, or on a filter on it."""
        with_filters = names | {self.root_of(name) for name in names if name in self._nodes}
        return {job for job, nodes in self._of_jobs.items() if nodes & with_filters}

    def nodes_of(self, job: str) -> set[str]:
        """The nodes that a job works on, without filters: its own filter stands for the node under it."""
        return {self._without_filters(name) for name in self._of_jobs.get(job, ())}

    def _without_filters(self, name: str) -> str:
        while self._is_filter(name):
            below = self._below[name]
            name = below.get("backing") or below["file"]
        return name

    def users_of(self, name: str) -> list[str]:
        """What has the root of this node open: names of devices, "" for exports."""
        return [other for kind, other, _edge in self._above.get(self.root_of(name), ()) if kind == _DEVICE]

    def strangers(self, node: Node, chain: Collection[str]) -> list[str]:
        """What uses this image besides the chain that it belongs to and the chain's own user: other nodes, devices, exports.

        :param chain: the chain's nodes of images, the guest's first.
        """
        found, waiting, root = [], [node.protocol, node.name], self.root_of(next(iter(chain)))
        while waiting:
            name = waiting.pop()
            for kind, other, _edge in self._above.get(name, ()):
                if kind == _NODE and self._is_filter(other):
                    waiting.append(other)
                elif kind == _NODE and other not in chain and self.is_used(other):
                    found.append(f"node {other} ({self._nodes[other].driver})")
                elif kind == _DEVICE and name != root and (other or not self._job_is_on(name)):
                    found.append(other or f"an export of node {name}")
        return list(dict.fromkeys(found))

    def _job_is_on(self, name: str) -> bool:
        """A job has nodes open by itself, without a name."""
        return any(kind == _JOB for kind, _other, _edge in self._above.get(name, ())) or bool(self.jobs_on({self._without_filters(name)}))

    def keep_size(self, name: str) -> list[str]:
        """The devices and exports that do not let this node grow."""
        nodes = dict.fromkeys([name, *(node.name for node in self.filters_on(name))])
        return [holder for node in nodes for holder in self._holders.get(node, ())]

    def size_of(self, name: str) -> int:
        """The virtual size of a node in bytes. That of a filter does not follow if the node under it is resized."""
        return self._nodes[name].size


def _asked(monitor: client.Monitor) -> tuple[dict[str, Node], dict]:
    """The nodes by name, and the graph, of one instant. :raises Strange: they never agree."""
    for _attempt in range(_ATTEMPTS):
        nodes = {node.name: node for node in map(_node, monitor.run("query-named-block-nodes", flat=True))}
        graph = monitor.run("x-debug-query-block-graph")
        named = _named(graph)
        if named is not None and named <= set(nodes):
            return nodes, graph
    raise answers.Strange("its block graph names nodes that it does not have")


def _file_node(graph: dict, name: str) -> str | None:
    """The node right under this one, if that is its file and nothing else is under it."""
    names = {one["id"]: one["name"] for one in graph["nodes"] if one["type"] == _NODE}
    below = [(edge["name"], names.get(edge["child"])) for edge in graph["edges"] if names.get(edge["parent"]) == name]
    return below[0][1] if len(below) == 1 and below[0][0] == "file" else None


def _named(graph: dict) -> set[str] | None:
    """The names of its nodes. None if an edge leads to what it does not have."""
    known = {one["id"] for one in graph["nodes"]}
    named = {one["id"]: one["name"] for one in graph["nodes"] if one["type"] == _NODE}
    agrees = all(edge["parent"] in known and edge["child"] in named for edge in graph["edges"])
    return set(named.values()) if agrees else None


def _node(told: dict) -> Node:
    cache = told.get("cache", {})
    bitmaps = tuple(one["name"] for one in told.get("dirty-bitmaps", ()) if one.get("name"))
    watched = any(not one.get("name") or one.get("busy") for one in told.get("dirty-bitmaps", ()))
    cached = cache.get("direct", False), cache.get("no-flush", False)
    return Node(told["node-name"], told["drv"], told["ro"], told["image"]["virtual-size"], cached, bitmaps, watched, _path(told["file"]))


def _path(told: str) -> str:
    """The path in a file name of QEMU's, which may be a ``json:`` description."""
    if not told.startswith("json:"):
        return told
    try:
        described = json.loads(told[5:])
        return str(described.get("filename", "")) if isinstance(described, dict) else ""
    except (ValueError, RecursionError):
        return ""
