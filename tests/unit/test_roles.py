# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles pass on every option that their module has; and what a role says of itself in three places is the same in all of them."""
from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = CHECKOUT / "roles"
# Per role: its module, the file with the task that calls it, and the options that it does not pass on, with the reason.
_ONE_MACHINE = "names the machine that has one volume open: items have it"
PASSED = {
    "share": (
        "remotefs_share",
        "main.yml",
        {"src": "names one share: items of share_shares have it", "path": "belongs to one share: items of share_shares have it"},
    ),
    "volumes": ("remotefs_volume", "main.yml", {"name": "names one volume: items of volumes_volumes have it", "attachment": _ONE_MACHINE}),
    "snapshots": ("remotefs_snapshot", "change.yml", {"volume": "names one volume: items of snapshots_snapshots have it"}),
    "replicas": (
        "remotefs_replica",
        "replicate.yml",
        {"volume": "names one volume: items of replicas_volumes have it", "name": "names one replica: items of replicas_volumes have it"},
    ),
}
# Variables that are no option of the module.
OWN = {
    "share": {"share_install_helpers", "share_helper_packages"},
    "volumes": {"volumes_exclusive", "volumes_exclusive_within", "volumes_exclusive_cascade", "volumes_images"},
    "snapshots": {"snapshots_select", "snapshots_group"},
    "replicas": {"replicas_select", "replicas_keep"},
}
# Two variables of a role that become one option.
MADE_FROM = {("snapshots", "volumes"): "snapshots_group"}
LISTS = {"share": "shares", "volumes": "volumes", "snapshots": "snapshots", "replicas": "volumes"}


def options_of(module: str) -> set[str]:
    """The documented options of a module, those of its fragments too; that they are the spec's is what ansible-test compares."""
    for node in ast.parse((CHECKOUT / "plugins" / "modules" / f"{module}.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DOCUMENTATION":
            documented = yaml.safe_load(ast.literal_eval(node.value))
    found = set(documented["options"])
    for fragment in documented["extends_documentation_fragment"]:
        name, _dot, part = fragment.removeprefix("remotefs.storage.").partition(".")
        holder = importlib.import_module(f"ansible_collections.remotefs.storage.plugins.doc_fragments.{name}").ModuleDocFragment
        found |= set(yaml.safe_load(getattr(holder, (part or "documentation").upper())).get("options", {}))
    return found


def calls(role: str, module: str) -> dict[str, dict]:
    """The arguments of each task of a role that calls the module, and its variables under ``vars``, by file."""
    found = {}
    for file in sorted((ROLES / role / "tasks").glob("*.yml")):
        for task in yaml.safe_load(file.read_text()):
            if f"remotefs.storage.{module}" in task:
                found[file.name] = task[f"remotefs.storage.{module}"]
                found[file.name]["vars"] = task.get("vars", {})
    return found


def specified(role: str) -> dict[str, dict]:
    return yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]


@pytest.mark.parametrize("role", PASSED)
def test_every_option_of_the_module_is_passed_on(role: str) -> None:
    module, file, left_out = PASSED[role]
    passed, options = calls(role, module)[file], options_of(module)
    variables = str(passed.pop("vars"))
    assert set(passed) | set(left_out) == options, "pass the option on in the role's task, or say here why not"
    assert not set(passed) & set(left_out)
    for option, value in passed.items():
        variable = MADE_FROM.get((role, option), f"{role}_{option}")
        where = value + variables if option == LISTS[role] else value
        assert re.search(rf"\b{variable}\b", where), f"{option} does not come from {variable}"
        assert variable in specified(role), f"{variable} is not in the role's argument specs"


def test_every_task_that_changes_works_as_the_role_says() -> None:
    """Locks, vouching and the like hold for whatever a role does, not for its main task only."""
    change = importlib.import_module("ansible_collections.remotefs.storage.plugins.module_utils.changes").CHANGE
    tasks = {(role, PASSED[role][0]) for role in ("volumes", "snapshots", "replicas")} | {("replicas", "remotefs_snapshot")}
    for role, module in sorted(tasks):
        called = calls(role, module)
        assert called, f"{role} calls {module}"
        for file, passed in called.items():
            assert set(change) <= set(passed), f"{role}, {file}"


@pytest.mark.parametrize("role", PASSED)
def test_specs_defaults_and_readme_agree(role: str) -> None:
    spec, defaults = specified(role), yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text())
    assert {name: option["default"] for name, option in spec.items() if "default" in option} == defaults
    without = {name for name, option in spec.items() if "default" not in option}
    no_default = {"snapshots_share", "snapshots_protected", "replicas_share", "replicas_to", "share_maintenance"}
    assert without <= no_default, "a variable has a default, or is required or left to the module"
    readme = (ROLES / role / "README.md").read_text()
    table = "\n".join(line for line in readme.splitlines() if line.startswith("| `"))
    assert set(re.findall(rf"`({role}_[a-z_]+)`", table)) == set(spec)
    options = options_of(PASSED[role][0])
    assert {name for name in spec if name.removeprefix(f"{role}_") not in options} == OWN[role]


def tasks_of(entries: list[dict]) -> list[dict]:
    """Tasks, and those of blocks."""
    inner = [task for entry in entries for part in ("block", "rescue", "always") for task in entry.get(part, [])]
    return [*entries, *(tasks_of(inner) if inner else [])]


@pytest.mark.parametrize("role", [*PASSED, "export"])
def test_variables_of_a_role_bear_its_name(role: str) -> None:
    for file in (ROLES / role / "tasks").glob("*.yml"):
        for task in tasks_of(yaml.safe_load(file.read_text())):
            names = [*task.get("vars", {}), *task.get("ansible.builtin.set_fact", {}), *filter(None, [task.get("register")])]
            assert all(name.startswith(f"{role}_") for name in names), (file.name, names)


def test_specs_defaults_and_readme_of_the_export_agree() -> None:
    spec, defaults = specified("export"), yaml.safe_load((ROLES / "export" / "defaults" / "main.yml").read_text())
    assert {name: option["default"] for name, option in spec.items() if "default" in option} == defaults
    assert {name for name, option in spec.items() if option.get("required")} == set(spec) - set(defaults) == {"export_path"}
    table = "\n".join(line for line in (ROLES / "export" / "README.md").read_text().splitlines() if line.startswith("| `export_"))
    assert set(re.findall(r"`(export_[a-z_]+)`", "\n".join(line.split("|")[1] for line in table.splitlines()))) == set(spec)
