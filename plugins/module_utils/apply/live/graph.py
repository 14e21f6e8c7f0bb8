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
from typing import Iterator, Tuple

from ...errors import InUse
from .client import Monitor

_PROTOCOLS = ("file", "host_device")
_FORMATS = ("qcow2", "raw")
_JOB_FILTERS = ("commit_top", "mirror_top", "backup-top", "copy-before-write")
_ON_WRITING = os.O_WRONLY | os.O_RDWR

Key = Tuple[int, int]  # device and inode of a file


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
    path: str = ""
    protocol: str = ""

    @property
    def bare(self) -> bool:
        """Whether it has no format layer."""
        return self.driver in _PROTOCOLS


class Graph:
    """The graph as it is at one instant.

    :raises InUse: this process may not see which files QEMU has open. :raises QmpError, Lost: see :meth:`Monitor.run`.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._pid = monitor.pid
        self._nodes = {node.name: node for node in map(_node, monitor.run("query-named-block-nodes", flat=True))}
        graph = monitor.run("x-debug-query-block-graph")
        names = {one["id"]: (str(one["type"]), str(one["name"])) for one in graph["nodes"]}
        self._above: dict[str, list[tuple[str, str, str]]] = {}  # of a node: (type, name, kind of edge) of what is on it
        self._below: dict[str, dict[str, str]] = {}  # of a node: kind of edge → node under it
        self._of_jobs: dict[str, set[str]] = {}
        for edge in graph["edges"]:
            (kind, above), (_kind, below) = names[edge["parent"]], names[edge["child"]]
            self._above.setdefault(below, []).append((kind, above, str(edge["name"])))
            if kind == "block-job":
                self._of_jobs.setdefault(above, set()).add(below)
            elif kind == "block-driver":
                self._below.setdefault(above, {})[str(edge["name"])] = below
        self._by_file = self._files()

    # -- files -------------------------------------------------------------------------------------------------------

    def _files(self) -> dict[Key, list[str]]:
        """Protocol nodes by the file that they have open."""
        root, there = f"/proc/{self._pid}/root", self._opened()
        try:
            here = os.readlink(f"/proc/{self._pid}/cwd")
        except OSError as error:
            raise self._hidden() from error
        found: dict[Key, list[str]] = {}
        for node in self._nodes.values():
            if node.driver not in _PROTOCOLS:
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

    def _opened(self) -> set[Key]:
        try:
            return {key for key, _writes in opened_by(self._pid)}
        except OSError as error:
            raise self._hidden() from error

    def _hidden(self) -> InUse:
        return InUse(
            f"process {self._pid} behind the monitor",
            "this task may not see which files it has open",
            "run the task as root (become), outside of containers",
        )

    def images(self, status: os.stat_result) -> list[Node]:
        """The nodes that show what an image holds: its format nodes, or the file's own node where there is no format layer."""
        found = []
        for protocol in self._by_file.get((status.st_dev, status.st_ino), ()):
            name = self._format_on(protocol)
            node = self._nodes[name]
            found.append(Node(name, node.driver, node.read_only, node.size, node.cache, node.bitmaps, self._nodes[protocol].path, protocol))
        return found

    def _format_on(self, protocol: str) -> str:
        name = protocol
        while True:
            above = [other for kind, other, edge in self._above.get(name, ()) if kind == "block-driver" and edge == "file" and other in self._nodes]
            if not above:
                return protocol
            name = above[0]
            if self._nodes[name].driver in _FORMATS:
                return name

    # -- shape -------------------------------------------------------------------------------------------------------

    def root_of(self, name: str) -> str:
        """The topmost node above this one through filters: what the device or the export has."""
        while True:
            filters = [other for other in self._nodes_on(name) if self._is_filter(other)]
            if not filters:
                return name
            name = filters[0]

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
        above = self._above.get(name, ())
        return any(kind != "block-driver" for kind, _other, _edge in above) or any(self.is_used(other) for other in self._nodes_on(name))

    def backing_of(self, name: str) -> str | None:
        """The node of the image under this one; None if it rests on nothing."""
        below = self._below.get(name, {}).get("backing")
        while below is not None and self._is_filter(below):
            edges = self._below.get(below, {})
            below = edges.get("backing") or edges.get("file")
        return below

    def chain(self, name: str) -> Iterator[str]:
        """The nodes of images from this one down."""
        seen: set[str] = set()
        found: str | None = name
        while found is not None and found not in seen:
            seen.add(found)
            yield found
            found = self.backing_of(found)

    def _nodes_on(self, name: str) -> list[str]:
        return [other for kind, other, _edge in self._above.get(name, ()) if kind == "block-driver" and other in self._nodes]

    def _is_filter(self, name: str) -> bool:
        driver = self._nodes[name].driver
        return driver not in _PROTOCOLS and driver not in _FORMATS and bool(set(self._below.get(name, {})) & {"file", "backing"})

    def jobs_on(self, names: set[str]) -> set[str]:
        """Jobs that work on one of these nodes, or on a filter on it."""
        with_filters = names | {self.root_of(name) for name in names if name in self._nodes}
        return {job for job, nodes in self._of_jobs.items() if nodes & with_filters}

    def users_of(self, name: str) -> list[str]:
        """What has the root of this node open: names of devices, "" for exports."""
        return [other for kind, other, _edge in self._above.get(self.root_of(name), ()) if kind == "block-backend"]

    def size_of(self, name: str) -> int:
        """The virtual size of a node in bytes. That of a filter does not follow if the node under it is resized."""
        return self._nodes[name].size


def _node(told: dict) -> Node:
    cache = told.get("cache", {})
    bitmaps = tuple(str(one.get("name", "")) for one in told.get("dirty-bitmaps", ()))
    size = int(told.get("image", {}).get("virtual-size", 0))
    cached = bool(cache.get("direct")), bool(cache.get("no-flush"))
    return Node(str(told["node-name"]), str(told["drv"]), bool(told["ro"]), size, cached, bitmaps, _path(str(told.get("file", ""))))


def _path(told: str) -> str:
    """The path in a file name of QEMU's, which may be a ``json:`` description."""
    if not told.startswith("json:"):
        return told
    try:
        described = json.loads(told[5:])
        return str(described.get("filename", "")) if isinstance(described, dict) else ""
    except ValueError:
        return ""


def opened_by(pid: int) -> Iterator[tuple[Key, bool]]:
    """The files that a process has open: (device and inode, whether it may write). :raises OSError: this process may not see them."""
    directory = f"/proc/{pid}/fd"
    for number in os.listdir(directory):
        try:
            status = os.stat(f"{directory}/{number}")
            mode = os.lstat(f"{directory}/{number}").st_mode  # of a link under /proc its bits say how the file was opened
        except OSError:
            continue  # closed meanwhile
        yield (status.st_dev, status.st_ino), bool(mode & 0o200)


def other_users(pid: int, keys: set[Key], writing: bool) -> dict[Key, int]:
    """Processes of this host besides ``pid`` and this one that have one of these files open, as far as this user may see.

    :param writing: only those that may write to it.
    """
    found: dict[Key, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in (pid, os.getpid()):
            continue
        try:
            found.update({key: int(entry) for key, writes in opened_by(int(entry)) if key in keys and (writes or not writing)})
        except OSError:
            continue
    return found
