# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt by its binding for Python, which distributions have for their own Python only."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import Any, Callable, Iterator

from . import agent, connection

try:
    import libvirt
    import libvirt_qemu
except ImportError:
    libvirt = libvirt_qemu = None


def is_there() -> bool:
    """Whether this Python has the binding."""
    return libvirt is not None


class Bound:
    """The :class:`connection.Connection` of the binding."""

    def __init__(self, uri: str) -> None:
        libvirt.registerErrorHandler(lambda *_ignored: None, None)  # it would print every error
        try:
            self._connection = libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise connection.Unreachable(str(error)) from error

    def find(self, name: str) -> BoundDomain | None:
        """See :meth:`connection.Connection.find`."""
        with _told():
            for look in (self._connection.lookupByName, self._connection.lookupByUUIDString):
                try:
                    return BoundDomain(look(name))
                except libvirt.libvirtError as error:
                    if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                        raise
        return None

    def all_domains(self) -> list[BoundDomain]:
        """See :meth:`connection.Connection.all_domains`."""
        with _told():
            return [BoundDomain(one) for one in self._connection.listAllDomains(0)]

    def create(self, xml: str) -> None:
        """See :meth:`connection.Connection.create`."""
        with _told():
            self._connection.createXML(xml, 0)

    def close(self) -> None:
        """See :meth:`connection.Connection.close`."""
        with suppress(libvirt.libvirtError):  # it has ended already
            self._connection.close()


class BoundDomain(agent.Asked):
    """The :class:`connection.Domain` of the binding."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        self.uuid: str = domain.UUIDString()
        self.name: str = domain.name()

    def state(self) -> connection.State:
        """See :meth:`connection.Domain.state`."""
        with _told():
            state, reason = self._domain.state()
        if state == libvirt.VIR_DOMAIN_PAUSED:
            return connection.State(connection.PAUSED, _pauses().get(reason, "unknown"))
        if state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED, libvirt.VIR_DOMAIN_SHUTDOWN):
            return connection.State(connection.RUNNING, "")
        if state in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_NOSTATE):
            return connection.State(connection.OFF, "")
        if state == libvirt.VIR_DOMAIN_CRASHED and not self._domain.isActive():
            return connection.State(connection.OFF, "crashed")
        return connection.State(connection.OTHER, "crashed" if state == libvirt.VIR_DOMAIN_CRASHED else "pmsuspended")

    def xml(self, inactive: bool) -> str:
        """See :meth:`connection.Domain.xml`."""
        return self._do(lambda one: one.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | (libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0)))

    def is_persistent(self) -> bool:
        """See :meth:`connection.Domain.is_persistent`."""
        return bool(self._do(lambda one: one.isPersistent()))

    def is_saved(self) -> bool:
        """See :meth:`connection.Domain.is_saved`."""
        return bool(self._do(lambda one: one.hasManagedSaveImage()))

    def is_moving(self) -> bool:
        """See :meth:`connection.Domain.is_moving`."""
        return self._do(lambda one: one.jobInfo())[0] != libvirt.VIR_DOMAIN_JOB_NONE

    def named_states(self) -> list[str]:
        """See :meth:`connection.Domain.named_states`."""
        found = [one.getXMLDesc(0) for one in self._do(lambda one: one.listAllSnapshots(0))]
        try:
            found += [one.getXMLDesc(0) for one in self._domain.listAllCheckpoints(0)]
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise connection.Refused(str(error)) from error
        return found

    def take_snapshot(self, xml: str) -> None:
        """See :meth:`connection.Domain.take_snapshot`."""
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
        self._do(lambda one: one.snapshotCreateXML(xml, flags))

    def commit(self, disk: str, top: str | None, base: str, speed: int) -> None:
        """See :meth:`connection.Domain.commit`."""
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
        flags |= libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if top is None else 0
        self._do(lambda one: one.blockCommit(disk, base, top, speed, flags))

    def job(self, disk: str) -> connection.Job | None:
        """See :meth:`connection.Domain.job`."""
        told = self._do(lambda one: one.blockJobInfo(disk, 0))
        if not told:
            return None
        kinds = {libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: connection.COMMIT, libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: connection.ACTIVE_COMMIT}
        return connection.Job(kinds.get(told["type"], "other"), told["cur"], told["end"])

    def cancel(self, disk: str) -> None:
        """See :meth:`connection.Domain.cancel`."""
        self._do(lambda one: one.blockJobAbort(disk, 0))

    def pivot(self, disk: str) -> None:
        """See :meth:`connection.Domain.pivot`."""
        self._do(lambda one: one.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT))

    def capacity(self, disk: str) -> int:
        """See :meth:`connection.Domain.capacity`."""
        return self._do(lambda one: one.blockInfo(disk))[0]

    def resize(self, disk: str, size: int) -> None:
        """See :meth:`connection.Domain.resize`."""
        self._do(lambda one: one.blockResize(disk, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES))

    def suspend(self) -> None:
        """See :meth:`connection.Domain.suspend`."""
        self._do(lambda one: one.suspend())

    def resume(self) -> None:
        """See :meth:`connection.Domain.resume`."""
        self._do(lambda one: one.resume())

    def shutdown(self) -> None:
        """See :meth:`connection.Domain.shutdown`."""
        self._do(lambda one: one.shutdown())

    def destroy(self) -> None:
        """See :meth:`connection.Domain.destroy`."""
        self._do(lambda one: one.destroy())

    def leased_addresses(self) -> list[str]:
        """See :meth:`connection.Domain.leased_addresses`."""
        cards = self._do(lambda one: one.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE, 0))
        return [entry["addr"] for card in cards.values() for entry in card["addrs"] or ()]

    def ask_agent(self, request: str, limit: int) -> str:
        """See :meth:`agent.Asked.ask_agent`."""
        return str(self._do(lambda one: libvirt_qemu.qemuAgentCommand(one, request, limit, 0)))

    def define(self, xml: str) -> None:
        """See :meth:`connection.Domain.define`."""
        self._do(lambda one: one.connect().defineXML(xml))

    def _do(self, call: Callable[[Any], Any]) -> Any:
        with _told():
            return call(self._domain)


def _pauses() -> dict[int, str]:
    """The words that virsh has for why a domain is paused."""
    names = "unknown user migration save dump ioerror watchdog from_snapshot shutting_down snapshot crashed starting_up postcopy postcopy_failed"
    pairs = ((getattr(libvirt, f"VIR_DOMAIN_PAUSED_{name.upper()}", None), name) for name in names.split())
    return {number: name.replace("_", " ") for number, name in pairs if number is not None}


@contextmanager
def _told() -> Iterator[None]:
    """A context in which errors of the binding become those of the protocol."""
    try:
        yield
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        gone = (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN)
        if code in gone and error.get_error_domain() in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE):
            raise connection.Unreachable(str(error)) from error
        raise connection.Refused(str(error), code == libvirt.VIR_ERR_NO_DOMAIN) from error
