# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends an image to a server, by PUT, with Ansible's own client. It goes as one answerable whole: a server that loses the connection
gets it again from the beginning."""

from __future__ import annotations

import hashlib
import time
from typing import Any, Callable, Iterator
from urllib.error import HTTPError

from . import fetching

_SILENCE = 300.0  # seconds: a server may store all of it before it answers
_ASKED, _SHORTEST = 30.0, 0.1
_TRIES = 4
_PAUSE, _LONGEST_PAUSE = 1.0, 16.0  # seconds before the next of them
_NOT_ALLOWED = (401, 403, 407)


class SendFailed(Exception):
    """The message says why, without secrets, as the end of a sentence about the URL."""


class _Again(Exception):
    """It may go better another time. The message says why it did not."""


def send(
    url: str,
    access: fetching.Access,
    length: int,
    content: Callable[[], Iterator[bytes]],
    sleep: Callable[[float], None] = time.sleep,
    left: Callable[[], float | None] = lambda: None,
) -> None:
    """Send ``length`` bytes.

    :param left: seconds that the user gives it yet (None: any number), so that a server that is silent does not keep it longer.
    :param content: gives them from the beginning, each time it is called. Its errors are raised as they are.
    :param sleep: waits so many seconds before the next try; it may raise to end it. :raises SendFailed: the server does not take it.
    """
    for number in range(1, _TRIES + 1):
        try:
            _send_once(url, access, length, content(), left)
            return
        except _Again as cut:
            if number == _TRIES:
                raise SendFailed(f"{cut} ({_TRIES} times)") from cut
            sleep(min(_PAUSE * 2 ** (number - 1), _LONGEST_PAUSE))


def _within(seconds: float, left: Callable[[], float | None]) -> float:
    """How long a server may be silent. Never 0, which is another thing to a socket."""
    rest = left()
    return seconds if rest is None else min(seconds, max(rest, _SHORTEST))


def _send_once(url: str, access: fetching.Access, length: int, content: Iterator[bytes], left: Callable[[], float | None]) -> None:
    body = _Body(content)
    headers = {"Content-Type": fetching.TYPE, "Content-Length": str(length)}
    try:
        with _answer(lambda: fetching.request("PUT", url, access, headers, _within(_SILENCE, left), body), body, left) as answer:
            if not 200 <= answer.status < 300:
                raise SendFailed(f"the server answers {answer.status}")
    except HTTPError as error:
        with error:
            _refuse(error.code)
    except fetching.FAILURES as error:
        if body.failure is not None:
            raise body.failure from error
        if fetching.is_lasting(error):
            raise SendFailed(f"the server cannot be trusted or reached ({fetching.words_of(error)})") from error
        _ask_whether_allowed(url, access, left)
        reason = getattr(error, "reason", error)
        if isinstance(reason, ConnectionRefusedError):
            raise _Again(f"no server takes connections there ({fetching.words_of(error)})") from error
        hint = ", as servers do that refuse an image whose beginning they have seen" if isinstance(reason, ConnectionError) else ""
        raise _Again(f"the connection was lost ({fetching.words_of(error)}){hint}") from error


def _answer(ask: Callable[[], Any], body: _Body, left: Callable[[], float | None]) -> Any:
    """The answer of a server, whose text, which may never end, tells nothing. :raises _Again: all was sent, and no answer came in time."""

    def seconds() -> float:
        patience = _within(_SILENCE, left)
        return patience if body.ended is None else body.ended + patience - time.monotonic()

    answer = fetching.in_time(ask, seconds)
    if answer is None:
        raise _Again(f"the server does not answer ({fetching.NO_ANSWER})")
    return answer


def _refuse(code: int) -> None:
    """:raises SendFailed, _Again: always."""
    if code in fetching.PASSING:
        raise _Again(f"the server answers {code}")
    if code in fetching.REDIRECTS:
        raise SendFailed(f"the server answers {code}: it redirects, and nothing is sent elsewhere than was asked; give the URL that it redirects to")
    raise SendFailed(f"the server answers {code}{fetching.HINTS.get(code, '')}")


def _ask_whether_allowed(url: str, access: fetching.Access, left: Callable[[], float | None]) -> None:
    """Many servers close the connection of whoever they do not know, while the image is on its way, so that their answer is lost. They
    are asked for it. :raises SendFailed: it is a refusal."""
    try:
        with fetching.request("HEAD", url, access, {}, _within(_ASKED, left)):
            return
    except HTTPError as error:
        with error:
            if error.code in _NOT_ALLOWED:
                raise SendFailed(f"the server answers {error.code}{fetching.HINTS.get(error.code, '')}") from error
    except fetching.FAILURES:
        return  # the next try tells


class _Body:
    """What is sent. ``failure`` is the error of the content, which the client would take for one of the connection. ``ended``: when all of it was
    given (monotonic seconds)."""

    def __init__(self, content: Iterator[bytes]) -> None:
        self._content = content
        self.failure: BaseException | None = None
        self.ended: float | None = None

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._content)
        except StopIteration:
            self.ended = self.ended or time.monotonic()
            raise
        except BaseException as error:
            self.failure = error
            raise


class Tally:
    """Counts what is sent. ``digits`` is the sha256 of what was sent last from the beginning."""

    def __init__(self, content: Callable[[], Iterator[bytes]]) -> None:
        self._content, self._sum = content, hashlib.sha256()

    def pieces(self) -> Iterator[bytes]:
        """All of it, anew."""
        self._sum = hashlib.sha256()
        for piece in self._content():
            self._sum.update(piece)
            yield piece

    @property
    def digits(self) -> str:
        """Hex digits."""
        return self._sum.hexdigest()
