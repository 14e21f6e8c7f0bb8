# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a guest's agent. libvirt has its channel, so libvirt asks it.

Each question is a command to the agent with a limit of time of its own. libvirt's verbs FSFreeze and FSThaw have none but that of the domain,
which is none at first, which nobody can read, and which stays. With an agent that never answers FSFreeze, libvirt lets nobody else ask it, so
that nobody can thaw the guest. And no verb of libvirt's tells whether a guest is frozen. The price is that libvirt marks the domain
(``tainted: custom-ga-command`` in its log) until it is off.

The guest is not trusted: of its answers only the shape counts that is asked for.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod

from . import connection


class Asked(ABC):
    """A part of a :class:`connection.Domain`: its guest's agent."""

    @abstractmethod
    def ask_agent(self, request: str, limit: int) -> str:
        """What its agent answers to a request, both in JSON. The agent has ``limit`` seconds, after five to say that it is there."""

    def answers(self, limit: int) -> bool:
        """See :meth:`connection.Domain.answers`."""
        self._returned("guest-ping", limit)
        return True

    def own_addresses(self, limit: int) -> list[str]:
        """See :meth:`connection.Domain.own_addresses`."""
        cards = self._returned("guest-network-get-interfaces", limit)
        entries = [entry for card in _dictionaries(cards) for entry in _dictionaries(card.get("ip-addresses"))]
        return [str(entry.get("ip-address")) for entry in entries]

    def is_frozen(self, limit: int) -> bool:
        """See :meth:`connection.Domain.is_frozen`."""
        status = self._returned("guest-fsfreeze-status", limit)
        if status not in ("frozen", "thawed"):
            raise connection.Nonsense("its guest agent says neither that it is frozen nor that it is thawed")
        return status == "frozen"

    def freeze(self, limit: int) -> int:
        """See :meth:`connection.Domain.freeze`."""
        return self._count("guest-fsfreeze-freeze", limit)

    def thaw(self, limit: int) -> int:
        """See :meth:`connection.Domain.thaw`."""
        return self._count("guest-fsfreeze-thaw", limit)

    def _count(self, command: str, limit: int) -> int:
        count = self._returned(command, limit)
        if not isinstance(count, int) or isinstance(count, bool):
            raise connection.Nonsense(f"its guest agent gives no number in answer to {command}")
        return count

    def _returned(self, command: str, limit: int) -> object:
        try:
            answer = json.loads(self.ask_agent(json.dumps({"execute": command}), limit))
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or "return" not in answer:
            raise connection.Nonsense(f"its guest agent gives no answer to {command} but something else")
        return answer["return"]


def _dictionaries(told: object) -> list[dict]:
    return [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
