# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest agent without a guest: it listens where QEMU would have the channel, serves one client at a time, and behaves well or badly."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Optional

from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Task

from .guest import Live

MARK = b"\xff"
Answer = Callable[["ScriptedAgent", dict], Optional[bytes]]  # the bytes that go to the client; None: the connection ends


def told(value: object) -> bytes:
    """An answer."""
    return json.dumps({"return": value}).encode() + b"\n"


def refused(text: object) -> bytes:
    """The refusal of a command."""
    return json.dumps({"error": {"class": "GenericError", "desc": text}}).encode() + b"\n"


class ScriptedAgent:
    """Behaves as qemu-ga does, but for what ``script`` has: commands, and what happens instead. ``heard`` are the commands that came,
    ``frozen`` is the state of the guest. ``log`` has each change of that with its time.

    :param before: what is in the channel already when a client connects.
    """

    def __init__(self, script: dict[str, Answer] | None = None, before: bytes = b"", systems: int = 2) -> None:
        self.path = str(Path(tempfile.mkdtemp(prefix="qga-")) / "qga")
        self.script, self.before, self.systems = script or {}, before, systems
        self.frozen, self.heard = False, []  # type: bool, list[str]
        self.log: list[tuple[bool, float]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._client: socket.socket | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """The machine ends: nobody listens any more."""
        self._ended = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._client is not None:
            try:
                self._client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def set(self, frozen: bool) -> None:
        """The guest freezes or goes on."""
        if self.frozen != frozen:
            self.log.append((frozen, time.monotonic()))
        self.frozen = frozen

    def wait_until_thawed(self, limit: float = 20) -> None:
        until = time.monotonic() + limit
        while self.frozen:
            assert time.monotonic() < until, "the guest is frozen for ever"
            time.sleep(0.01)

    @property
    def froze(self) -> int:
        """How often it has been frozen."""
        return sum(frozen for frozen, _time in self.log)

    def _serve(self) -> None:
        while not self._ended:
            try:
                self._client, _address = self._listener.accept()
            except OSError:
                return
            try:
                self._client.sendall(self.before)
                self._talk(self._client)
            except OSError:
                pass
            self._client.close()

    def _talk(self, client: socket.socket) -> None:
        buffer = b""
        while True:
            data = client.recv(1 << 16)
            if not data:
                return
            buffer += data
            while b"\n" in buffer:
                line, _newline, buffer = buffer.partition(b"\n")
                answer = self._answer(json.loads(line.rpartition(MARK)[2]))
                if answer is None:
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)

    def _answer(self, request: dict) -> bytes | None:
        command = request["execute"]
        self.heard.append(command)
        if command in self.script:
            return self.script[command](self, request)
        return self.usual(request)

    def usual(self, request: dict) -> bytes:
        """What qemu-ga answers."""
        command = request["execute"]
        if command == "guest-sync-delimited":
            return MARK + told(request["arguments"]["id"])
        if command == "guest-fsfreeze-status":
            return told("frozen" if self.frozen else "thawed")
        if command == "guest-fsfreeze-freeze":
            if self.frozen:
                return refused("Command guest-fsfreeze-freeze has been disabled")
            self.set(self.systems > 0)
            return told(self.systems)
        if command == "guest-fsfreeze-thaw":
            count = self.systems if self.frozen else 0
            self.set(False)
            return told(count)
        return refused(f"The command {command} has not been found")


def silent(_agent: ScriptedAgent, _request: dict) -> bytes:
    """It hears and says nothing."""
    return b""


def instead(text: bytes) -> Answer:
    """It says this, whatever is asked."""
    return lambda _agent, _request: text


def begun(make: Callable[..., Live]) -> Live:
    """A volume whose machine has written."""
    live = make("qcow2")
    live.start().scribble(1)
    return live


def quiet(live: Live, agent: ScriptedAgent, name: str, quiesce: str = "true", warned: list | None = None, **options: Any) -> Any:
    """A snapshot with the guest frozen. :param warned: takes the warnings."""
    task = Task(warn=(warned if warned is not None else []).append)
    return live.take(name, quiesce=quiesce, agent=agent.path, task=task, **options)
