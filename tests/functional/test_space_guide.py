# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of docs/space.md as they stand, on two directories: they are filled in turn, one is emptied and tidied up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from leaking import leak, leaks_of

from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating

from .test_clones import content, write
from .test_documents import blocks, play
from .test_examples import replaced
from .test_housekeeping import DAY, plant
from .test_refusals import MIB, Store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "space.md"


@pytest.mark.slow
def test_the_playbooks_of_the_guide(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    other = Store(tmp_path / "other")
    other.path.mkdir()
    places = {"storage_client": "localhost", "/srv/volumes": str(store.path), "/srv/backup": str(other.path), "1G": "1M"}
    told, placed, emptied, tidied, leaked, dropped, shared = (json.loads(replaced(json.dumps(book), places)) for book in blocks(PAGE.read_text()))
    for book in (told, placed, emptied, tidied, leaked, dropped, shared):
        book[0].update(gather_facts=False, become=False)
    play(placed, tmp_path, ansible_environment)
    assert [len(list(one.path.glob("disk-*"))) for one in (store, other)] == [10, 10]
    write(store, "disk-0", 7)
    before = content(store, "disk-0")
    assert "10 volumes promise 10.00 MB" in play(told, tmp_path, ansible_environment)
    store.present("leaky", size=MIB, format="qcow2")
    leak(store.path / "leaky", 4)
    assert "256.00 KB are free again, 0 images stay" in play(leaked, tmp_path, ansible_environment) and leaks_of(store.path / "leaky") == 0
    store.present("of-leaky", updating.SourceRequest("leaky", linked=True))
    store.absent("of-leaky")
    assert '"msg": "clone-of-leaky"' in play(dropped, tmp_path, ansible_environment) and store.info("leaky")["snapshots"] == []
    store.absent("leaky")
    play(emptied, tmp_path, ansible_environment)
    assert content(other, "disk-0") == before and not list(store.path.glob("disk-*")) and len(list(other.path.glob("disk-*"))) == 20
    file = plant(store, "tmp/gone~0123456789ab", 4 * DAY)
    said = play(tidied, tmp_path, ansible_environment)
    assert "Leftovers: 1 (" in said and "Leftovers: 1 removed (" in said and ", 0 kept." in said and not file.exists()
    assert "changed=0" in play(emptied, tmp_path, ansible_environment)
    assert "are stored once now" in play(shared, tmp_path, ansible_environment)
    assert sorted(os.listdir(store.path)) == [".remotefs"]
