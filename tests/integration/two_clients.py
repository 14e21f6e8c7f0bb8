# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two clients of one share change a volume in turns, without a pause: each must see what the other one just did.

    python two_clients.py MOUNT1 MOUNT2

A lock alone does not do that: a client goes on showing old names and content for a while. Each turn is a process of its
own; every snapshot and the active data are compared with a model through both clients at the end.
"""
from __future__ import annotations

import json
import subprocess
import sys

MIB = 1 << 20
TURNS = 6
ONE_TURN = """
import json, sys
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import find_candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

mount, what, name = sys.argv[1:]
shares, options = find_candidates([mount], "/var/lib/remotefs/mnt"), Options()
if what == "create":
    done = volumes.ensure_present(updating.VolumeRequest(shares, DesiredVolume("turns", size=int(name))), options)
elif what == "absent":
    done = volumes.ensure_absent(shares, "turns", True, options)
elif what == "delete":
    done = snapshots.delete(shares, "turns", [name], options)
else:
    done = snapshots.take(snapshots.SnapshotRequest(shares, "turns", DesiredSnapshot(name)), options)
print(json.dumps({"changed": done.changed, "recovered": done.recovered, "volume": done.after}))
"""


def turn(mount: str, what: str, name: str = "") -> dict:
    done = subprocess.run([sys.executable, "-c", ONE_TURN, mount, what, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["recovered"] == [], result
    return result


def io(path: str, image_format: str, command: str) -> str:
    return subprocess.run(["qemu-io", "-f", image_format, "-c", command, path], capture_output=True, text=True, check=True).stdout


def main(one: str, two: str) -> None:
    clients = (one, two)
    assert turn(one, "create", str(16 * MIB))["changed"]
    for number in range(TURNS):
        here, there = clients[number % 2], clients[(number + 1) % 2]
        taken = turn(here, "snapshot", f"s{number}")
        assert taken["changed"]
        assert not turn(there, "snapshot", f"s{number}")["changed"], f"the other client does not see s{number}"
        # The point of s(n+1) is: pattern k+1 in MiB k, for every k up to n.
        io(taken["volume"]["path"], "qcow2", f"write -P {number + 1} {number}M 1M")
    for number, name in enumerate(("s1", "s3", "s4")):
        here, there = clients[number % 2], clients[(number + 1) % 2]
        assert turn(here, "delete", name)["changed"]
        after = turn(there, "delete", name)
        assert not after["changed"], f"the other client does not see that {name} is gone"
    for mount in clients:
        compare(turn(mount, "snapshot", "s5")["volume"], mount)
    assert turn(two, "absent")["changed"] and not turn(one, "absent")["changed"]
    print(f"{TURNS} snapshots, 3 deletions, each seen by the other client at once; all contents right")


def compare(volume: dict, mount: str) -> None:
    assert [snapshot["name"] for snapshot in volume["snapshots"]] == ["s0", "s2", "s5"]
    images = {image["file"]: image for image in volume["chain"]}
    points = {f"{mount}/{volume['chain'][0]['file']}": TURNS}
    for snapshot in volume["snapshots"]:
        points[f"{mount}/{images[snapshot['file']]['backing_file']}"] = int(snapshot["name"][1:])
    for path, written in points.items():
        image_format = images[path.rsplit("/", 1)[1]]["format"]
        for number in range(TURNS):
            expected = number + 1 if number < written else 0
            told = io(path, image_format, f"read -P {expected} {number}M 1M")
            assert "Pattern verification failed" not in told, f"{path} at {number} MiB: {told}"


if __name__ == "__main__":
    main(*sys.argv[1:])
