# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees in which Ansible finds this checkout as ``ansible_collections/remotefs/storage``, and the environment that goes with them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from . import machine

CHECKOUT = machine.CHECKOUT
LEFTOVERS = {".ansible", ".git", ".hypothesis", ".mypy_cache", ".nox", ".pytest_cache", ".ruff_cache", ".venv", "__pycache__", "build"}
COLLECTION = Path("ansible_collections", "remotefs", "storage")


def link_tree(place: Path) -> Path:
    """A tree of one link, in ``place``. Returns what ANSIBLE_COLLECTIONS_PATH and PYTHONPATH want."""
    (place / COLLECTION).parent.mkdir(parents=True, exist_ok=True)
    (place / COLLECTION).unlink(missing_ok=True)
    (place / COLLECTION).symlink_to(CHECKOUT)
    return place


def copy_tree(place: Path) -> Path:
    """The same as a real copy of the files that git knows, for the tools that refuse a link or write beside what they read."""
    for name in known_files():
        target = place / COLLECTION / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, target, follow_symlinks=False)
    return place


def known_files() -> list[str]:
    """The files that git knows or would take, by their names in the checkout; without git, all but what tools left there."""
    if _git("rev-parse", "--git-dir") is not None:
        told = _git("ls-files", "-coz", "--exclude-standard") or b""
        found = {os.fsdecode(name) for name in told.split(b"\0") if name}
    else:
        found = set()
        for directory, folders, files in os.walk(CHECKOUT):
            here = Path(directory).relative_to(CHECKOUT)
            folders[:] = [name for name in folders if name not in LEFTOVERS and str(here / name) != "tests/output"]
            found.update(str(here / name) for name in files if name not in LEFTOVERS)
    return sorted(name for name in found if os.path.lexists(CHECKOUT / name))


def _git(*argv: str) -> bytes | None:
    """What git says, or None if it fails or is not here."""
    try:
        done = subprocess.run(["git", *argv], cwd=CHECKOUT, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def let_git_see_it() -> None:
    """antsibull-nox takes the files that git knows. A checkout without .git, or of another user, gets an index beside it."""
    machine.need("git=git")
    if _git("rev-parse", "--git-dir") is None:
        machine.BUILD.mkdir(exist_ok=True)
        os.environ.update(GIT_DIR=str(machine.BUILD / "git"), GIT_WORK_TREE=str(CHECKOUT))
        subprocess.run(["git", "init", "--quiet"], cwd=CHECKOUT, check=True)


def ansible_environment(scratch: Path, tree: Path, bin_directory: Path) -> dict[str, str]:
    """Ansible keeps its own files in ``scratch`` and takes no settings from this user."""
    (scratch / "ansible.cfg").touch()
    ours = {name: str(scratch / "ansible" / place) for name, place in
            (("ANSIBLE_HOME", ""), ("ANSIBLE_LOCAL_TEMP", "local"), ("ANSIBLE_REMOTE_TMP", "remote"))}
    return {
        **ours,
        "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(scratch / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(tree),
        "ANSIBLE_PYTHON_INTERPRETER": str(bin_directory / "python"),
        **dict.fromkeys(("ANSIBLE_NOCOLOR", "ANSIBLE_NOCOWS", "NO_COLOR"), "1"),
        **dict.fromkeys(("ANSIBLE_LOCALHOST_WARNING", "ANSIBLE_INVENTORY_UNPARSED_WARNING", "PY_COLORS"), "0"),
    }
