# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of reports: what deserves a look, and names that mean something to Markdown, Mermaid or HTML."""

from __future__ import annotations

import re

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.remotefs.storage.plugins.filter.report import report_data, report_digest, report_markdown

NOW = "2026-06-30T12:00:00Z"
GIB = 1 << 30
SHARE = {
    "src": "nas1:/vols", "path": "/mnt/vols", "fstype": "nfs", "total": 100 * GIB, "free": 50 * GIB, "virtual": 200 * GIB, "allocated": 40 * GIB,
    "held_by_snapshots": GIB, "over_subscription": 2.0, "maintenance": False, "leftovers": [], "leftovers_allocated": 0, "unknown": [], "opts": "secret",
}  # fmt: skip


LOCK = {"name": "vol1", "host": "host2", "task": "remotefs_volume", "since": "2026-06-29T11:59:59Z", "dead": False}


def snapshot(name: str = "s1", created: str | None = "2026-06-30T10:00:00Z", **more: object) -> dict:
    return {"name": name, "file": f"db01.{name}", "created": created, "expires": None, "protected": False, "description": "", **more}


def volume(name: str = "db01", **more: object) -> dict:
    found = {"name": name, "share": "nas1:/vols", "size": GIB, "allocated": 1000, "format": "raw", "pending": None, "lease": None, "replica": False}
    found["chain"] = [{"file": name, "format": "raw", "allocated": 1000, "size": GIB}]
    return {**found, "snapshots": [], "parent": None, "labels": {}, "connection": {"data": {"options": "password=x"}}, **more}


def told(*shares: dict, volumes: object = (), leases: object = (), **policy: object) -> list[str]:
    data = report_data([{**SHARE, **one} for one in shares or ({},)], list(volumes), list(leases), policy or None, NOW)  # type: ignore[call-overload]
    return [f"{one['level']} {one['volume'] or one['share']}: {one['text']}" for one in data["warnings"]]


def test_a_healthy_share_deserves_no_look() -> None:
    assert told(volumes=[volume(), volume("web", snapshots=[snapshot()]), volume("ci-00", lease="a" * 16)], leases=[
        {"name": "ci", "share": "nas1:/vols", "owner": "job", "expires": "2026-06-30T13:00:00Z", "volumes": ["ci-00"]},
    ]) == []


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"free": 9 * GIB}, "bad nas1:/vols: 9 GiB of 100 GiB are free"),
        ({"over_subscription": 10.5}, "warn nas1:/vols: Its volumes have 10.5 times its size together"),
        ({"leftovers": ["a", "b"], "leftovers_allocated": 2 * GIB}, "warn nas1:/vols: Killed tasks left 2 GiB in 2 files"),
        ({"locks": [LOCK]}, "warn vol1: A lock is held by remotefs_volume on host2 since 24 hours. If that host is dead, use break_lock"),
        ({"locks": [{**LOCK, "since": NOW, "dead": True}]},
         "warn vol1: A lock of remotefs_volume on host2 is left, which is gone. The next task there that needs the lock removes it"),
        ({"locks": [{**LOCK, "host": None, "task": None, "since": None}]},
         "warn vol1: A lock is held by somebody whom the file does not name since nobody knows when. If that host is dead, use break_lock"),
        ({"maintenance": True}, "warn nas1:/vols: It is in maintenance: no new volumes are placed there"),
        ({"error_code": "share_not_mounted", "msg": "it is gone"}, "bad nas1:/vols: The share cannot be read: it is gone"),
        ({"contents_error": "no right", "leftovers": None, "over_subscription": None}, "warn nas1:/vols: What it holds cannot be read: no right"),
    ],
)
def test_of_shares(given: dict, expected: str) -> None:
    assert told(given) == [expected]


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"error_code": "chain_broken", "msg": "a file is missing"}, "bad db01: It cannot be read: a file is missing"),
        ({"pending": {"operation": "delete_snapshot"}}, "bad db01: Work on it was interrupted, or runs: delete_snapshot"),
        ({"chain": [{"file": "x"}] * 33}, "warn db01: Its chain has 33 files"),
        ({"snapshots": [snapshot(created="2026-06-27T12:00:00Z")]}, "warn db01: Its newest snapshot is 3 days old"),
        ({"snapshots": [snapshot(expires="2026-06-30T11:59:59Z")]}, "warn db01: Snapshots that have expired are still there: 1, such as s1"),
        ({"lease": "a" * 16}, "warn db01: It was made under a lease that is gone, or that lists it no more"),
    ],
)
def test_of_volumes(given: dict, expected: str) -> None:
    assert told(volumes=[volume(**given)]) == [expected]


def test_locks_of_tasks_that_only_work_deserve_none() -> None:
    fresh, old = {**LOCK, "since": "2026-06-29T12:00:01Z"}, LOCK
    assert told({"locks": [fresh]}) == [] and told({"locks": None}) == []
    assert told({"locks": [old]}, lock_age="2d") == []


def test_what_deserves_none() -> None:
    """A protected snapshot that has expired, one that expires later, times that nobody knows, and an old one of a replica or of an environment."""
    old = [snapshot(created="2026-01-01T00:00:00Z")]
    healthy = [
        volume(snapshots=[snapshot(expires="2026-01-01T00:00:00Z", protected=True), snapshot("s2", expires="2026-07-01T00:00:00Z")]),
        volume("a", snapshots=[snapshot(created=None), snapshot("s2", created="yesterday")]),
        volume("b", snapshots=old, replica=True),
        volume("c", snapshots=old, lease="b" * 16),
    ]
    assert told(volumes=healthy, leases=[{"name": "c", "share": "nas1:/vols", "expires": None, "volumes": ["c"]}]) == []


def test_replicas_have_a_lag() -> None:
    source = volume(snapshots=[snapshot("s9")])
    late, fresh = (volume(share=share, replica=True, snapshots=[snapshot(created=created)]) for share, created in (
        ("nas2:/b", "2026-06-27T10:00:00Z"), ("nas3:/b", "2026-06-30T10:00:00Z")))
    data = report_data([SHARE], [source, late, fresh, volume("x", replica=True, snapshots=[snapshot()])], [], {}, NOW)
    assert [one["lag"] for one in data["volumes"]] == [None, 3 * 86400, 0, None]
    assert [one["text"] for one in data["warnings"]] == ["The replica is 3 days behind its source"]
    assert told(volumes=[source, late], replica_lag="4d", snapshot_age="1w") == []


def test_leases() -> None:
    over = {"name": "ci", "share": "nas1:/vols", "owner": "job-1", "expires": "2026-06-29T12:00:00Z"}
    leases = [over, {"name": "x", "error_code": "chain_broken", "msg": "torn"}]
    assert told(leases=leases) == [
        "bad None: Lease x cannot be read: torn",
        "warn nas1:/vols: Lease ci of job-1 ended 24 hours ago, and nobody has collected it",
    ]


def test_one_that_is_being_collected() -> None:
    over = {"name": "ci", "share": "nas1:/vols", "owner": "job-1", "expires": "2026-06-29T12:00:00Z", "collector": "job-2"}
    assert told(leases=[over]) == ["warn nas1:/vols: Lease ci of job-1 ended 24 hours ago, and job-2 has not finished collecting it"]


def test_environments() -> None:
    """Workers are volumes that the lease lists, that were made under just this one, on its share, and that have the label."""
    lease = {"name": "ci", "share": "nas1:/vols", "id": "a" * 16, "owner": "job-1", "expires": "2026-06-30T13:00:00Z"}
    lease.update(volumes=["ci-00", "ci-01", "ci-01-data", "ci-02", "ci-03"], uses=["golden"])
    labels, parent = {"remotefs_worker": "0"}, {"volume": "golden", "snapshot": "ready"}
    volumes = [
        volume("ci-00", lease="a" * 16, labels=labels, parent=parent),
        volume("ci-01", lease="a" * 16, labels=labels, parent=parent),
        volume("ci-01-data", lease="a" * 16),
        volume("ci-02", lease="b" * 16, labels=labels),  # of another time
        volume("ci-03", lease="a" * 16, labels=labels, share="nas2:/b"),
        volume("ci-99", lease="a" * 16, labels=labels),  # not listed
    ]
    by_hand = {**lease, "name": "by-hand", "id": "c" * 16, "volumes": []}
    data = report_data([SHARE], volumes, [lease, by_hand], None, NOW)
    environment, other = data["leases"]
    assert (environment["made"], environment["workers"]) == (["ci-00", "ci-01", "ci-01-data"], 2)
    assert environment["golden"] == [{"volume": "golden", "snapshot": "ready"}]
    assert (other["made"], other["workers"], other["golden"]) == ([], 0, [])
    full = report_data([SHARE], [volume("ci-00", lease="a" * 16, labels=labels)], [lease], None, NOW)
    assert full["leases"][0]["golden"] == [{"volume": "golden", "snapshot": None}]  # a full copy: what the lease uses
    text = report_markdown(data)
    assert r"| ci | nas1:/vols | job\-1 | 2026\-06\-30T13:00:00Z | 3 | 2 | golden, ready |" in text


def test_results_of_a_loop_in_which_a_share_died() -> None:
    results = [{"ansible_loop_var": "s", "s": "/mnt/a", "volumes": [volume()]}, {"ansible_loop_var": "s", "s": "/mnt/b", "msg": "no answer"}]
    data = report_data([SHARE], results, [], None, NOW)
    assert [one["name"] for one in data["volumes"]] == ["db01"]
    assert [one["text"] for one in data["warnings"]] == ["Its volumes cannot be read: no answer"]


def test_only_what_is_shown_is_in_the_data() -> None:
    """Mount options and what os-brick takes can have secrets."""
    text = str(report_data([SHARE], [volume()], [], None, NOW))
    assert "secret" not in text and "password" not in text


@pytest.mark.parametrize(
    "given",
    [
        ("text",), ({},), ([1],), ([{}],), ([SHARE], "text"), ([SHARE], [{}]), ([SHARE], [], [1]), ([SHARE], [], [], {"depth": 1}),
        ([SHARE], [], [], {"snapshot_age": "soon"}), ([SHARE], [], [], {"chain": "deep"}), ([SHARE], [], [], [1]), ([SHARE], [], [], None, "now"),
    ],
)  # fmt: skip
def test_what_is_something_else_is_refused(given: tuple) -> None:
    with pytest.raises(AnsibleFilterError, match=r"report_data: .*\."):
        report_data(*given)


HOSTILE = "](http://x) <script>alert(1)</script> | `a` **b** \n# c \x1b[2J ![i](j)"


def test_names_are_not_taken_for_markup() -> None:
    hostile = volume(HOSTILE, share=HOSTILE, snapshots=[snapshot(HOSTILE)], parent={"volume": '"]; click x', "snapshot": "--> y"})
    lease = {"name": HOSTILE, "share": HOSTILE, "owner": HOSTILE, "expires": "2026-01-01T00:00:00Z"}
    data = report_data([{**SHARE, "src": HOSTILE}], [hostile], [lease], None, NOW)
    text = report_markdown(data)
    page, _mermaid, chart = text.partition("```mermaid")
    assert "\x1b" not in text and not re.search(r"(?<!\\)[<>\[\]`]", page)
    assert all(line.count("|") - line.count(r"\|") in (0, 6, 8) for line in page.splitlines())
    lines = chart.split("```")[0].strip().splitlines()
    assert lines[0] == "graph TD"
    assert all(re.fullmatch(r'  v\d+(\["[A-Za-z0-9._ ?-]*"\]| -->\|"[A-Za-z0-9._ ?-]*"\| v\d+)', line) for line in lines[1:]), lines


def test_markdown_of_a_healthy_share() -> None:
    shares = [SHARE, {"src": "nas2:/x", "error_code": "share_not_mounted"}]
    text = report_markdown(report_data(shares, [volume(), volume("x", error_code="chain_broken")], [], None, NOW))
    assert "Written 2026-06-30T12:00:00Z." in text and "| db01 | nas1:/vols | 1 GiB | 1000 B | 1 | 0 |  |" in text
    assert r"| x | nas1:/vols | chain\_broken |" in text and "mermaid" not in text and "## Leases" not in text
    late = volume("db02", share="nas2:/b", replica=True, snapshots=[snapshot(created="2026-06-27T10:00:00Z")])
    text = report_markdown(report_data(shares, [volume("db02", snapshots=[snapshot()]), late, volume("x", replica=True)], [], None, NOW))
    assert "## Replicas" in text and "| db02 | nas2:/b | 3 days |" in text and "| x | nas1:/vols | not known |" in text
    with pytest.raises(AnsibleFilterError, match="report_markdown"):
        report_markdown([])


def test_the_digest_is_that_of_a_policy() -> None:
    assert report_digest("alert('Hello, world.');") == "qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng="  # the example of the specification
