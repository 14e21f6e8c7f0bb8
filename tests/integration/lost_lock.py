# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client is cut off in the middle of a task, the server gives its lock away, and the client comes back: the task must stop.

    python lost_lock.py MOUNT1 MOUNT2 CUT MEND       CUT and MEND: shell commands for the first client's connection

The first client takes a snapshot and loses its connection at one of the points where it asks whether the lock is still its own.
Through the second client another task waits for the lock, ends what the first one began, and takes a snapshot of its own. Then
the connection is mended: the first task must say that it lost the lock and change nothing; run again it succeeds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from two_clients import MIB, ONE_TURN, io, turn

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import find_candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.locking import Locks
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot

POINTS = (1, 6)  # before anything is recorded, and after the overlay was filled


def listing(mount: str) -> dict:
    """What the server has, as a client sees it that did not change it."""
    files = [path for path in Path(mount).rglob("*") if path.is_file() and path.parent.name != "locks"]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def main(one: str, two: str, cut: str, mend: str) -> None:
    assert turn(one, "create", str(4 * MIB))["changed"]
    io(f"{one}/turns", "raw", "write -P 1 0 1M")
    for point in POINTS:
        lose_at(point, one, two, cut, mend)
    names = [snapshot["name"] for snapshot in turn(one, "snapshot", "last")["volume"]["snapshots"]]
    assert sorted(names) == sorted(["last"] + [f"{who}{point}" for point in POINTS for who in ("cut", "other")]), names
    told = io(f"{one}/turns.last", "qcow2", "read -P 1 0 1M")
    assert "Pattern verification failed" not in told, told
    assert turn(two, "absent")["changed"]


def lose_at(point: int, one: str, two: str, cut: str, mend: str) -> None:
    real, left, seen = Locks.verify, [point], []

    def asked(locks: Locks, name: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            subprocess.run(cut, shell=True, check=True)
            seen.append(others_turn(two, f"other{point}"))
            seen.append(listing(two))
            subprocess.run(mend, shell=True, check=True)
        real(locks, name)

    shares = find_candidates([one], "/var/lib/remotefs/mnt")
    request = snapshots.SnapshotRequest(shares, "turns", DesiredSnapshot(f"cut{point}"))
    Locks.verify = asked  # type: ignore[method-assign] # looks on at each question, and asks it
    told = ""
    try:
        snapshots.take(request, Options())
    except errors.LockTimeout as error:
        told = str(error)
    else:
        raise AssertionError(f"the task did not notice at point {point} that it had lost its lock")
    finally:
        Locks.verify = real  # type: ignore[method-assign] # as it was
    assert "it was lost to " in told, told
    assert len(seen) == 2, told
    assert listing(two) == seen[1], f"the task went on after it had lost its lock at point {point}"
    again = turn(one, "snapshot", f"cut{point}")
    assert again["changed"] != (f"cut{point}" in seen[0]), "what was begun was either finished or undone"
    print(f"lost at point {point}: the other one waited {seen[0]['waited']:.1f} s. {told}")


def others_turn(mount: str, name: str) -> dict:
    """As ``turn``, but it may recover what the first task began."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", ONE_TURN, mount, "snapshot", name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"waited": time.monotonic() - started, **dict.fromkeys(names_in(mount), True)}


def names_in(mount: str) -> list[str]:
    return [file.partition(".")[2] for file in os.listdir(mount) if file.startswith("turns.")]


if __name__ == "__main__":
    main(*sys.argv[1:])
