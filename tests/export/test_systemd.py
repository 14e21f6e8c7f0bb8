# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles export, share and collector on a real Debian with systemd and firewalld, which is booted once more in between.

``tests/integration/playbooks/systemd_host.yml`` starts it; ``SYSTEMD_HOST`` is the file that tells where it is, and ``SYSTEMD_KEY`` a key for it.
``SYSTEMD_ANSIBLE`` is a directory with Ansible for its Python, which the collector runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Iterator

import pytest
import yaml

from .conftest import Nas, changes

CHECKOUT = Path(__file__).resolve().parents[2]
VOLUMES = "/srv/volumes"
PASSWORD = "a $trange 'password"
BOOT = 600  # seconds that an emulated machine may take
CLIENT = "198.51.100.2"  # a client behind the firewall
ANSIBLE = ("ansible", "ansible_core-*", "jinja2", "markupsafe", "yaml", "_yaml", "packaging", "resolvelib")
EXPORTED = {
    "path": VOLUMES,
    "size": "320M",
    "reserve": False,
    "nfs": ["127.0.0.1", "198.51.100.0/24"],
    "smb": {"user": "nasclient", "password": PASSWORD},
    "services": True,
    "packages": True,
    "firewall": True,
}
AFTER_SAMBA = "x-systemd.after=smbd.service"  # a mount of this host's own server cannot come up before that, and is not tried again
ASKS = """import socket
for port in (445, 2049, 111):
    try:
        socket.create_connection(("198.51.100.1", port), 10).close()
        print(port)
    except OSError:
        pass
"""
#: Debian's firewalld wants to be up before the network, and its cloud-init wants the network before D-Bus, which firewalld needs. Then a boot leaves one out.
FIREWALLD = """sed '/^Before=network-pre.target/d' /lib/systemd/system/firewalld.service >/etc/systemd/system/firewalld.service
systemctl daemon-reload; systemctl enable --now --quiet firewalld; firewall-cmd --state --quiet"""
needs_host = pytest.mark.skipif("SYSTEMD_HOST" not in os.environ, reason="needs a host with systemd: scripts/test systemd starts one")
pytestmark = [pytest.mark.slow, needs_host]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what SSH must know of the host."""
    found = tmp_path_factory.mktemp("host")
    consumer = json.loads(Path(os.environ["SYSTEMD_HOST"]).read_text())
    until = time.monotonic() + BOOT
    while True:  # an emulated machine may be too slow for the first one
        argv = ["ssh-keyscan", "-T", "60", "-t", "ed25519", "-p", str(consumer["port"]), consumer["host"]]
        scanned = subprocess.run(argv, check=False, capture_output=True)
        if scanned.stdout:
            break
        assert time.monotonic() < until, scanned.stderr
    (found / "known").write_bytes(scanned.stdout)
    return found


@pytest.fixture
def host(tmp_path: Path, place: Path, ansible_environment: dict, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nas]:
    """The host. Its firewall lets SSH through, and nothing else that these roles do not ask for. There is a client in a network of its own."""
    consumer = json.loads(Path(os.environ["SYSTEMD_HOST"]).read_text())
    monkeypatch.setenv("LAB_NAS_PORT", str(consumer["port"]))
    monkeypatch.setenv("LAB_NAS_KEY", os.environ["SYSTEMD_KEY"])
    monkeypatch.setenv("LAB_NAS_KNOWN_HOSTS", str(place / "known"))
    reached = {
        "ansible_host": consumer["host"],
        "ansible_port": consumer["port"],
        "ansible_user": "root",
        "ansible_ssh_private_key_file": os.environ["SYSTEMD_KEY"],
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={place / 'known'}",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    ours = {"ANSIBLE_STDOUT_CALLBACK": "default", "ANSIBLE_PIPELINING": "1", "ANSIBLE_SSH_CONTROL_PATH_DIR": "/tmp", "COLUMNS": "4000"}
    found = Nas(tmp_path, {**ansible_environment, **ours}, consumer["host"], reached)
    found.run("cloud-init status --wait >/dev/null; " + FIREWALLD)
    with_client(found)
    yield found


def with_client(host: Nas) -> None:
    """Give the host a client, as far as it has none. The interface to it is in no zone of its own, so that it is in the default one."""
    host.run("ip netns list | grep -q client || { ip netns add client && ip link add to-client type veth peer name eth0 netns client && "
             "ip addr add 198.51.100.1/24 dev to-client && ip link set to-client up && "
             f"ip -n client addr add {CLIENT}/24 dev eth0 && ip -n client link set eth0 up; }}")


def opened(host: Nas) -> tuple[set[str], set[str], list[int]]:
    """The services that the firewall lets through: now, and after the next start. And the ports that the client reaches."""
    now, later = (set(host.run(f"firewall-cmd {option} --list-services").split()) for option in ("", "--permanent"))
    reached = host.run("ip netns exec client python3 -", text=ASKS)
    return now, later, [int(port) for port in reached.split()]


def wait_for_boot(host: Nas, before: str) -> None:
    until = time.monotonic() + BOOT
    while True:
        now = host.run("cat /proc/sys/kernel/random/boot_id; systemctl is-system-running --wait >/dev/null", check=False).split("\n")[0]
        if re.fullmatch("[0-9a-f-]{36}", now) and now != before:
            return
        assert time.monotonic() < until, now
        time.sleep(2)


def mounted(host: Nas, *options: str, state: str = "mounted") -> str:
    """Play the role share: what the host exports is mounted on itself, over NFS and SMB."""
    credentials = {"username": "nasclient", "password": PASSWORD}
    listed = [
        {"src": f"127.0.0.1:{VOLUMES}", "path": "/mnt/nfs", "opts": ["vers=4.2", "soft", "nofail"]},
        {"src": "//127.0.0.1/volumes", "path": "/mnt/smb", "opts": ["vers=3.1.1", "nofail", AFTER_SAMBA], "credentials": credentials},
    ]
    variables = {"share_shares": listed, "share_state": state, "share_install_helpers": True}
    return host.play([{"ansible.builtin.include_role": {"name": "remotefs.storage.share"}, "vars": variables}], *options)


def contents(host: Nas) -> list[str]:
    """The hashes of what a snapshot shows, read over NFS, and of a file over SMB. What one of the two clients makes the other may not write to."""
    return [line.split()[0] for line in host.run("sha256sum /mnt/nfs/db01 /mnt/smb/file").splitlines()]


def test_a_nas_lives_through_a_boot(host: Nas) -> None:
    """XFS in a file, NFS and SMB; what clients see, what the firewall lets through, and what is left when it has gone."""
    services, files = opened(host), host.files()
    assert services[2] == [] and not {"nfs", "samba"} & (services[0] | services[1])
    host.export("--check", **EXPORTED)
    assert host.files() == files and opened(host) == services
    assert host.export(**EXPORTED) > 5
    assert host.export(**EXPORTED) == 0, "the second time something changes"
    assert opened(host) == (services[0] | {"nfs", "samba"}, services[1] | {"nfs", "samba"}, [445, 2049])
    assert changes(mounted(host)) >= 1 and changes(mounted(host)) == 0
    host.play([{"remotefs.storage.remotefs_volume": {"share": "/mnt/nfs", "name": "db01", "size": "8M"}}])
    host.run("qemu-io -f raw -c 'write -P 7 0 4M' /mnt/nfs/db01; head -c 1M /dev/zero | tr '\\0' x >/mnt/smb/file")
    host.play([{"remotefs.storage.remotefs_snapshot": {"share": "/mnt/nfs", "volume": "db01", "name": "first"}}])
    expected = [hashlib.sha256(told).hexdigest() for told in (bytes([7]) * (4 << 20) + bytes(4 << 20), b"x" * (1 << 20))]
    assert contents(host) == expected

    before = host.run("cat /proc/sys/kernel/random/boot_id").strip()
    host.run("systemctl reboot", check=False)
    wait_for_boot(host, before)
    with_client(host)
    assert host.run("systemctl --failed --no-legend --plain") == ""
    assert opened(host) == (services[0] | {"nfs", "samba"}, services[1] | {"nfs", "samba"}, [445, 2049]), "the firewall forgets"
    assert host.export(**EXPORTED) == 0 and changes(mounted(host)) == 0, "a boot undoes something"
    assert contents(host) == expected

    mounted(host, state="absent")
    assert host.export(path=VOLUMES, state="absent", remove_data=True, services=True, firewall=True) > 3
    assert host.export(path=VOLUMES, state="absent", remove_data=True, services=True, firewall=True) == 0
    assert opened(host)[:2] == services[:2] and "2049" not in opened(host)[2]
    left = set(host.files().splitlines()) - set(files.splitlines())
    assert not [line for line in left if "volumes" in line], left


def send_ansible(host: Nas, tmp_path: Path) -> None:
    """Ansible, and this collection, on the host."""
    source = Path(os.environ["SYSTEMD_ANSIBLE"])
    archive = tmp_path / "ansible.tar"
    with tarfile.open(archive, "w", dereference=True) as tar:
        for name in (path for pattern in ANSIBLE for path in source.glob(pattern)):
            tar.add(name, f"opt/ansible/{name.name}", filter=lambda one: None if "__pycache__" in one.name else one)
        for folder in ("plugins", "roles", "playbooks", "meta", "galaxy.yml"):
            at = f"opt/collections/ansible_collections/remotefs/storage/{folder}"
            tar.add(CHECKOUT / folder, at, filter=lambda one: None if "__pycache__" in one.name else one)
    host.send(archive, "tar --extract --directory=/ --file=-")
    host.run("printf '#!/bin/sh\\nexport PYTHONPATH=/opt/ansible\\nexec python3 -m ansible playbook \"$@\"\\n' >/usr/local/bin/ansible-playbook; "
             "chmod 755 /usr/local/bin/ansible-playbook")


def readme_tasks() -> list[dict]:
    """The tasks of the first playbook in the README of the role collector."""
    text = (CHECKOUT / "roles/collector/README.md").read_text()
    (play,) = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    return play["tasks"]


def test_the_collector_runs_as_a_service(host: Nas, tmp_path: Path) -> None:
    """The tasks of its README, with Ansible at the place where this test has put it."""
    send_ansible(host, tmp_path)
    where = {"collector_command": "/usr/local/bin/ansible-playbook", "collector_collections_path": "/opt/collections", "collector_grace": "1s"}
    variables = [word for name, value in where.items() for word in ("-e", f"{name}={value}")]
    host.run("mkdir -p /srv/volumes")
    assert changes(host.play(readme_tasks(), *variables)) == 3 and changes(host.play(readme_tasks(), *variables)) == 0
    host.run("systemd-analyze verify /etc/systemd/system/remotefs-collector.service /etc/systemd/system/remotefs-collector.timer")
    assert "remotefs-collector.service" in host.run("systemctl list-timers --no-legend remotefs-collector.timer")
    lease = {"share": "/srv/volumes", "owner": "job", "state": "held"}
    made = {"share": "/srv/volumes", "size": "1M"}
    host.play([
        {"remotefs.storage.remotefs_lease": {**lease, "name": "over", "ttl": "1s", "volumes": ["gone"]}, "register": "over"},
        {"remotefs.storage.remotefs_lease": {**lease, "name": "held", "ttl": "2h", "volumes": ["stays"]}, "register": "held"},
        {"remotefs.storage.remotefs_volume": {**made, "name": "stays", "lease": "{{ held.lease }}"}},
        {"remotefs.storage.remotefs_lease": {**lease, "name": "over", "ttl": "20s", "volumes": ["gone"]}, "register": "over"},
        {"remotefs.storage.remotefs_volume": {**made, "name": "gone", "lease": "{{ over.lease }}"}},
    ])
    assert {"gone", "stays"} <= set(host.run("ls /srv/volumes").split())
    time.sleep(25)
    host.run("systemctl start remotefs-collector.service || { journalctl --no-pager -u remotefs-collector; exit 1; }")
    assert {"gone", "stays"} & set(host.run("ls /srv/volumes").split()) == {"stays"} and "failed=0" in host.run("journalctl --no-pager -u remotefs-collector")
    gone = [{"ansible.builtin.include_role": {"name": "remotefs.storage.collector"}, "vars": {"collector_state": "absent"}}]
    assert changes(host.play(gone)) >= 2 and changes(host.play(gone)) == 0
    assert host.run("systemctl list-unit-files 'remotefs*' --no-legend") == "" and host.run("ls /etc/remotefs-* 2>/dev/null || true") == ""
