# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of the role's README: Cinder's options of its NAS lead to the host, with a key and with a password, over a real SSH."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from .conftest import Nas, changes

README = Path(__file__).resolve().parents[2] / "roles" / "export" / "README.md"
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)]

pytestmark = [pytest.mark.slow, pytest.mark.lab]


def inventory(nas: Nas, **of_cinder: object) -> dict:
    """The group of the README, with the options of another host, and with this lab's keys of hosts."""
    (group,) = [block["nas"] for block in BLOCKS if "nas" in block]
    assert list(group["hosts"]) == ["nas1"]
    alone = f"{nas.variables['ansible_ssh_common_args']} -o ControlPath=none"  # otherwise a connection that another secret has opened serves this one
    ours = {"ansible_ssh_common_args": alone, "ansible_python_interpreter": nas.variables["ansible_python_interpreter"]}
    return {"nas": {"vars": group["vars"], "hosts": {"nas1": {**of_cinder, **ours}}}}


def test_the_options_are_those_of_cinder() -> None:
    (group,) = [block["nas"] for block in BLOCKS if "nas" in block]
    assert set(re.findall(r"\bnas_\w+", str(group["vars"]))) == {"nas_ip", "nas_login", "nas_password", "nas_ssh_port", "nas_private_key"}


@pytest.mark.parametrize("secret", ["key", "password"])
def test_they_lead_to_the_host(nas: Nas, secret: str) -> None:
    how = {"nas_private_key": os.environ["LAB_NAS_KEY"]} if secret == "key" else {"nas_password": os.environ["LAB_NAS_PASSWORD"]}
    reached = inventory(nas, nas_ip=nas.address, nas_login="root", nas_ssh_port=int(os.environ["LAB_NAS_PORT"]), nas_share_path="/srv/volumes", **how)
    role = nas.role(path="{{ nas_share_path }}")
    assert changes(nas.play([role], inventory=reached)) == 1 and nas.run("stat -c %a /srv/volumes") == "770\n"
    assert changes(nas.play([role], inventory=reached)) == 0


def test_a_wrong_secret_does_not(nas: Nas) -> None:
    for how in ({"nas_password": "wrong"}, {"nas_private_key": "/dev/null"}):
        reached = inventory(nas, nas_ip=nas.address, nas_login="root", nas_ssh_port=int(os.environ["LAB_NAS_PORT"]), **how)
        nas.play([nas.role(path="/srv/volumes")], inventory=reached, fails="UNREACHABLE")
