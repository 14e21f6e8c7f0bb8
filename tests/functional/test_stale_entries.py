# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of ``.info`` whose file is no overlay of the chain: the volume works on, they are told, and ``absent`` takes them away."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating

from .test_clones import content
from .test_refusals import MIB, Store, refused


@pytest.fixture
def store(layered: Store) -> Store:
    return layered


def entries(store: Store) -> dict:
    return json.loads((store.path / "vol.info").read_text())


def add(store: Store, **more: str) -> None:
    (store.path / "vol.info").write_text(json.dumps({**entries(store), **more}))


def image(store: Store, file: str, backing: tuple[str, str] | None = None) -> None:
    below = ["-u", "-b", backing[0], "-F", backing[1]] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, str(store.path / file), str(MIB)], check=True)


def points(store: Store) -> list[bytes]:
    """The first bytes of s1, s2 and the present."""
    found = []
    for number, snapshot in enumerate(("s1", "s2")):
        store.present(f"copy{number}", updating.SourceRequest("vol", snapshot))
        found.append(content(store, f"copy{number}")[:1])
        store.absent(f"copy{number}")
    return [*found, content(store, "vol")[:1]]


ALL = [b"\1", b"\2", b"\3"]


# what → (file of the entry "old", how it is made, whether it goes with its entry)
KINDS: dict[str, tuple[str, object, bool]] = {
    "its file is gone": ("vol.old", None, False),
    "its file rests on nothing": ("vol.old", lambda store: image(store, "vol.old"), True),
    "its file rests on something else": ("vol.old", lambda store: image(store, "vol.old", ("elsewhere", "raw")), True),
    "its file is raw": ("vol.old", lambda store: (store.path / "vol.old").write_bytes(bytes(MIB)), True),
    "its file has another name": ("vol.other", lambda store: image(store, "vol.other"), False),
    "its file is a stranger's": ("stranger", lambda store: image(store, "stranger"), False),
    "its file is the base": ("vol", None, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_volume_works_on(store: Store, kind: str) -> None:
    file, make, goes = KINDS[kind]
    if make:
        make(store)
    add(store, old=file)
    found = store.info()
    assert found["stale"] == [{"name": "old", "file": file}] and [one["name"] for one in found["snapshots"]] == ["s1", "s2"]
    assert found["path"].endswith("/vol.s2") and found["size"] == MIB
    store.snapshot("s3")
    assert entries(store)["old"] == file, "only the deletion of that snapshot takes the entry away"
    assert points(store) == ALL
    store.revert("s3")
    assert store.delete("s3").changed and entries(store)["old"] == file
    before = store.state()
    predicted = store.delete("old", check=True)
    assert store.state() == before
    done = store.delete("old")
    assert done.actions == predicted.actions and [one["step"] for one in done.actions] == ["write_info", *["unlink"] * goes]
    assert "old" not in entries(store) and store.info()["stale"] == [] and not store.delete("old").changed
    assert (store.path / file).exists() is (make is not None and not goes or file == "vol")
    assert points(store) == ALL


@pytest.mark.parametrize("kind", KINDS)
def test_everything_goes_with_cascade(store: Store, kind: str) -> None:
    file, make, goes = KINDS[kind]
    if make:
        make(store)
    add(store, old=file)
    assert "old, stale" in str(refused(store, errors.HasSnapshots, lambda check: store.absent(check=check)))
    assert store.absent(cascade=True).changed
    assert sorted(os.listdir(store.path)) == sorted([".remotefs", *([file] if make and not goes else [])])


def test_with_others_in_one_pass(store: Store) -> None:
    image(store, "vol.old")
    add(store, old="vol.old", gone="vol.gone")
    assert store.delete("old", "s2", "gone").changed
    assert "old" not in entries(store) and store.info()["stale"] == [] and not (store.path / "vol.old").exists()
    assert [one["name"] for one in store.info()["snapshots"]] == ["s1"] and content(store, "vol")[:1] == b"\3"


def test_a_new_snapshot_may_have_the_name(store: Store) -> None:
    add(store, old="vol.old")
    store.snapshot("old")
    assert store.info()["stale"] == [] and entries(store)["active"] == "vol.old"
    image(store, "vol.older")
    add(store, older="vol.older")
    refused(store, errors.Conflict, lambda check: store.snapshot("older", check=check))


def test_what_rests_on_its_file_keeps_it(store: Store) -> None:
    image(store, "vol.old")
    image(store, "by hand", ("vol.old", "qcow2"))
    add(store, old="vol.old")
    refused(store, errors.HasDependents, lambda check: store.absent(cascade=True, check=check))
    assert [one["step"] for one in store.delete("old").actions] == ["write_info"]
    assert (store.path / "vol.old").exists()


def test_a_hard_link_is_left(store: Store) -> None:
    image(store, "vol.old")
    os.link(store.path / "vol.old", store.path.parent / "kept")
    add(store, old="vol.old")
    store.delete("old")
    assert (store.path / "vol.old").exists()


def test_a_file_of_another_volume_is_left_to_it(store: Store) -> None:
    """Where our record knows what is the volume's own, the entry alone goes. Without one, who is right is for the user to say."""
    store.present("second", size=MIB, format="qcow2")
    add(store, old="second")
    assert store.info()["stale"] == [{"name": "old", "file": "second"}]
    record = store.path / ".remotefs" / "volumes" / "vol.json"
    record.rename(store.path.parent / "kept")
    for action in (
        lambda check: store.delete("old", check=check),
        lambda check: store.snapshot("s3", check=check),
        lambda check: store.absent(cascade=True, check=check),
    ):
        refused(store, errors.Conflict, action)
    (store.path.parent / "kept").rename(record)
    before = (store.path / "second").stat().st_ino
    assert [one["step"] for one in store.delete("old").actions] == ["write_info"]
    add(store, old="second")
    store.absent(cascade=True)
    assert (store.path / "second").stat().st_ino == before and store.info("second")["size"] == MIB


def test_two_entries_with_one_file(store: Store) -> None:
    add(store, twin="vol.s2")
    assert [one["name"] for one in store.info()["snapshots"]] == ["s1", "s2", "twin"] and store.info()["stale"] == []
    assert store.delete("twin").changed and points(store) == ALL


def _damaged(store: Store) -> None:
    """The header of an entry's file cannot be understood: nobody knows what it rests on."""
    image(store, "vol.old")
    with open(store.path / "vol.old", "r+b") as stream:
        stream.seek(4)
        stream.write(b"\xff\xff\xff\xff")
    add(store, old="vol.old")


@pytest.mark.parametrize(
    "damage",
    [
        lambda store: add(store, active="vol.s1"),  # an .info of yesterday: vol.s2 rests on what it calls active
        lambda store: add(store, active="vol"),
        lambda store: (store.path / "vol.s2").rename(store.path / "vol.s9") and add(store, active="vol.s1", s2="vol.s9"),
        _damaged,
    ],
)
def test_what_may_be_damage_is_not_stale(store: Store, damage) -> None:
    damage(store)
    assert store.info()["error_code"] in ("chain_broken", "unsafe_image")
    for action in (
        lambda check: store.delete("s2", check=check),
        lambda check: store.snapshot("s3", check=check),
        lambda check: store.absent(cascade=True, check=check),
    ):
        refused(store, (errors.ChainBroken, errors.UnsafeImage), action)


def test_an_active_file_that_is_missing_is_a_gap(store: Store) -> None:
    """Nothing can be done with the volume, but it can go."""
    add(store, active="vol.s9")
    assert store.info()["error_code"] == "chain_broken"
    for action in (lambda check: store.delete("s2", check=check), lambda check: store.snapshot("s3", check=check)):
        refused(store, errors.ChainBroken, action)
    refused(store, errors.HasSnapshots, lambda check: store.absent(check=check))
    assert store.absent(cascade=True).changed and os.listdir(store.path) == [".remotefs"]


def test_while_work_is_unfinished_nothing_is_stale(store: Store) -> None:
    """What the interrupted task was about to record decides."""
    add(store, old="vol.old")
    record = store.path / ".remotefs" / "volumes" / "vol.json"
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "intent": {"operation": "delete_snapshot", "after": {"snapshots": [], "stale": [["old", "vol.old"]]}}}))
    found = store.info()
    assert found["stale"] == [{"name": "old", "file": "vol.old"}] and found["pending"]
    record.write_text(json.dumps({**told, "intent": {"operation": "delete_snapshot", "after": {"snapshots": []}}}))
    assert store.info()["stale"] == []
    refused(store, errors.NeedsRecovery, lambda check: store.delete("old", check=check))
