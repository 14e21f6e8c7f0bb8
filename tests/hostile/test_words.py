# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks where modules on a plain directory do not come: leases, records of interrupted tasks, names taken at the last moment."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from unittest import mock

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import changes, errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply import recovery
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import lock
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes.look import Look

from . import images, places, text
from .scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    found = Scene(tmp_path)
    found.honest()
    return found


def opened(scene: Scene, **share: bool) -> ShareDirectory:
    return ShareDirectory(Share(str(scene.share), str(scene.share), "cifs", **share))


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": "../../{share}/trap"},  # becomes a path: /proc/PID/stat
        {"pid": True},
        {"pid": 1.5},
        {"host": ["x"]},
        {"host": "\x1b]0;owned\x07"},
        {"since": None},
        {"more": "than there is"},
        None,
    ],
)
def test_the_owner_of_a_lease_is_not_believed_whatever_it_says(scene: Scene, changes: dict | None) -> None:
    """A lease in the name of this very host sends nobody to a pipe and shows nobody control characters."""
    (scene.share / "trap").mkdir()
    os.mkfifo(scene.share / "trap" / "stat")
    owner = {**lock.Owner.of_this_process()._asdict(), **(changes or {})}
    owner["pid"] = str(owner["pid"]).replace("{share}", str(scene.share)) if "{share}" in str(owner["pid"]) else owner["pid"]
    data = text.DEEP if changes is None else json.dumps(owner).encode()
    (scene.private("locks") / "vol.lease").write_bytes(data)
    with opened(scene, locks_visible=False) as directory, pytest.raises(errors.LockTimeout) as caught:
        lock.VolumeLock(directory, "vol", timeout=0.1).__enter__()
    assert "another task" in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("thing", ["symlink", "hard link", "FIFO"])
def test_a_lease_is_written_to_nothing_that_stands_there(scene: Scene, thing: str) -> None:
    path = scene.private("locks") / "vol.lease"
    make = {
        "symlink": lambda: path.symlink_to(scene.victim),
        "hard link": lambda: os.link(scene.victim, path),
        "FIFO": lambda: os.mkfifo(path),
    }
    make[thing]()
    before = scene.harm()
    with opened(scene, locks_visible=False) as directory, pytest.raises(errors.LockTimeout):
        lock.VolumeLock(directory, "vol", timeout=0.1).__enter__()
    assert scene.harm() == before


@pytest.mark.parametrize("step", [{"type": "Unlink", "file": "other"}, {"type": "Truncate", "file": "other", "size": 0}])
def test_the_record_of_an_interrupted_task_reaches_no_other_volume(scene: Scene, step: dict) -> None:
    scene.raw("other")
    scene.record("other", formats={"other": "raw"})
    image = {"file": "vol", "format": "raw", "size": images.SIZE}
    volume = {"name": "vol", "chain": [image], "snapshots": [], "info": False, "parent": None}
    intent = {"operation": "delete_volume", "started": "now", "steps": [step], "before": volume, "after": None, "proofs": {}, "group": None}
    scene.record(formats={"vol": "raw"}, intent=intent)
    with opened(scene) as directory, pytest.raises(errors.NeedsRecovery, match="belongs to volume other"):
        recovery.find_interrupted(Look(directory, "vol"))


def test_records_are_given_up_only_where_the_user_says_so() -> None:
    """And warnings reach the user: both were once one argument of a call in the wrong place."""
    module = mock.Mock(check_mode=False, _verbosity=0)
    module.params = {"lock_timeout": 1.0, "break_lock": False, "assume_unused": False, "parallel": None, "log_path": None, "speed": "0", "timeout": None}
    options = changes.options(module)
    assert options.discard is False
    options.task.warn("a word")
    module.warn.assert_called_once_with("a word")


@pytest.mark.parametrize("links", [True, False], ids=["link", "rename"])
@pytest.mark.parametrize("name", [name for name in places.THINGS if name not in places.DEVICES])
def test_a_new_file_takes_no_name_that_somebody_took_meanwhile(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str, links: bool
) -> None:
    """Between the look whether the name is free and the moment when it is given; also where the file system has no hard links."""

    def refused(*_args: object, **_more: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no hard links")

    with opened(scene) as directory:
        fd, temporary = directory.create_temporary("new")
        os.close(fd)
        target = scene.share / "new"
        places.THINGS[name][1](target, scene)
        before, thing = scene.harm(), target.lstat()
        if not links:
            monkeypatch.setattr(os, "link", refused)
        with pytest.raises(errors.Conflict):
            directory.publish(temporary, "new")
        after = target.lstat()
        assert (after.st_ino, stat.S_IFMT(after.st_mode)) == (thing.st_ino, stat.S_IFMT(thing.st_mode))
        assert scene.harm() == before
