# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that a task names. Imported late: most tasks name none."""

from __future__ import annotations

import os
from importlib.util import find_spec

from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module

from . import attachments, errors

_USUAL_LIBVIRT = "qemu:///system"
_LONGEST_DOMAIN = 1024
_LONGEST_SHOWN = 40  # characters of a value in a message
_SYSTEM_PYTHONS = ["/usr/bin/python3", "/usr/libexec/platform-python", "/usr/bin/python"]


def named(given: dict) -> attachments.Attachment:
    """The machine that the option ``attachment`` names. The path of its monitor is an absolute one then.

    :raises InvalidParameter: no socket can have that path, or no domain that name.
    """
    domain = given.get("libvirt")
    if domain is not None:
        return _domain(domain.get("uri") or _USUAL_LIBVIRT, domain.get("domain"))
    if given.get("qmp") is None:
        raise errors.InvalidParameter("option attachment", "it names no machine", "give it qmp (the socket of a monitor) or libvirt (a domain)")
    return attachments.Attachment(_socket(given["qmp"], "qmp"))


def agent(given: dict) -> str | None:
    """The socket of the channel of the guest's agent in that machine, likewise. :raises InvalidParameter: no socket can have that path."""
    path = given.get("agent")
    return None if path is None else _socket(path, "agent")


def _socket(path: str, name: str) -> str:
    if not path or not path.isprintable() or len(os.fsencode(path)) > attachments.LONGEST_SOCKET:
        raise errors.InvalidParameter(
            f"option attachment.{name}", f"{path!r} is no path of a socket", f"give one of at most {attachments.LONGEST_SOCKET} bytes"
        )
    return os.path.abspath(path)


def _domain(uri: str, name: str | None) -> attachments.Attachment:
    """:raises InvalidParameter: the URI is of another host or of no QEMU, or the name cannot be a domain's."""
    check_uri(uri, "option attachment.libvirt.uri")
    if name is not None and (not name or not name.isprintable() or len(name) > _LONGEST_DOMAIN):
        raise errors.InvalidParameter("option attachment.libvirt.domain", f"{name[:_LONGEST_SHOWN]!r} is no name", "give the name or the UUID of the domain")
    return attachments.Attachment(uri=uri, domain=name or "")


def check_uri(uri: str, subject: str) -> str:
    """The same URI. :raises InvalidParameter: it is of another host, or of no QEMU."""
    if not attachments.is_local(uri):
        problem = f"{uri[:_LONGEST_SHOWN]!r} names no QEMU driver of this host"
        raise errors.InvalidParameter(subject, problem, "give a URI such as qemu:///system, and run the task on the domain's host")
    return uri


def shared(given: dict) -> frozenset[str]:
    """What items that name the same machine share: a monitor serves one client, and a domain is suspended as a whole. A monitor that is
    spelled in two ways is one."""
    domain = given.get("libvirt")
    if domain is not None:  # where no domain is named, two items may have the same
        return frozenset([f"domains of {domain.get('uri') or _USUAL_LIBVIRT}"])
    path = given.get("qmp")
    try:
        path = path and os.path.realpath(path)
        return frozenset([f"monitor {os.stat(path)[1:3]}"] if path else ())
    except (OSError, ValueError):  # nobody listens there
        return frozenset([f"monitor {path}"])


def go_on_with_binding() -> None:
    """If this Python does not have libvirt's binding, go on under the system's Python that has it. Where there is none, virsh is used."""
    if find_spec("libvirt") is None and not has_respawned():
        interpreter = probe_interpreters_for_module(_SYSTEM_PYTHONS, "libvirt")
        if interpreter:
            respawn_module(interpreter)  # it does not return
