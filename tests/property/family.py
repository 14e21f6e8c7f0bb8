# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several volumes that rest on each other, beside an in-memory model of all of them.

The model knows nothing of files: a volume is its active data, its points, and the (volume, snapshot) that it rests on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .world import candidates, read_content, run, write_pattern


def _shape(volume: dict) -> list:
    return [(image["file"], image["format"], image["backing_file"], image["size"]) for image in volume["chain"]]


@dataclass
class Model:
    """What a volume must hold. ``points``: snapshot name → data, oldest first."""

    active: bytearray
    points: dict[str, bytes] = field(default_factory=dict)
    parent: tuple[str, str] | None = None


class Family:
    def __init__(self, share: Path, scratch: Path) -> None:
        self.share, self.scratch = share, scratch
        self.candidates = candidates(share)
        self.models: dict[str, Model] = {}

    def create(self, name: str, image_format: str, size: int) -> None:
        self._present(DesiredVolume(name, size=size, format=image_format))
        self.models[name] = Model(bytearray(size))

    def clone(self, name: str, source: str, snapshot: str | None, linked: bool, more: int = 0) -> None:
        """From a snapshot, or from the volume as it is: then a linked one rests on a snapshot taken for it."""
        origin = self.models[source]
        data = origin.points[snapshot] if snapshot else bytes(origin.active)
        size = len(data) + more if more else None
        self._present(DesiredVolume(name, size=size), updating.SourceRequest(source, snapshot, linked))
        if linked and snapshot is None:
            snapshot = f"clone-{name}"
            origin.points[snapshot] = data
        self.models[name] = Model(bytearray(data.ljust(len(data) + more, b"\0")), {}, (source, str(snapshot)) if linked else None)

    def write(self, name: str, offset: int, length: int, value: int) -> None:
        volume, active = self.volumes()[name], self.models[name].active
        offset = offset % len(active) // 512 * 512
        length = min(length, len(active) - offset) // 512 * 512
        if length:
            write_pattern(volume["path"], volume["format"], offset, length, value)
            active[offset : offset + length] = bytes([value]) * length

    def snapshot(self, name: str, snapshot: str) -> None:
        request = snapshots.SnapshotRequest(self.candidates, name, DesiredSnapshot(snapshot))
        self._both_ways(lambda options: snapshots.take(request, options))
        self.models[name].points[snapshot] = bytes(self.models[name].active)

    def delete(self, name: str, names: list[str]) -> None:
        """Refused exactly where something rests on one of them."""
        refused = [one for one in names if self.resting_on(name, one)]
        self._or_refused("has_dependents" if refused else None, lambda options: snapshots.delete(self.candidates, name, names, options))
        for one in names if not refused else ():
            del self.models[name].points[one]

    def revert(self, name: str, snapshot: str) -> None:
        model, order = self.models[name], list(self.models[name].points)
        newer = order[order.index(snapshot) + 1 :]
        refused = any(self.resting_on(name, one) for one in newer)
        self._or_refused(
            "has_dependents" if refused else None, lambda options: snapshots.revert(self.candidates, name, snapshot, True, options)
        )
        if refused:
            return
        for one in newer:
            del model.points[one]
        model.active = bytearray(model.points[snapshot].ljust(len(model.active), b"\0"))

    def grow(self, name: str, size: int) -> None:
        self._present(DesiredVolume(name, size=size))
        active = self.models[name].active
        active.extend(bytes(size - len(active)))

    def flatten(self, name: str) -> None:
        self._present(DesiredVolume(name, flatten=True))
        self.models[name].parent = None

    def remove(self, name: str) -> None:
        refused = any(self.resting_on(name, one) for one in self.models[name].points)
        self._or_refused("has_dependents" if refused else None, lambda options: volumes.ensure_absent(self.candidates, name, True, options))
        if not refused:
            del self.models[name]

    def delete_many(self, wanted: list[tuple[str, list[str] | None]], parallel: int) -> None:
        """One bulk task: of each volume delete these snapshots, or (None) the volume. It must end as one after the other."""
        items, expected = [], []
        for name, names in wanted:
            items.append(self._deletion(name, names))
            expected.append(self._expect_deletion(name, names))
        results = runner.run_all(items, parallel, Options(lock_timeout=5))
        assert [getattr(result, "error_code", None) for result in results] == expected, results

    def _deletion(self, name: str, names: list[str] | None) -> runner.Item:
        def run(options: Options) -> Outcome:
            if names is None:
                return volumes.ensure_absent(self.candidates, name, True, options)
            return snapshots.delete(self.candidates, name, names, options)

        return runner.Item(name, frozenset([name]), run, runner.Deletion(self.candidates, name))

    def _expect_deletion(self, name: str, names: list[str] | None) -> str | None:
        """Let the model follow; returns the code of the error that it must end with."""
        model = self.models.get(name)
        if model is None:
            return None if names is None else "volume_not_found"
        if any(self.resting_on(name, one) for one in (model.points if names is None else names)):
            return "has_dependents"
        if names is None:
            del self.models[name]
        for one in names or ():
            model.points.pop(one, None)
        return None

    def resting_on(self, name: str, snapshot: str) -> list[str]:
        return [clone for clone, model in self.models.items() if model.parent == (name, snapshot)]

    # -- both modes --------------------------------------------------------------------------------------------------

    def _present(self, desired: DesiredVolume, source: updating.SourceRequest | None = None) -> Outcome:
        return self._both_ways(lambda options: volumes.ensure_present(updating.VolumeRequest(self.candidates, desired, source), options))

    def _both_ways(self, operation) -> Outcome:
        predicted = operation(Options(check=True))
        done = operation(Options(lock_timeout=5))
        assert (predicted.changed, predicted.actions) == (done.changed, done.actions)
        if done.after:
            for key in ("parent", "base_format", "size", "path", "dependents"):
                assert predicted.after[key] == done.after[key], key
            assert _shape(predicted.after) == _shape(done.after)
        again = operation(Options(lock_timeout=5))
        assert not again.changed and not again.actions
        return done

    def _or_refused(self, code: str | None, operation) -> None:
        if code is None:
            self._both_ways(operation)
            return
        for options in (Options(check=True), Options(lock_timeout=5)):
            try:
                operation(options)
            except StorageError as error:
                assert error.error_code == code, error
            else:
                raise AssertionError(f"it should have been refused with {code}")

    # -- looking -----------------------------------------------------------------------------------------------------

    def volumes(self) -> dict[str, dict]:
        return {one["name"]: one for one in reading.list_volumes(self.candidates.shares[0], [])}

    def check(self) -> None:
        found = self.volumes()
        assert sorted(found) == sorted(self.models), "other volumes than the model has"
        files: set[str] = set()
        for name, model in self.models.items():
            volume = found[name]
            assert "error_code" not in volume, volume
            assert volume["parent"] == (dict(zip(("volume", "snapshot"), model.parent)) if model.parent else None), name
            expected = sorted((clone, snapshot) for snapshot in model.points for clone in self.resting_on(name, snapshot))
            assert sorted((one["volume"], one["snapshot"]) for one in volume["dependents"]) == expected
            self._check_content(volume, model)
            files |= {image["file"] for image in volume["chain"]}
        present = {path.name for path in self.share.iterdir() if path.is_file() and not path.name.endswith(".info")}
        assert present == files, "files are left over"
        assert not list((self.share / ".remotefs" / "tmp").iterdir())

    def _check_content(self, volume: dict, model: Model) -> None:
        formats = {image["file"]: image["format"] for image in volume["chain"]}
        backing = {image["file"]: image["backing_file"] for image in volume["chain"]}
        assert [one["name"] for one in volume["snapshots"]] == list(model.points)
        expected = {volume["path"]: bytes(model.active)}
        for one in volume["snapshots"]:
            expected[str(self.share / backing[one["file"]])] = model.points[one["name"]]
        for path, data in expected.items():
            content = read_content(path, formats[Path(path).name], self.scratch)
            assert content == data, f"{path} of {volume['name']} does not hold what it should"
        for file, image_format in formats.items():
            if image_format == "qcow2":
                run("qemu-img", "check", "-q", "-f", "qcow2", str(self.share / file))
