# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases as playbooks see them: what results, diffs and messages say, in check mode too, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from .test_examples import play
from .test_return_detail import check

LEASE, VOLUME = "remotefs.storage.remotefs_lease", "remotefs.storage.remotefs_volume"
JOB = {"name": "ci", "owner": "job-1"}
LONG = "9" * 30


def task(module: str = LEASE, register: str = "done", **options: object) -> dict:
    return {module: {"share": "SHARE", **options}, "register": register, "ignore_errors": True}


def in_check_mode(one: dict) -> dict:
    return {**one, "check_mode": True, "diff": True}


@pytest.fixture
def share(tmp_path: Path) -> Path:
    path = tmp_path / "share"
    path.mkdir()
    return path


ODD: list[tuple[dict, str, str]] = [
    ({"name": "ci"}, "invalid_parameter", "owner"),
    ({"owner": "job-1"}, "invalid_parameter", "name"),
    ({**JOB, "ttl": "-1h"}, "invalid_parameter", "option ttl"),
    ({**JOB, "ttl": "1.5h"}, "invalid_parameter", "option ttl"),
    ({**JOB, "ttl": "two hours"}, "invalid_parameter", "option ttl"),
    ({**JOB, "ttl": ""}, "invalid_parameter", "option ttl"),
    ({**JOB, "ttl": f"{LONG}w"}, "invalid_parameter", "option ttl"),
    ({**JOB, "ttl": "999999999999w"}, "invalid_parameter", "option ttl"),
    ({"state": "collected", "grace": "-15m"}, "invalid_parameter", "option grace"),
    ({"state": "collected", "golden_keep": -1}, "invalid_parameter", "-1 is negative"),
    ({**JOB, "collect": True, "golden_keep": -1}, "invalid_parameter", "-1 is negative"),
    ({**JOB, "owner": ""}, "invalid_parameter", "owner"),
    ({**JOB, "owner": " "}, "invalid_parameter", "option owner"),
    ({**JOB, "owner": "job\a1"}, "invalid_parameter", "option owner"),
    ({**JOB, "owner": "job\n1"}, "invalid_parameter", "option owner"),
    ({**JOB, "owner": "x" * 201}, "invalid_parameter", "option owner"),
    ({**JOB, "name": "../ci"}, "invalid_name", "../ci"),
    ({**JOB, "name": "~clock"}, "invalid_name", "~clock"),
    ({**JOB, "name": "a" * 240}, "invalid_name", "aaa"),
    ({**JOB, "volumes": ["ci-00", "../x"]}, "invalid_name", "../x"),
    ({**JOB, "uses": ["a/b"]}, "invalid_name", "a/b"),
    ({**JOB, "volumes": [f"v{number}" for number in range(16385)]}, "invalid_parameter", "16384"),
    ({**JOB, "state": "taken"}, "invalid_parameter", "state"),
    ({**JOB, "share": ["SHARE", "/srv/backup"]}, "invalid_parameter", "name one share"),
    ({**JOB, "share": "nas1.example.org:/vols"}, "share_not_mounted", "nas1.example.org:/vols"),
    ({"state": "collected", "share": "nas1.example.org:/vols"}, "share_not_mounted", "nas1.example.org:/vols"),
    ({**JOB, "share": []}, "invalid_parameter", "share"),
    ({**JOB, "parallel": 0}, "invalid_parameter", "parallel"),
    ({**JOB, "lock_timeout": -1}, "invalid_parameter", "lock_timeout"),
    ({**JOB, "leases": [{"name": "ci"}]}, "invalid_parameter", "mutually exclusive"),
    ({"leases": ["ci"]}, "invalid_parameter", "leases"),
    ({"leases": [{"name": "ci", "colour": "red"}]}, "invalid_parameter", "colour"),
    ({**JOB, "id": ""}, "lease_lost", "it is gone"),
    ({**JOB, "renew_only": True}, "lease_lost", "it is gone"),
]


@pytest.mark.slow
def test_odd_parameters(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """Each is refused with its code and says what it is about, in check mode too. Nothing of a lease is written."""
    tasks: list[dict] = []
    for options, code, words in ODD:
        # What one task is refused for, its check mode is refused for: every third shows it. An earlier task may see to what is not there yet.
        is_assumed = code == "share_not_mounted" or "renew_only" in options
        for one in (task(**options), in_check_mode(task(**options)))[: 2 if len(tasks) % 3 == 0 and not is_assumed else 1]:
            tasks += [one, check("done is failed", f"done.error_code == {code!r}", f"{words!r} in done.msg", "done.traceback is not defined")]
    play(tasks, share, tmp_path, ansible_environment)
    assert not list(share.glob(".remotefs/leases/*"))


@pytest.mark.slow
def test_several_in_one_task(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """All are attempted, in their order; one that fails stops no other. A list that came out empty is no change."""
    several = task(owner="job-1", leases=[{"name": "a", "volumes": ["a-00"]}, {"name": "theirs"}, {"name": "bad/name"}, {"name": "b", "ttl": "0"}])
    codes = "done.results | map(attribute='error_code', default='') | list"
    expected = (
        "done is failed",
        "done is changed",
        f"{codes} == ['', 'lease_held', 'invalid_name', '']",
        "done.results | map(attribute='name') | first == 'a'",
    )
    tasks = [
        task(name="theirs", owner="job-2"),
        in_check_mode(several),
        check(*expected, "done.diff | map(attribute='after_header') | list == ['a', 'b']", "done.results[0].lease.id is none"),
        several,
        check(*expected, "'2 of 4 leases failed' in done.msg", "'job-2 holds it until' in done.results[1].msg", "done.results[3].lease.expires is none"),
        several,
        check("done is failed", "done is not changed", "done.results[0].renewed and done.results[0].actions == []"),
        task(leases=[]),
        check("done is not changed", "done.results == []", "done is not failed"),
        task(owner="job-1", state="released", leases=[{"name": "a"}, {"name": "never"}, {"name": "b"}]),
        check("done is changed", "done.results | map(attribute='changed') | list == [true, false, true]"),
        task(leases=[{"state": "collected"}, {"state": "collected", "share": "nas1.example.org:/vols"}]),
        check("done is failed", "done.results[0].collected.leases == []", "done.results[1].error_code == 'share_not_mounted'"),
    ]
    play(tasks, share, tmp_path, ansible_environment)
    assert os.listdir(share / ".remotefs" / "leases") == ["theirs.json"]


@pytest.mark.slow
def test_check_and_diff_mode(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """Check mode foretells steps and diff, and writes nothing. A diff does not show what every renewal changes."""
    take = task(**JOB, volumes=["ci-00"], labels={"branch": "main", "number": 7})
    make = task(VOLUME, "made", lease="{{ done.lease }}", name="ci-00", size="1M")
    release = task(**JOB, state="released", cascade=True)
    tasks: list[dict] = [
        in_check_mode(take),
        check("done is changed", "done.diff.before == {}", "done.diff.after.volumes == ['ci-00']", "done.lease.id is none and not done.lease.renewed"),
        in_check_mode(make),
        check("made is changed", "made.volume.lease is none"),
        {"ansible.builtin.stat": {"path": f"{share}/.remotefs"}, "register": "there"},
        check("not there.stat.exists"),
        {**take, "diff": True},
        check("done.diff.after.labels == dict(branch='main', number='7')", "done.actions == [dict(step='take_lease', lease='ci')]"),
        make,
        check("made is changed", "made.volume.lease == done.lease.id"),
        {**take, "diff": True},
        check("done is not changed", "done.renewed", "done.diff.before == done.diff.after"),
        {**task(**JOB, labels={"branch": "next"}), "diff": True},
        check("done is changed", "done.renewed", "done.actions == [dict(step='change_lease', lease='ci')]", "done.diff.before.labels.branch == 'main'"),
        in_check_mode(task(**JOB, volumes=[])),
        check("done is failed", "done.error_code == 'conflict'", "'ci-00' in done.msg"),
        in_check_mode(task(**JOB, volumes=[], cascade=True)),
        check("done is changed", "done.actions == [dict(step='remove', volume='ci-00'), dict(step='change_lease', lease='ci')]"),
        in_check_mode(task(register="foretold", **JOB, state="released")),
        check("foretold is failed", "foretold.error_code == 'conflict'"),
        in_check_mode({**release, "register": "foretold"}),
        release,
        check("done is changed", "done.actions == foretold.actions", "done.lease is none", "done.actions[0] == dict(step='remove', volume='ci-00')"),
        release,
        check("done is not changed", "done.actions == []"),
    ]
    play(tasks, share, tmp_path, ansible_environment)


@pytest.mark.slow
def test_what_the_lease_of_a_volume_may_be(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """Anything else than what remotefs_lease returns is refused, and so is a lease of another share or of nobody."""
    kept = {"name": "ci", "owner": "job-1", "id": "0123456789abcdef"}
    given: list[tuple[dict, str]] = [
        ({"name": "ci"}, "invalid_parameter"),
        ({"name": "ci", "owner": 7}, "invalid_parameter"),
        ({"name": ["ci"], "owner": "job-1", "id": "x"}, "invalid_parameter"),
        ({**kept, "name": "../../x"}, "invalid_name"),
        ({**kept, "id": None}, "lease_lost"),
        (kept, "lease_lost"),
    ]
    tasks: list[dict] = [task(**JOB, volumes=["ci-00"])]
    for lease, code in given:
        tasks += [task(VOLUME, "made", lease=lease, name="ci-00", size="1M"), check("made is failed", f"made.error_code == {code!r}")]
    mixed = task(VOLUME, "made", size="1M", volumes=[{"name": "ci-00", "lease": "{{ done.lease }}"}, {"name": "free"}])
    tasks += [mixed, check("made is not failed", "made.volumes | map(attribute='lease') | list == [done.lease.id, none]")]
    tasks += [task(VOLUME, "made", lease="{{ done.lease }}", name="free", size="2M"), check("made is failed", "made.error_code == 'conflict'")]
    play(tasks, share, tmp_path, ansible_environment)


@pytest.mark.slow
def test_tasks_that_take_the_lease_first(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """In one task, by itself, in check mode, and when it cannot be had: then nothing is made."""
    taking = {"state": "held", **JOB, "volumes": ["ci-00", "ci-01"]}
    many = {"size": "1M", "volumes": [{"name": "ci-00"}, {"name": "ci-01"}]}
    snapshot = "remotefs.storage.remotefs_snapshot"
    tasks = [
        in_check_mode(task(VOLUME, lease=taking, **many)),
        check("done is changed", "done.lease.id is none", "done.lease_changed", "not done.renewed"),
        task(VOLUME, lease=taking, **many),
        check("done is changed", "done.lease_changed", "done.volumes | length == 2", "done.lease.owner == 'job-1'"),
        {"ansible.builtin.set_fact": {"first": "{{ done.lease.id }}"}},
        task(VOLUME, lease=taking, **many),
        check("done is not changed", "done.renewed", "not done.lease_changed", "done.lease.id == first"),
        task(VOLUME, lease=taking, name="ci-00", size="2M"),
        check("done is changed", "not done.lease_changed", "done.lease.id == first", "done.volume.lease == first"),
        task(VOLUME, lease={**taking, "volumes": ["ci-00", "ci-01", "ci-02"]}, volumes=[]),
        check("done is changed", "done.lease_changed", "done.lease.volumes | length == 3"),
        task(snapshot, lease={"state": "held", **JOB, "renew_only": True}, volumes=["ci-00", "ci-01"], name="s1"),
        check("done is changed", "not done.lease_changed", "done.renewed", "done.lease.volumes | length == 3"),
        task(snapshot, lease={"state": "held", **JOB}, volume="ci-00", name="s2"),
        check("done is changed", "done.lease.id == first"),
        task(VOLUME, lease={**taking, "owner": "job-2"}, **many),
        check("done is failed", "done.error_code == 'lease_held'"),
        task(snapshot, lease={"state": "held", "name": "other", "owner": "job-1", "renew_only": True}, volume="ci-00", name="s3"),
        check("done is failed", "done.error_code == 'lease_lost'"),
        task(VOLUME, lease={**taking, "collect": True, "grace": "0"}, **many),
        check("done is changed", "done.collected == dict(leases=[], volumes=[])", "done.left == []"),
        task(VOLUME, lease={**taking, "cascade": True, "volumes": ["ci-00"]}, volumes=[{"name": "ci-00"}], size="2M"),
        check("done is changed", "done.lease.volumes == ['ci-00']"),
    ]
    for lease, words in (
        ({**taking, "state": "released"}, "give state: held"),
        ({**taking, "share": "/x"}, "which the task says"),
        ({**taking, "colour": "red"}, "colour"),
        ({**taking, "volumes": ["../x"]}, "../x"),
        ({"state": "held", "name": "ci"}, "owner"),
    ):
        tasks += [task(VOLUME, lease=lease, **many), check("done is failed", f"{words!r} in done.msg")]
    play(tasks, share, tmp_path, ansible_environment)
    assert sorted(path.name for path in share.iterdir() if not path.name.startswith(".") and "." not in path.name) == ["ci-00"]


@pytest.mark.slow
def test_what_is_told_of_leases(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """A damaged one beside a good one, in remotefs_lease_info and in a collection."""
    tasks = [task(**JOB), task(name="torn", owner="job-1")]
    play(tasks, share, tmp_path, ansible_environment)
    (share / ".remotefs" / "leases" / "torn.json").write_text("{")
    info = "remotefs.storage.remotefs_lease_info"
    tasks = [
        task(info),
        check("done.leases | map(attribute='name') | list == ['ci', 'torn']", "done.leases[1].error_code == 'chain_broken'", "not done.leases[0].expired"),
        task(info, names=["c*"]),
        check("done.leases | length == 1", "done.leases[0].owner == 'job-1'"),
        task(info, names=["nothing-*"]),
        check("done.leases == []"),
        task(state="collected"),
        check("done is not changed", "done.left | map(attribute='name') | list == ['torn']", "done.collected == dict(leases=[], volumes=[])"),
    ]
    play(tasks, share, tmp_path, ansible_environment)


def test_options_are_no_place_for_secrets(share: Path, ansible_environment: dict) -> None:
    """What a task returns of a lease is what it was given, nothing of the host but the collector's name."""
    words = json.dumps({"share": str(share), **JOB})
    done = subprocess.run(["ansible", "localhost", "-m", LEASE, "-a", words], env=ansible_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.partition("=> ")[2])
    assert sorted(told["lease"]) == sorted(
        ["acquired", "collector", "expires", "id", "labels", "name", "owner", "renewed", "renewed_at", "share", "ttl", "uses", "volumes"]
    )
