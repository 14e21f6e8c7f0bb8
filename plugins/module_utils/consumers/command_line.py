# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's command line for a machine (qemu-system(1)). Pure.

The guest has virtio disks, a network card behind QEMU's own network (no rights on the host are needed), and a channel for its agent.
Its console is kept in memory, and only its end: a hostile guest cannot fill a file of the host with it.
"""

from __future__ import annotations

import json
from typing import Mapping

from . import described, run_directory

CONSOLE, CONSOLE_SIZE = "console", 1 << 16  # the name of the character device; bytes that are kept
_AGENT = "org.qemu.guest_agent.0"
_MIB = 1 << 20
_BOARDS = {"x86_64": "q35", "aarch64": "virt", "ppc64le": "pseries", "s390x": "s390-ccw-virtio"}
_PROGRAMS = {"ppc64le": "qemu-system-ppc64"}
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def usual_program(architecture: str) -> str:
    """The name of QEMU for a host of this architecture (as uname(1) calls it)."""
    return _PROGRAMS.get(architecture, f"qemu-system-{architecture}")


def usual_board(architecture: str) -> str:
    """A board that such a host can have."""
    return _BOARDS.get(architecture, "virt")


def command_line(wanted: described.Wanted, emulator: described.Emulator, place: run_directory.Place, ports: Mapping[int, int], sandbox: bool) -> list[str]:
    """All words of it.

    :param ports: ports of the host, by those of the guest; others are chosen by the kernel. :param sandbox: QEMU starts no programs, and takes no rights.
    """
    words = [emulator.program, "-name", f"guest={wanted.name},debug-threads=off", "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-pidfile", place.pid]
    words += ["-sandbox", _SANDBOX] if sandbox else []
    words += ["-machine", emulator.board, "-cpu", "max", "-smp", str(wanted.cpus), "-m", f"size={wanted.memory // _MIB}M"]
    for accelerator in emulator.accelerators:
        words += ["-accel", accelerator]
    words += ["-chardev", f"socket,id=qmp,path={_escaped(place.monitor)},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    words += ["-chardev", f"ringbuf,id={CONSOLE},size={CONSOLE_SIZE}", "-serial", f"chardev:{CONSOLE}"]
    words += ["-device", "virtio-serial", "-chardev", f"socket,id=agent,path={_escaped(place.agent)},server=on,wait=off"]
    words += ["-device", f"virtserialport,chardev=agent,name={_AGENT}", "-device", "virtio-rng"]
    words += ["-netdev", _network(emulator, ports), "-device", "virtio-net,netdev=net0"]
    for number, disk in enumerate(wanted.disks):
        words += _disk(number, disk)
    return words + list(wanted.arguments)


def _network(emulator: described.Emulator, ports: Mapping[int, int]) -> str:
    forwards = [f"hostfwd=tcp:{emulator.listen}:{ports.get(port, 0)}-:{port}" for port in emulator.ports]
    return ",".join(["user", "id=net0", *(["restrict=on"] if emulator.restricted else []), *forwards])


def _disk(number: int, disk: described.Disk) -> list[str]:
    # With a kernel in its arguments QEMU itself takes the first place in the order of what is booted.
    node = {
        "driver": disk.format,
        "node-name": f"disk{number}",
        "read-only": disk.read_only,
        "discard": "unmap",
        "file": {"driver": "file", "filename": disk.path, "read-only": disk.read_only},
    }
    return ["-blockdev", json.dumps(node), "-device", f"virtio-blk,drive=disk{number},id=virtio{number},bootindex={number + 1}"]


def _escaped(path: str) -> str:
    """A path as a value in a list of QEMU's, in which commas are doubled."""
    return path.replace(",", ",,")
