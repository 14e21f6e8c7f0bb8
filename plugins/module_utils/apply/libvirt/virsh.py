# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt by the program virsh, where Python has no binding. Names and paths are arguments, never parts of a shell's line."""

from __future__ import annotations

import re

from ... import command, errors
from . import agent
from .connection import ACTIVE_COMMIT, COMMIT, OFF, OTHER, PAUSED, RUNNING, Job, Refused, State, Unreachable

_LIMIT = 300.0  # seconds for a call: a suspended guest's disks may have to be flushed to a slow share
_STATES = {"running": RUNNING, "idle": RUNNING, "in shutdown": RUNNING, "paused": PAUSED, "shut off": OFF, "no state": OFF}
_REASONS = {"I/O error": "ioerror", "creating snapshot": "snapshot", "migrating": "migration", "saving": "save", "dumping": "dump"}  # the binding's words
_KINDS = {"Block Commit": COMMIT, "Active Block Commit": ACTIVE_COMMIT}
_UNREACHABLE = ("failed to connect", "End of file while reading", "Cannot write data", "Connection reset", "client socket is closed", "Failed to connect")


def program() -> str | None:
    """The path of virsh. None if it is not there."""
    try:
        return command.find("virsh", "libvirt-clients")
    except errors.ToolMissing:
        return None


class Spoken:
    """The :class:`connection.Connection` of virsh: a program for each call."""

    def __init__(self, path: str, uri: str) -> None:
        self._path, self._uri = path, uri
        self.say("version")

    def say(self, verb: str, *words: str, given: str | None = None) -> str:
        """What virsh prints for one of its commands.

        :param given: what the command reads from its standard input. :raises Refused: it fails. :raises Unreachable: there is no libvirt.
        """
        argv = [self._path, "--quiet", "--connect", self._uri, verb, *words]
        result = command.run(argv, timeout=_LIMIT, secret=given.encode("utf-8", "surrogateescape") if given is not None else None)
        if result.rc == 0:
            return result.out
        text = " ".join(re.sub(r"^error: ", "", line) for line in result.err.strip().splitlines() if line.strip()) or result.reason
        if any(words in text for words in _UNREACHABLE):
            raise Unreachable(text)
        raise Refused(text, "failed to get domain" in text or "Domain not found" in text)

    def find(self, name: str) -> SpokenDomain | None:
        """See :meth:`connection.Connection.find`."""
        try:
            told = _pairs(self.say("dominfo", "--domain", name))
        except Refused as error:
            if error.is_absent:
                return None
            raise
        uuid, known = told.get("UUID", ""), told.get("Name", "")
        return SpokenDomain(self, uuid, known) if name in (uuid, known) else None  # virsh takes the number of a running domain, too

    def all_domains(self) -> list[SpokenDomain]:
        """See :meth:`connection.Connection.all_domains`."""
        lines = (line.split(None, 1) for line in self.say("list", "--all", "--uuid", "--name").splitlines() if line.strip())
        return [SpokenDomain(self, uuid, name.strip()) for uuid, name in lines]

    def create(self, xml: str) -> None:
        """See :meth:`connection.Connection.create`."""
        self.say("create", "--file", "/dev/stdin", given=xml)

    def close(self) -> None:
        """See :meth:`connection.Connection.close`. Each call has had a connection of its own."""


class SpokenDomain(agent.Asked):
    """The :class:`connection.Domain` of virsh."""

    def __init__(self, connection: Spoken, uuid: str, name: str) -> None:
        self._connection, self.uuid, self.name = connection, uuid, name

    def _say(self, verb: str, *words: str, given: str | None = None) -> str:
        return self._connection.say(verb, "--domain", self.uuid, *words, given=given)

    def state(self) -> State:
        """See :meth:`connection.Domain.state`."""
        state, _space, reason = self._say("domstate", "--reason").strip().partition(" (")
        if state == "crashed" and "-" not in self._say("domid"):
            return State(OTHER, state)
        found = OFF if state == "crashed" else _STATES.get(state, OTHER)
        reason = reason.rstrip(")")
        reason = _REASONS.get(reason, reason)
        return State(found, reason if found == PAUSED else "" if found in (RUNNING, OFF) else state)

    def xml(self, inactive: bool) -> str:
        """See :meth:`connection.Domain.xml`."""
        return self._say("dumpxml", "--security-info", *(["--inactive"] if inactive else []))

    def is_persistent(self) -> bool:
        """See :meth:`connection.Domain.is_persistent`."""
        return self._told("dominfo").get("Persistent") == "yes"

    def is_saved(self) -> bool:
        """See :meth:`connection.Domain.is_saved`."""
        return self._told("dominfo").get("Managed save") == "yes"

    def is_moving(self) -> bool:
        """See :meth:`connection.Domain.is_moving`."""
        return self._told("domjobinfo").get("Job type", "None") not in ("None", "")

    def _told(self, verb: str, *words: str) -> dict[str, str]:
        return _pairs(self._say(verb, *words))

    def named_states(self) -> list[str]:
        """See :meth:`connection.Domain.named_states`."""
        snapshots, checkpoints = self._names("snapshot-list"), self._names("checkpoint-list")
        found = [self._say("snapshot-dumpxml", "--snapshotname", name) for name in snapshots]
        return found + [self._say("checkpoint-dumpxml", "--checkpointname", name) for name in checkpoints]

    def _names(self, verb: str) -> list[str]:
        return [line.strip() for line in self._say(verb, "--name").splitlines() if line.strip()]

    def take_snapshot(self, xml: str) -> None:
        """See :meth:`connection.Domain.take_snapshot`."""
        self._say("snapshot-create", "--xmlfile", "/dev/stdin", "--disk-only", "--atomic", "--no-metadata", "--reuse-external", given=xml)

    def commit(self, disk: str, top: str | None, base: str, speed: int) -> None:
        """See :meth:`connection.Domain.commit`."""
        words = ["--active"] if top is None else ["--top", top]
        self._say("blockcommit", disk, "--base", base, *words, "--keep-relative", "--bandwidth", str(speed), "--bytes")

    def job(self, disk: str) -> Job | None:
        """See :meth:`connection.Domain.job`."""
        told = dict(line.strip().partition("=")[::2] for line in self._say("blockjob", disk, "--raw").splitlines() if "=" in line)
        if not told:
            return None
        return Job(_KINDS.get(told.get(" type", told.get("type", "")), "other"), int(told.get("cur", 0)), int(told.get("end", 0)))

    def cancel(self, disk: str) -> None:
        """See :meth:`connection.Domain.cancel`."""
        self._say("blockjob", disk, "--abort")

    def pivot(self, disk: str) -> None:
        """See :meth:`connection.Domain.pivot`."""
        self._say("blockjob", disk, "--pivot")

    def capacity(self, disk: str) -> int:
        """See :meth:`connection.Domain.capacity`."""
        return int(self._told("domblkinfo", disk)["Capacity"])

    def resize(self, disk: str, size: int) -> None:
        """See :meth:`connection.Domain.resize`."""
        self._say("blockresize", disk, f"{size}B")

    def leased_addresses(self) -> list[str]:
        """See :meth:`connection.Domain.leased_addresses`. A line is a card, its MAC, the kind of address, and the address with its prefix."""
        lines = (line.split() for line in self._say("domifaddr", "--source", "lease").splitlines())
        return [words[3].partition("/")[0] for words in lines if len(words) == 4]

    def suspend(self) -> None:
        """See :meth:`connection.Domain.suspend`."""
        self._say("suspend")

    def resume(self) -> None:
        """See :meth:`connection.Domain.resume`."""
        self._say("resume")

    def shutdown(self) -> None:
        """See :meth:`connection.Domain.shutdown`."""
        self._say("shutdown")

    def destroy(self) -> None:
        """See :meth:`connection.Domain.destroy`."""
        self._say("destroy")

    def ask_agent(self, request: str, limit: int) -> str:
        """See :meth:`agent.Asked.ask_agent`."""
        return self._say("qemu-agent-command", "--timeout", str(limit), "--cmd", request)

    def define(self, xml: str) -> None:
        """See :meth:`connection.Domain.define`."""
        self._connection.say("define", "--file", "/dev/stdin", given=xml)


def _pairs(text: str) -> dict[str, str]:
    """What virsh prints as ``name: value``."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _colon, value in lines}
