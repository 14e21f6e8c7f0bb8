# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a plan for a share: small frozen values that describe themselves. applier.py carries them out."""
from __future__ import annotations

from dataclasses import dataclass, field

from . import tables, types


@dataclass(frozen=True)
class Credentials:
    """The user who mounts, with the password. Never shown: neither the password by repr nor any of it by a step."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    domain: str | None = None
    bare: bool = False  # the file holds the password and nothing else

    def content(self) -> bytes:
        """The content of the credentials file, as the mount helper reads it."""
        if self.bare:
            return f"{self.password}\n".encode("utf-8", "surrogateescape")
        pairs = (("username", self.username), ("password", self.password), ("domain", self.domain))
        return "".join(f"{name}={value}\n" for name, value in pairs if value is not None).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Step:
    """Base of all steps: one change at ``path``. ``name`` is its public name in ``actions``."""

    path: str

    name = ""

    def describe(self) -> dict:
        """The step for ``actions``: its name under the key ``step``, and each visible field under its own; a tuple becomes one text with commas."""
        shown = {key: value for key, value in vars(self).items() if key not in self.hidden()}
        return {"step": self.name, **{key: ",".join(value) if isinstance(value, tuple) else value for key, value in shown.items()}}

    def hidden(self) -> tuple[str, ...]:
        """The names of the fields that :meth:`describe` leaves out."""
        return ()


@dataclass(frozen=True)
class CreateDirectory(Step):
    """Make the directory ``path`` and those above it."""

    name = "create_directory"


@dataclass(frozen=True)
class RemoveDirectory(Step):
    """Remove the directory ``path`` if it is empty."""

    name = "remove_directory"


@dataclass(frozen=True)
class WriteCredentials(Step):
    """Write the credentials file ``path``, which only root can read."""

    credentials: Credentials

    name = "write_credentials"

    def hidden(self) -> tuple[str, ...]:
        """See :meth:`Step.hidden`."""
        return ("credentials",)


@dataclass(frozen=True)
class RemoveCredentials(Step):
    """Remove the credentials file ``path``."""

    name = "remove_credentials"


@dataclass(frozen=True)
class WriteFstab(Step):
    """Make ``entry`` the only line of the file ``fstab`` that mounts at ``path``."""

    fstab: str
    entry: tables.Entry

    name = "write_fstab"

    def hidden(self) -> tuple[str, ...]:
        """See :meth:`Step.hidden`."""
        return ("entry",)


@dataclass(frozen=True)
class RemoveFstab(Step):
    """Remove all lines that mount at ``path`` from the file ``fstab``."""

    fstab: str

    name = "remove_fstab"


@dataclass(frozen=True)
class MountShare(Step):
    """Mount ``src`` at ``path`` with ``opts``."""

    src: str
    fstype: str
    row: types.FileSystem
    opts: tuple[str, ...]
    credentials: Credentials | None = field(default=None, repr=False)
    visit: bool = False  # True: an access to the path is enough, because an automounter mounts the share
    fallback: str = ""  # the option with which the share was mounted after the helper's own search for a version had failed

    name = "mount"

    def hidden(self) -> tuple[str, ...]:
        """See :meth:`Step.hidden`."""
        return ("row", "credentials", "visit", "fallback")


@dataclass(frozen=True)
class Remount(Step):
    """Put ``opts`` into force on the mount at ``path``, without an unmount."""

    src: str
    row: types.FileSystem
    opts: tuple[str, ...]

    name = "remount"

    def hidden(self) -> tuple[str, ...]:
        """See :meth:`Step.hidden`."""
        return ("row",)


@dataclass(frozen=True)
class Unmount(Step):
    """Unmount the topmost mount at ``path``."""

    src: str

    name = "unmount"


@dataclass(frozen=True)
class SetMaintenance(Step):
    """Put the share at ``path`` into maintenance, or end it. The mark is on the share itself, so it counts for every host."""

    maintenance: bool

    name = "set_maintenance"
