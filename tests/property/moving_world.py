# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains of files that QEMU's own tools made, and the engine that moves clusters between them.

The model is what ``qemu-img convert`` read from every file before; ``qemu-img check`` judges the tables afterwards.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.moving import Mover
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Share, round_to_sector
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory

KIB = 1024
CLEAN, CORRUPT, LEAKS = 0, 2, 3  # exit statuses of qemu-img check
OWN = "own"  # instead of options: the collection's own codec makes the file


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class LayerPlan:
    """How one file is made.

    :param size: bytes. :param options: of ``qemu-img create``, or OWN. :param writes: commands of qemu-io.
    :param more: ``snapshot`` or ``bitmap``: what is added before the last write. :param compressed: packed by ``qemu-img convert -c``.
    :param longer: bytes by which the file was longer when all of that was done, data there included.
    """

    size: int
    format: str = "qcow2"
    options: str = ""
    writes: tuple[str, ...] = ()
    more: str = ""
    compressed: bool = False
    longer: int = 0


def pattern(value: int, offset: int, length: int) -> str:
    return f"write -P {value} {offset} {length}"


class Chain:
    """Files in one directory, each resting on the one before it; ``files`` has the topmost first."""

    def __init__(self, path: Path, plans: list[LayerPlan] | None = None) -> None:
        self.path = path
        self.formats: dict[str, str] = {}
        self.files: list[str] = []
        for plan in plans or []:
            self.add(plan)

    def add(self, plan: LayerPlan) -> None:
        name, beneath = f"f{len(self.files)}", self.files[0] if self.files else None
        path = str(self.path / name)
        backing = ["-b", beneath, "-F", self.formats[beneath]] if beneath else []
        if plan.format == "raw":
            with open(path, "wb") as stream:
                stream.truncate(plan.size)
        elif plan.options == OWN:
            with open(path, "w+b") as stream:
                qcow2.write_image(stream.fileno(), plan.size, beneath, self.formats[beneath] if beneath else None)
        else:
            options = ["-o", plan.options] if plan.options else []
            run("qemu-img", "create", "-q", "-f", "qcow2", *options, *backing, path, str(plan.size + plan.longer))
            if plan.longer:
                self._write(path, "qcow2", [pattern(250, max(0, plan.size - 512), plan.longer + min(512, plan.size))])
        self.files.insert(0, name)
        self.formats[name] = plan.format
        self._write(path, plan.format, list(plan.writes[:-1]))
        if plan.more == "snapshot":
            run("qemu-img", "snapshot", "-c", "one", path)
        elif plan.more == "bitmap":
            run("qemu-img", "bitmap", "--add", path, "one")
        self._write(path, plan.format, list(plan.writes[-1:]))
        if plan.compressed:
            run("qemu-img", "convert", "-c", "-f", plan.format, "-O", "qcow2", *(["-B", *backing[1:]] if backing else []), path, path + "~")
            os.replace(path + "~", path)
        if plan.longer and plan.format != "raw" and plan.options != OWN:
            self._shrink(path, plan.size)

    def _shrink(self, path: str, size: int) -> None:
        """As far as qemu-img can: not an image with internal snapshots, which keeps its size then."""
        subprocess.run(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", path, str(size)], check=False, capture_output=True)

    def _write(self, path: str, image_format: str, commands: list[str]) -> None:
        if image_format == "raw":
            self._write_raw(path, commands)
        elif commands:
            # A command that the image cannot take (zeros on version 2 without a file beneath, say) changes nothing: the model is read later.
            argv = [part for command in commands for part in ("-c", command)]
            subprocess.run(["qemu-io", "-f", image_format, *argv, path], check=False, capture_output=True)

    def _write_raw(self, path: str, commands: list[str]) -> None:
        """As qemu-io does it, also where the end of the file is in a sector."""
        size = os.path.getsize(path)
        with open(path, "r+b") as stream:
            for command in commands:
                words = command.split()
                if words[:2] == ["write", "-P"]:
                    stream.seek(int(words[3]))
                    stream.write(bytes([int(words[2])]) * max(0, min(int(words[4]), size - int(words[3]))))

    # -- what it is ----------------------------------------------------------------------------------------------------

    def images(self, top: str | None = None) -> tuple[Image, ...]:
        """From ``top`` down, as the headers tell it now."""
        found: list[Image] = []
        file: str | None = top or self.files[0]
        while file:
            if self.formats[file] == "raw":
                found.append(Image(file, "raw", round_to_sector((self.path / file).stat().st_size)))
                break
            header = self.header(file)
            found.append(Image(file, "qcow2", header.size, 0, header.backing_file, header.backing_format))
            file = header.backing_file
        return tuple(found)

    def header(self, file: str) -> qcow2.Header:
        with open(self.path / file, "rb") as stream:
            return qcow2.read_header(stream.fileno())

    def shows(self, file: str, image_format: str | None = None) -> bytes:
        scratch = self.path / "content~"
        run("qemu-img", "convert", "-f", image_format or self.formats[file], "-O", "raw", str(self.path / file), str(scratch))
        try:
            return scratch.read_bytes()
        finally:
            scratch.unlink()

    def all_show(self) -> dict[str, bytes]:
        return {file: self.shows(file) for file in self.files}

    def bytes(self) -> dict[str, bytes]:
        return {file: (self.path / file).read_bytes() for file in self.files}

    def check(self, file: str, image_format: str | None = None) -> int:
        """What qemu-img check says: CLEAN, LEAKS or CORRUPT."""
        if (image_format or self.formats[file]) == "raw":
            return CLEAN
        return subprocess.run(
            ["qemu-img", "check", "-q", "-f", "qcow2", str(self.path / file)], check=False, capture_output=True
        ).returncode

    def allocated(self, file: str) -> int:
        return (self.path / file).stat().st_blocks * 512

    # -- what is done to it --------------------------------------------------------------------------------------------

    def with_mover(self, action: Callable[[Mover, ShareDirectory], None]) -> bool:
        """Whether it was done; the engine's refusals are answers."""
        with ShareDirectory(Share(str(self.path), str(self.path), "directory")) as directory:
            try:
                action(Mover(directory, "vol"), directory)
            except qcow2.Qcow2Error:
                return False
        return True

    def commit(self, top: str, into: str) -> bool:
        images = self.images(top)
        return self.with_mover(lambda mover, _share: mover.commit(images, into))

    def pull(self, top: str, below: str | None) -> bool:
        images = self.images(top)
        return self.with_mover(lambda mover, _share: mover.pull(images, below))

    def copy(self, top: str, image_format: str, name: str = "copy") -> bool:
        """Copy into a new file as the offline engine does it."""
        images = self.images(top)
        with open(self.path / name, "w+b") as stream:
            fd = stream.fileno()
            if image_format == "raw":
                os.ftruncate(fd, images[0].size)
            else:
                qcow2.write_image(fd, images[0].size)
            return self.with_mover(lambda mover, share: mover.copy(share, images, fd, image_format))

    def repoint(self, file: str, onto: str | None) -> bool:
        """Let an image rest on another file, or on none; false where its header has no room for a name and qemu-img did it."""
        with open(self.path / file, "r+b") as stream:
            try:
                qcow2.repoint(stream.fileno(), onto, self.formats[onto] if onto else None)
                return True
            except qcow2.Qcow2Error:
                assert onto, "resting on nothing needs no room"
        run("qemu-img", "rebase", "-f", "qcow2", "-b", str(onto), "-F", self.formats[str(onto)], str(self.path / file))
        return False

    def grow(self, file: str, size: int) -> bool:
        """Raise the size of a file as the offline engine does it first; false where the engine has to work on a copy, or qemu-img."""
        with open(self.path / file, "r+b") as stream:
            try:
                return qcow2.grow(stream.fileno(), size)
            except qcow2.Qcow2Error:
                return False

    def grows_well(self, file: str, more: int) -> bool:
        before, was = self.all_show(), self.check(file)
        beneath = [image.size for image in self.images(file)[1:]]
        size = self.header(file).size
        if any(length > size for length in beneath):
            return False  # which the engine never does in place
        done = self.grow(file, size + more)
        expected = before[file].ljust(size + more, b"\0") if done else before[file]
        self._holds(file, expected)
        self._sound(file, was, (CLEAN, LEAKS))
        for other in self.files[: self.files.index(file)]:
            self._holds(other, before[other])
        return done

    # -- what has to hold ----------------------------------------------------------------------------------------------

    def commits_well(self, top: str, into: str, sound: tuple[int, ...] = (CLEAN,)) -> bool:
        """Commit, do it again, let what is above look into the lower file; whether it was done here."""
        before, data = self.all_show(), self.bytes()
        sizes = [image.size for image in self.images(top)]
        was, grown = self.check(into), sizes[self.files.index(into) - self.files.index(top)] < sizes[0]
        again = not grown or len(set(sizes[: self.files.index(into) - self.files.index(top)])) == 1  # else one is shorter than it then
        done = self.commit(top, into)
        self._others_unchanged(data, into)
        if not done:
            assert grown or data[into] == (self.path / into).read_bytes(), "a refusal changed the file"
            self._shows_but_for_size(before, top, into)
            return False
        for _attempt in range(2):
            self._holds(into, before[top])
            self._sound(into, was, sound)
            assert self.commit(top, into) or not again, "done once, and refused then"
        self._others_unchanged(data, into)
        above = self.files[: self.files.index(top)]
        if above:
            self.repoint(above[-1], into)
        for file in [*above, *self.files[self.files.index(into) + 1 :]]:
            self._holds(file, before[file])
        return True

    def pulls_well(self, top: str, below: str | None, sound: tuple[int, ...] = (CLEAN,)) -> bool:
        before, data, was = self.all_show(), self.bytes(), self.check(top)
        done = self.pull(top, below)
        self._others_unchanged(data, top)
        if not done:
            assert data[top] == (self.path / top).read_bytes(), "a refusal changed the file"
            return False
        for _attempt in range(2):
            self._holds(top, before[top])
            self._sound(top, was, sound)
            assert self.pull(top, below), "done once, and refused then"
        self.repoint(top, below)
        self._others_unchanged(data, top)
        assert self.images(top)[1:] == (self.images(below) if below else ())
        for file in self.files:
            if not self._is_between(file, top, below):
                self._holds(file, before[file])
        self._sound(top, was, sound)
        return True

    def copies_well(self, top: str, image_format: str) -> bool:
        before, data = self.shows(top), self.bytes()
        done = self.copy(top, image_format)
        assert data == self.bytes(), "a copy changed what it read"
        if done:
            content = self.shows("copy", image_format)
            assert content == before, f"the copy {_difference(content, before)}"
            assert self.check("copy", image_format) == CLEAN
        return done

    def _is_between(self, file: str, top: str, below: str | None) -> bool:
        place = self.files.index(file)
        return self.files.index(top) < place < (self.files.index(below) if below else len(self.files))

    def _holds(self, file: str, expected: bytes) -> None:
        content = self.shows(file)
        assert content == expected, f"{file} {_difference(content, expected)}"

    def _sound(self, file: str, was: int, sound: tuple[int, ...]) -> None:
        found = self.check(file)
        assert found in sound or found == was, f"qemu-img check of {file} ends with {found}, and with {was} before"

    def _others_unchanged(self, data: dict[str, bytes], but: str) -> None:
        now = self.bytes()
        assert [file for file in data if data[file] != now[file] and file != but] == []

    def _shows_but_for_size(self, before: dict[str, bytes], top: str, into: str) -> None:
        for file in self.files:
            content = self.shows(file)
            assert content[: len(before[file])] == before[file] and (file == into or len(content) == len(before[file])), file
        assert len(self.shows(into)) <= max(len(before[top]), len(before[into]))


def _difference(content: bytes, expected: bytes) -> str:
    first = next((index for index, (a, b) in enumerate(zip(content, expected)) if a != b), min(len(content), len(expected)))
    return f"differs at byte {first}; {len(content)} and {len(expected)} bytes long"
