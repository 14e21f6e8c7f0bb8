# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter that says for each volume which machine has it."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.remotefs.storage.plugins.filter.attached import attached

VOLUMES = [{"name": "a", "labels": {"domain": "x"}}, {"name": "b", "labels": {}}]
ITEMS = [{"volume": "a"}, {"volume": "b"}, {"volume": "a", "attachment": {"qmp": "/m"}}]


def test_an_expression_is_asked_of_each_volume() -> None:
    pytest.importorskip("jmespath")
    found = attached(ITEMS, "labels.domain && {libvirt: {domain: labels.domain}}", VOLUMES)
    assert found == [{"volume": "a", "attachment": {"libvirt": {"domain": "x"}}}, {"volume": "b"}, ITEMS[2]]


def test_auto_and_nothing() -> None:
    assert attached(ITEMS, "") == ITEMS
    assert attached(ITEMS, "auto")[:2] == [{"volume": "a", "attachment": {"libvirt": {}}}, {"volume": "b", "attachment": {"libvirt": {}}}]
    assert attached(ITEMS, "auto")[2] == ITEMS[2]


@pytest.mark.parametrize("expression", ["name", "{socket: name}", "[name]"])
def test_what_is_no_attachment(expression: str) -> None:
    pytest.importorskip("jmespath")
    with pytest.raises(AnsibleFilterError, match="no attachment"):
        attached(ITEMS, expression, VOLUMES)


@pytest.mark.parametrize("items", ["a", ["a"], [{"name": "a"}], None])
def test_what_are_no_items(items: object) -> None:
    with pytest.raises(AnsibleFilterError, match="volume"):
        attached(items, "auto")
