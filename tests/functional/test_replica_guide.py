# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of docs/replicas.md as they stand, on directories: each night, each week, and after a loss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .test_clones import content, write
from .test_documents import blocks, play
from .test_examples import replaced
from .test_refusals import MIB, Store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "replicas.md"


@pytest.mark.slow
def test_the_playbooks_of_the_guide(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    nightly, by_roles, weekly, back = blocks(PAGE.read_text())
    stores = {"nas1:/vols": store, "nas2:/vols": Store(tmp_path / "nas2")}
    (tmp_path / "nas2").mkdir()
    places = {"hypervisor": "localhost", **{source: str(one.path) for source, one in stores.items()}}
    copy = stores["nas2:/vols"]

    def played(book: list, *options: str) -> str:
        return play(json.loads(replaced(json.dumps(book), places)), tmp_path, ansible_environment, *options)

    for name in ("shop", "shop-log"):
        store.present(name, size=4 * MIB)
        write(store, name, 1)
    assert "changed=2" in played(nightly, "--check") and "changed=2" in played(nightly) and "changed=0" in played(by_roles)
    assert [one["name"] for one in copy.info("shop")["snapshots"]] == [one["name"] for one in store.info("shop")["snapshots"]]
    assert "changed=0" in played(weekly)

    wanted = content(copy, "shop")
    shutil.rmtree(store.path)
    store.path.mkdir()
    assert "changed=1" in played(back) and content(store, "shop") == wanted
