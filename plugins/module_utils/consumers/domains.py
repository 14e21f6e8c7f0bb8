# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines that libvirt of this host runs: transient domains from definitions of the user.

A domain is known by its UUID, which is recorded before it is created. So a domain of the same name that somebody else has is never taken for it.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import Callable, Iterator
from uuid import uuid4

from .. import errors
from ..apply.libvirt import definition
from ..apply.libvirt.connection import OFF, PAUSED, Connection, Domain, Refused, Unreachable, open_connection
from . import answering, described, run_directory

_HALTED = {"ioerror", "watchdog", "crashed"}  # libvirt's words for why a domain is paused in which nothing goes on by itself
_PING = 5  # seconds for the agent to answer
_PAUSE = 0.2  # seconds
_END = 60.0  # seconds for libvirt to end a domain


class Libvirt:
    """The :class:`consumer.Consumer` of libvirt at ``uri``."""

    name = described.LIBVIRT

    def __init__(self, uri: str, warn: Callable[[str], None]) -> None:
        self._uri, self._warn = uri, warn

    @contextmanager
    def _domain(self, name: str, uuid: str | None) -> Iterator[tuple[Connection, Domain | None]]:
        """A context with a connection, and with the domain of this UUID. Its errors are those for users."""
        subject = f"machine {name}"
        try:
            connection = open_connection(self._uri)
            try:
                yield connection, connection.find(uuid) if uuid else None
            finally:
                connection.close()
        except Unreachable as error:
            raise errors.ToolFailed(subject, f"libvirt at {self._uri} cannot be reached: {error}", "start it, or check uri, and run the task again") from error
        except definition.Unreadable as error:
            raise errors.InvalidParameter("option definition", f"it is no description of a domain ({error})", "mend your template") from error
        except Refused as error:
            raise errors.ToolFailed(subject, f"libvirt refuses: {error.text}", "mend what it names, and run the task again") from error

    def runs(self, place: run_directory.Place, record: described.Record) -> bool:
        """See :meth:`consumer.Consumer.runs`."""
        with self._domain(record.name, record.uuid) as (_connection, domain):
            return domain is not None and domain.state().state != OFF

    def prepared(self, record: described.Record) -> described.Record:
        """See :meth:`consumer.Consumer.prepared`."""
        return replace(record, uri=self._uri, uuid=record.uuid or str(uuid4()))

    def start(self, wanted: described.Wanted, place: run_directory.Place, record: described.Record) -> described.Record:
        """See :meth:`consumer.Consumer.start`. :raises Conflict: there is another domain of its name. :raises InvalidParameter: the definition is
        another machine's."""
        with self._domain(wanted.name, None) as (connection, _none):
            xml = definition.with_uuid(wanted.definition, record.uuid or "")
            _require_definition(wanted)
            other = connection.find(wanted.name)
            if other is not None:
                raise errors.Conflict(f"machine {wanted.name}", "libvirt has a domain of this name", "undefine it or end it, or take another name")
            connection.create(xml)
        return record

    def known(self, place: run_directory.Place, record: described.Record) -> described.Record:
        """See :meth:`consumer.Consumer.known`."""
        return record

    def stop(self, place: run_directory.Place, record: described.Record, patience: float) -> None:
        """See :meth:`consumer.Consumer.stop`."""
        with self._domain(record.name, record.uuid) as (connection, domain):
            if domain is None:
                return
            if patience > 0 and _shuts_down(domain) and _is_gone(connection, record, patience):
                return
            try:
                domain.destroy()
            except Refused as error:
                if not error.is_absent and connection.find(str(record.uuid)) is not None:
                    raise
            if not _is_gone(connection, record, _END):
                raise errors.InUse(f"machine {record.name}", "libvirt does not end its domain", "look at it with virsh domstate")

    def told(self, place: run_directory.Place, record: described.Record) -> dict:
        """See :meth:`consumer.Consumer.told`. The guest has an address of its own, if anybody knows it."""
        host = self._address(record)
        port = described.SSH_PORT if host else None
        return {"kind": described.LIBVIRT, "uri": record.uri, "domain": record.name, "uuid": record.uuid, "host": host, "port": port}

    def _address(self, record: described.Record) -> str | None:
        """What libvirt's own network gave it, which no guest can choose; else what the guest says."""
        with self._domain(record.name, record.uuid) as (_connection, domain):
            if domain is None:
                return None
            for ask in (domain.leased_addresses, lambda: domain.own_addresses(_PING)):
                try:
                    found = answering.reachable(ask())
                except Refused:
                    continue
                if found is not None:
                    return found
        return None

    def _says_ssh(self, record: described.Record) -> bool:
        address = self._address(record)
        return address is not None and answering.says_ssh(address, described.SSH_PORT)

    def usual_sign(self, wanted: described.Wanted) -> str:
        """See :meth:`consumer.Consumer.usual_sign`."""
        return answering.AGENT if definition.agent_channel(wanted.definition) is not None else answering.NONE

    def answers(self, place: run_directory.Place, record: described.Record, sign: str) -> Callable[[], bool]:
        """See :meth:`consumer.Consumer.answers`."""
        return (lambda: self._agent_answers(record)) if sign == answering.AGENT else (lambda: self._says_ssh(record))

    def _agent_answers(self, record: described.Record) -> bool:
        with self._domain(record.name, record.uuid) as (_connection, domain):
            try:
                return domain is not None and domain.answers(_PING)
            except Refused:
                return False

    def halted(self, place: run_directory.Place, record: described.Record) -> str:
        """See :meth:`consumer.Consumer.halted`."""
        with self._domain(record.name, record.uuid) as (_connection, domain):
            state = domain.state() if domain is not None else None
            return state.reason if state is not None and state.state == PAUSED and state.reason in _HALTED else ""

    def last_words(self, place: run_directory.Place) -> str:
        """See :meth:`consumer.Consumer.last_words`. libvirt has the console, if anybody has."""
        return ""


def _shuts_down(domain: Domain) -> bool:
    """Whether libvirt asks the guest. It cannot ask one that is paused, such as after an error of its disk."""
    try:
        domain.shutdown()
        return True
    except Refused:
        return False


def _require_definition(wanted: described.Wanted) -> None:
    """:raises InvalidParameter: it is not of this machine, or has other disks. :raises definition.Unreadable: it is none."""
    named = definition.name_of(wanted.definition)
    if named != wanted.name:
        raise errors.InvalidParameter("option definition", f"it is of {named!r}, and the machine is {wanted.name}", "give the domain the name of the machine")
    images = [(os.path.realpath(disk.images[0].path), disk.images[0].format) for disk in definition.disks(wanted.definition) if disk.images]
    for disk in wanted.disks:
        formats = {image_format for path, image_format in images if path == os.path.realpath(disk.path)}
        if not formats:
            problem = f"none of its disks is {disk.path}, the active image of volume {disk.volume}"
            raise errors.InvalidParameter("option definition", problem, "let your template have the paths that modules return")
        other = next((str(one) for one in formats if one != disk.format), None)
        if other is not None:
            problem = f"it says that {disk.path} is {other}, and it is {disk.format}"
            raise errors.InvalidParameter(
                "option definition", problem, "let your template have the format that modules return: a guest could make QEMU open any file"
            )


def _is_gone(connection: Connection, record: described.Record, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while True:
        domain = connection.find(str(record.uuid))
        if domain is None or domain.state().state == OFF:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(_PAUSE)
