# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides the format of a file that may not be the file that its record is about.

There is danger on both sides. A raw disk stays raw whatever its guest writes, also if a restored share has given it another inode.
But a record that outlived its file must not decide the format of a new file of the same name. So content never decides a format: it
can agree with the record, and if it does not, the user is asked.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ... import errors, model
from ..files.directory import ShareDirectory
from ..volumes import appearance, images, ownership
from . import records

if TYPE_CHECKING:
    from ..volumes import chains

_GET_GENERATION = 2 << 30 | struct.calcsize("l") << 16 | ord("v") << 8 | 1  # FS_IOC_GETVERSION of linux/fs.h
QCOW2 = "a qcow2 image"  # what :func:`appearance.looks_like` returns for one


class Verdict(NamedTuple):
    """The ``format`` of a file. None if the user has to give it; ``doubt`` then says why, as the end of a sentence about the file.

    ``outlived``: the record is about another file and does not count. ``unmarked``: it counts, but must store which file this is.
    """

    format: str | None
    outlived: bool = False
    unmarked: bool = False
    doubt: str | None = None


def decide(recorded: str, above: str | None, overlay: bool, identity: str, looks: str | None, user_format: str | None) -> Verdict:
    """Decide the format of a file that a record has a format for.

    :param recorded: the format in the record. :param above: that in the header above, which is as good as a record.
    :param overlay: whether ``.info`` calls the file an overlay. Overlays are always qcow2.
    :param identity: the result of :func:`records.identity`. :param looks: that of :func:`appearance.looks_like`.
    :param user_format: the format that the user gave.
    """
    if above is not None and above != recorded:
        if identity == records.OTHER and (above == "raw" or user_format == above):
            return Verdict(above, outlived=True)
        return Verdict(None, doubt=f"is recorded as {recorded}, but the header above calls it {above}")
    if above is not None:
        return Verdict(recorded)
    return _of_raw(identity, looks, user_format) if recorded == "raw" else _of_qcow2(overlay, identity, looks, user_format)


def _of_raw(identity: str, looks: str | None, user_format: str | None) -> Verdict:
    if identity != records.OTHER:
        return Verdict("raw")
    if looks is None or user_format == "raw":
        return Verdict("raw", unmarked=True)  # restored, or replaced by another disk
    if user_format == "qcow2" and looks == QCOW2:
        return Verdict("qcow2", outlived=True)
    return Verdict(None, doubt=f"is not certain (the record of the volume says raw, but of another file, and this one looks like {looks})")


def _of_qcow2(overlay: bool, identity: str, looks: str | None, user_format: str | None) -> Verdict:
    if looks == QCOW2 or overlay or identity == records.SAME:
        return Verdict("qcow2")  # if its header is damaged, reading it reports that
    if user_format == "raw":
        return Verdict("raw", outlived=True)
    if identity == records.OTHER:
        return Verdict(None, doubt="is not certain (the record of the volume says qcow2, but of another file, and this one has no such header)")
    return Verdict("qcow2")


def without_overlays(identity: str, user_format: str | None) -> Verdict:
    """Decide about a base file without ``.info`` whose recorded overlays are all gone. It is a new volume only if it is another file.

    It may also be the restored base of a volume whose overlays are missing. So the user has to give its format to make it a new volume.
    """
    if identity != records.OTHER:
        return Verdict(None)
    why = "is not certain (the record of the volume tells of snapshots that are gone, and of another file)"
    return Verdict(user_format, outlived=True, doubt=None if user_format else why)


def judge(
    directory: ShareDirectory,
    name: str,
    file: str,
    fd: int,
    record: records.Record,
    above: str | None,
    overlay: bool,
    user_format: str | None,
    found: chains.Findings,
) -> str | None:
    """Decide the format of an opened file of volume ``name`` by :func:`decide`. What this shows about the record is put into ``found``.

    :raises ChainBroken: the record and the header above contradict each other.
    """
    identity = records.identity(record, file, os.fstat(fd), lambda: generation(directory, fd))
    verdict = decide(record.formats[file], above, overlay, identity, appearance.looks_like(fd), user_format)
    if above is not None and verdict.format is None:
        raise errors.ChainBroken(f"volume {name}", f"{file} {verdict.doubt}", images.WORST_DAY)
    found.outlived |= verdict.outlived
    found.unmarked |= verdict.unmarked
    found.doubt = verdict.doubt or found.doubt
    return verdict.format


def is_new_without_overlays(directory: ShareDirectory, name: str, record: records.Record, user_format: str | None, found: chains.Findings) -> bool:
    """Whether ``name`` is another file than the recorded one, and only the record still mentions snapshots: no overlay is left."""
    others = [model.info_name(name), *(file for file in record.formats if file != name)]
    if record.intent is not None or any(_is_there(directory, file) for file in others) or ownership.overlays_named_after(directory, name):
        return False
    if not _is_there(directory, name):
        return False
    with directory.root.opened(name) as fd:
        identity = records.identity(record, name, os.fstat(fd), lambda: generation(directory, fd))
    verdict = without_overlays(identity, user_format)
    found.doubt = verdict.doubt
    return verdict.outlived


def lease_of(directory: ShareDirectory, record: records.Record) -> str | None:
    """The lease that a record tells of, if any, unless another file has taken the place of the one that was made under it. One that an interrupted
    task of ours has put there is no other one."""
    for file, mark in record.marks.items() if record.lease is not None else ():
        if not _is_there(directory, file):
            continue
        with directory.root.opened(file) as fd:
            status, number = os.fstat(fd), partial(generation, directory, fd)
            # Equal inode and length are not enough: a disk of somebody's own may well be as long as the one that it replaces.
            is_other = records.identity(record, file, status, number) == records.OTHER or (mark.generation and number() not in (0, mark.generation))
        if is_other and not (record.intent is not None and _replaces_by(record.intent, file, status.st_size)):
            return None
    return record.lease


def _replaces_by(intent: dict, file: str, length: int) -> bool:
    from . import unfinished

    return unfinished.replaces_by(intent, file, length)


def _is_there(directory: ShareDirectory, file: str) -> bool:
    try:
        os.stat(file, dir_fd=directory.root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def generation(directory: ShareDirectory, fd: int) -> int:
    """The inode generation of an opened file. It differs between files that had the same inode one after the other. 0 if unknown."""
    if not directory.share.local:
        return 0  # servers do not show it
    try:
        return int.from_bytes(fcntl.ioctl(fd, _GET_GENERATION, bytes(8))[:4], sys.byteorder)
    except OSError:
        return 0
