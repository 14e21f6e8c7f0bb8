# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of the guest agent (qemu-ga): one JSON object a line, over the Unix socket of its channel.

The channel outlives its clients: what it holds may be an answer to somebody else, from hours ago. So each conversation begins with
``guest-sync-delimited`` and a number, and all is skipped until the answer with that number.

The guest is not trusted. Each answer has a limit of time, of length and of shape, and its words are shown escaped.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from contextlib import suppress

from .. import quiescing

ANSWER = 5.0  # seconds for the answer to a question, with all that comes before it
FREEZE = 20.0  # seconds for the guest to write what it holds in memory. Its programs wait meanwhile
THAW = 10.0  # seconds for it to go on
_MARK = b"\xff"  # no text has this byte: it resets the agent's parser, and the agent's answer to a sync begins with it
_LONGEST = 4096  # bytes of an answer. Those that are asked for have less than a hundred
_LONGEST_SHOWN = 200  # characters of the guest's words in a message
_PAUSE = 0.05  # seconds between two attempts to connect
_NOBODY = (errno.ENOENT, errno.ECONNREFUSED)


class AgentError(Exception):
    """The agent did not do what it was asked, or that is not known. The text says why."""


class Absent(AgentError):
    """Nobody listens at the channel: the machine has ended, or never had one."""


class Answered(AgentError):
    """The agent refuses, or what it says is no answer."""


class Agent:
    """The agent behind the socket at ``path``. It is connected when it is asked something."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._stream: socket.socket | None = None
        self._buffer, self._in_step = bytearray(), False

    def ping(self) -> None:
        """Return if the agent answers. :raises AgentError: it does not."""
        self._ask("guest-ping", ANSWER)

    def is_frozen(self) -> bool:
        """Whether the guest's file systems rest. :raises AgentError: that is not known."""
        status = self._ask("guest-fsfreeze-status", ANSWER)
        if status not in ("frozen", "thawed"):
            raise Answered("its guest agent says neither that it is frozen nor that it is thawed")
        return status == "frozen"

    def freeze(self) -> int:
        """Let the guest's file systems rest. Returns how many do. :raises AgentError: that is not known, or they do not."""
        return self._count("guest-fsfreeze-freeze", FREEZE)

    def thaw(self, limit: float) -> int:
        """Let them go on. Returns how many rested. :raises AgentError: that is not known."""
        return self._count("guest-fsfreeze-thaw", limit)

    def inherit(self) -> None:
        """Go on with the connection of another process, which died at any point of its work."""
        self._buffer, self._in_step = bytearray(), False

    def fileno(self) -> int | None:
        """The descriptor of the connection, if there is one."""
        return self._stream.fileno() if self._stream is not None else None

    def close(self) -> None:
        """End the connection, also for processes that have inherited it: the channel serves one client at a time."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)
            self._stream.close()
        self._stream, self._in_step = None, False

    # -- one command -------------------------------------------------------------------------------------------------

    def _count(self, command: str, limit: float) -> int:
        count = self._ask(command, limit)
        if not isinstance(count, int) or isinstance(count, bool):
            raise Answered(f"its guest agent gives no number in answer to {command}")
        return count

    def _ask(self, command: str, limit: float) -> object:
        """The answer to a command without arguments."""
        until = time.monotonic() + limit
        if self._stream is None:
            self._connect(until)
        if not self._in_step:
            self._sync(until)
        self._in_step = False  # until the answer is here
        self._send({"execute": command}, until)
        answer = _parsed(self._line(until))
        if answer is None or ("return" not in answer and "error" not in answer):
            raise Answered(f"its guest agent gives no answer to {command} but something else")
        self._in_step = True
        if "error" in answer:
            raise Answered(f"its guest agent refuses {command} ({_words_of(answer['error'])})")
        return answer["return"]

    def _sync(self, until: float) -> None:
        """Let the agent forget what it has read, and skip all that it has said."""
        number = int.from_bytes(os.urandom(6), "big")
        self._send({"execute": "guest-sync-delimited", "arguments": {"id": number}}, until, _MARK)
        while True:
            answer = _parsed(self._marked_line(until))
            if answer is not None and answer.get("return") == number:
                self._in_step = True
                return

    def _connect(self, until: float) -> None:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            while True:
                stream.settimeout(max(_PAUSE, until - time.monotonic()))
                try:
                    stream.connect(self.path)
                    break
                except OSError as error:
                    if error.errno in _NOBODY:
                        raise Absent(f"nobody listens at {self.path}") from error
                    if error.errno != errno.EAGAIN or time.monotonic() > until:
                        reason = "somebody else uses it" if error.errno == errno.EAGAIN or isinstance(error, socket.timeout) else error.strerror or error
                        raise AgentError(f"the channel of its guest agent cannot be reached at {self.path} ({reason})") from error
                    time.sleep(_PAUSE)
        except BaseException:
            stream.close()
            raise
        self._stream, self._buffer, self._in_step = stream, bytearray(), False

    # -- bytes -------------------------------------------------------------------------------------------------------

    def _send(self, request: dict, until: float, before: bytes = b"") -> None:
        stream = self._ready(until)
        try:
            stream.sendall(before + json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self, until: float) -> None:
        stream = self._ready(until)
        try:
            data = stream.recv(1 << 16)
        except OSError as error:
            raise self._lost(error) from error
        if not data:
            self.close()
            raise AgentError("the channel of its guest agent was closed")
        self._buffer += data

    def _ready(self, until: float) -> socket.socket:
        """The connection, on which nothing takes longer than until then."""
        left = until - time.monotonic()
        if self._stream is None:
            raise AgentError("the channel of its guest agent was closed")
        if left <= 0:
            raise self._lost(socket.timeout())
        self._stream.settimeout(left)
        return self._stream

    def _lost(self, error: OSError) -> AgentError:
        if isinstance(error, socket.timeout):
            return AgentError("its guest agent does not answer in time")
        self.close()
        return AgentError(f"the channel of its guest agent was lost ({error.strerror or error})")

    def _line(self, until: float) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LONGEST:
                raise Answered("an answer of its guest agent has no end")
            self._receive(until)
        if end > _LONGEST:
            raise Answered("an answer of its guest agent is too long")
        return self._taken(end)

    def _taken(self, end: int) -> bytes:
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _marked_line(self, until: float) -> bytes:
        """The next short line behind a mark. Of what comes before it nothing is kept."""
        marked = False
        while True:
            self._ready(until)  # also what has been received already takes time
            mark, end = self._buffer.find(_MARK), self._buffer.find(b"\n")
            if mark >= 0 and (not marked or end < 0 or mark < end):
                del self._buffer[: mark + 1]
                marked = True
            elif marked and end >= 0:
                line, marked = self._taken(end), False
                if len(line) <= _LONGEST:
                    return line
            else:
                if not marked or len(self._buffer) > _LONGEST:
                    self._buffer, marked = bytearray(), False
                self._receive(until)


def _parsed(line: bytes) -> dict | None:
    """The JSON object on a line. None if there is none."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _words_of(error: object) -> str:
    """The guest's words for an error, harmless for a terminal and not too many."""
    text = error.get("desc") if isinstance(error, dict) else None
    if not isinstance(text, str) or not text:
        return "without a reason"
    return repr(quiescing.shown(text, _LONGEST_SHOWN))
