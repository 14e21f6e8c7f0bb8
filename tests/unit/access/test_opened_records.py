# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of opened points, their names, and the command line of the daemon."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.access import guard, holder
from ansible_collections.remotefs.storage.plugins.module_utils.access.command_line import command_line
from ansible_collections.remotefs.storage.plugins.module_utils.access.record import Part, Point, Record, Target
from ansible_collections.remotefs.storage.plugins.module_utils.access.targets import target_at
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter, ToolFailed

POINT = Point("/srv/vols", "nas1:/vols", "db01", "tuesday", (Part("db01.a", 1, 2), Part("db01", 1, 3)), 1 << 30)
RECORD = Record(Target(guard.NBD, "/run/db01.nbd"), POINT, "a-boot", 12.5, "2026-11-28T03:00:00Z", 11, 12, "0a1b")


@pytest.mark.parametrize("snapshot", ["tuesday", None])
def test_a_record_is_read_as_it_was_written(snapshot: str | None) -> None:
    record = replace(RECORD, point=replace(POINT, snapshot=snapshot))
    assert Record.from_text(record.to_text(), "here") == record


@pytest.mark.parametrize("name", ["caf\udce9", "a\nb", "\u202e", "\x85", "\ud800", "n" * 255, "{{ 1 }}"])
def test_a_share_has_any_name(name: str) -> None:
    record = replace(RECORD, point=replace(POINT, share="/srv/" + name, source="nas1:/" + name))
    assert Record.from_text(record.to_text(), "here") == record


LIES = [
    ("version", 2), ("version", None), ("boot", ""), ("boot", 1), ("boot", "a\nb"), ("boot", "x" * 5000), ("ends", -1), ("ends", "1"), ("ends", True),
    ("ends", 1e300), ("opened", None), ("guard", -1), ("guard", True), ("guard", 1 << 31), ("guard", 1.0), ("daemon", "1"),
    ("mark", ""), ("mark", "../x"), ("mark", 7),
    ("target", None), ("target", []), ("target", {"kind": "nbd"}),
    ("target", {"kind": "disk", "path": "/x"}), ("target", {"kind": "nbd", "path": "x"}), ("target", {"kind": "nbd", "path": "/a/../x"}),
    ("target", {"kind": ["nbd"], "path": "/x"}), ("point", None), ("point", []),
]
POINT_LIES = [
    ("share", "vols"), ("share", None), ("share", "/a\0"), ("share", "/a/../b"), ("share", "/" * 5000), ("source", ""), ("source", "\0"),
    ("volume", 1), ("snapshot", ""), ("snapshot", 7), ("parts", None), ("parts", [["db01", 1]]),
    ("parts", [["db01", -1, 2]]), ("parts", [["", 1, 2]]), ("parts", "abc"), ("size", -1), ("size", 1 << 63), ("size", None),
]


@pytest.mark.parametrize(("key", "value"), LIES)
def test_what_is_no_record(key: str, value: object) -> None:
    told = {**json.loads(RECORD.to_text()), key: value}
    with pytest.raises(ToolFailed, match="here: it is no record of an opened point"):
        Record.from_text(json.dumps(told), "here")


@pytest.mark.parametrize("key", ["version", "target", "point", "boot", "ends", "opened", "guard", "daemon", "mark"])
def test_nothing_is_missing(key: str) -> None:
    told = json.loads(RECORD.to_text())
    del told[key]
    with pytest.raises(ToolFailed):
        Record.from_text(json.dumps(told), "here")


@pytest.mark.parametrize(("key", "value"), POINT_LIES)
def test_what_is_no_point(key: str, value: object) -> None:
    told = json.loads(RECORD.to_text())
    told["point"][key] = value
    with pytest.raises(ToolFailed):
        Record.from_text(json.dumps(told), "here")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"ends": NaN}', "[" * 100000])
def test_what_is_no_object(text: str) -> None:
    with pytest.raises(ToolFailed):
        Record.from_text(text, "here")


def test_each_target_has_a_folder_of_its_own() -> None:
    targets = [Target(kind, path) for kind in (guard.FUSE, guard.NBD) for path in ("/a", "/b", "/a/b")]
    assert len({target.name for target in targets}) == len(targets) and all(len(target.name) == 20 for target in targets)
    assert [target.option for target in targets[::3]] == ["path", "nbd"]


def test_one_name_for_a_path(tmp_path: Path) -> None:
    """A link in its directory leads to the same target; the last part is not followed."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "there" / "point").symlink_to("elsewhere")
    assert target_at(guard.FUSE, str(tmp_path / "link" / "point")) == target_at(guard.FUSE, str(tmp_path / "there" / "." / "point"))
    assert target_at(guard.FUSE, str(tmp_path / "link" / "point")).path == str(tmp_path / "there" / "point")
    for path in ("point", "", "/", "/x/", "/x/..", "/x\n", "/" + "x" * 5000):
        with pytest.raises(InvalidParameter, match="option path"):
            target_at(guard.FUSE, path)
    with pytest.raises(InvalidParameter, match="more than 107 bytes"):
        target_at(guard.NBD, "/" + "x" * 107)


def nodes(words: list[str]) -> list[dict]:
    return [json.loads(words[number + 1]) for number, word in enumerate(words) if word == "--blockdev"]


@pytest.mark.parametrize("locks", [True, False])
def test_every_node_of_the_chain_is_named(locks: bool) -> None:
    """From the base up, each with its format, read-only, and with the node below it."""
    words = command_line("/usr/bin/qsd", "/run/x/pid", Target(guard.NBD, "/run/s"), "db01@tuesday", ["qcow2", "qcow2", "raw"], [7, 8, 9], locks)
    assert words[:3] == ["/usr/bin/qsd", "--pidfile", "/run/x/pid"]
    every = nodes(words)
    assert [node["node-name"] for node in every] == ["file2", "layer2", "file1", "layer1", "file0", "layer0"]
    assert [node["filename"] for node in every[::2]] == ["/proc/self/fd/9", "/proc/self/fd/8", "/proc/self/fd/7"]
    assert all(node["read-only"] is True for node in every) and {node["locking"] for node in every[::2]} == {"on" if locks else "auto"}
    assert [(node["driver"], node["file"], node.get("backing", "none")) for node in every[1::2]] == [
        ("raw", "file2", "none"), ("qcow2", "file1", "layer2"), ("qcow2", "file0", "layer1"),
    ]
    assert json.loads(words[words.index("--nbd-server") + 1]) == {"addr": {"type": "unix", "path": "/run/s"}}
    export = json.loads(words[words.index("--export") + 1])
    assert export == {"type": "nbd", "id": "point", "node-name": "layer0", "writable": False, "name": "db01@tuesday"}


def test_a_lone_overlay_rests_on_nothing() -> None:
    """Without that word QEMU would open what the header names."""
    words = command_line("qsd", "pid", Target(guard.FUSE, "/run/f"), "db01", ["qcow2"], [7], True)
    assert nodes(words)[1]["backing"] is None and "backing" in nodes(words)[1] and "--nbd-server" not in words
    export = json.loads(words[words.index("--export") + 1])
    assert (export["type"], export["mountpoint"], export["writable"], export["growable"], export["allow-other"]) == ("fuse", "/run/f", False, False, "off")


def test_the_guard_stands_alone() -> None:
    """It runs in an interpreter without the collection: it imports the standard library alone, and its program can be read."""
    source = holder._source()
    assert source == Path(guard.__file__).read_text()
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module))
    assert imported - {"__future__"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ({"ends": guard.clock() + 1000, "boot": guard.boot()}, True),
        ({"ends": guard.clock() - 1, "boot": guard.boot()}, False),
        ({"ends": guard.clock() + 1000, "boot": "another"}, False),
        ({"ends": "soon", "boot": guard.boot()}, False),
        ({"boot": guard.boot()}, False),
        ([], False),
        (None, False),
    ],
)
def test_when_the_time_is_over(tmp_path: Path, told: object, left: bool) -> None:
    """Also where nobody can tell: what is opened for ever helps nobody."""
    record = tmp_path / guard.RECORD
    if told is not None:
        record.write_text(json.dumps(told))
    assert (guard._left(str(record)) > 0) is left


def test_traces_of_others_stay(tmp_path: Path) -> None:
    """Only an unchanged file of ours, or a socket at which nobody listens, is taken away."""
    ours, changed, linked = tmp_path / "ours", tmp_path / "changed", tmp_path / "linked"
    for path in (ours, linked):
        path.write_bytes(guard.PLACEHOLDER)
    changed.write_bytes(guard.PLACEHOLDER[:-1] + b"x")
    (tmp_path / "second").hardlink_to(linked)
    (tmp_path / "link").symlink_to(ours)
    for path in (changed, linked, tmp_path / "link", tmp_path / "none", tmp_path):
        assert not guard.remove_traces(guard.FUSE, str(path)) and not guard.remove_traces(guard.NBD, str(path))
    assert not guard.remove_traces(guard.NBD, str(ours)) and changed.exists() and linked.exists()
    assert guard.remove_traces(guard.FUSE, str(ours)) and not ours.exists()
