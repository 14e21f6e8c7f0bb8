# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume on which Cinder and the collection take turns, beside an in-memory model of it.

After every turn both sides are asked what they would show for the active data and for each snapshot; the contents are
compared with the model by hash. Volumes are whole GiB, as Cinder has them, and nearly all holes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import uuid
from pathlib import Path

from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .cinder_driver import EXPORT, Cinder, CinderVolume

GIB = 1 << 30
PAGE = 4096


class Content:
    """What a disk holds: its size in bytes, and the value that fills each page that is not zero."""

    def __init__(self, size: int, pages: dict[int, int] | None = None) -> None:
        self.size, self.pages = size, dict(pages or {})

    def copy(self, size: int | None = None) -> Content:
        wanted = self.size if size is None else size
        return Content(wanted, {page: value for page, value in self.pages.items() if (page + 1) * PAGE <= wanted})

    def write(self, offset: int, length: int, value: int) -> None:
        for page in range(offset // PAGE, (offset + length) // PAGE):
            self.pages[page] = value

    def digest(self) -> str:
        total = hashlib.sha256(str(self.size).encode())
        for page in sorted(self.pages):
            if self.pages[page]:
                total.update(page.to_bytes(8, "little") + bytes([self.pages[page]]) * PAGE)
        return total.hexdigest()


def digest_of(path: str, image_format: str) -> str:
    """The same digest of what qemu-img reads from a chain; holes are skipped, all that is not zero is hashed."""
    with tempfile.NamedTemporaryFile(prefix="remotefs-interop-") as flat:
        subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", path, flat.name], check=True)
        size = os.path.getsize(flat.name)
        total = hashlib.sha256(str(size).encode())
        with open(flat.name, "rb") as content:
            offset = _next_data(content.fileno(), 0)
            while offset is not None:
                page = os.pread(content.fileno(), PAGE, offset)
                if page.count(0) != len(page):
                    total.update((offset // PAGE).to_bytes(8, "little") + page)
                offset = _next_data(content.fileno(), offset + PAGE)
        return total.hexdigest()


def _next_data(fd: int, offset: int) -> int | None:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) // PAGE * PAGE
    except OSError:
        return None


class Turns:
    """One volume that Cinder made. ``told`` keeps Cinder's database in line, as docs/cinder.md asks of operators."""

    def __init__(self, directory: Path, qcow2: bool, told: bool = True) -> None:
        self.cinder = Cinder(directory, qcow2)
        self.keep_told = told
        self.base_format = "qcow2" if qcow2 else "raw"
        self.volume = self.cinder.create_volume(1)
        self.active = Content(GIB)
        self.points: dict[str, Content] = {}

    def close(self) -> None:
        self.cinder.close()

    @property
    def share(self) -> Path:
        return self.cinder.share

    @property
    def name(self) -> str:
        return self.volume.name

    @property
    def candidates(self) -> Candidates:
        return Candidates((Share(EXPORT, str(self.share), "directory"),))

    # -- neither ------------------------------------------------------------------------------------------------------

    def write(self, offset: int, length: int, value: int) -> None:
        path, image_format = self.cinder.attached(self.volume)
        subprocess.run(["qemu-io", "-f", image_format, "-c", f"write -q -P {value} {offset} {length}", path], check=True)
        self.active.write(offset, length, value)

    # -- Cinder's turn ------------------------------------------------------------------------------------------------

    def cinder_snapshot(self, name: str | None = None) -> str:
        name = name or str(uuid.uuid4())
        self.cinder.create_snapshot(self.volume, name)
        self.points[name] = self.active.copy()
        return name

    def cinder_delete(self, name: str) -> None:
        self.cinder.delete_snapshot(self.volume, name)
        del self.points[name]

    def cinder_extend(self) -> None:
        self.cinder.extend(self.volume, self.volume.size + 1)
        self.active = self.active.copy(self.volume.size * GIB)

    def cinder_copy(self, name: str | None) -> None:
        """A volume made from a snapshot, or a clone of the volume; compared and removed, the one by us, the other by Cinder."""
        made = self.cinder.from_snapshot(self.volume, name) if name else self.cinder.clone(self.volume)
        expected = self.points[name] if name else self.active
        assert digest_of(str(self.share / made.name), self.base_format) == expected.digest()
        if name is None:
            self.cinder.delete_volume(made)
        else:
            self.adopt(made)
            volumes.ensure_absent(self.candidates, made.name, False, Options())
        assert not list(self.share.glob(made.name + "*"))

    # -- the collection's turn ----------------------------------------------------------------------------------------

    def adopt(self, volume: CinderVolume | None = None) -> Outcome:
        desired = DesiredVolume((volume or self.volume).name, format=self.base_format)
        return volumes.ensure_present(updating.VolumeRequest(self.candidates, desired), Options())

    def our_snapshot(self, name: str | None = None) -> str:
        name = name or str(uuid.uuid4())
        self.adopt()
        snapshots.take(snapshots.SnapshotRequest(self.candidates, self.name, DesiredSnapshot(name)), Options())
        self.points[name] = self.active.copy()
        self._tell()
        return name

    def our_delete(self, names: list[str]) -> Outcome:
        done = snapshots.delete(self.candidates, self.name, names, Options())
        for name in names:
            del self.points[name]
        self._tell()
        return done

    def our_extend(self) -> None:
        self.adopt()
        desired = DesiredVolume(self.name, size=self.active.size + GIB)
        volumes.ensure_present(updating.VolumeRequest(self.candidates, desired), Options())
        self.active = self.active.copy(self.active.size + GIB)
        self._tell()

    def our_revert(self, name: str) -> None:
        snapshots.revert(self.candidates, self.name, name, True, Options())
        order = list(self.points)
        for newer in order[order.index(name) + 1 :]:
            del self.points[newer]
        self.active = Content(self.active.size, self.points[name].pages)
        self._tell()

    def our_copy(self, name: str | None) -> None:
        self.adopt()
        source = updating.SourceRequest(self.name, name)
        desired = DesiredVolume("copy", format="qcow2")
        volumes.ensure_present(updating.VolumeRequest(self.candidates, desired, source), Options())
        expected = self.points[name] if name else self.active
        assert digest_of(str(self.share / "copy"), "qcow2") == expected.digest()
        volumes.ensure_absent(self.candidates, "copy", False, Options())

    def _tell(self) -> None:
        if self.keep_told:
            seen = self.look()
            self.cinder.told(self.volume, seen["size"] // GIB, seen["format"], seen["base_format"] or self.base_format)

    # -- looking ------------------------------------------------------------------------------------------------------

    def look(self) -> dict:
        (found,) = reading.list_volumes(self.candidates.shares[0], [self.name])
        assert "error_code" not in found, found
        return found

    def files(self) -> list[str]:
        return sorted(path.name for path in self.share.iterdir() if path.is_file())

    def check(self) -> None:
        """What the collection and what Cinder would show is what the model holds, and no file is left over."""
        seen = self.look()
        formats = {image["file"]: image["format"] or self.base_format for image in seen["chain"]}
        backing = {image["file"]: image["backing_file"] for image in seen["chain"]}
        ours = {one["name"]: backing[one["file"]] for one in seen["snapshots"]}
        assert list(ours) == list(self.points)
        assert self.cinder.snapshots(self.volume) == sorted(self.points)
        assert set(self.files()) - {self.name + ".info"} == set(formats)
        active_path, active_format = self.cinder.attached(self.volume)
        assert (active_path, active_format) == (seen["path"], formats[os.path.basename(seen["path"])])
        assert digest_of(active_path, active_format) == self.active.digest(), "the active data"
        for name, content in self.points.items():
            path, image_format = self.cinder.point(self.volume, name)
            assert (os.path.basename(path), image_format) == (ours[name], formats[ours[name]])
            assert digest_of(path, image_format) == content.digest(), f"snapshot {name}"
        for file, image_format in formats.items():
            if image_format == "qcow2":
                subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(self.share / file)], check=True)

    def end(self, by_cinder: bool) -> None:
        """Delete what snapshots are left, one by Cinder and one by us in turns, and then the volume."""
        for number, name in enumerate(list(self.points)):
            if number % 2:
                self.cinder_delete(name)
            else:
                self.our_delete([name])
            self.check()
        if by_cinder:
            self.cinder.delete_volume(self.volume)
        else:
            self.adopt()
            volumes.ensure_absent(self.candidates, self.name, False, Options())
        assert self.files() == []

    def info(self) -> dict:
        return json.loads((self.share / f"{self.name}.info").read_text())
