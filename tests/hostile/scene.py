# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A share with something hostile on it, victims beside it, and the tasks that meet both."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from . import images

BASE = bytes(range(256)) * 256  # the first 64 KiB of honest base files
LAYER = b"layer-->" * 8192  # what honest overlays hold at 1 MiB
LAYER_AT = images.MIB
SECRET = "secret of the host"  # what the victims hold: no answer has it
_HASHED = 32 << 20  # bytes: longer files are compared by what lstat tells


class Scene:
    """A share (``share``), and beside it ``victim`` and ``outside/victim``, which no task may open or change."""

    def __init__(self, root: Path) -> None:
        self.root, self.share, self.outside = root, root / "share", root / "outside"
        self.target = root / "target"  # another share, to which volumes are restored
        self.run = root / "run"  # where machines are kept
        self.protected: list[str] = []  # what is others' on the share
        self.bystanders: list[subprocess.Popen] = []  # which no task may end
        self.machines: list[subprocess.Popen] = []  # which tasks may end
        self.victims = (root / "victim", self.outside / "victim")
        self.share.mkdir()
        (self.share / ".out").mkdir()  # where images are written to
        self.outside.mkdir()
        self.target.mkdir()
        for victim in self.victims:
            victim.write_bytes(f"{SECRET}\n".encode() * 8192)

    @property
    def victim(self) -> Path:
        """The absolute path of a file outside the share."""
        return self.victims[1]

    # -- honest content ------------------------------------------------------------------------------------------

    def raw(self, name: str = "vol", content: bytes = BASE) -> None:
        with open(self.share / name, "wb") as stream:
            stream.write(content)
            stream.truncate(images.SIZE)

    def overlay(self, name: str, backing: str, image_format: str | None) -> None:
        """An honest overlay with one cluster of data."""
        images.qcow2(
            self.share / name,
            (backing, image_format),
            l1=(images.USED | 4 * images.CLUSTER,),
            clusters={4: images.l2(*[0] * 16, images.USED | 5 * images.CLUSTER), 5: LAYER},
        )

    def info(self, active: str, volume: str = "vol", **snapshots: str) -> None:
        (self.share / f"{volume}.info").write_text(json.dumps({"active": active, **snapshots}, indent=1, sort_keys=True))

    def private(self, name: str = "volumes") -> Path:
        path = self.share / ".remotefs" / name
        for directory in (path.parent, path):
            directory.mkdir(mode=0o700, exist_ok=True)
        return path

    def record(self, volume: str = "vol", **content: object) -> None:
        known = {
            "version": 1,
            "volume": volume,
            "formats": {},
            "snapshots": {},
            "intent": None,
            "garbage": [],
            "parent": None,
            "active": volume,
        }
        (self.private() / f"{volume}.json").write_text(json.dumps({**known, **content}))

    def honest(self, recorded: bool = True) -> None:
        """Volume ``vol``: a raw base, and snapshot s1 with the overlay ``vol.s1``."""
        self.raw()
        self.overlay("vol.s1", "vol", "raw")
        self.info("vol.s1", s1="vol.s1")
        if recorded:
            details = {"file": "vol.s1", "created": None, "description": "", "labels": {}, "protected": False}
            self.record(formats={"vol": "raw", "vol.s1": "qcow2"}, snapshots={"s1": details}, active="vol.s1")

    def replica(self, base: str = "raw") -> None:
        """Records volume ``vol`` as a replica, and makes an honest source for it: ``good``, with snapshots s1 and s2."""
        self.raw("good")
        self.overlay("good.s1", "good", "raw")
        self.overlay("good.s2", "good.s1", "qcow2")
        self.info("good.s2", volume="good", s1="good.s1", s2="good.s2")
        details = {"file": "vol.s1", "created": None, "description": "", "labels": {}, "protected": False}
        details.update(point=["a" * 32, (self.share / "vol.s1").lstat().st_ino, 0, "vol"], received=True)
        self.record(formats={"vol": base, "vol.s1": "qcow2"}, snapshots={"s1": details}, active="vol.s1", received=True)

    # -- processes, and what is others' ---------------------------------------------------------------------------

    def bystander(self, *command: str) -> int:
        """Start a process that no task may end. Returns its number."""
        self.bystanders.append(_started(*command))
        return self.bystanders[-1].pid

    def machine(self, *command: str) -> int:
        """Start a process that tasks may end, as it is a machine. Returns its number."""
        self.machines.append(_started(*command))
        return self.machines[-1].pid

    def protect(self) -> None:
        """All that is on the share now is others': it must stay as it is, to the times of its files."""
        self.protected = [name for name in self._state(self.share) if not name.startswith(".remotefs/tmp")]

    def close(self) -> None:
        """End what was started."""
        for process in (*self.bystanders, *self.machines):
            process.kill()
            process.wait()

    # -- what is compared ----------------------------------------------------------------------------------------

    def state(self) -> dict:
        """Names, kinds and content of both shares and of the machines; locks, ballast and empty private directories are no content."""
        others = {"target": self.target, **({"run": self.run} if self.run.is_dir() and not self.run.is_symlink() else {})}
        told = {f"{word}: {place}": one for word, path in others.items() for place, one in self._state(path).items()}
        return {**self._state(self.share), **told}

    def _state(self, share: Path) -> dict:
        found = {}
        for directory, names, files in os.walk(share):
            for name in [*names, *files]:
                path = Path(directory) / name
                status = path.lstat()
                place = os.fsdecode(path.relative_to(share))
                if place.startswith(".remotefs") and (stat.S_ISDIR(status.st_mode) or place.startswith((".remotefs/locks/", ".remotefs/ballast/"))):
                    continue
                found[place] = _content(path, status)
        return found

    def harm(self, names: bool = True) -> dict:
        """All of the victims but the time of the last reading; without ``names`` also without how many names they have. What is others' on the
        share, and which bystanders have ended."""
        found: dict = {"ended": [process.args for process in self.bystanders if process.poll() is not None]}
        for name in self.protected:
            path = self.share / name
            found[name] = (*_content(path, path.lstat()), path.lstat().st_mtime_ns) if os.path.lexists(path) else None
        for victim in self.victims:
            status = victim.lstat()
            data = hashlib.sha256(victim.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
            found[str(victim)] = [data, status.st_ino, status.st_mode, status.st_uid, status.st_mtime_ns]
            found[str(victim)] += [status.st_nlink, status.st_ctime_ns] if names else []
        found[str(self.outside)] = tuple(sorted(os.listdir(self.outside)))
        return found


def _started(*command: str) -> subprocess.Popen:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _content(path: Path, status: os.stat_result) -> tuple:
    if stat.S_ISLNK(status.st_mode):
        return ("link", os.readlink(path))
    if not stat.S_ISREG(status.st_mode):
        return (stat.S_IFMT(status.st_mode), status.st_mode)
    if status.st_size > _HASHED:
        return (status.st_size, status.st_ino, status.st_mtime_ns)
    return (status.st_size, status.st_mode, hashlib.sha256(path.read_bytes()).hexdigest())


# -- tasks -----------------------------------------------------------------------------------------------------------


def _volume(**args: object) -> tuple[str, dict]:
    return "remotefs_volume", {"lock_timeout": 0.3, **args}


def _snapshot(**args: object) -> tuple[str, dict]:
    return "remotefs_snapshot", {"lock_timeout": 0.3, "volume": "vol", **args}


def _export(image_format: str, **args: object) -> tuple[str, dict]:
    return "remotefs_image", {"lock_timeout": 0.3, "volume": "vol", "dest": "{share}/.out/disk", "format": image_format, **args}


def _replica(**args: object) -> tuple[str, dict]:
    return "remotefs_replica", {"lock_timeout": 0.3, "to": "{share}", **args}


def _lease(**args: object) -> tuple[str, dict]:
    return "remotefs_lease", {"lock_timeout": 0.3, "name": "env", "owner": "us", "run_dir": "{run}", **args}


def _collect(**args: object) -> tuple[str, dict]:
    return "remotefs_lease", {"lock_timeout": 0.3, "state": "collected", "grace": "0", "run_dir": "{run}", **args}


def _machine(**args: object) -> tuple[str, dict]:
    # There is no such program, so that no machine is ever started.
    return "remotefs_machine", {"lock_timeout": 0.3, "name": "env-00", "run_dir": "{run}", "program": "qemu-system-nowhere", "wait_for": "none", **args}


#: Tasks about whole shares, which meet every attack.
LOOKING_AFTER = ("share_info", "housekeeping")
TASKS: dict[str, tuple[str, dict]] = {
    "info": ("remotefs_volume_info", {}),
    "snapshot_info": ("remotefs_snapshot_info", {"volumes": ["vol"]}),
    "share_info": ("remotefs_share_info", {}),
    "housekeeping": ("remotefs_housekeeping", {"lock_timeout": 0.3, "grace": "1s", "leaked_clusters": True, "empty_overlays": True, "equal_blocks": True}),
    "snapshot": _snapshot(name="s9"),
    "delete": _snapshot(name="s1", state="absent"),
    "revert": _snapshot(name="s1", state="reverted", discard_newer=True),
    "extend": _volume(name="vol", size="8M"),
    "clone": _volume(name="copy", source={"volume": "vol"}),
    "clone_of_snapshot": _volume(name="copy", source={"volume": "vol", "snapshot": "s1"}),
    "restore": _volume(name="vol", share=["{target}"], source={"volume": "vol", "share": "{share}"}),
    "restore_of_snapshot": _volume(name="vol", share=["{target}"], format="qcow2", source={"volume": "vol", "snapshot": "s1", "share": "{share}"}),
    "move": _volume(name="vol", share=["{target}"], moved_from="{share}"),
    "linked": _volume(name="link", source={"volume": "vol", "method": "linked"}),
    "flatten": _volume(name="vol", flatten=True),
    "remove": _volume(name="vol", state="absent", cascade=True),
    "present": _volume(name="vol", size="4M", format="raw"),
    "create": _volume(name="new", size="4M", format="raw"),
    "import": _volume(name="got", source={"image": "{share}/picture"}),
    "import_as_qcow2": _volume(name="got", format="qcow2", source={"image": "{share}/picture", "image_format": "qcow2"}),
    "create_qcow2": _volume(name="new", size="4M", format="qcow2", preallocation="metadata"),
    "export": _export("raw"),
    "export_vmdk": _export("vmdk"),
    "export_of_snapshot": _export("qcow2", snapshot="s1"),
    "replicate": _replica(volume="vol", name="replica"),
    "replicate_over": _replica(volume="good", name="vol", discard=True),
    "compare": _replica(volume="good", name="vol", state="verified"),
    "seed": _volume(name="vol", source={"seed": {"user_data": "#cloud-config\n"}}),
    "new_seed": _volume(name="new", source={"seed": {"user_data": "#cloud-config\n"}}),
    "hold": _lease(volumes=["env-00"]),
    "hold_less": _lease(volumes=[], cascade=True),
    "take_over": _lease(owner="them", volumes=["env-00"]),
    "release": _lease(state="released", cascade=True, stop_machines=True),
    "collect": _collect(),
    "collect_golden": _collect(golden_keep=0),
    "lease_info": ("remotefs_lease_info", {}),
    "under_lease": _volume(name="env-00", size="8M", lease={"name": "env", "id": "a" * 16, "owner": "us"}),
    "inventory": ("inventory", {"expired": True}),
    "machine_start": _machine(),
    "machine_launch": _machine(program="false"),  # it ends at once, whatever its words are
    "machine_stop": _machine(state="stopped"),
    "machine_remove": _machine(state="absent"),
}
LONE = ("info", "snapshot", "extend", "clone", "linked", "flatten", "remove")  # what concerns a volume without snapshots
CHAIN = (*LONE, "snapshot_info", "delete", "revert", "clone_of_snapshot")
CREATING = ("create", "create_qcow2", "clone", "linked", "snapshot")

OK = "ok"
Check = Callable[[Scene], None]


@dataclass(frozen=True)
class Attack:
    """Something hostile in one place.

    ``outcome`` maps each task to the error code that it ends with, or "ok" where it is handled safely ("a|b": either); of info
    modules the code is that of the volume ``vol``. ``checks`` compare content after a task that went through.
    """

    name: str
    where: str
    what: str
    origin: str
    plant: Callable[[Scene], None]
    outcome: dict[str, str]
    checks: dict[str, Check] = field(default_factory=dict)
    slow: bool = False
    root: bool = False
    loses_name: bool = False  # a second name of a victim is removed, as it should be

    @property
    def id(self) -> str:
        return f"{self.name}@{self.where}".replace(" ", "-")


def outcomes(tasks: tuple[str, ...], code: str, **others: str) -> dict[str, str]:
    """``code`` for all ``tasks`` but those in ``others``."""
    return {task: others.get(task, code) for task in dict.fromkeys((*tasks, *others))}
