# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All failures that the collection can report, one type per public ``error_code``.

A message is one sentence of three parts: the object, what is wrong with it, and what to do.
The code that raises gives all three. Nothing below ``main()`` catches an error to rephrase it.
"""

from __future__ import annotations

import errno
from typing import Iterable


class StorageError(Exception):
    """A failure with a public code. Other programs may have chosen some of its words: no control character of theirs reaches a terminal.

    :param subject: the object, as users call it ("volume db01 on nas1:/vols").
    :param problem: what is wrong with it.
    :param remedy: what the user can do about it.
    :param details: further keys of the result: ``cmd``, ``rc`` and ``stderr`` of a program, ``traceback`` of a fault.
    """

    error_code = "tool_failed"

    def __init__(self, subject: str, problem: str, remedy: str, details: dict | None = None) -> None:
        self.details = details or {}
        self.subject, self.problem, self.remedy = printable(subject), printable(problem), printable(remedy)
        super().__init__(f"{self.subject}: {self.problem}; {self.remedy}.")

    def __reduce__(self) -> tuple:
        """How it is sent to another process: made anew from its parts."""
        return type(self), (self.subject, self.problem, self.remedy, self.details)


def printable(text: str) -> str:
    """The text without control characters: they are escaped."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text)


class InvalidName(StorageError):
    """A name that cannot be a file name on every supported share, or is reserved."""
    error_code = "invalid_name"


class InvalidSize(StorageError):
    """A size that is no size, or that no disk can have."""
    error_code = "invalid_size"


class InvalidParameter(StorageError):
    """An option is missing, cannot have this value, or does not go together with another one."""
    error_code = "invalid_parameter"


class ShareNotMounted(StorageError):
    """The share is not mounted, or its server does not answer."""
    error_code = "share_not_mounted"


class MountFailed(StorageError):
    """The mount helper reported an error."""
    error_code = "mount_failed"


class ShareNotWritable(StorageError):
    """The share refuses to be written to."""
    error_code = "share_not_writable"


class NoEligibleShare(StorageError):
    """No share that the task names has room for the new volume within the policy."""
    error_code = "no_eligible_share"


class NoSpace(StorageError):
    """The share, or the user's quota on it, is full."""
    error_code = "no_space"


class VolumeNotFound(StorageError):
    """No share of those that the task names has the volume."""
    error_code = "volume_not_found"


class SnapshotNotFound(StorageError):
    """The volume has no such snapshot."""
    error_code = "snapshot_not_found"


class Conflict(StorageError):
    """Something exists that differs from what the task asks for."""
    error_code = "conflict"


class WouldShrink(StorageError):
    """The size that the task asks for is smaller than that of the volume or of a clone's source."""
    error_code = "would_shrink"


class HasSnapshots(StorageError):
    """The volume to remove still has snapshots."""
    error_code = "has_snapshots"


class HasNewerSnapshots(StorageError):
    """A revert would destroy newer snapshots."""
    error_code = "has_newer_snapshots"


class HasDependents(StorageError):
    """Linked clones or other files rest on what the task would destroy."""
    error_code = "has_dependents"


class InUse(StorageError):
    """An image is open, or the file system cannot show whether it is."""
    error_code = "in_use"


class LockTimeout(StorageError):
    """A lock was not free in time, or was lost while the task worked."""
    error_code = "lock_timeout"


class UnsafeImage(StorageError):
    """A file is damaged or hostile, has features that are not supported, or is no regular file."""
    error_code = "unsafe_image"


class LeaseHeld(StorageError):
    """Somebody else holds the lease, or its volumes are not removed yet."""
    error_code = "lease_held"


class LeaseLost(StorageError):
    """The lease is not the task's any more: it ran out and was taken over, or it was released."""
    error_code = "lease_lost"


class VerifyFailed(StorageError):
    """What is there is not what was sent, or not what the source has."""

    error_code = "verify_failed"


class ImageChecksum(StorageError):
    """An image that was to be imported has another checksum than was asked for, or none can be found for it."""
    error_code = "image_checksum"


class ImageInvalid(StorageError):
    """An image that was to be imported is damaged, was cut short, or is of no kind that is taken."""
    error_code = "image_invalid"


class ChainBroken(StorageError):
    """The chain of a volume, its ``.info`` or its record is damaged."""
    error_code = "chain_broken"


class NeedsRecovery(StorageError):
    """The share or the record changed after a task was interrupted, so that it cannot be finished or undone."""
    error_code = "needs_recovery"


class ToolMissing(StorageError):
    """A program is not installed, or too old."""
    error_code = "tool_missing"


class ToolFailed(StorageError):
    """A program or a system call failed for another reason, or the code has a fault."""
    error_code = "tool_failed"


_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM)
_READ_ONLY = (errno.EROFS, *_REFUSED)
_GONE = (errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ENODEV, errno.ESHUTDOWN)


def from_os_error(error: OSError, subject: str, reader: int | None = None) -> StorageError:
    """Translate the kernel's error for an object on a share.

    A full or over-quota file system becomes :class:`NoSpace`, a refused write :class:`ShareNotWritable`, and a share whose server
    is gone :class:`ShareNotMounted`. Anything else, also a refused read, becomes :class:`ToolFailed` with the kernel's message.

    :param reader: uid of the user if the task was only reading; None if it was writing.
    """
    words = error.strerror or str(error)
    if reader is not None and error.errno in _REFUSED:
        return ToolFailed(
            subject,
            f"reading was refused to uid {reader} ({words})",
            "run the task as a user who may read it (become), or give this user the right",
        )
    if error.errno in _SPACE:
        return NoSpace(subject, f"the file system refused to store more ({words})", "free some space and run the task again, nothing was lost")
    if error.errno in _READ_ONLY:
        return ShareNotWritable(subject, f"writing was refused ({words})", "check the export, the mount options and the permissions of the share")
    if error.errno in _GONE:
        return ShareNotMounted(subject, f"the server behind the share does not answer ({words})", "remount it with remotefs_share and run the task again")
    return ToolFailed(subject, f"the system call failed ({words})", "see the kernel log of this host, nothing was lost")


def share_gone(label: str) -> ShareNotMounted:
    """The error for a share that was removed or unmounted while a task worked on it."""
    return ShareNotMounted(
        f"share {label}", "its directory was removed or unmounted while the task worked", "mount it with remotefs_share and run the task again"
    )


def told_of(failures: Iterable[StorageError | None]) -> dict:
    """What a result says of failures of its parts, in order: ``msg``, ``error_code`` and the details of the first one. Empty if all is None."""
    first = next((failure for failure in failures if failure is not None), None)
    return {} if first is None else {"msg": str(first), "error_code": first.error_code, **first.details}


def as_storage_error(error: BaseException, subject: str) -> StorageError:
    """Translate any exception of a task, or of one of its items, to a failure with a code. An unforeseen one gets its traceback."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return from_os_error(error, subject)
    if isinstance(error, ValueError) and "integer string conversion" in str(error):  # Python limits the number of digits
        return InvalidParameter(subject, "an option is a number of thousands of digits", "give the number that is meant")
    import traceback

    return ToolFailed(
        subject,
        f"an unexpected fault stopped it ({type(error).__name__}: {error})",
        "run the task again, which finishes or undoes what this one began, and report the fault with the traceback",
        {"traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__))},
    )
