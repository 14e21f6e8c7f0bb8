# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile files that claim to be qcow2 images, apart from where they are planted.

``write(path, backing, victim)`` makes one: ``backing`` is what an honest image in its place would name, ``victim`` a file
outside the share. The same files serve every feature that takes an image from somebody, importing one included.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable

from . import images
from .images import CLUSTER, COMPRESSED, USED

FACTS, OSLO, PROXMOX, OURS = "measured attack", "oslo.utils", "Proxmox VE", "ours"


@dataclass(frozen=True)
class HostileFile:
    """``code`` is what every task says of it; None where its header is sound and only its tables are hostile, so that tasks
    that move no data may go through: ``moving`` then has what tasks that read its data say."""

    name: str
    what: str
    origin: str
    write: Callable[[Path, Any, Path], None]
    code: str | None = "unsafe_image"
    slow: bool = False


def _with(**fields: Any) -> Callable[[Path, Any, Path], None]:
    return lambda path, backing, _victim: images.qcow2(path, backing, **fields)


def _naming(name: str | bytes, image_format: str | bytes | None = "raw", **fields: Any) -> Callable[[Path, Any, Path], None]:
    """With a backing name of its own; ``{victim}`` in it is the victim's path."""

    def write(path: Path, _backing: Any, victim: Path) -> None:
        told = name.replace("{victim}", str(victim)) if isinstance(name, str) else name
        images.qcow2(path, (told, image_format), **fields)

    return write


def _data_file(path: Path, backing: Any, victim: Path, **fields: Any) -> None:
    images.qcow2(path, backing, extensions=((images.DATA_FILE, str(victim).encode()),), **fields)


def _bytes(content: bytes) -> Callable[[Path, Any, Path], None]:
    return lambda path, _backing, _victim: path.write_bytes(content)


def _vmdk(path: Path, _backing: Any, victim: Path) -> None:
    path.write_bytes(images.vmdk_descriptor("monolithicFlat", f'RW 8192 FLAT "{victim}" 0'))


_BACKING_NAMES = {
    "absolute": ("{victim}", FACTS),
    "parent-directory": ("../victim", FACTS),
    "two-steps": ("../outside/victim", FACTS),
    "json": ('json:{"driver": "raw", "file": {"driver": "file", "filename": "{victim}"}}', FACTS),
    "nbd": ("nbd://127.0.0.1:10809/x", FACTS),
    "ssh": ("ssh://127.0.0.1/x", PROXMOX + " backing file"),
    "http": ("http://127.0.0.1:1/x", PROXMOX + " backing file"),
    "file-protocol": ("file:{victim}", FACTS),
    "fat-directory": ("fat:/etc", PROXMOX + " backing file"),
    "host-device": ("/dev/vda", PROXMOX + " backing file"),
    "descriptor": ("/proc/self/fd/0", FACTS),
    "option": ("-U", FACTS),
    "colon": ("a:b", FACTS),
    "comma": ("vol,x=y", FACTS),
    "newline": ("vol\nvol", FACTS),
    "escape-sequence": ("\x1b]0;owned\x07", OURS),
    "no-text": (b"\xff\xfe\xfd", OURS),
    "zero-byte": (b"vol\0/../x", OURS),
    "this-directory": (".", OURS),
    "upper-directory": ("..", OURS),
    "subdirectory": ("sub/vol", OURS),
    "our-records": (".remotefs/volumes/vol.json", OURS),
}


def _backing_names() -> list[HostileFile]:
    return [
        HostileFile(f"backing name {key}", f"the backing name is {_shown(name)}", f"{origin}; oslo.utils backing_file", _naming(name))
        for key, (name, origin) in _BACKING_NAMES.items()
    ]


def _shown(name: str | bytes) -> str:
    return f"`{name!r}`".replace("{victim}", "/outside/victim").replace("|", "/")


def _header_fields() -> list[HostileFile]:
    def one(name: str, what: str, origin: str = OURS, **fields: Any) -> HostileFile:
        return HostileFile(name, what, origin, _with(**fields))

    return [
        one("magic only of another", "a header without qcow2's magic", magic=b"QFI\xfa"),
        one("version 1", "a qcow header of 2006", OSLO + " unknown_features", version=1),
        one("version 7", "a version that does not exist", OSLO + " unknown_features", version=7),
        one("clusters of 256 bytes", "cluster_bits 8", cluster_bits=8),
        one("clusters of 1 TiB", "cluster_bits 40", cluster_bits=40),
        one("encrypted", "AES encryption is on", crypt=1),
        one(
            "encrypted LUKS", "LUKS encryption inside qcow2", crypt=2, extensions=((images.CRYPTO, struct.pack(">QQ", 4 * CLUSTER, 4096)),)
        ),
        one("L1 of 16 GiB", "2^31 L1 entries", FACTS, l1_entries=2**31),
        one("L1 of 32 MiB beyond the end", "the largest L1 table that QEMU takes, without its bytes", l1_entries=2**22),
        one("L1 too short", "16 TiB with one L1 entry", size=2**44),
        one("L1 beyond the end", "the L1 table lies at 2^60", l1_offset=2**60),
        one("L1 unaligned", "the L1 table lies in the middle of a cluster", l1_offset=3 * CLUSTER + 8),
        one("L1 at the header", "the L1 table lies at 0", l1_offset=0),
        one("refcounts unaligned", "the refcount table lies in the middle of a cluster", refcount_offset=CLUSTER + 8),
        one("65535 internal snapshots", "QEMU reads them all", FACTS, snapshots=65535, snapshots_offset=4 * CLUSTER, length=40 << 20),
        one("one internal snapshot", "a merge would lose it", snapshots=1, snapshots_offset=4 * CLUSTER),
        one("snapshots at the header", "the header serves as their table, and a new backing name would change it", snapshots=1),
        one("corrupt", "marked corrupt", incompatible=2),
        one(
            "data file bit",
            "incompatible bit 2: data lies in another file",
            FACTS + "; " + OSLO + " data_file; " + PROXMOX + " data-file",
            incompatible=4,
        ),
        HostileFile(
            "data file name", "header extension 0x44415441 alone", FACTS + "; " + OSLO + " data_file; " + PROXMOX + " data-file", _data_file
        ),
        HostileFile(
            "data file", "bit and name", FACTS + "; " + OSLO + " data_file; " + PROXMOX + " data-file", partial(_data_file, incompatible=4)
        ),
        HostileFile("raw data file", "bit, name, and raw external data", FACTS, partial(_data_file, incompatible=4, autoclear=2)),
        one("unknown feature 5", "the lowest incompatible bit without a meaning", OSLO + " unknown_features", incompatible=1 << 5),
        one("unknown feature 63", "the highest incompatible bit", OSLO + " unknown_features", incompatible=1 << 63),
        one("header of 2 GiB", "header length 2^31", header_length=2**31),
        one("header of no length", "header length 0", header_length=0),
        one("header of odd length", "header length 107", header_length=107),
        one("refcount order 7", "refcounts of 128 bits", refcount_order=7),
        one("size 16 EiB", "virtual size 2^64 - 512", FACTS + "; " + PROXMOX + " size", size=2**64 - 512),
        one("size 8 EiB", "virtual size 2^63", PROXMOX + " size", size=2**63),
        one("size of half sectors", "virtual size 4 MiB + 1", size=images.SIZE + 1),
        one("extension of 4 GiB", "an extension's length runs out of the file", extensions=(struct.pack(">II", 0x12345678, 2**32 - 1),)),
        one("extensions without end", "the list fills the cluster", extensions=(struct.pack(">II", 0x12345678, 0) * (CLUSTER // 8),)),
        HostileFile("backing format vmdk", "QEMU would open the backing file as VMDK", FACTS, _naming("vol", "vmdk")),
        HostileFile("backing format nbd", "QEMU would open a connection", FACTS, _naming("vol", "nbd")),
        HostileFile("backing format of 30 KiB", "an absurdly long format", OURS, _naming("vol", b"q" * 30000)),
        HostileFile("backing name behind the header", "offset outside of the header cluster", OURS, _naming("vol", backing_offset=2**40)),
        HostileFile("backing name at 2^63", "offset that is no off_t", OURS, _naming("vol", backing_offset=2**63 + 5)),
        HostileFile("backing name of 4 GiB", "length 2^32 - 1", OURS, _naming("vol", backing_length=2**32 - 1)),
        HostileFile("backing name of no length", "an offset and length 0", OURS, _naming("", backing_length=0)),
    ]


def _other_content() -> list[HostileFile]:
    """Files that are no qcow2 image at all, where one is expected."""
    return [
        HostileFile("empty file", "no byte", OURS, _bytes(b"")),
        HostileFile("four bytes", "the magic alone", OURS, _bytes(b"QFI\xfb")),
        HostileFile("72 bytes", "a header cut short", OURS, _with(length=72)),
        HostileFile("103 bytes", "a header cut one byte short", OURS, _with(length=103)),
        HostileFile("cut before L1", "the file ends before its L1 table", OURS, _with(length=3 * CLUSTER)),
        HostileFile(
            "VMDK as qcow2", "a descriptor with a flat extent outside, called qcow2", OSLO + " descriptor; " + PROXMOX + " format", _vmdk
        ),
        HostileFile(
            "qcow as qcow2",
            "version 1 with a backing file",
            OSLO + " backing_file",
            lambda path, _b, victim: path.write_bytes(images.qcow1(str(victim))),
        ),
        HostileFile(
            "QED as qcow2", "a format that is banned", OSLO + " banned", lambda path, _b, victim: path.write_bytes(images.qed(str(victim)))
        ),
        HostileFile("LUKS as qcow2", "a container", OSLO + " inner_safety", _bytes(images.luks(1))),
        HostileFile("random bytes", "nothing at all", OURS, _bytes(bytes(range(7, 255)) * 4096)),
    ]


def _l2_at(*entries: int, **more: Any) -> Callable[[Path, Any, Path], None]:
    return _with(l1=(USED | 4 * CLUSTER,), clusters={4: images.l2(*entries), **more.pop("clusters", {})}, **more)


def _compressed(offset: int, sectors: int) -> int:
    """An L2 entry of a compressed cluster (64 KiB clusters: 54 bits of offset, 8 of sectors)."""
    return COMPRESSED | (sectors - 1) << 54 | offset


def _hostile_tables() -> list[HostileFile]:
    """Sound headers over hostile tables: QEMU alone reads these, opened files in a private directory and under limits."""
    bomb = images.deflated(b"A" * CLUSTER)

    def one(name: str, what: str, write: Callable, slow: bool = False, origin: str = OURS) -> HostileFile:
        return HostileFile(name, what, origin, write, code=None, slow=slow)

    def refused(name: str, what: str, write: Callable) -> HostileFile:
        return HostileFile(name, what, OURS, write)

    return [
        one("L2 beyond the end", "the L1 entry leads behind the file", _with(l1=(USED | 2**40,))),
        one("L2 unaligned", "the L1 entry has reserved bits", _with(l1=(USED | 4 * CLUSTER + 512,), clusters={4: b""})),
        one("L2 at the header", "the header serves as L2 table", _with(l1=(USED | 0 | 1 << 9,))),
        one("L2 at itself", "the L1 table serves as L2 table", _with(l1=(USED | 3 * CLUSTER,))),
        one("data beyond the end", "an L2 entry leads to 2^50", _l2_at(USED | 2**50)),
        one("data unaligned", "an L2 entry leads into the middle of a cluster", _l2_at(USED | 4 * CLUSTER + 512)),
        one("data at the header", "the guest could write the header", _l2_at(USED | 0 | 1 << 9, *[USED | CLUSTER] * 3)),
        one(
            "data at the tables",
            "the guest could write the refcounts and L1",
            _l2_at(USED | CLUSTER, USED | 2 * CLUSTER, USED | 3 * CLUSTER),
        ),
        one("two on one cluster", "two L2 entries lead to one cluster", _l2_at(*[USED | 5 * CLUSTER] * 2, clusters={5: b"x" * CLUSTER})),
        one("data at its L2 table", "the guest could write the table that leads there", _l2_at(USED | 4 * CLUSTER)),
        one("shared data", "every L2 entry leads to one cluster", _l2_at(*[USED | 5 * CLUSTER] * 64, clusters={5: b"x" * CLUSTER})),
        one(
            "compressed beyond the end",
            "compressed clusters lie behind the file",
            _l2_at(*[_compressed(2**45, 8)] * 8),
            origin="clone bomb",
        ),
        one(
            "compressed noise",
            "compressed clusters that are none",
            _l2_at(*[_compressed(5 * CLUSTER, 100)] * 8, clusters={5: b"\xff" * CLUSTER}),
        ),
        one(
            "compression bomb",
            "every cluster is the same few compressed bytes",
            _l2_at(*[_compressed(5 * CLUSTER, 1)] * 64, clusters={5: bomb}),
            origin="clone bomb",
        ),
        one("unknown compression", "compression type 9", _with(incompatible=8, header_length=112, compression=9)),
        refused("compression without a type", "incompatible bit 3 in a header that is too short for its field", _with(incompatible=8)),
        refused("refcounts of 256 TiB", "a refcount table of 2^32 - 1 clusters", _with(refcount_clusters=2**32 - 1)),
        refused("refcounts beyond the end", "the refcount table lies at 2^50", _with(refcount_offset=2**50)),
        one(
            "refcounts all zero",
            "clusters in use that count as free",
            _l2_at(USED | 5 * CLUSTER, clusters={5: b"x" * CLUSTER, 2: bytes(64), 1: bytes(8)}),
        ),
        one("dirty", "refcounts that are to be rebuilt", _l2_at(USED | 5 * CLUSTER, incompatible=1, clusters={5: b"x" * CLUSTER})),
        one(
            "bitmaps",
            "65,535 persistent bitmaps",
            _with(autoclear=1, extensions=((images.BITMAPS, struct.pack(">IIQQ", 65535, 0, 2**22, 4 * CLUSTER)),)),
        ),
        refused(
            "crypto extension",
            "an encryption header without encryption",
            _with(extensions=((images.CRYPTO, struct.pack(">QQ", 2**40, 2**40)),)),
        ),
        one("unknown extension", "an extension without a meaning", _with(extensions=((0x12345678, b"x" * 64),))),
        one(
            "one L2 for all",
            "every L1 entry leads to one L2 table, every L2 entry to one cluster (of 4 KiB)",
            _with(cluster_bits=12, l1=(USED | 5 * CLUSTER,) * 2, clusters={5: images.l2(*[USED | 6 * CLUSTER] * 512), 6: b"x" * 4096}),
        ),
    ]


CLAIMING_QCOW2 = (*_backing_names(), *_header_fields(), *_other_content(), *_hostile_tables())


# -- what a guest may hold on a raw disk: content, whatever it looks like ----------------------------------------------


def _qcow2_bytes(path: Path, victim: Path, **fields: Any) -> bytes:
    images.qcow2(path, (str(victim), "raw"), **fields)
    return path.read_bytes()


_GPT = (0x00, b"\x00\x02\x00", 0xEE, 1, 8191)
RAW_CONTENT: dict[str, tuple[str, str, Callable[[Path, Path], bytes]]] = {  # name: (what, origin, bytes of the disk's beginning)
    "qcow2 over the host": ("the guest writes a qcow2 header that names a host file", "2014 design, item 3", _qcow2_bytes),
    "qcow2 with a data file": (
        "the header names an external data file",
        OSLO + " data_file",
        lambda path, victim: _qcow2_bytes(path, victim, incompatible=4, extensions=((images.DATA_FILE, str(victim).encode()),)),
    ),
    "qcow over the host": ("version 1 with a backing file", OSLO + " unknown_features", lambda _p, victim: images.qcow1(str(victim))),
    "VMDK flat": (
        "flat extent outside",
        FACTS + "; " + OSLO + " descriptor; " + PROXMOX + " format",
        lambda _p, v: images.vmdk_descriptor("monolithicFlat", f'RW 8192 FLAT "{v}" 0'),
    ),
    "VMDK split": (
        "several extents",
        OSLO + " descriptor; " + PROXMOX + " extents",
        lambda _p, v: images.vmdk_descriptor("twoGbMaxExtentFlat", f'RW 8 FLAT "{v}" 0\nRW 8 FLAT "../victim" 0'),
    ),
    "VMDK device": (
        "an extent that is a device",
        OSLO + " descriptor",
        lambda _p, _v: images.vmdk_descriptor("fullDevice", 'RW 8192 FLAT "/dev/vda" 0'),
    ),
    "VMDK custom": ("a subformat that does not exist", OSLO + " descriptor", lambda _p, _v: images.vmdk_descriptor("custom", "RW 1 ZERO")),
    "VMDK without extents": ("none at all", OSLO + " descriptor", lambda _p, _v: images.vmdk_descriptor("monolithicSparse", "")),
    "VMDK sparse": (
        "an embedded descriptor",
        OSLO + " descriptor",
        lambda _p, v: images.vmdk_sparse(images.vmdk_descriptor("monolithicSparse", f'RW 8192 SPARSE "{v}"')),
    ),
    "VMDK footer": (
        "a footer tells where the tables are",
        OSLO + " footer",
        lambda _p, v: images.vmdk_sparse(images.vmdk_descriptor("streamOptimized", f'RDONLY 8 SPARSE "{v}"'), 2**64 - 1),
    ),
    "VDI": ("a VirtualBox image", OSLO + " vdi", lambda _p, _v: images.vdi()),
    "VHD": ("a Virtual PC image", OSLO + " vhd", lambda _p, _v: images.vhd()),
    "VHDX": ("a Hyper-V image", OSLO + " vhdx", lambda _p, _v: images.vhdx()),
    "QED": ("a banned format with a backing file", OSLO + " banned", lambda _p, victim: images.qed(str(victim))),
    "LUKS 1": ("an encrypted disk", OSLO + " version, passphrase, inner_safety", lambda _p, _v: images.luks(1)),
    "LUKS 2": ("a version that QEMU does not read", OSLO + " version", lambda _p, _v: images.luks(2)),
    "ISO": ("a CD", OSLO + " iso", lambda _p, _v: images.iso()),
    "GPT": ("an honest partition table", OSLO + " mbr", lambda _p, _v: images.mbr(_GPT)),
    "GPT with a second partition": (
        "entries beside the protective one",
        OSLO + " mbr",
        lambda _p, _v: images.mbr(_GPT, (0x80, b"\0\0\0", 0x83, 9, 9)),
    ),
    "GPT from the wrong sector": ("the protective entry starts at 7", OSLO + " mbr", lambda _p, _v: images.mbr((0, b"\0\2\0", 0xEE, 7, 9))),
    "GPT from the wrong head": (
        "the protective entry's first CHS is wrong",
        OSLO + " mbr",
        lambda _p, _v: images.mbr((0, b"\1\1\1", 0xEE, 1, 9)),
    ),
    "MBR with a wrong flag": ("boot flag 0x42", OSLO + " mbr", lambda _p, _v: images.mbr((0x42, b"\0\0\0", 0x83, 9, 9))),
    "MBR without partitions": ("a signature alone", OSLO + " mbr", lambda _p, _v: images.mbr()),
    "OVF": ("a description of a machine whose disk lies outside", PROXMOX + " OVF path", lambda _p, _v: images.ovf("../victim")),
    "OVA with links": (
        "an archive whose disk is a link, and another one a hard link",
        PROXMOX + " regular file",
        lambda _p, v: images.ova(("disk.ovf", images.ovf("disk.vmdk")), ("disk.vmdk", str(v)), ("disk2.vmdk", str(v), "hard")),
    ),
    "OVA with names that lead out": (
        "members with absolute names and with ../",
        PROXMOX + " OVF path",
        lambda _p, v: images.ova(("../victim", b"owned"), (str(v), b"owned")),
    ),
    "Parallels": ("an image of Parallels", OURS, lambda _p, _v: images.parallels()),
    "JSON": ("a `json:` name as content", OURS, lambda _p, v: b'json:{"driver":"file","filename":"%s"}' % str(v).encode()),
    "script": ("a program", OURS, lambda _p, v: b"#!/bin/sh\ncat %s\n" % str(v).encode()),
}
