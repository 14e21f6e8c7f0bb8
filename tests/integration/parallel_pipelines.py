# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipelines of several hosts on one share at the same time: each has its own disks, one name belongs to one owner, and nothing is left.

    python parallel_pipelines.py MOUNT1 MOUNT2

Each mount stands for a host. ``ansible-playbook`` plays playbooks/one_pipeline.yml on it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ansible_collections.remotefs.storage.plugins.module_utils.operations import leases, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates, find_candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

PLAYBOOK = Path(__file__).parent / "playbooks" / "one_pipeline.yml"
GOLDEN = "golden-of-pipelines"
MIB = 1 << 20


def golden(where: Candidates) -> None:
    """A volume with a snapshot that workers are made from, and another present."""
    path = volumes.ensure_present(updating.VolumeRequest(where, DesiredVolume(GOLDEN, size=8 * MIB)), Options()).after["path"]
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", path], check=True, capture_output=True)
    after = snapshots.take(snapshots.SnapshotRequest(where, GOLDEN, DesiredSnapshot("ready")), Options()).after
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 8 0 64k", after["path"]], check=True, capture_output=True)


def start(mount: str, name: str, owner: str, **more: object) -> subprocess.Popen:
    given = {"share": mount, "name_of_environment": name, "owner": owner, "golden": {"volume": GOLDEN, "snapshot": "ready"}, **more}
    argv = ["ansible-playbook", "-i", "localhost,", str(PLAYBOOK), "-e", json.dumps(given)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    said = process.communicate()[0]
    return process.returncode, said


def side_by_side(mounts: list[str]) -> None:
    """Two pipelines on each host."""
    running = [start(mount, f"pipeline-{number}-{turn}", f"job-{number}-{turn}") for turn in range(2) for number, mount in enumerate(mounts)]
    for process in running:
        status, said = ended(process)
        assert status == 0, said


def one_name(mounts: list[str]) -> None:
    """A pipeline on each host wants the same environment. One of them gets it, and the other one is told who has it; then it is removed."""
    running = {f"job-of-{number}": start(mount, "the-same", f"job-of-{number}", only_take=True) for number, mount in enumerate(mounts)}
    told = {owner: ended(process) for owner, process in running.items()}
    winners = [owner for owner, (status, _said) in told.items() if status == 0]
    assert len(winners) == 1, told
    for owner, (_status, said) in told.items():
        assert owner in winners or f"{winners[0]} holds it until" in " ".join(said.split()), said
    status, said = ended(start(mounts[1], "the-same", winners[0]))  # from the other host, if it was the first one's
    assert status == 0, said


def main(*mounts: str) -> None:
    hosts = [find_candidates([mount], "/var/lib/remotefs/mnt") for mount in mounts]
    golden(hosts[0])
    side_by_side(list(mounts))
    one_name(list(mounts))
    for host in hosts:
        assert leases.read_all(host.shares[0]) == [], "a lease is left"
    volumes.ensure_absent(hosts[1], GOLDEN, True, Options())
    left = [path.name for mount in mounts for path in Path(mount).iterdir() if path.name.startswith(("pipeline-", "the-same", GOLDEN))]
    assert not left, left
    print(f"{2 * len(mounts)} pipelines side by side and {len(mounts)} that wanted one name, on {len(mounts)} clients; all contents right, nothing left")


if __name__ == "__main__":
    main(*sys.argv[1:])
