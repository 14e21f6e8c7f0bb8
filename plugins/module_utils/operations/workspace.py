# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where one change works: opened shares, held locks, and what was seen under them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from .. import errors, model
from ..store.files.directory import ShareDirectory
from ..store.volumes.look import Look
from . import locking, run_mode
from .options import Options

if TYPE_CHECKING:
    from ..apply import engine


class Workspace:
    """Opened shares and held ``locks`` of one change; a context manager. Its ``mode`` does to the shares what is to be done, or in
    check mode predicts it.

    :param siblings: as of :class:`Locks`.
    """

    locks: locking.Locks
    mode: run_mode.RunMode

    def __init__(self, options: Options, siblings: bool = False) -> None:
        self.options = options
        self.is_group = siblings  # works on several volumes, and a machine may have only some of them open
        self._stack = ExitStack()
        self._directories: dict[str, ShareDirectory] = {}
        self._looks: dict[tuple[str, str], Look] = {}
        self.ends_moves = False  # whether it may work on a volume that was only being moved here
        self.begun = False  # whether it has changed anything, or tried
        self.quiesced: dict[str, engine.Quiesced] = {}  # by volume, whether the guest was frozen for its snapshot
        self.not_counted: dict[str, tuple[str, ...]] = {}  # by volume, files that not_dependent overruled
        if options.check:
            from .check_mode import CheckMode, PredictedLocks

            self.locks, self.mode = PredictedLocks(options, self.directory, self.look_anew, siblings), CheckMode(self)
        else:
            self.locks, self.mode = locking.Locks(options, self.directory, self.look_anew, siblings), run_mode.RunMode(self)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        gone = [directory.share.label for directory in self._directories.values() if directory.is_gone()] if error is not None else []
        try:
            self.locks.give_back()
        except (errors.StorageError, OSError):
            if not gone:
                raise
        finally:
            self._stack.close()
        if gone:
            raise errors.share_gone(gone[0]) from error if isinstance(error, BaseException) else None
        if isinstance(error, OSError):
            places = ", ".join(directory.share.label for directory in self._directories.values())
            raise errors.from_os_error(error, f"share {places}") from error

    def directory(self, share: model.Share) -> ShareDirectory:
        """The opened share, open until the workspace ends. Each change in it verifies the locks first."""
        if share.path not in self._directories:
            self._directories[share.path] = self._stack.enter_context(ShareDirectory(share, self.locks.verify, self.options.task.waiting))
        return self._directories[share.path]

    def look(self, share: model.Share, name: str) -> Look:
        """What is known of a volume. Whatever changes it, or lets others change it, makes the next call read it anew."""
        return self._looks.setdefault((share.path, name), Look(self.directory(share), name, self.options.attachment))

    def look_anew(self) -> None:
        """Forget what is known: it may be true no more."""
        self._looks.clear()
