# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What scripts/test asks: ``python -m sessions list``, ``plan [WORD...]`` (one line for each run) and ``nox`` (where nox is)."""

from __future__ import annotations

import os
import sys

from . import machine, stages


def main(what: str, *words: str) -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # what pip and apt-get have to say is not the answer
    try:
        if what == "list":
            answer = stages.names()
        elif what == "plan":
            answer = ["|".join(map(str, run)) for run in stages.runs(words, _best_core())]
        else:
            answer = [str(machine.nox_venv() / "nox")]
    except stages.UnknownStage as wrong:
        known = f"fast all nightly newqemu ceph container systemd mutation {' '.join(stages.names())}"
        print(f"scripts/test: there is no stage '{wrong}'; the stages are: {known}", file=sys.stderr)
        sys.exit(2)
    except machine.NotPossible as lacking:
        print(f"scripts/test: not possible here: {lacking}", file=sys.stderr)
        sys.exit(1)
    os.write(answers, "".join(line + "\n" for line in answer).encode())


def _best_core() -> str:
    try:
        return machine.best_core()
    except machine.NotPossible:
        return stages.NEWEST  # the stages themselves say so


if __name__ == "__main__":
    main(*sys.argv[1:])
