# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which share a new volume goes to. What it takes is promised to it, before anything is written."""

from __future__ import annotations

import os

from .. import errors, model
from ..plan.desired import DesiredVolume
from .candidates import LEAST_ALLOCATED, ROUND_ROBIN, Candidates, Policy
from .capacity import EACH, Capacity, Demand, figures_of, locality_of

_NOISE = 1 << 20  # bytes by which what a source holds may differ from what it was thought to hold
_QCOW2 = 5 << 16  # bytes of the header and of the smallest tables


def demand(desired: DesiredVolume) -> Demand:
    """What a new empty volume takes, or a seed. Tables of what is not preallocated count as nothing."""
    if desired.seed is not None:
        return Demand(desired.seed, desired.seed, desired.seed, _small(desired, False))
    size = desired.size or 0
    tables = _tables(size) if desired.format == "qcow2" and desired.preallocation != "off" else 0
    data = size if desired.preallocation in ("falloc", "full") else 0
    return Demand(size, data + tables, data + tables, _small(desired, False))


def demand_of_clone(desired: DesiredVolume, linked: bool, source: model.Share, size: int, allocated: int, able: Candidates) -> Demand:
    """What a clone takes of a point of ``size`` bytes of which the share holds ``allocated``. One that is linked, and is not cut loose
    in the same task, copies nothing. Room for all is required even where blocks will probably be shared, because that is not certain."""
    copied = 0 if linked and not desired.flatten else allocated
    written = copied + (_tables(copied) if copied and (linked or desired.format == "qcow2") else 0)
    kept = 0 if copied and _copies_share_blocks(source, able) else written
    return Demand(desired.size or size, written, kept, _small(desired, linked))


def _small(desired: DesiredVolume, linked: bool) -> int:
    return EACH + (_QCOW2 if linked or desired.format == "qcow2" else 0) + (_QCOW2 if desired.snapshot else 0)


def _tables(size: int) -> int:
    """Bytes of the tables of a qcow2 image with ``size`` bytes of data, in clusters of 64 KiB: 8 and 2 for each cluster."""
    return size // 8192 + size // 32768 + _QCOW2


def _copies_share_blocks(source: model.Share, candidates: Candidates) -> bool:
    """Whether a copy of a volume on ``source`` takes no room of its own on any of the candidates, as far as that can be known."""

    if any(share.path != source.path for share in candidates.shares):
        return False
    below = locality_of(source)
    return below is not None and below.shares_blocks


def choose(candidates: Candidates, needed: int, allocated_now: int, policy: Policy, capacity: Capacity) -> model.Share:
    """The eligible share that the policy prefers for a new volume of ``needed`` bytes virtual size; of equal ones the first.

    :param allocated_now: bytes that its creation writes at once (preallocation, a clone's data).
    :raises NoEligibleShare: none has room within the policy; the message says why for each.
    """
    candidates.require_all()
    reasons, eligible = [], []
    for share in candidates.shares:
        free, reason = _room(share, needed, allocated_now, policy, capacity)
        if reason:
            reasons.append(f"{share.source} {reason}")
        else:
            eligible.append((_rank(share, free, policy, capacity) if len(candidates.shares) > 1 else 0, share))
    if not eligible:
        raise errors.NoEligibleShare(
            f"new volume of {model.size_text(needed)}",
            "no share can take it (" + "; ".join(reasons) + ")",
            "free space, add a share, end the maintenance of one, or change reserved_percentage or max_over_subscription_ratio",
        )
    return min(eligible, key=lambda pair: pair[0])[1]


def _rank(share: model.Share, free: int, policy: Policy, capacity: Capacity) -> int:
    """The lowest is preferred. Nothing keeps count of whose turn it is: the share with the fewest volumes is next."""
    if policy.placement == LEAST_ALLOCATED:
        return capacity.provisioned(share)
    return capacity.volumes(share) if policy.placement == ROUND_ROBIN else -free


def reserve(name: str, asked: Candidates, able: Candidates, wanted: Demand, policy: Policy, capacity: Capacity) -> model.Share:
    """Choose one of the candidates that are ``able`` to have the volume, and promise it the room there.

    :raises NoEligibleShare: as :func:`choose`.
    """
    with capacity.lock:
        share = choose(able, wanted.size, wanted.at_once, policy, capacity)
        capacity.promise(asked, share, name, wanted)
        return share


def place(name: str, asked: Candidates, able: Candidates, wanted: Demand, policy: Policy, capacity: Capacity, check: bool) -> model.Share:
    """Where a volume goes that is made now: where it was promised room, unless that went away or it turned out to need more.

    :raises NoEligibleShare: as :func:`choose`. :raises OSError: a share cannot be asked for its room.
    """
    with capacity.lock:
        claim = capacity.promised(asked, name)
        if claim is not None and not claim.made and _still_good(claim.share, claim.demand, able, wanted, policy, check):
            return claim.share
        capacity.give_back(asked, name)
        if not check:
            capacity.look_again(able.shares)
        return reserve(name, asked, able, wanted, policy, capacity)


def _still_good(share: model.Share, promised: Demand, able: Candidates, wanted: Demand, policy: Policy, check: bool) -> bool:
    if share not in able.shares or wanted.size != promised.size or wanted.at_once > promised.at_once + _NOISE:
        return False
    if check:
        return True
    figures = figures_of(share)  # other tasks know nothing of the promises
    total, free = figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize
    usable = free - total * policy.reserved_percentage // 100
    return usable > 0 and wanted.at_once <= usable and os.access(share.path, os.W_OK)


def _room(share: model.Share, needed: int, allocated_now: int, policy: Policy, capacity: Capacity) -> tuple[int, str]:
    if not os.access(share.path, os.W_OK):
        return 0, "is not writable"
    if capacity.in_maintenance(share):
        return 0, "is in maintenance"
    total, free = capacity.room(share)
    reserved = total * policy.reserved_percentage // 100
    usable = free - reserved
    if usable <= 0:
        return 0, "is full" if not reserved else f"is full ({_short(max(free, 0))} are free, {_short(reserved)} stay reserved)"
    if allocated_now and allocated_now + capacity.small(share) > usable:
        kept = f", beside {_short(reserved)} that stay reserved" if reserved else ""
        return 0, f"has {model.size_text(usable)} free for use{kept}, and {_short(allocated_now)} are needed at once beside some for records"
    taken, most = capacity.provisioned(share) if total else 0, total * policy.max_over_subscription_ratio
    if total and taken + needed > most:
        ratio = f"{policy.max_over_subscription_ratio:g}"
        figures = f"{_short(total)}, {ratio} times is {_short(int(most))}, {_short(taken)} are taken"
        return 0, f"would hold more than {ratio} times its size in virtual disks ({figures})"
    return free, ""


def _short(size: int) -> str:
    return model.size_text(size).split(" (", 1)[0]
