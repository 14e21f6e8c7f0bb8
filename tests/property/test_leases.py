# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random lives of three pipelines that share two names of leases, beside a model. Tasks are killed at any change, the clock of the share goes on,
those of the hosts jump, and a user has volumes whose names look like workers.

No volume of a lease that lives is ever changed by others, and none of the user's by anybody. Who has lost a lease changes nothing. When all leases
have ended, one collection leaves nothing that was made under one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.executor import Executor
from ansible_collections.remotefs.storage.plugins.module_utils.operations import lease_holding, leases, reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.plan.leases import Asked
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import leases as files

from .examples import property_settings
from .world import candidates, read_content, write_pattern

SIZE, TTL = 1 << 20, 3600
OWNERS, LEASES = ("job-1", "job-2", "job-3"), ("ci", "ci-1")
WORKERS = ("ci-00", "ci-01", "ci-1-00")  # both leases may list each of them
USERS = ("ci-database", "ci-1-00", "ci-00")  # some are the names of workers
PASSES = (710, 2930, 4170)  # no sum of them is within half a minute of the end of a lease, or of a grace
GRACES = (0, 900, 7200)

OWNER, LEASE, WORKER = st.integers(0, 2), st.sampled_from(LEASES), st.sampled_from(WORKERS)
LISTED = st.sets(WORKER, max_size=3).map(lambda names: tuple(sorted(names)))
OPERATION = st.one_of(
    st.tuples(st.just("pipeline"), OWNER, LEASE, LISTED, st.booleans()),
    st.tuples(st.just("pipeline"), OWNER, LEASE, LISTED, st.booleans()),
    st.tuples(st.just("take"), OWNER, LEASE, st.one_of(st.none(), LISTED), st.booleans()),
    st.tuples(st.just("renew"), OWNER, LEASE),
    st.tuples(st.just("make"), OWNER, LEASE, WORKER),
    st.tuples(st.just("reset"), OWNER, LEASE, WORKER),
    st.tuples(st.just("release"), OWNER, LEASE, st.booleans()),
    st.tuples(st.just("collect"), st.sampled_from(GRACES)),
    st.tuples(st.just("pass"), st.sampled_from(PASSES)),
    st.tuples(st.just("pass"), st.sampled_from(PASSES)),
    st.tuples(st.just("jump"), st.sampled_from((0, 86400, -86400, 10**8))),
    st.tuples(st.just("user makes"), st.sampled_from(USERS)),
    st.tuples(st.just("user replaces"), WORKER),
)
# What others do while a task has looked at a lease, and waits for its lock.
MEANWHILE = st.one_of(
    st.tuples(st.just("pipeline"), OWNER, LEASE, LISTED, st.booleans()),
    st.tuples(st.just("renew"), OWNER, LEASE),
    st.tuples(st.just("release"), OWNER, LEASE, st.just(True)),
)
HOW = st.one_of(st.none(), st.none(), st.integers(0, 9), MEANWHILE)
LIFE = st.lists(st.tuples(OPERATION, HOW), min_size=8, max_size=30)


class Killed(BaseException):
    """The end of a task."""


@contextmanager
def killed_at(instant: int | None) -> Iterator[None]:
    """Whatever the task changes has a number, before and after it. The task ends at that number."""
    seen = 0

    def counted(act: Callable) -> Callable:
        def run(*args: Any, **more: Any) -> Any:
            step()
            found = act(*args, **more)
            step()
            return found

        return run

    def step() -> None:
        nonlocal seen
        seen += 1
        if instant is not None and seen > instant:
            raise Killed

    with mock.patch.object(Executor, "apply", counted(Executor.apply)), mock.patch.object(files, "write", counted(files.write)):
        with mock.patch.object(files, "remove", counted(files.remove)):
            yield


class Seen(NamedTuple):
    """What was there before an operation: the lease that each record tells of, what is in the files of all volumes; ``touched``: those that it may
    change; ``held``: the lease that it is about, and its volumes (``left``); whether the owner has it; how it may end."""

    marks: dict[str, str]
    contents: dict[str, dict[str, str]]
    touched: set[str]
    held: dict | None
    left: set[str]
    current: bool
    foreseen: tuple


class Life:
    """A share with its pipelines, and what is known of it without asking the code: whose each volume is, and how old each lease."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path, self.scratch = path, scratch
        self.where = candidates(path)
        self.share = self.where.shares[0]
        self.tokens: dict[tuple[str, str], dict] = {}  # what an owner was given last, and may still believe
        self.ages: dict[str, int] = {}  # seconds since a lease was written, by the clock of the share
        self.doomed: set[str] = set()  # ids of leases that a collector has begun to remove
        self.users: dict[str, dict[str, str]] = {}  # volumes of the user's, and what is in their files
        self.jumped = 0

    # -- what is there -----------------------------------------------------------------------------------------------

    def lease(self, name: str) -> dict | None:
        """What the file says."""
        path = self.path / ".remotefs" / "leases" / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def marks(self) -> dict[str, str]:
        """The lease that each record tells of."""
        found = {path.stem: json.loads(path.read_text()) for path in (self.path / ".remotefs" / "volumes").glob("*.json")}
        return {name: record["lease"] for name, record in found.items() if record.get("lease")}

    def contents(self, name: str) -> dict[str, str]:
        """What is in the files of a volume."""
        found = [self.path / name, *self.path.glob(f"{name}.*")]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found if path.exists()}

    def is_over(self, name: str, grace: int) -> bool:
        return self.ages[name] > TTL + grace

    # -- what happens ------------------------------------------------------------------------------------------------

    def live(self, operation: tuple, how: int | tuple | None) -> None:
        """One operation, and the judgement. :param how: the instant at which it is killed, or what happens meanwhile."""
        verb, *words = operation
        if verb == "pipeline":
            self.pipeline(words, how)
            return
        if verb in ("renew", "make", "reset"):
            if not self.tokens:
                return
            if (OWNERS[words[0]], words[1]) not in self.tokens:  # somebody who was given a lease once
                owner, name = list(self.tokens)[(words[0] + len(words[1])) % len(self.tokens)]
                words[:2] = OWNERS.index(owner), name
        self.given = dict(self.tokens)  # what the task has in its hand; others may be given another one meanwhile
        self.seen, real = self.look(verb, words), time.time
        ended = told = None
        try:
            with killed_at(how if isinstance(how, int) and not verb.startswith("user") else None), self.others(verb, words, how):
                with mock.patch.object(time, "time", lambda: real() + self.jumped):
                    told = getattr(self, verb.replace(" ", "_"))(*words)
        except Killed:
            ended = "killed"
        except errors.StorageError as error:
            ended = error.error_code
        for name, held in self.seen.contents.items():
            if name not in self.seen.touched:
                assert self.contents(name) == held, f"{verb} {words} changed {name}, of lease {self.seen.marks.get(name)}"
        for name, held in self.users.items():
            assert self.contents(name) == held, f"{verb} {words} changed the user's {name}"
        self.learn(verb, words, told, ended)

    def pipeline(self, words: list, how: int | tuple | None) -> None:
        """An owner takes a lease and makes its volumes. What kills it does so in one of its tasks."""
        owner, name, listed, collects = words
        steps: list[tuple] = [("collect", 900)] if collects else []
        steps += [("take", owner, name, listed, True), *(("make", owner, name, worker) for worker in listed)]
        last = how % len(steps) if isinstance(how, int) else len(steps) - 1
        for number, step in enumerate(steps[: last + 1]):
            self.live(step, how if number == last else None)

    @contextmanager
    def others(self, verb: str, words: list, how: int | tuple | None) -> Iterator[None]:
        """A context in which somebody else does all of something just before the first lock of a lease is the task's."""
        pending = [how] if isinstance(how, tuple) else []

        def then(act: Callable) -> Callable:
            def run(*args: Any, **more: Any) -> Any:
                while pending:
                    mine = self.given
                    self.live(pending.pop(), None)
                    self.given = mine
                    self.seen = self.look(verb, words)
                return act(*args, **more)

            return run

        with mock.patch.object(leases, "_locked", then(leases._locked)):
            with mock.patch.object(lease_holding.named_locks, "locked_name", then(lease_holding.named_locks.locked_name)):
                yield

    def look(self, verb: str, words: list) -> Seen:
        """What is there before an operation, and what it may do."""
        held = self.lease(words[1]) if len(words) > 1 else None
        left = {one for one, mark in self.marks().items() if held and mark == held["id"]}
        foreseen = self.foresee(words[0], held, words[2], words[3], left) if verb == "take" else ()
        current = len(words) > 1 and self.is_current(words[0], words[1])
        return Seen(self.marks(), {name: self.contents(name) for name in {*WORKERS, *USERS}}, self.touched(verb, words), held, left, current, foreseen)

    def touched(self, verb: str, words: list) -> set[str]:
        """Volumes that the operation may change."""
        if verb in ("pass", "jump"):
            return set()
        if verb.startswith("user"):
            return {words[0]}
        ids: set[str] = set()
        if verb == "collect":
            found = [(name, self.lease(name)) for name in LEASES]
            ids = {held["id"] for name, held in found if held and (held["id"] in self.doomed or self.is_over(name, words[0]))}
        elif self.is_current(words[0], words[1], by_name=verb in ("take", "release")):
            ids = {self.lease(words[1])["id"]}
        workers = {name for name, mark in self.marks().items() if mark in ids} - set(self.users)
        free = {words[2]} if verb == "make" and ids and not self.contents(words[2]) else set()
        return (workers & {words[2]} if verb in ("make", "reset") else workers) | free

    def is_current(self, owner: int, name: str, by_name: bool = False) -> bool:
        """Whether an owner has what it was given, or a lease of the name at all."""
        held, given = self.lease(name), self.given.get((OWNERS[owner], name))
        if held is None or held["owner"] != OWNERS[owner]:
            return False
        return by_name or (given is not None and given["id"] == held["id"] and held["id"] not in self.doomed)

    def learn(self, verb: str, words: list, told: Any, ended: str | None) -> None:
        """Judge how the operation ended, and note what it did."""
        seen = self.seen
        if verb == "collect":
            self.judge_collection(words[0], told)
        elif ended != "killed" and verb in ("renew", "make", "reset"):
            if not seen.current:
                assert ended in ("lease_lost", "lease_held"), f"a stale owner did {verb} {words}: {ended}"
            elif verb == "renew" or (verb == "make" and words[2] in seen.held["volumes"] and words[2] not in self.users):
                is_free = verb == "renew" or seen.marks.get(words[2], seen.held["id"]) == seen.held["id"]
                assert ended is None or not is_free, f"{verb} {words}: {ended}"
            elif verb == "reset" and ended is None:
                assert words[2] in seen.left - set(self.users)
        elif ended != "killed" and verb == "take":
            assert ended in seen.foreseen, f"{words}: {ended} instead of {seen.foreseen}"
        elif verb == "release" and ended is None and seen.held is not None:
            assert seen.held["owner"] == OWNERS[words[0]] and self.lease(words[1]) is None
            assert set(told.removed) == seen.left and (words[2] or not seen.left) and not seen.left & set(self.users)
        for name in LEASES:
            if self.lease(name) is None:
                self.ages.pop(name, None)

    def judge_collection(self, grace: int, done: Any) -> None:
        if done is None:  # killed
            self.doomed |= {held["id"] for held in map(self.lease, LEASES) if held and held["collector"]}
            return
        replaced = {name for name in self.users if name in self.marks()}
        for name in LEASES:
            held = self.lease(name)
            if held is None:
                continue
            if self.is_over(name, grace) or held["collector"]:
                self.doomed.add(held["id"])
                left = {one for one in replaced if self.marks()[one] == held["id"]}
                assert left and left <= {one["name"] for one in done.skipped}, (held, done)
                assert {one for one, mark in self.marks().items() if mark == held["id"]} == left

    # -- operations --------------------------------------------------------------------------------------------------

    @staticmethod
    def options() -> Options:
        return Options(lock_timeout=5)

    def hold(self, owner: int, name: str, cascade: bool, **asked: Any) -> Any:
        request = leases.LeaseRequest(self.share, Asked(name, OWNERS[owner], TTL, **asked), cascade)
        before = self.written(name)
        try:
            done = leases.hold(request, self.options())
        finally:
            if self.written(name) not in (None, before):
                self.ages[name] = 0
        self.tokens[OWNERS[owner], name] = leases.describe(done.after, self.share)
        return done

    def written(self, name: str) -> tuple[int, int] | None:
        path = self.path / ".remotefs" / "leases" / f"{name}.json"
        return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None

    def take(self, owner: int, name: str, listed: tuple | None, cascade: bool) -> Any:
        return self.hold(owner, name, cascade, volumes=listed)

    def foresee(self, owner: int, held: dict | None, listed: tuple | None, cascade: bool, left: set[str]) -> tuple:
        """How a lease that somebody takes must end."""
        if held is None:
            return (None,)
        if held["collector"]:
            return ("lease_lost" if held["owner"] == OWNERS[owner] else "lease_held",)
        if held["owner"] == OWNERS[owner]:
            dropped = left - set(held["volumes"] if listed is None else listed)
            return ("conflict",) if dropped and (not cascade or dropped & set(self.users)) else (None,)
        return (None,) if self.is_over(held["name"], 0) and not left else ("lease_held",)

    def renew(self, owner: int, name: str) -> Any:
        return self.hold(owner, name, False, id=self.tokens[OWNERS[owner], name]["id"])

    @contextmanager
    def under(self, owner: int, name: str) -> Iterator[Options]:
        given, how = self.tokens[OWNERS[owner], name], self.options()
        with lease_holding.holding([(given, self.where)], how):
            yield lease_holding.under(how, given, self.where)

    def make(self, owner: int, name: str, worker: str) -> Any:
        with self.under(owner, name) as options:
            desired = DesiredVolume(worker, size=SIZE, snapshot="pristine")
            done = volumes.ensure_present(updating.VolumeRequest(self.where, desired), options)
        assert worker in self.lease(name)["volumes"] and self.marks()[worker] == self.lease(name)["id"]
        return done

    def reset(self, owner: int, name: str, worker: str) -> Any:
        if self.seen.current and worker in self.seen.left - set(self.users):
            self.dirty(worker)
        with self.under(owner, name) as options:
            snapshots.revert(self.where, worker, "pristine", True, options)
        (found,) = reading.list_volumes(self.share, [worker])
        assert read_content(found["path"], found["format"], self.scratch) == bytes(SIZE)

    def dirty(self, worker: str) -> None:
        """The job works, if the worker is whole."""
        found = reading.list_volumes(self.share, [worker])
        if found and "error_code" not in found[0] and not found[0]["pending"] and os.path.exists(found[0]["path"]):
            write_pattern(found[0]["path"], found[0]["format"], 0, 65536, 7)

    def release(self, owner: int, name: str, cascade: bool) -> Any:
        return leases.release(leases.LeaseRequest(self.share, Asked(name, OWNERS[owner], None), cascade), self.options())

    def collect(self, grace: int) -> Any:
        return leases.collect(leases.CollectRequest(self.share, grace), self.options())

    def jump(self, seconds: int) -> None:
        self.jumped = seconds

    def user_makes(self, name: str) -> None:
        if not self.contents(name) and name not in self.marks():
            volumes.ensure_present(updating.VolumeRequest(self.where, DesiredVolume(name, size=SIZE, labels={"of": "user"})), self.options())
            self.users[name] = self.contents(name)

    def user_replaces(self, name: str) -> None:
        """Somebody removes a worker by hand, and has a disk of their own there."""
        if name in self.marks() and self.contents(name) and name not in self.users:
            for file in self.contents(name):
                (self.path / file).unlink()
            (self.path / name).write_bytes(b"precious" * (SIZE // 8))
            self.users[name] = self.contents(name)

    def finish(self) -> None:
        """All leases end; one collection, and nothing is left. Files that took the place of a worker are told, and stay."""
        self.live(("jump", 0), None)
        getattr(self, "pass")(10**6)
        self.live(("collect", 7200), None)
        replaced = set(self.marks())
        assert replaced <= set(self.users), replaced
        for name in replaced:  # the user takes it elsewhere
            for file in self.users.pop(name):
                (self.path / file).unlink()
        self.live(("collect", 10**9), None)
        assert not self.marks() and not any(map(self.lease, LEASES))
        assert {path.name.split(".")[0] for path in self.path.iterdir() if path.is_file()} == set(self.users)
        assert not list((self.path / ".remotefs").glob("tmp/*")), "temporary files"
        assert not list((self.path / ".remotefs").glob("locks/@*")), "locks of leases"


def let_pass(life: Life, seconds: int) -> None:
    """The clock of the share goes on: leases were written so much earlier."""
    for name in LEASES:
        path = life.path / ".remotefs" / "leases" / f"{name}.json"
        if path.exists():
            os.utime(path, ns=(0, path.stat().st_mtime_ns - seconds * 10**9))
            life.ages[name] += seconds


setattr(Life, "pass", let_pass)


def live(operations: list) -> None:
    with tempfile.TemporaryDirectory(prefix="remotefs-property-") as directory:
        places = [Path(directory, name) for name in ("share", "scratch")]
        for place in places:
            place.mkdir()
        life = Life(*places)
        for operation, instant in operations:
            life.live(operation, instant)
        life.finish()


@given(LIFE)
@property_settings(40)
def test_random_leases(operations: list) -> None:
    live(operations)


@pytest.mark.slow
@given(LIFE)
@property_settings(200)
def test_many_random_leases(operations: list) -> None:
    live(operations)


BOTH = ("ci-00", "ci-01")


@pytest.mark.parametrize("instant", range(8))
def test_each_step_killed(instant: int) -> None:
    """A pipeline, its release and a collection, each killed at each of their steps; the next owner comes, and the first one is late."""
    pipeline = ("pipeline", 0, "ci", BOTH, False)
    for last in (("release", 0, "ci", True), ("collect", 0), ("pipeline", 0, "ci", ("ci-00",), True)):
        passes: list = [] if last[0] == "release" else [(("pass", 4170), None)]
        late: list = [(("make", 0, "ci", "ci-00"), None), (("reset", 0, "ci", "ci-01"), None), (("renew", 0, "ci"), None)]
        second: list = [(("pass", 4170), None), (("pass", 4170), None), (("pipeline", 1, "ci", BOTH, True), None)]
        live([(pipeline, instant), *passes, (last, instant), (("pipeline", 2, "ci-1", ("ci-00", "ci-1-00"), True), instant), *second, *late])
        live([(pipeline, None), *passes, (last, instant), *second, *late, (("user replaces", "ci-01"), None), (("user makes", "ci-database"), None)])


def test_an_owner_who_was_given_another_lease_meanwhile() -> None:
    """What it was given first is lost to it."""
    alone = (("pipeline", 0, "ci", (), False), None)
    live([alone, (("pipeline", 0, "ci", ("ci-00",), False), ("release", 0, "ci", True)), (("renew", 0, "ci"), alone[0])])


@pytest.mark.parametrize("operation", [("collect", 0), ("release", 0, "ci", True), ("take", 1, "ci", (), True), ("reset", 0, "ci", "ci-00")])
@pytest.mark.parametrize("meanwhile", [("renew", 0, "ci"), ("release", 0, "ci", True), ("pipeline", 1, "ci", ("ci-01",), True)])
def test_what_others_do_before_a_task_has_the_lock(operation: tuple, meanwhile: tuple) -> None:
    """Whatever the task has seen before, it goes by what is so under the lock."""
    for passed in (0, 4170, 8340):
        live([(("pipeline", 0, "ci", BOTH, False), None), *[(("pass", 4170), None)] * (passed // 4170), (operation, meanwhile)])
