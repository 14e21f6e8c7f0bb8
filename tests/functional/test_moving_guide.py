# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of docs/moving.md as they stand, on directories: several disks, one that was replicated before, and the role."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .test_clones import content, write
from .test_documents import blocks, play
from .test_examples import replaced
from .test_refusals import MIB, Store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "moving.md"


@pytest.mark.slow
def test_the_playbooks_of_the_guide(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    both, before, then, by_role = blocks(PAGE.read_text())
    new = Store(tmp_path / "nas2")
    new.path.mkdir()
    places = {"hypervisor": "localhost", "nas1:/vols": str(store.path), "nas2:/vols": str(new.path), "20G": "20M"}
    expected = {}
    for name in ("shop", "shop-log", "web", "mail"):
        store.present(name, size=4 * MIB, labels={"of": name})
        write(store, name, 1)
        store.snapshot("s1", name)
        write(store, name, 2, "1M 64k")
        expected[name] = content(store, name)

    def played(book: list, *options: str) -> str:
        return play(json.loads(replaced(json.dumps(book), places)), tmp_path, ansible_environment, *options)

    assert "changed=1" in played(both, "--check") and "changed=1" in played(both) and "changed=0" in played(both)
    assert "changed=2" in played(before)
    write(store, "web", 3, "2M 64k")
    expected["web"] = content(store, "web")
    assert "changed=1" in played(then) and "changed=0" in played(then)
    assert "changed=1" in played(by_role) and "changed=0" in played(by_role)
    for name, data in expected.items():
        assert not (store.path / name).exists() and content(new, name) == data.ljust(20 * MIB if name == "mail" else 0, b"\0")
        assert new.info(name)["labels"] == {"of": name} and new.info(name)["snapshots"][0]["name"] == "s1"
