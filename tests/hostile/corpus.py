# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The corpus: every hostile thing in every place where it can stand, and how each task ends on it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Callable, Iterator

from . import leases, machines, places, resting, seeds, text
from .files import CLAIMING_QCOW2, FACTS, OURS, RAW_CONTENT, HostileFile
from .scene import CHAIN, LONE, OK, Attack, Scene, outcomes

UNSAFE, BROKEN, CONFLICT, RECOVERY = "unsafe_image", "chain_broken", "conflict", "needs_recovery"
# Tasks that move data over hostile tables: QEMU finds them out, or takes them for data, which differs from release to release.
MOVED = "ok|tool_failed|unsafe_image"
COMPARED = MOVED + "|verify_failed|conflict"  # what they show is not what its source has

# -- images ----------------------------------------------------------------------------------------------------------

# Each file meets each task in one place or another; an image that is refused by its header is refused the same way everywhere.
_REFUSED: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "NAME": (places.as_base, ("info", "snapshot", "clone", "restore", "extend", "remove", "export", "move")),
    "NAME.SNAP, active": (places.as_active, ("info", "delete", "revert", "export_vmdk", "move")),
    "NAME.SNAP, in the middle": (places.as_middle, ("clone_of_snapshot", "restore_of_snapshot", "snapshot_info", "export_of_snapshot", "replicate", "move")),
    "backing file": (places.as_backing, ("flatten", "linked", "replicate", "move")),
    "base of a replica": (places.as_replica_base, ("replicate_over", "compare")),
    "active overlay of a replica": (places.as_replica_active, ("replicate_over", "compare")),
}
_TABLES: dict[str, tuple[Callable, dict[str, str]]] = {
    "NAME": (
        places.as_base,
        outcomes(("info", "snapshot", "remove"), OK, **dict.fromkeys(("clone", "restore", "extend", "export", "export_vmdk", "move"), MOVED)),
    ),
    "NAME.SNAP, active": (places.as_active, outcomes(("info", "revert"), OK, clone=MOVED, delete=MOVED, export=MOVED, move=MOVED)),
    "NAME.SNAP, in the middle": (places.as_middle, outcomes(("info", "linked"), OK, restore_of_snapshot=MOVED, delete=MOVED, replicate=MOVED, move=MOVED)),
    "backing file": (
        places.as_backing,
        outcomes(("info",), OK, flatten=MOVED, clone_of_snapshot=MOVED, delete=MOVED, export_of_snapshot=MOVED, replicate=MOVED, move=MOVED),
    ),
    "base of a replica": (places.as_replica_base, outcomes(("replicate_over", "compare"), COMPARED)),
    "active overlay of a replica": (places.as_replica_active, outcomes(("replicate_over", "compare"), COMPARED)),
}
_UNKNOWN = {"info": OK, "snapshot": UNSAFE, "extend": "invalid_parameter", "remove": CONFLICT, "export": UNSAFE}
# Strays whose backing name leads to the volume's base are taken for linked clones of it, whatever else is wrong with them.
_STRAYS_ON_THE_BASE = (
    "backing name zero-byte",
    "backing name subdirectory",
    "backing format vmdk",
    "backing format nbd",
    "backing format of 30 KiB",
)


def _images() -> Iterator[Attack]:
    for file in CLAIMING_QCOW2:
        if file.code is None:
            for where, (plant, found) in _TABLES.items():
                yield _image(file, where, plant, found)
            continue
        for where, (plant, tasks) in _REFUSED.items():
            yield _image(file, where, plant, outcomes(tasks, file.code))
        yield _image(file, "NAME, format unknown", places.as_unknown, _UNKNOWN)
        removed = "has_dependents" if file.name in _STRAYS_ON_THE_BASE else OK
        yield _image(file, "beside a volume", places.as_neighbour, {"info": OK, "delete": removed})


# What an import may say of an image that is not as it should be. It says it before a volume is there.
_NOT_TAKEN = "unsafe_image|image_invalid"


def _imported() -> Iterator[Attack]:
    """Each hostile file as the image that a new volume is to be made from."""
    for file in CLAIMING_QCOW2:
        found = outcomes(("import", "import_as_qcow2"), MOVED + "|image_invalid" if file.code is None else _NOT_TAKEN)
        found["import"] += "|ok" if file.name in _NO_QCOW2 else ""
        yield Attack(file.name, "image to import", file.what, file.origin, partial(_picture, write=file.write), found, slow=file.slow)
    for name, (what, origin, content) in RAW_CONTENT.items():
        found = {"import": f"ok|{_NOT_TAKEN}", "import_as_qcow2": f"ok|tool_failed|{_NOT_TAKEN}"}
        yield Attack(name, "image to import", what, origin, partial(_raw_picture, content=content), found)


def _written_over() -> Iterator[Attack]:
    """Each hostile file in the place of an image that is to be written. It is looked at, whether it is that image already, and replaced."""
    for file in CLAIMING_QCOW2:
        found = outcomes(_EXPORTS, OK)
        yield Attack(file.name, "image to be written", file.what, file.origin, partial(_destination, write=file.write), found, slow=True)


def _destination(scene: Scene, write: Callable) -> None:
    scene.honest()
    write(scene.share / ".out" / "disk", ("vol", "raw"), scene.victim)


# Without a mark of any format a file is a raw disk.
_NO_QCOW2 = ("magic only of another", "random bytes")


def _picture(scene: Scene, write: Callable) -> None:
    scene.honest()
    write(scene.share / "picture", ("vol", "raw"), scene.victim)


def _raw_picture(scene: Scene, content: Callable[[Path, Path], bytes]) -> None:
    scene.honest()
    (scene.share / "picture").write_bytes(content(scene.root / "sketch", scene.victim))


def _image(file: HostileFile, where: str, plant: Callable, found: dict[str, str]) -> Attack:
    slow = file.slow or where not in ("NAME", "NAME.SNAP, active")
    return Attack(file.name, where, file.what, file.origin, partial(plant, write=file.write), found, slow=slow)


_EXPORTS = ("export", "export_of_snapshot")


def _raw() -> Iterator[Attack]:
    for name, (what, origin, content) in RAW_CONTENT.items():
        for where, plant, tasks, layered in (
            ("raw NAME", places.raw_recorded, ("info", "snapshot", "extend", "clone", "restore", "remove", "export", "export_vmdk"), False),
            ("raw base of a chain", places.raw_below, ("info", "delete", "revert", "clone", "clone_of_snapshot", "linked", *_EXPORTS), True),
        ):
            checks = places.raw_checks(content, layered)
            yield Attack(name, where, what, origin, partial(plant, content=content), outcomes(tasks, OK), checks, slow=layered)


# -- something else than a file --------------------------------------------------------------------------------------

Make = Callable[[Path, Scene], None]


def _thing_as_base(scene: Scene, make: Make) -> None:
    make(scene.share / "vol", scene)
    scene.record(formats={"vol": "raw"})


def _thing_as_overlay(scene: Scene, make: Make) -> None:
    scene.raw()
    make(scene.share / "vol.s1", scene)
    scene.info("vol.s1", s1="vol.s1")


def _thing_as_backing(scene: Scene, make: Make) -> None:
    make(scene.share / "vol", scene)
    scene.overlay("vol.s1", "vol", "raw")
    scene.info("vol.s1", s1="vol.s1")


def _thing_as_info(scene: Scene, make: Make) -> None:
    scene.raw()
    scene.overlay("vol.s1", "vol", "raw")
    make(scene.share / "vol.info", scene)


def _thing_as_record(scene: Scene, make: Make) -> None:
    scene.honest(recorded=False)
    make(scene.private() / "vol.json", scene)


def _thing_at(kind: str, suffix: str) -> Callable[[Scene, Make], None]:
    def plant(scene: Scene, make: Make) -> None:
        scene.honest()
        for name in ("vol", "new"):
            make(scene.private(kind) / (name + suffix), scene)

    return plant


def _thing_as_target(scene: Scene, make: Make) -> None:
    scene.honest()
    for name in ("copy", "link", "new", "vol.s9", "replica"):
        make(scene.share / name, scene)


def _thing_as_picture(scene: Scene, make: Make) -> None:
    scene.honest()
    make(scene.share / "picture", scene)


def _thing_in_the_way(suffix: str) -> Callable[[Scene, Make], None]:
    """Where an image arrives."""

    def plant(scene: Scene, make: Make) -> None:
        from ansible_collections.remotefs.storage.plugins.module_utils.images.arriving import key_of  # late: the page is written without

        scene.honest()
        (scene.share / "picture").write_bytes(b"picture" * 4096)
        make(scene.private("images") / (key_of(str(scene.share / "picture"), None) + suffix), scene)

    return plant


def _thing_as_destination(scene: Scene, make: Make) -> None:
    scene.honest()
    make(scene.share / ".out" / "disk", scene)


def _thing_beside_destination(scene: Scene, make: Make) -> None:
    scene.honest()
    make(scene.share / ".out" / ".disk.remotefs-part", scene)


def _thing_as_private(name: str) -> Callable[[Scene, Make], None]:
    def plant(scene: Scene, make: Make) -> None:
        scene.honest(recorded=False)
        if name:
            os.rmdir(scene.private())
        make(scene.share / ".remotefs" / name if name else scene.share / ".remotefs", scene)

    return plant


_FILES = tuple(places.THINGS)
_OPENED = ("symlink outside", "dangling symlink", "symlink inside", "hard link", "FIFO", "socket", "directory", "zero device")
_WRITTEN = ("FIFO", "socket", "directory", "zero device")
_DIRECTORIES = ("symlink outside", "dangling symlink", "symlink to a directory", "FIFO", "hard link")
_THINGS: dict[str, tuple[Callable[[Scene, Make], None], tuple[str, ...], dict[str, str]]] = {
    "NAME": (_thing_as_base, _FILES, outcomes(("info", "snapshot", "extend", "clone", "restore", "remove", "present", "export", "move"), UNSAFE)),
    "NAME.SNAP": (_thing_as_overlay, _FILES, outcomes(("info", "snapshot", "delete", "restore", "remove", "export", "replicate", "move"), UNSAFE)),
    "backing file": (_thing_as_backing, _FILES, outcomes(("info", "delete", "remove", "export", "replicate", "move"), UNSAFE)),
    "NAME.info": (_thing_as_info, _OPENED, outcomes(("info", "snapshot", "remove", "move"), UNSAFE)),
    "record": (_thing_as_record, _OPENED, outcomes(("info", "snapshot", "clone", "restore", "move"), UNSAFE)),
    "lock file": (_thing_at("locks", ".lock"), _OPENED, outcomes(("snapshot", "create", "delete", "restore", "move"), UNSAFE, info=OK)),
    "temporary file": (_thing_at("tmp", "~0123456789ab"), _OPENED, outcomes(("info", "snapshot", "create"), OK)),
    "target of a creation": (_thing_as_target, _FILES, outcomes(("create", "create_qcow2", "clone", "linked", "replicate"), UNSAFE, snapshot=CONFLICT)),
    "image to import": (_thing_as_picture, ("FIFO", "socket", "directory", "zero device"), {"import": "tool_failed"}),
    "image to be written": (_thing_as_destination, _WRITTEN, {"export": "invalid_parameter"}),
    "beside an image to be written": (_thing_beside_destination, _OPENED, {"export": CONFLICT}),
    "arriving image": (_thing_in_the_way(""), _OPENED, {"import": UNSAFE}),
    ".remotefs/images": (_thing_as_private("images"), _DIRECTORIES, {"import": UNSAFE}),
    ".remotefs": (_thing_as_private(""), _DIRECTORIES, outcomes(("info", "snapshot", "create", "restore", "move"), UNSAFE)),
    ".remotefs/volumes": (_thing_as_private("volumes"), _DIRECTORIES, outcomes(("info", "snapshot", "create"), UNSAFE)),
    ".remotefs/locks": (_thing_as_private("locks"), _DIRECTORIES, outcomes(("snapshot", "create", "restore", "move"), UNSAFE, info=OK)),
    ".remotefs/tmp": (_thing_as_private("tmp"), _DIRECTORIES, outcomes(("snapshot", "create"), UNSAFE, info=OK)),
    ".remotefs/groups": (_thing_as_private("groups"), _DIRECTORIES, outcomes(("snapshot", "remove"), UNSAFE, info=OK)),
}
_SPECIAL: dict[tuple[str, str], dict[str, str]] = {
    # A second name is no harm to who reads: what is refused is writing and removing.
    ("hard link", "NAME"): {"info": OK, "export": OK},
    ("hard link", "backing file"): {"info": OK, "export": OK, "replicate": OK},
    # What it holds is text.
    ("hard link", "NAME.info"): outcomes(("info", "snapshot", "remove", "move"), BROKEN),
    ("hard link", "record"): outcomes(("info", "snapshot", "clone", "restore", "move"), BROKEN),
    ("symlink inside", "record"): {},
    # It is a file that no task has made: an existing volume of unknown format, or one that is not as wished.
    ("hard link", "target of a creation"): {
        "create_qcow2": CONFLICT,
        "clone": "invalid_parameter",
        "linked": "invalid_parameter",
        "replicate": CONFLICT,
    },
    # Nothing may be removed that has something in it.
    ("directory", "temporary file"): outcomes(("snapshot", "create"), UNSAFE),
}


def _things() -> Iterator[Attack]:
    for where, (plant, names, found) in _THINGS.items():
        for name in names:
            what, make = places.THINGS[name]
            told = {**found, **_SPECIAL.get((name, where), {})}
            origin = FACTS if name in ("FIFO", "hard link", "symlink outside") else OURS
            loses_name = name == "hard link" and where == "temporary file"
            slow = where.startswith(".remotefs/")
            root = name in places.DEVICES
            yield Attack(name, where, what, origin, partial(plant, make=make), told, slow=slow, root=root, loses_name=loses_name)


# -- text and structure ----------------------------------------------------------------------------------------------

_INFO_TASKS, _RECORD_TASKS = ("info", "snapshot", "delete", "remove"), ("info", "snapshot", "extend", "clone", "present")
_BROKEN_INFO = (
    "number", "null", "list", "string", "empty", "torn", "no text", "NaN", "long number", "deep lists", "deep objects", "missing file",
)  # fmt: skip
_NEEDING_RECOVERY = ("NaN", "newer")


def _of_info(name: str, code: str) -> dict[str, str]:
    """A volume whose active file is missing could be removed, but for the overlay that this ``.info`` does not name."""
    return {**outcomes(_INFO_TASKS, code), **({"remove": "has_dependents"} if name == "missing file" else {})}


def _texts() -> Iterator[Attack]:
    for name, (what, data) in text.INFO.items():
        code = OK if name == "base as snapshot" else BROKEN if name in _BROKEN_INFO else UNSAFE
        origin = FACTS if name in ("absolute", "upwards", "slash") else OURS
        yield Attack(f"info: {name}", "NAME.info", what, origin, text.plant_info(data), _of_info(name, code))
    for name, (what, data) in text.RECORDS.items():
        if name.startswith("intent ") and name != "intent of another kind":
            # Looking takes nothing from it; who changes the volume must decide first.
            found = outcomes(("snapshot", "extend", "clone", "present"), RECOVERY, info=OK)
        else:
            found = outcomes(_RECORD_TASKS, RECOVERY if name in _NEEDING_RECOVERY else BROKEN)
        yield Attack(f"record: {name}", "record", what, OURS, text.plant_record(data), found)


def _kept(file: str) -> Callable[[Scene], None]:
    def check(scene: Scene) -> None:
        assert (scene.share / file).exists(), f"{file} of another volume was removed"

    return check


_CHANGING = ("snapshot", "extend", "delete", "revert", "clone", "linked", "flatten", "remove")
_READING = {"info": OK, "snapshot_info": OK}


def _structures() -> Iterator[Attack]:
    def one(
        name: str, where: str, what: str, plant: Callable, found: dict[str, str], origin: str = OURS, slow: bool = False, **more: object
    ):
        return Attack(name, where, what, origin, plant, found, slow=slow, **more)  # type: ignore[arg-type] # fields of an Attack

    unsafe, broken = outcomes(CHAIN, UNSAFE), outcomes(CHAIN, BROKEN)
    yield one("info of 100 MiB", "NAME.info", "as long as that", text.info_of_100_mib, unsafe)
    yield one("info of exbibytes", "NAME.info", "as long as the file system lets it be", text.info_of_8_eib, unsafe)
    yield one("info with 40,000 snapshots", "NAME.info", "all of one overlay", text.info_with_many, unsafe)
    yield one(
        "info with strange keys",
        "NAME.info",
        "snapshots called ../x, -U, control characters",
        text.info_with_strange_keys,
        outcomes(CHAIN, OK),
    )
    yield one("info of a raw neighbour", "NAME.info", "it claims another volume's disk", text.info_of_another_volume, unsafe)
    yield one(
        "info of a neighbour",
        "NAME.info",
        "it claims another volume's overlay",
        text.info_claims_overlay_of_another,
        {**outcomes(_CHANGING, CONFLICT), **_READING},
    )
    yield one("record against header", "record", "they give the base different formats", text.record_contradicts_header, {**broken, "remove": UNSAFE})
    yield one(
        "garbage of a neighbour", "record", "another volume's disk is to be removed", text.garbage_of_another,
        outcomes(LONE, OK), checks=dict.fromkeys(LONE, _kept("other")),
    )  # fmt: skip
    for name, (what, forge) in text.IDENTITIES.items():
        found = {"replicate_over": f"{OK}|{CONFLICT}", "compare": f"{OK}|verify_failed", "info": OK}
        yield one(name, "record", what, text.plant_identity(forge), found, checks=dict.fromkeys(found, _kept("good.s2")))
    for name, (what, move) in text.MOVES.items():
        code = CONFLICT if name in ("move", "move that is complete") else BROKEN
        found = outcomes(("snapshot", "clone", "replicate", "move"), code, info=OK if code == CONFLICT else BROKEN)
        yield one(name, "record", what, text.plant_move(move), found)
    yield one("open to all", ".remotefs", "everybody may write to it", text.open_to_all, unsafe)
    yield one("chain on itself", "chain", "an overlay is its own backing file", text.self_loop, broken, FACTS)
    yield one("chain in a circle", "chain", "two overlays rest on each other", text.two_cycle, broken, FACTS)
    yield one("clones in a circle", "chain", "two volumes rest on each other", text.clones_in_a_circle, outcomes(LONE, BROKEN), FACTS)
    yield one("chain of 500", "chain", "longer than any chain that is followed", text.chain_of(500), broken, slow=True)
    long = outcomes(("info", "snapshot", "delete", "clone"), OK, linked="invalid_parameter")
    yield one("chain of 200", "chain", "long, but honest", text.chain_of(200), long, slow=True)
    yield one("no base", "chain", "the backing file does not exist", text.missing_base, {**broken, "remove": OK})
    yield one("raw disk called qcow2", "chain", "the header above calls a guest's forged disk qcow2", text.formats_disagree, broken)
    healed = outcomes(("info", "snapshot", "delete", "revert", "clone", "extend"), OK)
    yield one(
        "raw disk without a format",
        "chain",
        "the header above leaves the format of a guest's forged disk open",
        text.format_over_forged,
        healed,
    )
    yield one(
        "raw disk called a device",
        "chain",
        "the header above calls a guest's forged disk `host_device`, as QEMU does for a raw file without a format layer",
        partial(text.format_over_forged, image_format="host_device"),
        healed,
    )
    yield one(
        "strange names",
        "share",
        "files called -U, a:b, a,b, json:{}, with newlines and control characters",
        text.strange_names,
        outcomes((*CHAIN, "share_info"), OK),
        FACTS,
    )


def _resting() -> Iterator[Attack]:
    """Each stands beside an honest volume and rests on its active image, or seems to."""
    for name, (what, plant) in resting.RESTING.items():
        found = {**outcomes(("delete", "remove"), "has_dependents"), **_READING, "snapshot": OK, "revert": OK}
        yield Attack(name, "beside a volume", what, FACTS, partial(_beside, plant=plant), found)
    for name, (what, plant) in resting.SEEMING.items():
        yield Attack(name, "beside a volume", what, FACTS, partial(_beside, plant=plant), outcomes(("info", "delete", "revert", "remove"), OK))


def _beside(scene: Scene, plant: Callable[[Scene], None]) -> None:
    scene.honest()
    plant(scene)


ATTACKS: tuple[Attack, ...] = (*_images(), *_imported(), *_written_over(), *_raw(), *_things(), *_texts(), *_structures(), *_resting())
ATTACKS += (*leases.ATTACKS, *machines.ATTACKS, *seeds.ATTACKS)
