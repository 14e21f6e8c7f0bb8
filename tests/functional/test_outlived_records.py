# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A record that outlived its file never decides what the new file of that name is; and a raw disk stays one, whatever its guest writes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors

from .test_refusals import MIB, Store, refused

PATTERN = hashlib.sha256(b"pattern").digest() * (MIB // 32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "share").mkdir()
    return Store(tmp_path / "share")


def qcow2(path: Path, size: int = MIB, content: bytes = b"") -> None:
    """A complete image, in a file as long as wanted."""
    raw = path.with_name("." + path.name)
    raw.write_bytes(content.ljust(size, b"\0"))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True)
    raw.unlink()


def put(store: Store, make: Callable[[Path], object], name: str = "vol") -> str:
    """Another file takes the name, made elsewhere as somebody would who does not know this collection. Returns its hash."""
    made = store.path.parent / "made"
    make(made)
    (store.path / name).unlink(missing_ok=True)
    shutil.copyfile(made, store.path / name)  # ext4 gives it the inode that has just become free
    made.unlink()
    return digest(store, name)


def digest(store: Store, name: str = "vol") -> str:
    return hashlib.sha256((store.path / name).read_bytes()).hexdigest()


def record(store: Store, name: str = "vol") -> dict:
    return json.loads((store.path / ".remotefs" / "volumes" / f"{name}.json").read_text().splitlines()[-1])


def move_to_other_inodes(store: Store) -> None:
    """As a restored backup has it: the same content, each file another one."""
    aside = store.path.parent / "restored"
    shutil.copytree(store.path, aside, symlinks=True)
    shutil.rmtree(store.path)
    aside.rename(store.path)


def forge(store: Store, name: str = "vol") -> None:
    """The guest of a raw disk writes the header of a qcow2 image into it."""
    header = store.path.parent / "forged"
    qcow2(header)
    with open(store.path / name, "r+b") as stream:
        stream.write(header.read_bytes()[:65536])
    header.unlink()


RAW, LARGER = {"vol": (b"", MIB)}, 4 * MIB
LENGTHS = {"shorter": (16 * MIB, b""), "longer": (MIB, os.urandom(3 * MIB))}


@pytest.mark.parametrize("length", LENGTHS)
def test_a_qcow2_image_where_a_raw_disk_was(store: Store, length: str) -> None:
    size, content = LENGTHS[length]
    store.present(size=size, labels={"team": "web"}, description="the old one")
    made = put(store, lambda path: qcow2(path, 4 * MIB, content))
    assert store.info()["format"] is None
    for action in (store.present, store.snapshot, lambda check: store.present("copy", source(), check=check), lambda check: store.absent(check=check)):
        kinds = (errors.InvalidParameter, errors.UnsafeImage, errors.Conflict)
        told = refused(store, kinds, lambda check, action=action: action(check=check))  # type: ignore[arg-type]
        assert "format" in str(told) and "looks like a qcow2 image" in str(told)
    assert store.present(format="qcow2", check=True).changed and store.present(format="qcow2").changed
    assert not store.present(format="qcow2").changed and not store.present().changed
    found = store.info()
    assert (found["format"], found["size"], found["labels"], found["description"]) == ("qcow2", 4 * MIB, {}, "")
    assert digest(store) == made and store.snapshot().changed and digest(store) == made


def source():  # noqa: ANN201
    from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating

    return updating.SourceRequest("vol")


def test_a_raw_disk_where_a_qcow2_image_was(store: Store) -> None:
    store.present(size=4 * MIB, format="qcow2", labels={"team": "web"})
    made = put(store, lambda path: path.write_bytes(PATTERN * 2))
    if record(store)["marks"]["vol"][0] != os.stat(store.path / "vol").st_ino or record(store)["marks"]["vol"][2]:
        assert store.info()["format"] is None
        told = refused(store, errors.InvalidParameter, lambda check: store.present(check=check))
        assert "says qcow2" in str(told)
    assert store.present(format="raw").changed and not store.present().changed
    assert (store.info()["format"], store.info()["size"], store.info()["labels"]) == ("raw", 2 * MIB, {})
    store.snapshot()
    assert digest(store) == made


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_restored_share_goes_on(store: Store, image_format: str) -> None:
    store.present(size=MIB, format=image_format, labels={"team": "web"})
    move_to_other_inodes(store)
    assert (store.info()["format"], store.info()["labels"]) == (image_format, {"team": "web"})
    store.present()
    assert not store.present().changed
    assert record(store)["marks"]["vol"][0] == os.stat(store.path / "vol").st_ino or image_format == "qcow2"
    store.snapshot()
    assert store.info()["base_format"] == image_format and store.info()["labels"] == {"team": "web"}


def test_a_restored_raw_disk_with_a_header_of_its_guest(store: Store) -> None:
    """The classic: nobody may read it as qcow2 because the inode is another one."""
    store.present(size=MIB, labels={"team": "web"})
    forge(store)
    store.snapshot("s0")
    store.delete("s0")
    assert store.info()["format"] == "raw", "of the very disk nothing is asked"
    before = digest(store)
    move_to_other_inodes(store)
    refused(store, errors.UnsafeImage, lambda check: store.snapshot(check=check))
    refused(store, errors.InvalidParameter, lambda check: store.present(check=check))
    assert store.present(format="raw").changed and not store.present().changed
    assert store.info()["labels"] == {"team": "web"}, "the user says that it is the recorded one"
    store.snapshot()
    assert (store.info()["base_format"], digest(store)) == ("raw", before)


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("inodes", [False, True])
def test_a_guest_never_makes_its_disk_an_image(store: Store, grown: bool, inodes: bool) -> None:
    store = Store(store.path, keeps_inodes=inodes)
    store.present(size=MIB)
    forge(store)
    if grown:
        store.present(size=2 * MIB, format="raw")
    before = digest(store)
    if grown and not inodes:
        refused(store, errors.UnsafeImage, lambda check: store.snapshot(check=check))  # its length was the only proof
        store.present(format="raw")
    assert store.info()["format"] == "raw"
    store.snapshot()
    assert (store.info()["base_format"], digest(store)) == ("raw", before)


def test_a_new_disk_without_the_snapshots_of_the_old_one(store: Store) -> None:
    store.present(size=MIB, labels={"team": "web"})
    store.snapshot("s1")
    for file in ("vol", "vol.s1", "vol.info"):
        (store.path / file).unlink()
    made = put(store, lambda path: path.write_bytes(PATTERN * 3))
    if os.stat(store.path / "vol").st_ino == record(store)["marks"]["vol"][0] and not record(store)["marks"]["vol"][2]:
        pytest.skip("this file system gives an inode again and does not tell")
    assert store.info()["format"] is None
    told = refused(store, errors.InvalidParameter, lambda check: store.present(check=check))
    assert "snapshots that are gone" in str(told)
    assert store.present(format="raw").changed and not store.present().changed
    assert (store.info()["snapshots"], store.info()["labels"], digest(store)) == ([], {}, made)
    assert store.snapshot("s1").changed and store.info()["snapshots"][0]["labels"] == {}


def test_the_old_base_alone_is_no_volume(store: Store) -> None:
    """Its overlays were lost, not removed with it: to go on with the old data would be the worst."""
    store.present(size=MIB)
    store.snapshot("s1")
    for file in ("vol.s1", "vol.info"):
        (store.path / file).unlink()
    for desired in ({}, {"format": "raw"}):
        refused(store, errors.ChainBroken, lambda check, desired=desired: store.present(check=check, **desired))


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_new_volume_starts_afresh(store: Store, image_format: str) -> None:
    store.present(size=MIB, labels={"team": "web"}, description="old", format=image_format)
    store.snapshot("s1")
    for file in ("vol", "vol.s1", "vol.info"):
        (store.path / file).unlink()
    assert store.present(size=2 * MIB, format="raw").changed
    found = store.info()
    assert (found["format"], found["labels"], found["description"], found["snapshots"], found["size"]) == ("raw", {}, "", [], 2 * MIB)
    assert record(store)["snapshots"] == {} and list(record(store)["formats"]) == ["vol"]


def test_a_volume_with_the_name_of_an_overlay_that_is_gone(store: Store) -> None:
    """The record of the removed volume names the file; that makes it no part of it."""
    store.present(size=MIB)
    store.snapshot("s1")
    for file in ("vol", "vol.s1", "vol.info"):
        (store.path / file).unlink()
    assert store.present("vol.s1", size=2 * MIB).changed and not store.present("vol.s1").changed
    before = digest(store, "vol.s1")
    store.absent("vol", cascade=True)
    store.present("vol", size=MIB)
    assert store.absent("vol", cascade=True).changed and digest(store, "vol.s1") == before
    assert store.snapshot("x", "vol.s1").changed and store.info("vol.s1")["base_format"] == "raw"


def test_a_foreign_file_with_the_name_of_an_overlay_that_is_gone(store: Store) -> None:
    store.present(size=MIB)
    store.snapshot("s1")
    for file in ("vol", "vol.s1", "vol.info"):
        (store.path / file).unlink()
    made = put(store, lambda path: path.write_bytes(PATTERN), "vol.s1")
    for check in (True, False):
        with pytest.raises(errors.StorageError):
            store.absent("vol", cascade=True, check=check)
        assert digest(store, "vol.s1") == made


def test_an_info_that_names_the_new_file(store: Store) -> None:
    store.present(size=16 * MIB)
    (store.path / "vol.info").write_text('{"active": "vol"}')
    put(store, qcow2)
    assert store.info()["format"] is None
    refused(store, errors.InvalidParameter, lambda check: store.present(check=check))
    assert store.present(format="qcow2").changed and store.info()["format"] == "qcow2"


def test_a_disk_where_a_linked_clone_was(store: Store) -> None:
    """Its record said qcow2 and named a parent."""
    store.present(size=MIB)
    store.snapshot("s1")
    store.present("copy", source()._replace(snapshot="s1", linked=True), labels={"team": "web"})
    made = put(store, lambda path: path.write_bytes(PATTERN), "copy")
    refused(store, errors.UnsafeImage, lambda check: store.present("copy", check=check))
    assert store.present("copy", format="raw").changed and not store.present("copy").changed
    found = store.info("copy")
    assert (found["parent"], found["labels"], found["format"], digest(store, "copy")) == (None, {}, "raw", made)
    assert store.delete("s1").changed and store.info()["dependents"] == []


def test_an_overlay_of_others_says_what_its_base_is(store: Store) -> None:
    """Removed and made again by Cinder, with a snapshot: the header above is as good as a record, and newer."""
    store.present(size=4 * MIB, format="qcow2")
    made = put(store, lambda path: path.write_bytes(PATTERN))
    mark = record(store)["marks"]["vol"]
    if mark[0] == os.stat(store.path / "vol").st_ino and not mark[2]:
        pytest.skip("this file system gives an inode again and does not tell")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "vol", "-F", "raw", "vol.s1"], cwd=store.path, check=True)
    (store.path / "vol.info").write_text(json.dumps({"active": "vol.s1", "s1": "vol.s1"}))
    assert store.info()["base_format"] == "raw"
    assert store.present().changed and not store.present().changed
    assert record(store)["formats"] == {"vol": "raw", "vol.s1": "qcow2"} and digest(store) == made
