# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases: who has a name on a share, until when, and which volumes go with it. Nothing here opens a file or asks for the time.

A lease begins to run out when its file is written, by the clock of the share: the time of that write and ``ttl`` say when it ends. So
hosts need not agree on the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import errors, model
from ..lease import LONGEST_OWNER, MOST_NAMES, Lease
from . import retention

_LOST = "do not go on with what it stood for; make that anew under a new lease"


@dataclass(frozen=True)
class Asked:
    """What a task asks for. Where labels, volumes or uses are None, they stay as they are.

    :ivar id: the lease must be this one (None: any of the owner's). :ivar renews_only: it is not taken where it is not there.
    """

    name: str
    owner: str
    ttl: int | None
    id: str | None = None
    renews_only: bool = False
    labels: dict | None = None
    volumes: tuple[str, ...] | None = None
    uses: tuple[str, ...] | None = None


def needs_time(lease: Lease | None, asked: Asked) -> bool:
    """Whether the time of the share decides what becomes of it."""
    return lease is not None and lease.owner != asked.owner and asked.id is None and lease.collector is None


def held(lease: Lease | None, asked: Asked, at: float, new_id: str, left: tuple[str, ...], subject: str) -> Lease:
    """The lease that is to be written, so that ``asked.owner`` holds it. It is renewed if its id stays.

    :param lease: what is there. :param at: the time of the share, if :func:`needs_time`. :param left: its volumes that are still there.
    :raises LeaseHeld: somebody else has it. :raises LeaseLost: it was the task's, and is not any more. :raises InvalidParameter: too many names.
    """
    if max(len(asked.volumes or ()), len(asked.uses or ())) > MOST_NAMES:
        raise errors.InvalidParameter(subject, f"a lease lists at most {MOST_NAMES} names", "take several leases")
    if lease is None:
        if asked.renews_only or asked.id is not None:
            raise _gone(subject)
        return _new(asked, new_id)
    is_own = lease.owner == asked.owner
    if asked.id is not None and (lease.id != asked.id or not is_own):
        raise _taken(lease, subject)
    if lease.collector is not None:
        raise _collected(lease, subject) if is_own else errors.LeaseHeld(subject, _who_collects(lease), _wait_for(left))
    if is_own:
        return _renewed(lease, asked)
    if asked.renews_only:
        raise _taken(lease, subject)
    if not lease.is_over(at):
        raise errors.LeaseHeld(subject, _who_holds(lease), "wait, or take another name")
    if left:
        problem = f"that of {lease.owner} ended at {model.time_text(lease.ends)}, and its volumes are still there: {model.listed(left)}"
        raise errors.LeaseHeld(subject, problem, "remove what is left of it (state: collected), or take another name")
    return _new(asked, new_id)


def require_held(lease: Lease | None, owner: str, identity: str | None, subject: str) -> Lease:
    """The lease under which a task of this owner may work. :raises LeaseLost: it is another one by now, or none, or somebody collects it."""
    if lease is None:
        raise _gone(subject)
    if (lease.owner, lease.id) != (owner, identity):
        raise _taken(lease, subject)
    if lease.collector is not None:
        raise _collected(lease, subject)
    return lease


def _gone(subject: str) -> errors.LeaseLost:
    return errors.LeaseLost(subject, "it is gone: it ran out and was collected, or it was released", _LOST)


def _taken(lease: Lease, subject: str) -> errors.LeaseLost:
    return errors.LeaseLost(subject, f"{lease.owner} has it now, since {model.time_text(lease.acquired)}", _LOST)


def _collected(lease: Lease, subject: str) -> errors.LeaseLost:
    return errors.LeaseLost(subject, _who_collects(lease), _LOST)


def _who_collects(lease: Lease) -> str:
    return f"it ran out, and {lease.collector} removes its volumes"


def _who_holds(lease: Lease) -> str:
    end = model.time_text(lease.ends)
    return f"{lease.owner} holds it {f'until {end}' if end is not None else 'without an end'}"


def _wait_for(left: tuple[str, ...]) -> str:
    return f"wait until nobody uses them ({model.listed(left)}), and collect again" if left else "run the task again"


def _new(asked: Asked, new_id: str) -> Lease:
    volumes, uses = asked.volumes or (), asked.uses or ()
    return Lease(asked.name, new_id, asked.owner, asked.ttl, 0.0, 0.0, dict(asked.labels or {}), volumes, uses)


def _renewed(lease: Lease, asked: Asked) -> Lease:
    return replace(
        lease,
        ttl=asked.ttl,
        labels=lease.labels if asked.labels is None else asked.labels,
        volumes=lease.volumes if asked.volumes is None else asked.volumes,
        uses=lease.uses if asked.uses is None else asked.uses,
    )


def is_same(one: Lease | None, other: Lease) -> bool:
    """Whether a renewal changes nothing but the end."""
    return one is not None and (one.id, one.labels, one.volumes, one.uses) == (other.id, other.labels, other.volumes, other.uses)


def dropped(lease: Lease | None, after: Lease) -> tuple[str, ...]:
    """Names that the lease does not list any more."""
    return () if lease is None else tuple(name for name in lease.volumes if name not in after.volumes)


def require_own(lease: Lease, asked: Asked, subject: str) -> None:
    """Before it is released. :raises LeaseLost: it is another one by now. :raises LeaseHeld: somebody else has it."""
    if lease.owner == asked.owner and asked.id in (None, lease.id):
        return
    raise _taken(lease, subject) if asked.id is not None else errors.LeaseHeld(subject, _who_holds(lease), "only its owner releases it")


def still_there(subject: str, left: tuple[str, ...]) -> errors.Conflict:
    """The error for volumes that would be nobody's."""
    return errors.Conflict(subject, f"volumes that were made under it are still there: {model.listed(left)}", "remove them first, or say cascade: true")


def parse_ttl(value: object, subject: str) -> int:
    """Seconds from a duration, or 0. :raises InvalidParameter: it is neither."""
    return 0 if str(value).strip() == "0" else retention.parse_duration(value, subject)


def check_owner(owner: str) -> str:
    """Return the name of an owner. :raises InvalidParameter: it cannot be shown, or is too long."""
    if not owner.strip() or not owner.isprintable() or len(owner) > LONGEST_OWNER:
        raise errors.InvalidParameter("option owner", f"{owner[:40]!r} is no name", f"give up to {LONGEST_OWNER} letters, such as the number of a job")
    return owner
