# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disposable machines on volumes: started, found again, ended, and ended with their lease; real QEMU, real libvirt."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from functional.test_examples import examples, play
from functional.test_leases import hold, let_pass
from functional.test_refusals import MIB, Store

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.consumers import answering, qemu
from ansible_collections.remotefs.storage.plugins.module_utils.consumers.run_directory import RunDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.operations import lease_holding, leases, machine_options, machines, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.plan.leases import Asked

from .guest import named
from .libvirtd import Libvirtd, one_disk
from .real_guest import BOOT, made

DEFAULTS = {
    "state": "started",
    "consumer": "qemu",
    "lease": None,
    "program": None,
    "board": "pc",
    "accelerators": ["tcg,tb-size=32"],
    "listen": "127.0.0.1",
    "ports": [22],
    "restricted": False,
    "uri": "qemu:///system",
    "wait_for": "none",
    "wait_timeout": 30,
    "stop_timeout": 0,
    "parallel": 2,
    "memory": "32M",
    "cpus": 1,
}


class Site(Store):
    """A share with volumes, and the machines that run on them."""

    def __init__(self, path: Path, run_dir: Path) -> None:
        super().__init__(path)
        self.run_dir, self.warned = run_dir, []

    def bring(self, state: str = "started", *names: str, check: bool = False, **options: Any) -> list[machines.Done]:
        params = {**DEFAULTS, "state": state, "run_dir": str(self.run_dir), **options}
        every = [{**params, "name": name} for name in names or ("vol",)]
        how = Options(check, lock_timeout=5, task=Task(self.warned.append))
        return machines.ensure(machine_options.request(params, every, self.share, self.warned.append), how)

    def good(self, state: str = "started", *names: str, **options: Any) -> list[machines.Done]:
        done = self.bring(state, *names, **options)
        assert [one.error for one in done] == [None] * len(done)
        return done

    def failed(self, kind: type, state: str = "started", **options: Any) -> str:
        (one,) = self.bring(state, **options)
        assert isinstance(one.error, kind) and one.error.error_code == kind.error_code and str(one.error).endswith("."), one
        return str(one.error)

    def processes(self) -> list[int]:
        """All machines of this directory, however they came to be."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith(os.fsencode(self.run_dir) + b"/") for word in words) and b"-pidfile" in words:
                found.append(int(entry))
        return found

    def leased(self, lease: Any, name: str) -> None:
        given, how = leases.describe(lease, self.share), self.options()
        with lease_holding.holding([(given, self.candidates)], how):
            with_lease = lease_holding.under(how, given, self.candidates)
            wanted = DesiredVolume(name, size=MIB, lease=lease.id)
            volumes.ensure_present(updating.VolumeRequest(self.candidates, wanted), with_lease)

    def collect(self, check: bool = False, **more: Any) -> leases.Collected:
        return leases.collect(leases.CollectRequest(self.share, 0, run_dir=str(self.run_dir), **more), self.options(check=check))


@pytest.fixture
def site(tmp_path: Path, sockets: Path) -> Iterator[Site]:
    share = tmp_path / "share"
    share.mkdir()
    found = Site(share, sockets / "run")
    yield found
    for pid in found.processes():
        os.kill(pid, signal.SIGKILL)


def test_started_found_again_and_ended(site: Site) -> None:
    site.present("vol", size=MIB, format="qcow2")
    assert [one.after for one in site.bring("started", check=True)] == ["started"] and not site.processes() and not site.run_dir.exists()
    (first,) = site.good()
    assert first.changed and site.processes() == [first.consumer["pid"]] and site.info()["in_use"]
    assert stat.S_IMODE(site.run_dir.stat().st_mode) == 0o700
    (again,) = site.good(memory="64M")  # it runs already, and is not started anew for that
    assert not again.changed and again.consumer == first.consumer
    assert [one.changed for one in site.bring("stopped", check=True)] == [True] and site.processes()
    assert [one.changed for one in site.good("stopped")] == [True] and not site.processes() and not site.info()["in_use"]
    assert [one.changed for one in site.good("stopped")] == [False]
    (other,) = site.good()
    assert other.changed and other.consumer["port"] == first.consumer["port"] and other.consumer["pid"] != first.consumer["pid"]
    assert [one.changed for one in site.good("absent")] == [True] and not site.processes() and not list(site.run_dir.iterdir())
    assert [one.changed for one in site.good("absent")] == [False]


def test_a_guest_that_runs_has_snapshots_taken_of_it(site: Site) -> None:
    """A live snapshot changes the active image. The machine is the same one all the same."""
    site.present("vol", size=MIB, format="qcow2")
    (one,) = site.good()
    how = Options(lock_timeout=5, attachment=named(one.consumer["qmp"]), task=Task(site.warned.append))
    snapshots.take(snapshots.SnapshotRequest(site.candidates, "vol", DesiredSnapshot("s1")), how)
    assert os.path.basename(site.info()["path"]) == "vol.s1"
    assert [again.changed for again in site.good()] == [False]
    site.good("stopped")
    (other,) = site.good()
    opened = {os.path.basename(os.readlink(f"/proc/{other.consumer['pid']}/fd/{fd}")) for fd in os.listdir(f"/proc/{other.consumer['pid']}/fd")}
    assert {"vol", "vol.s1"} <= opened


def test_a_task_that_was_killed_before_it_wrote_the_ports(site: Site) -> None:
    site.present("vol", size=MIB)
    (one,) = site.good()
    path = site.run_dir / "vol" / "machine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ports": {"22": 1}, "pid": 0}))
    (again,) = site.good()
    assert not again.changed and again.consumer == one.consumer
    site.good("stopped")
    assert site.good()[0].consumer["port"] == one.consumer["port"]


def test_another_machine_of_the_name(site: Site) -> None:
    site.present("vol", size=MIB)
    site.present("other", size=MIB)
    site.good()
    assert "runs with qemu on volumes" in site.failed(errors.Conflict, volumes=["other"])
    assert "runs with qemu on volumes" in site.failed(errors.Conflict, volumes=["vol", "other"])
    elsewhere = Site(site.path.parent, site.run_dir)
    assert "it runs on volumes of" in elsewhere.failed(errors.Conflict, "stopped")
    assert len(site.processes()) == 1


def test_disks_that_cannot_be_had(site: Site) -> None:
    assert "make it first" in site.failed(errors.VolumeNotFound)
    assert [one.after for one in site.bring(check=True)] == ["started"]  # the play would have made it by then
    site.present("vol", size=MIB)
    site.good()
    elsewhere = Site(site.path, site.run_dir.parent / "other")
    assert "is open elsewhere" in elsewhere.failed(errors.InUse)
    assert len(site.processes()) == 1 and not elsewhere.processes()
    site.good("absent")
    (site.path / "odd").write_bytes(b"QFI\xfb" + bytes(600))
    assert "nobody knows its format" in site.failed(errors.Conflict, volumes=["odd"])


def test_what_qemu_says_is_told(site: Site) -> None:
    site.present("vol", size=MIB)
    assert "-nonsense: invalid option" in site.failed(errors.ToolFailed, arguments=["-nonsense"])
    assert "install it" in site.failed(errors.ToolMissing, program="qemu-of-nobody")
    assert "machine type" in site.failed(errors.ToolFailed, board="no-such-board")
    assert "true ended at once (status 0)" in site.failed(errors.ToolFailed, program="true")
    assert "QEMU's sandbox ended it" in site.failed(errors.ToolFailed, arguments=["-daemonize"])
    (site.run_dir / "vol" / "qmp.sock").mkdir()
    assert "qmp.sock is in the way" in site.failed(errors.ToolFailed)
    (site.run_dir / "vol" / "qmp.sock").rmdir()
    assert not site.processes()
    assert [one.changed for one in site.good()] == [True]


def test_a_machine_that_cannot_be_recorded_does_not_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of it only when it runs cannot be written: the run directory is full."""
    site.present("vol", size=MIB)
    write = RunDirectory.write

    def full(self: RunDirectory, place: Any, record: Any) -> None:
        if record.pid:
            raise errors.NoSpace(place.record, "there is no room", "make some")
        write(self, place, record)

    monkeypatch.setattr(RunDirectory, "write", full)
    assert "there is no room" in site.failed(errors.NoSpace) and not site.processes()
    monkeypatch.undo()
    assert [one.changed for one in site.good()] == [True]


@pytest.mark.parametrize("attempt", range(6))
def test_a_task_that_is_killed_leaves_no_machine_that_nobody_knows(site: Site, attempt: int) -> None:
    """Killed at any instant of a start, the same task ends with one machine, or none is left by absent."""
    site.present("vol", size=MIB)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        try:
            site.bring()
        finally:
            os._exit(0)
    time.sleep(random.Random(attempt).uniform(0.0, 0.35))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if attempt % 2:
        site.good()
        assert len(site.processes()) == 1
    site.good("absent")
    assert not site.processes() and not list(site.run_dir.iterdir())


def test_a_machine_that_does_not_listen_is_ended(site: Site) -> None:
    site.present("vol", size=MIB)
    (one,) = site.good()
    os.kill(one.consumer["pid"], signal.SIGSTOP)
    assert [done.changed for done in site.good("stopped")] == [True] and not site.processes()
    (one,) = site.good()
    os.kill(one.consumer["pid"], signal.SIGKILL)  # by the kernel, out of memory
    while site.processes():
        time.sleep(0.01)
    assert [done.changed for done in site.good()] == [True] and len(site.processes()) == 1


def test_a_port_that_somebody_took_meanwhile(site: Site) -> None:
    site.present("vol", size=MIB)
    (one,) = site.good()
    site.good("stopped")
    with socket.create_server(("127.0.0.1", one.consumer["port"])):
        (other,) = site.good()
    assert other.consumer["port"] != one.consumer["port"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root is missing")
@pytest.mark.skipif(os.geteuid() != 0, reason="root is missing")
def test_under_a_lease(site: Site) -> None:
    """Nothing is started under a lease that is lost, nor on volumes that were not made under it."""
    lease = hold(site, volumes=("vol",)).after
    site.leased(lease, "vol")
    site.present("stranger", size=MIB)
    given = leases.describe(lease, site.share)
    site.good(lease=given)
    assert "was made without a lease" in site.failed(errors.Conflict, volumes=["stranger"], lease=given)
    with pytest.raises(errors.LeaseLost):
        site.bring(lease={**given, "id": "0123456789abcdef"})
    with pytest.raises(errors.InUse):
        leases.release(leases.LeaseRequest(site.share, Asked("ci", "job-1", None), True), site.options())
    assert site.processes()
    stopping = leases.LeaseRequest(site.share, Asked("ci", "job-1", None), True, run_dir=str(site.run_dir))
    assert leases.release(stopping, site.options(check=True)).removed == ("vol",) and site.processes()
    assert leases.release(stopping, site.options()).removed == ("vol",)
    assert not site.processes() and not (site.path / "vol").exists() and not list(site.run_dir.iterdir())
    with pytest.raises(errors.LeaseLost):
        site.bring(lease=given)
    assert not site.processes()


def test_a_machine_goes_with_the_lease_that_ended(site: Site) -> None:
    """It is ended by a collector, and no other one is: not that of another lease, nor one without."""
    old, new = hold(site, volumes=("vol",)).after, hold(site, name="new", volumes=("new-00",)).after
    site.leased(old, "vol")
    site.leased(new, "new-00")
    site.present("mine", size=MIB)
    site.good(lease=leases.describe(old, site.share))
    site.good("started", "new-00", lease=leases.describe(new, site.share))
    site.good("started", "mine")
    assert site.collect() == leases.Collected() and len(site.processes()) == 3
    let_pass(site, 2 * 3600)
    assert site.collect(check=True) == leases.Collected(("ci",), ("vol",)) and len(site.processes()) == 3
    elsewhere = leases.collect(leases.CollectRequest(site.share, 0, run_dir=None), site.options())  # on another host
    assert not elsewhere.leases and elsewhere.skipped[0]["error_code"] == "in_use" and len(site.processes()) == 3
    assert site.collect() == leases.Collected(("ci",), ("vol",)) and len(site.processes()) == 2
    assert RunDirectory(str(site.run_dir)).names() == ["mine", "new-00"]
    assert site.collect() == leases.Collected()


def test_a_worker_that_is_declared_no_more(site: Site) -> None:
    lease = hold(site, volumes=("vol", "second")).after
    site.leased(lease, "vol")
    site.leased(lease, "second")
    site.good("started", "vol", "second", lease=leases.describe(lease, site.share))
    asked = Asked("ci", "job-1", 3600, volumes=("vol",))
    with pytest.raises(errors.InUse):
        leases.hold(leases.LeaseRequest(site.share, asked, True), site.options())
    leases.hold(leases.LeaseRequest(site.share, asked, True, run_dir=str(site.run_dir)), site.options())
    assert RunDirectory(str(site.run_dir)).names() == ["vol"] and len(site.processes()) == 1 and not (site.path / "second").exists()


def test_examples(site: Site, tmp_path: Path, ansible_environment: dict) -> None:
    """Those of the documentation as they stand, but for how long a guest takes that is not there."""
    tasks = [task for task in examples("remotefs_machine") if "ansible.builtin.command" not in task]
    for task in tasks:
        task["remotefs.storage.remotefs_machine"].update(run_dir=str(site.run_dir), accelerators=["tcg"], wait_for="none", memory="32M")
    disks = [{"name": name} for name in ("ci-00", "ci-00-data", "ci-01", "ci-01-data")]
    made_ = [{"remotefs.storage.remotefs_volume": {"share": "SHARE", "size": "1M", "volumes": disks}}]
    made_ += [{"remotefs.storage.remotefs_volume": {"share": "SHARE", "name": "ci-00-seed", "source": {"seed": {"user_data": "#cloud-config"}}}}]
    recap = play(made_ + tasks, site.path, tmp_path, ansible_environment)
    assert recap["ok"] == recap["changed"] == len(made_ + tasks) and len(site.processes()) == 2


# -- with a guest --------------------------------------------------------------------------------------------------------


def kernel(*more: str) -> dict:
    place = made()
    words = ["-kernel", f"{place}/vmlinuz", "-initrd", f"{place}/initrd", "-append", " ".join([BOOT, *more])]
    return {"arguments": words, "memory": "128M", "accelerators": ["tcg,tb-size=128"]}


def test_a_guest_that_answers_and_one_that_does_not(site: Site) -> None:
    """The agent answers; nobody answers by SSH, which is told with the last words of the console, harmless for a terminal."""
    site.present("vol", size=MIB)
    (one,) = site.good(wait_for="agent", wait_timeout=120, **kernel())
    assert one.changed
    told = site.failed(errors.ToolFailed, wait_for="ssh", wait_timeout=1)
    assert "does not answer within 1 s" in told and "it runs on" in told and site.processes()
    site.good("stopped", stop_timeout=0)
    told = site.failed(errors.ToolFailed, wait_for="ssh", wait_timeout=8, **{**kernel("rdinit=/no/such/program", "loglevel=4")})
    assert "has ended" in told or "its console ends with:" in told
    assert told.isprintable()


def test_a_guest_that_stands_still(site: Site) -> None:
    """Nobody waits for a guest that cannot go on by itself. The message says what QEMU says, and the machine can be stopped."""
    site.present("vol", size=MIB)
    crashes = kernel("rdinit=/no/such/program")
    crashes["arguments"] += ["-action", "reboot=shutdown,shutdown=pause"]
    began = time.monotonic()
    told = site.failed(errors.ToolFailed, wait_for="ssh", wait_timeout=300, **crashes)
    assert "its guest stands still (shutdown)" in told and "look at what it boots" in told and time.monotonic() - began < 100
    site.good("absent")
    assert not site.processes()


def test_hostile_words_on_a_console(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "ask", lambda *_ignored, **_options: "\x1b[2J\x1b]0;x\x07first\r\n" + "y" * 100000 + "\n" + "last\u202e\n")
    told = qemu.console(RunDirectory(str(site.run_dir)).place("vol"))
    assert told.isprintable() and len(told) < 1000 and told.endswith("last?")


def test_the_address_of_a_guest() -> None:
    """One that others can reach, of IPv4 before IPv6; nothing that is no address."""
    reachable = answering.reachable
    assert reachable(["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "224.0.0.1", "0.0.0.0", "::", "", "None", "vm; rm -rf /", "10.0.0.1/24"]) is None
    assert reachable(["fe80::1", "2001:db8::7", "192.0.2.7", "192.0.2.8"]) == "192.0.2.7" and reachable(["::1", "2001:db8::7"]) == "2001:db8::7"


# -- libvirt ---------------------------------------------------------------------------------------------------------------


ONE = "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/><target dev='vdb' bus='virtio'/></disk>"


def domain(site: Site, name: str = "vol", **how: Any) -> str:
    told = site.info("vol")
    return one_disk(name, how.get("path", told["path"]), how.get("format", told["format"]))


def test_domains(site: Site, libvirtd: Libvirtd) -> None:
    site.present("vol", size=MIB, format="qcow2")
    how = {"consumer": "libvirt", "uri": libvirtd.uri}
    assert "none of its disks is" in site.failed(errors.InvalidParameter, definition=domain(site, path="/etc/passwd"), **how)
    assert "and it is qcow2" in site.failed(errors.InvalidParameter, definition=domain(site, format="raw"), **how)
    twice = domain(site).replace("<devices>", f"<devices>{ONE.format(path=site.info()['path'])}")
    assert "and it is qcow2" in site.failed(errors.InvalidParameter, definition=twice, **how)
    assert "and the machine is vol" in site.failed(errors.InvalidParameter, definition=domain(site, name="else"), **how)
    assert "no description of a domain" in site.failed(errors.InvalidParameter, definition="<domain>", **how)
    (one,) = site.good(definition=domain(site), **how)
    assert one.changed and libvirtd("list", "--uuid", "--transient").split() == [one.consumer["uuid"]] and site.info()["in_use"]
    assert [again.changed for again in site.good(definition=domain(site), **how)] == [False]
    assert "runs with libvirt" in site.failed(errors.Conflict)
    assert [done.changed for done in site.good("stopped", **how)] == [True] and libvirtd("list", "--name").split() == []
    assert [done.changed for done in site.good("absent", **how)] == [True] and not list(site.run_dir.iterdir())
    site.good(definition=domain(site), **how)
    libvirtd("suspend", "vol")  # as QEMU does after an error of its disk: then libvirt does not ask the guest to shut down
    assert [done.changed for done in site.good("absent", stop_timeout=5, **how)] == [True] and libvirtd("list", "--name").split() == []
    libvirtd("define", "/dev/stdin", given=domain(site))
    assert "has a domain of this name" in site.failed(errors.Conflict, definition=domain(site), **how)
    assert [done.changed for done in site.good("absent", **how)] == [True] and libvirtd("list", "--all", "--name").split() == ["vol"]
    libvirtd("undefine", "vol")


def test_a_domain_goes_with_its_lease(site: Site, libvirtd: Libvirtd) -> None:
    lease = hold(site, volumes=("vol",)).after
    site.leased(lease, "vol")
    site.good(definition=domain(site), consumer="libvirt", uri=libvirtd.uri, lease=leases.describe(lease, site.share))
    let_pass(site, 2 * 3600)
    assert site.collect() == leases.Collected(("ci",), ("vol",)) and libvirtd("list", "--all", "--name").split() == []
