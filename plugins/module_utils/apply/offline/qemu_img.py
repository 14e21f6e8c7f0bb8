# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs qemu-img on opened files. qemu-img never sees a path on the share.

A private directory has symbolic links to ``/proc/self/fd/N``, with the names of the files. The relative backing names in the headers
lead to these links. So qemu-img opens exactly the files that were checked, even if somebody exchanges names on the share.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager
from typing import Callable, Iterable, Iterator, Mapping, Sequence

from ... import command, errors, model
from ...pace import UNLIMITED, Pace
from ...store import qcow2
from .. import engine

MINIMUM_VERSION = (7, 2)  # the oldest release with which the merges of this collection were tested
_PACKAGE = "qemu-utils"
_version_checked: list[str] = []

# Limits for qemu-img, because it reads images that somebody else has written. docs/hostile-content.md explains the numbers.
_MIB = 1 << 20
_CPU_SECONDS = 300  # for any image, even an empty one
_CPU_SECONDS_PER_MIB = 4  # added for each MiB that the images take on disk
_CPU_SECONDS_PER_RAW_GIB = 16  # added for each GiB of a raw image. Holes count, because a rebase reads them.
_MEMORY = 10240 * _MIB  # bytes of address space for qemu-img itself: each of its 64 threads reserves a stack and a heap
_MEMORY_PER_LAYER = 128 * _MIB  # added for each image: its tables and caches
_METADATA = 16  # the tables need less than this part (1/16) of an image, even with the smallest possible clusters
_SLACK = 64 * _MIB  # added to the length that a file may get
_LONGEST = 2**63 - 1  # bytes of the longest possible file


def _program() -> str:
    """Path of qemu-img. :raises ToolMissing: it is not installed, or it is older than :data:`MINIMUM_VERSION`."""
    if _version_checked:
        return _version_checked[0]
    path = command.find("qemu-img", _PACKAGE)
    output = command.run([path, "--version"], timeout=30).out
    match = re.search(r"version (\d+)\.(\d+)", output)
    if not match or (int(match.group(1)), int(match.group(2))) < MINIMUM_VERSION:
        wanted = ".".join(str(part) for part in MINIMUM_VERSION)
        raise errors.ToolMissing(
            "program qemu-img", f"version {wanted} or newer is needed, found {output.splitlines()[0] if output else 'nothing'!r}", "upgrade it"
        )
    _version_checked.append(path)
    return path


def _still_names(fd: int, backing_file: str | None) -> bool:
    """Whether the header of an opened image names this backing file."""
    try:
        return qcow2.read_header(fd).backing_file == backing_file
    except qcow2.Qcow2Error:
        return False


def limits_for(fds: Sequence[int], raw: int, virtual: int) -> command.Limits:
    """The limits of a program that works on opened images.

    :param raw: bytes of those that are raw, holes included. :param virtual: the largest virtual size in bytes.
    """
    statuses = [os.fstat(fd) for fd in fds]
    allocated = sum(map(model.allocated, statuses))
    longest = max(status.st_size for status in statuses) + virtual + virtual // _METADATA + _SLACK
    return command.Limits(
        cpu_seconds=_CPU_SECONDS + allocated // _MIB * _CPU_SECONDS_PER_MIB + raw // (1024 * _MIB) * _CPU_SECONDS_PER_RAW_GIB,
        memory=_MEMORY + len(statuses) * _MEMORY_PER_LAYER,
        file_size=longest if longest <= _LONGEST else None,
    )


class OpenedChain:
    """Opened files of a chain, as links with their own names in a private directory. A context manager.

    :param images: the chain, top first. :param writable: names of the files that are opened for writing.
    :param instead: by file name, descriptors of files that are used instead of those of the chain.
    :param pace: how fast programs move data between them, and for how long.
    """

    def __init__(
        self,
        directory: engine.Readable,
        images: Iterable[model.Image],
        writable: Iterable[str] = (),
        instead: Mapping[str, int] | None = None,
        pace: Pace = UNLIMITED,
    ) -> None:
        self._directory = directory
        self._instead = instead or {}
        self._images = tuple(images)
        self._writable = frozenset(writable)
        self.pace = pace
        self._path = ""
        self._fds: dict[str, int] = {}

    def __enter__(self) -> OpenedChain:
        self._path = command.private_directory()
        try:
            for image in self._images:
                self._open(image)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        for fd in self._fds.values():
            os.close(fd)
        shutil.rmtree(self._path, ignore_errors=True)

    def _open(self, image: model.Image) -> None:
        if image.file in self._instead:
            fd = os.dup(self._instead[image.file])
        else:
            fd = self._directory.root.open(image.file, write=image.file in self._writable)
        self._fds[image.file] = fd
        os.symlink(f"/proc/self/fd/{fd}", os.path.join(self._path, image.file))
        if image.format == "qcow2" and not _still_names(fd, image.backing_file):
            raise errors.ChainBroken(
                f"image {image.file}", "its header changed while the task held the volume's lock", "find out who else works on the share"
            )

    def verify(self) -> None:
        """Check that the task may still work on these files. :raises LockTimeout: it may not, because it lost its lock."""
        self._directory.verify(self._images[0].file)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors of all files. qemu-img must inherit them."""
        return tuple(self._fds.values())

    def fd(self, file: str) -> int:
        """The descriptor of a file of the chain."""
        return self._fds[file]

    def limits(self, size: int = 0) -> command.Limits:
        """The limits of a program that works on these images, or makes one of ``size`` bytes. Valid images need far less."""
        raw = sum(os.fstat(self._fds[image.file]).st_size for image in self._images if image.format == "raw")
        return limits_for(list(self._fds.values()), raw, max([size, *(image.size for image in self._images)]))

    def path(self, file: str) -> str:
        """The path of a file's link in the private directory."""
        return os.path.join(self._path, file)

    @contextmanager
    def linked(self, fd: int, name: str) -> Iterator[str]:
        """A context in which the path that it yields, whose last part is ``name``, leads to an opened file that is not of the chain."""
        inner = os.path.join(self._path, "new")
        os.mkdir(inner)
        try:
            os.symlink(f"/proc/self/fd/{fd}", os.path.join(inner, name))
            yield os.path.join(inner, name)
        finally:
            shutil.rmtree(inner, ignore_errors=True)

    def graph(self) -> str:
        """The chain as a ``json:`` file name for reading. It gives every layer and every format explicitly."""
        node: dict | None = None
        for image in reversed(self._images):
            inner = {"driver": "file", "filename": f"/proc/self/fd/{self._fds[image.file]}"}
            layer: dict = {"driver": str(image.format), "file": inner}
            if image.format == "qcow2":
                layer["backing"] = node
            node = layer
        return "json:" + json.dumps(node)


def _run(arguments: list[str], chain: OpenedChain, locks: Iterable[int], subject: str, extra: Iterable[int] = (), size: int = 0) -> None:
    """Run qemu-img. It inherits the descriptors of the chain, of ``locks`` and of ``extra``. ``subject`` names the work in errors."""
    argv = [_program()] + arguments
    chain.verify()
    result = command.run(argv, descriptors=chain.descriptors + tuple(locks) + tuple(extra), limits=chain.limits(size), pace=chain.pace)
    command.require_success(result, subject)


def _rate(pace: Pace) -> list[str]:
    """Words for the subcommands that limit themselves more evenly than :mod:`command` can from outside."""
    return ["-r", str(pace.speed)] if pace.speed else []


def _told(pace: Pace) -> str:
    """The word for the subcommands that can say how far they are: they do that if anybody watches (see :func:`command.run`)."""
    return "-q" if pace.part is None else "-p"


def commit(chain: OpenedChain, file: str, into: str, locks: Iterable[int]) -> None:
    """Write into ``into`` what ``file`` and the layers down to ``into`` hold, in one pass. The layers keep what they hold."""
    arguments = ["commit", _told(chain.pace), *_rate(chain.pace), "-f", "qcow2", "-d", "-b", chain.path(into), chain.path(file)]
    _run(arguments, chain, locks, f"merge of {file} into {into}")
    os.fsync(chain.fd(into))


def rebase(chain: OpenedChain, file: str, backing_file: str | None, backing_format: str | None, locks: Iterable[int]) -> None:
    """Copy into ``file`` what it shows beyond ``backing_file``. Then make that its backing file.

    The cache mode is write-through. With write-back the new backing name could reach the disk before the data that it needs.
    """
    arguments = ["rebase", _told(chain.pace), "-f", "qcow2", "-t", "writethrough", "-b", backing_file or ""]
    arguments += ["-F", backing_format] if backing_file and backing_format else []
    _run(arguments + [chain.path(file)], chain, locks, f"pull into {file}")
    os.fsync(chain.fd(file))


def resize(chain: OpenedChain, file: str, size: int, locks: Iterable[int]) -> None:
    """Raise the virtual size of the qcow2 image ``file`` to ``size`` bytes, durably."""
    _run(["resize", "-q", "-f", "qcow2", chain.path(file), str(size)], chain, locks, f"growing {file}", size=size)
    os.fsync(chain.fd(file))


def upgrade(chain: OpenedChain, file: str, locks: Iterable[int]) -> None:
    """Change an image from version 2 to version 3, which has clusters of zeros. Use it only for a file that nobody needs if this fails."""
    _run(["amend", "-q", "-f", "qcow2", "-o", "compat=1.1", chain.path(file)], chain, locks, f"upgrade of {file}")


def free_leaks(chain: OpenedChain, file: str, locks: Iterable[int]) -> None:
    """Correct the counts of leaked clusters of ``file``, the only image of the chain, and free what they take. Whenever that is stopped, the image
    shows the same: nothing leads to what is freed, and counts only become smaller."""
    _run(["check", "-q", "-r", "leaks", chain.graph()], chain, locks, f"leaked clusters of {file}")
    os.fsync(chain.fd(file))


def write_zeros(chain: OpenedChain, file: str, start: int, stop: int, locks: Iterable[int]) -> None:
    """Make ``file`` read as zeros from virtual offset ``start`` to ``stop`` (bytes), whatever form its clusters have."""
    with command.scratch_file("zeros") as zeros:
        zeros.truncate(stop - start)
        path = chain.path(file).replace(",", ",,")
        place = f"driver=raw,offset={start},size={stop - start},file.driver=qcow2,file.file.driver=file,file.file.filename={path}"
        arguments = ["convert", "-q", "-n", "-f", "raw", "--target-image-opts", f"/proc/self/fd/{zeros.fileno()}", place]
        _run(arguments, chain, locks, f"zeros at the end of {file}", [zeros.fileno()])
    os.fsync(chain.fd(file))


def convert(chain: OpenedChain, target: int, target_format: str, locks: Iterable[int]) -> None:
    """Copy what the chain shows into the image behind the descriptor ``target``, which is empty and large enough. Holes stay holes."""
    arguments = ["convert", _told(chain.pace), *_rate(chain.pace), "-n", "--target-is-zero", "-O", target_format, chain.graph(), f"/proc/self/fd/{target}"]
    _run(arguments, chain, locks, "copy into a new image", [target])
    os.fsync(target)


def export(chain: OpenedChain, target: int, name: str, target_format: str, options: Sequence[str], locks: Iterable[int]) -> None:
    """Make of what the chain shows an image in the empty file behind ``target``. The caller makes it durable.

    :param name: the file's name, which some formats keep within. :param options: further words for ``qemu-img convert``.
    """
    with chain.linked(target, name) as path:
        arguments = ["convert", _told(chain.pace), *_rate(chain.pace), "-O", target_format, *options, chain.graph(), path]
        _run(arguments, chain, locks, f"copy {name}", [target])


def create_preallocated(path_fd: int, size: int, preallocation: str, locks: Iterable[int], verify: Callable[[], None], pace: Pace = UNLIMITED) -> None:
    """Make a qcow2 image of ``size`` bytes in the empty file behind ``path_fd``, with its metadata or data allocated.

    :param preallocation: as qemu-img names it.
    :param verify: called last before qemu-img starts. It raises an error if the task may not continue.
    """
    argv = [_program(), "create", "-q", "-f", "qcow2", "-o", f"preallocation={preallocation}", f"/proc/self/fd/{path_fd}", str(size)]
    verify()
    command.require_success(command.run(argv, descriptors=[path_fd, *locks], pace=pace), "new qcow2 image")
    os.fsync(path_fd)
