# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks on many objects: how their items are run, and what they return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Hashable, Sequence

from . import changes, errors
from .operations import candidates
from .operations.bulk import runner
from .operations.options import end

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from .operations import transaction
    from .operations.options import Options

    Claims = Callable[[dict, candidates.Finder], dict[Hashable, str]]


def run_many(
    module: AnsibleModule,
    every: Sequence[dict],
    make_item: Callable[[dict, candidates.Finder], runner.Item],
    what: str,
    key: str,
    claims_of: Claims | None = None,
) -> None:
    """Run an item for each set of parameters, and end the task.

    :param key: the option that names an item. :param claims_of: what only one item of a task may be about.
    """
    how, finder = changes.options(module), candidates.Finder()
    refused = _named_twice(every, finder, claims_of) if claims_of else {}
    items = [_made(make_item, params, finder, number, key, refused.get(number)) for number, params in enumerate(every)]
    parallel = 1 if module.check_mode else module.params["parallel"] or runner.default_parallel()
    try:
        with changes.under_leases(how, every or [module.params], finder):
            outcomes = runner.run_all(items, parallel, how)
    finally:
        end(how)
    leave_many(module, [(item.name, item.told) for item in items], outcomes, what)


def _named_twice(every: Sequence[dict], finder: candidates.Finder, claims_of: Claims) -> dict[int, errors.StorageError]:
    """Items, by index, that contradict another item about the same object: it is not known which of them is meant."""
    subjects: list[dict[Hashable, str]] = []
    holders: dict[Hashable, list[int]] = {}
    for index, params in enumerate(every):
        try:
            subjects.append(claims_of(params, finder))
        except Exception:  # the item itself reports it
            subjects.append({})
        for claim in subjects[-1]:
            holders.setdefault(claim, []).append(index)
    found: dict[int, errors.StorageError] = {}
    for claim, indexes in holders.items():
        if any(every[index] != every[indexes[0]] for index in indexes[1:]):
            numbers = ", ".join(str(index + 1) for index in indexes[:20]) + (" and others" if len(indexes) > 20 else "")
            for index in indexes:
                problem, remedy = f"items {numbers} of the list want it differently", "name it once, with everything that it shall be"
                found[index] = errors.InvalidParameter(subjects[index][claim], problem, remedy)
    return found


def _made(
    make_item: Callable[[dict, candidates.Finder], runner.Item],
    params: dict,
    finder: candidates.Finder,
    number: int,
    key: str,
    refused: errors.StorageError | None,
) -> runner.Item:
    """An item; one that cannot even be prepared fails in its turn, and no other one with it."""
    place = f"item {number + 1}"
    if not params.get(key):
        return _failing(place, errors.InvalidParameter(place, f"option {key} is missing", "give it in the item"), number, {})
    try:
        item = make_item(params, finder)
    except Exception as error:
        return _failing(str(params.get("name") or params[key]), errors.as_storage_error(error, place), number, {})
    return item if refused is None else _failing(item.name, refused, number, item.told)


def _failing(name: str, error: errors.StorageError, number: int, told: dict) -> runner.Item:
    def fail(_options: Options) -> transaction.Outcome:
        raise error

    return runner.Item(name, frozenset([f"item {number}"]), fail, told=told)


def _in_short(results: Sequence[dict]) -> dict:
    """``results`` and ``volumes`` for tasks about so many objects that a reader does not look at each."""
    kept = ("name", "share", "path", "format", "size", "allocated")
    return {
        "results": [{key: value for key, value in one.items() if key not in ("actions", "retention", "volume")} for one in results],
        "volumes": [{key: one["volume"][key] for key in kept} for one in results if one.get("volume")],
    }


def naming(volume: str, *snapshots: str) -> dict:
    """The keys by which a result and a diff name what they are about."""
    return {"volume_name": volume, **({"snapshot": ", ".join(snapshots)} if snapshots else {})}


def _names(told: dict) -> list[str]:
    return [told[key] for key in ("volume_name", "snapshot") if key in told]


def _label(told: dict) -> str:
    return "@".join(_names(told))


def _shown(told: dict, one: dict, diff: dict) -> dict | None:
    """The diff of one object of many: a line for each thing that comes, goes or changes; in full where lines cannot show it."""
    from .operations import diffs

    header = {"before_header": _label(told), "after_header": _label(told), **told}
    lines = diffs.lines(diff["before"], diff["after"], one["actions"])
    if lines is None:
        return {**header, **diff}
    return {**header, "prepared": "".join(f"{line}\n" for line in lines)} if lines else None


def leave_many(module: AnsibleModule, names: Sequence[tuple[str, dict]], outcomes: Sequence, what: str) -> None:
    """End a bulk task: ``results`` in input order; it fails if any of them did.

    :param names: for each outcome the name of its result, and how it is named in full (see :func:`naming`).
    """
    results, diffs = [], []
    for (name, told), outcome in zip(names, outcomes):
        one = changes.failure(outcome) if isinstance(outcome, errors.StorageError) else changes.result(outcome)
        if isinstance(outcome, errors.StorageError):
            changes.log_failure(told.get("volume_name", name), one)
        diff = one.pop("diff", None)
        shown = _shown(told, one, diff) if diff and one["changed"] and module._diff else None
        if shown:
            diffs.append(shown)
        results.append({"name": name, **told, "failed": isinstance(outcome, errors.StorageError), **one})
    everything = {
        "changed": any(one["changed"] for one in results),
        "results": results,
        "volumes": [one["volume"] for one in results if one.get("volume")],
    }
    if not module.params["return_detail"]:
        everything = {**everything, **_in_short(results)}
    if module._diff:
        everything["diff"] = diffs
    changes.add_leases(everything)
    everything.update(changes.logged(module))
    failed = [(_names(told) or [name], error) for (name, told), error in zip(names, outcomes) if isinstance(error, errors.StorageError)]
    if failed:
        from .together import failure_of_all

        module.fail_json(**failure_of_all(what, len(results), failed), **everything)
    module.exit_json(**everything)
