# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files with a second name (a hard link): a task that would change such a file is refused in check mode as in the run, and what the other
name leads to stays as it is. A table of all tasks and all files of a chain."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import UnsafeImage

from .test_refusals import Store

MIB = 1 << 20
FILES = ["vol", "vol.s1", "vol.s2", "vol.s3"]

TASKS: dict[str, Callable[..., object]] = {
    "take": lambda store, check: store.snapshot("new", check=check),
    "grow": lambda store, check: store.present(size=9 * MIB, check=check),
    "mode": lambda store, check: store.present(mode=0o640, check=check),
    "back to the newest": lambda store, check: store.revert("s3", check=check),
    "back to the oldest": lambda store, check: store.revert("s1", True, check=check),
    "delete s1": lambda store, check: store.delete("s1", check=check),
    "delete s2": lambda store, check: store.delete("s2", check=check),
    "delete s3": lambda store, check: store.delete("s3", check=check),
    "delete all": lambda store, check: store.delete("s1", "s2", "s3", check=check),
    "remove": lambda store, check: store.absent(cascade=True, check=check),
}


def write(store: Store, start: int, length: int) -> None:
    told = store.info()
    command = ["qemu-io", "-f", told["format"], "-c", f"write -P 7 {start} {length}", told["path"]]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", TASKS)
def test_no_task_writes_to_a_file_of_two_names(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / "share").mkdir()
    store = Store(tmp_path / "share")
    store.present(size=8 * MIB)
    for number, snapshot in enumerate(("s1", "s2", "s3")):
        write(store, number * MIB, MIB >> number)
        store.snapshot(snapshot)
    write(store, 4 * MIB, 4096)
    foreign = tmp_path / "foreign"
    os.link(store.path / file, foreign)
    content, before = hashlib.sha256(foreign.read_bytes()).digest(), store.state()
    refused = []
    for check in (True, False):
        try:
            TASKS[name](store, check)
        except UnsafeImage as error:
            assert f"file {file} on" in str(error) and "a hard link" in str(error)
            refused.append(str(error))
            assert store.state() == before
    assert len(refused) in (0, 2) and len(set(refused)) < 2, "check mode foretells something else"
    assert hashlib.sha256(foreign.read_bytes()).digest() == content


@pytest.mark.parametrize("name", ["take", "grow", "delete s3", "remove"])
def test_a_name_that_a_killed_task_left_does_not_count(tmp_path: Path, name: str) -> None:
    """It had given a new file its final name, and not taken the temporary one away. Check mode foretells what the run does: both go on."""
    (tmp_path / "share").mkdir()
    store = Store(tmp_path / "share")
    store.present(size=8 * MIB)
    for snapshot in ("s1", "s2", "s3"):
        store.snapshot(snapshot)
    left = store.path / ".remotefs" / "tmp" / "vol~0123456789ab"
    os.link(store.path / "vol.s3", left)
    assert TASKS[name](store, True).changed and left.exists()  # type: ignore[attr-defined]
    assert TASKS[name](store, False).changed and not left.exists()  # type: ignore[attr-defined]
