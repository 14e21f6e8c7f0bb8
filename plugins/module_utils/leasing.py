# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules do about leases: those that are about one, and those that work under one, which may take it first.

The documentation of these options is in remotefs_lease. Imported late by those that work under one.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

from . import arguments, errors

if TYPE_CHECKING:
    from . import model
    from .operations import candidates
    from .operations.leases import Collected, CollectRequest, Done
    from .operations.options import Options
    from .plan.leases import Asked

LEASE = {
    "name": {"type": "str"},
    "share": arguments.STORE["share"],
    "mount_base": arguments.STORE["mount_base"],
    "owner": {"type": "str"},
    "ttl": {"type": "str", "default": "2h"},
    "id": {"type": "str"},
    "renew_only": {"type": "bool", "default": False},
    "volumes": {"type": "list", "elements": "str"},
    "uses": {"type": "list", "elements": "str"},
    "labels": {"type": "dict"},
    "state": {"type": "str", "choices": ["held", "released", "collected"], "default": "held"},
    "cascade": {"type": "bool", "default": False},
    "collect": {"type": "bool", "default": False},
    "grace": {"type": "str", "default": "15m"},
    "golden_keep": {"type": "int"},
    "stop_machines": {"type": "bool", "default": False},
    "run_dir": {"type": "path", "default": "/run/remotefs"},
}


def run(params: dict, options: Options, finder: candidates.Finder) -> dict:
    """Bring one lease to what its parameters say, or collect those of a share. Returns what the module does. :raises StorageError: it cannot be."""
    from .changes import require
    from .operations import leases
    from .operations.bulk.runner import default_parallel
    from .operations.lease_holding import require_one

    require(params, "share", *(("name", "owner") if params["state"] != "collected" else ()))
    found, parallel = finder.find(params["share"], params["mount_base"]), params["parallel"] or default_parallel()
    share = require_one(found, options)
    if share in found.missing:
        return _foretold_anew(params, share, parallel, options)
    if params["state"] == "collected":
        return _told_collected(leases.collect(_collecting(params, share, parallel), options))
    request = leases.LeaseRequest(share, _asked(params), params["cascade"], parallel, params["run_dir"] if params["stop_machines"] else None)
    if params["state"] == "released":
        return _told(leases.release(request, options), share, "release_lease")
    first = _told_collected(leases.collect(_collecting(params, share, parallel), options)) if params["collect"] else None
    told = _told(leases.hold(request, options), share, "change_lease")
    return told if first is None else {**first, **told, "changed": first["changed"] or told["changed"], "actions": first["actions"] + told["actions"]}


def _foretold_anew(params: dict, share: model.Share, parallel: int, options: Options) -> dict:
    """What check mode says of a share that an earlier task is going to mount: there is no lease yet. What is asked for is checked all the same."""
    from .operations import leases

    collected = _told_collected(leases.Collected())
    if params["state"] == "collected" or params["collect"]:
        _collecting(params, share, parallel)
    if params["state"] == "collected":
        return collected
    if params["state"] == "released":
        _asked(params)
        return _told(leases.Done(None, None, False), share, "release_lease")
    told = _told(leases.foretold_anew(share, _asked(params), options), share, "change_lease")
    return {**collected, **told} if params["collect"] else told


def _asked(params: dict) -> Asked:
    from .model import check_volume_name
    from .plan.desired import label_texts
    from .plan.leases import Asked, check_owner, parse_ttl

    names = {key: None if params[key] is None else tuple(dict.fromkeys(check_volume_name(name) for name in params[key])) for key in ("volumes", "uses")}
    labels = None if params["labels"] is None else label_texts(params["labels"])
    ttl = parse_ttl(params["ttl"], "option ttl")
    return Asked(check_volume_name(params["name"]), check_owner(params["owner"]), ttl or None, params["id"], params["renew_only"], labels, **names)


def _collecting(params: dict, share: model.Share, parallel: int) -> CollectRequest:
    from .operations.leases import CollectRequest
    from .plan.leases import parse_ttl

    if params["golden_keep"] is not None and params["golden_keep"] < 0:
        raise errors.InvalidParameter("option golden_keep", f"{params['golden_keep']} is negative", "give how many stay, or leave it out")
    spared = (params["name"], params["owner"]) if params["state"] == "held" else None
    return CollectRequest(share, parse_ttl(params["grace"], "option grace"), params["golden_keep"], parallel, spared, params["run_dir"])


def _told(done: Done, share: model.Share, step: str) -> dict:
    from .operations.leases import describe

    before, after = describe(done.before, share), describe(done.after, share, done.renewed)
    name = (after or before or {}).get("name")
    step = "take_lease" if after is not None and not done.renewed else step
    return {
        "changed": done.changed,
        "renewed": done.renewed,
        "lease": after,
        "actions": [*({"step": "remove", "volume": one} for one in done.removed), *([{"step": step, "lease": name}] if done.changed else [])],
        "diff": {"before": _lasting(before), "after": _lasting(after)},
    }


def _lasting(told: dict | None) -> dict:
    """What a diff shows: not what every renewal changes."""
    return {key: told[key] for key in ("name", "share", "owner", "labels", "volumes", "uses")} if told else {}


def _told_collected(done: Collected) -> dict:
    steps = [*({"step": "remove", "volume": name} for name in done.volumes), *({"step": "collect_lease", "lease": name} for name in done.leases)]
    return {
        "changed": done.changed,
        "actions": steps,
        "collected": {"leases": list(done.leases), "volumes": list(done.volumes)},
        "left": list(done.skipped),
        "diff": {"before": {"leases": list(done.leases), "volumes": list(done.volumes)}, "after": {}} if done.changed else {"before": {}, "after": {}},
    }


# -- under a lease that the task takes first -------------------------------------------------------------------------------


@contextmanager
def working_under(wanted: Sequence[dict], options: Options, finder: candidates.Finder, tell: Callable[[dict], None]) -> Iterator[None]:
    """A context in which the task works under the leases of these parameters. One that is given by its options, with ``state: held``, is taken
    or renewed first. From then on the parameters have the lease itself.

    :param tell: takes what is to be returned of each lease that was taken. :raises StorageError: one cannot be had.
    """
    from .operations import lease_holding

    for params in wanted:
        if "state" in params["lease"]:  # what remotefs_lease returns has none
            told = run(_checked(params), options, finder)
            tell(told)
            params["lease"].clear()  # in place: the items of a task have the same
            params["lease"].update(told["lease"])
    given = [(params["lease"], finder.find(params["share"], params["mount_base"])) for params in wanted]
    with lease_holding.holding(given, options):
        yield


def add(result: dict, taken: Sequence[dict]) -> None:
    """Add to a result what was done about leases that the task took: the last one, what was collected, and whether that was a change."""
    changed = any(one["changed"] for one in taken)
    kept = {key: taken[-1][key] for key in ("lease", "renewed", "collected", "left") if key in taken[-1]}
    result.update(kept, lease_changed=changed, changed=result["changed"] or changed)


def _checked(params: dict) -> dict:
    """The options of the lease, with their defaults. :raises InvalidParameter: they are none."""
    from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

    from .operations.bulk.runner import default_parallel

    given = params["lease"]
    if given["state"] != "held":
        raise errors.InvalidParameter("option lease", f"its state is {given['state']!r}", "give state: held, or what remotefs_lease returns")
    twice = sorted({"share", "mount_base"}.intersection(given))
    if twice:
        raise errors.InvalidParameter("option lease", f"it has {twice[0]}, which the task says", "leave it out")
    result = ArgumentSpecValidator(LEASE).validate({**given, "share": params["share"], "mount_base": params["mount_base"]})
    if result.error_messages:
        raise errors.InvalidParameter("option lease", "; ".join(result.error_messages), "see the options of remotefs_lease")
    return {**result.validated_parameters, "parallel": params.get("parallel") or default_parallel()}
