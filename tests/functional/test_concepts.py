# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures of docs/concepts.md show what its tasks do: each is played on a directory, and what is there is drawn and compared.

With WRITE_PICTURES=1 they are written.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import yaml

from .pictures import SLOT, Column, column, picture
from .test_clones import write
from .test_documents import play
from .test_examples import replaced
from .test_refusals import Store

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "concepts.md").read_text()
GIB = 1 << 30
DAYS = ("monday", "tuesday", "wednesday")


class Operation(NamedTuple):
    """A task of the page and its picture."""

    tasks: list
    said: str
    name: str


def operations() -> dict[str, Operation]:
    """By the names of the pictures. Between a block and its picture there is nothing."""
    found = re.findall(r"^```yaml\n(.*?)^```\n\n!\[(.*?)\]\(pictures/(.*?)\.svg\)$", PAGE, re.MULTILINE | re.DOTALL)
    return {name: Operation(yaml.safe_load(text), said, name) for text, said, name in found}


OPERATIONS = operations()


def put(store: Store, letter: str, *slots: int) -> None:
    for slot in slots:
        write(store, "db01", ord(letter), f"{slot * SLOT} {SLOT}")


def prepared(store: Store, name: str) -> None:
    """What is there before an operation."""
    if name == "create":
        return
    store.present("db01", size=20 * GIB)
    put(store, "A", 0, 1)
    if name == "snapshot":
        return
    for day, letter, slot in zip(DAYS, "BCD", (1, 2, 3)):
        store.snapshot(day, "db01")
        put(store, letter, slot)


def drawn(stores: dict[str, Store]) -> tuple[Column, ...]:
    """A column for each volume, parents first, so that the files of a parent are in its own column."""
    columns, apart = [], {}
    for source, store in stores.items():
        names = sorted(path.name for path in store.path.iterdir() if path.is_file() and "." not in path.name)
        found = sorted((store.info(name) for name in names), key=lambda one: (one["parent"] is not None, one["name"] != "db01"))
        for volume in found:
            seen = apart.setdefault(source, set())
            columns.append(column(f"{volume['name']} on {source}", volume, seen))
            seen.update(file.name for file in columns[-1].files)
    return tuple(columns)


def seen(store: Store) -> dict[str, bytes]:
    """The first clusters of each point of the volume, by its name."""
    found = {"now": content_of(store, store.info("db01")["path"])}
    volume = store.info("db01")
    beneath = {image["file"]: image["backing_file"] for image in volume["chain"]}
    for point in volume["snapshots"]:
        found[point["name"]] = content_of(store, str(store.path / beneath[point["file"]]))
    return found


def content_of(store: Store, path: str) -> bytes:
    form = next(image["format"] for image in store.info("db01")["chain"] if str(store.path / image["file"]) == path)
    target = store.path.parent / "first"
    subprocess.run(["qemu-img", "dd", "-f", form, "-O", "raw", f"bs={SLOT}", "count=4", f"if={path}", f"of={target}"], check=True)
    return target.read_bytes()[::SLOT]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_the_picture_is_true(name: str, store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    operation = OPERATIONS[name]
    (tmp_path / "nas2").mkdir()
    stores = {"nas1:/vols": store, "nas2:/vols": Store(tmp_path / "nas2")}
    prepared(store, name)

    def played(tasks: list) -> str:
        book = [{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]
        return play(json.loads(replaced(json.dumps(book), {source: str(one.path) for source, one in stores.items()})), tmp_path, ansible_environment)

    if name == "flatten":
        played(OPERATIONS["linked-clone"].tasks)
    before = drawn(stores)
    points = seen(store) if before else {}
    assert "changed=1" in played(operation.tasks)
    made = picture(operation.said, before, drawn(stores))
    assert "changed=0" in played(operation.tasks)
    ElementTree.fromstring(made)
    home = stores["nas2:/vols"] if name == "move" else store
    if not name.startswith(("create", "revert")):
        left = seen(home)
        assert {point: data for point, data in left.items() if point in points} == {point: points[point] for point in left if point in points}
    path = DOCS / "pictures" / f"{name}.svg"
    if os.environ.get("WRITE_PICTURES"):
        path.write_text(made)
    assert path.read_text() == made, "run this with WRITE_PICTURES=1, and look at the picture"


def test_each_operation_has_its_picture() -> None:
    assert {path.stem for path in DOCS.glob("pictures/*.svg")} == set(OPERATIONS)
    assert PAGE.count("```yaml") == PAGE.count("![") == len(OPERATIONS) >= 13
