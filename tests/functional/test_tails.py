# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file holds behind its virtual end never shows: every kind of such a tail, and every way of raising a size.

The model is what the file showed before, and zeros behind that.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest
from engines import leave_to_qemu_img
from property.world import read_content, run, write_pattern

from ansible_collections.remotefs.storage.plugins.module_utils import command
from ansible_collections.remotefs.storage.plugins.module_utils.errors import UnsafeImage
from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.clusters import COPIED, OFFSET

from .test_refusals import MIB, Store, refused

KIB = 1024
OLD, LONG = 512 * KIB + 512, 1536 * KIB  # where images end, and where they ended before
SOUND, LEAKS = 0, 3  # exit statuses of qemu-img check


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    share = tmp_path / "share"
    share.mkdir()
    (tmp_path / "scratch").mkdir()
    yield Store(share)


def full(path: Path, options: str = "", value: int = 0xAA) -> None:
    run("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else []), str(path), str(LONG))
    write_pattern(str(path), "qcow2", 0, LONG, value)


def shrunk(options: str = "", old: int = OLD) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        full(path, options)
        run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", str(path), str(old))

    return make


def packed(options: str = "") -> Callable[[Path], None]:
    """A compressed last cluster."""

    def make(path: Path) -> None:
        full(path)
        arguments = ["-o", options] if options else []
        run("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", *arguments, str(path), str(path) + "~")
        os.replace(str(path) + "~", path)
        run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", str(path), str(OLD))

    return make


def zeroed(options: str = "") -> Callable[[Path], None]:
    """A last cluster that reads as zeros and keeps its place."""

    def make(path: Path) -> None:
        shrunk(options)(path)
        run("qemu-io", "-f", "qcow2", "-c", f"write -q -z {OLD - 512} 512", str(path))

    return make


def cut_by_header(options: str = "", old: int = OLD) -> Callable[[Path], None]:
    """Whole clusters behind the end: a tool that changes the size alone."""

    def make(path: Path) -> None:
        full(path, options)
        with open(path, "r+b") as stream:
            stream.seek(24)
            stream.write(struct.pack(">Q", old))

    return make


def packed_and_cut(path: Path) -> None:
    packed("")(path)
    full(path)
    run("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", str(path), str(path) + "~")
    os.replace(str(path) + "~", path)
    with open(path, "r+b") as stream:
        stream.seek(24)
        stream.write(struct.pack(">Q", OLD))


def written_at_its_end(options: str = "") -> Callable[[Path], None]:
    """A cluster that QEMU filled from a longer backing file, which is gone now."""

    def make(path: Path) -> None:
        full(path.parent / "beneath")
        backing = ["-b", "beneath", "-F", "qcow2"]
        run("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else []), *backing, str(path), str(OLD))
        write_pattern(str(path), "qcow2", OLD - 512, 512, 0xBB)
        run("qemu-img", "rebase", "-q", "-f", "qcow2", "-b", "", str(path))
        (path.parent / "beneath").unlink()

    return make


def without_owner(path: Path) -> None:
    """The last cluster may have several owners, as far as its entry tells."""
    shrunk()(path)
    with open(path, "r+b") as stream:
        header = qcow2.read_header(stream.fileno())
        (l1,) = struct.unpack(">Q", os.pread(stream.fileno(), 8, header.l1_offset))
        place = (l1 & OFFSET) + OLD // header.cluster_size * 8
        (entry,) = struct.unpack(">Q", os.pread(stream.fileno(), 8, place))
        os.pwrite(stream.fileno(), struct.pack(">Q", entry & ~COPIED), place)


def nothing_there(path: Path) -> None:
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(OLD))


KINDS: dict[str, Callable[[Path], None]] = {
    "shrunk": shrunk(),
    "shrunk, version 2": shrunk("compat=0.10"),
    "shrunk, 4 KiB": shrunk("cluster_size=4096"),
    "shrunk, 512 bytes": shrunk("cluster_size=512", 512 * KIB - 512),
    "shrunk, 2 MiB": shrunk("cluster_size=2M"),
    "shrunk, 2 MiB, version 2": shrunk("cluster_size=2M,compat=0.10"),
    "shrunk, subclusters": shrunk("extended_l2=on"),
    "shrunk, subclusters of 64 KiB": shrunk("extended_l2=on,cluster_size=2M"),
    "shrunk, counts of one bit": shrunk("refcount_bits=1"),
    "shrunk, lazy counts": shrunk("lazy_refcounts=on"),
    "compressed": packed(),
    "compressed, version 2": packed("compat=0.10"),
    "compressed, 2 MiB": packed("cluster_size=2M"),
    "compressed by zstd": packed("compression_type=zstd"),
    "compressed, subclusters": packed("extended_l2=on"),
    "zeros that kept their place": zeroed(),
    "zeros in subclusters": zeroed("extended_l2=on"),
    "cut by its header": cut_by_header(),
    "cut by its header, version 2": cut_by_header("compat=0.10"),
    "cut by its header, 512 bytes": cut_by_header("cluster_size=512", 512 * KIB - 512),
    "cut by its header, at a cluster's end": cut_by_header("", 512 * KIB),
    "cut by its header, subclusters": cut_by_header("extended_l2=on"),
    "cut by its header, counts of one byte": cut_by_header("refcount_bits=8"),
    "cut by its header, compressed": packed_and_cut,
    "written at its end": written_at_its_end(),
    "written at its end, version 2": written_at_its_end("compat=0.10,cluster_size=2M"),
    "written at its end, subclusters": written_at_its_end("extended_l2=on"),
    "without a known owner": without_owner,
    "no tail": nothing_there,
}


class Scene:
    """A volume ``vol`` with a tail, and what it must show."""

    def __init__(self, store: Store, kind: str) -> None:
        self.store, self.scratch = store, store.path.parent / "scratch"
        KINDS[kind](store.path / "vol")
        store.present(format="qcow2")
        self.before = self.shows()
        self.was = self.check("vol")  # some kinds are not sound to begin with

    def check(self, file: str) -> int:
        return subprocess.run(["qemu-img", "check", "-q", str(self.store.path / file)], check=False, capture_output=True).returncode

    def shows(self, name: str = "vol") -> bytes:
        found = self.store.info(name)
        assert "error_code" not in found, found
        return read_content(found["path"], found["format"], self.scratch)

    def write(self, offset: int, length: int, value: int) -> None:
        found = self.store.info()
        write_pattern(found["path"], found["format"], offset, length, value)

    def larger(self, data: bytes | None = None) -> bytes:
        return (self.before if data is None else data).ljust(LONG, b"\0")

    def must_show(self, expected: bytes, name: str = "vol") -> None:
        shown = self.shows(name)
        first = next((index for index, (a, b) in enumerate(zip(shown, expected)) if a != b), min(len(shown), len(expected)))
        assert shown == expected, f"{name} differs at byte {first}, {len(shown)} and {len(expected)} bytes long"
        for image in self.store.info(name)["chain"]:
            if image["format"] == "qcow2":
                ended = self.check(image["file"])
                assert ended in (SOUND, LEAKS, self.was), f"qemu-img check of {image['file']} ends with {ended}"


def grow(scene: Scene) -> None:
    predicted = scene.store.present(size=LONG, check=True)
    done = scene.store.present(size=LONG)
    assert (predicted.changed, predicted.actions) == (done.changed, done.actions)
    assert not scene.store.present(size=LONG).changed
    scene.must_show(scene.larger())


def grow_twice(scene: Scene) -> None:
    """The first new size ends within what was the last cluster."""
    scene.store.present(size=len(scene.before) + 512)
    scene.must_show(scene.before + bytes(512))
    grow(scene)


def commit(scene: Scene) -> None:
    """A longer overlay is merged into the file."""
    scene.store.snapshot("s")
    scene.store.present(size=LONG)
    scene.must_show(scene.larger())
    scene.write(0, 512, 0xCC)
    assert scene.store.delete("s", check=True).actions == scene.store.delete("s").actions
    scene.must_show(b"\xcc" * 512 + scene.larger()[512:])


def commit_at_its_end(scene: Scene) -> None:
    """Into a cluster that the size cuts; then the merged file grows."""
    scene.store.snapshot("s")
    scene.write(len(scene.before) - 512, 512, 0xCC)
    scene.store.delete("s")
    expected = scene.before[:-512] + b"\xcc" * 512
    scene.must_show(expected)
    scene.store.present(size=LONG)
    scene.must_show(scene.larger(expected))


def grow_the_overlay(scene: Scene) -> None:
    scene.store.snapshot("s")
    scene.write(len(scene.before) - 512, 512, 0xCC)
    scene.store.present(size=LONG)
    expected = scene.larger(scene.before[:-512] + b"\xcc" * 512)
    scene.must_show(expected)
    scene.store.snapshot("t")
    scene.store.delete("s", "t")
    scene.must_show(expected)


def revert(scene: Scene) -> None:
    """To a shorter point; the size is kept. Then that point goes."""
    scene.store.snapshot("s")
    scene.store.present(size=LONG)
    scene.write(MIB, 256 * KIB, 0xCC)
    scene.store.revert("s")
    scene.must_show(scene.larger())
    scene.store.delete("s")
    scene.must_show(scene.larger())


def clone(image_format: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        source = updating.SourceRequest("vol", None)
        scene.store.present("copy", source, format=image_format, size=LONG)
        scene.must_show(scene.larger(), "copy")
        scene.store.present("same", source, format=image_format)
        scene.store.present("same", size=LONG)
        scene.must_show(scene.larger(), "same")
        scene.must_show(scene.before)

    return make


def flatten(scene: Scene) -> None:
    scene.store.present("copy", updating.SourceRequest("vol", None, linked=True), size=LONG)
    scene.store.present("same", updating.SourceRequest("vol", None, linked=True))
    for name in ("copy", "same"):
        scene.store.present(name, flatten=True)
    scene.must_show(scene.before, "same")
    scene.store.present("same", size=LONG)
    for name in ("copy", "same"):
        scene.must_show(scene.larger(), name)


WAYS: dict[str, Callable[[Scene], None]] = {
    "grow": grow,
    "grow twice": grow_twice,
    "commit": commit,
    "commit at its end": commit_at_its_end,
    "grow the overlay": grow_the_overlay,
    "revert": revert,
    "full clone": clone("qcow2"),
    "raw clone": clone("raw"),
    "flatten": flatten,
}


QUICK = ("grow", "commit", "full clone")


@pytest.mark.parametrize("way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS])
@pytest.mark.parametrize("kind", KINDS)
def test_tails(store: Store, kind: str, way: str) -> None:
    WAYS[way](Scene(store, kind))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["shrunk", "shrunk, version 2", "compressed", "cut by its header", "without a known owner"])
def test_tails_with_qemu_img(store: Store, monkeypatch: pytest.MonkeyPatch, kind: str, way: str) -> None:
    leave_to_qemu_img(monkeypatch.setattr)
    WAYS[way](Scene(store, kind))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("no tail", "zeros that kept their place", "zeros in subclusters")])
def test_the_tails_are_there(store: Store, kind: str) -> None:
    """Otherwise the tests above could hold because there is nothing to see: a size that is raised by hand shows it."""
    if "512 bytes" in kind and kind.startswith("shrunk"):
        pytest.skip("clusters of 512 bytes end with the size, and qemu-img leaves no whole ones")
    path = store.path / "vol"
    KINDS[kind](path)
    with open(path, "r+b") as stream:
        (size,) = struct.unpack(">Q", os.pread(stream.fileno(), 8, 24))
        os.pwrite(stream.fileno(), struct.pack(">Q", size + 4096), 24)
    assert any(read_content(str(path), "qcow2", store.path.parent / "scratch")[size:])


# -- overlays that are shorter than what lies beneath them -----------------------------------------------------------------


@pytest.mark.parametrize("options", ["compat=1.1", "compat=0.10", "compat=0.10,cluster_size=2M", "cluster_size=512", "extended_l2=on"])
@pytest.mark.parametrize("base", ["raw", "qcow2"])
def test_growth_over_longer_files(store: Store, base: str, options: str) -> None:
    """Also where the file just beneath is no longer than the overlay, but one under it is."""
    for number, middle in enumerate((None, OLD, 256 * KIB)):
        share = store.path / str(number)
        share.mkdir()
        inner, names = Store(share), ["vol", "vol.s1", "vol.s2"][: 2 if middle is None else 3]
        for place, name in enumerate(names):
            backing = ["-b", names[place - 1], "-F", base if place == 1 else "qcow2"] if place else []
            kind = base if not place else "qcow2"
            size = LONG if not place else OLD if name == names[-1] else int(middle or 0)
            arguments = ["-o", options] if kind == "qcow2" else []
            run("qemu-img", "create", "-q", "-f", kind, *arguments, *backing, str(share / name), str(size))
            write_pattern(str(share / name), kind, 0 if not place else size - 512, LONG if not place else 512, place + 1)
        (share / "vol.info").write_text(json.dumps({"active": names[-1], **{name[4:]: name for name in names[1:]}}))
        scene = Scene.__new__(Scene)
        scene.store, scene.scratch = inner, store.path.parent / "scratch"
        inner.present(format=base)
        scene.before, scene.was = scene.shows(), SOUND
        grow(scene)
        inner.delete("s1")
        scene.must_show(scene.larger())
        inner.delete("s2")
        scene.must_show(scene.larger())


def test_a_raw_file_of_an_odd_length(store: Store) -> None:
    (store.path / "vol").write_bytes(b"\x11" * (256 * KIB + 100))
    store.present(format="raw")
    store.snapshot("s")
    store.present(size=LONG)
    store.delete("s")
    assert (store.path / "vol").read_bytes() == (b"\x11" * (256 * KIB + 100)).ljust(LONG, b"\0")


def test_a_tail_costs_one_sync_and_no_program(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd) or real(fd))
    found = []
    for kind in ("no tail", "shrunk"):
        inner = Store(store.path / kind)
        inner.path.mkdir()
        KINDS[kind](inner.path / "vol")
        inner.present(format="qcow2")
        before = len(synced), command.STARTED.total
        inner.present(size=LONG)
        found.append((len(synced) - before[0], command.STARTED.total - before[1]))
    assert found == [(1, 0), (2, 0)]


# -- files that were cut short ---------------------------------------------------------------------------------------------

CUTS = {"half": 0.5, "the last 64 KiB": -64 * KIB, "half of the last cluster": -32 * KIB, "all but the tables": 5 * 64 * KIB}


def cut(path: Path, amount: float) -> None:
    length = path.stat().st_size
    os.truncate(path, int(length * amount) if 0 < amount < 1 else int(length + amount) if amount < 0 else int(amount))


@pytest.mark.parametrize("options", ["", "compat=0.10", "compression_type=zstd", "extended_l2=on", "lazy_refcounts=on"])
@pytest.mark.parametrize("amount", CUTS)
def test_cut_short(store: Store, amount: str, options: str) -> None:
    """Never zeros instead of what is missing: neither in what is made of it nor in what it is merged with."""
    path = store.path / "vol"
    run("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else []), str(path), "4M")
    store.present(format="qcow2")
    store.snapshot("s")
    store.present("linked", updating.SourceRequest("vol", "s", linked=True))
    write_pattern(str(path), "qcow2", 0, 4 * MIB, 7)
    cut(path, CUTS[amount])
    for image_format in ("raw", "qcow2"):
        for point in ("s", None):
            refused(store, UnsafeImage, lambda check, f=image_format, p=point: store.present("c", updating.SourceRequest("vol", p), check, format=f))
    refused(store, UnsafeImage, lambda check: store.present("c", updating.SourceRequest("vol", "s", linked=True), check))
    refused(store, UnsafeImage, lambda check: store.present("linked", check=check, flatten=True))
    store.absent("linked", cascade=True)
    refused(store, UnsafeImage, lambda check: store.delete("s", check=check))
    assert "error_code" not in store.info(), "reading looks at headers alone"
    store.absent(cascade=True)  # a way out
    assert not path.exists()


def test_cut_short_is_not_adopted(store: Store) -> None:
    path = store.path / "vol"
    full(path)
    cut(path, 0.5)
    refused(store, UnsafeImage, lambda check: store.present(check=check, format="qcow2"))


def test_a_cut_compressed_image(store: Store) -> None:
    path = store.path / "vol"
    run("qemu-img", "create", "-q", "-f", "raw", str(path) + "~", "4M")
    Path(str(path) + "~").write_bytes(os.urandom(128 * KIB) + b"\5" * MIB)
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(path) + "~", str(path))
    Path(str(path) + "~").unlink()
    store.present(format="qcow2")
    store.present("whole", updating.SourceRequest("vol", None), format="raw")
    cut(path, -1024)
    refused(store, UnsafeImage, lambda check: store.present("c", updating.SourceRequest("vol", None), check, format="raw"))


@pytest.mark.parametrize("options", ["", "preallocation=metadata", "preallocation=falloc", "extended_l2=on", "cluster_size=512", "compat=0.10"])
@pytest.mark.parametrize("size", [MIB, MIB + 512, 3 * MIB - 1024])
def test_whole_images_of_qemu_are_taken(store: Store, options: str, size: int) -> None:
    """Files of QEMU whose end is not that of a cluster, or whose clusters were never written."""
    path = store.path / "vol"
    run("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else []), str(path), str(size))
    with open(path, "rb") as stream:
        cluster = qcow2.read_header(stream.fileno()).cluster_size
    write_pattern(str(path), "qcow2", size - 512, 512, 5)
    if "preallocation" not in options:  # a cluster that is there already takes no compressed data
        run("qemu-io", "-f", "qcow2", "-c", f"write -c -P 3 0 {cluster}", str(path))
        assert cluster == 512 or path.stat().st_size % 512, "its last sector is filled up"
    store.present(format="qcow2")
    store.snapshot("s")
    store.present("c", updating.SourceRequest("vol", None), format="raw")
    store.delete("s")
