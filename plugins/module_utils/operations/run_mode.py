# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change does to shares. :mod:`check_mode` has the same verbs, and only predicts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Collection, Sequence

from .. import errors, model
from ..apply.interrupted import Interrupted, forget_groups
from ..plan.plan import Plan
from ..store.volumes import chains, images
from . import report
from .candidates import Candidates, locate

if TYPE_CHECKING:
    from ..apply import engine
    from . import shapes, workspace

# What only changes need is imported where it is used.


class RunMode:
    """The verbs of a change that is made."""

    checks_only = False  # whether files may only be looked at

    def __init__(self, work: workspace.Workspace) -> None:
        self._work = work

    def finish(self, share: model.Share, interrupted: Interrupted) -> None:
        """End what an interrupted task left."""
        from .applying import finish

        finish(self._work, share, interrupted)

    def forget_groups(self, share: model.Share, name: str) -> tuple[str, ...]:
        """Remove the decisions on groups that no volume waits for any more. Returns as of :func:`interrupted.forget_groups`."""
        return forget_groups(self._work.directory(share), name)

    def located(self, candidates: Candidates, name: str) -> model.Share | None:
        """Where a volume is that was nowhere before the locks were taken."""
        return locate(candidates, name, self._work.directory)

    def observe(self, share: model.Share, name: str, said: str | None = None, _interrupted: Interrupted | None = None) -> model.Volume | None:
        """A volume as it stands, and whether it is in use, in one reading of its images.

        :param said: as of :func:`chains.observe`. :param _interrupted: what was left of it, which is ended.
        :raises StorageError: it cannot be read.
        """
        look = self._work.look(share, name)
        if look.observed is None or said is not None:
            look.observed = chains.observe(look.directory, name, said, partial(images.UseProbe, full=True), look=look)
        return look.observed.volume if look.observed else None

    def dependents(self, share: model.Share, volume: model.Volume, excluding: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
        """What rests on a volume, as :attr:`Volume.dependents`; read under the locks, before something is destroyed.

        :param excluding: files that go with the volume.
        :raises StorageError, OSError: the share cannot be read.
        """
        from .dependency_check import dependents_of

        found = dependents_of(self._work.directory(share), volume, self._work.options, excluding)
        self._work.not_counted[volume.name] = found.not_counted
        return found.dependents

    def without_itself(self, volume: model.Volume) -> model.Volume:
        """The volume without dependents of its own name."""
        return volume

    def apply(self, share: model.Share, plan: Plan, source: engine.CopySource | None = None) -> None:
        """Carry out a plan that changes something."""
        from .applying import apply

        apply(self._work, share, plan, source)

    def apply_together(self, share: model.Share, plans: Sequence[Plan]) -> None:
        """Take one snapshot of several volumes at one instant, all or none."""
        from .applying import apply_together

        apply_together(self._work, share, plans)

    def described(self, share: model.Share, volume: model.Volume) -> shapes.VolumeResult:
        """A volume as modules return it; whether it is used was asked when it was read."""
        look = self._work.look(share, volume.name)
        return report.volume(volume, share, look.observed.in_use) if look.observed else report.read_volume(look.directory, volume)

    def described_after(self, share: model.Share, plan: Plan, before: shapes.VolumeResult | None) -> shapes.VolumeResult | None:
        """The volume after its plan, as modules return it. :param before: the same before the plan."""
        if not plan.changed and plan.before is plan.after:
            return before  # it was looked at, at this very volume, under the lock
        if plan.after is None:
            return None
        volume = self.observe(share, plan.volume)
        return None if volume is None else self.described(share, replace(volume, dependents=plan.after.dependents))

    def volume_after(self, share: model.Share, planned: model.Volume) -> model.Volume:
        """The volume after a plan that was to make it ``planned``. :raises VolumeNotFound: it is not there."""
        observed = self.observe(share, planned.name)
        if observed is None:
            raise errors.VolumeNotFound(f"volume {planned.name}", "it went away while the task held its lock", "find out who removed its files")
        return replace(observed, dependents=planned.dependents)

    def still_there(self, _recovered: list) -> frozenset[str]:
        """Files that a recovery removes and that are there yet."""
        return frozenset()

    def promised(self, _share: model.Share, _name: str) -> int:
        """Bytes that a volume is going to take which is only predicted."""
        return 0
