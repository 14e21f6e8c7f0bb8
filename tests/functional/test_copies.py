# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of whole files and reserved space: content by hash, holes by blocks, on file systems that can and that cannot."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import command
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import allocate, copying
from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Policy
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory

from .test_refusals import MIB, Store

TIB = 1 << 40
SOURCE = updating.SourceRequest("vol", None)


def data_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def sparse_file(path: Path) -> Path:
    """64 MiB with 3 MiB of data: at the beginning, across a boundary of what is copied at a time, and a short piece at the end."""
    with open(path, "wb") as file:
        for offset, length, value in ((0, MIB, 1), (31 * MIB + 4096, 2 * MIB, 2), (64 * MIB - 1000, 1000, 3)):
            file.seek(offset)
            file.write(bytes([value]) * length)
    return path


def mounted(image: Path, kind: str, size: int, *options: str) -> Iterator[Path]:
    """A file system of its own; without the means for that the test says so."""
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs mkfs.{kind}")
    image.touch()
    os.truncate(image, size)
    subprocess.run([f"mkfs.{kind}", "-q", *options, str(image)], check=True)
    directory = image.with_suffix(".mounted")
    directory.mkdir()
    if subprocess.run(["mount", "-o", "loop", str(image), str(directory)], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip(f"this machine cannot mount {kind} from a file")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def reflinking(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "image", "xfs", 320 * MIB, "-m", "reflink=1")


@pytest.fixture
def without_fallocate(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "image", "ext2", 64 * MIB, "-F")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    share = tmp_path / "share"
    share.mkdir()
    return Store(share)


def copied(source: Path, target: Path) -> None:
    with open(source, "rb") as one, open(target, "xb") as other:
        copying.copy_data(one.fileno(), other.fileno())
    assert data_of(source) == data_of(target)


# -- one file --------------------------------------------------------------------------------------------------------


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", refused)
    monkeypatch.setattr(os, "copy_file_range", refused)


def stop_after_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel copies a part, and then says that it cannot."""
    real, calls = os.copy_file_range, []

    def some(source: int, target: int, count: int, *offsets: int) -> int:
        calls.append(count)
        if len(calls) > 1:
            raise OSError(errno.EXDEV, "no")
        return real(source, target, 4096, *offsets)

    monkeypatch.setattr(os, "copy_file_range", some)


WAYS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "as it is here": lambda m: None,
    "nothing is supported": lambda m: refuse(m, errno.EOPNOTSUPP),
    "another file system": lambda m: refuse(m, errno.EXDEV),
    "an old kernel": lambda m: refuse(m, errno.ENOSYS),
    "no such function": lambda m: m.delattr(os, "copy_file_range"),
    "nothing copied and no error": lambda m: m.setattr(os, "copy_file_range", lambda *_arguments: 0),
    "it stops half-way": stop_after_one,
}


@pytest.mark.parametrize("way", WAYS)
def test_content_and_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    source = sparse_file(tmp_path / "source")
    WAYS[way](monkeypatch)
    copied(source, tmp_path / "target")
    assert blocks(tmp_path / "target") <= blocks(source) + 128 * 1024


def hide_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """NFSv3 and sshfs show every file as one piece of data."""
    real = os.lseek

    def without(fd: int, offset: int, whence: int) -> int:
        size = os.fstat(fd).st_size
        if whence == os.SEEK_DATA and offset >= size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return (
            {os.SEEK_DATA: offset, os.SEEK_HOLE: size}.get(whence) if whence in (os.SEEK_DATA, os.SEEK_HOLE) else real(fd, offset, whence)
        )

    monkeypatch.setattr(os, "lseek", without)


def test_where_holes_cannot_be_told_zeros_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sparse_file(tmp_path / "source")
    hide_holes(monkeypatch)
    copied(source, tmp_path / "target")
    assert blocks(tmp_path / "target") <= blocks(source) + 128 * 1024


@pytest.mark.parametrize("told", ["by their number", "not at all"])
def test_nor_by_clones_and_flattening(store: Store, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    """sshfs says that a file has as many blocks as its size, NFSv3 how many there are."""
    store.present(size=64 * MIB)
    with open(store.path / "vol", "r+b") as disk:
        disk.seek(40 * MIB)
        disk.write(os.urandom(MIB))
    store.snapshot("s")
    hide_holes(monkeypatch)
    if told == "not at all":
        real = os.fstat
        monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result(real(fd), {"st_blocks": real(fd).st_size // 512}))
    for name, image_format in (("raw-copy", "raw"), ("qcow2-copy", "qcow2")):
        store.present(name, SOURCE, format=image_format)
    store.present("linked", updating.SourceRequest("vol", "s", linked=True))
    store.present("linked", flatten=True)
    monkeypatch.undo()
    for name in ("raw-copy", "qcow2-copy", "linked"):
        assert blocks(store.path / name) < 4 * MIB, name
        compared = [
            "qemu-img",
            "compare",
            "-q",
            "-f",
            "raw",
            "-F",
            store.info(name)["format"],
            str(store.path / "vol"),
            str(store.path / name),
        ]
        subprocess.run(compared, check=True)


def test_holes_are_asked_for_in_the_name_of_who_is_locked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many read one source at once: a temporary file of its name would look to each as if a task on it had been interrupted."""
    store.present(size=2 * MIB)
    (store.path / "vol").write_bytes(os.urandom(2 * MIB))
    store.snapshot("s")
    made, real = [], ShareDirectory.create_temporary
    monkeypatch.setattr(ShareDirectory, "create_temporary", lambda self, volume, *mode: made.append(volume) or real(self, volume, *mode))
    store.present("whole", updating.SourceRequest("vol", None))
    store.present("linked", updating.SourceRequest("vol", "s", linked=True))
    store.present("linked", flatten=True)
    assert set(made) == {"linked", "whole"}


@pytest.mark.parametrize("size", [0, 1, 511, 65536, 65537])
def test_odd_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    (tmp_path / "source").write_bytes(os.urandom(size))
    copied(tmp_path / "source", tmp_path / "kernel")
    refuse(monkeypatch, errno.EINVAL)
    copied(tmp_path / "source", tmp_path / "hand")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_other_errors_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    source = sparse_file(tmp_path / "source")
    refuse(monkeypatch, number)
    with pytest.raises(OSError) as raised:
        copied(source, tmp_path / "target")
    assert raised.value.errno == number


@pytest.mark.root
def test_another_file_system_for_real(tmp_path: Path, without_fallocate: Path) -> None:
    copied(sparse_file(tmp_path / "source"), without_fallocate / "target")
    assert blocks(without_fallocate / "target") < 4 * MIB


# -- clones ----------------------------------------------------------------------------------------------------------


def test_a_raw_volume_is_copied_and_never_looked_into(store: Store) -> None:
    store.present(size=64 * MIB)
    sparse_file(store.path / "vol")
    with open(store.path / "vol", "r+b") as disk:
        disk.write(b"QFI\xfb" + os.urandom(508))  # what a guest can write
    before = command.STARTED.total
    store.present("copy", SOURCE)
    assert command.STARTED.total == before, "programs were started"
    assert data_of(store.path / "copy") == data_of(store.path / "vol") and store.info("copy")["format"] == "raw"
    assert blocks(store.path / "copy") < 4 * MIB
    store.present("larger", SOURCE, size=80 * MIB)
    assert (store.path / "larger").read_bytes() == (store.path / "vol").read_bytes() + bytes(16 * MIB)


@pytest.mark.parametrize("size", [64 * MIB, 80 * MIB, 5 * TIB])
def test_a_qcow2_volume(store: Store, size: int) -> None:
    """The last size needs a longer L1 table than the source's has room for."""
    store.present(size=64 * MIB, format="qcow2")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 5 3M 2M", store.info()["path"]], check=True)
    before = command.STARTED.programs.get("qemu-img", 0)
    desired = DesiredVolume("copy", size=size, format="qcow2")
    volumes.ensure_present(updating.VolumeRequest(store.candidates, desired, SOURCE, Policy(0, 10**6)), Options())
    assert command.STARTED.programs.get("qemu-img", 0) == before
    subprocess.run(["qemu-img", "check", "-q", str(store.path / "copy")], check=True)
    compared = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", str(store.path / "vol"), str(store.path / "copy")]
    subprocess.run(compared, check=True)  # a longer one is equal where the rest is zeros
    assert store.info("copy")["size"] == size and blocks(store.path / "copy") < 4 * MIB
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 6 0 1M", store.info("copy")["path"]], check=True)
    assert data_of(store.path / "copy") != data_of(store.path / "vol")


@pytest.mark.root
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_blocks_are_shared_where_the_file_system_can(reflinking: Path, monkeypatch: pytest.MonkeyPatch, image_format: str) -> None:
    store = Store(reflinking)
    monkeypatch.delattr(os, "copy_file_range")  # which may share them too, but not everywhere
    store.present(size=128 * MIB, format=image_format)
    subprocess.run(["qemu-io", "-f", image_format, "-c", "write -q -P 5 3M 64M", store.info()["path"]], check=True)
    os.sync()
    before = os.statvfs(reflinking).f_bavail
    store.present("copy", SOURCE, format=image_format)
    store.present("larger", SOURCE, format=image_format, size=192 * MIB)
    taken = (before - os.statvfs(reflinking).f_bavail) * os.statvfs(reflinking).f_frsize
    assert taken < 4 * MIB, "the clones have blocks of their own"
    expected = data_of(store.path / "vol")
    assert data_of(store.path / "copy") == expected
    subprocess.run(["qemu-io", "-f", image_format, "-c", "write -q -P 6 3M 1M", store.info("copy")["path"]], check=True)
    assert data_of(store.path / "vol") == expected != data_of(store.path / "copy")


# -- reserved space --------------------------------------------------------------------------------------------------


def reserve(store: Store, image_format: str) -> list[str]:
    """Warnings of a new volume of 8 MiB, whose space is all there afterwards."""
    told: list[str] = []
    desired = DesiredVolume("vol", size=8 * MIB, format=image_format, preallocation="falloc")
    volumes.ensure_present(updating.VolumeRequest(store.candidates, desired), Options(task=Task(warn=told.append)))
    assert store.info()["allocated"] >= 8 * MIB and store.info()["size"] == 8 * MIB
    subprocess.run(["qemu-io", "-f", image_format, "-c", "read -q -P 0 0 8M", str(store.path / "vol")], check=True)
    return told


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_falloc_says_nothing_where_it_works(store: Store, image_format: str) -> None:
    assert reserve(store, image_format) == []


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_falloc_says_where_it_does_not(store: Store, monkeypatch: pytest.MonkeyPatch, image_format: str) -> None:
    monkeypatch.setattr(allocate, "fallocate", lambda _fd, _size: False)
    (told,) = reserve(store, image_format)
    assert "has no fallocate" in told and "vol" in told


@pytest.mark.root
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_falloc_on_a_file_system_without_it(without_fallocate: Path, image_format: str) -> None:
    (told,) = reserve(Store(without_fallocate), image_format)
    assert "has no fallocate" in told
