# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume beside an in-memory model of it: every operation is done to both, and all contents are compared by hash.

QEMU's own tools are the judge: what a snapshot shows is what ``qemu-img convert`` reads from the file under its overlay.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume


def candidates(path: Path) -> Candidates:
    return Candidates((Share(str(path), str(path), "directory"),))


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def write_pattern(path: str, image_format: str, offset: int, length: int, value: int) -> None:
    run("qemu-io", "-f", image_format, "-c", f"write -P {value} {offset} {length}", path)


def read_content(path: str, image_format: str, scratch: Path) -> bytes:
    target = scratch / "content.raw"
    run("qemu-img", "convert", "-f", image_format, "-O", "raw", path, str(target))
    return target.read_bytes()


class World:
    """One volume ``vol`` on a share, and what it must contain: ``active`` and, oldest first, ``points``."""

    def __init__(self, share: Path, scratch: Path, image_format: str, size: int) -> None:
        self.share, self.scratch = share, scratch
        self.candidates = candidates(share)
        self.warnings: list[str] = []
        self.active = bytearray(size)
        self.points: dict[str, bytes] = {}
        self.taken = 0
        self.present(DesiredVolume("vol", size=size, format=image_format))

    # -- operations, each on the volume and on the model -------------------------------------------------------------

    def options(self, check: bool = False) -> Options:
        return Options(check=check, lock_timeout=5, task=Task(warn=self.warnings.append))

    def both_ways(self, operation) -> Outcome:
        """Predict in check mode, do it, and compare: changed, steps, and the chain that results."""
        before = sorted((path.name, path.stat().st_mtime_ns) for path in self.share.rglob("*"))
        predicted = operation(self.options(check=True))
        assert before == sorted((path.name, path.stat().st_mtime_ns) for path in self.share.rglob("*")), "check mode touched the share"
        done = operation(self.options())
        assert (predicted.changed, predicted.actions) == (done.changed, done.actions)
        if done.after:
            assert _shape(predicted.after) == _shape(done.after)
        again = operation(self.options())
        assert not again.changed and not again.actions
        return done

    def present(self, desired: DesiredVolume, source: updating.SourceRequest | None = None) -> Outcome:
        return self.both_ways(lambda options: volumes.ensure_present(updating.VolumeRequest(self.candidates, desired, source), options))

    def write(self, offset: int, length: int, value: int) -> None:
        volume = self.volume()
        length = min(length, len(self.active) - offset)
        if length > 0:
            write_pattern(volume["path"], volume["format"], offset, length, value)
            self.active[offset : offset + length] = bytes([value]) * length

    def snapshot(self) -> str:
        self.taken += 1
        return self.snapshot_named(f"s{self.taken}")

    def snapshot_named(self, name: str) -> str:
        request = snapshots.SnapshotRequest(self.candidates, "vol", DesiredSnapshot(name))
        self.both_ways(lambda options: snapshots.take(request, options))
        self.points[name] = bytes(self.active)
        return name

    def delete(self, names: list[str]) -> Outcome:
        done = self.both_ways(lambda options: snapshots.delete(self.candidates, "vol", names, options))
        for name in names:
            del self.points[name]
        return done

    def revert(self, name: str) -> None:
        self.both_ways(lambda options: snapshots.revert(self.candidates, "vol", name, True, options))
        order = list(self.points)
        for newer in order[order.index(name) + 1 :]:
            del self.points[newer]
        size = len(self.active)
        self.active = bytearray(self.points[name][:size].ljust(size, b"\0"))

    def grow(self, size: int) -> None:
        self.present(DesiredVolume("vol", size=size))
        self.active.extend(bytes(size - len(self.active)))

    def shrink_by_hand(self, size: int) -> None:
        """What an adopted chain can look like: a short overlay over longer files. Only on a fresh, empty overlay."""
        volume = self.volume()
        run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", volume["path"], str(size))
        del self.active[size:]

    def tail_by_hand(self, size: int, packed: bool, options: str = "") -> None:
        """What an adopted lone image can look like: old data behind its end. Only on a qcow2 volume without snapshots.

        :param size: bytes that it keeps. :param packed: compressed. :param options: of ``qemu-img convert``: cluster size, version.
        """
        path = self.share / "vol"
        write_pattern(str(path), "qcow2", 0, len(self.active), 0xEE)
        arguments = [*(["-c"] if packed else []), *(["-o", options] if options else [])]
        run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", *arguments, str(path), str(self.scratch / "tail"))
        path.write_bytes((self.scratch / "tail").read_bytes())
        run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", str(path), str(size))
        self.active = bytearray(b"\xee" * size)

    # -- looking -----------------------------------------------------------------------------------------------------

    def volume(self) -> dict:
        (found,) = reading.list_volumes(self.candidates.shares[0], ["vol"])
        assert "error_code" not in found, found
        return found

    def check(self, leaks: bool = False) -> None:
        """Every snapshot and the active image hold what the model holds, the images are sound, nothing is left over.

        :param leaks: clusters may be leaked, which is what a crash of qemu-img can leave at most.
        """
        volume = self.volume()
        formats = {image["file"]: image["format"] for image in volume["chain"]}
        backing = {image["file"]: image["backing_file"] for image in volume["chain"]}
        assert [snapshot["name"] for snapshot in volume["snapshots"]] == list(self.points)
        self._compare("active", volume["path"], volume["format"], bytes(self.active))
        for snapshot in volume["snapshots"]:
            point = backing[snapshot["file"]]
            self._compare(snapshot["name"], str(self.share / point), formats[point], self.points[snapshot["name"]])
        for file, image_format in formats.items():
            if image_format == "qcow2":
                sound = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(self.share / file)], check=False).returncode
                assert sound == 0 or (leaks and sound == 3), f"qemu-img check of {file} ends with {sound}"  # 3: leaked clusters only
        present = {path.name for path in self.share.iterdir() if path.is_file()}
        assert present - {"vol.info"} == set(formats), "files are left over"
        assert not list((self.share / ".remotefs" / "tmp").iterdir())
        assert volume["pending"] is None
        if self.points:
            info = json.loads((self.share / "vol.info").read_text())
            assert info == {"active": volume["chain"][0]["file"], **{one["name"]: one["file"] for one in volume["snapshots"]}}

    def _compare(self, name: str, path: str, image_format: str, expected: bytes) -> None:
        content = read_content(path, image_format, self.scratch)
        if hashlib.sha256(content).digest() != hashlib.sha256(expected).digest():
            first = next((index for index, (a, b) in enumerate(zip(content, expected)) if a != b), min(len(content), len(expected)))
            raise AssertionError(f"{name} differs from the model at byte {first}; {len(content)} and {len(expected)} bytes long")


def _shape(volume: dict) -> dict:
    """What check mode must predict of a volume: all but sizes on disk and times."""
    chain = [(image["file"], image["format"], image["backing_file"], image["size"]) for image in volume["chain"]]
    return {
        "chain": chain,
        "snapshots": [(one["name"], one["file"]) for one in volume["snapshots"]],
        "path": volume["path"],
        "size": volume["size"],
    }
