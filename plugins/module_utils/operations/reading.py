# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The use case of reading: all volumes of a share. Needs nothing of what plans and applies, and so starts fast."""

from __future__ import annotations

from dataclasses import replace

from ..errors import StorageError
from ..model import Share
from ..store import inventory, kinship
from ..store.directory import ShareDirectory
from . import report


def list_volumes(share: Share, patterns: list[str]) -> list[dict]:
    """All volumes of a share whose names match one of ``patterns`` (globs; none: all). One that cannot be read comes with
    its ``error_code`` and ``msg``."""
    from fnmatch import fnmatchcase

    with ShareDirectory(share) as directory:
        found = inventory.survey(directory)
        wanted = [name for name in found if not patterns or any(fnmatchcase(name, glob) for glob in patterns)]
        backings = kinship.scan_backings(directory, tolerant=True, known=_headers_in(found)) if wanted else kinship.Backings()
        return [_told(directory, name, found.pop(name), backings) for name in wanted]  # pop: a share can hold very many


def _headers_in(found: dict[str, inventory.Observed | StorageError]) -> dict[str, str | None]:
    """File → backing file, of all files that were read with a known format."""
    chains = [observed.volume.chain for observed in found.values() if isinstance(observed, inventory.Observed)]
    return {image.file: image.backing_file for chain in chains for image in chain if image.format is not None}


def _told(directory: ShareDirectory, name: str, found: inventory.Observed | StorageError, backings: kinship.Backings) -> dict:
    if isinstance(found, StorageError):
        return {"name": name, "share": directory.share.source, "error_code": found.error_code, "msg": str(found)}
    volume = replace(found.volume, dependents=kinship.dependents_of(directory, found.volume, backings))
    return report.read_volume(directory, volume)
