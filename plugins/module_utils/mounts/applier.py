# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry out the steps for one share. Only this module of mounts/ changes anything."""
from __future__ import annotations

import os
import time
from dataclasses import replace

from .. import command, errors
from . import automount, fstab, host_files, probe, resolve, tables
from . import options as mount_options
from .steps import (
    CreateDirectory,
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

_PAUSE = 1.0  # seconds before the second attempt to mount; the pause grows by this much before each further attempt
_KILL_TIME = 5.0  # seconds that it may take to end a program that is stuck in the kernel
_MIN_TIMEOUT = 1.0  # seconds that a program gets even if the time limit is nearly reached
# Starts of lines that mount and its helpers print and that explain nothing.
_UNHELPFUL = ("dmesg(1)", "Refer to the", "For several filesystems", "modprobe: FATAL", "failed to load")


def check_possible(steps: tuple[Step, ...], subject: str) -> None:
    """Check, before the first step and in check mode, that nothing will stop the steps halfway. :param subject: the share, for messages.

    :raises MountFailed: the user is not root. :raises ToolMissing: a program is not installed.
    :raises InvalidParameter: fstab cannot be replaced. :raises InUse: the share is busy.
    """
    for step in steps:
        if isinstance(step, (MountShare, Remount, Unmount)) and os.geteuid() != 0:
            raise errors.MountFailed(subject, "only root can mount and unmount", "run the task with become: true")
        if isinstance(step, (MountShare, Remount)):
            _find_mount(step)
        elif isinstance(step, (WriteFstab, RemoveFstab)):
            fstab.check_fstab(step.fstab)
        elif isinstance(step, Unmount):
            _check_idle(step.path, subject)


def _find_mount(step: MountShare | Remount) -> str:
    """The path of mount(8), after a check that the helper of the file system is there, too. Empty for a visit, which needs no program."""
    if isinstance(step, MountShare) and step.visit:
        return ""
    if step.row.helper:
        command.find(step.row.helper, f"{step.row.package} of {step.row.vendor}" if step.row.vendor else step.row.package)
    elif step.row.shown_as_any:
        from . import other_types  # late: it is rare

        other_types.check(step.row.mount_type)
    return command.find("mount", "mount")


def _check_idle(path: str, subject: str) -> None:
    mounts = tables.read_mounts()
    real = resolve.follow(path, mounts)
    inner = [mount.path for mount in mounts if mount.path != real and tables.is_within(mount.path, real)]
    users = _holders(real, mounts)
    if inner or users:
        raise _busy(subject, path, users or inner)


def _holders(real: str, mounts: tuple[tables.Mount, ...]) -> list[str]:
    trigger = automount.trigger(mounts, real)
    return probe.holders(real, trigger=trigger.id if trigger is not None else None)


def _busy(subject: str, path: str, users: list[str]) -> errors.InUse:
    by = f" by {', '.join(users)}" if users else ""
    return errors.InUse(subject, f"it is busy at {path}{by} and was not unmounted", "end what uses it and run the task again")


def apply(step: Step, deadline: probe.Deadline, attempts: int, subject: str) -> Step | None:
    """Do one step. :return: the step as it was done; None if it changed nothing, because the directory to remove is not empty.

    :param attempts: how many times mounting is tried. :param subject: the share, for messages.
    :raises StorageError: the step failed. The state is as it was before the step.
    """
    done = _ACTIONS[type(step)](step, deadline, attempts, subject)
    return None if done is False else step if done is None else done


def undo(done: list, restore: MountShare | None, credentials: bytes | None, deadline: probe.Deadline, subject: str) -> list:
    """Undo the steps ``done`` after a later step failed.

    :param restore: the step that mounts the old share again. :param credentials: the old content of the credentials file; None: there was none.
    :return: the steps that could not be undone, in their order.
    """
    remaining: list = []
    for step in reversed(done):
        try:
            if isinstance(step, CreateDirectory):
                os.rmdir(step.path)
            elif isinstance(step, WriteCredentials) and credentials is None:
                os.unlink(step.path)
            elif isinstance(step, WriteCredentials) and credentials is not None:
                host_files.replace_file(step.path, credentials, mode=0o600, keep=False)
            elif isinstance(step, Unmount) and restore is not None:
                _mount(restore, deadline, 1, subject)
            else:
                remaining.insert(0, step)
        except (OSError, errors.StorageError):
            remaining.insert(0, step)  # no error from here: the task reports the first failure
    return remaining


def _mount(step: MountShare, deadline: probe.Deadline, attempts: int, subject: str) -> MountShare:
    if step.visit:
        _visit(step, deadline, subject)
        return step
    secret = None
    if step.row.credentials == "stdin" and step.credentials is not None:
        secret = f"{step.credentials.password}\n".encode("utf-8", "surrogateescape")
    for attempt in range(1, attempts + 1):
        try:
            return _mount_any_version(step, deadline, subject, secret)
        except errors.MountFailed:
            if attempt == attempts or deadline.left <= _PAUSE * attempt:
                raise
        time.sleep(_PAUSE * attempt)
    return step


def _mount_any_version(step: MountShare, deadline: probe.Deadline, subject: str, secret: bytes | None) -> MountShare:
    """Mount once; where the helper ended its search for a version early, and the user named none, once with each version.

    :return: the step as it was done. :raises MountFailed: the first failure.
    """
    try:
        _mount_once(_command_line(step), step, deadline, subject, secret)
        return step
    except errors.MountFailed as error:
        first, said = error, str(error.details.get("stderr"))
    if not any(words in said for words in step.row.falls_back_on) or mount_options.names_version(step.row, step.opts):
        raise first
    for option in step.row.fallbacks:
        tried = replace(step, opts=(*step.opts, option), fallback=option)
        try:
            _mount_once(_command_line(tried), tried, deadline, subject, secret)
            return tried
        except errors.MountFailed:
            continue
    raise first


def _command_line(step: MountShare) -> list[str]:
    options = ["-o", ",".join(step.opts)] if step.opts else []
    return [_find_mount(step), "-t", step.row.mount_type, *options, step.src, step.path]


def _visit(step: MountShare, deadline: probe.Deadline, subject: str) -> None:
    """Make the automounter mount the share. mount(8) at a trigger would mount it a second time."""
    mounts = automount.visit(step.path, tables.read_mounts(), deadline.left, subject)
    if tables.mounted_at(mounts, resolve.follow(step.path, mounts)) is None:
        raise errors.MountFailed(subject, f"autofs manages {step.path} and mounted nothing there", "see the log of the automounter on this host")


def _mount_once(argv: list[str], step: MountShare, deadline: probe.Deadline, subject: str, secret: bytes | None) -> None:
    result = _run(argv, deadline, subject, secret)
    if result.rc != 0:
        raise errors.MountFailed(subject, f"mounting at {step.path} failed ({_reason(result)})", _remedy(step, result), result.details)
    mounts = tables.read_mounts()
    if tables.mounted_at(mounts, resolve.follow(step.path, mounts)) is None:
        said = f"; the helper said: {result.reason}" if result.err or result.out else ""
        remedy = step.row.by_hand.format(host=step.src) or "see the log of the file system's client on this host"
        raise errors.MountFailed(subject, f"mount reported success, but nothing is mounted at {step.path}{said}", remedy, result.details)


def _remedy(step: MountShare, result: command.Result) -> str:
    from . import advice  # late: only failures need it

    return advice.remedy(step, result.err + result.out)


def _remount(step: Remount, deadline: probe.Deadline, attempts: int, subject: str) -> None:
    argv = [_find_mount(step), "-t", step.row.mount_type, "-o", ",".join(step.opts), step.src, step.path]
    result = _run(argv, deadline, subject)
    if result.rc != 0:
        remedy = "unmount it (state: unmounted) and mount it with the new options"
        raise errors.MountFailed(subject, f"changing the options at {step.path} failed ({_reason(result)})", remedy, result.details)


def _unmount(step: Unmount, deadline: probe.Deadline, attempts: int, subject: str) -> None:
    remedy = "bring the server back, or unmount by hand with umount -f or umount -l, which loses what was not yet written"
    result = _run([command.find("umount", "mount"), step.path], deadline, subject, remedy=remedy)
    mounts = tables.read_mounts()
    if result.rc == 0 or tables.mounted_at(mounts, resolve.follow(step.path, mounts)) is None:
        return
    if "busy" in result.err:
        raise _busy(subject, step.path, _holders(resolve.follow(step.path, mounts), mounts))
    raise errors.MountFailed(subject, f"unmounting {step.path} failed ({_reason(result)})", "fix what it names and run the task again", result.details)


_WAIT = "check the server and the network, or give a longer timeout"


def _run(argv: list[str], deadline: probe.Deadline, subject: str, secret: bytes | None = None, remedy: str = _WAIT) -> command.Result:
    try:
        return command.run(argv, timeout=max(deadline.left - _KILL_TIME, deadline.left / 2, _MIN_TIMEOUT), secret=secret)
    except errors.ToolFailed as error:
        problem = f"the server did not answer within {deadline.seconds:g} s"
        raise errors.MountFailed(subject, problem, remedy, error.details) from error


def _reason(result: command.Result) -> str:
    lines = [line.strip() for line in (result.err or result.out).splitlines()]
    lines = [line for line in lines if line and not line.startswith(_UNHELPFUL)]
    return lines[0].rstrip(".") if lines else result.reason


def _create_directory(step: CreateDirectory, deadline: probe.Deadline, attempts: int, subject: str) -> None:
    try:
        os.makedirs(step.path, mode=0o755, exist_ok=True)
        host_files.sync_directory(os.path.dirname(step.path) or "/")
    except OSError as error:
        raise errors.from_os_error(error, f"directory {step.path}") from error


def _remove_directory(step: RemoveDirectory, deadline: probe.Deadline, attempts: int, subject: str) -> bool:
    try:
        os.rmdir(step.path)
        host_files.sync_directory(os.path.dirname(step.path))
    except OSError:
        return False  # the mount had hidden files in the directory: they may be needed, so the directory stays
    return True


def _write_credentials(step: WriteCredentials, deadline: probe.Deadline, attempts: int, subject: str) -> None:
    try:
        os.makedirs(os.path.dirname(step.path), mode=0o700, exist_ok=True)
    except OSError as error:
        raise errors.from_os_error(error, f"credentials of {subject}") from error
    host_files.replace_file(step.path, step.credentials.content(), mode=0o600, keep=False)


def _remove_credentials(step: RemoveCredentials, deadline: probe.Deadline, attempts: int, subject: str) -> None:
    try:
        os.unlink(step.path)
        host_files.sync_directory(os.path.dirname(step.path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise errors.from_os_error(error, f"credentials of {subject}") from error


def _write_fstab(step: WriteFstab, deadline: probe.Deadline, attempts: int, subject: str) -> None:
    fstab.change_fstab(step.fstab, step.path, step.entry)


def _remove_fstab(step: RemoveFstab, deadline: probe.Deadline, attempts: int, subject: str) -> None:
    fstab.change_fstab(step.fstab, step.path, None)


_ACTIONS: dict = {
    CreateDirectory: _create_directory,
    RemoveDirectory: _remove_directory,
    WriteCredentials: _write_credentials,
    RemoveCredentials: _remove_credentials,
    WriteFstab: _write_fstab,
    RemoveFstab: _remove_fstab,
    MountShare: _mount,
    Remount: _remount,
    Unmount: _unmount,
}
