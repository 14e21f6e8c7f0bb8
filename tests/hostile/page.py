# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of docs/hostile-content.md, made from the corpus. ``python tests/hostile/page.py`` writes them anew."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "hostile"

from hostile import leases, machines, seeds  # noqa: E402
from hostile.corpus import ATTACKS  # noqa: E402
from hostile.files import CLAIMING_QCOW2, RAW_CONTENT  # noqa: E402
from hostile.places import THINGS  # noqa: E402
from hostile.scene import Attack  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hostile-content.md"
BEGIN, END = "<!-- made from tests/hostile: begin -->", "<!-- made from tests/hostile: end -->"


def _told(attacks: list[Attack]) -> str:
    """The outcome of some attacks in words: the most frequent one, and the tasks that end otherwise."""
    found = [(task, code.replace("|", " or ")) for attack in attacks for task, code in attack.outcome.items()]
    counted = Counter(code for _task, code in found)
    usual = max(counted, key=lambda code: (counted[code], code))
    others: dict[str, list[str]] = {}
    for task, code in found:
        if code != usual and task not in others.setdefault(code, []):
            others[code].append(task)
    return "; ".join([_code(usual), *(f"{', '.join(tasks)}: {_code(code)}" for code, tasks in others.items())])


def _code(code: str) -> str:
    return " or ".join(part if part == "ok" else f"`{part}`" for part in code.split(" or "))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(*head: str) -> list[str]:
    return ["", _row(*head), "|" + "---|" * len(head)]


_TENANTS = (*leases.ATTACKS, *machines.ATTACKS, *seeds.ATTACKS)
_IN_OTHER_TABLES = {*THINGS, *RAW_CONTENT, *(file.name for file in CLAIMING_QCOW2)}
_FIRST = [one for one in ATTACKS if one not in _TENANTS]
_TOLD_ONCE = ("NAME, format unknown", "beside a volume", "image to import", "image to be written")
_ALL_ALIKE = "As images to import, all of them are `unsafe_image` or `image_invalid`. In the place of an image to be written, all are replaced."


def _images(refused: bool) -> list[str]:
    lines = _table("attack", "what", "known from", "outcome")
    for file in CLAIMING_QCOW2:
        if (file.code is not None) != refused:
            continue
        planted = [one for one in _FIRST if one.name == file.name and not (refused and one.where in _TOLD_ONCE)]
        lines.append(_row(file.name, file.what, file.origin, _told(planted)))
    return lines


def _raw() -> list[str]:
    lines = _table("content", "what", "known from", "outcome")
    for name, (what, origin, _content) in RAW_CONTENT.items():
        lines.append(_row(name, what, origin, _told([one for one in _FIRST if one.name == name])))
    return lines


def _things() -> list[str]:
    lines = _table("where", "what", "outcome")
    planted = [one for one in ATTACKS if one.name in THINGS]  # also in the places of leases
    for where in dict.fromkeys(one.where for one in planted):
        same: dict[str, list[str]] = {}
        for one in planted:
            if one.where == where:
                same.setdefault(_told([one]), []).append(one.name)
        lines += [_row(where, ", ".join(names), told) for told, names in same.items()]
    return lines


def _rest() -> list[str]:
    shown = {file.name for file in CLAIMING_QCOW2} | set(RAW_CONTENT) | set(THINGS)
    lines = _table("attack", "where", "what", "outcome")
    return lines + [_row(one.name, one.where, one.what, _told([one])) for one in ATTACKS if one.name not in shown and one not in _TENANTS]


def _tenants() -> list[str]:
    lines = _table("attack", "where", "what", "outcome")
    return lines + [_row(one.name, one.where, one.what, _told([one])) for one in _TENANTS if one.name not in _IN_OTHER_TABLES]


def tables() -> str:
    """Everything between the markers of the page."""
    tasks = sum(len(one.outcome) for one in ATTACKS)
    lines = [BEGIN, "", f"{len(ATTACKS)} attacks in their places, {tasks} tasks on them."]
    lines += ["", "### Refused by their headers", "", _ALL_ALIKE, *_images(True)]
    lines += ["", "### Sound headers over hostile tables", *_images(False)]
    lines += ["", "### Content of raw disks", *_raw()]
    lines += ["", "### Something else than a file", *_things()]
    lines += ["", "### Records, chains and names", *_rest()]
    lines += ["", "### Leases, machines and seeds", *_tenants(), "", END]
    return "\n".join(lines)


def _with_tables(page: str) -> str:
    return page[: page.index(BEGIN)] + tables() + page[page.index(END) + len(END) :]


if __name__ == "__main__":
    PAGE.write_text(_with_tables(PAGE.read_text()))
