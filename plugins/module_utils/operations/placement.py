# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which share a new volume goes to."""

from __future__ import annotations

import os

from ..errors import NoEligibleShare
from ..model import Share, told_size
from .candidates import Candidates, Policy
from .ledger import Ledger


def choose(candidates: Candidates, needed: int, allocated_now: int, policy: Policy, ledger: Ledger) -> Share:
    """The eligible share with the most free space for a new volume of ``needed`` bytes virtual size.

    :param allocated_now: bytes that its creation writes at once (preallocation, a clone's data).
    :raises NoEligibleShare: none has room within the policy; the message says why for each.
    """
    candidates.require_all()
    reasons, eligible = [], []
    for share in candidates.shares:
        free, reason = _room(share, needed, allocated_now, policy, ledger)
        if reason:
            reasons.append(f"{share.source} {reason}")
        else:
            eligible.append((free, share))
    if not eligible:
        raise NoEligibleShare(
            f"new volume of {told_size(needed)}",
            "no share can take it (" + "; ".join(reasons) + ")",
            "free space, add a share, or change reserved_percentage or max_over_subscription_ratio",
        )
    return max(eligible, key=lambda pair: pair[0])[1]


def _room(share: Share, needed: int, allocated_now: int, policy: Policy, ledger: Ledger) -> tuple[int, str]:
    if not os.access(share.path, os.W_OK):
        return 0, "is not writable"
    figures = os.statvfs(share.path)
    total, free = figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize
    usable = free - total * policy.reserved_percentage // 100
    if allocated_now > usable:
        return 0, f"has {told_size(max(usable, 0))} free for use"
    if usable <= 0:
        return 0, "is full"
    if total and ledger.provisioned(share) + needed > total * policy.max_over_subscription_ratio:
        return 0, f"would hold more than {policy.max_over_subscription_ratio:g} times its size in virtual disks"
    return free, ""
