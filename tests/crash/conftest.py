# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The library, built once per session, and the table of all sweeps at the end of a run and in ``build/``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

FULL = os.environ.get("CRASH_SWEEP") == "full"
_ROWS = "crash rows"
_COLUMNS = (
    "group",
    "python",
    "qemu-img",
    "orphan",
    "during recovery",
    "other task",
    "power loss",
    "Python errors",
    "qemu-img errors",
    "all",
)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from . import interposer

    assert shutil.which("cc"), "a C compiler is needed: on Debian the packages gcc and libc6-dev"
    return interposer.build(tmp_path_factory.mktemp("library"))


@pytest.fixture
def tell_rows(record_property):
    """Hand rows of the table to the end of the run, from whichever process the test runs in."""
    return lambda rows: record_property(_ROWS, rows)


def pytest_terminal_summary(terminalreporter) -> None:
    reports = [report for some in terminalreporter.stats.values() for report in some if getattr(report, "when", "") == "call"]
    rows = [row for report in reports for name, value in report.user_properties if name == _ROWS for row in value]
    if not rows:
        return
    terminalreporter.section("interrupted operations: states, and how many of them were bad")
    for line in table(rows):
        terminalreporter.write_line(line)
    target = terminalreporter.config.rootpath / "build" / ("crash-full.json" if FULL else "crash.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(rows, indent=1) + "\n")
    terminalreporter.write_line(f"each row by itself: {target.relative_to(terminalreporter.config.rootpath)}")


def table(rows: list[dict]) -> list[str]:
    """A matrix of operations and modes; a cell says how many states there were and, if any, how many were bad."""
    cells: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        column = _column(row["mode"])
        for place in ((row["operation"], column), ("all", column), (row["operation"], "all"), ("all", "all")):
            cell = cells.setdefault(place, [0, 0])
            cell[0] += row["states"]
            cell[1] += row["bad"]
    heads = ["operation", *(head for head in _COLUMNS if ("all", head) in cells)]
    names = [*dict.fromkeys(row["operation"] for row in rows), "all"]
    lines = [heads] + [[name, *(_cell(cells.get((name, head))) for head in heads[1:])] for name in names]
    widths = [max(len(line[position]) for line in lines) for position in range(len(heads))]
    return ["  ".join(text.ljust(width) if text == line[0] else text.rjust(width) for text, width in zip(line, widths)) for line in lines]


def _column(mode: str) -> str:
    if mode.startswith("then "):
        return "other task"
    return mode.split(" in ")[-1].split()[0] + " errors" if " in " in mode else mode


def _cell(counts: list[int] | None) -> str:
    if counts is None:
        return "-"
    return f"{counts[0]}, {counts[1]} BAD" if counts[1] else str(counts[0])
