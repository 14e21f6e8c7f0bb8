# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums of images, and lists of checksums as projects publish them (SHA256SUMS, CHECKSUM, one file beside each image)."""

from __future__ import annotations

import re
from typing import NamedTuple

#: Hexadecimal digits of each algorithm.
DIGITS = {"sha256": 64, "sha512": 128, "md5": 32}

MOST_LIST = 4 << 20  # bytes of a list that are read
_WORD = re.compile(r"(?P<algorithm>[A-Za-z0-9]+):(?P<value>.+)", re.DOTALL)
_GNU = re.compile(r"(?P<escaped>\\?)(?P<digits>[0-9A-Fa-f]{32,128})[ \t]+[*]?(?P<name>\S.*)")
_BSD = re.compile(r"(?P<escaped>\\?)(?P<algorithm>[A-Za-z0-9-]+)[ \t]*\((?P<name>.+)\)[ \t]*=[ \t]*(?P<digits>[0-9A-Fa-f]+)")
_ALONE = re.compile(r"[0-9A-Fa-f]{32,128}")
_ESCAPES = {"\\n": "\n", "\\r": "\r", "\\\\": "\\"}


class BadChecksum(ValueError):
    """The message says what is wrong, as the end of a sentence about the checksum that the user gave, or about its list."""


class Wanted(NamedTuple):
    """``digits`` is the checksum in small hexadecimal digits, or empty where ``list_url`` leads to a list of them."""

    algorithm: str
    digits: str = ""
    list_url: str = ""


def wanted(text: str) -> Wanted:
    """What a user gave: ``sha256:HEX`` or ``sha256:URL``, also sha512 and md5. :raises BadChecksum: it is neither."""
    parts = _WORD.fullmatch(text.strip())
    algorithm = parts["algorithm"].lower() if parts else ""
    if parts is None or algorithm not in DIGITS:
        raise BadChecksum(f"it does not begin with one of {', '.join(f'{name}:' for name in DIGITS)}")
    value = parts["value"].strip()
    if value.lower().startswith(("http://", "https://")):
        return Wanted(algorithm, list_url=value)
    return Wanted(algorithm, _checked(algorithm, value))


def _checked(algorithm: str, digits: str) -> str:
    if not _ALONE.fullmatch(digits) or len(digits) != DIGITS[algorithm]:
        told = f"{algorithm} has {DIGITS[algorithm]} hexadecimal digits, and this one is {digits[:20]!r}"
        raise BadChecksum(f"{told}; instead of digits it can have the http(s) URL of a list")
    return digits.lower()


def from_list(text: str, algorithm: str, name: str) -> str:
    """The digits that a list has for a file.

    Lines are those of ``sha256sum`` (with or without ``--tag``), of BSD's and of OpenSSL's programs. Comments and signatures are passed
    over. A list that is nothing but digits is about this file.

    :param name: of the file, without directories.
    :raises BadChecksum: it has none for it, or several that differ.
    """
    lines = [line.strip() for line in text.splitlines()]
    body = [line for line in lines[: _end_of_body(lines)] if line and not line.startswith(("#", "-----", "Hash:"))]
    alone = [line for line in body if _ALONE.fullmatch(line)]
    if len(body) == 1 and alone:
        return _checked(algorithm, alone[0])
    found = {digits for line in body for named, digits in _entries(line, algorithm) if named.rpartition("/")[2] == name}
    if not found:
        raise BadChecksum(f"the list has no {algorithm} of {name}")
    if len(found) > 1:
        raise BadChecksum(f"the list has {len(found)} different checksums of {name}")
    return found.pop()


def _end_of_body(lines: list[str]) -> int:
    """Where a signature begins that follows the lines."""
    return next((number for number, line in enumerate(lines) if line == "-----BEGIN PGP SIGNATURE-----"), len(lines))


def _entries(line: str, algorithm: str) -> list[tuple[str, str]]:
    """Name and digits of a line, if it is about this algorithm."""
    tagged = _BSD.fullmatch(line)
    if tagged:
        if _plain(tagged["algorithm"]) != algorithm or len(tagged["digits"]) != DIGITS[algorithm]:
            return []
        return [(_unescaped(tagged["name"], tagged["escaped"]), tagged["digits"].lower())]
    plain = _GNU.fullmatch(line)
    if plain is None or len(plain["digits"]) != DIGITS[algorithm]:
        return []
    return [(_unescaped(plain["name"], plain["escaped"]), plain["digits"].lower())]


def _plain(algorithm: str) -> str:
    """``SHA256``, ``SHA-256`` and ``SHA2-256``, as OpenSSL 3 has it, are one."""
    return re.sub(r"^sha2?-", "sha", algorithm.lower()).replace("-", "")


def _unescaped(name: str, escaped: str) -> str:
    """GNU's programs put a backslash before a line whose name has line ends or backslashes."""
    return re.sub(r"\\[nr\\]", lambda found: _ESCAPES[found[0]], name) if escaped else name
