# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of docs/ci.md as they stand, on a directory, with an image of this host."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from .test_clones import content, write
from .test_documents import blocks, play
from .test_examples import replaced
from .test_inventory import environment
from .test_leases import collect, let_pass
from .test_refusals import MIB, Store, store

__all__ = ["store"]  # a fixture

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ci.md"
TWENTY, MACHINES, LATE, HOSTS = blocks(PAGE.read_text())

pytestmark = pytest.mark.slow


def workers(store: Store) -> list[str]:
    return sorted(path.name for path in store.path.glob("ci-*") if "." not in path.name)


def test_twenty_workers(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    """Made from the image, written to, shown as made, removed; and a killed pipeline's go with the next one."""
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(bytes([7]) * MIB + bytes(MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    digits = hashlib.sha256(image.read_bytes()).hexdigest()
    places = {"/srv/volumes": str(store.path), "https://images.example.org/debian/disk.qcow2": str(image), "sha256:6d5f1a...": f"sha256:{digits}"}
    book = json.loads(replaced(json.dumps(TWENTY), places))

    def played(state: str, job: int = 4711, branch: str = "main") -> str:
        return play(book, tmp_path, ansible_environment, "-e", f"branch={branch}", "-e", f"job={job}", "-e", f"to={state}")

    said = played("present")
    assert "ci-main-19.pristine" in said and workers(store) == [f"ci-main-{number:02}" for number in range(20)]
    assert content(store, "ci-main-07") == raw.read_bytes()
    room = sum(path.stat().st_blocks * 512 for path in store.path.glob("ci-main-07*"))
    assert room <= 0.45 * MIB, room
    write(store, "ci-main-07", 9)
    assert "changed=1" in played("reset") and content(store, "ci-main-07") == raw.read_bytes()
    let_pass(store, 8 * 3600, "ci-main")
    played("present", job=4712, branch="next")
    assert workers(store) == [f"ci-next-{number:02}" for number in range(20)]
    played("absent", job=4712, branch="next")
    assert workers(store) == [] and [path.name for path in store.path.glob("golden-*") if "." not in path.name] == [f"golden-{digits[:12]}"]


def test_too_late(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    store.present("debian-12", size=MIB)
    write(store, "debian-12", 7)
    store.snapshot("ready", "debian-12")
    book = json.loads(replaced(json.dumps(LATE), {"/srv/volumes": str(store.path)}))
    play(book, tmp_path, ansible_environment)  # there was none, so it is made
    assert workers(store) == ["ci-main-00", "ci-main-01"]
    write(store, "ci-main-00", 9)
    play(book, tmp_path, ansible_environment)
    assert content(store, "ci-main-00")[:1] == b"\x07"
    let_pass(store, 8 * 3600, "ci-main")
    assert collect(store).leases == ("ci-main",)
    play(book, tmp_path, ansible_environment)
    assert workers(store) == ["ci-main-00", "ci-main-01"]


def test_hosts(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    """Both commands under the source of the inventory, on an environment of that name whose first machine runs."""
    environment(store, "ci-main", 2)
    environment(store, "other")
    store.present("ci-main-00", labels={"remotefs_worker": "0", "remotefs_address": "192.0.2.7:2222"})
    (tmp_path / "ci.remotefs.yml").write_text(replaced(json.dumps(HOSTS), {"/srv/volumes": str(store.path)}))
    said = "{{ [inventory_hostname, ansible_host, ansible_port, ansible_user] | join(' ') }}"
    (tmp_path / "test.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.debug": {"msg": said}}]}]))
    (commands,) = [block for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL) if "remotefs.yml" in block]
    told = []
    for line in commands.splitlines():
        argv = shlex.split(line.replace("$ ", "", 1))
        done = subprocess.run(argv, cwd=tmp_path, env=ansible_environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
        told.append(" ".join(done.stdout.split()))
    assert "@environment_ci_main: | |--ci-main-00 | |--ci-main-01" in told[0] and "@reachable: | |--ci-main-00" in told[0] and "other" not in told[0]
    assert '"ci-main-00 192.0.2.7 2222 root"' in told[1] and "ci-main-01" not in told[1]
