# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds leaked clusters: those that are counted more often than anything uses them. They waste room, and harm no data.

Who dies after it has counted a new cluster, and before a table leads to it, leaks it: a machine that is killed, or a merge.

Section "Host cluster management" of QEMU's docs/interop/qcow2.
"""

from __future__ import annotations

from typing import NamedTuple

from . import cluster_uses, reading
from .clusters import Unsuited


class Leaks(NamedTuple):
    """``clusters``: how many are counted too often. ``bytes``: of those that nothing uses at all. ``has_bitmaps``: the image has dirty bitmaps."""

    clusters: int
    bytes: int
    has_bitmaps: bool


def find_leaks(fd: int) -> Leaks:
    """The leaked clusters of an opened image that nobody writes to. Reads all tables and counts. Clusters behind the end of the file are left out.

    :raises Unsuited: it cannot be known. :raises Qcow2Error: the image is damaged or hostile.
    """
    header = reading.read_header(fd)
    if header.dirty:
        raise Unsuited("its reference counts are out of date, because a machine died that keeps them late; qemu-img check -r all counts anew")
    if header.unknown_extensions:
        raise Unsuited("its header has extensions that are not known here, and that may lead to clusters")
    uses = cluster_uses.checked_uses(fd, header)
    if uses is None:
        raise Unsuited("it is too large to be checked, or has internal snapshots")
    per_block, without_owner = uses.per_block, uses.by_block()
    clusters = unused = 0
    for index, block in enumerate(uses.blocks):
        used = list(uses.owned[index * per_block : (index + 1) * per_block])
        if not block or not used:
            continue
        for position, count in without_owner.get(index, ()):
            used[position] += count
        excess = [now for now, count in zip(used, uses.counts(fd, index)) if count > now]
        clusters, unused = clusters + len(excess), unused + excess.count(0)
    return Leaks(clusters, unused * header.cluster_size, header.bitmaps)
