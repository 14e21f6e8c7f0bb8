# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention on real chains: what stays is compared by content, and check mode says the same as the run."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Callable

import pytest
from engines import leave_to_qemu_img
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils import command, errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import groups, report, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.plan import merge, retention
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.tests.property.world import World, read_content, run

from .test_examples import PREPARE, play
from .test_refusals import Store, refused

KIB, MIB = 1 << 10, 1 << 20


def policy(match: object = "*", **rules: int) -> retention.Policy:
    return retention.parse({"match": match, **rules})


def verdicts(outcome: Outcome) -> dict[str, list]:
    assert outcome.retention is not None and all(one["keep"] == bool(one["reasons"]) for one in outcome.retention)
    return {one["name"]: one["reasons"] for one in outcome.retention}


class Kept(World):
    """A volume beside its model, with policies."""

    def take(self, name: str, created: str | None = None, keep: retention.Policy | None = None, **desired: object) -> Outcome:
        request = snapshots.SnapshotRequest(self.candidates, "vol", DesiredSnapshot(name, created=created, **desired), keep)
        if name not in self.points:
            self.points[name] = bytes(self.active)
        return self.judged(lambda options: snapshots.take(request, options))

    def retain(self, keep: retention.Policy) -> Outcome:
        return self.judged(lambda options: snapshots.retain(self.candidates, "vol", keep, options))

    def judged(self, operation: Callable[[Options], Outcome]) -> Outcome:
        """As ``both_ways``, for the verdicts too; what goes leaves the model."""
        outcomes = []

        def remembered(options: Options) -> Outcome:
            outcomes.append(operation(options))
            return outcomes[-1]

        done = self.both_ways(remembered)
        predicted, really, again = outcomes
        assert predicted.retention == really.retention
        assert predicted.after["in_use"] == really.after["in_use"]
        for one in done.retention or ():
            if not one["keep"]:
                del self.points[one["name"]]
        assert [one for one in really.retention or () if one["keep"]] == (again.retention or [])
        return done


@pytest.fixture(params=["raw", "qcow2"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    (tmp_path / "share").mkdir()
    return Kept(tmp_path / "share", tmp_path, request.param, 2 * MIB)


def date_of(night: int) -> str:
    return (datetime(2026, 12, 20, 1) + timedelta(days=night)).strftime("%Y-%m-%d")


@pytest.mark.slow
def test_a_snapshot_each_night(world: Kept) -> None:
    """Over the turn of a year with 53 weeks; all that stays is compared every few nights."""
    keep = policy("daily-*", daily=3, weekly=2, monthly=2)
    world.snapshot_named("by-hand")
    for night in range(20):
        world.write(night * 64 * KIB, 96 * KIB, night + 1)
        done = world.take(f"daily-{date_of(night)}", f"{date_of(night)}T01:00:00Z", keep)
        assert [action["step"] for action in done.actions][:2] == ["create_overlay", "write_info"]
        if night % 4 == 3:
            world.check()
    assert list(world.points) == [
        "by-hand",
        *(f"daily-{day}" for day in ("2026-12-31", "2027-01-03", "2027-01-06", "2027-01-07", "2027-01-08")),
    ]
    assert verdicts(world.retain(keep)) == {
        "daily-2026-12-31": ["monthly 2026-12"],
        "daily-2027-01-03": ["weekly 2026-W53"],
        "daily-2027-01-06": ["daily 2027-01-06"],
        "daily-2027-01-07": ["daily 2027-01-07"],
        "daily-2027-01-08": ["daily 2027-01-08", "weekly 2027-W01", "monthly 2027-01"],
    }


def test_adjacent_ones_go_in_one_pass(world: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_to_qemu_img(monkeypatch.setattr)  # whose passes can be counted
    for number in range(1, 8):
        world.write(number * 128 * KIB, 128 * KIB, number)
        world.take(f"s{number}", f"2026-05-0{number}T00:00:00Z")
    started: list[list] = []
    real = command.run

    def counted(argv: list, *args: object, **more: object) -> object:
        started.append([str(word) for word in argv])
        return real(argv, *args, **more)

    monkeypatch.setattr(command, "run", counted)
    done = world.retain(policy(last=2))
    merges = [argv for argv in started if "commit" in argv or "rebase" in argv]
    assert [action["step"] for action in done.actions if action["step"] in ("commit", "pull")] == ["commit"]
    assert len(merges) == 1, merges
    assert list(world.points) == ["s6", "s7"]
    world.check()


def test_scattered_ones_go_in_one_plan(world: Kept) -> None:
    for number in range(1, 8):
        world.write(number * 128 * KIB, 192 * KIB, number)
        world.take(f"{'odd' if number % 2 else 'even'}-{number}", f"2026-05-0{number}T00:00:00Z", labels={"parity": str(number % 2)})
    done = world.retain(policy({"parity": 0}, last=1))
    assert list(world.points) == ["odd-1", "odd-3", "odd-5", "even-6", "odd-7"]
    assert [action["step"] for action in done.actions].count("write_info") == 1
    world.check()


def test_protected_and_undated_ones_stay(world: Kept) -> None:
    world.write(0, 64 * KIB, 1)
    world.take("p1", "2026-05-01T00:00:00Z", protected=True)
    world.write(0, 64 * KIB, 2)
    world.take("u2", "once upon a time")
    for number in range(3, 7):
        world.write(0, 64 * KIB, number)
        world.take(f"s{number}", f"2026-05-0{number}T00:00:00Z")
    done = world.retain(policy(last=1))
    assert list(world.points) == ["p1", "u2", "s6"]
    assert verdicts(done) | {"s3": [], "s4": [], "s5": []} == verdicts(done)
    assert (verdicts(done)["p1"], verdicts(done)["u2"]) == (["protected"], ["created at an unknown time"])
    world.check()
    world.take("p1", protected=False)
    assert not verdicts(world.retain(policy(last=1)))["p1"] and "p1" not in world.points
    world.check()


def test_what_another_program_took_stays(world: Kept) -> None:
    """Without our records there is no time of creation, as on a share that Cinder wrote."""
    for number in range(4):
        world.write(number * KIB, 64 * KIB, number + 1)
        world.snapshot()
    shutil.rmtree(world.share / ".remotefs" / "volumes")
    world.present(DesiredVolume("vol", format=world.volume()["base_format"] or world.volume()["chain"][-1]["format"]))
    done = world.retain(policy(last=1))
    assert not done.changed and set(map(tuple, verdicts(done).values())) == {
        ("created at an unknown time",),
        ("last 1 of 1", "created at an unknown time"),
    }
    world.check()


def test_linked_clones_hold_what_they_rest_on_for_as_long_as_they_live(world: Kept) -> None:
    for number in range(1, 5):
        world.write(number * 64 * KIB, 128 * KIB, number)
        world.take(f"s{number}", f"2026-05-0{number}T00:00:00Z")
    source = updating.SourceRequest("vol", "s2", linked=True)
    volumes.ensure_present(updating.VolumeRequest(world.candidates, DesiredVolume("clone"), source), world.options())
    clone = str(world.share / "clone")
    before = read_content(clone, "qcow2", world.scratch)
    assert before == world.points["s2"]
    keep = policy("s*", last=1)
    for night in (5, 6, 7):
        world.write(night * 64 * KIB, 128 * KIB, night)
        done = world.take(f"s{night}", f"2026-05-0{night}T00:00:00Z", keep)
        assert verdicts(done)["s2"] == ["linked clone clone rests on it"]
        assert list(world.points) == ["s2", f"s{night}"]
        assert read_content(clone, "qcow2", world.scratch) == before
        assert read_content(world.volume()["path"], "qcow2", world.scratch) == bytes(world.active)
    volumes.ensure_absent(world.candidates, "clone", False, world.options())
    world.retain(keep)
    assert list(world.points) == ["s7"]
    world.check()


def test_a_name_that_is_asked_for_stays_though_newer_ones_push_it_out(world: Kept) -> None:
    keep = policy(last=2)
    for number in range(1, 4):
        world.write(0, 64 * KIB, number)
        world.take(f"s{number}", f"2026-05-0{number}T00:00:00Z")
    done = world.take("s1", keep=keep)
    assert not done.changed and verdicts(done)["s1"] == ["named by this task"]
    world.check()


def test_the_new_one_goes_by_the_rules_only_if_it_matches(world: Kept) -> None:
    world.take("s1", "2026-05-01T00:00:00Z")
    done = world.take("by-hand", "2026-05-02T00:00:00Z", policy("s*", last=1))
    assert verdicts(done) == {"s1": ["last 1 of 1"]} and list(world.points) == ["s1", "by-hand"]
    world.check()


def test_images_with_absolute_names_and_grown_ones(world: Kept) -> None:
    """The pass heals what it finds on its way, as every change does."""
    for number in range(1, 5):
        world.write(number * 256 * KIB, 64 * KIB, number)
        world.take(f"s{number}", f"2026-05-0{number}T00:00:00Z")
        world.grow(len(world.active) + MIB)
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", str(world.share / "vol.s3"), "-F", "qcow2", str(world.share / "vol.s4"))
    done = world.take("s5", "2026-05-05T00:00:00Z", policy(daily=2))
    assert done.actions[0] == {**done.actions[0], "step": "repoint", "file": "vol.s4"}
    assert list(world.points) == ["s4", "s5"]
    world.check()


RULES = st.fixed_dictionaries({rule: st.sampled_from([0, 1, 2, 3]) for rule in retention.RULES}).filter(lambda rules: any(rules.values()))
NIGHTS = st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.integers(0, 24), st.integers(1, 12)), min_size=1, max_size=6)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.data())
def test_any_policy_on_any_chain(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Clocks go to and fro, some snapshots are protected; content decides. Cheap snapshots first, one pass at the end and another."""
    path = tmp_path_factory.mktemp("kept")
    (path / "share").mkdir()
    world = Kept(path / "share", path, data.draw(st.sampled_from(["raw", "qcow2"])), MIB)
    for number, (day, protected, place, length) in enumerate(data.draw(NIGHTS)):
        world.write(place * 32 * KIB, length * 32 * KIB, number + 1)
        world.take(f"s{number}", f"{date_of(day)}T00:00:00Z", protected=protected)
    world.write(0, 32 * KIB, 99)
    keep = policy(**data.draw(RULES))
    world.take("new", "2026-12-24T00:00:00Z", keep)
    if data.draw(st.booleans()):
        world.check()
    world.retain(policy("s*", last=1))
    world.check()
    shutil.rmtree(path)


# -- groups, many at once, and a length that no chain exceeds -----------------------------------------------------------------


def test_groups_keep_after_all_are_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("a", "b"):
        store.present(name, size=MIB)
    keep = policy("g*", daily=2)

    def take(night: int, check: bool = False) -> list[Outcome]:
        desired = DesiredSnapshot(f"g{night}", created=f"{date_of(night)}T01:00:00Z", protected=night == 0)
        return groups.take_group(store.candidates, ["a", "b"], desired, store.options(check=check), keep)

    for night in range(5):
        predicted, done = take(night, check=True), take(night)
        assert [(one.changed, one.actions, one.retention) for one in predicted] == [
            (one.changed, one.actions, one.retention) for one in done
        ]
        assert not any(one.changed for one in take(night))
    for name in ("a", "b"):
        assert [one["name"] for one in store.info(name)["snapshots"]] == ["g0", "g3", "g4"]


def test_a_group_in_which_one_cannot_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshots are taken; the others keep what they should; the error stands in its place, and the next run does the rest."""
    store = Store(tmp_path)
    for name in ("a", "b", "c"):
        store.present(name, size=MIB)
    real = merge.delete_snapshots

    def full(volume, names, *facts):
        if volume.name == "b" and names:
            raise OSError(28, "No space left on device")
        return real(volume, names, *facts)

    def take(night: int) -> list:
        desired = DesiredSnapshot(f"g{night}", created=f"{date_of(night)}T01:00:00Z")
        return groups.take_group(store.candidates, ["a", "b", "c"], desired, store.options(), policy("g*", last=1))

    take(0)
    monkeypatch.setattr(merge, "delete_snapshots", full)
    first, second, third = take(1)
    assert isinstance(second, errors.NoSpace) and "volume b" in str(second)
    assert verdicts(first) == verdicts(third) == {"g0": [], "g1": ["last 1 of 1"]}
    assert [one["name"] for one in store.info("b")["snapshots"]] == ["g0", "g1"]
    monkeypatch.setattr(merge, "delete_snapshots", real)
    assert [one.changed for one in take(1)] == [False, True, False]
    assert [[one["name"] for one in store.info(name)["snapshots"]] for name in "abc"] == [["g1"]] * 3


def test_two_policies_on_one_volume_in_one_task(world: Kept) -> None:
    """In check mode the second item sees what the first would leave, and takes no doomed file for a linked clone."""
    for number in range(1, 7):
        world.write(number * 64 * KIB, 64 * KIB, number)
        world.take(f"{'ab'[number % 2]}{number}", f"2026-05-0{number}T00:00:00Z")

    def both(options: Options) -> list[Outcome]:
        return [snapshots.retain(world.candidates, "vol", policy(match, last=1), options) for match in ("b*", "a*")]

    predicted, done = both(world.options(check=True)), both(world.options())
    assert [one.retention for one in predicted] == [one.retention for one in done]
    assert [[{**action, "bytes": 0} for action in one.actions] for one in predicted] == [
        [{**action, "bytes": 0} for action in one.actions] for one in done
    ]
    world.points = {name: world.points[name] for name in ("b5", "a6")}
    world.check()


def test_a_chain_has_a_longest_length(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.present(size=MIB)

    def take(name: str, check: bool = False, **desired: object) -> Outcome:
        return snapshots.take(snapshots.SnapshotRequest(store.candidates, "vol", DesiredSnapshot(name, **desired)), store.options(check=check))

    take("s1", max_chain=3)
    take("s2", max_chain=3)
    error = refused(store, errors.InvalidParameter, lambda check: take("s3", check, max_chain=3))
    assert "the chain has 3 files" in str(error) and "max_chain (3)" in str(error)
    assert "delete snapshots, flatten it if it is a linked clone, or raise max_chain" in str(error)
    assert not take("s2", max_chain=2).changed
    assert take("s3", max_chain=4).changed

    def group(check: bool) -> None:
        groups.take_group(store.candidates, ["vol"], DesiredSnapshot("g", max_chain=4), store.options(check=check))

    refused(store, errors.InvalidParameter, group)
    for number in range(4, 64):
        take(f"s{number}")
    assert len(store.info()["chain"]) == 64
    assert "the chain has 64 files" in str(refused(store, errors.InvalidParameter, lambda check: take("one-more", check)))
    assert take("one-more", max_chain=65).changed


def test_protection_is_a_change_that_a_diff_shows(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.present(size=MIB)

    def take(check: bool = False, **desired: object) -> Outcome:
        return snapshots.take(snapshots.SnapshotRequest(store.candidates, "vol", DesiredSnapshot("s1", **desired)), store.options(check=check))

    take(protected=True)
    assert store.info()["snapshots"][0]["protected"] is True
    assert not take().changed and not take(protected=True).changed
    predicted, done = take(check=True, protected=False), take(protected=False)
    assert predicted.changed and predicted.actions == done.actions
    shown = [report.difference(one)["snapshots"][0]["protected"] for one in (done.before, done.after, predicted.after)]
    assert shown == [True, False, False]
    assert not take(protected=False).changed and store.info()["snapshots"][0]["protected"] is False
    take(protected=True)
    assert store.delete("s1").changed and not store.info()["snapshots"], "protection is from retention, not from being named"


# -- as a playbook has it -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_the_module_refuses(tmp_path: Path, ansible_environment: dict) -> None:
    share = tmp_path / "share"
    share.mkdir()
    keep = {"match": "*", "last": 1}
    bad = [
        ({"name": "s", "keep": keep, "state": "absent"}, "keep goes with state: present only"),
        ({"name": "s", "keep": keep, "state": "reverted"}, "keep goes with state: present only"),
        ({"name": "s", "protected": True, "state": "absent"}, "protected goes with state: present only"),
        ({"keep": keep, "protected": False}, "protected is of a snapshot, and none is named"),
        ({"keep": keep, "labels": {"a": "b"}}, "labels is of a snapshot, and none is named"),
        ({"keep": {"match": "*"}}, "no rule is above 0"),
        ({"keep": {"match": "", "last": 1}}, "match is missing or empty"),
        ({"keep": {"match": {}, "last": 1}}, "match is missing or empty"),
        ({"keep": {"match": "*", "last": -1}}, "last is negative: -1"),
        ({"keep": {"match": "*", "lost": 1}}, "it has no lost"),
        ({"keep": "last=1"}, "is no dictionary"),
        ({"name": "s", "max_chain": 1}, "1 is no limit"),
        ({"name": "s", "max_chain": 201}, "201 is no limit"),
        ({}, "option name: it is missing"),
    ]
    items = [{"volume": "db01", **options} for options, _told in bad]
    tasks = [
        {"remotefs.storage.remotefs_snapshot": {"share": "SHARE", "snapshots": items}, "register": "done", "ignore_errors": True},
        {"ansible.builtin.set_fact": {"told": [told for _options, told in bad]}},
        {
            "ansible.builtin.assert": {
                "that": [
                    "done is failed and done is not changed",
                    "done.results | map(attribute='error_code') | unique == ['invalid_parameter']",
                    "done.results | map(attribute='msg') | zip(told) | map('last') | list == told",
                ]
                + [f"told[{index}] in done.results[{index}].msg" for index in range(len(bad))]
            }
        },
        {
            "remotefs.storage.remotefs_snapshot": {"share": "SHARE", "volumes": ["db01"], "name": "s", "keep": {"match": "*"}},
            "register": "group",
            "ignore_errors": True,
        },
        {"ansible.builtin.assert": {"that": ["group.error_code == 'invalid_parameter' and 'no rule is above 0' in group.msg"]}},
    ]
    play(PREPARE + tasks, share, tmp_path, ansible_environment)
    assert not list(share.glob("*.info"))


@pytest.mark.slow
def test_what_the_module_returns(tmp_path: Path, ansible_environment: dict) -> None:
    """Single, as a group and in bulk: the verdicts, in check mode as in the run, and none where no policy is given."""
    share = tmp_path / "share"
    share.mkdir()
    module = "remotefs.storage.remotefs_snapshot"
    both = ["db01", "db01-log"]

    def judged(**options: object) -> list[dict]:
        wanted = {"share": "SHARE", **options}
        return [
            {module: wanted, "check_mode": True, "register": "foretold"},
            {module: wanted, "register": "done"},
            {module: wanted, "register": "again"},
        ]

    def verdicts_of(task: str) -> str:
        return f"{task}.results | map(attribute='retention') | flatten | map(attribute='reasons')"

    same = "foretold.changed == done.changed and foretold.actions | default([]) == done.actions | default([]) and again is not changed"
    keep = {"match": {"made-by": 7}, "last": "{{ 1 }}"}
    tasks = [
        {module: {"share": "SHARE", "volumes": both, "name": "n1", "labels": {"made-by": 7}}, "register": "first"},
        {"ansible.builtin.assert": {"that": ["first.results[0].retention is undefined"]}},
        {module: {"share": "SHARE", "volume": "db01", "name": "n2", "max_chain": 2}, "register": "long", "ignore_errors": True},
        {"ansible.builtin.assert": {"that": ["long.error_code == 'invalid_parameter' and 'the chain has 2 files' in long.msg"]}},
        *judged(volume="db01", name="n2", labels={"made-by": 7}, keep=keep),
        {
            "ansible.builtin.assert": {
                "that": [
                    same,
                    "done.retention | map(attribute='reasons') == foretold.retention | map(attribute='reasons')",
                    "done.retention | map(attribute='name') == ['n1', 'n2'] and done.retention | map(attribute='keep') == [false, true]",
                    "done.retention[1].reasons == ['last 1 of 1'] and done.retention[1].created == done.volume.snapshots[0].created",
                    "done.volume.snapshots | map(attribute='name') == ['n2']",
                ]
            }
        },
        {module: {"share": "SHARE", "volume": "db01-log", "name": "n2", "labels": {"made-by": 7}}},
        *judged(volumes=both, name="n3", labels={"made-by": 7}, protected=True, keep=keep),
        {
            "ansible.builtin.assert": {
                "that": [
                    same,
                    "done.results | map(attribute='name') == ['db01', 'db01-log']",
                    "done.results[1].retention | map(attribute='name') == ['n1', 'n2', 'n3'] and not done.results[1].retention[1].keep",
                    "done.results[0].retention[1].reasons == ['last 1 of 1', 'protected']",
                    verdicts_of("done") + " == " + verdicts_of("foretold"),
                    "done.results | map(attribute='actions') == foretold.results | map(attribute='actions')",
                ]
            }
        },
        {module: {"share": "SHARE", "volumes": both, "name": "n4", "labels": {"made-by": 7}}},
        {module: {"share": "SHARE", "volumes": both, "name": "n5", "labels": {"made-by": 7}}},
        *judged(volumes=both, keep=keep),
        {
            "ansible.builtin.assert": {
                "that": [
                    same,
                    "done.results | map(attribute='name') == ['db01', 'db01-log']",
                    "done.volumes[0].snapshots | map(attribute='name') == ['n3', 'n5']",
                    verdicts_of("done") + " == " + verdicts_of("foretold"),
                ]
            }
        },
        *judged(
            keep=keep,
            snapshots=[{"volume": "db01", "protected": False, "name": "n3"}, {"volume": "db01-log", "keep": {"match": "n5", "daily": 1}}],
        ),
        {
            "ansible.builtin.assert": {
                "that": [
                    same,
                    "done.results | map(attribute='name') == ['n3', 'db01-log']",
                    "done.results[0].retention[0].reasons == ['named by this task'] and not done.volumes[0].snapshots[0].protected",
                    "done.results[1].retention | map(attribute='name') == ['n5'] and done.results[1].retention[0].reasons[0] is match('daily ')",
                ]
            }
        },
    ]
    play(PREPARE + tasks, share, tmp_path, ansible_environment)
    assert json.loads((share / "db01.info").read_text()).keys() == {"active", "n3", "n5"}


@pytest.mark.slow
def test_the_role_keeps_what_it_should(tmp_path: Path, ansible_environment: dict) -> None:
    """It passes the options on, with and without a name, as a group and not, and looks at the share afterwards."""
    share = tmp_path / "share"
    share.mkdir()

    def role(**options: object) -> dict:
        own = {f"snapshots_{name}": value for name, value in options.items()}
        keep = {"match": "n*", "last": 1}
        return {
            "ansible.builtin.include_role": {"name": "remotefs.storage.snapshots"},
            "vars": {"snapshots_share": "SHARE", "snapshots_select": "[].name", "snapshots_keep": keep, **own},
        }

    def found(*names: str) -> list[dict]:
        return [
            {"remotefs.storage.remotefs_snapshot_info": {"share": "SHARE", "volumes": ["db01"]}, "register": "there"},
            {"ansible.builtin.assert": {"that": [f"there.snapshots | map(attribute='name') == {list(names)}"]}},
        ]

    tasks = [role(name="n1", protected=True), role(name="n2", group=True), *found("n1", "n2")]
    tasks += [{"remotefs.storage.remotefs_snapshot": {"share": "SHARE", "volume": "db01", "name": "n3"}}, role(), *found("n1", "n3")]
    tasks += [
        {
            "block": [role(name="n5", max_chain=2), {"ansible.builtin.fail": {"msg": "the chain got too long"}}],
            "rescue": [{"ansible.builtin.assert": {"that": ["'max_chain (2)' in ansible_failed_result.msg"]}}],
        },
    ]
    play(PREPARE + tasks, share, tmp_path, ansible_environment)
