# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every operation, interrupted in every way (see sweep.py): nothing may be lost, and the same task must end the matter.

``CRASH_SWEEP=full`` takes every call instead of a sample of them; it is what ``scripts/test nightly`` runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator

import pytest

from . import sweep
from .conftest import FULL
from .operations import OPERATIONS

pytestmark = pytest.mark.slow


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """Where states are made: in memory if possible, because a state lives for milliseconds. CRASH_SCRATCH names another place."""
    memory = Path(os.environ.get("CRASH_SCRATCH", "/dev/shm"))
    made = Path(tempfile.mkdtemp(prefix="crash-", dir=memory if os.access(memory, os.W_OK) else tmp_path))
    yield made.resolve()
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("family", sweep.FAMILIES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_interrupted(name: str, family: str, base: Path, library: Path, checkout: Path, tell_rows) -> None:
    rows = _sweep(name, family, base, library, checkout)
    tell_rows(rows)
    empty = [row["mode"] for row in rows if not row["states"]]
    assert rows and not empty, f"no states were made for {empty or family}"
    bad = [
        f"{row['mode']}: {row['bad']} of {row['states']} states are bad\n    " + "\n    ".join(row["details"]) for row in rows if row["bad"]
    ]
    assert not bad, f"{name}\n" + "\n".join(bad)


def _sweep(name: str, family: str, base: Path, library: Path, checkout: Path) -> list[dict]:
    """A process of its own, because the library acts from the start of a program; it forks for each state."""
    command = [sys.executable, "-m", "crash.sweep", name, family, "--base", str(base), *(["--full"] if FULL else [])]
    paths = [os.environ["PYTHONPATH"], str(checkout / "tests")]
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(paths)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)
