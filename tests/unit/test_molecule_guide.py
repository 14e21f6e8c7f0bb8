# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/molecule.md has the files of the scenario that boots real guests, and names no variable that the playbooks do not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "molecule.md").read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
SCENARIO = CHECKOUT / "extensions" / "molecule" / "guest"
PLAYBOOKS = "".join(path.read_text() for path in sorted((CHECKOUT / "playbooks").rglob("molecule*.yml")))
SPEC = yaml.safe_load((CHECKOUT / "roles" / "ci_environment" / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]


@pytest.mark.parametrize("number, name", list(enumerate(["create", "destroy", "side_effect"], 1)))
def test_the_files_are_those_of_the_scenario(number: int, name: str) -> None:
    assert f"`{name}.yml`" in PAGE and BLOCKS[number] == yaml.safe_load((SCENARIO / f"{name}.yml").read_text())
    playbook = BLOCKS[number][0]["ansible.builtin.import_playbook"].removeprefix("remotefs.storage.")
    assert (CHECKOUT / "playbooks" / f"{playbook}.yml").exists()


def test_the_settings_are_those_of_the_scenario() -> None:
    ours, scenario = BLOCKS[0], yaml.safe_load((SCENARIO / "molecule.yml").read_text())
    assert ours["driver"] == scenario["driver"] and {key for one in ours["platforms"] for key in one} <= {key for one in scenario["platforms"] for key in one}
    settings = yaml.safe_load((SCENARIO / "group_vars" / "all.yml").read_text())
    group_vars = ours["provisioner"]["inventory"]["group_vars"]["all"]
    assert set(group_vars) <= set(settings) and set(group_vars["ci_environment_golden"]) == set(settings["ci_environment_golden"])


def test_every_variable_is_known() -> None:
    of_the_role = set(re.findall(r"\bci_environment_\w+", PAGE + PLAYBOOKS)) - {"ci_environment_seed", "ci_environment_result"}
    assert of_the_role and of_the_role <= set(SPEC), of_the_role - set(SPEC)
    ours = set(re.findall(r"\bremotefs_molecule_\w+", PAGE))
    assert ours and ours <= set(re.findall(r"\bremotefs_molecule_\w+", PLAYBOOKS))
