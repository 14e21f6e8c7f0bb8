# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In a chroot into a directory that is no mount point, the kernel's table of mounts does not show the root.

What the tests named below find on a machine, they must find there too. They run in a mount namespace of their own, which shows this
machine's directories, but for /tmp, at a new root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
ENTER = """set -e
for one in /*; do
  case $one in
    /tmp | /lost+found) ;;
    *) if [ -L "$one" ]; then cp -P "$one" "$ROOT$one"
       elif [ -d "$one" ]; then mkdir "$ROOT$one" && mount --rbind "$one" "$ROOT$one"; fi ;;
  esac
done
mkdir -m 1777 "$ROOT/tmp"
cd /
exec chroot "$ROOT" sh -c 'if grep -q " / / " /proc/self/mountinfo; then echo the root is shown; exit 3; fi; cd "$0"; exec "$@"' "$@"
"""
TESTS = {
    "who rests on a volume": ("tests/functional/test_dependents.py", "symbolic or spelt or another_file or folders"),
    "bind mounts": ("tests/functional/test_chroot.py", "inside"),
    "shares": ("tests/unit/mounts", "test"),
}


@pytest.mark.parametrize("name", () if "IN_CHROOT" in os.environ else TESTS)
def test_where_the_root_is_not_shown(tmp_path: Path, name: str) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, for a mount namespace")
    file, wanted = TESTS[name]
    run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, "-k", wanted]
    environment = {**os.environ, "ROOT": str(tmp_path), "IN_CHROOT": "yes", "TMPDIR": "/tmp", "PYTEST_ADDOPTS": ""}
    environment.pop("PART_OF_THE_TESTS", None)  # it is one test
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", ENTER, "enter", str(CHECKOUT), *run]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


if "IN_CHROOT" in os.environ:

    def test_inside_bind_mounts_settle(tmp_path: Path) -> None:
        from ansible_collections.remotefs.storage.plugins.module_utils.mounts import binds, resolve, tables

        source, other, path = (tmp_path / name for name in ("source", "other", "path"))
        for directory in (source, other, path):
            directory.mkdir()
        subprocess.run(["mount", "--bind", str(source), str(path)], check=True)
        mounts = tables.read_mounts()
        mount = tables.mounted_at(mounts, str(path))
        assert mount is not None and binds.shows(mounts, mount, str(source)) and not binds.shows(mounts, mount, str(other))
        share = resolve.find_share(str(source))
        assert (share.fstype, share.locks_visible) == ("directory", True)
