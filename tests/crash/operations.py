# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operations that are interrupted: what stands before, the task, and what must stand after it.

To add one: a line in :data:`OPERATIONS`. ``prepare`` makes the share and says what it holds, ``run`` is the task as a module
calls it, ``follow`` does the same to the model. All three are deterministic.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import subprocess
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable
from unittest import mock

from leaking import leak
from property.world import World, candidates, run, write_pattern

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import making_room
from ansible_collections.remotefs.storage.plugins.module_utils.errors import LockTimeout, NoSpace, StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.operations import (
    empty_overlays,
    exporting,
    groups,
    importing,
    leaked_clusters,
    lease_holding,
    leases,
    leftovers,
    replicas,
    seeds,
    share_contents,
    snapshots,
    up_to_date,
    updating,
    volumes,
)
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.operations.updating import VolumeRequest
from ansible_collections.remotefs.storage.plugins.module_utils.plan import retention, room
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.plan.leases import Asked
from ansible_collections.remotefs.storage.plugins.module_utils.store.files import ballast
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory

from .judge import Model, Wanted, left_by_stale, listed

KIB, MIB = 1 << 10, 1 << 20
_DISK = random.Random(12).randbytes(200 * KIB) + bytes(MIB) + random.Random(13).randbytes(100 * KIB) + bytes(724 * KIB)

Task = Callable[[Candidates, Options], "list[Outcome]"]


@dataclass(frozen=True)
class Written:
    """A file ``.out/disk`` of the share, which is no volume, and which the task replaces by what a snapshot of volume ``vol`` shows."""

    snapshot: str | None
    format: str

    def check(self, share: Path, scratch: Path, before: Model, allows_old: bool) -> None:
        """:raises AssertionError: the file is neither the old one, if that is allowed, nor whole; or something is beside it."""
        place = share / ".out" / "disk"
        if allows_old and place.read_bytes() == OLD:
            return
        shown = scratch / "shown"
        run("qemu-img", "convert", "-f", self.format, "-O", "raw", str(place), str(shown))
        wanted = before["vol"].points[self.snapshot] if self.snapshot else before["vol"].active
        assert shown.read_bytes() == wanted, "the file shows something else"
        assert allows_old or [path.name for path in place.parent.iterdir()] == ["disk"], "something is left beside the file"


OLD = b"an image of long ago"


@dataclass(frozen=True)
class Operation:
    """One kind of task.

    :param tool: whether it starts qemu-img; where not, nothing can be killed there, which the sweep checks.
    :param by_tool: qemu-img moves the data, as it does for images that are not plain.
    :param together: volumes of which all or none get what the task does, whichever is recovered first.
    :param halfway: the model between two steps of a task, each of which may be left undone by itself.
    :param apart: whether each volume can be left undone by itself, because the task is about many.
    :param removes: whether a volume that goes may be unreadable meanwhile.
    :param parts: whether another task leaves an image, or a part of it, to the one that goes on with it.
    :param written: the file that it writes beside the volumes.
    :param beside: prepares another share, ``backup`` beside that of the task, which reads from it. It is watched and judged, too.
        The model that ``follow`` gets has its volumes.
    :param moves: whether they leave that share. Meanwhile one of both has all of each.
    :param leases: whether a lease stays on the share.
    :param always: raises AssertionError if something is not so that must be so at every instant.
    """

    prepare: Callable[[Path, Path], Model]
    run: Task
    follow: Callable[[Model], Model]
    tool: bool
    together: tuple[str, ...] = ()
    removes: bool = False
    halfway: Callable[[Model], Model] | None = None
    apart: bool = False
    by_tool: bool = False
    parts: bool = False
    written: Written | None = None
    beside: Callable[[Path, Path], Model] | None = None
    moves: bool = False
    leases: bool = False
    always: Callable[[Path], None] | None = None


# -- what stands before ----------------------------------------------------------------------------------------------


def _nothing(_share: Path, _scratch: Path) -> Model:
    return {}


def _model(world: World) -> Model:
    return {"vol": Wanted(bytes(world.active), dict(world.points))}


def _lone(image_format: str) -> Callable[[Path, Path], Model]:
    def prepare(share: Path, scratch: Path) -> Model:
        world = World(share, scratch, image_format, 2 * MIB)
        world.write(64 * KIB, 300 * KIB, 7)
        return _model(world)

    return prepare


def _chain(image_format: str) -> Callable[[Path, Path], Model]:
    """Base and four snapshots with content in each layer, the volume grown on the way."""

    def prepare(share: Path, scratch: Path) -> Model:
        world = World(share, scratch, image_format, 2 * MIB)
        for number in range(1, 5):
            world.write(number * 128 * KIB, 256 * KIB, number)
            world.snapshot()
            if number == 2:
                world.grow(3 * MIB)
        world.write(MIB, 64 * KIB, 99)
        return _model(world)

    return prepare


def _with_stale_entry(share: Path, scratch: Path) -> Model:
    """A chain whose ``.info`` names another file as well, which rests on nothing."""
    model = _chain("raw")(share, scratch)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(share / "vol.old"), "1M"], check=True)
    (share / "vol.old").chmod(0o660)
    info = json.loads((share / "vol.info").read_text())
    (share / "vol.info").write_text(json.dumps({**info, "old": "vol.old"}, indent=1, sort_keys=True))
    return {"vol": replace(model["vol"], stale=("old",))}


def _without(prepare: Callable[[Path, Path], Model], *gone: str) -> Callable[[Path, Path], Model]:
    """What is left when these files are lost: of a volume with a gap, its remains."""

    def lose(share: Path, scratch: Path) -> Model:
        model = prepare(share, scratch)
        for file in gone:
            (share / file).unlink()
        broken = {one["name"] for one in listed(share) if one.get("error_code") == "chain_broken"}
        return {name: replace(wanted, remains=left_by_stale(share, name)) if name in broken else wanted for name, wanted in model.items()}

    return lose


def _chain_that_pulls(share: Path, scratch: Path) -> Model:
    """The overlay of s3 holds more than that of s2, so that deleting s3 pulls s2's into it."""
    world = World(share, scratch, "qcow2", 4 * MIB)
    world.snapshot()
    world.write(0, 128 * KIB, 1)
    world.snapshot()
    world.write(64 * KIB, 192 * KIB, 2)
    world.snapshot()
    world.write(MIB, 2 * MIB, 3)
    world.snapshot()
    world.write(0, 64 * KIB, 4)
    return _model(world)


def _chain_with_a_short_file(share: Path, scratch: Path) -> Model:
    """As adopted chains can be: an overlay that is shorter than what it rests on and than the one above it."""
    world = World(share, scratch, "raw", 4 * MIB)
    world.write(0, 4 * MIB, 1)
    world.snapshot()
    world.shrink_by_hand(2 * MIB)
    world.write(MIB, 256 * KIB, 2)
    world.snapshot()
    world.grow(4 * MIB)
    world.write(3 * MIB, 256 * KIB, 3)
    return _model(world)


def _short_over_long(share: Path, scratch: Path) -> Model:
    world = World(share, scratch, "raw", 4 * MIB)
    world.write(0, 4 * MIB, 1)
    world.snapshot()
    world.shrink_by_hand(2 * MIB)
    world.write(MIB, 256 * KIB, 2)
    return _model(world)


def _image(kind: str) -> Callable[[Path, Path], Model]:
    """A volume, and beside the share an image in a file."""

    def prepare(share: Path, scratch: Path) -> Model:
        model = _lone("raw")(share, scratch)
        disk = scratch / "disk"
        disk.write_bytes(_DISK)
        if kind == "gzip":
            (scratch / "image").write_bytes(gzip.compress(_DISK))
        else:
            run("qemu-img", "convert", "-f", "raw", "-O", kind, str(disk), str(scratch / "image"))
        return model

    return prepare


def _shrunk(*, packed: bool = False, by_header: bool = False) -> Callable[[Path, Path], Model]:
    """A lone file with old data behind its end: the rest of the last cluster, compressed or not, and maybe whole clusters."""

    def prepare(share: Path, scratch: Path) -> Model:
        return _model(_shrunk_world(share, scratch, packed, by_header))

    return prepare


def _shrunk_world(share: Path, scratch: Path, packed: bool, by_header: bool) -> World:
    world = World(share, scratch, "qcow2", 2 * MIB)
    world.write(0, 2 * MIB, 7)
    if packed:
        run("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", str(share / "vol"), str(scratch / "packed"))
        shutil.copyfile(scratch / "packed", share / "vol")
    if not by_header:
        world.shrink_by_hand(MIB + 4096)
        return world
    with open(share / "vol", "r+b") as stream:
        stream.seek(24)
        stream.write((MIB + 4096).to_bytes(8, "big"))
    del world.active[MIB + 4096 :]
    return world


def _longer_over_shrunk(share: Path, scratch: Path) -> Model:
    world = _shrunk_world(share, scratch, packed=False, by_header=False)
    world.snapshot()
    world.grow(2 * MIB)
    world.write(MIB + 512 * KIB, 128 * KIB, 2)
    world.snapshot()
    world.write(0, 64 * KIB, 3)
    return _model(world)


def _short_over_long_of_version_2(share: Path, scratch: Path) -> Model:
    model = _short_over_long(share, scratch)
    run("qemu-img", "amend", "-q", "-f", "qcow2", "-o", "compat=0.10", str(share / "vol.s1"))
    return model


def _with_clone(share: Path, scratch: Path) -> Model:
    """The chain, and a linked clone of its s2 with content of its own and a snapshot."""
    model = _chain("raw")(share, scratch)
    everywhere, quiet = candidates(share), Options(lock_timeout=5)
    source = updating.SourceRequest("vol", "s2", linked=True)
    volumes.ensure_present(updating.VolumeRequest(everywhere, DesiredVolume("copy"), source), quiet)
    write_pattern(str(share / "copy"), "qcow2", 512 * KIB, 256 * KIB, 17)
    point = bytearray(model["vol"].points["s2"])
    point[512 * KIB : 768 * KIB] = bytes([17]) * 256 * KIB
    snapshots.take(snapshots.SnapshotRequest(everywhere, "copy", DesiredSnapshot("c1")), quiet)
    write_pattern(str(share / "copy.c1"), "qcow2", 640 * KIB, 256 * KIB, 18)
    active = bytearray(point)
    active[640 * KIB : 896 * KIB] = bytes([18]) * 256 * KIB
    return {**model, "copy": Wanted(bytes(active), {"c1": bytes(point)})}


def _three(share: Path, scratch: Path) -> Model:
    """A chain, and two volumes more: one without snapshots, raw, and one with one, qcow2."""
    model = _chain("raw")(share, scratch)
    everywhere = candidates(share)
    quiet = Options(lock_timeout=5)
    for name, image_format in (("a", "raw"), ("b", "qcow2")):
        desired = DesiredVolume(name, size=MIB, format=image_format)
        volumes.ensure_present(updating.VolumeRequest(everywhere, desired), quiet)
        write_pattern(str(share / name), image_format, 0, 192 * KIB, ord(name))
        model[name] = Wanted((bytes([ord(name)]) * 192 * KIB).ljust(MIB, b"\0"))
    snapshots.take(snapshots.SnapshotRequest(everywhere, "b", DesiredSnapshot("before")), quiet)
    model["b"] = model["b"].with_point("before")
    return model


# -- tasks -----------------------------------------------------------------------------------------------------------


def _ensure(desired: DesiredVolume, source: updating.SourceRequest | None = None) -> Task:
    return lambda where, options: [volumes.ensure_present(updating.VolumeRequest(where, desired, source), options)]


def _restore(desired: DesiredVolume, snapshot: str | None) -> Task:
    """A volume from volume ``vol`` of the other share."""

    def run(where: Candidates, options: Options) -> list[Outcome]:
        backup = Path(where.shares[0].path).parent / "backup"
        source = updating.SourceRequest("vol", snapshot, elsewhere=updating.OtherShare("backup", lambda: candidates(backup)))
        return [volumes.ensure_present(updating.VolumeRequest(where, desired, source), options)]

    return run


def _move(where: Candidates, options: Options) -> list[Outcome]:
    """Volume ``vol`` from the other share."""
    backup = Path(where.shares[0].path).parent / "backup"
    elsewhere = updating.OtherShare("backup", lambda: candidates(backup))
    return [volumes.ensure_present(updating.VolumeRequest(where, DesiredVolume("vol"), moved_from=elsewhere), options)]


def _move_onto_replica() -> Operation:
    """The new share has a replica of it, which lacks the newest point and the present."""
    source: Model = {}

    def beside(share: Path, scratch: Path) -> Model:
        source.update(_chain("raw")(share, scratch))
        return dict(source)

    def prepare(share: Path, _scratch: Path) -> Model:
        there = candidates(share.parent / "backup")
        replicas.replicate(up_to_date.ReplicaRequest(there, "vol", candidates(share), "vol", "s[1-3]"), Options(lock_timeout=5))
        points = source["vol"].points
        return {"vol": Wanted(points["s3"], {name: points[name] for name in ("s1", "s2", "s3")})}

    return Operation(prepare, _move, lambda _model: dict(source), tool=False, beside=beside, moves=True)


def _import(desired: DesiredVolume, checked: bool = True) -> Task:
    """:param checked: by a checksum, so that what a killed task left is gone on with."""

    def run(where: Candidates, options: Options) -> list[Outcome]:
        place = Path(where.shares[0].path).parent / "scratch" / "image"
        checksum = f"sha256:{hashlib.sha256(place.read_bytes()).hexdigest()}" if checked else None
        request = updating.VolumeRequest(where, desired, image=importing.ImageRequest(str(place), checksum))
        try:
            return [volumes.ensure_present(request, options)]
        finally:
            importing.forget_all(options)

    return run


def _with_old_file(prepare: Callable[[Path, Path], Model]) -> Callable[[Path, Path], Model]:
    def prepared(share: Path, scratch: Path) -> Model:
        model = prepare(share, scratch)
        (share / ".out").mkdir()
        (share / ".out" / "disk").write_bytes(OLD)
        return model

    return prepared


def _export(snapshot: str | None, image_format: str) -> Operation:
    def written(where: Candidates, options: Options) -> list[Outcome]:
        dest = exporting.ToFile(str(Path(where.shares[0].path) / ".out" / "disk"))
        done = exporting.export(exporting.ExportRequest(where, "vol", snapshot, dest, image_format), options)
        return [Outcome("vol", done.changed, list(done.actions), list(done.recovered), done.volume, done.volume)]

    is_raw = image_format == "raw"
    return Operation(_with_old_file(_chain("raw")), written, lambda model: model, tool=not is_raw, written=Written(snapshot, image_format))


def _replicate(match: str = "*", discards: bool = False) -> Task:
    """A replica beside its source, which is on the same share so that both are judged."""

    def run(where: Candidates, options: Options) -> list[Outcome]:
        return [replicas.replicate(up_to_date.ReplicaRequest(where, "vol", where, "copy", match, discards=discards), options)]

    return run


def _with_replica(written: bool) -> Callable[[Path, Path], Model]:
    """The chain, and a replica that lacks its newest point. :param written: somebody has written to it, and has taken a snapshot there."""

    def prepare(share: Path, scratch: Path) -> Model:
        model = _chain("raw")(share, scratch)
        everywhere, quiet = candidates(share), Options(lock_timeout=5)
        _replicate("s[1-3]")(everywhere, quiet)
        copy = Wanted(model["vol"].points["s3"], {name: model["vol"].points[name] for name in ("s1", "s2", "s3")})
        if written:
            active = json.loads((share / "copy.info").read_text())["active"]
            write_pattern(str(share / active), "qcow2", 0, 128 * KIB, 9)
            copy = replace(copy, active=bytes([9]) * 128 * KIB + copy.active[128 * KIB :]).with_point("own")
            snapshots.take(snapshots.SnapshotRequest(everywhere, "copy", DesiredSnapshot("own")), quiet)
        return {**model, "copy": copy}

    return prepare


def _dropped(model: Model) -> Model:
    return {**model, "copy": replace(model["copy"].without("own"), active=model["vol"].points["s3"])}


def _received(model: Model) -> Model:
    return {**model, "copy": replace(model["copy"], active=model["vol"].points["s4"]).with_point("s4")}


def _take(name: str, volume: str = "vol") -> Task:
    return lambda where, options: [snapshots.take(snapshots.SnapshotRequest(where, volume, DesiredSnapshot(name)), options)]


def _take_group(where: Candidates, options: Options) -> list[Outcome]:
    return groups.take_group(where, ["vol", "a", "b"], DesiredSnapshot("g"), options)


def _delete(*names: str, volume: str = "vol") -> Task:
    return lambda where, options: [snapshots.delete(where, volume, list(names), options)]


def _revert(name: str) -> Task:
    return lambda where, options: [snapshots.revert(where, "vol", name, True, options)]


def _keep(last: int) -> retention.Policy:
    return retention.parse({"match": "*", "last": last})


def _take_and_retain(where: Candidates, options: Options) -> list[Outcome]:
    return [snapshots.take(snapshots.SnapshotRequest(where, "vol", DesiredSnapshot("new"), _keep(2)), options)]


def _retain(where: Candidates, options: Options) -> list[Outcome]:
    return [snapshots.retain(where, "vol", _keep(2), options)]


# -- leases ------------------------------------------------------------------------------------------------------------

_JOB = Asked("ci", "job", 3600)
_LISTED = ("ci-00", "ci-01", "copy", "never-made")


def _with_lease(share: Path, scratch: Path) -> Model:
    """A chain that belongs to nobody's lease, beside a lease."""
    model = _chain("raw")(share, scratch)
    leases.hold(leases.LeaseRequest(candidates(share).shares[0], replace(_JOB, volumes=_LISTED)), Options())
    return model


def _with_leased_volumes(share: Path, scratch: Path) -> Model:
    """Two volumes of the lease besides; one is a clone of the chain."""
    model, where = _with_lease(share, scratch), candidates(share)
    where = where._replace(shares=tuple(one._replace(keeps_inodes=False) for one in where.shares))  # a state is a copy, whose files are not these
    made = [VolumeRequest(where, DesiredVolume("ci-00", size=MIB, snapshot="pristine"))]
    made += [VolumeRequest(where, DesiredVolume("ci-01"), updating.SourceRequest("vol", "s2", linked=True))]
    for request in made:
        _under_lease(lambda _where, options, request=request: [volumes.ensure_present(request, options)])(where, Options())
    return {**model, "ci-00": Wanted(bytes(MIB), {"pristine": bytes(MIB)}), "ci-01": Wanted(_point("s2", 2 * MIB)(model))}


def _under_lease(task: Task) -> Task:
    """A task that works under the lease."""

    def run(where: Candidates, options: Options) -> list[Outcome]:
        (given,) = leases.read_all(where.shares[0])
        if "error_code" in given:  # a playbook would have stopped before
            raise next(kind for kind in StorageError.__subclasses__() if kind.error_code == given["error_code"])("ci", given["msg"], "read")
        with lease_holding.holding([(given, where)], options):
            return task(where, lease_holding.under(options, given, where))

    return run


def _hold(asked: Asked) -> Task:
    def run(where: Candidates, options: Options) -> list[Outcome]:
        done = leases.hold(leases.LeaseRequest(where.shares[0], asked), options)
        return [Outcome("ci", done.changed, [{"step": "lease"}] if done.changed else [], [], None, None)]

    return run


def _collect(where: Candidates, options: Options) -> list[Outcome]:
    done = leases.collect(leases.CollectRequest(where.shares[0], -1e9, parallel=2), options)
    for one in done.skipped:
        raise next(kind for kind in StorageError.__subclasses__() if kind.error_code == one["error_code"])(one["name"], one["msg"], "skipped")
    return [Outcome("ci", done.changed, [{"step": name} for name in (*done.volumes, *done.leases)], [], None, None)]


def _with_leftovers(share: Path, scratch: Path) -> Model:
    """A chain, and what killed tasks left: of the volume, of a lease that is gone, and a part of an image."""
    model = _chain("raw")(share, scratch)
    for folder, name in (("tmp", "vol~0123456789ab"), ("tmp", "@gone~0123456789ab"), ("images", "0123456789abcdef0123456789abcdef")):
        (share / ".remotefs" / folder).mkdir(exist_ok=True, mode=0o700)
        (share / ".remotefs" / folder / name).write_bytes(b"left")
    return model


def _clean(where: Candidates, options: Options) -> list[Outcome]:
    (share,) = where.shares
    done = leftovers.clean(share, share_contents.find_leftovers(share), -1e9, options)
    if done.failure:
        raise done.failure
    for one, why in done.kept:  # a lock that cannot be read is taken for one that somebody holds
        raise LockTimeout(f"file {one.path}", why, "run the task again")
    return [Outcome("vol", bool(done.removed), [{"step": "unlink", "file": one.path} for one in done.removed], [], None, None)]


def _with_leaks(share: Path, scratch: Path) -> Model:
    """A chain of qcow2 images, whose base and active image have leaked clusters."""
    model = _chain("qcow2")(share, scratch)
    for file in ("vol", "vol.s4"):
        leak(share / file)
    return model


def _free_leaks(where: Candidates, options: Options) -> list[Outcome]:
    """As the module does both."""
    (cleaned,) = _clean(where, options)
    done = leaked_clusters.free(where.shares[0], options)
    if done.failure:
        raise done.failure
    for one in (image for image in done.images if image.why):
        raise LockTimeout(f"file {one.file}", one.why, "run the task again")
    steps = cleaned.actions + [{"step": "free_leaks", "file": one.file} for one in done.images]
    return [Outcome("vol", bool(steps), steps, [], None, None)]


def _with_spare_overlay(share: Path, scratch: Path) -> Model:
    """A chain, of which a linked clone was made that is gone."""
    model = _chain("qcow2")(share, scratch)
    everywhere, quiet = candidates(share), Options(lock_timeout=5)
    volumes.ensure_present(updating.VolumeRequest(everywhere, DesiredVolume("c0"), updating.SourceRequest("vol", linked=True)), quiet)
    volumes.ensure_absent(everywhere, "c0", False, quiet)
    return {"vol": model["vol"].with_point("clone-c0")}


def _drop_overlays(where: Candidates, options: Options) -> list[Outcome]:
    """And the next task on that volume, which ends what a killed one left of a deletion that nobody sees any more."""
    done = empty_overlays.drop(where.shares[0], options)
    if done.failure:
        raise done.failure
    for one in (overlay for overlay in done.overlays if overlay.why):
        raise LockTimeout(f"snapshot {one.snapshot}", one.why, "run the task again")
    after = snapshots.delete(where, "vol", ["clone-c0"], options)
    steps = [{"step": "drop_overlay", "snapshot": one.snapshot} for one in done.overlays] + after.actions
    return [Outcome("vol", bool(steps) or after.changed, steps, [], None, None)]  # which of the two ends a killed one is not told


def _is_somebodys(share: Path) -> None:
    """Whatever was made under a lease is there with a lease that lists it; and so is the volume that the task makes."""
    known = {lease["id"]: lease["volumes"] for lease in leases.read_all(candidates(share).shares[0])}
    for volume in listed(share):
        if volume["name"] in _LISTED and "lease" in volume:
            assert volume["name"] in known.get(volume["lease"], ()), f"{volume['name']} is nobody's"


def _remove(name: str) -> Task:
    return lambda where, options: [volumes.ensure_absent(where, name, True, options)]


def _bulk(*tasks: tuple[str, Task], deletes: bool = False) -> Task:
    """Tasks on volumes, each named with its own, as one that keeps several under way."""

    def run(where: Candidates, options: Options) -> list[Outcome]:
        def item(name: str, task: Task) -> runner.Item:
            deletion = runner.Deletion(where, name) if deletes else None
            return runner.Item(name, frozenset([name]), lambda given: task(where, given)[0], deletion)

        done = runner.run_all([item(name, task) for name, task in tasks], 1 if options.check else 2, options)
        for one in done:
            if isinstance(one, StorageError):
                raise one
        return [one for one in done if isinstance(one, Outcome)]

    return run


# -- seeds -------------------------------------------------------------------------------------------------------------

_SECRET = "a-secret-of-this-seed"


def _seed(name: str, text: str) -> seeds.Seed:
    """A seed of which the content, and no step of its plan, says what it holds. Both have the same length."""
    alone = dict.fromkeys(("format", "size", "snapshot", "moved_from"))
    given = {"seed": {"user_data": {"password": _SECRET, "text": text}}, "method": "full"}
    return seeds.request_of({**alone, "preallocation": "off", "flatten": False, "name": name, "source": given})


def _write_seed(name: str, text: str) -> Task:
    def run(where: Candidates, options: Options) -> list[Outcome]:
        seed = _seed(name, text)
        desired = DesiredVolume(name, format="raw", mode=0o660, seed=seed.size)
        return [volumes.ensure_present(VolumeRequest(where, desired, seed=seed), options)]

    return run


def _with_seed(share: Path, scratch: Path) -> Model:
    """A chain, and a seed that was made under a lease."""
    model, where = _with_lease(share, scratch), candidates(share)
    where = where._replace(shares=tuple(one._replace(keeps_inodes=False) for one in where.shares))  # a state is a copy, whose files are not these
    _under_lease(_write_seed("ci-00", "old"))(where, Options())
    return {**model, "ci-00": Wanted(_seed("ci-00", "old").content)}


def _is_told_to_nobody(share: Path) -> None:
    """What a seed holds is in no record, and in no file that others may read. Its lease stays with it."""
    _is_somebodys(share)
    for path in (share / ".remotefs").rglob("*"):
        if path.is_file() and _SECRET.encode() in path.read_bytes():
            assert path.parent.name == "tmp", path


# -- models ----------------------------------------------------------------------------------------------------------


def _adds(name: str, wanted: Callable[[Model], bytes]) -> Callable[[Model], Model]:
    return lambda model: {**model, name: Wanted(wanted(model))}


def _empty(size: int) -> Callable[[Model], bytes]:
    return lambda _model: bytes(size)


def _point(name: str, size: int) -> Callable[[Model], bytes]:
    return lambda model: model["vol"].points[name].ljust(size, b"\0")


def _active(size: int) -> Callable[[Model], bytes]:
    return lambda model: model["vol"].active.ljust(size, b"\0")


def _changes(change: Callable[[Wanted], Wanted]) -> Callable[[Model], Model]:
    return lambda model: {**model, "vol": change(model["vol"])}


def _loses(*names: str) -> Callable[[Model], Model]:
    return _changes(lambda wanted: wanted.without(*names))


def _reverted(name: str) -> Callable[[Model], Model]:
    def change(wanted: Wanted) -> Wanted:
        order = list(wanted.points)
        size = len(wanted.active)
        older = wanted.without(*order[order.index(name) + 1 :])
        return replace(older, active=wanted.points[name][:size].ljust(size, b"\0"))

    return _changes(change)


def _grown(size: int) -> Callable[[Model], Model]:
    return _changes(lambda wanted: replace(wanted, active=wanted.active.ljust(size, b"\0")))


OPERATIONS: dict[str, Operation] = {
    "create raw": Operation(_nothing, _ensure(DesiredVolume("new", size=MIB)), _adds("new", _empty(MIB)), tool=False),
    "create qcow2": Operation(_lone("raw"), _ensure(DesiredVolume("new", size=MIB, format="qcow2")), _adds("new", _empty(MIB)), tool=False),
    "create qcow2, preallocated": Operation(
        _nothing, _ensure(DesiredVolume("new", size=MIB, format="qcow2", preallocation="metadata")), _adds("new", _empty(MIB)), tool=True
    ),
    "create with a snapshot": Operation(
        _nothing,
        _ensure(DesiredVolume("new", size=MIB, snapshot="s1")),
        lambda _model: {"new": Wanted(bytes(MIB)).with_point("s1")},
        tool=False,
    ),
    "create qcow2 with a snapshot": Operation(
        _lone("raw"),
        _ensure(DesiredVolume("new", size=MIB, format="qcow2", snapshot="s1")),
        lambda model: {**model, "new": Wanted(bytes(MIB)).with_point("s1")},
        tool=False,
    ),
    "linked clone with a snapshot": Operation(
        _chain("raw"),
        _ensure(DesiredVolume("copy", snapshot="c1"), updating.SourceRequest("vol", "s2", linked=True)),
        lambda model: {**model, "copy": Wanted(model["vol"].points["s2"]).with_point("c1")},
        tool=False,
    ),
    "grow and snapshot": Operation(
        _lone("raw"),
        _ensure(DesiredVolume("vol", size=5 * MIB, snapshot="new")),
        lambda model: _changes(lambda wanted: wanted.with_point("new"))(_grown(5 * MIB)(model)),
        tool=False,
        halfway=_grown(5 * MIB),
    ),
    "first snapshot": Operation(_lone("raw"), _take("new"), _changes(lambda wanted: wanted.with_point("new")), tool=False),
    "snapshot": Operation(_chain("raw"), _take("new"), _changes(lambda wanted: wanted.with_point("new")), tool=False),
    "group snapshot": Operation(
        _three,
        _take_group,
        lambda model: {name: one.with_point("g") for name, one in model.items()},
        tool=False,
        together=("b", "a", "vol"),
    ),
    "delete oldest": Operation(_chain("raw"), _delete("s1"), _loses("s1"), tool=False),
    "delete middle": Operation(_chain("raw"), _delete("s3"), _loses("s3"), tool=False),
    "delete newest": Operation(_chain("raw"), _delete("s4"), _loses("s4"), tool=False),
    "delete several": Operation(_chain("raw"), _delete("s1", "s3", "s4"), _loses("s1", "s3", "s4"), tool=False),
    "delete several, qcow2": Operation(_chain("qcow2"), _delete("s1", "s2", "s4"), _loses("s1", "s2", "s4"), tool=False),
    "delete all": Operation(_chain("raw"), _delete("s1", "s2", "s3", "s4"), _loses("s1", "s2", "s3", "s4"), tool=False),
    "delete a stale entry": Operation(_with_stale_entry, _delete("old"), _loses("old"), tool=False),
    "delete a stale entry and others": Operation(_with_stale_entry, _delete("old", "s2", "s3"), _loses("old", "s2", "s3"), tool=False),
    "delete beside a stale entry": Operation(_with_stale_entry, _delete("s2"), _loses("s2"), tool=False),
    "delete a volume with a stale entry": Operation(_with_stale_entry, _remove("vol"), lambda _model: {}, tool=False, removes=True),
    "delete with pull": Operation(_chain_that_pulls, _delete("s3"), _loses("s3"), tool=False),
    "delete over a short file": Operation(_chain_with_a_short_file, _delete("s2"), _loses("s2"), tool=True),
    "revert": Operation(_chain("raw"), _revert("s4"), _reverted("s4"), tool=False),
    "revert and discard": Operation(_chain("raw"), _revert("s2"), _reverted("s2"), tool=False),
    "grow raw": Operation(_lone("raw"), _ensure(DesiredVolume("vol", size=5 * MIB)), _grown(5 * MIB), tool=False),
    "grow qcow2": Operation(_lone("qcow2"), _ensure(DesiredVolume("vol", size=5 * MIB)), _grown(5 * MIB), tool=False),
    "grow overlay": Operation(_chain("raw"), _ensure(DesiredVolume("vol", size=5 * MIB)), _grown(5 * MIB), tool=False),
    "grow a short file": Operation(_short_over_long, _ensure(DesiredVolume("vol", size=4 * MIB)), _grown(4 * MIB), tool=True),
    "grow a short file of version 2": Operation(
        _short_over_long_of_version_2, _ensure(DesiredVolume("vol", size=4 * MIB)), _grown(4 * MIB), tool=True
    ),
    "grow a shrunk file": Operation(_shrunk(), _ensure(DesiredVolume("vol", size=3 * MIB)), _grown(3 * MIB), tool=False),
    "grow what was cut by its header": Operation(
        _shrunk(by_header=True), _ensure(DesiredVolume("vol", size=3 * MIB)), _grown(3 * MIB), tool=False
    ),
    "grow a packed file": Operation(_shrunk(packed=True), _ensure(DesiredVolume("vol", size=3 * MIB)), _grown(3 * MIB), tool=True),
    "delete over a shrunk file": Operation(_longer_over_shrunk, _delete("s1"), _loses("s1"), tool=False),
    "clone a shrunk file": Operation(
        _shrunk(),
        _ensure(DesiredVolume("copy", format="qcow2", size=3 * MIB), updating.SourceRequest("vol", None)),
        _adds("copy", _active(3 * MIB)),
        tool=False,
    ),
    "clone raw": Operation(
        _chain("raw"),
        _ensure(DesiredVolume("copy", size=4 * MIB), updating.SourceRequest("vol", "s2")),
        _adds("copy", _point("s2", 4 * MIB)),
        tool=False,
    ),
    "clone qcow2": Operation(
        _chain("raw"),
        _ensure(DesiredVolume("copy", format="qcow2", size=4 * MIB), updating.SourceRequest("vol")),
        _adds("copy", _active(4 * MIB)),
        tool=False,
    ),
    "clone lone raw": Operation(
        _lone("raw"),
        _ensure(DesiredVolume("copy", size=3 * MIB), updating.SourceRequest("vol", None)),
        _adds("copy", _active(3 * MIB)),
        tool=False,
    ),
    "clone lone qcow2": Operation(
        _lone("qcow2"),
        _ensure(DesiredVolume("copy", format="qcow2", size=3 * MIB), updating.SourceRequest("vol", None)),
        _adds("copy", _active(3 * MIB)),
        tool=False,
    ),
    "restore from another share": Operation(
        _nothing,
        _restore(DesiredVolume("vol", size=4 * MIB, snapshot="restored"), "s2"),
        lambda model: {"vol": Wanted(_point("s2", 4 * MIB)(model)).with_point("restored")},
        tool=False,
        beside=_chain("qcow2"),
    ),
    "move": Operation(_nothing, _move, lambda model: model, tool=False, beside=_chain("raw"), moves=True),
    "move without snapshots": Operation(_nothing, _move, lambda model: model, tool=False, beside=_lone("qcow2"), moves=True),
    "move onto a replica": _move_onto_replica(),
    "import qcow2": Operation(
        _image("qcow2"), _import(DesiredVolume("new", size=3 * MIB)), _adds("new", lambda _model: _DISK.ljust(3 * MIB, b"\0")), tool=False, parts=True
    ),
    "import gzip, unchecked": Operation(
        _image("gzip"),
        _import(DesiredVolume("new", format="qcow2", size=len(_DISK)), checked=False),
        _adds("new", lambda _model: _DISK),
        tool=False,
        parts=True,
    ),
    "import vmdk with a snapshot": Operation(
        _image("vmdk"),
        _import(DesiredVolume("new", snapshot="s1")),
        lambda model: {**model, "new": Wanted(_DISK).with_point("s1")},
        tool=True,
        parts=True,
    ),
    "export raw": _export(None, "raw"),
    "export vmdk": _export("s2", "vmdk"),
    "first replica": Operation(
        _chain("raw"),
        _replicate("s4"),
        lambda model: {**model, "copy": Wanted(model["vol"].points["s4"]).with_point("s4")},
        tool=False,
        halfway=lambda model: {**model, "copy": Wanted(model["vol"].points["s4"])},
    ),
    "replica": Operation(_with_replica(False), _replicate(), _received, tool=False),
    "replica that was written to": Operation(
        _with_replica(True), _replicate(discards=True), lambda model: _received(_dropped(model)), tool=False, halfway=_dropped
    ),
    "details of a volume": Operation(
        _chain("raw"), _ensure(DesiredVolume("vol", description="told", labels={"a": "b"})), lambda model: model, tool=False
    ),
    "delete volume": Operation(_chain("raw"), _remove("vol"), lambda _model: {}, tool=False, removes=True),
    "delete a volume with a gap": Operation(_without(_chain("raw"), "vol.s2"), _remove("vol"), lambda _model: {}, tool=False, removes=True),
    "delete a volume without its active image": Operation(
        _without(_chain("qcow2"), "vol.s4"), _remove("vol"), lambda _model: {}, tool=False, removes=True
    ),
    "delete a clone whose parent has a gap": Operation(
        _without(_with_clone, "vol.s1"), _remove("copy"), lambda model: {"vol": model["vol"]}, tool=False, removes=True
    ),
    "linked clone of a snapshot": Operation(
        _chain("raw"),
        _ensure(DesiredVolume("copy"), updating.SourceRequest("vol", "s2", linked=True)),
        _adds("copy", _point("s2", 2 * MIB)),
        tool=False,
    ),
    "linked clone of a volume": Operation(
        _chain("raw"),
        _ensure(DesiredVolume("copy"), updating.SourceRequest("vol", linked=True)),
        lambda model: {"vol": model["vol"].with_point("clone-copy"), "copy": Wanted(model["vol"].active)},
        tool=False,
    ),
    "flatten": Operation(_with_clone, _ensure(DesiredVolume("copy", flatten=True)), lambda model: model, tool=False),
    "delete beneath a clone": Operation(_with_clone, _delete("s1", "s3"), _loses("s1", "s3"), tool=False),
    "delete a clone": Operation(_with_clone, _remove("copy"), lambda model: {"vol": model["vol"]}, tool=False, removes=True),
    "retention": Operation(_chain("raw"), _retain, _loses("s1", "s2"), tool=False),
    "snapshot and retention": Operation(
        _chain("raw"),
        _take_and_retain,
        _changes(lambda wanted: wanted.with_point("new").without("s1", "s2", "s3")),
        tool=False,
        halfway=_changes(lambda wanted: wanted.with_point("new")),
    ),
    "take a lease": Operation(_chain("raw"), _hold(replace(_JOB, volumes=_LISTED)), lambda model: model, tool=False, leases=True, parts=True),
    "renew a lease": Operation(
        _with_leased_volumes, _hold(replace(_JOB, uses=("vol",))), lambda model: model, tool=False, leases=True, parts=True, always=_is_somebodys
    ),
    "clone under a lease": Operation(
        _with_lease,
        _under_lease(_ensure(DesiredVolume("copy"), updating.SourceRequest("vol", "s2", linked=True))),
        _adds("copy", _point("s2", 2 * MIB)),
        tool=False,
        leases=True,
        always=_is_somebodys,
    ),
    "collect a lease": Operation(
        _with_leased_volumes, _collect, lambda model: {"vol": model["vol"]}, tool=False, removes=True, apart=True, parts=True, always=_is_somebodys
    ),
    "clean up": Operation(_with_leftovers, _clean, lambda model: model, tool=False, apart=True, parts=True),
    "give back leaks": Operation(_with_leaks, _free_leaks, lambda model: model, tool=True, apart=True, parts=True),
    "drop an empty overlay": Operation(_with_spare_overlay, _drop_overlays, _loses("clone-c0"), tool=False, apart=True, parts=True),
    "make a seed": Operation(
        _lone("raw"), _write_seed("new", "new"), _adds("new", lambda _model: _seed("new", "new").content), tool=False, always=_is_told_to_nobody
    ),
    "replace a seed": Operation(
        _with_seed,
        _write_seed("ci-00", "new"),
        _adds("ci-00", lambda _model: _seed("ci-00", "new").content),
        tool=False,
        leases=True,
        always=_is_told_to_nobody,
    ),
    "replace a seed by a longer one": Operation(
        _with_seed,
        _write_seed("ci-00", "longer" * 1000),
        _adds("ci-00", lambda _model: _seed("ci-00", "longer" * 1000).content),
        tool=False,
        leases=True,
        always=_is_told_to_nobody,
    ),
    "create many": Operation(
        _nothing,
        _bulk(*((name, _ensure(DesiredVolume(name, size=MIB, format=kind))) for name, kind in (("n1", "raw"), ("n2", "qcow2"), ("n3", "raw")))),
        lambda _model: {name: Wanted(bytes(MIB)) for name in ("n1", "n2", "n3")},
        tool=False,
        apart=True,
    ),
    "snapshots of many": Operation(
        _three,
        _bulk(*((name, _take("new", name)) for name in ("vol", "a", "b"))),
        lambda model: {name: one.with_point("new") for name, one in model.items()},
        tool=False,
        apart=True,
    ),
    "delete from many": Operation(
        _three,
        _bulk(("vol", _delete("s1", "s4")), ("b", _delete("before", volume="b")), deletes=True),
        lambda model: {**model, "vol": model["vol"].without("s1", "s4"), "b": model["b"].without("before")},
        tool=False,
        apart=True,
    ),
}


def _on_a_full_share(name: str, with_ballast: bool) -> Operation:
    """The operation where no new file can be filled: records and overlays are written over the ballast in place or, where there is
    none, within the blocks that a file has."""
    known = OPERATIONS[name]

    def run(where: Candidates, options: Options) -> list[Outcome]:
        full = mock.patch.object(ShareDirectory, "create_temporary", side_effect=NoSpace("share", "it is full", "free some space"))
        none = nullcontext() if with_ballast else mock.patch.object(ballast, "lend", return_value=None)
        with full, none:
            return known.run(where, options)

    return replace(known, run=run)


def _of_what_it_gives_up(name: str) -> Operation:
    """A revert on a full share without ballast: no file can be filled before the data of those that go is taken out."""
    known = OPERATIONS[name]

    def run(where: Candidates, options: Options) -> list[Outcome]:
        create, take_out, has_room = ShareDirectory.create_temporary, making_room.take_data_out, []

        def create_if_room(directory: ShareDirectory, volume: str) -> tuple[int, str]:
            if not has_room:
                raise NoSpace("share", "it is full", "free some space")
            return create(directory, volume)

        def take_out_and_have_room(*arguments: Any) -> bool:
            has_room.append(take_out(*arguments))
            return has_room[-1]

        with ExitStack() as patches:
            patches.enter_context(mock.patch.object(ShareDirectory, "create_temporary", create_if_room))
            patches.enter_context(mock.patch.object(ballast, "lend", return_value=None))
            patches.enter_context(mock.patch.object(making_room, "take_data_out", take_out_and_have_room))
            patches.enter_context(mock.patch.object(room, "gives_enough", return_value=True))
            return known.run(where, options)

    return replace(known, run=run)


OPERATIONS.update({f"{name}, of what it gives up": _of_what_it_gives_up(name) for name in ("revert", "revert and discard")})
OPERATIONS.update({f"{name}, over the ballast": _on_a_full_share(name, True) for name in ("revert", "revert and discard", "delete volume")})
OPERATIONS["delete volume, within its blocks"] = _on_a_full_share("delete volume", False)

_BY_TOOL = ("delete oldest", "delete over a shrunk file", "delete several, qcow2", "delete all", "delete with pull", "clone raw", "flatten")
OPERATIONS.update({f"{name}, by qemu-img": replace(OPERATIONS[name], tool=True, by_tool=True) for name in _BY_TOOL})
