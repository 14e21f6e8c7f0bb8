# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image holds behind its virtual end, and how it is taken away before the size is raised.

That is the rest of the last cluster, after the image was shrunk or a cluster was filled from a longer backing file; or whole
clusters that the tables still name. Nobody sees it until the size is raised: then it would stand where zeros must.
"""

from __future__ import annotations

import os
from typing import Iterator, NamedTuple

from .clusters import COPIED, MOST_TABLE_BYTES, OFFSET, Unsuited
from .l2_entries import COMPRESSED, SUBCLUSTERS, compressed_range, entry_bytes, packed_by_zlib, pairs, refcount_table, shows_data
from .layout import CutShort, Qcow2Error
from .reading import Header, is_zero, read_header
from .refcounts import Counts
from .tables import l1_table
from .writing import write_whole

_CHUNK = 1 << 20
_RAW_DEFLATE = -15  # zlib's own word for it, with the largest window; QEMU's is smaller, which this reads too


class _Entries(NamedTuple):
    """Entries of one L2 table that lie wholly behind the end: offset of the first in the file, bytes of all, and clusters that
    they lead to."""

    offset: int
    length: int
    clusters: tuple[int, ...]


class _Tail(NamedTuple):
    """What is to be taken away: a part of the last cluster (offset in the file, length), and entries that are to go."""

    rest: tuple[int, int] | None
    entries: tuple[_Entries, ...]


def clear_tail(fd: int) -> bool:
    """Let an image hold nothing but zeros behind its virtual end, durably; whether there was anything to be done.

    Nobody can see the change, so a crash at any instant leaves the image showing what it showed. Where entries were dropped
    it can leave leaked clusters.

    :raises Unsuited: this cannot be done in place (compressed data, a cluster with several owners). Nothing was written.
    :raises Qcow2Error: the image is damaged or hostile. Nothing was written.
    """
    header = read_header(fd)
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
    """Whether the image holds something behind its virtual end that :func:`clear_tail` cannot take away."""
    try:
        _find(fd, read_header(fd))
    except Unsuited:
        return True
    return False


def tail_end(fd: int) -> int:
    """Up to which virtual offset the tables name clusters behind the end; the size itself where they name none."""
    header = read_header(fd)
    last = header.size
    for first, _place, data in _tables_behind(fd, header):
        for position, (entry, _bitmap) in enumerate(pairs(data, header), first):
            if entry:
                last = max(last, (position + 1) * header.cluster_size)
    return last


def _find(fd: int, header: Header) -> _Tail:
    """What lies behind the end. Reads a part of one L2 table, and the rest of the last cluster, where there is nothing else."""
    cut = header.size // header.cluster_size if header.size % header.cluster_size else -1
    rest, found = None, []
    for first, place, data in _tables_behind(fd, header):
        entries = list(pairs(data, header))
        if first == cut and shows_data(*entries[0], header):
            rest = _rest_of(fd, header, *entries[0])
        if first == cut:
            entries, place = entries[1:], place + entry_bytes(header)
        if any(shows_data(entry, bitmap, header) for entry, bitmap in entries):
            clusters = tuple(number for entry, _bitmap in entries for number in _clusters(entry, header))
            found.append(_Entries(place, len(entries) * entry_bytes(header), clusters))
    if rest is not None or found:
        _require_own(fd, header, rest, found)
    return _Tail(rest, tuple(found))


def _tables_behind(fd: int, header: Header) -> Iterator[tuple[int, int, bytes]]:
    """Parts of L2 tables from the cluster with the virtual end on that are not all zero: number of the first cluster, offset in
    the file, the part."""
    first, width = header.size // header.cluster_size, entry_bytes(header)
    for index, table in _l1_from(fd, header, first // header.l2_entries):
        begin = max(first, index * header.l2_entries)
        skipped = (begin % header.l2_entries) * width
        data = os.pread(fd, header.cluster_size - skipped, table + skipped)
        if len(data) < header.cluster_size - skipped:
            raise CutShort("an L2 table lies behind the end of the file (the file was cut short)")
        if data.count(0) < len(data):
            yield begin, table + skipped, data


def _l1_from(fd: int, header: Header, first: int) -> list[tuple[int, int]]:
    """Index and offset of the L2 tables from L1 index ``first`` on. :raises Unsuited: there are too many."""
    found: list[tuple[int, int]] = []
    for start in range(first, header.l1_entries, _CHUNK // 8):
        data = os.pread(fd, min(_CHUNK // 8, header.l1_entries - start) * 8, header.l1_offset + start * 8)
        if data.count(0) == len(data):
            continue
        for index in range(len(data) // 8):
            table = int.from_bytes(data[index * 8 : index * 8 + 8], "big") & OFFSET
            if table % header.cluster_size:
                raise Qcow2Error("an L2 table is not where the format wants it")
            if table:
                found.append((start + index, table))
        if len(found) > MOST_TABLE_BYTES // header.cluster_size:
            raise Unsuited("it has too many L2 tables behind its virtual end")
    if len({table for _index, table in found}) < len(found):
        raise Qcow2Error("two entries of its L1 table share an L2 table")
    return found


def _rest_of(fd: int, header: Header, entry: int, bitmap: int) -> tuple[int, int] | None:
    """The part of the last cluster behind the end, where it is not zeros. :raises Unsuited: it cannot be overwritten."""
    kept = header.size % header.cluster_size
    if entry & COMPRESSED:
        data = _inflated(fd, header, entry)
        if data is None or data[kept:].strip(b"\0"):
            raise Unsuited("compressed data reaches behind its virtual end")
        return None
    if header.extended_l2 and not (bitmap & 0xFFFFFFFF) >> kept * SUBCLUSTERS // header.cluster_size:
        return None
    offset, length = (entry & OFFSET) + kept, header.cluster_size - kept
    if is_zero(fd, offset, length):
        return None
    if entry & ~(COPIED | OFFSET) or not entry & COPIED or (entry & OFFSET) % header.cluster_size:
        raise Unsuited("data reaches behind its virtual end in a cluster that may have several owners")
    return offset, length


def _inflated(fd: int, header: Header, entry: int) -> bytes | None:
    """The data of a compressed cluster; None where nobody here can tell."""
    import zlib  # late: hardly any image has compressed data at its end

    if not packed_by_zlib(fd, header):
        return None
    start, length = compressed_range(entry, header)
    try:
        data = zlib.decompressobj(_RAW_DEFLATE).decompress(os.pread(fd, length, start), header.cluster_size)
    except zlib.error:
        return None
    return data if len(data) == header.cluster_size else None


def _clusters(entry: int, header: Header) -> tuple[int, ...]:
    """Numbers of the clusters of the file that an entry leads to."""
    if not entry & (COMPRESSED | OFFSET):
        return ()
    if entry & COMPRESSED:
        start, length = compressed_range(entry, header)
        return tuple(range(start // header.cluster_size, (start + length - 1) // header.cluster_size + 1))
    return ((entry & OFFSET) // header.cluster_size,)


def _require_own(fd: int, header: Header, rest: tuple[int, int] | None, entries: list[_Entries]) -> None:
    """Make sure that nothing else is changed with what is to be overwritten: all tables are read for that, which only images
    that have a tail pay for.

    :raises Unsuited: a table or a cluster has several uses.
    """
    size = header.cluster_size
    tables = l1_table(fd, header, MOST_TABLE_BYTES // size)
    at, blocks = refcount_table(fd, header)
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
    mine, uses = rest[0] // size, 0
    for table in tables.values():
        for entry, _bitmap in pairs(os.pread(fd, size, table & OFFSET).ljust(size, b"\0"), header):
            uses += mine in _clusters(entry, header)
    if uses != 1 or mine in parts:
        raise Unsuited("data reaches behind its virtual end in a cluster that has several owners")


def _release(fd: int, header: Header, clusters: list[int]) -> None:
    """Count clusters less that nothing leads to any more. Where the counts are not plain they stay, and the clusters leaked."""
    try:
        Counts(fd, header).release(clusters)
    except Unsuited:
        pass


def _write_zeros(fd: int, offset: int, length: int) -> None:
    for start in range(offset, offset + length, _CHUNK):
        write_whole(fd, bytes(min(_CHUNK, offset + length - start)), start)
