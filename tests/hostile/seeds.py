# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands where a seed is to be, and what is taken for one: only a seed of this collection's own is ever replaced."""

from __future__ import annotations

import os
import struct
from functools import partial
from pathlib import Path
from typing import Callable, Iterator

from . import places
from .files import CLAIMING_QCOW2, OURS, RAW_CONTENT, HostileFile
from .scene import BASE, OK, Attack, Scene

SECTOR = 2048  # bytes
_HEAD = 17 * SECTOR
_NONE, _UNSAFE = "conflict", "unsafe_image"


def _image(secret: bytes = b"#cloud-config\nanother: one\n") -> bytes:
    """A seed as the collection makes it, with another content than the tasks have."""
    from ansible_collections.remotefs.storage.plugins.module_utils.images import iso9660  # late: the page is written without
    from ansible_collections.remotefs.storage.plugins.module_utils.operations import seeds

    return iso9660.image({"user-data": secret, "meta-data": b"{}"}, seeds.LABEL, seeds.APPLICATION)


def _recorded(scene: Scene, data: bytes, length: int = 0) -> None:
    (scene.share / "vol").write_bytes(data)
    if length:
        os.truncate(scene.share / "vol", length)
    scene.record(formats={"vol": "raw"})


def _made(scene: Scene, change: Callable[[bytes], bytes]) -> None:
    _recorded(scene, change(_image()))


def _very_long(scene: Scene) -> None:
    """Its descriptor says the length that it has: 8 TiB less a sector, the most that it can say."""
    sectors = (1 << 32) - 1
    data = bytearray(_image()[:_HEAD])
    place = 16 * SECTOR + 80
    data[place : place + 8] = struct.pack("<I", sectors) + struct.pack(">I", sectors)
    _recorded(scene, bytes(data), sectors * SECTOR)


def _with_overlay(scene: Scene) -> None:
    _recorded(scene, _image())
    scene.overlay("theirs", "vol", "raw")


def _with_snapshot(scene: Scene) -> None:
    scene.honest()
    (scene.share / "vol").write_bytes(_image())


def _with_second_name(scene: Scene) -> None:
    _recorded(scene, _image())
    os.link(scene.share / "vol", scene.root / "second")


def _of_another(scene: Scene) -> None:
    """The ``.info`` of another volume claims the seed."""
    _recorded(scene, _image())
    scene.raw("other")
    scene.info("vol", volume="other", s1="vol")


_FORGED: dict[str, tuple[str, Callable[[Scene], None], str]] = {
    "another seed": ("of this collection's own, with another content", partial(_made, change=lambda data: data), OK),
    "seed without a mark": ("as other programs make it", partial(_made, change=lambda data: data.replace(b"REMOTEFS.STORAGE SEED", b" " * 21)), _NONE),
    "seed cut short": ("it has fewer sectors than it says", partial(_made, change=lambda data: data[:-SECTOR]), _NONE),
    "seed that is too long": ("it has more sectors than it says", partial(_made, change=lambda data: data + bytes(SECTOR)), _NONE),
    "seed of half a sector more": ("its length is none that an image has", partial(_made, change=lambda data: data + bytes(1024)), _NONE),
    "head of a seed": ("its descriptor alone", partial(_made, change=lambda data: data[:_HEAD]), _NONE),
    "seed over a disk": ("a disk of somebody behind the head of a seed", partial(_made, change=lambda data: data[:_HEAD] + BASE * 8), _NONE),
    "seed of 8 TiB": ("the mark, and the length that it says, of holes", _very_long, OK),
    "seed with an overlay": ("a linked clone rests on it", _with_overlay, "has_dependents"),
    "seed with a snapshot": ("a volume with snapshots, whose base is a seed", _with_snapshot, _NONE),
    "seed with a second name": ("a second name of it outside", _with_second_name, f"{OK}|{_UNSAFE}"),
    "seed of another volume": ("another volume's .info claims it, which is that one's fault", _of_another, OK),
}


def _forged() -> Iterator[Attack]:
    for name, (what, plant, code) in _FORGED.items():
        found = {"seed": code, "info": OK}
        yield Attack(name, "seed", what, OURS, plant, found, loses_name=name == "seed with a second name")


def _thing(scene: Scene, make: Callable[[Path, Scene], None], name: str) -> None:
    scene.honest(recorded=False)
    (scene.share / "vol").unlink()
    (scene.share / "vol.s1").unlink()
    (scene.share / "vol.info").unlink()
    make(scene.share / name, scene)
    if name == "vol":
        scene.record(formats={"vol": "raw"})


def _raw(scene: Scene, content: Callable[[Path, Path], bytes]) -> None:
    _recorded(scene, content(scene.root / "sketch", scene.victim))


def _claiming(scene: Scene, file: HostileFile) -> None:
    file.write(scene.share / "vol", ("vol", "raw"), scene.victim)
    scene.record(formats={"vol": "qcow2"})


def _files() -> Iterator[Attack]:
    for name, (what, make) in places.THINGS.items():
        root = name in places.DEVICES
        yield Attack(name, "seed", what, OURS, partial(_thing, make=make, name="vol"), {"seed": _NONE if name == "hard link" else _UNSAFE}, root=root)
        yield Attack(name, "new seed", what, OURS, partial(_thing, make=make, name="new"), {"new_seed": _NONE if name == "hard link" else _UNSAFE}, root=root)
    for name, (what, origin, content) in RAW_CONTENT.items():
        yield Attack(name, "seed", what, origin, partial(_raw, content=content), {"seed": _NONE})
    for file in CLAIMING_QCOW2[::6]:  # what the header of an image says is looked at in one place
        code = f"{_NONE}|{_UNSAFE}|chain_broken"
        yield Attack(file.name, "seed", file.what, file.origin, partial(_claiming, file=file), {"seed": code}, slow=True)


ATTACKS: tuple[Attack, ...] = (*_forged(), *_files())
