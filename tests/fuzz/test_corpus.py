# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The corpus: small images, each with one thing in it that parsers get wrong, and what has to come out."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from fuzz import fuzz_qcow2, harness
from fuzz.generator import Image

DONE = "done"


@dataclass(frozen=True)
class Accepted:
    """``allocated``: what :func:`qcow2.allocation` says without empty entries, or a part of its refusal; ``repoint`` to a name
    of 255 bytes and ``grow`` by 64 KiB likewise. ``says``: fields of the header. ``share``: the error of a volume with this overlay."""

    name: str | None = "base"
    backing_format: str | None = "raw"
    allocated: Any = field(default_factory=lambda: {0: b"\1"})
    repoint: str = DONE
    grow: Any = True
    says: dict = field(default_factory=dict)
    share: str | None = None


@dataclass(frozen=True)
class Refused:
    """``told``: a part of the refusal. ``name``: what it may rest on all the same."""

    told: str
    name: str | None = "base"


VALID = Accepted()
NO_ROOM = "no room for the backing name"
HOSTILE_NAMES = {
    "name-with-newline": "base\n",
    "name-with-slash": "../base",
    "name-absolute": "/etc/passwd",
    "name-json": 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
    "name-nbd": "nbd:unix:/tmp/socket",
}
EXPECTED: dict[str, Accepted | Refused] = {
    "valid": VALID,
    "valid-version-2": replace(VALID, says={"version": 2}),
    "valid-without-backing-file": replace(VALID, name=None, backing_format=None),
    "name-right-behind-the-header": replace(VALID, backing_format=None, says={"extensions_end": 72, "end_marked": False}),
    "extensions-end-at-the-name": replace(VALID, says={"end_marked": False}),
    "extensions-end-with-the-cluster": replace(
        VALID, name=None, backing_format=None, repoint="no room for the backing format", says={"extensions_end": 512}
    ),
    "name-in-the-padding": replace(VALID, backing_format=None, says={"extensions_end": 120, "end_marked": False}),
    "format-behind-the-name": replace(VALID, backing_format=None),
    "two-backing-formats": Refused("is there twice"),
    "backing-format-vmdk": Refused("neither raw nor qcow2"),
    "backing-format-with-nul": Refused("neither raw nor qcow2"),
    "backing-format-empty": Refused("neither raw nor qcow2"),
    "name-inside-the-header": Refused("backing name lies", None),
    "name-behind-the-cluster": Refused("backing name lies", None),
    "name-behind-the-file": Refused("backing name lies", None),
    "name-at-the-last-offset": Refused("backing name lies", None),
    "name-of-no-length": Refused("backing name lies", None),
    "name-of-4-gib": Refused("backing name lies", None),
    "name-with-nul": Refused("a NUL"),
    **{name: replace(VALID, name=spelt, share="unsafe_image") for name, spelt in HOSTILE_NAMES.items()},
    "name-no-utf-8": Refused("is no text", "ba\N{REPLACEMENT CHARACTER}se"),
    "unknown-incompatible-bit-5": Refused("unknown incompatible features (0x20)"),
    "unknown-incompatible-bit-63": Refused("unknown incompatible features (0x8000000000000000)"),
    "corrupt": Refused("marked corrupt"),
    "dirty": replace(VALID, grow=False, says={"dirty": True}),
    "data-file-bit": Refused("external data file"),
    "data-file-extension": Refused("external data file"),
    "encrypted-aes": Refused("encrypted"),
    "encrypted-luks": Refused("encrypted"),
    "encrypted-luks-of-qemu-img": Refused("encrypted", None),  # its first clusters
    "encryption-header-alone": Refused("encryption header"),
    "extension-of-4-gib": Refused("run out of the header cluster"),
    "extension-over-the-cluster": Refused("run out of the header cluster"),
    "extension-over-the-name": Refused("run out of the header cluster"),
    "end-marker-with-length": Refused("end marker has a length", None),
    "header-length-not-8": Refused("fields contradict"),
    "header-length-short": Refused("fields contradict"),
    "header-longer-than-the-cluster": Refused("longer than a cluster"),
    "header-length-4-gib": Refused("longer than a cluster"),
    "refcount-order-7": Refused("fields contradict"),
    "compression-type-without-bit": Refused("type of compression"),
    "compression-bit-without-type": Refused("type of compression"),
    "compression-zstd": VALID,
    "extended-l2-in-small-clusters": Refused("too small for extended L2"),
    "version-1": Refused("version is 1"),
    "version-4": Refused("version is 4"),
    "cluster-bits-8": Refused("cluster size of 2^8"),
    "cluster-bits-22": Refused("cluster size of 2^22"),
    "cluster-bits-4-gib": Refused("cluster size of 2^4294967295"),
    "size-odd": Refused("virtual size of 65537"),
    "size-negative": Refused("virtual size of 9223372036854775808"),
    "size-beyond-l1": Refused("does not fit its size"),
    "size-2-to-the-62": Refused("does not fit its size"),
    "l1-of-4-gib-entries": Refused("does not fit its size"),
    "l1-over-32-mib": Refused("does not fit its size"),
    "l1-behind-the-end": Refused("cut short"),
    "l1-half-behind-the-end": Refused("cut short"),
    "l1-at-the-last-offset": Refused("cut short"),
    "l1-at-zero": Refused("no L1 table"),
    "l1-misaligned": Refused("not where the format wants them"),
    "l1-rest-not-zero": replace(VALID, grow=False),
    "l2-behind-the-end": replace(VALID, allocated="behind the end of the file"),
    "l2-half-behind-the-end": replace(VALID, allocated="behind the end of the file"),
    "l2-far-behind-the-end": replace(VALID, allocated="behind the end of the file"),
    "l2-shared": replace(VALID, allocated="share an L2 table"),
    "l2-is-the-l1": VALID,
    "l2-is-the-header": replace(VALID, allocated={}),
    "l2-reserved-bits-alone": replace(VALID, allocated={}),
    "cluster-flag-without-offset": replace(VALID, allocated={0: b""}),
    "cluster-of-every-kind": replace(VALID, allocated={0: b"\1\2\1\2"}),
    "refcounts-none": Refused("no table of reference counts"),
    "refcounts-of-no-length": Refused("no table of reference counts"),
    "refcounts-over-8-mib": Refused("no table of reference counts"),
    "refcounts-behind-the-end": Refused("cut short"),
    "refcounts-misaligned": Refused("not where the format wants them"),
    "internal-snapshots-65535": replace(VALID, grow=False, says={"internal_snapshots": 65535}, share="unsafe_image"),
    "snapshots-misaligned": Refused("table of snapshots"),
    "snapshots-in-the-header": Refused("table of snapshots"),
    "autoclear-unknown": VALID,
    "bitmaps": replace(VALID, grow=False, says={"bitmaps": True}),
    "cut-in-the-magic": Refused("no qcow2 header", None),
    "cut-in-the-name-fields": Refused("no qcow2 header", None),
    "cut-before-byte-72": Refused("no qcow2 header", None),
    "cut-in-version-3-fields": Refused("cut short", None),
    "cut-behind-the-header": Refused("outside the header cluster", None),
    "empty-file": Refused("no qcow2 header", None),
    "another-format": Refused("no qcow2 header", None),
    "no-room-for-a-name": replace(VALID, name="b", repoint=NO_ROOM, share="chain_broken"),
}


@pytest.fixture
def fd() -> Any:
    number = os.memfd_create("image")
    yield number
    os.close(number)


def outcome(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except qcow2.Qcow2Error as error:
        return str(error)


def test_every_file_has_its_outcome() -> None:
    assert {path.stem for path in fuzz_qcow2.CORPUS.glob("*.qcow2")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_comes_out(name: str, fd: int) -> None:
    image, expected = Image.load(fuzz_qcow2.CORPUS / f"{name}.qcow2"), EXPECTED[name]
    harness.put(fd, image)
    header = outcome(lambda: qcow2.read_header(fd))
    assert qcow2.read_backing_name(fd) == expected.name
    if isinstance(expected, Refused):
        assert isinstance(header, str) and expected.told in header
        return
    assert (header.backing_file, header.backing_format) == (expected.name, expected.backing_format)
    assert {key: getattr(header, key) for key in expected.says} == expected.says
    tables = outcome(lambda: qcow2.allocation(fd, header))
    if isinstance(expected.allocated, str):
        assert expected.allocated in tables
    else:
        assert {index: table.rstrip(b"\0") for index, table in tables.items()} == expected.allocated
    assert outcome(lambda: qcow2.grow(fd, header.size + 65536)) is expected.grow
    harness.put(fd, image)
    assert expected.repoint in (outcome(lambda: qcow2.repoint(fd, "n" * 255, "qcow2")) or DONE)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_holds_for_every_image_holds(name: str, fd: int) -> None:
    image = Image.load(fuzz_qcow2.CORPUS / f"{name}.qcow2")
    for seed in range(8):
        with harness.bounded():
            harness.check(fd, image, random.Random(seed), measure=seed == 0)


LONG = ("internal-snapshots-65535",)  # for qemu-img


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in EXPECTED])
def test_qemu_sees_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    shutil.copy(fuzz_qcow2.CORPUS / f"{name}.qcow2", path)
    with open(path, "r+b") as stream:
        verdict = harness.compare_with_qemu(str(path), stream.fileno())
        assert not verdict.startswith("codec: "), verdict
        if isinstance(EXPECTED[name], Refused):
            return
        for action in (lambda: qcow2.repoint(stream.fileno(), "n" * 200, "qcow2"), lambda: qcow2.grow(stream.fileno(), 1 << 20)):
            outcome(action)
            assert harness.compare_with_qemu(str(path), stream.fileno()) == "both"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_volume_with_such_an_overlay(name: str, tmp_path: Path) -> None:
    """As the active image of a volume on a share: tasks that read say what it is, and touch nothing."""
    expected = EXPECTED[name]
    (tmp_path / "base").write_bytes(bytes(65536))
    shutil.copy(fuzz_qcow2.CORPUS / f"{name}.qcow2", tmp_path / "vol.one")
    (tmp_path / "vol.info").write_text('{"active": "vol.one", "one": "vol.one"}')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    share = Share(str(tmp_path), str(tmp_path), "directory")
    try:
        code = next(one for one in reading.list_volumes(share, []) if one["name"] == "vol").get("error_code")
    except StorageError as error:
        code = error.error_code
    assert code == ("unsafe_image" if isinstance(expected, Refused) else expected.share)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
