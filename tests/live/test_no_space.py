# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A share that is full in the middle of a merge, with a machine that runs on it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import NoSpace

from .guest import MIB, Live, may_mount


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if not may_mount():
        pytest.skip("this process may not mount")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("names, image_format", [("a", "raw"), ("b", "raw"), ("ab", "raw"), ("b", "qcow2")])
def test_full_in_the_middle(small: Path, names: str, image_format: str) -> None:
    """The task says so, every other point is right, and the next task ends it when there is room."""
    live = Live(small, image_format, size=4 * MIB)
    guest = live.start()
    try:
        guest.write(0, 65536, 1)
        live.snapshot("a")
        guest.write(MIB, MIB, 2)
        live.snapshot("b")
        guest.write(2 * MIB, MIB, 3)
        with (small / "filler").open("wb") as filler:
            free = os.statvfs(small)
            filler.write(bytes(free.f_bavail * free.f_frsize - 96 * 1024))
        with pytest.raises(NoSpace, match="make room"):
            live.delete(*names)
        assert guest.alive and not guest.qmp("query-jobs")
        told = live.info()
        assert told["pending"]["snapshots"] == sorted(names)
        (small / "filler").unlink()
        live.snapshot("c")
        for name in names:
            del live.points[name]
        guest.scribble(4)
        live.require_right()
        live.require_nothing_left()
    finally:
        if guest.alive:
            guest.kill()
