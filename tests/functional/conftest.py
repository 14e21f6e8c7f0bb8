# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of several files start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_clones import write
from .test_refusals import MIB, Store


@pytest.fixture
def layered(tmp_path: Path) -> Store:
    """Volume ``vol``: ones in the base, twos in ``vol.s1`` (what s2 shows), threes in the active image ``vol.s2``."""
    share = tmp_path / "share"
    share.mkdir()
    store = Store(share)
    store.present(size=MIB)
    for value, name in ((1, "s1"), (2, "s2")):
        write(store, "vol", value)
        store.snapshot(name)
    write(store, "vol", 3)
    return store
