# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shares whose server dies while they are read, after it has told the capacity: real mounts of sshfs, whose server stops at a certain request.

A reader of such a mount can not even be killed: it waits in the kernel until the server goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors, limited, process_copies
from ansible_collections.remotefs.storage.plugins.module_utils.operations import metrics
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import listing

from . import stalling_server
from .conftest import with_two_snapshots
from .test_leases import hold
from .test_refusals import MIB, Store

SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
SILENT = 1  # seconds that a share may be
LONG = 30  # seconds after which a test is taken to hang
NOT_KEPT = "dir_cache=no,entry_timeout=0,attr_timeout=0,negative_timeout=0"


class Hanging:
    """A mount of a share by sshfs, whose server can stop."""

    def __init__(self, store: Store, where: Path) -> None:
        self.store, self.path, self._control = store, where / "mnt", where / "stop"
        self._rescue: subprocess.Popen | None = None
        self.source = f"host:{store.path}"
        self.path.mkdir()
        program = next((path for path in SERVERS if os.access(path, os.X_OK)), None)
        if program is None or shutil.which("sshfs") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK):
            pytest.skip("needs sshfs, sftp-server and /dev/fuse")
        # sshfs appends words for ssh, which the script does not read
        command = f"{sys.executable} {stalling_server.__file__} {self._control} {program}"
        subprocess.run(["sshfs", self.source, str(self.path), "-o", f"ssh_command={command},{NOT_KEPT}"], check=True, timeout=LONG)

    @property
    def _server(self) -> int:
        return int(Path(f"{self._control}.pid").read_text())

    def stop_at(self, kind: int, name: str) -> None:
        """The server stops when it is asked for this."""
        self._control.write_text(f"{kind} {self.store.path / name}".rstrip("/"))
        later = f"import os, time; time.sleep({LONG}); os.kill({self._server}, {int(signal.SIGCONT)})"
        self._rescue = subprocess.Popen([sys.executable, "-c", later])  # a module that waits for the server cannot even be killed

    @property
    def has_stopped(self) -> bool:
        return not self._control.exists()

    def go_on(self) -> None:
        if self._rescue is not None:
            self._rescue.kill()
            self._rescue.wait()
            self._rescue = None
        self._control.unlink(missing_ok=True)
        os.kill(self._server, signal.SIGCONT)

    def end(self) -> None:
        self.go_on()
        subprocess.run(["umount", str(self.path)], check=True, timeout=LONG)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    """Volumes ``vol``, with two snapshots, and ``other``, and a lease ``ci``."""
    store = with_two_snapshots(tmp_path / "export")
    store.present("other", size=MIB, format="qcow2")
    hold(store)
    mounted = Hanging(store, tmp_path)
    yield mounted
    mounted.end()


@pytest.fixture
def fine(tmp_path: Path) -> list[Store]:
    """Two shares that answer."""
    return [with_two_snapshots(tmp_path / name) for name in ("fine1", "fine2")]


UTILS = "ansible_collections.remotefs.storage.plugins.module_utils"


def run(module: str, patience: float = 30, **parameters: object) -> dict:
    """A module as Ansible runs it: whoever reads its output waits until nobody has that open any more.

    :param patience: seconds that a share may be silent for modules that have no option for it.
    """
    program = f"import runpy; from {UTILS}.mounts import resolve; resolve.PATIENCE = {patience}; "
    program += f"runpy.run_module('ansible_collections.remotefs.storage.plugins.modules.{module}', run_name='__main__')"
    argv = [sys.executable, "-c", program]
    given = json.dumps({"ANSIBLE_MODULE_ARGS": {"mount_base": "/nowhere", **parameters}})
    done = subprocess.run(argv, input=given, capture_output=True, text=True, timeout=2 * LONG, check=False)
    assert not done.stderr, done.stderr
    return json.loads(done.stdout)


def readers(path: Path) -> list[str]:
    """Processes that have something open below a mount, without a look at the mount."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link).startswith(f"{path}/"):
                found.append(link.parts[2])
        except OSError:
            continue
    return found


def wait_until_nobody_reads(path: Path) -> None:
    end = time.monotonic() + LONG
    while readers(path):
        assert time.monotonic() < end, readers(path)
        time.sleep(0.05)


STAGES = {
    "the listing": (stalling_server.OPENDIR, ""),
    "the listing of records": (stalling_server.OPENDIR, ".remotefs/volumes"),
    "an .info": (stalling_server.OPEN, "vol.info"),
    "a record": (stalling_server.OPEN, ".remotefs/volumes/other"),
    "the header of an image": (stalling_server.OPEN, "vol.s1"),
    "the listing of leases": (stalling_server.OPENDIR, ".remotefs/leases"),
    "a lease": (stalling_server.OPEN, ".remotefs/leases/ci"),
}
OF_LEASES = [stage for stage in STAGES if "lease" in stage]


@pytest.mark.root
@pytest.mark.parametrize("stage", STAGES)
def test_figures_of_the_other_shares_are_written(hanging: Hanging, fine: list[Store], tmp_path: Path, stage: str) -> None:
    dest, every = tmp_path / "remotefs.prom", [str(fine[0].path), str(hanging.path), str(fine[1].path)]
    told = run("remotefs_metrics", share=every, dest=str(dest), timeout=LONG)
    assert told["unreadable"] == [] and f'remotefs_volume_snapshots{{share="{hanging.source}",volume="vol"}} 2' in dest.read_text()
    hanging.stop_at(*STAGES[stage])
    told = run("remotefs_metrics", share=every, dest=str(dest), timeout=SILENT)
    assert hanging.has_stopped, "nobody asked for it"
    assert told["unreadable"] == [hanging.source] and told["changed"]
    lines = dest.read_text().splitlines()
    assert [line for line in lines if f'"{hanging.source}"' in line] == [f'remotefs_share_up{{share="{hanging.source}"}} 0']
    for share in (every[0], every[2]):
        assert f'remotefs_share_up{{share="{share}"}} 1' in lines and f'remotefs_volume_snapshots{{share="{share}",volume="vol"}} 2' in lines
    hanging.go_on()
    assert run("remotefs_metrics", share=every, dest=str(dest), timeout=LONG)["unreadable"] == []
    wait_until_nobody_reads(hanging.path)


@pytest.mark.root
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in OF_LEASES])
def test_info_tells_the_other_shares(hanging: Hanging, fine: list[Store], stage: str) -> None:
    every = [str(fine[0].path), str(hanging.path), str(fine[1].path)]
    before = run("remotefs_share_info", share=every, timeout=LONG)["shares"]
    assert [one["volumes"] for one in before] == [1, 2, 1]
    hanging.stop_at(*STAGES[stage])
    first, hung, last = run("remotefs_share_info", share=every, timeout=SILENT)["shares"]
    assert hanging.has_stopped and (first["volumes"], last["volumes"]) == (1, 1) and "error_code" not in first
    assert hung["error_code"] == "share_not_mounted" and f"does not answer within {SILENT} s" in hung["msg"]
    assert {hung[key] for key in ("total", "free", "used", "writable", "maintenance")} == {None} and hung["path"] == every[1]
    assert run("remotefs_share_info", share=every[1], timeout=SILENT)["shares"] == [hung], "not even its capacity is told now"
    hanging.go_on()
    after = run("remotefs_share_info", share=every, timeout=LONG)["shares"]
    assert [one["unknown"] for one in after] == [one["unknown"] for one in before] and [one["volumes"] for one in after] == [1, 2, 1]
    wait_until_nobody_reads(hanging.path)


@pytest.mark.root
def test_a_large_share_is_read_by_more_copies(hanging: Hanging, fine: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of which can get stuck. None of them stays."""
    monkeypatch.setattr(listing, "_SHARED_OUT_FROM", 1)
    monkeypatch.setattr(listing, "processors", lambda: 2)
    every = [str(hanging.path), str(fine[0].path)]

    def ups(timeout: float) -> list[float]:
        found = metrics.of_shares(every, "/nowhere", "/dev/null", timeout, True, time.time())
        return [one.value for one in found if one.family == "remotefs_share_up"]

    assert ups(LONG) == [1, 1]
    hanging.stop_at(stalling_server.OPEN, "vol.s1")
    assert ups(SILENT) == [0, 1] and hanging.has_stopped
    hanging.go_on()
    wait_until_nobody_reads(hanging.path)
    assert ups(LONG) == [1, 1]


READERS = {
    "remotefs_volume_info": ([stage for stage in STAGES if stage not in OF_LEASES], "volumes"),
    "remotefs_snapshot_info": (["the header of an image"], "snapshots"),
    "remotefs_lease_info": (OF_LEASES, "leases"),
}


@pytest.mark.root
@pytest.mark.parametrize(("module", "stage"), [(module, stage) for module, (stages, _key) in READERS.items() for stage in stages])
def test_readers_without_the_option_give_up_too(hanging: Hanging, module: str, stage: str) -> None:
    """They fail, as where the server tells no capacity. What they return for a share that answers came through the copy whole."""
    key = READERS[module][1]
    before = run(module, share=str(hanging.path))[key]
    assert len(before) == {"volumes": 2, "snapshots": 2, "leases": 1}[key] and not [one for one in before if "error_code" in one]
    hanging.stop_at(*STAGES[stage])
    found = run(module, patience=SILENT, share=str(hanging.path))
    assert hanging.has_stopped and found["failed"] and found["error_code"] == "share_not_mounted" and "does not answer within" in found["msg"]
    hanging.go_on()
    assert [one["name"] for one in run(module, share=str(hanging.path))[key]] == [one["name"] for one in before]
    wait_until_nobody_reads(hanging.path)


PATIENT_INVENTORY = f"""
import sys
from ansible.cli.inventory import InventoryCLI, main
real = InventoryCLI._play_prereqs
def prepare(*given):
    from {UTILS}.mounts import resolve
    resolve.PATIENCE = {SILENT}
    return real(*given)
InventoryCLI._play_prereqs = prepare
main(sys.argv)
"""


@pytest.mark.root
def test_the_inventory_gives_up_too(hanging: Hanging, tmp_path: Path, ansible_environment: dict) -> None:
    source = tmp_path / "ci.remotefs.yml"
    source.write_text(json.dumps({"plugin": "remotefs.storage.environments", "share": str(hanging.path), "mount_base": "/nowhere"}))
    program = tmp_path / "inventory.py"  # Ansible must have its loader before anything of a collection is imported
    program.write_text(PATIENT_INVENTORY)
    argv = [sys.executable, str(program), "-i", str(source), "--list"]
    env = {**ansible_environment, "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true"}

    def listed() -> subprocess.CompletedProcess:
        return subprocess.run(argv, capture_output=True, text=True, timeout=2 * LONG, check=False, env=env)

    first = listed()
    assert first.returncode == 0, first.stderr
    hanging.stop_at(*STAGES["a lease"])
    done = listed()
    assert hanging.has_stopped and done.returncode and "does not answer within" in " ".join(done.stderr.split()), done.stderr
    hanging.go_on()
    assert listed().returncode == 0
    wait_until_nobody_reads(hanging.path)


# -- the copy that reads ---------------------------------------------------------------------------------------------


def children() -> list[str]:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


@pytest.mark.root
def test_a_copy_that_cannot_be_killed_becomes_no_zombie(hanging: Hanging) -> None:
    """While this process lives on for other shares."""
    hanging.stop_at(stalling_server.OPENDIR, "")
    before = children()
    with pytest.raises(errors.ShareNotMounted, match="share x: it does not answer"):
        limited.within(0.5, lambda _alive: os.listdir(hanging.path), "share x")
    (stuck,) = set(children()) - set(before)
    assert Path(f"/proc/{stuck}/stat").read_text().split()[2] in "DS" and limited.within(5, lambda _alive: 7, "share y") == 7
    hanging.go_on()
    end = time.monotonic() + LONG
    while set(children()) - set(before):  # what another read does
        assert time.monotonic() < end
        limited.within(5, lambda _alive: time.sleep(0.05), "share y")


def test_a_share_that_is_read_for_long_is_not_given_up() -> None:
    """The limit is for silence."""

    def slowly(alive: limited.Alive) -> str:
        for _part in range(8):
            time.sleep(0.15)
            alive()
        return "all"

    assert limited.within(0.6, slowly, "share x") == "all"
    with pytest.raises(errors.ShareNotMounted):
        limited.within(0.6, lambda _alive: slowly(limited.heard_by_nobody), "share x")


def test_what_is_read_comes_whole() -> None:
    many = [("\udce9" * 10, {"n": number}, None, 2.5) for number in range(100_000)]
    assert limited.within(30, lambda _alive: many, "share x") == many


def test_errors_are_those_of_the_reader() -> None:
    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(PermissionError) as refused:
        limited.within(5, lambda _alive: fail(PermissionError(13, "Permission denied")), "share x")
    assert refused.value.errno == 13
    with pytest.raises(errors.Conflict, match="a: b; c") as found:
        limited.within(5, lambda _alive: fail(errors.Conflict("a", "b", "c", {"d": 1})), "share x")
    assert found.value.details == {"d": 1}
    with pytest.raises(errors.ToolFailed, match="unexpected fault") as fault:
        limited.within(5, lambda _alive: fail(ZeroDivisionError("x")), "share x")
    assert "in fail" in fault.value.details["traceback"]
    with pytest.raises(errors.ToolFailed, match="the process that read it was killed"):
        limited.within(5, lambda _alive: os.kill(os.getpid(), signal.SIGKILL), "share x")
    before = children()
    with pytest.raises(errors.ToolFailed, match="unexpected fault"):
        limited.within(5, lambda _alive: lambda: None, "share x")
    assert children() == before


def test_a_copy_has_nothing_of_this_process_and_dies_with_it(tmp_path: Path) -> None:
    """So that nobody waits for an output that a stuck copy has open."""
    reading, writing = os.pipe()
    try:
        kept = limited.within(5, lambda _alive: [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd != "3"], "share x")
        pipes = [one for one in kept if not one.startswith("/proc/")]
        assert sorted(pipes)[:3] == ["/dev/null"] * 3 and os.readlink(f"/proc/self/fd/{writing}") not in pipes
    finally:
        os.close(reading)
        os.close(writing)
    told = tmp_path / "pid"
    middle = os.fork()
    if middle == 0:
        copy = process_copies.start_apart(lambda send: (send(str(os.getpid()).encode()), time.sleep(LONG)) and None)
        told.write_bytes(next(process_copies.messages([copy])))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(middle, 0)
    end = time.monotonic() + LONG / 2
    while Path(f"/proc/{told.read_text()}/cmdline").exists() and Path(f"/proc/{told.read_text()}/cmdline").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.01)
