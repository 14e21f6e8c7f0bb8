# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks share: modules as processes, repeats in turns, counts of system calls, tables, and the page that shows them.

Only ratios of figures of one run say anything: the machine differs, and so does what else it does at the time. What is compared
takes turns, and each figure is the median of its repeats.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, Sequence

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "performance.md"
MIB = 1 << 20


# -- where the collection can be imported ----------------------------------------------------------------------------


def make_tree(directory: Path) -> Path:
    """A directory in which this checkout is ``ansible_collections.remotefs.storage``."""
    namespace = directory / "ansible_collections" / "remotefs"
    namespace.mkdir(parents=True)
    (namespace / "storage").symlink_to(CHECKOUT)
    return directory


def environment(**more: str) -> dict[str, str]:
    """The environment of what is measured: nothing that slows Python down, and the collection where it is imported here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ANSIBLE"))}
    tree = next(path for path in sys.path if Path(path, "ansible_collections", "remotefs", "storage").exists())
    return {**kept, "PYTHONPATH": str(tree), "LC_ALL": "C", **more}


# -- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """A process that ended well; ``seconds`` from before its start to after its end."""

    seconds: float
    out: bytes


def run(argv: Sequence[str], given: bytes = b"", where: Path = Path("/")) -> Ran:
    """:raises RuntimeError: the process failed."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
        stdin.write(given)
        stdin.seek(0)
        started = time.perf_counter()
        process = subprocess.Popen(argv, stdin=stdin, stdout=stdout, cwd=where, env=environment())
        process.wait()
        seconds = time.perf_counter() - started
        stdout.seek(0)
        out = stdout.read()
    if process.returncode:
        raise RuntimeError(f"{argv[0]} ended with {process.returncode}: {out[:2000].decode(errors='replace')}")
    return Ran(seconds, out)


def module_call(name: str, parameters: Mapping) -> tuple[list[str], bytes]:
    """A module as Ansible runs it on the host: a Python process with the arguments on its standard input."""
    argv = [sys.executable, "-m", f"ansible_collections.remotefs.storage.plugins.modules.{name}"]
    return argv, json.dumps({"ANSIBLE_MODULE_ARGS": parameters}).encode()


def run_module(name: str, parameters: Mapping) -> Ran:
    return run(*module_call(name, parameters))


def peak_memory(name: str, parameters: Mapping) -> int:
    """Bytes that a module's process and those that it starts have in memory together at most; pages that they share count once.

    What is between two looks is seen of the first process only: the kernel keeps its peak.
    """
    argv, given = module_call(name, parameters)
    with tempfile.TemporaryFile() as stdin:
        stdin.write(given)
        stdin.seek(0)
        process = subprocess.Popen(argv, stdin=stdin, stdout=subprocess.DEVNULL, cwd="/", env=environment())
    peak = 0
    while process.poll() is None:
        together = sum(_memory(pid, "smaps_rollup", "Pss") for pid in _family(process.pid))
        peak = max(peak, together, _memory(process.pid, "status", "VmHWM"))
        time.sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    return peak


def _family(pid: int) -> list[int]:
    """A process, its children, theirs, and so on."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in _family(int(child)))]


def _memory(pid: int, file: str, field: str) -> int:
    """Bytes; 0 where the process has ended."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) * 1024 if found else 0


def count_calls(argv: Sequence[str], given: bytes = b"", where: Path = Path("/")) -> dict[str, int]:
    """How often a process and all its children make each system call that forces data to disk, and start programs."""
    with tempfile.NamedTemporaryFile("r") as counted:
        traced = ["strace", "-f", "-c", "-o", counted.name, "--seccomp-bpf", "-e", "trace=fsync,fdatasync,syncfs,execve", *argv]
        run(traced, given, where)
        rows = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:(\d+) +)?(\w+)$", counted.read(), re.MULTILINE)
    calls = {name: int(count) - int(failed or 0) for count, failed, name in rows if name != "total"}
    return {"fsyncs": sum(calls.get(name, 0) for name in ("fsync", "fdatasync", "syncfs")), "programs": calls.get("execve", 0)}


def can_count() -> bool:
    return shutil.which("strace") is not None


# -- repeats ---------------------------------------------------------------------------------------------------------


def in_turns(repeats: int, ways: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The median of what each way measures. They take turns, so that whatever else the machine does meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _turn in range(repeats):
        for name, way in ways.items():
            found[name].append(way())
    return {name: statistics.median(figures) for name, figures in found.items()}


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


# -- tables ----------------------------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def ratio(one: float, other: float) -> str:
    value = one / other
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def marks(name: str) -> tuple[str, str]:
    return f"<!-- scripts/bench writes {name} from here -->", f"<!-- {name}: to here -->"


def write_page(name: str, text: str) -> None:
    """Put a benchmark's table between its marks. :raises RuntimeError: the page has no such marks."""
    begin, end = marks(name)
    page, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _found: f"{begin}\n\n{text}\n\n{end}", PAGE.read_text(), flags=re.DOTALL
    )
    if count != 1:
        raise RuntimeError(f"{PAGE} has the marks of {name} {count} times")
    PAGE.write_text(page)
