# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain and the images of one volume that it has as a disk: whether work on them may begin now.

Everything here only asks. Files are compared by device and inode, so that libvirt may spell their paths as it likes.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Collection, Iterable, Iterator, NoReturn

from ... import attachments, errors, model
from ...store.files.directory import ShareDirectory
from .. import openers
from . import definition
from .connection import OFF, PAUSED, RUNNING, Connection, Domain, Refused, Unreachable
from .definition import Disk, Image, Unreadable

_PAUSED_BY = ("user", "ioerror", "watchdog", "unknown", "shutting down", "crashed")


class VolumeDomain:
    """A domain, and a volume in it.

    :param volume: the volume as ``.info`` describes it.
    """

    def __init__(self, domain: Domain, attachment: attachments.Attachment, directory: ShareDirectory, volume: model.Volume) -> None:
        self.domain, self.attachment, self.directory, self.volume = domain, attachment, directory, volume

    @property
    def subject(self) -> str:
        """How messages name the volume."""
        return f"volume {self.volume.name} on {self.directory.share.label}"

    def refuse(self, problem: str, remedy: str) -> NoReturn:
        """:raises InUse: always."""
        raise errors.InUse(self.subject, problem, remedy)

    # -- files -------------------------------------------------------------------------------------------------------

    def key(self, file: str) -> openers.Key | None:
        """Device and inode of a file of the share. None if it is not there."""
        status = self.directory.root.status(file)
        return (status.st_dev, status.st_ino) if status is not None else None

    def file_of(self, path: str, files: Iterable[str]) -> str | None:
        """Which of these files of the share a path names."""
        found = key_of_path(path)
        return next((file for file in files if found is not None and self.key(file) == found), None)

    def place(self, file: str, disk: Disk) -> int | None:
        """Where in the chain of a disk a file is. None if it is not there."""
        return next((position for position, image in enumerate(disk.images) if self.file_of(image.path, [file]) is not None), None)

    # -- disks -------------------------------------------------------------------------------------------------------

    def disks(self, inactive: bool, files: Collection[str]) -> list[Disk]:
        """Its disks that have one of these files in their chain."""
        found = definition.disks(self.domain.xml(inactive))
        return [disk for disk in found if any(self.file_of(image.path, files) is not None for image in disk.images)]

    def disk(self, inactive: bool, files: Collection[str]) -> Disk:
        """The one disk that has one of these files in its chain. :raises InUse: there is none, or there are several."""
        found = self.disks(inactive, files)
        if len(found) != 1:
            what = f"as {len(found)} disks ({model.listed([disk.target for disk in found])})" if found else "as no disk"
            self.refuse(
                f"{self.attachment} has it {what}",
                "name the domain that uses it, or leave attachment out if none does" if not found else "detach all but one, and run the task again",
            )
        return found[0]

    # -- what must hold before anything is done ------------------------------------------------------------------------

    def require_ready(self, files: Collection[str], top: Collection[str], job: bool = False) -> tuple[Disk, str]:
        """Check that work may begin on the disk of a domain that runs. Returns the disk, and the file that the guest writes to.

        :param files: all files that may be in its chain. :param top: those that the guest may write to. :param job: a job may be there.
        :raises InUse: it may not.
        """
        if self.domain.is_moving():
            self.refuse(f"{self.attachment} is being migrated, saved or dumped", "run the task again when that has ended")
        disk = self.disk(False, files)
        self._require_plain(disk)
        if not job and (disk.mirror is not None or self.domain.job(disk.target) is not None):
            self.refuse(f"another program's job works on disk {disk.target} of {self.attachment}", "wait until it has ended, and run the task again")
        written = self.file_of(disk.images[0].path, files)
        if written is None or written not in top:
            self.refuse(
                f"{self.attachment} writes to {disk.images[0].path}, and the volume's active image is {self.volume.active.file}",
                f"stop the domain, and let it have {os.path.join(self.directory.share.path, self.volume.active.file)}",
            )
        self._require_same_definition(disk)
        self.require_no_named_state(disk.target)
        self.require_no_other(files, writing=True)
        return disk, written

    def require_chain(self, disk: Disk, files: tuple[str, ...]) -> None:
        """Check that the disk has these files as its chain. :raises InUse: it has others."""
        seen = [self.file_of(image.path, files) for image in disk.images]
        if tuple(seen) != files:
            told = model.listed([os.path.basename(image.path) for image in disk.images])
            self.refuse(f"{self.attachment} has the files {told}, and the share says {model.listed(files)}", "shut the domain off, and start it anew")

    def _require_plain(self, disk: Disk) -> None:
        if disk.oddity is not None:
            self.refuse(f"disk {disk.target} of {self.attachment} is {disk.oddity}", "shut the domain off, and run the task without attachment")

    def _require_same_definition(self, disk: Disk) -> None:
        """A persistent domain must be defined as it runs: libvirt changes both, and the next start must find the volume."""
        if not self.domain.is_persistent():
            return
        defined = next((one for one in definition.disks(self.domain.xml(True)) if one.target == disk.target), None)
        path = defined.images[0].path if defined is not None and defined.images else None
        if path is None or key_of_path(path) != key_of_path(disk.images[0].path):
            self.refuse(
                f"{self.attachment} runs with {disk.images[0].path} as {disk.target}, and its definition says {path}",
                "mend the definition (virsh edit), and run the task again",
            )

    def require_no_named_state(self, target: str) -> None:
        """Check that libvirt keeps no snapshot and no checkpoint of the disk. :raises InUse: it does."""
        for xml in self.domain.named_states():
            if target in definition.disks_of_state(xml) or any(self.file_of(path, self.volume.own_files) for path in definition.paths_in(xml)):
                self.refuse(
                    f"libvirt keeps a snapshot or a checkpoint of disk {target} of {self.attachment}, which the change would make useless",
                    "remove it with libvirt (virsh snapshot-delete, checkpoint-delete), and run the task again",
                )

    def require_no_other(self, files: Iterable[str], writing: bool) -> None:
        """:param writing: those that only read do not count. :raises InUse: a process besides the domain's QEMU has one of these files open."""
        keys = {key: file for file in files for key in [self.key(file)] if key is not None}
        for key, pid in openers.other_users(process_of(self.domain.uuid) or 0, set(keys), writing).items():
            self.refuse(f"process {pid} has {keys[key]} open, too", "stop one of the two, and run the task again")

    # -- a domain that is off --------------------------------------------------------------------------------------------

    def require_definable(self, files: Collection[str], tops: Collection[str]) -> Disk:
        """Check that the definition of a domain that is off may follow the volume. Returns the disk as it says it.

        :param files: all files that it may name. :param tops: those with which it may start. :raises InUse: it may not.
        """
        disk = self.disk(True, files)
        self._require_plain(disk)
        if self.file_of(disk.images[0].path, tops) is None:
            self.refuse(
                f"{self.attachment} would be started on {disk.images[0].path}, and the volume's active image is {self.volume.active.file}",
                f"let it have {os.path.join(self.directory.share.path, self.volume.active.file)} (virsh edit), and run the task again",
            )
        self._require_in_share(disk.images[0])
        if self.domain.is_saved():
            self.refuse(
                f"the memory of {self.attachment} is saved, and would go on with the old image",
                "start it, or drop that (virsh managedsave-remove), and run the task again",
            )
        self.require_no_named_state(disk.target)
        return disk

    def _require_in_share(self, image: Image) -> None:
        """The new path is the old one with another name, so the old one must not lead through a link of another name."""
        root = os.fstat(self.directory.root.fd)
        if key_of_path(os.path.dirname(image.path)) != (root.st_dev, root.st_ino):
            self.refuse(f"{self.attachment} has {image.path}, which is in another directory than the volume", "let it have the volume's path (virsh edit)")

    def path_like(self, image: Image, file: str) -> str:
        """The path of a file of the share, as the domain spells the share's directory."""
        self._require_in_share(image)
        return os.path.join(os.path.dirname(image.path), file)


def is_off(domain: Domain, attachment: attachments.Attachment) -> bool:
    """Whether a domain is shut off. :raises InUse: it is neither that nor at work."""
    state = domain.state()
    if state.state == OFF:
        return True
    if state.state not in (RUNNING, PAUSED) or (state.state == PAUSED and state.reason not in _PAUSED_BY):
        raise errors.InUse(str(attachment), f"it is {state.reason or state.state}", "wait until it runs again, or shut it off, and run the task again")
    return False


def key_of_path(path: str) -> openers.Key | None:
    """Device and inode of what a path leads to. None if there is nothing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def process_of(uuid: str) -> int | None:
    """The process of this host that is the QEMU of a domain, as far as this user may see. None if there is none."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as stream:
                words = stream.read().split(b"\0")
            if b"-uuid" in words and uuid.encode() in words:
                return int(entry)
        except OSError:
            continue  # it has just ended
    return None


def having(connection: Connection, directory: ShareDirectory, files: Iterable[str]) -> list[Domain]:
    """The domains that have one of these files of the share as a disk, whether they run or not."""
    statuses = [status for status in map(directory.root.status, files) if status is not None]
    keys = {(status.st_dev, status.st_ino) for status in statuses}
    found = []
    for domain in connection.all_domains():
        try:
            paths = definition.paths_in(domain.xml(True)) | definition.paths_in(domain.xml(False))
        except Refused as error:
            if not error.is_absent:
                raise
            continue  # gone meanwhile
        if any(key_of_path(path) in keys for path in paths):
            found.append(domain)
    return found


@contextmanager
def told(subject: str, attachment: attachments.Attachment) -> Iterator[None]:
    """A context in which errors of libvirt become errors for users."""
    try:
        yield
    except Refused as error:
        raise _refusal(subject, error) from error
    except Unreachable as error:
        raise errors.ToolFailed(
            subject, f"libvirt at {attachment.uri} cannot be reached: {error}", "start it, or check the URI, and run the task again"
        ) from error
    except Unreadable as error:
        raise errors.ToolFailed(subject, f"what libvirt says of {attachment} cannot be understood ({error})", "look at it with virsh dumpxml") from error


def _refusal(subject: str, error: Refused) -> errors.StorageError:
    problem = f"libvirt refuses: {error.text}"
    if "Permission denied" in error.text:
        return errors.ToolFailed(subject, problem, "let QEMU open the volume's files (owner, mode, ACL, SELinux, AppArmor), and run the task again")
    if "No space left" in error.text:
        return errors.NoSpace(subject, problem, "make room on the share, and run the task again")
    if "lock" in error.text and "get" in error.text:
        return errors.InUse(subject, problem, "stop the other program that uses the image or the domain, and run the task again")
    return errors.ToolFailed(subject, problem, "run the task again; if that does not help, shut the domain off first")
