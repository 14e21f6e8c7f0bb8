# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Transfers from a real server on this machine: whole, cut and resumed; and servers that lie, stall, redirect or change the file."""

from __future__ import annotations

import random
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.images import fetching
from ansible_collections.remotefs.storage.plugins.module_utils.images.fetching import Access, Fetch, FetchFailed, Version, name_of, shown

CONTENT = random.Random(5).randbytes(3_000_000)
PLAIN = Access()
SECRET = Access(headers=(("X-Auth-Token", "a-secret-token"),), username="user", password="a-secret-password")


class Server:
    """``answer`` is given each request's handler, and its number from 0 on. ``asked`` are the headers of the requests."""

    def __init__(self, answer: Callable[[Any, int], None], certificate: Path | None = None, host: str = "127.0.0.1") -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                number = len(outer.asked)
                outer.asked.append(dict(self.headers))
                self.close_connection = True
                answer(self, number)

            do_PUT = do_HEAD = do_GET

            def log_message(self, *_args: object) -> None:
                pass

        self.asked: list[dict] = []
        self.http = ThreadingHTTPServer((host, 0), Handler)
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.http.socket, scheme = context.wrap_socket(self.http.socket, server_side=True), "https"
        self.url = f"{scheme}://{host}:{self.http.server_port}/dir/disk.img"


@contextmanager
def serving(answer: Callable[[Any, int], None], certificate: Path | None = None, host: str = "127.0.0.1") -> Iterator[Server]:
    server = Server(answer, certificate, host)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_PAUSE", 0.001)
    monkeypatch.setattr(fetching, "_SILENCE", 1.0)


def reply(handler: Any, data: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def asked_from(handler: Any) -> int:
    return int(handler.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-"))


def ranged(handler: Any, content: bytes = CONTENT, most: int = 1 << 40, tag: str = '"one"') -> None:
    """An answer as of a server that can begin anywhere, which breaks off after so many bytes."""
    start = asked_from(handler)
    headers = {"ETag": tag} if tag else {}
    if handler.headers.get("If-Range", tag) != tag:
        start = 0
    if start:
        headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    reply(handler, content[start : start + most], 206 if start else 200, len(content) - start, **headers)


def fetched(url: str, access: Access = PLAIN, is_checked: bool = True, start: int = 0, version: Version | None = None) -> bytes:
    """The file as it is put together from what came; ``start`` bytes of it are there already."""
    found = bytearray(CONTENT[:start])
    fetch = Fetch(url, access, is_checked, start, version)
    for position, piece in fetch.pieces():
        if position == 0:
            found.clear()
        assert position == len(found)
        found += piece
    assert fetch.position == len(found)
    return bytes(found)


def refusal(url: str, access: Access = PLAIN, **options: Any) -> str:
    with pytest.raises(FetchFailed) as told:
        fetched(url, access, **options)
    for secret in ("a-secret-token", "a-secret-password"):
        assert secret not in str(told.value) and secret not in repr(access)
    return str(told.value)


def test_a_whole_file() -> None:
    with serving(lambda handler, _number: ranged(handler)) as server:
        assert fetched(server.url) == CONTENT and len(server.asked) == 1


@pytest.mark.parametrize("tag", ['"one"', ""])
def test_a_transfer_that_is_cut_goes_on(tag: str) -> None:
    with serving(lambda handler, _number: ranged(handler, most=700_000, tag=tag)) as server:
        assert fetched(server.url) == CONTENT
        assert [int(headers.get("Range", "bytes=0-")[6:-1]) for headers in server.asked] == [0, 700_000, 1_400_000, 2_100_000, 2_800_000]


def test_without_a_tag_and_a_checksum_it_begins_anew() -> None:
    with serving(lambda handler, number: ranged(handler, most=700_000 if number < 2 else 1 << 40, tag="")) as server:
        assert fetched(server.url, is_checked=False) == CONTENT


def test_a_server_that_cannot_begin_in_the_middle() -> None:
    with serving(lambda handler, number: reply(handler, CONTENT if number else CONTENT[:1_000_000], length=len(CONTENT))) as server:
        assert fetched(server.url) == CONTENT


@pytest.mark.parametrize("status", [200, 206])
def test_a_file_that_is_changed_meanwhile(status: int) -> None:
    """The server says so by a whole answer, or another tag with a part."""
    other = bytes(reversed(CONTENT))

    def answer(handler: Any, number: int) -> None:
        if not number:
            return ranged(handler, most=1_000_000)
        if status == 206 and asked_from(handler):
            return reply(handler, other[1_000_000:], 206, ETag='"two"', Content_Range=f"bytes 1000000-{len(other) - 1}/{len(other)}")
        return ranged(handler, other, tag='"two"')

    with serving(answer) as server:
        assert fetched(server.url, is_checked=False) == other


def test_what_an_earlier_task_left_is_gone_on_with() -> None:
    with serving(lambda handler, _number: ranged(handler)) as server:
        assert fetched(server.url, start=1_000_000, version=Version(len(CONTENT), '"one"')) == CONTENT
        assert server.asked[0]["Range"] == "bytes=1000000-" and server.asked[0]["If-Range"] == '"one"'
        assert fetched(server.url, start=1_000_000, version=Version(len(CONTENT), '"older"')) == CONTENT


def test_a_part_that_is_longer_than_the_file() -> None:
    def answer(handler: Any, _number: int) -> None:
        start = asked_from(handler)
        return reply(handler, b"", 416) if start >= 10 else reply(handler, b"0123456789")

    with serving(answer) as server:
        assert fetched(server.url, start=20, version=Version(30)) == b"0123456789"


def test_a_server_that_is_busy_is_asked_again() -> None:
    with serving(lambda handler, number: ranged(handler) if number == 3 else reply(handler, b"busy", 503)) as server:
        assert fetched(server.url) == CONTENT
    with serving(lambda handler, _number: reply(handler, b"busy", 503)) as server:
        assert "answers 503" in refusal(server.url) and len(server.asked) == 5


def test_a_server_that_stalls() -> None:
    def answer(handler: Any, _number: int) -> None:
        ranged(handler, most=0)
        handler.wfile.flush()
        time.sleep(1.5)

    with serving(answer) as server:
        begin = time.monotonic()
        assert "timed out" in refusal(server.url)
        assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    "status, words", [(401, "a name and a password"), (403, "does not allow"), (404, "no such file"), (410, "410"), (204, "204"), (500, "500")]
)
def test_what_a_server_refuses(status: int, words: str) -> None:
    with serving(lambda handler, _number: reply(handler, b"", status)) as server:
        assert words in refusal(server.url, SECRET)


def test_a_server_that_lies() -> None:
    with serving(lambda handler, _number: reply(handler, CONTENT[:1000], length=2000)) as server:
        assert "ended after 1000 of 2000" in refusal(server.url) and len(server.asked) == 5
    with serving(lambda handler, _number: reply(handler, CONTENT[:10], 206, Content_Range="nonsense")) as server:
        assert "which part" in refusal(server.url)
    with serving(lambda handler, _number: reply(handler, CONTENT[5:10], 206, Content_Range="bytes 5-9/10")) as server:
        assert refusal(server.url)  # nobody asked for the middle


def redirecting(target: str, status: int = 302) -> Callable[[Any, int], None]:
    return lambda handler, _number: reply(handler, b"", status, Location=target)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(status: int) -> None:
    with serving(lambda handler, _number: ranged(handler)) as server, serving(redirecting(server.url, status)) as first:
        assert fetched(first.url) == CONTENT


def test_secrets_stay_with_their_host() -> None:
    with serving(lambda handler, _number: ranged(handler)) as server, serving(redirecting(server.url)) as first:
        assert fetched(first.url, SECRET) == CONTENT
        assert first.asked[0]["X-Auth-Token"] == "a-secret-token" and "Authorization" in first.asked[0]
        assert not {"x-auth-token", "authorization"} & {name.lower() for name in server.asked[0]}

    def within(handler: Any, number: int) -> None:
        return ranged(handler) if number else reply(handler, b"", 302, Location="/elsewhere")

    with serving(within) as server:
        assert fetched(server.url, SECRET) == CONTENT
        assert server.asked[1]["X-Auth-Token"] == "a-secret-token"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_to_other_things(target: str) -> None:
    with serving(redirecting(target)) as server:
        assert "redirects to something" in refusal(server.url)


def test_a_loop_of_redirects() -> None:
    with serving(lambda handler, _number: reply(handler, b"", 302, Location="/again")) as server:
        assert "more than 10 times" in refusal(server.url) and len(server.asked) == 11


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    key = path.with_suffix(".key")
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *words, "-keyout", str(key), "-out", str(path)], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


def test_a_redirect_from_https_to_http(certificate: Path) -> None:
    with serving(lambda handler, _number: ranged(handler)) as server, serving(redirecting(server.url), certificate) as first:
        assert "from https to http" in refusal(first.url, Access(validate_certs=False))
        assert not server.asked


def test_certificates_are_validated(certificate: Path) -> None:
    with serving(lambda handler, _number: ranged(handler), certificate) as server:
        began = time.monotonic()
        assert "cannot be trusted" in refusal(server.url)
        assert time.monotonic() - began < 10 and not server.asked
        assert fetched(server.url, Access(validate_certs=False)) == CONTENT


def test_nobody_is_there() -> None:
    with serving(lambda handler, _number: ranged(handler)) as server:
        pass
    assert "does not answer" in refusal(server.url)
    assert "cannot be" in refusal("http://name.invalid/x")


def test_the_time_of_a_task_ends_a_transfer() -> None:
    def over(_seconds: float) -> None:
        raise TimeoutError

    with serving(lambda handler, _number: reply(handler, b"busy", 503)) as server, pytest.raises(TimeoutError):
        list(Fetch(server.url, Access(), True, sleep=over).pieces())


@pytest.mark.parametrize(
    "url, name, words",
    [
        ("https://host/a/disk%20one.img", "disk one.img", "https://host/a/disk%20one.img"),
        ("https://user:pw@host:81/disk.img?token=x#y", "disk.img", "https://host:81/disk.img?..."),
        ("https://host/", "", "https://host/"),
    ],
)
def test_names_and_words_of_urls(url: str, name: str, words: str) -> None:
    assert (name_of(url), shown(url)) == (name, words)


# -- what strangers found ----------------------------------------------------------------------------------------------


def chunked(handler: Any, data: bytes, is_whole: bool) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for start in range(0, len(data), 100_000):
        piece = data[start : start + 100_000]
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n" if is_whole else b"")


@pytest.mark.parametrize("is_checked", [True, False])
def test_an_answer_in_chunks_that_was_cut_is_no_whole_one(is_checked: bool) -> None:
    with serving(lambda handler, number: chunked(handler, CONTENT[: 1_050_000 if number < 3 else len(CONTENT)], number >= 3)) as server:
        assert fetched(server.url, is_checked=is_checked) == CONTENT
    with serving(lambda handler, _number: chunked(handler, CONTENT[:1_050_000], False)) as server, pytest.raises(FetchFailed, match="was cut"):
        fetched(server.url, is_checked=is_checked)


RESTARTS: dict[str, Callable[[Any], None]] = {
    "no ETag": lambda handler: reply(handler, CONTENT[:400_000], length=len(CONTENT)),
    "416 to each range": lambda handler: (
        reply(handler, b"", 416) if "Range" in handler.headers else reply(handler, CONTENT[:400_000], length=len(CONTENT), ETag='"a"')
    ),
    "another total": lambda handler: (
        reply(handler, b"x", 206, ETag='"a"', Content_Range=f"bytes 400000-{len(CONTENT)}/{len(CONTENT) + 1}")
        if "Range" in handler.headers
        else reply(handler, CONTENT[:400_000], length=len(CONTENT), ETag='"a"')
    ),
}


@pytest.mark.parametrize("kind", RESTARTS)
@pytest.mark.parametrize("is_checked", [True, False])
def test_a_transfer_that_never_comes_farther_ends(kind: str, is_checked: bool) -> None:
    with serving(lambda handler, _number: RESTARTS[kind](handler)) as server:
        with pytest.raises(FetchFailed):
            fetched(server.url, is_checked=is_checked)
        assert len(server.asked) <= 12


@pytest.mark.parametrize("length", ["abc", "-5", "1e3", "0x10", ""])
def test_a_length_that_is_no_number(length: str) -> None:
    def answer(handler: Any, _number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.wfile.write(CONTENT[:4096])

    with serving(answer) as server, pytest.raises(FetchFailed, match="no number"):
        fetched(server.url)


def drip(handler: Any, slowly: Callable[[Any], None]) -> None:
    """Until the client has had enough."""
    try:
        for _number in range(200):
            slowly(handler)
            time.sleep(0.05)
    except OSError:
        pass


def head_letter_by_letter(handler: Any) -> None:
    handler.wfile.write(b"X")


def test_headers_that_come_letter_by_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_ANSWER", 0.2)
    with serving(lambda handler, _number: drip(handler, head_letter_by_letter)) as server:
        started = time.monotonic()
        with pytest.raises(FetchFailed, match="does not answer"):
            fetched(server.url)
        assert time.monotonic() - started < 5


def test_a_server_that_sends_hardly_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_WINDOW", 0.3)

    def answer(handler: Any, _number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        drip(handler, lambda one: one.wfile.write(b"x"))

    with serving(answer) as server, pytest.raises(FetchFailed, match="hardly anything"):
        fetched(server.url)


def test_a_range_that_nobody_asked_for() -> None:
    with serving(lambda handler, _number: reply(handler, b"", 416)) as server:
        with pytest.raises(FetchFailed, match="answers 416"):
            fetched(server.url)
        assert len(server.asked) == 1
