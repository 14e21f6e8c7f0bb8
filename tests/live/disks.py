# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with several disks, a volume that nobody has open, and a model of each."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import groups, reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .guest import CLUSTER, SIZE, Guest, Writer, digest, digest_of, named

BLOCK = 4096  # bytes, of an entry in the log that a guest writes on two disks


class Disks:
    """Volumes of one share: ``live`` ones, which a machine has as its disks in that order, and ``o``, which nobody has open.

    ``data`` is what each must show, ``points`` what each must show at a snapshot, and ``warned`` what tasks told.
    """

    def __init__(self, path: Path, formats: tuple[str, ...] = ("raw", "qcow2")) -> None:
        self.path = path
        self.share = Share(str(path), str(path), "directory")
        self.where = Candidates((self.share,))
        self.live = tuple("abc"[: len(formats)])
        self.names = (*self.live, "o")
        self.data = {name: bytearray(SIZE) for name in self.names}
        self.points: dict[str, dict[str, str]] = {}
        self.guest: Guest | None = None
        self.warned: list[str] = []
        for name, image_format in zip(self.names, (*formats, "qcow2")):
            request = updating.VolumeRequest(self.where, DesiredVolume(name, size=SIZE, format=image_format))
            volumes.ensure_present(request, self.options())

    # -- the machine -------------------------------------------------------------------------------------------------

    def start(self, paths: dict[str, str] | None = None, only: tuple[str, ...] | None = None, kind: str = "blockdev") -> Guest:
        """Start the machine on what info says, or on other files of some volumes, or without some of them."""
        disks = only if only is not None else self.live
        places = {name: self._place(name, (paths or {}).get(name)) for name in disks}
        more: list[str] = []
        for number, name in enumerate(disks[1:], 1):
            path, image_format = places[name]
            node = {"driver": image_format, "node-name": f"disk{number}", "file": {"driver": "file", "filename": path}}
            more += ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,id=d{number},drive=disk{number}"]
        path, image_format = places[disks[0]]
        self.disks = disks
        self.guest = Guest(path, image_format, self.data[disks[0]], kind, tuple(more))
        return self.guest

    def _place(self, name: str, file: str | None) -> tuple[str, str]:
        told = self.info(name)
        path = str(self.path / file) if file is not None else told["path"]
        return path, next(image["format"] for image in told["chain"] if image["file"] == os.path.basename(path))

    def end(self, how: str = "kill") -> None:
        if self.guest is not None:
            if self.guest.alive:
                (self.guest.kill if how == "kill" else self.guest.quit)()
            elif self.guest.process.returncode is None:
                self.guest.end()
        self.guest = None

    def give_back(self) -> None:
        """End the machine, and remove the share and the model."""
        self.end()
        self.data.clear()
        shutil.rmtree(self.path, ignore_errors=True)

    def write(self, name: str, offset: int, length: int, pattern: int) -> None:
        """Write as the guest does, and flush as a careful one would."""
        guest, number = self.guest, self.disks.index(name)
        assert guest is not None
        device = f"/machine/peripheral/d{number}/virtio-backend"
        with guest._lock:
            guest.qmp("human-monitor-command", command_line=f'qemu-io -d {device} "write -P {pattern} {offset} {length}"')
            told = guest._told()
            assert f"wrote {length}/{length} bytes" in told, told
            self.data[name][offset : offset + length] = bytes([pattern]) * length
            guest.qmp("human-monitor-command", command_line=f'qemu-io -d {device} "flush"')
            assert "rror" not in guest._told()

    def scribble(self, seed: int) -> None:
        """Some writes on each disk, different ones."""
        chance = random.Random(seed)
        for name in self.disks:
            for _time in range(2):
                length = chance.choice([512, 4096, CLUSTER, 3 * CLUSTER])
                self.write(name, chance.randrange(0, SIZE - length, 512), length, chance.randrange(1, 255))

    # -- tasks -------------------------------------------------------------------------------------------------------

    def options(self, **changes: Any) -> Options:
        attachment = self.guest.socket if self.guest is not None else None
        changes = {"lock_timeout": 5, "attachment": attachment, "task": Task(warn=self.warned.append), **changes}
        return Options(**{**changes, "attachment": named(changes["attachment"])})

    def together(self, name: str, *names: str, **options: Any) -> list:
        """One snapshot of all volumes, or of these."""
        return groups.take_group(self.where, list(names or self.names), DesiredSnapshot(name), self.options(**options))

    def snapshot(self, name: str, *names: str, **options: Any) -> list:
        """As :meth:`together`, noted in the model. The guest writes nothing meanwhile."""
        self.note(name, *names)
        done = self.together(name, *names, **options)
        assert all(not isinstance(one, StorageError) and one.changed for one in done)
        return done

    def now(self, volume: str) -> str:
        """What a snapshot of a volume must show that is taken now."""
        return digest_of(self.data[volume])

    def note(self, name: str, *names: str) -> None:
        """Note that a snapshot has what is there now."""
        for one in names or self.names:
            self.points.setdefault(one, {})[name] = digest_of(self.data[one])

    def task_on(self, name: str, **options: Any):
        """A task on one volume that changes nothing by itself."""
        request = updating.VolumeRequest(self.where, DesiredVolume(name, size=SIZE))
        return volumes.ensure_present(request, self.options(**options))

    def take(self, volume: str, name: str, **options: Any):
        return snapshots.take(snapshots.SnapshotRequest(self.where, volume, DesiredSnapshot(name)), self.options(**options))

    # -- what is there -----------------------------------------------------------------------------------------------

    def info(self, name: str) -> dict:
        (found,) = reading.list_volumes(self.share, [name])
        return found

    def tree(self) -> dict[str, tuple[int, int, str]]:
        """Every file with its inode, length and content."""
        found = {}
        for path in sorted(self.path.rglob("*")):
            if path.is_file() and ".remotefs/locks" not in str(path):
                found[str(path.relative_to(self.path))] = (path.stat().st_ino, path.stat().st_size, digest_of(path.read_bytes()))
        return found

    def point(self, volume: str, name: str) -> str:
        """What a snapshot shows."""
        told = self.info(volume)
        by_file = {image["file"]: image for image in told["chain"]}
        (file,) = [one["file"] for one in told["snapshots"] if one["name"] == name]
        below = by_file[by_file[file]["backing_file"]]
        return digest(str(self.path / below["file"]), below["format"])

    def content(self, volume: str) -> str:
        """What the file that ``.info`` calls active shows."""
        told = self.info(volume)
        return digest(told["path"], told["format"])

    def flush(self) -> None:
        """Let QEMU write what it holds in memory, so that others can see it."""
        if self.guest is not None and self.guest.alive:
            self.guest.flush()

    def require_right(self) -> None:
        """Every point and the present of every volume show what the model says."""
        self.flush()
        for name in self.names:
            told = self.info(name)
            assert "error_code" not in told, told
            assert sorted(one["name"] for one in told["snapshots"]) == sorted(self.points.get(name, {})), name
            assert self.content(name) == digest_of(self.data[name]), f"the present of {name} is wrong"
            for point, expected in self.points.get(name, {}).items():
                assert self.point(name, point) == expected, f"snapshot {point} of {name} is wrong"
            for image in told["chain"]:
                if image["format"] == "qcow2" and not (self.guest is not None and self.guest.alive):
                    command = ["qemu-img", "check", "-q", "-f", "qcow2", str(self.path / image["file"])]
                    assert subprocess.run(command, capture_output=True, check=False).returncode in (0, 3)

    def require_nothing_left(self) -> None:
        """No file but those of the chains, no pending work, no decision, no node of ours that is not used."""
        files = set()
        for name in self.names:
            told = self.info(name)
            assert told["pending"] is None
            files |= {image["file"] for image in told["chain"]} | {f"{name}.info"}
        assert {path.name for path in self.path.iterdir() if path.is_file()} <= files
        for folder in ("tmp", "groups"):
            place = self.path / ".remotefs" / folder
            assert not place.exists() or not os.listdir(place)
        if self.guest is not None and self.guest.alive:
            chains = {image["file"] for name in self.disks for image in self.info(name)["chain"]}
            assert set(self.guest.opened()) == chains


class Log(Writer):
    """The guest writes an entry on the first disk and then the same on the second, all the time, while the context lasts. At any one
    instant the first disk has as many entries as the second, or one more."""

    def __init__(self, disks: Disks, first: str = "a", second: str = "b") -> None:
        super().__init__()
        self._disks, self._pair, self.entries = disks, (first, second), 0

    def _write(self) -> None:
        try:
            for number in range(SIZE // BLOCK):
                for name in self._pair:
                    self._disks.write(name, number * BLOCK, BLOCK, 7)
                self.entries = number + 1
                if self._stop.is_set():
                    return
        except BaseException as error:
            self._failed = error


def entries_at(disks: Disks, volume: str, point: str) -> int:
    """How many entries of the log a snapshot has. It holds these entries, the oldest ones, and nothing else."""
    return _digests_of_logs().index(disks.point(volume, point))


@lru_cache(maxsize=None)
def _digests_of_logs() -> list[str]:
    most = SIZE // BLOCK
    return [digest_of(bytes([7]) * (count * BLOCK) + bytes((most - count) * BLOCK)) for count in range(most + 1)]
