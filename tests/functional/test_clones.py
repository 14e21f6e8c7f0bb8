# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Linked clones: what is refused, who may be using what meanwhile, and life without our records."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import copying
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock

from .test_refusals import MIB, Store, refused

GOLDEN = updating.SourceRequest("vol", "golden", linked=True)


def content(store: Store, name: str) -> bytes:
    target = store.path.parent / f"{name}.raw"
    volume = store.info(name)
    subprocess.run(["qemu-img", "convert", "-f", volume["format"], "-O", "raw", volume["path"], target], check=True)
    return target.read_bytes()


def write(store: Store, name: str, value: int, where: str = "0 64k") -> None:
    volume = store.info(name)
    subprocess.run(["qemu-io", "-f", volume["format"], "-c", f"write -q -P {value} {where}", volume["path"]], check=True)


@contextmanager
def opened(store: Store, name: str) -> Iterator[None]:
    """Somebody has the volume's active image open for writing, as a virtual machine has."""
    volume = store.info(name)
    user = subprocess.Popen(
        ["qemu-io", "-f", volume["format"], volume["path"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=store.path
    )
    try:
        user.stdin.write("read 0 512\n")
        user.stdin.flush()
        user.stdout.readline()
        yield
    finally:
        user.communicate("quit\n")


@pytest.fixture
def golden(tmp_path: Path) -> Store:
    """Volume ``vol`` with snapshot ``golden`` of ones, and twos in the active image."""
    share = tmp_path / "share"
    share.mkdir()
    store = Store(share)
    store.present(size=MIB)
    write(store, "vol", 1)
    store.snapshot("golden")
    write(store, "vol", 2)
    return store


def test_it_shows_the_snapshot_and_takes_nothing_from_the_parent(golden: Store) -> None:
    golden.present("env", GOLDEN)
    assert content(golden, "env")[:65536] == bytes([1]) * 65536
    write(golden, "env", 3)
    assert content(golden, "vol")[:65536] == bytes([2]) * 65536
    env = golden.info("env")
    assert env["parent"] == {"volume": "vol", "snapshot": "golden"} and env["base_format"] == "raw"
    assert env["allocated"] == env["chain"][0]["allocated"]
    assert golden.info()["dependents"] == [{"volume": "env", "snapshot": "golden"}]
    assert golden.absent("env").changed
    assert golden.info()["dependents"] == [] and content(golden, "vol")[:65536] == bytes([2]) * 65536


def test_what_does_not_go_with_it(golden: Store) -> None:
    refused(golden, errors.InvalidParameter, lambda check: golden.present("env", GOLDEN, check, format="raw"))
    refused(golden, errors.InvalidParameter, lambda check: golden.present("env", GOLDEN, check, preallocation="full"))
    refused(golden, errors.WouldShrink, lambda check: golden.present("env", GOLDEN, check, size=512 * 1024))
    for source in (updating.SourceRequest("nobody", None, True), updating.SourceRequest("vol", "no-such", True)):
        refused(golden, (errors.VolumeNotFound, errors.SnapshotNotFound), lambda check, source=source: golden.present("env", source, check))
    short = updating.SourceRequest("vol", "golden", True, max_chain=1)
    found = refused(golden, errors.InvalidParameter, lambda check: golden.present("env", short, check))
    assert "max_chain" in str(found)
    (golden.path / "env").write_bytes(b"something else")
    refused(golden, errors.InvalidParameter, lambda check: golden.present("env", GOLDEN, check))


def test_its_base_is_qcow2_and_stays_so(golden: Store) -> None:
    golden.present("env", GOLDEN)
    assert not golden.present("env", GOLDEN, format="qcow2").changed
    refused(golden, errors.Conflict, lambda check: golden.present("env", GOLDEN, check, format="raw"))
    golden.present("env", flatten=True)
    assert golden.info("env")["base_format"] == "qcow2"


def test_what_it_rests_on_cannot_go(golden: Store) -> None:
    golden.present("env", GOLDEN)
    found = refused(golden, errors.HasDependents, lambda check: golden.delete("golden", check=check))
    assert "env on golden" in str(found)
    refused(golden, errors.HasDependents, lambda check: golden.absent(cascade=True, check=check))
    golden.present("env", flatten=True)
    assert golden.delete("golden").changed and content(golden, "env")[:65536] == bytes([1]) * 65536


@pytest.mark.parametrize(
    "spelt",
    [
        "vol.golden",
        "file:vol.golden",
        "file:{share}/vol.golden",
        'json:{{"driver": "qcow2", "file": {{"driver": "file", "filename": "{share}/vol.golden"}}}}',
        "json:{{'driver':'qcow2','file.filename':'{share}/vol.golden'}}",
    ],
)
def test_overlays_made_by_hand_hold_what_they_rest_on(golden: Store, spelt: str) -> None:
    """However QEMU lets them spell it: we would not touch such an overlay, and what it shows must not be taken away either."""
    golden.snapshot("later")
    name = spelt.format(share=golden.path)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", name, "-F", "qcow2", "by-hand"], check=True, cwd=golden.path)
    shown = subprocess.run(["qemu-img", "convert", "-O", "raw", "by-hand", "../shown.raw"], check=True, cwd=golden.path)
    assert shown.returncode == 0 and (golden.path.parent / "shown.raw").read_bytes()[:65536] == bytes([2]) * 65536
    assert {"volume": "by-hand", "snapshot": "later"} in golden.info()["dependents"]
    for action in (
        lambda check: golden.delete("later", check=check),
        lambda check: golden.absent(cascade=True, check=check),
        lambda check: golden.revert("golden", True, check=check),
    ):
        assert "by-hand" in str(refused(golden, errors.HasDependents, action))


def test_a_raw_base_stays_where_it_is(golden: Store) -> None:
    """A clone rests on the file above the base, so neither can go: the base lies there without a name, and is taken in later."""
    golden.snapshot("v2")
    golden.present("env", updating.SourceRequest("vol", "v2", True))
    write(golden, "vol", 7)
    golden.snapshot("v3")
    shown = content(golden, "env")
    assert [one["step"] for one in golden.delete("golden").actions] == ["write_info"]
    assert golden.info()["base_format"] == "raw" and not golden.present(format="raw").changed
    assert content(golden, "env") == shown and not golden.delete("golden").changed
    golden.absent("env")
    assert [one["step"] for one in golden.delete("v2").actions] == ["commit", "repoint", "write_info", "unlink", "unlink"]
    assert [image["file"] for image in golden.info()["chain"]] == ["vol.v3", "vol"]
    assert content(golden, "vol")[:65536] == bytes([7]) * 65536


def test_of_a_volume_as_it_is(golden: Store) -> None:
    now = updating.SourceRequest("vol", None, linked=True)
    done = golden.present("env", now)
    assert done.after["parent"] == {"volume": "vol", "snapshot": "clone-env"} and done.before is None
    assert content(golden, "env")[:65536] == bytes([2]) * 65536
    assert not golden.present("env", now).changed
    golden.absent("env")
    assert golden.present("env", now).changed, "the snapshot of the former clone still shows what the volume holds"
    golden.absent("env")
    write(golden, "vol", 9)
    found = refused(golden, errors.Conflict, lambda check: golden.present("env", now, check))
    assert "clone-env" in str(found)


def test_while_virtual_machines_run(golden: Store) -> None:
    """The parent's machine disturbs no clone of a snapshot, and clones disturb no snapshot of the parent."""
    with opened(golden, "vol"):
        golden.present("env", GOLDEN)
        refused(golden, errors.InUse, lambda check: golden.present("other", updating.SourceRequest("vol", None, True), check))
    golden.snapshot("later")
    with opened(golden, "env"):
        golden.snapshot("still-later")
        golden.present("env-2", GOLDEN)
        refused(golden, errors.InUse, lambda check: golden.present("env", flatten=True, check=check))
        assert golden.delete("later").changed  # nothing that the clone shows is touched
    assert content(golden, "env")[:65536] == bytes([1]) * 65536


def test_a_machine_on_the_parent_lets_its_data_be_read(golden: Store) -> None:
    """It has the files beneath its own open for reading, as who flattens or copies has."""
    golden.present("env", GOLDEN)
    with opened(golden, "vol"):
        golden.present("env", flatten=True)
        golden.present("whole", updating.SourceRequest("vol", "golden"))
    for name in ("env", "whole"):
        assert content(golden, name)[:65536] == bytes([1]) * 65536


def test_while_data_is_read_nobody_gets_to_write_it(golden: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    golden.present("env", GOLDEN)
    real, answers = copying.Copier.copy, []

    def copied(copier: copying.Copier, *parts: int) -> None:
        user = ["qemu-io", "-f", "raw", "-c", "write -P 7 0 512", str(golden.path / "vol")]
        answers.append(subprocess.run(user, capture_output=True, text=True, check=False).stderr)
        real(copier, *parts)

    monkeypatch.setattr(copying.Copier, "copy", copied)
    golden.present("env", flatten=True)
    assert answers and all('Failed to get "write" lock' in answer for answer in answers)
    assert content(golden, "env")[:65536] == bytes([1]) * 65536


def test_what_somebody_writes_is_not_read(golden: Store) -> None:
    """Nobody should write below a snapshot; who does is met."""
    golden.present("env", GOLDEN)
    user = subprocess.Popen(["qemu-io", "-f", "raw", str(golden.path / "vol")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        user.stdin.write("read 0 512\n")
        user.stdin.flush()
        user.stdout.readline()
        with pytest.raises(errors.InUse):
            golden.present("env", flatten=True)
        with pytest.raises(errors.InUse):
            golden.present("whole", updating.SourceRequest("vol", "golden"))
    finally:
        user.communicate("quit\n")
    assert golden.present("env", flatten=True).changed


def test_a_parents_lock_keeps_out_who_reads_its_files(golden: Store) -> None:
    golden.present("env", GOLDEN)
    golden.snapshot("s1", "env")
    with ShareDirectory(golden.share) as directory, VolumeLock(directory, "vol", 0):
        golden.snapshot("s2", "env")  # writes nothing below its own files, and reads nothing there
        for action in (
            lambda: golden.present("env", flatten=True),
            lambda: snapshots.delete(golden.candidates, "env", ["s1"], golden.options()),
        ):
            with pytest.raises(errors.LockTimeout):
                action()
    assert golden.present("env", flatten=True).changed


def test_a_snapshot_can_be_cloned_many_times_at_once(golden: Store) -> None:
    """Who clones a snapshot only reads the parent; who clones it as it is now takes a snapshot of it first."""
    with ShareDirectory(golden.share) as directory, VolumeLock(directory, "vol", 0, shared=True):
        assert golden.present("env", GOLDEN).changed
        assert golden.present("whole", updating.SourceRequest("vol", "golden")).changed
        with pytest.raises(errors.LockTimeout):
            golden.present("other", updating.SourceRequest("vol", None, linked=True))
    for name in ("env", "whole"):
        assert content(golden, name)[:65536] == bytes([1]) * 65536
    with ShareDirectory(golden.share) as directory, VolumeLock(directory, "vol", 0), pytest.raises(errors.LockTimeout):
        golden.present("other", GOLDEN)  # somebody changes the parent


@pytest.mark.parametrize("source", [GOLDEN, updating.SourceRequest("vol", "golden")])
def test_what_has_to_be_mended_is_locked_as_for_a_change(golden: Store, source: updating.SourceRequest) -> None:
    record = golden.path / ".remotefs" / "volumes" / "vol.json"
    content_of_record = json.loads(record.read_text())
    garbage = golden.path / "vol.gone"
    garbage.write_bytes(bytes(512))
    status = garbage.stat()
    record.write_text(json.dumps({**content_of_record, "garbage": [["vol.gone", status.st_ino, status.st_size]]}))
    with ShareDirectory(golden.share) as directory, VolumeLock(directory, "vol", 0, shared=True), pytest.raises(errors.LockTimeout):
        golden.present("env", source)
    assert garbage.exists()
    done = golden.present("env", source)
    assert [one["outcome"] for one in done.recovered] == ["finished"] and not garbage.exists()
    assert content(golden, "env")[:65536] == bytes([1]) * 65536


def test_a_clone_of_a_clone(golden: Store) -> None:
    golden.present("env", GOLDEN)
    write(golden, "env", 5, "64k 64k")
    golden.present("deep", updating.SourceRequest("env", None, True), size=2 * MIB)
    assert golden.info("deep")["parent"] == {"volume": "env", "snapshot": "clone-deep"}
    golden.present("env", flatten=True)
    assert content(golden, "deep") == bytes([1]) * 65536 + bytes([5]) * 65536 + bytes(2 * MIB - 131072)
    assert golden.delete("golden").changed
    assert content(golden, "deep")[:65536] == bytes([1]) * 65536


def test_names_that_could_be_overlays_of_each_other(golden: Store) -> None:
    """``vol.env`` is a volume that rests on ``vol``, and ``vo`` rests on that one."""
    golden.present("vol.env", GOLDEN)
    golden.snapshot("s", "vol.env")
    golden.present("vo", updating.SourceRequest("vol.env", "s", True))
    found = {one["name"]: one for one in reading.list_volumes(golden.share, [])}
    assert sorted(found) == ["vo", "vol", "vol.env"]
    assert [found[name]["parent"] for name in ("vo", "vol.env", "vol")] == [
        {"volume": "vol.env", "snapshot": "s"},
        {"volume": "vol", "snapshot": "golden"},
        None,
    ]
    refused(golden, errors.Conflict, lambda check: golden.snapshot("env", check=check))


def test_without_our_records(golden: Store) -> None:
    """Headers and names tell who rests on whom; only the clone's own format must be said again."""
    golden.present("env", GOLDEN)
    golden.snapshot("s1", "env")
    write(golden, "env", 4)
    shutil.rmtree(golden.path / ".remotefs")
    assert golden.info("env")["parent"] == {"volume": "vol", "snapshot": "golden"}
    assert golden.info()["dependents"] == [{"volume": "env", "snapshot": "golden"}]
    refused(golden, errors.HasDependents, lambda check: golden.delete("golden", check=check))
    assert golden.present("env").changed and not golden.present("env").changed
    assert golden.present(format="raw").changed and not golden.present(format="raw").changed
    golden.present("env", flatten=True)
    assert golden.info("env")["parent"] is None and content(golden, "env")[:65536] == bytes([4]) * 65536
    assert golden.delete("golden").changed


def test_a_clone_made_by_hand_on_a_lone_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "golden.img").write_bytes(b"\1" * MIB)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "golden.img", tmp_path / "env"], check=True)
    assert store.present("env", format="qcow2").after["parent"] == {"volume": "golden.img", "snapshot": None}
    refused(store, errors.Conflict, lambda check: store.absent("golden.img", check=check))
    store.present("golden.img", format="raw")
    refused(store, errors.HasDependents, lambda check: store.absent("golden.img", check=check))
    store.absent("env")
    assert (tmp_path / "golden.img").read_bytes() == b"\1" * MIB and store.absent("golden.img").changed


def test_bulk_in_check_mode_foresees_clones_of_what_it_makes(golden: Store) -> None:
    """One task's memory: a clone of a clone that an earlier item would make."""
    options = golden.options(check=True)
    for name, source in (("env", GOLDEN), ("deep", updating.SourceRequest("env", None, True))):
        request = updating.VolumeRequest(golden.candidates, DesiredVolume(name), source)
        predicted = volumes.ensure_present(request, options)
    assert predicted.after["parent"] == {"volume": "env", "snapshot": "clone-deep"}
    assert [image["file"] for image in predicted.after["chain"]] == ["deep", "env", "vol"]
