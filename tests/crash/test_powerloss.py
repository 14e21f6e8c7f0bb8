# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model of a disk without power, by itself."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from . import powerloss
from .interposer import PYTHON, Event
from .powerloss import PAGE, Disk, Image

START = Image({"old": 1, "sub/kept": 2}, frozenset({"sub"}), {1: b"a" * 10, 2: b"k"})


def call(kind: str, name: str = "", other: str = "", **details) -> Event:
    if "data" in details:
        details["length"] = len(details["data"])
    return Event(kind, PYTHON, details.pop("inode", 0), 0, name, other, **details)


def lose(*events: Event, data: float = 0, names: float = 0, seed: int = 0) -> dict[str, bytes]:
    return Disk(START).feed(events).lose(data, names, random.Random(seed)).files()


SYNC_ROOT = call("fsync", "", directory=True)
SYNC_SUB = call("fsync", "sub", directory=True)
NEW = [call("create", "sub/tmp", inode=3), call("write", inode=3, data=b"new")]


def test_what_was_synced_is_there() -> None:
    assert lose(call("write", inode=1, data=b"bb"), call("fsync", inode=1))["old"] == b"bbaaaaaaaa"
    assert lose(call("truncate", inode=1, length=4), call("fsync", inode=1))["old"] == b"aaaa"
    assert lose(call("write", inode=1, data=b"bb", synced=True))["old"] == b"bbaaaaaaaa"


def test_what_was_not_is_not_or_is() -> None:
    write = call("write", inode=1, data=b"bb", offset=20)
    assert lose(write) == START.files()
    assert lose(write, data=1)["old"] == b"a" * 10 + bytes(10) + b"bb"
    assert lose(call("fsync", inode=1), write)["old"] == b"a" * 10
    assert lose(write, call("fsync", inode=2))["old"] == b"a" * 10, "the sync of another file"


def test_pages_are_lost_one_by_one() -> None:
    """The first part of the write shares its page with what was there; 4 pages, so 16 outcomes, all of them met."""
    write = call("write", inode=1, data=b"x" * (2 * PAGE + 5), offset=PAGE - 3)
    outcomes = {lose(write, data=0.5, seed=seed)["old"] for seed in range(300)}
    assert len(outcomes) == 16
    for outcome in outcomes:
        assert {outcome[at : at + 1] for at in range(PAGE, min(len(outcome), 2 * PAGE))} in ({b"x"}, {b"\0"}, set())


def test_zeros_and_reservations() -> None:
    punch = call("fallocate", inode=1, mode=3, offset=2, length=100)
    assert lose(punch, data=1)["old"] == b"aa" + bytes(8)
    assert lose(call("fallocate", inode=1, length=12), data=1)["old"] == b"a" * 10 + bytes(2)
    assert lose(call("fallocate", inode=1, mode=1, length=12), data=1)["old"] == b"a" * 10
    assert lose(call("fallocate", inode=1, mode=0x10, offset=8, length=4), data=1)["old"] == b"a" * 8 + bytes(4)
    with pytest.raises(AssertionError, match="no model"):
        lose(call("fallocate", inode=1, mode=8, length=1))


def test_a_name_needs_its_directory_and_content_its_file() -> None:
    publish = [*NEW, call("link", "sub/tmp", "new", inode=3), call("unlink", "sub/tmp", inode=3)]
    assert lose(*publish) == START.files()
    files = lose(*publish, SYNC_ROOT)
    assert files["new"] == b"", "the name is durable, the content is not"
    assert lose(*NEW, call("fsync", inode=3), *publish[2:], SYNC_ROOT)["new"] == b"new"


def test_a_rename_is_one_thing() -> None:
    renamed = [*NEW, call("fsync", inode=3), call("rename", "sub/tmp", "old", inode=3, replaced=1)]
    assert lose(*renamed) == START.files()
    for sync in (SYNC_ROOT, SYNC_SUB):
        assert lose(*renamed, sync) == {"old": b"new", "sub/kept": b"k"}
    for seed in range(30):
        files = lose(*renamed, names=0.5, seed=seed)
        assert ("sub/tmp" in files, files["old"]) in ((False, b"a" * 10), (True, b"a" * 10), (False, b"new"))


def test_names_are_kept_in_order_within_a_directory() -> None:
    events = [call("create", str(number), inode=10 + number) for number in range(4)]
    met = {tuple(sorted(set(lose(*events, names=0.5, seed=seed)) - set(START.names))) for seed in range(100)}
    assert met == {tuple(str(number) for number in range(count)) for count in range(5)}


def test_a_sync_keeps_what_came_before_in_the_other_directory() -> None:
    """The rename brings the earlier unlink of its first directory with it, but not a later one."""
    events = [call("unlink", "sub/kept", inode=2), *NEW, call("rename", "sub/tmp", "new", inode=3)]
    assert set(lose(*events, SYNC_ROOT)) == {"old", "new"}
    later = [*NEW, call("rename", "sub/tmp", "new", inode=3), call("unlink", "sub/kept", inode=2), SYNC_ROOT]
    assert set(lose(*later)) == {"old", "new", "sub/kept"}


def test_a_lost_directory_takes_its_files() -> None:
    events = [call("mkdir", "dir", inode=9), call("create", "dir/x", inode=3), call("fsync", "dir", directory=True)]
    assert lose(*events) == START.files()
    assert set(lose(*events, SYNC_ROOT)) == {*START.names, "dir/x"}


def test_materialised_with_the_same_inodes(tmp_path: Path) -> None:
    share, keep = tmp_path / "share", tmp_path / "keep"
    (share / "sub").mkdir(parents=True)
    keep.mkdir()
    (share / "a").write_bytes(b"now")
    (share / "b").hardlink_to(share / "a")
    (share / "sub" / "c").write_bytes(bytes(3 * PAGE))
    a, c = (share / "a").stat().st_ino, (share / "sub" / "c").stat().st_ino
    lost = tmp_path / "lost"
    lost.write_bytes(b"gone")
    inode = lost.stat().st_ino
    lost.rename(keep / str(inode))
    content = {a: b"then", c: b"x" + bytes(3 * PAGE) + b"y", inode: b"back"}
    wanted = Image({"a": inode, "other": a, "another": a, "c": c}, frozenset(), content)
    powerloss.materialise(share, keep, wanted)
    assert powerloss.scan(share) == wanted and not list(keep.iterdir())


def test_images_that_are_equal_have_equal_keys() -> None:
    same = Image(dict(START.names), frozenset(START.directories), dict(START.contents))
    others = [
        Image({"old": 1}, START.directories, START.contents),
        Image({"old": 2, "sub/kept": 1}, START.directories, START.contents),
        Image(START.names, frozenset(), START.contents),
        Image(START.names, START.directories, {1: b"a" * 10, 2: b"l"}),
    ]
    assert same.key() == START.key() and len({START.key(), *(other.key() for other in others)}) == 5
