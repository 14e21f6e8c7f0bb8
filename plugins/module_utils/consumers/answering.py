# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the guest of a machine answers. The guest is not trusted: what it says is bounded, and is looked at for one word only."""

from __future__ import annotations

import socket
import time
from ipaddress import ip_address
from typing import Callable, Iterable

from ..apply.live.agent import Agent, AgentError

SSH, AGENT, NONE = "ssh", "agent", "none"
_BANNER = b"SSH-"  # RFC 4253, section 4.2
_LINES = 1 << 12  # bytes that a server may say before it says that
_LOOK, _PAUSE = 3.0, 0.2  # seconds


def says_ssh(host: str, port: int) -> bool:
    """Whether an SSH server greets at this address."""
    said = b""
    try:
        with socket.create_connection((host, port), timeout=_LOOK) as stream:
            until = time.monotonic() + _LOOK
            while len(said) < _LINES and time.monotonic() < until:
                data = stream.recv(_LINES)
                if not data:
                    break
                said += data
                if said.startswith(_BANNER) or b"\n" + _BANNER in said:
                    return True
    except OSError:
        pass  # nobody is there yet
    return False


def reachable(addresses: Iterable[str]) -> str | None:
    """The first address at which others may reach a guest, one of IPv4 before those of IPv6. What is no address is none."""
    found = []
    for text in addresses:
        try:
            address = ip_address(text)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified):
            found.append(address)
    return str(min(found, key=lambda one: one.version)) if found else None


def agent_answers(path: str) -> bool:
    """Whether the guest agent behind this socket answers."""
    agent = Agent(path)
    try:
        agent.ping()
        return True
    except AgentError:
        return False
    finally:
        agent.close()


def wait(answers: Callable[[], bool], is_there: Callable[[], bool], until: float) -> bool:
    """Whether a guest comes to answer while its machine is there, at most until then (:func:`time.monotonic`)."""
    while not answers():
        if not is_there() or time.monotonic() > until:
            return False
        time.sleep(_PAUSE)
    return True
