# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do about a mount that failed, from what the helper said. Only failures import this. Pure."""
from __future__ import annotations

from . import steps

# Messages of helpers that mean: the kernel does not have this file system.
_NOT_IN_KERNEL = ("No such device", "not supported by the system", "unknown filesystem type")
_GENERAL = "check the server, the name of its export, the options and the credentials"
_NETWORK = (
    (
        ("resolve", "Name or service not known", "Temporary failure in name resolution"),
        "correct the name of the server in src, or its entry in DNS or /etc/hosts",
    ),
    (("No route to host", "Network is unreachable"), "check the address of the server, and this host's network and routes"),
    (("Connection refused",), "start the service on the server, or name its port in opts"),
    (("timed out", "Host is down", "could not connect", "Unable to find suitable address"), "check that the server runs, and that no firewall is in between"),
)
_DENIED = ("access denied", "Permission denied", "Operation not permitted", "Required key not available", "Access denied")
_NOT_THERE = ("No such file or directory", "No such device or address")


def remedy(step: steps.MountShare, output: str) -> str:
    """The remedy for a mount that failed. :param output: what the helper printed.

    A kernel without the file system gives errors that sound like a fault of the server.
    """
    if step.row.kernel_module and any(words in output for words in _NOT_IN_KERNEL + step.row.no_module):
        module = step.row.kernel_module
        return f"the running kernel has no {module}: load its module (modprobe {module}); a container has its host's kernel, so load it there"
    by_hand = step.row.by_hand.format(host=step.src.rsplit(":", 1)[0])
    return "; ".join(filter(None, (_by_message(step, output), by_hand)))


def _by_message(step: steps.MountShare, output: str) -> str:
    for words, advice in _NETWORK:
        if any(word in output for word in words):
            return f"check the server: {advice}"
    if step.row.denied and any(word in output for word in _DENIED):
        return f"check the server and the credentials: {step.row.denied}"
    if any(word in output for word in _NOT_THERE):
        return "check the server and the name of its export: nothing has the name that src says"
    return _GENERAL
