# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a desired share from the options of a task. Each value is checked here, once, before anything is observed or changed."""
from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from .. import errors
from . import binds, planner, resolve, sources, steps, tables, types, witnesses
from . import options as mount_options

if TYPE_CHECKING:
    Mounts = tuple[tables.Mount, ...]
    Entries = tuple[tables.Entry, ...]

CREDENTIALS = "/etc/remotefs/credentials"
_CREDENTIAL_KEYS = ("username", "password", "domain")


def read_wish(params: dict, mounts: Mounts, entries: Entries) -> planner.DesiredShare:
    """The share that a task desires. :param params: the options of remotefs_share. Every option has a key.

    :param mounts: the kernel's table. :param entries: the lines of fstab. These two decide what ``fstype: auto`` means, before the source's form does.
    :raises InvalidParameter: a value is wrong, or two values contradict each other.
    """
    src, base = _source(params), resolve.clean_path(params["mount_base"], "mount_base")
    state = params["state"]
    row = _row(params, src, mounts, entries, base)
    path = _path(params["path"], src, row, mounts, entries, base)
    if src is None:
        src = _known_source(path, row, mounts, entries)
    if src is None and state in planner.KEPT and row.mount_type:
        raise errors.InvalidParameter(f"path {path}", "no source is given for it", "give src")
    if src is not None and not re.fullmatch(row.source, src if row.local else sources.normalise(src, row)):
        remedy = "; ".join(filter(None, (f"write it like {row.example}", row.source_advice)))
        raise errors.InvalidParameter(f"src {src!r}", f"it is no source of {row.name}", remedy)
    options = mount_options.check(_options(params["opts"], state, path, row, entries))
    options = sources.derived_options(src or "", row, options) + options
    if row.by_shell and state in planner.KEPT:
        _check_for_a_shell(row, (src or "", path, *options))
    desired = planner.DesiredShare(
        src=src,
        path=path,
        row=row,
        options=options,
        credentials=_credentials(params["credentials"], row),
        credentials_file=credentials_file(path),
        state=state,
        persist=params["persist"],
        fstab=resolve.clean_path(params["fstab"], "fstab"),
        own_directory=bool(row.mount_type) and path != base and tables.is_within(path, base),
    )
    _check(desired)
    return desired


def _check_for_a_shell(row: types.FileSystem, words: tuple[str, ...]) -> None:
    for word in words:
        if not re.fullmatch(r"[A-Za-z0-9_@%+=:,./\[\]-]*", word):
            problem = f"{row.helper} hands it to a shell, which would not leave it as it is"
            raise errors.InvalidParameter(f"text {word!r}", problem, "use letters, digits and _ @ % + = : , . / [ ] - only")


def credentials_file(path: str) -> str:
    """The path of the credentials file for a mount at ``path``. Each mount has its own file, so that no mount uses or deletes another one's."""
    return os.path.join(CREDENTIALS, os.path.basename(resolve.default_path(path, "/")))


def _source(params: dict) -> str | None:
    src = params["src"]
    if src is None or src == "":
        if not params["path"]:
            raise errors.InvalidParameter("share", "neither src nor path is given", "give src, the source of the share")
        return None
    if any(ord(char) < 32 or ord(char) == 127 for char in src):
        raise errors.InvalidParameter(f"src {src!r}", "it holds a control character", "write it like nas1:/vols")
    return resolve.clean_path(src, "src") if resolve.is_directory_name(src) else src


def _options(given: list[str] | None, state: str, path: str, row: types.FileSystem, entries: Entries) -> tuple[str, ...]:
    if given is None and state == "remounted":  # mount again with the same options
        own = {f"{name}={credentials_file(path)}" for name in row.identity_options[:1]}
        return tuple(option for entry in entries if entry.path == path for option in entry.options if option not in own)
    # Ansible has split a text at every comma, but a comma between quotes does not separate.
    return tuple(option.strip() for option in tables.split_options(",".join(given or ())))


def _row(params: dict, src: str | None, mounts: Mounts, entries: Entries, base: str) -> types.FileSystem:
    fstype, path = params["fstype"], params["path"]
    if fstype == types.OTHER:
        return types.other(params.get("type"))
    if params.get("type"):
        raise errors.InvalidParameter(f"type {params['type']!r}", f"it is given with fstype {fstype}", f"leave it out, or set fstype: {types.OTHER}")
    if fstype != types.AUTO:
        return types.by_name(fstype)
    known = _known_row(src, path, mounts, entries, base)
    if known is not None:
        return known
    if src is None or resolve.is_directory_name(src):
        here = src is None or path is None or resolve.clean_path(path, "path") == src
        return types.DIRECTORY if here else types.BIND
    row = sources.claim(src)
    if row is None:
        raise errors.InvalidParameter(
            f"src {src!r}", "its form does not say which file system it is on", "give fstype, or an absolute path for a plain directory"
        )
    return row


def _known_row(src: str | None, path: str | None, mounts: Mounts, entries: Entries, base: str) -> types.FileSystem | None:
    """The row of what is mounted there or listed in fstab; None if neither decides. The source's form cannot: GlusterFS and NFS have the same one."""
    if path is None and (src is None or resolve.is_directory_name(src)):
        return None
    path = resolve.clean_path(path, "path") if path else _default_path(src or "", mounts, entries, base)
    mount = tables.mounted_at(mounts, resolve.follow(path, mounts))
    if mount is not None and (src is None or witnesses.is_mount_of(mount, src, entries)):
        row = types.by_kernel_type(mount.fstype)
        return row or (types.BIND if src is None and resolve.is_bind(mount) else None)
    for entry in entries:
        if entry.path == path and (src is None or sources.is_entry_of(entry, src)):
            return types.by_mount_type(entry.fstype)
    return None


def share_path(params: dict, mounts: Mounts, entries: Entries) -> str | None:
    """The directory where the share is or would be; None if an option that decides this is missing or wrong. See :func:`read_wish`."""
    try:
        src, base = _source(params), resolve.clean_path(params["mount_base"], "mount_base")
        if params["path"] or (src and resolve.is_directory_name(src)):
            return resolve.clean_path(params["path"] or src or "", "path")
        return _default_path(src or "", mounts, entries, base)
    except errors.InvalidParameter:
        return None


def _default_path(src: str, mounts: Mounts, entries: Entries, base: str) -> str:
    """The default directory of the exact source, or the default directory of another spelling if the share is there already."""
    own = resolve.default_path(src, base)
    if tables.mounted_at(mounts, own) is not None or any(entry.path == own for entry in entries):
        return own
    known = [mount.path for mount in mounts if witnesses.is_mount_of(mount, src, entries) and tables.mounted_at(mounts, mount.path) == mount]
    known += [entry.path for entry in entries if sources.is_entry_of(entry, src)]
    digest = re.compile(re.escape(base.rstrip("/")) + "/[0-9a-f]{32}")
    return next((path for path in known if digest.fullmatch(path)), own)


def _known_source(path: str, row: types.FileSystem, mounts: Mounts, entries: Entries) -> str | None:
    if not row.mount_type:
        return path
    mount = tables.mounted_at(mounts, resolve.follow(path, mounts))
    if mount is not None:
        return witnesses.source_of(mount, entries) if row.kernel_types else binds.origin(mounts, mount)
    for entry in entries:
        if entry.path == path:
            return sources.bare(entry.source, row)
    return None


def _path(path: str | None, src: str | None, row: types.FileSystem, mounts: Mounts, entries: Entries, base: str) -> str:
    if not row.mount_type:
        clean = resolve.clean_path(path or src or "", "path")
        if src is not None and clean != src:
            remedy = f"leave path out, or use fstype {types.BIND.name} to show {src} there"
            raise errors.InvalidParameter(f"path {clean}", "a plain directory is used where it is", remedy)
        return clean
    clean = resolve.clean_path(path, "path") if path else _default_path(src or "", mounts, entries, base)
    if clean == "/" or clean == base:
        raise errors.InvalidParameter(f"path {clean}", "no share can be mounted there", "choose a directory of its own")
    return clean


def _credentials(given: dict | None, row: types.FileSystem) -> steps.Credentials | None:
    values = {key: value for key, value in (given or {}).items() if value is not None}
    if not values:
        return None
    for key, value in values.items():
        if any(char in value for char in "\n\r\0"):
            raise errors.InvalidParameter(f"credentials, {key}", "it holds a line break", "give it without")
    return steps.Credentials(**{key: values.get(key) for key in _CREDENTIAL_KEYS}, bare=row.credentials == "secret")


def _check(desired: planner.DesiredShare) -> None:
    given, row = desired.credentials, desired.row
    if desired.state not in planner.KEPT or given is None:
        return
    if not row.credentials:
        raise errors.InvalidParameter(f"share {desired.name}", f"{row.name} takes no credentials", "leave them out")
    if row.keeps_credentials and any(mount_options.split(option)[0] in row.identity_options for option in desired.options):
        raise errors.InvalidParameter(f"share {desired.name}", "opts name credentials besides 'credentials'", "keep one of the two")
    if row.credentials != "file" and (given.password is None or given.username is not None or given.domain is not None):
        remedy = f"put the user {row.user_place or f'into src, like {row.example}'}"
        raise errors.InvalidParameter(f"share {desired.name}", f"{row.name} takes a password only", remedy)
    if desired.persist and not row.keeps_credentials:
        remedy = ", or ".join(filter(None, (row.without_password, "set persist: false to mount until the next boot")))
        raise errors.InvalidParameter(f"share {desired.name}", f"fstab cannot hold a password for {row.name}", remedy)
