# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory makes of labels: addresses, names of groups, and words for messages."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from ansible.errors import AnsibleParserError

from ansible_collections.remotefs.storage.plugins.inventory.environments import InventoryModule, group_names, parse_address, shown
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import candidates


@pytest.mark.parametrize(
    "text, found",
    [
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("vm:65535", ("vm", 65535)),
        ("vm_7.a-b.example.org:22", ("vm_7.a-b.example.org", 22)),
        ("7up:22", ("7up", 22)),
        ("[::1]:22", ("::1", 22)),
        ("[2001:DB8::ffff:192.0.2.1]:22", ("2001:DB8::ffff:192.0.2.1", 22)),
    ],
)
def test_addresses(text: str, found: tuple) -> None:
    assert parse_address(text) == found


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        ":22",
        "vm",
        "vm:",
        "vm:0",
        "vm:022",
        "vm:65536",
        "vm:100000",
        "vm:22\n",
        "vm:22 ",
        " vm:22",
        "vm:-1",
        "vm:２２",
        "vm:22:22",
        "vm\x00:22",
        "-oProxyCommand=x:22",
        "--:22",
        ".vm:22",
        "root@vm:22",
        "a b:22",
        "a,b:22",
        "a;b:22",
        "$(x):22",
        "{{ x }}:22",
        "ü:22",
        "127.1:22",
        "1.2.3.256:22",
        "1:22",
        "127.0.0.01:22",
        "[]:22",
        "[::1:22",
        "::1:22",
        "[127.0.0.1]:22",
        "[vm]:22",
        "[fe80::1%eth0]:22",
        "[fe80::1%-oX]:22",
        "[:::]:22",
        "x" * 254 + ":22",
    ],
)
def test_what_is_none(text: str | None) -> None:
    assert parse_address(text) is None


def test_groups() -> None:
    worker = {"environment": "ci", "golden": {"volume": "debian-12", "snapshot": None}, "labels": {"role": "web server", "nightly": ""}}
    assert group_names(worker) == ["environment_ci", "golden_debian-12", "label_role_web server", "label_nightly"]
    assert group_names({**worker, "golden": None, "labels": {}}) == ["environment_ci"]


def test_too_many_groups() -> None:
    """A share must not keep Ansible busy for hours: 40000 labels of one volume took minutes."""
    worker = {"environment": "ci", "golden": None, "labels": {f"k{number}": "v" for number in range(100)}}
    assert len(group_names(worker)) == 101
    assert group_names({**worker, "labels": {**worker["labels"], "one": "more"}}) == ["environment_ci"]
    assert group_names({**worker, "labels": {"k": "v" * 192, "long": "v" * 193}}) == ["environment_ci", "label_k_" + "v" * 192]


def test_words_for_messages() -> None:
    assert shown("\x1b[2J\n\u202e") == r"'\x1b[2J\n\u202e'" and len(shown("x" * 10**6)) < 120


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before anything is read, in a process that can be killed, and the error says what to do."""
    monkeypatch.setattr(candidates.resolve, "find_share", lambda name, *_rest: Share(name, str(tmp_path), "nfs", local=False))
    monkeypatch.setattr(candidates.resolve, "PATIENCE", 0.2)
    monkeypatch.setattr(os, "statvfs", lambda _path: time.sleep(60))
    began = time.monotonic()
    with pytest.raises(AnsibleParserError, match="share nas1:/vols: it does not answer within 0 s; check its server"):
        InventoryModule()._read({"share": "nas1:/vols", "mount_base": "/mnt", "environments": []})
    assert time.monotonic() - began < 20
