# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount options: the desired ones, those in force, and how the two differ. Pure functions that take one row of the table of file systems."""
from __future__ import annotations

from .. import errors
from . import types
from .types import FileSystem

SECRETS = ("password", "password2", "pass", "passwd", "secret", "ceph.key", "mfspassword", "mfsmd5pass")
_PAIRS = {
    "ro": ("rw",),
    "rw": ("ro",),
    "hard": ("soft", "softerr"),
    "soft": ("hard", "softerr"),
    "softerr": ("hard", "soft"),
}
_FAMILIES = (
    ("ro", "rw"),
    ("hard", "soft", "softerr"),
    ("sync", "async"),
    ("atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime"),
)
_LEAST_SIZE = 4096  # bytes; a smaller size is raised by the kernel


def split(option: str) -> tuple[str, str | None]:
    """An option as (name, value); the value is None if the option has no ``=``."""
    name, equals, value = option.partition("=")
    return name, value if equals else None


def check(options: tuple[str, ...]) -> tuple[str, ...]:
    """``options``, unchanged, after a check.

    :raises InvalidParameter: an option contains a password, or a control character that would break its line in fstab or mountinfo.
    """
    for option in options:
        name, value = split(option)
        if name.strip().lower() in SECRETS or (name.lower() in ("user", "username") and "%" in (value or "")):
            raise errors.InvalidParameter(
                f"mount option {name}", "a password among the options can be read by every user of the host", "give it in 'credentials'"
            )
        if any(ord(char) < 32 or ord(char) == 127 for char in option):
            raise errors.InvalidParameter(f"mount option {name!r}", "it holds a control character", "give options as in mount(8)")
    return options


def complete(row: FileSystem, options: tuple[str, ...]) -> tuple[str, ...]:
    """``options`` with the default options of the file system in front, except for defaults that ``options`` set or negate."""
    names = {split(option)[0] for option in options}
    added = tuple(option for option in row.default_options if not names & {split(option)[0], _opposite(split(option)[0]), "r" + option})
    return added + options


def for_fstab(options: tuple[str, ...]) -> tuple[str, ...]:
    """The options for a line of fstab, where the field must not be empty."""
    return options or ("defaults",)


def for_mount(options: tuple[str, ...]) -> tuple[str, ...]:
    """The options for mount(8): without those that only fstab uses, because the helpers of FUSE file systems do not know them."""
    return tuple(option for option in options if not _fstab_only(option))


def for_remount(row: FileSystem, options: tuple[str, ...]) -> tuple[str, ...]:
    """The options for a remount that puts ``options`` into force."""
    wanted = tuple(option for option in for_mount(options) if option not in row.default_options or row.remount_whole)
    if not row.remount_whole:
        wanted = tuple(option for option in wanted if split(option)[0] in types.GENERAL)
    return row.remount_options + (() if "ro" in wanted or "rw" in wanted else ("rw",)) + wanted


def drift(row: FileSystem, wanted: tuple[str, ...], live: tuple[str, ...], previous: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The options in which a mount differs from the desired ones: those not in force, and those in force that are no longer desired.

    If options contradict each other, the last one counts, as for mount(8). The mount table does not show every option. An option that
    it does not show counts as changed if ``previous`` spells it differently.

    :param wanted: the desired options, complete. :param live: the options that the mount table shows.
    :param previous: the options of our last mount command; None if they are unknown.
    """
    desired, before = _subjects(row, _with_access(for_mount(wanted))), _subjects(row, for_mount(previous or ()))
    in_force = dict(split(option) for option in live)
    drifted: list[str] = []
    for subject, pairs in desired.items():
        shown, option = pairs[-1]
        verdict = _verdict(row, shown, in_force)
        unknown = verdict is None and previous is not None and option not in row.default_options
        if verdict is False or (unknown and [given for dummy, given in pairs] != [given for dummy, given in before.get(subject, ())]):
            drifted.append(option)
    for subject, pairs in before.items():
        shown, option = pairs[-1]
        if subject not in desired and option not in row.default_options + ("ro", "rw") and not _is_default(row, shown):
            if all(_verdict(row, spelling, in_force) is not False for spelling in spell(row, option)):
                drifted.append(option)
    return tuple(dict.fromkeys(drifted))


def _subjects(row: FileSystem, options: tuple[str, ...]) -> dict[str, list[tuple[str, str]]]:
    """The options by subject, each as (as the mount table shows it, as given), in order. Options that exclude each other have the same subject."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for option in options:
        for shown in spell(row, option):
            pairs.setdefault(_subject(split(shown)[0]), []).append((shown, option))
    return pairs


def _subject(name: str) -> str:
    for family in _FAMILIES:
        if name in family:
            return family[0]
    return name[2:] if name.startswith("no") else name


def _is_default(row: FileSystem, shown: str) -> bool:
    """Whether an option (as the mount table spells it) only confirms a default, so that dropping it changes nothing."""
    return shown in row.silent or split(shown)[0] in types.CONTRARIES


def of_the_mount(options: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``options`` that belong to one mount. The others belong to the file system, which several mounts of this host may share."""
    return tuple(option for option in options if split(option)[0] in types.GENERAL)


def last_of_each(row: FileSystem, options: tuple[str, ...]) -> set[str]:
    """The names of the options that count: of options that exclude each other, the last one."""
    return {split(pairs[-1][0])[0] for pairs in _subjects(row, for_mount(options)).values()}


def names_version(row: FileSystem, options: tuple[str, ...]) -> bool:
    """Whether ``options`` say which version of the protocol is used."""
    return any(split(shown)[0] in row.versions + ("minorversion",) for option in options for shown in spell(row, option))


def can_remount(row: FileSystem, drifted: tuple[str, ...]) -> bool:
    """Whether a remount can change all options ``drifted`` in place."""
    return all(split(option)[0] in row.remountable for option in drifted)


def spell(row: FileSystem, option: str) -> tuple[str, ...]:
    """The spelling of ``option`` in the mount table. The result has several elements if the option stands for several others."""
    name, value = split(option)
    spellings = dict(row.spellings)
    patterns = spellings.get(option) or spellings.get(name)
    return tuple(pattern.replace("*", value or "") for pattern in patterns) if patterns else (option,)


def _verdict(row: FileSystem, option: str, in_force: dict) -> bool | None:
    """Whether an option is in force; None if the mount table cannot show that."""
    name, value = split(option)
    if name in types.CONTRARIES:
        return not any(other in in_force for other in types.CONTRARIES[name])
    if any(name in names and _is_live(condition, in_force) for condition, names in row.moot):
        return True
    if name in in_force:
        return value is None or in_force[name] is None or _equal(row, name, value, in_force[name])
    if any(other in in_force for other in _PAIRS.get(name, (_opposite(name),))):
        return False
    if option in row.silent:
        return True
    return False if name in row.shown or name in types.GENERAL_SHOWN else None


def _is_live(condition: str, in_force: dict) -> bool:
    name, value = split(condition)
    return name in in_force and (value is None or in_force[name] == value or str(in_force[name]).startswith(value + "."))


def _equal(row: FileSystem, name: str, wanted: str, live: str) -> bool:
    if wanted == live:
        return True
    if name in row.versions:
        return _same_version(wanted, live)
    if name in row.listed and live in wanted.split(":"):
        return True
    if name in row.signed and live == wanted + "i":
        return True
    try:
        if name in row.negotiated:
            return int(live) <= int(wanted) or int(wanted) < _LEAST_SIZE
        if name in row.octal:
            return int(live, 8) == int(wanted, 8)
        if name in row.owners:
            return int(live) == _number_of(name, wanted)
        return int(live) == int(wanted)
    except (ValueError, KeyError):
        return False


def _same_version(wanted: str, live: str) -> bool:
    """Whether both mean the same version: 4 means any 4.x, and 3 any 3.x; 3.11 is 3.1.1, and 3.02 is 3.0.2."""
    wanted, live = wanted.replace(".", ""), live.replace(".", "")
    return wanted in ("default", live) or (len(wanted) == 1 and live.startswith(wanted))


def _number_of(kind: str, name: str) -> int:
    if name.isdigit():
        return int(name)
    if kind == "gid":
        import grp

        return grp.getgrnam(name).gr_gid
    import pwd

    return pwd.getpwnam(name).pw_uid


def _with_access(options: tuple[str, ...]) -> tuple[str, ...]:
    return options if any(split(option)[0] in ("ro", "rw") for option in options) else ("rw",) + options


def _opposite(name: str) -> str:
    return name[2:] if name.startswith("no") else "no" + name


def _fstab_only(option: str) -> bool:
    return option == "user" or split(option)[0] in types.FSTAB_ONLY or option[:2] in ("x-", "X-")  # user=NAME is an option of SMB
