# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NFS exports, as the real exportfs reads them, and the firewall. tests/integration/playbooks/export_over_nfs.yml mounts such an export."""

from __future__ import annotations

import re
import shutil

import pytest

from .conftest import Nas

VOLUMES = "/srv/volumes"
TABLE = "/etc/exports.d/volumes.exports"

pytestmark = [pytest.mark.slow, pytest.mark.lab]
needs_exportfs = pytest.mark.skipif(not shutil.which("exportfs"), reason="needs exportfs (package nfs-kernel-server)")
needs_ufw = pytest.mark.skipif(not shutil.which("ufw"), reason="needs ufw (package ufw)")


def exported(nas: Nas) -> dict[str, set[str]]:
    """The options of each client, as the server knows them."""
    rows = re.findall(rf"^{VOLUMES}\s+(\S+?)\((.*)\)$", nas.run("exportfs -s"), re.MULTILINE)
    return {client: set(options.split(",")) for client, options in rows}


@needs_exportfs
def test_clients_and_their_options(nas: Nas) -> None:
    nas.run("echo '/srv 198.51.100.1(ro)' >/etc/exports")
    before = nas.files()
    clients = ["192.0.2.0/24", {"client": "198.51.100.7", "options": ["ro", "no_subtree_check"]}]
    assert nas.export("--check", "--diff", path=VOLUMES, nfs=clients) == 4 and nas.files() == before and exported(nas) == {}
    assert nas.export(path=VOLUMES, nfs=clients) == 4
    found = exported(nas)
    assert found.keys() == {"192.0.2.0/24", "198.51.100.7"}
    assert found["192.0.2.0/24"] >= {"rw", "sync", "no_root_squash"} and found["198.51.100.7"] >= {"ro", "root_squash"}
    assert nas.export(path=VOLUMES, nfs=clients) == 0
    # A table that the server has not read, as after a play that was killed.
    nas.run("exportfs -ua")
    assert nas.export(path=VOLUMES, nfs=clients) == 1 and exported(nas) == found
    # One that exportfs does not take: what was there before is there again.
    nas.export(path=VOLUMES, nfs=["192.0.2.0/24"], nfs_options=["rw", "no_such_option"], fails='unknown keyword "no_such_option"')
    assert exported(nas) == found
    # Another export has a table of its own.
    nas.export(path="/srv/backup", nfs=["192.0.2.0/24"])
    assert nas.export(path=VOLUMES) == 2 and exported(nas) == {} and "/srv/backup" in nas.run("exportfs -s")
    nas.export(path=VOLUMES, nfs=clients)
    assert nas.export("--check", path=VOLUMES, state="absent") == 2 and exported(nas) == found
    assert nas.export(path=VOLUMES, state="absent") == 2 and exported(nas) == {} and nas.export(path=VOLUMES, state="absent") == 0
    assert "198.51.100.1" in nas.run("exportfs -s"), "what others export is still exported"


@needs_exportfs
def test_a_host_without_a_table_of_its_own(nas: Nas) -> None:
    """exportfs reads no table at all there."""
    nas.run("rm /etc/exports")
    nas.export(path=VOLUMES, nfs=["192.0.2.0/24"])
    assert exported(nas).keys() == {"192.0.2.0/24"} and nas.run("cat /etc/exports") == ""
    assert nas.export(path=VOLUMES, nfs=["192.0.2.0/24"]) == 0


@needs_exportfs
def test_a_refused_table_is_not_left(nas: Nas) -> None:
    nas.export(path=VOLUMES, nfs=["192.0.2.0/24"], nfs_options=["no_such_option"], fails="The NFS export of /srv/volumes was taken back")
    assert "volumes.exports" not in nas.run("ls /etc/exports.d")


@needs_exportfs
def test_a_file_system_that_is_not_mounted_is_not_exported(nas: Nas) -> None:
    """The server is told to look whether it is mounted: otherwise clients would write to the disk beneath it."""
    nas.export(path=VOLUMES, size="320M", reserve=False, nfs=["192.0.2.0/24"])
    assert "mountpoint" in exported(nas)["192.0.2.0/24"]


@needs_exportfs
@needs_ufw
def test_the_firewall_opens_and_closes(nas: Nas) -> None:
    """Only what the role opened is closed again, and only when no other export needs it."""

    def opened() -> set[str]:
        return set(re.findall(r"^ufw allow (\S+)$", nas.run("ufw show added"), re.MULTILINE))

    on = {"firewall": True, "nfs": ["192.0.2.0/24"]}
    assert nas.export(path="/srv/first", **on) and opened() == set(), "nothing is written where no firewall is active"
    nas.run("ufw allow 2222/tcp && ufw --force enable && ufw allow 445/tcp")
    others = {"2222/tcp", "445/tcp"}
    nas.export("--check", path="/srv/first", **on)
    assert opened() == others
    nas.export(path="/srv/first", **on)
    assert opened() == others | {"2049/tcp"} and nas.export(path="/srv/first", **on) == 0
    nas.export(path="/srv/second", **on)
    nas.export(path="/srv/first", state="absent", firewall=True)
    assert opened() == others | {"2049/tcp"}, "the other export needs it"
    nas.export(path="/srv/second", state="absent", firewall=True)
    assert opened() == others
    nas.run("ufw --force disable")
