# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user without rights has a machine, a share and tasks: all works as for root, under the Python of the system."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator

import pytest

NOBODY = 65534
PYTHON = "/usr/bin/python3"
COPIED = ("plugins", "tests/live", "tests/integration/live_on_share.py")


@pytest.fixture
def home(checkout: Path) -> Iterator[Path]:
    """A directory of that user, with a copy of what is tested: the checkout may be out of reach."""
    place = Path(tempfile.mkdtemp(prefix="nobody-", dir="/tmp"))
    copy = place / "ansible_collections" / "remotefs" / "storage"
    for name in COPIED:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (checkout / name).is_dir() else shutil.copy)(checkout / name, copy / name)
    for path in (place, *place.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    yield place
    shutil.rmtree(place)


@pytest.mark.root
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_all_of_it_without_root(home: Path, image_format: str) -> None:
    if not os.access(PYTHON, os.X_OK) or not shutil.which("setpriv"):
        pytest.skip(f"missing: {PYTHON} or setpriv")
    (home / "share").mkdir()
    os.chown(home / "share", NOBODY, NOBODY)
    script = home / "ansible_collections/remotefs/storage/tests/integration/live_on_share.py"
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(home), "LC_ALL": "C.UTF-8"}
    done = subprocess.run([*user, PYTHON, str(script), image_format, str(home / "share")], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "right" in done.stdout, done.stderr
