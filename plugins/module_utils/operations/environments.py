# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The use case of reading: the workers of all environments of a share. Takes no lock and changes nothing.

A worker is the first disk of a machine: a volume that a lease lists, that was made under it, and that has the label ``remotefs_worker``.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Callable, NamedTuple, Sequence

from .. import errors, model
from ..lease import Lease
from ..store.files import small_files
from ..store.files.directory import ShareDirectory
from ..store.metadata import leases, records
from ..store.volumes import chains

WORKER, ADDRESS = "remotefs_worker", "remotefs_address"  # labels of a worker: its index; where the machine on it listens
_OURS = "remotefs_"  # how labels that are not the user's begin
_INDEX = re.compile(r"[0-9]{1,9}\Z")


class Found(NamedTuple):
    """Workers as plain values that JSON can hold, and a sentence for each lease or volume that cannot be read."""

    workers: list[dict]
    problems: list[str]


def read_workers(share: model.Share, globs: Sequence[str] = (), alive: Callable[[], None] = lambda: None) -> Found:
    """The workers of environments, by environment and index. :param globs: for the names of environments; none means all.

    :param alive: called whenever something was read. :raises StorageError, OSError: the share itself cannot be read.
    """
    found = Found([], [])
    with ShareDirectory(share) as directory:
        recorded = frozenset(small_files.names(directory, "volumes", records.file_name("")))  # a lease may list thousands of names, of which most are not there
        for name in leases.names(directory):
            alive()
            if globs and not any(fnmatchcase(name, glob) for glob in globs):
                continue
            try:
                lease = leases.read(directory, name)
            except errors.StorageError as error:
                found.problems.append(f"share {share.label}: {error}")
                continue
            if lease is not None:  # otherwise it was released meanwhile
                found.workers.extend(_workers_of(directory, lease, recorded, found.problems, alive))
    return found


def _workers_of(directory: ShareDirectory, lease: Lease, recorded: frozenset[str], problems: list[str], alive: Callable[[], None]) -> list[dict]:
    workers = []
    for name in dict.fromkeys(lease.volumes):
        if name not in recorded:
            continue
        alive()
        try:
            record = records.read(directory, name)
            if record is None or record.lease != lease.id or WORKER not in record.labels:
                continue
            observed = chains.observe(directory, name)
        except errors.StorageError as error:
            problems.append(f"share {directory.share.label}: environment {lease.name}: {error}")
            continue
        volume = observed.volume if observed is not None else None
        if volume is None or volume.lease != lease.id or WORKER not in volume.labels:
            continue  # removed meanwhile, or another file has taken its place
        if not _INDEX.match(volume.labels[WORKER]):
            problems.append(f"share {directory.share.label}: environment {lease.name}: volume {name} is no worker; its label {WORKER} is no number.")
            continue
        workers.append(_described(volume, lease, directory.share))
    return sorted(workers, key=lambda worker: (worker["index"], worker["name"]))


def _described(volume: model.Volume, lease: Lease, share: model.Share) -> dict:
    return {
        "name": volume.name,
        "environment": lease.name,
        "index": int(volume.labels[WORKER]),
        "share": share.source,
        "path": f"{share.path}/{volume.active.file}",
        "golden": _golden(volume, lease),
        "labels": {_clean(key): _clean(value) for key, value in volume.labels.items() if not key.startswith(_OURS)},
        "address": _clean(volume.labels[ADDRESS]) if ADDRESS in volume.labels else None,
        "owner": lease.owner,
        "expires": model.time_text(lease.ends),
        "ends": None if lease.ttl is None else lease.ends,
        "is_collected": lease.collector is not None,
    }


def _golden(volume: model.Volume, lease: Lease) -> dict | None:
    """What the worker was made from. A worker with data of its own does not show it; then its lease says what it uses."""
    if volume.parent is not None:
        snapshot = volume.parent.snapshot
        return {"volume": volume.parent.volume, "snapshot": snapshot if model.is_safe_file_name(snapshot) else None}
    return {"volume": lease.uses[0], "snapshot": None} if len(lease.uses) == 1 else None


def _clean(text: str) -> str:
    """Without halves of letters, which JSON can hold and nobody can write."""
    return text.encode("utf-8", "replace").decode("utf-8")
