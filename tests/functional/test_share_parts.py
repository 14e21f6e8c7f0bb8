# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of housekeeping that go through a share: each lists it once, and keeps what was done before it failed."""

from __future__ import annotations

from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import empty_overlays, equal_blocks, leaked_clusters, share_parts
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import share_abilities
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import listing

from .test_refusals import MIB, Store

PARTS: dict[str, Callable] = {"leaked_clusters": leaked_clusters.free_all, "empty_overlays": empty_overlays.drop_all, "equal_blocks": equal_blocks.share_all}


@pytest.mark.parametrize("part", PARTS)
def test_a_share_is_listed_once(layered: Store, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    listed, real = [], listing.read_volumes
    monkeypatch.setattr(listing, "read_volumes", lambda directory, *given: listed.append(directory.share.path) or real(directory, *given))
    monkeypatch.setattr(share_abilities, "read", lambda _directory: {})  # as where nobody has tried what the file system can do
    assert part in PARTS[part]([layered.share], layered.options(check=True))
    assert listed == [str(layered.path)]


@pytest.mark.parametrize("part", PARTS)
def test_a_share_that_fails_stops_no_other(layered: Store, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """And the failure is told in the same way by each part."""
    seen, real = [], listing.read_volumes

    def read(directory: ShareDirectory, *given: object) -> listing.Listing:
        seen.append(directory.share.path)
        if len(seen) == 1:
            raise OSError(116, "Stale file handle")
        return real(directory, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(listing, "read_volumes", read)
    monkeypatch.setattr(share_abilities, "read", lambda _directory: {})
    told = PARTS[part]([layered.share, layered.share], layered.options(check=True))
    assert len(seen) == 2 and told["error_code"] == "share_not_mounted" and "Stale file handle" in told["msg"] and part in told


def test_what_was_done_before_an_error_is_kept(store: Store) -> None:
    def work(error: BaseException) -> Iterator[int]:
        yield 1
        yield 2
        raise error

    assert share_parts.kept(store.share, iter([1, 2])) == ((1, 2), None)
    failed = errors.ToolFailed("a", "b", "c")
    assert share_parts.kept(store.share, work(failed)) == ((1, 2), failed)
    done, failure = share_parts.kept(store.share, work(OSError(116, "Stale file handle")))
    assert done == (1, 2) and isinstance(failure, errors.ShareNotMounted) and str(failure).startswith(f"share {store.path}")
    with pytest.raises(ZeroDivisionError):
        share_parts.kept(store.share, work(ZeroDivisionError()))


def test_only_volumes_say_something(layered: Store) -> None:
    """One without a record and without an .info, and one that cannot be read, are named and say nothing."""
    layered.present("other", size=MIB)
    (layered.path / "lone").write_bytes(bytes(512))
    (layered.path / "vol.s1").unlink()
    with ShareDirectory(layered.share) as directory:
        told = share_parts.told(directory, lambda found: [found.volume.name, found.volume.size])
    assert told == {"lone": (), "other": ("other", MIB), "vol": ()} and list(told) == sorted(told)
