# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Room for a revert on a share that is full and has no ballast: the data that the revert gives up is taken out first.

The new overlay needs a few blocks before the old files can go. Those files belong to nothing that stays, so their data goes
in place, each of them remains a valid image, and the intent on record says what is to be done after a crash. A guest of another
volume may take the blocks first. Then the revert is pending until there is room.
"""

from __future__ import annotations

import os
from typing import Callable, Iterable

from ...errors import NoSpace
from ...plan.steps import ReplaceOverlay
from ...store import qcow2
from ...store.files import ballast
from ...store.files.directory import ShareDirectory
from . import allocate


class NewOverlay:
    """The empty overlay that a revert puts in the place of the active image, wherever it finds room.

    :param filled: fills a temporary file, (descriptor, name), syncs and closes it, and returns its name.
    :param fill: fills an empty file for a step, with the access of another file.
    :param give_access: gives an opened file the access of another one, by both descriptors and the name that it is to have.
    """

    def __init__(
        self,
        directory: ShareDirectory,
        volume: str,
        step: ReplaceOverlay,
        filled: Callable[[tuple[int, str], Callable[[int], None]], str],
        fill: Callable[[int, str, ReplaceOverlay], None],
        give_access: Callable[[int, int, str], None],
    ) -> None:
        self._directory, self._volume, self._step = directory, volume, step
        self._filled, self._fill, self._give_access = filled, fill, give_access

    def make(self, given_up: Iterable[str]) -> str:
        """Returns its temporary name. On a full share it is written over some of the ballast, because a revert is to make room.
        Without any, what the revert gives up makes room.

        :param given_up: files whose data may go, because that is on record. :raises StorageError, OSError: there is no room, or the share is ill.
        """
        try:
            return self._anew()
        except (OSError, NoSpace) as error:
            if not _is_full(error):
                raise
            over = self._over_ballast()
            if over is not None:
                return over
            if not take_data_out(self._directory, self._volume, given_up):
                raise
        return self._anew()

    def _anew(self) -> str:
        return self._filled(self._directory.create_temporary(self._volume), lambda fd: self._fill(fd, self._step.file, self._step))

    def _over_ballast(self) -> str | None:
        """With what ballast there is; None where there is none, or not enough."""

        def fill(fd: int) -> None:
            if os.fstat(fd).st_size:
                self._fill_in_place(fd)
            else:
                self._fill(fd, self._step.file, self._step)

        for made in ballast.places(self._directory, self._volume, qcow2.bytes_of_image(self._step.size)):
            try:
                return self._filled(made, fill)
            except (OSError, NoSpace) as error:
                if not _is_full(error):
                    raise
        return None

    def _fill_in_place(self, fd: int) -> None:
        """Over a file whose blocks are there already, holes and all."""
        step = self._step
        memory = os.memfd_create("overlay")
        try:
            qcow2.write_image(memory, step.size, step.backing_file, step.backing_format)
            ballast.overwrite(fd, os.pread(memory, qcow2.bytes_of_image(step.size), 0))
            os.ftruncate(fd, os.fstat(memory).st_size)
        finally:
            os.close(memory)
        with self._directory.root.opened(step.file) as original:
            self._give_access(original, fd, step.file)


def _is_full(error: OSError | NoSpace) -> bool:
    return isinstance(error, NoSpace) or error.errno in ballast.FULL


def take_data_out(directory: ShareDirectory, volume: str, files: Iterable[str]) -> bool:
    """Give the blocks of these files back, all but those of their tables. False where none of them could be emptied."""
    done = False
    for file in files:
        if directory.root.status(file) is None:
            continue
        directory.verify(volume)
        with directory.root.opened(file, write=True) as fd:
            try:
                kept = qcow2.drop_data(fd)
            except qcow2.Qcow2Error:
                continue
            _give_back(fd, kept)
            done = True
    return done


def _give_back(fd: int, start: int) -> None:
    length = os.fstat(fd).st_size
    if length > start and not allocate.make_hole(fd, start, length - start):
        os.ftruncate(fd, start)
        os.ftruncate(fd, length)
    os.fsync(fd)
