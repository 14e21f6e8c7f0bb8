# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Linux that writes files all the time through twenty snapshots, deletions and retention, for seconds here and for ten minutes at night.

Each file has its checksum in its name, and the guest says which it has synced. So a point must have all that were synced before it was
taken, whole, once its journal is replayed; and in the end the guest has them all, and its file system is clean.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots
from ansible_collections.remotefs.storage.plugins.module_utils.plan import retention

from .real_guest import Point, made
from .test_real_guest import NAMES, Site

SECONDS = float(os.environ.get("LIVE_SECONDS", "12"))
POINTS = 20
KEPT = 60  # files that the guest keeps
WRITER = f"""
i=0
while [ ! -e /run/stop ]; do
  i=$((i + 1))
  head -c $((i * 7919 % 150000 + 1)) /dev/urandom >/a/new
  mv /a/new /a/$i-$(md5sum </a/new | cut -d ' ' -f 1)
  sync
  echo $i >/run/done.new && mv /run/done.new /run/done
  rm -f /a/$((i - {KEPT}))-*
done
sync
echo ended >/run/ended
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A machine with two disks."""
    made()
    (tmp_path / "share").mkdir()
    one = Site(tmp_path / "share")
    yield one
    one.guest.end()


def files_in(point: Point, place: Path) -> dict[int, bool]:
    """The numbered files of a point once its journal is replayed, and whether each is whole."""
    checked = subprocess.run(["e2fsck", "-fy", str(point.copy)], capture_output=True, check=False)
    assert checked.returncode in (0, 1), checked.stdout
    place.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump / {place}", str(point.copy)], capture_output=True, check=True)
    found = {}
    for path in place.iterdir():
        number, dash, digest = path.name.partition("-")
        if dash:
            found[int(number)] = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == digest
    return found


def require_whole(point: Point, place: Path, synced: int) -> None:
    """All files that were synced by then are there and whole, but for those that the guest has removed since."""
    found = files_in(point, place)
    for number in range(max(1, max(found) - KEPT + 2), synced + 1):
        assert found.get(number), f"file {number} of {synced} is {'broken' if number in found else 'missing'}"


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 3 + 600)
def test_a_guest_writes_through_twenty_snapshots(site: Site, tmp_path: Path) -> None:
    chance, volume = random.Random(3), NAMES[0]
    site.guest.run(f"cat >/run/writer <<'end'\n{WRITER}\nend\nsh /run/writer >/run/log 2>&1 &")
    synced: dict[str, int] = {}
    began = time.monotonic()
    for count in range(POINTS):
        while time.monotonic() < began + SECONDS * count / POINTS:
            time.sleep(0.05)
        name = f"p{count}"
        synced[name] = int(site.guest.run("cat /run/done 2>/dev/null || echo 0"))
        site.take(name, quiesce=chance.choice(["false", "true", "auto"]))
        if len(synced) > 3 and chance.random() < 0.4:
            gone = chance.choice(list(synced))
            snapshots.delete(site.where, volume, [gone], site.options())
            del synced[gone]
        if len(synced) > 6:
            snapshots.retain(site.where, volume, retention.parse({"match": "*", "last": 4}), site.options())
            synced = dict(list(synced.items())[-4:])
    site.guest.run("touch /run/stop; while [ ! -e /run/ended ]; do sleep 0.1; done")
    last = int(site.guest.run("cat /run/done"))
    assert last > POINTS, "the guest wrote nearly nothing"
    for number, (name, by_then) in enumerate(synced.items()):
        require_whole(site.point(volume, name), tmp_path / f"point{number}", by_then)
    site.guest.run("umount /a && sync")
    site.guest.end()
    snapshots.delete(site.where, volume, list(synced), site.options(attachment=None))
    present = Point(str(site.path / volume), "raw", tmp_path / "present")
    assert not present.needs_recovery and present.is_clean()
    require_whole(present, tmp_path / "files", last)
