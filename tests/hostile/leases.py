# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile leases, what stands in the place of one, and leases that list what is others'."""

from __future__ import annotations

import base64
import json
import os
import zlib
from functools import partial
from pathlib import Path
from typing import Callable, Iterator

from . import places, text
from .files import FACTS, OURS
from .scene import BASE, OK, Attack, Scene, outcomes

ENV, OTHER = "a" * 16, "b" * 16  # the ids of the leases
_LONG_AGO = 1_000_000_000  # seconds since 1970
MIB = 1 << 20
Edit = Callable[[dict], object]

_GOOD: dict[str, object] = {
    "version": 1,
    "name": "env",
    "id": ENV,
    "owner": "us",
    "ttl": 60,
    "acquired": _LONG_AGO,
    "labels": {},
    "volumes": ["env-00"],
    "uses": ["golden-1"],
    "collector": None,
}


def lease(**changes: object) -> bytes:
    return json.dumps({**_GOOD, **changes}).encode()


def write(scene: Scene, data: bytes, at: float = _LONG_AGO, name: str = "env") -> None:
    path = scene.private("leases") / f"{name}.json"
    path.write_bytes(data)
    os.utime(path, (at, at))


def volume_under(scene: Scene, name: str, identity: str | None, **more: object) -> None:
    """A raw volume that was made under this lease."""
    (scene.share / name).write_bytes(BASE)
    status = (scene.share / name).stat()
    mark = {name: [status.st_ino, status.st_size, 0]}
    scene.record(name, formats={name: "raw"}, disks={name: mark[name][:2]}, marks=mark, active=name, lease=identity, **more)


def others(scene: Scene) -> None:
    """What is others': a volume of nobody, with a snapshot, an environment whose lease does not end, and a golden volume that it uses."""
    scene.honest()
    labels = {"remotefs_golden": "x"}
    volume_under(scene, "golden-1", None, labels=labels, created="2020-01-01T00:00:00Z")
    volume_under(scene, "other-00", OTHER, labels={"remotefs_worker": "0"})
    write(scene, lease(name="other", id=OTHER, owner="somebody", ttl=None, volumes=["other-00"]), name="other")
    scene.protect()


def environment(scene: Scene) -> None:
    """Others', and environment ``env`` with its volume ``env-00``. Its lease has ended."""
    others(scene)
    volume_under(scene, "env-00", ENV, labels={"remotefs_worker": "0"})
    write(scene, lease())


# -- text --------------------------------------------------------------------------------------------------------------

_PACKED = b"zlib " + base64.b64encode(zlib.compress(b" " * (512 * MIB), 9)[: 512 << 10])
_WRONG: dict[str, tuple[object, ...]] = {
    "name": (None, 7, [], {}, "other", "../env", "env\n"),
    "id": (None, 7, [ENV], {}, "", True),
    "owner": (None, 7, ["us"], {}, "", "us\n", "\x1b]0;owned\x07", "\ud800", "u" * (MIB - 4096)),
    "ttl": ("60", [], {}, -1, 1 << 60, float("nan"), float("inf"), True, 1.5),
    "acquired": ("1", [], {}, True, float("nan"), float("inf"), 1e308, -1e308),
    "labels": (None, 7, [], "labels", [["a", "b"]]),
    "volumes": (None, 7, {}, "env-00", [7], [None], [["env-00"]], ["../victim"], ["/etc/passwd"], ["a\nb"], [".."], [".remotefs"], ["-U"], ["a:b"]),
    "uses": (None, 7, {}, "golden-1", [7], ["../victim"], ["{{ x }}"]),
    "collector": (7, [], {}, "", "\x1b[2J", "c" * (MIB - 4096)),
    "version": (None, "1", [], {}, 1.5),  # is a release that is not known here
}
_MALFORMED: dict[str, tuple[str, bytes]] = {
    "empty": ("nothing", b""),
    "torn": ("the first half", lease()[:60]),
    "list": ("a list", b"[]"),
    "number": ("a number", b"7"),
    "null": ("null", b"null"),
    "string": ("a text", b'"lease"'),
    "no text": ("bytes that are no UTF-8", lease().replace(b'"us"', b'"\xff\xfe"')),
    "zero bytes": ("as many zero bytes", bytes(4096)),
    "long number": ("a version of 900,000 digits", lease().replace(b'"version": 1', b'"version": ' + b"1" * 900_000)),
    "long ttl": ("a time of 900,000 digits", lease().replace(b'"ttl": 60', b'"ttl": ' + b"1" * 900_000)),
    "deep lists": ("100,000 lists in each other", text.DEEP),
    "deep objects": ("100,000 objects in each other", text.DEEP_OBJECTS),
    "deep label": ("100,000 lists in a label", lease().replace(b'"labels": {}', b'"labels": {"a": ' + text.DEEP + b"}")),
    "packed": ("a line that unpacks to 512 MiB", b"\n" + _PACKED),
    "very many names": ("20,000 volumes", lease(volumes=[f"v{number}" for number in range(20_000)])),
    "newer": ("a version from the future", lease(version=99)),
}
_TASKS = ("hold", "take_over", "release", "collect", "lease_info", "under_lease", "inventory")
_BROKEN, _UNSAFE = "chain_broken", "unsafe_image"


def _text(scene: Scene, data: bytes, at: float = _LONG_AGO) -> None:
    environment(scene)
    write(scene, data, at)


def _refused(code: str) -> dict[str, str]:
    """How tasks end on a lease that cannot be read: others' hosts are told all the same."""
    return outcomes(_TASKS, code, inventory=OK)


def _some(number: int, found: dict[str, str]) -> dict[str, str]:
    """Each of many that are alike meets one of the tasks: a lease is read in one place."""
    task = list(found)[number % len(found)]
    return {task: found[task]}


def _texts() -> Iterator[Attack]:
    for name, (what, data) in _MALFORMED.items():
        code = "needs_recovery" if name == "newer" else _BROKEN
        yield Attack(f"lease: {name}", "lease", what, OURS, partial(_text, data=data), _refused(code))
    number = 0
    for key, values in _WRONG.items():
        for count, value in enumerate(values):
            number += 1
            shown = ascii(value) if len(str(value)) < 60 else f"{type(value).__name__} of {len(str(value))} letters"
            data, what = lease(**{key: value}), f"its {key} is `{shown}`"
            found = _some(number, _refused("needs_recovery" if key == "version" else _BROKEN))
            yield Attack(f"lease: {key} {count}", "lease", what, OURS, partial(_text, data=data), found)
        yield Attack(f"lease: no {key}", "lease", f"it has no {key}", OURS, partial(_text, data=_without(key)), _some(number, _refused(_BROKEN)))


def _without(key: str) -> bytes:
    return json.dumps({one: value for one, value in _GOOD.items() if one != key}).encode()


# -- length and time -----------------------------------------------------------------------------------------------------


def _of_300_mib(scene: Scene, first: bytes = lease()[:60]) -> None:
    environment(scene)
    write(scene, first)
    os.truncate(scene.private("leases") / "env.json", 300 * MIB)
    os.utime(scene.private("leases") / "env.json", (_LONG_AGO, _LONG_AGO))


def _as_long_as_can_be(scene: Scene) -> None:
    environment(scene)
    for bits in range(62, 36, -1):
        try:
            os.truncate(scene.private("leases") / "env.json", 1 << bits)
            return
        except OSError:
            continue


_TIMES = {
    "at the beginning": ("1970", 0, {"collect": OK}),
    "before the beginning": ("1938", -1_000_000_000, {"collect": OK}),
    "in the future": ("2242", 1 << 33, {"take_over": "lease_held", "release": OK}),
    "far in the future": ("4147, or when the file system's time ends", 1 << 36, {"take_over": "lease_held", "release": OK}),
}


def _lengths_and_times() -> Iterator[Attack]:
    for name, what, plant in (
        ("lease of 300 MiB", "as long as that", _of_300_mib),
        ("lease and 300 MiB", "a whole lease, and then nothing but zeros", partial(_of_300_mib, first=lease() + b"\n")),
        ("lease of exbibytes", "as long as the file system lets it be", _as_long_as_can_be),
    ):
        yield Attack(name, "lease", what, OURS, plant, _refused(_UNSAFE))
    for name, (what, at, found) in _TIMES.items():
        plant = partial(_text, data=lease(), at=at)
        told = {**outcomes(("hold", "lease_info", "under_lease", "inventory"), OK), **found}
        yield Attack(f"lease {name}", "lease", f"written in {what}", OURS, plant, told)
    forever = partial(_text, data=lease(ttl=1 << 40))
    told = outcomes(("lease_info", "inventory", "hold", "collect"), OK, take_over="lease_held")
    yield Attack("lease for ever", "lease", "for 34,865 years", OURS, forever, told)


# -- names of others -----------------------------------------------------------------------------------------------------


def _listing(scene: Scene, *names: str, plant: Callable[[Scene], None] | None = None, **changes: object) -> None:
    """``env`` lists these, and its own volume. What ``plant`` makes is others' as well."""
    environment(scene)
    if plant is not None:
        before = set(scene.protected)
        plant(scene)
        mine = {"env-00", ".remotefs/volumes/env-00.json", ".remotefs/leases/env.json"}
        scene.protect()
        scene.protected = [name for name in scene.protected if name not in mine or name in before]
    write(scene, lease(volumes=["env-00", *names], **changes))


def _damaged_record(scene: Scene) -> None:
    (scene.private() / "vol.json").write_bytes(b"{")


def _record_of_another_file(scene: Scene) -> None:
    """The record of a volume has the lease, and another file has taken its place."""
    volume_under(scene, "spot", ENV)
    os.rename(scene.share / "spot", scene.root / "gone")  # so that its inode is not used again
    (scene.share / "spot").write_bytes(BASE[::-1] * 2)


def _record_of_overlay(scene: Scene) -> None:
    """A record as if the overlay of another volume were a volume of the lease."""
    status = (scene.share / "vol.s1").stat()
    mark = [status.st_ino, status.st_size, 0]
    scene.record("vol.s1", formats={"vol.s1": "qcow2"}, marks={"vol.s1": mark}, active="vol.s1", lease=ENV)


def _info_of_nothing(scene: Scene) -> None:
    """What a killed task could have left, but for an ``.info`` that names files of another volume."""
    (scene.private("tmp") / "ghost~0123456789ab").write_bytes(b"x")
    (scene.share / "ghost.info").write_text('{"active": "vol.s1", "s1": "vol.s1"}')


def _clone_of_mine(scene: Scene) -> None:
    scene.overlay("theirs", "env-00", "raw")


def _link_outside(scene: Scene) -> None:
    """A link to a file outside in the place of a volume that the lease lists and nobody has made."""
    (scene.private("tmp") / "trap~0123456789ab").write_bytes(b"x")
    (scene.share / "trap").symlink_to(scene.outside / "made-by-a-task")


_LISTS: dict[str, tuple[str, tuple[str, ...], Callable[[Scene], None] | None, dict[str, str]]] = {
    "others' volumes": ("a volume of nobody, one of another lease, a golden one", ("vol", "other-00", "golden-1"), None, {}),
    "a volume with a damaged record": (
        "it may be of the lease", ("vol",), _damaged_record,
        {"collect": _BROKEN, "release": "conflict", "hold_less": "conflict"},
    ),
    "a volume in another's place": (
        "its record has the lease, and it is another file", ("spot",), _record_of_another_file,
        {"collect": "conflict", "release": "conflict", "hold_less": "conflict"},
    ),
    "another's overlay": (
        "a forged record calls it a volume of the lease", ("vol.s1",), _record_of_overlay,
        {"collect": "conflict", "release": "conflict", "hold_less": "conflict"},
    ),
    "an .info alone": ("it names another volume's files", ("ghost",), _info_of_nothing, {}),
    "a clone of its volume": ("another's file rests on it", (), _clone_of_mine, {"collect": "has_dependents", "release": "conflict", "hold_less": "conflict"}),
    "a link outside": ("in the place of a volume that was begun", ("trap",), _link_outside, {}),
}  # fmt: skip


def _lists() -> Iterator[Attack]:
    for name, (what, names, plant, found) in _LISTS.items():
        told = {**outcomes(("collect", "collect_golden", "release", "hold_less", "lease_info", "inventory"), OK), **found}
        told["collect_golden"] = told["collect"]
        yield Attack(f"lease of {name}", "lease", what, OURS, _list(names, plant), told)


def _list(names: tuple[str, ...], plant: Callable[[Scene], None] | None) -> Callable[[Scene], None]:
    return lambda scene: _listing(scene, *names, plant=plant)


# -- something else than a file, and names ---------------------------------------------------------------------------------


def _thing(scene: Scene, place: str, make: Callable[[Path, Scene], None], instead: bool = False) -> None:
    """``instead``: of a directory of ours, in which all the others' leases are."""
    if instead:
        scene.honest()
        scene.private("locks")
        os.rmdir(scene.private(place))
        make(scene.share / ".remotefs" / place, scene)
        return
    environment(scene)
    path = scene.share / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path, scene)


_OPENED = ("symlink outside", "symlink loop", "dangling symlink", "symlink inside", "hard link", "FIFO", "socket", "directory", "zero device")
_DIRECTORIES = ("symlink outside", "dangling symlink", "symlink to a directory", "FIFO", "hard link")
_ALL = ("hold", "take_over", "release", "collect", "lease_info", "under_lease", "inventory")
_THINGS: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    "lease": (".remotefs/leases/env.json", _OPENED, _refused(_UNSAFE)),
    "lock of a lease": (".remotefs/locks/@env.lock", _OPENED, outcomes(_ALL, _UNSAFE, lease_info=OK, inventory=OK)),
    "lock of the clock": (".remotefs/locks/@~clock.lock", _OPENED, outcomes(("collect",), _UNSAFE, hold=OK)),
    "temporary file of a lease": (".remotefs/tmp/@env~0123456789ab", _OPENED, outcomes(("hold", "collect", "release"), OK)),
    "record of its volume": (".remotefs/volumes/env-00.json", _OPENED, outcomes(("collect", "under_lease"), _UNSAFE, release="conflict", inventory=OK)),
    "its volume": ("env-00", _OPENED, outcomes(("collect", "under_lease"), _UNSAFE, release="conflict", inventory=OK)),
}
_SPECIAL: dict[tuple[str, str], dict[str, str]] = {
    # What it holds is text.
    ("hard link", "lease"): _refused(_BROKEN),
    ("hard link", "record of its volume"): {"collect": _BROKEN, "under_lease": _BROKEN},
    # It is not the file that was made under the lease.
    ("hard link", "its volume"): {"collect": "conflict", "under_lease": "conflict"},
    # Nothing may be removed that has something in it.
    ("directory", "temporary file of a lease"): outcomes(("hold", "collect", "release"), _UNSAFE),
}


def _things() -> Iterator[Attack]:
    for where, (place, names, found) in _THINGS.items():
        for name in names:
            what, make = places.THINGS[name]
            told, root = {**found, **_SPECIAL.get((name, where), {})}, name in places.DEVICES
            loses = name == "hard link" and where == "temporary file of a lease"
            yield Attack(name, where, what, OURS, partial(_thing, place=place, make=make), told, root=root, loses_name=loses)
    for name in _DIRECTORIES:
        what, make = places.THINGS[name]
        told = outcomes(("hold", "collect", "lease_info", "inventory", "under_lease"), _UNSAFE)
        yield Attack(name, ".remotefs/leases", what, OURS, partial(_thing, place="leases", make=make, instead=True), told)


STRANGE_NAMES = (b"a\nb", b"\x1b[2J", b"-U", b"a:b", b".", b"", b"\xff\xfe", b"{{ x }}", b"@x", b"_x", b"x" * 240, b"..", b"env.info", b"$(x)", b"ENV")


def _strange_names(scene: Scene) -> None:
    """Leases that have ended, whose names are options, templates, control characters, and what is left of their tasks."""
    environment(scene)
    for name in map(os.fsdecode, STRANGE_NAMES):
        write(scene, lease(name=name.encode("utf-8", "replace").decode(), volumes=["vol", "other-00"]), name=name)
        (scene.private("locks") / f"@{name}.lock").write_bytes(b"")
        (scene.private("tmp") / f"@{name}~0123456789ab").write_bytes(b"")


def _strange_labels(scene: Scene) -> None:
    """What a worker's record says of it."""
    others(scene)
    template = "{{ lookup('pipe', 'id') }}"
    strange = {"{{ x }}": template, "a\nb": "\x1b[2J", "\ud800": "\ud800"}
    more = {f"label-{number}": "x" for number in range(90)}
    labels = {"remotefs_worker": "0", "remotefs_address": "-oProxyCommand=id:22", **strange, **more}
    volume_under(scene, "env-00", ENV, labels=labels)
    write(scene, lease(labels=strange, owner=template))


def _very_many(scene: Scene) -> None:
    others(scene)
    for number in range(300):
        write(scene, lease(name=f"env{number}", id=f"{number:016}", volumes=["vol", "other-00", "golden-1"] * 1000), name=f"env{number}")


def _many_names(scene: Scene) -> None:
    environment(scene)
    write(scene, lease(volumes=["env-00", *(f"v{number}" for number in range(16383))]))


def _names() -> Iterator[Attack]:
    every = ("collect", "collect_golden", "lease_info", "inventory")
    what = "leases called -U, a:b, {{ x }}, with newlines and control characters"
    yield Attack("strange names of leases", ".remotefs/leases", what, FACTS, _strange_names, outcomes(every, "invalid_name", lease_info=OK, inventory=OK))
    what = "templates, options, control characters and halves of letters in labels of a lease and of its worker"
    yield Attack("strange labels", "lease", what, OURS, _strange_labels, outcomes(("lease_info", "inventory", "collect"), OK, hold="lease_held"))
    what = "300 leases that have ended, each of 3,000 names that are others'"
    yield Attack("many names", "lease", "as many as a lease may list, which nobody has", OURS, _many_names, outcomes(("collect", "release", "inventory"), OK))
    yield Attack("very many leases", ".remotefs/leases", what, OURS, _very_many, outcomes(every, OK), slow=True)


ATTACKS: tuple[Attack, ...] = (*_texts(), *_lengths_and_times(), *_lists(), *_things(), *_names())
