# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters that name the workers of an environment and say where their disks are."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.remotefs.storage.plugins.filter.environment import environment_addresses, environment_left, environment_told, environment_workers


@pytest.mark.parametrize("workers, suffixes", [(0, []), (2, ["00", "01"]), ("2", ["00", "01"]), (101, [f"{n:02}" for n in range(101)]), (["a", 7], ["a", "7"])])
def test_names(workers: object, suffixes: list) -> None:
    found = environment_workers("ci", workers)
    assert [worker["suffix"] for worker in found] == suffixes
    assert [worker["volumes"] for worker in found] == [[f"ci-{one}", f"ci-{one}-seed"] for one in suffixes]
    assert [worker["index"] for worker in found] == list(range(len(suffixes)))


def test_disks() -> None:
    (worker,) = environment_workers("ci", 1, [{"suffix": "data", "size": 1024}, {"suffix": "log", "size": "1G", "format": "qcow2"}])
    assert worker["disks"] == [
        {"suffix": "data", "size": "1024", "format": "raw", "name": "ci-00-data"},
        {"suffix": "log", "size": "1G", "format": "qcow2", "name": "ci-00-log"},
    ]
    assert worker["volumes"] == ["ci-00", "ci-00-data", "ci-00-log", "ci-00-seed"]


@pytest.mark.parametrize(
    "name, workers, disks, words",
    [
        ("a b", 1, [], "is no name"),
        (None, 1, [], "is no name"),
        ("ci", -1, [], "must be a number or a list"),
        ("ci", True, [], "must be a number or a list"),
        ("ci", {"a": 1}, [], "must be a number or a list"),
        ("ci", 10001, [], "are more than"),
        ("ci", ["a", "a"], [], "two volumes would be called ci-a"),
        ("ci", ["a", "a-data"], [{"suffix": "data", "size": 1}], "two volumes would be called ci-a-data"),
        ("ci", [""], [], "cannot be the suffix of a worker"),
        ("ci", ["x/y"], [], "cannot be the suffix of a worker"),
        ("ci", [None], [], "cannot be the suffix of a worker"),
        ("ci", 1, "data", "disks must be a list"),
        ("ci", 1, ["data"], "must have suffix and size"),
        ("ci", 1, [{"suffix": "data"}], "must have suffix and size"),
        ("ci", 1, [{"suffix": "data", "size": "1G", "bus": "scsi"}], "must have suffix and size"),
        ("ci", 1, [{"size": "1G"}], "cannot be the suffix of a disk"),
    ],
)
def test_nonsense(name: object, workers: object, disks: object, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        environment_workers(name, workers, disks)


def test_machines() -> None:
    (worker,) = environment_workers("ci", ["a"], [{"suffix": "data", "size": "1G"}], True)
    assert worker["machine"] == {"name": "ci-a", "volumes": ["ci-a", "ci-a-data"], "seed": "ci-a-seed"} and worker["named"] == {"name": "ci-a"}
    assert "seed" not in environment_workers("ci", 1)[0]["machine"]
    volumes = [{"name": "ci-a", "path": "/x/ci-a.pristine", "format": "qcow2", "size": 1}]
    machines = [{"name": "ci-a", "consumer": {"kind": "qemu", "host": "127.0.0.1", "port": 2222}}, {"name": "ci-b", "consumer": None}]
    (told,) = environment_told([worker], volumes, machines)
    assert told["consumer"] == machines[0]["consumer"] and told["seed"] == {"name": "ci-a-seed", "path": "/x/ci-a-seed"}  # a reset does not ask for it


def test_addresses() -> None:
    workers = environment_workers("ci", 3)
    machines = [{"name": "ci-00", "consumer": {"kind": "qemu", "host": "127.0.0.1", "port": 2222}}, {"name": "ci-01", "consumer": None}]
    assert environment_addresses(workers, machines, {"team": "web"}) == [
        {"name": "ci-00", "labels": {"team": "web", "remotefs_worker": "0", "remotefs_address": "127.0.0.1:2222"}},
        {"name": "ci-01", "labels": {"team": "web", "remotefs_worker": "1"}},
        {"name": "ci-02", "labels": {"team": "web", "remotefs_worker": "2"}},
    ]
    assert environment_addresses(workers[:1], machines, address="runner")[0]["labels"]["remotefs_address"] == "runner:2222"
    domain = [{"name": "ci-00", "consumer": {"kind": "libvirt", "domain": "ci-00"}}]
    assert environment_addresses(workers[:1], domain)[0]["labels"] == {"remotefs_worker": "0"}
    with pytest.raises(AnsibleFilterError, match="must be workers"):
        environment_addresses(["ci-00"], machines)


def test_what_is_left() -> None:
    results = [{"name": "pristine", "volume_name": "ci-00", "failed": False}]
    assert environment_left(results) == []
    failed = {"name": "pristine", "volume_name": "ci-01", "failed": True, "error_code": "in_use", "msg": "x", "more": 1}
    assert environment_left([*results, failed]) == [{"name": "ci-01", "error_code": "in_use", "msg": "x"}]
    with pytest.raises(AnsibleFilterError, match="must be results"):
        environment_left([{"failed": True}])


def test_where_they_are() -> None:
    workers = environment_workers("ci", 2, [{"suffix": "data", "size": "1G"}])
    volumes = [{"name": name, "path": f"/x/{name}", "format": "qcow2", "size": 1, "share": "/x"} for name in ("ci-00", "ci-00-data", "ci-00-seed")]
    told = environment_told(workers, [*volumes, {"name": "ci-01", "error_code": "chain_broken"}])
    assert told[0]["seed"] == {"name": "ci-00-seed", "path": "/x/ci-00-seed"}
    assert [disk["path"] for disk in told[0]["disks"]] == ["/x/ci-00", "/x/ci-00-data"] and told[0]["consumer"] is None
    assert told[1] == {"name": "ci-01", "index": 1, "disks": [], "seed": None, "consumer": None}
    with pytest.raises(AnsibleFilterError, match="must be workers"):
        environment_told(["ci-00"], volumes)
