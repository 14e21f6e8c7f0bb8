# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes that globs stand for."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Sequence

from .. import errors, model
from ..store.files.directory import ShareDirectory
from ..store.volumes import chains, listing
from .candidates import Candidates
from .options import Options


def volumes_named(candidates: Candidates, names: Sequence[str], options: Options) -> list[str]:
    """The names as they are, each once, with the volumes that match it in the place of a glob.

    A glob does not match a lone file that no record calls a volume: it may be anything.

    :raises StorageError: a glob is given, and one of the shares cannot be read.
    """
    if not any(model.is_glob(name) for name in names):
        return list(dict.fromkeys(names))
    known = _volumes(candidates, options)
    found: dict[str, None] = {}
    for name in names:
        matching = sorted(volume for volume in known if fnmatchcase(volume, name)) if model.is_glob(name) else [name]
        unknown = [volume for volume in matching if known.get(volume) is False and model.is_glob(name)]
        if unknown:
            options.task.warn(f"{model.listed(unknown)} match {name} and are left out: nothing records that these files are volumes")
        meant = [volume for volume in matching if volume not in unknown]
        if not meant:
            options.task.warn(f"no volume matches {name}")
        found.update(dict.fromkeys(meant))
    return list(found)


def _volumes(candidates: Candidates, options: Options) -> dict[str, bool]:
    """Name → whether it is known to be a volume. One that cannot be read counts as known, so that its item reports the reason."""
    if options.assume:
        from .assumptions import reachable

        candidates = reachable(candidates, options)
    candidates.require_all()
    known: dict[str, bool] = {}
    for share in candidates.shares:
        with ShareDirectory(share) as directory:
            told = listing.read_volumes(directory, _is_known, describe_unclaimed=lambda _size: False).descriptions
        for name, sure in told.items():
            known[name] = known.get(name, False) or sure
    return known


def _is_known(_name: str, found: chains.Observed | errors.StorageError) -> bool:
    return not isinstance(found, chains.Observed) or found.volume.base.format is not None
