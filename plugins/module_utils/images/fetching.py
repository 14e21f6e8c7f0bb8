# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes of a URL, from any of them on, by Ansible's own client (proxies, certificates, .netrc).

A transfer that is cut goes on where it was (RFC 9110, section 14), if what comes then is known to be of the same file: by a strong ETag, or
because the whole is checked by a checksum anyway. Redirects are followed here and not by the client: never from https to http, and
secrets go to the host alone for which they were given.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

_PIECE = 1 << 20  # bytes that are read at once
_SILENCE = 30.0  # seconds after which a server that sends nothing is given up
_MOMENT = 0.2  # seconds: how often it is looked whether there is time left
_ANSWER = 60.0  # seconds after which a server is given up whose answer has not begun
_TOGETHER = 0.5  # seconds for which small pieces are put together
_WINDOW, _LEAST = 60.0, 60 << 10  # seconds, and the bytes that a server must send in them: less is no transfer that ever ends
_MOST_REDIRECTS = 10
_TRIES = 5  # without coming farther than ever before
_PAUSE, _LONGEST_PAUSE = 1.0, 16.0  # seconds before the next of them
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
REDIRECTS = (301, 302, 303, 307, 308)
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers after which the next may be another
FAILURES = (URLError, http.client.HTTPException, OSError, ValueError)
TYPE = "application/octet-stream"
NO_ANSWER = "no answer came in time"
HINTS = {401: " (it wants a name and a password, or a token)", 403: " (it does not allow it)", 404: " (there is no such file)"}
_DEFAULT_PORTS = {"http": 80, "https": 443}


class FetchFailed(Exception):
    """The message says why, without secrets, as the end of a sentence about the URL."""


class _Cut(Exception):
    """It may go better at once. The message says why it did not."""


@dataclass(frozen=True)
class Access:
    """How a server is asked. Of the headers, the names and the password nothing is ever shown."""

    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    validate_certs: bool = True
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    client_cert: str | None = None
    client_key: str | None = None

    def elsewhere(self) -> Access:
        """The same without what only the first host may know."""
        return Access(validate_certs=self.validate_certs)


@dataclass(frozen=True)
class Version:
    """Which state of the file a server sends. ``length`` is that of all of it in bytes, None if the server does not say."""

    length: int | None = None
    tag: str = ""

    def is_of(self, other: Version) -> bool:
        """Whether both are surely the same state."""
        return bool(self.tag) and self.tag == other.tag and self.length == other.length


class Fetch:
    """The bytes of one URL.

    :param url: http or https. :param is_checked: a checksum of the whole decides in the end, so that parts of two states cannot pass.
    :param start: begin there; for that, what is there already must be of the state ``version``.
    :param sleep: waits so many seconds before the next try; it may raise to end the transfer.
    :param left: seconds that are left for all of it. None: as many as it takes.
    """

    def __init__(
        self,
        url: str,
        access: Access,
        is_checked: bool,
        start: int = 0,
        version: Version | None = None,
        sleep: Callable[[float], None] = time.sleep,
        left: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._url, self._access, self._is_checked, self._sleep, self._left = url, access, is_checked, sleep, left
        self.version = version  # that of the first answer, once there is one
        self.position = start  # bytes from the beginning that were given

    @property
    def needs(self) -> int | None:
        """Bytes that are still to come, if the server says it."""
        length = self.version.length if self.version is not None else None
        return None if length is None else length - self.position

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Bytes in order, with the position of each piece. A position of 0 that is not the first: the server has another state by now, or
        cannot go on in the middle, and what was given before is void.

        :raises FetchFailed: the server refuses, or does not go on; what was given until then is right.
        """
        tries, farthest = 0, self.position
        while True:
            try:
                yield from self._one_answer()
                return
            except _Cut as cut:
                tries = 1 if self.position > farthest else tries + 1
                farthest = max(farthest, self.position)
                if tries >= _TRIES:
                    raise FetchFailed(f"{cut} ({self.position} bytes had come)") from cut
                self._sleep(min(_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE))

    def _one_answer(self) -> Iterator[tuple[int, bytes]]:
        response = self._opened()
        try:
            start, version = self._begin(response)
            if start != self.position or (start and not self._may_go_on(version)):
                if start:
                    self.position = 0
                    raise _Cut("the file on the server was changed meanwhile")
                self.position = 0
            self.version = version
            yield from self._read(response)
        finally:
            response.close()

    def _may_go_on(self, version: Version) -> bool:
        known = self.version
        if known is None:
            return False
        return version.is_of(known) or (self._is_checked and None not in (version.length, known.length) and version.length == known.length)

    def _begin(self, response: Any) -> tuple[int, Version]:
        """Where the answer begins, and of which state it is."""
        tag = response.headers.get("ETag", "")
        tag = "" if tag.startswith("W/") else tag
        if response.status == 206:
            told = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
            if told is None:
                raise FetchFailed("the server does not say which part it sends")
            return int(told[1]), Version(None if told[3] == "*" else int(told[3]), tag)
        if response.status != 200:
            raise FetchFailed(f"the server answers {response.status}")
        length = response.headers.get("Content-Length")
        if length is not None and not (length.isascii() and length.isdecimal()):
            raise FetchFailed(f"the server tells a length that is no number ({length[:20]!r})")
        return 0, Version(int(length) if length is not None else None, tag)

    def _read(self, response: Any) -> Iterator[tuple[int, bytes]]:
        length = self.version.length if self.version is not None else None
        for piece in self._received(response):
            if length is not None and self.position + len(piece) > length:
                raise FetchFailed(f"the server sends more than the {length} bytes that it has told")
            at, self.position = self.position, self.position + len(piece)
            yield at, piece
        if length is not None and self.position < length:
            raise _Cut(f"the transfer ended after {self.position} of {length} bytes")

    def _received(self, response: Any) -> Iterator[bytes]:
        """What comes, in pieces that are neither small nor late: of a slow server each half a second."""
        waiting, since, window, counted = bytearray(), time.monotonic(), time.monotonic(), 0
        while True:
            cut: BaseException | None = None
            try:
                data = response.read1(_PIECE)
            except FAILURES as error:
                data, cut = b"", error
            waiting += data
            counted += len(data)
            now = time.monotonic()
            if waiting and (not data or len(waiting) >= _PIECE or now - since >= _TOGETHER):
                yield bytes(waiting)
                waiting.clear()
                since = now
            if cut is not None:
                raise _Cut(f"the transfer was cut ({words_of(cut)})") from cut
            if not data:
                return
            if now - window >= _WINDOW:
                if counted < _LEAST:
                    raise FetchFailed(f"the server sends hardly anything ({counted} bytes in {_WINDOW:.0f} s)")
                window, counted = now, 0

    # -- asking ------------------------------------------------------------------------------------------------------

    def _opened(self) -> Any:
        """The answer to a request for what is left. :raises FetchFailed: the server refuses. :raises _Cut: it may answer later."""
        url, access = self._url, self._access
        for _redirect in range(_MOST_REDIRECTS + 1):
            try:
                return self._answer(url, access)
            except HTTPError as error:
                with error:
                    target = error.url if error.code in REDIRECTS else None
                    if target is None:
                        self._refuse(error)
            except FAILURES as error:
                if is_lasting(error):
                    raise FetchFailed(f"the server cannot be trusted or reached ({words_of(error)})") from error
                raise _Cut(f"the server does not answer ({words_of(error)})") from error
            url, access = _followed(url, target or "", access)
        raise FetchFailed(f"the server redirects more than {_MOST_REDIRECTS} times")

    def _answer(self, url: str, access: Access) -> Any:
        """The beginning of the answer, in time.

        :raises _Cut: it did not come in time. Other errors are those of the client.
        """
        until = time.monotonic() + self._patience(_ANSWER)
        response = in_time(lambda: self._ask(url, access), lambda: until - time.monotonic())
        if response is None:
            raise _Cut(f"the server does not answer ({NO_ANSWER})")
        return response

    def _patience(self, most: float) -> float:
        left = self._left()
        return most if left is None else max(0.1, min(most, left))

    def _ask(self, url: str, access: Access) -> Any:
        headers = {}
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
            if self.version is not None and self.version.tag:
                headers["If-Range"] = self.version.tag
        return request("GET", url, access, headers, self._patience(_SILENCE))

    def _refuse(self, error: HTTPError) -> None:
        """:raises FetchFailed, _Cut: always."""
        if error.code == 416 and self.position:  # what is there is as long as the file, or longer than it is by now
            self.position = 0
            raise _Cut("the file on the server was changed meanwhile")
        if error.code in PASSING:
            raise _Cut(f"the server answers {error.code}")
        raise FetchFailed(f"the server answers {error.code}{HINTS.get(error.code, '')}")


def in_time(ask: Callable[[], Any], left: Callable[[], float]) -> Any:
    """What ``ask`` returns, or raises; None where it does neither in time. Another thread asks: a server that gives its answer letter by letter is
    never silent, and would keep any client for hours.

    :param left: seconds that there are yet. It is asked again and again.
    """
    found: list[tuple[Any, BaseException | None]] = []

    def ask_and_tell() -> None:
        try:
            found.append((ask(), None))
        except BaseException as error:  # it is raised where somebody waits for it
            found.append((None, error))

    asking = threading.Thread(target=ask_and_tell, daemon=True)
    asking.start()
    while not found:
        seconds = left()
        if seconds <= 0:
            return None
        asking.join(min(seconds, _MOMENT))
    answer, failure = found[0]
    if failure is not None:
        raise failure
    return answer


def request(method: str, url: str, access: Access, headers: dict[str, str], timeout: float, data: Iterator[bytes] | None = None) -> Any:
    """The answer of a server. Redirects are not followed.

    :param timeout: seconds of silence. :param data: what is sent; then ``headers`` say how long it is.
    :raises HTTPError: it refuses. :raises URLError, HTTPException, OSError, ValueError: there is no answer.
    """
    # late: most tasks find all as it should be, and ask nobody
    from ansible.module_utils.urls import ConnectionError as ClientError
    from ansible.module_utils.urls import open_url

    try:
        return open_url(
            url,
            data=data,
            method=method,
            headers={**dict(access.headers), "Accept-Encoding": "identity", **headers},
            timeout=timeout,
            validate_certs=access.validate_certs,
            url_username=access.username or None,
            url_password=access.password or None,
            force_basic_auth=bool(access.username),
            client_cert=access.client_cert,
            client_key=access.client_key,
            follow_redirects="none",
            decompress=False,
        )
    except ClientError as error:
        raise URLError(str(error)) from error


def flaw_of(url: str) -> str | None:
    """What is wrong with a URL before anybody is asked; None if nothing is."""
    if not url.isprintable() or " " in url:
        return "it has a space or a control character in it; write %20 for a space"
    try:
        parts = urlsplit(url)
        return None if parts.hostname and parts.port != 0 else "it names no host"
    except ValueError as error:
        return f"it is no URL ({error})"


def name_of(url: str) -> str:
    """The name of the file that a URL is of, without directories; empty if it has none."""
    return unquote(urlsplit(url).path).rpartition("/")[2]


def same_server(one: str, other: str) -> bool:
    """Whether both URLs are of the same host, port and scheme: what one may know the other may know."""
    return _place(urlsplit(one)) == _place(urlsplit(other))


def shown(url: str) -> str:
    """A URL for messages: without a name and a password, and without a query, which may be a secret."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="..." if parts.query else "", fragment="").geturl()


def _followed(url: str, target: str, access: Access) -> tuple[str, Access]:
    """Where a redirect leads, and what may be told there. :raises FetchFailed: it must not be followed."""
    before, after = urlsplit(url), urlsplit(target)
    if after.scheme not in _DEFAULT_PORTS or not after.hostname:
        raise FetchFailed("the server redirects to something that is neither http nor https")
    if before.scheme == "https" and after.scheme == "http":
        raise FetchFailed("the server redirects from https to http, where anybody could change the image")
    return target, access if _place(before) == _place(after) else access.elsewhere()


def _place(parts: Any) -> tuple:
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


def is_lasting(error: BaseException) -> bool:
    """Whether another try would fail alike: certificates, names that do not exist, URLs that are none."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, (ssl.SSLCertVerificationError, ValueError)) or (isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME)


def words_of(error: BaseException) -> str:
    """Why there is no answer, without secrets."""
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)
