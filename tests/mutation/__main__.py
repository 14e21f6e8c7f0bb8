# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m mutation [ROOM...]``: all mutants of the rooms that are named (``plan/merge.py``), or a sample of those of all rooms.

Ends with the figure. Fails if a mutant survived that survivors.toml does not explain, in a room of which all survivors are explained
(``EXPLAINED`` in rooms.py); in the others a survivor is told only. A sample can be repeated: its seed and its number of mutants are printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from random import Random
from typing import Collection, Iterator

import tomllib
from sessions import tree

from . import mutants, rooms
from .copies import Copies, Failing, Tried

SURVIVORS = Path(__file__).with_name("survivors.toml")
CODE = tree.CHECKOUT / "plugins" / "module_utils"


def main() -> int:
    options = _options()
    chosen = options.rooms or list(rooms.ROOMS)
    found = [mutant for room in chosen for mutant in mutants.of_file(room, CODE / room)]
    sample = not options.rooms or options.count is not None
    if sample:
        Random(options.seed).shuffle(found)
    found = found[: options.count]
    print(f"{len(found)} mutants of {len(chosen)} rooms" + (f" in the order of --seed {options.seed}" if sample else ""), flush=True)
    explained = explanations()
    gone = outdated(explained)
    for room, where, was, _becomes in gone:
        print(f"survivors.toml explains what is no mutant of the code any more: {room}, {where}: {was}", flush=True)
    tried: list[Tried] = []
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        for one in _try_all(found, Copies(Path(scratch), options.jobs), options):
            tried.append(one)
            if one.outcome == "survived":
                _show(one, explained.get(one.key))
            if options.verbose:
                print(f"  {one.outcome:9} {one.mutant.room}:{one.mutant.line} {one.mutant.operator.__name__}", flush=True)
    unexplained = [one for one in tried if one.outcome == "survived" and one.key not in explained]
    _sum_up(tried, len(unexplained), options.seed if sample else None)
    failing = [one for one in unexplained if one.mutant.room in rooms.EXPLAINED]
    return 1 if failing or not tried or gone else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mutation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help="a file below plugins/module_utils; without one: a sample of those in rooms.py")
    parser.add_argument("--seed", type=int, default=datetime.now(timezone.utc).toordinal(), help="of the sample's order; it changes with the day")
    parser.add_argument("--count", type=int, help="so many mutants at most")
    parser.add_argument("--minutes", type=float, help="no new mutant is begun after so many")
    parser.add_argument("--jobs", type=int, default=2, help="so many mutants at a time")
    parser.add_argument("--verbose", action="store_true", help="a line for each mutant")
    return parser.parse_args()


def explanations() -> dict[tuple[str, str, str, str], str]:
    """Why mutants survive, by what they are called. Several of one function may share a reason."""
    told = tomllib.loads(SURVIVORS.read_text(encoding="utf-8"))["survivor"]
    return {(one["room"], one["where"], was, becomes): f"{one['kind']}: {one['why']}" for one in told for was, becomes in one["mutants"]}


def outdated(explained: Collection[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """Entries about what is no mutant any more, because the function or its lines are others now."""
    found = set()
    for room in {key[0] for key in explained}:
        source, functions = (CODE / room).read_text(encoding="utf-8"), {key[1] for key in explained if key[0] == room}
        for mutant in mutants.of_file(room, CODE / room):
            if mutant.where in functions:
                found.add((room, mutant.where, *mutants.changed_lines(source, mutant.source(source))))
    return [key for key in explained if key not in found]


def _try_all(found: list[mutants.Mutant], copies: Copies, options: argparse.Namespace) -> Iterator[Tried]:
    ends = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    for tests in dict.fromkeys(rooms.tests_of(mutant.room) for mutant in found):
        seconds = copies.measure(tests)
        print(f"  {seconds:.0f} s without a mutant: {' '.join(tests)}", flush=True)

    def try_one(mutant: mutants.Mutant) -> Tried | None:
        return copies.try_mutant(mutant, rooms.tests_of(mutant.room)) if time.monotonic() < ends else None

    with ThreadPoolExecutor(options.jobs) as pool:
        yield from filter(None, pool.map(try_one, found))


def _show(one: Tried, why: str | None) -> None:
    print(f"survived: {one.mutant.room}:{one.mutant.line} in {one.mutant.where}\n  - {one.was}\n  + {one.becomes}\n  {why or 'NOT EXPLAINED'}", flush=True)


def _sum_up(tried: list[Tried], unexplained: int, seed: int | None) -> None:
    print(f"{'room':32} tried  killed  timed out  survived")
    for room in sorted({one.mutant.room for one in tried}):
        print(_row(room, [one for one in tried if one.mutant.room == room]))
    print(_row("all", tried))
    outcomes = Counter(one.outcome for one in tried)
    score = 100 * (len(tried) - outcomes["survived"]) / max(len(tried), 1)
    sample = "" if seed is None else f" (--seed {seed} --count {len(tried)})"
    print(f":: {len(tried)} mutants{sample}: {outcomes['killed']} killed, {outcomes['timed out']} timed out, {outcomes['survived']} survived, "
          f"{unexplained} of them not explained; score {score:.1f} %")


def _row(name: str, tried: list[Tried]) -> str:
    outcomes = Counter(one.outcome for one in tried)
    return f"{name:32} {len(tried):5}  {outcomes['killed']:6}  {outcomes['timed out']:9}  {outcomes['survived']:8}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failing, KeyError) as wrong:
        sys.exit(f":: no figure: {wrong}")
