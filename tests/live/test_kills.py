# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks on a running machine, killed at every instant: the task, its process group, QEMU, both, or the guardian too.

At each instant the file that ``.info`` calls active shows every write that the guest has flushed. Afterwards the next task, on the same
machine, without one, or on a machine that was started again on what info says, finishes or undoes what was begun, and every point and
the present are right.

A sample runs in each run of the stage; with LIVE_SWEEP=full all of them do.
"""

from __future__ import annotations

import errno
import os
import random
import time
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import ToolFailed

from .disks import Disks
from .group_case import AFTERMATHS, GroupCase
from .guest import MIB, Live, digest_of
from .instants import VICTIMS, instants, killed_at
from .operation import Operation

SAMPLE = int(os.environ.get("LIVE_SAMPLE", "4"))  # cases of each operation
OPERATIONS = ("create", "grow", "oldest", "middle", "pulled", "newest", "several", "all")


class Case(Operation):
    """An operation on a volume whose machine runs."""

    def __init__(self, live: Live, operation: str) -> None:
        super().__init__(live, operation)
        guest = live.start()
        for number, name in enumerate("abc"):
            guest.scribble(number)
            if operation == "pulled" and name == "c":  # more than lies beneath it, so that less moves upwards
                guest.write(0, 2 * MIB, 77)
            live.snapshot(name)
        guest.scribble(9)

    def adopt_outcome(self) -> None:
        """After recovery: take over into the model what may have been done or not. It was done wholly or not at all."""
        names = {one["name"] for one in self.live.info()["snapshots"]}
        if self.operation == "create" and "new" in names:
            self.live.points["new"] = self.before if self.began_on.endswith("new") else self.live.points["after"]
        if self.gone and not names & set(self.gone):
            for name in self.gone:
                del self.live.points[name]
        assert names >= set(self.live.points), "a part of the snapshots is gone"

    def kill(self, number: int, victim: str) -> None:
        """Run it, and kill the victim at an instant."""
        guest = self.live.guest
        assert guest is not None
        self.before = digest_of(self.live.data)
        killed_at(self.run, number, victim, guest.process.pid)
        if victim in ("machine", "both"):
            guest.end()

    def end(self, aftermath: str) -> None:
        """What happens next: the invariant, and the next task."""
        live = self.live
        guest = live.guest
        assert guest is not None
        if aftermath != "reattach" and guest.alive:
            guest.kill()
        if not guest.alive:
            self.require_invariant()
            live.guest = None
        self.began_on = live.info()["path"] if aftermath == "restarted" else "new"
        if aftermath == "restarted":
            guest = live.start()
            guest.scribble(20)
        if self.operation == "grow" and live.info()["size"] > len(live.data):
            live.data += bytes(MIB)
        done = live.take("after")
        live.points["after"] = digest_of(live.data)
        assert done.changed
        self.adopt_outcome()
        if live.guest is not None:
            live.guest.scribble(21)
        live.require_right()
        live.require_nothing_left()
        if live.guest is not None:
            assert {name for name in live.guest.opened() if name.startswith("v")} == {image["file"] for image in live.info()["chain"]}
            live.guest.kill()
            live.require_right()


def cases() -> list[tuple[str, str, str]]:
    found = [(victim, aftermath) for victim in VICTIMS for aftermath in ("reattach", "offline", "restarted")]
    return [(victim, aftermath) for victim, aftermath in found if victim not in ("machine", "both") or aftermath != "reattach"]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_killed(make: Callable[..., Live], operation: str, image_format: str) -> None:
    counted = Case(make(image_format), operation)
    every = [(instant, victim, aftermath) for instant in instants(counted.run) for victim, aftermath in cases()]
    assert counted.live.guest is not None
    counted.live.guest.kill()
    if os.environ.get("LIVE_SWEEP") != "full":
        every = random.Random(os.environ.get("LIVE_SEED", time.strftime("%j"))).sample(every, min(SAMPLE, len(every)))
    for instant, victim, aftermath in every:
        case = Case(make(image_format), operation)
        try:
            case.kill(instant.number, victim)
            case.end(aftermath)
        except Exception as error:
            raise AssertionError(f"{operation} ({image_format}), {victim} killed {instant.what} ({instant.number}), {aftermath}") from error
        finally:
            case.live.give_back()


@pytest.mark.parametrize("formats", [("raw", "qcow2"), ("qcow2", "raw", "qcow2")])
def test_group_killed(make_disks: Callable[..., Disks], formats: tuple[str, ...]) -> None:
    """One snapshot of several disks and of a volume that nobody has open. The next task is on any of them, and ends it for all."""
    counted = GroupCase(make_disks(*formats))
    found = instants(counted.run)
    cases = [(instant, victim, aftermath) for instant in found for victim in ("module", "group", "machine", "both") for aftermath in AFTERMATHS]
    chance = random.Random(os.environ.get("LIVE_SEED", time.strftime("%j")))
    first = chance.randrange(len(counted.disks.names))
    every = [
        (*case, counted.disks.names[(first + position) % len(counted.disks.names)])  # whose turn it is changes from day to day
        for position, case in enumerate(case for case in cases if case[2] != "reattach" or case[1] in ("module", "group"))
    ]
    if os.environ.get("LIVE_SWEEP") != "full":
        every = chance.sample(every, min(2 * SAMPLE, len(every)))
    else:  # without a guardian a kill of the process group is one of the module, and one of the machine that of both but for the task's error
        every = [one for one in every if one[1] in ("module", "machine")]
    counted.disks.end()
    for instant, victim, aftermath, volume in every:
        case = GroupCase(make_disks(*formats))
        try:
            case.kill(instant.number, victim)
            case.end(aftermath, volume)
        except Exception as error:
            raise AssertionError(f"{formats}, {victim} killed {instant.what} ({instant.number}), {aftermath}, next task on {volume}") from error
        finally:
            case.disks.give_back()


ENDS = {"undone": ("after blockdev-add", "reattach"), "finished": ("before transaction", "reattach")}
ENDS.update({"given up": ("after rename of a.info", "restarted"), "given up, off": ("after rename of a.info", "restarted and off")})
ENDS.update({"on one old file": ("before transaction", "on one old file"), "without one": ("after rename of b.info", "without one")})


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_group_is_killed(make_disks: Callable[..., Disks], end: str) -> None:
    """The task that ends what another one left dies, too. The third one ends it, in the same way."""
    what, aftermath = ENDS[end]

    def prepared() -> GroupCase:
        case = GroupCase(make_disks())
        case.kill(number, "module")
        case.go_on(aftermath)
        return case

    trial = GroupCase(make_disks())
    number = [one.number for one in instants(trial.run) if one.what == what][0]
    trial.disks.end()
    trial = prepared()
    every = [(instant, volume) for instant in instants(lambda: trial.disks.task_on("a")) for volume in trial.disks.names]
    trial.disks.end()
    if os.environ.get("LIVE_SWEEP") != "full":
        every = random.Random(os.environ.get("LIVE_SEED", time.strftime("%j"))).sample(every, min(SAMPLE // 2, len(every)))
    for instant, volume in every:
        case = prepared()
        try:
            killed_at(lambda case=case: case.disks.task_on("a"), instant.number, "module", 0)
            case.end("nothing", volume)
        except Exception as error:
            raise AssertionError(f"{end}, killed {instant.what} ({instant.number}), next task on {volume}") from error
        finally:
            case.disks.give_back()


def test_the_group_is_killed_while_the_guardian_starts(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who kills a process group, as Ansible's async does, must not kill the guardian after the guest's writes wait."""
    trial = Case(make("raw"), "all")
    number = next(one.number for one in instants(trial.run) if one.what == "after job-complete")
    case = Case(make("raw"), "all")
    setsid = os.setsid

    def slow() -> None:
        time.sleep(0.5)
        setsid()

    monkeypatch.setattr(os, "setsid", slow)
    case.kill(number, "group")
    guest = case.live.guest
    assert guest is not None
    guest.wait_for_no_job()
    guest.scribble(5)
    case.end("reattach")


@pytest.mark.parametrize("fault", ["no process", "it ends"])
def test_a_guardian_that_cannot_start(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Without one the guest's writes are not made to wait."""
    case = Case(make("raw"), "all")

    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    if fault == "no process":
        monkeypatch.setattr(os, "fork", refused)
    else:
        monkeypatch.setattr(os, "setsid", lambda: os._exit(1))
    with pytest.raises(ToolFailed):
        case.run()
    monkeypatch.undo()
    guest = case.live.guest
    assert guest is not None
    assert "pending" not in [job["status"] for job in guest.qmp("query-jobs")]
    guest.scribble(5)
    case.end("reattach")
