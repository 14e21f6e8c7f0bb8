# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads headers of untrusted files. Reads are bounded, and everything unknown or contradictory is refused."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from . import layout

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_INCOMPATIBLE = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_RAW_PROTOCOLS = (b"file", b"host_device")  # QEMU writes these for a raw backing file that it has open without a format layer
_BACKING = struct.Struct(">QI")  # offset and length of the backing name, at byte 8
_PAGE = 4096  # bytes; a header fits into it, unless a foreign program wrote it
_MAX_REFCOUNT_TABLE = 8 << 20  # bytes
_CHUNK = 1 << 20
_MOST_SUMMARIES = 1024
_MOST_BEFORE_NAME = 1024  # the most bytes before the backing name, in headers that QEMU or this collection wrote


class _Beyond(layout.Qcow2Error):
    """Something lies outside of the part of the header cluster that was read."""


class Header(NamedTuple):
    """The content of a qcow2 header. ``size`` is the virtual size in bytes; offsets are in bytes, too."""

    version: int
    size: int
    cluster_bits: int
    l1_entries: int
    l1_offset: int
    backing_offset: int
    backing_file: str | None
    backing_format: str | None
    format_offset: int | None  # where the backing format extension starts
    extensions_end: int  # where the end marker of the list of extensions is, or would be
    end_marked: bool  # the marker is there; otherwise the backing name or the end of the cluster ends the list
    internal_snapshots: int
    bitmaps: bool
    dirty: bool
    extended_l2: bool
    unknown_extensions: bool  # there are unknown header extensions, which may lead to clusters
    alias: bool = False  # the header has the name of a protocol as the backing format

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
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
    """Whether a file can be a qcow2 image at all. This can show that a given format is wrong, but never decides a format."""
    return os.pread(fd, 4, 0) == layout.MAGIC


def read_backing_name(fd: int) -> str | None:
    """The backing name in a file that may be a qcow2 image, exactly as written there. None if it has none.

    It is more tolerant than :func:`read_header`, to find out which files *might* rest on a file: another program may use an image
    that we refuse. As in QEMU, a NUL ends the name. It never decides a format.
    """
    data = os.pread(fd, layout.FIELDS.size, 0)
    if len(data) < 20 or data[:4] != layout.MAGIC:
        return None
    offset, length = _BACKING.unpack_from(data, 8)
    if not offset or not 0 < length <= layout.MAX_BACKING_NAME or offset >= os.fstat(fd).st_size:
        return None
    return os.pread(fd, length, offset).split(b"\0")[0].decode("utf-8", "replace") or None


def read_header(fd: int) -> Header:
    """Read and check the header of an opened regular file: sections "Header" and "Header extensions".

    The header is read as QEMU reads it, so that both see the same image: the list of extensions ends at its marker, at the backing
    name or at the end of the cluster. Reads a page, and 64 KiB if the page is too short.

    :raises Qcow2Error: it is damaged, hostile, encrypted, marked corrupt, or uses a feature that a merge would lose.
    """
    file_size = os.fstat(fd).st_size
    return _parse_or_read_on(os.pread(fd, _PAGE, 0), fd, file_size)


def _parse_or_read_on(data: bytes, fd: int, file_size: int) -> Header:
    try:
        return _parse(data, file_size)
    except _Beyond:
        return _parse(os.pread(fd, layout.MOST_HEADER, 0), file_size)


class HeaderSummary(NamedTuple):
    """The part of a :class:`Header` that tasks need which change nothing."""

    size: int
    backing_file: str | None
    backing_format: str | None
    internal_snapshots: int
    alias: bool = False


# Bytes before a backing name → (virtual size, backing format, number of internal snapshots, least size of a file that has the tables, alias).
_alike: dict[bytes, tuple[int, str | None, int, int, bool]] = {}


def read_summary(fd: int, file_size: int) -> HeaderSummary:
    """A part of the result of :func:`read_header`, for a file of ``file_size`` bytes. It refuses the same headers.

    Most headers on a share differ only in the backing name. The result depends only on the bytes before that name, on the name and
    on the size of the file, if one page has all of it. So results are cached by the bytes before the name, and the same bytes are
    not parsed twice.
    """
    data = os.pread(fd, _PAGE, 0)
    offset, length = _BACKING.unpack_from(data, 8) if len(data) >= layout.FIELDS.size else (0, 0)
    end = offset + length
    if not 0 < offset <= _MOST_BEFORE_NAME or not offset < end <= len(data):
        header = _parse_or_read_on(data, fd, file_size)
        return HeaderSummary(header.size, header.backing_file, header.backing_format, header.internal_snapshots, header.alias)
    before = data[:offset]
    found = _alike.get(before)
    if found is None or file_size < found[3]:
        header = _parse_or_read_on(data, fd, file_size)
        least = max(header.l1_offset + header.l1_entries * 8, int.from_bytes(data[48:56], "big") + 1)
        if len(_alike) >= _MOST_SUMMARIES:
            _alike.clear()
        found = _alike[before] = (header.size, header.backing_format, header.internal_snapshots, least, header.alias)
    return HeaderSummary(found[0], _decoded(data[offset:end]), found[1], found[2], found[4])


def _parse(data: bytes, file_size: int) -> Header:
    if len(data) < layout.FIELDS.size or data[:4] != layout.MAGIC:
        raise layout.Qcow2Error("it has no qcow2 header")
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
        refcount_clusters,
        internal_snapshots,
        snapshots_offset,
    ) = layout.FIELDS.unpack_from(data)
    if version not in (2, 3):
        raise layout.Qcow2Error(f"its qcow2 version is {version}, not 2 or 3")
    if not 9 <= cluster_bits <= 21:
        raise layout.Qcow2Error(f"its cluster size of 2^{cluster_bits} bytes is outside the format's range")
    incompatible, length = _version_3_fields(data, version)
    _check_features(incompatible, crypt)
    cluster_size = 1 << cluster_bits
    if length > cluster_size:
        raise layout.Qcow2Error("its header is longer than a cluster")
    if incompatible & _EXTENDED_L2 and cluster_bits < 14:
        raise layout.Qcow2Error("its clusters are too small for extended L2 entries")
    name = _read_name(data[:cluster_size], backing_offset, backing_length, length)
    extensions = _read_extensions(data, length, backing_offset or cluster_size)
    header = Header(
        version,
        size,
        cluster_bits,
        l1_entries,
        l1_offset,
        backing_offset,
        name,
        extensions.backing_format,
        extensions.format_offset,
        extensions.end,
        extensions.end_marked,
        internal_snapshots,
        extensions.bitmaps,
        bool(incompatible & _DIRTY),
        bool(incompatible & _EXTENDED_L2),
        extensions.unknown,
        extensions.alias,
    )
    _check_geometry(header, refcount_offset, refcount_clusters, file_size)
    if snapshots_offset % cluster_size or (internal_snapshots and not snapshots_offset):
        raise layout.Qcow2Error("its table of snapshots is not where the format wants it")
    return header


def _version_3_fields(data: bytes, version: int) -> tuple[int, int]:
    """Section "Header" from byte 72 on, and "Additional fields": (incompatible features, header length)."""
    if version == 2:
        return 0, layout.FIELDS.size
    least = layout.FIELDS.size + layout.FIELDS_OF_3.size
    if len(data) < least:
        raise layout.Qcow2Error("its header is cut short")
    incompatible, _compatible, _autoclear, refcount_order, length = layout.FIELDS_OF_3.unpack_from(data, layout.FIELDS.size)
    if length < least or length % 8 or refcount_order > 6:
        raise layout.Qcow2Error("its header fields contradict the format")
    compression_type = data[least] if least < min(length, len(data)) else 0
    if bool(compression_type) != bool(incompatible & _COMPRESSION):
        raise layout.Qcow2Error("its type of compression contradicts its features")
    return incompatible, length


def _check_features(incompatible: int, crypt: int) -> None:
    if incompatible & ~_KNOWN_INCOMPATIBLE:
        raise layout.Qcow2Error(f"it uses unknown incompatible features ({incompatible & ~_KNOWN_INCOMPATIBLE:#x})")
    if incompatible & _CORRUPT:
        raise layout.Qcow2Error("it is marked corrupt")
    if incompatible & _DATA_FILE:
        raise layout.Qcow2Error("it keeps its data in an external data file")
    if crypt:
        raise layout.Qcow2Error("it is encrypted, which this collection does not support")


class _Extensions(NamedTuple):
    """The content of the header extensions. The fields are those of :class:`Header`."""

    end: int
    end_marked: bool
    format_offset: int | None
    backing_format: str | None
    bitmaps: bool
    unknown: bool
    alias: bool


def _read_extensions(data: bytes, start: int, limit: int) -> _Extensions:
    """Read the list of section "Header extensions" from offset ``start`` to its end marker, or to ``limit``."""
    offset, found = start, {}
    while offset < limit:
        if offset + layout.EXTENSION.size > min(limit, len(data)):
            raise _Beyond("its header extensions run out of the header cluster")
        kind, length = layout.EXTENSION.unpack_from(data, offset)
        body = offset + layout.EXTENSION.size
        if body + length > min(limit, len(data)):
            raise _Beyond("its header extensions run out of the header cluster")
        if kind == layout.EXT_END and length:
            raise layout.Qcow2Error("its header extensions' end marker has a length")
        if kind == layout.EXT_END:
            break
        if kind in found:
            raise layout.Qcow2Error(f"its header extension {kind:#x} is there twice")
        found[kind] = (offset, data[body : body + length])
        offset = body + (length + 7) // 8 * 8
    if layout.EXT_DATA_FILE in found:
        raise layout.Qcow2Error("it names an external data file")
    if layout.EXT_ENCRYPTION in found:
        raise layout.Qcow2Error("it has an encryption header, which this collection does not support")
    format_offset, name = found.get(layout.EXT_BACKING_FORMAT, (None, b""))
    alias = name in _RAW_PROTOCOLS
    if format_offset is not None and name not in (b"raw", b"qcow2") and not alias:
        raise layout.Qcow2Error(f"its backing format {name[:16]!r} is neither raw nor qcow2")
    unknown = not found.keys() <= {layout.EXT_BACKING_FORMAT, layout.EXT_BITMAPS, layout.EXT_FEATURE_NAMES}
    backing_format = "raw" if alias else name.decode("ascii") or None
    return _Extensions(offset, offset < limit, format_offset, backing_format, layout.EXT_BITMAPS in found, unknown, alias)


def _read_name(data: bytes, offset: int, length: int, header_length: int) -> str | None:
    """The backing name, which is behind the header in the header cluster (section "Header extensions")."""
    if not offset:
        return None
    if not 0 < length <= layout.MAX_BACKING_NAME or offset < header_length:
        raise layout.Qcow2Error("its backing name lies where the format wants none")
    if offset + length > len(data):
        raise _Beyond("its backing name lies outside the header cluster, or behind its first 64 KiB")
    return _decoded(data[offset : offset + length])


def _decoded(encoded: bytes) -> str:
    try:
        name = encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise layout.Qcow2Error("its backing name is no text") from error
    if "\0" in name:
        raise layout.Qcow2Error("its backing name holds a NUL, which programs read in different ways")
    return name


def _check_geometry(header: Header, refcount_offset: int, refcount_clusters: int, file_size: int) -> None:
    if header.size % layout.SECTOR or header.size >= 2**63:
        raise layout.Qcow2Error(f"its virtual size of {header.size} bytes is invalid")
    if header.l1_entries * 8 > layout.MAX_L1_BYTES or header.l1_needed(header.size) > header.l1_entries:
        raise layout.Qcow2Error("its L1 table does not fit its size")
    if not refcount_offset or not 0 < refcount_clusters * header.cluster_size <= _MAX_REFCOUNT_TABLE:
        raise layout.Qcow2Error("it has no table of reference counts, or one larger than QEMU takes")
    if header.l1_entries and not header.l1_offset:
        raise layout.Qcow2Error("it has no L1 table")
    if refcount_offset % header.cluster_size or header.l1_offset % header.cluster_size:
        raise layout.Qcow2Error("its tables are not where the format wants them")
    if header.l1_offset + header.l1_entries * 8 > file_size or refcount_offset >= file_size:
        raise layout.CutShort("its tables lie behind the end of the file (the file was cut short)")


def is_empty(fd: int, header: Header) -> bool:
    """Whether no cluster is allocated: every L1 entry is zero, so that the image shows just its backing file."""
    return is_zero(fd, header.l1_offset, header.l1_entries * 8)


def is_zero(fd: int, offset: int, length: int) -> bool:
    """Whether ``length`` bytes at ``offset`` are all zero. Bytes behind the end of the file count as zero."""
    while length > 0:
        data = os.pread(fd, min(length, _CHUNK), offset)
        if not data:
            return True  # behind the end of a file there are zeros
        if data.count(0) != len(data):
            return False
        offset, length = offset + len(data), length - len(data)
    return True
