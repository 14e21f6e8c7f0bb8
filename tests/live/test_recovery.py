# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interrupted work that others than the same machine find: check mode, a machine that was started since, one on the wrong file."""

from __future__ import annotations

import os
import time
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.live import switching
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, NeedsRecovery, StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots

from .guest import DEVICE, Guest, Live, digest_of
from .instants import Instant, instants, killed_at
from .test_kills import Case


def number_of(found: list[Instant], what: str) -> int:
    """The last instant of that kind: the record is written twice."""
    return [one.number for one in found if one.what == what][-1]


@pytest.mark.parametrize("operation", ["create", "middle", "all"])
def test_check_mode_foretells_the_end_of_interrupted_work(make: Callable[..., Live], operation: str) -> None:
    found = instants(Case(make("qcow2"), operation).run)
    for instant in found[1 : len(found) - 2 : 4]:
        case = Case(make("qcow2"), operation)
        case.kill(instant.number, "module")
        assert case.live.guest is not None
        case.live.guest.wait_while_jobs_run()
        before = case.live.tree()
        predicted = case.live.take("after", check=True)
        assert case.live.tree() == before
        done = case.live.take("after")
        assert (predicted.recovered, predicted.actions) == (done.recovered, done.actions), instant


@pytest.mark.parametrize("names", ["a", "b", "ab"])
def test_offline_work_that_a_machine_finds(make: Callable[..., Live], names: str) -> None:
    """A deletion was interrupted while no machine ran. Then one was started, and the next task works with it."""

    def prepared() -> Live:
        live = make("qcow2")
        guest = live.start()
        for number, name in enumerate("ab"):
            guest.scribble(number)
            live.snapshot(name)
        guest.scribble(3)
        guest.quit()
        live.guest = None
        return live

    trial = prepared()
    for instant in instants(lambda: trial.delete(*names)):
        live = prepared()
        killed_at(lambda live=live: live.delete(*names), instant.number, "module", 0)
        live.start().scribble(5)
        live.points["after"] = digest_of(live.data)
        live.take("after")
        left = {one["name"] for one in live.info()["snapshots"]}
        assert not left & set(names) or left >= set(names)
        live.points = {name: point for name, point in live.points.items() if name in left}
        live.require_right()
        live.require_nothing_left()
        assert live.guest is not None
        live.guest.kill()
        live.require_right()


def test_a_revert_that_a_machine_finds(make: Callable[..., Live]) -> None:
    """It cannot be ended while the machine runs, and no step of it is left out."""
    live = make("qcow2")
    guest = live.start()
    for number, name in enumerate("ab"):
        guest.scribble(number)
        live.snapshot(name)
    guest.quit()
    live.guest = None

    def revert() -> None:
        snapshots.revert(live.where, "v", "a", True, live.options())

    killed_at(revert, 2, "module", 0)  # its intent is on record
    assert live.info()["pending"]["operation"] == "revert"
    guest = live.start()
    before = live.tree()
    with pytest.raises(InUse, match="stop the machine"):
        live.take("after")
    assert live.tree() == before
    guest.quit()
    live.guest = None
    assert live.take("after").recovered[0]["operation"] == "revert"
    assert [one["name"] for one in live.info()["snapshots"]] == ["a", "after"]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_machine_that_was_started_on_the_file_that_the_guest_had_left(make: Callable[..., Live], stopped: bool) -> None:
    """Nothing is removed: it has writes that are nowhere else."""
    found = instants(Case(make("raw"), "all").run)
    case = Case(make("raw"), "all")
    case.kill(number_of(found, "after rename of v.info"), "both")
    live = case.live
    assert live.info()["path"].endswith("/v")
    info = (live.path / "v.info").stat().st_mtime_ns
    os.utime(live.path / "v.info", ns=(info, info - 10**9))  # it is a while ago
    guest = live.guest = Guest(str(live.path / "v.c"), "qcow2", live.data)
    guest.scribble(40)
    if stopped:
        guest.quit()
        live.guest = None
    files = {path.name for path in live.path.iterdir()}
    with pytest.raises((NeedsRecovery, InUse)) as caught:
        live.take("after")
    assert stopped is False or isinstance(caught.value, NeedsRecovery)
    assert {path.name for path in live.path.iterdir()} == files


@pytest.mark.parametrize("what", ["after rename of v.info", "before job-dismiss", "after job-dismiss", "before rename of v.json", "before removal of v.a"])
def test_what_qemu_still_held_of_the_image_that_the_guest_has_left(make: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """It may be written after ``.info``, and that is nobody who was started on the wrong file."""
    monkeypatch.setattr(switching.proving, "flush", lambda _machine, _node: None)  # as if the guest wrote right after it
    found = instants(Case(make("raw"), "all").run)
    case = Case(make("raw"), "all")
    guest = case.live.guest
    assert guest is not None
    for number in range(20):  # new clusters, of which the tables are in memory only
        offset = number * 3 * 65536
        guest.qmp("human-monitor-command", command_line=f'qemu-io -d {DEVICE} "write -P 9 {offset} 65536"')
        guest.data[offset : offset + 65536] = bytes([9]) * 65536
    case.kill(number_of(found, what), "module")
    guest.wait_for_no_job()
    time.sleep(0.05)
    done = case.live.take("after")
    assert done.recovered[0]["outcome"] == "finished"
    case.live.points = {"after": digest_of(case.live.data)}
    case.live.require_right()
    case.live.require_nothing_left()


@pytest.mark.parametrize("operation", ["middle", "newest"])
def test_giving_interrupted_work_up(make: Callable[..., Live], operation: str) -> None:
    """``recover: discard`` is for records that cannot be honoured; where the work can be ended, it is."""
    found = instants(Case(make("qcow2"), operation).run)
    case = Case(make("qcow2"), operation)
    case.kill(found[len(found) // 2].number, "module")
    assert case.live.present(size=len(case.live.data), discard=True).recovered[0]["outcome"] == "finished"
    case.adopt_outcome()
    case.live.require_right()


def test_without_attachment_nothing_is_touched(make: Callable[..., Live]) -> None:
    """At every instant of a deletion of a running machine's snapshot."""
    found = instants(Case(make("raw"), "several").run)
    for instant in found[2::5]:
        case = Case(make("raw"), "several")
        case.kill(instant.number, "module")
        if case.live.info()["pending"] is None:
            continue
        before = {path.name for path in case.live.path.iterdir()}
        with pytest.raises(StorageError) as caught:
            case.live.take("after", attachment=None)
        assert caught.value.error_code == "in_use", caught.value
        assert {path.name for path in case.live.path.iterdir()} == before
        case.end("reattach")
