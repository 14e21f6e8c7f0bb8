# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many processes work on few volumes at once, through one or two clients of a share; nothing may go wrong and nothing be lost.

    python hammer.py [--seconds N] [--workers N] [--volumes N] [--seed N] DIRECTORY [SECOND MOUNT OF IT]
    python hammer.py --names [--seconds N] [--workers N] [--seed N] SHARE OTHER_SHARE

The first takes, deletes and reverts snapshots, grows and writes volumes, reads snapshots, and makes, writes, flattens and removes
linked clones. What each task finds under its lock is compared with a model, whole contents by SHA-256, which is kept in files
that only the holder of that lock changes. The second creates and deletes the same few names on two candidate shares: a name must
never be on both.

Whether locks keep others out is judged by the kernel of this machine: whoever enters one also locks a local file, at once or
never. A task that meets what another one did just before it (a snapshot that is gone, newer ones, a clone that rests on it, a
volume that has grown) may say so, and only so; such answers are counted as "overtaken" once the model confirms them.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

from witness import Figures, Witness

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates, find_candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.operations.workspace import Workspace
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

MIB, KIB = 1 << 20, 1 << 10
REGION = 64 * KIB  # what a worker calls its own in each volume, at worker number times this
SMALLEST, LARGEST = 4 * MIB, 12 * MIB
MANY_SNAPSHOTS = 10
LOCK_TIMEOUT = 90
NAMES = ("one", "two", "three")
PATIENCE = 300  # seconds for what was begun in time to end; a client that hangs must not take a whole test run with it


# -- the model of a volume -------------------------------------------------------------------------------------------


class Model:
    """What a volume must hold: the present and, oldest first, its snapshots, each a size and the value of every region.

    :param state: {"active": [size, {region: value}], "points": [[name, size, {region: value}], ...], "taken": how many ever}
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.state = json.loads(file.read_text()) if file.exists() else {"active": [SMALLEST, {}], "points": [], "taken": 0}

    def save(self) -> None:
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(self.state))
        temporary.rename(self.file)

    @property
    def size(self) -> int:
        return self.state["active"][0]

    @property
    def names(self) -> list[str]:
        return [name for name, _size, _regions in self.state["points"]]

    def point(self, name: str) -> list:
        return next([size, regions] for known, size, regions in self.state["points"] if known == name)


def digest(size: int, regions: dict[str, int]) -> str:
    content = bytearray(size)
    for region, value in regions.items():
        content[int(region) * REGION : (int(region) + 1) * REGION] = bytes([value]) * REGION
    return hashlib.sha256(content).hexdigest()


def read_digest(file: str, image_format: str) -> str:
    """The content of an image, as qemu-img reads it while nobody changes it."""
    with tempfile.TemporaryDirectory() as directory:
        raw = os.path.join(directory, "raw")
        run("qemu-img", "convert", "-f", image_format, "-O", "raw", file, raw)
        with open(raw, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr or done.stdout}"
    return done.stdout


# -- a worker on volumes and snapshots -------------------------------------------------------------------------------


class Worker:
    """One process: chooses a volume, a client and an operation at random until the time is over."""

    one_share = True

    def __init__(self, number: int, mounts: list[str], volume_names: list[str], scratch: Path, seed: int) -> None:
        self.number, self.volume_names, self.scratch = number, volume_names, scratch
        self.clients = [find_candidates([mount], "/var/lib/remotefs/mnt") for mount in mounts]
        self.random = random.Random(seed * 1000 + number)
        self.figures = Figures()
        self.witness = Witness(scratch, self.figures, self.one_share)
        self.options = Options(lock_timeout=LOCK_TIMEOUT, assume_unused=True)
        self.count = 0
        self.clone: tuple[str, dict] | None = None  # the linked clone that this worker alone uses, and what it must hold

    def work(self, until: float) -> None:
        self.witness.install()
        while time.monotonic() < until:
            self.count += 1
            name = self.random.choice(self.volume_names)
            candidates = self.clients[(self.number + self.count) % len(self.clients)]
            operation = self.choose(name)
            try:
                operation(candidates, name)
                self.figures.count(operation.__name__)
            except Overtaken:
                self.figures.overtaken += 1
            except Exception:  # the report of the hammer is what fails
                self.figures.errors.append(f"worker {self.number}, {operation.__name__} of {name}:\n{traceback.format_exc()}")
                return
        if self.clone:
            self.use_clone(self.clients[0])
            self.remove_clone(self.clients[0])

    def choose(self, name: str) -> Callable:
        full = len(self.peek(name).names) >= MANY_SNAPSHOTS
        chances = {self.take: 0 if full else 6, self.delete: 6 if full else 3, self.revert: 1, self.grow: 1, self.write: 5, self.read: 4}
        chances.update({self.make_clone: 2} if self.clone is None else {self.use_clone: 2, self.flatten_clone: 0.5, self.remove_clone: 0.5})
        return self.random.choices(list(chances), list(chances.values()))[0]

    def peek(self, name: str) -> Model:
        """The model as it is at the moment; only under the volume's lock it stays so."""
        return Model(self.scratch / f"{name}.json")

    # -- operations --------------------------------------------------------------------------------------------------

    def take(self, candidates: Candidates, name: str) -> None:
        snapshot = f"w{self.number}-{self.count}"

        def taken(model: Model) -> None:
            model.state["points"].append([snapshot, *json.loads(json.dumps(model.state["active"]))])
            model.state["taken"] += 1

        request = snapshots.SnapshotRequest(candidates, name, DesiredSnapshot(snapshot))
        self.change(candidates, name, taken, lambda: snapshots.take(request, self.options), look_at=snapshot)

    def delete(self, candidates: Candidates, name: str) -> None:
        known = self.peek(name).names
        doomed = self.random.sample(known, min(len(known), self.random.randint(1, 3)))

        def gone(model: Model) -> None:
            model.state["points"] = [point for point in model.state["points"] if point[0] not in doomed]

        with self.perhaps_overtaken(candidates, name, (errors.HasDependents,), lambda _model: self.are_cloned(doomed)):
            self.change(candidates, name, gone, lambda: snapshots.delete(candidates, name, doomed, self.options))

    def revert(self, candidates: Candidates, name: str) -> None:
        peeked = self.peek(name)
        known = peeked.names
        if not known:
            return

        def reverted(model: Model) -> None:
            model.state["active"] = [model.size, model.point(known[-1])[1]]

        def overtaken(model: Model) -> bool:
            return known[-1] not in model.names or model.state["taken"] > peeked.state["taken"]

        with self.perhaps_overtaken(candidates, name, (errors.SnapshotNotFound, errors.HasNewerSnapshots), overtaken):
            self.change(candidates, name, reverted, lambda: snapshots.revert(candidates, name, known[-1], False, self.options))

    def grow(self, candidates: Candidates, name: str) -> None:
        size = min(self.peek(name).size + MIB, LARGEST)

        def grown(model: Model) -> None:
            model.state["active"][0] = size

        request = updating.VolumeRequest(candidates, DesiredVolume(name, size=size))
        with self.perhaps_overtaken(candidates, name, (errors.WouldShrink,), lambda model: model.size > size):
            self.change(candidates, name, grown, lambda: volumes.ensure_present(request, self.options))

    def write(self, candidates: Candidates, name: str) -> None:
        value = self.random.randint(1, 255)
        with self.locked(candidates, name) as (model, volume):
            size, regions = model.state["active"]
            mine = f"{self.number * REGION} {REGION}"
            commands = [f"read -P {regions.get(str(self.number), 0)} {mine}", f"write -P {value} {mine}", "flush"]
            told = run("qemu-io", "-f", volume["format"], *[word for one in commands for word in ("-c", one)], volume["path"])
            assert "Pattern verification failed" not in told, f"{name} does not hold what this worker wrote last: {told}"
            regions[str(self.number)] = value
            model.save()

    def read(self, candidates: Candidates, name: str) -> None:
        """A snapshot, under a lock that others may share."""
        with self.locked(candidates, name, shared=True) as (model, volume):
            if model.names:
                self.compare(volume, model, self.random.choice(model.names))

    # -- linked clones -----------------------------------------------------------------------------------------------

    def make_clone(self, candidates: Candidates, name: str) -> None:
        known = self.peek(name).names
        if not known:
            return
        snapshot, clone = self.random.choice(known), f"clone{self.number}-{self.count}"
        with open(self.scratch / f"{self.number}.cloned", "a") as stream:
            stream.write(f"{snapshot} ")

        def made() -> None:
            size, regions = self.peek(name).point(snapshot)
            self.clone = (clone, {"size": size, "regions": regions})

        source = updating.SourceRequest(name, snapshot, linked=True)
        with self.perhaps_overtaken(candidates, name, (errors.SnapshotNotFound,), lambda model: snapshot not in model.names):
            self.ending(made, lambda: volumes.ensure_present(updating.VolumeRequest(candidates, DesiredVolume(clone), source), self.options))

    def are_cloned(self, names: list[str]) -> bool:
        """Whether one of these snapshots was ever cloned; by now its clone may be gone."""
        return bool(set(names) & {name for file in self.scratch.glob("*.cloned") for name in file.read_text().split()})

    def use_clone(self, candidates: Candidates, _name: str = "") -> None:
        """Compare all of it, then write. Its parents' files are open meanwhile, so that their locks are needed for reading."""
        clone, holds = self.clone
        value, mine = self.random.randint(1, 255), f"{self.number * REGION} {REGION}"
        with Workspace(self.options) as work:
            work.locks.take_families([(candidates.shares[0], clone)])
            (volume,) = reading.list_volumes(candidates.shares[0], [clone])
            assert "error_code" not in volume and volume["pending"] is None, volume
            found = read_digest(volume["path"], volume["format"])
            assert found == digest(**holds), f"{clone} does not hold what it should"
            run("qemu-io", "-f", volume["format"], "-c", f"write -P {value} {mine}", "-c", "flush", volume["path"])
            holds["regions"][str(self.number)] = value

    def flatten_clone(self, candidates: Candidates, _name: str = "") -> None:
        request = updating.VolumeRequest(candidates, DesiredVolume(self.clone[0], flatten=True))
        assert volumes.ensure_present(request, self.options).after["parent"] is None
        self.use_clone(candidates)

    def remove_clone(self, candidates: Candidates, _name: str = "") -> None:
        assert volumes.ensure_absent(candidates, self.clone[0], True, self.options).changed
        self.clone = None

    # -- around them -------------------------------------------------------------------------------------------------

    def change(self, candidates: Candidates, name: str, follow: Callable, operation: Callable, look_at: str = "") -> None:
        """Do it; before the lock is given back let the model follow, and compare."""

        def compare() -> None:
            model = self.peek(name)
            follow(model)
            volume = self.look(candidates, name, model)
            if look_at:
                self.compare(volume, model, look_at)
            model.save()

        self.ending(compare, operation)

    def ending(self, callback: Callable, operation: Callable) -> None:
        """Do it, and call back while its locks are still held."""
        self.witness.before_unlocking = callback
        try:
            assert operation().recovered == [], "something was recovered that nobody interrupted"
        finally:
            self.witness.before_unlocking = None

    @contextmanager
    def perhaps_overtaken(self, candidates: Candidates, name: str, kinds: tuple, overtaken: Callable) -> Iterator[None]:
        try:
            yield
        except kinds as error:
            with self.locked(candidates, name) as (model, _volume):
                if overtaken(model):
                    raise Overtaken from error
            raise

    @contextmanager
    def locked(self, candidates: Candidates, name: str, shared: bool = False) -> Iterator[tuple[Model, dict]]:
        with Workspace(self.options) as work:
            wanted = [(candidates.shares[0], name)]
            work.locks.take(*(((), wanted) if shared else (wanted, ())))
            model = self.peek(name)
            yield model, self.look(candidates, name, model)

    def look(self, candidates: Candidates, name: str, model: Model) -> dict:
        (volume,) = reading.list_volumes(candidates.shares[0], [name])
        assert "error_code" not in volume, volume
        found = [snapshot["name"] for snapshot in volume["snapshots"]]
        assert (found, volume["size"], volume["pending"]) == (model.names, model.size, None), f"{name}: {volume}, the model: {model.state}"
        return volume

    def compare(self, volume: dict, model: Model, snapshot: str) -> None:
        images = {image["file"]: image for image in volume["chain"]}
        overlay = next(one["file"] for one in volume["snapshots"] if one["name"] == snapshot)
        file = images[overlay]["backing_file"]
        found = read_digest(os.path.join(volume["mountpoint"], file), images[file]["format"])
        assert found == digest(*model.point(snapshot)), f"snapshot {snapshot} of {volume['name']} does not hold what it should"


class Overtaken(Exception):
    """Another task came first, as the model confirms."""


# -- a worker on names -----------------------------------------------------------------------------------------------


class NameWorker(Worker):
    """Creates and deletes a few names on two candidate shares."""

    one_share = False

    def __init__(self, number: int, mounts: list[str], volume_names: list[str], scratch: Path, seed: int) -> None:
        super().__init__(number, mounts, volume_names, scratch, seed)
        self.clients = [find_candidates(order, "/var/lib/remotefs/mnt") for order in (mounts, mounts[::-1])]

    def choose(self, name: str) -> Callable:
        return self.random.choice([self.create, self.remove])

    def create(self, candidates: Candidates, name: str) -> None:
        self.witness.before_unlocking = lambda: self.on_one_at_most(candidates, name)
        done = volumes.ensure_present(updating.VolumeRequest(candidates, DesiredVolume(name, size=MIB)), self.options)
        assert done.after["size"] == MIB and done.recovered == []

    def remove(self, candidates: Candidates, name: str) -> None:
        done = volumes.ensure_absent(candidates, name, True, self.options)
        assert done.after is None and done.recovered == []
        with Workspace(self.options) as work:
            work.locks.take([(share, name) for share in candidates.shares])
            self.on_one_at_most(candidates, name)

    def on_one_at_most(self, candidates: Candidates, name: str) -> None:
        found = [share.path for share in candidates.shares if os.path.lexists(os.path.join(share.path, name))]
        assert len(found) <= 1, f"{name} is on {found}"


# -- the hammer ------------------------------------------------------------------------------------------------------


def limit(seconds: float) -> None:
    """End this process, and say where all its threads were, if it is still at work long after its time."""
    faulthandler.dump_traceback_later(seconds + PATIENCE, exit=True)


def hammer(kind: type, mounts: list[str], volume_names: list[str], scratch: Path, arguments: argparse.Namespace) -> Figures:
    fork = multiprocessing.get_context("fork")
    until = time.monotonic() + arguments.seconds

    def main(number: int) -> None:
        limit(arguments.seconds)
        worker = kind(number, mounts, volume_names, scratch, arguments.seed)
        worker.work(until)
        (scratch / f"worker{number}.figures").write_text(json.dumps(vars(worker.figures)))

    workers = [fork.Process(target=main, args=(number,)) for number in range(arguments.workers)]
    for worker in workers:
        worker.start()
    limit(arguments.seconds)  # after the forks: a child would wait for ever for the watchdog that it has not inherited
    figures = Figures()
    for number, worker in enumerate(workers):
        worker.join()
        told = scratch / f"worker{number}.figures"
        figures.add(json.loads(told.read_text()) if told.exists() else {**vars(Figures()), "errors": [f"worker {number} died"]})
    return figures


def hammer_volumes(mounts: list[str], scratch: Path, arguments: argparse.Namespace) -> Figures:
    names = [f"hammered{number}" for number in range(arguments.volumes)]
    candidates = find_candidates(mounts[:1], "/var/lib/remotefs/mnt")
    options = Options(lock_timeout=LOCK_TIMEOUT, assume_unused=True)
    for number, name in enumerate(names):
        desired = DesiredVolume(name, size=SMALLEST, format=("raw", "qcow2")[number % 2])
        volumes.ensure_present(updating.VolumeRequest(candidates, desired), options)
        Model(scratch / f"{name}.json").save()
    figures = hammer(Worker, mounts, names, scratch, arguments)
    if not figures.errors:
        judge = Worker(0, mounts, names, scratch, 0)
        with ThreadPoolExecutor(len(names)) as pool:
            points = sum(pool.map(lambda name: sum(compare_all(judge, client, name) for client in judge.clients), names))
            list(pool.map(lambda name: volumes.ensure_absent(candidates, name, True, options), names))
        print(f"at the end: {points} contents of {len(names)} volumes right, images sound, nothing left over")
    return figures


def compare_all(judge: Worker, candidates: Candidates, name: str) -> int:
    """Every snapshot and the present of a volume, its images, and what lies around. Returns how many contents were compared."""
    model = judge.peek(name)
    with judge.locked(candidates, name) as (_model, volume):
        for snapshot in model.names:
            judge.compare(volume, model, snapshot)
        assert read_digest(volume["path"], volume["format"]) == digest(*model.state["active"]), f"the present of {name} is wrong"
        for image in volume["chain"]:
            if image["format"] == "qcow2":
                run("qemu-img", "check", "-q", "-f", "qcow2", os.path.join(volume["mountpoint"], image["file"]))
        root = Path(volume["mountpoint"])
        files = {path.name for path in root.iterdir() if path.name.split(".")[0] == name} - {f"{name}.info"}
        assert files == {image["file"] for image in volume["chain"]}, f"files are left over of {name}: {files}"
        left = [path.name for path in (root / ".remotefs" / "tmp").iterdir() if path.name.startswith(f"{name}~")]
        assert not left, f"temporary files are left over: {left}"
    return len(model.names) + 1


def hammer_names(mounts: list[str], scratch: Path, arguments: argparse.Namespace) -> Figures:
    figures = hammer(NameWorker, mounts, list(NAMES), scratch, arguments)
    candidates = find_candidates(mounts, "/var/lib/remotefs/mnt")
    for name in NAMES:
        volumes.ensure_absent(candidates, name, True, Options(lock_timeout=LOCK_TIMEOUT))
        assert not volumes.ensure_absent(candidates, name, True, Options(lock_timeout=LOCK_TIMEOUT)).changed
    for mount in mounts:
        left = [path for path in Path(mount).rglob("*") if path.is_file() and path.parent.name != "locks"]
        assert not [path for path in left if path.name.split(".")[0].split("~")[0] in NAMES], f"left over: {left}"
    return figures


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--names", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("mounts", nargs="+")
    arguments = parser.parse_args()
    print(f"{arguments.workers} workers, {arguments.seconds:g} s, {' and '.join(arguments.mounts)}, seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory, "names" if arguments.names else "volumes")
        scratch.mkdir()
        figures = (hammer_names if arguments.names else hammer_volumes)(arguments.mounts, scratch, arguments)
    print(*figures.errors, figures, sep="\n")
    return 1 if figures.errors else 0


if __name__ == "__main__":
    sys.exit(main())
