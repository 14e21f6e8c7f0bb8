# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes of images that nobody should trust, made without the code that is to be tested."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

MIB = 1 << 20
SIZE = 4 * MIB  # virtual size of images where nothing else is said
CLUSTER = 1 << 16

_FIELDS = {  # name: (offset, format), docs/interop/qcow2 section "Header"
    "magic": (0, "4s"),
    "version": (4, "I"),
    "backing_offset": (8, "Q"),
    "backing_length": (16, "I"),
    "cluster_bits": (20, "I"),
    "size": (24, "Q"),
    "crypt": (32, "I"),
    "l1_entries": (36, "I"),
    "l1_offset": (40, "Q"),
    "refcount_offset": (48, "Q"),
    "refcount_clusters": (56, "I"),
    "snapshots": (60, "I"),
    "snapshots_offset": (64, "Q"),
    "incompatible": (72, "Q"),
    "compatible": (80, "Q"),
    "autoclear": (88, "Q"),
    "refcount_order": (96, "I"),
    "header_length": (100, "I"),
    "compression": (104, "B"),
}
BACKING_FORMAT = 0xE2792ACA
DATA_FILE = 0x44415441
BITMAPS = 0x23852875
CRYPTO = 0x0537BE77

Backing = "tuple[str | bytes, str | bytes | None] | None"  # name and format


def qcow2(
    path: Path,
    backing: Backing = None,
    *,
    extensions: tuple = (),
    l1: tuple = (0,),
    clusters: dict | None = None,
    length: int | None = None,
    **fields: object,
) -> None:
    """Write a version 3 image of :data:`SIZE` bytes: header, refcount table, refcount block, L1 table (clusters 0 to 3).

    :param extensions: (type, body) pairs, or raw bytes to put in their place.
    :param l1: the L1 entries. :param clusters: content by cluster number, from 4 on.
    :param length: where the file is cut. :param fields: header fields that differ from what is right.
    """
    name, image_format = backing or (None, None)
    name = name.encode() if isinstance(name, str) else name
    found = list(extensions)
    if image_format is not None:
        found.insert(0, (BACKING_FORMAT, image_format.encode() if isinstance(image_format, str) else image_format))
    body = b"".join(one if isinstance(one, bytes) else _extension(*one) for one in found) + bytes(8)
    header_length = int(fields.get("header_length", 104)) if fields.get("header_length", 104) in (104, 112) else 104
    right = {
        "magic": b"QFI\xfb",
        "version": 3,
        "backing_offset": header_length + len(body) if name is not None else 0,
        "backing_length": len(name or b""),
        "cluster_bits": 16,
        "size": SIZE,
        "l1_entries": len(l1),
        "l1_offset": 3 * CLUSTER,
        "refcount_offset": CLUSTER,
        "refcount_clusters": 1,
        "refcount_order": 4,
        "header_length": header_length,
    }
    header = bytearray(header_length)
    for field, value in {**right, **fields}.items():
        offset, kind = _FIELDS[field]
        if offset + struct.calcsize(kind) <= header_length:
            struct.pack_into(">" + kind, header, offset, value)
    highest = max([3, *(clusters or {})])
    with open(path, "wb") as stream:
        stream.write(bytes(header) + body + (name or b""))
        stream.seek(CLUSTER)
        stream.write(struct.pack(">Q", 2 * CLUSTER))
        stream.seek(2 * CLUSTER)
        stream.write(struct.pack(">H", 1) * (highest + 1))
        stream.seek(3 * CLUSTER)
        stream.write(struct.pack(f">{len(l1)}Q", *l1))
        for number, content in (clusters or {}).items():
            stream.seek(number * CLUSTER)
            stream.write(content)
        stream.truncate(length if length is not None else max(highest + 1, 4) * CLUSTER)


def _extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">II", kind, len(body)) + body.ljust((len(body) + 7) // 8 * 8, b"\0")


USED = 1 << 63  # "copied" flag of L1 and L2 entries
COMPRESSED = 1 << 62


def l2(*entries: int) -> bytes:
    return struct.pack(f">{len(entries)}Q", *entries)


def deflated(content: bytes) -> bytes:
    """One cluster as qcow2 compresses it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(content) + packer.flush()


# -- other formats: what a guest may well have on its disk ------------------------------------------------------------


def vmdk_descriptor(kind: str, extent: str) -> bytes:
    return (
        f'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="{kind}"\n\n# Extent description\n{extent}\n\n'
        '# The Disk Data Base\n#DDB\nddb.virtualHWVersion = "4"\nddb.geometry.cylinders = "8"\nddb.geometry.heads = "16"\n'
        'ddb.geometry.sectors = "63"\nddb.adapterType = "ide"\n'
    ).encode()


def vmdk_sparse(descriptor: bytes, grains_at: int = 128) -> bytes:
    """A sparse extent header (KDMV) with an embedded descriptor. ``grains_at`` 2**64-1 means that a footer tells."""
    header = struct.pack("<4sIIQQQQIQQQ", b"KDMV", 1, 3, SIZE // 512, 128, 1, 20, 512, 21, grains_at, 128)
    return header.ljust(512, b"\0") + descriptor.ljust(20 * 512, b"\0")


def vdi() -> bytes:
    text = b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0")
    head = struct.pack("<IIIII", 0xBEDA107F, 0x00010001, 0x180, 1, 0) + bytes(256)
    return text + head + struct.pack("<IIIIIIIQIIII", 0x200, 0x400, 0, 0, 0, 512, 0, SIZE, MIB, 0, 4, 4)


def vhd() -> bytes:
    return b"conectix" + struct.pack(">IIQI4sI4sQQ", 2, 0x10000, 512, 0, b"qemu", 0x50003, b"Wi2k", SIZE, SIZE) + bytes(448)


def vhdx() -> bytes:
    regions = (b"regi" + struct.pack("<III", 0, 1, 0)).ljust(1 << 16, b"\0")
    return b"vhdxfile".ljust(192 << 10, b"\0") + regions


def qed(backing: str) -> bytes:
    name = backing.encode()
    return struct.pack("<4sIIIQQQQQII", b"QED\0", 65536, 4, 1, 1, 0, 0, 65536, SIZE, 64, len(name)) + name


def qcow1(backing: str) -> bytes:
    name = backing.encode()
    return struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 48, len(name), 0, SIZE, 12, 9, 0, 0, 64) + name


def luks(version: int) -> bytes:
    return (b"LUKS\xba\xbe" + struct.pack(">H", version) + b"aes".ljust(32, b"\0") + b"xts-plain64".ljust(32, b"\0")).ljust(1024, b"\0")


def iso() -> bytes:
    return bytes(32768) + b"\x01CD001\x01\0" + b"LINUX".ljust(32) + b"HOSTILE".ljust(32)


def mbr(*entries: tuple, signature: bytes = b"\x55\xaa") -> bytes:
    """A boot sector; an entry is (boot flag, first CHS, type, first LBA, sectors)."""
    table = b"".join(struct.pack("<B3sB3sII", boot, chs, kind, b"\xff\xff\xff", lba, count) for boot, chs, kind, lba, count in entries)
    return bytes(446) + table.ljust(64, b"\0") + signature


def parallels() -> bytes:
    return b"WithoutFreeSpace" + struct.pack("<IIIIIQ", 2, 16, 8, 2016, 4, SIZE // 512) + bytes(64)


def ovf(disk: str) -> bytes:
    """The description of a virtual machine with one disk."""
    spaces = 'xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"'
    return (
        f'<?xml version="1.0"?>\n<Envelope {spaces}><References><File ovf:id="file1" ovf:href="{disk}"/></References>'
        f'<DiskSection><Disk ovf:capacity="{SIZE}" ovf:diskId="disk1" ovf:fileRef="file1"/></DiskSection></Envelope>\n'
    ).encode()


def ova(*members: tuple) -> bytes:
    """An archive of members: (name, content), or for links (name, target) and (name, target, "hard")."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content, *kind in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
                continue
            member.type, member.linkname = tarfile.LNKTYPE if kind else tarfile.SYMTYPE, content
            archive.addfile(member)
    return packed.getvalue()
