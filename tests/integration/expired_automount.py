# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An sshfs share that the kernel's autofs mounts and lets expire: no task takes its mount point for a local directory.

    python expired_automount.py DIRECTORY SOURCE OPTIONS      (as root, in a mount namespace of its own)

A change is refused (nobody can tell who has the image open) while the share is mounted and in the first task after it has expired.
remotefs_share knows the share there, never mounts on top of the trigger, and has the automounter mount it anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "unit", "mounts"))

from automounter import Automounter

from ansible_collections.remotefs.storage.plugins.module_utils.mounts import tables

WHERE, SOURCE, OPTIONS = sys.argv[1:]
_MODULES = "ansible_collections.remotefs.storage.plugins.modules."


def module(which: str, **parameters: object) -> dict:
    given = json.dumps({"ANSIBLE_MODULE_ARGS": parameters})
    return json.loads(subprocess.run([sys.executable, "-m", _MODULES + which], input=given, text=True, capture_output=True, check=False).stdout)


def there() -> list[str]:
    return [mount.fstype for mount in tables.read_mounts() if mount.path == WHERE]


def expire() -> None:
    if there() != ["autofs"]:
        subprocess.run(["umount", WHERE], check=True)
    assert there() == ["autofs"], there()


def changes_are_refused() -> None:
    made = module("remotefs_volume", share=WHERE, name="auto", size="1M")
    assert made["changed"] and made["volume"]["share"] == SOURCE and made["volume"]["in_use"] is None, made
    for _dummy in ("mounted", "expired"):
        refused = module("remotefs_snapshot", share=WHERE, volume="auto", name="s1")
        assert refused.get("error_code") == "in_use" and "sshfs" in refused["msg"], refused
        expire()
    taken = module("remotefs_snapshot", share=WHERE, volume="auto", name="s1", assume_unused=True)
    assert taken["changed"] and there() == ["autofs", "fuse.sshfs"], taken
    assert module("remotefs_volume", share=WHERE, name="auto", state="absent", cascade=True, assume_unused=True)["changed"]


def nothing_is_mounted_on_top() -> None:
    expire()
    turns = [("mounted", ["write_fstab"]), ("mounted", []), ("remounted", ["unmount", "mount"]), ("mounted", []), ("unmounted", ["unmount"])]
    turns += [("absent", ["remove_fstab"]), ("absent", [])]
    for state, steps in turns:
        result = module("remotefs_share", src=SOURCE, path=WHERE, opts=OPTIONS, state=state, fstab=WHERE + ".fstab")
        assert [action["step"] for action in result["actions"]] == steps, (state, result)
        assert there() == (["autofs"] if state in ("unmounted", "absent") else ["autofs", "fuse.sshfs"]), (state, there())


def main() -> None:
    os.makedirs(WHERE)
    try:
        daemon = Automounter(WHERE, ["sshfs", SOURCE, "{}", "-o", OPTIONS])
    except OSError as error:
        print(f"skipped: {error}")
        return
    try:
        changes_are_refused()
        nothing_is_mounted_on_top()
    finally:
        daemon.stop()
    print("the trigger is never taken for the share, nor mounted over")


main()
