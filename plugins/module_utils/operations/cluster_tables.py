# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What planners want to know of images beyond their headers: which clusters are allocated, whether all are there, and what lies
behind their virtual end."""

from __future__ import annotations

from typing import Iterable, NamedTuple

from .. import errors, model
from ..plan import cost, merge
from ..plan.plan import Plan
from ..store import qcow2
from ..store.files.directory import ShareDirectory


class Merged(NamedTuple):
    """What a merge has to know of the qcow2 images that it may join, by file: clusters that are allocated, dirty bitmaps, and which
    of them no commit may make larger, because old data behind their end would come to light."""

    allocations: cost.Allocations
    bitmaps: dict[str, tuple[merge.Bitmap, ...]]
    fixed_tails: frozenset[str]


def look_into(directory: ShareDirectory, volume: model.Volume, wanted: Iterable[str], with_bitmaps: bool, is_attached: bool = False) -> Merged:
    """Read the tables of those ``wanted`` files of the chain that are qcow2 images and exist (a prediction may name others). Each is
    opened once.

    :param with_bitmaps: without, they are not looked for. :param is_attached: a machine may have the images open. What its
        tables say of the active one is an estimate then.
    :raises UnsafeImage: the tables of one are damaged or hostile, or its file was cut short.
    """
    wanted, longest = set(wanted), 0
    known: dict[str, cost.Allocation] = {}
    bitmaps: dict[str, tuple[merge.Bitmap, ...]] = {}
    fixed_tails: set[str] = set()
    for image in volume.chain:
        shorter, longest = image.size < longest, max(longest, image.size)
        if image.file not in wanted or not _is_there(directory, image):
            continue
        changes = is_attached and image is volume.active
        with directory.root.opened(image.file) as fd:
            if not changes:
                _require_whole(directory, image.file, fd, thorough=True)
            try:
                header = qcow2.read_header(fd)
                held = qcow2.read_bitmaps(fd, header) if with_bitmaps else ()
                tables = _at_some_instant(fd, header) if changes else qcow2.allocation(fd, header)
            except qcow2.Qcow2Error as error:
                raise _unusable(directory, image.file, error) from error
            if shorter and (changes or _is_stiff(fd)):
                fixed_tails.add(image.file)
        if held:
            bitmaps[image.file] = tuple(merge.Bitmap(one.name, one.tracks) for one in held)
        if tables is not None:
            known[image.file] = cost.Allocation(header.cluster_size, header.l2_entries, tables)
    return Merged(known, bitmaps, frozenset(fixed_tails))


def _at_some_instant(fd: int, header: qcow2.Header) -> dict[int, bytes] | None:
    """What is allocated in an image that changes meanwhile; an estimate, and no more."""
    try:
        return qcow2.allocation(fd, header)
    except qcow2.Qcow2Error:
        return None


def _is_there(directory: ShareDirectory, image: model.Image) -> bool:
    return image.format == "qcow2" and directory.root.status(image.file) is not None


def _is_stiff(fd: int) -> bool:
    try:
        return qcow2.has_fixed_tail(fd)
    except qcow2.Qcow2Error:
        return True


def _unusable(directory: ShareDirectory, file: str, error: qcow2.Qcow2Error) -> errors.UnsafeImage:
    return errors.UnsafeImage(
        directory.root.subject(file), f"as a qcow2 image it cannot be used: {error}", "see docs/worst-day.md for a repair by hand"
    )


def require_whole(directory: ShareDirectory, images: Iterable[model.Image], thorough: bool = True) -> None:
    """Before the data of these images is moved or something is built on them.

    :param thorough: all tables are read. Otherwise two or three reads are enough for each image whose counts are right.

    :raises UnsafeImage: the file of one ends before its data. qemu-img would read zeros there, and say nothing.
    """
    for image in images:
        if _is_there(directory, image):
            with directory.root.opened(image.file) as fd:
                _require_whole(directory, image.file, fd, thorough)


def _require_whole(directory: ShareDirectory, file: str, fd: int, thorough: bool) -> None:
    try:
        qcow2.require_whole(fd, thorough)
    except qcow2.CutShort as error:
        raise errors.UnsafeImage(
            directory.root.subject(file), f"it is damaged: {error}", "restore the file from a backup; docs/worst-day.md shows how to save what is left of it"
        ) from error
    except qcow2.Qcow2Error:
        return  # the reader of its tables reports what is wrong with them


def require_single_owners(directory: ShareDirectory, plan: Plan, is_attached: bool = False) -> None:
    """Before a plan writes data into images that are there. Reads all their tables, in check mode too.

    :param is_attached: a machine may have them open. While it writes to the active image, the tables on disk are of several instants.
    :raises UnsafeImage: a cluster of one has two uses, so that a merge would change what it does not write.
    """
    from ..apply.merges import require_settled_image
    from ..plan.steps import Commit, Pull

    written = [step.into if isinstance(step, Commit) else step.file for step in plan.steps if isinstance(step, (Commit, Pull))]
    known = {image.file: image.format for image in plan.before.chain} if plan.before else {}
    changing = plan.before.active.file if plan.before and is_attached else None
    for file in dict.fromkeys(written):
        if file == changing:
            continue
        if known.get(file) != "qcow2" or directory.root.status(file) is None:
            continue
        with directory.root.opened(file) as fd:
            if any(isinstance(step, Commit) and step.into == file for step in plan.steps):
                require_settled_image(directory, file, fd)
            try:
                qcow2.require_single_owners(fd)
            except qcow2.Qcow2Error as error:
                raise errors.UnsafeImage(
                    directory.root.subject(file),
                    f"nothing can be merged into it: {error}",
                    "look at it with qemu-img check, and copy what it shows into a new volume with qemu-img convert",
                ) from error
