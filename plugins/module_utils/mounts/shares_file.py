# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file with a list of shares that Cinder's remotefs drivers read: one ``SOURCE [-o OPTIONS]`` per line."""
from __future__ import annotations

from .. import errors
from . import sources


def read(path: str) -> tuple[list[dict], list[str]]:
    """Read the file ``path``. :return: (one dict per share, one warning per line that does not describe a share).

    A dict has the key ``src`` (text), and ``opts`` (a list with one text of options) where the line has options.

    :raises InvalidParameter: there is no such file. :raises StorageError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            text = stream.read()
    except FileNotFoundError as error:
        raise errors.InvalidParameter(f"shares_file {path}", "it does not exist", "give the path of a file on the managed host") from error
    except OSError as error:
        raise errors.from_os_error(error, f"shares_file {path}") from error
    return parse(text, path)


def parse(text: str, path: str = "shares_file") -> tuple[list[dict], list[str]]:
    """What :func:`read` returns for the text of a file. :param path: the name of the file, for warnings.

    A line is split at its first blank, as Cinder does it. If a source is listed twice, the last line counts.
    """
    shares: dict[str, dict] = {}
    warnings = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        source, dummy, rest = line.partition(" ")
        source, options = source.strip().replace("\\040", " "), _options(rest.split())
        if not source or any(ord(char) < 32 or ord(char) == 127 for char in source):
            warnings.append(f"{path}, line {number}: it starts with a blank or has a tab in its source, the line is passed over")
        elif not (sources.is_source(sources.normalise(source)) or source.startswith("/")):
            warnings.append(f"{path}, line {number}: it does not start with a share's source, the line is passed over")
        elif options is None:
            warnings.append(f"{path}, line {number}: what follows the source is not '-o OPTIONS', the line is passed over")
        else:
            shares[source] = {"src": source, "opts": [options]} if options else {"src": source}
    return list(shares.values()), warnings


def _options(words: list[str]) -> str | None:
    """The options in words such as ``-o ro,hard -o vers=4.2``, joined by commas; None if there are other words."""
    found = []
    while words:
        word = words.pop(0)
        if word == "-o" and words:
            found.append(words.pop(0))
        elif word.startswith("-o") and len(word) > 2:
            found.append(word[2:])
        else:
            return None
    return ",".join(found)
