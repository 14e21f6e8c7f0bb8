# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes with machines. Without QEMU all tests of this directory are skipped, and say so once."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply import quiescing
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live import agent as agents
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live import freezing
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.client import Monitor

from .disks import Disks
from .guest import Guest, Live, may_mount, qemu_version
from .libvirtd import Libvirtd, LiveDomain
from .scripted_agent import ScriptedAgent

MISSING = [program for program in ("qemu-system-x86_64", "qemu-storage-daemon", "qemu-img") if not shutil.which(program)]


def pytest_sessionstart() -> None:
    """Where a version is asked for (LIVE_QEMU=10), no other one may be tested by mistake."""
    wanted = os.environ.get("LIVE_QEMU")
    if wanted and qemu_version()[0] != int(wanted):
        raise pytest.UsageError(f"LIVE_QEMU says {wanted}, and qemu-system-x86_64 is version {qemu_version()}")


def pytest_collection_modifyitems(items: list) -> None:
    for item in items:
        if MISSING and Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.skip(reason=f"missing: {', '.join(MISSING)}"))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Makes volumes, each on a share of its own; their machines end with the test."""
    made: list[Live] = []

    def make_one(image_format: str = "raw", **options: object) -> Live:
        share = tmp_path / f"share{len(made)}"
        share.mkdir()
        made.append(Live(share, image_format, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make_one
    for live in made:
        if live.guest is not None:
            if live.guest.alive:
                live.guest.kill()
            shutil.rmtree(live.guest.directory, ignore_errors=True)


@pytest.fixture
def make_disks(tmp_path: Path) -> Iterator[Callable[..., Disks]]:
    """Makes machines with several disks, as :class:`Disks`; they end with the test."""
    made: list[Disks] = []

    def make_one(*formats: str) -> Disks:
        share = tmp_path / f"disks{len(made)}"
        share.mkdir()
        made.append(Disks(share, formats) if formats else Disks(share))
        return made[-1]

    yield make_one
    for disks in made:
        disks.end()


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[Libvirtd]:
    """A libvirt of the tests' own."""
    missing = [program for program in ("libvirtd", "virsh") if not shutil.which(program)]
    if missing or os.geteuid() != 0 or not may_mount():
        pytest.skip(f"missing: {', '.join(missing) or 'the right to mount'}")
    if os.environ.get("LIVE_QEMU"):
        pytest.skip("libvirt goes with the QEMU that is installed, and another one is asked for")
    daemon = Libvirtd()
    yield daemon
    daemon.stop()


@pytest.fixture
def make_domain(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Callable[..., LiveDomain]]:
    """Makes volumes with domains; they end with the test."""
    made: list[LiveDomain] = []

    def make_one(image_format: str = "raw", **options: object) -> LiveDomain:
        share = tmp_path / f"share{len(made)}"
        share.mkdir()
        made.append(LiveDomain(libvirtd, share, image_format, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make_one
    for live in made:
        live.remove()


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long for a guest agent that is silent on purpose."""
    monkeypatch.setattr(agents, "ANSWER", 0.4)
    monkeypatch.setattr(agents, "FREEZE", 0.8)
    monkeypatch.setattr(freezing, "THAW", 0.8)
    monkeypatch.setattr(quiescing, "_HOLD", 0.8)
    monkeypatch.setattr(quiescing, "_PAUSE", 0.05)


@pytest.fixture
def scripted(short_limits: None) -> Iterator[Callable[..., ScriptedAgent]]:
    """Makes guest agents without a guest; they end with the test."""
    made: list[ScriptedAgent] = []

    def make_one(script: dict | None = None, **options: object) -> ScriptedAgent:
        made.append(ScriptedAgent(script, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make_one
    for one in made:
        with suppress(OSError):
            one.end()


@pytest.fixture(autouse=True)
def no_writes_by_command_while_writes_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's writes wait by themselves while a finished merge of the active image rests. A write by a command of the monitor would
    keep QEMU from reading any other command, also the one that ends the wait. So the test's writer stops for that moment."""
    run = Monitor.run

    def paused(self: Monitor, command: str, **arguments: object) -> object:
        guest = Guest.of.get(self.path)
        if guest is None:
            return run(self, command, **arguments)
        if command == "job-complete":
            guest.pause()
        try:
            return run(self, command, **arguments)
        finally:
            if command in ("job-dismiss", "job-cancel"):
                guest.go_on()

    monkeypatch.setattr(Monitor, "run", paused)
