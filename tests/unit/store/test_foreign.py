# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What files of any format name: whatever their bytes, reading them ends soon and raises nothing."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hostile import images, resting
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import dependents, foreign

EXAMPLES = {
    "qcow": images.qcow1("base"),
    "QED": images.qed("base"),
    "VMDK": images.vmdk_sparse(b'version=1\nparentFileNameHint="base"\n'),
    "descriptor": images.vmdk_descriptor("x", 'RW 8 FLAT "base" 0'),
    "COWD": b"COWD" + bytes(28) + b"base".ljust(1024, b"\0"),
    "VHD": resting.vhd("base"),
    "VHDX": resting.vhdx(".\\base"),
    "UML": struct.pack(">4sI", b"OOOM", 2) + b"base".ljust(1024, b"\0"),
    "UML 3": struct.pack(">4sIIQIII", b"OOOM", 3, 0, 0, 512, 4096, 0) + b"base".ljust(4096, b"\0"),
    "Parallels": b'<?xml version="1.0"?>\n<Parallels_disk_image><Image><File>base</File></Image></Parallels_disk_image>',
    "OVF": images.ovf("base"),
}
NOTHING = {
    "empty": b"",
    "zeros": bytes(4096),
    "text": b"# a list\n# of volumes\nbase\n",
    "JSON": b'{"active": "base"}',
    "VDI": images.vdi(),
    "fixed VHD": images.vhd(),
    "cut": b"QFI\xfb",
    "cut QED": b"QED\0",
    "magic alone": b"vhdxfile",
    "no backing file": struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0) + bytes(64),
}


def names(path: Path, content: bytes) -> tuple[str, ...]:
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        return dependents.names_in(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_formats(tmp_path: Path, kind: str) -> None:
    assert [name for name in names(tmp_path / "file", EXAMPLES[kind]) if name.endswith("base")]


@pytest.mark.parametrize("kind", NOTHING)
def test_files_that_name_nothing(tmp_path: Path, kind: str) -> None:
    assert not names(tmp_path / "file", NOTHING[kind])


def test_what_is_no_text_stays_as_it_is(tmp_path: Path) -> None:
    images.qcow2(tmp_path / "image", (b"d\xff/base", "raw"))
    fd = os.open(tmp_path / "image", os.O_RDONLY)
    assert [os.fsencode(name) for name in foreign.names_in(fd)] == [b"d\xff/base"]
    os.close(fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(EXAMPLES)), st.lists(st.tuples(st.integers(0, 4096), st.binary(min_size=1, max_size=12)), max_size=8), st.integers(0, 1 << 21))
def test_damaged_ones(tmp_path: Path, kind: str, damage: list, length: int) -> None:
    content = bytearray(EXAMPLES[kind][:length])
    for offset, data in damage:
        content[offset : offset + len(data)] = data
    found = names(tmp_path / "file", bytes(content))
    assert len(found) < 2048 and sum(map(len, found)) < 1 << 20


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(dependents.MAGICS) + [bytes([letter]) for letter in sorted(dependents.TEXT)]), st.binary(max_size=5000))
def test_any_bytes(tmp_path: Path, magic: bytes, rest: bytes) -> None:
    assert isinstance(names(tmp_path / "file", magic + rest), tuple)


def test_what_is_taken_apart_is_what_can_be() -> None:
    assert dependents.MAGICS == set(foreign.BINARY)
