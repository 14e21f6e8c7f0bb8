# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one Ansible task costs that changes nothing, beside a module of the same collection that does nothing.

The idle module has the argument spec of remotefs_volume and is part of a copy of the collection. Items of loops take turns in one
play; each figure is the median of the time from one item's end to the next one's, as a callback sees them.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from . import measuring, reading
from .measuring import CHECKOUT

TITLE = "one task"
GOALS = {"idle": 1.15}
_KINDS = ("idle", "info", "present")
_CALLBACK = '''
from __future__ import annotations
import json, os, time
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: clock
type: aggregate
short_description: Writes down when items end
description: Writes down when items end.
"""

class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME, CALLBACK_NEEDS_ENABLED = 2.0, "aggregate", "clock", False

    def _tick(self, name):
        with open(os.environ["BENCH_CLOCK"], "a") as file:
            file.write(json.dumps([name, time.perf_counter()]) + "\\n")

    def v2_playbook_on_task_start(self, task, is_conditional):
        self._tick("start")

    def v2_runner_item_on_ok(self, result):
        changed = getattr(result, "result", None) or result._result
        self._tick("changed" if changed.get("changed") else (getattr(result, "task", None) or result._task).name)
'''
_IDLE = """#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = "module: idle"

from ansible.module_utils.basic import AnsibleModule

def main():
    spec = {spec!r}
    AnsibleModule(argument_spec=spec, supports_check_mode=True).exit_json(changed=False)

if __name__ == "__main__":
    main()
"""


@dataclass(frozen=True)
class Row:
    """Seconds of one item of each kind on a share of so many ``volumes``; with or without pipelining."""

    pipelining: bool
    volumes: int
    idle: float
    info: float
    present: float


def collection_with_idle_module(scratch: Path) -> Path:
    """A tree for ANSIBLE_COLLECTIONS_PATH with a copy of this collection and the idle module in it."""
    from ansible_collections.remotefs.storage.plugins.module_utils import arguments, changes
    from ansible_collections.remotefs.storage.plugins.modules import remotefs_volume as volume

    copy = scratch / "copy" / "ansible_collections" / "remotefs" / "storage"
    for part in ("plugins", "meta"):
        shutil.copytree(CHECKOUT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "galaxy.yml", copy)
    items = {"type": "list", "elements": "dict", "options": arguments.without_defaults(volume._VOLUME)}
    (copy / "plugins/modules/idle.py").write_text(_IDLE.replace("{spec!r}", repr({**volume._VOLUME, **changes.CHANGE, "volumes": items})))
    return scratch / "copy"


def playbook(share: Path, rounds: int, items: int) -> list[dict]:
    given = {"name": "vol", "share": str(share)}
    tasks = {
        "idle": {"remotefs.storage.idle": {**given, "size": "64M"}},
        "info": {"remotefs.storage.remotefs_volume_info": {"share": str(share), "names": ["vol"]}},
        "present": {"remotefs.storage.remotefs_volume": {**given, "size": "64M"}},
    }
    loop = [{"name": kind, **tasks[kind], "loop": list(range(items))} for _round in range(rounds) for kind in _KINDS]
    return [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": loop}]


def play(scratch: Path, tree: Path, rounds: int, items: int, pipelining: bool, others: int = 0) -> Row:
    """:param others: volumes with a snapshot beside the one that the tasks are about. :raises RuntimeError: a task changed something
    or failed."""
    share = scratch / f"share-{pipelining}-{others}"
    reading.Share(share, 2).grow(others)
    measuring.run_module("remotefs_volume", {"share": [str(share)], "name": "vol", "size": "64M"})
    (scratch / "callbacks").mkdir(exist_ok=True)
    (scratch / "callbacks" / "clock.py").write_text(_CALLBACK)
    clock = scratch / f"clock-{pipelining}-{others}"
    (scratch / "play.json").write_text(json.dumps(playbook(share, rounds, items)))
    environment = measuring.environment(
        ANSIBLE_COLLECTIONS_PATH=str(tree),
        ANSIBLE_HOME=str(scratch / "home"),
        ANSIBLE_LOCAL_TEMP=str(scratch / "local"),
        ANSIBLE_REMOTE_TMP=str(scratch / "remote"),
        ANSIBLE_CALLBACK_PLUGINS=str(scratch / "callbacks"),
        ANSIBLE_PIPELINING=str(pipelining),
        ANSIBLE_PYTHON_INTERPRETER=sys.executable,
        BENCH_CLOCK=str(clock),
        LC_ALL="C.UTF-8",
    )
    del environment["PYTHONPATH"]
    argv = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(scratch / "play.json")]
    ran = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stdout[-3000:])
    found = intervals([json.loads(line) for line in clock.read_text().splitlines()])
    return Row(pipelining, others + 1, *(statistics.median(found[kind]) for kind in _KINDS))


def intervals(ticks: Sequence[tuple[str, float]]) -> dict[str, list[float]]:
    """Seconds from one item's end to the next one's. The first item of each loop pays for templating it, and is left out.

    :raises RuntimeError: an item changed something, so that it was no idle one.
    """
    found: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    for (before, earlier), (name, later) in zip(ticks, ticks[1:]):
        if name == "changed":
            raise RuntimeError("a task that should do nothing changed something")
        if name == before:
            found[name].append(later - earlier)
    return found


def measure(scratch: Path, full: bool) -> list[Row]:
    tree = collection_with_idle_module(scratch)
    rounds = 12 if full else 5
    alone = [play(scratch, tree, rounds, 4, pipelining) for pipelining in (False, True)]
    return [*alone, *(play(scratch, tree, rounds, 4, True, others) for others in (99, 999, 9999))]


def tables(rows: Sequence[Row]) -> str:
    return measuring.table(
        ["pipelining", "volumes on the share", "idle module", "info", "volume, no change", "info / idle", "volume / idle"],
        [
            [
                "yes" if row.pipelining else "no",
                str(row.volumes),
                *(measuring.seconds(value) for value in (row.idle, row.info, row.present)),
                measuring.ratio(row.info, row.idle),
                measuring.ratio(row.present, row.idle),
            ]
            for row in rows
        ],
    )
