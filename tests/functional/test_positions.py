# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Positions of QEMU's jobs as bytes that have moved, compared with what qemu-img finds in the same images."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply import positions
from ansible_collections.remotefs.storage.plugins.module_utils.apply.positions import Positions
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Share
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory

CLUSTER, MIB = 64 << 10, 1 << 20
SIZE = 1100 * MIB  # three L2 tables, the last one not whole


def layers(path: Path, *commands: list[str], image_format: str = "qcow2") -> list[Image]:
    """Images on each other, bottom first in ``commands``, of which each writes its own; the upper ones first in the result."""
    made: list[Image] = []
    for number, writes in enumerate(commands):
        name = f"layer{number}"
        below = ["-b", made[-1].file, "-F", made[-1].format] if made else []
        subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *below, name, str(SIZE)], cwd=path, check=True)
        words = [word for one in writes for word in ("-c", one)]
        subprocess.run(["qemu-io", "-t", "unsafe", "-f", image_format, *words, name], cwd=path, check=True, capture_output=True)
        made.append(Image(name, image_format, SIZE))
    return made[::-1]


def mapped(path: Path, file: str) -> list[tuple[int, int]]:
    """Where qemu-img finds data, with all layers together."""
    told = json.loads(subprocess.run(["qemu-img", "map", "--output=json", file], cwd=path, check=True, capture_output=True).stdout)
    return [(one["start"], one["length"]) for one in told if one["data"]]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "_SHORT", 0.0)


def told(path: Path, images: list[Image], *places: tuple[object, object], above: Image | None = None) -> list[tuple[object, object]]:
    found: list[tuple[object, object]] = []
    telling = Positions(ShareDirectory(Share(str(path), str(path), "directory")), images, lambda moved, of: found.append((moved, of)), above)
    for position, end in places:
        telling(position, end)
    return found


def test_any_position_is_the_data_before_it(tmp_path: Path) -> None:
    chance = random.Random(7)
    starts = [chance.randrange(SIZE // CLUSTER - 12) * CLUSTER for _count in range(24)]
    images = layers(
        tmp_path,
        [f"write {start} {chance.randrange(1, 12) * CLUSTER}" for start in starts[:8]],
        [f"write {start} {chance.randrange(1, 12) * CLUSTER}" for start in starts[8:16]] + [f"write -z {starts[0]} {CLUSTER}"],
        [f"write {start} {chance.randrange(1, 12) * CLUSTER}" for start in starts[16:]] + [f"write {SIZE - CLUSTER} {CLUSTER}"],
    )
    data = mapped(tmp_path, images[0].file)
    total = sum(length for _start, length in data)
    places = sorted({0, SIZE - 1, *(chance.randrange(SIZE) for _count in range(200)), *(start for start, _length in data)})
    for place, (moved, of) in zip(places, told(tmp_path, images, *((place, SIZE) for place in places)), strict=True):
        whole = place // CLUSTER * CLUSTER
        assert (moved, of) == (sum(max(0, min(whole - start, length)) for start, length in data), total), place


def test_data_at_the_end_of_a_disk_is_not_moved_before_the_job_is_there(tmp_path: Path) -> None:
    images = layers(tmp_path, [f"write {SIZE - 8 * MIB} {8 * MIB}"])
    places = [(0, SIZE), (SIZE - 8 * MIB, SIZE), (SIZE - 2 * MIB, SIZE), (SIZE, SIZE)]
    assert told(tmp_path, images, *places) == [(0, 8 * MIB), (0, 8 * MIB), (6 * MIB, 8 * MIB), (SIZE, SIZE)]


def test_what_the_image_above_hides_does_not_move(tmp_path: Path) -> None:
    above, below = layers(tmp_path, ["write 0 8M"], [f"write {MIB} 6M", f"write {20 * MIB} {MIB}"])
    places = [(MIB // 2, SIZE), (MIB, SIZE), (7 * MIB, SIZE), (30 * MIB, SIZE)]
    assert told(tmp_path, [below], *places, above=above) == [(MIB // 2, 2 * MIB), (MIB, 2 * MIB), (MIB, 2 * MIB), (2 * MIB, 2 * MIB)]
    assert told(tmp_path, [below], (7 * MIB, SIZE)) == [(7 * MIB, 8 * MIB)]


@pytest.mark.parametrize("damage", ["none", "raw", "gone", "no image", "empty"])
def test_where_nobody_knows_positions_are_told_as_they_are(tmp_path: Path, damage: str) -> None:
    images = layers(tmp_path, [] if damage == "empty" else ["write 0 1M"], image_format="raw" if damage == "raw" else "qcow2")
    if damage == "gone":
        (tmp_path / images[0].file).unlink()
    if damage == "no image":
        (tmp_path / images[0].file).write_bytes(b"x" * 4096)
    expected = (MIB, MIB) if damage == "none" else (5 * MIB, SIZE)
    assert told(tmp_path, images, (5 * MIB, SIZE)) == [expected]


def test_what_is_no_position_is_not_told(tmp_path: Path) -> None:
    images = layers(tmp_path, ["write 0 1M"])
    assert told(tmp_path, images, (None, SIZE), (SIZE + 1, SIZE), (-1, SIZE), ("1", SIZE), (1, None)) == []


def test_a_short_merge_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "_SHORT", 60.0)
    monkeypatch.setattr(positions.qcow2, "read_header", lambda _fd: pytest.fail("it was read"))
    assert told(tmp_path, layers(tmp_path, ["write 0 1M"]), (MIB, SIZE)) == []
