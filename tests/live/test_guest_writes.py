# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that writes through its own device all the time, also while a finished merge rests and its writes wait.

Every point shows the writes up to some instant, all of them and no later one; the present shows all that were complete.
"""

from __future__ import annotations

from typing import Callable

import pytest

from .guest import SIZE, Live, digest
from .instants import VICTIMS, instants, killed_at
from .tiny_guest import TinyGuest, last_write


class Watched:
    """A volume whose guest writes by itself."""

    def __init__(self, live: Live, kind: str = "blockdev") -> None:
        self.live, self.kind = live, kind
        self.guest = self.start()
        self.shown: dict[str, tuple[int, str]] = {}  # by snapshot: its last write, and its content

    def start(self) -> TinyGuest:
        told = self.live.info()
        self.live.guest = self.guest = TinyGuest(told["path"], told["format"], self.live.data, self.kind)
        return self.guest

    def take(self, name: str) -> None:
        before = self.guest.writes()
        assert self.live.take(name).changed
        after = self.guest.writes()
        self.guest.wait_for_writes(10)
        self.require_right(name)
        assert before <= self.shown[name][0] <= after + 1, "the point is of another time than the task"

    def delete(self, *names: str) -> None:
        assert self.live.delete(*names).changed
        self.guest.wait_for_writes(10)
        self.shown = {name: point for name, point in self.shown.items() if name not in names}
        self.require_right()

    def require_right(self, new: str | None = None) -> None:
        """Each point shows a state that was, and always the same."""
        told = self.live.info()
        by_file = {image["file"]: image for image in told["chain"]}
        assert {one["name"] for one in told["snapshots"]} == {*self.shown, *([new] if new else ())}
        for one in told["snapshots"]:
            below = by_file[by_file[one["file"]]["backing_file"]]
            path, image_format = str(self.live.path / below["file"]), below["format"]
            found = last_write(path, image_format), digest(path, image_format)
            assert self.shown.setdefault(one["name"], found) == found, f"snapshot {one['name']} has changed"

    def kill(self) -> None:
        """Kill the machine, and look at the file that ``.info`` calls active."""
        complete = self.guest.writes()
        self.guest.kill()
        told = self.live.info()
        assert last_write(told["path"], told["format"]) >= complete, "writes that were complete are gone"
        self.require_right()


@pytest.mark.parametrize("image_format, kind", [("raw", "blockdev"), ("qcow2", "blockdev"), ("raw", "iothread"), ("qcow2", "iothread"), ("qcow2", "filter")])
def test_a_life(make: Callable[..., Live], image_format: str, kind: str) -> None:
    watched = Watched(make(image_format), kind)
    for name in "abcd":
        watched.take(name)
    assert watched.live.present(size=2 * SIZE).changed
    watched.delete("b")
    watched.delete("d")
    watched.take("e")
    watched.delete("a", "e")
    watched.delete("c")
    watched.kill()
    watched.live.require_nothing_left()


@pytest.mark.parametrize("what", ["after job-complete", "after rename of v.info", "after job-finalize"])
@pytest.mark.parametrize("victim", [one for one in VICTIMS if one not in ("machine", "both")])
def test_killed_while_writes_wait(make: Callable[..., Live], what: str, victim: str) -> None:
    """The guest goes on by itself, unless nobody is left to let it; then the next task does. Nothing that it wrote is lost."""
    watched = Watched(make("raw"))
    watched.take("a")
    (number,) = [one.number for one in instants(lambda: watched.live.delete("a")) if one.what == what]
    watched.shown = {}
    watched.take("a")
    killed_at(lambda: watched.live.delete("a"), number, victim, watched.guest.process.pid)
    if victim != "guardian too":
        watched.guest.wait_for_writes(10)
    done = watched.live.take("after")
    assert done.recovered[0]["operation"] == "delete_snapshot" and done.recovered[0]["outcome"] == "finished"
    watched.guest.wait_for_writes(10)
    watched.shown = {}
    watched.require_right("after")
    watched.kill()
    watched.live.require_nothing_left()


@pytest.mark.parametrize("what", ["after job-complete", "after rename of v.info", "after job-finalize"])
def test_machine_and_task_killed_while_writes_wait(make: Callable[..., Live], what: str) -> None:
    """A machine that is started on what info says goes on from the last complete write."""
    watched = Watched(make("raw"))
    watched.take("a")
    (number,) = [one.number for one in instants(lambda: watched.live.delete("a")) if one.what == what]
    watched.shown = {}
    watched.take("a")
    complete = watched.guest.writes()
    killed_at(lambda: watched.live.delete("a"), number, "both", watched.guest.process.pid)
    watched.guest.end()
    told = watched.live.info()
    assert last_write(told["path"], told["format"]) >= complete
    watched.live.guest = None
    assert watched.live.take("after").changed
    told = watched.live.info()
    assert last_write(told["path"], told["format"]) >= complete
