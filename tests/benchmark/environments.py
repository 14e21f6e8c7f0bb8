# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fifty workers of a CI pipeline, made, reset and removed by the role, beside a play of one ``ping`` and beside other ways to have them.

Each way is a whole run of ``ansible-playbook`` and ends with a sync. The other ways copy the golden image, run ``qemu-img`` in a loop of tasks, or make
overlays in a pool of libvirt by the module of community.libvirt. None of them leaves a lease, a record or a protection of the golden image.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, Sequence

from . import measuring
from .images import dense

TITLE = "environments"
WORKERS = 50
GOALS = {"ping": 3.0, "copies": 1 / 20, "qemu-img": 1 / 4}
_GOLDEN = "golden"
_COPIES_AT_ONCE = 4  # fifty of a golden image as people have it would fill many a disk, so later copies take the place of earlier ones
_DEBIAN = "/usr/bin/python3"  # has the bindings of libvirt, which come with the distribution
_OVERLAY = """<volume><name>overlay-{{ item }}</name><capacity>%d</capacity><target><format type='qcow2'/></target>
<backingStore><path>%s</path><format type='raw'/></backingStore></volume>"""


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

    def play(self, *tasks: Mapping, **environment: str) -> float:
        """Seconds of a whole run. :raises RuntimeError: it failed."""
        book = self._scratch / "play.json"
        book.write_text(json.dumps([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": list(tasks)}]))
        argv = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(book)]

        def run() -> None:
            ran = subprocess.run(argv, env={**self._environment, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
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
        line = f"for number in $(seq {WORKERS}); do cp --reflink=auto {_GOLDEN} copy-$((number % {_COPIES_AT_ONCE})); done; sync ."
        return self.play({"ansible.builtin.shell": {"cmd": line, "chdir": str(self.others)}})

    def overlaid(self) -> float:
        """An overlay for each worker, in a loop of tasks."""
        line = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", _GOLDEN, "-F", "raw", "overlay-{{ item }}"]
        loop = {"ansible.builtin.command": {"argv": line, "chdir": str(self.others)}, "loop": list(range(WORKERS))}
        return self.play(loop, {"ansible.builtin.command": {"argv": ["sync", str(self.others)]}})


class Pool:
    """A pool of libvirt in the directory of the other ways, for a host that has libvirt's daemon, its bindings and community.libvirt."""

    def __init__(self, host: Host) -> None:
        from live.libvirtd import Libvirtd

        self._host, self._libvirtd = host, Libvirtd()
        self._libvirtd("pool-define-as", "others", "dir", "--target", str(host.others))
        self._libvirtd("pool-start", "others")

    def stop(self) -> None:
        self._libvirtd("pool-destroy", "others")
        self._libvirtd.stop()

    def overlaid(self) -> float:
        """An overlay for each worker, in a loop of tasks. Those of the turn before are removed first, which is not measured."""
        for path in self._host.others.glob("overlay-*"):
            path.unlink()
        self._libvirtd("pool-refresh", "others")
        xml = _OVERLAY % (self._host.golden.stat().st_size, self._host.golden)
        given = {"pool": "others", "uri": self._libvirtd.uri, "state": "present", "xml": xml}
        loop = {"community.libvirt.virt_volume": given, "loop": list(range(WORKERS))}
        sync = {"ansible.builtin.command": {"argv": ["sync", str(self._host.others)]}}
        return self._host.play(loop, sync, ANSIBLE_PYTHON_INTERPRETER=_DEBIAN, ANSIBLE_COLLECTIONS_PATH=_collections())


def _collections() -> str:
    """Where the user of the benchmark has collections."""
    return os.environ.get("ANSIBLE_COLLECTIONS_PATH", os.path.expanduser("~/.ansible/collections"))


def without_libvirt() -> str:
    """Why the module of community.libvirt cannot be measured here. Empty: it can."""
    if os.geteuid() or not shutil.which("libvirtd"):
        return "needs root and libvirtd"
    if subprocess.run([_DEBIAN, "-c", "import libvirt, lxml.etree"], stderr=subprocess.DEVNULL, check=False).returncode:
        return "needs python3-libvirt and python3-lxml"
    there = any(Path(path, "ansible_collections/community/libvirt").is_dir() for path in _collections().split(os.pathsep))
    return "" if there else "needs the collection community.libvirt"


def measure(scratch: Path, full: bool) -> list[Row]:
    host = Host(scratch, 1536 if full else 64)
    phases: dict[str, Callable[[], float]] = {"present": lambda: host.bring("present"), "reset": host.reset, "absent": lambda: host.bring("absent")}
    others = {"a play of one ping": host.ping, "a loop of qemu-img": host.overlaid}
    lacking = without_libvirt()
    with ExitStack() as stack:
        if lacking:
            print(f"The module of community.libvirt is not measured: it {lacking}.", file=sys.stderr)
        else:
            pool = Pool(host)
            stack.callback(pool.stop)
            others["community.libvirt.virt_volume in a loop"] = pool.overlaid
        found = measuring.in_turns(5 if full else 3, {**phases, **others})
    copies = "copies of the image"
    found[copies] = host.copied()  # once: it takes longest by far, and differs least
    rows = [Row(state, "a play of one ping", found[state], found["a play of one ping"]) for state in phases]
    compared = (copies, *[other for other in others if other != "a play of one ping"])
    return rows + [Row(state, other, found[state], found[other]) for state in ("present", "reset") for other in compared]


def tables(rows: Sequence[Row]) -> str:
    cells = [[row.state, row.other, measuring.seconds(row.ours), measuring.seconds(row.theirs), measuring.ratio(row.ours, row.theirs)] for row in rows]
    return measuring.table(["state", "beside", "role", "the other", "role / the other"], cells)
