# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leftovers of killed tasks go after a grace. What somebody works at, has open or may own stays, and volumes keep their content."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.operations import leftovers, reading, share_contents
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock

from .conftest import with_two_snapshots
from .test_clones import content
from .test_examples import play
from .test_refusals import MIB, Store
from .test_return_detail import check
from .test_share_contents import CHANGES, killed_at, told

DAY = 86400
PART = "0123456789abcdef0123456789abcdef"


def clean(store: Store, grace: float = DAY, checks: bool = False) -> dict[str, str]:
    """What went, with "", and what stayed, with why. Check mode foretells it."""
    found = share_contents.find_leftovers(store.share)
    done = leftovers.clean(store.share, found, grace, Options(check=checks, lock_timeout=0.2, task=Task()))
    return {**{one.path: "" for one in done.removed}, **{one.path: why for one, why in done.kept}}


def plant(store: Store, path: str, age: float = 2 * DAY, content: bytes = b"left") -> Path:
    file = store.path / ".remotefs" / path
    file.parent.mkdir(exist_ok=True, mode=0o700)
    file.write_bytes(content)
    os.utime(file, (time.time() - age,) * 2)
    return file


def aged(store: Store, age: float = 2 * DAY) -> None:
    """All files of ours are that old, but for the clock of the share, which is new each time."""
    for path in (store.path / ".remotefs").rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (time.time() - age,) * 2)


def test_what_is_old_goes_and_what_is_young_stays(layered: Store) -> None:
    old = [plant(layered, f"tmp/{name}~0123456789ab") for name in ("vol", "gone", "@ci", "@~clock", ".try")]
    old += [plant(layered, f"images/{PART}{end}") for end in ("", ".state")]
    young = [plant(layered, f"tmp/{name}~0123456789ac", DAY - 60) for name in ("vol", ".try")]
    young += [plant(layered, "images/" + PART[::-1]), plant(layered, f"images/{PART[::-1]}.state", 60)]  # the newest of an image counts
    before, state = content(layered, "vol"), layered.state()
    expected = {str(path.relative_to(layered.path)): "" for path in old}
    expected.update({str(path.relative_to(layered.path)): "it is younger than the grace" for path in young})
    assert clean(layered, checks=True) == expected and layered.state() == state
    assert clean(layered) == expected
    assert not [path for path in old if path.exists()] and all(path.exists() for path in young)
    assert content(layered, "vol") == before
    assert sorted(os.listdir(layered.path / ".remotefs" / "locks")) == ["vol.lock"]
    assert all(clean(layered).values())


def test_what_a_task_works_at_stays(layered: Store) -> None:
    plant(layered, "tmp/vol~0123456789ab")
    with ShareDirectory(layered.share) as directory, VolumeLock(directory, "vol"):
        assert clean(layered) == {".remotefs/tmp/vol~0123456789ab": "a task works at it"}
    assert clean(layered) == {".remotefs/tmp/vol~0123456789ab": ""}


def test_what_a_process_has_open_stays(layered: Store) -> None:
    file = plant(layered, "tmp/gone~0123456789ab")
    child = os.fork()
    if child == 0:
        with file.open("rb"):
            time.sleep(60)
        os._exit(0)
    try:
        until = time.monotonic() + 10
        while not any(os.path.realpath(f"/proc/{child}/fd/{number}") == str(file) for number in os.listdir(f"/proc/{child}/fd")):
            assert time.monotonic() < until
        for checks in (True, False):
            assert clean(layered, checks=checks) == {".remotefs/tmp/gone~0123456789ab": f"process {child} has it open"}
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert clean(layered) == {".remotefs/tmp/gone~0123456789ab": ""}


def test_nothing_of_others_goes(layered: Store) -> None:
    """Names that are not of our grammar, things that are no files, and whatever lies in the share's own directory."""
    strange = [plant(layered, f"tmp/{name}") for name in ("vol", "vol~", "vol~0123456789AB", "vol~0123456789abc", "a b~0123456789ab", "~0123456789ab")]
    strange += [plant(layered, f"images/{name}") for name in (PART + "x", PART[1:], PART + ".other")]
    for name in ("README~0123456789ab", "vol~0123456789ab"):
        (layered.path / name).write_text("somebody's")
    folder = layered.path / ".remotefs" / "tmp"
    os.mkfifo(folder / "fifo~0123456789ab")
    (folder / "link~0123456789ab").symlink_to(layered.path / "vol")
    (folder / "folder~0123456789ab").mkdir()
    for path in folder.iterdir():
        if not path.is_dir():
            os.utime(path, (1, 1), follow_symlinks=False)
    os.utime(folder / "folder~0123456789ab", (1, 1))
    before = {path: path.lstat().st_ino for path in layered.path.rglob("*") if "locks" not in str(path)}
    found = clean(layered)
    assert set(found) == {f".remotefs/tmp/{name}~0123456789ab" for name in ("fifo", "link", "folder")} and all(found.values())
    assert {path: path.lstat().st_ino for path in layered.path.rglob("*") if "locks" not in str(path)} == before
    assert all(path.exists() for path in strange)


def test_a_second_name_of_a_volume_goes_alone(layered: Store) -> None:
    """A task that was killed between the two calls that give a file its name leaves it with two."""
    second = layered.path / ".remotefs" / "tmp" / "vol~0123456789ab"
    os.link(layered.path / "vol", second)
    os.utime(second, (1, 1))
    before = content(layered, "vol")
    assert clean(layered) == {".remotefs/tmp/vol~0123456789ab": ""}
    assert not second.exists() and content(layered, "vol") == before


def test_a_share_without_leftovers_is_not_touched(store: Store) -> None:
    (store.path / "disk").write_bytes(bytes(MIB))
    assert clean(store) == {} and not (store.path / ".remotefs").exists()


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_killed_task_left_goes(tmp_path: Path, change: str) -> None:
    """Killed at each call that changes names. No task comes afterwards but this one, and what the volume shows stays as it is."""
    number, left = 1, 0
    while True:
        path = tmp_path / "share"
        shutil.rmtree(path, ignore_errors=True)
        store = with_two_snapshots(path)
        if not killed_at(store, change, number):
            break
        aged(store)
        shows = shown(store)
        found = clean(store)
        left += len(found)
        assert not any(found.values()), (number, found)
        assert told(store)["leftovers"] == [] and shown(store) == shows, number
        number += 1
    assert number > 3 and left > 0


def shown(store: Store) -> dict[str, bytes]:
    """What each volume that can be read shows."""
    names = [one["name"] for one in reading.list_volumes(store.share, ["vol", "new"]) if "error_code" not in one]
    return {name: content(store, name) for name in names}


@pytest.mark.slow
def test_in_a_playbook(tmp_path: Path, ansible_environment: dict) -> None:
    store = Store(tmp_path / "share")
    store.path.mkdir()
    store.present(size=MIB)
    for age, name in ((2 * DAY, "a"), (5, "b")):
        plant(store, f"tmp/{name}~0123456789ab", age, b"x" * 5000)

    def of(**options: object) -> dict:
        return {"remotefs.storage.remotefs_housekeeping": {"share": "SHARE", **options}, "register": "done", "ignore_errors": True}

    gone = ["done.removed | map(attribute='file') | list == ['.remotefs/tmp/a~0123456789ab']", "done.kept | length == 1", "done.freed == 8192"]
    role = {"ansible.builtin.include_role": {"name": "remotefs.storage.housekeeping"}, "vars": {"housekeeping_shares": ["SHARE"], "housekeeping_grace": "1s"}}
    tasks = [
        {**of(), "check_mode": True, "diff": True},
        check("done is changed", *gone, "done.diff.after.leftovers | length == 1"),
        of(),
        check("done is changed", *gone, "done.actions == [{'step': 'unlink', 'share': done.removed[0].share, 'file': done.removed[0].file, 'bytes': 8192}]"),
        of(),
        check("done is not changed", "done.kept[0].why == 'it is younger than the grace'"),
        of(grace="soon"),
        check("done is failed", "done.error_code == 'invalid_parameter'"),
        of(share="/nowhere"),
        check("done is failed", "done.error_code == 'share_not_mounted'"),
        role,
        check("housekeeping_result.leftovers == ['.remotefs/tmp/b~0123456789ab']", "housekeeping_result.removed == []"),
        {**role, "vars": {**role["vars"], "housekeeping_remove": True}},
        check("housekeeping_result.removed | map(attribute='file') | list == ['.remotefs/tmp/b~0123456789ab']", "housekeeping_result.freed == 8192"),
    ]
    play(tasks, store.path, tmp_path, ansible_environment)
    assert os.listdir(store.path / ".remotefs" / "tmp") == []
