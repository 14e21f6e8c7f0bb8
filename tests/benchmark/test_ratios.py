# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmarks at small size: counts as they should be, and ratios within one run that only a mistake would exceed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from . import clones, images, lives, measuring, merges, reading, tasks
from .__main__ import BENCHMARKS
from .merge_bytes import Shape, data

needs_strace = pytest.mark.skipif(not measuring.can_count(), reason="needs strace")


@pytest.mark.slow
@needs_strace
def test_lives_sync_what_the_protocol_needs_and_start_nothing(tmp_path: Path) -> None:
    counts = {one.way: one for one in lives.count(tmp_path, 32)}
    assert counts["ours"].programs == 0
    assert counts["floor"].fsyncs <= counts["ours"].fsyncs <= 1.5 * counts["floor"].fsyncs, counts  # most volumes share the syncs of directories
    assert counts["qemu-img"].programs >= 3 * 32


@pytest.mark.slow
def test_lives_of_more_volumes_cost_no_more_each(tmp_path: Path) -> None:
    few, many = (lives.ours(share(tmp_path, count), count) for count in (10, 80))
    assert many < 8 * few, "the cost of a volume grows with their number"


def share(tmp_path: Path, count: int) -> Path:
    path = tmp_path / f"share-{count}"
    path.mkdir()
    return path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_images_are_read_once_and_in_little_memory(tmp_path: Path, image_format: str) -> None:
    """By hand the content is read two times more."""
    source = images.dense(tmp_path / "disk", 48)
    found = [images.measure_export(tmp_path, source, image_format, 2), images.measure_import(tmp_path, source, "qcow2", image_format, 2)]
    for one in found:
        assert one.ours < 2 * one.by_hand and one.memory < 64 * measuring.MIB, found


@pytest.mark.slow
def test_reading(tmp_path: Path) -> None:
    known = reading.Share(tmp_path / "share", 10)
    few = reading.measure_share(known.grow(60), 1, 20)
    many = reading.measure_share(known.grow(480), 1, 20)
    assert many.ours < 8 * few.ours, "the cost of a volume grows with their number"
    assert many.ours < many.qemu_img and many.memory < 100 * measuring.MIB


def test_a_large_result_says_what_small_ones_say(tmp_path: Path) -> None:
    known = reading.Share(tmp_path / "share", 2).grow(120)
    given = {"share": [str(known.path)]}
    everything = json.loads(measuring.run_module("remotefs_volume_info", given).out)
    parts = [json.loads(measuring.run_module("remotefs_volume_info", {**given, "names": [names]}).out) for names in ("*[0-4]", "*[5-9]")]
    assert everything["changed"] is False
    assert everything["volumes"] == sorted((volume for part in parts for volume in part["volumes"]), key=lambda volume: volume["name"])
    assert len(everything["volumes"]) == 120 and "invocation" not in everything, "the short way was not taken"


@pytest.mark.slow
def test_tasks(tmp_path: Path) -> None:
    pytest.importorskip("ansible.cli")
    row = tasks.play(tmp_path, tasks.collection_with_idle_module(tmp_path), 1, 3, True)
    assert row.info < 3 * row.idle and row.present < 3 * row.idle, row


@pytest.mark.slow
def test_merges(tmp_path: Path) -> None:
    shape = Shape("small", ((data("0", "8M", 1),), (data("4M", "48M", 2),), ()), (1,), 128 * measuring.MIB, "raw")
    (tmp_path / "scratch").mkdir()
    row = merges.measure_shape(shape, tmp_path / "scratch", 1)
    assert row.ours < 8 * row.copy, row


@pytest.mark.slow
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_clones(tmp_path: Path, image_format: str) -> None:
    row = clones.measure_clones(image_format, "here", tmp_path / "share", image_format, 1, 3, size=192, filled=48)
    assert row.ours < 4 * row.synced and row.taken < 64 * measuring.MIB, row


def test_the_page_shows_all_of_them() -> None:
    page = measuring.PAGE.read_text()
    for name in BENCHMARKS:
        begin, end = map(re.escape, measuring.marks(name))
        found = re.search(f"{begin}\n\n(.*?)\n\n{end}", page, re.DOTALL)
        assert found and found.group(1).startswith("| "), f"run scripts/bench --write-docs {name}"
