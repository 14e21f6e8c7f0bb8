# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources of network shares: their forms, the spellings that mean the same share, and the lines of the two tables that are about them.

Pure. A task on a plain directory does not import this module.
"""
from __future__ import annotations

import re

from . import tables, types
from .types import FileSystem


def claim(source: str) -> FileSystem | None:
    """The row that ``fstype: auto`` chooses by the form of ``source``; None for a directory and for a form that fits no row."""
    for row in types.rows():
        if row.claims and source.startswith(row.prefixes) and re.fullmatch(row.claims, source):
            return row
    for row in types.rows():
        if row.claims and not row.prefixes and re.fullmatch(row.claims, normalise(source)):
            return row
    return None


def is_source(text: str) -> bool:
    """Whether ``text`` has the form of a source of any network file system. A word that could be anything has not."""
    return any(
        not row.local and (not row.vague or text.startswith(row.prefixes)) and re.fullmatch(row.source, spelt) is not None
        for row in types.rows()
        for spelt in (normalise(text), normalise(text, row))
    )


def for_mount(source: str, row: FileSystem) -> str:
    """``source`` as mount(8) and fstab want it."""
    return row.mount_prefix + bare(source, row) if row.prefixes else source


def bare(source: str, row: FileSystem) -> str:
    """``source`` without a prefix that means nothing."""
    return next((source[len(prefix):] for prefix in row.prefixes if source.startswith(prefix)), source)


def derived_options(source: str, row: FileSystem, options: tuple[str, ...]) -> tuple[str, ...]:
    """The options that carry the source where the helper reads it from nothing else, without those whose names ``options`` have."""
    if not row.source_options:
        return ()
    servers, _colon, path = source.partition(":/")
    named = {option.partition("=")[0] for option in options}
    made = [(option, option.format(source=source, servers=servers, path="/" + path)) for option in row.source_options]
    return tuple(text for option, text in made if text.partition("=")[0] not in named and (servers or "{servers}" not in option))


def is_same_share(source: str, other: str, row: FileSystem) -> bool:
    """Whether two spellings of a source mean the same share of the file system ``row``."""
    return normalise(source, row) == normalise(other, row)


def normalise(source: str, row: FileSystem | None = None) -> str:
    """``source`` in one spelling, so that all spellings which servers and clients treat alike become equal.

    Doubled slashes, "." and a trailing slash are removed. Backslashes become slashes. Host names become lower case; so do share names
    if their case does not matter. ``row`` adds what the form does not show, for example whether ``host:name`` means ``host:/name``.
    """
    if row is not None and row.prefixes:
        source = bare(source, row).rstrip("/")
    if row is not None and row.default_port and not source.startswith("/"):
        return _of_a_cluster(source, row.default_port)
    if source.startswith(("//", "\\\\")) and (row is None or row.folds_case):
        parts = _parts(source.replace("\\", "/"))
        return "//" + "/".join([part.lower() for part in parts[:2]] + parts[2:])
    if source.startswith("/"):
        return "/" + "/".join(_parts(source))
    remote = re.fullmatch(r"((?:[^@:/]*@)?)((?:\[[^\]]*\]|[^\[\]:/@])+):(.*)", source, re.DOTALL)
    if remote is None:
        return source
    user, host, path = remote.groups()
    rooted = "/" if path.startswith("/") or (path and row is not None and row.slash_optional) else ""
    return f"{user}{_host(host.lower())}:{rooted}{'/'.join(_parts(path))}"


def _of_a_cluster(source: str, port: str) -> str:
    """A source that begins with servers, or with USER@CLUSTER and ``=``. The order of the servers means nothing, nor does the usual port."""
    if "@" in source.partition("/")[0]:
        name, sign, path = source.partition("=/")
    else:
        name, sign, path = source.partition(":/")
        name = ",".join(sorted({re.sub(f"(:{port})+$", "", _host(server.lower())) for server in name.split(",")}))
    return f"{name}{sign}{'/'.join(_parts(path))}" if sign else source


def shows_part(mount: tables.Mount) -> bool:
    """Whether it is a bind mount of a directory within its source. Some file systems show that directory in the source and in the root."""
    return mount.root not in ("/", tables.HIDDEN) and not mount.source.rstrip("/").endswith(mount.root.rstrip("/"))


def is_mount_of(mount: tables.Mount, source: str) -> bool:
    """Whether ``mount`` shows the whole network share ``source``, in any spelling."""
    row = types.by_kernel_type(mount.fstype)
    if row is None or shows_part(mount):
        return False
    return is_same_share(mount.source, source, row)


def is_entry_of(entry: tables.Entry, source: str) -> bool:
    """Whether a line of fstab mounts the network share ``source``, in any spelling."""
    row = types.by_mount_type(entry.fstype)
    return row is not None and is_same_share(entry.source, source, row)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _host(host: str) -> str:
    if not host.startswith("["):
        return host
    from socket import AF_INET6, inet_ntop, inet_pton  # late: such addresses are rare

    address, percent, zone = host.strip("[]").partition("%")
    try:
        return f"[{inet_ntop(AF_INET6, inet_pton(AF_INET6, address))}{percent}{zone}]"
    except OSError:
        return host
