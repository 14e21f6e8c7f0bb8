# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host loses its power while a task works with a machine (see power.py): a sample of states, more of them with ``LIVE_SWEEP=full``."""

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
from crash import interposer

from .power import OPERATIONS

STATES = 120 if os.environ.get("LIVE_SWEEP") == "full" else 3
SEED = os.environ.get("LIVE_SEED", "0")


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """In memory if possible: the disk is a model."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="power-", dir=memory if os.access(memory, os.W_OK) else tmp_path))
    yield made.resolve()
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="missing: cc")
@pytest.mark.parametrize("name", OPERATIONS)
def test_power_is_lost(name: str, base: Path, checkout: Path) -> None:
    (base / "library").mkdir()
    library = interposer.build(base / "library")
    command = [sys.executable, "-m", "live.power", name, "--base", str(base), "--states", str(STATES), "--seed", SEED]
    paths = [os.environ["PYTHONPATH"], str(checkout / "tests")]
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(paths)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert len(found) == STATES
    bad = [one for one in found if one["bad"]]
    assert not bad, "\n".join(map(str, bad)) + ended.stderr[-2000:]
