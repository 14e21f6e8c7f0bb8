# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where new volumes go on real small file systems, what others take meanwhile, and how many refusals are told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import changes, errors
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import capacity, placement, replicas, up_to_date, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates, Finder, Policy
from ansible_collections.remotefs.storage.plugins.module_utils.operations.capacity import Capacity, Demand
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import maintenance
from ansible_collections.remotefs.storage.plugins.modules import remotefs_volume

MIB = 1 << 20
DEFAULTS = {name: option.get("default") for name, option in remotefs_volume._VOLUME.items()}
NONE = "no_eligible_share"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Mounts a tmpfs of a size, anew each time."""
    mounts: list[str] = []

    def mount(size: str) -> str:
        where = tmp_path / f"s{len(mounts)}"
        where.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(where)], check=True)
        mounts.append(str(where))
        return str(where)

    yield mount
    for where in mounts:
        subprocess.run(["umount", where], check=True)


def run(shares: list[str], items: list[dict], parallel: int = 8, check: bool = False, **task: object) -> list:
    finder = Finder()
    every = [changes.merged(item, {**DEFAULTS, "mount_base": "/nowhere", "share": shares, **task}) for item in items]
    return runner.run_all([remotefs_volume._item(params, finder) for params in every], parallel, Options(check=check, assume=check))


def where(outcomes: list, shares: list[str]) -> list:
    """For each item the number of its share, or its error."""
    return [one.error_code if isinstance(one, errors.StorageError) else shares.index(one.after["mountpoint"]) for one in outcomes]


def three_ways(mount: Callable[[str], str], sizes: list[str], items: list[dict], **task: object) -> list:
    seen = []
    for parallel, check in ((1, True), (1, False), (8, False)):
        shares = [mount(size) for size in sizes]
        seen.append(where(run(shares, items, parallel, check, **task), shares))
    assert seen[0] == seen[1] == seen[2]
    return seen[0]


def names(number: int) -> list[dict]:
    return [{"name": f"a{count}"} for count in range(number)]


@pytest.mark.root
def test_a_task_keeps_the_ratio_and_the_reserve_on_tmpfs(mounted: Callable[[str], str]) -> None:
    assert three_ways(mounted, ["3g"], names(6), size="20G") == [0, 0, 0, NONE, NONE, NONE]
    assert three_ways(mounted, ["3g", "3g"], names(8), size="20G") == [0, 0, 0, 1, 1, 1, NONE, NONE]
    falloc = {"preallocation": "falloc"}
    assert three_ways(mounted, ["96m"], names(2), size="32M", reserved_percentage=50, **falloc) == [0, NONE]
    assert three_ways(mounted, ["96m", "96m"], names(8), size="32M", **falloc) == [0, 1, 0, 1, NONE, NONE, NONE, NONE]
    assert three_ways(mounted, ["96m"], names(1) + [{"name": "b", "size": "1M"}], size="96M", **falloc) == [NONE, 0]
    linked = [{"name": f"ci-{count}", "source": {"volume": "db01", "snapshot": "p", "method": "linked"}} for count in range(3)]
    assert three_ways(mounted, ["3g"], [{"name": "db01", "size": "20G", "snapshot": "p"}, *linked]) == [0, 0, 0, NONE]


@pytest.mark.root
def test_two_shares_on_one_file_system_share_its_room(mounted: Callable[[str], str]) -> None:
    seen = []
    for parallel, check in ((1, True), (1, False), (8, False)):
        root = mounted("64m")
        shares = [f"{root}/one", f"{root}/two"]
        for share in shares:
            os.mkdir(share)
        seen.append(where(run(shares, names(4), parallel, check, size="20M", preallocation="falloc"), shares))
    assert seen[0] == seen[1] == seen[2] == [0, 0, 0, NONE]


@pytest.mark.root
def test_what_others_take_after_a_promise_is_seen(mounted: Callable[[str], str]) -> None:
    """The second volume goes elsewhere, and the third one nowhere."""
    shares = [mounted("64m"), mounted("48m")]
    candidates = Candidates(tuple(Share(path, path, "directory") for path in shares))
    task, wanted = Options(), Demand(20 * MIB, 20 * MIB, 20 * MIB)
    for name in ("b", "c", "d"):
        placement.reserve(name, candidates, candidates, wanted, Policy(), task.task.capacity)
    Path(shares[0], "stranger").write_bytes(bytes(50 * MIB))

    def create(name: str) -> str:
        desired = DesiredVolume(name, size=20 * MIB, preallocation="falloc")
        made = volumes.ensure_present(updating.VolumeRequest(candidates, desired), task)
        return made.after["mountpoint"] if made.after else ""

    assert [create("b"), create("c")] == [shares[1], shares[1]]
    with pytest.raises(errors.NoEligibleShare, match="has 1[0-9.]* MiB"):
        create("d")


def test_items_that_ask_for_nothing_beforehand_keep_the_ratio_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever places a volume promises it its room in the same moment."""

    class Figures:
        f_frsize, f_blocks, f_bavail = MIB, 100, 100

        def __init__(self, _path: str) -> None: ...

    monkeypatch.setattr(capacity.os, "statvfs", Figures)
    candidates = Candidates((Share(str(tmp_path), str(tmp_path), "directory"),))

    def item(number: int) -> runner.Item:
        desired = DesiredVolume(f"v{number}", size=30 * MIB)
        request = updating.VolumeRequest(candidates, desired, policy=Policy(max_over_subscription_ratio=1.0))
        return runner.Item(desired.name, frozenset([desired.name]), lambda options: volumes.ensure_present(request, options))

    made = [one for one in runner.run_all([item(number) for number in range(12)], 8, Options()) if not isinstance(one, errors.StorageError)]
    assert len(made) == 3 and len([name for name in os.listdir(tmp_path) if name.startswith("v")]) == 3


def test_a_refusal_tells_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Figures:
        f_frsize, f_blocks, f_bavail = MIB, 3072, 1024

        def __init__(self, _path: str) -> None: ...

    monkeypatch.setattr(capacity.os, "statvfs", Figures)
    candidates = Candidates((Share("nas1:/vols", str(tmp_path), "directory"),))
    for size, at_once, reserved, expected in (
        (61 << 30, 0, 0, r"nas1:/vols would hold more than 20 times its size in virtual disks \(3 GiB, 20 times is 60 GiB, 0 bytes are taken\)"),
        (2 << 30, 2 << 30, 0, r"nas1:/vols has 1 GiB \(1073741824 bytes\) free for use, and 2 GiB are needed at once"),
        (1 << 29, 1 << 29, 20, r"nas1:/vols has 409\.6 MiB \(\d+ bytes\) free for use, beside 614\.4 MiB that stay reserved, and 512 MiB are needed"),
        (1 << 29, 0, 50, r"nas1:/vols is full \(1 GiB are free, 1\.5 GiB stay reserved\)"),
    ):
        with pytest.raises(errors.NoEligibleShare, match=expected):
            placement.choose(candidates, size, at_once, Policy(reserved), Capacity())


# -- other orders, and maintenance -----------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """Three shares on one file system, so that each has the same free space."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    return [str(tmp_path / name) for name in ("a", "b", "c")]


@pytest.mark.parametrize("parallel, check", [(1, True), (1, False), (8, False)])
def test_new_volumes_go_round(three: list[str], parallel: int, check: bool) -> None:
    assert where(run(three, names(7), parallel, check, size="1M", placement="round_robin"), three) == [0, 1, 2, 0, 1, 2, 0]


def test_the_one_with_the_fewest_volumes_is_next(three: list[str]) -> None:
    """Whoever made the others, and whatever else lies there; what is removed counts no more."""
    run(three[:1], [{"name": "x"}, {"name": "y"}], size="1M")
    run(three[1:2], [{"name": "z"}], size="64M")
    os.mkdir(f"{three[2]}/folder")
    assert where(run(three, names(4), size="1M", placement="round_robin"), three) == [2, 1, 2, 0]
    run(three[:1], [{"name": name, "state": "absent"} for name in ("x", "y", "a3")])
    assert where(run(three, [{"name": "last"}], size="1M", placement="round_robin"), three) == [0]


@pytest.mark.parametrize("parallel, check", [(1, True), (1, False), (8, False)])
def test_the_one_that_has_promised_least_is_next(three: list[str], parallel: int, check: bool) -> None:
    run(three[:1], [{"name": "x"}], size="10M")
    items = [{"name": f"v{number}", "size": f"{size}M"} for number, size in enumerate((4, 6, 3, 20, 1))]
    assert where(run(three, items, parallel, check, placement="least_allocated"), three) == [1, 2, 1, 2, 1]


def test_a_share_with_a_name_that_is_found_comes_before_any_order(three: list[str]) -> None:
    run(three[2:], names(1), size="1M")
    assert where(run(three, names(1), size="1M", placement="round_robin"), three) == [2]


def mark(path: str, on: bool = True) -> None:
    with ShareDirectory(Share(path, path, "directory")) as directory:
        (maintenance.mark if on else maintenance.clear)(directory)


def test_nothing_new_is_placed_on_a_share_in_maintenance(three: list[str]) -> None:
    run(three[:1], [{"name": "old"}], size="1M", snapshot="s")
    mark(three[0])
    mark(three[1])
    new = [{"name": "empty", "size": "1M"}, {"name": "full", "source": {"volume": "old", "snapshot": "s", "method": "full"}}]
    for check in (True, False):
        assert where(run(three, new, check=check), three) == [2, 2]
    linked = {"source": {"volume": "old", "snapshot": "s", "method": "linked"}}  # it can be nowhere else
    for check in (True, False):
        assert where(run(three, [{"name": "linked", **linked}, {"name": "x", "size": "1M"}], check=check), three) == [NONE, 2]
    for item in ({"name": "y", "size": "1M"}, {"name": "z", **linked}):
        (refused,) = run(three[:1], [item])
        assert refused.error_code == NONE and "is in maintenance" in str(refused)
    (grown,) = run(three, [{"name": "old", "size": "2M", "snapshot": "t"}])
    assert grown.changed and grown.after["size"] == 2 * MIB and len(grown.after["snapshots"]) == 2
    mark(three[0], on=False)
    assert where(run(three[:1], [{"name": "linked2", **linked}]), three) == [0]


@pytest.mark.parametrize("place", [".remotefs", ".remotefs/marks"])
def test_a_mark_behind_a_link_is_none(tmp_path: Path, place: str) -> None:
    """Somebody else on the share may have made the link, to a server that never answers."""
    elsewhere, share = tmp_path / "elsewhere", tmp_path / "share"
    share.mkdir()
    mark(str(share))
    (share / ".remotefs" / "ballast").mkdir(exist_ok=True)
    share_of, first = Share(str(share), str(share), "directory"), 576 << 10
    assert maintenance.is_marked(str(share)) and small_of(share_of) < first
    (share / place).rename(elsewhere)
    (share / place).symlink_to(elsewhere)
    assert not maintenance.is_marked(str(share)) and not maintenance.is_marked("/nowhere/x")
    assert (small_of(share_of) > first) == (place == ".remotefs")


def small_of(share: Share) -> int:
    """What a task expects the records of one volume to take."""
    found = Capacity()
    found.look([share])
    return found.small(share)


def test_images_replicas_and_moves_stay_away_too(three: list[str], tmp_path: Path) -> None:
    """A volume can leave such a share, though, and a replica that is there is kept up."""
    run(three[:1], [{"name": "old"}], size="1M", snapshot="s")
    (tmp_path / "image").write_bytes(b"\1" * MIB)
    replica = up_to_date.ReplicaRequest
    there = Candidates((Share(three[1], three[1], "directory"),))
    here = Candidates((Share(three[0], three[0], "directory"),))
    replicas.replicate(replica(here, "old", there, "kept"), Options())
    mark(three[1])
    before = Path(three[0], ".remotefs/volumes/old.json").read_bytes()
    for check in (True, False):
        with pytest.raises(errors.NoEligibleShare, match="in maintenance"):
            replicas.replicate(replica(here, "old", there, "new"), Options(check=check, assume=check))
    assert Path(three[0], ".remotefs/volumes/old.json").read_bytes() == before
    assert not os.path.exists(f"{three[1]}/new")
    run(three[:1], [{"name": "old", "snapshot": "t"}])
    assert replicas.replicate(replica(here, "old", there, "kept"), Options()).changed
    unsaid = dict.fromkeys(remotefs_volume._VOLUME["source"]["options"])
    image = {**unsaid, "compression": "auto", "image": str(tmp_path / "image"), "image_format": "raw", "method": "full"}
    (refused,) = run(three[1:2], [{"name": "imported", "source": image}])
    assert isinstance(refused, errors.StorageError) and "in maintenance" in str(refused)
    (refused,) = run(three[1:2], [{"name": "old", "moved_from": three[0]}])
    assert isinstance(refused, errors.NoEligibleShare) and os.path.exists(f"{three[0]}/old")
    mark(three[0])
    (moved,) = run(three[2:], [{"name": "old", "moved_from": three[0]}])
    assert moved.after["mountpoint"] == three[2] and not os.path.exists(f"{three[0]}/old")
