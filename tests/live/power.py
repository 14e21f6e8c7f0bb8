# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host loses its power while a task works with a machine; ``python -m live.power OPERATION`` with the library in ``LD_PRELOAD``.

QEMU runs under the library of tests/crash, and so does the task: what both write to the share is recorded in order. The disk then
holds one of the states that :mod:`crash.powerloss` allows. The machine is gone, and the same task works on the files: every
point and what the guest had flushed must be there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Callable, NamedTuple

from crash import interposer, powerloss

from .guest import MIB, SIZE, Guest, Live

LOSSES = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5))  # how likely unsynced data and names are kept


class Operation(NamedTuple):
    """What a task does, and what the volume must show afterwards. ``ready`` makes the snapshots before it."""

    ready: Callable[[Live], None]
    task: Callable[[Live], object]
    then: Callable[[Live], None]


def _points(*names: str) -> Callable[[Live], None]:
    def ready(live: Live) -> None:
        for seed, name in enumerate(names):
            live.snapshot(name)
            assert live.guest is not None
            live.guest.scribble(seed, 5)

    return ready


def _noted(name: str) -> Callable[[Live], None]:
    def then(live: Live) -> None:
        live.points[name] = live.point_now()

    return then


def _grown(live: Live) -> None:
    live.data += bytes(MIB)


OPERATIONS = {
    "snapshot": Operation(_points("s1"), lambda live: live.take("s2"), _noted("s2")),
    "deletion of the oldest": Operation(_points("s1", "s2", "s3"), lambda live: live.delete("s1"), lambda live: live.forget("s1")),
    "deletion in the middle": Operation(_points("s1", "s2", "s3"), lambda live: live.delete("s2"), lambda live: live.forget("s2")),
    "deletion of the newest": Operation(_points("s1", "s2"), lambda live: live.delete("s2"), lambda live: live.forget("s2")),
    "deletion of all": Operation(_points("s1", "s2", "s3"), lambda live: live.delete("s1", "s2", "s3"), lambda live: live.forget("s1", "s2", "s3")),
    "growth": Operation(_points("s1"), lambda live: live.present(size=SIZE + MIB), _grown),
}


class Loss(NamedTuple):
    """A power loss after ``part`` (0 to 1) of what is recorded of the task, and how much of what was not synced is kept."""

    part: float
    data: float
    names: float
    seed: int


class Site:
    """One run of an operation on a share of its own, recorded."""

    def __init__(self, base: Path, image_format: str, operation: Operation) -> None:
        self.base, self.operation, self.share = base, operation, base / "share"
        self.share.mkdir(parents=True)
        self.live = Live(self.share, image_format)
        self.start = powerloss.scan(self.share)
        interposer.make_control(base, self.share, interposer.Fault(record=True))
        self._run_machine()

    def _run_machine(self) -> None:
        """A machine under the library. From its start on all is recorded."""
        told, before = self.live.info(), os.environ["LD_PRELOAD"]
        os.environ["LD_PRELOAD"] = str(self.base / "preload.so")
        try:
            self.live.guest = Guest(told["path"], told["format"], self.live.data)
        finally:
            os.environ["LD_PRELOAD"] = before

    def record(self) -> list[interposer.Event]:
        """Do the operation. Returns what it changed, and leaves in ``before`` how much was recorded by then."""
        self._as_child(lambda: self.operation.ready(self.live))
        before = len(interposer.read_log(self.base / "log"))
        self._as_child(lambda: self.operation.task(self.live))
        calls = interposer.read_log(self.base / "log")
        assert self.live.guest is not None
        self.live.guest.kill()
        self.before, self.machine = before, self.live.guest.socket
        self.live.guest = None
        return calls

    def _as_child(self, work: Callable[[], object]) -> None:
        """In a process of its own, whose calls are recorded. What it learns of the volume comes back through a file."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                interposer.attach(self.base)
                work()
                (self.base / "data").write_bytes(self.live.data)
                (self.base / "points").write_text(json.dumps(self.live.points))
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        _pid, status = os.waitpid(child, 0)
        assert status == 0, f"the task ended with {status}"
        self.live.data[:] = (self.base / "data").read_bytes()
        self.live.points = json.loads((self.base / "points").read_text())

    def lose(self, calls: list[interposer.Event], loss: Loss) -> str:
        """Turn the share into what the disk holds. Returns what was the last call before."""
        explained, shown = powerloss.Disk(self.start).feed(calls).kept(), powerloss.scan(self.share)
        assert (explained.files(), explained.names) == (shown.files(), shown.names), "the record does not explain the share"
        at = self.before + round(loss.part * (len(calls) - self.before))
        image = powerloss.Disk(self.start).feed(calls[:at]).lose(loss.data, loss.names, random.Random(loss.seed))
        powerloss.materialise(self.share, self.base / "keep", image)
        return str(calls[at - 1]) if at else "nothing"

    def judge(self) -> None:
        """The machine is gone with its monitor. The same task ends the matter on the files, in one or two goes."""
        self.live.info()
        self.live.common = {"attachment": self.machine}
        self.operation.task(self.live)
        self.operation.then(self.live)
        self.live.require_right()
        self.live.require_nothing_left()
        assert not self.operation.task(self.live).changed  # type: ignore[attr-defined]


def state(base: Path, image_format: str, operation: Operation, loss: Loss) -> dict:
    """One state, made anew and judged."""
    site = Site(base, image_format, operation)
    last = "nothing"
    try:
        last = site.lose(site.record(), loss)
        site.judge()
        return {"loss": loss._asdict(), "after": last, "bad": ""}
    except Exception as error:
        return {"loss": loss._asdict(), "after": last, "bad": f"{type(error).__name__}: {error}"}
    finally:
        if site.live.guest is not None:
            site.live.guest.kill()
        shutil.rmtree(base)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--states", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice, found = random.Random(f"{given.operation} {given.seed}"), []
    for number in range(given.states):
        data, names = LOSSES[number % len(LOSSES)]
        part = dice.choice([dice.random(), 0.7 + 0.3 * dice.random()])  # most that can go wrong is near the end
        loss = Loss(part if number else 1.0, data, names, number)
        found.append(state(given.base / str(number), ("raw", "qcow2")[number % 2], OPERATIONS[given.operation], loss))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
