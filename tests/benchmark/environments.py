# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fifty workers of a CI pipeline, made, reset and removed by the role, beside a play of one ``ping`` and beside other ways to have them.

Each way is a whole run of ``ansible-playbook`` and ends with a sync. The other ways copy the golden image, or run ``qemu-img`` in a loop of tasks, which
leaves no lease, no record and no protection of the golden image.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, Sequence

from . import measuring
from .images import dense

TITLE = "environments"
WORKERS = 50
GOALS = {"ping": 3.0, "copies": 1 / 20, "qemu-img": 1 / 4}
_GOLDEN = "golden"


@dataclass(frozen=True)
class Row:
    """Seconds of the role in a state, and of another way."""

    state: str
    other: str
    ours: float
    theirs: float


class Host:
    """A share with a golden volume, and plays on it."""

    def __init__(self, scratch: Path, megabytes: int) -> None:
        self._scratch, self.share, self.others = scratch, scratch / "share", scratch / "others"
        self.others.mkdir()
        self.share.mkdir()
        self.golden = dense(self.others / _GOLDEN, megabytes)
        given = {"share": str(self.share), "name": _GOLDEN, "source": {"image": str(self.golden), "image_format": "raw"}, "snapshot": "ready"}
        measuring.run_module("remotefs_volume", given)
        self._environment = measuring.environment(
            ANSIBLE_COLLECTIONS_PATH=measuring.environment()["PYTHONPATH"],
            ANSIBLE_HOME=str(scratch / "home"),
            ANSIBLE_PYTHON_INTERPRETER=sys.executable,
            LC_ALL="C.UTF-8",
        )
        del self._environment["PYTHONPATH"]

    def play(self, *tasks: Mapping) -> float:
        """Seconds of a whole run. :raises RuntimeError: it failed."""
        book = self._scratch / "play.json"
        book.write_text(json.dumps([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": list(tasks)}]))
        argv = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(book)]

        def run() -> None:
            ran = subprocess.run(argv, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            if ran.returncode:
                raise RuntimeError(ran.stdout[-3000:])

        return measuring.timed(run)

    def bring(self, state: str) -> float:
        """The role."""
        given = {"share": str(self.share), "name": "ci", "owner": "job", "workers": WORKERS, "golden": {"volume": _GOLDEN, "snapshot": "ready"}, "state": state}
        role = {"ansible.builtin.include_role": {"name": "remotefs.storage.ci_environment"}}
        return self.play({**role, "vars": {f"ci_environment_{name}": value for name, value in given.items()}})

    def dirty(self) -> None:
        """Each worker writes a little."""
        for number in range(WORKERS):
            (told,) = json.loads(measuring.run_module("remotefs_volume_info", {"share": str(self.share), "names": [f"ci-{number:02}"]}).out)["volumes"]
            subprocess.run(["qemu-io", "-f", told["format"], "-c", "write -q 0 64k", told["path"]], check=True)

    def reset(self) -> float:
        """The role, once each worker has written."""
        self.dirty()
        return self.bring("reset")

    def ping(self) -> float:
        """A play that does nothing."""
        return self.play({"ansible.builtin.ping": {}})

    def copied(self) -> float:
        """The golden image, copied for each worker by one command."""
        line = f"for number in $(seq {WORKERS}); do cp --reflink=auto {_GOLDEN} copy-$number; done; sync ."
        return self.play({"ansible.builtin.shell": {"cmd": line, "chdir": str(self.others)}})

    def overlaid(self) -> float:
        """An overlay for each worker, in a loop of tasks."""
        line = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", _GOLDEN, "-F", "raw", "overlay-{{ item }}"]
        loop = {"ansible.builtin.command": {"argv": line, "chdir": str(self.others)}, "loop": list(range(WORKERS))}
        return self.play(loop, {"ansible.builtin.command": {"argv": ["sync", str(self.others)]}})


def measure(scratch: Path, full: bool) -> list[Row]:
    host = Host(scratch, 256 if full else 64)
    phases: dict[str, Callable[[], float]] = {"present": lambda: host.bring("present"), "reset": host.reset, "absent": lambda: host.bring("absent")}
    others = {"a play of one ping": host.ping, "copies of the image": host.copied, "a loop of qemu-img": host.overlaid}
    found = measuring.in_turns(5 if full else 3, {**phases, **others})
    rows = [Row(state, "a play of one ping", found[state], found["a play of one ping"]) for state in phases]
    rows += [Row(state, other, found[state], found[other]) for state in ("present", "reset") for other in others if other != "a play of one ping"]
    return rows


def tables(rows: Sequence[Row]) -> str:
    cells = [[row.state, row.other, measuring.seconds(row.ours), measuring.seconds(row.theirs), measuring.ratio(row.ours, row.theirs)] for row in rows]
    return measuring.table(["state", "beside", "role", "the other", "role / the other"], cells)
