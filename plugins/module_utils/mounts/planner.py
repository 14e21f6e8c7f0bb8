# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan the work on one share: from the state and the desired state to steps. Pure: no system call, so that tests need only plain values."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import errors
from . import options as mount_options
from . import sources, tables, types
from .steps import (
    CreateDirectory,
    Credentials,
    MountShare,
    Remount,
    RemoveCredentials,
    RemoveDirectory,
    RemoveFstab,
    Step,
    Unmount,
    WriteCredentials,
    WriteFstab,
)

if TYPE_CHECKING:
    from .record import Record

STATES = ("mounted", "present", "unmounted", "absent", "remounted")
KEPT = ("mounted", "present", "remounted")  # states that keep the share on this host, mounted or in fstab
MOUNTED = ("mounted", "remounted")  # states in which the share is mounted


@dataclass(frozen=True)
class DesiredShare:
    """The desired state of one share. ``src`` is None if the user gave only a path. ``persist``: fstab is changed too."""

    src: str | None
    path: str
    row: types.FileSystem
    options: tuple[str, ...] = ()
    credentials: Credentials | None = None
    credentials_file: str = ""  # the path of the file for the credentials, whether it exists or not
    state: str = "mounted"
    persist: bool = True
    fstab: str = tables.FSTAB
    own_directory: bool = False  # the mount directory lies under mount_base, and is removed together with the share

    @property
    def name(self) -> str:
        """What messages call the share."""
        return self.src or self.path


@dataclass(frozen=True)
class Seen:
    """The observed state of one share: the mount at its path, the line of fstab for the path, and its files."""

    mount: tables.Mount | None = None
    source: str | None = None  # the source that is mounted there, as a user would name it
    bound: bool = False  # the mount is a bind mount of the desired source
    told: bool = False  # the mount is one of the desired source, as our record or fstab tells
    entry: tables.Entry | None = None  # the line of fstab
    directory: bool = False  # the directory at the path exists
    empty: bool = True  # nothing is in that directory
    credentials: bytes | None = field(default=None, repr=False)  # content of the credentials file
    dead: bool = False  # it is mounted, but the process that served it is gone
    trigger: bool = False  # autofs decides what is mounted at the path: our own mount there would be a second one on top
    layers: int = 1  # how many mounts of the source lie on top of each other at the path
    record: Record | None = None  # how we mounted it; None if there is no record of this mount
    shared: bool = False  # the same file system is mounted elsewhere too, so its options cannot be changed by a mount at this path


def plan(desired: DesiredShare, observed: Seen) -> tuple[Step, ...]:
    """The steps that lead from the observed state to the desired one, in order; none if the two agree.

    :raises Conflict: another source is mounted at the path, or fstab has another source for it.
    :raises InvalidParameter: what is desired contradicts itself.
    """
    if not desired.row.mount_type:
        return _create(desired, observed) if desired.state in ("mounted", "present") else ()
    _check_sources(desired, observed)
    if desired.state == "present":
        if not desired.persist:
            problem = "state present is about fstab, which persist: false leaves alone"
            raise errors.InvalidParameter(f"share {desired.name}", problem, "set persist: true or another state")
        return _write_credentials(desired, observed) + _create(desired, observed) + _write_fstab(desired, observed)
    if desired.state == "unmounted":
        return _unmount(desired, observed)
    if desired.state == "absent":
        return _unmount(desired, observed) + _forget(desired, observed)
    if desired.state == "remounted":
        return (
            _unmount(desired, observed)
            + _write_credentials(desired, observed)
            + _create(desired, observed)
            + (_mount(desired, observed),)
            + _write_fstab(desired, observed)
        )
    return _plan_mounted(desired, observed)


def _plan_mounted(desired: DesiredShare, observed: Seen) -> tuple[Step, ...]:
    credentials, fstab = _write_credentials(desired, observed), _write_fstab(desired, observed)
    if observed.mount is None:
        return credentials + _create(desired, observed) + (_mount(desired, observed),) + fstab
    drifted = drifted_options(desired, observed)
    if not (drifted or credentials or observed.dead):
        return fstab
    if not credentials and not observed.dead and mount_options.can_remount(desired.row, drifted):
        return (Remount(desired.path, _source(desired), desired.row, mount_options.for_remount(desired.row, effective_options(desired, observed))),) + fstab
    # Unmount first: if the share is busy, the task fails before anything has changed.
    return _unmount(desired, observed) + credentials + (_mount(desired, observed),) + fstab


def drifted_options(desired: DesiredShare, observed: Seen) -> tuple[str, ...]:
    """The options in which the mount differs from the desired ones, as far as a task can change them.

    A mount that was made with exactly the desired options and has not changed since is as desired, whatever the kernel shows.
    """
    if observed.mount is None:
        return ()
    options, drifted = effective_options(desired, observed), _another_user(desired, observed.mount)
    if observed.record is None or (observed.record.words, observed.record.live) != (options, observed.mount.options):
        previous = observed.record.words if observed.record is not None else observed.entry.options if desired.persist and observed.entry is not None else None
        drifted += mount_options.drift(desired.row, options, tables.options_of(observed.mount, desired.row), previous)
    if observed.trigger:  # only the automounter's own table can change the other options
        drifted = tuple(option for option in drifted if mount_options.can_remount(desired.row, (option,)))
    return mount_options.of_the_mount(drifted) if observed.shared and desired.row.kernel_types else drifted  # a bind mount has options of its own


def _another_user(desired: DesiredShare, mount: tables.Mount) -> tuple[str, ...]:
    """The option for the desired user, if the kernel shows that another user mounted the share. It does not show every user."""
    if not desired.row.user_option or desired.credentials is None or desired.credentials.username is None:
        return ()
    wanted = f"{desired.row.user_option}={desired.credentials.username}"
    shown = [option for option in mount.options if option.startswith(f"{desired.row.user_option}=")]
    return (wanted,) if shown and wanted not in shown else ()


def effective_options(desired: DesiredShare, observed: Seen) -> tuple[str, ...]:
    """The desired options, with the defaults and with the option that names the credentials file."""
    options = mount_options.complete(desired.row, desired.options)
    if desired.row.keeps_credentials and (desired.credentials is not None or observed.credentials is not None):
        if not any(option.split("=", 1)[0] in desired.row.identity_options for option in options):
            options += (f"{desired.row.identity_options[0]}={desired.credentials_file}",)
    return options


def state_after(observed: Seen, desired: DesiredShare, steps: tuple[Step, ...]) -> dict:
    """The state of the share after ``steps``, with the keys of :func:`state_of`."""
    after = state_of(observed)
    for step in steps:
        if isinstance(step, (MountShare, Remount)):
            after.update(mounted=step.src, opts=",".join(mount_options.for_mount(effective_options(desired, observed))))
        elif isinstance(step, Unmount):
            after.update(mounted=None, opts=None)
        elif isinstance(step, WriteFstab):
            after["fstab"] = _line(step.entry)
        elif isinstance(step, RemoveFstab):
            after["fstab"] = None
        elif isinstance(step, (CreateDirectory, RemoveDirectory)):
            after["directory"] = isinstance(step, CreateDirectory)
        elif isinstance(step, (WriteCredentials, RemoveCredentials)):
            after["credentials"] = "written anew" if isinstance(step, WriteCredentials) else "none"
    return after


def state_of(observed: Seen) -> dict:
    """The state of a share for a diff, without secrets.

    :return: ``mounted`` (the source, or None), ``opts`` (separated by commas, or None), ``fstab`` (the line, or None),
        ``directory`` (whether it exists) and ``credentials`` (whether there is a file, in words).
    """
    return {
        "mounted": observed.source,
        "opts": ",".join(observed.mount.options) if observed.mount else None,
        "fstab": _line(observed.entry) if observed.entry else None,
        "directory": observed.directory,
        "credentials": "none" if observed.credentials is None else "a file",
    }


def _line(entry: tables.Entry) -> str:
    options = ("..." if option.split("=", 1)[0] in mount_options.SECRETS else option for option in entry.options)
    return f"{entry.source} {entry.path} {entry.fstype} {','.join(options)}"


def same_source(desired: DesiredShare, observed: Seen) -> bool:
    """Whether the desired source is mounted at the path; also True if there is no mount or no desired source."""
    if desired.src is None or observed.mount is None:
        return True
    if not desired.row.kernel_types:
        return observed.bound
    return desired.row.is_shown_as(observed.mount.fstype) and (observed.told or sources.is_mount_of(observed.mount, desired.src))


def _same_entry(desired: DesiredShare, entry: tables.Entry) -> bool:
    """Whether a line of fstab is about the desired source, in any spelling."""
    return desired.src is None or sources.is_same_share(entry.source, desired.src, desired.row)


def _check_sources(desired: DesiredShare, observed: Seen) -> None:
    if desired.state != "present" and observed.mount is not None and not same_source(desired, observed):
        problem = f"{observed.source} ({observed.mount.fstype}) is mounted there, not {desired.src}"
        raise errors.Conflict(f"path {desired.path}", problem, "choose another path or unmount that one")
    if observed.entry is not None and desired.persist and desired.state != "unmounted" and not _same_entry(desired, observed.entry):
        remedy = "choose another path or remove that line (state: absent)"
        raise errors.Conflict(f"path {desired.path}", f"{desired.fstab} mounts {observed.entry.source} there, not {desired.src}", remedy)


def restore(desired: DesiredShare, observed: Seen) -> MountShare | None:
    """The step that mounts the old share again, for the case that its replacement fails; None if nothing was mounted.

    Its options are those of fstab, or else those that were in force.
    """
    if observed.mount is None or observed.source is None:
        return None
    live = tables.options_of(observed.mount, desired.row)
    old = observed.entry.options if observed.entry is not None else live if desired.row.kernel_types else desired.row.default_options + live
    kept = tuple(option for option in mount_options.for_mount(old) if option.split("=", 1)[0] not in desired.row.local_options)
    return MountShare(desired.path, observed.source, desired.row.name, desired.row, kept, visit=observed.trigger)


def _source(desired: DesiredShare) -> str:
    if desired.src is None:
        raise errors.InvalidParameter(f"path {desired.path}", "no source is given for it", "give src")
    return sources.for_mount(desired.src, desired.row)


def _create(desired: DesiredShare, observed: Seen) -> tuple[Step, ...]:
    return () if observed.directory or observed.trigger or observed.mount is not None else (CreateDirectory(desired.path),)


def _mount(desired: DesiredShare, observed: Seen) -> Step:
    options = mount_options.for_mount(effective_options(desired, observed))
    if desired.row.credentials == "stdin" and desired.credentials is not None:
        options += desired.row.stdin_options
    return MountShare(desired.path, _source(desired), desired.row.name, desired.row, options, desired.credentials, observed.trigger)


def _unmount(desired: DesiredShare, observed: Seen) -> tuple[Step, ...]:
    return (Unmount(desired.path, desired.src or observed.source or desired.path),) * observed.layers if observed.mount is not None else ()


def _write_credentials(desired: DesiredShare, observed: Seen) -> tuple[Step, ...]:
    if desired.credentials is None or not desired.row.keeps_credentials or desired.credentials.content() == observed.credentials:
        return ()
    return (WriteCredentials(desired.credentials_file, desired.credentials),)


def _write_fstab(desired: DesiredShare, observed: Seen) -> tuple[Step, ...]:
    if not desired.persist:
        return ()
    options = mount_options.for_fstab(effective_options(desired, observed))
    old = observed.entry
    fstype = old.fstype if old and old.fstype in desired.row.kernel_types else desired.row.mount_type  # keep nfs4 where nfs would be written
    source = old.source if old and _same_entry(desired, old) else _source(desired)  # keep its spelling: the name of the default path comes from it
    entry = tables.Entry(source, desired.path, fstype, options, old.dump if old else "0", old.passno if old else "0")
    return () if entry == old else (WriteFstab(desired.path, desired.fstab, entry),)


def _forget(desired: DesiredShare, observed: Seen) -> tuple[Step, ...]:
    steps: tuple[Step, ...] = ()
    if desired.persist and observed.entry is not None:
        steps += (RemoveFstab(desired.path, desired.fstab),)
    if observed.credentials is not None:
        steps += (RemoveCredentials(desired.credentials_file),)
    if desired.own_directory and observed.directory and not observed.trigger and (observed.empty or observed.mount is not None):
        steps += (RemoveDirectory(desired.path),)
    return steps
