# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every failure that the collection can report, one type per public ``error_code``.

A message is one sentence made of three parts: the object, what is wrong with it, and what to do.
Code that raises says all three; nothing below ``main()`` catches an error to rephrase it.
"""

from __future__ import annotations

import errno


class StorageError(Exception):
    """A failure with a public code.

    :param subject: the object, as the user knows it ("volume db01 on nas1:/vols").
    :param problem: what is wrong with it.
    :param remedy: what the user can do about it.
    :param details: what a result has beside the message: ``cmd``, ``rc`` and ``stderr`` of a program, ``traceback`` of a fault.
    """

    error_code = "tool_failed"

    def __init__(self, subject: str, problem: str, remedy: str, details: dict | None = None) -> None:
        super().__init__(f"{subject}: {problem}; {remedy}.")
        self.details = details or {}
        self.subject = subject
        self.problem = problem
        self.remedy = remedy


class InvalidName(StorageError):
    error_code = "invalid_name"


class InvalidSize(StorageError):
    error_code = "invalid_size"


class InvalidParameter(StorageError):
    error_code = "invalid_parameter"


class ShareNotMounted(StorageError):
    error_code = "share_not_mounted"


class MountFailed(StorageError):
    error_code = "mount_failed"


class ShareNotWritable(StorageError):
    error_code = "share_not_writable"


class NoEligibleShare(StorageError):
    error_code = "no_eligible_share"


class NoSpace(StorageError):
    error_code = "no_space"


class VolumeNotFound(StorageError):
    error_code = "volume_not_found"


class SnapshotNotFound(StorageError):
    error_code = "snapshot_not_found"


class Conflict(StorageError):
    error_code = "conflict"


class WouldShrink(StorageError):
    error_code = "would_shrink"


class HasSnapshots(StorageError):
    error_code = "has_snapshots"


class HasNewerSnapshots(StorageError):
    error_code = "has_newer_snapshots"


class HasDependents(StorageError):
    error_code = "has_dependents"


class InUse(StorageError):
    error_code = "in_use"


class LockTimeout(StorageError):
    error_code = "lock_timeout"


class UnsafeImage(StorageError):
    error_code = "unsafe_image"


class ChainBroken(StorageError):
    error_code = "chain_broken"


class NeedsRecovery(StorageError):
    error_code = "needs_recovery"


class ToolMissing(StorageError):
    error_code = "tool_missing"


class ToolFailed(StorageError):
    error_code = "tool_failed"


_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM)
_READ_ONLY = (errno.EROFS, *_REFUSED)
_GONE = (errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ENODEV, errno.ESHUTDOWN)


def from_os_error(error: OSError, subject: str, reader: int | None = None) -> StorageError:
    """Translate what the kernel said about an object on a share.

    A full or over-quota file system is :class:`NoSpace`, a refused write :class:`ShareNotWritable`, a share whose server
    is gone :class:`ShareNotMounted`; anything else is :class:`ToolFailed` with the kernel's own words, refused reading too.

    :param reader: the number of the user who was only reading; None where something was to be written.
    """
    words = error.strerror or str(error)
    if reader is not None and error.errno in _REFUSED:
        return ToolFailed(
            subject,
            f"reading was refused to uid {reader} ({words})",
            "run the task as a user who may read it (become), or give this user the right",
        )
    if error.errno in _SPACE:
        return NoSpace(
            subject, f"the file system refused to store more ({words})", "free some space and run the task again, nothing was lost"
        )
    if error.errno in _READ_ONLY:
        return ShareNotWritable(
            subject, f"writing was refused ({words})", "check the export, the mount options and the permissions of the share"
        )
    if error.errno in _GONE:
        return ShareNotMounted(
            subject, f"the server behind the share does not answer ({words})", "remount it with remotefs_share and run the task again"
        )
    return ToolFailed(subject, f"the system call failed ({words})", "see the kernel log of this host, nothing was lost")


def share_gone(label: str) -> ShareNotMounted:
    """The error for a share that was taken away while a task worked on it."""
    return ShareNotMounted(
        f"share {label}", "its directory was removed or unmounted while the task worked", "mount it with remotefs_share and run the task again"
    )


def understood(error: BaseException, subject: str) -> StorageError:
    """Any fault of a task or of one of its items as a failure with a code. What nobody foresaw brings its traceback."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return from_os_error(error, subject)
    if isinstance(error, ValueError) and "integer string conversion" in str(error):  # Python's bound on digits
        return InvalidParameter(subject, "an option is a number of thousands of digits", "give the number that is meant")
    import traceback

    return ToolFailed(
        subject,
        f"an unexpected fault stopped it ({type(error).__name__}: {error})",
        "run the task again, which finishes or undoes what this one began, and report the fault with the traceback",
        {"traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__))},
    )
