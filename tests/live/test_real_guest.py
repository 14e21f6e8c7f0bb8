# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Linux with its own agent, frozen for a snapshot of two disks. A point of a frozen guest needs no recovery, and has what was never synced.

That is compared with a point of the same guest that was not frozen: there a file system needs recovery, and such a file is empty or not
there. One boot serves most of it.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml

from ansible_collections.remotefs.storage.plugins.module_utils.apply.guardians import GuardianProcess
from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import groups, reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .guest import named
from .instants import instants, killed_at
from .real_guest import Point, RealGuest, made
from .test_guide import GUIDE, play

NAMES = ("db", "log")
LENGTH = 50000  # bytes of a file that is never synced


class Site:
    """A machine with a guest, on two volumes of a share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.share = Share(str(path), str(path), "directory")
        self.where = Candidates((self.share,))
        self.warned: list[str] = []
        for name in NAMES:
            volumes.ensure_present(updating.VolumeRequest(self.where, DesiredVolume(name, size=32 << 20, format="raw")), Options())
            subprocess.run(["mkfs.ext4", "-q", "-F", str(path / name)], check=True)
        self.guest, self.attachment = self.boot([(str(path / name), "raw") for name in NAMES])

    def boot(self, disks: list) -> tuple[Any, Attachment]:
        """Start the machine. Returns its guest, and how it is reached."""
        guest = RealGuest(disks)
        return guest, named(guest.monitor)

    def options(self, **changes: Any) -> Options:
        """Those of a task with this machine. Its agent is found through the monitor."""
        return Options(**{"lock_timeout": 5, "attachment": self.attachment, "task": Task(warn=self.warned.append), **changes})

    def together(self, name: str, **options: Any) -> list:
        """One snapshot of both."""
        return groups.take_group(self.where, list(NAMES), DesiredSnapshot(name), self.options(**options))

    def take(self, name: str, **options: Any) -> Any:
        """One of the first."""
        return snapshots.take(snapshots.SnapshotRequest(self.where, NAMES[0], DesiredSnapshot(name)), self.options(**options))

    def write(self, name: str) -> None:
        """A file on each disk that stays in the guest's memory."""
        self.guest.run(f"for disk in a b; do head -c {LENGTH} /dev/zero | tr '\\0' x >/$disk/{name}; done")

    def point(self, volume: str, name: str) -> Point:
        """A snapshot, as far as it is on the share."""
        (told,) = reading.list_volumes(self.share, [volume])
        by_file = {image["file"]: image for image in told["chain"]}
        (file,) = [one["file"] for one in told["snapshots"] if one["name"] == name]
        below = by_file[by_file[file]["backing_file"]]
        return Point(str(self.path / below["file"]), below["format"], self.path / "copy")

    def told(self) -> list[dict]:
        """The snapshots of the first, as info tells them."""
        (told,) = reading.list_volumes(self.share, [NAMES[0]])
        return told["snapshots"]

    def require_difference(self) -> None:
        """A point of a guest that runs is like a power cut."""
        self.write("before")
        self.together("running")
        for volume in NAMES:
            point = self.point(volume, "running")
            assert point.needs_recovery and len(point.read("/before")) < LENGTH, "this guest shows no difference, and the rest of the test proves nothing"
        self.guest.run("sync")

    def require_going(self) -> None:
        """The guest writes, and its writes reach the disk."""
        assert self.guest.ask("guest-fsfreeze-status") == "thawed"
        assert "done" in self.guest.run("echo x >/a/going && sync && echo x >/b/going && sync && echo done")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made()
    share = tmp_path / "share"
    share.mkdir()
    one = Site(share)
    yield one
    one.guest.end()


@pytest.mark.slow
def test_a_guest_that_is_frozen_for_a_moment(site: Site) -> None:
    site.require_difference()
    # Its agent is asked in check mode, and nothing is frozen.
    assert [one.quiesced for one in site.together("frozen", quiesce="true", check=True)] == [(True, "")] * 2
    # One of a frozen guest has all, while the guest writes.
    site.guest.run("(while sleep 0.01; do date >>/a/busy; date >>/b/busy; sync; done) >/dev/null 2>&1 &")
    site.write("unsynced")
    assert [one.quiesced for one in site.together("frozen", quiesce="true")] == [(True, "")] * 2
    site.require_going()
    for volume in NAMES:
        point = site.point(volume, "frozen")
        assert not point.needs_recovery and point.is_clean() and point.read("/unsynced") == b"x" * LENGTH, volume
    # Somebody else has frozen it, and it stays so.
    site.guest.ask("guest-fsfreeze-freeze")
    with pytest.raises(InUse, match="frozen already, by somebody else"):
        site.take("a", quiesce="true")
    assert site.guest.ask("guest-fsfreeze-status") == "frozen"
    site.guest.ask("guest-fsfreeze-thaw")
    # Killed while it is frozen: the guardian lets it go on.
    found = [one.number for one in instants(lambda: site.take("b", quiesce="true")) if one.what == "before blockdev-snapshot"]
    killed_at(lambda: site.take("c", quiesce="true"), found[0], "group", 0, kind=GuardianProcess)
    time.sleep(1)
    site.require_going()
    # The guardian was killed, too: the next task does.
    assert site.take("d").recovered and not [text for text in site.warned if "left it so" in text]
    killed_at(lambda: site.take("e", quiesce="true"), found[0], "guardian too", 0, kind=GuardianProcess)
    time.sleep(0.5)
    assert site.guest.ask("guest-fsfreeze-status") == "frozen"
    assert site.take("f").recovered and [text for text in site.warned if "left it so" in text]
    site.require_going()
    # The agent is gone and comes back: with auto there is a snapshot all the same.
    site.guest.run("(sleep 0.2; kill -STOP $(pidof qemu-ga)) >/dev/null 2>&1 &")
    time.sleep(1)
    with pytest.raises(InUse, match="does not answer in time"):
        site.take("g", quiesce="true")
    done = site.take("g", quiesce="auto")
    assert done.changed and "does not answer in time" in done.quiesced.reason


@pytest.mark.slow
def test_the_playbook_of_the_guide(site: Site, tmp_path: Path, ansible_environment: dict) -> None:
    """The second one: that about a frozen guest. It runs as it stands, through Ansible, and again."""
    text = GUIDE.read_text().replace("/srv/volumes", str(site.path)).replace("/run/machines/db01.qmp", site.guest.monitor)
    text = text.replace("db01-log", "log").replace("db01", "db")
    block = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
    site.write("unsynced")
    told = play(yaml.safe_load(block), tmp_path, ansible_environment)
    assert "changed=2" in told and "frozen: True" in told
    site.require_going()
    for volume in NAMES:
        point = site.point(volume, "frozen")
        assert not point.needs_recovery and point.is_clean() and point.read("/unsynced") == b"x" * LENGTH, volume
    assert "changed=0" in play(yaml.safe_load(block), tmp_path, ansible_environment)
