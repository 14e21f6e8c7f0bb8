# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes of the shares of a lab, attached by os-brick's own connectors through the `connection` that modules return.

    python attach_by_os_brick.py      (as root in a lab, with a Python that has os-brick; the variables of tests/lab/README.md)

Each share is mounted by the collection. os-brick attaches while it is mounted, and mounts nothing. Then the share is unmounted, and os-brick
mounts it with what `connection` says: at the same directory, with the same options in force, so that the paths stay as they are.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from interop.brick import Brick, Volumes  # noqa: E402

from ansible_collections.remotefs.storage.plugins.module_utils.mounts import parameters, tables, types
from ansible_collections.remotefs.storage.plugins.module_utils.operations import shares

BASE = "/mnt/os-brick"  # the labs have memory there, and credentials beside it
parameters.CREDENTIALS = "/mnt/credentials"
PASSWORD = os.environ.get("LAB_CIFS_PASSWORD", "")


class Case(NamedTuple):
    """A share, in a spelling that the mount table does not show, with options that it hides, changes or shows."""

    source: str
    options: str
    fstype: str = "auto"
    credentials: dict | None = None
    full: bool = True  # all kinds of volumes, not one


def cases() -> list[Case]:
    if os.environ["LAB_NAME"] == "gluster":
        source = os.environ["LAB_GLUSTER_SRC"]
        server = source.partition(":")[0]
        return [Case(source + "/", f"nosuid,noatime,_netdev,backup-volfile-servers={server}", "glusterfs")]
    member = {"username": os.environ["LAB_CIFS_USER"], "password": PASSWORD}
    others = os.environ.get("LAB_SHARES", "NFS3").split()
    nfs3 = [Case(os.environ["LAB_NFS3_SRC"], "vers=3,nodev", full=False)] if "NFS3" in others else []
    return [
        *nfs3,
        Case("[::1]:/vols2/", "vers=4.2,soft,timeo=50,rsize=65536,nosuid,noatime,_netdev,nosharecache"),
        Case(os.environ["LAB_CIFS_SRC"], "guest,vers=3.1.1,noexec,_netdev,file_mode=0600,uid=0"),
        Case(os.environ["LAB_CIFS_MEMBER_SRC"], "vers=3.1.1", credentials=member, full=False),
    ]


def share(case: Case, state: str) -> dict:
    given = {
        "src": case.source, "path": None, "mount_base": BASE, "fstype": case.fstype, "opts": case.options.split(","), "state": state,
        "credentials": case.credentials, "persist": False, "fstab": tables.FSTAB, "attempts": 1, "timeout": 60,
    }
    done = shares.ensure(given)
    assert not done["failed"], done
    return done["share"]


def in_force(path: str) -> tuple[str, set[str]]:
    """The source at ``path``, and the options that say something of more than this one mount; nothing where none is mounted."""
    mounts = [mount for mount in tables.read_mounts() if mount.path == path]
    if not mounts:
        return "", set()
    assert len(mounts) == 1, f"{path} is mounted twice"
    row = types.by_kernel_type(mounts[0].fstype)
    assert row is not None
    ours = {*row.local_options, row.separating, "serverino"}  # the kernel gives the last one up by itself, when it meets two files with one number
    return mounts[0].source.rstrip("/"), {option for option in mounts[0].options if option.partition("=")[0] not in ours}


def make_volumes(case: Case, path: str) -> list[Volumes]:
    """At the top of the share and in a directory below it, which modules know by its path."""
    unseen = case.source.startswith("//")
    top = Volumes(case.source, unseen)
    top.make("kept", "raw", snapshot=True)
    if not case.full:
        return [top]
    top.make("plain", "raw", snapshot=False)
    os.makedirs(f"{path}/sub/dir", exist_ok=True)
    below = Volumes(f"{path}/sub/dir", unseen)
    below.make("deep", "qcow2", snapshot=True)
    return [top, below]


def attach(made: list[Volumes], told: list[list[dict]]) -> list[list[str]]:
    """Attaches all of them, one after the other. Returns the mount commands of os-brick that worked."""
    bricks: list[Brick] = [group.require_attached(volume) for group, volumes in zip(made, told) for volume in volumes]
    assert not any(brick.mounts() for brick in bricks[1:]), "the first one mounts the share for all"
    return bricks[0].mounts()


def example(volume: dict) -> None:
    """The script of docs/attach.md, in a process of its own."""
    page = Path(__file__).resolve().parents[2] / "docs" / "attach.md"
    (guide,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    Path(BASE, "volume.json").write_text(json.dumps(volume))
    argv = [sys.executable, "-W", "ignore", "-c", guide, f"{BASE}/volume.json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == f"{volume['path']} {volume['format']}\n" and os.path.exists(volume["path"]), done


def check(case: Case) -> None:
    began = time.monotonic()
    path = share(case, "mounted")["path"]
    made = make_volumes(case, path)
    told = [group.told() for group in made]
    before = in_force(path)
    assert attach(made, told) == [], "the share is mounted, and os-brick mounts it again"
    share(case, "unmounted")
    assert in_force(path)[0] == ""
    commands = attach(made, told)
    assert commands and in_force(path) == before, (before, in_force(path))
    words: Any = [word for command in commands for word in command]
    assert not PASSWORD or not any(PASSWORD in word for word in [*words, repr(told)]), "a secret in connection"
    subprocess.run(["umount", path], check=True)
    if case == cases()[-1]:
        example(told[0][0])
        subprocess.run(["umount", path], check=True)
    print(f"{case.source}, {sum(map(len, told))} volumes: {' '.join(commands[-1])} ({time.monotonic() - began:.0f} s)", flush=True)


def main() -> None:
    logging.disable(logging.CRITICAL)  # os-brick tries NFS with versions of its own first, and logs that mount(8) refuses two of them
    for case in cases():
        check(case)


if __name__ == "__main__":
    main()
