# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress of a merge that a running machine makes: it is that of QEMU's job, and an interrupted playbook leaves the job to the next task."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest

from .guest import MIB, Live

LINE = re.compile(r"localhost: remotefs_snapshot: (\d+) %, .* of \d\.\d MiB, .*/s(, \d+ s left)?$")


def deletion(live: Live, path: Path, speed: str) -> list[str]:
    """The command of a playbook that deletes the snapshot ``a``."""
    assert live.guest is not None
    options = {"share": str(live.path), "volume": "v", "name": "a", "state": "absent", "speed": speed, "attachment": {"qmp": live.guest.socket}}
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [{"remotefs.storage.remotefs_snapshot": options, "register": "told"}]}
    play["tasks"] += [{"ansible.builtin.copy": {"content": "{{ told | to_json }}", "dest": str(path / "told.json")}}]
    (path / "book.json").write_text(json.dumps([play]))
    return ["ansible-playbook", "-e", f"ansible_python_interpreter={sys.executable}", str(path / "book.json")]


@pytest.fixture
def live(make: Callable[..., Live]) -> Live:
    made = make("raw")
    guest = made.start()
    for number, name in enumerate("ab", 1):
        guest.write(0, 3 * MIB, number)
        made.snapshot(name)
    guest.write(2 * MIB, MIB, 9)
    return made


def test_progress_is_that_of_the_job(live: Live, tmp_path: Path, ansible_environment: dict) -> None:
    assert live.guest is not None
    with live.guest.busy():
        done = subprocess.run(deletion(live, tmp_path, "300K"), env=ansible_environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_others, last = (line for line in done.stderr.splitlines() if "remotefs_snapshot: " in line)
    percent = LINE.match(first)
    assert percent and 0 < int(percent.group(1)) < 100 and "remotefs_snapshot: done, " in last, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["changed"] and not told["recovered"] and "commit" in [step["step"] for step in told["actions"]] and "_continue" not in told
    live.forget("a")
    live.require_right()
    live.require_nothing_left()


def test_what_holds_no_data_does_not_count(make: Callable[..., Live], tmp_path: Path, ansible_environment: dict) -> None:
    """The job is at the end of the disk at once, where all of the data is."""
    live = make("raw")
    guest = live.start()
    guest.write(len(live.data) - MIB, MIB, 1)
    live.snapshot("a")
    guest.write(len(live.data) - MIB, MIB, 2)
    live.snapshot("b")
    with guest.busy():
        done = subprocess.run(deletion(live, tmp_path, "80K"), env=ansible_environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [LINE.match(line) for line in done.stderr.splitlines() if "remotefs_snapshot: " in line]
    assert found[0] and int(found[0].group(1)) < 75, done.stderr
    live.forget("a")
    live.require_right()


def test_an_interrupted_playbook_leaves_the_job_to_the_next_task(live: Live, tmp_path: Path, ansible_environment: dict) -> None:
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(deletion(live, tmp_path, "64K"), env=ansible_environment, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True)
    until = time.monotonic() + 60
    while b" %, " not in (tmp_path / "err").read_bytes():
        assert process.poll() is None and time.monotonic() < until, (tmp_path / "err").read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert live.guest is not None
    (job,) = live.guest.qmp("query-jobs")
    assert job["status"] in ("running", "paused")
    done = live.delete("a", lock_timeout=10)
    assert done.recovered and not live.guest.qmp("query-jobs")
    live.forget("a")
    live.require_right()
    live.require_nothing_left()
