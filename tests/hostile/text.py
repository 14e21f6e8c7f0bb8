# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile ``.info`` files, records, locks and chains: text and structure instead of images."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Callable

from . import images
from .scene import Scene

DEEP = b"[" * 100_000 + b"]" * 100_000
DEEP_OBJECTS = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


def _sparse(path: Path, data: bytes, length: int) -> None:
    path.write_bytes(data)
    os.truncate(path, length)


INFO: dict[str, tuple[str, bytes]] = {
    "absolute": ("the active file is an absolute path", b'{"active": "/etc/passwd"}'),
    "upwards": ("the active file is ../victim", b'{"active": "../victim"}'),
    "slash": ("a snapshot's file has a slash", b'{"active": "vol.s1", "s1": "sub/vol.s1"}'),
    "option": ("the active file is -U", b'{"active": "-U"}'),
    "json name": ("the active file is a json: name", b'{"active": "json:{}"}'),
    "colon": ("the active file is a:b", b'{"active": "a:b"}'),
    "newline": ("the active file ends with a newline", b'{"active": "vol.s1\\n"}'),
    "zero byte": ("the active file has a zero byte", b'{"active": "vol.s1\\u0000"}'),
    "lone surrogate": ("the active file is no text", b'{"active": "\\ud800"}'),
    "dots": ("the active file is ..", b'{"active": ".."}'),
    "private": ("the active file is one of our records", b'{"active": ".remotefs"}'),
    "itself": ("the active file is the .info itself", b'{"active": "vol.info", "s1": "vol.info"}'),
    "number": ("the active file is a number", b'{"active": 7}'),
    "null": ("the active file is null", b'{"active": null}'),
    "list": ("a list", b'["active"]'),
    "string": ("a string", b'"active"'),
    "empty": ("nothing", b""),
    "torn": ("the first half", b'{"active": "vol.'),
    "no text": ("bytes that are no UTF-8", b'{"active": "\xff\xfe"}'),
    "NaN": ("not a number", b'{"active": NaN}'),
    "Infinity": ("a snapshot's file is Infinity", b'{"active": "vol.s1", "s1": Infinity}'),
    "long number": ("a number of 900,000 digits", b'{"active": "vol.s1", "s1": ' + b"9" * 900_000 + b"}"),
    "deep lists": ("100,000 lists in each other", DEEP),
    "deep objects": ("100,000 objects in each other", DEEP_OBJECTS),
    "base as snapshot": ("a snapshot's file is the base", b'{"active": "vol.s1", "s1": "vol"}'),
    "missing file": ("the active file does not exist", b'{"active": "vol.none", "s1": "vol.none"}'),
    "second key": ("active is there twice", b'{"active": "vol.s1", "s1": "vol.s1", "active": "../victim"}'),
}


def plant_info(data: bytes) -> Callable[[Scene], None]:
    def plant(scene: Scene) -> None:
        scene.honest(recorded=False)
        (scene.share / "vol.info").write_bytes(data)

    return plant


def info_of_100_mib(scene: Scene) -> None:
    scene.honest(recorded=False)
    _sparse(scene.share / "vol.info", b'{"active": "vol.s1"', 100 << 20)


def info_of_8_eib(scene: Scene) -> None:
    """As long as the file system lets it be."""
    scene.honest(recorded=False)
    for bits in range(62, 36, -1):
        try:
            _sparse(scene.share / "vol.info", b'{"active": "vol.s1"', 1 << bits)
            return
        except OSError:
            continue


def info_with_many(scene: Scene) -> None:
    scene.honest(recorded=False)
    entries = {f"s{number}": "vol.s1" for number in range(40_000)}
    (scene.share / "vol.info").write_text(json.dumps({"active": "vol.s1", **entries}))


def info_with_strange_keys(scene: Scene) -> None:
    scene.honest(recorded=False)
    keys = {"../x": "vol.s1", "a\nb": "vol.s1", "\x1b[2J": "vol.s1", "": "vol.s1", "-U": "vol.s1"}
    (scene.share / "vol.info").write_text(json.dumps({"active": "vol.s1", "s1": "vol.s1", **keys}))


def info_of_another_volume(scene: Scene) -> None:
    """``vol.info`` claims the file of an honest volume as its active one."""
    scene.raw("other")
    scene.record("other", formats={"other": "raw"})
    scene.raw()
    scene.info("other")


def info_claims_overlay_of_another(scene: Scene) -> None:
    scene.raw("other")
    scene.overlay("other.s1", "other", "raw")
    scene.info("other.s1", volume="other", s1="other.s1")
    scene.info("other.s1", s1="other.s1")


# -- records in .remotefs ----------------------------------------------------------------------------------------------

_GOOD = {
    "version": 1,
    "volume": "vol",
    "formats": {"vol": "raw"},
    "snapshots": {},
    "intent": None,
    "garbage": [],
    "parent": None,
    "active": "vol",
}


def _record(**changes: object) -> bytes:
    return json.dumps({**_GOOD, **changes}).encode()


_IMAGE = {"file": "vol", "format": "raw", "size": images.SIZE}
_VOLUME = {"name": "vol", "chain": [_IMAGE], "snapshots": [], "info": False, "parent": None}


def _intent(**changes: object) -> bytes:
    intent = {"operation": "delete_volume", "started": "now", "steps": [], "before": _VOLUME, "after": None, "proofs": {}, "group": None}
    return _record(intent={**intent, **changes})


RECORDS: dict[str, tuple[str, bytes]] = {
    "empty": ("nothing", b""),
    "torn": ("the first half", _record()[:40]),
    "list": ("a list", b"[]"),
    "no text": ("bytes that are no UTF-8", b"\xff\xfe"),
    "NaN": ("its version is not a number", _record(version=float("nan"))),
    "infinite garbage": ("an inode that is Infinity", _record(garbage=[["vol", float("inf"), 1]])),
    "long number": ("a version of 900,000 digits", _record().replace(b'"version": 1', b'"version": ' + b"1" * 900_000)),
    "deep lists": ("100,000 lists in each other", DEEP),
    "deep objects": ("100,000 objects in each other", DEEP_OBJECTS),
    "deep intent": ("100,000 lists in the intent", _record(intent={}).replace(b'"intent": {}', b'"intent": {"a":' + DEEP + b"}")),
    "format vmdk": ("a format that cannot be", _record(formats={"vol": "vmdk"})),
    "format host device": ("a format that is a driver", _record(formats={"vol": "host_device"})),
    "absolute file": ("a format of /etc/passwd", _record(formats={"/etc/passwd": "raw"})),
    "upwards garbage": ("garbage outside", _record(garbage=[["../victim", 0, 1]])),
    "active upwards": ("an active file outside", _record(active="../victim")),
    "parent outside": ("a parent that is a path", _record(parent={"volume": "../victim", "snapshot": None, "file": "/etc/passwd"})),
    "parent with more": (
        "a parent with a field that does not exist",
        _record(parent={"volume": "a", "snapshot": None, "file": "b", "x": 1}),
    ),
    "intent of another kind": ("an intent that is a list", _record(intent=[1])),
    "intent of nothing": ("an intent without content", _record(intent={})),
    "intent unlinks outside": ("an interrupted deletion of ../victim", _intent(steps=[{"type": "Unlink", "file": "../victim"}])),
    "intent unlinks records": (
        "an interrupted deletion of .remotefs/x",
        _intent(steps=[{"type": "Unlink", "file": ".remotefs/volumes/other.json"}]),
    ),
    "intent truncates outside": (
        "an interrupted truncation of ../victim",
        _intent(after=_VOLUME, steps=[{"type": "Truncate", "file": "../victim", "size": 0}]),
    ),
    "intent of a step that is none": ("a step that does not exist", _intent(steps=[{"type": "__class__", "file": "vol"}])),
    "intent with a path in its chain": ("a chain outside", _intent(before={**_VOLUME, "chain": [{**_IMAGE, "file": "../victim"}]})),
    "intent with infinite proofs": ("a proof that is Infinity", _intent(proofs={"vol": [float("inf"), 1]})),
    "intent of members outside": ("members of a group that are paths", _intent(group="g", members=["vol", "../../victim"])),
    "intent of very many members": ("5,000 members of a group", _intent(group="g", members=["vol"] * 5000)),
    "intent of a group outside": ("a group that is a path", _intent(group="../../victim")),
    "intent of an engine that is none": ("the work of an engine that does not exist", _intent(engine="os.system")),
    "intent of a long engine": ("an engine's name of 100,000 letters", _intent(engine="e" * 100_000)),
    "intent of engines": ("a list of engines", _intent(engine=["offline", {"name": "offline"}])),
    "newer": ("a version from the future", _record(version=99)),
}


def plant_record(data: bytes) -> Callable[[Scene], None]:
    def plant(scene: Scene) -> None:
        scene.raw()
        (scene.private() / "vol.json").write_bytes(data)

    return plant


def record_contradicts_header(scene: Scene) -> None:
    """The record calls the base qcow2, the overlay's header calls it raw."""
    scene.honest()
    path = scene.private() / "vol.json"
    path.write_text(path.read_text().replace('"vol": "raw"', '"vol": "qcow2"'))


def garbage_of_another(scene: Scene) -> None:
    """The record asks for another volume's file to be removed, with its right inode and length."""
    scene.raw("other")
    scene.record("other", formats={"other": "raw"})
    scene.raw()
    status = (scene.share / "other").stat()
    scene.record(formats={"vol": "raw"}, garbage=[["other", status.st_ino, status.st_size]])


# Identities of points in the record of a replica. What it has is compared by content, or taken for a point that its source does not have.
IDENTITIES: dict[str, tuple[str, Callable[[list], object]]] = {
    "identity upwards": ("an identity that is a path", lambda mark: ["../../outside/victim", *mark[1:]]),
    "identity of 32 KiB": ("an identity as long as that", lambda mark: ["a" * (32 << 10), *mark[1:]]),
    "identity without a file": ("an identity that is recorded of another file", lambda mark: [mark[0], mark[1] + 1, *mark[2:]]),
    "identity on an absolute file": ("an identity of which the backing file is a path", lambda mark: [*mark[:3], "/etc/passwd"]),
    "identity with a long number": ("an identity of a file whose inode is no inode", lambda mark: [mark[0], -(10**40), *mark[2:]]),
    "identity of another kind": ("an object in the place of an identity", lambda mark: {"point": mark[0]}),
}


def plant_identity(forge: Callable[[list], object]) -> Callable[[Scene], None]:
    def plant(scene: Scene) -> None:
        scene.honest(recorded=False)
        scene.replica()
        path = scene.private() / "vol.json"
        content = json.loads(path.read_text())
        details = content["snapshots"]["s1"]
        details["point"] = forge(details["point"])
        path.write_text(json.dumps(content))

    return plant


# Moves in the record of a volume. What is no move may hide one, so that it is not known which copy counts.
MOVES: dict[str, tuple[str, object]] = {
    "move": ("a move that nobody has begun", ["/srv/other", None, False, []]),
    "move that is complete": ("a move of which only the removal is left", ["/srv/other", None, True, []]),
    "move of another kind": ("an object in the place of a move", {"source": "/srv/other"}),
    "move from a number": ("a number in the place of a share", [7, None, False, []]),
    "move that may be complete": ("a text that says whether it is complete", ["/srv/other", None, "false", []]),
    "move with a path": ("a path in the place of the snapshots that were kept", ["/srv/other", None, False, "../../outside/victim"]),
    "move with less": ("a move of two parts", ["/srv/other", False]),
}


def plant_move(move: object) -> Callable[[Scene], None]:
    def plant(scene: Scene) -> None:
        scene.honest()
        path = scene.private() / "vol.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "move": move}))

    return plant


def open_to_all(scene: Scene) -> None:
    """Everybody may write to ``.remotefs``."""
    scene.honest()
    scene.private().parent.chmod(0o777)


# -- chains ------------------------------------------------------------------------------------------------------------


def self_loop(scene: Scene) -> None:
    scene.raw()
    scene.overlay("vol.s1", "vol.s1", "qcow2")
    scene.info("vol.s1", s1="vol.s1")


def two_cycle(scene: Scene) -> None:
    scene.raw()
    scene.overlay("vol.s1", "vol.s2", "qcow2")
    scene.overlay("vol.s2", "vol.s1", "qcow2")
    scene.info("vol.s2", s1="vol.s1", s2="vol.s2")


def chain_of(length: int) -> Callable[[Scene], None]:
    def plant(scene: Scene) -> None:
        scene.raw()
        below, image_format = "vol", "raw"
        for number in range(1, length + 1):
            images.qcow2(scene.share / f"vol.s{number}", (below, image_format))
            below, image_format = f"vol.s{number}", "qcow2"
        scene.info(below, **{f"s{number}": f"vol.s{number}" for number in range(1, length + 1)})

    return plant


def clones_in_a_circle(scene: Scene) -> None:
    """Two volumes rest on each other."""
    for name, other in (("vol", "twin"), ("twin", "vol")):
        scene.overlay(name, other, "qcow2")
        scene.record(name, formats={name: "qcow2"}, parent={"volume": other, "snapshot": None, "file": other})


def missing_base(scene: Scene) -> None:
    scene.overlay("vol.s1", "vol", "raw")
    scene.info("vol.s1", s1="vol.s1")


def formats_disagree(scene: Scene) -> None:
    """The overlay calls its backing file qcow2, which is a guest's raw disk with a forged header over the host."""
    images.qcow2(scene.share / "vol", (str(scene.victim), "raw"))
    scene.overlay("vol.s1", "vol", "qcow2")
    scene.info("vol.s1", s1="vol.s1")
    details = {"file": "vol.s1", "created": None, "description": "", "labels": {}, "protected": False}
    scene.record(formats={"vol": "raw", "vol.s1": "qcow2"}, snapshots={"s1": details}, active="vol.s1")


def format_over_forged(scene: Scene, image_format: str | None = None) -> None:
    """The overlay names no format for its backing file, or a protocol's, which is a guest's raw disk with a forged header; our record
    knows it."""
    images.qcow2(scene.share / "vol", (str(scene.victim), "raw"))
    os.truncate(scene.share / "vol", images.SIZE)
    scene.overlay("vol.s1", "vol", image_format)
    scene.info("vol.s1", s1="vol.s1")
    details = {"file": "vol.s1", "created": None, "description": "", "labels": {}, "protected": False}
    scene.record(formats={"vol": "raw", "vol.s1": "qcow2"}, snapshots={"s1": details}, active="vol.s1")


# -- names -------------------------------------------------------------------------------------------------------------

STRANGE_NAMES = (
    b"a:b",
    b"-U",
    b"--object",
    b"a,b",
    b"a\nb",
    b"json:{}",
    b"nbd:x",
    b"\xff\xfe",
    b"\x1b[2J",
    b"~x",
    b".hidden",
    b"a" * 255,
    b" ",
    b"$(x)",
)


def strange_names(scene: Scene) -> None:
    """Files whose names are options, protocols, lists or control characters, beside an honest volume."""
    scene.honest()
    for name in STRANGE_NAMES:
        images.qcow2(scene.share / os.fsdecode(name), (str(scene.victim), "raw"))
    for name in (b"-U.info", b"a:b.info", b".info"):
        (scene.share / os.fsdecode(name)).write_text('{"active": "../victim"}')
