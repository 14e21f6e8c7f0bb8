# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Space for a revert on a share that is full and has no ballast. The old files give up their data first.

The new overlay needs a few blocks before the old files can be removed. No remaining snapshot needs these files. So their data is
discarded in place. Each of them stays a valid image, and the recorded intent says what to do after a crash. A guest of another volume
may take the freed blocks first. Then the revert is pending until there is space.
"""

from __future__ import annotations

import os
from typing import Callable, Iterable

from ... import errors
from ...plan import steps
from ...store import qcow2
from ...store.files import ballast
from ...store.files.directory import ShareDirectory
from . import allocate


class NewOverlay:
    """The empty overlay that a revert puts in the place of the active image. It is made wherever there is space.

    :param filled: takes a temporary file (descriptor, name) and a function that fills it. Syncs and closes it, returns its name.
    :param fill: takes the descriptor of an empty file, the name of a file whose access it gets, and the step. Writes the overlay.
    :param give_access: takes two descriptors and a file name. Gives the second file, which will have this name, the access of the first.
    """

    def __init__(
        self,
        directory: ShareDirectory,
        volume: str,
        step: steps.ReplaceOverlay,
        filled: Callable[[tuple[int, str], Callable[[int], None]], str],
        fill: Callable[[int, str, steps.ReplaceOverlay], None],
        give_access: Callable[[int, int, str], None],
    ) -> None:
        self._directory, self._volume, self._step = directory, volume, step
        self._filled, self._fill, self._give_access = filled, fill, give_access

    def make(self, given_up: Iterable[str]) -> str:
        """Make the overlay. Returns its temporary name.

        On a full share it is written over a part of the ballast, because a revert frees space afterwards. Without ballast the files that
        the revert gives up are emptied first.

        :param given_up: files whose data may be discarded, because an intent says so.
        :raises StorageError, OSError: there is no space, or the share does not work.
        """
        try:
            return self._in_new_file()
        except (OSError, errors.NoSpace) as error:
            if not _is_full(error):
                raise
            temporary = self._over_ballast()
            if temporary is not None:
                return temporary
            if not take_data_out(self._directory, self._volume, given_up):
                raise
        return self._in_new_file()

    def _in_new_file(self) -> str:
        return self._filled(self._directory.create_temporary(self._volume), lambda fd: self._fill(fd, self._step.file, self._step))

    def _over_ballast(self) -> str | None:
        """Make the overlay from ballast. None where there is no ballast, or not enough."""

        def fill(fd: int) -> None:
            if os.fstat(fd).st_size:
                self._fill_in_place(fd)
            else:
                self._fill(fd, self._step.file, self._step)

        for made in ballast.places(self._directory, self._volume, qcow2.bytes_of_image(self._step.size)):
            try:
                return self._filled(made, fill)
            except (OSError, errors.NoSpace) as error:
                if not _is_full(error):
                    raise
        return None

    def _fill_in_place(self, fd: int) -> None:
        """Write the overlay over a file that already has its blocks. Holes are written too."""
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


def _is_full(error: OSError | errors.NoSpace) -> bool:
    return isinstance(error, errors.NoSpace) or error.errno in ballast.FULL


def take_data_out(directory: ShareDirectory, volume: str, files: Iterable[str]) -> bool:
    """Free the blocks of these files, except those of their tables. False where none of the files could be emptied."""
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
    """Free the blocks of a file from offset ``start`` to its end, durably. Its length stays."""
    length = os.fstat(fd).st_size
    if length > start and not allocate.make_hole(fd, start, length - start):
        os.ftruncate(fd, start)
        os.ftruncate(fd, length)
    os.fsync(fd)
