# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A wish is met exactly where the planner would have nothing to do and nothing to refuse."""

from __future__ import annotations

from typing import Any, Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Parent, Snapshot, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.plan import planner
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.plan.plan import Plan

FILES = ("vol.s", "vol", "parent")  # active first; the last one is another volume's where there is a parent
SIZES, IDS, MODES = st.sampled_from([1 << 20, 2 << 20]), st.sampled_from([0, 107]), st.sampled_from([0o640, 0o660])
TEXTS, LABELS = st.sampled_from(["", "daily"]), st.sampled_from([{}, {"kept": "yes"}])
SELDOM = st.sampled_from([False, False, False, True])


@st.composite
def images(draw: st.DrawFn, file: str, below: str | None, uid: int) -> Image:
    return Image(
        file,
        draw(st.sampled_from(["raw", "qcow2", "qcow2", None])) if below is None else "qcow2",
        draw(SIZES),
        backing_file=below,
        backing_format=None if below is None or draw(SELDOM) else "qcow2",
        absolute=below is not None and draw(SELDOM),
        mode=0o640 if draw(SELDOM) else 0o660,
        uid=draw(IDS) if draw(SELDOM) else uid,
        gid=draw(IDS),
    )


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    files = FILES[draw(st.integers(0, 1)) : draw(st.integers(2, 3))]
    uid = draw(IDS)
    chain = tuple(draw(images(file, below, 5 if file == "parent" else uid)) for file, below in zip(files, (*files[1:], None)))
    snapshots = (Snapshot("s", "vol.s", None, draw(TEXTS), draw(LABELS), draw(st.booleans())),) if "vol.s" in files else ()
    parent = Parent("parent", None, "parent") if "parent" in files else None
    return Volume("vol", chain, snapshots, bool(snapshots), adopted=not draw(SELDOM), parent=parent)


def maybe(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | values


def leaves_alone(plan_for: Callable[[Volume, Any], Plan], volume: Volume, desired: DesiredVolume | DesiredSnapshot) -> bool:
    """Whether the planner refuses nothing, and finds nothing to do."""
    try:
        plan = plan_for(volume, desired)
    except StorageError:
        return False
    return not plan.steps and plan.after == volume


@settings(max_examples=500)
@given(
    volumes(),
    st.builds(
        DesiredVolume,
        st.just("vol"),
        maybe(SIZES),
        maybe(st.sampled_from(["raw", "qcow2"])),
        mode=maybe(MODES),
        uid=maybe(IDS),
        gid=maybe(IDS),
    ),
)
def test_of_volumes(volume: Volume, desired: DesiredVolume) -> None:
    assert desired.is_satisfied_by(volume) is leaves_alone(planner.ensure_volume, volume, desired)


@settings(max_examples=500)
@given(
    volumes(),
    st.builds(DesiredSnapshot, st.sampled_from("st"), description=maybe(TEXTS), labels=maybe(LABELS), protected=maybe(st.booleans())),
)
def test_of_snapshots(volume: Volume, desired: DesiredSnapshot) -> None:
    assert desired.is_satisfied_by(volume) is leaves_alone(planner.create_snapshot, volume, desired)
