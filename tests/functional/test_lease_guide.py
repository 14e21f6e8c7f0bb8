# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of docs/leases.md as they stand, on a directory: a pipeline, one that is late, and a collector."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from .test_clones import content, write
from .test_documents import blocks, play
from .test_examples import replaced
from .test_leases import HOUR, left, let_pass
from .test_refusals import MIB, Store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "leases.md"
DISKS = ("ci-main-00", "ci-main-01")


@pytest.mark.slow
def test_the_playbooks_of_the_guide(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    places = {"runner": "localhost", "collector": "localhost", "/srv/volumes": str(store.path), "1G": "1M"}
    first, both, later, end, collecting = (json.loads(replaced(json.dumps(book), places)) for book in blocks(PAGE.read_text()))
    for book in (first, both, later, end, collecting):
        book[0]["gather_facts"] = False

    def played(book: list, job: int, *options: str) -> str:
        return play(book, tmp_path, ansible_environment, "-e", f"job={job}", *options)

    def refused(book: list, job: int) -> str:
        (tmp_path / "refused.yml").write_text(json.dumps(book))
        command = ["ansible-playbook", "-e", f"job={job}", str(tmp_path / "refused.yml")]
        done = subprocess.run(command, env=ansible_environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stdout
        return done.stdout

    store.present("ci-main-database", size=MIB)
    write(store, "ci-main-database", 9)
    mine = content(store, "ci-main-database")
    assert "changed=2" in played(first, 1) and "changed=0" in played(first, 1)
    for name in DISKS:
        write(store, name, 1)
    assert "changed=1" in played(later, 1) and [content(store, name) for name in DISKS] == [bytes(MIB)] * 2
    assert "job-1 holds it until" in refused(first, 2) and "job-1 holds it until" in refused(end, 2)
    assert "changed=0" in played(collecting, 2)

    let_pass(store, 4 * HOUR, "ci-main")  # that pipeline was killed, or so it seems
    told = played(collecting, 2, "--check")
    assert "changed=1" in told and store.info("ci-main-00")
    assert "changed=1" in played(collecting, 2) and "changed=2" in played(first, 2)
    assert "The disks of this job are gone. Start the pipeline again." in refused(later, 1)
    assert "job-2 holds it until" in refused(end, 1)
    write(store, "ci-main-00", 2)
    assert content(store, "ci-main-00") != bytes(MIB)
    assert "changed=1" in played(later, 2)

    assert "changed=1" in played(end, 2) and "changed=0" in played(end, 2)
    assert "changed=1" in played(both, 3) and "changed=0" in played(both, 3) and "job-3 holds it until" in refused(first, 4)
    assert "changed=1" in played(end, 3)
    assert content(store, "ci-main-database") == mine
    assert left(store) == [".remotefs/volumes/ci-main-database.json", "ci-main-database"]
