# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks on many objects: how their items are run, and what they return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Iterable, Sequence

from .changes import failure, logged, options, result
from .errors import StorageError, understood
from .operations import bulk
from .operations.candidates import Finder

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from .operations.transaction import Options, Outcome


def run_many(module: AnsibleModule, every: Iterable[dict], make_item: Callable[[dict, Finder], bulk.Item], what: str) -> None:
    """Run an item for each set of parameters, and end the task."""
    how, finder = options(module), Finder()
    items = [_made(make_item, params, finder, number) for number, params in enumerate(every)]
    parallel = 1 if module.check_mode else module.params["parallel"] or bulk.default_parallel()
    leave_many(module, [(item.name, item.told) for item in items], bulk.run_all(items, parallel, how), what)


def _made(make_item: Callable[[dict, Finder], bulk.Item], params: dict, finder: Finder, number: int) -> bulk.Item:
    """An item; one that cannot even be prepared fails in its turn, and no other one with it."""
    try:
        return make_item(params, finder)
    except Exception as error:
        failed = understood(error, f"item {number + 1}")

        def fail(_options: Options) -> Outcome:
            raise failed

        return bulk.Item(str(params.get("name") or params.get("volume") or number + 1), frozenset([f"item {number}"]), fail)


def _in_short(results: Sequence[dict]) -> dict:
    """``results`` and ``volumes`` for tasks about so many objects that nobody looks at each."""
    kept = ("name", "share", "path", "format", "size", "allocated")
    return {
        "results": [{key: value for key, value in one.items() if key not in ("actions", "retention", "volume")} for one in results],
        "volumes": [{key: one["volume"][key] for key in kept} for one in results if one.get("volume")],
    }


def naming(volume: str, *snapshots: str) -> dict:
    """The keys by which a result and a diff name what they are about."""
    return {"volume_name": volume, **({"snapshot": ", ".join(snapshots)} if snapshots else {})}


def _label(told: dict) -> str:
    return "@".join(told[key] for key in ("volume_name", "snapshot") if key in told)


def _shown(told: dict, diff: dict) -> dict:
    """The diff of one object, which for a volume that comes or goes is one line."""
    from .operations import telling

    header = {"before_header": _label(told), "after_header": _label(told), **told}
    for sign, there, other in (("+", "after", "before"), ("-", "before", "after")):
        if diff[there] and not diff[other]:
            return {**header, "prepared": f"{sign} {telling.one_line(diff[there])}\n"}
    return {**header, **diff}


def leave_many(module: AnsibleModule, names: Sequence[tuple[str, dict]], outcomes: Sequence, what: str) -> None:
    """End a bulk task: ``results`` in input order; it fails if any of them did.

    :param names: for each outcome the name of its result, and how it is named in full (see :func:`naming`).
    """
    results, diffs = [], []
    for (name, told), outcome in zip(names, outcomes):
        one = failure(outcome) if isinstance(outcome, StorageError) else result(outcome)
        diff = one.pop("diff", None)
        if diff and diff["before"] != diff["after"]:
            diffs.append(_shown(told, diff))
        results.append({"name": name, **told, "failed": isinstance(outcome, StorageError), **one})
    everything = {
        "changed": any(one["changed"] for one in results),
        "results": results,
        "volumes": [one["volume"] for one in results if one.get("volume")],
    }
    if not module.params["return_detail"]:
        everything = {**everything, **_in_short(results)}
    if module._diff:
        everything["diff"] = diffs
    everything.update(logged(module))
    failed = [one for one in results if one["failed"]]
    if failed:
        from .operations import telling

        said = [(_label(one), outcome) for one, outcome in zip(results, outcomes) if isinstance(outcome, StorageError)]
        module.fail_json(msg=f"{len(failed)} of {len(results)} {what} failed. {telling.reasons(said)}", error_code=failed[0]["error_code"], **everything)
    module.exit_json(**everything)
