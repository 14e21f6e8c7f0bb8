# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a domain that runs can do the steps of a plan. Asked before anything is changed, and in check mode."""

from __future__ import annotations

from ...plan import steps
from ...plan.plan import Plan
from ...store import qcow2
from .. import merges
from . import definition, domain

_STOP = "shut the domain off, and run the task again"


def require_possible(plan: Plan, machine: domain.VolumeDomain, disk: definition.Disk, top: str) -> None:
    """:param top: the file that the guest writes to. :raises InUse: a step cannot be done while the domain runs."""
    for step in plan.steps:
        if isinstance(step, steps.CreateOverlay):
            _require_size(machine, disk)
            machine.path_like(disk.images[0], step.file)
        elif isinstance(step, steps.Grow):
            _require_growable(machine, disk, step)
        elif isinstance(step, steps.Repoint):
            _require_no_healing(machine, step)
    for write in merges.writes(plan, machine.volume, top):
        _require_committable(machine, disk, write.into, write.size)
        machine.require_no_other([write.into], writing=False)  # QEMU would refuse it, later
        if machine.volume.image(write.into).format == "qcow2" and not _is_begun(machine, disk):
            merges.require_settled(machine.directory, write.into)
    merges.require_own_files(plan, machine.directory)


def _is_begun(machine: domain.VolumeDomain, disk: definition.Disk) -> bool:
    """Whether an interrupted task's merge is under way. It began on an image that was in order."""
    return disk.mirror is not None or machine.domain.job(disk.target) is not None


def _require_size(machine: domain.VolumeDomain, disk: definition.Disk) -> None:
    capacity = machine.domain.capacity(disk.target)
    if capacity != machine.volume.size:
        machine.refuse(f"the domain's disk has {capacity} bytes, and the file on the share {machine.volume.size}", _STOP)


def _require_growable(machine: domain.VolumeDomain, disk: definition.Disk, step: steps.Grow) -> None:
    capacity = machine.domain.capacity(disk.target)
    if capacity > step.size:
        machine.refuse(f"the domain's disk has {capacity} bytes already", "ask for that size")
    _require_size(machine, disk)
    if step.format != "qcow2" and disk.direct and step.size % merges.ALIGNMENT:
        machine.refuse(
            f"it would have {step.size} bytes, and the domain has its raw image open with cache=none", f"ask for a multiple of {merges.ALIGNMENT} bytes"
        )
    if step.format == "qcow2" and merges.has_tail(machine.directory, step.file):
        machine.refuse(f"{step.file} holds old data behind its end, which would become visible", _STOP)


def _require_no_healing(machine: domain.VolumeDomain, step: steps.Repoint) -> None:
    """libvirt has no verb that writes a header alone."""
    if step.file not in machine.volume.files or machine.volume.image(step.file).backing_file != step.backing_file:
        return  # a merge changes it
    with machine.directory.root.opened(step.file) as fd:
        header = qcow2.read_header(fd)
    if (header.backing_file, header.backing_format) != (step.backing_file, step.backing_format):
        machine.refuse(f"the header of {step.file} has to be mended, which libvirt cannot do while the domain runs", _STOP)


def _require_committable(machine: domain.VolumeDomain, disk: definition.Disk, file: str, size: int) -> None:
    into, status = machine.volume.image(file), machine.directory.root.status(file)
    if into.format == "qcow2" and into.size < size and merges.has_tail(machine.directory, file):
        machine.refuse(f"{file} holds old data behind its end, which would become visible", _STOP)
    if into.format != "qcow2" and disk.direct and any(end % merges.ALIGNMENT for end in (size, status.st_size if status is not None else 0)):
        machine.refuse(f"the domain has the raw image {file} open with cache=none, and its size is no multiple of {merges.ALIGNMENT} bytes", _STOP)
