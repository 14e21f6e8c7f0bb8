# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The floor of volumes' lives: the system calls of the protocol, and nothing else.

Run as a program: ``floor.py DIRECTORY COUNT THREADS``. Nothing is checked, read back, planned or reported, all names are known
beforehand, and every phase is done for all volumes before its directory is synced once. What the protocol needs is all there:
locks with their owner's name, intents before data, content under a temporary name that is synced before it gets its own, records
after data, and no name removed before what replaces it is durable (docs/how-it-works.md).
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

_OFD_SETLK = 37
_WRITE_LOCK = struct.pack("hhqqi", 1, 0, 0, 0, 0)
_TOKEN, _RECORD, _INFO = b"o" * 90, b"r" * 400, b"i" * 60
_CLUSTER = 65536


class Floor:
    """One share and its directories, opened once."""

    def __init__(self, path: str, count: int, threads: int) -> None:
        self.names = [f"vol{number:05d}" for number in range(count)]
        self.threads = threads
        self.root = os.open(path, os.O_RDONLY)
        for name in ("", "/volumes", "/tmp", "/locks"):
            os.makedirs(f"{path}/.remotefs{name}", exist_ok=True)
        self.volumes, self.tmp, self.locks = (os.open(f"{path}/.remotefs/{name}", os.O_RDONLY) for name in ("volumes", "tmp", "locks"))

    def each(self, action: Callable[[str], None]) -> None:
        if self.threads == 1:
            for name in self.names:
                action(name)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(action, self.names, chunksize=16))

    # -- one volume ------------------------------------------------------------------------------------------------

    def lock(self, name: str) -> None:
        fd = os.open(name + ".lock", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self.locks)
        fcntl.fcntl(fd, _OFD_SETLK, _WRITE_LOCK)
        os.pwrite(fd, _TOKEN, 0)
        os.close(fd)

    def synced(self, name: str, *writes: tuple[bytes, int], size: int = 0) -> None:
        fd = os.open(name + "~t", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.tmp)
        if size:
            os.ftruncate(fd, size)
        for data, offset in writes:
            os.pwrite(fd, data, offset)
        os.fsync(fd)
        os.close(fd)

    def put(self, name: str, directory: int, target: str) -> None:
        os.rename(name + "~t", target, src_dir_fd=self.tmp, dst_dir_fd=directory)

    def publish(self, name: str, target: str) -> None:
        os.link(name + "~t", target, src_dir_fd=self.tmp, dst_dir_fd=self.root)
        os.unlink(name + "~t", dir_fd=self.tmp)

    # -- phases, each for all volumes, then its directory ------------------------------------------------------------

    def records(self) -> None:
        def write(name: str) -> None:
            self.synced(name, (_RECORD, 0))
            self.put(name, self.volumes, name + ".json")

        self.each(write)
        os.fsync(self.volumes)

    def images(self, suffix: str, size: int, *writes: tuple[bytes, int]) -> None:
        def make(name: str) -> None:
            self.synced(name, *writes, size=size)
            self.publish(name, name + suffix)

        self.each(make)
        os.fsync(self.root)

    def infos(self) -> None:
        def write(name: str) -> None:
            self.synced(name, (_INFO, 0))
            self.put(name, self.root, name + ".info")

        self.each(write)
        os.fsync(self.root)

    def remove(self, directory: int, *suffixes: str) -> None:
        def unlink(name: str) -> None:
            for suffix in suffixes:
                os.unlink(name + suffix, dir_fd=directory)

        self.each(unlink)
        if directory != self.locks:
            os.fsync(directory)

    # -- tasks -----------------------------------------------------------------------------------------------------

    def create(self) -> None:
        self.each(self.lock)
        self.records()
        self.images("", 1 << 30)

    def snapshot(self) -> None:
        self.each(self.lock)
        self.records()
        self.images(".s", 4 * _CLUSTER, (b"1" * 8, 2 * _CLUSTER), (b"2" * 8, _CLUSTER), (b"h" * 150, 0))
        self.infos()
        self.records()

    def delete_snapshot(self) -> None:
        self.each(self.lock)
        self.records()
        self.infos()
        self.records()
        self.remove(self.root, ".s")

    def delete(self) -> None:
        self.each(self.lock)
        self.remove(self.root, "", ".info")
        self.remove(self.volumes, ".json")
        self.remove(self.locks, ".lock")


def main() -> None:
    floor = Floor(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    for task in (floor.create, floor.snapshot, floor.delete_snapshot, floor.delete):
        task()


if __name__ == "__main__":
    main()
