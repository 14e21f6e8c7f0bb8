# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of docs/recipes.md that take a share over from Cinder and give it back, between two turns of Cinder's own driver."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Iterator

import pytest
import yaml

from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .cinder_driver import CinderVolume
from .turns import GIB, PAGE, Turns, digest_of

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
BLOCK = 16 * PAGE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("ansible-playbook"), reason="needs ansible-playbook beside Cinder's environment"),
]


def playbook(first_words: str) -> list:
    (found,) = [text for text in re.findall(r"^```yaml\n(.*?)^```$", RECIPES.read_text(), re.MULTILINE | re.DOTALL) if first_words in text]
    return yaml.safe_load(found)


TAKE_OVER, GIVE_BACK = playbook("Take over all volumes of Cinder's"), playbook("Prepare everything for Cinder again")


class Share:
    """Volumes that Cinder's driver has made, and the playbooks on them. ``shown`` is what each volume and snapshot of Cinder's shows."""

    def __init__(self, world: Turns, tmp_path: Path, environment: dict) -> None:
        self.world, self.cinder, self.tmp_path = world, world.cinder, tmp_path
        self.environment = {**environment, "ANSIBLE_GATHERING": "explicit", "ANSIBLE_STDOUT_CALLBACK": "default"}

    def play(self, book: list, *options: str) -> str:
        done = self.played(book, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def played(self, book: list, *options: str) -> subprocess.CompletedProcess:
        path = self.tmp_path / "book.yml"
        path.write_text(json.dumps(book).replace("hypervisor", "localhost").replace("nas1:/vols", str(self.world.share)))
        return subprocess.run(["ansible-playbook", *options, str(path)], env=self.environment, capture_output=True, text=True, check=False)

    def write(self, volume: CinderVolume, number: int, length: int = BLOCK) -> None:
        path, image_format = self.cinder.attached(volume)
        subprocess.run(["qemu-io", "-f", image_format, "-c", f"write -q -P {number} {number * BLOCK} {length}", path], check=True)

    def digest(self, volume: CinderVolume) -> str:
        """By the path and the format with which Cinder would attach it."""
        return digest_of(*self.cinder.attached(volume))

    def point(self, volume: CinderVolume, name: str) -> str:
        return digest_of(*self.cinder.point(volume, name))

    def look(self, name: str) -> dict:
        (found,) = reading.list_volumes(self.world.candidates.shares[0], [name])
        assert "error_code" not in found, found
        return found

    def grow(self, volume: CinderVolume, size: int) -> None:
        volumes.ensure_present(updating.VolumeRequest(self.world.candidates, DesiredVolume(volume.name, size=size)), Options())

    def linked(self, name: str, source: str, snapshot: str | None) -> None:
        volumes.ensure_present(
            updating.VolumeRequest(self.world.candidates, DesiredVolume(name), updating.SourceRequest(source, snapshot, linked=True)), Options()
        )

    def files(self) -> set[str]:
        return {path.name for path in self.world.share.iterdir() if path.is_file()}


@pytest.fixture
def share(turns: Turns, tmp_path: Path, ansible_environment: dict) -> Iterator[Share]:
    yield Share(turns, tmp_path, ansible_environment)


def changed(said: str) -> int:
    (found,) = re.findall(r"changed=(\d+)", said)
    return int(found)


def ours(found: dict) -> list[str]:
    """Snapshots whose names are no UUIDs."""
    return [one["name"] for one in found["snapshots"] if len(one["name"]) != 36]


def test_leaving_cinder_and_going_back(share: Share) -> None:
    cinder, usual = share.cinder, ("-e", f"usual={share.world.base_format}")
    # Cinder's turn: a volume without snapshots, one with two, one made from a snapshot, and one that lost its last snapshot.
    plain, kept = share.world.volume, cinder.create_volume(2)
    share.write(plain, 1)
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    for number, name in enumerate((first, second)):
        share.write(kept, number + 2)
        cinder.create_snapshot(kept, name)
    share.write(kept, 4)
    made, emptied = cinder.from_snapshot(kept, first), cinder.create_volume(1)
    share.write(emptied, 5)
    gone = str(uuid.uuid4())
    cinder.create_snapshot(emptied, gone)
    cinder.delete_snapshot(emptied, gone)
    (share.world.share / "README.txt").write_text("not a volume")
    everything = (plain, kept, made, emptied)
    shown = {one.name: share.digest(one) for one in everything}
    points = {name: share.point(kept, name) for name in (first, second)}
    left = share.files()

    # Taken over, once.
    assert changed(share.play(TAKE_OVER, *usual, "--check")) >= 1 and share.files() == left
    assert changed(share.play(TAKE_OVER, *usual)) == 2
    assert changed(share.play(TAKE_OVER, *usual)) == 0
    for one in everything:
        found = share.look(one.name)
        assert digest_of(found["path"], found["format"]) == shown[one.name] and len(ours(found)) == 1
        assert found["base_format"] == share.world.base_format
    assert [one["name"] for one in share.look(kept.name)["snapshots"]][:2] == [first, second]

    # Work: writes, a name that Cinder refuses, linked clones (one rests on another), a volume that grows.
    for number, one in enumerate(everything):
        found = share.look(one.name)
        subprocess.run(["qemu-io", "-f", found["format"], "-c", f"write -q -P 9 {number * BLOCK} {2 * BLOCK}", found["path"]], check=True)
    snapshots.take(snapshots.SnapshotRequest(share.world.candidates, plain.name, DesiredSnapshot("before-upgrade", protected=True)), Options())
    share.linked("ci-1", kept.name, first)
    share.linked("ci-2", "ci-1", None)
    share.linked("ci-3", plain.name, None)
    adopted = CinderVolume(2, cinder.volumes)  # a clone that becomes a volume of Cinder's
    share.linked(adopted.name, "ci-1", "clone-ci-2")
    share.grow(plain, GIB + GIB // 2)
    clones = {name: digest_of(share.look(name)["path"], "qcow2") for name in ("ci-1", "ci-2", "ci-3")}
    shown = {one.name: digest_of(share.look(one.name)["path"], share.look(one.name)["format"]) for one in (*everything, adopted)}

    # Given back. The size is told, and nothing else is in the way.
    refused = share.played(GIVE_BACK)
    assert refused.returncode and f"Cinder cannot attach {plain.name}: grow each" in refused.stdout + refused.stderr, refused.stdout
    assert changed(refused.stdout) == 2
    share.grow(plain, 2 * GIB)
    shown[plain.name] = digest_of(share.look(plain.name)["path"], share.look(plain.name)["format"])
    said = share.play(GIVE_BACK)
    assert changed(said) == 0 and changed(share.play(GIVE_BACK)) == 0
    told = {name: (int(size), *formats) for name, size, *formats in re.findall(r"(volume-[-0-9a-f]+): size (\d+), format (\w+), base_format (\w+)", said)}
    assert set(told) == set(shown)
    for name, digest in clones.items():
        found = share.look(name)
        assert (found["parent"] is None) == (name != "ci-2") and digest_of(found["path"], "qcow2") == digest

    # Cinder's turn. Its database needs the size of the volume that grew, and the formats of the new one.
    cinder.told(plain, *told[plain.name])
    cinder.told(adopted, *told[adopted.name])
    assert told[plain.name][0] == 2 and told[adopted.name] == (2, "qcow2", "qcow2")
    everything = (*everything, adopted)
    for one in everything:
        assert told[one.name] == (one.size, cinder.attached(one)[1], "qcow2" if one is adopted else share.world.base_format)
        assert cinder.snapshots(one) == (sorted((first, second)) if one is kept else [])
        assert share.digest(one) == shown[one.name]
    assert {name: share.point(kept, name) for name in points} == points
    for one in everything:
        name = str(uuid.uuid4())
        cinder.create_snapshot(one, name)
        assert share.point(one, name) == share.digest(one) == shown[one.name]
        cinder.delete_snapshot(one, name)
        assert share.digest(one) == shown[one.name]
    cinder.delete_snapshot(kept, second)
    cinder.delete_snapshot(kept, first)
    assert share.digest(kept) == shown[kept.name]
    cinder.extend(plain, 3)
    for one in everything:
        cinder.delete_volume(one)
    assert {name for name in share.files() if name.startswith("volume-")} == set()
    for name, digest in clones.items():
        assert digest_of(share.look(name)["path"], "qcow2") == digest, "what Cinder does now reaches no clone"


def test_volumes_of_both_formats(share: Share) -> None:
    """As Cinder leaves them whose ``nfs_qcow2_volumes`` was changed in between."""
    other = "raw" if share.world.base_format == "qcow2" else "qcow2"
    name = f"volume-{uuid.uuid4()}"
    subprocess.run(["qemu-img", "create", "-q", "-f", other, str(share.world.share / name), "1G"], check=True)
    before = share.files()
    refused = share.played(TAKE_OVER, "-e", f"usual={share.world.base_format}")
    why = f"They are in another format, or were never Cinder's: {name}" if other == "qcow2" else f"file {name} on {share.world.share}: it is no qcow2 image"
    assert refused.returncode and why in refused.stdout + refused.stderr and share.files() == before, refused.stdout
    assert share.look(name)["base_format"] is None, "nothing was recorded"
    options = ("-e", json.dumps({"usual": share.world.base_format, "others": {name: other, "volume-that-is-gone": other}}))
    assert changed(share.play(TAKE_OVER, *options)) == 2 and changed(share.play(TAKE_OVER, *options)) == 0
    assert share.look(name)["base_format"] == other and share.look(share.world.name)["base_format"] == share.world.base_format
    assert changed(share.play(GIVE_BACK)) == 1
    assert share.look(name)["format"] == other and share.look(share.world.name)["format"] == share.world.base_format


def test_what_cannot_be_read_is_told_before_anything_is_changed(share: Share) -> None:
    share.world.cinder_snapshot()
    share.world.cinder_snapshot()
    (share.world.share / share.look(share.world.name)["chain"][1]["file"]).unlink()
    before = share.files()
    for book in (TAKE_OVER, GIVE_BACK):
        refused = share.played(book, "-e", f"usual={share.world.base_format}")
        assert refused.returncode and "is missing" in refused.stdout + refused.stderr, refused.stdout + refused.stderr
    assert share.files() == before
