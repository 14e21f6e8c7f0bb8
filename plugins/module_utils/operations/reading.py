# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The use case of reading: all volumes of a share. Needs nothing of what plans and applies, and so starts fast.

A share can hold very many volumes, so each is turned into the text of the result as soon as it is read: dictionaries of all of
them would take ten times the memory.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Callable, Mapping

from .. import errors, model
from ..store.files.directory import ShareDirectory
from ..store.metadata import records
from ..store.volumes import chains, dependents, listing, ownership
from . import report

if TYPE_CHECKING:
    from . import unknown_files

Shape = Callable[[Mapping], "dict[str, list]"]  # a volume → what a result has of it, by the result's keys

_OF_GLOBS = frozenset("*?[")  # letters that make a name a glob


def list_volumes(share: model.Share, patterns: list[str]) -> list[dict]:
    """All volumes of a share whose names match one of ``patterns`` (globs; none: all). One that cannot be read comes with
    its ``error_code`` and ``msg``."""
    texts = told_volumes(share, patterns, lambda volume: {"": [volume]})
    return [json.loads(text[""]) for text in texts]


def told_volumes(share: model.Share, patterns: list[str], shape: Shape, alive: Callable[[], None] = lambda: None) -> list[dict[str, str]]:
    """What ``shape`` makes of each of these volumes, as lists in JSON without their brackets; empty lists are left out.

    :param alive: called whenever something was read.
    """

    names = frozenset(patterns)  # most are plain names, of which there can be as many as there are volumes
    globs = [pattern for pattern in names if not _OF_GLOBS.isdisjoint(pattern)]

    def skip(name: str) -> bool:
        return name not in names and not any(fnmatchcase(name, glob) for glob in globs)

    def tell(name: str, found: chains.Observed | errors.StorageError) -> dict[str, str]:
        alive()
        if patterns and skip(name):
            return {}
        if isinstance(found, chains.Observed) and found.lone:
            if not unknown:
                from .unknown_files import UnknownFiles  # late: most shares have none

                unknown.append(UnknownFiles(share, lambda volume: _texts(shape(volume))))
            return unknown[0].text(found)
        return _texts(shape(_result(directory, name, found)))

    unknown: list[unknown_files.UnknownFiles] = []
    with ShareDirectory(share) as directory:
        found: listing.Listing[dict[str, str]] = listing.read_volumes(directory, tell, listing.processors(), skip=skip if patterns else None)
        if any(found.descriptions.values()):
            for name, resting in _dependents(directory, found, alive).items():
                found.descriptions[name] = {key: _completed(text, resting) for key, text in found.descriptions[name].items()}
    return [found.descriptions[name] for name in sorted(found.descriptions) if found.descriptions[name]]


def _texts(shaped: dict[str, list]) -> dict[str, str]:
    return {key: json.dumps(objects)[1:-1] for key, objects in shaped.items() if objects}


def _result(directory: ShareDirectory, name: str, found: chains.Observed | errors.StorageError) -> Mapping:
    share = directory.share
    if not isinstance(found, errors.StorageError):
        return report.volume(found.volume, share, found.in_use)
    broken = {"name": name, "share": share.source, "error_code": found.error_code, "msg": str(found), **found.details}
    pending = _pending(directory, name)
    if pending is None:
        return broken
    cause = f"volume {name} on {share.label}: {pending['operation']} was interrupted, so that the volume cannot be read until it is ended"
    return {**broken, "msg": f"{cause} ({found.problem}); run the task again, or any that changes the volume.", "pending": pending}


def _pending(directory: ShareDirectory, name: str) -> dict | None:
    """What an interrupted task left to be ended of a volume that cannot be read."""
    try:
        record = records.read(directory, name)
    except (OSError, errors.StorageError):
        return None
    return report.pending(record.intent) if record is not None else None


def _dependents(directory: ShareDirectory, found: listing.Listing, alive: Callable[[], None]) -> dict[str, tuple[tuple[str, str], ...]]:
    """What rests on which of the volumes in the result. It is known only once all files of the share were read."""
    backings = dependents.scan(directory, found.known_backings(), found.listed, alive)
    told = ((name, chain.files, chain.own) for name, chain in found.chains.items() if found.descriptions[name])
    shared = ((name, files, own) for name, files, own in told if not backings.only_within(files[:own]))
    pairs = ((name, ownership.dependents_on(directory, files[:own], files, backings)) for name, files, own in shared)
    return {name: resting for name, resting in pairs if resting}


def _completed(text: str, resting: tuple[tuple[str, str], ...]) -> str:
    """A volume's text with its dependents, where what was made of it shows them."""
    objects = json.loads(f"[{text}]")
    return json.dumps([report.with_dependents(one, resting) if "dependents" in one else one for one in objects])[1:-1]
