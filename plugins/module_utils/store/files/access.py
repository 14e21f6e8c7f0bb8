# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may open a file: owner, group, mode, access control list (ACL) and labels, set or copied between opened files.

If a file has a POSIX ACL, the group bits of its mode are the mask of that ACL. A mode that is copied without the ACL would give the
owning group the rights of named users. So the ACL is copied first. If the file system refuses it, the group gets its own rights only.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import Callable, Iterator, NamedTuple

from ... import errors

Warn = Callable[[str], None]

_POSIX, _POSIX_DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_NFS4 = ("system.nfs4_acl", "system.nfs4_acl_xdr")
_LABELS = ("security.selinux", "security.SMACK64", "security.NTACL")
_POSIX_ENTRY = struct.Struct("<HHI")  # after four bytes of version: tag, rights, id
_USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x02, 0x04, 0x08, 0x10, 0x20
_NFS4_RIGHTS = ((0x1, 4), (0x2, 2), (0x20, 1))  # read, write, execute: of an entry, and of a mode
_NFS4_ALLOW = 0
_OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


class _Refused(NamedTuple):
    """An ACL that the file system refused: whom it names, the mode bits that it leaves to group and others, the kernel's message."""

    names: list[str]
    group: int
    other: int
    words: str


def copy_access(source: int, target: int, keeps_modes: bool, warn: Warn, subject: str) -> bool:
    """Copy owner, group, mode, ACL and labels between opened files. Then exactly those who could open ``source`` can open ``target``.
    If the file system refuses an ACL or a label, a warning names who loses access.

    :param keeps_modes: whether owner and mode mean anything on the share.
    :returns: whether anything differed.
    :raises ShareNotWritable: the share refuses the owner, so that the users of ``source`` could not open ``target``.
    """
    names, present, like, changed = _listed(source), _listed(target), os.fstat(source), False
    if keeps_modes:
        changed = _copy_owner(source, target, like, names, warn, subject)
        posix, posix_changed = _copy_acl(source, target, _POSIX, names, present, subject)
        mode = _narrowed(stat.S_IMODE(like.st_mode), posix)
        changed = set_ownership(target, None, None, mode, subject) or posix_changed or changed
        for name in _NFS4:
            refused, acl_changed = _copy_acl(source, target, name, names, present, subject)
            changed = changed or acl_changed
            if refused is not None:
                posix, mode = refused, _narrowed(mode, refused)
                set_ownership(target, None, None, mode, subject)
        if posix is not None:
            _warn_of_loss(posix, warn, subject)
    return _copy_labels(source, target, names, present, warn, subject) or changed


def _copy_owner(source: int, target: int, like: os.stat_result, names: frozenset[str], warn: Warn, subject: str) -> bool:
    """Copy owner and group. If the share refuses, the file may stay this user's, as long as its group has all rights of its owner.

    :returns: whether anything differed. :raises ShareNotWritable: the owner of ``source`` could not open ``target``.
    """
    try:
        return set_ownership(target, like.st_uid, like.st_gid, None, subject)
    except errors.ShareNotWritable:
        acl = _read(source, _POSIX) if _POSIX in names else None
        group = (like.st_mode >> 3 if acl is None else _refused(_POSIX, acl, OSError()).group) & 7
        if (like.st_mode >> 6) & 7 & ~group:
            raise
        changed = set_ownership(target, None, like.st_gid, None, subject)
    warn(
        f"{subject}: it now belongs to uid {os.geteuid()} and not to uid {like.st_uid}, who can open it only as a member of group {like.st_gid}"
    )
    return changed


def share_folder(share: int, folder: int) -> None:
    """Copy the ACL of the share's directory to a folder in it, also as its default, so that the users named there may use all of it."""
    acl = _read(share, _POSIX) if _POSIX in _listed(share) else None
    if acl is None:
        return
    kept = [(tag, 0 if tag == _OTHER else rights, number) for tag, rights, number in _posix_entries(acl)]
    value = acl[:4] + b"".join(_POSIX_ENTRY.pack(*entry) for entry in kept)
    for name in (_POSIX, _POSIX_DEFAULT):
        try:
            os.setxattr(folder, name, value)
        except OSError:
            return  # the mode alone decides


def copy_labels(source: int, target: int, warn: Warn, subject: str) -> bool:
    """Copy security labels and ``user.*`` attributes between opened files. Returns whether any differed."""
    return _copy_labels(source, target, _listed(source), _listed(target), warn, subject)


def _copy_labels(source: int, target: int, names: frozenset[str], present: frozenset[str], warn: Warn, subject: str) -> bool:
    changed = False
    for name in sorted(names):
        if name not in _LABELS and not name.startswith("user."):
            continue
        wanted = _read(source, name)
        if wanted is None or (name in present and _read(target, name) == wanted):
            continue
        try:
            os.setxattr(target, name, wanted)
            changed = True
        except OSError as error:
            if name in _LABELS:
                text = wanted.rstrip(b"\0").decode("utf-8", "replace") if name != "security.NTACL" else "its Windows ACL"
                warn(f"{subject}: the file system refuses {name} ({error.strerror}); programs that need {text} lose access to it")
    return changed


def set_access_of_new(fd: int, parent: int, uid: int | None, gid: int | None, mode: int | None, warn: Warn, subject: str) -> None:
    """Set the access of a new volume's file: the default ACL of directory ``parent``, as if it had been made there, then owner, group
    and mode as given (None: unchanged). The ACL that it inherited from the directory where it was made is removed."""
    default = _read(parent, _POSIX_DEFAULT)
    present = _read(fd, _POSIX) if _POSIX in _listed(fd) else None
    try:
        if default is not None and default != present:
            os.setxattr(fd, _POSIX, default)
        elif default is None and present is not None:
            os.removexattr(fd, _POSIX)
    except OSError as error:
        if error.errno in _OUT_OF_ROOM or default is None:
            raise errors.from_os_error(error, subject) from error
        _warn_of_loss(_refused(_POSIX, default, error), warn, subject)
    set_ownership(fd, uid, gid, mode, subject)


def set_ownership(fd: int, uid: int | None, gid: int | None, mode: int | None, subject: str) -> bool:
    """Set owner, group and mode, except those that are None. Returns whether any differed. :raises ShareNotWritable: the share refuses."""
    mine = os.fstat(fd)
    uid = mine.st_uid if uid is None else uid
    gid = mine.st_gid if gid is None else gid
    changed = False
    try:
        if (mine.st_uid, mine.st_gid) != (uid, gid):
            os.fchown(fd, uid, gid)
            changed = True
        if mode is not None and stat.S_IMODE(mine.st_mode) != mode:
            os.fchmod(fd, mode)
            changed = True
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL):  # the share itself fails; the owner is not the reason
            raise errors.from_os_error(error, subject) from error
        raise errors.ShareNotWritable(
            subject,
            f"it cannot be given to uid {uid}, gid {gid} ({error.strerror})",
            "run the task as root or as the owner of the volume",
        ) from error
    return changed


def _copy_acl(source: int, target: int, name: str, names: frozenset[str], present_names: frozenset[str], subject: str) -> tuple[_Refused | None, bool]:
    """(The refused ACL or None, whether anything differed). If the source has no ACL, that of the target is removed: it was inherited."""
    wanted = _read(source, name) if name in names else None
    present = _read(target, name) if name in present_names else None
    if wanted == present or (wanted is None and name != _POSIX):
        return None, False
    try:
        if wanted is None:
            os.removexattr(target, name)
        else:
            os.setxattr(target, name, wanted)
    except OSError as error:
        if error.errno in _OUT_OF_ROOM or wanted is None:
            raise errors.from_os_error(error, f"access control list of {subject}") from error
        return _refused(name, wanted, error), False
    return None, True


def _narrowed(mode: int, refused: _Refused | None) -> int:
    return mode if refused is None else mode & (0o7700 | refused.group << 3 | refused.other)


def _warn_of_loss(refused: _Refused, warn: Warn, subject: str) -> None:
    if refused.names:
        who = ", ".join(refused.names)
        warn(
            f"{subject}: the file system refuses the access control list of the image ({refused.words}), so that {who} cannot open it; "
            "give them access through owner, group or mode"
        )


def _refused(name: str, acl: bytes, error: OSError) -> _Refused:
    words = error.strerror or str(error)
    if name == _POSIX:
        entries = list(_posix_entries(acl))
        mask = next((rights for tag, rights, _id in entries if tag == _MASK), 7)
        group = next((rights for tag, rights, _id in entries if tag == _GROUP_OBJ), 0) & mask
        named = [_name(tag == _GROUP, number) for tag, rights, number in entries if tag in (_USER, _GROUP) and rights & mask]
        return _Refused(named, group, 7, words)
    if name == "system.nfs4_acl":
        aces = [(flags, rights, who) for kind, flags, rights, who in _nfs4_entries(acl) if kind == _NFS4_ALLOW]
        named = [f"{'group' if flags & 0x40 else 'user'} {who}" for flags, _rights, who in aces if not who.endswith("@")]
        return _Refused(named, _nfs4_rights(aces, "GROUP@"), _nfs4_rights(aces, "EVERYONE@"), words)
    return _Refused(["whoever its NFSv4 list names"], 0, 0, words)


def _nfs4_rights(aces: list[tuple[int, int, str]], who: str) -> int:
    """What an NFSv4 ACL allows to one of its special names, as three mode bits."""
    found = 0
    for _flags, rights, name in aces:
        if name in (who, "EVERYONE@"):
            found |= sum(bit for right, bit in _NFS4_RIGHTS if rights & right)
    return found


def _posix_entries(acl: bytes) -> Iterator[tuple[int, int, int]]:
    whole = (len(acl) - 4) // _POSIX_ENTRY.size * _POSIX_ENTRY.size
    yield from _POSIX_ENTRY.iter_unpack(acl[4 : 4 + max(0, whole)])


def _nfs4_entries(acl: bytes) -> Iterator[tuple[int, int, int, str]]:
    """(type, flags, rights, who) of each whole entry."""
    place = 4
    while place + 16 <= len(acl):
        kind, flags, rights, length = struct.unpack_from(">4I", acl, place)
        place += 16
        yield kind, flags, rights, acl[place : place + length].decode("utf-8", "replace")
        place += (length + 3) // 4 * 4


def _name(is_group: bool, number: int) -> str:
    """A user or group by name for a message, or by number if it has no name."""
    try:
        if is_group:
            import grp

            return f"group {grp.getgrgid(number).gr_name}"
        import pwd

        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"{'group' if is_group else 'user'} {number}"


def _listed(fd: int) -> frozenset[str]:
    try:
        return frozenset(os.listxattr(fd))
    except OSError:
        return frozenset()  # a file system without attributes


def _read(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError:
        return None
