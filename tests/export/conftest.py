# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of tests/lab/nas-run, which the role export makes servers of. Ansible reaches them over SSH, as Cinder reaches its NAS."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

#: What hosts without a service manager need. The programs are those of this machine.
BASE = {"export_services": False, "export_packages": False, "export_firewall": False}


class Nas:
    """A host, and playbooks that make a server of it.

    :ivar variables: those of the inventory that tell how to reach it.
    """

    def __init__(self, tmp_path: Path, environment: dict, address: str, variables: dict) -> None:
        self.address, self.variables = address, variables
        self._directory, self._environment = tmp_path, environment
        self._defaults: dict = {}

    def run(self, command: str, check: bool = True, text: str | None = None) -> str:
        """What a shell on the host says."""
        done = subprocess.run([*self._ssh(), command], input=text or "", capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def send(self, file: Path, command: str) -> None:
        """Let a shell on the host read a file of this machine."""
        with file.open("rb") as stream:
            subprocess.run([*self._ssh(), command], stdin=stream, check=True, capture_output=True)

    def _ssh(self) -> list[str]:
        options = ["-F", "none", "-p", os.environ["LAB_NAS_PORT"], "-i", os.environ["LAB_NAS_KEY"], "-o", "BatchMode=yes",
                   "-o", f"UserKnownHostsFile={os.environ['LAB_NAS_KNOWN_HOSTS']}"]
        return ["ssh", *options, f"root@{self.address}"]

    def play(self, tasks: list, *options: str, fails: str = "", inventory: object = None) -> str:
        """What ansible-playbook says. :param fails: what it must complain of; without it, it must succeed."""
        book, hosts = self._directory / "book.json", self._directory / "hosts.json"
        book.write_text(json.dumps([{"hosts": "nas", "gather_facts": False, "tasks": tasks}]))
        hosts.write_text(json.dumps(inventory or {"nas": {"hosts": {"nas1": self.variables}}}))
        argv = ["ansible-playbook", "--inventory", str(hosts), *options, str(book)]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, check=False)
        told = done.stdout + done.stderr
        assert (done.returncode != 0) == bool(fails) and fails in " ".join(told.split()), told
        return told

    def export(self, *options: str, fails: str = "", **variables: object) -> int:
        """Runs the role, and returns how many tasks changed something. What the words of ``variables`` are for begins with ``export_``."""
        return changes(self.play([self.role(**variables)], *options, fails=fails))

    @staticmethod
    def role(**variables: object) -> dict:
        given = {f"export_{name}": value for name, value in variables.items()}
        return {"ansible.builtin.include_role": {"name": "remotefs.storage.export"}, "vars": {**BASE, **given}}

    def files(self) -> str:
        """Everything that the role may write on the host, to compare. Times, and sizes of directories, are left out."""
        listing = "find /etc /srv /var/lib/remotefs /usr/local -xdev -printf '%p %m %u %g %l ' \\( -type d -printf '\\n' -o -printf '%s\\n' \\)"
        return self.run(f"{listing} | sort; cat /etc/fstab; findmnt -rn -o TARGET,SOURCE")


def changes(told: str) -> int:
    (changed,) = re.findall(r"^nas1 .* changed=(\d+) ", told, re.MULTILINE)
    return int(changed)


@pytest.fixture
def nas(tmp_path: Path, ansible_environment: dict) -> Iterator[Nas]:
    """The first host. What a test left on it goes afterwards."""
    if os.environ.get("LAB_NAME") != "nas":
        pytest.skip("needs hosts: run it with tests/lab/nas-run")
    address = os.environ["LAB_NAS_HOSTS"].split()[0]
    reached = {
        "ansible_host": address,
        "ansible_port": int(os.environ["LAB_NAS_PORT"]),
        "ansible_user": "root",
        "ansible_ssh_private_key_file": os.environ["LAB_NAS_KEY"],
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={os.environ['LAB_NAS_KNOWN_HOSTS']}",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    ours = {"ANSIBLE_STDOUT_CALLBACK": "default", "ANSIBLE_PIPELINING": "1", "ANSIBLE_SSH_CONTROL_PATH_DIR": "/run/ssh", "COLUMNS": "4000"}
    environment = {**ansible_environment, **ours}
    host = Nas(tmp_path, environment, address, reached)
    yield host
    host.run("umount -R /srv/*/ 2>/dev/null; : >/etc/exports; rm -rf /srv/* /etc/exports.d /var/lib/remotefs/* /etc/samba/remotefs.d", check=False)
    host.run("sed '/ \\/srv\\//d' /etc/fstab >/etc/fstab.left && cat /etc/fstab.left >/etc/fstab; rm -f /etc/fstab.left", check=False)
