# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A look reads each part of a volume once, and a workspace throws it away whenever it may be true no more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import ChainBroken
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import applying
from ansible_collections.remotefs.storage.plugins.module_utils.operations.locking import Locks
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import recover
from ansible_collections.remotefs.storage.plugins.module_utils.operations.workspace import Workspace
from ansible_collections.remotefs.storage.plugins.module_utils.plan import planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import info_file, records
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes.look import Look

MIB = 1 << 20


@pytest.fixture
def share(tmp_path: Path) -> Share:
    (tmp_path / "vol").write_bytes(bytes(MIB))
    return Share(str(tmp_path), str(tmp_path), "directory")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counted: Counter = Counter()
    for room, part in ((records, "record"), (info_file, "info")):
        real = room.read

        def counting(*given: object, part: str = part, real: Callable = real) -> object:
            counted[part] += 1
            return real(*given)

        monkeypatch.setattr(room, "read", counting)
    return counted


def test_each_part_is_read_once(share: Share, read: Counter) -> None:
    with ShareDirectory(share) as directory:
        look = Look(directory, "vol")
        assert not read
        for _again in range(3):
            assert look.record is None and look.info is None and look.leftovers == ()
    assert read == {"record": 1, "info": 1}


def test_an_error_is_raised_at_each_question(share: Share, read: Counter) -> None:
    (Path(share.path) / "vol.info").write_text("{")
    with ShareDirectory(share) as directory:
        look = Look(directory, "vol")
        for _again in range(3):
            with pytest.raises(ChainBroken, match="it is damaged"):
                assert look.info
    assert read["info"] == 1


@pytest.fixture
def work(share: Share) -> Iterator[Workspace]:
    with Workspace(Options(lock_timeout=1)) as opened:
        opened.locks.take([(share, "vol")])
        yield opened


def adopt(work: Workspace, share: Share) -> None:
    volume, _recovered = recover(work, share, "vol", "raw")
    applying.apply(work, share, planner.ensure_volume(volume, DesiredVolume("vol")))


def test_it_is_thrown_away_by_a_change(work: Workspace, share: Share) -> None:
    first = work.look(share, "vol")
    assert first.record is None and work.look(share, "vol") is first
    adopt(work, share)
    second = work.look(share, "vol")
    assert second is not first and second.record is not None
    volume = work.mode.observe(share, "vol")
    applying.apply(work, share, planner.create_snapshot(volume, DesiredSnapshot("s", created="2026-01-01T00:00:00Z")))
    assert work.mode.observe(share, "vol").active.file == "vol.s"


def test_it_is_thrown_away_by_a_change_that_fails(work: Workspace, share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_given: object) -> None:
        raise OSError(5, "Input/output error")

    adopt(work, share)
    volume, first = work.mode.observe(share, "vol"), work.look(share, "vol")
    monkeypatch.setattr(ShareDirectory, "publish", broken)
    with pytest.raises(Exception, match="Input/output error"):
        applying.apply(work, share, planner.create_snapshot(volume, DesiredSnapshot("s", created="2026-01-01T00:00:00Z")))
    assert work.look(share, "vol") is not first


def add_again(locks: Locks) -> None:
    """Ask for a lock that is held, of a volume that rests on another one by now."""
    share, name = next(iter(locks._wanted))
    locks.add(share, [name])


@pytest.mark.parametrize("change", [Locks.give_back, add_again])
def test_it_is_thrown_away_with_the_lock(work: Workspace, share: Share, change: Callable[[Locks], None]) -> None:
    first = work.look(share, "vol")
    if change is not Locks.give_back:
        work.locks._names = set()
        work.locks._ancestors_of = lambda _pairs: {(share, "other")}  # type: ignore[method-assign]
    change(work.locks)
    assert work.look(share, "vol") is not first
