# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of shares, volumes and leases as a text file for Prometheus, in its text-based exposition format, version 0.0.4."""

from __future__ import annotations

import os
import stat
from typing import Iterable, NamedTuple, Sequence

from .. import errors, limited, model
from ..mounts import host_files
from . import leases, share_contents, shares
from .share_contents import VolumeFigures

WRITTEN = "remotefs_metrics_written_timestamp_seconds"
_DAY = 86400
_GROWTH = 30 * _DAY  # seconds back from now of which the growth is told
_SHARE, _VOLUME, _LEASE = "remotefs_share_", "remotefs_volume_", "remotefs_lease_"
FAMILIES = {  # what each means, in the order of the file
    WRITTEN: "When this file was written, by the clock of its host.",
    _SHARE + "up": "Whether the share could be read: 1, or 0 and then no other figure of it is here.",
    _SHARE + "size_bytes": "Size of the file system.",
    _SHARE + "free_bytes": "What users can still store there.",
    _SHARE + "virtual_bytes": "Virtual sizes of all volumes together.",
    _SHARE + "allocated_bytes": "What the files of all volumes take on the disk.",
    _SHARE + "held_by_snapshots_bytes": "What a removal of all snapshots gives back at most.",
    _SHARE + "growth_bytes_per_second": "What machines wrote since snapshots of the last 30 days were taken, for each second.",
    _SHARE + "full_in_seconds": "When the share is full if that goes on.",
    _SHARE + "maintenance": "Whether no new volumes are placed there.",
    _SHARE + "volumes": "Volumes with a record or an .info.",
    _SHARE + "leftovers": "Files that killed tasks left, or that running tasks need.",
    _SHARE + "leftovers_bytes": "What these files take on the disk.",
    _SHARE + "unknown": "Files and folders that nobody on the share names.",
    _VOLUME + "readable": "Whether the volume can be read: 1, or 0 and then no other figure of it is here.",
    _VOLUME + "size_bytes": "Virtual size.",
    _VOLUME + "allocated_bytes": "What its own files take on the disk.",
    _VOLUME + "chain_files": "Files that its chain has, those of a parent too.",
    _VOLUME + "snapshots": "Snapshots.",
    _VOLUME + "newest_snapshot_timestamp_seconds": "When its newest snapshot was taken. A replica has the time of its source.",
    _VOLUME + "pending": "Whether work on it was interrupted, or runs.",
    _VOLUME + "replica": "Whether it was made as a replica.",
    _LEASE + "expires_timestamp_seconds": "When the lease ends.",
    _LEASE + "readable": "Whether the lease can be read: 1, or 0 and then nothing else is known of it.",
}
_OF_THE_MOMENT = (WRITTEN + " ", _SHARE + "growth_bytes_per_second{", _SHARE + "full_in_seconds{", _SHARE + "free_bytes{")
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Sample(NamedTuple):
    """One value of a family, with its labels in order."""

    family: str
    labels: tuple[tuple[str, str], ...]
    value: float


def of_shares(names: list[str] | str | None, mount_base: str, fstab: str, timeout: float, volumes: bool, now: float) -> list[Sample]:
    """Figures of shares, of their volumes and of their leases. A share that cannot be read has one: that it is not up. One that is found at several
    places is not up if it cannot be read at one of them.

    :param names: shares by source or directory; None: every mounted one. :param timeout: seconds that a share may be silent.
    :param volumes: also of each volume. :param now: seconds since 1970. :raises StorageError: the names or the table of mounts cannot be read.
    """
    by_share: dict[tuple, list[Sample]] = {}
    for name in shares.named(names, mount_base):
        samples = _of_share(name, mount_base, fstab, timeout, volumes, now)
        if samples[0].labels not in by_share or not samples[0].value:  # it can be named twice, or mounted twice: whoever reads the file takes no sample twice
            by_share[samples[0].labels] = samples
    return [Sample(WRITTEN, (), now), *(one for samples in by_share.values() for one in samples)]


def _of_share(name: str, mount_base: str, fstab: str, timeout: float, volumes: bool, now: float) -> list[Sample]:
    """The first of them is whether it is up."""
    told, share = shares.look(name, mount_base, fstab, timeout)
    labels = (("share", str(told["src"])),)
    down = [Sample(_SHARE + "up", labels, 0)]
    if share is None:
        return down

    def read(alive: limited.Alive) -> tuple[dict, dict[str, VolumeFigures], list[dict]]:
        return (*share_contents.read(share, told["total"], told["free"], alive), leases.read_all(share, alive))

    try:
        contents, figures, held = limited.within(timeout, read, f"share {told['src']}")
    except (errors.StorageError, OSError):
        return down
    samples = [Sample(_SHARE + "up", labels, 1), *_of_contents({**told, **contents}, labels), *_of_growth(figures.values(), told["free"], labels, now)]
    for volume, one in figures.items() if volumes else ():
        samples += _of_volume(one, (*labels, ("volume", volume)))
    for lease in held:
        samples += _of_lease(lease, labels)
    return samples


def _of_contents(told: dict, labels: tuple) -> list[Sample]:
    found = {
        "size_bytes": told["total"],
        "free_bytes": told["free"],
        "virtual_bytes": told["virtual"],
        "allocated_bytes": told["allocated"],
        "held_by_snapshots_bytes": told["held_by_snapshots"],
        "maintenance": int(told["maintenance"]),
        "volumes": told["volumes"],
        "leftovers": len(told["leftovers"]),
        "leftovers_bytes": told["leftovers_allocated"],
        "unknown": len(told["unknown"]),
    }
    return [Sample(_SHARE + name, labels, value) for name, value in found.items()]


def _of_growth(volumes: Iterable[VolumeFigures], free: int, labels: tuple, now: float) -> list[Sample]:
    """What was written since snapshots of the last days were taken; nothing where there was none."""
    times = [(_seconds(created), written) for one in volumes for created, written in one.snapshots if created is not None]
    recent = [(taken, written) for taken, written in times if now - _GROWTH <= taken < now]
    if not recent:
        return []
    growth = sum(written for _taken, written in recent) / (now - min(taken for taken, _written in recent))
    found = [Sample(_SHARE + "growth_bytes_per_second", labels, growth)]
    return [*found, Sample(_SHARE + "full_in_seconds", labels, free / growth)] if growth > 0 else found


def _of_volume(one: VolumeFigures, labels: tuple) -> list[Sample]:
    if not one.is_read:
        return [Sample(_VOLUME + "readable", labels, 0)]
    found: dict[str, float] = {
        "readable": 1,
        "size_bytes": one.size,
        "allocated_bytes": one.allocated,
        "chain_files": one.files,
        "snapshots": len(one.snapshots),
        "pending": int(one.is_pending),
        "replica": int(one.is_replica),
    }
    times = [_seconds(created) for created, _written in one.snapshots if created is not None]
    if times:
        found["newest_snapshot_timestamp_seconds"] = max(times)
    return [Sample(_VOLUME + name, labels, value) for name, value in found.items()]


def _of_lease(lease: dict, labels: tuple) -> list[Sample]:
    labels = (*labels, ("lease", str(lease["name"])))
    if "error_code" in lease:
        return [Sample(_LEASE + "readable", labels, 0)]
    found = [Sample(_LEASE + "readable", labels, 1)]
    if lease["expires"] is not None:
        found.append(Sample(_LEASE + "expires_timestamp_seconds", (*labels, ("owner", str(lease["owner"]))), _seconds(lease["expires"])))
    return found


def _seconds(told: str) -> float:
    """Seconds since 1970 of a time as records have it. One that is none counts as 1970, which alerts."""
    return model.seconds_of(told) or 0.0


# -- the text --------------------------------------------------------------------------------------------------------


def text(samples: Sequence[Sample]) -> str:
    """The samples in the exposition format: families in their order, each with what it means."""
    by_family: dict[str, list[Sample]] = {}
    for one in samples:
        by_family.setdefault(one.family, []).append(one)
    lines: list[str] = []
    for family, meaning in FAMILIES.items():
        if family in by_family:
            lines += [f"# HELP {family} {meaning}", f"# TYPE {family} gauge", *map(_line, by_family[family])]
    return "\n".join(lines) + "\n"


def _line(one: Sample) -> str:
    labels = ",".join(f'{name}="{_encodable(value).translate(_ESCAPED)}"' for name, value in one.labels)
    value = str(int(one.value)) if one.value == int(one.value) else repr(float(one.value))
    return f"{one.family}{{{labels}}} {value}" if labels else f"{one.family} {value}"


def _encodable(value: str) -> str:
    """A name whose bytes are no UTF-8, with escapes for those."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def lasting(told: str) -> str:
    """The text without the figures that are others at each moment, although nothing was changed."""
    return "\n".join(line for line in told.split("\n") if not line.startswith(_OF_THE_MOMENT))  # only this ends a line: names can have others that Python knows


# -- the file --------------------------------------------------------------------------------------------------------


def write(samples: Sequence[Sample], dest: str, mode: int, check: bool) -> dict:
    """Replace the file ``dest`` by these samples, unless it is only a ``check``. Returns what the module does.

    :param mode: of a new file. :raises InvalidParameter: something else than a file is there. :raises StorageError: it cannot be written.
    """
    _require_replaceable(dest)
    told, before = text(samples), _content(dest)
    if not check:
        host_files.replace_file(dest, told.encode("utf-8"), mode)
    figures = lasting(told)
    return {
        "changed": before is None or lasting(before) != figures,
        "dest": dest,
        "samples": len(samples),
        "unreadable": [dict(one.labels)["share"] for one in samples if one.family == _SHARE + "up" and not one.value],
        "actions": [{"step": "write_metrics", "file": dest}],
        "diff": {"before": lasting(before or ""), "after": figures},
    }


def _require_replaceable(path: str) -> None:
    """:raises InvalidParameter: there is a device, a directory or a link, which must not become a file."""
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        what = "a symbolic link" if os.path.islink(path) else "no regular file"
        raise errors.InvalidParameter(f"option dest {path}", f"it is {what} and is not replaced", "name the file itself")


def _content(path: str) -> str | None:
    """What a file has; None where there is none that can be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, encoding="utf-8", errors="replace", newline="") as stream:
            return stream.read() if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except OSError:
        return None
