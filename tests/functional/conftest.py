# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of several files start from."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import kernel_users

from .test_clones import write
from .test_refusals import MIB, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty share."""
    (tmp_path / "share").mkdir()
    return Store(tmp_path / "share")


@pytest.fixture
def no_devices(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has no loop devices and serves no files. A task asks about each of them, so those of other tests would be counted as its
    work."""
    root = tmp_path_factory.mktemp("host")
    (root / "proc").symlink_to("/proc")
    monkeypatch.setattr(kernel_users, "ROOT", str(root))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory that is none."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def with_two_snapshots(share: Path) -> Store:
    """A new share with volume ``vol``: ones in the base, twos in ``vol.s1`` (what s2 shows), and nothing in the active image ``vol.s2``."""
    share.mkdir()
    store = Store(share)
    store.present(size=MIB)
    for value, name in ((1, "s1"), (2, "s2")):
        write(store, "vol", value)
        store.snapshot(name)
    return store


@pytest.fixture
def layered(tmp_path: Path) -> Store:
    """Volume ``vol``: ones in the base, twos in ``vol.s1`` (what s2 shows), threes in the active image ``vol.s2``."""
    store = with_two_snapshots(tmp_path / "share")
    write(store, "vol", 3)
    return store


DISK_SIZE = 5 * MIB + 512 * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk with data here and there."""
    path = tmp_path_factory.mktemp("model") / "disk"
    chance = random.Random(3)
    with path.open("wb") as disk:
        disk.truncate(DISK_SIZE)
        for start in (0, MIB + 512, 3 * MIB, DISK_SIZE - 70000):
            disk.seek(start)
            disk.write(chance.randbytes(65536))
    return path
