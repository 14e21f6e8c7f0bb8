# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines that run on volumes: how a task wants one, and what is recorded of it on its host. Values only; nothing here opens a file."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from .. import attachments, errors

QEMU, LIBVIRT = "qemu", "libvirt"
SSH_PORT = 22  # where a guest has its server (RFC 4253)
_MOST_PID = 1 << 31


@dataclass(frozen=True)
class Disk:
    """A disk of a machine: the active image of a volume. ``read_only``: the guest cannot write to it."""

    volume: str
    path: str
    format: str
    read_only: bool = False


@dataclass(frozen=True)
class Wanted:
    """A machine as a task wants it. ``memory`` is in bytes. The guest boots from the first of its disks.

    :ivar arguments: further words of QEMU's command line. :ivar definition: libvirt's XML of the domain.
    """

    name: str
    disks: tuple[Disk, ...]
    memory: int
    cpus: int
    arguments: tuple[str, ...] = ()
    definition: str = ""

    @property
    def volumes(self) -> tuple[str, ...]:
        """The names of its volumes."""
        return tuple(disk.volume for disk in self.disks)


@dataclass(frozen=True)
class Emulator:
    """How machines of QEMU are started on a host. ``program`` is QEMU, ``board`` its ``-machine``, ``accelerators`` are tried in their order.

    :ivar listen: the address of the host at which ports of guests can be reached. :ivar ports: those of the guest that can.
    :ivar restricted: the guest reaches nothing but through those.
    """

    program: str
    board: str
    accelerators: tuple[str, ...]
    listen: str
    ports: tuple[int, ...]
    restricted: bool = False


@dataclass(frozen=True)
class Record:
    """What is recorded of a machine on its host, from before its start until it is absent.

    :ivar share: the directory of its share. :ivar lease, lease_id: the lease under which it was started, if any. :ivar volumes: its disks.
    :ivar ports: ports of the host by those of the guest (both as texts, as JSON has it), which the next start takes again if they are free.
    :ivar listen: the address of the host that has those. :ivar pid: the process that has them (0: not known yet).
    :ivar uri, uuid: of libvirt, and of the domain.
    """

    name: str
    consumer: str
    share: str
    volumes: tuple[str, ...]
    lease: str | None = None
    lease_id: str | None = None
    ports: dict[str, int] = field(default_factory=dict)
    listen: str | None = None
    pid: int = 0
    uri: str | None = None
    uuid: str | None = None

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_text(text: str, where: str) -> Record:
        """:raises ToolFailed: it is no record. ``where`` is the file's path, for the message."""
        try:
            told = json.loads(text)
            _require(isinstance(told, dict))
            texts = {key: told[key] for key in ("name", "consumer", "share")}
            perhaps = {key: told.get(key) for key in ("lease", "lease_id", "listen", "uri", "uuid")}
            _require(all(isinstance(one, str) for one in texts.values()) and all(isinstance(one, (str, type(None))) for one in perhaps.values()))
            _require(isinstance(told["volumes"], list) and all(isinstance(name, str) for name in told["volumes"]))
            ports: Any = told.get("ports", {})
            _require(isinstance(ports, dict) and all(_is_port(int(key)) and _is_port(port) for key, port in ports.items()))
            pid = told.get("pid", 0)
            _require(_is_number(pid, 0, _MOST_PID) and texts["consumer"] in (QEMU, LIBVIRT))
            _require_reachable(texts["consumer"], perhaps["listen"], perhaps["uri"], perhaps["uuid"])
            return Record(volumes=tuple(told["volumes"]), ports=ports, pid=pid, **texts, **perhaps)
        except (KeyError, ValueError, RecursionError) as error:
            problem = f"it is no record of a machine ({error})"
            raise errors.ToolFailed(where, problem, "end the machine if it still runs, and remove its folder") from error


def _is_port(port: object) -> bool:
    return _is_number(port, 1, 1 << 16)


def _is_number(value: object, least: int, beyond: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < beyond


def _require_reachable(consumer: str, listen: str | None, uri: str | None, uuid: str | None) -> None:
    """:raises ValueError: this host has no such address or libvirt, or it is a domain's name instead of its UUID, which another domain may have."""
    if listen is not None:
        ipaddress.IPv4Address(listen)
    _require(uri is None or attachments.is_local(uri))
    _require(uuid is None or str(UUID(uuid)) == uuid)
    _require(consumer != LIBVIRT or None not in (uri, uuid))


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("a value of it is missing or of another kind")
