# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of docs/restore.md run as they stand, on two directories; and what users see of a restore: diffs, progress, refused words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .test_clones import content, write
from .test_documents import blocks
from .test_progress import call, wait_for
from .test_refusals import Store

MIB = 1 << 20
PAGE = Path(__file__).resolve().parents[2] / "docs" / "restore.md"


@pytest.fixture
def backup(tmp_path: Path) -> Store:
    """Three volumes with a snapshot of Monday, and written to since."""
    (tmp_path / "backup").mkdir()
    made = Store(tmp_path / "backup")
    for value, name in ((1, "db01"), (2, "web01"), (3, "log01")):
        made.present(name, size=2 * MIB)
        write(made, name, value)
        made.snapshot("monday", name)
        write(made, name, value + 100)
    return made


def run(tmp_path: Path, environment: dict, book: list, store: Store, backup: Store, *options: str) -> str:
    text = json.dumps(book).replace("nas1:/vols", str(store.path)).replace("nas2:/vols", str(backup.path)).replace("hypervisor", "localhost")
    (tmp_path / "guide.json").write_text(text)
    command = ["ansible-playbook", *options, str(tmp_path / "guide.json")]
    done = subprocess.run(command, env={**environment, "ANSIBLE_STDOUT_CALLBACK": "default"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def changed(said: str) -> int:
    found = re.search(r"changed=(\d+)", said)
    assert found is not None, said
    return int(found[1])


@pytest.mark.slow
def test_the_playbooks_of_the_guide(store: Store, backup: Store, tmp_path: Path, ansible_environment: dict) -> None:
    """Foretold and done. That they change nothing the second time, even when the backup is gone, is tested without Ansible."""
    one, every, role, _single_file = blocks(PAGE.read_text())  # test_access_points.py plays the last one
    books = [{**play, "gather_facts": False} for play in one + role + every]
    before = backup.state()
    said = run(tmp_path, ansible_environment, [books[0], books[2]], store, backup, "--check", "--diff")
    assert changed(said) == 2 and "+++ after: db01" in said and list(store.path.iterdir()) == [], said
    assert changed(run(tmp_path, ansible_environment, books, store, backup)) == 3
    shown = {name: content(store, name)[0] for name in ("db01", "web01", "web02", "log01")}
    assert shown == {"db01": 1, "web01": 102, "web02": 2, "log01": 103} and store.info("db01")["snapshots"][0]["name"] == "restored"
    assert backup.state() == before and store.info("web02")["labels"] == {"remotefs_role": "volumes"}


def test_what_the_module_refuses(store: Store, backup: Store) -> None:
    """Each with a code, and words that say what to do."""
    given = {"share": [str(store.path)], "name": "vol", "lock_timeout": 5}
    other = {"share": str(backup.path), "volume": "db01"}
    for source, words in (
        ({**other, "volume": None, "image": "/x"}, "share|image"),
        ({**other, "method": "linked"}, "option source.share: a linked clone lies on the share of its source"),
        ({"snapshot": "monday"}, "one of the following is required: volume, image, share"),
    ):
        told = call("remotefs_volume", {**given, "source": {key: value for key, value in source.items() if value is not None}})
        assert told["failed"] and told["error_code"] == "invalid_parameter" and words in told["msg"], told
    told = call("remotefs_volume", {**given, "source": {"share": str(backup.path)}})
    assert told["error_code"] == "volume_not_found" and told["msg"] == (
        f"source volume vol: it is not on {backup.path}; check the name, or create it first."
    )
    assert not (store.path / "vol").exists()


def test_a_copy_that_takes_long_shows_how_far_it_is(store: Store, backup: Store, tmp_path: Path) -> None:
    """It goes on in a process of its own, which the controller watches."""
    write(backup, "db01", 9, "0 2M")
    (tmp_path / "tmp").mkdir()
    given = {"share": [str(store.path)], "name": "db01", "source": {"share": str(backup.path)}, "speed": "1M", "lock_timeout": 20}
    answer = call("remotefs_volume", {**given, "_progress": {"seconds": 0.4, "patience": 60}}, TMPDIR=str(tmp_path / "tmp"))
    assert "_continue" in answer and not (store.path / "db01").exists(), answer
    place, figures = Path(answer["_continue"]["place"]), answer["_continue"]["progress"]
    wait_for((place / "result").exists)
    said = call("remotefs_volume", {**given, "_progress": {"place": str(place)}}, TMPDIR=str(tmp_path / "tmp"))
    assert said["changed"] and [one["step"] for one in said["actions"]] == ["write_record", "copy"], said
    last = json.loads((place / "progress").read_text())
    assert 0 < figures["done"] < figures["total"] and last["done"] == last["total"] >= 2 * MIB
    assert content(store, "db01") == bytes([9]) * 2 * MIB
    shutil.rmtree(place)
