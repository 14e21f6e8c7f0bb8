# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task marks on a share itself, once it is mounted: whether it is in maintenance."""
from __future__ import annotations

from functools import partial

from .. import errors
from ..mounts import planner, probe, resolve, steps
from ..store.files.directory import ShareDirectory
from ..store.metadata import maintenance


def check(params: dict, desired: planner.DesiredShare) -> None:
    """:raises InvalidParameter: a mark is asked for in a state in which the share need not be mounted."""
    if params.get("maintenance") is not None and desired.row.mount_type and desired.state not in planner.MOUNTED:
        problem = f"maintenance is a mark on the share, which state {desired.state} does not mount"
        raise errors.InvalidParameter(f"share {desired.name}", problem, "use state: mounted, or leave maintenance out")


def bring(params: dict, desired: planner.DesiredShare, changes: bool, check_mode: bool, diff: dict) -> tuple[steps.SetMaintenance, ...]:
    """Put the share into maintenance or end it, as ``params["maintenance"]`` says. Returns the step, if it is one.

    :param changes: the task mounts the share or makes its directory. Check mode then takes it for one without a mark.
    :param diff: gets the mark before and after. :raises StorageError: the share cannot be written to.
    """
    if desired.state not in planner.KEPT:
        return ()
    wanted = params["maintenance"]
    found = not (check_mode and changes) and probe.bounded(partial(maintenance.is_marked, desired.path), params["timeout"], f"share {desired.name}")
    diff["before"]["maintenance"], diff["after"]["maintenance"] = found, wanted
    if found == wanted:
        return ()
    if not check_mode:
        _write(params, desired, wanted)
    return (steps.SetMaintenance(desired.path, wanted),)


def _write(params: dict, desired: planner.DesiredShare, wanted: bool) -> None:
    share = resolve.find_share(desired.path, params["mount_base"], params["fstab"])
    try:
        with ShareDirectory(share) as directory:
            (maintenance.mark if wanted else maintenance.clear)(directory)
    except OSError as error:
        raise errors.from_os_error(error, f"share {desired.name}") from error
