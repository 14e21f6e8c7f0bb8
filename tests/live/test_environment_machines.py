# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role ci_environment with machines: guests boot from clones, write, and are reset and removed while they run."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from functional.test_ci_environment import Pipeline
from functional.test_ci_guide import MACHINES
from functional.test_documents import play as play_book
from functional.test_leases import let_pass
from functional.test_refusals import MIB

from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.agent import Agent

from .libvirtd import Libvirtd
from .real_guest import BOOT, Talking, made
from .test_machines import Site
from .test_machines import site as empty_site

__all__ = ["empty_site"]  # a fixture

TEMPLATE = """<domain type='qemu'><name>{{ worker }}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>PLACE/vmlinuz</kernel><initrd>PLACE/initrd</initrd><cmdline>BOOT</cmdline></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
{% for disk in disks %}
  <disk type='file' device='disk'><driver name='qemu' type='{{ disk.format }}'/><source file='{{ disk.path }}'/>
    <target dev='vd{{ 'ab'[loop.index0] }}' bus='virtio'/></disk>
{% endfor %}
  <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel><memballoon model='none'/>
  </devices><seclabel type='none'/></domain>"""


class ByAgent(Talking):
    """The guest of a machine that the role has started."""

    def __init__(self, consumer: dict) -> None:
        self._agent = Agent(consumer["agent"])

    def ask(self, command: str, **arguments: Any) -> Any:
        """See :meth:`real_guest.Talking.ask`."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(self._agent.path)
            stream.sendall(self.request(command, arguments).encode() + b"\n")
            with stream.makefile("rb") as lines:
                return json.loads(lines.readline())["return"]


class ByLibvirt(Talking):
    """The guest of a domain that the role has started."""

    def __init__(self, libvirtd: Libvirtd, name: str) -> None:
        self._libvirtd, self._name = libvirtd, name

    def ask(self, command: str, **arguments: Any) -> Any:
        """See :meth:`real_guest.Talking.ask`."""
        return json.loads(self._libvirtd("qemu-agent-command", self._name, "--timeout", "60", self.request(command, arguments)))["return"]


@pytest.fixture
def site(empty_site: Site) -> Site:
    golden = str(empty_site.path / "golden")
    empty_site.present("golden", size=16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", golden], check=True)
    subprocess.run(["debugfs", "-w", "-R", "write /etc/passwd kept", golden], check=True, capture_output=True)
    empty_site.snapshot("ready", "golden")
    return empty_site


@pytest.fixture
def pipeline(site: Site, tmp_path: Path, ansible_environment: dict) -> Pipeline:
    found, place = Pipeline(site, tmp_path, ansible_environment), made()
    arguments = ["-kernel", f"{place}/vmlinuz", "-initrd", f"{place}/initrd", "-append", BOOT]
    found.variables["run_dir"] = str(site.run_dir)
    found.variables["machine"] = {"memory": "128M", "board": "pc", "accelerators": ["tcg,tb-size=128"], "arguments": arguments}
    found.variables.update(consumer="qemu", wait_for="agent", running="stop")
    return found


def test_machines_of_an_environment(site: Site, pipeline: Pipeline) -> None:
    """They boot, write, are reset and removed while they run; each disk by content, and the ports stay."""
    (foretold,) = pipeline.play("present", check=True)
    assert foretold["changed"] and not site.processes()
    made_, again = pipeline.play("present", "present")
    assert made_["changed"] and not again["changed"] and len(site.processes()) == 2
    workers = made_["workers"]
    assert [one["consumer"]["kind"] for one in workers] == ["qemu", "qemu"]
    labels = {name: site.info(name)["labels"] for name in ("ci-00", "ci-01")}
    assert labels["ci-01"] == {"remotefs_worker": "1", "remotefs_address": f"127.0.0.1:{workers[1]['consumer']['port']}"}
    guests = [ByAgent(one["consumer"]) for one in workers]
    for guest in guests:
        assert guest.run("cat /a/kept") == Path("/etc/passwd").read_text()
        guest.run("rm /a/kept; echo dirt > /a/new; sync")
    (told,) = pipeline.play("reset", check=True)
    assert told["changed"] and told["skipped"] == []
    assert guests[0].run("ls /a").split() == ["lost+found", "new"]
    pipeline.play("reset", fails="in_use", running="refuse")
    assert guests[0].run("ls /a").split() == ["lost+found", "new"]
    (left,) = pipeline.play("reset", running="skip")
    assert sorted(one["name"] for one in left["skipped"]) == ["ci-00", "ci-01"] and guests[1].run("ls /a").split() == ["lost+found", "new"]
    (reset,) = pipeline.play("reset")
    assert reset["changed"] and [one["consumer"]["port"] for one in reset["workers"]] == [one["consumer"]["port"] for one in workers]
    assert [one["disks"] for one in reset["workers"]] == [one["disks"] for one in workers]
    for one in reset["workers"]:
        assert ByAgent(one["consumer"]).run("ls /a; cat /a/kept") == "kept\nlost+found\n" + Path("/etc/passwd").read_text()
    pipeline.play("absent", fails="in_use", running="refuse")
    (gone,) = pipeline.play("absent")
    assert gone["changed"] and not site.processes() and not list(site.run_dir.iterdir())
    assert sorted(path.name for path in site.path.iterdir() if not path.name.startswith(".")) == ["golden", "golden.info", "golden.ready"]


def test_a_disk_that_somebody_else_has_open(site: Site, pipeline: Pipeline) -> None:
    """Only the machines of the environment would be ended. Check mode says so, too."""
    pipeline.play("present", wait_for="none", workers=1)
    site.good("absent", "ci-00")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 64k", site.info("ci-00")["path"]], check=True, capture_output=True)
    elsewhere = Site(site.path, site.run_dir.parent / "else")
    (other,) = elsewhere.good("started", "ci-00")
    try:
        pipeline.play("reset", check=True, fails="in_use", wait_for="none", workers=1)
        pipeline.play("reset", fails="in_use", wait_for="none", workers=1)
        assert elsewhere.processes() == [other.consumer["pid"]] and not site.processes()
    finally:
        elsewhere.good("absent", "ci-00")
    (reset,) = pipeline.play("reset", wait_for="none", workers=1)
    assert reset["changed"] and len(site.processes()) == 1


def test_machines_of_a_pipeline_that_was_killed(site: Site, pipeline: Pipeline) -> None:
    """Another pipeline of the same host ends them when the lease has ended, and not before."""
    pipeline.play("present", wait_for="none", workers=1)
    (other,) = pipeline.play("present", name="other", owner="job-2", workers=1, wait_for="none", collect_grace="0")
    assert other["collected"] == {"leases": [], "volumes": []} and len(site.processes()) == 2
    let_pass(site, 3 * 3600)
    (other,) = pipeline.play("present", name="other", owner="job-2", workers=1, wait_for="none", collect_grace="0")
    assert other["collected"]["leases"] == ["ci"] and len(site.processes()) == 1 and not (site.path / "ci-00").exists()
    pipeline.play("reset", fails="lease_lost")
    assert len(site.processes()) == 1


def test_the_guide(site: Site, pipeline: Pipeline, tmp_path: Path, ansible_environment: dict) -> None:
    """docs/ci.md as it stands, but for how its guests answer, and what they boot."""
    site.present("debian-12", size=MIB)
    site.snapshot("ready", "debian-12")
    book = json.loads(json.dumps(MACHINES).replace("/srv/volumes", str(site.path)))
    told = {"ci_environment_machine": pipeline.variables["machine"], "ci_environment_wait_for": "agent", "ci_environment_run_dir": str(site.run_dir)}
    for state, count in (("present", 3), ("reset", 3), ("absent", 0)):
        said = play_book(book, tmp_path, ansible_environment, "-e", json.dumps(told), "-e", f"to={state}")
        assert "failed=0" in said and len(site.processes()) == count
    assert not list(site.path.glob("ci-main*"))


def test_domains_of_an_environment(site: Site, pipeline: Pipeline, libvirtd: Libvirtd, tmp_path: Path) -> None:
    template = tmp_path / "domain.xml.j2"
    template.write_text(TEMPLATE.replace("PLACE", str(made())).replace("BOOT", BOOT))
    how = {"consumer": "libvirt", "libvirt_uri": libvirtd.uri, "definition": str(template), "machine": {}, "wait_for": "", "workers": 1}
    pipeline.variables.update(how, disks=[{"suffix": "data", "size": "1M"}])
    made_, again = pipeline.play("present", "present")
    assert made_["changed"] and not again["changed"] and libvirtd("list", "--name").split() == ["ci-00"]
    assert made_["workers"][0]["consumer"]["domain"] == "ci-00"
    guest = ByLibvirt(libvirtd, "ci-00")
    assert made_["workers"][0]["consumer"]["host"] is None and "remotefs_address" not in site.info("ci-00")["labels"]
    guest.run("ip address add 192.0.2.7/24 dev lo && ip link set lo up")  # it has no network, and says so
    (again,) = pipeline.play("present")
    assert (again["workers"][0]["consumer"]["host"], again["workers"][0]["consumer"]["port"]) == ("192.0.2.7", 22)
    assert site.info("ci-00")["labels"]["remotefs_address"] == "192.0.2.7:22"
    guest.run("rm /a/kept; sync; test -b /dev/vdb")
    (reset,) = pipeline.play("reset")
    assert reset["changed"] and guest.run("cat /a/kept") == Path("/etc/passwd").read_text()
    pipeline.play("absent")
    assert libvirtd("list", "--all", "--name").split() == [] and not (site.path / "ci-00").exists()
