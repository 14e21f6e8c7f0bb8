# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files this host's kernel has open by itself. It takes none of QEMU's lock bytes, so these cannot show it.

They are files of loop devices, swap files, and the files that LIO (fileio) and nvmet serve. What the kernels of other hosts have
open cannot be seen from here.
"""

from __future__ import annotations

import os
import re
import struct
from typing import Iterator, NamedTuple

from ... import localities

ROOT = "/"  # where sysfs, procfs and devices are; tests change it
_DELETED = " (deleted)"
_LOOP_GET_STATUS64 = 0x4C05
_STATUS64 = struct.Struct("=QQ")  # the first fields of struct loop_info64: lo_device, lo_inode
_STATUS64_SIZE = 232
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class User(NamedTuple):
    """A use of a file by the kernel: ``name`` for messages ("/dev/loop3", "swap space"), and whether the kernel may write to it."""

    name: str
    writes: bool = True


class KernelUsers:
    """The files that the kernel of this host had open when this was made. ``found``: (device, inode) → user.

    :param device: the device number of the share. Files on network file systems other than the share are not looked at, because
        their server may be dead.
    """

    def __init__(self, device: int) -> None:
        self._device = f"{os.major(device)}:{os.minor(device)}"
        self._mounts: list[tuple[str, ...]] | None = None
        self.found: dict[tuple[int, int], User] = {}
        for path, user, loop in (*_loops(), *_swaps(), *_served()):
            identity = self._identity(path, loop)
            if identity is not None:
                self.found[identity] = user

    def of(self, status: os.stat_result) -> User | None:
        """The use of the file with this stat by the kernel; None if the kernel does not have it open."""
        return self.found.get((status.st_dev, status.st_ino))

    def _identity(self, path: str, loop: str | None) -> tuple[int, int] | None:
        if self._may_hang(path):
            return None
        try:
            return _identity_of_loop(loop) if loop else _identity_at(path)
        except OSError:
            pass
        try:
            return _identity_at(path)  # no device node here, as in a container
        except OSError:
            return None  # this process cannot see its directory, or it has no name any more

    def _may_hang(self, path: str) -> bool:
        """Whether a stat of the path would ask another server than that of the share."""
        if self._mounts is None:
            self._mounts = list(mounts())
        above = [mount for mount in self._mounts if path == mount[1] or path.startswith(mount[1].rstrip("/") + "/")]
        if not above:
            return False
        device, _path, fstype = max(reversed(above), key=lambda mount: len(mount[1]))  # of several on one point the last one counts
        return device != self._device and not localities.locality(fstype).local


def description(user: User) -> str:
    """The name of a user and where its device is mounted, for a message."""
    name = user.name.rpartition("/")[2]
    devices = {_read(f"sys/class/block/{one}/dev") for one in _stacked(name)} if user.name.startswith("/dev/") else set()
    places = [path for device, path, _fstype in mounts() if device in devices]
    return ", ".join([user.name, *(f"mounted at {path}" for path in places[:3])])


def _stacked(name: str, depth: int = 8) -> Iterator[str]:
    """Names of a block device, of its partitions, and of the devices on top of them (device mapper, RAID)."""
    yield name
    above = _names(f"sys/class/block/{name}/holders") + [part for part in _names(f"sys/class/block/{name}") if part.startswith(name + "p")]
    for other in above if depth else ():
        yield from _stacked(other, depth - 1)


def _loops() -> Iterator[tuple[str, User, str | None]]:
    for name in _names("sys/block"):
        path = _read(f"sys/block/{name}/loop/backing_file") if name.startswith("loop") else ""
        if path:
            yield _without_mark(path), User(f"/dev/{name}", _read(f"sys/block/{name}/ro") != "1"), os.path.join(ROOT, "dev", name)


def _swaps() -> Iterator[tuple[str, User, str | None]]:
    for line in _read("proc/swaps").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 1 and fields[1] == "file":
            yield _without_mark(_unescape(fields[0])), User("swap space"), None


def _served() -> Iterator[tuple[str, User, str | None]]:
    """The files of LIO's fileio backstores and of nvmet's namespaces."""
    core = "sys/kernel/config/target/core"
    for group in [name for name in _names(core) if name.startswith("fileio_")]:
        for name in _names(f"{core}/{group}"):
            path = _read(f"{core}/{group}/{name}/udev_path")
            if not path.startswith("/"):
                match = re.search(r"File: (/.*?)\s+Size:", _read(f"{core}/{group}/{name}/info"))
                path = match.group(1) if match else ""
            if path:
                yield path, User(f"the LIO backstore {name}"), None
    subsystems = "sys/kernel/config/nvmet/subsystems"
    for subsystem in _names(subsystems):
        for number in _names(f"{subsystems}/{subsystem}/namespaces"):
            path = _read(f"{subsystems}/{subsystem}/namespaces/{number}/device_path")
            if path.startswith("/"):
                yield path, User(f"namespace {number} of the NVMe target {subsystem}"), None


def _identity_of_loop(device: str) -> tuple[int, int]:
    """(Device, inode) of the file of a loop device, from the device itself. The path may mean another file here (bind mounts, other
    namespaces)."""
    import fcntl

    fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        answer = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_STATUS64_SIZE))
    finally:
        os.close(fd)
    kernel, inode = _STATUS64.unpack_from(answer)
    return os.makedev((kernel >> 8) & 0xFFF, (kernel & 0xFF) | ((kernel >> 12) & 0xFFF00)), inode


def _identity_at(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def mounts() -> Iterator[tuple[str, str, str]]:
    """The mounts of this process in the kernel's order: (device as "MAJOR:MINOR", mount point, type). Empty if they cannot be read."""
    for line in _read("proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        if "-" in fields[6:]:
            yield fields[2], _unescape(fields[4]), fields[fields.index("-", 6) + 1]


def _unescape(text: str) -> str:
    """Replace the kernel's octal escapes by the bytes that they stand for."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match.group(1), 8)]), os.fsencode(text)))


def _without_mark(path: str) -> str:
    return path[: -len(_DELETED)] if path.endswith(_DELETED) and not os.path.lexists(path) else path


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(os.path.join(ROOT, directory)))
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(os.path.join(ROOT, path), "rb") as stream:
            return os.fsdecode(stream.read()).rstrip("\n")
    except OSError:
        return ""
