# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stages: their names, the versions that they run on, and how scripts/test lines them up. Data, and nothing that runs."""

from __future__ import annotations

import re
from typing import Iterable, NamedTuple

NEWEST, OLDEST, OLDEST_SANITY = "2.21", "2.17", "2.19"
CORES = (NEWEST, "2.19", OLDEST)  # data is tagged from 2.19 on
SANITY_CORES = (NEWEST, OLDEST_SANITY)  # ansible-test is maintained for these

#: Pythons that each ansible-core runs on, the preferred one first.
PYTHONS = {"2.21": ("3.13", "3.14", "3.12"), "2.19": ("3.11", "3.12", "3.13"), "2.17": ("3.11", "3.12", "3.10")}
OLDEST_TARGET_PYTHON = "3.8"

FIRST, BESIDE, ALONE = "first", "beside", "alone"
MINUTES, NIGHTLY_MINUTES, NEWER_MINUTES, MUTATION_MINUTES = 25, 240, 60, 90


class Stage(NamedTuple):
    """:ivar lane: FIRST uses all processors; BESIDE uses one, or waits, and runs beside those; ALONE comes last, by itself."""

    name: str
    lane: str = FIRST
    cores: tuple[str, ...] = ()
    minutes: int = MINUTES


STAGES = (
    Stage("ruff"),
    Stage("unit", cores=CORES),
    Stage("functional", cores=CORES),
    Stage("property"),
    Stage("hostile"),
    Stage("crash"),
    Stage("interop"),
    Stage("live"),
    Stage("py38"),
    Stage("integration", BESIDE, CORES),
    Stage("sanity", BESIDE, SANITY_CORES),
    Stage("lint", BESIDE),
    Stage("publish", BESIDE),
    Stage("docs", BESIDE),
    Stage("gluster", BESIDE),
    Stage("sshfs", BESIDE),
    Stage("nas", BESIDE),
    Stage("lab", ALONE),
    Stage("molecule", BESIDE),
    Stage("glance", BESIDE),
    Stage("guest", BESIDE),
)
#: What the word "nightly" stands for, with the older sanity.
NIGHTLY = (
    Stage("nightly", minutes=NIGHTLY_MINUTES),
    Stage("ceph", minutes=NEWER_MINUTES),
    Stage("container", minutes=NEWER_MINUTES),
    Stage("systemd", minutes=NEWER_MINUTES),
    Stage("newqemu", minutes=NEWER_MINUTES),
    Stage("mutation", minutes=MUTATION_MINUTES),
)
FAST = ("ruff", "unit", "functional", "property", "integration")


_WORD = re.compile(r"(?P<name>[a-z0-9]+)(:(?P<core>[0-9.]+))?(\+(?P<fast>fast))?")


class Run(NamedTuple):
    """One run of a stage, as a row of the launcher's table."""

    item: str  # unit:2.21+fast
    lane: str
    minutes: int
    title: str
    session: str  # unit(2.21)
    words: str  # what the session is told after "--"


class UnknownStage(Exception):
    """There is no stage of that name."""


def names() -> list[str]:
    return [stage.name for stage in STAGES]


def daily() -> list[str]:
    """What the word "all" stands for. The older ansible-test finds hardly anything by itself, so it looks at night."""
    return [f"{name}:{NEWEST}" if name == "sanity" else name for name in names()]


def runs(words: Iterable[str], best_core: str) -> list[Run]:
    """The runs that the words of a command line ask for. :raises UnknownStage:"""
    wanted = list(words) or ["all"]
    if wanted[0] == "fast":
        return [_run(_stage(name), best_core if _stage(name).cores else "", "fast") for name in FAST]
    if wanted[0] == "all":
        wanted = daily()
    at_night = [*(stage.name for stage in NIGHTLY), f"sanity:{OLDEST_SANITY}"]
    wanted = [name for word in wanted for name in (at_night if word == NIGHTLY[0].name else [word])]
    found = []
    for word in wanted:
        parts = _WORD.fullmatch(word)
        if parts is None:
            raise UnknownStage(word)
        stage, core, fast = _stage(parts["name"]), parts["core"], parts["fast"] or ""
        if core and core not in stage.cores:
            raise UnknownStage(word)
        found += [_run(stage, version, fast) for version in ((core,) if core else stage.cores or ("",))]
    return found


def _stage(name: str) -> Stage:
    for stage in (*STAGES, *NIGHTLY):
        if stage.name == name:
            return stage
    raise UnknownStage(name)


def _run(stage: Stage, core: str, words: str) -> Run:
    item = stage.name + (f":{core}" if core else "") + (f"+{words}" if words else "")
    title = f"{stage.name}, ansible-core {core}" if core else stage.name
    return Run(item, stage.lane, stage.minutes, title, f"{stage.name}({core})" if core else stage.name, words)
