# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount options: what is asked, what is in force, and whether the two differ. Pure functions over one row of the table."""
from __future__ import annotations

from ..errors import InvalidParameter
from . import types
from .types import FileSystem

SECRETS = ("password", "password2", "pass", "passwd")
_PAIRS = {
    "ro": ("rw",),
    "rw": ("ro",),
    "hard": ("soft", "softerr"),
    "soft": ("hard", "softerr"),
    "softerr": ("hard", "soft"),
    "async": ("sync",),
}
_FAMILIES = (("ro", "rw"), ("hard", "soft", "softerr"))


def split(option: str) -> tuple[str, str | None]:
    name, equals, value = option.partition("=")
    return name, value if equals else None


def check(options: tuple[str, ...]) -> tuple[str, ...]:
    """``options`` as they came.

    :raises InvalidParameter: one holds a password, or a character that would break the line of a table.
    """
    for option in options:
        name, value = split(option)
        if name.strip().lower() in SECRETS or (name.lower() in ("user", "username") and "%" in (value or "")):
            raise InvalidParameter(f"mount option {name}", "a password among the options can be read by every user of the host", "give it in 'credentials'")
        if any(ord(char) < 32 or ord(char) == 127 for char in option):
            raise InvalidParameter(f"mount option {name!r}", "it holds a control character", "give options as in mount(8)")
    return options


def complete(row: FileSystem, options: tuple[str, ...]) -> tuple[str, ...]:
    """``options`` with the defaults of the file system in front, where nothing else was said about them."""
    names = {split(option)[0] for option in options}
    added = tuple(option for option in row.default_options if not names & {split(option)[0], _opposite(split(option)[0]), "r" + option})
    return added + options


def for_fstab(options: tuple[str, ...]) -> tuple[str, ...]:
    return options or ("defaults",)


def for_mount(options: tuple[str, ...]) -> tuple[str, ...]:
    """What goes to mount(8): fstab's own options would puzzle the helper of a FUSE file system."""
    return tuple(option for option in options if not _fstab_only(option))


def for_remount(row: FileSystem, options: tuple[str, ...]) -> tuple[str, ...]:
    """The options of a remount that brings ``options`` into force."""
    wanted = tuple(option for option in for_mount(options) if option not in row.default_options or row.remount_whole)
    if not row.remount_whole:
        wanted = tuple(option for option in wanted if split(option)[0] in types.GENERAL)
    return row.remount_options + (() if "ro" in wanted or "rw" in wanted else ("rw",)) + wanted


def drift(row: FileSystem, wanted: tuple[str, ...], live: tuple[str, ...], previous: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The options by which a mount differs from the wish: those not in force, and those in force that are wished no more.

    The mount table does not show every option. Of one that it never shows, ``previous`` (our own line in fstab, None if
    there is none) is the only witness: it counts as changed where that line differs.
    """
    wish = _with_access(for_mount(wanted))
    in_force = dict(split(option) for option in live)
    drifted = [option for option in wish if not _holds(row, option, in_force, previous)]
    for option in for_mount(previous or ()):
        if split(option)[0] in {split(other)[0] for other in wish} or option in row.default_options or option in ("ro", "rw"):
            continue
        visible = [_verdict(row, spelled, in_force) for spelled in spell(row, option)]
        if all(verdict is not False for verdict in visible) and not _replaced(option, wish):
            drifted.append(option)
    return tuple(drifted)


def of_the_mount(options: tuple[str, ...]) -> tuple[str, ...]:
    """Those that belong to one mount, not to the file system which several mounts on this host may share."""
    return tuple(option for option in options if split(option)[0] in types.GENERAL)


def can_remount(row: FileSystem, drifted: tuple[str, ...]) -> bool:
    """Whether the kernel changes all of them in place."""
    return all(split(option)[0] in row.remountable for option in drifted)


def spell(row: FileSystem, option: str) -> tuple[str, ...]:
    """How the mount table spells ``option``."""
    name, value = split(option)
    spellings = dict(row.spellings)
    patterns = spellings.get(option) or spellings.get(name)
    return tuple(pattern.replace("*", value or "") for pattern in patterns) if patterns else (option,)


def _holds(row: FileSystem, option: str, in_force: dict, previous: tuple[str, ...] | None) -> bool:
    verdicts = [_verdict(row, spelled, in_force) for spelled in spell(row, option)]
    if False in verdicts:
        return False
    return True in verdicts or previous is None or option in previous or option in row.default_options


def _verdict(row: FileSystem, option: str, in_force: dict) -> bool | None:
    """Whether an option is in force; None where the mount table cannot tell."""
    name, value = split(option)
    if name in in_force:
        return value is None or in_force[name] is None or _equal(row, name, value, in_force[name])
    if option in row.silent:
        return True
    if any(other in in_force for other in _PAIRS.get(name, (_opposite(name),))):
        return False
    return False if name in row.shown or name in types.GENERAL else None


def _equal(row: FileSystem, name: str, wanted: str, live: str) -> bool:
    if wanted == live:
        return True
    if name == "vers":  # 4 stands for any 4.x, 3.11 for 3.1.1
        return wanted == "default" or live.replace(".", "").startswith(wanted.replace(".", ""))
    try:
        if name in row.negotiated:
            return int(live) <= int(wanted)
        if name in row.octal:
            return int(live, 8) == int(wanted, 8)
        if name in row.owners:
            return int(live) == _number_of(name, wanted)
        return int(live) == int(wanted)
    except (ValueError, KeyError):
        return False


def _number_of(kind: str, name: str) -> int:
    if name.isdigit():
        return int(name)
    if kind == "gid":
        import grp

        return grp.getgrnam(name).gr_gid
    import pwd

    return pwd.getpwnam(name).pw_uid


def _with_access(options: tuple[str, ...]) -> tuple[str, ...]:
    return options if "ro" in options or "rw" in options else ("rw",) + options


def _replaced(option: str, wish: tuple[str, ...]) -> bool:
    name = split(option)[0]
    names = {split(other)[0] for other in wish}
    return _opposite(name) in names or any(name in family and names & set(family) for family in _FAMILIES)


def _opposite(name: str) -> str:
    return name[2:] if name.startswith("no") else "no" + name


def _fstab_only(option: str) -> bool:
    return option == "user" or split(option)[0] in types.FSTAB_ONLY or option[:2] in ("x-", "X-")  # user=NAME is an option of SMB
