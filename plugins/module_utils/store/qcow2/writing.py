# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes empty images, and changes backing names, without qemu-img. If this is refused, nothing has changed."""

from __future__ import annotations

import errno
import os
import struct

from . import layout, reading

_KNOWN_AUTOCLEAR = 1  # bitmaps are consistent; everything that is written here leaves them so
_CLUSTER_BITS = 16  # of the images that we write: 64 KiB, QEMU's default
_CLUSTER = 1 << _CLUSTER_BITS


def write_image(fd: int, size: int, backing_file: str | None = None, backing_format: str | None = None) -> None:
    """Write an empty version 3 image into an empty file: header, refcount table, one refcount block, a zero L1 table.

    Everything about the backing file is in the first 512 bytes, so that :func:`repoint` writes one sector only. The caller makes the
    image durable.

    :param size: the virtual size in bytes. :raises Qcow2Error: an image with clusters of 64 KiB cannot have this size, or the name is
        too long. Nothing was written.
    """
    covered = _CLUSTER * (_CLUSTER // 8)
    l1_entries, l1_clusters = _l1_of(size)
    used = 3 + l1_clusters  # header, refcount table, refcount block, L1: one block of 32768 entries covers them all
    name = (backing_file or "").encode("utf-8")
    if not 0 <= size <= layout.MAX_L1_BYTES // 8 * covered or size % layout.SECTOR or len(name) > layout.MAX_BACKING_NAME:
        raise layout.Qcow2Error(f"a size of {size} bytes or a backing name of {len(name)} bytes is not possible")
    extensions = _backing_format_extension(backing_format) + layout.EXTENSION.pack(layout.EXT_END, 0)
    name_offset = layout.FIELDS.size + layout.FIELDS_OF_3.size + len(extensions) if name else 0
    header = layout.FIELDS.pack(layout.MAGIC, 3, name_offset, len(name), _CLUSTER_BITS, size, 0, l1_entries, 3 * _CLUSTER, _CLUSTER, 1, 0, 0)
    os.ftruncate(fd, used * _CLUSTER)
    write_whole(fd, struct.pack(f">{used}H", *([1] * used)), 2 * _CLUSTER)
    write_whole(fd, struct.pack(">Q", 2 * _CLUSTER), 1 * _CLUSTER)
    write_whole(fd, header + layout.FIELDS_OF_3.pack(0, 0, 0, 4, layout.FIELDS.size + layout.FIELDS_OF_3.size) + extensions + name, 0)


def _l1_of(size: int) -> tuple[int, int]:
    """(Entries, clusters) of the L1 table of an image that :func:`write_image` writes."""
    covered = _CLUSTER * (_CLUSTER // 8)
    entries = max(1, (size + covered - 1) // covered)
    return entries, (entries * 8 + _CLUSTER - 1) // _CLUSTER


def bytes_of_image(size: int) -> int:
    """The number of bytes from the start of the file that :func:`write_image` needs. The rest of its file is a hole."""
    return 3 * _CLUSTER + _l1_of(size)[0] * 8


def write_whole(fd: int, data: bytes, offset: int) -> None:
    """Write a few bytes at ``offset``. :raises OSError: not all of them were written."""
    if os.pwrite(fd, data, offset) != len(data):
        raise OSError(errno.ENOSPC, "a few bytes could not be written whole")


def _backing_format_extension(backing_format: str | None) -> bytes:
    if backing_format is None:
        return b""
    body = backing_format.encode("ascii")
    return layout.EXTENSION.pack(layout.EXT_BACKING_FORMAT, len(body)) + body.ljust(8, b"\0")


def repoint(fd: int, backing_file: str | None, backing_format: str | None) -> None:
    """Change the backing file in a header, or remove it (None), durably. A crash leaves the old name or the new one, never a mixture.

    If name and extensions fit into the first sector, it is rewritten at once. In other headers (those of qemu-img) the new name is
    first written to free space in the header cluster and synced. Then offset, length and format change in one sector.

    :raises Qcow2Error: the header is not valid, or has no room for the new name. Nothing was written.
    """
    header = reading.read_header(fd)
    if backing_file is None or backing_format is None:
        _remove_backing_file(fd, header)
        return
    name = backing_file.encode("utf-8")
    if not 0 < len(name) <= layout.MAX_BACKING_NAME:
        raise layout.Qcow2Error("a backing name has 1 to 1023 bytes")
    sector = first_sector(fd, header)
    end = _put_format(sector, header, backing_format)
    if end + layout.EXTENSION.size <= layout.SECTOR:
        sector[end : end + layout.EXTENSION.size] = layout.EXTENSION.pack(layout.EXT_END, 0)
    elif not header.end_marked:
        raise layout.Qcow2Error("its header extensions have no end that would hold behind another backing name")
    end += layout.EXTENSION.size
    if end + len(name) <= layout.SECTOR:
        offset = end
        sector[offset:] = name.ljust(layout.SECTOR - offset, b"\0")
    else:
        offset = _free_space(header, end, len(name))
        write_whole(fd, name, offset)
        os.fsync(fd)
    struct.pack_into(">QI", sector, 8, offset, len(name))
    write_whole(fd, bytes(sector), 0)
    os.fsync(fd)


def _remove_backing_file(fd: int, header: reading.Header) -> None:
    """Remove the backing file from a header by writing one sector. The list of header extensions becomes empty: it has the backing
    format, which is removed too, and names of features, which serve only for messages."""
    if header.unknown_extensions or header.bitmaps:
        raise layout.Qcow2Error("its header extensions say more than the backing format")
    sector = first_sector(fd, header)
    start = _extensions_start(sector, header)
    if start + layout.EXTENSION.size > layout.SECTOR:
        raise layout.Qcow2Error("its header leaves no room in the first sector")
    sector[start : start + layout.EXTENSION.size] = layout.EXTENSION.pack(layout.EXT_END, 0)
    struct.pack_into(">QI", sector, 8, 0, 0)
    write_whole(fd, bytes(sector), 0)
    os.fsync(fd)


def _extensions_start(sector: bytearray, header: reading.Header) -> int:
    return layout.FIELDS.size if header.version == 2 else struct.unpack_from(">I", sector, layout.FIELDS.size + layout.FIELDS_OF_3.size - 4)[0]


def first_sector(fd: int, header: reading.Header) -> bytearray:
    """The first sector of the file, to be changed and rewritten. Unknown auto-clear features are cleared, as section "Header" requires
    of every writer."""
    sector = bytearray(os.pread(fd, layout.SECTOR, 0))
    if len(sector) < layout.SECTOR:
        raise layout.Qcow2Error("it was cut short while it was looked at")
    if header.version == 3:
        autoclear = struct.unpack_from(">Q", sector, layout.AUTOCLEAR_AT)[0]
        struct.pack_into(">Q", sector, layout.AUTOCLEAR_AT, autoclear & _KNOWN_AUTOCLEAR)
    return sector


def _put_format(sector: bytearray, header: reading.Header, backing_format: str) -> int:
    """Put the extension with the backing format into the first sector. Returns the new offset of the end marker of the list."""
    extension = _backing_format_extension(backing_format)
    if header.format_offset is not None and header.format_offset + len(extension) <= layout.SECTOR:
        sector[header.format_offset : header.format_offset + len(extension)] = extension
        return header.extensions_end
    end, needed = header.extensions_end, len(extension) + layout.EXTENSION.size
    if header.format_offset is None and end <= layout.SECTOR < end + needed:
        end = _drop_feature_names(sector, header)  # qemu-img fills the sector to its end where there is no backing file
    if header.format_offset is not None or end + needed > layout.SECTOR:
        raise layout.Qcow2Error("its header extensions leave no room for the backing format")
    sector[end : end + len(extension)] = extension
    return end + len(extension)


def _drop_feature_names(sector: bytearray, header: reading.Header) -> int:
    """Remove section "Feature name table", which serves only for messages. Returns the new offset of the end marker of the list."""
    offset = _extensions_start(sector, header)
    end = header.extensions_end
    while offset < end:
        kind, length = layout.EXTENSION.unpack_from(sector, offset)
        size = layout.EXTENSION.size + (length + 7) // 8 * 8
        if kind == layout.EXT_FEATURE_NAMES:
            sector[offset:end] = sector[offset + size : end] + bytes(min(size, end - offset))
            return end - min(size, end - offset)
        offset += size
    return end


def _free_space(header: reading.Header, end: int, length: int) -> int:
    """A free offset in the header cluster: behind the first sector and the extensions, and not over the present backing name."""
    present = len((header.backing_file or "").encode("utf-8"))
    start = max(end, layout.SECTOR)
    for offset in (start, max(start, header.backing_offset + present)):
        apart = offset + length <= header.backing_offset or offset >= header.backing_offset + present
        if apart and offset + length <= min(header.cluster_size, layout.MOST_HEADER):
            return offset
    raise layout.Qcow2Error("its header cluster has no room for the backing name")
