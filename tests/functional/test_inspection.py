# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of every format that qemu-img writes pass, with the size that it finds; whatever leads elsewhere, is damaged or lies does not."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.store import inspection
from ansible_collections.remotefs.storage.plugins.module_utils.store.inspection import Inspected, Refused, vhdx, vpc

MIB = 1 << 20
SIZE = 5 * MIB + 512 * 3

KINDS = {
    "raw": ("raw", ""),
    "qcow2": ("qcow2", ""),
    "qcow2-old": ("qcow2", "compat=0.10,cluster_size=4k"),
    "vmdk": ("vmdk", "subformat=monolithicSparse"),
    "vmdk-stream": ("vmdk", "subformat=streamOptimized"),
    "vmdk-zeroed": ("vmdk", "subformat=monolithicSparse,zeroed_grain=on"),
    "vdi": ("vdi", ""),
    "vdi-static": ("vdi", "static=on"),
    "vhdx": ("vhdx", ""),
    "vhdx-fixed": ("vhdx", "subformat=fixed"),
    "vpc": ("vpc", ""),
    "vpc-fixed": ("vpc", "subformat=fixed"),
    "vpc-exact": ("vpc", "subformat=fixed,force_size=on"),
    "vpc-dynamic-exact": ("vpc", "subformat=dynamic,force_size=on"),
}


def made(model: Path, path: Path, kind: str) -> Path:
    image_format, options = KINDS[kind]
    words = ["-o", options] if options else []
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", image_format, *words, str(model), str(path)], check=True)
    return path


def inspected(path: Path, asked: str | None = None) -> Inspected:
    with path.open("rb") as file:
        return inspection.inspect(file.fileno(), asked)


def refused(path: Path, asked: str | None = None) -> Refused:
    with pytest.raises(Refused) as told:
        inspected(path, asked)
    return told.value


def test_how_much_data_a_qcow2_image_holds(tmp_path: Path) -> None:
    """Not how much is left of it by compression: that is what a volume takes that is made from it."""
    (tmp_path / "disk").write_bytes(b"data" * (3 << 18) + bytes(5 << 20))
    words = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(tmp_path / "disk"), str(tmp_path / "image")]
    subprocess.run(words, check=True)
    assert inspected(tmp_path / "image").held == 3 << 20 and (tmp_path / "image").stat().st_size < 1 << 20


@pytest.mark.parametrize("kind", KINDS)
def test_what_qemu_writes(model: Path, tmp_path: Path, kind: str) -> None:
    image_format = KINDS[kind][0]
    path = made(model, tmp_path / "image", kind)
    told = subprocess.run(["qemu-img", "info", "-f", image_format, "--output=json", str(path)], check=True, capture_output=True)
    expected = Inspected(image_format, json.loads(told.stdout)["virtual-size"])
    assert inspected(path)._replace(held=0) == expected == inspected(path, image_format)._replace(held=0)
    for other in inspection.FORMATS:
        if other != image_format:
            assert f"format {image_format}, and not {other}" in str(refused(path, other))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "raw"])
def test_a_file_that_was_cut_short(model: Path, tmp_path: Path, kind: str) -> None:
    """Wherever: what qemu-img reads of it is another disk, or nothing, so it is never taken for whole."""
    path = made(model, tmp_path / "image", kind)
    whole = path.read_bytes()
    content = model.read_bytes()
    chance = random.Random(kind)
    for length in sorted({1, 512, len(whole) - 1, len(whole) - 512, len(whole) - 65536, *(chance.randrange(1, len(whole)) for _count in range(20))}):
        path.write_bytes(whole[:length])
        try:
            found = inspected(path, KINDS[kind][0])
        except Refused:
            continue
        subprocess.run(["qemu-img", "convert", "-f", found.format, "-O", "raw", str(path), str(tmp_path / "again")], check=True)
        assert (tmp_path / "again").read_bytes()[: len(content)] == content, length  # only what carries no data is missing


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "raw"])
def test_any_byte_of_a_header_that_is_changed(model: Path, tmp_path: Path, kind: str) -> None:
    """It is refused, or qemu-img reads a disk of the size that was found; nothing else is raised."""
    path = made(model, tmp_path / "image", kind)
    whole = path.read_bytes()
    chance = random.Random(kind)
    heads = {"vhdx": [64 << 10, 192 << 10, 2 * MIB, 3 * MIB], "vpc": [0, 512, len(whole) - 512]}.get(KINDS[kind][0], [0, 512])
    for _count in range(60):
        at = chance.choice(heads) + chance.randrange(512)
        changed = bytearray(whole)
        changed[at % len(changed)] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            found = inspected(path)
        except Refused:
            continue
        told = subprocess.run(["qemu-img", "info", "-f", found.format, "--output=json", str(path)], check=False, capture_output=True)
        if told.returncode == 0:
            described = json.loads(told.stdout)
            assert described["virtual-size"] == found.size and "backing-filename" not in described, at


# -- what leads to other files -----------------------------------------------------------------------------------------


def descriptor(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        whole = bytearray(path.read_bytes())
        (sectors,) = struct.unpack_from("<Q", whole, 36)
        text = change(bytes(whole[512 : 512 + sectors * 512]).rstrip(b"\0"))
        whole[512 : 512 + sectors * 512] = text.ljust(sectors * 512, b"\0")[: sectors * 512]
        path.write_bytes(whole)

    return apply


def written(at: int, data: bytes) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at if at >= 0 else os.path.getsize(path) + at)
            file.write(data)

    return apply


ATTACKS = {
    "another file as the extent": ("vmdk", descriptor(lambda text: text.replace(b'SPARSE "image"', b'FLAT "/etc/passwd" 0'))),
    "a path as the extent": ("vmdk", descriptor(lambda text: text.replace(b'SPARSE "image"', b'SPARSE "/etc/passwd"'))),
    "a second extent": ("vmdk", descriptor(lambda text: text + b'\nRW 8 FLAT "/etc/passwd" 0\n')),
    "a second extent, indented": ("vmdk", descriptor(lambda text: text + b'\n  RW 8 FLAT "/etc/passwd" 0\n')),
    "a flat kind": ("vmdk", descriptor(lambda text: text.replace(b"monolithicSparse", b"monolithicFlat"))),
    "two kinds": ("vmdk", descriptor(lambda text: b'# createType="monolithicFlat"\n' + text)),
    "a parent": ("vmdk", descriptor(lambda text: text + b'\nparentFileNameHint="/etc/passwd"\n')),
    "the mark of a parent": ("vmdk", descriptor(lambda text: text.replace(b"parentCID=ffffffff", b"parentCID=12345678"))),
    "no size, so that QEMU reads the text": ("vmdk", written(12, bytes(8))),
    "the descriptor elsewhere": ("vmdk", written(28, struct.pack("<Q", 40))),
    "a parent of a VDI": ("vdi", written(0x1A8, b"x" * 16)),
    "a VDI that differs from another": ("vdi", written(0x4C, struct.pack("<I", 4))),
    "a backing file": ("qcow2", written(8, struct.pack(">QI", 65536 - 16, 11))),
    "an external data file": ("qcow2", written(72, struct.pack(">Q", 4))),
    "encryption": ("qcow2", written(32, struct.pack(">I", 2))),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_leads_elsewhere_is_unsafe(model: Path, tmp_path: Path, attack: str) -> None:
    kind, change = ATTACKS[attack]
    path = made(model, tmp_path / "image", kind)
    before = path.read_bytes()
    change(path)
    assert path.read_bytes() != before
    assert refused(path).is_unsafe


def test_a_differencing_disk(model: Path, tmp_path: Path) -> None:
    path = made(model, tmp_path / "image", "vpc-fixed")
    footer = bytearray(path.read_bytes()[-512:])
    footer[60:64] = struct.pack(">I", 4)
    footer[64:68] = struct.pack(">I", vpc._checksum(bytes(footer), 64))
    written(-512, bytes(footer))(path)
    assert refused(path).is_unsafe and "rests on another" in str(refused(path))


@pytest.mark.parametrize("what", ["log", "parent", "required"])
def test_a_vhdx_that_needs_more(model: Path, tmp_path: Path, what: str) -> None:
    path = made(model, tmp_path / "image", "vhdx")
    whole = bytearray(path.read_bytes())
    if what == "log":
        for at in (64 << 10, 128 << 10):
            whole[at + 48 : at + 64] = b"x" * 16
            whole[at + 4 : at + 8] = struct.pack("<I", vhdx._checksum(bytes(whole[at : at + 4096])))
    elif what == "required":
        for at in (192 << 10, 256 << 10):
            whole[at + 8 : at + 12] = struct.pack("<I", 3)
            whole[at + 80 : at + 112] = b"y" * 16 + struct.pack("<QII", 4 * MIB, MIB, 1)
            whole[at + 4 : at + 8] = struct.pack("<I", vhdx._checksum(bytes(whole[at : at + 65536])))
    else:
        at = whole.index(vhdx._PARAMETERS)
        start = at - at % MIB
        (offset,) = struct.unpack_from("<I", whole, at + 16)
        whole[start + offset + 4] |= 2
    path.write_bytes(whole)
    assert {"log": "its log was not replayed", "parent": "rests on another one", "required": "a region that is not known"}[what] in str(refused(path))


@pytest.mark.parametrize(
    "content, format_",
    [
        (b"# Disk DescriptorFile\nversion=1\n", "vmdk (text)"),
        (b"\n\n# a comment\n  version = 1\n", "vmdk (text)"),
        (b"QED\0" + bytes(600), "qed"),
        (b"LUKS\xba\xbe" + bytes(600), "luks"),
        (bytes(1024) + b"koly" + bytes(508), "dmg"),
        (b"\x1f\x8b\x08" + bytes(600), "gzip"),
        (bytes(257) + b"ustar" + bytes(600), "ova (a tar archive)"),
    ],
)
def test_formats_that_are_not_taken(tmp_path: Path, content: bytes, format_: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    for asked in (None, "raw"):
        assert f"of the format {format_}" in str(refused(path, asked))


def test_two_formats_at_once(model: Path, tmp_path: Path) -> None:
    path = made(model, tmp_path / "image", "qcow2")
    with path.open("ab") as file:
        file.write(b"conectix".ljust(512, b"\0"))
    assert refused(path).is_unsafe and "qcow2, vpc" in str(refused(path))


def test_a_part_of_a_mark_is_no_raw_disk(tmp_path: Path) -> None:
    for content in (b"conectix" + bytes(2000), bytes(2000) + b"conectix" + bytes(504), b"vhdxfile" + bytes(MIB), b"KDMV" + bytes(2000), b"QFI\xfb" + bytes(5)):
        (tmp_path / "image").write_bytes(content)
        refused(tmp_path / "image")
    (tmp_path / "image").write_bytes(b"")
    assert "empty" in str(refused(tmp_path / "image"))


def test_memory_and_time_are_bounded(tmp_path: Path) -> None:
    """A header that tells of tables larger than the file, or of the largest disk."""
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vdi", str(path), "100T"], check=False, capture_output=True)
    if path.exists() and path.stat().st_size:
        assert inspected(path).format == "vdi"
    with path.open("wb") as file:
        file.write(b"\0" * 0x40 + struct.pack("<III", 0xBEDA107F, 0x10001, 400) + b"\0" * 400)
    refused(path)


def test_the_checksum_is_that_of_castagnoli() -> None:
    assert vhdx.crc32c(b"123456789") == 0xE3069283
