# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook of docs/live.md and tasks of many items run as they stand, through Ansible, on a machine that runs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Callable

import pytest
import yaml

from .guest import Guest, Live, digest, digest_of

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "live.md"


def play(book: list, tmp_path: Path, environment: dict) -> str:
    path = tmp_path / "book.yml"
    path.write_text(json.dumps(book))
    done = subprocess.run(["ansible-playbook", "-v", str(path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_playbook_of_the_guide(make: Callable[..., Live], tmp_path: Path, ansible_environment: dict) -> None:
    live = make()
    tasks = [{"remotefs.storage.remotefs_volume": {"share": str(live.path), "name": "db01", "size": "20M", "snapshot": "before-upgrade"}}]
    others = [{"name": name, "size": "20M", "format": "qcow2"} for name in ("db01-log", "db01-archive")]
    tasks.append({"remotefs.storage.remotefs_volume": {"share": str(live.path), "volumes": others}})
    play([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], tmp_path, ansible_environment)
    log = json.dumps({"driver": "qcow2", "node-name": "disk1", "file": {"driver": "file", "filename": str(live.path / "db01-log")}})
    more = ("-blockdev", log, "-device", "virtio-blk-pci,drive=disk1")
    guest = live.guest = Guest(str(live.path / "db01.before-upgrade"), "qcow2", bytearray(20 << 20), more=more)
    guest.scribble(1)
    text = GUIDE.read_text().replace("40G", "40M").replace("/srv/volumes", str(live.path)).replace("/run/machines/db01.qmp", guest.socket)
    block = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[0]
    assert "changed=4" in play(yaml.safe_load(block), tmp_path, ansible_environment)
    assert "changed=0" in play(yaml.safe_load(block), tmp_path, ansible_environment)
    guest.data += bytes(20 << 20)
    guest.write(30 << 20, 4096, 5)
    assert len([path for path in live.path.iterdir() if path.name.startswith("db01.nightly")]) == 1
    assert all((live.path / f"{name}.consistent").exists() for name in ("db01", "db01-log", "db01-archive"))
    guest.kill()
    assert digest(str(live.path / "db01.consistent"), "qcow2") == digest_of(guest.data)


@pytest.mark.parametrize("parallel", [1, 4])
def test_items_that_share_a_monitor(make: Callable[..., Live], tmp_path: Path, ansible_environment: dict, parallel: int) -> None:
    """Two disks of one machine, and one of another: a monitor serves one client at a time."""
    live = make("qcow2")
    names = ["v", "w", "x"]
    made = [{"remotefs.storage.remotefs_volume": {"share": str(live.path), "format": "qcow2", "size": "4M", "volumes": [{"name": name} for name in names]}}]
    play([{"hosts": "localhost", "gather_facts": False, "tasks": made}], tmp_path, ansible_environment)
    second = json.dumps({"driver": "qcow2", "node-name": "disk1", "file": {"driver": "file", "filename": str(live.path / "w")}})
    live.start(more=("-blockdev", second, "-device", "virtio-blk-pci,drive=disk1"))
    other = Guest(str(live.path / "x"), "qcow2", bytearray(4 << 20))
    try:
        assert live.guest is not None
        sockets = dict(zip(names, (live.guest.socket, live.guest.socket, other.socket)))
        items = [{"volume": name, "name": point, "attachment": {"qmp": sockets[name]}} for point in ("a", "b") for name in names]
        both = {"share": str(live.path), "parallel": parallel, "snapshots": items}
        gone = {**both, "state": "absent", "snapshots": [item for item in items if item["name"] == "b"]}
        tasks = [{"remotefs.storage.remotefs_snapshot": wanted} for wanted in (both, gone)]
        assert "changed=2" in play([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], tmp_path, ansible_environment)
        assert {name for name in live.guest.opened() if not name.startswith("q")} == {"v", "v.a", "w", "w.a"}
    finally:
        other.kill()
