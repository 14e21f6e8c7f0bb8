# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets tests import and run the collection straight from a flat checkout.

Ansible knows a collection by the path ``ansible_collections/NAMESPACE/NAME``. A checkout may lie anywhere, so a temporary
tree with one symbolic link gives it that path, for ``import`` here and in child processes, and for ansible-playbook.
"""
from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Iterator

import pytest
from hypothesis import settings

CHECKOUT = Path(__file__).resolve().parents[1]


def _collections_root() -> Path:
    """The directory that holds ``ansible_collections`` with this checkout inside."""
    if CHECKOUT.parts[-3:] == ("ansible_collections", "remotefs", "storage"):
        return CHECKOUT.parents[2]
    root = Path(tempfile.mkdtemp(prefix="remotefs-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    namespace = root / "ansible_collections" / "remotefs"
    namespace.mkdir(parents=True)
    (namespace / "storage").symlink_to(CHECKOUT, target_is_directory=True)
    return root


ROOT = _collections_root()
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


# Real programs run behind the properties, so an example has no deadline of its own.
settings.register_profile("fast", max_examples=15, deadline=None)
settings.register_profile("sample", max_examples=50, deadline=None)
settings.register_profile("full", max_examples=200, deadline=None)  # nightly
settings.register_profile("mutation", max_examples=10, deadline=None, derandomize=True)  # a mutant meets the same examples each time
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "sample"))


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """Tests that need root or a lab say so in their result instead of failing for a reason that is not theirs. PART_OF_THE_TESTS (such
    as 0/4, or 0,1/3) leaves out those of the other parts."""
    part = os.environ.get("PART_OF_THE_TESTS")
    if part is not None:
        given, count = part.split("/")
        numbers, parts = set(map(int, given.split(","))), int(count)
        others: list = []
        mine: list = []
        for item in items:
            (mine if zlib.crc32(item.nodeid.encode()) % parts in numbers else others).append(item)
        items[:] = mine
        config.hook.pytest_deselected(items=others)
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if item.get_closest_marker("lab") and not os.environ.get("LAB_NAME"):
            item.add_marker(pytest.mark.skip(reason="needs a real server: run it with tests/lab/*-run"))


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory with a short path: that of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="s-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def checkout() -> Path:
    return CHECKOUT


@pytest.fixture(scope="session")
def collections_path() -> str:
    """The value of ANSIBLE_COLLECTIONS_PATH under which this checkout is ``remotefs.storage``."""
    return str(ROOT)


@pytest.fixture
def ansible_environment(collections_path: str, tmp_path: Path) -> dict:
    """The environment for an ansible-playbook that touches nothing outside of ``tmp_path``."""
    directory = tmp_path / "ansible"
    directory.mkdir()
    return {
        **os.environ,
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", ""),
        "ANSIBLE_COLLECTIONS_PATH": collections_path,
        "ANSIBLE_HOME": str(directory),
        "ANSIBLE_LOCAL_TEMP": str(directory / "local"),
        "ANSIBLE_REMOTE_TMP": str(directory / "remote"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
    }
