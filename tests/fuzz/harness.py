# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to hold for the codec whatever the bytes are; :func:`check` tries one image against all of it."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import tracemalloc
from contextlib import contextmanager
from typing import Any, Callable, Iterator

from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2

from .generator import BACKING_FORMAT, FEATURE_NAMES, Image

MOST_CPU = 5  # seconds of processor for one image and all calls
MOST_MEMORY = 64 << 20  # bytes that all calls on one image take at their peak
MOST_ADDRESS_SPACE = 256 << 20  # what the process may grow by while it fuzzes
_PAGE = 4096
_NEW_NAMES = [("new", "raw"), ("base-2", "qcow2"), ("n" * 255, "raw"), ("m" * 384, "qcow2"), ("l" * 1023, "raw"), ("k" * 1024, "raw")]
_GROWTH = [0, 512, 1 << 20, 1 << 30, 1 << 40, 1 << 62, -512, 5]


class Finding(AssertionError):
    """The codec did what it must not do."""


class _Slow(BaseException):
    """So that no ``except Exception`` takes it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Within, too much processor time is an exception and much memory cannot be had."""

    def stop(_number: int, _frame: object) -> None:
        raise _Slow

    with open("/proc/self/statm", encoding="ascii") as stream:
        now = int(stream.read().split()[0]) * resource.getpagesize()
    previous, limits = signal.signal(signal.SIGPROF, stop), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_ADDRESS_SPACE, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def put(fd: int, image: Image) -> None:
    os.ftruncate(fd, 0)
    for offset, data in image.pieces:
        if data and 0 <= offset < image.size:
            os.pwrite(fd, data[: image.size - offset], offset)
    os.ftruncate(fd, image.size)


def pages(fd: int) -> dict:
    """The file as it is: its size, and every page that is not a hole."""
    size = os.fstat(fd).st_size
    found, offset = {"size": size}, 0
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
            end = os.lseek(fd, offset, os.SEEK_HOLE)
        except OSError:
            break
        data = os.pread(fd, end - offset, offset)
        for start in range(0, len(data), _PAGE):
            found[(offset + start) // _PAGE] = data[start : start + _PAGE]
        offset = end
    return found


def require_same_but(before: dict, after: dict, *ranges: tuple) -> None:
    """:raises Finding: bytes outside of the ranges (first, behind the last) differ."""
    for number in (before.keys() | after.keys()) - {"size"}:
        old, new = (state.get(number, b"").ljust(_PAGE, b"\0") for state in (before, after))
        for first, last in () if old == new else ranges:
            first, last = (min(max(place - number * _PAGE, 0), _PAGE) for place in (first, last))
            old = old[:first] + new[first:last] + old[last:]
        _require(old == new, "a write went elsewhere")


def check(fd: int, image: Image, rng: random.Random, measure: bool = False) -> tuple:
    """Every function of the codec on one image; returns what came out, without numbers, to be counted.

    :param measure: look at the peak of memory too, which takes longer.
    :raises Finding: something must not be.
    """
    put(fd, image)
    if measure:
        tracemalloc.start()
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU)
    try:
        outcome = _check(fd, rng)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if measure and tracemalloc.get_traced_memory()[1] > MOST_MEMORY + image.size // 8:  # the pages of the comparison are ours
            raise Finding(f"took {tracemalloc.get_traced_memory()[1]} bytes of memory")
    except _Slow as error:
        raise Finding(f"took more than {MOST_CPU} s of processor time") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if measure:
            tracemalloc.stop()
    return outcome


def _check(fd: int, rng: random.Random) -> tuple:
    before = pages(fd)
    qcow2.has_magic(fd)
    name = qcow2.read_backing_name(fd)
    header, refusal = _attempt(lambda: qcow2.read_header(fd))
    _check_glimpse(fd, header, refusal)
    outcome = [name is None, refusal]
    if header is not None:
        _check_header(fd, header, name)
        outcome += [header.version, header.cluster_bits, header.backing_format, header.end_marked, header.bitmaps, header.dirty]
        outcome += _check_tables(fd, header)
    outcome += _check_repoint(fd, header, before, *rng.choice(_NEW_NAMES))
    if outcome[-1] == "done":
        header, before = qcow2.read_header(fd), pages(fd)
    outcome += _check_grow(fd, header, before, rng.choice(_GROWTH))
    if header is not None and rng.random() < 0.1:
        outcome += _check_shrinking(fd, header, rng)
    return tuple(outcome)


def _check_glimpse(fd: int, header: qcow2.Header | None, refusal: str | None) -> None:
    """A glimpse remembers headers of images that were here before; it must never show."""
    for _again in range(2):
        read_summary, refused = _attempt(lambda: qcow2.read_summary(fd, os.fstat(fd).st_size))
        _require(refused == refusal, "a glimpse refuses other images than read_header")
        _require(header is None or read_summary == tuple(getattr(header, field) for field in read_summary._fields), "a glimpse sees something else")


def _attempt(action: Callable[[], Any]) -> tuple:
    """(result, None) or (None, the refusal without its numbers). Any other error goes up: it is a finding."""
    try:
        return action(), None
    except qcow2.Qcow2Error as error:
        return None, re.sub(r"0x[0-9a-f]+|[0-9]+|b['\"].*['\"] ", "N", str(error))


def _require(right: object, message: str) -> None:
    if not right:
        raise Finding(message)


def _check_header(fd: int, header: qcow2.Header, name: str | None) -> None:
    data = os.pread(fd, 1 << 16, 0)
    version, offset, length, bits, size, crypt, entries, table = struct.unpack_from(">4xIQIIQIIQ", data)
    _require(data[:4] == b"QFI\xfb" and crypt == 0, "accepted an encrypted image, or none at all")
    seen = (header.version, header.cluster_bits, header.size, header.l1_entries, header.l1_offset)
    _require(seen == (version, bits, size, entries, table), "header fields differ from the bytes")
    _require(header.backing_file == (data[offset : offset + length].decode() if offset else None), "another backing name than the bytes")
    _require(header.backing_file == name, "read_backing_name and read_header disagree")
    _require(version == 2 or not struct.unpack_from(">Q", data, 72)[0] & ~0b11001, "accepted features that must be refused")
    found = extensions(data, header)
    _require(
        dict(found).get(BACKING_FORMAT) == (header.backing_format.encode() if header.backing_format else None), "another backing format"
    )
    _require(0x44415441 not in dict(found), "accepted an external data file")
    _require(header.l1_offset + header.l1_entries * 8 <= os.fstat(fd).st_size, "accepted an L1 table behind the end")


def extensions(data: bytes, header: qcow2.Header) -> list:
    """(kind, body) of the header extensions, read in QEMU's way."""
    offset = 72 if header.version == 2 else struct.unpack_from(">I", data, 100)[0]
    limit, found = header.backing_offset or header.cluster_size, []
    while offset < limit:
        kind, length = struct.unpack_from(">II", data, offset)
        _require(offset + 8 + length <= limit, "accepted an extension that is too long for QEMU")
        if kind == 0:
            break
        found.append((kind, data[offset + 8 : offset + 8 + length]))
        offset += 8 + -(-length // 8) * 8
    return found


def _check_tables(fd: int, header: qcow2.Header) -> list:
    empty, refusal = _attempt(lambda: qcow2.is_empty(fd, header))
    _require(refusal is None, "is_empty refuses what read_header accepts")
    tables, refused = _attempt(lambda: qcow2.allocation(fd, header))
    for index, table in (tables or {}).items():
        _require(index < header.l1_entries and len(table) == header.l2_entries and not table.strip(b"\0\1\2"), "a table that cannot be")
    _require(not (empty and tables != {}), "an empty image with tables")
    if header.l1_entries <= 1 << 11:
        data = os.pread(fd, header.l1_entries * 8, header.l1_offset)
        _require(empty == (not data.strip(b"\0")), "is_empty is wrong")
        there = [entry >> 9 & (1 << 47) - 1 for (entry,) in struct.iter_unpack(">Q", data)]
        _require(tables is None or [index for index, entry in enumerate(there) if entry] == sorted(tables), "another set of tables")
    return [empty, refused, tables is not None and len(tables) > 0]


def _check_repoint(fd: int, header: qcow2.Header | None, before: dict, name: str, image_format: str) -> list:
    found = extensions(os.pread(fd, 1 << 16, 0), header) if header else []
    _done, refusal = _attempt(lambda: qcow2.repoint(fd, name, image_format))
    after = pages(fd)
    if refusal is not None:
        _require(after == before, "a refused repointing changed the file")
        return [refusal]
    _require(header is not None, "repointed an image that read_header refuses")
    now = qcow2.read_header(fd)
    _require((now.backing_file, now.backing_format) == (name, image_format), "repointed to something else")
    _require(_fixed(now) == _fixed(header), "repointing changed other fields")
    _require_cleared(fd, now)
    data = os.pread(fd, 1 << 16, 0)
    _require(_others(extensions(data, now)) == _others(found), "repointing lost an extension")
    end = now.backing_offset + len(name)
    require_same_but(before, after, (8, 20), (88, 96), (72 if now.version == 2 else 104, 512), (now.backing_offset, end))
    _require(end <= now.cluster_size and before["size"] == after["size"], "repointing left the header cluster")
    return ["done"]


def _fixed(header: qcow2.Header) -> tuple:
    return (
        header.version,
        header.size,
        header.cluster_bits,
        header.l1_entries,
        header.l1_offset,
        header.bitmaps,
        header.dirty,
        header.extended_l2,
    )


def _require_cleared(fd: int, header: qcow2.Header) -> None:
    unknown = struct.unpack(">Q", os.pread(fd, 8, 88))[0] & ~1 if header.version == 3 else 0
    _require(not unknown, "a written image keeps auto-clear features that nobody knows")


def _others(found: list) -> list:
    return [(kind, body) for kind, body in found if kind not in (BACKING_FORMAT, FEATURE_NAMES)]


def _check_grow(fd: int, header: qcow2.Header | None, before: dict, by: int) -> list:
    cleared = _check_tail(fd, header, before)
    before = pages(fd)
    size = (header.size if header else 1 << 20) + by
    done, refusal = _attempt(lambda: qcow2.grow(fd, size))
    after = pages(fd)
    if not done:
        _require(after == before, "growing that was refused changed the file")
        return [*cleared, refusal or "not grown"]
    now = qcow2.read_header(fd)
    _require(header is not None and now.size == size and now.l1_entries >= header.l1_entries and by >= 0, "grown to something else")
    more = os.pread(fd, (now.l1_entries - header.l1_entries) * 8, header.l1_offset + header.l1_entries * 8)
    _require(not more.strip(b"\0"), "growing took entries into the L1 table that are not zero")
    _require_cleared(fd, now)
    require_same_but(before, after, (24, 32), (36, 40), (88, 96))
    _require(0 <= after["size"] - before["size"] < now.cluster_size, "growing changed the file's length by more than a cluster")
    return [*cleared, "grown"]


def _check_tail(fd: int, header: qcow2.Header | None, before: dict) -> list:
    """What lies behind the virtual end becomes zeros, or the image is refused unchanged; doing it again does nothing."""
    fixed_tails, unreadable = _attempt(lambda: qcow2.has_fixed_tail(fd))
    whole, cut_short = _attempt(lambda: qcow2.require_whole(fd))
    _require(pages(fd) == before, "looking changed the file")
    cleared, refusal = _attempt(lambda: qcow2.clear_tail(fd))
    after = pages(fd)
    _require((refusal is None) == (fixed_tails is False), "it is said to be stiff and is not, or the other way round")
    if refusal is not None or not cleared:
        _require(after == before, "nothing was to be taken away, and the file was changed")
        return [refusal, unreadable, cut_short, whole]
    _require(header is not None and os.pread(fd, 4096, 0)[: header.cluster_size] == before.get(0, b"")[: header.cluster_size], "the header")
    _require(_attempt(lambda: qcow2.clear_tail(fd)) == (False, None), "something is left behind the end")
    _require(0 <= after["size"] - before["size"] < header.cluster_size, "taking away changed the file's length")
    for number in (before.keys() | after.keys()) - {"size"}:
        old, new = (state.get(number, b"").ljust(_PAGE, b"\0") for state in (before, after))
        # Zeros, or a count that is one less than it was.
        fine = all(b == 0 or b <= a for a, b in zip(old, new)) or _fewer(old, new)
        _require(old == new or fine, "more was written than zeros and smaller counts")
    return ["cleared", cut_short]


def _fewer(old: bytes, new: bytes) -> bool:
    return all(a >= b for (a,), (b,) in zip(struct.iter_unpack(">H", old), struct.iter_unpack(">H", new)))


def _check_shrinking(fd: int, header: qcow2.Header, rng: random.Random) -> list:
    """Somebody cuts the file between the reading of its header and of its tables."""
    os.ftruncate(fd, rng.randrange(os.fstat(fd).st_size + 1))
    _attempt(lambda: qcow2.is_empty(fd, header))
    _tables, refusal = _attempt(lambda: qcow2.allocation(fd, header))
    return ["cut", refusal]


def _without_limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)


def compare_with_qemu(path: str, fd: int) -> str:
    """Whether QEMU sees the same image where the codec accepts it. Returns who accepts.

    QEMU must not see another size, backing file or format than we do: what is checked would not be what is used.
    """
    header, refusal = _attempt(lambda: qcow2.read_header(fd))
    argv = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path]
    result = subprocess.run(argv, capture_output=True, timeout=60, check=False, preexec_fn=_without_limit)
    if header is None or result.returncode != 0:
        return f"{'codec' if header else 'qemu-img' if result.returncode == 0 else 'nobody'}: {refusal or result.stderr.decode()[-120:]}"
    info = json.loads(result.stdout)
    details = info["format-specific"]["data"]
    told = (info["virtual-size"], info["cluster-size"], info.get("backing-filename"), info.get("backing-filename-format"))
    if header.backing_file is None:
        told = (*told[:3], header.backing_format)  # qemu-img does not tell the format of a backing file that is not there
    told += (info["dirty-flag"], details["compat"], bool(details.get("extended-l2")), bool(details.get("corrupt")))
    mine = (header.size, header.cluster_size, header.backing_file, header.backing_format, header.dirty)
    mine += ({2: "0.10", 3: "1.1"}[header.version], header.extended_l2, False)
    _require(told == mine, f"qemu-img sees {told}, the codec {mine}")
    return "both"
