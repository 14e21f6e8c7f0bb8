# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file that cannot be read can be a linked clone: nothing that it may rest on is merged or removed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import foreign

OPTIONS = Options(lock_timeout=5)


@pytest.fixture
def where(tmp_path: Path) -> Candidates:
    """Volume ``vol`` with the snapshots s1 and s2, and its linked clone ``copy`` on s2."""
    found = Candidates((Share(str(tmp_path), str(tmp_path), "directory"),))
    volumes.ensure_present(updating.VolumeRequest(found, DesiredVolume("vol", size=1 << 20)), OPTIONS)
    for name in ("s1", "s2"):
        snapshots.take(snapshots.SnapshotRequest(found, "vol", DesiredSnapshot(name)), OPTIONS)
    volumes.ensure_present(updating.VolumeRequest(found, DesiredVolume("copy"), updating.SourceRequest("vol", "s2", linked=True)), OPTIONS)
    return found


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "task",
    [
        lambda where, options: snapshots.delete(where, "vol", ["s1"], options),
        lambda where, options: snapshots.revert(where, "vol", "s1", True, options),
        lambda where, options: volumes.ensure_absent(where, "vol", True, options),
    ],
)
def test_what_it_may_rest_on_stays(where: Candidates, task: Callable, check: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    share = where.shares[0]
    before = sorted(os.listdir(share.path))
    clone = os.stat(os.path.join(share.path, "copy")).st_ino
    original = foreign.names_in

    def sick(fd: int) -> tuple[str, ...]:
        if os.fstat(fd).st_ino == clone:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(fd)

    with monkeypatch.context() as patched:
        patched.setattr(foreign, "names_in", sick)
        with pytest.raises(StorageError) as refused:
            task(where, Options(check=check, lock_timeout=5))
        assert refused.value.error_code == "tool_failed"
        assert {one["name"] for one in reading.list_volumes(share, [])} == {"vol", "copy"}
    assert sorted(os.listdir(share.path)) == before
    assert not [one for one in reading.list_volumes(share, []) if "error_code" in one or one["pending"]]
