# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Persistent dirty bitmaps: an incremental backup that follows one must never miss a block because snapshots were deleted.

The contents of all points are compared as well. What a bitmap marks is asked of qemu-nbd, which exports it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.tests.property.world import World, run

KIB, MIB = 1 << 10, 1 << 20
GRAIN = 64 * KIB


class Backed(World):
    """A volume with bitmaps. Patterns are written so that other bytes are in each snapshot."""

    def __init__(self, share: Path, scratch: Path, image_format: str = "qcow2") -> None:
        share.mkdir()
        scratch.mkdir()
        super().__init__(share, scratch, image_format, 4 * MIB)

    def bitmap(self, file: str, name: str, *more: str) -> None:
        run("qemu-img", "bitmap", "--add", *more, "-f", "qcow2", str(self.share / file), name)

    def names(self, file: str) -> list[str]:
        with open(self.share / file, "rb") as image:
            return [one.name for one in qcow2.read_bitmaps(image.fileno(), qcow2.read_header(image.fileno()))]

    def delete_with(self, names: list[str], drop: bool = False, check: bool = False) -> list[dict]:
        done = snapshots.delete(self.candidates, "vol", names, Options(check=check, drop_bitmaps=drop))
        if not check:
            self.points = {name: content for name, content in self.points.items() if name not in names}
        return done.actions

    def refuses(self, names: list[str], *told: str) -> None:
        before = sorted((path.name, path.stat().st_mtime_ns) for path in self.share.rglob("*") if path.is_file() and ".remotefs" not in path.parts)
        for check in (True, False):
            with pytest.raises(errors.Conflict) as caught:
                self.delete_with(names, check=check)
            assert all(text in str(caught.value) for text in (*told, "drop_bitmaps")), caught.value
        after = sorted((path.name, path.stat().st_mtime_ns) for path in self.share.rglob("*") if path.is_file() and ".remotefs" not in path.parts)
        assert before == after

    def marked(self, file: str, bitmap: str) -> set[int]:
        """Numbers of the grains that are dirty."""
        directory = tempfile.mkdtemp(dir="/tmp")  # a socket's whole path has 107 bytes at most
        socket = Path(directory, "nbd")
        server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-f", "qcow2", "-B", bitmap, "-k", str(socket), str(self.share / file)])
        try:
            for _attempt in range(100):
                if socket.exists():
                    break
                time.sleep(0.05)
            said = f"driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
            parts = json.loads(run("qemu-img", "map", "--output=json", "--image-opts", said))
        finally:
            server.terminate()
            server.wait()
            shutil.rmtree(directory)
        dirty = [part for part in parts if not part["data"]]
        return {place // GRAIN for part in dirty for place in range(part["start"], part["start"] + part["length"], GRAIN)}


@pytest.fixture
def world(tmp_path: Path) -> Backed:
    if not shutil.which("qemu-nbd"):
        pytest.skip("needs qemu-nbd to read what a bitmap marks")
    return Backed(tmp_path / "share", tmp_path / "scratch")


def test_a_bitmap_stays_with_its_file_and_is_marked_with_what_comes_into_it(world: Backed) -> None:
    """The base tracks since a backup; the snapshot's overlay above it, which does not, is committed into it."""
    world.write(0, MIB, 1)
    world.bitmap("vol", "since")
    world.write(2 * MIB, GRAIN, 2)
    world.snapshot()
    world.write(MIB, 3 * GRAIN, 3)
    world.snapshot()
    world.write(3 * MIB, GRAIN, 4)
    steps = world.delete_with(["s1"])
    assert [step for step in steps if step["step"] == "commit"][0]["into"] == "vol"
    world.check()
    assert world.names("vol") == ["since"] and world.marked("vol", "since") >= {16, 17, 18, 32}


def test_the_file_that_has_a_bitmap_is_the_one_that_stays(world: Backed) -> None:
    """Although committing it downwards would move less: the bitmap is of the upper one."""
    world.write(0, 3 * MIB, 1)
    world.snapshot()
    world.bitmap("vol.s1", "since")
    world.write(0, GRAIN, 2)
    world.snapshot()
    assert [step["step"] for step in world.delete_with(["s1"])][0] == "pull"
    world.check()
    assert world.names("vol.s1") == ["since"] and 0 in world.marked("vol.s1", "since")


def test_several_files_with_bitmaps(world: Backed) -> None:
    world.bitmap("vol", "lower")
    world.write(0, MIB, 1)
    world.snapshot()
    world.bitmap("vol.s1", "upper")
    world.write(MIB, MIB, 2)
    world.snapshot()
    world.refuses(["s1"], "upper of vol.s1")
    world.check()
    world.delete_with(["s1"], drop=True)
    world.check()


def test_a_bitmap_that_does_not_track_is_not_filled(world: Backed) -> None:
    world.bitmap("vol", "frozen", "--disable")
    world.snapshot()
    world.write(MIB, MIB, 2)
    world.snapshot()
    world.refuses(["s1"], "frozen of vol")
    assert world.names("vol") == ["frozen"]
    world.check()


def test_a_raw_base_takes_no_bitmap(tmp_path: Path) -> None:
    world = Backed(tmp_path / "share", tmp_path / "scratch", "raw")
    world.write(0, MIB, 1)
    world.snapshot()
    world.bitmap("vol.s1", "since")
    world.write(MIB, MIB, 2)
    world.snapshot()
    world.refuses(["s1"], "since of vol.s1")
    with pytest.raises(errors.Conflict):
        world.delete_with(["s1", "s2"])
    world.delete_with(["s1"], drop=True)
    world.check()


def test_what_no_merge_touches_is_not_asked(world: Backed) -> None:
    """Bitmaps of other files of the chain stay as they are."""
    world.write(0, MIB, 1)
    for number in range(4):
        world.snapshot()
        world.write(number * GRAIN, GRAIN, number + 2)
    world.bitmap("vol.s4", "active")
    world.delete_with(["s2"])
    world.check()
    assert world.names("vol.s4") == ["active"]


def test_bitmaps_of_hostile_files(tmp_path: Path) -> None:
    """The directory is read with bounds: what cannot be is refused and never followed."""
    file = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(file), "1M")
    run("qemu-img", "bitmap", "--add", "-f", "qcow2", str(file), "one")
    good = file.read_bytes()
    at = good.index((0x23852875).to_bytes(4, "big")) + 8
    offset = int.from_bytes(good[at + 16 : at + 24], "big")

    def read(data: bytes) -> list[str]:
        file.write_bytes(data)
        fd = os.open(file, os.O_RDONLY)
        try:
            return [one.name for one in qcow2.read_bitmaps(fd, qcow2.read_header(fd))]
        finally:
            os.close(fd)

    def patched(place: int, value: bytes) -> bytes:
        return good[:place] + value + good[place + len(value) :]

    assert read(good) == ["one"]
    assert read(patched(88, bytes(8))) == []  # a program without bitmaps wrote it since: none counts any more
    huge = (1 << 62).to_bytes(8, "big")
    for bad in (
        patched(at, b"\xff" * 4),
        patched(at, (2).to_bytes(4, "big")),
        patched(at, bytes(4)),
        patched(at + 8, huge),
        patched(at + 8, bytes(8)),
        patched(at + 16, huge),
        patched(offset + 18, b"\xff\xff"),
        patched(offset + 20, b"\xff" * 4),
        patched(offset + 18, bytes(2)),
    ):
        with pytest.raises(qcow2.Qcow2Error):
            read(bad)
