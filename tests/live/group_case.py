# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A group snapshot that is killed, what happens to the machine then, and the next task, which is on any one of the volumes."""

from __future__ import annotations

import os

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse

from .disks import Disks
from .guest import digest_of
from .instants import killed_at

# reattach: the machine goes on. offline: it ends. restarted: on what info says. restarted and off: that, and off again. on the old files:
# all disks on the files that they had before. on one old file: the second disk alone. without one: on what info says, without the second disk.
AFTERMATHS = ("reattach", "offline", "restarted", "restarted and off", "on the old files", "on one old file", "without one")


class GroupCase:
    """A snapshot ``g`` of all volumes of a machine, and of one that nobody has open."""

    def __init__(self, disks: Disks, with_another: bool = True) -> None:
        self.disks = disks
        disks.start()
        disks.scribble(1)
        if with_another:
            disks.snapshot("x")
            disks.scribble(2)
        self.old = {name: disks.info(name)["path"].rpartition("/")[2] for name in disks.names}

    def run(self) -> object:
        """The task itself."""
        return self.disks.together("g")

    def kill(self, number: int, victim: str) -> None:
        """Run it, and kill the victim at an instant."""
        guest = self.disks.guest
        assert guest is not None
        self.before = {name: digest_of(self.disks.data[name]) for name in self.disks.names}
        killed_at(self.run, number, victim, guest.process.pid)
        if victim in ("machine", "both"):
            guest.end()

    def go_on(self, aftermath: str) -> None:
        """What happens to the machine before the next task. The guest writes on, wherever it runs."""
        disks = self.disks
        if aftermath == "nothing":
            return
        assert disks.guest is not None
        if aftermath == "reattach":
            disks.scribble(20)
            return
        if disks.guest.alive:
            disks.guest.kill()
        disks.guest = None
        self.require_invariant()
        if aftermath == "offline":
            return
        old = {"on the old files": disks.live, "on one old file": disks.live[1:2]}.get(aftermath, ())
        disks.start({name: self.old[name] for name in old}, tuple(name for name in disks.live if aftermath != "without one" or name != disks.live[1]))
        disks.scribble(20)
        if aftermath == "restarted and off":
            disks.end("quit")
            self.require_invariant()

    def require_invariant(self) -> None:
        """The file that ``.info`` calls active shows all that the guest has flushed, on each disk."""
        for name in self.disks.names:
            assert self.disks.content(name) == digest_of(self.disks.data[name]), f"the active image of {name} does not show what the guest has flushed"

    def end(self, aftermath: str, volume: str) -> str:
        """The next task, on one volume: all of them end in the same way. Returns how."""
        disks = self.disks
        told = {name: disks.info(name) for name in disks.names}
        done = [name for name in disks.names if told[name]["pending"] is None and "g" in [one["name"] for one in told[name]["snapshots"]]]
        self.go_on(aftermath)
        if disks.guest is not None and volume not in disks.disks and told[volume]["pending"] is None:
            volume = disks.disks[0]  # nothing of it is left, and the machine does not have it: that monitor is not its attachment
        if done and aftermath in ("on the old files", "on one old file"):  # they are no volume's any more
            with pytest.raises(InUse):
                disks.take(disks.live[1], "after")
            return "refused"
        decided = bool(os.listdir(disks.path / ".remotefs" / "groups")) if (disks.path / ".remotefs" / "groups").exists() else False
        now = {name: digest_of(disks.data[name]) for name in disks.names}
        predicted = disks.task_on(volume, check=True)
        ended = disks.task_on(volume)
        if decided:
            assert not [name for name in disks.names if disks.info(name)["pending"]], "one volume was ended without the others"
        for name in disks.names:  # what one has on record alone, of an undecided group; a file that was to be removed
            if name in disks.disks:
                disks.task_on(name)
            else:
                disks.task_on(name, attachment=None)
        assert predicted.recovered == ended.recovered
        having = [name for name in disks.names if "g" in [one["name"] for one in disks.info(name)["snapshots"]]]
        assert having in ([], list(disks.names)), f"only {having} have the snapshot"
        disks.flush()
        if having:
            points = {name: disks.point(name, "g") for name in disks.names}
            assert points in (self.before, now), "the points of the group are of several instants"
            for name in disks.names:
                disks.points.setdefault(name, {})["g"] = points[name]
        disks.require_right()
        disks.require_nothing_left()
        if disks.guest is not None:
            disks.scribble(21)
        disks.snapshot("after", *(disks.names if disks.guest is None else (*disks.disks, "o")))
        if disks.guest is not None:
            disks.scribble(22)
            disks.require_right()
            disks.end()
        disks.require_right()
        return f"{'finished' if having else 'gone'}: {[one['outcome'] for one in ended.recovered]}"
