# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of docs/live.md and tasks of many items run as they stand, through Ansible, on a machine that runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Callable

import pytest
import yaml

from .guest import Guest, Live, Qmp, digest, digest_of
from .libvirtd import DomainGuest, Libvirtd, one_disk

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "live.md"


def play(book: list, tmp_path: Path, environment: dict) -> str:
    path = tmp_path / "book.yml"
    path.write_text(json.dumps(book))
    done = subprocess.run(["ansible-playbook", "-v", str(path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def book_of(play_name: str, others: dict[str, str]) -> list:
    """The playbook of the guide whose play has this name, with other words in place of some."""
    for text in re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        if yaml.safe_load(text)[0]["name"] == play_name:
            for word, other in others.items():
                assert word in text
                text = text.replace(word, other)
            return yaml.safe_load(text)
    raise AssertionError(f"the guide has no play {play_name}")


def have(share: Path, tmp_path: Path, ansible_environment: dict, **more: str) -> None:
    """The volume that the guide is about."""
    made = {"remotefs.storage.remotefs_volume": {"share": str(share), "name": "db01", "size": "20M", "format": "qcow2", **more}}
    play([{"hosts": "localhost", "gather_facts": False, "tasks": [made]}], tmp_path, ansible_environment)


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


def work_by_the_role(share: Path, libvirtd: Libvirtd, tmp_path: Path, ansible_environment: dict) -> None:
    """The role asks an expression which domain has the volume."""
    role = {"role": "remotefs.storage.snapshots", "snapshots_share": str(share), "snapshots_name": "by-the-role", "snapshots_snapshots": ["db01"]}
    role["snapshots_attachment"] = f"{{libvirt: {{uri: '{libvirtd.uri}', domain: name}}}}"
    grouped = {**role, "snapshots_group": True, "snapshots_name": "in-a-group"}
    book = [{"hosts": "localhost", "gather_facts": False, "roles": [role, grouped]}]
    assert "changed=2" in play(book, tmp_path, ansible_environment)
    gone = {**role, "snapshots_state": "absent", "snapshots_names": ["by-the-role", "in-a-group"], "snapshots_name": ""}
    assert "changed=1" in play([{**book[0], "roles": [gone]}], tmp_path, ansible_environment)


def run_the_examples(share: Path, libvirtd: Libvirtd, tmp_path: Path, ansible_environment: dict) -> None:
    """Those of the module's documentation that name a domain."""
    text = (GUIDE.parents[1] / "plugins" / "modules" / "remotefs_snapshot.py").read_text().split('EXAMPLES = r"""')[1].split('"""')[0]
    tasks = [task for task in yaml.safe_load(text) if "libvirt" in json.dumps(task)]
    for task in tasks:
        task["remotefs.storage.remotefs_snapshot"]["share"] = str(share)
        task["remotefs.storage.remotefs_snapshot"]["attachment"]["libvirt"]["uri"] = libvirtd.uri
    assert f"changed={len(tasks)}" in play([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], tmp_path, ansible_environment)


@pytest.mark.parametrize("runs", [True, False], ids=["running", "off"])
def test_the_playbook_for_a_domain(libvirtd: Libvirtd, tmp_path: Path, ansible_environment: dict, runs: bool) -> None:
    """The module's Python has no binding of libvirt: it goes on under the system's."""
    share = tmp_path / "share"
    share.mkdir()
    have(share, tmp_path, ansible_environment, snapshot="before-upgrade")
    libvirtd("define", "/dev/stdin", given=one_disk("db01", str(share / "db01.before-upgrade"), "qcow2"))
    guest = DomainGuest(libvirtd, "db01", bytearray(20 << 20))
    try:
        if runs:
            libvirtd("start", "db01")
            guest.scribble(1)
        else:
            run_the_examples(share, libvirtd, tmp_path, ansible_environment)
        domain = f"{{libvirt: {{uri: '{libvirtd.uri}', domain: db01}}}}"
        text = GUIDE.read_text().replace("40G", "40M").replace("/srv/volumes", str(share)).replace("{libvirt: {domain: db01}}", domain)
        block = next(one for one in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if "libvirt" in one)
        assert "changed=3" in play(yaml.safe_load(block), tmp_path, ansible_environment)
        assert "changed=0" in play(yaml.safe_load(block), tmp_path, ansible_environment)
        if runs:
            work_by_the_role(share, libvirtd, tmp_path, ansible_environment)
        assert f"{share}/db01.nightly" in libvirtd("dumpxml", "--inactive", "db01")
        guest.data += bytes(20 << 20)
        if not runs:
            libvirtd("start", "db01")
        guest.write(30 << 20, 4096, 5)
        guest.kill()
        (active,) = share.glob("db01.nightly-*")
        assert digest(str(active), "qcow2") == digest_of(guest.data)
    finally:
        libvirtd("undefine", "db01")


def test_the_readme_while_a_domain_runs(libvirtd: Libvirtd, tmp_path: Path, ansible_environment: dict) -> None:
    """The README names no domain: libvirt is asked which one has the volume. This one has no agent, so that nobody freezes it."""
    share = tmp_path / "share"
    share.mkdir()
    have(share, tmp_path, ansible_environment)
    libvirtd("define", "/dev/stdin", given=one_disk("db01", str(share / "db01"), "qcow2"))
    guest = DomainGuest(libvirtd, "db01", bytearray(20 << 20))
    section = (GUIDE.parents[1] / "README.md").read_text().split("## While the machine runs")[1]
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert "qemu:///system" in block
    book = [{"hosts": "localhost", "gather_facts": False, "vars": {"vols": str(share)}, "tasks": yaml.safe_load(block.replace("qemu:///system", libvirtd.uri))}]
    try:
        libvirtd("start", "db01")
        guest.scribble(1)
        point = digest_of(guest.data)
        assert "changed=1" in play(book, tmp_path, ansible_environment)
        assert "changed=0" in play(book, tmp_path, ansible_environment)
        guest.scribble(2)
        guest.kill()
        (active,) = share.glob("db01.nightly-*")
        assert digest(str(active), "qcow2") == digest_of(guest.data) and digest(str(share / "db01"), "qcow2") == point
    finally:
        libvirtd("undefine", "db01")


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


def test_a_machine_started_on_its_volume(tmp_path: Path, sockets: Path, ansible_environment: dict) -> None:
    (tmp_path / "share").mkdir()
    book = book_of("Start a machine on its volume", {"/srv/volumes": str(tmp_path / "share"), "/run/machines": str(sockets)})
    try:
        assert "changed=2" in play(book, tmp_path, ansible_environment)
        monitor = Qmp(str(sockets / "web01.qmp"))
        (disk,) = [one for one in monitor("query-block") if one.get("inserted")]
        assert disk["inserted"]["file"] == str(tmp_path / "share" / "web01")
        monitor.close()
        assert "changed=0" in play(book, tmp_path, ansible_environment), "it runs"
    finally:
        os.kill(int((sockets / "web01.pid").read_text()), signal.SIGKILL)


def test_back_to_a_snapshot(libvirtd: Libvirtd, tmp_path: Path, ansible_environment: dict) -> None:
    share = tmp_path / "share"
    share.mkdir()
    have(share, tmp_path, ansible_environment, snapshot="before-upgrade")
    libvirtd("define", "/dev/stdin", given=one_disk("db01", str(share / "db01.before-upgrade"), "qcow2"))
    try:
        libvirtd("start", "db01")
        guest = DomainGuest(libvirtd, "db01", bytearray(20 << 20))
        guest.scribble(1)
        words = {
            "/srv/volumes": str(share),
            "qemu:///system": libvirtd.uri,
            "{libvirt: {domain: db01}}": f"{{libvirt: {{uri: '{libvirtd.uri}', domain: db01}}}}",
        }
        book = book_of("Go back to a snapshot, and start the domain on it", words)
        assert "changed=3" in play(book, tmp_path, ansible_environment)
        assert guest.alive
        guest.data[:] = bytes(20 << 20)
        guest.scribble(2)
        guest.flush()
        (disk,) = re.findall(f"{share}/[a-z0-9.-]+", libvirtd("domblklist", "db01"))
        guest.kill()
        assert digest(disk, "qcow2") == digest_of(guest.data)
        libvirtd("start", "db01")
        assert "changed=3" in play(book, tmp_path, ansible_environment), "it is found running, and what it wrote since is given up"
    finally:
        libvirtd("destroy", "db01")
        libvirtd("undefine", "db01")


def test_a_backup_while_the_machine_runs(make: Callable[..., Live], tmp_path: Path, ansible_environment: dict) -> None:
    live = make()
    (tmp_path / "copies").mkdir()
    have(live.path, tmp_path, ansible_environment)
    guest = live.guest = Guest(str(live.path / "db01"), "qcow2", bytearray(20 << 20))
    guest.scribble(1)
    words = {"/srv/volumes": str(live.path), "/srv/backups": str(tmp_path / "copies"), "/run/machines/db01.qmp": guest.socket}
    book = book_of("Copy the state of this moment to another place, while the machine runs", words)
    expected = digest_of(guest.data)
    assert "changed=1" in play(book, tmp_path, ansible_environment)
    assert "changed=0" in play(book, tmp_path, ansible_environment)
    guest.scribble(2)
    (copy,) = (tmp_path / "copies").iterdir()
    assert digest(str(copy), "qcow2") == expected
    assert guest.opened() == ["db01"]
    guest.scribble(3)
    guest.quit()
    assert digest(str(live.path / "db01"), "qcow2") == digest_of(guest.data)
