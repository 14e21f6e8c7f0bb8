# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What virsh says in words of its own becomes what libvirt's binding for Python says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt import virsh
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt.connection import OFF, OTHER, PAUSED, RUNNING


@pytest.mark.parametrize(
    "said, state, reason",
    [
        ("running (booted)", RUNNING, ""),
        ("idle", RUNNING, ""),
        ("in shutdown (user)", RUNNING, ""),
        ("paused (user)", PAUSED, "user"),
        ("paused (I/O error)", PAUSED, "ioerror"),
        ("paused (watchdog)", PAUSED, "watchdog"),
        ("paused (migrating)", PAUSED, "migration"),
        ("paused (saving)", PAUSED, "save"),
        ("paused (dumping)", PAUSED, "dump"),
        ("paused (creating snapshot)", PAUSED, "snapshot"),
        ("paused (from snapshot)", PAUSED, "from snapshot"),
        ("paused (shutting down)", PAUSED, "shutting down"),
        ("paused (crashed)", PAUSED, "crashed"),
        ("shut off (destroyed)", OFF, ""),
        ("crashed (panicked)", OTHER, "crashed"),
        ("pmsuspended (unknown)", OTHER, "pmsuspended"),
    ],
)
def test_states(said: str, state: str, reason: str) -> None:
    def say(verb: str, *_words: str, **_options: Any) -> str:
        return {"domstate": f"{said}\n\n", "domid": "7\n"}[verb]

    domain = virsh.SpokenDomain(SimpleNamespace(say=say), "uuid", "vm")  # type: ignore[arg-type]
    assert domain.state() == (state, reason)
