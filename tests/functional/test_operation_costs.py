# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of programs, fsyncs and opened files in docs/performance.md is what operations really cost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
from leaking import leak

from ansible_collections.remotefs.storage.plugins.module_utils import command, limited
from ansible_collections.remotefs.storage.plugins.module_utils.access import folders, guard, targets
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import (
    exporting,
    importing,
    leaked_clusters,
    leftovers,
    metrics,
    opened_points,
    reading,
    replicas,
    share_contents,
    snapshots,
    up_to_date,
    updating,
    volumes,
)
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

MIB = 1 << 20
PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


class Opened(NamedTuple):
    """How often an operation opens the share's directory, records, ``.info`` files and images: each is a round trip or more."""

    share: int = 0
    records: int = 0
    infos: int = 0
    images: int = 0

    def and_then(self, name: str) -> Opened:
        if name.startswith("/"):
            return self._replace(share=self.share + 1) if not name.startswith(("/dev/", "/proc/")) and not name.endswith(_IMAGE) else self
        if name in _FOLDERS or "~" in name or name.endswith(".lock"):
            return self
        kind = "records" if name.endswith(".json") else "infos" if name.endswith(".info") else "images"
        return self._replace(**{kind: getattr(self, kind) + 1})


_FOLDERS = (".", ".remotefs", "volumes", "tmp", "locks", "groups", "ballast", "images")
_IMAGE = "-to-import"


class Share1:
    """A share with volumes to work on, and counters around one operation."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.candidates = Candidates((Share(str(path), str(path), "directory"),))
        self.fsyncs, self.opened = 0, Opened()
        real, real_open = os.fsync, os.open

        def counted(fd: int) -> None:
            self.fsyncs += 1
            real(fd)

        def opened(name: str, flags: int, *arguments: Any, **named: Any) -> int:
            if not flags & os.O_PATH:  # that is a look at a name, which the server is asked for, but nothing that it opens
                self.opened = self.opened.and_then(str(name))
            return real_open(name, flags, *arguments, **named)

        monkeypatch.setattr(os, "fsync", counted)
        monkeypatch.setattr(os, "open", opened)

    def present(self, name: str, source: updating.SourceRequest | None = None, **desired) -> None:
        volumes.ensure_present(updating.VolumeRequest(self.candidates, DesiredVolume(name, **desired), source), Options())

    def snapshot(self, name: str) -> None:
        snapshots.take(snapshots.SnapshotRequest(self.candidates, "vol", DesiredSnapshot(name)), Options())

    def delete(self, *names: str) -> None:
        snapshots.delete(self.candidates, "vol", list(names), Options())

    def revert(self, name: str) -> None:
        snapshots.revert(self.candidates, "vol", name, True, Options())

    def write(self, value: int, offset: int = 0, length: int = MIB) -> None:
        """Content in the active image, so that merges have something to move."""
        (found,) = reading.list_volumes(self.candidates.shares[0], ["vol"])
        subprocess.run(["qemu-io", "-f", found["format"], "-c", f"write -q -P {value} {offset} {length}", found["path"]], check=True)

    @property
    def image(self) -> Path:
        """An image beside the share."""
        return self.path.parent / f"{self.path.name}{_IMAGE}"

    def make_image(self, image_format: str) -> None:
        subprocess.run(["qemu-img", "create", "-q", "-f", image_format, str(self.image), "8M"], check=True)
        subprocess.run(["qemu-io", "-f", image_format, "-c", "write -q -P 5 1M 1M", str(self.image)], check=True)

    def take_image(self) -> None:
        options = Options()
        volumes.ensure_present(updating.VolumeRequest(self.candidates, DesiredVolume("vol"), image=importing.ImageRequest(str(self.image))), options)
        importing.forget_all(options)

    def export(self, image_format: str) -> None:
        dest = exporting.ToFile(f"{self.path}-written")
        exporting.export(exporting.ExportRequest(self.candidates, "vol", "s2", dest, image_format), Options())

    def chain_and_image(self, image_format: str) -> None:
        self.chain()
        self.export(image_format)

    def chain(self) -> None:
        self.present("vol", size=8 * MIB)
        for number in range(1, 5):
            self.write(number, offset=number * MIB)
            self.snapshot(f"s{number}")
        self.write(9)

    @property
    def elsewhere(self) -> Path:
        """Another share."""
        return self.path.parent / f"{self.path.name}-elsewhere"

    def chain_elsewhere(self) -> None:
        self.elsewhere.mkdir()
        there, self.candidates = self.candidates, Candidates((Share(str(self.elsewhere), str(self.elsewhere), "directory"),))
        self.present("other", size=MIB)
        self.chain()
        self.candidates = there

    def replicate(self, match: str = "*") -> None:
        self.elsewhere.mkdir(exist_ok=True)
        there = Candidates((Share(str(self.elsewhere), str(self.elsewhere), "directory"),))
        replicas.replicate(up_to_date.ReplicaRequest(self.candidates, "vol", there, "vol", match), Options())

    def chain_and_replica(self, match: str) -> None:
        self.chain()
        self.replicate(match)

    def move(self) -> None:
        self.elsewhere.mkdir(exist_ok=True)
        there, left = Candidates((Share(str(self.elsewhere), str(self.elsewhere), "directory"),)), self.candidates
        elsewhere = updating.OtherShare("here", lambda: left)
        volumes.ensure_present(updating.VolumeRequest(there, DesiredVolume("vol"), moved_from=elsewhere), Options())

    def moved(self) -> None:
        self.chain()
        self.move()

    def restore(self) -> None:
        there = Candidates((Share(str(self.elsewhere), str(self.elsewhere), "directory"),))
        source = updating.SourceRequest("vol", "s2", elsewhere=updating.OtherShare("elsewhere", lambda: there))
        self.present("vol", source, size=16 * MIB, format="qcow2")

    def cloned(self) -> None:
        self.chain()
        self.present("copy", updating.SourceRequest("vol", "s2", True))

    def leftover(self) -> None:
        (self.path / ".remotefs" / "tmp" / "vol~0123456789ab").write_bytes(b"left")

    def tidy_up(self) -> None:
        leftovers.clean(self.candidates.shares[0], share_contents.find_leftovers(self.candidates.shares[0]), -1e9, Options())

    def leaky(self) -> None:
        self.present("vol", size=8 * MIB, format="qcow2")
        self.snapshot("s1")
        leak(self.path / "vol")

    def free_leaks(self) -> None:
        leaked_clusters.free(self.candidates.shares[0], Options())

    def open_and_close(self) -> None:
        """What is shown there is closed again, because the process that shows it would outlive the test."""
        if shutil.which("qemu-storage-daemon") is None:
            pytest.skip("needs qemu-storage-daemon, which Debian has in qemu-system-common")
        with tempfile.TemporaryDirectory(dir="/tmp") as short:
            runs, target = folders.AccessDirectory(f"{short}/run"), targets.target_at(guard.NBD, f"{short}/socket")
            opened_points.open_point(opened_points.OpenRequest(self.candidates, "vol", "s2", target, 60, runs), Options())
            opened_points.close_points(opened_points.CloseRequest(target, None, None, frozenset(), runs), Options())

    def chain_to_pull(self) -> None:
        """A chain in which the middle overlay holds more than the one beneath it, so that the cheapest merge pulls."""
        self.present("vol", size=8 * MIB)
        self.snapshot("s1")
        self.write(1, 0, MIB)
        self.snapshot("s2")
        self.write(2, 2 * MIB, 4 * MIB)
        self.snapshot("s3")
        self.write(3, MIB, MIB)
        self.snapshot("s4")


Prepare = Callable[[Share1], object]
OPERATIONS: dict[str, tuple[Prepare, Prepare]] = {
    "create raw": (lambda s: None, lambda s: s.present("vol", size=8 * MIB)),
    "create qcow2": (lambda s: None, lambda s: s.present("vol", size=8 * MIB, format="qcow2")),
    "snapshot": (lambda s: s.chain(), lambda s: s.snapshot("new")),
    "delete the oldest snapshot": (lambda s: s.chain(), lambda s: s.delete("s1")),
    "delete a middle snapshot": (lambda s: s.chain(), lambda s: s.delete("s3")),
    "delete the newest snapshot": (lambda s: s.chain(), lambda s: s.delete("s4")),
    "delete all four snapshots": (lambda s: s.chain(), lambda s: s.delete("s1", "s2", "s3", "s4")),
    "delete with a commit and a pull": (lambda s: s.chain_to_pull(), lambda s: s.delete("s2", "s3")),
    "extend raw": (lambda s: s.present("vol", size=8 * MIB), lambda s: s.present("vol", size=16 * MIB)),
    "extend qcow2": (lambda s: s.chain(), lambda s: s.present("vol", size=16 * MIB)),
    "full clone": (lambda s: s.chain(), lambda s: s.present("copy", updating.SourceRequest("vol", "s2"), size=16 * MIB, format="qcow2")),
    "full clone of a volume without snapshots": (
        lambda s: s.present("vol", size=8 * MIB),
        lambda s: s.present("copy", updating.SourceRequest("vol"), size=16 * MIB),
    ),
    "replica, first snapshot": (lambda s: s.chain(), lambda s: s.replicate("s1")),
    "replica, one more snapshot": (lambda s: s.chain_and_replica("s[1-3]"), lambda s: s.replicate()),
    "replica, nothing to send": (lambda s: s.chain_and_replica("*"), lambda s: s.replicate()),
    "move a volume without snapshots": (lambda s: s.present("vol", size=8 * MIB), lambda s: s.move()),
    "move a volume with four snapshots": (lambda s: s.chain(), lambda s: s.move()),
    "move a volume onto its replica": (lambda s: s.chain_and_replica("*"), lambda s: s.move()),
    "move a volume that has moved": (lambda s: s.moved(), lambda s: s.move()),
    "volume from another share": (lambda s: s.chain_elsewhere(), lambda s: s.restore()),
    "volume from a raw image": (lambda s: s.make_image("raw"), lambda s: s.take_image()),
    "volume from a qcow2 image": (lambda s: s.make_image("qcow2"), lambda s: s.take_image()),
    "volume from a vmdk image": (lambda s: s.make_image("vmdk"), lambda s: s.take_image()),
    "image of a snapshot, raw": (lambda s: s.chain(), lambda s: s.export("raw")),
    "image of a snapshot, qcow2": (lambda s: s.chain(), lambda s: s.export("qcow2")),
    "image of a snapshot that is there, raw": (lambda s: s.chain_and_image("raw"), lambda s: s.export("raw")),
    "image of a snapshot that is there, qcow2": (lambda s: s.chain_and_image("qcow2"), lambda s: s.export("qcow2")),
    "linked clone": (lambda s: s.chain(), lambda s: s.present("copy", updating.SourceRequest("vol", "s2", True))),
    "linked clone of the present content": (lambda s: s.chain(), lambda s: s.present("copy", updating.SourceRequest("vol", None, True))),
    "flatten a linked clone": (lambda s: s.cloned(), lambda s: s.present("copy", flatten=True)),
    "delete a linked clone": (lambda s: s.cloned(), lambda s: volumes.ensure_absent(s.candidates, "copy", False, Options())),
    "delete a snapshot under one that a clone rests on": (lambda s: s.cloned(), lambda s: s.delete("s1")),
    "revert": (lambda s: s.chain(), lambda s: s.revert("s4")),
    "revert and discard newer": (lambda s: s.chain(), lambda s: s.revert("s2")),
    "delete a volume": (lambda s: s.present("vol", size=8 * MIB), lambda s: volumes.ensure_absent(s.candidates, "vol", False, Options())),
    "delete a volume with four snapshots": (lambda s: s.chain(), lambda s: volumes.ensure_absent(s.candidates, "vol", True, Options())),
    "give back leaked clusters, none": (lambda s: s.chain(), lambda s: s.free_leaks()),
    "give back leaked clusters of one image": (lambda s: s.leaky(), lambda s: s.free_leaks()),
    "remove leftovers, none": (lambda s: s.chain(), lambda s: s.tidy_up()),
    "remove one leftover": (lambda s: (s.chain(), s.leftover()), lambda s: s.tidy_up()),  # type: ignore[func-returns-value]
    "open a point and close it again": (lambda s: s.chain(), lambda s: s.open_and_close()),
    "info of a share": (lambda s: s.chain(), lambda s: share_contents.of_share(s.candidates.shares[0], 2 * MIB, MIB)),
    "metrics of a share": (lambda s: s.chain(), lambda s: metrics.of_shares([str(s.path)], "/nowhere", "/nowhere", 60, True, 0)),
    "info": (lambda s: s.chain(), lambda s: reading.list_volumes(s.candidates.shares[0], [])),
}


def documented() -> dict[str, list[int]]:
    rows = re.findall(r"^\| ([a-z][^|]*?) \|((?: \d+ \|){6})$", PAGE.read_text(), re.MULTILINE)
    return {name: [int(number) for number in numbers.split("|")[:-1]] for name, numbers in rows}


@pytest.mark.parametrize("name", OPERATIONS)
def test_costs_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    share = Share1(tmp_path, monkeypatch)
    prepare, operation = OPERATIONS[name]
    monkeypatch.setattr(limited, "within", lambda _seconds, read, _subject: read(limited.heard_by_nobody))  # what a copy opens is counted here
    share.present("other", size=MIB)  # .remotefs exists, as on every share that was used before
    snapshots.take(snapshots.SnapshotRequest(share.candidates, "other", DesiredSnapshot("s")), Options())
    prepare(share)
    monkeypatch.setattr(qemu_img, "_version_checked", [])  # each operation as a task of its own: it asks qemu-img's version
    programs, share.fsyncs, share.opened = command.STARTED.total, 0, Opened()
    operation(share)
    assert [command.STARTED.total - programs, share.fsyncs, *share.opened] == documented()[name]


def test_the_table_is_complete() -> None:
    assert set(documented()) == set(OPERATIONS)
