# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest whose writes wait is let go, however long QEMU answers nobody, and also when the connection to it has broken."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply import guardians
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live import client
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.client import Monitor
from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError

from .guest import CLUSTER, Guest, Live


def with_points(live: Live) -> Guest:
    guest = live.start()
    for number, name in enumerate("abc"):
        guest.write(number * CLUSTER, 2 * CLUSTER, number + 1)
        live.snapshot(name)
    guest.write(4 * CLUSTER, CLUSTER, 9)
    return guest


def require_free(live: Live, guest: Guest, names: str) -> None:
    """The guest writes, without another task's help; then the next task ends what was begun."""
    guest.go_on()
    guest.wait_for_no_job()
    guest.scribble(3)
    live.snapshot("later")
    left = {one["name"] for one in live.info()["snapshots"]}
    assert left in ({*"abc", "later"}, {*"abc", "later"} - set(names))
    live.points = {name: shown for name, shown in live.points.items() if name in left}
    live.require_right()
    live.require_nothing_left()


@pytest.mark.parametrize("command, before", [("job-complete", False), ("job-finalize", True), ("job-finalize", False)])
@pytest.mark.parametrize("names", ["c", "abc"])
def test_qemu_that_answers_nobody_for_long(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, command: str, before: bool, names: str) -> None:
    """Longer than the task and its guardian wait for one answer, because the storage stands."""
    live = make("raw")
    guest = with_points(live)
    task = os.fork()
    if not task:
        client.QUESTION, client.ANSWER, guardians._WAIT = 0.3, 0.6, 0.5
        run = Monitor.run

        def stalled(self: Monitor, told: str, **arguments: Any) -> Any:
            if told == command and before:
                os.kill(guest.process.pid, signal.SIGSTOP)
            done = run(self, told, **arguments)
            if told == command and not before:
                os.kill(guest.process.pid, signal.SIGSTOP)
            return done

        Monitor.run = stalled  # type: ignore[method-assign]
        try:
            live.delete(*names)
        except StorageError:
            pass
        finally:
            os._exit(0)
    os.waitpid(task, 0)  # the task has given up
    time.sleep(3)
    os.kill(guest.process.pid, signal.SIGCONT)
    require_free(live, guest, names)


@pytest.mark.parametrize("names", ["c", "abc"])
def test_a_job_that_somebody_cancels_at_its_end(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """``.info`` names the image below already, and the guest is still on the one above. So the task does it again."""
    live = make("qcow2")
    guest = with_points(live)
    run, seen = Monitor.run, []

    def cancelled(self: Monitor, told: str, **arguments: Any) -> Any:
        if told == "job-finalize" and "switch" in arguments["id"] and not seen:
            seen.append(told)
            guest.qmp("job-cancel", id=arguments["id"])
            guest.go_on()
            guest.scribble(8)
        return run(self, told, **arguments)

    monkeypatch.setattr(Monitor, "run", cancelled)
    assert live.delete(*names).changed and seen
    live.forget(*names)
    guest.go_on()
    guest.scribble(9)
    live.require_right()
    live.require_nothing_left()
    guest.kill()
    live.require_right()


@pytest.mark.parametrize("names", ["c", "abc"])
def test_a_connection_that_breaks(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    live = make("raw")
    guest = with_points(live)
    run = Monitor.run

    def broken(self: Monitor, told: str, **arguments: Any) -> Any:
        done = run(self, told, **arguments)
        if told == "job-complete":
            self._stream.shutdown(socket.SHUT_RDWR)
        return done

    monkeypatch.setattr(Monitor, "run", broken)
    with pytest.raises(StorageError, match="the monitor was lost"):
        live.delete(*names)
    monkeypatch.setattr(Monitor, "run", run)
    require_free(live, guest, names)
