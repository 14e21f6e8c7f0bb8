# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the options of a task say of machines, checked."""

from __future__ import annotations

import ipaddress
import os
from typing import Callable, Mapping, Sequence

from .. import errors, model
from ..consumers import answering, consumer, described, run_directory
from ..machines import check_uri, go_on_with_binding
from .machines import STARTED, Asked, Request

__all__ = ["go_on_with_binding", "request"]
_MIB = 1 << 20
_MOST_CPUS, _MOST_PORT = 1024, 65535
_LONGEST = 10 * 365 * 86400  # seconds
_HOST_NAME = "give an address of this host, such as 127.0.0.1"


def request(params: Mapping, every: Sequence[Mapping], share: model.Share, warn: Callable[[str], None]) -> Request:
    """What a task wants. :param every: the options of each machine. :raises StorageError: an option has no such value."""
    for name in ("wait_timeout", "stop_timeout"):
        if not 0 <= params[name] <= _LONGEST:
            raise errors.InvalidParameter(f"option {name}", f"{params[name]:g} is no number of seconds", f"give one from 0 to {_LONGEST}")
    machines = tuple(_asked(one, params) for one in every)
    names = [one.name for one in machines]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise errors.InvalidParameter("option machines", f"{twice[0]} is there twice", "name each machine once")
    if params["state"] == STARTED:
        _check_sign(params)
    return Request(
        share,
        machines,
        params["state"],
        _run_directory(params["run_dir"], share),
        _consumer(params, warn),
        params["wait_for"],
        params["wait_timeout"],
        params["stop_timeout"],
        params["lease"],
        params["parallel"],
    )


def _check_sign(params: Mapping) -> None:
    """:raises InvalidParameter: no guest can be seen to answer by this. That must be told before one is started."""
    if params["consumer"] != described.LIBVIRT and params["wait_for"] in (None, answering.SSH) and described.SSH_PORT not in params["ports"]:
        raise errors.InvalidParameter("option wait_for", "no port of this host leads to port 22 of the guest", "add 22 to ports, or wait for agent or none")


def _run_directory(path: str, share: model.Share) -> run_directory.RunDirectory:
    """:raises InvalidParameter: the directory is not one of this host alone."""
    if not os.path.isabs(path):
        raise errors.InvalidParameter("option run_dir", f"{path!r} is no absolute path", "give one, such as /run/remotefs")
    above, name = os.path.split(os.path.abspath(path))  # it must not be a link itself, which is seen later
    root = os.path.realpath(share.path)
    if os.path.commonpath([os.path.join(os.path.realpath(above), name), root]) == root:
        raise errors.InvalidParameter("option run_dir", f"{path} is on the share, which other hosts and users have, too", "give a directory of this host alone")
    return run_directory.RunDirectory(path)


def _asked(one: Mapping, params: Mapping) -> Asked:
    if not one.get("name"):
        raise errors.InvalidParameter("option name", "it is missing", "give it in each item")
    name = model.check_volume_name(one["name"])
    memory, cpus = model.parse_bytes(one["memory"]), one["cpus"]
    if memory < _MIB or memory % _MIB:
        raise errors.InvalidParameter("option memory", f"{one['memory']} is no whole number of MiB", "give for example 1G")
    if not 1 <= cpus <= _MOST_CPUS:
        raise errors.InvalidParameter("option cpus", f"{cpus} is no number of processors", "give 1 or more")
    wants_definition = params["consumer"] == described.LIBVIRT
    if params["state"] == STARTED and bool(one.get("definition")) != wants_definition:
        problem = "it is missing" if wants_definition else "QEMU alone has none"
        raise errors.InvalidParameter("option definition", problem, "give it with consumer: libvirt, and only there")
    if wants_definition and one.get("arguments"):
        raise errors.InvalidParameter("option arguments", "libvirt has them in its definition", "put them there, or leave them out")
    if any("\0" in word for word in one.get("arguments") or ()):
        raise errors.InvalidParameter("option arguments", "one of them has a byte that no command line can have (NUL)", "leave it out")
    volumes = tuple(model.check_volume_name(volume) for volume in one.get("volumes") or [name])
    seed = model.check_volume_name(one["seed"]) if one.get("seed") else None
    if len({*volumes, seed}) <= len(volumes):
        raise errors.InvalidParameter("option volumes", "a volume of it is there twice", "name each volume once")
    return Asked(name, volumes, seed, memory, cpus, tuple(one.get("arguments") or ()), one.get("definition") or "")


def _consumer(params: Mapping, warn: Callable[[str], None]) -> consumer.Consumer:
    if params["consumer"] == described.LIBVIRT:
        from ..consumers.domains import Libvirt

        return Libvirt(check_uri(params["uri"], "option uri"), warn)
    from ..consumers import command_line
    from ..consumers.qemu import Qemu

    try:
        listen = str(ipaddress.IPv4Address(params["listen"]))
    except ValueError as error:
        raise errors.InvalidParameter("option listen", f"{params['listen'][:40]!r} is no IPv4 address", _HOST_NAME) from error
    if not all(0 < port <= _MOST_PORT for port in params["ports"]):
        raise errors.InvalidParameter("option ports", "one of them is no TCP port", f"give numbers from 1 to {_MOST_PORT}")
    if not params["accelerators"]:
        raise errors.InvalidParameter("option accelerators", "none is given", "give tcg, which works everywhere")
    host = os.uname().machine
    program, board = params["program"] or command_line.usual_program(host), params["board"] or command_line.usual_board(host)
    ports = tuple(dict.fromkeys(params["ports"]))
    return Qemu(described.Emulator(program, board, tuple(params["accelerators"]), listen, ports, params["restricted"]), warn)
