# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that remembers that a file was not there takes a snapshot: it must not lose another client's first one.

    python remembered_absence.py [--must-remember] MOUNT1 MOUNT2

The second client looks for the volume's ``.info``, which is not there, begins its task and waits for the lock, which the first
one holds while it takes the first snapshot. When the second one gets the lock, a plain look still finds nothing, on NFS for half
a minute (with --must-remember it has to, or nothing is tested). Both snapshots must be there afterwards, each with its own
content, through both clients.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from two_clients import MIB, ONE_TURN, io, turn

from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import find_candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.locking import Locks
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot

# Before its turn: say when it waits, and what a plain look finds when the lock was had.
WAITING_TURN = (
    """
import os, sys
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock

attempt, write = VolumeLock._try, VolumeLock._write_token
info = sys.argv[1] + "/turns.info"
assert not os.path.exists(info)

def tried(lock):
    had = attempt(lock)
    if not had:
        print("waiting", file=sys.stderr, flush=True)
    return had

def written(lock, fd, token):
    print("seen" if os.path.exists(info) else "remembered", file=sys.stderr, flush=True)
    write(lock, fd, token)

VolumeLock._try, VolumeLock._write_token = tried, written
"""
    + ONE_TURN
)


def main(one: str, two: str, must_remember: bool) -> None:
    assert turn(one, "create", str(4 * MIB))["changed"]
    io(f"{one}/turns", "raw", "write -P 1 0 1M")
    assert os.stat(f"{two}/turns").st_size == 4 * MIB and not os.path.exists(f"{two}/turns.info")
    second, told = snapshots_one_after_the_other(one, two)
    assert told in ("seen", "remembered"), told
    assert told == "remembered" or not must_remember, "the second client sees the new .info at once, so that this tests nothing"
    assert [snapshot["name"] for snapshot in second["snapshots"]] == ["first", "second"], second
    for mount, value in ((one, 2), (two, 3)):  # the present, and what a third snapshot makes a point
        io(f"{mount}/turns.{'second' if value == 2 else 'third'}", "qcow2", f"write -P {value} 0 1M")
        turn(mount, "snapshot", "third" if value == 2 else "fourth")
    for mount in (one, two):
        for name, image_format, value in (("turns", "raw", 1), ("turns.second", "qcow2", 2), ("turns.third", "qcow2", 3)):
            read = io(f"{mount}/{name}", image_format, f"read -P {value} 0 1M")
            assert "Pattern verification failed" not in read, f"{mount}/{name}: {read}"
    assert turn(two, "absent")["changed"] and not turn(one, "absent")["changed"]
    print(f"a plain look of the second client, under the lock: .info {told}; both first snapshots are there, all points right")


def snapshots_one_after_the_other(one: str, two: str) -> tuple[dict, str]:
    """The first client's task starts the second's once it has the lock, and ends while that one waits."""
    real, started = Locks.verify, []

    def asked(locks: Locks, name: str) -> None:
        if not started:
            argv = [sys.executable, "-c", WAITING_TURN, two, "snapshot", "second"]
            started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            assert started[0].stderr.readline() == "waiting\n"
        real(locks, name)

    shares = find_candidates([one], "/var/lib/remotefs/mnt")
    Locks.verify = asked  # type: ignore[method-assign] # looks on at each question, and asks it
    snapshots.take(snapshots.SnapshotRequest(shares, "turns", DesiredSnapshot("first")), Options())
    Locks.verify = real  # type: ignore[method-assign] # as it was
    out, err = started[0].communicate()
    assert started[0].returncode == 0, err
    return json.loads(out)["volume"], err.split()[-1]


if __name__ == "__main__":
    main(*sys.argv[-2:], must_remember="--must-remember" in sys.argv)
