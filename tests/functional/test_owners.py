# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is merged into an image in which a cluster has two uses. ``qemu-img check`` says what is so, in images of every geometry."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2

from .test_refusals import MIB, Store, refused

COPIED, COMPRESSED, OFFSET = 1 << 63, 1 << 62, 0x00FFFFFFFFFFFE00
GEOMETRIES = {
    "plain": "cluster_size=65536",
    "smallest": "cluster_size=512",
    "largest": "cluster_size=2M",
    "version 2": "compat=0.10,cluster_size=4096",
    "version 2, smallest": "compat=0.10,cluster_size=512",
    "lazy": "lazy_refcounts=on,cluster_size=4096",
    "extended": "extended_l2=on,cluster_size=16384",
    "metadata": "preallocation=metadata,cluster_size=4096",
    "falloc": "preallocation=falloc,cluster_size=4096",
    "full": "preallocation=full,cluster_size=65536",
    "one bit": "refcount_bits=1,cluster_size=4096",
    "four bits": "refcount_bits=4,cluster_size=4096",
    "eight bits": "refcount_bits=8,cluster_size=512",
    "64 bits": "refcount_bits=64,cluster_size=4096",
    "zstd": "compression_type=zstd,cluster_size=65536",
}
SIZE = 2 * MIB


def run(*words: object) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


@lru_cache(maxsize=None)
def image(geometry: str, content: str) -> bytes:
    """An image as QEMU makes it, with data, holes and zeros."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "image")
        if content == "compressed":
            raw = Path(place, "raw")
            raw.write_bytes(b"".join(bytes([number % 251, number % 7]) * 2048 for number in range(SIZE // 4096)))
            options = GEOMETRIES[geometry].replace("preallocation", "compat=1.1,preallocation")
            run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
        else:
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", GEOMETRIES[geometry], path, SIZE)
            writes = ["write -P 1 0 300k", "write -P 2 1M 64k", "write -P 3 1500k 20k", "write -P 4 700k 3k"]
            if content == "zeros":
                writes += ["write -z 64k 128k", "write -z 1200k 100k", "discard 1M 32k"]
            run("qemu-io", "-f", "qcow2", *[word for write in writes for word in ("-c", write)], path)
        if content == "bitmaps":
            for name in ("one", "two"):
                run("qemu-img", "bitmap", "--add", "-f", "qcow2", path, name)
            run("qemu-io", "-f", "qcow2", "-c", "write -P 9 100k 100k", path)
        return path.read_bytes()


def kinds(geometry: str) -> list[str]:
    without = "compat=0.10" in GEOMETRIES[geometry]
    packed = [] if "preallocation" in GEOMETRIES[geometry] or "one bit" in geometry else ["compressed"]
    return ["data", *packed, *([] if without else ["zeros", "bitmaps"])]


ALL = [(geometry, content) for geometry in GEOMETRIES for content in kinds(geometry)]


def verdict(path: Path) -> str | None:
    with open(path, "rb") as stream:
        try:
            qcow2.require_single_owners(stream.fileno())
            qcow2.require_whole(stream.fileno())
        except qcow2.Qcow2Error as error:
            return str(error)
    return None


def told_by_qemu(path: Path) -> tuple[bool, bool]:
    """Whether ``qemu-img check`` finds a cluster counted less often than it is used, and whether it finds nothing but leaks."""
    ran = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(path)], capture_output=True, text=True, check=False)
    text = ran.stdout + ran.stderr
    shared = any(int(count) < int(used) for count, used in re.findall(r"ERROR cluster \d+ refcount=(\d+) reference=(\d+)", text))
    return shared, ran.returncode in (0, 3)


@pytest.mark.parametrize(("geometry", "content"), ALL)
def test_what_qemu_makes_is_in_order(tmp_path: Path, geometry: str, content: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(image(geometry, content))
    assert told_by_qemu(path) == (False, True) and verdict(path) is None


class Tables:
    """The tables of an image in memory, to be broken."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.bits = self.number(20, 4)
        self.size = 1 << self.bits
        self.extended = self.number(4, 4) == 3 and bool(self.number(72, 8) & 16)
        self.l1, self.counts = self.number(40, 8), self.number(48, 8)
        l1 = [self.l1 + 8 * index for index in range(self.number(36, 4))]
        self.l1_entries = [at for at in l1 if self.number(at)]
        step = 16 if self.extended else 8
        places = [(self.number(at) & OFFSET) + step * index for at in self.l1_entries for index in range(self.size // step)]
        self.entries = [at for at in places if at + 8 <= len(self.data)]
        self.used = [at for at in self.entries if self.number(at) & (OFFSET | COMPRESSED)]

    def number(self, at: int, width: int = 8) -> int:
        return int.from_bytes(self.data[at : at + width], "big")

    def put(self, at: int, number: int) -> None:
        self.data[at : at + 8] = struct.pack(">Q", number)


HOW = ["same", "same, not flagged", "same, zeros", "header", "l1", "counts", "block", "table", "behind", "uncounted", "counted", "l1 twice"]


def break_it(tables: Tables, how: str, here: int, there: int) -> None:
    at = tables.entries[here % len(tables.entries)]
    value = tables.number(tables.used[there % len(tables.used)])
    block = tables.number(tables.counts)
    if how in ("same", "same, not flagged", "same, zeros"):
        flags = {"same": value, "same, not flagged": value & ~COPIED, "same, zeros": value | 1}
        tables.put(at, flags[how] if not value & COMPRESSED else value)
    elif how in ("uncounted", "counted"):
        place = block + there % (tables.size // 2)
        tables.data[place] = 0 if how == "uncounted" else 255
    elif how == "l1 twice":
        tables.put(tables.l1_entries[here % len(tables.l1_entries)], tables.number(tables.l1_entries[there % len(tables.l1_entries)]))
    else:
        table = tables.number(tables.l1_entries[there % len(tables.l1_entries)]) & OFFSET
        places = {"header": 0, "l1": tables.l1, "counts": tables.counts, "block": block, "table": table}
        places["behind"] = -(-len(tables.data) // tables.size + there % 3) * tables.size
        tables.put(at, places[how] | COPIED)
    if tables.extended and how not in ("uncounted", "counted", "l1 twice"):
        tables.put(at + 8, 0xFFFFFFFF)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(ALL),
    st.lists(st.tuples(st.sampled_from(HOW), st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=3),
)
def test_two_uses_are_found(tmp_path: Path, kind: tuple[str, str], breaks: list[tuple[str, int, int]]) -> None:
    tables = Tables(image(*kind))
    for how, here, there in breaks:
        break_it(tables, how, here, there)
    path = tmp_path / "image"
    path.write_bytes(tables.data)
    shared, clean = told_by_qemu(path)
    found = verdict(path)
    if shared and not tables.number(72, 8) & 1:
        assert found, "qemu-img check found two uses"
    if clean:
        assert found is None or "end" in found, "qemu-img check found nothing"


def share_a_cluster(path: Path, at: str) -> None:
    """Let the last entry of the first L2 table lead where another thing is."""
    tables = Tables(path.read_bytes())
    table = tables.number(tables.l1_entries[0]) & OFFSET
    value = {"data": tables.number(tables.used[0]), "table": table | COPIED, "header": COPIED, "counts": tables.counts | COPIED}[at]
    if at == "header":
        value = tables.l1 | COPIED
    with open(path, "r+b") as stream:
        stream.seek(table + 8 * 15)
        stream.write(struct.pack(">Q", value))


@pytest.mark.parametrize("at", ["data", "table", "header", "counts"])
@pytest.mark.parametrize("into", ["base", "overlay"])
@pytest.mark.parametrize("geometry", ["plain", "version 2", "eight bits"])
def test_no_merge_into_such_an_image(tmp_path: Path, at: str, into: str, geometry: str) -> None:
    """Refused in check mode and in earnest before a byte is written; what moves nothing goes on."""
    share = tmp_path / "share"
    share.mkdir()
    store = Store(share)
    options = GEOMETRIES[geometry]
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, share / "vol", SIZE)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 8k", "-c", "write -P 1 1100k 400k", share / "vol")  # much, so that the base is kept
    store.present(format="qcow2")
    store.snapshot("s1")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", "vol", "-F", "qcow2", "vol.s1"], cwd=share, check=True)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 2 0 8k", share / "vol.s1")
    store.snapshot("s2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 3 4k 4k", share / "vol.s2")
    share_a_cluster(share / ("vol" if into == "base" else "vol.s1"), at)
    names = ["s1"] if into == "base" else ["s2"]
    told = refused(store, errors.UnsafeImage, lambda check: store.delete(*names, check=check))
    assert "two uses" in str(told) and "qemu-img check" in str(told)
    assert store.revert("s2").changed and store.absent(cascade=True).changed


def test_a_shared_l2_table(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(image("smallest", "data"))
    tables = Tables(path.read_bytes())
    assert len(tables.l1_entries) > 1
    tables.put(tables.l1_entries[1], tables.number(tables.l1_entries[0]))
    path.write_bytes(tables.data)
    assert "L2 table" in str(verdict(path))


@pytest.mark.parametrize("counted", [False, True])
def test_several_owners_that_are_counted(tmp_path: Path, counted: bool) -> None:
    """QEMU copies such a cluster before it writes; where it is counted once it would be taken for free after that."""
    path = tmp_path / "image"
    tables = Tables(image("plain", "data"))
    one, another = tables.used[0], tables.entries[-1]
    number = (tables.number(one) & OFFSET) >> tables.bits
    for at in (one, another):
        tables.put(at, tables.number(one) & ~COPIED)
    if counted:
        tables.data[tables.number(tables.counts) + 2 * number + 1] = 2
    path.write_bytes(tables.data)
    assert (verdict(path) is None) == counted
    assert told_by_qemu(path)[0] != counted


@pytest.mark.parametrize("geometry", ["plain", "extended", "smallest", "eight bits", "version 2"])
@pytest.mark.parametrize("content", ["data", "compressed"])
def test_a_file_cut_short_whose_counts_lie(tmp_path: Path, geometry: str, content: str) -> None:
    """Found at adoption and by clones: the counts say that the file may be as short as it is."""
    share = tmp_path / "share"
    share.mkdir()
    tables = Tables(image(geometry, content))
    ends = [(tables.number(at) & OFFSET) for at in tables.used if not tables.number(at) & COMPRESSED]
    cut = max(ends) if ends else len(tables.data) - 2 * tables.size
    first = cut >> tables.bits
    width = int({"eight bits": 1}.get(geometry, 2))
    per_block = tables.size // width
    for index in range(tables.number(56, 4) * tables.size // 8):
        block = tables.number(tables.counts + 8 * index)
        for position in range(per_block if block and block < cut else 0):
            if index * per_block + position >= first:
                tables.data[block + position * width : block + (position + 1) * width] = bytes(width)
    (share / "vol").write_bytes(tables.data[:cut])
    os.truncate(share / "vol", cut)
    if verdict(share / "vol") and "its tables" in str(verdict(share / "vol")):
        pytest.skip("the tables of this image lie at its end")
    store = Store(share)
    refused(store, errors.UnsafeImage, lambda check: store.present(format="qcow2", check=check))
