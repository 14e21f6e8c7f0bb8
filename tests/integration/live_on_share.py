# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine runs on a volume of a real share and writes, and tasks on its host work on that volume. Contents are compared with a model.

    python live_on_share.py FORMAT MOUNT [SECOND MOUNT OF THE SAME SHARE]

Through the second mount, as from another host, the machine's lock bytes must keep tasks out, and info must show the chain as it is.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the machine of tests/live

from live.guest import MIB, Live  # noqa: E402

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates, find_candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot

BASE = "/var/lib/remotefs/mnt"


def work(live: Live) -> None:
    """Snapshots, deletions of an older, a middle and the newest one, and growth, while the machine writes; then with its writes at rest."""
    guest = live.guest
    assert guest is not None
    with guest.busy():
        for name in ("b1", "b2", "b3"):
            live.take(name)
        live.delete("b2")
        live.delete("b3")
    live.delete("b1")
    for seed, name in enumerate(("s1", "s2", "s3")):
        guest.scribble(seed)
        live.snapshot(name)
    guest.scribble(10)
    live.delete("s2", "s3")
    live.forget("s2", "s3")
    live.grow(len(live.data) + MIB)
    guest.scribble(20)
    live.require_right()


def from_another_host(live: Live, where: Candidates) -> None:
    """Nothing is done from there while the machine runs, and what info shows is true."""
    request = snapshots.SnapshotRequest(where, "v", DesiredSnapshot("elsewhere"))
    for check in (True, False):
        try:
            snapshots.take(request, Options(check=check, lock_timeout=5))
        except errors.InUse as error:
            print(f"   from the other host: {error}")
        else:
            raise AssertionError("a task of another host changed the volume of a machine that runs")
    until = time.monotonic() + 40  # as long as an NFS client may remember names
    while True:
        (told,) = reading.list_volumes(where.shares[0], ["v"])
        if [image["file"] for image in told.get("chain", [])] == [image["file"] for image in live.info()["chain"]]:
            return
        assert time.monotonic() < until, told
        time.sleep(0.5)


def main(image_format: str, mount: str, other: str | None = None) -> None:
    place, began = Path(mount, "live"), time.monotonic()
    place.mkdir()
    live = Live(place, image_format, where=find_candidates([str(place)], BASE))
    live.start()
    try:
        work(live)
        if other is not None:
            from_another_host(live, find_candidates([str(Path(other, place.name))], BASE))
    finally:
        if live.guest is not None:
            live.guest.quit()
    live.guest = None
    live.require_right()
    live.require_nothing_left()
    assert live.delete(*live.points, assume_unused=not live.share.locks_visible).changed
    live.points.clear()
    live.require_right()
    shutil.rmtree(place)
    print(f"a machine on {live.share.fstype}, {image_format} base: right, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
