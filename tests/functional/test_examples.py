# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The EXAMPLES of every module run as they stand in the documentation.

Those about volumes and snapshots work on a directory; those about mounting name servers that are not there, so they run in
check mode, where every option is read, validated and planned with.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml

from .test_fetching import reply, serving

MODULES = Path(__file__).resolve().parents[2] / "plugins" / "modules"
MIB = 1 << 20
PREPARE = [
    {"remotefs.storage.remotefs_volume": {"share": "SHARE", "size": "64M", "volumes": [{"name": "db01"}, {"name": "db01-log"}]}},
]


def examples(module: str) -> list[dict]:
    for node in ast.parse((MODULES / f"{module}.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EXAMPLES":
            return yaml.safe_load(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no EXAMPLES")


def play(tasks: list[dict], share: Path, tmp_path: Path, environment: dict, *options: str) -> dict:
    """Run tasks and return the recap of the host; every mention of the documentation's directory becomes ``share``, and large
    volumes are of MiB instead of GiB."""
    text = json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}])
    book = tmp_path / "examples.yml"
    text = text.replace("0G\"", "0M\"")  # cutting a clone loose reads all that lies beneath it, holes too
    (tmp_path / "backup").mkdir(exist_ok=True)
    book.write_text(text.replace("/srv/volumes", str(share)).replace("/srv/backup", str(tmp_path / "backup")).replace('"SHARE"', json.dumps(str(share))))
    environment = {**environment, "ANSIBLE_STDOUT_CALLBACK": "default"}
    done = subprocess.run(["ansible-playbook", *options, str(book)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    recap = done.stdout.rsplit("localhost", 1)[1]
    return {key: int(value) for key, value in (pair.split("=") for pair in recap.replace(":", "").split() if "=" in pair)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "remotefs_volume",
        "remotefs_snapshot",
        "remotefs_volume_info",
        "remotefs_snapshot_info",
        "remotefs_housekeeping",
        "remotefs_image",
        "remotefs_replica",
        "remotefs_lease",
        "remotefs_lease_info",
    ],
)
def test_examples_of_the_store(module: str, tmp_path: Path, ansible_environment: dict) -> None:
    share = tmp_path / "share"
    share.mkdir()
    tasks = [task for task in examples(module) if "libvirt" not in json.dumps(task)]  # tests/live runs those, with a libvirt
    prepared = [] if module == "remotefs_volume" else PREPARE
    snapshot = [{"remotefs.storage.remotefs_snapshot": {"share": "SHARE", "volume": "db01", "name": "daily-2026-01-01"}}]
    nightly = [{"remotefs.storage.remotefs_snapshot": {"share": "SHARE", "volume": "db01", "name": "nightly"}}]
    prepared = prepared + {"remotefs_snapshot_info": snapshot, "remotefs_image": nightly}.get(module, [])
    with images(tmp_path) as places:
        tasks = json.loads(replaced(json.dumps(tasks), places))
        recap = play(prepared + tasks, share, tmp_path, ansible_environment, "-e", "token=a-token image_id=7")
    assert recap["ok"] + recap["skipped"] >= len(tasks) and not recap["failed"]


def replaced(text: str, places: dict[str, str]) -> str:
    for word, other in places.items():
        text = text.replace(word, other)
    return text


@contextmanager
def images(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The images that examples name: on a server, with a list of checksums, and on this host."""
    folder = tmp_path / "images"
    (folder / "debian").mkdir(parents=True)
    for name, image_format in (("debian/disk.qcow2", "qcow2"), ("appliance.vmdk", "vmdk")):
        subprocess.run(["qemu-img", "create", "-q", "-f", image_format, str(folder / name), "4M"], check=True)
    content = (folder / "debian" / "disk.qcow2").read_bytes()
    sums = f"{hashlib.sha256(content).hexdigest()} *disk.qcow2\n".encode()

    def answer(handler: Any, _number: int) -> None:
        if handler.command == "PUT":
            handler.rfile.read(int(handler.headers["Content-Length"]))
            return reply(handler, b"", 204)
        return reply(handler, sums if handler.path.endswith("SUMS") else content)

    with serving(answer) as server:
        places = {"https://images.example.org": server.url.rpartition("/dir/")[0], "https://glance.example.com:9292": server.url.rpartition("/dir/")[0]}
        yield {**places, "/srv/images": str(folder), "/var/backups": str(folder)}


MISSING = [
    helper
    for helper in ("mount.nfs", "mount.cifs", "mount.glusterfs", "sshfs")
    if not shutil.which(helper, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
]


@pytest.mark.root
@pytest.mark.skipif(bool(MISSING), reason=f"missing mount helpers: {', '.join(MISSING)}")
@pytest.mark.slow
@pytest.mark.parametrize("module", ["remotefs_share", "remotefs_share_info"])
def test_examples_of_shares(module: str, tmp_path: Path, ansible_environment: dict) -> None:
    share = tmp_path / "share"
    share.mkdir()
    shares_file = tmp_path / "nfs_shares"
    shares_file.write_text("# Cinder's\nnas1:/vols -o vers=4.2\nnas2:/vols\n")
    tasks = json.loads(json.dumps(examples(module)).replace("/etc/cinder/nfs_shares", str(shares_file)))
    tasks = [one for task in tasks for one in _allowing_for_a_client(task)]
    recap = play(tasks, share, tmp_path, ansible_environment, "--check", "--diff", "-e", "vault_nas1_password=secret vault_ceph_key=secret")
    assert not recap["failed"]


def _allowing_for_a_client(task: dict) -> list[dict]:
    """The task. Where it is about a file system of which no client need be here, it may say that, and nothing else."""
    if task.get("remotefs.storage.remotefs_share", {}).get("fstype") not in ("cephfs", "ceph-fuse", "virtiofs", "9p", "vzstorage", "quobyte", "other"):
        return [task]
    told = {"ansible.builtin.assert": {"that": "found is success or found.error_code == 'tool_missing'"}}
    return [{**task, "register": "found", "ignore_errors": True}, told]


def test_results_of_a_bulk_task(tmp_path: Path, ansible_environment: dict) -> None:
    """In input order, each under its own name and with its own error; the task fails at the end and nothing is left out."""
    share = tmp_path / "share"
    share.mkdir()
    items = [{"volume": "db01", "name": "one"}, {"volume": "none", "name": "two"}, {"volume": "db01-log", "names": ["x", "y"], "state": "absent"}]
    bulk = {"remotefs.storage.remotefs_snapshot": {"share": "SHARE", "snapshots": items}, "register": "done", "ignore_errors": True}
    wanted = [
        "done is failed and done is changed and done.error_code == 'volume_not_found'",
        "done.results | map(attribute='name') == ['one', 'two', 'x, y']",
        "done.results | map(attribute='failed') == [false, true, false]",
        "done.results | map(attribute='changed') == [true, false, false]",
        "done.results[1].error_code == 'volume_not_found' and 'none' in done.results[1].msg",
        "done.volumes | map(attribute='name') == ['db01', 'db01-log']",
        "done.results[0].actions | map(attribute='step') == ['create_overlay', 'write_info']",
    ]
    play(PREPARE + [bulk, {"ansible.builtin.assert": {"that": wanted}}], share, tmp_path, ansible_environment)
