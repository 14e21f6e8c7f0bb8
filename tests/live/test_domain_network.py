# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain on a network of libvirt: its address comes from the network, and the role waits until one can log in there.

Its guest is a Debian, which takes a minute to make and another one to boot. LIVE_GUEST says where tests/lab/debian-guest has made it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from functional.test_ci_environment import Pipeline
from functional.test_refusals import Store

from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt import virsh

from .libvirtd import Libvirtd

GUEST = os.environ.get("LIVE_GUEST", "")
NETWORK = """<network><name>ci</name><bridge name='rfstest0'/>
  <ip address='198.51.100.1' netmask='255.255.255.0'><dhcp><range start='198.51.100.10' end='198.51.100.20'/></dhcp></ip></network>"""
TEMPLATE = """<domain type='qemu'><name>{{ worker }}</name><memory unit='MiB'>448</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>GUEST/vmlinuz</kernel><initrd>GUEST/initrd</initrd>
    <cmdline>root=LABEL=root rw console=ttyS0</cmdline></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
  <disk type='file' device='disk'><driver name='qemu' type='{{ disks[0].format }}'/><source file='{{ disks[0].path }}'/>
    <target dev='vda' bus='virtio'/></disk>
  <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{{ seed.path }}'/><target dev='vdb' bus='virtio'/><readonly/></disk>
  <interface type='network'><source network='ci'/><model type='virtio'/></interface></devices><seclabel type='none'/></domain>"""


@pytest.fixture
def network(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Libvirtd]:
    missing = [program for program in ("dnsmasq", "ssh-keygen", "iptables") if not shutil.which(program)]
    if missing or not Path(GUEST, "disk.qcow2").exists() or not GUEST:
        pytest.skip(f"needs {', '.join(missing) or 'a guest, at LIVE_GUEST'}")
    definition = tmp_path / "network.xml"
    definition.write_text(NETWORK)
    libvirtd("net-create", str(definition))
    yield libvirtd
    libvirtd("net-destroy", "ci")


def test_a_guest_on_a_network(network: Libvirtd, tmp_path: Path, sockets: Path, ansible_environment: dict) -> None:
    share = Store(tmp_path / "share")
    share.path.mkdir()
    key, template = tmp_path / "key", tmp_path / "domain.xml.j2"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    template.write_text(TEMPLATE.replace("GUEST", GUEST))
    pipeline = Pipeline(share, tmp_path, ansible_environment)
    digits = Path(GUEST, "disk.qcow2.sha256").read_text().split()[0]
    pipeline.variables.update(golden={"image": f"{GUEST}/disk.qcow2", "checksum": f"sha256:{digits}", "format": "qcow2"}, workers=1)
    pipeline.variables.update(consumer="libvirt", libvirt_uri=network.uri, definition=str(template), run_dir=str(sockets / "run"), running="stop")
    users = [{"name": "ci", "ssh_authorized_keys": [Path(f"{key}.pub").read_text().strip()]}]
    pipeline.variables.update(wait_for="ssh", wait_timeout=400, seed={"user_data": {"users": users}})
    (made,) = pipeline.play("present")
    (worker,) = made["workers"]
    address = worker["consumer"]["host"]
    assert address.startswith("198.51.100.") and worker["consumer"]["port"] == 22
    assert share.info("ci-00")["labels"]["remotefs_address"] == f"{address}:22"
    assert virsh.Spoken(str(virsh.program()), network.uri).find("ci-00").leased_addresses() == [address]  # type: ignore[union-attr]
    login = ["ssh", "-oUserKnownHostsFile=/dev/null", "-oStrictHostKeyChecking=no", "-oConnectTimeout=60", f"-i{key}", f"ci@{address}", "hostname"]
    said = subprocess.run(login, capture_output=True, text=True, check=False)
    assert said.stdout == "ci-00\n", said.stderr
    pipeline.play("absent")
    assert network("list", "--all", "--name").split() == []
