# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Warnings about what a mount can do to data, or about where else a share is mounted. Pure."""
from __future__ import annotations

from . import options, planner, resolve, steps, tables, witnesses


def of_the_mount(
    desired: planner.DesiredShare, path: str | None, mounts: tuple[tables.Mount, ...], entries: tuple[tables.Entry, ...], done: list[steps.Step]
) -> list[str]:
    """The warnings of one share. :param path: the path that the task names. :param mounts: the kernel's table before the steps.

    :param entries: the lines of fstab. :param done: the steps that were done.
    """
    return _risks(desired) + _fallbacks(desired, done) + _elsewhere(desired, path, mounts, entries)


def _risks(desired: planner.DesiredShare) -> list[str]:
    if desired.state not in planner.KEPT:
        return []
    names = options.last_of_each(desired.row, desired.options)
    return [f"share {desired.name}: with {name}, {text}; leave {name} out" for name, text in desired.row.risks if name in names]


def _fallbacks(desired: planner.DesiredShare, done: list[steps.Step]) -> list[str]:
    """A version that was found here, and that the helper alone would not find."""
    return [
        f"share {desired.name}: it could be mounted with {step.fallback} only, which its helper does not find by itself; name it in opts, "
        "or it is not mounted at the next boot"
        for step in done
        if isinstance(step, steps.MountShare) and step.fallback
    ]


def _elsewhere(
    desired: planner.DesiredShare, path: str | None, mounts: tuple[tables.Mount, ...], entries: tuple[tables.Entry, ...]
) -> list[str]:
    """A share that stays mounted, because it is not mounted where it is to be taken away."""
    if desired.state not in ("unmounted", "absent") or path or desired.src is None or not desired.row.kernel_types:
        return []
    real = resolve.follow(desired.path, mounts)
    others = [mount.path for mount in mounts if mount.path != real and witnesses.is_mount_of(mount, desired.src, entries)]
    return [f"share {desired.name}: it stays mounted at {', '.join(dict.fromkeys(others))}; name that path to unmount it there"] if others else []
