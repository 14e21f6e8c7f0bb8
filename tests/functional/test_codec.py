# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The header codec against qemu-img, and against noise."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

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
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    with open(image, "r+b") as stream:
        qcow2.repoint(stream.fileno(), "new-and-longer", "qcow2")
    look()
    assert seen == [("old", "raw"), ("old", "raw"), ("new-and-longer", "qcow2")]


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
