# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tasks of docs/retention.md, docs/errors.md and docs/worst-day.md, and the first playbooks of roles' READMEs, as they stand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import records

from .test_clones import content, opened, write
from .test_documents import blocks, play
from .test_examples import replaced
from .test_refusals import MIB, Store

CHECKOUT = Path(__file__).resolve().parents[2]
Played = Callable[..., str]

pytestmark = pytest.mark.slow


def of(page: str) -> list:
    return blocks((CHECKOUT / page).read_text())


@pytest.fixture
def played(store: Store, tmp_path: Path, ansible_environment: dict) -> Played:
    """Plays tasks or plays on this host, where a directory takes the share's place."""
    def run(given: list, *options: str) -> str:
        book = given if "hosts" in given[0] else [{"hosts": "localhost", "tasks": given}]
        book = [{**{key: value for key, value in one.items() if key != "become"}, "hosts": "localhost"} for one in book]
        words = {name: str(store.path) for name in ("nas1:/vols", "/srv/volumes", "/var/tmp/volumes")}
        words["20G"] = "20M"
        return play(json.loads(replaced(json.dumps(book), words)), tmp_path, {**ansible_environment, "ANSIBLE_GATHERING": "explicit"}, *options)

    return run


def changed(said: str) -> int:
    return sum(map(int, re.findall(r"changed=(\d+)", said)))


def names(store: Store, volume: str = "db01") -> list[str]:
    return [point["name"] for point in store.info(volume)["snapshots"]]


def test_retention(store: Store, played: Played) -> None:
    nightly, expiring, protect, returned = of("docs/retention.md")
    store.present("db01", size=4 * MIB)
    for name in ("daily-2026-11-21", "by-hand"):
        store.snapshot(name, "db01")
    assert changed(played(protect)) == 1
    said = played([{**nightly[0], "register": "done"}, {"ansible.builtin.debug": {"msg": "{{ done.retention | map('list') | flatten | unique | sort }}"}}])
    keys = sorted({key for row in returned["retention"] for key in row})
    assert re.findall(r'^ +"(\w+)",?$', said, re.MULTILINE) == keys
    assert names(store)[:2] == ["daily-2026-11-21", "by-hand"] and len(names(store)) == 3
    assert changed(played(nightly)) == 0 and changed(played(expiring)) == 1 and names(store)[3:] == ["before-test"]


def test_errors(store: Store, played: Played) -> None:
    """The task grows the volume, goes on while a program has it open, and fails for any other reason."""
    (grow,) = of("docs/errors.md")
    store.present("db01", size=40 * MIB)
    with pytest.raises(AssertionError, match="would_shrink"):
        played(grow)
    store.absent("db01")
    store.present("db01", size=4 * MIB)
    with opened(store, "db01"):
        assert changed(played(grow)) == 0
    assert store.info("db01")["size"] == 4 * MIB
    assert changed(played(grow)) == 1 and store.info("db01")["size"] == 20 * MIB


def test_the_worst_day(store: Store, played: Played) -> None:
    discard, remove, drop = of("docs/worst-day.md")
    store.present("db01", size=4 * MIB)
    write(store, "db01", 5)
    store.snapshot("tuesday", "db01")
    info = store.path / "db01.info"
    info.write_text(json.dumps({**json.loads(info.read_text()), "monday": "db01.monday"}))
    assert [one["name"] for one in store.info("db01")["stale"]] == ["monday"]
    assert changed(played(drop)) == 1 and store.info("db01")["stale"] == [] and names(store) == ["tuesday"]

    wanted = content(store, "db01")
    path = store.path / ".remotefs" / "volumes" / "db01.json"
    record = records.parse("db01", path.read_bytes())
    path.write_bytes(record.with_intent({"operation": "nobody knows"}).to_bytes("db01"))
    before = store.state()
    assert changed(played(discard, "--check")) == 1 and store.state() == before
    assert changed(played(discard)) == 1 and content(store, "db01") == wanted and store.info("db01")["pending"] is None

    (store.path / "db01").unlink()
    assert store.info("db01")["error_code"] == "chain_broken"
    assert changed(played(remove)) == 1 and not list(store.path.glob("db01*"))


def test_the_roles_volumes_and_snapshots(store: Store, played: Played) -> None:
    made, exact = of("roles/volumes/README.md")
    group, nightly, single, _running = of("roles/snapshots/README.md")
    assert "db02" in played(made)
    assert changed(played(made)) == 0
    assert (store.info("db01")["format"], store.info("db02")["format"], store.info("db02")["size"]) == ("raw", "qcow2", 2 << 30)
    store.absent("db02")
    store.present("ci-99", size=MIB)  # not made by the role
    played(json.loads(json.dumps(exact).replace("ci-02", "ci-03")))
    played(exact)
    assert {path.name for path in store.path.iterdir() if path.is_file()} == {"db01", "ci-01", "ci-02", "ci-99"}
    assert changed(played(exact)) == 0
    said = played(group)
    assert '"db01"' in said and '"db02"' in said and '"web"' not in said
    assert (names(store), names(store, "db02"), names(store, "web")) == (["before-upgrade"], ["before-upgrade"], [])
    assert changed(played(nightly)) >= 1 and changed(played(nightly)) == 0
    played(single)
    assert names(store)[-1] == "before-upgrade-2" and names(store, "web")[-1] == "before-move"


def test_the_roles_share_and_housekeeping(store: Store, played: Played) -> None:
    space, _servers = of("roles/share/README.md")
    assert "free" in played(space) and changed(played(space)) == 0
    (look,) = of("roles/housekeeping/README.md")
    store.present("db01", size=MIB)
    before = store.state()
    played(look)
    assert store.state() == before
