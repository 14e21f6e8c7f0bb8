# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of QEMU's monitor (QMP): one JSON object a line, over a Unix socket.

A monitor serves one client at a time. A second one connects and waits for ever. So the greeting has a time limit, and so has each
command. What listens may also be no QEMU: a limit is one for all that is received until then, and each answer is checked.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from ... import errors
from .. import turns
from . import answers
from .answers import Strange

if TYPE_CHECKING:
    from .. import positions

GREETING = 5.0  # seconds for all that a connection begins with
QUESTION = 20.0  # seconds for the answer to a question
ANSWER = 120.0  # seconds for a command, which may have to flush a slow disk first
_QUESTIONS = ("query-", "x-debug-query-", "qom-list", "qom-get")
_ENDS_OF_JOBS = {"BLOCK_JOB_COMPLETED": "", "BLOCK_JOB_CANCELLED": "it was cancelled"}  # events, and what they mean where they name no error
_POLL = 0.01  # seconds
_LONGEST_LINE = 16 << 20  # bytes
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_BRISK = 2.0  # seconds for which a job is asked after without a pause
_PAUSE = 1.0  # seconds for which others may use the monitor while a job runs
_NOBODY = (errno.ENOENT, errno.ECONNREFUSED)


class QmpError(Exception):
    """QEMU refused a command, and did nothing. ``kind`` is QEMU's class of the error."""

    def __init__(self, command: str, kind: str, text: str) -> None:
        super().__init__(f"{command}: {text}")
        self.command, self.kind, self.text = command, kind, text


class Lost(Exception):
    """The monitor closed or did not answer. It is not known whether the last command was carried out.

    :param is_closed: the connection has ended. Otherwise an answer may still come.
    """

    def __init__(self, text: str, is_closed: bool = False) -> None:
        super().__init__(text)
        self.is_closed = is_closed


class Monitor:
    """A connection to a monitor. ``pid`` is the process that listens there, ``commands`` are the names of what it can do.

    A context manager, which closes the connection.

    :param turn: what :func:`turns.take_turn` has returned, which is given back with the connection.
    :param patience: seconds to wait for the next turn, if it is given up meanwhile.
    """

    def __init__(self, path: str, stream: socket.socket, turn: socket.socket | None = None, patience: float = 0) -> None:
        self.path, self.turn, self._patience = path, turn, patience
        self._stream, self._buffer = stream, bytearray()
        self.pid = 0
        self.commands: frozenset[str] = frozenset()
        self.failures: dict[str, str] = {}  # what QEMU said of jobs that failed, by their names. Some of them vanish at once
        self._sent, self._may_be_torn = 0, False

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def greet(self) -> None:
        """Read the greeting and begin. :raises Lost: there is none. :raises Strange: another server's. :raises QmpError: it refuses to begin."""
        until = time.monotonic() + GREETING
        self.pid = _PEER.unpack(self._stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        answers.require_greeting(self._line(until))
        self._run("qmp_capabilities", {}, until)
        self.commands = frozenset(one["name"] for one in self._run("query-commands", {}, until))

    def inherit(self) -> None:
        """Go on with the connection of a process that died, at any point of its reading."""
        self._buffer, self._may_be_torn = bytearray(), True

    def close(self) -> None:
        """End the connection. Jobs go on."""
        self._stream.close()
        if self.turn is not None:
            self.turn.close()

    def let_others(self, seconds: float) -> None:
        """Let other tasks have the monitor for a while. Jobs go on. :raises InUse: it does not become free again in time. :raises Lost: it is gone."""
        self.close()
        time.sleep(seconds)
        again = connect(self.path, turns.take_turn(self.path, self._patience), self._patience)
        if again is None or again.pid != self.pid:
            raise Lost("it is not there any more", is_closed=True)
        self._stream, self.turn, self._buffer = again._stream, again.turn, bytearray()

    def run(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its answer, which is checked. Events are skipped. Underscores in the names of arguments stand for dashes.

        :raises QmpError: QEMU refuses it. :raises Lost: the connection ended, or no answer came in time. :raises Strange: it is no QEMU's.
        """
        limit = QUESTION if command.startswith(_QUESTIONS) else ANSWER
        return self._run(command, {name.replace("_", "-"): value for name, value in arguments.items()}, time.monotonic() + limit)

    def _run(self, command: str, arguments: dict, until: float) -> Any:
        self._sent += 1
        mine = f"{os.getpid()}-{self._sent}"
        try:
            self._wait_until(until)
            self._stream.sendall(json.dumps({"execute": command, "arguments": arguments, "id": mine}).encode() + b"\n")
        except OSError as error:
            raise Lost(f"{command}: {error.strerror or error}", not isinstance(error, socket.timeout)) from error
        while True:
            answer = self._line(until)
            event = answer.get("event")
            if isinstance(event, str) and event in _ENDS_OF_JOBS:
                self._note_failure(answer.get("data"), _ENDS_OF_JOBS[event])
            if answer.get("id") != mine:
                continue  # an event, or the answer to another process that had this connection
            if "error" in answer:
                answers.require_error(answer["error"], command)
                raise QmpError(command, answer["error"]["class"], answer["error"]["desc"])
            if "return" not in answer:
                raise Strange(f"the answer to {command} is none that QEMU gives")
            answers.check(command, answer["return"])
            return answer["return"]

    def _note_failure(self, told: object, otherwise: str) -> None:
        if isinstance(told, dict) and isinstance(told.get("device"), str):
            error = told.get("error", otherwise)
            if isinstance(error, str) and error:
                self.failures[told["device"]] = error

    def _wait_until(self, until: float) -> None:
        """Let what is sent and received next take no longer than until then. :raises Lost: that is over."""
        left = until - time.monotonic()
        if left <= 0:
            raise Lost("no answer came in time")
        self._stream.settimeout(left)

    def _line(self, until: float) -> dict:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > _LONGEST_LINE:
                raise Strange("an answer has no end")
            self._wait_until(until)
            try:
                data = self._stream.recv(1 << 16)
            except OSError as error:  # socket.timeout is one
                if isinstance(error, socket.timeout):
                    raise Lost("no answer came in time") from error
                raise Lost(str(error.strerror or error), is_closed=True) from error
            if not data:
                raise Lost("the connection was closed", is_closed=True)
            self._buffer += data
        self._wait_until(until)  # lines without an end to them are no answer either
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        torn, self._may_be_torn = self._may_be_torn, False
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as error:
            if torn:
                return {}
            raise Strange("an answer is no JSON") from error
        if not isinstance(answer, dict):
            raise Strange("an answer is no JSON object")
        return answer

    # -- jobs --------------------------------------------------------------------------------------------------------

    def job(self, name: str) -> dict | None:
        """A job as ``query-jobs`` tells it. None if there is none of this name."""
        return next((one for one in self.run("query-jobs") if one["id"] == name), None)

    def wait_for(
        self, name: str, *states: str, until: float | None = None, sharing: bool = False, tell: positions.Tell | None = None
    ) -> dict | None:
        """Wait until a job has one of these states. None if it vanished. A job that concluded is in no other state any more.

        :param until: a time of :func:`time.monotonic` after which the job is returned as it is.
        :param sharing: if it takes longer, other tasks may use the monitor meanwhile. :param tell: is told how far the job
            is, and where its end is.
        """
        alone = time.monotonic() + _BRISK
        while True:
            found = self.job(name)
            if found is not None and tell is not None:
                tell(found.get("current-progress"), found.get("total-progress"))
            if found is None or found["status"] in (*states, "concluded") or (until is not None and time.monotonic() > until):
                return found
            if sharing and time.monotonic() > alone:
                self.let_others(_PAUSE)
            else:
                time.sleep(_POLL)


def connect(path: str, turn: socket.socket | None = None, patience: float = 0) -> Monitor | None:
    """A monitor that has greeted. None if nobody listens at ``path``.

    :param turn: see :class:`Monitor`. It is given back if there is no monitor.
    :raises InUse: somebody listens there and does not greet in time, or refuses. :raises ToolFailed: the socket cannot be reached.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    monitor, greeted = Monitor(path, stream, turn, patience), False
    try:
        if not _call(stream, path):
            return None
        monitor.greet()
        greeted = True
        return monitor
    except (Lost, QmpError) as error:
        raise _silent(path, str(error)) from error
    except Strange as error:
        raise strange(path, error) from error
    finally:
        if not greeted:
            monitor.close()


def _call(stream: socket.socket, path: str) -> bool:
    """Connect. Who waits for a client that is just going may be too many for a moment. False if nobody listens there.

    :raises InUse: somebody is there, and has no time. :raises ToolFailed: the socket cannot be reached.
    """
    until = time.monotonic() + GREETING
    stream.settimeout(GREETING)
    while True:
        try:
            stream.connect(path)
            return True
        except OSError as error:
            if error.errno in _NOBODY:
                return False
            if error.errno == errno.EAGAIN and time.monotonic() <= until:
                time.sleep(_POLL)
                continue
            if isinstance(error, socket.timeout) or error.errno == errno.EAGAIN:
                raise _silent(path) from error
            reason = error.strerror or str(error)
            raise errors.ToolFailed(f"monitor {path}", f"it cannot be reached ({reason})", "check attachment.qmp, and the rights of the socket") from error


def _silent(path: str, reason: str = "no answer came in time") -> errors.InUse:
    return errors.InUse(
        f"monitor {path}",
        f"another program is probably connected to it, because it does not greet ({reason})",
        "give a QMP socket that no other program uses; a monitor serves one client at a time",
    )


def strange(path: str, error: Strange) -> errors.InUse:
    """What listens is no monitor, for users."""
    return errors.InUse(f"monitor {path}", f"what listens there is no QEMU monitor ({error})", "give the QMP socket of the machine that uses the volume")
