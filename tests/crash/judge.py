# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What volumes must hold, and the comparison of a share with it. QEMU's tools read the images; Python compares."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading

_MODE = 0o660


@dataclass(frozen=True)
class Wanted:
    """Content of one volume and of its snapshots, oldest first; ``stale`` are entries of ``.info`` without an overlay in the chain.
    Of one in whose chain a file is missing, ``remains`` has the hashes of the files that are there, and nothing else counts."""

    active: bytes
    points: dict[str, bytes] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    remains: dict[str, str] = field(default_factory=dict)

    def without(self, *names: str) -> Wanted:
        points = {name: data for name, data in self.points.items() if name not in names}
        return replace(self, points=points, stale=tuple(name for name in self.stale if name not in names))

    def with_point(self, name: str) -> Wanted:
        return replace(self, points={**self.points, name: self.active})


Model = dict[str, Wanted]


class Judge:
    """Compares shares with models. Images of equal bytes under equal names are read by QEMU once."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._known: dict[tuple, str] = {}
        self._expected: dict[int, tuple[bytes, str]] = {}

    def check(self, share: Path, model: Model, kept: tuple[str, ...] = ()) -> None:
        """:param kept: what may be left in ``.remotefs``, as beginnings of names: images that were to become volumes, leases.

        :raises AssertionError: a content, a name or a file is not what the model says."""
        found = {volume["name"]: volume for volume in listed(share)}
        assert sorted(found) == sorted(model), f"volumes {sorted(found)} instead of {sorted(model)}"
        files = {path.name for path in share.iterdir() if path.is_file()}
        for name, wanted in model.items():
            if wanted.remains:
                assert found[name].get("error_code") == "chain_broken" and "pending" not in found[name], found[name]
                assert {file: _hash_file(share / file) for file in wanted.remains if file in files} == wanted.remains
                files -= set(wanted.remains)
                continue
            self._check_volume(share, found[name], wanted)
            files -= {one["file"] for one in found[name]["chain"] + found[name]["stale"]} | {f"{name}.info"}
        assert not files, f"files are left over: {sorted(files)}"
        _nothing_left_in_private(share, model, kept)

    def _check_volume(self, share: Path, volume: dict, wanted: Wanted) -> None:
        name = volume["name"]
        assert "error_code" not in volume, volume
        assert volume["pending"] is None, f"{name} still has interrupted work: {volume['pending']}"
        order = [one["name"] for one in volume["snapshots"]]
        assert order == list(wanted.points), f"{name} has the snapshots {order} instead of {list(wanted.points)}"
        assert [one["name"] for one in volume["stale"]] == list(wanted.stale), f"{name} has the stale entries {volume['stale']}"
        assert all(one["created"] for one in volume["snapshots"]), f"a snapshot of {name} lost its time"
        hashes = {image["file"]: _hash_file(share / image["file"]) for image in volume["chain"]}
        for image in volume["chain"]:
            self._check_file(share, image, hashes)
        self._require_contents(share, volume, wanted)
        _check_info(share, volume)

    def require_shown(self, share: Path, name: str, wanted: Wanted) -> None:
        """:raises AssertionError: a volume does not show all of this, whatever else is unfinished there."""
        (volume,) = [one for one in listed(share) if one["name"] == name]
        assert "error_code" not in volume, volume
        self._require_contents(share, volume, wanted)

    def _require_contents(self, share: Path, volume: dict, wanted: Wanted) -> None:
        hashes = {image["file"]: _hash_file(share / image["file"]) for image in volume["chain"]}
        files = [image["file"] for image in volume["chain"]]
        self._compare(share, volume, files[0], hashes, wanted.active, f"{volume['name']}, active image")
        overlays = {one["name"]: one["file"] for one in volume["snapshots"]}
        assert list(overlays) == list(wanted.points), f"{volume['name']} has the snapshots {list(overlays)} instead of {list(wanted.points)}"
        for point, expected in wanted.points.items():
            self._compare(share, volume, files[files.index(overlays[point]) + 1], hashes, expected, f"{volume['name']}, snapshot {point}")

    def _check_file(self, share: Path, image: dict, hashes: dict[str, str]) -> None:
        status = os.stat(share / image["file"])
        assert status.st_nlink == 1, f"{image['file']} has {status.st_nlink} names"
        assert stat.S_IMODE(status.st_mode) == _MODE, f"{image['file']} has mode {stat.S_IMODE(status.st_mode):o}"
        if image["format"] != "qcow2":
            return
        key = ("sound", hashes[image["file"]])
        if key not in self._known:
            ended = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(share / image["file"])], check=False, capture_output=True)
            self._known[key] = str(ended.returncode)
        assert self._known[key] in ("0", "3"), f"qemu-img check of {image['file']} ends with {self._known[key]}"  # 3: leaked clusters only

    def _compare(self, share: Path, volume: dict, file: str, hashes: dict[str, str], expected: bytes, what: str) -> None:
        files = [image["file"] for image in volume["chain"]]
        below = volume["chain"][files.index(file) :]
        key = tuple((image["file"], image["format"], hashes[image["file"]]) for image in below)
        target = self._scratch / "content.raw"
        if key not in self._known:
            subprocess.run(["qemu-img", "convert", "-f", below[0]["format"], "-O", "raw", str(share / file), str(target)], check=True)
            self._known[key] = hashlib.blake2b(target.read_bytes()).hexdigest()
        if self._known[key] != self._hash_expected(expected):
            raise AssertionError(f"{what} differs from what it must hold ({file} over {[image['file'] for image in below[1:]]})")

    def _hash_expected(self, expected: bytes) -> str:
        if id(expected) not in self._expected:
            self._expected[id(expected)] = (expected, hashlib.blake2b(expected).hexdigest())
        return self._expected[id(expected)][1]


def listed(share: Path) -> list[dict]:
    return reading.list_volumes(Share(str(share), str(share), "directory"), [])


def left_by_stale(share: Path, name: str) -> dict[str, str]:
    """Hashes of a volume's files and its ``.info``, as far as they are there."""
    return {path.name: _hash_file(path) for path in share.iterdir() if path.is_file() and (path.name == name or path.name.startswith(f"{name}."))}


def _hash_file(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes()).hexdigest()


def _check_info(share: Path, volume: dict) -> None:
    path = share / f"{volume['name']}.info"
    if volume["snapshots"] or path.exists():
        wanted = {"active": volume["chain"][0]["file"], **{one["name"]: one["file"] for one in volume["snapshots"] + volume["stale"]}}
        assert json.loads(path.read_text()) == wanted, f"{path.name} is not what the chain says"


def _nothing_left_in_private(share: Path, model: Model, kept: tuple[str, ...]) -> None:
    private = share / ".remotefs"
    left = {str(path.relative_to(private)) for path in private.rglob("*") if path.is_file()}
    left -= {f"volumes/{name}.json" for name in model}
    left = {name for name in left if not name.startswith(("locks/", "ballast/", *kept))}
    assert not left, f"files are left over in .remotefs: {sorted(left)}"
