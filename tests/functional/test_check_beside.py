# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode beside a task that is at work: it waits as the run would, and does not take what is half done for an interrupted task."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import LockTimeout
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.updating import SourceRequest
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock

from .test_refusals import MIB, Store

ACTIONS: dict[str, Callable[[Store], object]] = {
    "grow": lambda store: store.present(size=2 * MIB, check=True),
    "take": lambda store: store.snapshot("s3", check=True),
    "delete": lambda store: store.delete("s1", check=True),
    "revert": lambda store: store.revert("s1", True, check=True),
    "remove": lambda store: store.absent(cascade=True, check=True),
}


@pytest.fixture(params=["locks", "leases"])
def beside(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    (tmp_path / "share").mkdir()
    store = Store(tmp_path / "share")
    store.present(size=MIB)
    store.snapshot("s1")
    store.snapshot("s2")
    if request.param == "leases":
        store.share = store.share._replace(locks_visible=False)
        store.candidates = Candidates((store.share,))
    return store


def options(store: Store, **more: object) -> None:
    """Options of all tasks here: nobody has images open."""
    made = store.options
    store.options = lambda *arguments, **changes: made(*arguments, **{"assume_unused": True, **more, **changes})  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ACTIONS)
def test_it_fails_as_the_run_would(beside: Store, name: str) -> None:
    options(beside, lock_timeout=0.2)
    before = beside.state()
    with ShareDirectory(beside.share) as directory, VolumeLock(directory, "vol"):
        with pytest.raises(LockTimeout, match="it is held by process .* and was not freed within 0.2 s"):
            ACTIONS[name](beside)
    assert beside.state() == before
    assert ACTIONS[name](beside).changed  # type: ignore[attr-defined]


def test_it_waits(beside: Store) -> None:
    options(beside, lock_timeout=20)
    with ShareDirectory(beside.share) as directory:
        lock = VolumeLock(directory, "vol")
        lock.__enter__()
        timer = threading.Timer(0.4, lambda: lock.__exit__(None, None, None))
        began = time.monotonic()
        timer.start()
        assert ACTIONS["take"](beside).changed  # type: ignore[attr-defined]
        assert time.monotonic() - began >= 0.4
        timer.join()


def test_readers_keep_out_no_reader(beside: Store) -> None:
    """A clone only reads its source, which others may read, too."""
    if not beside.share.locks_visible:
        pytest.skip("leases are never shared")
    options(beside, lock_timeout=0.2)
    with ShareDirectory(beside.share) as directory, VolumeLock(directory, "vol", shared=True):
        assert beside.present("clone", source=SourceRequest("vol", "s1", False, None), check=True).changed
        with pytest.raises(LockTimeout):
            ACTIONS["take"](beside)
