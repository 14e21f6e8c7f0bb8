# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that arrive on a share: checked, unpacked, with holes; cut ones go on in the next task; after any other refusal nothing stays."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import random
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import (
    ImageChecksum,
    ImageInvalid,
    NoSpace,
    StorageError,
    ToolFailed,
    UnsafeImage,
    WouldShrink,
)
from ansible_collections.remotefs.storage.plugins.module_utils.images import arriving
from ansible_collections.remotefs.storage.plugins.module_utils.images.arriving import Arrival, Arrived, Order, key_of
from ansible_collections.remotefs.storage.plugins.module_utils.images.checksums import Wanted
from ansible_collections.remotefs.storage.plugins.module_utils.images.fetching import FetchFailed, Version
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.pace import Pace
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory

MIB = 1 << 20
DISK = random.Random(2).randbytes(300_000) + bytes(6 * MIB) + random.Random(3).randbytes(5000) + bytes(2 * MIB + 13)
SHOWN = DISK.ljust(-(-len(DISK) // 512) * 512, b"\0")  # a disk has whole sectors
PACK: dict[str, Callable[[bytes], bytes]] = {"none": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


class Sent:
    """A server's file that breaks off at a position, or is found to be of another state and begins anew."""

    def __init__(self, data: bytes, cut: int | None = None, version: Version | None = None) -> None:
        self.data, self.cut, self.state = data, cut, version or Version(len(data), '"tag"')
        self.began: list[int] = []

    needs: int | None = None

    def __call__(self, start: int, version: Version | None) -> Sent:
        self.start, self.version = start, version
        return self

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        start = self.start if self.version == self.state else 0
        self.began.append(start)
        self.version = self.state
        for position in range(start, len(self.data), 100_000):
            if self.cut is not None and position >= self.cut:
                raise FetchFailed("the transfer was cut")
            yield position, self.data[position : position + 100_000]


def wanted(data: bytes, algorithm: str = "sha256") -> Wanted:
    return Wanted(algorithm, hashlib.new(algorithm, data).hexdigest())


def arrival(path: Path, sent: Sent, checksum: Wanted | None, **options: object) -> Arrival:
    order = Order("https://host/disk.img", key_of("https://host/disk.img", str(checksum)), sent, checksum, **options)  # type: ignore[arg-type]
    return Arrival(ShareDirectory(Share(str(path), str(path), "directory")), order, Pace("image"))


def left(path: Path) -> list[str]:
    return sorted(os.listdir(path / ".remotefs" / "images"))


def content(arrived: Arrived) -> bytes:
    with arrived.place.root.opened(arrived.file) as fd:
        return os.pread(fd, 1 << 30, 0)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "md5", None])
def test_an_image_arrives(tmp_path: Path, kind: str, algorithm: str | None) -> None:
    data = PACK[kind](DISK)
    arrived = arrival(tmp_path, Sent(data), wanted(data, algorithm) if algorithm else None).receive()
    assert (arrived.format, arrived.size) == ("raw", len(SHOWN)) and content(arrived) == SHOWN
    assert [name for name in left(tmp_path) if not name.endswith(".state")] == [arrived.file]
    taken = (tmp_path / ".remotefs" / "images" / arrived.file).stat()
    assert taken.st_blocks * 512 < 500_000 and taken.st_mode & 0o777 == 0o600, "zeros are holes, and nobody else reads it"


def test_what_was_cut_goes_on(tmp_path: Path) -> None:
    sent = Sent(DISK, cut=5_000_000)
    with pytest.raises(ToolFailed, match="the transfer was cut; check the URL or the path"):
        arrival(tmp_path, sent, wanted(DISK)).receive()
    sent.cut = None
    assert content(arrival(tmp_path, sent, wanted(DISK)).receive()) == SHOWN
    assert sent.began == [0, 5_000_000]


def test_without_a_checksum_nothing_stays_of_what_was_cut(tmp_path: Path) -> None:
    sent = Sent(DISK, cut=5_000_000)
    with pytest.raises(ToolFailed):
        arrival(tmp_path, sent, None).receive()
    assert left(tmp_path) == []


def test_what_an_earlier_task_left_is_not_believed(tmp_path: Path) -> None:
    """Its bytes were lost in a power cut: the checksum finds that, and the transfer begins anew, once."""
    sent = Sent(DISK, cut=5_000_000)
    with pytest.raises(ToolFailed):
        arrival(tmp_path, sent, wanted(DISK)).receive()
    (part,) = [tmp_path / ".remotefs" / "images" / name for name in left(tmp_path) if not name.endswith(".state")]
    part.write_bytes(bytes(5_000_000))
    sent.cut = None
    assert content(arrival(tmp_path, sent, wanted(DISK)).receive()) == SHOWN and sent.began == [0, 5_000_000, 0]


@pytest.mark.parametrize("damage", ["state", "longer", "no state", "another state"])
def test_parts_that_fit_nothing_begin_anew(tmp_path: Path, damage: str) -> None:
    sent = Sent(DISK, cut=5_000_000)
    with pytest.raises(ToolFailed):
        arrival(tmp_path, sent, wanted(DISK)).receive()
    folder = tmp_path / ".remotefs" / "images"
    (part,) = [folder / name for name in left(tmp_path) if not name.endswith(".state")]
    state = Path(f"{part}.state")
    if damage == "longer":
        part.write_bytes(bytes(len(DISK) + 1))
    elif damage == "no state":
        state.unlink()
    elif damage == "another state":
        sent.state = Version(len(DISK), '"other"')
    else:
        state.write_bytes(b'{"length": -1, "tag": 7}')
    sent.cut = None
    assert content(arrival(tmp_path, sent, wanted(DISK)).receive()) == SHOWN and sent.began == [0, 0]


@pytest.mark.parametrize("kind", PACK)
def test_another_checksum(tmp_path: Path, kind: str) -> None:
    sent = Sent(PACK[kind](DISK))
    with pytest.raises(ImageChecksum):
        arrival(tmp_path, sent, wanted(b"something else")).receive()
    assert left(tmp_path) == [] and sent.began == [0]


def test_what_it_is_not(tmp_path: Path) -> None:
    packed = gzip.compress(DISK)
    for data, error, options in (
        (packed[:-9], ImageInvalid, {}),
        (DISK, ImageInvalid, {"compression": "xz"}),
        (DISK, ImageInvalid, {"image_format": "qcow2"}),
        (b"QFI\xfb" + bytes(5000), UnsafeImage, {}),
        (b"# Disk DescriptorFile\nversion=1\n", ImageInvalid, {}),
        (packed, ImageInvalid, {"compression": "none"}),
        (b"", ImageInvalid, {}),
        (DISK, NoSpace, {"room": 200_000}),
        (packed, NoSpace, {"room": 200_000}),
        (packed, NoSpace, {"room": len(packed) + 200_000}),
    ):
        with pytest.raises(error):
            arrival(tmp_path, Sent(data), wanted(data), **options).receive()
        assert left(tmp_path) == [], (data[:4], options)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize(
    "limits, error", [({"wanted_size": MIB}, WouldShrink), ({"largest": MIB}, NoSpace), ({"wanted_size": 1 << 50, "largest": MIB}, NoSpace)]
)
def test_what_unpacks_for_ever_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, limits: dict, error: type[StorageError]) -> None:
    monkeypatch.setattr(arriving, "_TABLES", MIB)
    data = PACK[kind](DISK)
    with pytest.raises(error):
        arrival(tmp_path, Sent(data), wanted(data), **limits).receive()
    assert left(tmp_path) == []


def test_a_raw_disk_with_holes_takes_what_it_holds(tmp_path: Path) -> None:
    """Its length is more than the share has room for."""
    arrived = arrival(tmp_path, Sent(DISK), wanted(DISK), room=600_000).receive()
    assert content(arrived) == SHOWN


def test_those_who_watch_are_told_what_is_to_come(tmp_path: Path) -> None:
    sent, told = Sent(DISK, cut=5_000_000), []
    with pytest.raises(ToolFailed):
        arrival(tmp_path, sent, wanted(DISK), expect=told.append).receive()
    sent.cut = None
    arrival(tmp_path, sent, wanted(DISK), expect=told.append).receive()
    assert told == [len(DISK), len(DISK) - 5_000_000]


def test_parts_of_others_go_after_a_day(tmp_path: Path) -> None:
    """Those that were written lately are left to the task that goes on with them, and what has no name of ours is left alone."""
    arrived = arrival(tmp_path, Sent(DISK), wanted(DISK)).receive()
    folder, key = tmp_path / ".remotefs" / "images", arrived.file
    for number, age in (("a" * 32, 90_000), ("b" * 32, 80_000), ("c" * 32 + ".unpacked", 90_000), ("notes", 90_000)):
        (folder / number).write_bytes(b"x")
        os.utime(folder / number, (1, (folder / key).stat().st_mtime - age))
    (folder / ("a" * 32 + ".state")).write_bytes(b"{}")
    os.utime(folder / ("a" * 32 + ".state"), (1, (folder / key).stat().st_mtime - 70_000))
    assert arriving.old_ones(ShareDirectory(Share(str(tmp_path), str(tmp_path), "directory")), key) == ["c" * 32]


def test_a_qcow2_image_in_a_compressed_file(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(DISK[: len(DISK) // 512 * 512])
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk", "disk.qcow2"], cwd=tmp_path, check=True)
    packed = lzma.compress((tmp_path / "disk.qcow2").read_bytes())
    arrived = arrival(tmp_path, Sent(packed), wanted(packed), image_format="qcow2").receive()
    assert (arrived.format, arrived.size) == ("qcow2", len(DISK) // 512 * 512) and arrived.file.endswith(".unpacked")


@pytest.mark.parametrize("suffix", ["", ".state", ".unpacked"])
@pytest.mark.parametrize("plant", ["link", "pipe", "folder"])
def test_what_was_planted_is_not_touched(tmp_path: Path, suffix: str, plant: str) -> None:
    data = gzip.compress(DISK)
    foreign = tmp_path / "foreign"
    foreign.write_text("data")
    place = tmp_path / ".remotefs" / "images" / f"{key_of('https://host/disk.img', str(wanted(data)))}{suffix}"
    arrival(tmp_path, Sent(data), wanted(data))
    {"link": lambda: place.symlink_to(foreign), "pipe": lambda: os.mkfifo(place), "folder": place.mkdir}[plant]()
    with pytest.raises(StorageError):
        arrival(tmp_path, Sent(data), wanted(data)).receive()
    assert foreign.read_text() == "data"


def test_a_full_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = os.pwrite, [0]

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        written[0] += len(data)
        if written[0] > 200_000:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    with monkeypatch.context() as patched, pytest.raises(NoSpace):
        patched.setattr(os, "pwrite", pwrite)
        arrival(tmp_path, Sent(DISK), wanted(DISK)).receive()
    assert left(tmp_path) == []


def test_keys_tell_images_apart() -> None:
    keys = {key_of(url, checksum) for url in ("a", "b") for checksum in (None, "sha256:00", "md5:00")}
    assert len(keys) == 6 and all(len(key) == 32 for key in keys)
