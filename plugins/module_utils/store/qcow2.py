# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The qcow2 header codec: reads headers of files that nobody vouches for, and writes what needs no qemu-img.

Follows docs/interop/qcow2 of QEMU ("The qcow2 image format"); section names below are those of that text. All numbers in
a qcow2 file are big-endian. Reads are bounded, and whatever is unknown or contradictory is refused.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

MAGIC = b"QFI\xfb"
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")  # section "Header", bytes 0 to 71
_V3 = struct.Struct(">QQQII")  # section "Header", bytes 72 to 103
_EXTENSION = struct.Struct(">II")

_EXT_END = 0x00000000
_EXT_BACKING_FORMAT = 0xE2792ACA
_EXT_DATA_FILE = 0x44415441
_EXT_FEATURE_NAMES = 0x6803F857

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_INCOMPATIBLE = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2

_SECTOR = 512
_MAX_BACKING_NAME = 1023
_MAX_L1_BYTES = 32 << 20  # QEMU opens no larger L1 table
_CLUSTER_BITS = 16  # of the images that we write: 64 KiB, QEMU's default
_CLUSTER = 1 << _CLUSTER_BITS
_CHUNK = 1 << 20


class Qcow2Error(ValueError):
    """The bytes are no qcow2 image that may be used; says why."""


@dataclass(frozen=True)
class Header:
    """What a qcow2 header says. ``size`` is the virtual size in bytes."""

    version: int
    size: int
    cluster_bits: int
    l1_entries: int
    l1_offset: int
    backing_offset: int
    backing_file: str | None
    backing_format: str | None
    format_offset: int | None  # where the backing format extension starts
    extensions_end: int  # first byte after the end-of-extensions marker
    internal_snapshots: int
    dirty: bool
    extended_l2: bool

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l2_entries(self) -> int:
        """Entries of one L2 table (section "L1 and L2 tables")."""
        return self.cluster_size // (16 if self.extended_l2 else 8)

    def l1_needed(self, size: int) -> int:
        """L1 entries that a virtual size of ``size`` bytes needs."""
        covered = self.cluster_size * self.l2_entries
        return (size + covered - 1) // covered


def has_magic(fd: int) -> bool:
    """Whether a file can be a qcow2 image at all. Tells when a stated format is wrong; it never decides one."""
    return os.pread(fd, 4, 0) == MAGIC


def read_backing_name(fd: int) -> str | None:
    """The backing name of whatever may be a qcow2 image, as spelt; None where there is none.

    More forgiving than :func:`read_header`, for finding out who *might* rest on a file: an image that we would refuse to
    touch can still be somebody's. Never a way to decide a format.
    """
    data = os.pread(fd, 65536, 0)
    if len(data) < 20 or data[:4] != MAGIC:
        return None
    offset, length = struct.unpack_from(">QI", data, 8)
    if not offset or not 0 < length <= _MAX_BACKING_NAME:
        return None
    return os.pread(fd, length, offset).decode("utf-8", "replace") if offset < 2**62 else None


def read_header(fd: int) -> Header:
    """Read and check the header of an opened regular file.

    :raises Qcow2Error: it is damaged, hostile, or uses what merging could not carry.
    """
    data = os.pread(fd, 65536, 0)
    if len(data) < _V2.size or data[:4] != MAGIC:
        raise Qcow2Error("it has no qcow2 header")
    (
        _magic,
        version,
        backing_offset,
        backing_length,
        cluster_bits,
        size,
        crypt,
        l1_entries,
        l1_offset,
        refcount_offset,
        _refcount_clusters,
        internal_snapshots,
        _snapshots_offset,
    ) = _V2.unpack_from(data)
    if version not in (2, 3):
        raise Qcow2Error(f"its qcow2 version is {version}, not 2 or 3")
    if not 9 <= cluster_bits <= 21:
        raise Qcow2Error(f"its cluster size of 2^{cluster_bits} bytes is outside the format's range")
    incompatible, length = _version_3_fields(data, version)
    _check_features(incompatible, crypt)
    cluster_size = 1 << cluster_bits
    if length > cluster_size:
        raise Qcow2Error("its header is longer than a cluster")
    format_offset, backing_format, end = _read_extensions(data[:cluster_size], length)
    header = Header(
        version,
        size,
        cluster_bits,
        l1_entries,
        l1_offset,
        backing_offset,
        _read_backing_name(data[:cluster_size], backing_offset, backing_length),
        backing_format,
        format_offset,
        end,
        internal_snapshots,
        bool(incompatible & _DIRTY),
        bool(incompatible & _EXTENDED_L2),
    )
    _check_geometry(header, refcount_offset, os.fstat(fd).st_size)
    return header


def _version_3_fields(data: bytes, version: int) -> tuple[int, int]:
    if version == 2:
        return 0, _V2.size
    if len(data) < _V2.size + _V3.size:
        raise Qcow2Error("its header is cut short")
    incompatible, _compatible, _autoclear, refcount_order, length = _V3.unpack_from(data, _V2.size)
    if length < _V2.size + _V3.size or length % 8 or refcount_order > 6:
        raise Qcow2Error("its header fields contradict the format")
    return incompatible, length


def _check_features(incompatible: int, crypt: int) -> None:
    if incompatible & ~_KNOWN_INCOMPATIBLE:
        raise Qcow2Error(f"it uses unknown incompatible features ({incompatible & ~_KNOWN_INCOMPATIBLE:#x})")
    if incompatible & _CORRUPT:
        raise Qcow2Error("it is marked corrupt")
    if incompatible & _DATA_FILE:
        raise Qcow2Error("it keeps its data in an external data file")
    if crypt:
        raise Qcow2Error("it is encrypted, which this collection does not support")


def _read_extensions(data: bytes, start: int) -> tuple[int | None, str | None, int]:
    """Walk section "Header extensions": (offset of the backing format's, the format, end of the list)."""
    offset, found, backing_format = start, None, None
    while offset + _EXTENSION.size <= len(data):
        kind, length = _EXTENSION.unpack_from(data, offset)
        if kind == _EXT_END:
            return found, backing_format, offset + _EXTENSION.size
        body = data[offset + _EXTENSION.size : offset + _EXTENSION.size + length]
        if len(body) < length:
            break
        if kind == _EXT_DATA_FILE:
            raise Qcow2Error("it names an external data file")
        if kind == _EXT_BACKING_FORMAT:
            if body not in (b"raw", b"qcow2"):
                raise Qcow2Error(f"its backing format {body[:16]!r} is neither raw nor qcow2")
            found, backing_format = offset, body.decode("ascii")
        offset += _EXTENSION.size + (length + 7) // 8 * 8
    # The list may also be ended by the backing name or by zeros that a short file does not hold.
    raise Qcow2Error("its header extensions run out of the header cluster")


def _read_backing_name(data: bytes, offset: int, length: int) -> str | None:
    if not offset:
        return None
    if not 0 < length <= _MAX_BACKING_NAME or offset + length > len(data):
        raise Qcow2Error("its backing name lies outside the header cluster")
    try:
        return data[offset : offset + length].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Qcow2Error("its backing name is no text") from error


def _check_geometry(header: Header, refcount_offset: int, file_size: int) -> None:
    if header.size % _SECTOR or header.size >= 2**63:
        raise Qcow2Error(f"its virtual size of {header.size} bytes is invalid")
    if header.l1_entries * 8 > _MAX_L1_BYTES or header.l1_needed(header.size) > header.l1_entries:
        raise Qcow2Error("its L1 table does not fit its size")
    for offset in (header.l1_offset, refcount_offset):
        if offset % header.cluster_size or (offset == 0 and header.l1_entries):
            raise Qcow2Error("its tables are not where the format wants them")
    if header.l1_offset + header.l1_entries * 8 > file_size:
        raise Qcow2Error("its L1 table lies behind the end of the file (the file was cut short)")


def is_empty(fd: int, header: Header) -> bool:
    """Whether no cluster is allocated: every L1 entry is zero, so that the image shows its backing file alone."""
    return _is_zero(fd, header.l1_offset, header.l1_entries * 8)


def _is_zero(fd: int, offset: int, length: int) -> bool:
    while length > 0:
        data = os.pread(fd, min(length, _CHUNK), offset)
        if not data:
            return True  # behind the end of a file there are zeros
        if data.count(0) != len(data):
            return False
        offset, length = offset + len(data), length - len(data)
    return True


def allocation(fd: int, header: Header, most_tables: int = 4096) -> dict[int, bytes] | None:
    """Which clusters are allocated: L1 index → one byte per L2 entry, 0 for nothing, 1 for data, 2 for zeros.

    None where the image has more than ``most_tables`` L2 tables: an estimate is not worth reading them all.
    """
    l1 = struct.unpack(f">{header.l1_entries}Q", os.pread(fd, header.l1_entries * 8, header.l1_offset))
    tables = [(index, entry & 0x00FFFFFFFFFFFE00) for index, entry in enumerate(l1) if entry & 0x00FFFFFFFFFFFE00]
    if len(tables) > most_tables:
        return None
    result = {}
    for index, offset in tables:
        data = os.pread(fd, header.cluster_size, offset)
        words = struct.unpack(f">{len(data) // 8}Q", data[: len(data) // 8 * 8])
        result[index] = bytes(map(_kind_of_extended, words[::2], words[1::2])) if header.extended_l2 else bytes(map(_kind, words))
    return result


def _kind(entry: int) -> int:
    """Section "Standard Cluster Descriptor": bit 0 means zeros, but not in a compressed cluster's entry (bit 62)."""
    return 0 if not entry else 2 if entry & 1 and not entry >> 62 & 1 else 1


def _kind_of_extended(entry: int, bitmap: int) -> int:
    """Section "Extended L2 Entries": the lower half of the bitmap means data, the upper half zeros."""
    return 1 if bitmap & 0xFFFFFFFF or entry >> 62 & 1 else 2 if bitmap else 0


def write_image(fd: int, size: int, backing_file: str | None = None, backing_format: str | None = None) -> None:
    """Write an empty version 3 image into an empty file: header, refcount table, one refcount block, a zero L1 table.

    Everything that names the backing file lies in the first 512 bytes, so that :func:`repoint` is one sector's write.
    The caller makes it durable.
    """
    covered = _CLUSTER * (_CLUSTER // 8)
    l1_entries = max(1, (size + covered - 1) // covered)
    l1_clusters = (l1_entries * 8 + _CLUSTER - 1) // _CLUSTER
    used = 3 + l1_clusters  # header, refcount table, refcount block, L1: one block of 32768 entries covers them all
    os.ftruncate(fd, used * _CLUSTER)
    os.pwrite(fd, struct.pack(f">{used}H", *([1] * used)), 2 * _CLUSTER)
    os.pwrite(fd, struct.pack(">Q", 2 * _CLUSTER), 1 * _CLUSTER)
    name = (backing_file or "").encode("utf-8")
    extensions = _backing_format_extension(backing_format) + _EXTENSION.pack(_EXT_END, 0)
    name_offset = _V2.size + _V3.size + len(extensions) if name else 0
    header = _V2.pack(MAGIC, 3, name_offset, len(name), _CLUSTER_BITS, size, 0, l1_entries, 3 * _CLUSTER, _CLUSTER, 1, 0, 0)
    os.pwrite(fd, header + _V3.pack(0, 0, 0, 4, _V2.size + _V3.size) + extensions + name, 0)


def _backing_format_extension(backing_format: str | None) -> bytes:
    if backing_format is None:
        return b""
    body = backing_format.encode("ascii")
    return _EXTENSION.pack(_EXT_BACKING_FORMAT, len(body)) + body.ljust(8, b"\0")


def repoint(fd: int, backing_file: str, backing_format: str) -> None:
    """Make an image name another backing file, so that a crash leaves the old name or the new one, never a mixture.

    Where name and extensions fit the first sector it is rewritten at once. In other headers (qemu-img's own) the new name
    goes to free space in the header cluster first and is synced; then offset, length and format switch in one sector.

    :raises Qcow2Error: the header is not valid, or has no room for the new name.
    """
    header = read_header(fd)
    sector = bytearray(os.pread(fd, _SECTOR, 0).ljust(_SECTOR, b"\0"))
    end = _put_format(sector, header, backing_format)
    name = backing_file.encode("utf-8")
    if end + len(name) <= _SECTOR:
        offset = end
        sector[offset:] = name.ljust(_SECTOR - offset, b"\0")
    else:
        offset = _free_space(header, end, len(name))
        os.pwrite(fd, name, offset)
        os.fsync(fd)
    struct.pack_into(">QI", sector, 8, offset, len(name))
    os.pwrite(fd, bytes(sector), 0)
    os.fsync(fd)


def _put_format(sector: bytearray, header: Header, backing_format: str) -> int:
    """Put the backing format extension into the first sector; returns where the extensions end afterwards."""
    extension = _backing_format_extension(backing_format)
    if header.format_offset is not None and header.format_offset + len(extension) <= _SECTOR:
        sector[header.format_offset : header.format_offset + len(extension)] = extension
        return header.extensions_end
    end = header.extensions_end
    if header.format_offset is None and end <= _SECTOR < end + len(extension):
        end = _drop_feature_names(sector, header)  # qemu-img fills the sector to its end where there is no backing file
    if header.format_offset is not None or end + len(extension) > _SECTOR:
        raise Qcow2Error("its header extensions leave no room for the backing format")
    sector[end - _EXTENSION.size : end + len(extension)] = extension + _EXTENSION.pack(_EXT_END, 0)
    return end + len(extension)


def _drop_feature_names(sector: bytearray, header: Header) -> int:
    """Take out section "Feature name table", which only serves messages; returns where the extensions end afterwards."""
    offset = _V2.size if header.version == 2 else struct.unpack_from(">I", sector, _V2.size + _V3.size - 4)[0]
    end = header.extensions_end
    while offset < end - _EXTENSION.size:
        kind, length = _EXTENSION.unpack_from(sector, offset)
        size = _EXTENSION.size + (length + 7) // 8 * 8
        if kind == _EXT_FEATURE_NAMES:
            sector[offset:end] = sector[offset + size : end] + bytes(size)
            return end - size
        offset += size
    return end


def _free_space(header: Header, end: int, length: int) -> int:
    """An offset in the header cluster, behind the extensions and clear of the present backing name and the first sector."""
    present = len((header.backing_file or "").encode("utf-8"))
    start = max(end, _SECTOR)
    for offset in (start, max(start, header.backing_offset + present)):
        apart = offset + length <= header.backing_offset or offset >= header.backing_offset + present
        if apart and offset + length <= header.cluster_size:
            return offset
    raise Qcow2Error("its header cluster has no room for the backing name")


def grow(fd: int, size: int) -> bool:
    """Raise the virtual size to ``size`` bytes in one sector's write; false where the L1 table has no room for it.

    The table may use its last cluster to the end (section "L1 and L2 tables"), provided that the rest of it is zero.
    The new part shows whatever the backing file has there: for overlays over longer files use qemu-img instead.
    """
    header = read_header(fd)
    needed = header.l1_needed(size)
    table = header.l1_entries * 8
    room = (table + header.cluster_size - 1) // header.cluster_size * header.cluster_size
    if needed * 8 > room or header.internal_snapshots or header.dirty:
        return False
    if needed > header.l1_entries and not _is_zero(fd, header.l1_offset + table, needed * 8 - table):
        return False
    if os.fstat(fd).st_size < header.l1_offset + room:
        os.ftruncate(fd, header.l1_offset + room)
    sector = bytearray(os.pread(fd, _SECTOR, 0))
    struct.pack_into(">Q", sector, 24, size)
    struct.pack_into(">I", sector, 36, max(needed, header.l1_entries))
    os.pwrite(fd, bytes(sector), 0)
    os.fsync(fd)
    return True
