# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task did, step by step with times: in the result of a run with ``-vvv``, and in a file where the user names one."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Callable

from .. import errors

_OPENING = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class StepLog:
    """Takes steps from all threads of a task.

    :param path: a file on this host to append to; made with mode 0600. None: no file.
    :param keep: whether :attr:`lines` are wanted.
    :raises InvalidParameter: the file cannot be opened.
    """

    def __init__(self, path: str | None, keep: bool, warn: Callable[[str], None]) -> None:
        self.lines: list[dict] = []
        self._keep = keep
        self._warn = warn
        self._mutex = threading.Lock()
        self._path, self._fd = path, -1
        if path is not None:
            try:
                self._fd = os.open(path, _OPENING, 0o600)
            except OSError as error:
                told = f"{path} cannot be appended to ({error.strerror})"
                raise errors.InvalidParameter("option log_path", told, "name a file in a directory that exists on the managed host") from error

    def __call__(self, volume: str, told: dict, seconds: float) -> None:
        """Add a step that took ``seconds``; ``told`` is its entry of ``actions``, and its share."""
        instant = time.time()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(instant)) + f".{int(instant * 1000) % 1000:03d}Z"
        line = {"time": moment, "volume": volume, **told, "seconds": round(seconds, 6)}
        with self._mutex:
            if self._keep:
                self.lines.append(line)
            if self._fd >= 0:
                self._append(line)

    def take_lines(self) -> list[dict]:
        """The lines so far, which are not kept any more."""
        with self._mutex:
            lines, self.lines = self.lines, []
        return lines

    def add_lines(self, lines: list[dict]) -> None:
        """Keep lines that another process of this task has written to the file already."""
        with self._mutex:
            self.lines += lines

    def _append(self, line: dict) -> None:
        try:
            os.write(self._fd, json.dumps(line).encode("utf-8") + b"\n")
        except OSError as error:
            os.close(self._fd)
            self._fd = -1
            self._warn(str(errors.from_os_error(error, f"log {self._path}")) + " The task goes on without it.")
