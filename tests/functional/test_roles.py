# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles as playbooks meet them: every form of their lists, and what volumes_exclusive removes and leaves alone."""
from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading

from .test_clones import write
from .test_refusals import MIB, Store

ROLES = Path(__file__).resolve().parents[2] / "roles"

pytestmark = pytest.mark.slow


class Player:
    """Plays tasks on a directory."""

    def __init__(self, tmp_path: Path, environment: dict) -> None:
        self.share = tmp_path / "share"
        self.share.mkdir()
        self.backup = tmp_path / "backup"
        self._book = tmp_path / "book.yml"
        self._environment = environment

    def role(self, name: str, **variables: object) -> dict:
        return {"ansible.builtin.include_role": {"name": f"remotefs.storage.{name}"}, "vars": {f"{name}_share": str(self.share), **variables}}

    def volumes(self, volumes: object, **variables: object) -> dict:
        return self.role("volumes", volumes_volumes=volumes, volumes_size="1M", **variables)

    def replicas(self, volumes: object, **variables: object) -> dict:
        """Replicas of volumes, or of what an expression selects, on the share ``backup``."""
        own = {f"replicas_{name}": value for name, value in variables.items()}
        return self.role("replicas", replicas_to=str(self.backup), **{"replicas_select" if isinstance(volumes, str) else "replicas_volumes": volumes}, **own)

    def names(self) -> list[str]:
        """Volumes without snapshots, and what volumes with snapshots are made of."""
        return sorted(path.name for path in self.share.iterdir() if path.name != ".remotefs")

    def play(self, *tasks: dict, options: tuple = (), fails: str = "") -> str:
        return self.play_book([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], options, fails)

    def play_book(self, book: list[dict], options: tuple = (), fails: str = "") -> str:
        self._book.write_text(json.dumps(book))
        argv = ["ansible-playbook", *options, str(self._book)]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, check=False)
        told = " ".join((done.stdout + done.stderr).split())
        assert (done.returncode != 0) == bool(fails) and fails in told and WAS_DONE not in told, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def player(tmp_path: Path, ansible_environment: dict) -> Player:
    return Player(tmp_path, {**ansible_environment, "ANSIBLE_STDOUT_CALLBACK": "default", "COLUMNS": "4000"})


def asserted(*wanted: str) -> dict:
    return {"ansible.builtin.assert": {"that": list(wanted), "quiet": True}}


def unchanged(output: str) -> bool:
    return " changed=0 " in output


def test_volumes_in_every_form(player: Player) -> None:
    forms = ["a", "b"], {"c": {"size": "2M"}, "d": None}, ["e", {"name": "f", "format": "qcow2"}]
    tasks = [player.volumes(form) for form in forms]
    player.play(*tasks)
    assert player.names() == ["a", "b", "c", "d", "e", "f"]
    assert unchanged(player.play(*tasks))
    player.play(player.volumes("a"), fails="remotefs.storage.items: the input must be a list of names")
    player.play(player.volumes([{"size": "1M"}]), fails="An item of volumes_volumes has no name.")
    player.play(player.volumes(forms[1], volumes_state="absent"), player.volumes({"a": {"state": "absent"}}))
    assert player.names() == ["b", "e", "f"]


def test_snapshots_in_every_form(player: Player) -> None:
    tasks = [
        player.volumes(["a", "b", "c"]),
        player.role("snapshots", snapshots_snapshots=["a", "b"], snapshots_name="one"),
        player.role("snapshots", snapshots_snapshots={"a": {"name": "two"}, "c": None}, snapshots_name="three"),
        player.role("snapshots", snapshots_snapshots=["a", {"volume": "b", "name": "five"}], snapshots_name="four"),
        player.role("snapshots", snapshots_snapshots=["a", "b"], snapshots_name="group", snapshots_group=True),
        player.role("snapshots", snapshots_select="[?contains(snapshots[].name, 'three')].name", snapshots_name="six"),
    ]
    player.play(*tasks)
    taken = ["a.one", "a.two", "a.four", "a.group", "b.one", "b.five", "b.group", "c.three", "c.six"]
    assert player.names() == sorted([*"abc", "a.info", "b.info", "c.info", *taken])
    assert unchanged(player.play(*tasks))
    player.play(player.role("snapshots", snapshots_snapshots={"a": {"name": "x"}}, snapshots_group=True), fails="With snapshots_group all volumes get one")
    player.play(player.role("snapshots", snapshots_name="x"), fails="Give either snapshots_select")
    player.play(
        player.role("snapshots", snapshots_snapshots={"a": {"names": ["one", "two"]}, "b": None}, snapshots_name="five", snapshots_state="absent"),
        player.role("snapshots", snapshots_snapshots=["c"], snapshots_name="three", snapshots_state="reverted", snapshots_discard_newer=True),
        {"remotefs.storage.remotefs_volume_info": {"share": str(player.share)}, "register": "found"},
        asserted("found.volumes | map(attribute='snapshots') | map('map', attribute='name') | map('list') == [['four', 'group'], ['one', 'group'], ['three']]"),
    )


def test_volumes_are_written_out(player: Player, tmp_path: Path) -> None:
    """Check mode makes none. The second time is no change. A token is in no output."""
    images = [
        {"volume": "a", "dest": str(tmp_path / "a.raw")},
        {"volume": "b", "snapshot": "kept", "dest": str(tmp_path / "b.qcow2"), "format": "qcow2", "mode": "0640"},
    ]
    tasks = [
        player.volumes([{"name": "a"}, {"name": "b", "snapshot": "kept"}], volumes_images=images),
        asserted("volumes_images_result.results | map(attribute='size') == [1048576, 1048576]"),
    ]
    player.play(tasks[0], options=("--check",))
    assert not (tmp_path / "a.raw").exists()
    player.play(*tasks)
    assert (tmp_path / "a.raw").read_bytes() == bytes(1 << 20) and (tmp_path / "b.qcow2").stat().st_mode & 0o777 == 0o640
    assert unchanged(player.play(*tasks))
    secret = [{"volume": "a", "dest": "http://127.0.0.1:9/image", "headers": {"X-Auth-Token": "a-long-token"}}]
    told = player.play(player.volumes(["a"], volumes_images=secret), options=("-vvv",), fails="the output has been hidden")
    assert "a-long-token" not in told


def test_only_what_the_role_makes_is_marked(player: Player) -> None:
    """Not what somebody else made, not even when it is declared later or gets labels; and a mark outlasts new labels."""
    foreign = {"remotefs.storage.remotefs_volume": {"share": str(player.share), "name": "foreign", "size": "1M", "labels": {"team": "red"}}}
    info = {"remotefs.storage.remotefs_volume_info": {"share": str(player.share)}, "register": "found"}
    labels = "dict(found.volumes | map(attribute='name') | zip(found.volumes | map(attribute='labels')))"
    first = player.volumes({"made": {}, "foreign": {}, "red": {"labels": {"team": "red"}}})
    second = player.volumes({"made": {"labels": {"team": "blue"}}, "foreign": {"labels": {"team": "blue"}}, "red": {}})
    third = player.volumes({"made": {}, "new": {}, "gone": {"state": "absent"}}, volumes_labels={"team": "green"})
    mark = "'remotefs_role': 'volumes'"
    player.play(
        foreign,
        first,
        info,
        asserted(f"{labels} == {{'foreign': {{'team': 'red'}}, 'made': {{{mark}}}, 'red': {{'team': 'red', {mark}}}}}"),
        second,
        info,
        asserted(f"{labels} == {{'foreign': {{'team': 'blue'}}, 'made': {{'team': 'blue', {mark}}}, 'red': {{'team': 'red', {mark}}}}}"),
        third,
        info,
        asserted(f"({labels}).new == {{'team': 'green', {mark}}}", f"({labels}).made == ({labels}).new"),
    )
    assert unchanged(player.play(third))


def exclusive(player: Player, volumes: object, within: object = "ci-*", how: object = True, **more: object) -> dict:
    return player.volumes(volumes, volumes_exclusive=how, volumes_exclusive_within=within, **more)


def test_what_is_no_longer_declared_goes(player: Player) -> None:
    by_hand = {"remotefs.storage.remotefs_volume": {"share": str(player.share), "name": "ci-by-hand", "size": "1M", "labels": {"team": "blue"}}}
    player.play(player.volumes(["ci-1", "ci-2", "ci-3", "db"]), by_hand)
    (player.share / "ci-a-file").write_bytes(b"\0" * 512)
    everything = player.names()
    told = player.play(exclusive(player, ["ci-1"], how="report"), asserted("volumes_undeclared | map(attribute='name') == ['ci-2', 'ci-3']"))
    assert "made by this role and would be removed: ci-2, ci-3" in told and "left alone: ci-a-file, ci-by-hand" in told and player.names() == everything
    assert not unchanged(player.play(exclusive(player, ["ci-1"]), options=("--check", "--diff"))) and player.names() == everything
    assert unchanged(player.play(exclusive(player, ["ci-1"], how=False))) and player.names() == everything
    player.play(exclusive(player, ["ci-1"]))
    assert player.names() == ["ci-1", "ci-a-file", "ci-by-hand", "db"]
    assert unchanged(player.play(exclusive(player, ["ci-1"])))


def test_by_labels_and_with_snapshots(player: Player) -> None:
    player.play(
        player.volumes(["a", "b", "c"], volumes_labels={"team": "blue", "kind": "ci"}),
        player.volumes(["d"], volumes_labels={"team": "red", "kind": "ci"}),
        player.volumes(["e"]),
        player.role("snapshots", snapshots_snapshots=["b"], snapshots_name="kept"),
    )
    blue = {"team": "blue", "kind": "ci"}
    player.play(exclusive(player, ["a"], blue), fails="snapshot")  # b has one; c goes all the same
    assert player.names() == ["a", "b", "b.info", "b.kept", "d", "e"]
    player.play(exclusive(player, ["a"], blue, volumes_exclusive_cascade=True))
    assert player.names() == ["a", "d", "e"]


@pytest.mark.parametrize("within", ["", {}, {"team": 1}, ["ci-*"], None])
def test_without_bounds_nothing_goes(player: Player, within: object) -> None:
    player.play(player.volumes(["ci-1", "ci-2"]), exclusive(player, ["ci-1"], within), fails="volumes_exclusive_within must be a glob of names")
    assert player.names() == ["ci-1", "ci-2"]


@pytest.mark.parametrize("within", ["", {"team": 1}])
def test_without_bounds_nothing_is_made_either(player: Player, within: object) -> None:
    player.play(exclusive(player, ["ci-1"], within), fails="volumes_exclusive_within must be a glob of names")
    assert player.names() == []


def test_what_a_controller_without_jmespath_can_do(tmp_path: Path, ansible_environment: dict) -> None:
    """The roles share and volumes do without it, and snapshots and replicas with names too; an expression is refused before anything is done."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "jmespath.py").write_text("raise ImportError('hidden for a test')")
    paths = f"{hidden}:{ansible_environment['PYTHONPATH']}"
    player = Player(tmp_path, {**ansible_environment, "ANSIBLE_STDOUT_CALLBACK": "default", "COLUMNS": "4000", "PYTHONPATH": paths})
    named = player.role("snapshots", snapshots_snapshots=["ci-1"], snapshots_name="s")
    player.backup.mkdir()
    sent, not_sent = player.replicas(["ci-1"]), refused(player.replicas("[].name"))
    told = player.play(player.volumes(["ci-1", "ci-2"]), asserted("volumes_undeclared == [] and volumes_left_alone == []"), named, sent, not_sent)
    assert points(player.backup) == {"ci-1": ["s"]} and "the Python package jmespath is missing on the controller" in told
    told = player.play(exclusive(player, ["ci-1"]), asserted("volumes_undeclared | map(attribute='name') == ['ci-2']", "'share' in volumes_undeclared[0]"))
    assert "made by this role and is removed: ci-2" in told and player.names() == ["ci-1", "ci-1.info", "ci-1.s"]
    selected = player.role("snapshots", snapshots_select="[].name", snapshots_name="t")
    player.play(selected, fails="the Python package jmespath is missing on the controller; install it")
    assert player.names() == ["ci-1", "ci-1.info", "ci-1.s"]


def test_a_selection_of_nothing_has_a_result(player: Player) -> None:
    nothing = player.role("snapshots", snapshots_select="[?name == 'none'].name", snapshots_name="t")
    player.play(player.volumes(["a"]), nothing, asserted("snapshots_result.results == [] and snapshots_result.volumes == [] and not snapshots_result.changed"))


def test_an_empty_declaration_removes_nothing(player: Player) -> None:
    player.play(player.volumes(["ci-1"]), exclusive(player, []), fails="volumes_volumes is empty")
    player.play(exclusive(player, ["ci-1"], how="maybe"), fails="value of volumes_exclusive must be one of")
    assert player.names() == ["ci-1"]


WAS_DONE = "what was to be refused was done"


def refused(task: dict) -> dict:
    """A task that fails, in a play that goes on. Its reason is in the output: older ansible-cores do not give that of an included task to ``rescue``."""
    return {"block": [task, {"ansible.builtin.fail": {"msg": WAS_DONE}}], "rescue": [asserted("true")]}


def stored(player: Player, *names: str, snapshots: tuple[str, ...] = ()) -> None:
    """Makes volumes with snapshots, without Ansible; what is sent differs from zeros."""
    store = Store(player.share)
    for name in names:
        store.present(name, size=MIB)
        for number, snapshot in enumerate(snapshots, start=1):
            write(store, name, number)
            store.snapshot(snapshot, name)


def points(share: Path) -> dict[str, list[str]]:
    """The snapshots of each volume of a share."""
    return {volume["name"]: [one["name"] for one in volume["snapshots"]] for volume in reading.list_volumes(Store(share).share, [])}


def test_replicas_in_every_form(player: Player, tmp_path: Path) -> None:
    third = tmp_path / "third"
    for directory in (player.backup, third):
        directory.mkdir()
    stored(player, "a", "b", snapshots=("one", "two"))
    stored(player, "c")
    newest = {"match": "*", "last": 1}
    selected = player.replicas("[?snapshots].name")
    # c has nothing to send, and nothing to keep
    by_volume = player.replicas({"a": {"name": "x", "match": "o*", "to": None}, "b": {"to": str(third)}, "c": None}, keep=newest, return_detail=False)
    listed = player.replicas(["a", {"volume": "b"}], state="verified", keep=newest)
    sent = "replicas_result.results | map(attribute='points.sent') == {} and replicas_names == {}".format
    flip = {"ansible.builtin.shell": f"printf flipped | dd of={player.backup}/b conv=notrunc", "changed_when": False}
    played = player.play(  # at once, because each playbook has to pack the modules
        selected,
        asserted(sent([["one", "two"], ["one", "two"]], ["a", "b"])),
        by_volume,
        asserted(sent([["one"], ["one", "two"], []], ["x", "b"])),
        by_volume,
        asserted(sent([[], [], []], ["x", "b"])),
        listed,
        asserted("replicas_names == ['a', 'b']"),
        flip,
        refused(listed),
    )
    assert "its content differs from that of its source at byte 0" in played
    assert " changed=3 " in played, played  # two times something was sent, and one time retention had something to delete
    both = ["one", "two"]
    assert points(player.share) == {"a": both, "b": both, "c": []} and points(third) == {"b": ["two"]}
    assert points(player.backup) == {"a": both, "b": both, "x": ["one"]}


def test_replicas_are_foretold(player: Player) -> None:
    """Before anything is there, and nothing is made for it."""
    nothing = "replicas_result.results == [] and replicas_result.volumes == [] and replicas_names == [] and not replicas_result.changed"
    told = player.play(
        player.replicas(["a"], keep={"match": "*", "last": 1}),
        asserted("replicas_result.changed and replicas_names == ['a']"),
        player.replicas("[].name"),
        asserted(nothing),
        refused(player.replicas([])),
        options=("--check", "--diff"),
    )
    assert f"+ volume a: format unknown, size unknown, {player.backup}/a" in told and " changed=2 " in told
    assert "Give either replicas_select" in told
    assert player.names() == [] and not player.backup.exists()


def test_the_playbooks_of_the_role_replicas(player: Player, tmp_path: Path) -> None:
    """As its README has them, on directories: each night, under another name on another share, and each week."""
    text = (ROLES / "replicas" / "README.md").read_text()
    for name in ("backup", "archive"):
        (tmp_path / name).mkdir()
        text = text.replace(f"/srv/{name}", str(tmp_path / name))
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text.replace("/srv/volumes", str(player.share)), re.MULTILINE | re.DOTALL)
    books = [{**book, "hosts": "localhost", "gather_facts": False} for block in blocks for book in yaml.safe_load(block)]
    assert len(books) == 3
    stored(player, "db01", "db02", "web")
    assert "db01, db02: " in player.play_book(books)
    (taken,) = player.share.glob("db02.nightly-*")
    name = taken.name.removeprefix("db02.")
    assert points(player.share) == {"db01": [name], "db02": [name], "web": []}
    assert points(player.backup) == {"db01": [name], "db02": [name]} and points(tmp_path / "archive") == {"shop-db": [name]}


def comparison(file: str) -> dict:
    """The task by which a role compares the share with what was wanted."""
    (task,) = [task for task in yaml.safe_load((ROLES / file).read_text()) if task["name"].startswith("Compare")]
    return task


def told_wrong(player: Player, file: str, cases: list[tuple[dict, str]]) -> None:
    """What the comparison says about each state of a share: the names of what is wrong, or nothing."""
    task, tasks = comparison(file), []
    for variables, wrong in cases:
        tasks.append({**task, "vars": {**task["vars"], **variables}, "register": "told", "ignore_errors": True})
        tasks.append(asserted(f"(told is failed) == {bool(wrong)}", f"'as wanted: {wrong}' in told.msg" if wrong else "true"))
    player.play(*tasks)


def test_the_comparison_of_volumes_finds_what_is_wrong(player: Player) -> None:
    sound = {"name": "a", "size": 1 << 20, "base_format": "raw", "pending": None}

    def case(found: list, wrong: str, **wanted: object) -> tuple[dict, str]:
        item = {"name": "a", "share": "s", "state": "present", **wanted}
        return {"volumes_complete": [item], "volumes_candidates": "s", "volumes_size": "1M", "volumes_format": "", "volumes_found": {"volumes": found}}, wrong

    told_wrong(player, "volumes/tasks/verify.yml", [
        case([sound], ""),
        case([sound], "", size=str(1 << 20), format="raw"),
        case([], "a"),
        case([{**sound, "size": 2 << 20}], "a"),
        case([sound], "a", size="2M"),
        case([sound], "", size="1MiB"),
        case([sound], "", size=" 1 mib "),
        case([sound], "a", size="1GiB"),
        case([sound], "a", format="qcow2"),
        case([{**sound, "pending": {"operation": "x"}}], "a"),
        case([{"name": "a", "error_code": "chain_broken", "msg": "broken"}], "a"),
        case([sound, sound], "a"),
        case([sound], "a", state="absent"),
        case([], "", state="absent"),
    ])


def test_the_comparison_of_snapshots_finds_what_is_wrong(player: Player) -> None:
    def case(there: list, wrong: str, judged: list | tuple = (), **wanted: object) -> tuple[dict, str]:
        found = {"name": "a", "snapshots": [{"name": name} for name in there]}
        return {
            "snapshots_snapshots": [{"volume": "a", **wanted}], "snapshots_name": "x", "snapshots_names": [], "snapshots_state": "present",
            "snapshots_found": {"volumes": [found]}, "snapshots_result": {"results": [{"volume": {"name": "a"}, "retention": list(judged)}]},
        }, wrong

    told_wrong(player, "snapshots/tasks/change.yml", [
        case(["x"], ""),
        case(["y"], "a"),
        case(["x", "y"], "", name="y"),
        case(["x"], "a", name="y"),
        case(["x"], "a", state="absent"),
        case(["y"], "", state="absent"),
        case(["y"], "a", state="absent", names=["z", "y"]),
        case(["x"], "", state="absent", names=["z", "y"]),
        case(["y", "x"], "", state="reverted"),
        case(["x", "y"], "a", state="reverted"),
        case([], "a", state="reverted"),
        case(["x", "old"], "a", [{"name": "old", "keep": False}, {"name": "x", "keep": True}]),
        case(["x"], "", [{"name": "old", "keep": False}, {"name": "x", "keep": True}]),
        case(["y"], "", state="pruned"),
    ])


def test_the_comparison_of_replicas_finds_what_is_wrong(player: Player) -> None:
    def case(there: dict, wrong: str, *wanted: tuple[str, list, list]) -> tuple[dict, str]:
        found = [{"name": name, "snapshots": [{"name": one} for one in names]} for name, names in there.items() if names is not None]
        found += [{"name": name, "error_code": "chain_broken", "msg": "broken"} for name, names in there.items() if names is None]
        target = {"to": "t", "mount_base": "m"}
        there_too = {"name": "elsewhere", "to": "u", "mount_base": "m", "points": {"sent": ["x"], "present": [], "kept": []}}
        existing = [{"name": name, **target, "points": {"sent": sent, "present": present, "kept": ["k"]}} for name, sent, present in wanted]
        return {"replicas_target": ["t", "m"], "replicas_existing": [*existing, there_too], "replicas_found": {"volumes": found}}, wrong

    told_wrong(player, "replicas/tasks/verify.yml", [
        case({"a": ["x"]}, "", ("a", ["x"], [])),
        case({"a": ["x"]}, "", ("a", [], ["x"])),
        case({"a": ["y", "x", "k"]}, "", ("a", ["x"], ["y"])),
        case({"a": ["x", "k"]}, "a", ("a", ["x"], ["y"])),
        case({"a": ["y", "k"]}, "a", ("a", ["x"], ["y"])),
        case({"a": []}, "a", ("a", ["x"], [])),
        case({}, "a", ("a", [], [])),
        case({"a": ["x"]}, "", ("a", [], [])),
        case({"a": None}, "a", ("a", ["x"], [])),
        case({"a": ["x"], "b": ["y"]}, "b", ("a", ["x"], []), ("b", ["x"], [])),
        case({"a": ["y"], "b": ["x"]}, "a", ("a", ["x"], []), ("b", ["x"], [])),
    ])


NAMES_OF_AN_EXPORT = {"export_image": "/srv/x.xfs", "export_name": "x", "export_smb": {"share": "x", "user": "x"}}


def checked(refused_by: str = "", **variables: object) -> dict:
    """Whether the role export refuses variables, and in which task. Only its checks run."""
    role = {"name": "remotefs.storage.export", "tasks_from": "check", "public": False}
    given = {"export_path": "/srv/x", "export_host": "nas1", **NAMES_OF_AN_EXPORT, "export_gluster": {}, **variables}
    given["export_smb"] = {**given["export_smb"], "password": "not-a-secret"}
    task = {"ansible.builtin.include_role": role, "vars": given}
    if not refused_by:
        return task
    told = asserted(f"ansible_failed_task.name == {refused_by!r}")
    return {"block": [task, {"ansible.builtin.fail": {"msg": "not refused"}, "name": "Too late"}], "rescue": [told]}


def test_no_name_of_an_export_ends_with_a_line_break(player: Player) -> None:
    """It would end a command of a shell: one that removes an unfinished file would remove the finished one, with all volumes."""
    names = "Check the path and the names"
    player.play(
        checked(),
        checked(names, export_path="/srv/x\n", export_image="/srv/x.xfs"),
        checked(names, export_image="/srv/x.xfs\n"),
        checked(names, export_name="x\n"),
        checked(names, export_smb={"share": "x\n", "user": "x"}),
        checked(names, export_smb={"share": "global", "user": "x"}),
        checked(names, export_smb={}, export_gluster={"volume": "x\n"}),
        checked("Check the SMB share", export_smb={"share": "x", "user": "x\n"}),
    )
