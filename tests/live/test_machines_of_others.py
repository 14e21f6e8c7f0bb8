# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines that are not those of the task, options and records that are nonsense, and a task that was killed at a bad moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from functional.test_leases import hold, let_pass
from functional.test_refusals import MIB

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import leases
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task

from .test_machines import Site, site

__all__ = ["site"]  # a fixture


def test_processes_and_directories_of_others(site: Site) -> None:
    """A process of another user is not ended, whatever its command line says, and a directory of others is not used."""
    site.present("vol", size=MIB)
    site.good()
    site.good("stopped")
    words = ["sh", "-c", "sleep 60; :", "-pidfile", str(site.run_dir / "vol" / "pid")]
    with subprocess.Popen(words, user=65534, cwd="/") as impostor:
        try:
            assert [one.changed for one in site.good("stopped")] == [False] and impostor.poll() is None
            assert [one.changed for one in site.good()] == [True]
            site.good("absent")
            assert impostor.poll() is None
        finally:
            impostor.kill()
    site.run_dir.chmod(0o777)
    assert "can write there" in site.failed(errors.ToolFailed)
    hold(site, name="other", volumes=("other-00",))
    let_pass(site, 2 * 3600, "other")
    how = Options(lock_timeout=5, task=Task(site.warned.append))
    collected = leases.collect(leases.CollectRequest(site.share, 0, run_dir=str(site.run_dir)), how)
    assert collected.leases == ("other",) and "can write there" in site.warned[-1]  # it has no machines
    site.run_dir.chmod(0o700)
    os.chown(site.run_dir, 65534, 65534)
    assert "can write there" in site.failed(errors.ToolFailed)
    site.run_dir.rmdir()
    site.run_dir.symlink_to(site.path)
    assert "can write there" in site.failed(errors.ToolFailed)
    assert sorted(path.name for path in site.path.iterdir() if not path.name.startswith(".")) == ["vol"]


def test_a_machine_of_a_container(site: Site) -> None:
    """A container of the same user has another directory at the same path. Its machines are not those of this host."""
    site.present("vol", size=MIB)
    site.good()
    site.good("stopped")
    inside = 'mount -t tmpfs none "$1" && mkdir "$1/vol" && echo ready && exec sh -c "sleep 60; :" -pidfile "$1/vol/pid"'
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside, "sh", str(site.run_dir)]
    with subprocess.Popen(words, cwd="/", stdout=subprocess.PIPE, start_new_session=True) as container:
        try:
            if container.stdout.readline() != b"ready\n":
                pytest.skip("this host makes no namespaces")
            while b"-pidfile" not in Path(f"/proc/{container.pid}/cmdline").read_bytes():
                time.sleep(0.01)
            assert [one.changed for one in site.good("stopped")] == [False] and container.poll() is None
            assert [one.changed for one in site.good()] == [True]
            site.good("absent")
            assert container.poll() is None
        finally:
            os.killpg(container.pid, signal.SIGKILL)


def test_a_collector_that_sees_another_tree(site: Site) -> None:
    """In another mount namespace, such as that of a service, the same directory has the same machines."""
    site.present("vol", size=MIB)
    (one,) = site.good()
    code = "import sys; from ansible_collections.remotefs.storage.plugins.module_utils.consumers import qemu, run_directory as own; "
    code += "print(qemu.find(own.RunDirectory(sys.argv[1]).place('vol')).pid)"
    words = ["unshare", "--mount", "--map-root-user", sys.executable, "-c", code, str(site.run_dir)]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr:
        pytest.skip("this host makes no namespaces")
    assert done.stdout.split() == [str(one.consumer["pid"])], done.stderr


def test_a_machine_of_an_earlier_lease(site: Site) -> None:
    """It still has disks open that somebody has removed. That is not the machine that a task wants, though the names are the same."""
    old = hold(site, volumes=("vol",)).after
    site.leased(old, "vol")
    site.good(lease=leases.describe(old, site.share))
    for path in [*site.path.glob("vol*"), *site.path.glob(".remotefs/*/*.json")]:
        path.unlink()
    new = hold(site, volumes=("vol",)).after
    site.leased(new, "vol")
    for check in (True, False):
        (one,) = site.bring(lease=leases.describe(new, site.share), check=check)
        assert isinstance(one.error, errors.Conflict) and "an earlier lease" in str(one.error)
    site.good("absent")
    assert site.good(lease=leases.describe(new, site.share))[0].changed


def test_records_that_are_none(site: Site) -> None:
    site.present("vol", size=MIB)
    site.good()
    site.good("stopped")
    path = site.run_dir / "vol" / "machine.json"
    good, domain_ = json.loads(path.read_text()), {"consumer": "libvirt", "uri": "qemu:///system", "uuid": "6695eb01-f6a4-8304-79aa-97f2502e193f"}
    forged = [{"ports": {"\u00b2": 1}}, {"ports": {"9" * 5000: 1}}, {"consumer": "else"}, {**domain_, "uuid": "somebodys-domain"}]
    forged += [{**domain_, "uri": uri} for uri in (None, "qemu+ext:///system?command=/tmp/evil", "qemu+ssh://evil.example/system", "test:///default")]
    for text in ("", "[]", "{}", '{"name": 1}', "[" * 100000, *(json.dumps({**good, **more}) for more in forged)):
        path.write_text(text)
        assert "no record of a machine" in site.failed(errors.ToolFailed)
    path.write_text(json.dumps({**good, "name": "else"}))
    assert "record of another machine" in site.failed(errors.ToolFailed, "stopped")
    (site.run_dir / ("x" * 100)).mkdir()
    assert site.collect() == leases.Collected()  # it does not keep the leases of others


def test_nonsense(site: Site) -> None:
    site.present("vol", size=MIB)
    for options, words in (
        ({"memory": "1"}, "no whole number of MiB"),
        ({"cpus": 0}, "no number of processors"),
        ({"ports": [0]}, "no TCP port"),
        ({"listen": "localhost,hostfwd=tcp::1-:1"}, "no IPv4 address"),
        ({"definition": "<domain/>"}, "QEMU alone has none"),
        ({"consumer": "libvirt"}, "option definition: it is missing"),
        ({"volumes": ["vol", "vol"]}, "is there twice"),
        ({"seed": "vol"}, "is there twice"),
        ({"wait_timeout": float("nan")}, "no number of seconds"),
        ({"accelerators": []}, "none is given"),
        ({"run_dir": "/run/" + "x" * 100}, "paths of sockets"),
        ({"wait_for": "ssh", "ports": [80]}, "leads to port 22"),
        ({"wait_for": None, "ports": []}, "leads to port 22"),
        ({"arguments": ["a\0b"]}, "no command line can have"),
        ({"run_dir": "run"}, "no absolute path"),
        ({"run_dir": str(site.path)}, "is on the share"),
        ({"run_dir": str(site.path / "run")}, "is on the share"),
    ):
        try:
            (one,) = site.bring(**options)
            assert one.error is not None
            told = str(one.error)
        except errors.StorageError as error:
            told = str(error)
        assert words in told and not site.processes(), options
        site.good("absent")


def test_a_task_that_was_killed_before_there_was_a_monitor(site: Site, tmp_path: Path) -> None:
    """The machine is coming up then, and the next task waits for it."""
    site.present("vol", size=MIB)
    slow = tmp_path / "slow"
    slow.write_text('#!/bin/sh\nsleep 2\nexec qemu-system-x86_64 "$@"\n')
    slow.chmod(0o755)
    child = os.fork()
    if child == 0:
        try:
            site.bring(program=str(slow))
        finally:
            os._exit(0)
    while not site.processes():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (one,) = site.good()
    assert not one.changed and site.processes() == [one.consumer["pid"]] and one.consumer["port"]
