# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lives of many volumes on kernel NFS 4.2, and the floor of the same system calls there.

Server and client are one user-mode Linux (``tests/lab/uml-run``), which is slow at everything: only the ratio says anything.
As a program (``-m benchmark.nfs DIRECTORY``) it measures on a mount and prints a row as JSON; that part runs in the lab.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Sequence

from . import lives, measuring

TITLE = "lives of volumes on kernel NFS"
VOLUMES = 100
_REPEATS = 3
_MINUTES = 25  # that the lab may take
_MARK = "row of the benchmark: "
_IN_LAB = 'mkdir -p /mnt/bench && mount -t nfs -o "$LAB_NFS4_OPTS" "$LAB_NFS4_SRC" /mnt/bench && PYTHONPATH=$PWD/tests exec "$0" -m benchmark.nfs /mnt/bench'


@dataclass(frozen=True)
class Row:
    """Seconds for ``volumes`` lives, by four bulk tasks and by the floor."""

    volumes: int
    ours: float
    floor: float


def measure(_scratch: Path, _full: bool) -> list[Row]:
    """:raises SystemExit: there is no lab here."""
    if os.geteuid() != 0 or not shutil.which("linux.uml"):
        raise SystemExit("scripts/bench nfs: needs root and what the stage `lab` of scripts/test installs")
    lab = str(measuring.CHECKOUT / "tests" / "lab" / "uml-run")
    ran = measuring.run([lab, "-t", str(_MINUTES * 60), "sh", "-c", _IN_LAB, sys.executable], where=measuring.CHECKOUT)
    marked = [line.partition(_MARK)[2] for line in ran.out.decode().splitlines() if _MARK in line]
    return [Row(**json.loads(text)) for text in marked]


def measure_on(mount: Path) -> Row:
    """The lives in a directory of this mount, each way in turns."""

    def fresh() -> Path:
        share = mount / "share"
        shutil.rmtree(share, ignore_errors=True)
        share.mkdir()
        return share

    ways = {"ours": lambda: lives.ours(fresh(), VOLUMES)}
    for threads in sorted({1, lives.at_a_time()}):
        ways[f"floor {threads}"] = lambda threads=threads: lives.floor(fresh(), VOLUMES, threads)
    found = measuring.in_turns(_REPEATS, ways)
    return Row(VOLUMES, found.pop("ours"), min(found.values()))


def tables(rows: Sequence[Row]) -> str:
    """The table of docs/performance.md."""
    cells = [[row.volumes, measuring.seconds(row.ours), measuring.seconds(row.floor), measuring.ratio(row.ours, row.floor)] for row in rows]
    return measuring.table(["volumes", "four bulk tasks", "floor", "to the floor"], cells)


def main(mount: str) -> None:
    with tempfile.TemporaryDirectory(prefix="remotefs-bench-") as directory:
        sys.path.insert(0, str(measuring.make_tree(Path(directory, "tree"))))
        print(_MARK + json.dumps(asdict(measure_on(Path(mount)))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
