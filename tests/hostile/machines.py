# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile records of machines, what stands in the place of their files, and processes and monitors that are another's."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Callable, Iterator

from . import leases, places, text
from .files import OURS
from .scene import OK, Attack, Scene, outcomes

MIB = 1 << 20
_TASKS = ("machine_stop", "machine_remove", "machine_start", "collect")
_FAILED, _STARTED = "tool_failed", "tool_missing"  # there is no QEMU that could be started
Make = Callable[[Path, Scene], None]


def folder(scene: Scene, name: str = "env-00") -> Path:
    path = scene.run / name
    path.mkdir(parents=True, mode=0o700, exist_ok=True)
    return path


def record(scene: Scene, **changes: object) -> dict:
    known = {
        "name": "env-00",
        "consumer": "qemu",
        "share": str(scene.share),
        "volumes": ["env-00"],
        "lease": "env",
        "lease_id": leases.ENV,
        "ports": {"22": 40022},
        "listen": "127.0.0.1",
        "pid": 0,
        "uri": None,
        "uuid": None,
    }
    return {**known, **changes}


def _recorded(scene: Scene, **changes: object) -> None:
    """A machine of the environment whose lease has ended. Of some values it is known only here what they are."""
    leases.environment(scene)
    given = {key: value(scene) if callable(value) else value for key, value in changes.items()}
    (folder(scene) / "machine.json").write_text(json.dumps(record(scene, **given)))


def _written(scene: Scene, data: bytes, length: int = 0) -> None:
    leases.environment(scene)
    path = folder(scene) / "machine.json"
    path.write_bytes(data)
    if length:
        os.truncate(path, length)


# -- records -------------------------------------------------------------------------------------------------------------


def _sleeper(scene: Scene) -> int:
    return scene.bystander("sleep", "60")


_UUID = "6b7f6c1e-5d0a-4c4e-9a53-000000000001"  # no domain has it
_WRONG: dict[str, tuple[object, ...]] = {
    "name": (None, 7, ["env-00"], "other", "../env-00", "\x1b[2J"),
    "consumer": (None, 7, [], "xen"),
    "share": (None, 7, []),
    "volumes": (None, 7, {}, "env-00", [7], [["env-00"]]),
    "lease_id": (7, [], {}),
    "ports": (None, 7, [], {"22": "40022"}, {"x": 1}, {"²": 1}, {"22": -1}, {"22": 1 << 40}, {"22": True}, {"99999": 1}, {"22,hostfwd=tcp::1": 1}),
    "listen": (7, [], "0.0.0.0,guestfwd=tcp:10.0.2.100:1-cmd:id", "example.org"),
    "pid": (None, "1", [], 1.5, float("nan"), -1, -(1 << 40), 1 << 40, 10**40),
    "uri": (7, [], "qemu+ssh://example.org/system", "test:///default", "qemu+ext:///system?command=/bin/id"),
    "uuid": (7, [], "production-db"),
}
_MALFORMED: dict[str, tuple[str, bytes, int]] = {
    "empty": ("nothing", b"", 0),
    "torn": ("the first half", b'{"name": "env-00", "cons', 0),
    "list": ("a list", b"[]", 0),
    "no text": ("bytes that are no UTF-8", b'{"name": "\xff\xfe"}', 0),
    "long number": ("a process of 900,000 digits", b'{"pid": ' + b"1" * 900_000 + b"}", 0),
    "deep lists": ("100,000 lists in each other", text.DEEP, 0),
    "deep objects": ("100,000 objects in each other", text.DEEP_OBJECTS, 0),
    "of 300 MiB": ("as long as that", b'{"name": "env-00"}', 300 * MIB),
    "of 1 TiB": ("as long as that", b'{"name": "env-00"}', 1 << 40),
}
_PIDS: dict[str, tuple[str, object]] = {
    "process 1": ("the process is the host's first one", 1),
    "an innocent process": ("the process is another's", _sleeper),
    "the tests' process": ("the process is that of the tests", lambda _scene: os.getpid()),
}


def _refused() -> dict[str, str]:
    """A collection goes on: it cannot know whether a machine is of the lease, and its volumes turn out to be in use if they are."""
    return outcomes(_TASKS, _FAILED, collect=OK)


def _records() -> Iterator[Attack]:
    where = "record of a machine"
    for name, (what, data, length) in _MALFORMED.items():
        yield Attack(f"machine: {name}", where, what, OURS, partial(_written, data=data, length=length), _refused())
    number = 0
    for key, values in _WRONG.items():
        for count, value in enumerate(values):
            number += 1
            found = _refused()
            told = {_TASKS[number % 4]: found[_TASKS[number % 4]]}  # a record is read in one place
            more = {"consumer": "libvirt", "uri": "qemu:///session", "uuid": _UUID} if key in ("uri", "uuid") else {}
            yield Attack(f"machine: {key} {count}", where, f"its {key} is `{value!a}`", OURS, partial(_recorded, **{**more, key: value}), told)
    for name, (what, pid) in _PIDS.items():
        found = outcomes(_TASKS, OK, machine_start=_STARTED)
        yield Attack(f"machine: {name}", where, what, OURS, partial(_recorded, pid=pid), found)


# -- processes, and who is behind a monitor --------------------------------------------------------------------------------

_STAND_IN = Path(__file__).with_name("stand_in.py")


def _stand_in(scene: Scene, how: str, name: str = "env-00", innocent: bool = False) -> int:
    """A process that looks like the machine of this name. Returns when it listens."""
    place = folder(scene, name)
    start = scene.bystander if innocent else scene.machine
    pid = start(sys.executable, str(_STAND_IN), how, "-pidfile", str(place / "pid"))
    until = time.monotonic() + 20
    while not (place / "qmp.sock").exists() and not (place / "ready").exists():
        assert time.monotonic() < until, "the stand-in does not listen"
        time.sleep(0.01)
    return pid


def _answering(scene: Scene, how: str) -> None:
    _recorded(scene)
    _stand_in(scene, how)


def _monitor_of_another(scene: Scene) -> None:
    """The machine's monitor is a link to that of a machine that is not to be ended."""
    _recorded(scene)
    _stand_in(scene, "obeys", "other-00", innocent=True)
    (folder(scene) / "qmp.sock").symlink_to(scene.run / "other-00" / "qmp.sock")
    _stand_in(scene, "no monitor")


def _words_in_one(scene: Scene) -> None:
    """An innocent process has the folder's path in one of its words, and another machine's words."""
    _recorded(scene)
    place = folder(scene)
    scene.bystander("sh", "-c", "sleep 60; :", f"x -pidfile {place}/pid")
    scene.bystander("sh", "-c", "sleep 60; :", "-pidfile", f"{place}/pid/../pid")
    scene.bystander("sh", "-c", "sleep 60; :", "-pidfile", f"{scene.run}/other-00/pid")


def _monitors() -> Iterator[Attack]:
    ended = outcomes(("machine_stop", "machine_remove"), OK)
    for how, what in {
        "garbage": "it says something else than a monitor",
        "closes": "it closes the connection",
        "flood": "it says one line without an end",
        "silence": "it never says anything",
    }.items():
        slow = how == "silence"  # a monitor has 5 s for its greeting
        found = {"collect": OK} if slow else ended
        yield Attack(f"monitor: {how}", "monitor of a machine", what, OURS, partial(_answering, how=how), found, slow=slow)
    yield Attack("monitor: another's", "monitor of a machine", "a link to the monitor of another machine", OURS, _monitor_of_another, ended)
    what = "processes that have some of the words of the machine's command line"
    yield Attack("words of a machine", "process", what, OURS, _words_in_one, outcomes(_TASKS, OK, machine_start=_STARTED))


# -- something else than a file ----------------------------------------------------------------------------------------------


def _thing(scene: Scene, name: str, make: Make) -> None:
    _recorded(scene)
    path = folder(scene) / name
    if os.path.lexists(path):
        path.unlink()
    make(path, scene)


def _thing_as_folder(scene: Scene, make: Make) -> None:
    leases.environment(scene)
    scene.run.mkdir(mode=0o700)
    make(scene.run / "env-00", scene)


def _thing_as_run(scene: Scene, make: Make) -> None:
    leases.environment(scene)
    make(scene.run, scene)


def _elsewhere(path: Path, scene: Scene) -> None:
    """A link to a directory that is ours, with a record of the machine."""
    there = scene.outside / "run"
    there.mkdir(mode=0o700)
    (there / "env-00").mkdir(mode=0o700)
    (there / "env-00" / "machine.json").write_text(json.dumps(record(scene)))
    path.symlink_to(there)


_OPENED = ("symlink outside", "symlink loop", "dangling symlink", "hard link", "FIFO", "socket", "directory", "zero device")


def _things() -> Iterator[Attack]:
    ended = outcomes(_TASKS, OK, machine_start=_STARTED)
    launched = {**ended, "machine_launch": _FAILED}
    absent = {**_refused(), "machine_stop": OK, "machine_remove": OK}  # it is not there
    for where, plant, names, found in (
        ("record of a machine", partial(_thing, name="machine.json"), _OPENED, _refused()),
        ("monitor of a machine", partial(_thing, name="qmp.sock"), ("symlink outside", "FIFO", "directory", "hard link", "zero device"), launched),
        ("pid file of a machine", partial(_thing, name="pid"), ("symlink outside", "FIFO", "directory"), launched),
        ("folder of a machine", _thing_as_folder, ("symlink to a directory",), _refused()),
        ("folder of a machine", _thing_as_folder, ("symlink loop", "FIFO", "hard link"), absent),
        ("directory of machines", _thing_as_run, ("symlink to a directory", "FIFO", "hard link"), absent),
    ):
        for name in names:
            what, make = places.THINGS[name]
            loses = name == "hard link" and where == "monitor of a machine"
            root = name in places.DEVICES
            yield Attack(name, where, what, OURS, partial(plant, make=make), found, root=root, loses_name=loses)


def _modes(scene: Scene, path: str, mode: int = 0o700, owner: int = -1) -> None:
    _recorded(scene)
    os.chmod(scene.run / path, mode)
    if owner >= 0:
        os.chown(scene.run / path, owner, -1)


def _far_away(scene: Scene) -> None:
    """A folder with a longer name than any machine's, beside that of the machine."""
    _recorded(scene)
    folder(scene, "x" * 200)
    folder(scene, "\x1b[2J")
    folder(scene, os.fsdecode(b"\xff\xfe"))


def _directories() -> Iterator[Attack]:
    refused = outcomes(_TASKS, _FAILED, collect=OK)  # the collector believes nothing there, and goes on with the volumes that nobody has open
    for name, what, path, more, root in (
        ("directory that all may write to", "mode 0777", ".", {"mode": 0o777}, False),
        ("directory that a group may write to", "mode 0770", ".", {"mode": 0o770}, False),
        ("directory of another", "it belongs to nobody", ".", {"owner": 65534}, True),
    ):
        yield Attack(name, "directory of machines", what, OURS, partial(_modes, path=path, **more), refused, root=root)
    for name, what, more, root in (
        ("folder that all may write to", "mode 0777", {"mode": 0o777}, False),
        ("folder of another", "it belongs to nobody", {"owner": 65534}, True),
    ):
        yield Attack(name, "folder of a machine", what, OURS, partial(_modes, path="env-00", **more), refused, root=root)
    what = "a link to a directory elsewhere, in which the machine is"
    yield Attack("directory elsewhere", "directory of machines", what, OURS, partial(_thing_as_run, make=_elsewhere), refused)
    what = "folders of long and strange names beside the machine's"
    yield Attack("strange folders", "directory of machines", what, OURS, _far_away, outcomes(_TASKS, OK, machine_start=_STARTED))


ATTACKS: tuple[Attack, ...] = (*_records(), *_monitors(), *_things(), *_directories())
