# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let images of a share have equal blocks in common, where its file system can. No content changes."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import Iterable, Iterator, NamedTuple

from .. import errors, model
from ..pace import Pace
from ..store.files import equal_blocks
from ..store.files.directory import ShareDirectory
from ..store.metadata import share_abilities
from ..store.volumes.chains import Observed
from . import share_parts
from .options import Options

_MOST_FILES = 512  # that are open at a time; those of a larger share are taken in groups


class Shared(NamedTuple):
    """Bytes that images of a share have in common now and had not before, and why they are not all: "" where they are. ``failure``: the error that ended
    it. What was shared until then stays so."""

    bytes: int
    why: str = ""
    failure: errors.StorageError | None = None


def share_all(shares: Iterable[model.Share], options: Options) -> dict:
    """Of shares, one after the other. One that fails in the middle stops no other. Returns what the module does."""
    found = [(one.source, share(one, options)) for one in shares]
    told = [{"share": source, "bytes": shared.bytes, "why": shared.why} for source, shared in found]
    return {
        **errors.told_of([shared.failure for _source, shared in found]),
        "equal_blocks": told,
        "shared": sum(one["bytes"] for one in told),
        "actions": [{"step": "share_blocks", "share": one["share"], "bytes": one["bytes"]} for one in told if one["bytes"]],
    }


def share(one: model.Share, options: Options) -> Shared:
    """Let the images of all volumes of a share have equal blocks in common. An active raw image without holes is left out: somebody may have
    allocated it in advance, so that its writes always find room.
    """
    parts, failure = share_parts.kept(one, _share(one, options))
    why = next((part.why for part in parts if part.why), str(failure) if failure is not None else "")
    return Shared(sum(part.bytes for part in parts), why, failure)


def _share(one: model.Share, options: Options) -> Iterator[Shared]:
    with ShareDirectory(one) as directory:
        if share_abilities.read(directory).get(share_abilities.REFLINK) is False:
            yield Shared(0, "its file system shares no blocks")
            return
        files, pace = _images(directory), Pace(f"share {one.label}", options.speed, options.timeout)
        for start in range(0, len(files), _MOST_FILES):
            with ExitStack() as stack:
                opened = [fd for name, is_active_raw in files[start : start + _MOST_FILES] for fd in _opened(directory, stack, name, is_active_raw)]
                count = 0
                try:
                    for shared in equal_blocks.share(opened, pace.moved, options.check):
                        count += shared
                except equal_blocks.NotPossible as error:
                    yield Shared(count, f"its file system shares no blocks ({error})")
                    return
                except (errors.StorageError, OSError):
                    yield Shared(count)
                    raise
                yield Shared(count)


def _images(directory: ShareDirectory) -> list[tuple[str, bool]]:
    """The files of all volumes that can be read, each with whether it is an active raw image."""
    return sorted({one for files in share_parts.told(directory, _files).values() for one in files})


def _files(found: Observed) -> list[tuple[str, bool]]:
    active = found.volume.active
    return [(image.file, image is active and image.format == "raw") for image in found.volume.own]


def _opened(directory: ShareDirectory, stack: ExitStack, name: str, is_active_raw: bool) -> list[int]:
    """The descriptor of a file that may have blocks in common with others. Empty if it may not, or went away."""
    try:
        fd = stack.enter_context(directory.root.opened(name))
    except (errors.StorageError, FileNotFoundError):
        return []  # a task removes it just now
    status = os.fstat(fd)
    is_full = model.allocated(status) >= status.st_size
    return [fd] if stat.S_ISREG(status.st_mode) and not (is_active_raw and is_full) else []
