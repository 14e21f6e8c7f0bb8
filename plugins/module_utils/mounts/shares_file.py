# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of shares that Cinder's remotefs drivers read: ``SOURCE [-o OPTIONS]`` a line."""
from __future__ import annotations

from ..errors import InvalidParameter, from_os_error
from . import tables, types


def read(path: str) -> tuple[list[dict], list[str]]:
    """The shares of the file as items with ``src`` and perhaps ``opts``, and a warning for every line that is none.

    :raises InvalidParameter: there is no such file. :raises StorageError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            text = stream.read()
    except FileNotFoundError as error:
        raise InvalidParameter(f"shares_file {path}", "it does not exist", "give the path of a file on the managed host") from error
    except OSError as error:
        raise from_os_error(error, f"shares_file {path}") from error
    return parse(text, path)


def parse(text: str, path: str = "shares_file") -> tuple[list[dict], list[str]]:
    """See :func:`read`."""
    items, warnings = [], []
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.strip().split(None, 1)
        if not fields or fields[0].startswith("#"):
            continue
        source = tables.unescape(fields[0])
        flag, options = _options(fields[1]) if len(fields) > 1 else ("-o", "")
        if flag != "-o" or (len(fields) > 1 and not options):
            warnings.append(f"{path}, line {number}: what follows the source is not '-o OPTIONS', the line is passed over")
        elif not (types.is_source(source) or source.startswith("/")):
            warnings.append(f"{path}, line {number}: it does not start with a share's source, the line is passed over")
        else:
            items.append({"src": source, "opts": [options]} if options else {"src": source})
    return items, warnings


def _options(rest: str) -> tuple[str, str]:
    flag, dummy, options = rest.strip().partition(" ")
    return flag, options.strip()
