# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images with reference counts of an earlier time: a machine with lazy refcounts died. Nothing is merged into one that QEMU would not mend
first, because it takes clusters for free there which hold data. All else is right, by content."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import UnsafeImage
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2

from .test_refusals import MIB, Store

SIZE = 16 * MIB


def is_dirty(path: Path) -> bool:
    with path.open("rb") as file:
        return qcow2.read_header(file.fileno()).dirty


def die_while_writing(path: Path, *writes: str) -> None:
    """A program with lazy refcounts writes to the image, flushes, and is killed."""
    words = [word for one in (*writes, "flush", "abort") for word in ("-c", one)]
    subprocess.run(["qemu-io", "--image-opts", *words, f"driver=qcow2,lazy-refcounts=on,file.filename={path}"], check=False, capture_output=True)
    assert is_dirty(path)


def write(path: Path, *writes: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", *(word for one in writes for word in ("-c", one)), str(path)], check=True, capture_output=True)


def content(path: str | Path) -> str:
    """What a guest sees of an image."""
    shown = subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), f"{path}.raw~"], check=True)
    assert shown.returncode == 0
    raw = Path(f"{path}.raw~")
    try:
        return hashlib.sha256(raw.read_bytes()).hexdigest()
    finally:
        raw.unlink()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Points a (empty), b and c; the file under b's and c's data is dirty, and so is the one above it if nothing mended it."""
    (tmp_path / "share").mkdir()
    made = Store(tmp_path / "share")
    made.present(size=SIZE, format="qcow2")
    made.snapshot("a")
    die_while_writing(made.path / "vol.a", *(f"write -P {number + 1} {number}M 1M" for number in range(5)))
    made.snapshot("b")
    write(made.path / "vol.b", "write -P 77 9M 1M", "write -P 78 10M 1M")
    made.snapshot("c")
    write(made.path / "vol.c", "write -P 90 0 64k")
    assert is_dirty(made.path / "vol.a")
    return made


def points(store: Store) -> dict[str, str]:
    """What each point and the present show."""
    told = store.info()
    chain = [image["file"] for image in told["chain"]]
    shown = {snapshot["name"]: content(store.path / snapshot["file"]) for snapshot in told["snapshots"] if "file" in snapshot}
    return {**shown, "": content(told["path"]), "chain": ",".join(chain)}


def test_nothing_is_merged_into_such_an_image(store: Store) -> None:
    """The deletion of b writes what vol.b holds into vol.a."""
    before, state = points(store), store.state()
    for check in (True, False):
        with pytest.raises(UnsafeImage, match=r"file vol.a on .* reference counts are out of date .* qemu-img check -r all"):
            store.delete("b", check=check)
        assert store.state() == state
    assert points(store) == before
    present = before[""]
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", "vol.a"], cwd=store.path, check=True)
    assert store.delete("b").changed and points(store)[""] == present


def test_the_other_deletions_are_right(store: Store) -> None:
    """The dirty image is what moves, into a base that is in order."""
    present = points(store)[""]
    assert store.delete("a").changed
    assert points(store)[""] == present


@pytest.mark.parametrize("snapshot", ["c", "a"])
def test_going_back_gives_up_a_dirty_image(store: Store, snapshot: str) -> None:
    die_while_writing(store.path / "vol.c", "write -P 3 1M 2M", "write -P 4 7M 1M")
    shown = {"c": content(store.path / "vol.b"), "a": content(store.path / "vol")}
    assert store.revert(snapshot, snapshot == "a").changed
    active = Path(store.info()["path"])
    assert content(active) == shown[snapshot]
    write(active, "write -P 9 2M 3M")
    assert content(store.path / {"c": "vol.b", "a": "vol"}[snapshot]) == shown[snapshot]
    subprocess.run(["qemu-img", "check", "-q", str(active)], check=True)


def test_qemu_img_itself_would_lose_data(store: Store) -> None:
    """The reason for all of this. If it passes one day, the refusal can go."""
    before = content(store.path / "vol.b")
    subprocess.run(["qemu-img", "commit", "-q", "-d", "-f", "qcow2", "vol.b"], cwd=store.path, check=True)
    assert content(store.path / "vol.a") != before


@pytest.mark.parametrize("task", ["snapshot", "grow", "clone"])
def test_work_beside_it_goes_on(store: Store, task: str) -> None:
    present = points(store)[""]
    if task == "snapshot":
        assert store.snapshot("d").changed and points(store)[""] == present
    elif task == "grow":
        assert store.present(size=2 * SIZE).changed
    else:
        from ansible_collections.remotefs.storage.plugins.module_utils.operations.updating import SourceRequest

        assert store.present("clone", source=SourceRequest("vol", "b"), format="qcow2").changed
        assert content(store.path / "clone") == content(store.path / "vol.a")


def test_a_pull_into_such_an_image_is_right_offline(tmp_path: Path) -> None:
    """qemu-img opens the upper image for writing, and mends it."""
    (tmp_path / "share").mkdir()
    store = Store(tmp_path / "share")
    store.present(size=SIZE, format="qcow2")
    store.snapshot("a")
    write(store.path / "vol.a", "write -P 5 8M 64k")
    store.snapshot("b")
    die_while_writing(store.path / "vol.b", *(f"write -P {number + 1} {number}M 1M" for number in range(6)))
    present = points(store)[""]
    done = store.delete("b")
    assert "pull" in [step["step"] for step in done.actions]
    assert points(store)[""] == present
