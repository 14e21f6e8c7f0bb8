# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs tasks on planted shares under strace and tells what they did."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from . import server, trace
from .scene import TASKS, Scene

TIMEOUT = 20  # seconds that any task may take on any hostile content
PEAK = 192 << 20  # bytes of memory that a task and each program of its may take; a task on an honest volume takes 30 MiB


@dataclass(frozen=True)
class Answer:
    """How a task ended: its result as a module returns it, what it took, and its system calls."""

    result: dict
    said: str
    hung: bool
    peak: int
    seconds: float
    calls: list

    def code(self, task: str) -> str:
        """The error code: of an info module that of volume ``vol`` or lease ``env`` where it has one, of a collection that of what it left; "ok" where
        there is none."""
        if not self.result:
            return "traceback"
        if self.result.get("failed"):
            return str(self.result.get("error_code"))
        told = [one for key in ("volumes", "leases") for one in self.result.get(key) or [] if one.get("name") in ("vol", "env")]
        return next((str(one["error_code"]) for one in [*told, *(self.result.get("left") or [])] if one.get("error_code")), "ok")


def why_not() -> str:
    """Why tasks cannot be traced here; empty where they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else "ptrace is not permitted here: " + tried.stderr.strip().splitlines()[-1]


class Runner:
    """One traced server and its scratch directory."""

    def __init__(self, scratch: Path, checkout: Path) -> None:
        self.scratch, self._checkout = scratch, checkout
        (scratch / "tmp").mkdir()
        self._trace = scratch / "trace"
        environment = {**os.environ, "TMPDIR": str(scratch / "tmp"), "HOME": str(scratch / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [
            "strace",
            "-f",
            "-y",
            "-qq",
            "-s",
            "256",
            "-e",
            "signal=none",
            "-e",
            f"trace={trace.SYSTEM_CALLS}",
            "-o",
            str(self._trace),
        ]
        command += ["--seccomp-bpf", sys.executable, server.__file__]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self._number, self._offset = 0, 0
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)

    def run(self, scene: Scene, task: str) -> Answer:
        module, args = TASKS[task]
        text = json.dumps({"share": ["{share}"], **args})
        for word, path in (("{share}", scene.share), ("{target}", scene.target), ("{run}", scene.run)):
            text = text.replace(word, str(path))
        args = json.loads(text)
        self._number += 1
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps({"number": self._number, "module": module, "args": args, "timeout": TIMEOUT}) + "\n")
        self._server.stdin.flush()
        told = json.loads(self._server.stdout.readline())
        found = trace.calls(self._lines())
        return Answer(_result(told["said"]), told["said"], told["hung"], told["peak"], told["seconds"], found)

    def offences(self, scene: Scene, answer: Answer) -> list[str]:
        """What the task did that it may not: outside of the share, and to what is no file on it, of which the opening alone can act."""
        mine = tuple(one.pid for one in scene.machines)
        judge = trace.Judge(str(scene.share), str(self.scratch / "tmp"), str(self._checkout), str(scene.target), str(scene.run), mine)
        found = judge.offences(answer.calls)
        for path in {call.opened for call in answer.calls if call.opened and call.opened.startswith(str(scene.share))}:
            mode = os.lstat(path).st_mode if os.path.lexists(path) else stat.S_IFREG
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                found.append(f"open of {path}, which is no file")
        return found

    def _lines(self) -> list[str]:
        """The trace between the markers of the task that ran last."""
        begin, end = (f"{server.MARKER}/{what}/{self._number}" for what in ("begin", "end"))
        deadline = time.monotonic() + 10
        while True:
            with open(self._trace, encoding="latin-1") as stream:
                stream.seek(self._offset)
                text = stream.read()
            first, last = text.find(f'"{begin}"'), text.find(f'"{end}"')
            if last >= 0 and "\n" in text[last:]:
                break
            assert time.monotonic() < deadline, "the trace ends before the task"
            time.sleep(0.005)
        self._offset += text.index("\n", last) + 1
        return text[text.index("\n", first) + 1 : text.rindex("\n", 0, last) + 1].splitlines()


def _result(said: str) -> dict:
    for line in said.splitlines():
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                return {}
    return {}
