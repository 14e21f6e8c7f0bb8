# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes take, renew, give up, lose and collect the same leases without a pause. At no time two of them have one.

    python lease_hammer.py SECONDS MOUNT1 MOUNT2 ...

Who has a lease makes a file with O_EXCL, and removes it again. One that is there and whose lease has not ended is the proof of a fault. Some owners
do not come back, so that their leases and volumes are collected by others.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

TTL = 2  # seconds
NAMES = ("hammered-a", "hammered-b")


def is_alone(witness: Path, until: float) -> bool:
    """Make the file that says who has the lease until when. False if one that was late has left its own: such a one says nothing.

    :raises FileExistsError: two have the lease."""
    try:
        fd = os.open(witness, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        told = witness.read_text() if witness.exists() else ""
        if told and float(told) > time.monotonic():
            raise
        return False
    os.write(fd, str(until).encode())
    os.close(fd)
    return True


def work(mount: str, owner: str, seconds: float) -> None:
    """One owner. Prints how often it had a lease, renewed it, and collected one of others."""
    from ansible_collections.remotefs.storage.plugins.module_utils import errors
    from ansible_collections.remotefs.storage.plugins.module_utils.operations import lease_holding, leases, updating, volumes
    from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import find_candidates
    from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
    from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume
    from ansible_collections.remotefs.storage.plugins.module_utils.plan.leases import Asked

    chance, where, end = random.Random(owner), find_candidates([mount], "/var/lib/remotefs/mnt"), time.monotonic() + seconds
    share, had, renewed, collected = where.shares[0], 0, 0, 0
    while time.monotonic() < end:
        name, options = chance.choice(NAMES), Options(lock_timeout=10, assume_unused=True)
        own = f"{owner}-{chance.randrange(1 << 30)}"  # another pipeline each time
        asked = Asked(name, own, TTL, volumes=(f"{name}-00",))
        begun = time.monotonic()
        try:
            held = leases.hold(leases.LeaseRequest(share, asked), options).after
        except errors.LeaseHeld:
            collected += len(leases.collect(leases.CollectRequest(share, 0), options).leases)
            continue
        had += 1
        witness = Path(mount, f"{name}.witness")
        if not is_alone(witness, begun + TTL):
            continue
        try:
            if chance.random() < 0.5:
                given = leases.describe(held, share)
                with lease_holding.holding([(given, where)], options):
                    request = updating.VolumeRequest(where, DesiredVolume(f"{name}-00", size=1 << 20))
                    volumes.ensure_present(request, lease_holding.under(options, given, where))
            if chance.random() < 0.5:
                renewal = time.monotonic()
                renewed += leases.hold(leases.LeaseRequest(share, Asked(name, own, TTL, id=held.id)), options).renewed
                begun = renewal
                witness.write_text(str(begun + TTL))
        except errors.LeaseLost:
            if time.monotonic() - begun < TTL:
                raise
        finally:
            witness.unlink()
        if chance.random() < 0.8 and time.monotonic() < begun + TTL:
            leases.release(leases.LeaseRequest(share, Asked(name, own, TTL), True), options)
    print(had, renewed, collected)


def main(seconds: str, *mounts: str) -> None:
    command = [sys.executable, __file__, "work", seconds]
    running = [subprocess.Popen([*command, mount, f"owner-{number}"], stdout=subprocess.PIPE, text=True) for number, mount in enumerate(mounts)]
    told = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(mounts), "two had a lease, or a task failed: see above"
    every = [[int(word) for word in text.split()] for text in told]
    had, renewed, collected = (sum(counts) for counts in zip(*every))
    assert all(counts[0] for counts in every) and renewed and collected, every
    print(f"{had} times a lease was had by one of {len(mounts)}, {renewed} renewals, {collected} leases of others collected")


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(sys.argv[3], sys.argv[4], float(sys.argv[2]))
    else:
        main(*sys.argv[1:])
