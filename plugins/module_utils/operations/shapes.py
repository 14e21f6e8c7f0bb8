# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of what modules return. For annotations only: nothing imports this when a task runs.

Sizes are in bytes; None where check mode cannot know one.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, TypedDict

Action = Dict[str, Any]  # a step as ``actions`` shows it: "step" is its name, the other keys are its fields


class Recovered(TypedDict):
    """What became of an interrupted operation: ``outcome`` is finished, undone or discarded. ``left`` are files that stay."""

    operation: str
    outcome: str
    steps: List[Action]
    left: List[str]


class SnapshotResult(TypedDict):
    """A snapshot. ``file`` is the overlay that was made when it was taken; times are UTC, as ``2026-01-31T12:00:00Z``."""

    name: str
    file: str
    created: Optional[str]
    description: str
    labels: Dict[str, str]
    protected: bool
    expires: Optional[str]


class ImageResult(TypedDict):
    """One file of a chain: its virtual ``size``, and what it takes on the share (``allocated``)."""

    file: str
    format: Optional[str]
    backing_file: Optional[str]
    size: Optional[int]
    allocated: int


class VolumeResult(TypedDict):
    """A volume. ``chain`` begins with the active image, ``snapshots`` are oldest first, ``dependents`` are linked clones with the snapshot
    that each rests on, ``stale`` are entries of ``.info`` without an overlay in the chain, ``connection`` is what os-brick takes."""

    name: str
    share: str
    mountpoint: str
    path: str
    format: Optional[str]
    base_format: Optional[str]
    size: Optional[int]
    allocated: int
    snapshots: List[SnapshotResult]
    stale: List[Dict[str, str]]
    chain: List[ImageResult]
    parent: Optional[Dict[str, Optional[str]]]
    dependents: List[Dict[str, Optional[str]]]
    created: Optional[str]
    description: str
    labels: Dict[str, str]
    lease: Optional[str]
    replica: bool
    in_use: Optional[bool]
    pending: Optional[Dict[str, Any]]
    connection: Dict[str, Any]
