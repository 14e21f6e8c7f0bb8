# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes as people see them."""
from __future__ import annotations

import copy

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.remotefs.storage.plugins.filter.chain_picture import FilterModule, chain_picture, human_size, volume_table

MIB = 1 << 20
LONE = {
    "name": "web", "share": "/srv/volumes", "format": "raw", "base_format": "raw", "size": 20 << 30, "allocated": 0, "snapshots": [],
    "chain": [{"file": "web", "format": "raw", "backing_file": None, "size": 20 << 30, "allocated": 0}],
    "parent": None, "dependents": [], "in_use": False, "pending": None,
}
CHAIN = {
    "name": "db01", "share": "nas1:/vols", "format": "qcow2", "base_format": "raw", "size": 64 * MIB, "allocated": 3 * MIB + 2 * 196608,
    "snapshots": [
        {"name": "noon", "file": "db01.noon", "created": "2026-11-22T12:00:30Z", "description": "before the\nupgrade", "labels": {}},
        {"name": "evening", "file": "db01.evening", "created": None, "description": "", "labels": {}},
    ],
    "chain": [
        {"file": "db01.evening", "format": "qcow2", "backing_file": "db01.noon", "size": 64 * MIB, "allocated": 196608},
        {"file": "db01.noon", "format": "qcow2", "backing_file": "db01", "size": 32 * MIB, "allocated": 196608},
        {"file": "db01", "format": "raw", "backing_file": None, "size": 32 * MIB, "allocated": 3 * MIB},
    ],
    "parent": None, "dependents": [], "in_use": None, "pending": None,
}
BROKEN = {"name": "lost", "share": "nas1:/vols", "error_code": "chain_broken", "msg": "volume lost: the file\x1b[31m is missing"}


def changed(volume: dict, **values: object) -> dict:
    return {**copy.deepcopy(volume), **values}


def test_a_chain() -> None:
    assert chain_picture(CHAIN).split("\n") == [
        "db01: 64 MiB, 3.4 MiB on disk",
        "  db01.evening  qcow2  64 MiB  192 KiB on disk  active",
        "  |  snapshot evening",
        "  db01.noon     qcow2  32 MiB  192 KiB on disk",
        "  |  snapshot noon, 2026-11-22 12:00 UTC: before the upgrade",
        "  db01          raw    32 MiB    3 MiB on disk  base",
    ]


def test_a_lone_file() -> None:
    assert chain_picture(LONE).split("\n") == ["web: 20 GiB, 0 B on disk", "  web  raw  20 GiB  0 B on disk  active and base"]


def test_an_overlay_without_a_snapshot_of_its_own() -> None:
    picture = chain_picture(changed(CHAIN, snapshots=[CHAIN["snapshots"][0]])).split("\n")
    assert picture[2] == "  |"


def test_a_format_that_nobody_recorded() -> None:
    unknown = changed(LONE, format=None, base_format=None)
    unknown["chain"][0]["format"] = None
    assert "  web  ?  20 GiB" in chain_picture(unknown)
    assert "?" in volume_table([unknown])


def test_what_is_going_on() -> None:
    busy = changed(LONE, in_use=True, pending={"operation": "delete snapshot noon", "started": None})
    assert chain_picture(busy).split("\n", maxsplit=1)[0] == "web: 20 GiB, 0 B on disk, in use, interrupted: delete snapshot noon"


def test_relatives() -> None:
    related = changed(CHAIN, parent={"volume": "golden", "snapshot": "v1"}, dependents=[{"volume": "a", "snapshot": "noon"}, {"volume": "b", "snapshot": None}])
    assert chain_picture(related).split("\n")[-3:] == ["  rests on volume golden, snapshot v1", "  volume a rests on snapshot noon", "  volume b rests on it"]


def test_a_volume_that_cannot_be_read() -> None:
    assert chain_picture(BROKEN) == "lost: cannot be read (chain_broken): volume lost: the file [31m is missing"


@pytest.mark.parametrize("wrong", [None, "db01", [LONE], {}, {"name": "db01"}])
def test_what_is_no_volume(wrong: object) -> None:
    with pytest.raises(AnsibleFilterError, match="this is no volume"):
        chain_picture(wrong)


def test_the_table() -> None:
    many = changed(CHAIN, name="many", snapshots=[{"name": f"day-{number}", "file": "x"} for number in range(5)])
    assert volume_table([CHAIN, LONE, BROKEN, many]).split("\n") == [
        "NAME    SIZE  ALLOCATED  FORMAT        SNAPSHOTS        SHARE",
        "db01  64 MiB    3.4 MiB  qcow2 on raw  noon, evening    nas1:/vols",
        "web   20 GiB        0 B  raw           -                /srv/volumes",
        "lost       -          -  chain_broken  -                nas1:/vols",
        "many  64 MiB    3.4 MiB  qcow2 on raw  5, newest day-4  nas1:/vols",
    ]


def test_an_empty_table_has_its_heading() -> None:
    assert volume_table([]) == "NAME  SIZE  ALLOCATED  FORMAT  SNAPSHOTS  SHARE"


@pytest.mark.parametrize("wrong", [None, "db01", LONE])
def test_what_is_no_list_of_volumes(wrong: object) -> None:
    with pytest.raises(AnsibleFilterError, match="must be a list of volumes"):
        volume_table(wrong)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "?"), (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (196608, "192 KiB"), (1024 * 1024 - 1, "1 MiB"),
        (10 << 30, "10 GiB"), ((10 << 30) + 1, "10 GiB"), (1350 * MIB, "1.3 GiB"), (2**63 - 512, "8 EiB"), (5000 << 60, "5000 EiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert human_size(size) == text


def test_names() -> None:
    assert FilterModule().filters() == {"chain_picture": chain_picture, "volume_table": volume_table}
