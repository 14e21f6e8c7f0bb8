# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Points of volumes that are sent to a server, and servers that do not take them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.exporting import Point
from ansible_collections.remotefs.storage.plugins.module_utils.images import sending
from ansible_collections.remotefs.storage.plugins.module_utils.images.fetching import Access
from ansible_collections.remotefs.storage.plugins.module_utils.operations import exporting
from ansible_collections.remotefs.storage.plugins.module_utils.operations.exporting import Exported, ExportRequest, ToServer
from ansible_collections.remotefs.storage.plugins.module_utils.pace import OutOfTime

from .test_exporting import lived
from .test_fetching import Server, drip, serving
from .test_importing import content
from .test_refusals import MIB, Store

SECRET = Access(headers=(("X-Auth-Token", "a-secret-token"),))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_PAUSE", 0.001)
    monkeypatch.setattr(sending, "_SILENCE", 5.0)


def export(store: Store, server: Server | str, scratch: Path, snapshot: str | None = "s1", access: Access = SECRET, **more: Any) -> Exported:
    url = server if isinstance(server, str) else server.url
    options = store.options(**{key: more.pop(key) for key in ("check", "timeout") if key in more})
    return exporting.export(ExportRequest(store.candidates, "vol", snapshot, ToServer(url, access, str(scratch)), **more), options)


def answered(handler: Any, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", "0")
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def received(handler: Any) -> bytes:
    return bytes(handler.rfile.read(int(handler.headers["Content-Length"])))


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk"])
def test_what_arrives(store: Store, tmp_path: Path, image_format: str) -> None:
    """Once, whole, with its length and type and with the user's headers. Nothing stays on this host."""
    life, came = lived(store, 1), []

    def answer(handler: Any, _number: int) -> None:
        came.append((handler.command, received(handler)))
        answered(handler, 204)

    (tmp_path / "scratch").mkdir()
    with serving(answer) as server:
        done = export(store, server, tmp_path / "scratch", format=image_format)
    ((command, data),) = came
    assert command == "PUT" and server.asked[0]["Content-Type"] == "application/octet-stream" and server.asked[0]["X-Auth-Token"] == "a-secret-token"
    (tmp_path / "came").write_bytes(data)
    assert content(str(tmp_path / "came"), image_format) == life.points["s1"]
    assert done.changed and done.length == len(data) and done.sums is not None and done.sums.file == hashlib.sha256(data).hexdigest()
    assert done.sums.content == hashlib.sha256(life.points["s1"]).hexdigest() and os.listdir(tmp_path / "scratch") == []
    assert not store.info()["pending"]


def test_check_mode_sends_nothing(store: Store, tmp_path: Path) -> None:
    lived(store, 2)
    with serving(lambda handler, _number: answered(handler)) as server:
        assert export(store, server, tmp_path, check=True).changed and not server.asked


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_an_answer_letter_by_letter(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """A server that is never silent for long, and never says what became of the image."""
    lived(store, 2)
    monkeypatch.setattr(sending, "_SILENCE", 0.3)

    def answer(handler: Any, _number: int) -> None:
        received(handler)
        handler.wfile.write(head)
        drip(handler, lambda one: one.wfile.write(b"X"))

    with serving(answer) as server:
        started = time.monotonic()
        with pytest.raises(errors.ToolFailed, match="does not answer"):
            export(store, server, tmp_path)
        assert time.monotonic() - started < 10


def test_an_answer_whose_text_never_ends(store: Store, tmp_path: Path) -> None:
    """What the server says after its status is not waited for."""
    lived(store, 2)

    def answer(handler: Any, _number: int) -> None:
        received(handler)
        handler.send_response(201)
        handler.end_headers()
        drip(handler, lambda one: one.wfile.write(b"x"))

    with serving(answer) as server:
        started = time.monotonic()
        assert export(store, server, tmp_path).changed
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_server_that_takes_it_the_third_time(store: Store, tmp_path: Path, image_format: str) -> None:
    """It is sent anew from the beginning each time."""
    life, came = lived(store, 3), []

    def answer(handler: Any, number: int) -> None:
        if number == 0:
            handler.rfile.read(MIB // 2)
            reset(handler)
        elif handler.command == "HEAD":
            answered(handler, 404)
        elif len(server.asked) < 4:
            received(handler)
            answered(handler, 503)
        else:
            came.append(received(handler))
            answered(handler, 201)

    with serving(answer) as server:
        done = export(store, server, tmp_path, format=image_format)
    (tmp_path / "came").write_bytes(came[0])
    assert content(str(tmp_path / "came"), image_format) == life.points["s1"]
    assert done.sums is not None and done.sums.file == hashlib.sha256(came[0]).hexdigest()


def reset(handler: Any) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


@pytest.mark.parametrize(
    "status, told",
    [(401, "answers 401 .it wants"), (403, "answers 403"), (404, "answers 404"), (409, "answers 409"), (413, "answers 413"), (500, "answers 500 .4 times")],
)
def test_servers_that_refuse(store: Store, tmp_path: Path, status: int, told: str) -> None:
    lived(store, 4)

    def answer(handler: Any, _number: int) -> None:
        received(handler)
        answered(handler, status)

    with serving(answer) as server, pytest.raises(errors.ToolFailed, match=told) as caught:
        export(store, server, tmp_path)
    assert "secret" not in str(caught.value) and len(server.asked) == (4 if status == 500 else 1)


def test_a_redirect_is_told_and_not_followed(store: Store, tmp_path: Path) -> None:
    lived(store, 5)

    def answer(handler: Any, _number: int) -> None:
        received(handler)
        answered(handler, 307, Location="http://elsewhere.invalid/")

    with serving(answer) as server, pytest.raises(errors.ToolFailed, match="redirects"):
        export(store, server, tmp_path)
    assert len(server.asked) == 1


def test_the_refusal_of_a_server_that_does_not_listen(store: Store, tmp_path: Path) -> None:
    """It answers 401 and closes while the image is on its way, so that its answer is lost. It is asked for it."""
    store.present(size=64 * MIB, format="raw")
    (store.path / "vol").write_bytes(random.Random(1).randbytes(MIB) * 64)

    def answer(handler: Any, _number: int) -> None:
        if handler.command == "HEAD":
            answered(handler, 401)
        else:
            handler.rfile.read(4096)
            reset(handler)

    with serving(answer) as server, pytest.raises(errors.ToolFailed, match="answers 401"):
        export(store, server, tmp_path, snapshot=None)
    assert len(server.asked) == 2


def test_servers_that_are_not_there_or_not_who_they_say(store: Store, tmp_path: Path) -> None:
    lived(store, 6)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(errors.ToolFailed, match="4 times"):
            export(store, f"http://127.0.0.1:{closed.getsockname()[1]}/", tmp_path)
    certificate = tmp_path / "certificate"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=other"]
    subprocess.run([*words, "-keyout", str(certificate), "-out", str(tmp_path / "public")], check=True, capture_output=True)
    certificate.write_bytes(certificate.read_bytes() + (tmp_path / "public").read_bytes())
    with serving(lambda handler, _number: answered(handler), certificate) as server, pytest.raises(errors.ToolFailed, match="cannot be trusted"):
        export(store, server, tmp_path)
    assert not server.asked


def test_an_error_of_the_volume_is_not_one_of_the_server(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task loses its lock, or its time is over, while it sends: it is not tried again."""
    lived(store, 7)

    def lost(*_args: object) -> None:
        raise errors.LockTimeout("volume vol", "somebody else has it", "run the task again")

    def answer(handler: Any, _number: int) -> None:
        received(handler)
        answered(handler)

    with serving(answer) as server:
        with monkeypatch.context() as patched, pytest.raises(errors.LockTimeout):
            patched.setattr(Point, "verify", lost)
            patched.setattr("ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.viewing._FENCED", 1)
            export(store, server, tmp_path)
        assert len(server.asked) <= 1
        with pytest.raises(OutOfTime):
            export(store, server, tmp_path, timeout=0.000001)


def test_nobody_is_there(store: Store, tmp_path: Path) -> None:
    """It is not said that a server has seen the beginning of the image."""
    lived(store, 6)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/image"
    with pytest.raises(errors.ToolFailed, match="no server takes connections there") as caught:
        export(store, url, tmp_path)
    assert "beginning" not in str(caught.value)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("reads", [True, False])
def test_a_silent_server_does_not_keep_a_task_longer_than_its_time(store: Store, tmp_path: Path, reads: bool, image_format: str) -> None:
    """Whether it takes the image and does not answer, or does not even take it."""
    lived(store, 6)
    ended = threading.Event()

    def silent(handler: Any, _number: int) -> None:
        if reads:
            received(handler)
        ended.wait(20)

    begin = time.monotonic()
    with serving(silent) as server:
        try:
            with pytest.raises(OutOfTime):
                export(store, server, tmp_path, timeout=1.0, format=image_format)
            assert time.monotonic() - begin < 4
        finally:
            ended.set()


def test_the_task_itself(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    """As a playbook has it: no secret in what it says, options that do not go together, and a type that the user may say or not."""
    life, came = lived(store, 8), []

    def answer(handler: Any, _number: int) -> None:
        came.append(received(handler))
        answered(handler)

    def played(**options: Any) -> subprocess.CompletedProcess:
        task = {"remotefs.storage.remotefs_image": {"share": str(store.path), "volume": "vol", "snapshot": "s1", **options}}
        (tmp_path / "book.json").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
        words = ["ansible-playbook", "-vvv", "--diff", str(tmp_path / "book.json")]
        return subprocess.run(words, env=ansible_environment, capture_output=True, text=True, check=False, timeout=120)

    with serving(answer) as server:
        url = server.url.replace("http://", "http://user:a-secret-password@") + "?signature=a-secret-signature"
        headers = {"X-Auth-Token": "a-secret-token", "content-type": "application/octet-stream"}
        done = played(dest=server.url, headers=headers)
        assert done.returncode == 0 and '"content_checksum"' in done.stdout and "a-secret" not in done.stdout + done.stderr, done.stdout
        assert came == [life.points["s1"]] and f'"size": {len(life.points["s1"])}' in done.stdout and '"state": "absent"' not in done.stdout
        done = played(dest=url)
        assert done.returncode == 0 and "signature=" not in done.stdout.split("PLAY RECAP")[0].split('"invocation"')[0], done.stdout
        for wrong, told in (
            ({"dest": server.url, "headers": {"Content-Type": "text/plain"}}, "an image is application/octet-stream"),
            ({"dest": server.url, "mode": "0600"}, "it is of a file"),
            ({"dest": server.url, "backup": True}, "it is of a file"),
            ({"dest": str(tmp_path / "disk"), "headers": {"X": "y"}}, "it is for a server"),
            ({"dest": "disk"}, "no absolute path"),
            ({"dest": "ftp://host/disk"}, "neither http nor https"),
            ({"dest": "http:///disk"}, "names no host"),
            ({"dest": str(tmp_path / "disk"), "compressed": True}, "has no compression"),
        ):
            refused = played(**wrong)
            assert refused.returncode and told in refused.stdout and '"error_code": "invalid_parameter"' in refused.stdout, (wrong, refused.stdout)
        assert not (tmp_path / "disk").exists() and len(came) == 2
