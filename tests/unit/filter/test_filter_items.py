# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter items: every way to write a list of objects, what it refuses, and tagged values as templates hand them over."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.remotefs.storage.plugins.filter.items import FilterModule, items

DOCUMENTED = Path(__file__).resolve().parents[3] / "plugins" / "filter" / "items.yml"


@pytest.mark.parametrize(
    ("given", "key", "made"),
    [
        (["a", "b"], "name", [{"name": "a"}, {"name": "b"}]),
        (["b", "a"], "volume", [{"volume": "b"}, {"volume": "a"}]),
        ({"a": {"size": "1G"}, "b": {}}, "name", [{"name": "a", "size": "1G"}, {"name": "b"}]),
        ({"a": None}, "volume", [{"volume": "a"}]),
        ({"a": {"name": "a", "size": 1}}, "name", [{"name": "a", "size": 1}]),
        ({"db01": {"name": "nightly"}}, "volume", [{"volume": "db01", "name": "nightly"}]),
        ([{"name": "a", "size": 1}, {"volume": "x"}], "name", [{"name": "a", "size": 1}, {"volume": "x"}]),
        (["a", {"name": "b", "size": 2}], "name", [{"name": "a"}, {"name": "b", "size": 2}]),
        (("a", "a"), "name", [{"name": "a"}, {"name": "a"}]),
        ({"b": None, "a": None}.keys(), "name", [{"name": "a"}, {"name": "b"}]),
        ({"z", "y"}, "name", [{"name": "y"}, {"name": "z"}]),
        ((name for name in "ab"), "name", [{"name": "a"}, {"name": "b"}]),
        ([], "name", []),
        ({}, "name", []),
    ],
)
def test_what_it_makes(given: object, key: str, made: list) -> None:
    assert items(given, key) == made


def test_what_was_given_stays_as_it_is() -> None:
    given = {"a": {"size": "1G"}, "b": {"name": "b"}}
    listed = [{"name": "a"}]
    items(given)[0]["more"] = items(listed)[0]["more"] = True
    assert (given, listed) == ({"a": {"size": "1G"}, "b": {"name": "b"}}, [{"name": "a"}])


@pytest.mark.parametrize(
    ("given", "key", "told"),
    [
        ("db01", "name", "not the string 'db01'; put a single one into a list"),
        (b"db01", "name", "not the string"),
        (None, "name", "not null"),
        (7, "name", "not the number 7"),
        (True, "name", "not the boolean true"),
        ({"a": 1}, "name", "under a must be a dictionary of options, not the number 1; put a single item into a list: [{name: ...}]."),
        ({"name": "db01", "size": "1G"}, "name", "under name must be a dictionary of options, not the string 'db01'"),
        ({"a": ["b"]}, "name", "what stands under a must be a dictionary of options, not a list"),
        ({1: {}}, "name", "a name must be a string, not the number 1; put it in quotes"),
        ({True: {}}, "name", "a name must be a string, not the boolean true; put it in quotes"),
        (["a", 2], "name", "item 2 must be a name or a dictionary, not the number 2; put it in quotes"),
        ([None], "name", "item 1 must be a name or a dictionary, not null; leave it out"),
        ([["a"]], "name", "item 1 must be a name or a dictionary, not a list; give one list"),
        (["a", False], "name", "not the boolean false; put it in quotes"),
        ({"a": {"name": "b"}}, "name", "what stands under a has another name, the string 'b'; leave one of them out"),
        (["a"], "", "the key must be the name of an option, not the string ''"),
        (["a"], None, "the key must be the name of an option, not null"),
        ("x" * 500, "name", "x..."),
    ],
)
def test_what_it_refuses(given: object, key: object, told: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        items(given, key)
    message = str(caught.value)
    assert told in message and message.startswith("remotefs.storage.items: ") and message.count("\n") == 0 and len(message) < 300


def test_names() -> None:
    assert FilterModule().filters() == {"items": items}


def test_templates_hand_over_tagged_values(tmp_path: Path, ansible_environment: dict) -> None:
    """Names that templates, facts and YAML made, through other filters and through jmespath, and the result again through both."""
    book = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "vars": {
                "prefix": "db",
                "names": ["{{ prefix }}01", "web"],
                "disks": {"db01": {"size": "{{ 1 + 1 }}G"}, "web": None},
                "both": ["{{ names[0] }}", {"name": "{{ prefix }}02", "size": "1G"}],
            },
            "tasks": [
                {"ansible.builtin.set_fact": {"by_fact": ["{{ prefix }}01"]}},
                {"ansible.builtin.assert": {"quiet": True, "that": [
                    "names | remotefs.storage.items == [{'name': 'db01'}, {'name': 'web'}]",
                    "by_fact | remotefs.storage.items('volume') == [{'volume': 'db01'}]",
                    "disks | remotefs.storage.items == [{'name': 'db01', 'size': '2G'}, {'name': 'web'}]",
                    "both | remotefs.storage.items == [{'name': 'db01'}, {'name': 'db02', 'size': '1G'}]",
                    "names | map('upper') | remotefs.storage.items | map(attribute='name') == ['DB01', 'WEB']",
                    "disks.keys() | remotefs.storage.items | map(attribute='name') == ['db01', 'web']",
                    "names | remotefs.storage.items | remotefs.storage.select(\"[?starts_with(name, 'db')].name\") == ['db01']",
                    "both | remotefs.storage.items | remotefs.storage.select('[].name') | remotefs.storage.items | map(attribute='name') == ['db01', 'db02']",
                ]}},
            ],
        }
    ]
    (tmp_path / "book.yml").write_text(json.dumps(book))
    done = subprocess.run(["ansible-playbook", str(tmp_path / "book.yml")], env=ansible_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_examples_run(tmp_path: Path, ansible_environment: dict) -> None:
    share = tmp_path / "share"
    share.mkdir()
    tasks = yaml.safe_load(yaml.safe_load(DOCUMENTED.read_text())["EXAMPLES"])
    text = json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}])
    (tmp_path / "book.yml").write_text(text.replace("/srv/volumes", str(share)).replace('0G"', '0M"'))
    done = subprocess.run(["ansible-playbook", str(tmp_path / "book.yml")], env=ansible_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sizes = {name: (share / name).stat().st_size >> 20 for name in ("db01", "db02", "web01")}
    assert sizes == {"db01": 20, "db02": 10, "web01": 10}
