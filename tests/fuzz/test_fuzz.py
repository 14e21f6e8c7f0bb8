# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sample of the fuzzer's inputs with a new seed each time; the fuzzer itself is shown to find planted bugs."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2 import growing, reading, tables, writing
from fuzz import fuzz_qcow2, harness
from fuzz.generator import Image

SECONDS = 3 if os.environ.get("HYPOTHESIS_PROFILE") == "fast" else 12


def test_a_sample(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 31)
    result = fuzz_qcow2.run(1_000_000, seed, tmp_path, most_seconds=SECONDS)
    kept = [path.read_bytes()[:4096].hex() for path in sorted(tmp_path.iterdir())[:1]]
    print(f"seed {seed}: {result['inputs']} inputs, {len(result['outcomes'])} distinct outcomes")
    assert not result["findings"], (
        f"tests/fuzz/fuzz_qcow2.py --seed {seed} --inputs {result['inputs']} finds them again; the first begins {kept}"
    )
    accepted = sum(count for outcome, count in result["outcomes"].items() if outcome[1] is None)
    assert len(result["outcomes"]) > 100 and accepted > result["inputs"] // 4, "the inputs do not reach what is behind the header"


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
def test_qemu_sees_what_the_codec_accepts(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 31)
    result = fuzz_qcow2.run(80, seed, tmp_path, compared=1)
    print(f"seed {seed}: {result['qemu'].most_common(3)}")
    assert not result["findings"], f"tests/fuzz/fuzz_qcow2.py --qemu 1 --seed {seed} --inputs {result['inputs']} finds them again"
    assert result["qemu"]["both"] > 10


def endless(*_arguments: Any) -> Any:
    for _number in itertools.count():
        pass


def meddling(fd: int, header: qcow2.Header) -> bytearray:
    os.pwrite(fd, b"x", 600)
    return first_sector(fd, header)


first_sector, read_extensions, kinds = writing.first_sector, reading._read_extensions, tables.kinds


class Blunt(dict):
    """Takes headers that begin alike for the same."""

    def get(self, key: bytes, default: Any = None) -> Any:
        return super().get(key[:20], default)

    def __setitem__(self, key: bytes, value: Any) -> None:
        super().__setitem__(key[:20], value)


class Trusting(dict):
    """Takes every file for large enough."""

    def __setitem__(self, key: bytes, value: Any) -> None:
        super().__setitem__(key, (*value[:3], 0))


BUGS: dict[str, tuple] = {
    "it takes any features": (reading, "_check_features", lambda *_arguments: None),
    "it takes any geometry": (reading, "_check_geometry", lambda *_arguments: None),
    "it takes other headers for one that it knows": (reading, "_alike", Blunt()),
    "it takes a file that was cut short for one that it knows": (reading, "_alike", Trusting()),
    "it takes any name": (reading, "_read_name", lambda data, at, length, _header: data[at : at + length].decode() if at else None),
    "it reads on behind the name": (reading, "_read_extensions", lambda data, start, _limit: read_extensions(data, start, len(data))),
    "it never ends": (reading, "_read_extensions", endless),
    "it takes much memory": (qcow2, "has_magic", lambda _fd: bytes(512 << 20)),
    "it takes more memory than it may": (qcow2, "has_magic", lambda _fd: bytes(100 << 20)),
    "it loses entries": (tables, "kinds", lambda table, header: kinds(table, header)[1:]),
    "its error is not its own": (tables, "l1_table", lambda fd, header, _most: struct.unpack(">Q", b"") and {}),
    "it writes while it refuses": (writing, "first_sector", meddling),
    "it writes outside the header cluster": (writing, "_free_space", lambda header, _end, _length: header.cluster_size),
    "it leaves unknown features": (writing, "_KNOWN_AUTOCLEAR", (1 << 64) - 1),
    "it takes tables that are not empty": (growing.reading, "is_zero", lambda *_arguments: True),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_alike", {})  # what a bug lets in is forgotten with it
    monkeypatch.setattr(*BUGS[bug])
    monkeypatch.setattr(harness, "MOST_CPU", 0.2)
    found: list = []
    for seed in range(20):
        found += fuzz_qcow2.run(400 if bug != "it never ends" else 2, seed, tmp_path)["findings"]
        if found:
            break
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("tables", [128, 129])
def test_memory_at_the_limits(tmp_path: Path, tables: int, extended: bool) -> None:
    """256 MiB of L2 tables, full to the last entry, and an L1 table of 32 MiB: the most that the codec reads."""
    cluster, entries = 2 << 20, 4 << 20
    l1_at = 3 * cluster
    header = bytearray(qcow2_header(cluster, entries, l1_at, extended))
    first = l1_at // cluster + entries * 8 // cluster
    pieces = [(0, header), (l1_at, bytearray(struct.pack(f">{tables}Q", *((first + table) * cluster for table in range(tables)))))]
    pieces += [((first + table) * cluster, bytearray(b"\x80\0\0\0\0\x20\0\0" * (cluster // 8))) for table in range(tables)]
    image = Image((first + tables) * cluster, pieces)
    with open(tmp_path / "image", "w+b") as stream:
        fd = stream.fileno()
        harness.put(fd, image)
        del pieces, image
        found, peak = peak_of(lambda: qcow2.allocation(fd, qcow2.read_header(fd)))
    assert (found is None) == (tables > 128)
    assert found is None or sum(map(len, found.values())) == 128 * cluster // (16 if extended else 8)
    assert peak < harness.MOST_MEMORY


def qcow2_header(cluster: int, entries: int, l1_at: int, extended: bool) -> bytes:
    fields = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, cluster.bit_length() - 1, 1 << 50, 0, entries, l1_at, cluster, 1, 0, 0)
    return fields + struct.pack(">QQQII", 16 if extended else 0, 0, 0, 4, 104)


def peak_of(action: Callable) -> tuple:
    tracemalloc.start()
    try:
        return action(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
