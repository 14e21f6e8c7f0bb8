# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes the tail of an image, which is data behind its virtual end, before the virtual size is raised.

The tail is the rest of the last cluster, after the image was shrunk or a cluster was filled from a longer backing file, or whole
clusters that the tables still lead to. It is invisible until the size is raised. Then it would appear where zeros must be.
"""

from __future__ import annotations

import os
from typing import Iterator, NamedTuple

from . import l2_entries, layout, reading, refcounts, writing
from .clusters import COPIED, MOST_TABLE_BYTES, OFFSET, Unsuited
from .tables import l1_table

_CHUNK = 1 << 20
_RAW_DEFLATE = -15  # zlib's wbits for raw deflate with the largest window; it also reads QEMU's smaller window


class _Entries(NamedTuple):
    """Entries of one L2 table for clusters wholly behind the virtual end: offset of the first entry in the file, length of all in
    bytes, and numbers of the clusters that they lead to."""

    offset: int
    length: int
    clusters: tuple[int, ...]


class _Tail(NamedTuple):
    """The tail: a part of the last cluster, as (offset in the file, length) in bytes, and L2 entries to be removed."""

    rest: tuple[int, int] | None
    entries: tuple[_Entries, ...]


def clear_tail(fd: int) -> bool:
    """Remove the tail of an image durably. Returns whether there was one.

    The change is invisible, so after a crash at any time the image shows the same data as before. If entries were dropped, a crash
    can leave leaked clusters.

    :raises Unsuited: this cannot be done in place (compressed data, a cluster with several owners). Nothing was written.
    :raises Qcow2Error: the image is damaged or hostile. Nothing was written.
    """
    header = reading.read_header(fd)
    tail = _find(fd, header)
    if tail.rest is None and not tail.entries:
        return False
    if tail.rest is not None:
        _write_zeros(fd, *tail.rest)
    for entries in tail.entries:
        _write_zeros(fd, entries.offset, entries.length)
    os.fsync(fd)
    released = [number for entries in tail.entries for number in entries.clusters]
    if released:
        _release(fd, header, released)
    return True


def has_fixed_tail(fd: int) -> bool:
    """Whether the image has a tail that :func:`clear_tail` cannot remove."""
    try:
        _find(fd, reading.read_header(fd))
    except Unsuited:
        return True
    return False


def has_tail(fd: int) -> bool:
    """Whether the image has a tail. :raises Unsuited: as :func:`clear_tail`. :raises Qcow2Error: the image is damaged or hostile."""
    tail = _find(fd, reading.read_header(fd))
    return tail.rest is not None or bool(tail.entries)


def tail_end(fd: int) -> int:
    """The virtual offset in bytes where the last cluster ends that tables lead to behind the virtual end; the size if there is none."""
    header = reading.read_header(fd)
    last = header.size
    for first, _place, data in _tables_behind(fd, header):
        for position, (entry, _bitmap) in enumerate(l2_entries.pairs(data, header), first):
            if entry:
                last = max(last, (position + 1) * header.cluster_size)
    return last


def _find(fd: int, header: reading.Header) -> _Tail:
    """Find the tail. If there is none, this reads only a part of one L2 table, and the rest of the last cluster."""
    cut = header.size // header.cluster_size if header.size % header.cluster_size else -1
    rest, found = None, []
    for first, place, data in _tables_behind(fd, header):
        entries = list(l2_entries.pairs(data, header))
        if first == cut and l2_entries.shows_data(*entries[0], header):
            rest = _rest_of(fd, header, *entries[0])
        if first == cut:
            entries, place = entries[1:], place + l2_entries.entry_bytes(header)
        if any(l2_entries.shows_data(entry, bitmap, header) for entry, bitmap in entries):
            clusters = tuple(number for entry, _bitmap in entries for number in _clusters(entry, header))
            found.append(_Entries(place, len(entries) * l2_entries.entry_bytes(header), clusters))
    if rest is not None or found:
        _require_own(fd, header, rest, found)
    return _Tail(rest, tuple(found))


def _tables_behind(fd: int, header: reading.Header) -> Iterator[tuple[int, int, bytes]]:
    """Those parts of L2 tables that are not all zero, starting at the cluster with the virtual end: (number of the first cluster of
    the disk in it, offset of the part in the file, the part)."""
    first, width = header.size // header.cluster_size, l2_entries.entry_bytes(header)
    for index, table in _l1_from(fd, header, first // header.l2_entries):
        begin = max(first, index * header.l2_entries)
        skipped = (begin % header.l2_entries) * width
        data = os.pread(fd, header.cluster_size - skipped, table + skipped)
        if len(data) < header.cluster_size - skipped:
            raise layout.CutShort("an L2 table lies behind the end of the file (the file was cut short)")
        if data.count(0) < len(data):
            yield begin, table + skipped, data


def _l1_from(fd: int, header: reading.Header, first: int) -> list[tuple[int, int]]:
    """(L1 index, offset) of the L2 tables from L1 index ``first`` on. :raises Unsuited: there are too many."""
    found: list[tuple[int, int]] = []
    for start in range(first, header.l1_entries, _CHUNK // 8):
        data = os.pread(fd, min(_CHUNK // 8, header.l1_entries - start) * 8, header.l1_offset + start * 8)
        if data.count(0) == len(data):
            continue
        for index in range(len(data) // 8):
            table = int.from_bytes(data[index * 8 : index * 8 + 8], "big") & OFFSET
            if table % header.cluster_size:
                raise layout.Qcow2Error("an L2 table is not where the format wants it")
            if table:
                found.append((start + index, table))
        if len(found) > MOST_TABLE_BYTES // header.cluster_size:
            raise Unsuited("it has too many L2 tables behind its virtual end")
    if len({table for _index, table in found}) < len(found):
        raise layout.Qcow2Error("two entries of its L1 table share an L2 table")
    return found


def _rest_of(fd: int, header: reading.Header, entry: int, bitmap: int) -> tuple[int, int] | None:
    """(Offset in the file, length) of the part of the last cluster behind the virtual end; None if that is all zero.

    :raises Unsuited: it cannot be overwritten."""
    kept = header.size % header.cluster_size
    if entry & l2_entries.COMPRESSED:
        data = _decompressed(fd, header, entry)
        if data is None or data[kept:].strip(b"\0"):
            raise Unsuited("compressed data reaches behind its virtual end")
        return None
    if header.extended_l2 and not (bitmap & 0xFFFFFFFF) >> kept * l2_entries.SUBCLUSTERS // header.cluster_size:
        return None
    offset, length = (entry & OFFSET) + kept, header.cluster_size - kept
    if reading.is_zero(fd, offset, length):
        return None
    if entry & ~(COPIED | OFFSET) or not entry & COPIED or (entry & OFFSET) % header.cluster_size:
        raise Unsuited("data reaches behind its virtual end in a cluster that may have several owners")
    return offset, length


def _decompressed(fd: int, header: reading.Header, entry: int) -> bytes | None:
    """The data of a compressed cluster; None if it cannot be decompressed here."""
    import zlib  # late: images hardly ever have compressed data at their end

    if not l2_entries.packed_by_zlib(fd, header):
        return None
    start, length = l2_entries.compressed_range(entry, header)
    try:
        data = zlib.decompressobj(_RAW_DEFLATE).decompress(os.pread(fd, length, start), header.cluster_size)
    except zlib.error:
        return None
    return data if len(data) == header.cluster_size else None


def _clusters(entry: int, header: reading.Header) -> tuple[int, ...]:
    """Numbers of the clusters in the file that an L2 entry leads to."""
    if not entry & (l2_entries.COMPRESSED | OFFSET):
        return ()
    if entry & l2_entries.COMPRESSED:
        start, length = l2_entries.compressed_range(entry, header)
        return tuple(range(start // header.cluster_size, (start + length - 1) // header.cluster_size + 1))
    return ((entry & OFFSET) // header.cluster_size,)


def _require_own(fd: int, header: reading.Header, rest: tuple[int, int] | None, entries: list[_Entries]) -> None:
    """Check that removing the tail changes nothing else. All tables are read for that, but only for images that have a tail.

    :raises Unsuited: a table or a cluster has several uses.
    """
    size = header.cluster_size
    tables = l1_table(fd, header, MOST_TABLE_BYTES // size)
    at, blocks = l2_entries.refcount_table(fd, header)
    if tables is None or blocks is None or header.internal_snapshots:
        raise Unsuited("it has too many L2 tables, internal snapshots, or no whole table of reference counts")
    l1 = range(header.l1_offset // size, -(-(header.l1_offset + header.l1_entries * 8) // size))
    parts = [0, *l1, *range(at // size, at // size + -(-len(blocks) * 8 // size)), *(block // size for block in blocks if block)]
    parts += [(table & OFFSET) // size for table in tables.values()]
    if len(set(parts)) < len(parts):
        raise Unsuited("two of its tables share a cluster")
    changed = {part.offset // size for part in entries}
    if any((table & OFFSET) // size in changed and not table & COPIED for table in tables.values()):
        raise Unsuited("an L2 table may have several owners")
    if rest is None:
        return
    last_cluster, uses = rest[0] // size, 0
    for table in tables.values():
        for entry, _bitmap in l2_entries.pairs(os.pread(fd, size, table & OFFSET).ljust(size, b"\0"), header):
            uses += last_cluster in _clusters(entry, header)
    if uses != 1 or last_cluster in parts:
        raise Unsuited("data reaches behind its virtual end in a cluster that has several owners")


def _release(fd: int, header: reading.Header, clusters: list[int]) -> None:
    """Lower the counts of clusters that nothing leads to any more. If the counts are not plain, nothing is done: the clusters leak."""
    try:
        refcounts.Counts(fd, header).release(clusters)
    except Unsuited:
        pass


def _write_zeros(fd: int, offset: int, length: int) -> None:
    for start in range(offset, offset + length, _CHUNK):
        writing.write_whole(fd, bytes(min(_CHUNK, offset + length - start)), start)
