# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What listens at ``attachment.qmp`` is no QEMU, or one that lies: one clear error in time, and no image and no ``.info`` is changed."""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.live import client
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, StorageError, ToolFailed
from ansible_collections.remotefs.storage.tests.live.guest import SIZE, Live

LIMIT = 0.5  # seconds that a greeting, a question or a command may take here
HELLO = {"QMP": {"version": {}, "capabilities": []}}
QUESTIONS = ("query-named-block-nodes", "x-debug-query-block-graph", "query-jobs", "query-status", "query-migrate", "query-block-exports")
ACTIONS = ("blockdev-add", "blockdev-snapshot", "block_resize", "blockdev-del", "human-monitor-command", "block-commit", "block-stream")
COMMANDS = [{"name": name} for name in (*QUESTIONS, *ACTIONS)]
CACHE = {"direct": False, "no-flush": False, "writeback": True}
STRANGE = "no QEMU monitor"
Lies = Dict[str, Any]


class Stranger:
    """A server that answers as a machine on ``v.a`` does, but for ``lies``: by command another answer, bytes, or a function that sends."""

    def __init__(self, path: str, share: Path, lies: Lies) -> None:
        self.path, self.lies, self.heard, self.jobs = path, lies, [], []  # type: ignore[var-annotated]
        self.truth: Lies = {"query-commands": COMMANDS, "query-status": {"status": "running"}, "query-block-exports": []} | truth(share)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(path)
        self._server.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                stream, _address = self._server.accept()
            except OSError:
                return
            try:
                self._talk(stream)
            except (OSError, ValueError):
                pass
            finally:
                stream.close()

    def _talk(self, stream: socket.socket) -> None:
        self._say(stream, self.lies.get("greeting", json.dumps(HELLO).encode() + b"\n"), None)
        for line in stream.makefile("rb"):
            asked = json.loads(line)
            name = asked["execute"]
            self.heard.append(name)
            if name in ("block-commit", "block-stream"):
                self.jobs = [{"id": asked["arguments"]["job-id"], "type": "commit", "status": "pending"}]
            honest = self.jobs if name == "query-jobs" else self.truth.get(name, {})
            self._say(stream, self.lies.get(name, {"return": honest}), asked["id"])

    def _say(self, stream: socket.socket, answer: Any, asked: str | None) -> None:
        if callable(answer):
            answer(stream)
        elif isinstance(answer, bytes):
            stream.sendall(answer)
        else:
            stream.sendall(json.dumps({**answer, "id": asked}).encode() + b"\n")

    def close(self) -> None:
        self._server.close()


def truth(share: Path) -> Lies:
    """Nodes and edges of a machine on ``v.a`` over ``v``."""
    nodes, edges = [], [{"parent": 0, "child": 1, "name": "root"}]
    for number, (name, driver, file) in enumerate([("n1", "qcow2", "v.a"), ("p1", "file", "v.a"), ("n0", "raw", "v"), ("p0", "file", "v")]):
        node = {"node-name": name, "drv": driver, "ro": number > 1, "image": {"virtual-size": SIZE}, "file": str(share / file), "cache": CACHE}
        nodes.append(node)
    edges += [{"parent": 1, "child": 2, "name": "file"}, {"parent": 1, "child": 3, "name": "backing"}, {"parent": 3, "child": 4, "name": "file"}]
    named = [{"id": number + 1, "type": "block-driver", "name": node["node-name"]} for number, node in enumerate(nodes)]
    graph = {"nodes": [{"id": 0, "type": "block-backend", "name": "d0"}, *named], "edges": edges}
    return {"query-named-block-nodes": nodes, "x-debug-query-block-graph": graph}


def again_and_again(data: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    """Says the same for ever."""

    def say(stream: socket.socket) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            stream.sendall(data)
            time.sleep(pause)

    return say


def changed(command: str, *path: Any, value: Any) -> Callable[[Lies], Lies]:
    """Lies that are the truth but for one value."""

    def lies(honest: Lies) -> Lies:
        answer = copy.deepcopy(honest[command])
        place = answer
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return {command: {"return": answer}}

    return lies


def more_edges(*edges: tuple[int, int, str], filters: int = 0) -> Callable[[Lies], Lies]:
    """The true graph, some filters, and edges that no graph has."""

    def lies(honest: Lies) -> Lies:
        graph, nodes = copy.deepcopy(honest["x-debug-query-block-graph"]), copy.deepcopy(honest["query-named-block-nodes"])
        for number in range(filters):
            graph["nodes"].append({"id": 5 + number, "type": "block-driver", "name": f"f{number}"})
            nodes.append({**nodes[0], "node-name": f"f{number}", "drv": "throttle", "file": ""})
        graph["edges"] += [{"parent": above, "child": below, "name": name} for above, below, name in edges]
        return {"x-debug-query-block-graph": {"return": graph}, "query-named-block-nodes": {"return": nodes}}

    return lies


NODES, GRAPH = "query-named-block-nodes", "x-debug-query-block-graph"
WRONG = [None, 5, True, "x", {}, {"a": 1}, ["x"], [5], [{}], [[]]]  # in the place of an answer
GREETINGS: dict[str, Any] = {
    "silence": b"",
    "spaces": again_and_again(b" ", 0.05),
    "events": again_and_again(b'{"event": "X", "data": {}}\n', 0.05),
    "a flood": again_and_again(b"x" * (1 << 16)),
    "depth": b"[" * 200000 + b"\n",
    "no text": b"\xff\xfe\n",
    "another protocol": b"SSH-2.0-OpenSSH\r\n",
    "a list": b"[]\n",
    "a number": b'{"QMP": 5}\n',
    "a number of many digits": b"1" * 10000 + b"\n",
}
ANSWERS: dict[str, Any] = {
    "events": again_and_again(b'{"event": "X", "data": {}}\n', 0.05),
    "events that are lists": again_and_again(b'{"event": []}\n{"event": "BLOCK_JOB_COMPLETED", "data": [1]}\n', 0.05),
    "spaces": again_and_again(b" ", 0.05),
    "empty lines": again_and_again(b"\n", 0.05),
    "a flood": again_and_again(b"x" * (1 << 16)),
    "depth": b"[" * 200000 + b"\n",
    "the end": lambda stream: stream.shutdown(socket.SHUT_RDWR),
    "neither": {},
    "an error that is a word": {"error": "no"},
    "an error that is nothing": {"error": None},
    "an error without words": {"error": {"class": "X"}},
}
GRAPHS: dict[str, Callable[[Lies], Lies]] = {
    "a size in words": changed(NODES, 0, "image", "virtual-size", value="x"),
    "a size that is a truth value": changed(NODES, 0, "image", "virtual-size", value=True),
    "no image": changed(NODES, 0, "image", value=None),
    "a cache that is a list": changed(NODES, 0, "cache", value=[]),
    "bitmaps that are numbers": changed(NODES, 0, "dirty-bitmaps", value=[1]),
    "a path with a zero byte": changed(NODES, 1, "file", value="a\0b"),
    "a path that is no text": changed(NODES, 1, "file", value="\ud800"),
    "a long path": changed(NODES, 1, "file", value="x" * 100000),
    "a deep description": changed(NODES, 1, "file", value="json:" + "[" * 100000),
    "a description with a list": changed(NODES, 1, "file", value='json:{"filename": []}'),
    "an edge from nowhere": more_edges((9, 1, "x")),
    "an edge to a device": more_edges((1, 0, "x")),
    "a circle of images": more_edges((3, 1, "backing")),
    "a circle of filters": more_edges((5, 1, "file"), (6, 5, "file"), (5, 6, "file"), filters=2),
    "a node above itself": more_edges((5, 5, "file"), filters=1),
    "a node that is not told of": changed(GRAPH, "nodes", 4, "name", value="p9"),
    "a tower of filters": more_edges((5, 1, "file"), *((number + 1, number, "file") for number in range(5, 3004)), filters=3000),
}


@pytest.fixture
def live(tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("GREETING", "QUESTION", "ANSWER"):
        monkeypatch.setattr(client, name, LIMIT)
    (tmp_path / "share").mkdir()
    made = Live(tmp_path / "share", "raw")
    made.sockets = sockets
    made.take("a", attachment=None)
    with (made.path / "v.a").open("rb"), (made.path / "v").open("rb"):  # the server really has them open
        yield made


def changes(live: Live) -> list[Callable[..., object]]:
    return [lambda **mode: live.take("new", **mode), lambda **mode: live.present(size=2 * SIZE, **mode), lambda **mode: live.delete("a", **mode)]


def refused(live: Live, lies: Lies, nothing_changed: bool = True, tasks: slice = slice(None)) -> list[StorageError]:
    """The errors of tasks that meet such a server. Images and ``.info`` stay as they are, and no error takes long or is unforeseen."""
    errors = []
    for number, task in enumerate(changes(live)[tasks]):
        before, images = live.tree(), {name: (live.path / name).read_bytes() for name in ("v", "v.a", "v.info")}
        stranger = Stranger(str(live.sockets / f"monitor{number}"), live.path, lies)
        began = time.monotonic()
        try:
            with pytest.raises(StorageError) as caught:
                task(attachment=stranger.path)
        finally:
            stranger.close()
            Path(stranger.path).unlink()
        assert time.monotonic() - began < 6 * LIMIT
        assert {name: (live.path / name).read_bytes() for name in images} == images
        assert not nothing_changed or live.tree() == before
        assert set(stranger.heard) <= {"qmp_capabilities", "query-commands", *QUESTIONS} or not nothing_changed
        errors.append(caught.value)
    return errors


@pytest.mark.parametrize("says", GREETINGS)
def test_greetings(live: Live, says: str) -> None:
    for error in refused(live, {"greeting": GREETINGS[says]}, tasks=slice(1)):
        assert isinstance(error, InUse) and (STRANGE in str(error) or "does not greet" in str(error))


@pytest.mark.parametrize("says", ANSWERS)
@pytest.mark.parametrize("command", ["qmp_capabilities", "query-commands", "query-status", NODES])
def test_answers(live: Live, command: str, says: str) -> None:
    for error in refused(live, {command: ANSWERS[says]}, tasks=slice(1)):
        assert isinstance(error, (InUse, ToolFailed))


@pytest.mark.parametrize("command", ["query-commands", *QUESTIONS])
def test_answers_of_another_shape(live: Live, command: str) -> None:
    for value in WRONG:
        if (command, value) in [("query-migrate", {}), ("query-migrate", {"a": 1})]:
            continue  # QEMU says this where nothing migrates
        tasks = slice(2, None) if command == "query-block-exports" else slice(1)
        for error in refused(live, {command: {"return": value}}, tasks=tasks):
            assert isinstance(error, InUse) and STRANGE in str(error), value


@pytest.mark.parametrize("lie", GRAPHS)
def test_graphs(live: Live, lie: str) -> None:
    for error in refused(live, GRAPHS[lie](truth(live.path)), tasks=slice(None, None, 2), nothing_changed=lie != "a tower of filters"):
        assert isinstance(error, (InUse, ToolFailed))


def test_a_server_that_says_yes_to_all(live: Live) -> None:
    """The graph must show what was done, before anybody relies on it."""
    snapshot, growth, deletion = refused(live, {}, nothing_changed=False)
    assert "and it does not" in str(snapshot)
    assert "the disk has another size still" in str(growth)
    assert "not the one that this task began" in str(deletion)
    assert live.info()["size"] == SIZE and [one["name"] for one in live.info()["snapshots"]] == ["a"]
