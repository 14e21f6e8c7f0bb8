# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shares that a task names, and on which of them a volume is."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Callable, ContextManager, Iterable, NamedTuple, TypeVar

from .. import errors, model
from ..mounts import resolve, tables
from ..store.files.directory import ShareDirectory
from ..store.metadata import records
from ..store.volumes import chains

Opened = Callable[[model.Share], ShareDirectory]
Found = TypeVar("Found")


class Candidates(NamedTuple):
    """The candidate shares of a task: those that can be read, and for each other one why it cannot.

    ``missing`` are those that are not there yet, as they are expected to be, and ``excused`` what is unreadable for that reason
    alone: check mode may assume that an earlier task of the playbook mounts them.
    """

    shares: tuple[model.Share, ...]
    unreadable: tuple[errors.StorageError, ...] = ()
    missing: tuple[model.Share, ...] = ()
    excused: tuple[errors.StorageError, ...] = ()

    def require_all(self) -> None:
        """:raises ShareNotMounted: one cannot be read, so that what was not found may still be there."""
        if self.unreadable:
            raise self.unreadable[0]


class Finder:
    """Looks each set of candidate shares up once in a task, however many items name it."""

    def __init__(self) -> None:
        self._known: dict[tuple, Candidates] = {}

    def find(self, names: Iterable[str] | str | None, mount_base: str) -> Candidates:
        """:raises StorageError: a name is no share at all."""
        names = resolve.share_names(names)
        key = (*names, mount_base)
        if key not in self._known:
            self._known[key] = find_candidates(names, mount_base)
        return self._known[key]

    def prepare(self, names: Iterable[str] | str | None, mount_base: str) -> Candidates | None:
        """Look them up before threads start, because asking a server forks; an error is kept for the first item that needs them."""
        try:
            return self.find(names, mount_base)
        except errors.StorageError:
            return None


MOST_FREE, LEAST_ALLOCATED, ROUND_ROBIN = "most_free", "least_allocated", "round_robin"


class Policy(NamedTuple):
    """How a share for a new volume is chosen. ``reserved_percentage`` of the share stays free; the sum of all virtual
    sizes stays below ``max_over_subscription_ratio`` times its total size. ``placement``: which of the eligible shares is taken."""

    reserved_percentage: int = 0
    max_over_subscription_ratio: float = 20.0
    placement: str = MOST_FREE


def find_candidates(names: Iterable[str] | str | None, mount_base: str, fstab: str = tables.FSTAB) -> Candidates:
    """Look the shares up; one that is not mounted or whose server does not answer is kept as unreadable.

    :param names: the option ``share`` as it was given, one share or a list of them.
    """
    shares: list[model.Share] = []
    unreadable: list[errors.StorageError] = []
    missing: list[model.Share] = []
    excused: list[errors.StorageError] = []
    for name in resolve.share_names(names):
        try:
            share = resolve.find_share(name, mount_base, fstab)
        except errors.ShareNotMounted as error:
            from ..mounts.served import expected_share  # late: most shares are there

            unreadable.append(error)
            excused.append(error)
            missing.append(expected_share(name, mount_base))
            continue
        try:
            if not share.local:  # before a system call that could not be interrupted
                from ..mounts.probe import capacity  # late: a task that only reads a directory starts faster without

                capacity(share.path, resolve.PATIENCE, f"share {share.label}")
        except errors.ShareNotMounted as error:
            unreadable.append(error)
            continue
        if share.path not in [known.path for known in shares]:
            shares.append(share)
    return Candidates(tuple(shares), tuple(unreadable), tuple(missing), tuple(excused))


def heard(share: model.Share, read: Callable[[Callable[[], None]], Found]) -> Found:
    """What ``read`` returns of a share. It gets a function to call whenever something was read. A server of which nothing is heard for too long is given up.

    :raises ShareNotMounted: it was given up. :raises StorageError, OSError: as ``read``.
    """
    if share.local:
        return read(lambda: None)
    from .. import limited  # late: as above

    return limited.within(resolve.PATIENCE, read, f"share {share.label}")


def locate(candidates: Candidates, name: str, opened: Opened | None = None) -> model.Share | None:
    """The candidate on which volume ``name`` is; None where it is on none.

    :param opened: has each share opened already; otherwise it is opened for this question.
    :raises Conflict: two of them have it. :raises ShareNotMounted: it was not found, and one could not be read.
    """
    found = [share for share in candidates.shares if _has_volume(nullcontext(opened(share)) if opened else ShareDirectory(share), name)]
    if len(found) > 1:
        places = " and ".join(share.source for share in found)
        raise errors.Conflict(f"volume {name}", f"it exists on {places}", "name one share, or remove the copy that is not wanted")
    if not found:
        candidates.require_all()
    return found[0] if found else None


def _has_volume(opened: ContextManager[ShareDirectory], name: str) -> bool:
    """Whether the base file, ``.info`` or an unfinished deletion of the volume is there."""
    with opened as directory:
        if chains.exists(directory, name):
            return True
        try:
            record = records.read(directory, name)
        except errors.StorageError:
            return True
        return record is not None and record.intent is not None
