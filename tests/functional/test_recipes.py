# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of docs/recipes.md as they stand, on directories. Those about Cinder are in tests/interop, with Cinder's own driver."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from .test_clones import content, write
from .test_documents import blocks, play
from .test_examples import replaced
from .test_fetching import reply, serving
from .test_refusals import MIB, Store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
GOLDEN, _TAKE_OVER, _BACK, VMDK, ARCHIVE, REHEARSAL, SINGLE_FILE = blocks(PAGE.read_text())
Played = Callable[..., str]


@pytest.fixture
def second(tmp_path: Path) -> Store:
    """The second NAS."""
    (tmp_path / "nas2").mkdir()
    return Store(tmp_path / "nas2")


@pytest.fixture
def played(store: Store, second: Store, tmp_path: Path, ansible_environment: dict) -> Played:
    """Plays a playbook on the directories, and returns what was said. Facts that no playbook asks for are not gathered, which takes long."""
    environment = {**ansible_environment, "ANSIBLE_GATHERING": "explicit"}

    def run(book: list, *options: str, **places: str) -> str:
        words = {"hypervisor": "localhost", "nas1:/vols": str(store.path), "nas2:/vols": str(second.path), **places}
        words.update({f"/{name}": str(tmp_path) for name in ("srv/images", "srv/archive", "var/tmp")})
        return play(json.loads(replaced(json.dumps(book), words)), tmp_path, environment, *options)

    return run


def changed(said: str) -> int:
    (found,) = re.findall(r"changed=(\d+)", said)
    return int(found)


class Images:
    """A server with one image and a list of checksums. ``asked`` are the paths of the requests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        self.data = b""

    def publish(self, value: int) -> str:
        """An image whose disk has this byte all over. Returns the name that its golden volume gets."""
        raw, image = self.folder / "published.raw", self.folder / "published.qcow2"
        raw.write_bytes(bytes([value]) * MIB)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
        self.data = image.read_bytes()
        return "debian-" + hashlib.sha256(self.data).hexdigest()[:12]

    def answer(self, handler: Any, _number: int) -> None:
        self.asked.append(handler.path)
        other = hashlib.sha256(b"another").hexdigest()
        sums = f"{other} *disk.qcow2.sig\n{hashlib.sha256(self.data).hexdigest()} *disk.qcow2\n{other}  old-disk.qcow2\n"
        reply(handler, sums.encode() if handler.path.endswith("SUMS") else self.data)


@pytest.mark.slow
def test_a_golden_image_that_is_never_stale(store: Store, played: Played, tmp_path: Path) -> None:
    def run(*machines: str, check: bool = False) -> int:
        return changed(played(GOLDEN, "-e", json.dumps({"machines": machines}), *["--check"] * check, **places))

    def names() -> set[str]:
        return {path.name for path in store.path.iterdir() if path.is_file() and "." not in path.name}

    images = Images(tmp_path)
    store.present("debian-theirs", size=MIB)  # has the name of a golden volume, but not its label
    with serving(images.answer) as server:
        places = {"https://images.example.org": server.url.rpartition("/dir/")[0]}
        old = images.publish(1)
        assert run("ci-1", "ci-2", check=True) == 2 and names() == {"debian-theirs"}
        assert run("ci-1", "ci-2") == 2 and names() == {"debian-theirs", old, "ci-1", "ci-2"}
        write(store, "ci-1", 7, "0 64k")
        images.asked.clear()
        assert run("ci-1", "ci-2") == 0 and images.asked == ["/debian/SHA256SUMS"]

        new = images.publish(2)
        assert new != old and run("ci-1", "ci-2", "ci-3") == 2 and run("ci-1", "ci-2", "ci-3") == 0
        assert names() == {"debian-theirs", old, new, "ci-1", "ci-2", "ci-3"}
        parents = {name: store.info(name)["parent"] for name in ("ci-1", "ci-2", "ci-3")}
        assert parents == {name: {"volume": parent, "snapshot": "golden"} for name, parent in (("ci-1", old), ("ci-2", old), ("ci-3", new))}
        assert content(store, "ci-1") == b"\7" * 65536 + b"\1" * (MIB - 65536)
        assert content(store, "ci-2") == b"\1" * MIB and content(store, "ci-3") == b"\2" * MIB

        store.absent("ci-1")
        assert run("ci-2", "ci-3") == 0 and old in names()
        store.absent("ci-2")
        assert run("ci-3") == 1 and names() == {"debian-theirs", new, "ci-3"}
        assert run("ci-3") == 0 and not list(store.path.glob(f"{old}*")) and content(store, "ci-3") == b"\2" * MIB


@pytest.mark.slow
def test_a_list_that_does_not_fit_its_image(store: Store, played: Played, tmp_path: Path) -> None:
    """A server that changes the image between the list and the image: nothing is made, and nothing that is there goes."""
    images = Images(tmp_path)
    images.publish(1)
    sums = hashlib.sha256(b"an image that is gone").hexdigest()

    def answer(handler: Any, number: int) -> None:
        return reply(handler, f"{sums} *disk.qcow2\n".encode()) if handler.path.endswith("SUMS") else images.answer(handler, number)

    with serving(answer) as server, pytest.raises(AssertionError, match="image_checksum"):
        played(GOLDEN, **{"https://images.example.org": server.url.rpartition("/dir/")[0]})
    assert [path.name for path in store.path.iterdir() if path.is_file()] == []


@pytest.fixture
def shop(store: Store) -> Store:
    """A volume whose disk holds ones."""
    store.present("shop", size=4 * MIB)
    write(store, "shop", 1)
    return store


@pytest.mark.slow
def test_a_point_for_another_hypervisor(shop: Store, played: Played, tmp_path: Path) -> None:
    wanted = content(shop, "shop")
    assert changed(played(VMDK)) == 3
    write(shop, "shop", 2)
    assert changed(played(VMDK)) == 0
    subprocess.run(["sha256sum", "--strict", "-c", "shop.vmdk.sha256"], cwd=tmp_path, check=True)
    shown = subprocess.run(["qemu-img", "info", "--output=json", "shop.vmdk"], cwd=tmp_path, check=True, capture_output=True)
    assert json.loads(shown.stdout)["format-specific"]["data"]["create-type"] == "streamOptimized"
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", "shop.vmdk", "other.raw"], cwd=tmp_path, check=True)
    assert (tmp_path / "other.raw").read_bytes() == wanted != content(shop, "shop")


@pytest.mark.slow
def test_an_archive_of_nightly_images(shop: Store, played: Played, tmp_path: Path) -> None:
    old = [f"shop-2025-11-{day}.qcow2" for day in range(25, 31)]
    for name in (*old, "shop-log-2025-01-01.qcow2"):  # the last is another disk's
        (tmp_path / name).touch()
    for night, changes in (("2025-12-01", 2), ("2025-12-02", 3)):
        write(shop, "shop", int(night[-1]))
        assert [changed(played(ARCHIVE, "-e", f"night={night}")) for _again in range(2)] == [changes, 0]
    made = ["shop-2025-12-01.qcow2", "shop-2025-12-02.qcow2"]
    assert sorted(path.name for path in tmp_path.glob("shop-*")) == [*old[1:], *made, "shop-log-2025-01-01.qcow2"]
    assert [one["name"] for one in shop.info("shop")["snapshots"]] == ["nightly-2025-12-01", "nightly-2025-12-02"]
    for number, name in enumerate(made):
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, "shown.raw"], cwd=tmp_path, check=True)
        assert (tmp_path / "shown.raw").read_bytes() == (bytes([number + 1]) * 65536).ljust(4 * MIB, b"\0")
    assert changed(played(ARCHIVE)) == 3, "the night is today's, if nobody says another"
    assert sorted(path.name for path in tmp_path.glob("shop-2*"))[:-1] == [*old[2:], *made]


@pytest.mark.slow
def test_a_restore_rehearsal(shop: Store, second: Store, played: Played, tmp_path: Path) -> None:
    shop.present("web", size=2 * MIB)
    write(shop, "web", 5)
    nightly = [{"hosts": "hypervisor", "gather_facts": False, "tasks": [
        {"remotefs.storage.remotefs_snapshot": {"share": "nas1:/vols", "volumes": ["shop", "web"], "name": "s1"}},
        {"remotefs.storage.remotefs_replica": {"share": "nas1:/vols", "to": "nas2:/vols", "volumes": [{"volume": "shop"}, {"volume": "web"}]}},
    ]}]
    played(nightly)
    second.present("no-replica", size=MIB)  # without snapshots
    write(shop, "shop", 3)  # the present is not what is compared
    shop.present("rehearsal", size=MIB)  # left by one that was killed
    before = {name: content(shop, name) for name in ("shop", "web")}, second.state()
    for week, disk in (("46", "shop"), ("47", "web")):
        said = played(REHEARSAL, "-e", f"week={week}")
        shown = (b"\1" * 65536).ljust(4 * MIB, b"\0") if disk == "shop" else (b"\5" * 65536).ljust(2 * MIB, b"\0")
        assert f"{disk} of s1 has come back: {hashlib.sha256(shown).hexdigest()}" in said
    assert not list(shop.path.glob("rehearsal*")) and not (tmp_path / "rehearsal.qcow2").exists()
    assert before == ({name: content(shop, name) for name in ("shop", "web")}, second.state())

    damaged = second.path / "web"
    with damaged.open("r+b") as file:  # a bit that has turned on the second NAS
        file.seek(MIB)
        file.write(b"\1")
    played(REHEARSAL, "-e", "week=46")
    with pytest.raises(AssertionError, match="web of s1 is not what it was"):
        played(REHEARSAL, "-e", "week=47")
    assert not list(shop.path.glob("rehearsal*")) and not (tmp_path / "rehearsal.qcow2").exists()


def disk_with(path: Path, text: str) -> None:
    """A disk of 32 MiB with one partition of ext4, and in it the file /etc/app.conf."""
    tree = path.parent / "tree"
    (tree / "etc").mkdir(parents=True, exist_ok=True)
    (tree / "etc" / "app.conf").write_text(text)
    with path.open("wb") as disk:
        disk.truncate(32 * MIB)
    subprocess.run(["sfdisk", "-q", str(path)], input="start=2048, type=83\n", text=True, check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), "-E", f"offset={MIB}", str(path), "28M"], check=True)


@pytest.mark.slow
@pytest.mark.root
def test_a_file_out_of_last_tuesday(played: Played, store: Store, tmp_path: Path) -> None:
    """The file comes as it was, twice with no change but that the point is opened; one that was not there fails, and the point is closed."""
    lacking = [program for program in ("qemu-storage-daemon", "sfdisk", "mke2fs", "debugfs") if shutil.which(program) is None]
    if lacking or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip(f"needs {', '.join(lacking) or '/dev/fuse'}")
    days = (time.gmtime().tm_wday - 1 - 1) % 7 + 1
    tuesday = time.strftime("%Y-%m-%d", time.gmtime(time.time() - days * 86400))
    assert time.strptime(tuesday, "%Y-%m-%d").tm_wday == 1
    store.present("db01", size=32 * MIB)
    for name, text in ((f"nightly-{tuesday}", "as it was\n"), ("nightly-2020-01-01", "later\n"), (None, "now\n")):
        disk_with(tmp_path / "disk", text)
        found = store.info("db01")
        subprocess.run(["qemu-img", "convert", "-n", "-O", found["format"], str(tmp_path / "disk"), found["path"]], check=True)
        if name is not None:
            store.snapshot(name, "db01")
    before = store.state()
    defaults = {"remotefs.storage.remotefs_access": {"run_dir": str(tmp_path / "opened")}}
    book = [{**play, "module_defaults": defaults} for play in SINGLE_FILE]
    places = {"/run/db01": str(tmp_path / "db01"), "/root/": f"{tmp_path}/"}
    assert changed(played(book, **places)) == 3 and (tmp_path / "app.conf.tuesday").read_text() == "as it was\n"
    assert changed(played(book, **places)) == 2
    assert store.state() == before and list((tmp_path / "opened").iterdir()) == [] and not (tmp_path / "db01-tuesday.img").exists()
    with pytest.raises(AssertionError, match="File not found by ext2_lookup"):
        played(book, "-e", "wanted=/etc/none copy=/nowhere/none", **places)
    assert list((tmp_path / "opened").iterdir()) == [] and not (tmp_path / "db01-tuesday.img").exists()
