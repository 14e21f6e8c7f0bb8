# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The present of a running machine as an image: from a snapshot that always goes again, also after a kill."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, NoSpace, StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.images import leaving
from ansible_collections.remotefs.storage.plugins.module_utils.operations import exporting
from ansible_collections.remotefs.storage.plugins.module_utils.operations.exporting import Exported, ExportRequest, ToFile

from .guest import Live, digest
from .instants import instants, killed_at
from .libvirtd import LiveDomain

SAMPLE = 6
VICTIMS = ("module", "group", "machine", "both")


def export(live: Live, dest: Path, snapshot: str | None = None, image_format: str = "raw", **options: Any) -> Exported:
    return exporting.export(ExportRequest(live.where, "v", snapshot, ToFile(str(dest)), image_format), live.options(**options))


def require_as_before(live: Live) -> None:
    live.require_right()
    live.require_nothing_left()
    locks = live.path / ".remotefs" / "locks"
    assert [name for name in os.listdir(locks) if len(name) > len("v.lock")] == []


@pytest.mark.parametrize("image_format, kind", [("raw", "blockdev"), ("qcow2", "filter"), ("qcow2", "drive")])
def test_the_present_of_a_machine(make: Callable[..., Live], tmp_path: Path, image_format: str, kind: str) -> None:
    """It is that of one instant, and nothing of the volume is another afterwards."""
    live = make(image_format)
    guest = live.start(kind)
    guest.scribble(1)
    for number, name in enumerate("ab"):
        expected, path = live.point_now(), live.info()["path"]
        for into in ("raw", "qcow2"):
            dest = tmp_path / f"{number}.{into}"
            done = export(live, dest, image_format=into)
            assert done.changed and done.sums is not None and done.sums.content == expected == digest(str(dest), into)
            assert [one["step"] for one in done.actions] == ["export"]
            assert done.volume is not None and done.volume["path"] == path, "the file that was read from is not there any more"
            again = export(live, dest, image_format=into)
            assert not again.changed and again.sums == done.sums
        assert live.info()["path"] == path
        require_as_before(live)
        guest.scribble(number + 2)
        live.snapshot(name)
    with guest.busy():
        export(live, tmp_path / "busy")
    require_as_before(live)
    export(live, tmp_path / "point", "a")
    assert digest(str(tmp_path / "point"), "raw") == live.points["a"]


def test_check_mode_takes_no_snapshot(make: Callable[..., Live], tmp_path: Path) -> None:
    live = make("qcow2")
    live.start()
    before = live.tree()
    told = export(live, tmp_path / "disk", check=True)
    assert told.changed and not (tmp_path / "disk").exists() and live.tree() == before
    assert [one["step"] for one in told.actions] == [one["step"] for one in export(live, tmp_path / "disk").actions]


def test_a_machine_that_is_off_or_another_one(make: Callable[..., Live], tmp_path: Path) -> None:
    """Nobody has it open: it is read as it is. Without the attachment a machine that runs is in the way."""
    live = make("raw")
    guest = live.start()
    guest.scribble(1)
    with pytest.raises(InUse):
        export(live, tmp_path / "disk", attachment=None)
    expected = live.point_now()
    guest.quit()
    before = live.tree()
    export(live, tmp_path / "disk")
    assert digest(str(tmp_path / "disk"), "raw") == expected and live.tree() == before


@pytest.mark.parametrize("transient", [False, True])
def test_a_domain(make_domain: Callable[..., LiveDomain], tmp_path: Path, transient: bool) -> None:
    live = make_domain("qcow2")
    guest = live.run(transient=transient)
    guest.scribble(1)
    done = export(live, tmp_path / "disk", image_format="vmdk")
    assert done.changed and digest(str(tmp_path / "disk"), "vmdk") == live.point_now()
    require_as_before(live)


def test_a_failure_takes_the_snapshot_away_as_well(make: Callable[..., Live], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = make("qcow2")
    live.start().scribble(1)

    def full(*_args: object) -> None:
        raise NoSpace("file", "the disk is full", "free some")

    monkeypatch.setattr(leaving.Destination, "publish", full)
    with pytest.raises(NoSpace):
        export(live, tmp_path / "disk")
    assert not list(tmp_path.glob("disk*"))
    require_as_before(live)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_killed(make: Callable[..., Live], tmp_path: Path, image_format: str) -> None:
    """At any instant. The file is whole or not there, what the guest has flushed is there, and the next export leaves nothing behind."""

    def begun() -> tuple[Live, Callable[[], None], Path]:
        live = make(image_format)
        live.start().scribble(1)
        live.snapshot("kept")
        assert live.guest is not None
        live.guest.scribble(2)
        dest = live.path.parent / f"{live.path.name}.disk"
        return live, lambda: export(live, dest) and None, dest

    live, run, dest = begun()
    every = [(instant, victim) for instant in instants(run) for victim in VICTIMS]
    assert live.guest is not None
    live.give_back()
    if os.environ.get("LIVE_SWEEP") != "full":
        every = random.Random(os.environ.get("LIVE_SEED", time.strftime("%j"))).sample(every, min(SAMPLE, len(every)))
    for instant, victim in every:
        live, run, dest = begun()
        guest = live.guest
        assert guest is not None
        try:
            killed_at(run, instant.number, victim, guest.process.pid)
            if victim in ("machine", "both"):
                guest.end()
            expected = live.point_now()
            assert not dest.exists() or digest(str(dest), "raw") == expected
            if not guest.alive:
                live.guest = None
                live.start()
            export(live, dest)
            assert digest(str(dest), "raw") == expected
            require_as_before(live)
        except (StorageError, AssertionError) as error:
            raise AssertionError(f"{victim} killed {instant.what} ({instant.number})") from error
        finally:
            live.give_back()
