# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of the checkout in which mutants are tried. The checkout itself is never changed, so a run that is killed leaves it as it was."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Sequence

from sessions import tree

from .mutants import Mutant, changed_lines

# Most mutants are killed in less time than pytest takes to be imported: a server that has done so forks for each of them.
# It has imported nothing of the collection, which each child finds in its copy.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["hypothesis", "pytest", "_pytest.assertion.rewrite", "_pytest.doctest", "_pytest.fixtures", "_pytest.legacypath",
                               "_pytest.pytester", "_pytest.python", "_pytest.terminal", "_pytest.tmpdir", "pytest_timeout"])

PATIENCE = 3  # a mutant is timed out after so many times what its tests take without it, and
SECONDS = 20  # so many seconds more


class Tried(NamedTuple):
    """What became of a mutant. :ivar outcome: ``killed``, ``timed out`` or ``survived``. :ivar was, becomes: the changed lines in one."""

    mutant: Mutant
    outcome: str
    was: str
    becomes: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is called: this stays the same when lines move."""
        return self.mutant.room, self.mutant.where, self.was, self.becomes


class Failing(Exception):
    """Tests fail without a mutant; the text is what pytest said."""


class Copies:
    """A copy for each worker. Bytecode of all but the mutated file is made once."""

    def __init__(self, scratch: Path, number: int) -> None:
        self._free: queue.Queue[Path] = queue.Queue()
        for index in range(number):
            self._free.put(tree.copy_tree(scratch / f"copy-{index}") / tree.COLLECTION)
        self._limits: dict[tuple[str, ...], float] = {}

    def measure(self, tests: Sequence[str]) -> float:
        """Seconds that these tests take on what is not mutated, in all copies at the same time. :raises Failing: they fail."""
        began, copies = time.monotonic(), list(self._free.queue)
        with ThreadPoolExecutor(len(copies)) as pool:
            statuses = list(pool.map(lambda copy: _run(copy, tests, None), copies))
        for copy, status in zip(copies, statuses):
            if status != 0:
                raise Failing((copy.parents[2] / "output").read_text(errors="replace")[-4000:])
        seconds = time.monotonic() - began
        self._limits[tuple(tests)] = PATIENCE * seconds + SECONDS
        return seconds

    def try_mutant(self, mutant: Mutant, tests: Sequence[str]) -> Tried:
        """Runs ``tests``, which were measured, until one fails."""
        copy = self._free.get()
        path = copy / "plugins" / "module_utils" / mutant.room
        original, times = path.read_text(encoding="utf-8"), path.stat()
        try:
            changed = mutant.source(original)
            path.write_text(changed, encoding="utf-8")
            status = _run(copy, tests, self._limits[tuple(tests)])
        finally:
            path.write_text(original, encoding="utf-8")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # so that its bytecode is believed again
            self._free.put(copy)
        outcome = {0: "survived", None: "timed out"}.get(status, "killed")
        return Tried(mutant, outcome, *changed_lines(original, changed))


def _run(copy: Path, tests: Sequence[str], limit: float | None) -> int | None:
    """The exit status of pytest, or None if it was not done within ``limit`` seconds. Without a limit, it also leaves bytecode for others."""
    child = _forks.Process(target=_child, args=(copy, tuple(tests), limit is None))
    child.start()
    child.join(limit)
    status = child.exitcode
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # with what it may have left
    child.join()
    return status


def _child(copy: Path, tests: Sequence[str], bytecode: bool) -> None:
    import pytest  # noqa: PLC0415  the parent does without

    os.setsid()
    scratch = copy.parents[2] / "tmp"
    scratch.mkdir(exist_ok=True)
    os.chdir(copy)
    os.environ.update(TMPDIR=str(scratch), HYPOTHESIS_PROFILE="mutation", **({} if bytecode else {"PYTHONDONTWRITEBYTECODE": "1"}))
    sys.dont_write_bytecode = not bytecode
    output = os.open(copy.parents[2] / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    options = ["-q", "-x", "-m", "not slow", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=120",
               "-o", "tmp_path_retention_policy=none"]
    sys.exit(pytest.main([*options, *tests]))
