# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cheap question whether a task was interrupted has the answer of the thorough one, whatever stands on the share."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply import interrupted, recovery
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import records
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes.look import Look

RECORD = Path(".remotefs", "volumes", "vol.json")


def change_record(share: Path, **changes: object) -> None:
    record = records.parse("vol", (share / RECORD).read_bytes())
    assert record is not None
    (share / RECORD).write_bytes(replace(record, **changes).to_bytes("vol"))


def with_garbage(share: Path, there: bool) -> None:
    old = share / "vol.old"
    old.write_bytes(b"merged")
    change_record(share, garbage=(records.Garbage("vol.old", old.stat().st_ino, 6),))
    if not there:
        old.unlink()


def remove_all(share: Path) -> None:
    for file in ("vol", "vol.s", "vol.info"):
        (share / file).unlink()


# What is done to a share that holds volume "vol" with snapshot "s", and whether that looks like an interrupted task's work.
STATES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "nothing": (lambda share: None, False),
    "no record": (lambda share: (share / RECORD).unlink(), False),
    "no record and a temporary file": (lambda share: ((share / RECORD).unlink(), (share / ".remotefs/tmp/vol~0").touch()), True),
    "a temporary file": (lambda share: (share / ".remotefs/tmp/vol~0").touch(), True),
    "a temporary file of another volume": (lambda share: (share / ".remotefs/tmp/vol2~0").touch(), False),
    "a record without a volume": (remove_all, True),
    "an intent": (lambda share: change_record(share, intent={"operation": "revert"}), True),
    "garbage": (lambda share: with_garbage(share, True), True),
    "garbage that is gone": (lambda share: with_garbage(share, False), False),
    "garbage that is a link": (lambda share: (with_garbage(share, False), os.symlink("vol", share / "vol.old")), True),
    "a record that is torn": (lambda share: os.truncate(share / RECORD, 9), True),
    ".info that is gone": (lambda share: (share / "vol.info").unlink(), True),
    ".info that is torn": (lambda share: os.truncate(share / "vol.info", 9), True),
    ".info that nobody can tell": (lambda share: (os.truncate(share / "vol.info", 9), (share / "vol.s").unlink()), False),
}


def asked(look: Callable, directory: ShareDirectory) -> object:
    try:
        found = look(Look(directory, "vol"))
    except Exception as error:  # the two must fail alike
        return type(error), str(error)
    return bool(found), found.describe(), found.leftovers


@pytest.mark.parametrize("state", STATES)
def test_both_answers_are_one(tmp_path: Path, state: str) -> None:
    share = Share(str(tmp_path), str(tmp_path), "directory")
    candidates = Candidates((share,))
    volumes.ensure_present(updating.VolumeRequest(candidates, DesiredVolume("vol", size=1 << 20)), Options())
    snapshots.take(snapshots.SnapshotRequest(candidates, "vol", DesiredSnapshot("s")), Options())
    spoil, left = STATES[state]
    spoil(tmp_path)
    with ShareDirectory(share) as directory:
        thorough, cheap = asked(recovery.find_interrupted, directory), asked(interrupted.find_interrupted, directory)
    assert cheap == thorough
    assert (cheap[0] is not False) is left
