# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that shows for a second what another one has replaced: a change waits until that is over, and looks then."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import batch_locks
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.waiting import Waiting

MIB = 1 << 20


class Client(Waiting):
    """Sees what another client did only when it has slept as long as its cache lasts."""

    def __init__(self, path: Path, news: Path, share: Share) -> None:
        self.path, self.news, self.share, self.slept = path, news, share, []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds == self.share.stale_seconds and self.news.exists():
            shutil.copytree(self.news, self.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("locks"))
            shutil.rmtree(self.news)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """Another client has taken the snapshot s1 of the volume v, which this one cannot see yet."""
    path, news = tmp_path / "share", tmp_path / "news"
    path.mkdir()
    other = Share(str(path), str(path), "directory")
    volumes.ensure_present(updating.VolumeRequest(Candidates((other,)), DesiredVolume("v", size=MIB)), Options())
    shutil.copytree(path, tmp_path / "old")
    snapshots.take(snapshots.SnapshotRequest(Candidates((other,)), "v", DesiredSnapshot("s1")), Options())
    path.rename(news)
    (tmp_path / "old").rename(path)
    yield Client(path, news, Share(str(path), str(path), "cifs", stale_seconds=1.25))


def points(client: Client) -> list[str]:
    (found,) = reading.list_volumes(Share(str(client.path), str(client.path), "directory"), ["v"])
    assert [image["file"] for image in found["chain"]] == sorted((image["file"] for image in found["chain"]), reverse=True)
    return [one["name"] for one in found["snapshots"]]


def test_a_change_waits_for_what_another_client_did(client: Client) -> None:
    options = Options(assume_unused=True, task=Task(waiting=client))
    snapshots.take(snapshots.SnapshotRequest(Candidates((client.share,)), "v", DesiredSnapshot("s2")), options)
    assert client.slept == [1.25] and points(client) == ["s1", "s2"]


def test_a_bulk_change_waits_too(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_locks.time, "sleep", client.sleep)
    where = Candidates((client.share,))
    with batch_locks.BatchLocks(client.share) as held:
        held.take(["v"])
        options = Options(assume_unused=True, task=Task(batch_locks=held))
        snapshots.take(snapshots.SnapshotRequest(where, "v", DesiredSnapshot("s2")), options)
    assert client.slept[:1] == [1.25] and points(client) == ["s1", "s2"]
