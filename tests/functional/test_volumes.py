# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What volumes and snapshots keep beside their content: owners, modes, descriptions, places; adoption of what is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import groups, placement, report, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates, Policy
from ansible_collections.remotefs.storage.plugins.module_utils.operations.capacity import Capacity
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .test_refusals import MIB, Store, refused


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    share = tmp_path / "share"
    share.mkdir()
    yield Store(share)


def mode_of(path: Path) -> str:
    return oct(path.stat().st_mode & 0o7777)


def test_mode_at_creation_and_when_asked(store: Store) -> None:
    store.present(size=MIB)
    assert mode_of(store.path / "vol") == "0o660"
    store.snapshot("s1")
    assert mode_of(store.path / "vol.s1") == "0o660"
    assert not store.present(size=MIB).changed
    done = store.present(mode=0o640)
    assert [action["file"] for action in done.actions] == ["vol.s1", "vol"] and done.actions[0]["mode"] == "0640"
    assert {mode_of(store.path / name) for name in ("vol", "vol.s1")} == {"0o640"}
    assert not store.present(mode=0o640).changed
    store.snapshot("s2")
    assert mode_of(store.path / "vol.s2") == "0o640"


@pytest.mark.root
def test_owner_follows_every_new_file(store: Store) -> None:
    store.present(size=MIB, uid=12345, gid=23456, mode=0o600)
    store.snapshot("s1")
    store.snapshot("s2")
    store.revert("s2")
    store.delete("s1")
    owners = {(path.stat().st_uid, path.stat().st_gid, mode_of(path)) for path in store.path.iterdir() if path.is_file()}
    assert owners == {(12345, 23456, "0o600")}


@pytest.mark.root
def test_adoption_changes_nothing_unasked(store: Store) -> None:
    (store.path / "vol").write_bytes(bytes(MIB))
    os.chown(store.path / "vol", 12345, 23456)
    (store.path / "vol").chmod(0o604)
    assert store.present(format="raw").changed
    status = (store.path / "vol").stat()
    assert (status.st_uid, status.st_gid, mode_of(store.path / "vol")) == (12345, 23456, "0o604")
    assert not store.present(format="raw").changed


def test_where_modes_mean_nothing_they_are_a_warning(tmp_path: Path) -> None:
    store = Store(tmp_path, keeps_modes=False)
    store.present(size=MIB)
    told: list[str] = []
    request = updating.VolumeRequest(store.candidates, DesiredVolume("vol", mode=0o600))
    assert not volumes.ensure_present(request, store.options(warn=told.append)).changed
    assert len(told) == 1 and "keeps no owner and mode" in told[0]


def test_descriptions_and_labels(store: Store) -> None:
    store.present(size=MIB)

    def take(**desired: object):
        return snapshots.take(snapshots.SnapshotRequest(store.candidates, "vol", DesiredSnapshot("s1", **desired)), store.options())

    assert take(description="before", labels={"a": "1"}).changed
    assert not take().changed and not take(description="before").changed
    found = store.info()["snapshots"][0]
    assert (found["description"], found["labels"]) == ("before", {"a": "1"}) and found["created"].endswith("Z")
    done = take(labels={"b": "2"})
    assert done.changed and report.difference(done.before) != report.difference(done.after)
    store.snapshot("s2")
    store.delete("s2")
    found = store.info()["snapshots"][0]
    assert (found["description"], found["labels"]) == ("before", {"b": "2"})


def test_groups_are_all_or_nothing(store: Store) -> None:
    for name in ("a", "b", "c"):
        store.present(name, size=MIB)

    def take(names: list[str], snapshot: str, check: bool = False):
        return groups.take_group(store.candidates, names, DesiredSnapshot(snapshot), store.options(check=check))

    assert [outcome.changed for outcome in take(["a", "b", "c"], "g", check=True)] == [True] * 3
    assert [outcome.changed for outcome in take(["a", "b", "c"], "g")] == [True] * 3
    assert [outcome.changed for outcome in take(["a", "b", "c"], "g")] == [False] * 3
    assert len({store.info(name)["snapshots"][0]["created"] for name in ("a", "b", "c")}) == 1
    refused(store, errors.VolumeNotFound, lambda check: take(["a", "none"], "h", check))
    store.snapshot("h", volume="b")
    refused(store, errors.Conflict, lambda check: take(["a", "b"], "h", check))
    (store.path / "b.i").write_bytes(b"")
    refused(store, errors.Conflict, lambda check: take(["a", "b", "c"], "i", check))
    user = subprocess.Popen(["qemu-io", "-f", "qcow2", store.info("c")["path"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        user.stdin.write("write 0 64k\n")
        user.stdin.flush()
        user.stdout.readline()
        refused(store, errors.InUse, lambda check: take(["a", "b", "c"], "j", check))
    finally:
        user.communicate("quit\n")
    assert not list((store.path / ".remotefs/groups").iterdir())


def test_a_group_that_fails_in_the_middle_leaves_no_snapshot(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import session

    for name in ("a", "b", "c"):
        store.present(name, size=MIB)
    before = {name: store.info(name)["path"] for name in ("a", "b", "c")}
    real = session.qcow2.write_image

    def full(fd: int, size: int, backing_file: str | None = None, backing_format: str | None = None) -> None:
        if backing_file == "c":
            raise OSError(28, "No space left on device")
        real(fd, size, backing_file, backing_format)

    monkeypatch.setattr(session.qcow2, "write_image", full)
    with pytest.raises(errors.NoSpace):
        groups.take_group(store.candidates, ["a", "b", "c"], DesiredSnapshot("g"), store.options())
    for name, path in before.items():
        assert (store.info(name)["path"], store.info(name)["snapshots"], store.info(name)["pending"]) == (path, [], None)
    assert not [name for name in os.listdir(store.path) if name.endswith(".g")]


def test_the_share_with_most_room_within_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"small": (100, 60), "large": (1000, 500), "full": (1000, 0)}
    shares = {name: Store(tmp_path / name).share for name in figures if not (tmp_path / name).mkdir()}

    class Figures:
        f_frsize = MIB

        def __init__(self, path: str) -> None:
            self.f_blocks, self.f_bavail = figures[Path(path).name]

    monkeypatch.setattr(placement.os, "statvfs", Figures)

    def chosen(needed: int, at_once: int = 0, names: tuple = tuple(figures), **policy: float) -> str:
        candidates = Candidates(tuple(shares[name] for name in names))
        return Path(placement.choose(candidates, needed * MIB, at_once * MIB, Policy(**policy), Capacity()).path).name

    assert chosen(10) == "large"
    assert chosen(10, names=("small", "full")) == "small"
    assert chosen(10, reserved_percentage=30) == "large"
    for refusal in (
        lambda: chosen(10, reserved_percentage=60),
        lambda: chosen(600, at_once=600),
        lambda: chosen(21000),
        lambda: chosen(10, names=("full",)),
        lambda: chosen(2000, max_over_subscription_ratio=1.5),
    ):
        with pytest.raises(errors.NoEligibleShare):
            refusal()
    assert chosen(1400, max_over_subscription_ratio=1.5) == "large"
    Store(tmp_path / "large").present(size=200 * MIB)
    assert chosen(100, max_over_subscription_ratio=0.3, names=("large",)) == "large"
    with pytest.raises(errors.NoEligibleShare):
        chosen(101, max_over_subscription_ratio=0.3, names=("large",))


# -- what others made ------------------------------------------------------------------------------------------------


def qemu(*argv: str, where: Path) -> None:
    subprocess.run(["qemu-img", *argv], check=True, cwd=where, stdout=subprocess.DEVNULL)


def test_a_chain_made_by_cinder(store: Store) -> None:
    """Names that drifted, no base under the volume's name, no record of ours: adopted, worked on, left in Cinder's form."""
    share = store.path
    qemu("create", "-f", "qcow2", "vol.one", "4M", where=share)
    qemu("create", "-f", "qcow2", "-b", "vol.one", "-F", "qcow2", "vol.two", where=share)
    qemu("create", "-f", "qcow2", "-b", "vol.two", "-F", "qcow2", "vol.three", where=share)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 5 0 64k", str(share / "vol.three")], check=True)
    (share / "vol.info").write_text(json.dumps({"active": "vol.three", "first": "vol.two", "second": "vol.three"}))
    found = store.info()
    assert (found["base_format"], [one["name"] for one in found["snapshots"]]) == ("qcow2", ["first", "second"])
    assert store.present().changed and not store.present().changed
    store.snapshot("third")
    assert json.loads((share / "vol.info").read_text()) == {
        "active": "vol.third", "first": "vol.two", "second": "vol.three", "third": "vol.third",
    }  # fmt: skip
    store.delete("second", "first", "third")
    the_only_data = "vol.three"
    assert store.info()["snapshots"] == [] and json.loads((share / "vol.info").read_text()) == {"active": the_only_data}
    subprocess.run(["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 5 0 64k", str(share / the_only_data)], check=True, stdout=subprocess.DEVNULL)


def test_a_lone_raw_base_under_overlays_needs_no_format_said(store: Store) -> None:
    share = store.path
    (share / "vol").write_bytes(bytes(MIB))
    qemu("create", "-f", "qcow2", "-b", "vol", "-F", "raw", "vol.s1", where=share)
    (share / "vol.info").write_text('{"active": "vol.s1", "s1": "vol.s1"}')
    assert store.info()["base_format"] == "raw"
    assert store.present().changed and store.delete("s1").changed


def test_absolute_names_inside_the_share_are_healed(store: Store) -> None:
    share = store.path
    store.present(size=MIB)
    qemu("create", "-f", "qcow2", "-b", str(share / "vol"), "-F", "raw", "vol.s1", where=share)
    (share / "vol.info").write_text('{"active": "vol.s1", "s1": "vol.s1"}')
    assert store.info()["chain"][0]["backing_file"] == "vol"
    done = store.present()
    assert [action["step"] for action in done.actions] == ["write_record", "repoint"] and not store.present().changed
    moved = share.parent / "moved"
    shutil.copytree(share, moved)
    shutil.rmtree(share)
    assert Store(moved).delete("s1").changed  # nothing leads back to the old place


def test_a_raw_file_of_odd_length(store: Store) -> None:
    (store.path / "vol").write_bytes(b"x" * 1000)
    store.present(format="raw")
    assert store.info()["size"] == 1024
    store.snapshot("s1")
    store.present(size=MIB)
    store.delete("s1")
    assert (store.path / "vol").read_bytes() == (b"x" * 1000).ljust(MIB, b"\0")


def test_reusing_a_name_that_a_file_still_has(store: Store) -> None:
    """After a merge that kept the deleted snapshot's file, that snapshot's name can be taken again."""
    store.present(size=8 * MIB, format="qcow2")
    store.snapshot("s1")
    store.snapshot("s2")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 4M", store.info()["path"]], check=True)
    store.snapshot("s3")
    store.delete("s2")
    assert store.info()["snapshots"][0] | {"created": None} == {
        "name": "s1", "file": "vol.s2", "created": None, "description": "", "labels": {}, "protected": False, "expires": None,
    }  # fmt: skip
    store.snapshot("s2")
    assert store.info()["path"].endswith("/vol.s2-1")
    assert [one["name"] for one in store.info()["snapshots"]] == ["s1", "s3", "s2"]
    store.delete("s1", "s2", "s3")
    assert store.info()["snapshots"] == []
