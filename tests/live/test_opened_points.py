# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Points that are opened read-only while a machine runs and writes: the machine goes on, and does not merge into what is opened."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.access import guard, holder
from ansible_collections.remotefs.storage.plugins.module_utils.access.folders import AccessDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.access.targets import target_at
from ansible_collections.remotefs.storage.plugins.module_utils.operations import opened_points

from .guest import Live, digest_of
from .libvirtd import LiveDomain


class Opened:
    """Opens points of the volume of a machine at a socket."""

    def __init__(self, place: Path) -> None:
        self.place, self.directory = place, AccessDirectory(str(place / "run"))
        self.target = target_at(guard.NBD, str(place / "nbd"))

    def open(self, live: Live, snapshot: str | None) -> None:
        request = opened_points.OpenRequest(live.where, "v", snapshot, self.target, 600, self.directory)
        opened_points.open_point(request, live.options(attachment=None))

    def close(self, live: Live) -> bool:
        request = opened_points.CloseRequest(self.target, None, None, frozenset(), self.directory)
        return opened_points.close_points(request, live.options(attachment=None)).changed

    def digest(self, point: str) -> str:
        out = self.place / "out"
        export = {"driver": "nbd", "server": {"type": "unix", "path": self.target.path}, "export": f"v@{point}"}
        subprocess.run(["qemu-img", "convert", "-O", "raw", "json:" + json.dumps(export), str(out)], check=True)
        return digest_of(out.read_bytes())


@pytest.fixture
def opened(make: Callable[..., Live], sockets: Path) -> Iterator[Opened]:
    made = Opened(sockets)
    yield made
    record = made.directory.read(made.target.name)
    holder.end(made.directory, made.target, record)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_beside_a_machine(make: Callable[..., Live], opened: Opened, image_format: str) -> None:
    """The guest writes on, and snapshots are taken and deleted above what is opened. What would write to it waits until it is closed."""
    live = make(image_format)
    guest = live.start()
    for number, name in enumerate("ab"):
        guest.scribble(number, 4)
        live.snapshot(name)
    guest.scribble(50, 4)
    with pytest.raises(errors.InUse, match="take a snapshot and open that"):
        opened.open(live, None)
    opened.open(live, "a")
    with guest.busy():
        assert opened.digest("a") == live.points["a"]
        live.take("c")
    live.points["c"] = live.point_now()
    guest.scribble(51, 4)
    for names in ("a", "ab", "abc"):
        for check in (True, False):
            with pytest.raises(errors.InUse, match="open, too"):
                live.delete(*names, check=check)
    assert live.delete("c").changed
    live.forget("c")
    assert opened.digest("a") == live.points["a"] and live.info()["pending"] is None
    live.require_right()
    assert opened.close(live) and live.delete("a", "b").changed
    live.forget("a", "b")
    live.require_right()
    live.require_nothing_left()


def test_a_machine_does_not_write_to_it_unseen(make: Callable[..., Live], opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the point were opened on another host, whose processes cannot be seen: QEMU's locks keep the machine from the file."""
    from ansible_collections.remotefs.storage.plugins.module_utils.apply.live import machine

    live = make("raw")
    guest = live.start()
    guest.scribble(1, 4)
    live.snapshot("a")
    guest.scribble(2, 4)
    opened.open(live, "a")
    monkeypatch.setattr(machine.openers, "other_users", lambda *_arguments: {})
    with pytest.raises(errors.InUse, match="QEMU refuses: block-commit: Failed to get .write. lock"):
        live.delete("a")
    assert opened.digest("a") == live.points["a"]
    live.require_right()
    assert opened.close(live)
    assert live.delete("a").changed
    live.forget("a")
    live.require_right()
    live.require_nothing_left()


@pytest.mark.root
def test_beside_a_domain(make_domain: Callable[..., LiveDomain], opened: Opened) -> None:
    """A domain of libvirt is refused, too. Nothing is left of the attempt."""
    live = make_domain("raw")
    domain = live.run()
    domain.scribble(1)
    live.snapshot("a")
    domain.scribble(2)
    opened.open(live, "a")
    for check in (False, True):
        with pytest.raises(errors.InUse, match="has v open, too"):
            live.delete("a", check=check)
    assert opened.digest("a") == live.points["a"]
    assert opened.close(live) and live.delete("a").changed
    live.forget("a")
    live.require_right()
    live.require_nothing_left()
