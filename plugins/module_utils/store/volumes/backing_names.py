# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the name of a backing file or data file may mean, in all notations that QEMU and related programs accept.

Nothing here looks at a file. A name is split into the paths that it may mean. :mod:`dependents` finds out which of these are files
of a share. It is right to return too many: one path too many leads to a question to the user, one too few to lost data.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Iterator, NamedTuple
from urllib.parse import unquote

_DEEPEST = 8  # names within names that are followed
_MOST = 256  # paths that one name can mean
_MOST_TRIED = 2048  # the same, with repeated ones counted
_PROTOCOL = re.compile(r"([A-Za-z0-9+._-]+):")
_LOCAL = ("file", "host_device", "host_cdrom", "host_floppy", "raw", "qcow2", "qcow", "qed", "vmdk")  # a plain file name follows
_FOLDERS = re.compile(r"\b(v?v?fat)\b")
_SERVER_URL = re.compile(r"[A-Za-z0-9+._-]+://[^/]*/?")
_STRINGS = re.compile(r""""((?:[^"\\]|\\.)*)("|\Z)|'((?:[^'\\]|\\.)*)('|\Z)""", re.DOTALL)
_COLON = re.compile(r"\s*:")
_ESCAPED = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
# Keys whose values never name a file. Without this list a volume called "raw" or "file" would seem to be named by them.
_NO_NAMES = frozenset(
    "driver node-name id aio cache locking discard detect-zeroes read-only auto-read-only type server.type host port user format fmt "
    "password-secret key-secret data-file-raw overlap-check lazy-refcounts".split()
)


class Target(NamedTuple):
    """A path that a name may mean.

    ``sure``: it is a path of this host, relative to the folder of the file that contains the name. If not ``sure``, only its last
    part counts, because a server, another host or a working directory completes the path."""

    path: str
    sure: bool


def targets(name: str) -> tuple[Target, ...]:
    """All paths that a backing name may mean, each once. Empty for a name that means no file."""
    found: dict[Target, None] = {}
    for target in islice(_targets(name, 0), _MOST_TRIED):
        if target.path.strip("/"):
            found.setdefault(target)
        if len(found) >= _MOST:
            break
    return tuple(found)


def shows_folders(name: str) -> bool:
    """Whether a name may be for QEMU's driver vvfat, which shows all files of a folder as a file system."""
    return "fat" in name and _FOLDERS.search(name) is not None


def foreign_targets(name: str) -> tuple[Target, ...]:
    """As :func:`targets`, for names in other formats than qcow2. It is less certain where these begin, and some have backslashes."""
    found = dict.fromkeys(targets(name))
    for spelling in (name, name.replace("\\", "/")):
        found.update(dict.fromkeys([Target(spelling, True), Target(last_part(spelling), False)]))
    return tuple(target for target in found if target.path.strip("/"))


def last_part(path: str) -> str:
    """The last part of a path that is not ``.``. Slashes at the end do not matter."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return parts[-1] if parts else ""


def _targets(name: str, depth: int) -> Iterator[Target]:
    if depth > _DEEPEST or not name:
        return
    if name.startswith("json:"):
        yield from _in_json(name[len("json:") :], depth)
        return
    protocol = _PROTOCOL.match(name)
    if protocol is None:
        yield Target(name, True)
        return
    rest = name[protocol.end() :]
    if protocol.group(1).lower() in _LOCAL and not _SERVER_URL.match(name):
        yield from _on_this_host(rest, depth)
    else:
        # The name may also be that of a file, colon and all, for programs that know no protocols.
        yield Target(last_part(name), False)
        if protocol.group(1).lower() in _LOCAL:  # file://HOST/PATH
            yield from _on_this_host("/" + rest.partition("//")[2].partition("/")[2], depth)
            yield from _on_this_host(rest, depth)
        yield from _on_a_server(name, depth)


def _on_this_host(rest: str, depth: int) -> Iterator[Target]:
    """Paths from what follows a prefix for local files. Unless absolute, they are relative to an unknown working directory."""
    for spelling in dict.fromkeys((rest, unquote(rest))):
        yield Target(spelling, spelling.startswith("/"))
        if _PROTOCOL.match(spelling):
            yield from _targets(spelling, depth + 1)


def _on_a_server(name: str, depth: int) -> Iterator[Target]:
    """The parts of a URL, or of a list with colons, that can be the name of a file."""
    if "json:" in name:
        yield from _in_json(name.partition("json:")[2], depth + 1)
    for spelling in dict.fromkeys((name, unquote(name))):
        yield Target(last_part(re.split(r"[?#]", spelling)[0]), False)
        for part in re.split(r"[?#&;,=]", spelling):
            yield Target(last_part(part), False)
            pieces = part.split(":")
            for position, piece in enumerate(pieces):
                yield Target(last_part(piece), False)
                if position and piece.startswith("/") and not piece.startswith("//"):
                    yield Target(piece, True)
                rest = ":".join(pieces[position:])
                if position and (_PROTOCOL.match(rest) or rest.startswith("/")):
                    yield from _nested(rest, depth)


def _nested(name: str, depth: int) -> Iterator[Target]:
    """Paths from a name inside a name, such as blkdebug:CONFIGURATION:IMAGE."""
    if name.startswith("//"):
        return  # the rest of a URL
    if name.startswith("/"):
        yield Target(name, True)
    elif depth < 2:
        yield from _targets(name, depth + 1)


def _in_json(text: str, depth: int) -> Iterator[Target]:
    """Paths from all strings of a JSON text that may name a file, at any place in it.

    QEMU accepts both kinds of quotes, any order and nesting, and keys with dots. A torn text is read up to where it ends."""
    key = ""
    for match in _STRINGS.finditer(text):
        value = _unescaped(match.group(1) if match.group(1) is not None else match.group(3))
        if _COLON.match(text, match.end()):
            key = value
            continue
        if key.rpartition(".")[2] in _NO_NAMES or key in _NO_NAMES:
            continue
        for target in _targets(value, depth + 1):
            yield target if target.path.startswith("/") else Target(last_part(target.path), False)
        if _PROTOCOL.match(value) is None:
            yield from _on_a_server(value, depth + 1) if re.search("[?#%]", value) else ()


def _unescaped(text: str) -> str:
    def letter(match: re.Match) -> str:
        code = match.group(1)
        return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPES.get(code, code)

    return _ESCAPED.sub(letter, text)
