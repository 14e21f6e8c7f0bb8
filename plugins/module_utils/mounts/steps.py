# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that plans of shares are made of: small frozen values that describe themselves; applier.py carries them out."""
from __future__ import annotations

from dataclasses import dataclass, field

from .tables import Entry
from .types import FileSystem


@dataclass(frozen=True)
class Credentials:
    """Who mounts. Never shown: neither by repr nor by any step."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    domain: str | None = None

    def content(self) -> bytes:
        """The credentials file as mount.cifs reads it."""
        pairs = (("username", self.username), ("password", self.password), ("domain", self.domain))
        return "".join(f"{name}={value}\n" for name, value in pairs if value is not None).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Step:
    """Base of all steps: one change at ``path``. ``name`` is its public name in ``actions``."""

    path: str

    name = ""

    def describe(self) -> dict:
        """The step as ``actions`` shows it: its name under ``step``, and its fields; lists are separated by commas."""
        shown = {key: value for key, value in vars(self).items() if key not in self.hidden()}
        return {"step": self.name, **{key: ",".join(value) if isinstance(value, tuple) else value for key, value in shown.items()}}

    def hidden(self) -> tuple[str, ...]:
        """The fields that users do not see."""
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
    """Write the file ``path``, which only root can read."""

    credentials: Credentials

    name = "write_credentials"

    def hidden(self) -> tuple[str, ...]:
        return ("credentials",)


@dataclass(frozen=True)
class RemoveCredentials(Step):
    """Remove the file ``path``."""

    name = "remove_credentials"


@dataclass(frozen=True)
class WriteFstab(Step):
    """Make ``entry`` the only line of the file ``fstab`` that mounts at ``path``."""

    fstab: str
    entry: Entry

    name = "write_fstab"

    def hidden(self) -> tuple[str, ...]:
        return ("entry",)


@dataclass(frozen=True)
class RemoveFstab(Step):
    """Take the lines that mount at ``path`` out of the file ``fstab``."""

    fstab: str

    name = "remove_fstab"


@dataclass(frozen=True)
class MountShare(Step):
    """Mount ``src`` at ``path`` with ``opts``."""

    src: str
    fstype: str
    row: FileSystem
    opts: tuple[str, ...]
    credentials: Credentials | None = field(default=None, repr=False)
    visit: bool = False  # an automounter mounts it when somebody goes there

    name = "mount"

    def hidden(self) -> tuple[str, ...]:
        return ("row", "credentials", "visit")


@dataclass(frozen=True)
class Remount(Step):
    """Bring ``opts`` into force in place."""

    src: str
    row: FileSystem
    opts: tuple[str, ...]

    name = "remount"

    def hidden(self) -> tuple[str, ...]:
        return ("row",)


@dataclass(frozen=True)
class Unmount(Step):
    """Unmount what is at ``path``."""

    src: str

    name = "unmount"
