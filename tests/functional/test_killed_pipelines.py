# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipelines that are killed at any instant, with all their processes: what is left has an owner, and goes when its lease has ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.operations import leases, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import runner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume

from .test_leases import HOUR, collect, hold, let_pass, release, under
from .test_refusals import MIB, Store, store

__all__ = ["store"]  # a fixture

_NAMES = tuple(f"ci-{number:02}" for number in range(40))


def pipeline(place: str) -> None:
    """What a killed process did: the lease, 40 linked clones with their snapshot, and all of it away again."""
    store = Store(Path(place))
    lease = hold(store, volumes=_NAMES, uses=("golden",)).after
    with under(store, lease, lock_timeout=60) as options:

        def make(name: str, given: Any) -> Any:
            source = updating.SourceRequest("golden", "ready", linked=True)
            return volumes.ensure_present(updating.VolumeRequest(store.candidates, DesiredVolume(name, snapshot="pristine"), source), given)

        items = [runner.Item(name, frozenset([name]), partial(make, name), reads=frozenset(["golden"])) for name in _NAMES]
        runner.run_all(items, 2, options)
    release(store, cascade=True)


def killed_after(place: Path, seconds: float) -> bool:
    """Whether it was killed before its end."""
    tests = str(Path(__file__).parents[1])
    program = f"import sys; sys.path.insert(0, {tests!r}); from functional.test_killed_pipelines import pipeline; pipeline(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", program, str(place)], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
        assert process.returncode == 0
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def collected(store: Store) -> leases.Collected:
    """What a collection does once all copies of the killed process are really gone, which takes a moment."""
    for _try in range(100):
        done = collect(store, parallel=2)
        if not any(one["error_code"] == "lock_timeout" for one in done.skipped):
            break
        time.sleep(0.05)
    return done


@pytest.mark.slow
def test_killed_at_any_instant(store: Store) -> None:
    store.present("golden", size=MIB)
    store.snapshot("ready", "golden")
    store.present("ci-database", size=MIB)
    began = time.monotonic()
    assert not killed_after(store.path, 300)
    whole, chance, killed, left_some = time.monotonic() - began, random.Random(4), 0, 0
    for _number in range(12):
        killed += killed_after(store.path, chance.uniform(0.15, 1) * whole)
        ids = {one["id"]: one["volumes"] for one in leases.read_all(store.share)}
        made = {name: store.info(name) for name in _NAMES if (store.path / name).exists() or (store.path / f"{name}.info").exists()}
        left_some += bool(made)
        owners = {name: told["lease"] for name, told in made.items() if "error_code" not in told and not told["pending"]}
        assert all(name in ids.get(owner, ()) for name, owner in owners.items()), "somebody is nobody's"
        if ids:
            assert not collected(store).changed  # the lease has not ended
            let_pass(store, 2 * HOUR)
        done = collected(store)
        assert not done.skipped, done.skipped
        assert sorted(path.name for path in store.path.iterdir() if path.name != ".remotefs") == ["ci-database", "golden", "golden.info", "golden.ready"]
        assert not leases.read_all(store.share) and not list((store.path / ".remotefs" / "tmp").iterdir())
    assert killed >= 6 and left_some >= 3, (killed, left_some)
