# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases: who has a name, until when, and which volumes go with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.lease import LONGEST_OWNER
from ansible_collections.remotefs.storage.plugins.module_utils.operations import lease_holding, leases, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.plan import leases as plan
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.plan.leases import Asked
from ansible_collections.remotefs.storage.plugins.module_utils.store.files import small_files
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.waiting import Waiting
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import records

from .test_clones import opened
from .test_refusals import MIB, Store, refused, store

__all__ = ["store"]  # a fixture

HOUR = 3600


def hold(store: Store, owner: str = "job-1", name: str = "ci", ttl: int | None = HOUR, check: bool = False, cascade: bool = False, **asked: Any) -> leases.Done:
    request = leases.LeaseRequest(store.share, Asked(name, owner, ttl, **asked), cascade)
    return leases.hold(request, store.options(check=check))


def release(store: Store, owner: str = "job-1", name: str = "ci", check: bool = False, cascade: bool = False, **asked: Any) -> leases.Done:
    return leases.release(leases.LeaseRequest(store.share, Asked(name, owner, None, **asked), cascade), store.options(check=check))


def collect(store: Store, grace: float = 0, check: bool = False, **more: Any) -> leases.Collected:
    return leases.collect(leases.CollectRequest(store.share, grace, **more), store.options(check=check))


def let_pass(store: Store, seconds: float, name: str = "ci") -> None:
    """The clock of the share goes on: the lease was written so much earlier."""
    path = store.path / ".remotefs" / "leases" / f"{name}.json"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))


@contextmanager
def under(store: Store, lease: Any, **options: Any) -> Iterator[Any]:
    """The options of a task that works under a lease."""
    given = leases.describe(lease, store.share)
    how = store.options(**options)
    with lease_holding.holding([(given, store.candidates)], how):
        yield lease_holding.under(how, given, store.candidates)


def make(store: Store, lease: Any, name: str, check: bool = False, **desired: Any) -> Any:
    with under(store, lease, check=check) as options:
        request = updating.VolumeRequest(store.candidates, DesiredVolume(name, **{"size": MIB, "snapshot": "pristine", **desired}))
        return volumes.ensure_present(request, options)


def reset(store: Store, lease: Any, name: str) -> Any:
    with under(store, lease) as options:
        return snapshots.revert(store.candidates, name, "pristine", True, options)


def left(store: Store) -> list[str]:
    """What is on the share besides folders, locks and ballast."""
    found = (path.relative_to(store.path) for path in store.path.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[:2] not in ((".remotefs", "locks"), (".remotefs", "ballast")))


# -- taking, renewing, releasing ---------------------------------------------------------------------------------------


def test_one_owner(store: Store) -> None:
    """A second owner is refused, who holds it and until when is said; its owner renews it, which is no change."""
    taken = hold(store)
    assert taken.changed and not taken.renewed and taken.after.id and taken.after.acquired == taken.after.written
    error = refused(store, errors.LeaseHeld, lambda check: hold(store, "job-2", check=check))
    assert "job-1 holds it until 20" in str(error)
    let_pass(store, 10)
    again = hold(store)
    assert again.renewed and not again.changed
    assert again.after.id == taken.after.id and again.after.written > taken.after.written - 1
    assert again.after.acquired == taken.after.acquired - 10
    assert release(store).changed and not release(store).changed
    assert left(store) == []
    assert hold(store, "job-2").after.id != taken.after.id


def test_a_lease_that_ended(store: Store) -> None:
    """Its owner renews it, as long as nobody has taken it over. Who has, has another lease."""
    first = hold(store, ttl=5)
    let_pass(store, 60)
    assert hold(store, ttl=5).renewed
    let_pass(store, 60)
    second = hold(store, "job-2")
    assert second.changed and not second.renewed and second.after.id != first.after.id
    refused(store, errors.LeaseHeld, lambda check: hold(store, check=check))
    for asked in ({"id": first.after.id}, {"renews_only": True}):
        refused(store, errors.LeaseLost, lambda check, asked=asked: hold(store, check=check, **asked))
    refused(store, errors.LeaseLost, lambda check: release(store, id=first.after.id, check=check))
    refused(store, errors.LeaseHeld, lambda check: release(store, check=check))


def test_without_an_end(store: Store) -> None:
    hold(store, ttl=None)
    let_pass(store, 10**8)
    assert "without an end" in str(refused(store, errors.LeaseHeld, lambda check: hold(store, "job-2", check=check)))
    assert not collect(store).changed


def test_what_is_kept_with_it(store: Store) -> None:
    hold(store, volumes=("a", "b"), uses=("golden",), labels={"branch": "main"})
    kept = hold(store)
    assert not kept.changed and (kept.after.volumes, kept.after.uses, kept.after.labels) == (("a", "b"), ("golden",), {"branch": "main"})
    assert hold(store, labels={"branch": "next"}).changed and hold(store, volumes=("a",)).changed
    (told,) = leases.read_all(store.share)
    assert (told["labels"], told["volumes"], told["expired"]) == ({"branch": "next"}, ["a"], False)


def test_check_mode(store: Store) -> None:
    refused_nothing = store.state()
    foretold = hold(store, check=True, volumes=("a",))
    assert foretold.changed and leases.describe(foretold.after, store.share)["id"] is None
    assert store.state() == refused_nothing
    taken = hold(store, volumes=("a",))
    make(store, taken.after, "a")
    before = store.state()
    assert hold(store, check=True).renewed and release(store, check=True, cascade=True).removed == ("a",)
    let_pass(store, 2 * HOUR)
    assert collect(store, check=True) == leases.Collected(("ci",), ("a",), ())
    assert store.state() == before
    assert collect(store) == leases.Collected(("ci",), ("a",), ())


def test_the_clock_of_the_share_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock of a host says, a lease lives as long as its share says."""
    real = time.time
    hold(store, ttl=HOUR)
    for jump in (86400, -86400, 10**9):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        with pytest.raises(errors.LeaseHeld):
            hold(store, "job-2")
        assert not collect(store).changed
    let_pass(store, HOUR + 1)
    for jump in (86400, -86400):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert not collect(store, grace=60).changed
    assert hold(store, "job-2").changed


# -- volumes -------------------------------------------------------------------------------------------------------------


def test_volumes_go_with_it(store: Store) -> None:
    taken = hold(store, volumes=("ci-00", "ci-01", "never-made")).after
    for name in ("ci-00", "ci-01"):
        assert make(store, taken, name).after["lease"] == taken.id
    assert not make(store, taken, "ci-00").changed
    store.present("ci-database", size=MIB)
    refused(store, errors.Conflict, lambda check: release(store, check=check))
    done = release(store, cascade=True)
    assert done.removed == ("ci-00", "ci-01")
    assert left(store) == [".remotefs/volumes/ci-database.json", "ci-database"]


def test_what_a_lease_may_touch(store: Store) -> None:
    """Only what it lists and what was made under it, whatever the names are."""
    store.present("ci-00", size=MIB)
    store.snapshot("pristine", "ci-00")
    store.present("other", size=MIB)
    taken = hold(store, volumes=("ci-00", "ci-01")).after
    refused(store, errors.Conflict, lambda check: make(store, taken, "ci-00", check=check))
    refused(store, errors.Conflict, lambda check: make(store, taken, "ci-02", check=check))
    with pytest.raises(errors.Conflict, match="made without a lease"):
        reset(store, taken, "ci-00")
    make(store, taken, "ci-01")
    second = hold(store, name="ci-1", owner="job-2", volumes=("ci-01", "ci-1-00")).after  # lists what is not its own
    with pytest.raises(errors.Conflict, match="another lease has it"):
        reset(store, second, "ci-01")
    make(store, second, "ci-1-00")
    assert release(store, "job-2", "ci-1", cascade=True).removed == ("ci-1-00",)
    let_pass(store, 2 * HOUR)
    assert collect(store) == leases.Collected(("ci",), ("ci-01",), ())
    assert {"ci-00", "other"} <= set(left(store)) and not [name for name in left(store) if "ci-01" in name]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_volume_that_took_the_place_of_one_of_the_lease(store: Store, image_format: str) -> None:
    """Somebody removed the worker and put a disk of their own there: it is nobody's prey."""
    taken = hold(store, volumes=("ci-00",)).after
    make(store, taken, "ci-00", snapshot=None, format=image_format)
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, store.path / "new", str(MIB)], check=True)
    os.rename(store.path / "new", store.path / "ci-00")
    let_pass(store, 2 * HOUR)
    done = collect(store)
    assert not done.leases and not done.volumes and [(one["name"], one["error_code"]) for one in done.skipped] == [("ci-00", "conflict")]
    assert (store.path / "ci-00").exists() and store.info("ci-00")["lease"] is None
    store.absent("ci-00")
    assert collect(store).leases == ("ci",)


@pytest.mark.parametrize("snapshot", [None, "pristine"])
def test_a_disk_as_long_as_the_worker_whose_inode_it_got(store: Store, snapshot: str | None) -> None:
    """File systems give the inode of a removed file to the next one. Neither that nor an equal length makes it the worker."""
    taken = hold(store, volumes=("ci-00",)).after
    for _attempt in range(20):
        make(store, taken, "ci-00", snapshot=snapshot)
        inode = (store.path / "ci-00").stat().st_ino
        for path in (*store.path.glob("ci-00.*"), store.path / "ci-00"):
            path.unlink()
        (store.path / "ci-00").write_bytes(b"precious" * (MIB // 8))
        if (store.path / "ci-00").stat().st_ino == inode:
            break
        (store.path / "ci-00").unlink()
        with under(store, taken) as options:
            volumes.ensure_absent(store.candidates, "ci-00", True, options)
    else:
        pytest.skip("this file system does not use inodes again")
    let_pass(store, 2 * HOUR)
    assert [one["error_code"] for one in collect(store).skipped] == ["conflict"]
    assert (store.path / "ci-00").read_bytes() == b"precious" * (MIB // 8)


def test_more_names_than_can_be_read(store: Store) -> None:
    """A lease that could be written and never read again is refused."""
    for names in ({"volumes": tuple(f"v{number}" for number in range(16385))}, {"uses": tuple(f"v{number}" for number in range(16385))}):
        refused(store, errors.InvalidParameter, lambda check, names=names: hold(store, check=check, **names))
    assert hold(store, volumes=tuple(f"v{number}" for number in range(16384))).changed and hold(store).renewed


def test_a_volume_that_moves_under_a_lease(store: Store, tmp_path: Path) -> None:
    """It was made elsewhere, so no lease has it: it is refused before it leaves."""
    (tmp_path / "elsewhere").mkdir()
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.present("ci-00", size=MIB)
    taken = hold(store, volumes=("ci-00",)).after
    asked = updating.VolumeRequest(store.candidates, DesiredVolume("ci-00"), moved_from=updating.OtherShare(str(elsewhere.path), lambda: elsewhere.candidates))
    for check in (True, False):
        with under(store, taken, check=check) as options, pytest.raises(errors.InvalidParameter, match="moved_from"):
            volumes.ensure_present(asked, options)
    assert (elsewhere.path / "ci-00").exists() and not (store.path / "ci-00").exists()


@pytest.mark.parametrize("key", ["owner", "collector"])
def test_names_that_cannot_be_shown(store: Store, key: str) -> None:
    """Who can write to the share cannot speak to the terminals of others."""
    hold(store)
    path = store.path / ".remotefs" / "leases" / "ci.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "\x1b[2Jroot"}))
    with pytest.raises(errors.ChainBroken):
        hold(store)
    (told,) = leases.read_all(store.share)
    assert told["error_code"] == "chain_broken" and "\x1b" not in told["msg"]


@pytest.mark.parametrize("kind", ["fifo", "directory", "sparse"])
def test_something_else_in_the_place_of_a_lease(store: Store, kind: str) -> None:
    hold(store, name="other", owner="job-2", ttl=1)
    let_pass(store, 10, "other")
    hold(store)
    path = store.path / ".remotefs" / "leases" / "ci.json"
    if kind == "sparse":
        os.truncate(path, 1 << 40)
    else:
        path.unlink()
        (os.mkfifo if kind == "fifo" else os.mkdir)(path)
    for act in (hold, release):
        with pytest.raises((errors.UnsafeImage, errors.ChainBroken)):
            act(store)
    done = collect(store)
    assert done.leases == ("other",) and [one["name"] for one in done.skipped] == ["ci"]


def test_a_lease_under_another_name_is_none(store: Store) -> None:
    """A copy of a lease has its id, and so its volumes: who took it for another one would remove them with it."""
    hold(store, ttl=1)
    folder = store.path / ".remotefs" / "leases"
    (folder / "other.json").write_bytes((folder / "ci.json").read_bytes())
    let_pass(store, 10, "other")
    for act in (hold, release):
        with pytest.raises(errors.ChainBroken, match="it is damaged"):
            act(store, name="other")
    assert [one["name"] for one in collect(store, grace=60).skipped] == ["other"]


def test_a_lease_that_goes_while_it_is_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who keeps to no lock removes it. Nothing is told of a lease that is not there."""
    write = ShareDirectory.write_record

    def write_and_lose(self: ShareDirectory, *arguments: Any, **named: Any) -> None:
        write(self, *arguments, **named)
        (store.path / ".remotefs" / "leases" / "ci.json").unlink()

    monkeypatch.setattr(ShareDirectory, "write_record", write_and_lose)
    with pytest.raises(errors.NeedsRecovery, match="it went away"):
        hold(store)


@pytest.mark.parametrize("owner", ["", "  ", "a\nb", "\x1b[2J", "x" * (LONGEST_OWNER + 1)])
def test_owners_that_cannot_be_shown(owner: str) -> None:
    with pytest.raises(errors.InvalidParameter, match="option owner"):
        plan.check_owner(owner)
    assert plan.check_owner("x" * LONGEST_OWNER) == "x" * LONGEST_OWNER


def test_how_long_a_lease_may_be_asked_for() -> None:
    assert [plan.parse_ttl(value, "option ttl") for value in (0, "0", " 0 ", "90s", "2h", "1w")] == [0, 0, 0, 90, 7200, 604800]
    for value in ("00", "0s", "-1", "soon", ""):
        with pytest.raises(errors.InvalidParameter, match="option ttl"):
            plan.parse_ttl(value, "option ttl")


@pytest.mark.parametrize("given", [{"name": 1, "owner": "a"}, {"name": "ci", "owner": None}, {"name": "ci", "owner": "a", "id": 7}, {"owner": "a"}, {}])
def test_what_is_no_lease_is_none(given: dict) -> None:
    with pytest.raises(errors.InvalidParameter, match="it is no lease"):
        lease_holding.Named.of_option(given)


def test_a_lease_of_which_no_time_is_known(store: Store) -> None:
    lease = hold(store).after
    told = leases.describe(replace(lease, written=0.0), store.share)
    assert told is not None and (told["acquired"], told["expires"], told["renewed_at"]) == (None, None, None)
    told = leases.describe(lease, store.share)
    assert told is not None and all((told["acquired"], told["expires"], told["renewed_at"]))


def test_names_that_are_listed_no_more(store: Store) -> None:
    taken = hold(store, volumes=("ci-00", "ci-01")).after
    make(store, taken, "ci-00")
    make(store, taken, "ci-01")
    refused(store, errors.Conflict, lambda check: hold(store, volumes=("ci-00",), check=check))
    done = hold(store, volumes=("ci-00",), cascade=True)
    assert done.removed == ("ci-01",) and done.changed and done.after.id == taken.id
    assert [name for name in left(store) if "ci-01" in name] == []


def test_a_lost_lease_changes_nothing(store: Store) -> None:
    """A pipeline that was late: whatever it still wants to do is refused, also where the new environment has the same names."""
    taken = hold(store, volumes=("ci-00",)).after
    make(store, taken, "ci-00")
    let_pass(store, 2 * HOUR)
    assert collect(store, grace=60).volumes == ("ci-00",)
    with pytest.raises(errors.LeaseLost, match="gone"):
        make(store, taken, "ci-00")
    second = hold(store, "job-2", volumes=("ci-00",)).after
    make(store, second, "ci-00")
    for act in (make, reset):
        with pytest.raises(errors.LeaseLost, match="job-2 has it now"):
            act(store, taken, "ci-00")
    assert [path for path in os.listdir(store.path / ".remotefs" / "locks") if path.startswith("@~")] == []


def test_grace(store: Store) -> None:
    taken = hold(store, ttl=60, volumes=("ci-00",)).after
    make(store, taken, "ci-00")
    let_pass(store, 100)
    assert not collect(store, grace=900).changed
    assert "are still there: ci-00" in str(refused(store, errors.LeaseHeld, lambda check: hold(store, "job-2", check=check)))
    assert collect(store, grace=30).changed


def test_what_is_in_use_stays_under_its_lease(store: Store) -> None:
    taken = hold(store, volumes=("ci-00", "ci-01")).after
    for name in ("ci-00", "ci-01"):
        make(store, taken, name)
    with opened(store, "ci-00"):
        with pytest.raises(errors.InUse) as caught:
            release(store, cascade=True)
        assert [one["name"] for one in caught.value.details["left"]] == ["ci-00"]
        make(store, taken, "ci-01")
        let_pass(store, 2 * HOUR)
        done = collect(store)
        assert done.volumes == ("ci-01",) and done.leases == () and [one["error_code"] for one in done.skipped] == ["in_use"]
        for act in (lambda check: hold(store, check=check), lambda check: hold(store, check=check, id=taken.id)):
            refused(store, errors.LeaseLost, act)
        assert "ci-00" in str(refused(store, errors.LeaseHeld, lambda check: hold(store, "job-2", check=check)))
    assert collect(store, grace=10**9) == leases.Collected(("ci",), ("ci-00",), ())
    assert left(store) == []


def test_what_a_killed_task_left_of_a_lease(store: Store) -> None:
    """A temporary file of a lease that nobody asks for again goes with the next collection."""
    hold(store)
    release(store)
    left_over = store.path / ".remotefs" / "tmp" / "@gone~0123456789ab"
    left_over.write_bytes(b"{")
    collect(store)
    assert left(store) == [] and not (store.path / ".remotefs" / "locks" / "@gone.lock").exists()


@pytest.mark.parametrize("last", [collect, lambda store: release(store, cascade=True)], ids=["collected", "released"])
def test_what_a_killed_task_left_of_a_volume_that_it_began(store: Store, last: Callable) -> None:
    """Temporary files of a volume that has no record yet go with the lease. Those of volumes that are there are not its business."""
    hold(store, volumes=("ci-00", "mine"))
    store.present("mine", size=MIB)
    for name in ("ci-00", "mine", "ci-000"):
        (store.path / ".remotefs" / "tmp" / f"{name}~0123456789ab").write_bytes(b"{")
    let_pass(store, 2 * HOUR)
    last(store)
    assert sorted(os.listdir(store.path / ".remotefs" / "tmp")) == ["ci-000~0123456789ab", "mine~0123456789ab"]
    assert (store.path / "mine").exists() and not (store.path / ".remotefs" / "leases" / "ci.json").exists()


def test_locks_that_nobody_needs_any_more(store: Store) -> None:
    """A refused task leaves the file of its lock, and a killed one that of the clock. The next collection removes both."""
    with pytest.raises(errors.LeaseLost):
        hold(store, id="gone")
    locks = store.path / ".remotefs" / "locks"
    assert [path.name for path in locks.glob("@*")] == ["@ci.lock"]
    hold(store, name="other")
    (locks / "@~clock.lock").touch()
    (store.path / ".remotefs" / "tmp" / "@~clock~0123456789ab").write_bytes(b"?")
    collect(store)
    assert [path.name for path in locks.glob("@*")] == ["@other.lock"] and not os.listdir(store.path / ".remotefs" / "tmp")


def test_nobody_takes_a_lease_over_while_a_task_works_under_it(store: Store) -> None:
    taken = hold(store, volumes=("ci-00",)).after
    let_pass(store, 2 * HOUR)
    with under(store, taken):
        done = collect(store)
        assert [one["error_code"] for one in done.skipped] == ["lock_timeout"] and not done.changed
        with pytest.raises(errors.LockTimeout, match="lock of lease ci on"):
            hold(store, "job-2")
        with under(store, taken):  # another task of the same pipeline
            pass
    assert collect(store).leases == ("ci",)


def test_clones_of_a_golden_volume(store: Store) -> None:
    """Golden volumes that environments made go when no lease uses them and nothing rests on them, but for the newest ones."""
    for number in range(4):
        name = f"golden-{number}"
        store.present(name, size=MIB, labels={"remotefs_golden": "x"}, created=f"2026-01-0{number + 1}T00:00:00Z")
        store.snapshot("golden", name)
    store.present("golden-mine", size=MIB)
    taken = hold(store, volumes=("ci-00",), uses=("golden-1",)).after
    with under(store, taken) as options:
        source = updating.SourceRequest("golden-0", "golden", linked=True)
        volumes.ensure_present(updating.VolumeRequest(store.candidates, DesiredVolume("ci-00"), source), options)
    assert collect(store, golden_keep=1) == leases.Collected((), ("golden-2",), ())
    assert sorted(name for name in os.listdir(store.path) if "." not in name) == ["ci-00", "golden-0", "golden-1", "golden-3", "golden-mine"]
    (store.path / ".remotefs" / "leases" / "torn.json").write_bytes(b"{")  # it might use any of them
    done = collect(store, golden_keep=0)
    assert done.volumes == () and [one["name"] for one in done.skipped] == ["torn", "golden-*"]
    (store.path / ".remotefs" / "leases" / "torn.json").unlink()
    let_pass(store, 2 * HOUR)
    done = collect(store, golden_keep=0)
    assert done.leases == ("ci",) and set(done.volumes) == {"ci-00", "golden-0", "golden-1", "golden-3"}


def test_a_broken_worker_goes_as_well(store: Store) -> None:
    taken = hold(store, volumes=("ci-00",)).after
    make(store, taken, "ci-00")
    (store.path / "ci-00").unlink()
    let_pass(store, 2 * HOUR)
    assert collect(store).leases == ("ci",)
    assert left(store) == []


def test_a_worker_whose_record_is_damaged(store: Store) -> None:
    """Nobody knows whether it is the lease's: it stays, is told, and so does the lease."""
    taken = hold(store, volumes=("ci-00", "ci-01")).after
    for name in ("ci-00", "ci-01"):
        make(store, taken, name)
    (store.path / ".remotefs" / "volumes" / "ci-00.json").write_text("{")
    let_pass(store, 2 * HOUR)
    done = collect(store)
    assert done.volumes == ("ci-01",) and not done.leases and [one["name"] for one in done.skipped] == ["ci-00"]
    assert (store.path / "ci-00").exists() and lease_names(store) == ["ci"]


def lease_names(store: Store) -> list[str]:
    return [one["name"] for one in leases.read_all(store.share)]


def test_a_record_that_cannot_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that fails tells nothing about what is left: the lease stays."""
    taken = hold(store, volumes=("ci-00",)).after
    make(store, taken, "ci-00")
    let_pass(store, 2 * HOUR)

    def fail(*_given: Any) -> None:
        raise errors.ToolFailed("record", "it cannot be read", "look at the disk")

    with monkeypatch.context() as patched:
        patched.setattr(records, "read", fail)
        assert [one["error_code"] for one in collect(store).skipped] == ["tool_failed"]
        with pytest.raises(errors.ToolFailed):
            release(store, cascade=True)
    assert lease_names(store) == ["ci"] and (store.path / "ci-00").exists()
    assert collect(store).leases == ("ci",)


@pytest.mark.parametrize("text", [b"", b"{}", b"[" * 100000, b'{"version": 2}', b"\xff\xfe", json.dumps({"version": 1, "name": "ci"}).encode()])
def test_damaged_leases(store: Store, text: bytes) -> None:
    """Each is told, none stops the collection of others, and nothing is taken for a lease that is none."""
    hold(store, name="other", owner="job-2", ttl=1)
    let_pass(store, 10, "other")
    hold(store)
    (store.path / ".remotefs" / "leases" / "ci.json").write_bytes(text)
    for act in (hold, release):
        with pytest.raises((errors.ChainBroken, errors.NeedsRecovery)):
            act(store)
    done = collect(store)
    assert done.leases == ("other",) and [one["name"] for one in done.skipped] == ["ci"]
    (told,) = leases.read_all(store.share)
    assert told["error_code"] in ("chain_broken", "needs_recovery")


def test_a_link_in_the_place_of_a_lease(store: Store, tmp_path: Path) -> None:
    hold(store)
    path = store.path / ".remotefs" / "leases" / "ci.json"
    (tmp_path / "outside").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    for act in (hold, release):
        with pytest.raises(errors.UnsafeImage):
            act(store)
    assert [one["error_code"] for one in collect(store).skipped] == ["unsafe_image"]


def test_the_same_owner_from_two_tasks(store: Store) -> None:
    """Twenty tasks at once: one of the owners gets it, and all others are told who."""
    program = (
        "import sys, json; sys.path.insert(0, {root!r});"
        "from functional.test_leases import hold; from functional.test_refusals import Store; from pathlib import Path\n"
        "from ansible_collections.remotefs.storage.plugins.module_utils import errors\n"
        "store = Store(Path(sys.argv[1]))\n"
        "import ansible_collections.remotefs.storage.plugins.module_utils.operations.leases as L\n"
        "store.options = lambda **c: __import__('dataclasses').replace(Store.options(store, **c), lock_timeout=60)\n"
        "try: print(hold(store, sys.argv[2]).after.owner)\n"
        "except errors.LeaseHeld as error: print('held', str(error).split(': ')[1].split(' ')[0])\n"
    ).format(root=str(Path(__file__).parents[1]))
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(store.path), f"job-{number % 5}"], stdout=subprocess.PIPE, text=True) for number in range(10)
    ]
    told = [process.communicate()[0].strip() for process in running]
    (winner,) = {line for line in told if not line.startswith("held")}
    assert all(line in (winner, f"held {winner}") for line in told), told
    assert told.count(winner) == 2


@pytest.mark.slow
def test_nobody_has_what_another_has(store: Store) -> None:
    """Three processes take, renew, lose and collect two leases without a pause."""
    hammer = Path(__file__).parents[1] / "integration" / "lease_hammer.py"
    done = subprocess.run([sys.executable, str(hammer), "8", *[str(store.path)] * 3], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "leases of others collected" in done.stdout, done.stdout + done.stderr


def test_a_full_share_frees_itself(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is there can be taken over in place, so that its volumes go."""
    taken = hold(store, volumes=("ci-00",)).after
    make(store, taken, "ci-00")
    let_pass(store, 2 * HOUR)
    written = small_files._written

    def refuse(share: Any, directory: Any, name: str, data: bytes, like: Any, warn: Any, made: tuple[int, str]) -> str:
        if name != "ci.json":
            return written(share, directory, name, data, like, warn, made)
        os.close(made[0])
        share.discard_temporary(made[1])
        raise errors.NoSpace("share", "it is full", "free some space")

    monkeypatch.setattr(small_files, "_written", refuse)
    assert collect(store) == leases.Collected(("ci",), ("ci-00",), ())
    assert left(store) == []


def test_a_lease_of_another_share(store: Store, tmp_path: Path) -> None:
    taken = hold(store).after
    (tmp_path / "second").mkdir()
    other = Store(tmp_path / "second")
    with pytest.raises(errors.LeaseLost), under(other, taken):
        pass
    with pytest.raises(errors.InvalidParameter), under(replace_candidates(store, other), taken):
        pass


def test_a_share_without_a_free_block(store: Store, tmp_path: Path) -> None:
    """Nothing can be written, not even one byte to ask for the time; yet what ended goes."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], check=False, capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    try:
        (mount / "share").mkdir()
        small = Store(mount / "share")
        taken = hold(small, volumes=("ci-00",)).after
        make(small, taken, "ci-00")
        let_pass(small, 2 * HOUR)
        for path in (small.path / ".remotefs" / "ballast").glob("*"):
            path.unlink()
        with open(mount / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        with pytest.raises(errors.LeaseHeld, match="are still there: ci-00"):
            hold(small, "job-2")
        assert collect(small) == leases.Collected(("ci",), ("ci-00",), ())
        assert left(small) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def replace_candidates(store: Store, other: Store) -> Store:
    both = Store(store.path)
    both.candidates = store.candidates._replace(shares=(store.share, other.share))
    return both


def test_clients_that_cache(store: Store) -> None:
    """Under its lock a lease is read only when this client cannot show an older one any more."""
    slept: list[float] = []

    class Noted(Waiting):
        def sleep(self, seconds: float) -> None:
            slept.append(seconds)

    store.share = store.share._replace(stale_seconds=1.25)
    store.candidates = store.candidates._replace(shares=(store.share,))
    how = replace(store.options(), task=replace(store.options().task, waiting=Noted()))
    done = leases.hold(leases.LeaseRequest(store.share, Asked("ci", "job-1", HOUR)), how)
    assert slept == [1.25]
    with lease_holding.holding([(leases.describe(done.after, store.share), store.candidates)], how):
        assert slept == [1.25, 1.25]


def test_clients_that_give_the_times(store: Store) -> None:
    told: list[str] = []
    store.share = store.share._replace(client_times=True)
    request = leases.LeaseRequest(store.share, Asked("ci", "job-1", HOUR))
    leases.hold(request, replace(store.options(), task=replace(store.options().task, warn=told.append)))
    assert len(told) == 1 and "the clocks of all hosts must agree" in told[0]
