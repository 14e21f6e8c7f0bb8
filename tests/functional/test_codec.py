# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The header codec against qemu-img, and against noise."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2

SIZES = [512, 1 << 20, (1 << 29) + 512, 10 << 30, 1 << 40, (4 << 40) + 512, 16 << 40]
CLUSTERS = [512, 4096, 65536, 2 << 20]


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def described(path: Path) -> dict:
    return json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json", str(path)))


@pytest.mark.parametrize("size", SIZES)
def test_images_that_we_write(tmp_path: Path, size: int) -> None:
    base, image = tmp_path / "base.qcow2", tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(base), str(size))
    with open(image, "w+b") as stream:
        qcow2.write_image(stream.fileno(), size, base.name, "qcow2")
        header = qcow2.read_header(stream.fileno())
        assert (header.size, header.backing_file, header.backing_format) == (size, base.name, "qcow2")
        assert qcow2.is_empty(stream.fileno(), header)
    info = described(image)
    assert (info["virtual-size"], info["backing-filename"], info["backing-filename-format"]) == (size, base.name, "qcow2")
    run("qemu-img", "check", "-q", "-f", "qcow2", str(image))
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 {size - 512} 512", "-c", f"read -P 7 {size - 512} 512", str(image))
    run("qemu-img", "check", "-q", "-f", "qcow2", str(image))
    with open(image, "rb") as stream:
        header = qcow2.read_header(stream.fileno())
        assert not qcow2.is_empty(stream.fileno(), header)
        tables = qcow2.allocation(stream.fileno(), header)
        assert tables is not None and sum(table.count(1) for table in tables.values()) == 1
    run("qemu-img", "commit", "-q", "-f", "qcow2", str(image))
    run("qemu-io", "-f", "qcow2", "-c", f"read -P 7 {size - 512} 512", str(base))


@pytest.mark.parametrize("extended", ["off", "on"])
def test_data_and_zeros_are_told_apart(tmp_path: Path, extended: str) -> None:
    """Per cluster: data, zeros, compressed data, nothing."""
    image = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"extended_l2={extended}", str(image), "1M")
    commands = [f"write -q -P 1 0 {64 << 10}", f"write -q -z {64 << 10} {64 << 10}", f"write -q -c -P 2 {128 << 10} {64 << 10}"]
    for command in commands:
        run("qemu-io", "-f", "qcow2", "-c", command, str(image))
    with open(image, "rb") as stream:
        tables = qcow2.allocation(stream.fileno(), qcow2.read_header(stream.fileno()))
    assert tables is not None and tables[0][:16] == bytes([1, 2, 1] + [0] * 13)


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_reading_and_repointing_what_qemu_img_writes(tmp_path: Path, cluster: int, compat: str) -> None:
    names = {"base": "raw", "another-base-with-a-longer-name": "qcow2", "b": "raw", "x" * 200: "qcow2"}
    for name, image_format in names.items():
        run("qemu-img", "create", "-q", "-f", image_format, str(tmp_path / name), "1M")
    image = tmp_path / "image"
    run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        f"cluster_size={cluster},compat={compat}",
        "-b",
        "base",
        "-F",
        "raw",
        str(image),
        "1M",
    )
    for name, image_format in names.items():
        with open(image, "r+b") as stream:
            before = qcow2.read_header(stream.fileno())
            try:
                qcow2.repoint(stream.fileno(), name, image_format)
            except qcow2.Qcow2Error:
                assert cluster == 512  # the header cluster has no room for a longer name: refused, and nothing changed
                assert qcow2.read_header(stream.fileno()) == before
                continue
        info = described(image)
        assert (info["backing-filename"], info["backing-filename-format"], info["cluster-size"]) == (name, image_format, cluster)
        run("qemu-img", "check", "-q", "-f", "qcow2", str(image))


@pytest.mark.parametrize("name", ["base", "x" * 200, "x" * 255])
@pytest.mark.parametrize("cluster", CLUSTERS[1:])
def test_an_image_that_was_pulled_off_its_backing_file_gets_it_back(tmp_path: Path, cluster: int, name: str) -> None:
    """Without a backing file qemu-img fills the first sector with extensions to its last byte; the names of features make room."""
    run("qemu-img", "create", "-q", "-f", "raw", str(tmp_path / name), "1M")
    image = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", "-b", name, "-F", "raw", str(image), "1M")
    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 5 64k 64k", str(image))
    run("qemu-img", "rebase", "-q", "-f", "qcow2", "-b", "", str(image))
    with open(image, "r+b") as stream:
        assert qcow2.read_header(stream.fileno()).backing_file is None
        qcow2.repoint(stream.fileno(), name, "raw")
        assert qcow2.read_header(stream.fileno()).backing_format == "raw"
    info = described(image)
    assert (info["backing-filename"], info["backing-filename-format"]) == (name, "raw")
    run("qemu-img", "check", "-q", "-f", "qcow2", str(image))
    run("qemu-io", "-f", "qcow2", "-c", "read -P 5 64k 64k", "-c", "read -P 0 0 64k", str(image))


def test_repointing_is_whole_at_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each write of a repointing, the header names the old file or the new one, with its own format."""
    for name, image_format in (("old", "raw"), ("new-and-longer", "qcow2")):
        run("qemu-img", "create", "-q", "-f", image_format, str(tmp_path / name), "1M")
    image = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "old", "-F", "raw", str(image), "1M")
    seen = []
    real = os.pwrite

    def look() -> None:
        info = described(image)
        seen.append((info["backing-filename"], info["backing-filename-format"]))

    def watched(fd: int, data: bytes, offset: int) -> int:
        look()
        calls.append("write")
        return real(fd, data, offset)

    calls: list[str] = []
    real_sync = os.fsync

    def synced(fd: int) -> None:
        calls.append("fsync")
        real_sync(fd)

    monkeypatch.setattr(os, "pwrite", watched)
    monkeypatch.setattr(os, "fsync", synced)
    with open(image, "r+b") as stream:
        qcow2.repoint(stream.fileno(), "new-and-longer", "qcow2")
    look()
    assert seen == [("old", "raw"), ("old", "raw"), ("new-and-longer", "qcow2")]
    assert calls == ["write", "fsync", "write", "fsync"], "the new name must be durable before anything leads to it"


@pytest.mark.parametrize(
    "start, end, possible", [(1 << 20, 8 << 20, True), (1 << 30, 1 << 40, True), (1 << 40, 4 << 40, True), (4 << 40, 8 << 40, False)]
)
def test_growing(tmp_path: Path, start: int, end: int, possible: bool) -> None:
    image = tmp_path / "image"
    with open(image, "w+b") as stream:
        qcow2.write_image(stream.fileno(), start)
        assert qcow2.grow(stream.fileno(), end) is possible
    assert described(image)["virtual-size"] == (end if possible else start)
    if possible:
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 {end - 512} 512", "-c", f"read -P 7 {end - 512} 512", str(image))
        run("qemu-img", "check", "-q", "-f", "qcow2", str(image))


@pytest.mark.parametrize("cluster", [512, 4096])
@pytest.mark.parametrize("more", [1, 2, 64, 512])
@pytest.mark.parametrize("below_the_room", [0, 1, 3])
def test_growing_uses_no_more_than_the_room_of_the_l1_table(tmp_path: Path, cluster: int, more: int, below_the_room: int) -> None:
    """Behind the table's last cluster there is data of the image."""
    image, covered, room = tmp_path / "image", cluster * (cluster // 8), cluster // 8
    entries = room - below_the_room
    size = entries * covered
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", str(image), str(size))
    run("qemu-io", "-f", "qcow2", "-c", f"write -q -P 7 0 {4 * cluster}", "-c", f"write -q -P 9 {size - cluster} {cluster}", str(image))
    with open(image, "r+b") as stream:
        before = stream.read()
        possible = qcow2.grow(stream.fileno(), size + more * covered)
        stream.seek(0)
        assert possible or stream.read() == before
    assert possible is (more <= below_the_room)
    run("qemu-img", "check", "-q", "-f", "qcow2", str(image))
    reads = (f"read -q -P 7 0 {4 * cluster}", f"read -q -P 9 {size - cluster} {cluster}")
    later = (f"read -q -P 0 {size} {more * covered}",) if possible else ()
    for command in reads + later:
        run("qemu-io", "-f", "qcow2", "-c", command, str(image))


@given(st.binary(max_size=600), st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=8)), max_size=6), st.booleans())
def test_noise_is_refused_with_our_own_error_alone(noise: bytes, patches: list, valid: bool) -> None:
    fd = os.memfd_create("image")
    try:
        if valid:
            qcow2.write_image(fd, 1 << 20, "base", "raw")
        else:
            os.pwrite(fd, b"QFI\xfb" + noise, 0)
        for offset, data in patches:
            os.pwrite(fd, data, offset)
        qcow2.read_backing_name(fd)
        try:
            header = qcow2.read_header(fd)
            qcow2.is_empty(fd, header)
            qcow2.allocation(fd, header)
        except qcow2.Qcow2Error:
            pass
    finally:
        os.close(fd)


# -- every image that we write, and every header of qemu-img's that we write into, beside qemu-img -----------------------


class Content:
    """A model of a disk: sectors that are not zero."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sectors: dict[int, bytes] = {}

    def write(self, pattern: int, offset: int, length: int) -> str:
        """The qemu-io command, and its effect here."""
        for sector in range(offset // 512, (offset + length) // 512):
            self.sectors[sector] = bytes([pattern]) * 512
        return f"write -q -P {pattern} {offset} {length}"

    def zero(self, offset: int, length: int) -> str:
        for sector in range(offset // 512, (offset + length) // 512):
            self.sectors.pop(sector, None)
        return f"write -q -z {offset} {length}"

    def grown(self, size: int) -> Content:
        copy = Content(size)
        copy.sectors = dict(self.sectors)
        return copy

    @property
    def digest(self) -> str:
        return digest(self.size, self.sectors)


def digest(size: int, sectors: dict[int, bytes]) -> str:
    found = hashlib.sha256(str(size).encode())
    for sector in sorted(sectors):
        found.update(sector.to_bytes(8, "big") + sectors[sector])
    return found.hexdigest()


def shown(path: Path) -> str:
    """Digest of what an image shows through its chain, read by qemu-img alone, holes passed over."""
    size = described(path)["virtual-size"]
    if size <= 2 << 30:
        whole = path.parent / "whole"
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(whole))
        return digest(size, dict(filled_sectors(whole)))
    extents = json.loads(run("qemu-img", "map", "-f", "qcow2", "--output=json", str(path)))
    sectors: dict[int, bytes] = {}
    for extent in extents:
        for start in range(extent["start"], extent["start"] + extent["length"], 8 << 20) if extent["data"] else ():
            count = min(8 << 20, extent["start"] + extent["length"] - start) // 512
            out = path.parent / "piece"
            options = [f"if={path}", f"of={out}", "bs=512", f"skip={start // 512}", f"count={start // 512 + count}"]
            run("qemu-img", "dd", "-f", "qcow2", "-O", "raw", *options)
            sectors.update((start // 512 + number, data) for number, data in filled_sectors(out))
    return digest(size, sectors)


def filled_sectors(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as stream:
        offset, size = 0, os.fstat(stream.fileno()).st_size
        while offset < size:
            try:
                offset = os.lseek(stream.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return
            data = os.pread(stream.fileno(), 1 << 20, offset)
            for place in range(0, len(data), 512) if data.strip(b"\0") else ():
                if data[place : place + 512].strip(b"\0"):
                    yield (offset + place) // 512, data[place : place + 512]
            offset += len(data)


def checked(path: Path, content: Content) -> None:
    run("qemu-img", "check", "-q", "-f", "qcow2", str(path))
    assert shown(path) == content.digest


def io(path: Path, *commands: str) -> None:
    if commands:
        run("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), str(path))


def require_agreement(path: Path) -> qcow2.Header:
    """What the codec reads is what ``qemu-img info`` and ``qemu-img map`` read."""
    info = described(path)
    with open(path, "rb") as stream:
        header = qcow2.read_header(stream.fileno())
        assert qcow2.read_backing_name(stream.fileno()) == header.backing_file == info.get("backing-filename")
        empty, tables = qcow2.is_empty(stream.fileno(), header), qcow2.allocation(stream.fileno(), header)
    details = info["format-specific"]["data"]
    told = (info["virtual-size"], info["cluster-size"], info["dirty-flag"], details["compat"], details.get("extended-l2", False))
    assert (header.size, header.cluster_size, header.dirty, {2: "0.10", 3: "1.1"}[header.version], header.extended_l2) == told
    assert header.backing_file is None or header.backing_format == info.get("backing-filename-format")
    assert tables is not None
    kinds = {}
    for index, table in tables.items():
        kinds.update({index * header.l2_entries + entry: kind for entry, kind in enumerate(table) if kind})
    assert kinds == mapped(path, header.cluster_size)
    assert empty == (not tables)
    return header


def mapped(path: Path, cluster: int) -> dict[int, int]:
    """Cluster → 1 for data, 2 for zeros alone, from ``qemu-img map`` of this image without what lies beneath."""
    graph = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": None}
    kinds: dict[int, int] = {}
    for extent in json.loads(run("qemu-img", "map", "--output=json", "json:" + json.dumps(graph))):
        if not extent["present"]:
            continue
        for number in range(extent["start"] // cluster, (extent["start"] + extent["length"] - 1) // cluster + 1):
            kinds[number] = 1 if extent["data"] or kinds.get(number) == 1 else 2
    return kinds


@pytest.mark.parametrize("size", [pytest.param(size, marks=[] if size in (1 << 20, 16 << 40) else pytest.mark.slow) for size in SIZES[1:]])
def test_the_life_of_an_overlay_that_we_write(tmp_path: Path, size: int) -> None:
    """I/O, commit, both kinds of rebase, by content: qemu-img does with our images what it does with its own."""
    names = ["base", "another-base", "y" * 200]
    model, below = Content(size), Content(size)
    for name in names:
        with open(tmp_path / name, "w+b") as stream:
            qcow2.write_image(stream.fileno(), size)
    io(tmp_path / "base", below.write(1, 0, 128 << 10), below.write(2, size // 2 // 512 * 512, 4096))
    checked(tmp_path / "base", below)
    model = below.grown(size)
    image = tmp_path / "image"
    with open(image, "w+b") as stream:
        qcow2.write_image(stream.fileno(), size, "base", "qcow2")
    assert require_agreement(image).backing_file == "base"
    checked(image, model)
    io(image, model.write(3, 64 << 10, 64 << 10), model.zero(0, 4096), model.write(4, size - 512, 512))
    require_agreement(image)
    checked(image, model)
    if size < 1 << 30:  # it compares what lies beneath byte by byte, zeros included
        run("qemu-img", "rebase", "-q", "-f", "qcow2", "-b", "another-base", "-F", "qcow2", str(image))
        require_agreement(image)
        checked(image, model)
    else:
        io(image, model.write(1, 4096, 60 << 10), model.write(2, size // 2 // 512 * 512, 4096))
    run("qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", names[2], "-F", "qcow2", str(image))
    assert require_agreement(image).backing_file == names[2]
    run("qemu-img", "commit", "-q", "-f", "qcow2", str(image))
    checked(tmp_path / names[2], model)
    checked(image, model)
    with open(image, "r+b") as stream:
        qcow2.repoint(stream.fileno(), "another-base", "qcow2")
    assert require_agreement(image).backing_file == "another-base"
    run("qemu-img", "check", "-q", "-f", "qcow2", str(image))


LAYOUTS = [
    (cluster, compat, extended)
    for cluster in (4096, 16384, 65536, 2 << 20)
    for compat, extended in (("0.10", False), ("1.1", False), ("1.1", True))
    if not extended or cluster >= 16384
]


@pytest.mark.parametrize(
    "cluster, compat, extended",
    [pytest.param(*layout, marks=[] if layout == (65536, "1.1", False) else pytest.mark.slow) for layout in LAYOUTS],
)
def test_headers_of_qemu_img_read_repointed_and_grown(tmp_path: Path, cluster: int, compat: str, extended: bool) -> None:
    """Names that grow into free space and shrink back, other formats, larger sizes; data, zeros, compressed and discarded clusters."""
    size, final = 64 << 20, (1 << 30) + 512
    model = Content(size)
    names = ["base", "b", "n" * 200, "c" * 255, "d", "e" * 255, "f" * 254, "base"]
    for name in set(names) - {"base"}:
        os.symlink("base", tmp_path / name)
    run("qemu-img", "create", "-q", "-f", "raw", str(tmp_path / "base"), str(size))
    run("qemu-io", "-f", "raw", "-c", model.write(9, 0, 1 << 20), str(tmp_path / "base"))
    image = tmp_path / "image"
    options = f"cluster_size={cluster},compat={compat},extended_l2={'on' if extended else 'off'}"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", "base", "-F", "raw", str(image), str(size))
    assert require_agreement(image).extended_l2 == extended
    io(image, model.write(5, 3 * cluster, 2 * cluster), model.write(6, 40 << 20, 512), model.write(7, 5 * cluster + 512, 1024))
    io(image, model.write(8, 8 * cluster, cluster).replace("write -q", "write -q -c"), model.zero(10 * cluster, 2 * cluster))
    if compat == "1.1":
        io(image, model.zero(3 * cluster, cluster).replace("write -q -z", "discard -q"))
    require_agreement(image)
    checked(image, model)
    for name in names[1:]:
        with open(image, "r+b") as stream:
            qcow2.repoint(stream.fileno(), name, "raw")
        assert require_agreement(image).backing_file == name
        checked(image, model)
    for larger in (size, size + 512, 1 << 30, final):
        with open(image, "r+b") as stream:
            if not qcow2.grow(stream.fileno(), larger):
                stream.flush()
                assert cluster == 4096, "an L1 table of one cluster has room for this"
                run("qemu-img", "resize", "-q", "-f", "qcow2", str(image), str(larger))
        model = model.grown(larger)
        assert require_agreement(image).size == larger
        checked(image, model)
    io(image, model.write(11, final - 512, 512), model.write(12, (512 << 20) - 512, 1024))
    require_agreement(image)
    checked(image, model)
    run("qemu-img", "rebase", "-q", "-f", "qcow2", "-b", "", str(image))
    require_agreement(image)
    checked(image, model)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_format_that_nobody_recorded_is_recorded(tmp_path: Path, image_format: str) -> None:
    """Old programs wrote overlays without the format of their backing file."""
    run("qemu-img", "create", "-q", "-f", image_format, str(tmp_path / "base"), "1M")
    image = tmp_path / "image"
    with open(image, "w+b") as stream:
        qcow2.write_image(stream.fileno(), 1 << 20, "base")
        header = qcow2.read_header(stream.fileno())
        assert header.backing_file == "base" and header.backing_format is None
        qcow2.repoint(stream.fileno(), "base", image_format)
    assert require_agreement(image).backing_format == image_format
    checked(image, Content(1 << 20))


def test_a_dirty_image_is_reported_and_left_to_qemu_img_where_reference_counts_matter(tmp_path: Path) -> None:
    model = Content(1 << 20)
    run("qemu-img", "create", "-q", "-f", "raw", str(tmp_path / "base"), "1M")
    os.symlink("base", tmp_path / "other")
    image = tmp_path / "image"
    options = "lazy_refcounts=on,compat=1.1"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", "base", "-F", "raw", str(image), "1M")
    command = model.write(5, 64 << 10, 64 << 10)
    killed = ["qemu-io", "-f", "qcow2", "-c", command, "-c", "flush", "-c", "sigraise 9", str(image)]
    assert subprocess.run(killed, capture_output=True, check=False).returncode != 0
    assert require_agreement(image).dirty
    before = image.read_bytes()
    with open(image, "r+b") as stream:
        assert qcow2.grow(stream.fileno(), 2 << 20) is False
        assert image.read_bytes() == before
        qcow2.repoint(stream.fileno(), "other", "raw")
        assert qcow2.read_header(stream.fileno()).dirty
    run("qemu-img", "resize", "-q", "-f", "qcow2", str(image), "2M")  # repairs, as every writer has to
    assert not require_agreement(image).dirty
    checked(image, model.grown(2 << 20))


def test_bitmaps_outlive_repointing_and_growing_is_left_to_qemu_img(tmp_path: Path) -> None:
    run("qemu-img", "create", "-q", "-f", "raw", str(tmp_path / "base"), "1M")
    os.symlink("base", tmp_path / ("o" * 255))
    image = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", str(image), "1M")
    run("qemu-img", "bitmap", "-f", "qcow2", "--add", str(image), "backup")
    with open(image, "r+b") as stream:
        assert qcow2.read_header(stream.fileno()).bitmaps
        assert qcow2.grow(stream.fileno(), 2 << 20) is False
        qcow2.repoint(stream.fileno(), "o" * 255, "raw")
    assert require_agreement(image).backing_file == "o" * 255
    bitmaps = described(image)["format-specific"]["data"]["bitmaps"]
    assert [(bitmap["name"], bitmap["flags"]) for bitmap in bitmaps] == [("backup", ["auto"])]
    run("qemu-img", "check", "-q", "-f", "qcow2", str(image))


def test_internal_snapshots_are_reported_and_growing_is_left_to_qemu_img(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M")
    run("qemu-img", "snapshot", "-c", "one", str(image))
    with open(image, "r+b") as stream:
        assert qcow2.read_header(stream.fileno()).internal_snapshots == 1
        assert qcow2.grow(stream.fileno(), 2 << 20) is False
    require_agreement(image)


@pytest.mark.parametrize(
    "options, told",
    [
        ("data_file=data,data_file_raw=on", "external data file"),
        ("encrypt.format=aes,encrypt.key-secret=key", "encrypted"),
    ],
)
def test_what_qemu_img_makes_and_we_refuse(tmp_path: Path, options: str, told: str) -> None:
    """LUKS, which qemu-img cannot make where the processor's clock is coarse, is a file of tests/fuzz/corpus."""
    image = tmp_path / "image"
    options = options.replace("data_file=data", f"data_file={tmp_path / 'data'}")
    run("qemu-img", "create", "-q", "--object", "secret,id=key,data=x", "-f", "qcow2", "-o", options, str(image), "1M")
    with open(image, "rb") as stream, pytest.raises(qcow2.Qcow2Error, match=told):
        qcow2.read_header(stream.fileno())


def test_a_corrupt_image_is_reported(tmp_path: Path) -> None:
    """QEMU sets the bit itself when it meets a table that cannot be."""
    image = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M")
    io(image, "write -q 0 64k")
    with open(image, "r+b") as stream:
        header = qcow2.read_header(stream.fileno())
        table = int.from_bytes(os.pread(stream.fileno(), 8, header.l1_offset), "big") & 0x00FFFFFFFFFFFE00
        os.pwrite(stream.fileno(), (1 << 63 | 0x10200).to_bytes(8, "big"), table)  # no cluster starts there
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q 0 64k", str(image)], capture_output=True, check=False)
    assert described(image)["format-specific"]["data"]["corrupt"]
    with open(image, "rb") as stream, pytest.raises(qcow2.Qcow2Error, match="marked corrupt"):
        qcow2.read_header(stream.fileno())


@pytest.mark.parametrize("size", [(2 << 50) + 512, -512, 100])
def test_impossible_sizes_are_refused_before_anything_is_written(tmp_path: Path, size: int) -> None:
    with open(tmp_path / "image", "w+b") as stream:
        with pytest.raises(qcow2.Qcow2Error):
            qcow2.write_image(stream.fileno(), size)
        assert os.fstat(stream.fileno()).st_size == 0


def test_the_largest_image_that_we_write(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with open(image, "w+b") as stream:
        qcow2.write_image(stream.fileno(), 2 << 50)
    run("qemu-img", "check", "-q", "-f", "qcow2", str(image))
    io(image, f"write -q -P 7 {(2 << 50) - 512} 512", f"read -q -P 7 {(2 << 50) - 512} 512")
    run("qemu-img", "check", "-q", "-f", "qcow2", str(image))


def test_a_file_that_is_cut_short_is_no_image_any_more(tmp_path: Path) -> None:
    """At every length either the header is refused, or the tables, or both say what they say of the whole."""
    image = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", str(image), "64k")
    io(image, "write -q 0 512", "write -q 60k 512")
    with open(image, "r+b") as stream:
        fd, content = stream.fileno(), image.read_bytes()
        whole = qcow2.allocation(fd, qcow2.read_header(fd))
        verdicts = set()
        for length in range(0, len(content), 24):
            os.pwrite(fd, content, 0)
            os.ftruncate(fd, length)
            try:
                assert qcow2.allocation(fd, qcow2.read_header(fd)) == whole
                verdicts.add("whole")
            except qcow2.Qcow2Error as error:
                verdicts.add(str(error).split(" (", maxsplit=1)[0])
    assert {"its tables lie behind the end of the file", "its header is cut short", "it has no qcow2 header"} < verdicts
