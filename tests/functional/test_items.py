# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many objects in one task as playbooks see them: names in results and diffs, globs, the order that works, what messages say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from .test_examples import play
from .test_return_detail import check

VOLUME, SNAPSHOT = "remotefs.storage.remotefs_volume", "remotefs.storage.remotefs_snapshot"


STEPS = "done.results | map(attribute='actions') | map('map', attribute='step') | map('list') | list"


def task(module: str, register: str = "done", **options: object) -> dict:
    return {module: {"share": "SHARE", **options}, "register": register}


def failing(module: str, **options: object) -> dict:
    return {**task(module, **options), "ignore_errors": True}


def both(module: str, *that: str, **options: object) -> list[dict]:
    """The same task predicted, done and done again, with the same assertions on prediction and run."""
    return [
        {**task(module, **options), "check_mode": True},
        check(*that),
        {"ansible.builtin.set_fact": {"foretold": f"{{{{ {STEPS} }}}}"}},
        task(module, **options),
        check(*that, f"{STEPS} == foretold"),
        task(module, "again", **options),
        check("again is not changed"),
    ]


@pytest.fixture
def share(tmp_path: Path) -> Path:
    path = tmp_path / "share"
    path.mkdir()
    return path


@pytest.mark.slow
def test_lists_that_came_out_empty(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """Computed lists are no change where they have nothing, in all modules. A name that is not given is still missed."""
    tasks = [task(VOLUME, size="1M", name="one")]
    for state in ("present", "absent", "reverted"):
        tasks += [task(SNAPSHOT, volumes=[], name="s", state=state), check("done is not changed", "done.results == []")]
    tasks += [
        task(SNAPSHOT, volume="one", names=[], state="absent"),
        check("done is not changed", "done.volume.name == 'one'"),
        task(SNAPSHOT, volumes=["one"], names=[], state="absent"),
        check("done is not changed", "done.results | length == 1"),
        task(SNAPSHOT, snapshots=[{"volume": "one", "names": []}], state="absent"),
        check("done is not changed"),
        task(VOLUME, volumes=[]),
        check("done is not changed"),
        failing(SNAPSHOT, volume="one", state="absent"),
        check("done is failed", "done.error_code == 'invalid_parameter'"),
    ]
    play(tasks, share, tmp_path, ansible_environment)


@pytest.mark.slow
def test_volumes_each_by_itself_and_globs(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    (share / "ci-notes").write_text("no volume")
    tasks = [
        task(VOLUME, size="1M", volumes=[{"name": "ci-1"}, {"name": "ci-2"}, {"name": "other"}]),
        *both(SNAPSHOT, "done.results | map(attribute='name') == ['ci-1', 'ci-2']", volumes=["ci-[12]"], name="s1"),
        task(SNAPSHOT, volumes=["ci-?", "other"], name="keep", protected=True),
        check("done.results | map(attribute='name') == ['ci-1', 'ci-2', 'other']"),
        *both(
            SNAPSHOT,
            "done.results | map(attribute='name') == ['other', 'ci-1', 'ci-2'] and done.results[1].snapshot == 's1'",
            "done.results | map(attribute='volume_name') == ['other', 'ci-1', 'ci-2'] and not done.results[0].changed",
            volumes=["other", "ci-*"],
            name="s1",
            state="absent",
        ),
        check("done.warnings | select('search', 'ci-notes match ci-') | length == 1"),
        task(SNAPSHOT, volumes=["ci-*"], name="s2", expires="1s"),
        check("done.volumes[0].snapshots[1].expires is match('[0-9-]+T[0-9:]+Z$') and done.volumes[0].snapshots[0].expires is none"),
        task(SNAPSHOT, volumes=["ci-*"], name="s2", expires="1h"),
        check("done is not changed"),
        task(SNAPSHOT, volume="ci-2", name="s2", expires="never"),
        check("done is changed and done.volume.snapshots[1].expires is none"),
        {"ansible.builtin.pause": {"seconds": 2}},
        *both(
            SNAPSHOT,
            "done.results[0].retention | map(attribute='name') == ['s2'] and not done.results[0].retention[0].keep",
            "done.results[1].retention == [] and not done.results[1].changed",
            volumes=["ci-*"],
            state="pruned",
        ),
        task(SNAPSHOT, volume="ci-2", names=["k*", "s*"], state="absent"),
        check("done.volume.snapshots | map(attribute='name') == ['keep']"),  # a glob names nothing, and so spares what is protected
        *both(SNAPSHOT, "done.changed == (not ansible_check_mode) or true", volumes=["ci-1", "other"], keep={"match": "x-*", "within": "1d"})[:1],
        failing(SNAPSHOT, volumes=["ci-*", "none"], name="keep", state="reverted"),
        check(
            "done.error_code == 'volume_not_found' and done.results | map(attribute='failed') == [false, false, true]",
            "done.results[2].volume_name == 'none' and done.results[2].snapshot == 'keep' and 'none@keep: ' in done.msg",
        ),
        task(SNAPSHOT, volumes=["zz*"], state="pruned"),
        check("done is not changed and done.results == [] and 'no volume matches zz*' in done.warnings"),
    ]
    recap = play(tasks, share, tmp_path, ansible_environment)
    assert recap["failed"] == 0 and recap["ok"] == len(tasks)


@pytest.mark.slow
def test_the_order_that_works(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    linked = {"volume": "gold", "method": "linked"}
    made = "done.results | map(attribute='name') == ['c1', 'gold', 'c2', 'c3'] and done.results | rejectattr('changed') | list == []"
    gone = "done.results | map(attribute='name') == ['gold', 'c1', 'c2', 'c3'] and done.results | rejectattr('changed') | list == []"
    tasks = [
        *both(
            VOLUME,
            made,
            "done.results[0].volume.parent.volume == 'gold' and done.results[2].volume.parent.volume == 'c1'",
            volumes=[
                {"name": "c1", "source": linked},
                {"name": "gold", "size": "4M"},
                {"name": "c2", "source": {"volume": "c1", "method": "linked"}},
                {"name": "c3", "source": {"volume": "gold"}},
            ],
        ),
        *both(
            VOLUME,
            gone,
            state="absent",
            cascade=True,
            volumes=[{"name": "gold"}, {"name": "c1"}, {"name": "c2", "state": "present", "flatten": True}, {"name": "c3"}],
        ),
        task(VOLUME, size="1M", volumes=[{"name": "gold", "snapshot": "s"}, {"name": "c4", "source": {"volume": "gold"}}]),
        *both(
            VOLUME,
            "done.results | map(attribute='name') == ['gold', 'c5'] and done.results | rejectattr('changed') | list == []",
            volumes=[{"name": "gold", "state": "absent", "cascade": True}, {"name": "c5", "source": {"volume": "gold"}}],
        )[:-2],
        failing(VOLUME, state="absent", volumes=[{"name": "c4"}, {"name": "c2"}]),
        check("done is not failed"),
    ]
    recap = play(tasks, share, tmp_path, ansible_environment)
    assert recap["failed"] == 0 and sorted(path.name for path in share.iterdir() if path.is_file()) == ["c5"]


@pytest.mark.slow
def test_details_of_volumes(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """Kept in our record, set on volumes that exist, one without the other, through everything else that is done to them."""
    (share / "old").write_bytes(bytes(1 << 20))
    tasks = [
        task(VOLUME, name="v", size="1M", snapshot="s0", description="for tests", labels={"team": "web", "n": 1}),
        check("done.volume.description == 'for tests' and done.volume.labels == {'team': 'web', 'n': '1'} and done.volume.created is match('20')"),
        check("done.volume.path is search('/v.s0$') and done.volume.snapshots | length == 1"),
        task(VOLUME, "again", name="v", snapshot="s0", labels={"team": "web", "n": "1"}),
        check("again is not changed and again.volume == done.volume"),
        {**task(VOLUME, "foretold", name="v", labels={}), "check_mode": True, "diff": True},
        check("foretold is changed and foretold.diff.before.labels.team == 'web' and foretold.diff.after.labels == {}"),
        check("foretold.diff.after.description == 'for tests'"),
        task(VOLUME, "changed", name="v", labels={}),
        check("changed is changed and changed.volume.labels == {} and changed.volume.description == 'for tests'"),
        check("changed.actions == foretold.actions and changed.volume.created == done.volume.created"),
        task(SNAPSHOT, volume="v", name="s1"),
        task(VOLUME, "grown", name="v", size="2M", description=""),
        task(SNAPSHOT, volume="v", name="s0", state="absent"),
        check("grown.volume.created == done.volume.created and grown.volume.description == ''"),
        task(VOLUME, "adopted", name="old", format="raw", labels={"a": "b"}),
        check("adopted is changed and adopted.volume.created is none and adopted.volume.labels == {'a': 'b'}"),
        task(VOLUME, "second", name="old", snapshot="made-later"),
        check("second is changed and second.actions | map(attribute='step') == ['create_overlay', 'write_info']"),
        {"remotefs.storage.remotefs_volume_info": {"share": "SHARE"}, "register": "info"},
        check("info.volumes | map(attribute='labels') == [{'a': 'b'}, {}] and info.volumes[1].created == done.volume.created"),
        task(VOLUME, name="c", source={"volume": "old", "snapshot": "made-later", "method": "linked"}, labels={"from": "old"}),
        task(VOLUME, "flat", name="c", flatten=True),
        check("flat.volume.labels == {'from': 'old'} and flat.volume.created == done.volume.created"),
    ]
    recap = play(tasks, share, tmp_path, ansible_environment)
    assert recap["failed"] == 0 and recap["ok"] == len(tasks)


def output(tasks: list[dict], share: Path, tmp_path: Path, environment: dict, *options: str) -> str:
    book = tmp_path / "told.yml"
    book.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]).replace('"SHARE"', json.dumps(str(share))))
    environment = {**environment, "ANSIBLE_STDOUT_CALLBACK": "default"}
    return subprocess.run(["ansible-playbook", *options, str(book)], env=environment, capture_output=True, text=True, check=False).stdout


@pytest.mark.slow
def test_what_diffs_tell(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    names = [f"v{number:02}" for number in range(20)]
    many = task(VOLUME, size="1G", volumes=[{"name": name} for name in names])
    for options in (("--check", "--diff"), ("--diff",)):
        told = output([many], share, tmp_path, ansible_environment, *options)
        lines = [line for line in told.splitlines() if line.startswith(("+", "-", "@"))]
        assert lines == [f"+ volume {name}: raw, 1 GiB, {share}/{name}" for name in names]
    told = output([task(SNAPSHOT, volumes=["v00", "v01"], name="s")], share, tmp_path, ansible_environment, "--diff")
    snapshots = [f"+ snapshot {name}@s, the active image is now {share}/{name}.s" for name in ("v00", "v01")]
    assert [line for line in told.splitlines() if line.startswith(("+", "-", "@"))] == snapshots
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 3M", str(share / "v00.s")], check=True)
    back = [task(SNAPSHOT, volume="v00", name="s", state="reverted"), task(SNAPSHOT, snapshots=[{"volume": "v00", "name": "s", "state": "reverted"}])]
    for one in back:
        told = output([one], share, tmp_path, ansible_environment, "--check", "--diff")
        assert ("+++ after: v00@s" if one is back[0] else "+ content of v00: ") in told
        assert "goes back to snapshot s of 20" in told and ": about 3" in told and "bytes), to be dropped" in told
    assert "goes back" in output(back, share, tmp_path, ansible_environment, "--diff")
    told = output(back, share, tmp_path, ansible_environment, "--diff")
    assert "goes back" not in told and "changed=0" in told
    gone = task(VOLUME, state="absent", volumes=[{"name": name} for name in names[2:]])
    told = output([gone], share, tmp_path, ansible_environment, "--diff")
    assert [line for line in told.splitlines() if line.startswith("- volume")] == [f"- volume {name}: raw, 1 GiB, {share}/{name}" for name in names[2:]]


@pytest.mark.slow
def test_what_lines_tell_of_many(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """Predicted and done alike: what was asked for, where deleted snapshots went, and nothing where nothing changed."""

    def told(module: str, **options: object) -> list[str]:
        foretold, done, again = ({**task(module, **options), "name": f"step {number}", "check_mode": number == 1} for number in (1, 2, 3))
        text = output([foretold, done, again], share, tmp_path, ansible_environment, "--diff").replace(str(share), "S")
        parts = [part.split("PLAY RECAP")[0] for part in text.split("TASK [")[1:]]
        found = [[line for line in part.splitlines() if line.startswith(("+", "-", "@", "~"))] for part in parts]
        assert len(found) == 3 and found[0] == found[1] and found[2] == []
        return found[1]

    plain, rich = {"name": "a"}, {"name": "b", "mode": "0600", "owner": "0", "labels": {"team": "blue"}, "description": "for\ntests", "format": "qcow2"}
    assert told(VOLUME, size="1M", volumes=[plain, rich]) == [
        "+ volume a: raw, 1 MiB, S/a",
        '+ volume b: qcow2, 1 MiB, S/b, mode 0600, owner 0, labels team=blue, "for\\ntests"',
    ]
    one, two = {"volume": "a", "name": "s1", "labels": {"k": "v"}}, {"volume": "b", "name": "s1", "protected": True, "description": "d"}
    assert told(SNAPSHOT, snapshots=[one, two]) == [
        "+ snapshot a@s1, labels k=v, the active image is now S/a.s1",
        '+ snapshot b@s1, "d", protected, the active image is now S/b.s1',
    ]
    assert told(SNAPSHOT, snapshots=[{"volume": "b", "name": "s1", "protected": False}]) == ["~ snapshot b@s1: protected true -> false"]
    told(SNAPSHOT, volumes=["a", "b"], name="s2")
    told(SNAPSHOT, volumes=["a"], name="s3")
    gone = told(SNAPSHOT, snapshots=[{"volume": "a", "names": ["s1", "s2"], "state": "absent"}, {"volume": "b", "name": "s2", "state": "absent"}])
    assert gone[:2] == ["- snapshot a@s1, merged into a", "- snapshot a@s2, merged into a"] or "merged into a.s" in gone[0]
    assert gone[2].startswith("- snapshot b@s2, merged into b")
    changed = [{"name": "a", "size": "2M", "labels": {"x": "y"}}, {"name": "b", "mode": "0660"}]
    assert told(VOLUME, volumes=changed) == ["~ volume a: labels none -> x=y, 1 MiB -> 2 MiB", "~ volume b: mode 0660"]
    told(SNAPSHOT, volumes=["a"], name="s4")
    back = told(SNAPSHOT, snapshots=[{"volume": "a", "name": "s3", "state": "reverted", "discard_newer": True}])
    assert back[0].startswith("- snapshot a@s4, discarded") and back[1].endswith(", since which nothing was written") and len(back) == 3
    gone = told(VOLUME, state="absent", cascade=True, volumes=[plain, {"name": "b"}])
    assert gone[0].startswith("- volume a: qcow2, 2 MiB, S/a.s") and gone[0].endswith(", snapshots s3")
    assert gone[1].startswith("- volume b: qcow2, 1 MiB, S/b.s") and gone[1].endswith(", snapshots s1") and len(gone) == 2


@pytest.mark.slow
def test_items_that_nobody_can_tell_apart(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """An item without a name is told by its place. What two items want differently is left alone, and others are not; one may go and be
    made anew, and say the same twice."""
    twice = "items 1, 3 of the list want it differently"
    wrong = [
        (VOLUME, {"volumes": [{"name": "x", "size": "1M"}, {"name": "sound", "size": "1M"}, {"name": "x", "size": "2M"}]}, "volume x", twice),
        (
            SNAPSHOT,
            {"name": "s", "snapshots": [{"volume": one, "description": text} for one, text in (("sound", "1"), ("other", ""), ("sound", "2"))]},
            "snapshot s of volume sound",
            twice,
        ),
        (VOLUME, {"size": "1M", "volumes": [{"name": "sound"}, {"name": "other"}, {}]}, "item 3", "option name is missing"),
        (SNAPSHOT, {"name": "s", "snapshots": [{"volume": "other"}, {"name": "t"}, {"volume": "sound", "name": ""}]}, "item 2", "option volume is missing"),
    ]
    tasks = [task(VOLUME, size="1M", volumes=[{"name": "sound"}, {"name": "other"}])]
    for module, options, subject, problem in wrong:
        for check_mode in (True, False):
            tasks += [
                {**failing(module, **options), "check_mode": check_mode},
                check(
                    f"'{subject}: {problem}' in done.msg and 'None' not in done.msg and done.error_code == 'invalid_parameter'",
                    f"done.msg.count('{subject}') == 1 and done.results | selectattr('failed') | selectattr('msg', 'search', '{subject}') | length > 0",
                    "done.results | rejectattr('failed') | length >= 1 and 'None' not in done.results | map(attribute='name')",
                ),
            ]
    tasks += [
        task(SNAPSHOT, volume="other", name="t"),
        task(SNAPSHOT, snapshots=[{"volume": "other", "name": "t", "state": "absent"}, {"volume": "other", "name": "t", "description": "anew"}]),
        check("done.volumes[1].snapshots[-1].description == 'anew'"),
        task(VOLUME, size="1M", volumes=[{"name": "again"}, {"name": "again"}]),
        check("done.results | map(attribute='changed') == [true, false]"),
        task(VOLUME, size="1M", volumes=[{"name": "again", "state": "absent"}, {"name": "again"}]),
        check("done.results | map(attribute='changed') == [true, true]"),
        task(VOLUME, name="again", state="absent"),
        failing(VOLUME, name="other", state="absent"),
        check("done.msg.startswith('volume other: it still has')"),
        failing(VOLUME, volumes=[{"name": "other"}], state="absent"),
        check("done.msg.startswith('1 of 1 volumes failed. volume other: it still has')"),
        {"remotefs.storage.remotefs_volume_info": {"share": "SHARE"}, "register": "found"},
        check("found.volumes | map(attribute='name') | sort == ['other', 'sound']"),
    ]
    recap = play(tasks, share, tmp_path, ansible_environment)
    assert recap["failed"] == 0 and recap["ok"] == len(tasks)


@pytest.mark.slow
def test_what_messages_tell(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """Lists are cut, sizes are told as people read them, a wrong type names the option and the way out."""
    wrong = [
        (VOLUME, {"volumes": {"a": {"size": "1G"}}}, "volumes"),
        (VOLUME, {"volumes": ["a", "b"]}, "volumes"),
        (VOLUME, {"volumes": "a,b"}, "volumes"),
        (SNAPSHOT, {"snapshots": {"a": {"name": "s"}}}, "snapshots"),
        (SNAPSHOT, {"snapshots": ["a"]}, "snapshots"),
    ]
    tasks = [
        task(VOLUME, name="v", size="10G"),
        failing(VOLUME, name="v", size="5632K"),
        check("'10 MiB (10485760 bytes)' in done.msg and '5.5 MiB (5767168 bytes)' in done.msg"),
        task(SNAPSHOT, snapshots=[{"volume": "v", "name": f"s{number}"} for number in range(37)]),
        failing(VOLUME, name="v", state="absent"),
        check("done.error_code == 'has_snapshots' and 's19 and 17 more)' in done.msg and 's20' not in done.msg"),
        failing(SNAPSHOT, volume="v", name="none", state="reverted"),
        check("'s19 and 17 more)' in done.msg"),
    ]
    for module, options, option in wrong:
        tasks += [
            failing(module, **options),
            check(f"done is failed and done.error_code == 'invalid_parameter' and \"'{option}'\" in done.msg", "'remotefs.storage.items' in done.msg"),
        ]
    tasks += [failing(VOLUME, name="v", preallocation="some"), check("done.error_code == 'invalid_parameter' and 'items' not in done.msg")]
    recap = play(tasks, share, tmp_path, ansible_environment)
    assert recap["failed"] == 0 and recap["ok"] == len(tasks)


GLOBS = [
    *((SNAPSHOT, {"volume": "ci-1", "name": "s*", "state": state}, "globs go into names") for state in ("absent", "reverted", "present")),
    (SNAPSHOT, {"volumes": ["ci-*"], "name": "s?", "state": "absent"}, "globs go into names"),
    (SNAPSHOT, {"snapshots": [{"volume": "ci-1", "name": "[st]*", "state": "absent"}]}, "globs go into names"),
    (SNAPSHOT, {"volume": "ci-*", "name": "s", "state": "absent"}, "globs go into volumes"),
    (SNAPSHOT, {"snapshots": [{"volume": "ci-*", "name": "s2"}]}, "globs go into volumes"),
    (VOLUME, {"name": "ci-*", "state": "absent"}, "remotefs.storage.items"),
    (VOLUME, {"volumes": [{"name": "ci-1*"}], "state": "absent", "cascade": True}, "remotefs.storage.items"),
    (VOLUME, {"name": "new", "source": {"volume": "ci-*"}}, "remotefs.storage.items"),
    (VOLUME, {"name": "ci-1", "snapshot": "s*"}, "globs go into names"),
]


@pytest.mark.slow
def test_globs_where_none_are_taken(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """A name that holds a glob does nothing, in check mode neither, and the message says which option takes globs."""
    tasks: list[dict] = [task(VOLUME, size="1M", volumes=[{"name": "ci-1", "snapshot": "s1"}])]
    for module, options, advice in GLOBS:
        for check_mode in (True, False):
            tasks += [
                {**failing(module, **options), "check_mode": check_mode},
                check("done.error_code == 'invalid_name' and done is not changed", f"'{advice}' in done.msg"),
            ]
    tasks += [
        task(SNAPSHOT, volume="ci-1", names=["none-*"], state="absent"),
        check("done is not changed and done.volume.snapshots | map(attribute='name') == ['s1']"),
        task(SNAPSHOT, volume="ci-1", names=["s*"], state="absent"),
        check("done is changed and done.volume.snapshots == []"),
    ]
    recap = play(tasks, share, tmp_path, ansible_environment)
    assert recap["failed"] == 0 and recap["ok"] == len(tasks)


@pytest.mark.slow
def test_action_groups(share: Path, tmp_path: Path, ansible_environment: dict, checkout: Path) -> None:
    groups = yaml.safe_load((checkout / "meta" / "runtime.yml").read_text())["action_groups"]
    modules = {path.stem for path in (checkout / "plugins" / "modules").glob("remotefs_*.py")}
    assert set(groups["remotefs"]) == modules
    for group, option in (("volumes", "share"), ("changes", "return_detail")):  # who has the latter has all common options of changes
        having = {name for name in modules if f"  {option}:" in document(checkout, name)}
        assert set(groups[group]) == having, group
    defaults = {
        "group/remotefs.storage.remotefs": {"mount_base": "/var/lib/remotefs/mnt"},
        "group/remotefs.storage.volumes": {"share": str(share)},
        "group/remotefs.storage.changes": {"lock_timeout": 5},
    }
    tasks = [
        {VOLUME: {"name": "v", "size": "1M"}},
        {SNAPSHOT: {"volume": "v", "name": "s"}},
        {"remotefs.storage.remotefs_volume_info": {}, "register": "volumes"},
        {"remotefs.storage.remotefs_snapshot_info": {}, "register": "points"},
        {"remotefs.storage.remotefs_share_info": {}, "register": "shares"},
        check("volumes.volumes[0].name == 'v' and points.snapshots[0].name == 's' and shares.shares | length == 1"),
    ]
    block = {"module_defaults": defaults, "block": tasks}
    assert play([block], share, tmp_path, ansible_environment)["failed"] == 0


def document(checkout: Path, module: str) -> str:
    """The options of a module, with the fragments that it extends."""
    text = (checkout / "plugins" / "modules" / f"{module}.py").read_text().split("EXAMPLES")[0]
    plain, change = (checkout / "plugins" / "doc_fragments" / "store.py").read_text().split("CHANGE = ")
    change, many = change.split("MANY = ")
    plain, shares = plain.split("SHARES = ")
    parts = {"store": plain, "store.shares": shares.split("ATTACHMENT = ")[0], "store.change": change, "store.many": many}
    return text + "".join(part for name, part in parts.items() if f"- remotefs.storage.{name}\n" in text)
