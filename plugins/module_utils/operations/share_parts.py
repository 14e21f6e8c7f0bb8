# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parts of housekeeping share that go through all volumes of a share, one after the other."""

from __future__ import annotations

from typing import Callable, Iterable, Iterator, TypeVar

from .. import errors, model
from ..store.files.directory import ShareDirectory
from ..store.volumes import listing
from ..store.volumes.chains import Observed

Told = TypeVar("Told")


def told(directory: ShareDirectory, tell: Callable[[Observed], Iterable]) -> dict[str, tuple]:
    """What ``tell`` says of each file that may be a volume, sorted by name; nothing of one that cannot be read, or that has no record and no ``.info``. The
    share is listed once.

    :param tell: runs in other processes where the share is large, so it must say plain values only.
    """

    def describe(_name: str, found: Observed | errors.StorageError) -> tuple:
        return () if isinstance(found, errors.StorageError) else tuple(tell(found))

    found: listing.Listing[tuple] = listing.read_volumes(directory, describe, listing.processors(), lambda _size: ())
    return {name: said if found.may_claim(name) else () for name, said in sorted(found.descriptions.items())}


def kept(share: model.Share, work: Iterator[Told]) -> tuple[tuple[Told, ...], errors.StorageError | None]:
    """All that ``work`` yields on a share until it ends or fails, and the error. What is done by then stays done, and no other share is stopped by it."""
    done: list[Told] = []
    try:
        for one in work:
            done.append(one)  # what came before an error stays in the list
    except (errors.StorageError, OSError) as error:
        return tuple(done), errors.as_storage_error(error, f"share {share.label}")
    return tuple(done), None
