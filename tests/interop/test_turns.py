# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random lives of a volume on which Cinder and the collection take turns: after every turn both show what the model holds."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Callable

import pytest

from .turns import PAGE, Turns

MOST_SNAPSHOTS = 7
LIVES = int(os.environ.get("INTEROP_LIVES", "8"))


def write(world: Turns, chance: random.Random) -> None:
    """Near the beginning or the end of the disk, where growth matters; often over what a lower layer holds."""
    start = chance.choice([0, world.active.size - (1 << 20)]) + chance.randrange(200) * PAGE
    length = min(chance.randrange(1, 40) * PAGE, world.active.size - start)
    world.write(start, length, chance.randrange(256))


def some(world: Turns, chance: random.Random) -> list[str]:
    return chance.sample(list(world.points), min(len(world.points), chance.choice([1, 1, 2, 3])))


def one(world: Turns, chance: random.Random) -> str:
    return chance.choice(list(world.points))


def one_or_all(world: Turns, chance: random.Random) -> str | None:
    return chance.choice([*world.points, None])


Turn = Callable[[Turns, random.Random], object]
PLAYS: dict[str, tuple[int, Turn]] = {
    "write": (5, write),
    "Cinder snapshots": (3, lambda world, chance: world.cinder_snapshot()),
    "we snapshot": (3, lambda world, chance: world.our_snapshot()),
    "Cinder deletes": (2, lambda world, chance: world.cinder_delete(one(world, chance))),
    "we delete": (2, lambda world, chance: world.our_delete(some(world, chance))),
    "Cinder extends": (1, lambda world, chance: world.cinder_extend()),
    "we extend": (1, lambda world, chance: world.our_extend()),
    "Cinder copies": (1, lambda world, chance: world.cinder_copy(one_or_all(world, chance))),
    "we copy": (1, lambda world, chance: world.our_copy(one_or_all(world, chance))),
    "we revert": (1, lambda world, chance: world.our_revert(one(world, chance))),
}


def prepare(name: str, world: Turns, chance: random.Random) -> None:
    """What a turn needs: a snapshot to delete, or room for one more."""
    if name.endswith(("deletes", "delete", "revert")) and not world.points:
        PLAYS[chance.choice(["Cinder snapshots", "we snapshot"])][1](world, chance)
    if name.endswith(("snapshots", "snapshot")) and len(world.points) >= MOST_SNAPSHOTS:
        PLAYS[chance.choice(["Cinder deletes", "we delete"])][1](world, chance)


@pytest.mark.parametrize("seed", range(LIVES))
def test_a_life_in_turns(directory: Path, seed: int) -> None:
    """Each life plays every kind of turn, in an order of its own."""
    chance = random.Random(seed)
    world = Turns(directory, qcow2=bool(seed % 2))
    deck = [name for name, (times, _play) in PLAYS.items() for _time in range(times)]
    chance.shuffle(deck)
    try:
        for name in deck:
            prepare(name, world, chance)
            PLAYS[name][1](world, chance)
            world.check()
        world.end(by_cinder=seed % 4 < 2)
    except BaseException:
        print(f"seed {seed}: {', then '.join(deck)}")
        raise
    finally:
        world.close()
