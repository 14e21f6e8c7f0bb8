# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a running machine is reached that has images open: what the option ``attachment`` says."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST_SOCKET = 107  # bytes of the path of a socket (unix(7))
_LONGEST = 4096  # characters of a path, a URI or a name
_LOCAL_LIBVIRT = re.compile(r"qemu(\+unix)?:///(system|session)(\?.*)?")


@dataclass(frozen=True)
class Attachment:
    """A machine: the path of its ``monitor`` (QMP), or the ``domain`` (a name or UUID) of libvirt at ``uri``. Without a name it is the domain
    that has the volume as a disk, if there is one. ``boot`` is the host's boot in which a task worked with it, where that counts."""

    monitor: str = ""
    uri: str = ""
    domain: str = ""
    boot: str = ""

    def __str__(self) -> str:
        """How messages name the machine."""
        if not self.uri:
            return f"the machine behind {self.monitor}"
        return f"domain {self.domain} at {self.uri}" if self.domain else f"the domain at {self.uri} that has it"

    @property
    def has_definition(self) -> bool:
        """Whether something says which files the machine is started on, which has to follow the volume."""
        return bool(self.uri)

    def describe(self) -> dict:
        """As the option says it."""
        return {"libvirt": {"uri": self.uri, "domain": self.domain}} if self.uri else {"qmp": self.monitor}

    def to_json(self) -> str | dict:
        """As records have it: the path of a monitor, or a dict with ``uri``, ``domain`` and ``boot``."""
        return {"uri": self.uri, "domain": self.domain, "boot": self.boot} if self.uri else self.monitor


def is_local(uri: str) -> bool:
    """Whether it is a URI of libvirt's QEMU driver of this host."""
    return uri.isprintable() and bool(_LOCAL_LIBVIRT.fullmatch(uri))


def from_json(value: object) -> Attachment | None:
    """What :meth:`Attachment.to_json` wrote; None for None. :raises ValueError: it cannot be."""
    if value is None:
        return None
    if isinstance(value, dict):
        return Attachment(uri=_text(value.get("uri")), domain=_text(value.get("domain")), boot=_text(value.get("boot")))
    return Attachment(_text(value))


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > _LONGEST or not value.isprintable():
        raise ValueError("no path, URI or name of a machine")
    return value
