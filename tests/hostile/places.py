# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where hostile files are planted. Each place is a function of the scene and of what writes the file."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from pathlib import Path
from typing import Any, Callable

from .images import SIZE
from .scene import BASE, LAYER, LAYER_AT, Scene

Write = Callable[[Path, Any, Path], None]


# -- a file that claims to be a qcow2 image ----------------------------------------------------------------------------


def as_base(scene: Scene, write: Write) -> None:
    """``NAME``, recorded as qcow2."""
    write(scene.share / "vol", None, scene.victim)
    scene.record(formats={"vol": "qcow2"})


def as_active(scene: Scene, write: Write) -> None:
    """``NAME.SNAP``, the active overlay over an honest base, without records of ours."""
    scene.raw()
    write(scene.share / "vol.s1", ("vol", "raw"), scene.victim)
    scene.info("vol.s1", s1="vol.s1")


def as_middle(scene: Scene, write: Write) -> None:
    """An overlay in the middle of a chain."""
    scene.raw()
    write(scene.share / "vol.s1", ("vol", "raw"), scene.victim)
    scene.overlay("vol.s2", "vol.s1", "qcow2")
    scene.info("vol.s2", s1="vol.s1", s2="vol.s2")


def as_backing(scene: Scene, write: Write) -> None:
    """The backing file of an honest overlay that calls it qcow2."""
    write(scene.share / "vol", None, scene.victim)
    scene.overlay("vol.s1", "vol", "qcow2")
    scene.info("vol.s1", s1="vol.s1")


def as_neighbour(scene: Scene, write: Write) -> None:
    """A stray file, and one that looks like an overlay of the volume, beside an honest volume."""
    scene.honest()
    write(scene.share / "stray", None, scene.victim)
    write(scene.share / "vol.stray", ("elsewhere", "raw"), scene.victim)


def as_replica_base(scene: Scene, write: Write) -> None:
    """The base of a replica."""
    as_backing(scene, write)
    scene.replica("qcow2")


def as_replica_active(scene: Scene, write: Write) -> None:
    """The active overlay of a replica, on which the next point would come."""
    as_active(scene, write)
    scene.replica()


def as_unknown(scene: Scene, write: Write) -> None:
    """``NAME`` alone, of which nothing records a format."""
    write(scene.share / "vol", None, scene.victim)


# -- the content of a raw disk -----------------------------------------------------------------------------------------

Content = Callable[[Path, Path], bytes]


def _disk(scene: Scene, name: str, content: Content) -> None:
    data = content(scene.root / "sketch", scene.victim)
    with open(scene.share / name, "wb") as stream:
        stream.write(data)
        stream.truncate(max(SIZE, len(data)))


def raw_recorded(scene: Scene, content: Content) -> None:
    """``NAME`` alone, recorded as raw."""
    _disk(scene, "vol", content)
    scene.record(formats={"vol": "raw"})


def raw_below(scene: Scene, content: Content) -> None:
    """The raw base of an overlay that says so, without records of ours."""
    _disk(scene, "vol", content)
    scene.overlay("vol.s1", "vol", "raw")
    scene.info("vol.s1", s1="vol.s1")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def raw_checks(content: Content, layered: bool) -> dict[str, Callable[[Scene], None]]:
    """After each task, the disk holds what it held, compared with a model by hash."""

    def model(scene: Scene, layer: bool, size: int = SIZE) -> bytes:
        data = bytearray(content(scene.root / "sketch", scene.victim).ljust(size, b"\0"))
        if layer:
            data[LAYER_AT : LAYER_AT + len(LAYER)] = LAYER
        return bytes(data)

    def holds(file: str, layer: bool, size: int = SIZE, restored: bool = False) -> Callable[[Scene], None]:
        def check(scene: Scene) -> None:
            share = scene.target if restored else scene.share
            assert _hash((share / file).read_bytes()) == _hash(model(scene, layer, size)), f"{file} holds something else"

        return check

    untouched = holds("vol", False)
    checks = dict.fromkeys(("info", "snapshot", "linked", "flatten", "revert", "present"), untouched)
    checks["clone"] = holds("copy", layered)
    checks["restore"] = holds("vol", layered, restored=True)
    checks["export"] = holds(".out/disk", layered)
    if layered:
        return {**checks, "extend": untouched, "clone_of_snapshot": holds("copy", False), "delete": holds("vol", True)}
    return {**checks, "extend": holds("vol", False, 2 * SIZE)}


# -- something else than a file ----------------------------------------------------------------------------------------


def symlink_outside(path: Path, scene: Scene) -> None:
    path.symlink_to(scene.victim)


def symlink_upwards(path: Path, scene: Scene) -> None:
    path.symlink_to(os.path.relpath(scene.victims[0], path.parent))


def symlink_dangling(path: Path, scene: Scene) -> None:
    path.symlink_to(scene.outside / "made-by-a-task")


def symlink_loop(path: Path, _scene: Scene) -> None:
    path.symlink_to(path.name)


def symlink_to_directory(path: Path, scene: Scene) -> None:
    path.symlink_to(scene.outside)


def symlink_inside(path: Path, scene: Scene) -> None:
    scene.raw("honest", BASE[::-1])
    path.symlink_to(os.path.relpath(scene.share / "honest", path.parent))


def hard_link(path: Path, scene: Scene) -> None:
    os.link(scene.victim, path)


def fifo(path: Path, _scene: Scene) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, _scene: Scene) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)  # the address of a socket is short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def directory(path: Path, _scene: Scene) -> None:
    path.mkdir()
    (path / "content").write_bytes(b"x")


def zero_device(path: Path, _scene: Scene) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def terminal_device(path: Path, _scene: Scene) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(5, 0))


def block_device(path: Path, _scene: Scene) -> None:
    os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 250))


def regular_file(path: Path, _scene: Scene) -> None:
    path.write_bytes(b"somebody's\n" * 100)


THINGS: dict[str, tuple[str, Callable[[Path, Scene], None]]] = {
    "symlink outside": ("a symbolic link to a file outside, absolute", symlink_outside),
    "symlink upwards": ("a symbolic link to a file outside, relative", symlink_upwards),
    "dangling symlink": ("a symbolic link to where a task could make a file", symlink_dangling),
    "symlink loop": ("a symbolic link to itself", symlink_loop),
    "symlink to a directory": ("a symbolic link to a directory outside", symlink_to_directory),
    "symlink inside": ("a symbolic link to another file of the share", symlink_inside),
    "hard link": ("a second name of a file outside", hard_link),
    "FIFO": ("a pipe that blocks whoever opens it", fifo),
    "socket": ("a socket", unix_socket),
    "directory": ("a directory with something in it", directory),
    "zero device": ("a device that never ends", zero_device),
    "terminal device": ("a device that takes the terminal", terminal_device),
    "block device": ("a device of the host", block_device),
}
DEVICES = ("zero device", "terminal device", "block device")  # only root makes them
