# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``speed`` and ``timeout`` while the machine runs: a merge that takes too long is cancelled, the guest goes on, nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.pace import OutOfTime

from .guest import MIB, Live

SHORT = {"speed": 64 << 10, "timeout": 0.6}  # what is merged here would take some seconds


def with_points(live: Live) -> None:
    """A machine that has written a MiB before each of three snapshots, and after them."""
    guest = live.start()
    for number, name in enumerate("abc"):
        guest.write(number * MIB, MIB, number + 1)
        live.snapshot(name)
    guest.write(3 * MIB, MIB, 9)


@pytest.mark.parametrize("image_format, name", [("raw", "a"), ("qcow2", "b"), ("raw", "c"), ("qcow2", "c")])
def test_a_commit_that_runs_out_of_time_is_pending(make: Callable[..., Live], image_format: str, name: str) -> None:
    """The oldest and the newest snapshot, and one between them."""
    live = make(image_format)
    with_points(live)
    assert live.guest is not None
    with live.guest.busy() if name != "c" else nullcontext():  # writes could make it cheaper to pull into the active image
        for _time in range(2):  # the second one goes on with what the first one has begun
            with pytest.raises(OutOfTime, match=f"did not move within 0.6 s, and the deletion of {name} is pending now"):
                live.delete(name, **SHORT)
    assert live.info()["pending"]["snapshots"] == [name] and not live.guest.qmp("query-jobs")
    with live.guest.busy():
        assert live.delete(name).recovered
    live.forget(name)
    live.require_right()
    live.require_nothing_left()


def test_a_pull_that_runs_out_of_time_leaves_nothing(make: Callable[..., Live]) -> None:
    live = make("qcow2")
    with_points(live)
    assert live.guest is not None
    live.guest.write(0, 2 * MIB, 7)  # now there is more in the active image than beneath it, so that a pull copies less
    before = live.info()["chain"]
    with live.guest.busy(), pytest.raises(OutOfTime, match="did not move within 0.6 s; run the task again"):
        live.delete("c", **SHORT)
    told = live.info()
    assert told["pending"] is None and [image["file"] for image in told["chain"]] == [image["file"] for image in before]
    assert not live.guest.qmp("query-jobs")
    live.require_right()
    with live.guest.busy():
        done = live.delete("c")
    assert not done.recovered and "pull" in [step["step"] for step in done.actions]
    live.forget("c")
    live.require_right()
    live.require_nothing_left()


@pytest.mark.parametrize("image_format, name", [("raw", "a"), ("qcow2", "a"), ("raw", "c")])
def test_a_merge_keeps_to_its_speed(make: Callable[..., Live], image_format: str, name: str) -> None:
    live = make(image_format)
    with_points(live)
    began = time.monotonic()
    assert live.delete(name, speed=MIB // 2).changed
    assert time.monotonic() - began > 0.8
    live.forget(name)
    live.require_right()


def test_what_was_begun_slowly_is_ended_fast(make: Callable[..., Live]) -> None:
    """A job that a killed task left runs at the speed of the task that ends it."""
    live = make("raw")
    with_points(live)
    assert live.guest is not None
    task = os.fork()
    if not task:
        live.delete("c", speed=1)
        os._exit(0)
    while not any(job["status"] == "running" for job in live.guest.qmp("query-jobs")):
        time.sleep(0.02)
    os.kill(task, signal.SIGKILL)
    os.waitpid(task, 0)
    began = time.monotonic()
    assert live.delete("c").recovered
    assert time.monotonic() - began < 30  # it would have taken minutes
    live.forget("c")
    live.require_right()
    live.require_nothing_left()
