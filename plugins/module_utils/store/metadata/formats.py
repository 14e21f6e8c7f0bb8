# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a record is worth for a file that may be another one than the recorded.

There is danger on both sides. A raw disk stays raw whatever its guest writes, also when a restored share has given it another
inode. And a record that outlived its file must not say what the new file of that name is. So content never decides a format: it
can agree with the record, and where it does not the user is asked.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from ...errors import ChainBroken
from ...model import info_name
from ..files.directory import ShareDirectory
from ..volumes import appearance, ownership
from ..volumes.images import WORST_DAY
from . import records

if TYPE_CHECKING:
    from ..volumes.chains import Findings

_GET_GENERATION = 2 << 30 | struct.calcsize("l") << 16 | ord("v") << 8 | 1  # FS_IOC_GETVERSION of linux/fs.h
QCOW2 = "a qcow2 image"  # as :func:`appearance.looks_like` tells it


class Verdict(NamedTuple):
    """The format of a file, None where the user has to say it, and why (``doubt``).

    ``outlived``: the record is of another file, so nothing in it counts. ``unmarked``: it counts, and has to learn which file this is.
    """

    format: str | None
    outlived: bool = False
    unmarked: bool = False
    doubt: str | None = None


def decide(recorded: str, above: str | None, overlay: bool, identity: str, looks: str | None, said: str | None) -> Verdict:
    """The format of a file of which a record speaks.

    :param recorded: what the record says. :param above: what the header above says, which is as good as a record.
    :param overlay: whether ``.info`` calls it an overlay, which is always qcow2.
    :param identity: what :func:`records.identity` found. :param looks: what the content looks like, None for nothing known.
    :param said: the format that the user says.
    """
    if above is not None and above != recorded:
        if identity == records.OTHER and (above == "raw" or said == above):
            return Verdict(above, outlived=True)
        return Verdict(None, doubt=f"is recorded as {recorded}, but the header above calls it {above}")
    if above is not None:
        return Verdict(recorded)
    return _of_raw(identity, looks, said) if recorded == "raw" else _of_qcow2(overlay, identity, looks, said)


def _of_raw(identity: str, looks: str | None, said: str | None) -> Verdict:
    if identity != records.OTHER:
        return Verdict("raw")
    if looks is None or said == "raw":
        return Verdict("raw", unmarked=True)  # restored, or exchanged for another disk
    if said == "qcow2" and looks == QCOW2:
        return Verdict("qcow2", outlived=True)
    return Verdict(None, doubt=f"is not certain (the record of the volume says raw, but of another file, and this one looks like {looks})")


def _of_qcow2(overlay: bool, identity: str, looks: str | None, said: str | None) -> Verdict:
    if looks == QCOW2 or overlay or identity == records.SAME:
        return Verdict("qcow2")  # if its header is damaged, who reads it will say so
    if said == "raw":
        return Verdict("raw", outlived=True)
    if identity == records.OTHER:
        return Verdict(None, doubt="is not certain (the record of the volume says qcow2, but of another file, and this one has no such header)")
    return Verdict("qcow2")


def without_overlays(identity: str, said: str | None) -> Verdict:
    """A base file without ``.info``, of whose recorded overlays none is left: a new one only where it is another file.

    It may as well be the restored base of a volume whose overlays are missing, so the user has to say that it is a disk by itself.
    """
    if identity != records.OTHER:
        return Verdict(None)
    why = "is not certain (the record of the volume tells of snapshots that are gone, and of another file)"
    return Verdict(said, outlived=True, doubt=None if said else why)


def judge(
    directory: ShareDirectory, name: str, file: str, fd: int, record: records.Record, above: str | None, overlay: bool, said: str | None, found: Findings
) -> str | None:
    """The format of an opened file of volume ``name`` as :func:`decide` has it, and what that says of the record into ``found``.

    :raises ChainBroken: the record and the header above contradict each other.
    """
    identity = records.identity(record, file, os.fstat(fd), lambda: generation(directory, fd))
    verdict = decide(record.formats[file], above, overlay, identity, appearance.looks_like(fd), said)
    if above is not None and verdict.format is None:
        raise ChainBroken(f"volume {name}", f"{file} {verdict.doubt}", WORST_DAY)
    found.outlived |= verdict.outlived
    found.unmarked |= verdict.unmarked
    found.doubt = verdict.doubt or found.doubt
    return verdict.format


def is_new_without_overlays(directory: ShareDirectory, name: str, record: records.Record, said: str | None, found: Findings) -> bool:
    """Whether only the record tells of snapshots, while ``name`` is another file than the recorded and no overlay is left."""
    others = [info_name(name), *(file for file in record.formats if file != name)]
    if record.intent is not None or any(_is_there(directory, file) for file in others) or ownership.overlays_named_after(directory, name):
        return False
    if not _is_there(directory, name):
        return False
    with directory.root.opened(name) as fd:
        identity = records.identity(record, name, os.fstat(fd), lambda: generation(directory, fd))
    verdict = without_overlays(identity, said)
    found.doubt = verdict.doubt
    return verdict.outlived


def _is_there(directory: ShareDirectory, file: str) -> bool:
    try:
        os.stat(file, dir_fd=directory.root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def generation(directory: ShareDirectory, fd: int) -> int:
    """What a file system on a disk of this host tells files apart by that had the same inode one after the other; 0 where it does not."""
    if not directory.share.local:
        return 0  # a server does not tell
    try:
        return int.from_bytes(fcntl.ioctl(fd, _GET_GENERATION, bytes(8))[:4], sys.byteorder)
    except OSError:
        return 0
