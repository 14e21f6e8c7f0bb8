# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of libvirt: a small protocol, which the binding for Python and the program virsh both fulfil."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Sequence

from ... import errors

RUNNING, PAUSED, OFF, OTHER = "running", "paused", "off", "other"  # states of a domain, as far as they matter here
COMMIT, ACTIVE_COMMIT = "commit", "active commit"  # kinds of jobs. Every other kind is somebody else's


class Refused(Exception):
    """libvirt refused a call, and says why. ``is_absent``: the domain is not there."""

    def __init__(self, text: str, is_absent: bool = False) -> None:
        super().__init__(text)
        self.text, self.is_absent = text, is_absent


class Nonsense(Refused):
    """What a guest's agent says is no answer."""


class Unreachable(Exception):
    """There is no connection to libvirt (any more). It is not known whether the last call was carried out."""


class State(NamedTuple):
    """``state`` is one of the constants of this file, ``reason`` is libvirt's word for why a domain is paused, or what else it is."""

    state: str
    reason: str


class Job(NamedTuple):
    """A job on a disk: its kind, and its progress in bytes."""

    kind: str
    current: int
    end: int


class Domain(Protocol):
    """A domain. Every method may raise Refused and Unreachable. ``disk`` is the name of a disk's target, such as vda."""

    uuid: str
    name: str

    def state(self) -> State:
        """Whether it runs."""

    def xml(self, inactive: bool) -> str:
        """Its description, with what is secret in it. ``inactive``: with which it starts the next time."""

    def is_persistent(self) -> bool:
        """Whether its definition stays when it is off."""

    def is_saved(self) -> bool:
        """Whether its memory is saved, so that the next start goes on where it was."""

    def is_moving(self) -> bool:
        """Whether it is being migrated, saved or dumped."""

    def named_states(self) -> list[str]:
        """The XML of its snapshots of which libvirt keeps metadata, and of its checkpoints."""

    def take_snapshot(self, xml: str) -> None:
        """Let its disks use overlays that are there already, all at one instant. libvirt keeps no metadata of that."""

    def commit(self, disk: str, top: str | None, base: str, speed: int) -> None:
        """Begin to merge the images from ``top`` (None: the active image) down into ``base``, in libvirt's words for images (``vda[2]``).
        ``speed`` is in bytes a second; 0 is any."""

    def job(self, disk: str) -> Job | None:
        """The job on a disk. None if there is none."""

    def cancel(self, disk: str) -> None:
        """End a job on a disk so that it changes nothing any more."""

    def pivot(self, disk: str) -> None:
        """Let the disk use the image into which its active image was merged."""

    def capacity(self, disk: str) -> int:
        """The size of a disk in bytes, as the guest sees it."""

    def resize(self, disk: str, size: int) -> None:
        """Give a disk another size in bytes."""

    def suspend(self) -> None:
        """Stop the guest, and write what QEMU holds of its disks."""

    def resume(self) -> None:
        """Let the guest go on."""

    def shutdown(self) -> None:
        """Ask the guest to shut down."""

    def destroy(self) -> None:
        """End it at once."""

    def answers(self, limit: int) -> bool:
        """Whether its guest's agent answers within so many seconds."""

    def leased_addresses(self) -> list[str]:
        """The addresses that networks of libvirt have given to it. Empty where it has others."""

    def own_addresses(self, limit: int) -> list[str]:
        """The addresses that its guest has, in the words of its agent."""

    def is_frozen(self, limit: int) -> bool:
        """Whether its guest's file systems rest. Its agent has so many seconds. As all that asks the agent: :raises Nonsense: it says
        something else."""

    def freeze(self, limit: int) -> int:
        """Let its guest's file systems rest. Returns how many do."""

    def thaw(self, limit: int) -> int:
        """Let them go on. Returns how many rested."""

    def define(self, xml: str) -> None:
        """Give it another definition, under the same UUID."""


class Connection(Protocol):
    """A connection to libvirt on this host. Every method but :meth:`close` may raise Refused and Unreachable."""

    def find(self, name: str) -> Domain | None:
        """The domain of this name or UUID. None if there is none."""

    def all_domains(self) -> Sequence[Domain]:
        """All domains, whether they run or not."""

    def create(self, xml: str) -> None:
        """Start a transient domain."""

    def close(self) -> None:
        """End the connection."""


def open_connection(uri: str) -> Connection:
    """A connection by the binding for Python, or by virsh where there is none.

    :raises Unreachable: libvirt does not answer. :raises ToolMissing: there is neither.
    """
    from . import binding

    if binding.is_there():
        return binding.Bound(uri)
    from . import virsh

    program = virsh.program()
    if program is None:
        raise errors.ToolMissing(
            "libvirt", "neither its binding for Python nor virsh is on this host", "install python3-libvirt or libvirt-clients, and run the task again"
        )
    return virsh.Spoken(program, uri)


def separate_connection(uri: str) -> Connection:
    """One for the process of a guardian: that of the task may be in the middle of a call. virsh is a process of its own, and so it is safe in
    a fork of a process with threads. :raises Unreachable, ToolMissing: as :func:`open_connection`."""
    from . import virsh

    program = virsh.program()
    return virsh.Spoken(program, uri) if program is not None else open_connection(uri)
