# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What merges do that a running machine's QEMU carries out."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple, Sequence

from .. import errors, model
from ..plan.plan import CREATE_SNAPSHOT, Plan
from ..plan.steps import Commit, CreateOverlay, Pull, Repoint, Unlink
from ..store import qcow2
from ..store.files import second_names
from ..store.files.directory import ShareDirectory
from ..store.qcow2 import clusters

ALIGNMENT = 4096  # bytes, of which the size of a raw file must be a multiple where QEMU writes to it past the kernel's cache


def is_taken(plan: Plan) -> bool:
    """Whether the plan takes a snapshot, or ends one that was begun. One that is undone removes its overlay."""
    return plan.operation == CREATE_SNAPSHOT and not any(isinstance(step, Unlink) for step in plan.steps)


def takes_snapshot(plan: Plan) -> bool:
    """Whether the plan takes a snapshot that was not begun."""
    return plan.operation == CREATE_SNAPSHOT and any(isinstance(step, CreateOverlay) for step in plan.steps)


def require_own_files(plan: Plan, directory: ShareDirectory) -> None:
    """Check that each file which the plan changes or removes is nobody else's, too. A snapshot changes none: the guest only leaves one.

    :raises UnsafeImage: one has another name somewhere.
    """
    steps = [step for step in plan.steps if not isinstance(step, CreateOverlay)]
    second_names.require_one_name(directory, plan.volume, sorted({file for step in steps for file in step.touches() if not file.endswith(".info")}))


def require_settled(directory: ShareDirectory, file: str) -> None:
    """Before a merge writes into an image that QEMU or qemu-img opens below others.

    A machine that dies may leave an image with lazy refcounts marked as dirty: its counts are of an earlier time. QEMU mends that when it
    opens an image for writing, but not when it begins to write to one that it has opened as a backing file. There it takes clusters
    for free which hold data.

    :raises UnsafeImage: the image is so.
    """
    if directory.root.status(file) is not None:
        with directory.root.opened(file) as fd:
            require_settled_image(directory, file, fd)


def require_settled_image(directory: ShareDirectory, file: str, fd: int) -> None:
    """:func:`require_settled` for an image that is opened."""
    if qcow2.has_magic(fd) and qcow2.read_header(fd).dirty:
        raise errors.UnsafeImage(
            directory.root.subject(file),
            "its reference counts are out of date since a machine died (lazy refcounts), and a merge into it would overwrite data",
            "stop the machine, repair the file with qemu-img check -r all, and run the task again",
        )


def require_held(directory: ShareDirectory, target: str, layers: Sequence[str], raw: str | None = None, is_above: bool = False) -> None:
    """Check that a qcow2 image has a place for all that was merged into it. QEMU keeps tables in memory, and a merge has ended before they are on
    the disk.

    :param layers: the qcow2 images whose data it got, the upper ones first. :param raw: a raw one beneath them. :param is_above: the target rests on them.
    :raises ToolFailed: it has not.
    """
    with ExitStack() as stack:
        fds = {file: stack.enter_context(directory.root.opened(file)) for file in (target, *layers, *([raw] if raw else ()))}
        try:
            qcow2.require_held(fds[target], [fds[layer] for layer in layers], fds[raw] if raw else None, is_above)
        except qcow2.Qcow2Error as error:
            raise errors.ToolFailed(
                directory.root.subject(target),
                f"QEMU has not written all of the merge to it ({error})",
                "look at the share's storage and at QEMU's log, and run the task again",
            ) from error


class Write(NamedTuple):
    """A merge of QEMU's into ``into``, which gets the size of the layer that is merged, in bytes."""

    into: str
    size: int


def writes(plan: Plan, volume: model.Volume, top: str) -> list[Write]:
    """The merges by which QEMU carries out the plan. An empty layer is merged, too: otherwise it would stay in the machine's chain.

    :param top: the file that the guest writes to.
    """
    sizes, files, found = {image.file: image.size for image in volume.chain}, volume.files, []
    for step in plan.steps:
        if isinstance(step, Commit):
            found.append(Write(step.into, sizes.get(step.file, 0)))
        elif isinstance(step, Repoint) and step.file in files and step.backing_file in files:
            between = files[files.index(step.file) + 1 : files.index(step.backing_file)]
            found += [Write(step.backing_file, sizes[file]) for file in between[:1]]
    if switches(plan, top) and plan.after is not None:
        found.append(Write(plan.after.active.file, plan.after.size))
    return found


def switches(plan: Plan, top: str) -> bool:
    """Whether the guest is to leave the image that it writes to."""
    if plan.operation == CREATE_SNAPSHOT or plan.before is None or plan.after is None:
        return False
    return plan.after.active.file not in (top, plan.before.active.file)


def merged(plan: Plan, volume: model.Volume, top: str) -> tuple[str, ...]:
    """The files that the plan's merges change or remove. What heals a name alone merges nothing."""
    into = [write.into for write in writes(plan, volume, top)]
    merges = [step for step in plan.steps if isinstance(step, (Commit, Pull, Repoint, Unlink))]
    if not into and all(isinstance(step, Repoint) for step in merges):
        return ()
    return tuple(dict.fromkeys([*(file for step in merges for file in step.touches()), *into]))


def has_tail(directory: ShareDirectory, file: str) -> bool:
    """Whether a qcow2 file holds anything but zeros behind its virtual end. Tables that the machine has not written yet cannot lead there:
    it fills new clusters with zeros."""
    with directory.root.opened(file) as fd:
        try:
            return qcow2.has_tail(fd)
        except clusters.Unsuited:
            return True
