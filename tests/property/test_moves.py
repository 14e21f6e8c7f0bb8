# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random lives of a volume that moves: it is interrupted after some plan, goes on where it was, and moves on. In the end the new share has all
of it, and at every instant one of both has."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.apply.executor import Executor
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.replicas import replicate
from ansible_collections.remotefs.storage.plugins.module_utils.operations.up_to_date import ReplicaRequest
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume

from .examples import property_settings
from .test_replicas import KIB, SIZES, WRITES, Source, candidates, change
from .world import read_content

LIFE = st.lists(
    st.one_of(
        WRITES,
        WRITES,
        st.tuples(st.just("snapshot")),
        st.tuples(st.just("snapshot")),
        st.tuples(st.just("delete"), st.sets(st.integers(0, 5), min_size=1, max_size=3)),
        st.tuples(st.just("revert"), st.integers(0, 5)),
        st.tuples(st.just("grow"), st.integers(1, 2000)),
        st.tuples(st.just("anew"), st.integers(1, 255)),
        st.tuples(st.just("cinder takes"), st.integers(1, 255)),
        st.tuples(st.just("cinder deletes"), st.integers(0, 5)),
    ),
    max_size=6,
)
# A move that is killed before or after its plan of this number, and what the volume lives through before the next one.
INTERRUPTED = st.lists(st.tuples(st.integers(0, 8), st.booleans(), LIFE), max_size=3)


class Killed(BaseException):
    """The end of the task."""


def lived(source: Source, operations: list) -> None:
    for operation in operations:
        change(source, operation)


def moved(source: Source, target: Path, killed: tuple[int, bool] | None = None, check: bool = False) -> Any:
    """The move, in earnest or in check mode, and where that is asked killed."""
    plans: list = []
    apply = Executor.apply

    def counted(self: Executor, plan: Any, copy: Any = None) -> None:
        plans.append(plan)
        if killed == (len(plans) - 1, False):
            raise Killed
        apply(self, plan, copy)
        if killed == (len(plans) - 1, True):
            raise Killed

    elsewhere = updating.OtherShare(str(source.share), lambda: source.candidates)
    request = updating.VolumeRequest(candidates(target), DesiredVolume("vol"), moved_from=elsewhere)
    with mock.patch.object(Executor, "apply", counted):
        return volumes.ensure_present(request, source.options(check))


def told(share: Path) -> dict | None:
    found = reading.list_volumes(candidates(share).shares[0], [])
    return found[0] if found else None


def require_shown(share: Path, source: Source, exact: bool = True) -> None:
    """The share has all points of the model and its present. :param exact: and no point besides."""
    volume = told(share)
    assert volume is not None and "error_code" not in volume, volume
    chain = {image["file"]: image for image in volume["chain"]}
    assert read_content(volume["path"], volume["format"], source.scratch) == bytes(source.active)
    overlays = {one["name"]: one["file"] for one in volume["snapshots"]}
    assert [name for name in overlays if name in source.points] == list(source.points) and (not exact or len(overlays) == len(source.points))
    for name, expected in source.points.items():
        below = chain[chain[overlays[name]]["backing_file"]]
        assert read_content(str(share / below["file"]), below["format"], source.scratch) == expected, name


def live(image_format: str, size: int, before: list, replicated: bool, interrupted: list) -> None:
    with tempfile.TemporaryDirectory(prefix="remotefs-property-") as directory:
        places = [Path(directory, name) for name in ("source", "target", "scratch")]
        for place in places:
            place.mkdir()
        source, target = Source(places[0], places[2], image_format, size), places[1]
        lived(source, before)
        if replicated:
            replicate(ReplicaRequest(source.candidates, "vol", candidates(target), "vol"), source.options())
        for number, after, life in interrupted:
            try:
                moved(source, target, (number, after))
            except Killed:
                pass
            if told(source.share) is None:
                require_shown(target, source, exact=False)
                break
            pending = (told(target) or {}).get("pending")
            require_shown(source.share if not pending or pending["counts"] == "source" else target, source, exact=False)
            if not pending or pending["counts"] == "source":
                lived(source, life)
        finish(source, target, exact=not replicated and not interrupted)


def finish(source: Source, target: Path, exact: bool) -> None:
    """Check mode foretells the move, and all is there afterwards. What a replica or an interrupted move had received besides may stay."""
    foretold = moved(source, target, check=True)
    done = moved(source, target)
    assert [step["step"] for step in foretold.actions] == [step["step"] for step in done.actions]
    require_shown(target, source, exact)
    assert told(source.share) is None and (told(target) or {})["pending"] is None
    assert not [path for path in source.share.rglob("vol*") if path.is_file() and path.suffix != ".lock"]
    again = moved(source, target)
    assert not again.changed and not again.actions


@given(st.sampled_from(["raw", "qcow2"]), SIZES, LIFE, st.booleans(), INTERRUPTED)
@property_settings(10)
def test_random_moves(image_format: str, size: int, before: list, replicated: bool, interrupted: list) -> None:
    live(image_format, size, before, replicated, interrupted)


@pytest.mark.slow
@given(st.sampled_from(["raw", "qcow2"]), SIZES, LIFE, st.booleans(), INTERRUPTED)
@property_settings(100)
def test_many_random_moves(image_format: str, size: int, before: list, replicated: bool, interrupted: list) -> None:
    live(image_format, size, before, replicated, interrupted)


def test_a_move_with_everything() -> None:
    """One move that is interrupted three times, and a volume that lives on each time."""
    writes = [("write", offset * 64 * KIB, 64 * KIB, offset + 1) for offset in range(4)]
    first = [writes[0], ("snapshot",), writes[1], ("cinder takes", 7), writes[2], ("snapshot",), ("grow", 1000), writes[3]]
    second = [("delete", {1}), ("write", 0, 512, 9), ("snapshot",), writes[1]]
    third = [("anew", 5), ("write", 4096, 512, 6)]
    for image_format, replicated in (("raw", False), ("qcow2", True)):
        live(image_format, 1 << 20, first, replicated, [(3, True, second), (5, False, third), (7, True, [("revert", 0)])])
