# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users say of a server that images come from or go to."""

from __future__ import annotations

import os

from .. import errors
from ..images import fetching
from ..images.fetching import TYPE, Access

_LONGEST = 8192  # characters of a URL or a path
_URLS = ("http://", "https://")
_OWN_HEADERS = ("range", "if-range", "content-length", "transfer-encoding", "accept-encoding", "connection", "te", "upgrade", "expect")
_OF_SERVERS = ("headers", "url_username", "url_password", "client_cert", "client_key")


def is_url(place: str) -> bool:
    """Whether it is on a server, and not on this host."""
    return place.lower().startswith(_URLS)


def require_url(option: str, place: str) -> None:
    """:raises InvalidParameter: it is no URL that can be asked."""
    _refuse(option, fetching.flaw_of(place) or _too_long(place))


def require_path(option: str, place: str) -> None:
    """:raises InvalidParameter: it is no absolute path."""
    flaw = None
    if "://" in place:
        flaw = f"{place.partition(':')[0][:20]} is neither http nor https"
    elif not place.startswith("/"):
        flaw = "it is no absolute path"
    elif "\0" in place:
        flaw = "it has a NUL in it"
    _refuse(option, flaw or _too_long(place))


def _too_long(place: str) -> str | None:
    return f"it has more than {_LONGEST} characters" if len(place) > _LONGEST else None


def _refuse(option: str, flaw: str | None) -> None:
    if flaw is not None:
        raise errors.InvalidParameter(option, flaw, "give a URL (http or https), or the absolute path of a file on the managed host")


def access_of(given: dict, prefix: str = "", sends: bool = False) -> Access:
    """How the server is asked. :param prefix: of the options' names. :param sends: an image goes there, whose type this module says.

    :raises InvalidParameter: a header cannot be sent.
    """
    headers = _headers(given["headers"] or {}, prefix)
    for name in [name for name in headers if sends and name.lower() == "content-type"]:
        if headers.pop(name).strip().lower() != TYPE:
            raise errors.InvalidParameter(f"option {prefix}headers, {name}", f"an image is {TYPE}", "leave it out")
    return Access(
        tuple(headers.items()),
        given["validate_certs"],
        given["url_username"] or "",
        given["url_password"] or "",
        given["client_cert"],
        given["client_key"],
    )


def require_together(given: dict, asks_server: bool, prefix: str, place: str) -> None:
    """:param place: the option that names the URL or the path. :raises InvalidParameter: an option would be ignored, or names a file that is not
    there."""
    of_servers = [name for name in _OF_SERVERS if given[name]]
    if of_servers and not asks_server:
        raise errors.InvalidParameter(f"option {prefix}{of_servers[0]}", f"it is for a server, and {place} is a path", "leave it out")
    for name, other in (("url_password", "url_username"), ("client_key", "client_cert")):
        if given[name] and not given[other]:
            raise errors.InvalidParameter(f"option {prefix}{name}", f"it does nothing without {other}", f"give {prefix}{other} as well")
    for name in ("client_cert", "client_key"):
        if given[name] and not os.path.isfile(given[name]):
            raise errors.InvalidParameter(f"option {prefix}{name}", f"there is no file {given[name]}", "give the path of a file on the managed host")


def _headers(given: dict, prefix: str) -> dict[str, str]:
    """:raises InvalidParameter: one cannot be sent."""
    for name, value in given.items():
        problem = None
        if str(name).lower() in _OWN_HEADERS:
            problem = "it says how the image is sent, which this module decides"
        elif not isinstance(value, (str, int, float)) or isinstance(value, bool):
            problem = "its value is no text"
        elif any(not text or not text.isascii() or not text.isprintable() for text in (str(name), str(value))):
            problem = "its name or its value is empty, or no text of one line"
        if problem is not None:
            raise errors.InvalidParameter(f"option {prefix}headers, {str(name)[:40]}", problem, "give headers as the server wants them")
    return {str(name): str(value) for name, value in given.items()}
