# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A CephFS is mounted with the key of its user, and what can go wrong is told apart.

    python ceph_keys.py SOURCE KEY      (as root in the lab ceph-run; LAB_CEPHFS_SRC adds the kernel's client)
"""
from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from ansible_collections.remotefs.storage.plugins.module_utils.mounts import parameters, resolve, tables
from ansible_collections.remotefs.storage.plugins.module_utils.operations import shares

parameters.CREDENTIALS = "/run/credentials"  # the lab has memory there
FSTAB = "/run/ceph-keys.fstab"
WRONG_KEY = "AQAw/AprdZvJLRAAYMuDwZF8fc/qbD4JB/RIWg=="


def ensure(source: str, fstype: str, key: str | None, user: str, **given: object) -> dict:
    params = {
        "src": source, "path": "/mnt/keys", "mount_base": "/mnt/base", "fstype": fstype, "type": None, "opts": [user], "state": "mounted",
        "credentials": {"password": key} if key else None, "persist": True, "fstab": FSTAB, "attempts": 1, "timeout": 40,
    }
    return shares.ensure({**params, **given})


def steps(result: dict) -> list[str]:
    assert not result["failed"], result["msg"]
    return [action["step"] for action in result["actions"]]


def life(source: str, fstype: str, key: str, user: str) -> None:
    """Mounted with a key, found, changed, forgotten."""
    assert [step for step in steps(ensure(source, fstype, key, user)) if step != "create_directory"] == ["write_credentials", "mount", "write_fstab"]
    assert steps(ensure(source, fstype, key, user)) == [] == steps(ensure(source, fstype, None, user))
    secret = Path(parameters.credentials_file("/mnt/keys"))
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600 and secret.read_text() == f"{key}\n"
    assert key not in Path(FSTAB).read_text() and key not in Path("/proc/self/mountinfo").read_text()
    for name in (source, "/mnt/keys"):
        share = resolve.find_share(name, fstab=FSTAB)
        assert (share.path, share.source, share.fstype) == ("/mnt/keys", source if name == source else share.source, fstype)
        assert share.locks_visible and share.locks_readable and share.keeps_inodes and key not in share.options
    assert ensure(source.rpartition("/")[0] + "/elsewhere", fstype, key, user)["error_code"] == "conflict"
    os.unlink(next(Path("/run/remotefs/mounts").iterdir()))  # as after a reboot: fstab tells whose mount it is
    assert steps(ensure(source, fstype, key, user)) == [] and resolve.find_share(source, fstab=FSTAB).path == "/mnt/keys"
    changed = ensure(source, fstype, key, user, opts=[user, "noatime"])
    assert "mount" in steps(changed) and "noatime" in changed["share"]["opts"]
    assert steps(ensure(source, fstype, key, user, opts=[user, "noatime"])) == []
    assert steps(ensure(source, fstype, None, user, state="absent")) == ["unmount", "remove_fstab", "remove_credentials"]
    assert steps(ensure(source, fstype, None, user, state="absent")) == [] and not secret.exists()


def refusals(source: str, fstype: str, key: str, user: str) -> None:
    """What fails leaves nothing mounted, and says what to look at."""
    elsewhere = source.rpartition("/")[0] + "/elsewhere"
    cases = {
        "a wrong key": ensure(source, fstype, WRONG_KEY, user),
        "a wrong user": ensure(source, fstype, key, user.replace("=volumes", "=nobody")),
        "a wrong directory": ensure(elsewhere, fstype, key, user),
        "a wrong server": ensure("192.0.2.99:6789:/vols", fstype, key, user, timeout=15),
    }
    for what, result in cases.items():
        assert result["error_code"] == "mount_failed" and result["actions"] == [], (what, result)
        assert "check" in result["msg"] or "log" in result["msg"] or "answer" in result["msg"], (what, result["msg"])
        assert key not in repr(result) and not os.path.exists(parameters.credentials_file("/mnt/keys"))
        print(f"  {what}: {result['msg']}")
    assert tables.mounted_at(tables.read_mounts(), "/mnt/keys") is None


def main(source: str, key: str) -> None:
    os.makedirs("/mnt/base", exist_ok=True)
    clients = [(source, "ceph-fuse", "ceph.id=volumes")]
    if os.environ.get("LAB_CEPHFS_SRC"):
        clients.append((os.environ["LAB_CEPHFS_SRC"], "cephfs", "name=volumes"))
    for given, fstype, user in clients:
        life(given, fstype, key, user)
        refusals(given, fstype, key, user)
    print(f"mounted with a key by {', '.join(fstype for _source, fstype, _user in clients)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
