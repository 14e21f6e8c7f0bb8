# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What diffs show besides the volume before and after: content that goes back, and in a task about many volumes one line per change."""

from __future__ import annotations

import json
from typing import Sequence

from .. import model
from ..plan.plan import Plan

_MOST_REASONS = 20  # in one message


def content_goes_back(plan: Plan, snapshot: str) -> tuple[str, str] | None:
    """How a diff shows a revert: the content before and after it. None where nothing is discarded."""
    if plan.before is None or plan.after is None or not plan.changed:
        return None
    point = plan.before.point_file(snapshot)
    above = plan.before.chain[: plan.before.files.index(point)]
    taken = plan.before.snapshot(snapshot).created
    said = f"snapshot {snapshot}" + (f" of {taken}" if taken else "")
    if plan.before.size and all(image.empty for image in above):  # an overlay's own tables are nobody's data
        return f"as {said}, since which nothing was written", f"goes back to {said}"
    dropped = sum(image.allocated for image in above if not image.empty)
    about = f"about {model.size_text(dropped)}" if plan.before.size else "an unknown amount"
    return f"as written since {said}: {about}, to be dropped", f"goes back to {said}"


def one_line(found: dict) -> str:
    """A volume that came or went, for the diff of a task about many."""
    parent = f", on {found['parent']['volume']}@{found['parent']['snapshot']}" if found["parent"] else ""
    snapshots = f", snapshots {model.listed((one['name'] for one in found['snapshots']), 5)}" if found["snapshots"] else ""
    return f"volume {found['name']}: {found['format'] or 'format unknown'}, {_size(found['size'])}, {found['path']}{parent}{snapshots}"


_USUAL = {"mode": "0660", "preallocation": "off"}  # what a new volume has unless something else is asked for
_DERIVED = ("chain", "path", "format")  # what follows from snapshots that come and go


def lines(before: dict, after: dict, actions: Sequence[dict]) -> list[str] | None:
    """The changes of one volume, for the diff of a task about many; None where lines cannot show them.

    :param before: the volume as :func:`report.difference` has it, empty where it is not there; and so ``after``.
    :param actions: the steps, because owner and mode are no part of that.
    """
    if not before or not after:
        sign, found = ("+", after) if after else ("-", before)
        asked = [*_access(actions, _USUAL), *_details(found)] if after else []
        return [", ".join([f"{sign} {one_line(found)}", *asked])] if found else []
    told = _snapshots(before, after)
    own = [f"{key} {_value(before[key])} -> {_value(after[key])}" for key in ("description", "labels", "base_format") if before[key] != after[key]]
    if before["share"] != after["share"]:
        own.insert(0, f"is on {after['share']} now, and removed on {before['share']}")
    if before["size"] != after["size"]:
        own.append(f"{_size(before['size'])} -> {_size(after['size'])}")
    if before["parent"] != after["parent"] and before["parent"]:
        own.append(f"rests no longer on {before['parent']['volume']}")
    own += _access([action for action in actions if action["step"] == "set_attributes"], {})
    if "content" in before:
        told += [f"- content of {before['name']}: {before['content']}", f"+ content of {after['name']}: {after['content']}"]
    if not told and not own and any(before[key] != after[key] for key in _DERIVED):
        return None
    if own:
        told.append(f"~ volume {after['name']}: {', '.join(own)}")
    if before["path"] != after["path"] and told:
        told[0] += f", the active image is now {after['path']}"
    return told


def _snapshots(before: dict, after: dict) -> list[str]:
    old, new = ({one["name"]: one for one in found["snapshots"]} for found in (before, after))
    told = [", ".join([f"+ snapshot {after['name']}@{name}", *_details(one)]) for name, one in new.items() if name not in old]
    gone = [name for name in old if name not in new]
    for name in gone:
        told.append(f"- snapshot {before['name']}@{name}, {_what_became_of(name, gone, before, after)}")
    for name, one in new.items():
        keys = [key for key in ("description", "labels", "protected", "expires") if name in old and old[name][key] != one[key]]
        if keys:
            told.append(f"~ snapshot {after['name']}@{name}: " + ", ".join(f"{key} {_value(old[name][key])} -> {_value(one[key])}" for key in keys))
    return told


def _what_became_of(name: str, gone: Sequence[str], before: dict, after: dict) -> str:
    """Where the data of a deleted snapshot's overlay is: files whose points go become one."""
    if "content" in before:
        return "discarded"
    doomed = {one["file"] for one in before["snapshots"] if one["name"] in gone}
    files = [image["file"] for image in before["chain"]]
    own = next(one["file"] for one in before["snapshots"] if one["name"] == name)
    if own not in files:
        return "removed"
    top = bottom = files.index(own)
    while top and files[top - 1] in doomed:
        top -= 1
    while bottom < len(files) - 1 and files[bottom] in doomed:
        bottom += 1
    kept = {image["file"] for image in after["chain"]}
    return f"merged into {next((file for file in files[top : bottom + 1] if file in kept), 'the rest of its chain')}"


def _details(found: dict) -> list[str]:
    """What was asked for of a volume or a snapshot, besides its name."""
    told = [f"labels {_value(found['labels'])}"] if found["labels"] else []
    told += [_value(found["description"])] if found["description"] else []
    told += ["protected"] if found.get("protected") else []
    return told + ([f"expires {found['expires']}"] if found.get("expires") else [])


def _access(actions: Sequence[dict], usual: dict) -> list[str]:
    """What steps say of room and access, each once, but for what is usual."""
    words = {"preallocation": "preallocation", "mode": "mode", "uid": "owner", "gid": "group"}
    told = [f"{word} {action[key]}" for action in actions for key, word in words.items() if action.get(key) not in (None, usual.get(key))]
    return list(dict.fromkeys(told))


def _size(size: int | None) -> str:
    return "size unknown" if size is None else model.size_text(size).split(" (", 1)[0]


def _value(value: object) -> str:
    """A value as a line may show it: on one line, and not too long."""
    if isinstance(value, dict):
        pairs = [f"{name}={text}" for name, text in value.items()]
        return model.listed((pair if pair.isprintable() else json.dumps(pair) for pair in pairs), 5) or "none"
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 60 else value[:57] + "...", ensure_ascii=False)
    return json.dumps(value)
