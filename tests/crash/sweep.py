# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes one operation through all its interruptions; ``python -m crash.sweep`` with the library in ``LD_PRELOAD``.

Three families of states, each made anew from a copy of the prepared share:

- **kill**: SIGKILL before a call, to everybody (group), to Python alone, to qemu-img alone, or to Python while qemu-img
  works (orphan: the next task starts at once); and the same once more during the recovery from it;
- **power**: everything stops before a call, and the disk holds one of the states of :mod:`powerloss`;
- **error**: a call fails with ENOSPC, EIO, ESTALE or EROFS, once or from then on.

After each the same task (or, in some of them, another one) runs again: first in check mode, which must foretell it; then in earnest; and a third time, to no
change. Contents, names and files are compared with the model. What differs is a bad state.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Iterator, TypeVar

from engines import leave_to_qemu_img
from property.world import candidates

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from . import interposer, powerloss
from .interposer import PYTHON, TOOL, Ended, Event, Fault
from .judge import Judge, Model, Wanted, listed
from .operations import OPERATIONS, Operation, Task

_T = TypeVar("_T")
FAMILIES = ("kill", "power", "error")
_DETAILS = 5  # bad states of a row that are told in full
_BOUNDARIES = ("fsync", "rename", "link", "unlink")
# Code that fits an error of one of Python's own calls; qemu-img may say no more than that it failed.
_CODES = {"ENOSPC": "no_space", "EIO": "tool_failed", "ESTALE": "share_not_mounted", "EROFS": "share_not_writable"}


@dataclass(frozen=True)
class Extent:
    """How many points of each kind a sweep takes: all of them, or a sample."""

    full: bool
    group: int = 12
    python: int = 5
    tool: int = 7
    orphan: int = 4
    interrupted: int = 3  # kills whose recovery is killed
    recovery: int = 4  # kills of each recovery
    other: int = 5  # kills after which another task comes
    power: int = 8
    dice: int = 1  # random states at each point of a power loss
    errors: int = 14


FULL = Extent(True, interrupted=12, recovery=25, dice=4)
SAMPLE = Extent(False)


@dataclass
class Row:
    """One line of the table."""

    operation: str
    mode: str
    states: int = 0
    bad: int = 0
    details: list[str] = field(default_factory=list)

    def add(self, label: str, problem: str | None) -> None:
        self.states += 1
        if problem is not None:
            self.bad += 1
            if len(self.details) < _DETAILS:
                self.details.append(f"{label}: {problem}")


def spread(wanted: Iterable[int], most: int) -> list[int]:
    """At most ``most`` of the numbers, evenly, the first and the last among them."""
    numbers = sorted(set(wanted))
    if len(numbers) <= most:
        return numbers
    return sorted({numbers[round(position * (len(numbers) - 1) / (most - 1))] for position in range(most)})


def choose_points(calls: list[Event], extent: Extent, most: int) -> list[int]:
    """Numbers of calls (from 1) to act at: all, or first, last, both sides of each fsync, rename, link and unlink, and others.

    :param most: how many in a sample, where the boundaries alone are not more.
    """
    every = range(1, len(calls) + 1)
    if extent.full:
        return list(every)
    boundaries = {at + side for at in every if calls[at - 1].kind in _BOUNDARIES for side in (0, 1)} | {1, len(calls)}
    boundaries &= set(every)
    if len(boundaries) >= most:
        return sorted(boundaries) if most >= extent.group else spread(boundaries, most)
    others = [at for at in every if at not in boundaries]
    return sorted(boundaries | set(spread(others, most - len(boundaries)) if others and most - len(boundaries) > 1 else ()))


class Sweep:
    """All states of one operation.

    :param base: an empty directory for this sweep alone.
    """

    def __init__(self, name: str, operation: Operation, base: Path, extent: Extent) -> None:
        self.name, self.operation, self.base, self.extent = name, operation, base, extent
        self.root, self.runs = base / "share", base / "run"
        inside = "target" if operation.beside else "."  # of what is prepared and watched
        self.share, self.backup = self.root / inside, self.root / "backup"
        for directory in (base / "prepared", base / "scratch", self.runs):
            directory.mkdir()
        self.judge = Judge(base / "scratch")
        if operation.by_tool:
            leave_to_qemu_img()
        qemu_img._program()  # asks for the version once, so that no run under the library does
        (base / "prepared" / inside).mkdir(exist_ok=True)
        self.beside: Model = {}
        if operation.beside:
            (base / "prepared" / "backup").mkdir()
            self.beside = operation.beside(base / "prepared" / "backup", base / "scratch")
        self.before: Model = operation.prepare(base / "prepared" / inside, base / "scratch")
        self.after: Model = operation.follow({**self.beside, **self.before})
        self.rows: list[Row] = []
        self._state = 0

    # -- one state ---------------------------------------------------------------------------------------------------

    def _fresh(self) -> None:
        interposer.wait_for_stragglers()
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.rmtree(self.runs)
        self.runs.mkdir()
        subprocess.run(["cp", "-a", "--sparse=always", str(self.base / "prepared"), str(self.root)], check=True)

    def _task(self, check: bool = False) -> list[Outcome]:
        return self.operation.run(candidates(self.share), Options(check=check, lock_timeout=2))

    def _run(self, fault: Fault) -> Ended:
        return interposer.run(self.runs, self.root, fault, lambda: [one.changed for one in self._task()])

    def calls(self) -> list[Event]:
        """What an undisturbed run does, from the state that the share is in."""
        ended = self._run(Fault(record=True))
        assert ended.how == "done", f"the undisturbed run failed: {ended.error}"
        return list(interposer.read_calls(self.runs / "log"))

    def _state_is_good(self, make: Callable[[], Ended], verify: Callable[[], None] | None) -> tuple[str, str | None]:
        """Make a state and judge it: (what happened there, what is wrong or None)."""
        self._state += 1
        happened = ""
        try:
            self._fresh()
            ended = make()
            happened = ended.fired
            if verify is None:
                self._verify(finished=ended.how == "done")
            else:
                verify()
        except Exception as error:  # whatever it is, it is a finding, and the next state does not depend on it
            return happened, f"{type(error).__name__}: {error}"
        return happened, None

    def _verify(self, finished: bool, predicted: bool = True) -> None:
        """The task again: foretold, done, and then nothing more to do.

        :param predicted: not where a program may still be dying: check mode waits for no lock, and may rightly meet it.
        :param finished: the interrupted run had reported success, so nothing of it may be undone.
        """
        self._readable()
        if self.operation.always is not None:
            self.operation.always(self.share)
        self._require_written(allows_old=not finished)
        if self.operation.together and self._state % 2:
            _phase("one volume of the group after the other", self._all_or_none)
        done = self._foretold_and_done(self._task) if predicted else _phase("the next run", self._task)
        if finished:
            undone = [step for one in done for step in one.actions]
            undone += [one for outcome in done for one in outcome.recovered if one["operation"] != "temporary_files"]
            assert not undone, f"what was reported as done was to be done again: {undone}"
        self._check(self.after)
        self._require_written(allows_old=False)
        again = _phase("the third run", self._task)
        assert not any(one.changed or one.actions or one.recovered for one in again), f"the third run said {[_told(one) for one in again]}"

    def _foretold_and_done(self, task: Callable[[bool], list[Outcome]]) -> list[Outcome]:
        """Do a task in check mode and in earnest; both must tell the same, and check mode touch nothing."""
        before = _marks(self.root)
        predicted = _phase("check mode", lambda: task(True))
        assert before == _marks(self.root), "check mode touched the share"
        done = _phase("the next run", lambda: task(False))
        for said, one in zip(predicted, done):
            assert _foretold(said, one) == _told(one), f"check mode said {_told(said)}, the run did {_told(one)}"
        return done

    def _readable(self) -> None:
        found = {volume["name"]: volume for volume in listed(self.share)}
        if self.operation.removes:
            return
        left = {volume["name"] for volume in listed(self.backup)} if self.operation.moves else set()
        for name in self.beside if self.operation.moves else ():
            pending = (found[name]["pending"] if name in found else None) or {"counts": "source" if name in left else "target"}
            self.judge.require_shown(self.backup if pending["counts"] == "source" else self.share, name, self.beside[name])
        for name in self.before:
            assert name in found, f"before recovery volume {name} is not there"
            assert "error_code" not in found[name], f"before recovery volume {name} cannot be read: {found[name]}"

    def _require_written(self, allows_old: bool) -> None:
        if self.operation.written is not None:
            self.operation.written.check(self.share, self.base / "scratch", self.before, allows_old)

    def _all_or_none(self) -> None:
        """Each volume of a group is recovered by a task of its own, and they agree."""
        for name in self.operation.together:
            desired = DesiredVolume(name, size=len(self.before[name].active))
            volumes.ensure_present(updating.VolumeRequest(candidates(self.share), desired), Options(lock_timeout=2))
        having = {volume["name"] for volume in listed(self.share) if any(one["name"] == "g" for one in volume["snapshots"])}
        self._check(self.after if having else self.before)

    def _check(self, model: Model, parts: bool = False) -> None:
        """The share holds this, and the one that the task reads from what it held."""
        kept = ("images/", "leases/", "tmp/@") if parts else ("leases/",) if self.operation.leases else ()
        self.judge.check(self.share, model, kept)
        if self.operation.beside:
            self.judge.check(self.backup, {} if self.operation.moves and model is self.after else self.beside)

    # -- kills -------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        self._fresh()
        calls = self.calls()
        for mode, counted, victims, most in (
            ("group", PYTHON | TOOL, PYTHON | TOOL, self.extent.group),
            ("python", PYTHON, PYTHON, self.extent.python),
            ("qemu-img", TOOL, TOOL, self.extent.tool),
            ("orphan", TOOL, PYTHON, self.extent.orphan),
        ):
            mine = _counted(calls, counted)
            if counted == TOOL:
                assert bool(mine) == self.operation.tool, f"{self.name} says tool={self.operation.tool}, qemu-img made {len(mine)} calls"
                if not mine:
                    continue
            if mode == "python" and self.extent.full and not self.operation.tool:
                continue  # Python is all there is: the group
            row = self._row(mode)
            for at in choose_points(mine, self.extent, most):
                if mode == "group" and at > 1 and mine[at - 2].kind == "fsync":
                    continue  # what is seen after an fsync is what was seen before it
                fault = Fault(at, counted, victims, leave=mode == "orphan")
                verify = (lambda: self._verify(False, predicted=False)) if fault.leave else None
                row.add(*self._labelled(f"kill {mode} before call {at} of {len(mine)}", lambda fault=fault: self._killed(fault), verify))
        self._kill_recoveries(calls)
        self._continue_otherwise(_counted(calls, PYTHON | TOOL))

    def _killed(self, fault: Fault) -> Ended:
        ended = self._run(fault)
        if ended.how == "failed":
            code = (ended.error or {}).get("error_code")
            assert fault.victims == TOOL and code == "tool_failed", f"the task ended with {ended.error}"
        return ended

    def _kill_recoveries(self, calls: list[Event]) -> None:
        row = self._row("during recovery")
        for first in spread(range(2, len(calls) + 1), self.extent.interrupted):
            self._fresh()
            self._run(Fault(first))
            if self._run(Fault(record=True)).how != "done":
                row.add(*self._labelled(f"kill before call {first} of {len(calls)}", lambda first=first: self._killed(Fault(first))))
                continue
            recovery = _counted(list(interposer.read_calls(self.runs / "log")), PYTHON | TOOL)
            for second in spread(range(1, len(recovery) + 1), self.extent.recovery):
                label = f"kill before call {first} of {len(calls)}, then before call {second} of {len(recovery)} of the next run"
                row.add(*self._labelled(label, lambda first=first, second=second: self._killed_twice(first, second)))

    def _continue_otherwise(self, calls: list[Event]) -> None:
        """Another task comes next: it ends what was interrupted, as check mode foretold it, before it does its own work."""
        if self.operation.moves:
            return  # tests/functional has what other tasks meet
        names = sorted({*self.before, *self.after}, key=lambda name: (name in self.before, name == "vol"))  # clones first
        if self.before.keys() == self.after.keys():
            self._next_tasks("then snapshots", calls, [_take_later(name) for name in names], *map(_with_later, self._possible()))
        if self.operation.removes and not any(wanted.remains for wanted in self.before.values()):  # with a gap it can only be removed
            sizes = {name: len(wanted.active) for name, wanted in self.before.items()}
            emptied = {name: Wanted(bytes(size)) for name, size in sizes.items() if name not in self.after}
            made = [_made_again(name, size) for name, size in sizes.items()]
            gone = [name for name in emptied if self.operation.apart] or [""]
            mixed = [dict(zip(gone, choice)) for choice in itertools.product((False, True), repeat=len(gone))]
            allowed = [{**self.before, **{name: data for name, data in emptied.items() if which.get(name, which.get(""))}} for which in mixed]
            self._next_tasks("then made anew", calls, made, *allowed)
        self._next_tasks("then removed", calls, [_removed(name) for name in names], {})

    def _possible(self) -> list[Model]:
        """What the share can hold after the interrupted task was ended by another one."""
        if self.operation.apart:
            choices = itertools.product(*([self.before[name], self.after[name]] for name in self.before))
            return [dict(zip(self.before, choice)) for choice in choices]
        halfway = [self.operation.halfway(self.before)] if self.operation.halfway else []
        return [self.before, *halfway, self.after]

    def _next_tasks(self, mode: str, calls: list[Event], tasks: list[Task], *allowed: Model) -> None:
        row = self._row(mode)
        points = choose_points(calls, self.extent, self.extent.other) if not self.extent.full else spread(range(1, len(calls) + 1), 40)
        for at in points:
            label = f"kill before call {at} of {len(calls)}, {mode}"
            row.add(*self._labelled(label, lambda at=at: self._run(Fault(at)), lambda: self._verify_next(tasks, allowed)))

    def _verify_next(self, tasks: list[Task], allowed: tuple[Model, ...]) -> None:
        for task in tasks:
            self._foretold_and_done(lambda check, task=task: task(candidates(self.share), Options(check=check, lock_timeout=2)))
        problems = []
        for model in allowed:
            try:
                self._check(model, self.operation.parts)
                break
            except AssertionError as error:
                problems.append(str(error))
        else:
            raise AssertionError(" and ".join(problems))
        again = [one for task in tasks for one in task(candidates(self.share), Options(lock_timeout=2))]
        assert not any(one.changed for one in again), f"once more it said {[_told(one) for one in again]}"

    def _killed_twice(self, first: int, second: int) -> Ended:
        self._run(Fault(first))
        return self._killed(Fault(second))

    # -- power losses ------------------------------------------------------------------------------------------------

    def power(self) -> None:
        self._fresh()
        start = powerloss.scan(self.root)
        calls = _counted(self.calls(), PYTHON | TOOL)
        row = self._row("power loss")
        points = choose_points(calls, self.extent, self.extent.power)
        dice = [(random.Random(f"{self.name} {number}").choice((0.2, 0.5, 0.8)), number) for number in range(self.extent.dice)]
        met: set[tuple] = set()
        for at in [*points, len(calls) + 1]:
            disk = powerloss.Disk(start).feed(call for call in calls[: at - 1] if call.result >= 0)
            for data, names, seed in [(0, 0, 0), (0, 1, 0), (1, 0, 0), *((chance, chance, number) for chance, number in dice)]:
                image = (at > len(calls), disk.lose(data, names, random.Random(f"{at} {seed}")).key())
                if image in met:
                    continue  # the disk can hold the same at other times and with other luck: it is judged once
                met.add(image)
                label = f"power loss before call {at} of {len(calls)}, keeping {data:.0%} of data and {names:.0%} of names, dice {seed}"
                row.add(*self._labelled(label, lambda at=at, data=data, names=names, seed=seed: self._power_lost(at, data, names, seed)))

    def _power_lost(self, at: int, data: float, names: float, seed: int) -> Ended:
        start = powerloss.scan(self.root)
        ended = self._run(Fault(at, record=True))
        assert ended.how != "failed", f"the task ended with {ended.error}"
        disk = powerloss.Disk(start).feed(interposer.read_log(self.runs / "log"))
        shown = powerloss.scan(self.root)
        kept = disk.kept()
        if (kept.files(), kept.directories, kept.names) != (shown.files(), shown.directories, shown.names):
            raise AssertionError(f"the record does not explain the share: {_first_difference(kept, shown)}")
        image = disk.lose(data, names, random.Random(f"{at} {seed}"))
        powerloss.materialise(self.root, self.runs / "keep", image)
        return ended

    # -- errors ------------------------------------------------------------------------------------------------------

    def error(self) -> None:
        self._fresh()
        calls = self.calls()
        for who, role in (("Python", PYTHON), ("qemu-img", TOOL)):
            if role == TOOL and not self.operation.tool:
                continue
            self._errors(calls, who, role, interposer.WRITING, tuple(interposer.ERRORS))
            self._errors(calls, f"{who} reading", role, interposer.READING, ("EIO", "ESTALE"))
        self._errors_of_recoveries(_counted(calls, PYTHON | TOOL))

    def _errors_of_recoveries(self, calls: list[Event]) -> None:
        """A recovery that cannot read something must not conclude anything from that."""
        row = self._row("EIO in Python reading, during recovery")
        for first in spread(range(2, len(calls) + 1), self.extent.interrupted):
            self._fresh()
            self._run(Fault(first))
            self._run(Fault(record=True))
            reads = _counted(list(interposer.read_calls(self.runs / "log")), PYTHON, interposer.READING)
            for second in spread(range(1, len(reads) + 1), self.extent.recovery):
                fault = Fault(second, PYTHON, 0, interposer.ERRORS["EIO"], False, interposer.READING)
                label = f"kill before call {first} of {len(calls)}, then EIO at read {second} of {len(reads)} of the next run"
                row.add(*self._labelled(label, lambda first=first, fault=fault: self._killed_then_failed(first, fault)))

    def _killed_then_failed(self, first: int, fault: Fault) -> Ended:
        self._run(Fault(first))
        return self._failed("EIO", fault)

    def _errors(self, calls: list[Event], who: str, role: int, kinds: int, names: tuple[str, ...]) -> None:
        rows = {name: self._row(f"{name} in {who}") for name in names}
        for name, lasting, at, total in self._error_points(calls, role, kinds, names):
            label = f"{name} at call {at} of {total} of {who}{', lasting' if lasting else ''}"
            fault = Fault(at, role, 0, interposer.ERRORS[name], lasting, kinds)
            row = rows[name]
            row.add(*self._labelled(label, lambda name=name, fault=fault: self._failed(name, fault)))

    def _error_points(self, calls: list[Event], role: int, kinds: int, names: tuple[str, ...]) -> Iterator[tuple[str, bool, int, int]]:
        """A sample takes its turns through errors and durations; in full each call meets each of them."""
        for place, name in enumerate(names):
            mine = [call for call in _counted(calls, role, kinds) if interposer.can_fail(name, call.kind)]
            every = range(1, len(mine) + 1)
            points = list(every) if self.extent.full else spread(every[place % 2 :] or every, max(2, self.extent.errors // 4))
            for at in points:
                for lasting in (False, True):
                    if self.extent.full or lasting == bool((at + place) % 2):
                        yield name, lasting, at, len(mine)

    def _failed(self, name: str, fault: Fault) -> Ended:
        ended = self._run(fault)
        if ended.how == "failed":
            error = ended.error or {}
            fitting = {_CODES[name]} | ({"tool_failed"} if fault.counted == TOOL else set())
            if fault.kinds == interposer.READING:
                fitting.add("lock_timeout")  # a task that cannot ask for its lock takes it for lost, and stops
            if name == "EIO":
                fitting.add("share_not_mounted")  # where not even the share's own directory can be asked any more
            assert error["error_code"] in fitting, f"after {ended.fired} failed the task ended with {error}"
        else:
            # What qemu-img overlooks when it closes an image, the fsync of our own descriptor meets.
            overlooked = fault.counted == TOOL and not fault.lasting
            # On a full share the ballast stands in for a new file ("~" is in no other name), which is then written and synced anew.
            overlooked = overlooked or (name == "ENOSPC" and not fault.lasting and "~" in ended.fired)
            assert overlooked or "fsync" not in ended.fired, f"a failed fsync was taken for success: {ended}"
        return ended

    # -- telling -----------------------------------------------------------------------------------------------------

    def _row(self, mode: str) -> Row:
        self.rows.append(Row(self.name, mode))
        return self.rows[-1]

    def _labelled(self, label: str, make: Callable[[], Ended], verify: Callable[[], None] | None = None) -> tuple[str, str | None]:
        happened, problem = self._state_is_good(make, verify)
        return f"{label} ({happened})" if happened else label, problem


def _with_later(model: Model) -> Model:
    return {name: wanted.with_point("later") for name, wanted in model.items()}


def _take_later(name: str) -> Task:
    return lambda where, options: [snapshots.take(snapshots.SnapshotRequest(where, name, DesiredSnapshot("later")), options)]


def _made_again(name: str, size: int) -> Task:
    return lambda where, options: [volumes.ensure_present(updating.VolumeRequest(where, DesiredVolume(name, size=size)), options)]


def _removed(name: str) -> Task:
    return lambda where, options: [volumes.ensure_absent(where, name, True, options)]


def _counted(calls: list[Event], roles: int, kinds: int = interposer.CHANGES) -> list[Event]:
    return [call for call in calls if call.role & roles and kinds & (1 << interposer.KINDS.index(call.kind))]


def _phase(name: str, work: Callable[[], _T]) -> _T:
    """Do it; what it raises tells in which phase of the judgement that was."""
    try:
        return work()
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{name} ended with {type(error).__name__}: {error}") from error


def _told(outcome: Outcome) -> dict:
    return {"changed": outcome.changed, "actions": outcome.actions, "recovered": outcome.recovered}


def _foretold(said: Outcome, done: Outcome) -> dict:
    """What check mode said, with what it leaves out: how much data an image holds that it does not fetch."""
    told, known = _told(said), _told(done)["actions"]
    for one, other in zip(told["actions"], known):
        if one["step"] == "copy" and "bytes" not in one and "bytes" in other:
            one["bytes"] = other["bytes"]
    return told


def _marks(share: Path) -> list[tuple]:
    return sorted((str(path), path.stat().st_ino, path.stat().st_mtime_ns) for path in share.rglob("*"))


def _first_difference(one: powerloss.Image, other: powerloss.Image) -> str:
    if one.names != other.names or one.directories != other.directories:
        return f"names {sorted(one.names.items())} and {sorted(other.names.items())}"
    name = next(name for name, data in one.files().items() if data != other.files()[name])
    left, right = one.files()[name], other.files()[name]
    first = next((at for at, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
    return f"{name} differs at byte {first}, sizes {len(left)} and {len(right)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("families", nargs="+", choices=FAMILIES)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    assert interposer.is_loaded(), "start it with the library in LD_PRELOAD"
    interposer.become_reaper()
    sweep = Sweep(options.operation, OPERATIONS[options.operation], options.base, FULL if options.full else SAMPLE)
    for family in options.families:
        getattr(sweep, family)()
    json.dump([asdict(row) for row in sweep.rows], sys.stdout)


if __name__ == "__main__":
    main()
