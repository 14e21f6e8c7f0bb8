# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter select: what it finds, in which types, and what it says when it cannot."""
from __future__ import annotations

import builtins
import datetime
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.remotefs.storage.plugins.filter.select import FilterModule, plain, select

VOLUMES = [
    {"name": "db01", "size": 1 << 30, "snapshots": [{"name": "nightly", "labels": {"keep": "no"}}]},
    {"name": "db02", "size": 2 << 30, "snapshots": []},
    {"name": "web", "size": 3 << 30, "snapshots": []},
    {"name": "broken", "error_code": "chain_broken", "msg": "no"},
]

PLAYBOOK = """
- hosts: all
  gather_facts: false
  vars:
    prefix: db
    volumes: [{name: "{{ prefix }}01"}, {name: web}]
    expression: "[?starts_with(name, '{{ prefix }}')].name"
  tasks:
    - ansible.builtin.assert:
        that:
          - (volumes | remotefs.storage.select(expression)) == ['db01']
          - (volumes | remotefs.storage.select("[?contains(name, 'e')].join('-', ['x', name])")) == ['x-web']
    - ansible.builtin.debug:
        msg: "{{ volumes | remotefs.storage.select('[?') }}"
      ignore_errors: true
      register: wrong
    - ansible.builtin.assert:
        that: "'the expression ' in wrong.msg and 'is wrong' in wrong.msg"
"""


class Tagged(str):
    """A string whose type has another name, as ansible-core tags them."""


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("[?starts_with(name, 'db')].name", ["db01", "db02"]),
        ("[?starts_with(name, 'db') && !snapshots].name", ["db02"]),
        ("[?size > `1073741824`].name", ["db02", "web"]),
        ("[].snapshots[?labels.keep == 'no'].name[]", ["nightly"]),
        ("[?error_code].name", ["broken"]),
        ("[?name == 'nothing'].name", []),
        ("length(@)", 4),
        ("volumes", None),
        ("[?contains(snapshots[].name || `[]`, 'nightly')].name", ["db01"]),
    ],
)
def test_expressions(expression: str, found: object) -> None:
    assert select(VOLUMES, expression) == found


def test_tagged_strings_become_plain_ones() -> None:
    found = select([{Tagged("name"): Tagged("db01")}], Tagged("[?starts_with(name, 'db')].name"))
    assert found == ["db01"]
    assert found[0].__class__ is str


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (None, None),
        (1.5, 1.5),
        ((1, Tagged("a")), [1, "a"]),
        ({Tagged("a"): {"b": [Tagged("c")]}}, {"a": {"b": ["c"]}}),
        (datetime.date(2026, 11, 22), "2026-11-22"),
    ],
)
def test_plain_values(value: object, expected: object) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


def test_the_input_stays_as_it_is() -> None:
    volumes = [{"name": Tagged("db01"), "labels": {}}]
    select(volumes, "[].labels")[0]["new"] = 1
    assert volumes == [{"name": "db01", "labels": {}}]
    assert isinstance(volumes[0]["name"], Tagged)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("[?starts_with(name, 'db')", "Incomplete expression at column 26."),
        ("", "cannot be empty."),
        ("nothing(@)", "Unknown function: nothing()."),
        ("starts_with(@)", "Expected 2 arguments for function starts_with(), received 1."),
        ("[].length(snapshots)", "length() wants string or array or object and got null."),
        ("[?a ~ b]", "Unknown token ~ at column 5."),
        ("'a", "Unclosed ' delimiter at column 1."),
        ("a b", "Unexpected token: b at column 3."),
    ],
)
def test_a_wrong_expression_says_so_in_one_line(expression: str, reason: str) -> None:
    with pytest.raises(AnsibleFilterError) as raised:
        select(VOLUMES, expression)
    message = str(raised.value)
    assert message.startswith(f"remotefs.storage.select: the expression {expression!r} is wrong: {reason}")
    assert "\n" not in message


@pytest.mark.parametrize("data", ["a string", b"bytes", None, 5])
def test_the_input_must_be_a_list_or_a_dictionary(data: object) -> None:
    with pytest.raises(AnsibleFilterError, match="must be a list or a dictionary"):
        select(data, "@")


def test_the_expression_must_be_a_string() -> None:
    with pytest.raises(AnsibleFilterError, match="must be a string, not list"):
        select([], ["name"])


def test_without_jmespath(monkeypatch: pytest.MonkeyPatch) -> None:
    present = builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "jmespath":
            raise ImportError(name)
        return present(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.split(".")[0] == "jmespath"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(AnsibleFilterError, match="jmespath is missing on the controller"):
        select([], "@")


def test_with_what_ansible_tags(tmp_path: Path, ansible_environment: dict) -> None:
    """Literals, templates and module results of a playbook, as this ansible-core hands them to filters."""
    playbook = tmp_path / "play.yml"
    playbook.write_text(PLAYBOOK)
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(playbook)]
    done = subprocess.run(command, env=ansible_environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_names() -> None:
    assert FilterModule().filters() == {"select": select}
