# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ends of interrupted work on domains that the sweep of kills does not reach: other attachments, other boots, a libvirtd that dies."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable
from unittest import mock

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply import merges
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt import virsh
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt.domain import VolumeDomain
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt.guardian import Guardian
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt.virsh import Spoken, SpokenDomain
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, NeedsRecovery, StorageError, ToolFailed

from . import instants
from .guest import CLUSTER, SIZE, digest, digest_of
from .libvirtd import LiveDomain
from .test_domain_kills import DomainCase, libvirt_watched


def killed(make_domain: Callable[..., LiveDomain], operation: str, state: str, what: str, victim: str = "module") -> DomainCase:
    """A case whose task was killed at an instant, which is named."""
    trial = DomainCase(make_domain("qcow2"), operation, state)
    found = [one for one in instants.instants(trial.run, libvirt_watched) if one.what == what]
    trial.live.remove()
    case = DomainCase(make_domain("qcow2"), operation, state)
    case.kill(found[-1].number, victim)
    return case


@pytest.mark.parametrize("state", ["persistent", "off"])
def test_without_attachment_it_is_named(make_domain: Callable[..., LiveDomain], state: str) -> None:
    """The definition has to follow, too. Info tells the attachment."""
    case = killed(make_domain, "newest", state, "before rename of v.info")
    live = case.live
    if state == "persistent":
        case._await_guardian()
    assert live.info()["pending"]["attachment"]["libvirt"]["domain"] == live.name
    before = live.tree()
    for check in (True, False):
        with pytest.raises(InUse, match=live.name):
            live.take("x", attachment=None, check=check)
    assert live.tree() == before
    case.end("as it is")


def test_a_domain_that_is_found_ends_what_one_that_was_named_began(make_domain: Callable[..., LiveDomain]) -> None:
    case = killed(make_domain, "newest", "off", "before rename of v.info")
    live = case.live
    assert live.take("after", attachment=replace(live.attachment, domain="")).changed
    live.forget("c")
    live.points["after"] = digest_of(live.data)
    live.require_right()
    assert live.defined() == ["v.after", "qcow2"]


@pytest.mark.parametrize("operation", ["oldest", "middle"])
def test_a_merge_that_qemu_did_not_outlive(make_domain: Callable[..., LiveDomain], operation: str) -> None:
    """QEMU died after it had changed the header above, and before the image below had its tables. Here a program does the first half. A domain that was
    started on that shows older data. Nothing is removed, and when it is off, the merge is done again."""
    case = killed(make_domain, operation, "persistent", "before commit", "both")
    live = case.live
    above, below = {"oldest": ("v.b", "v"), "middle": ("v.c", "v.a")}[operation]
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, str(live.path / above)], check=True)
    assert digest(live.info()["path"], "qcow2") != digest_of(live.data)
    while live.guest is not None and live.guest.alive:  # libvirt has not noticed yet
        time.sleep(0.05)
    guest = live.run(define=False)
    guest.write(5 * CLUSTER, CLUSTER, 77)  # whole clusters: QEMU would fill others with the older data
    before = live.tree()
    for check in (True, False):
        with pytest.raises(InUse, match="QEMU ended while .* was merged, and the domain has run since on what may be incomplete"):
            live.take("after", check=check)
    assert live.tree() == before
    guest.kill()
    assert live.take("after").changed
    live.forget(*case.gone)
    live.points["after"] = digest_of(live.data)
    live.require_right()
    live.require_nothing_left()


def test_a_merge_of_which_not_all_was_written(make_domain: Callable[..., LiveDomain], monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt says that it has ended well, as after a full disk. Nothing is removed. The next task looks at it again."""
    live = make_domain("qcow2")
    for number, name in enumerate("ab"):
        live.scribble(number)
        live.snapshot(name, attachment=None)
    live.run()
    held = merges.require_held

    def lacking(*_of: object) -> None:
        raise ToolFailed("v", "QEMU has not written all of the merge to it", "look")

    monkeypatch.setattr(merges, "require_held", lacking)
    with pytest.raises(ToolFailed, match="not written all of the merge"):
        live.delete("a")
    assert (live.path / "v.a").exists() and live.info()["pending"]["operation"] == "delete_snapshot"
    with pytest.raises(InUse, match="what may be incomplete"):
        live.take("after")
    monkeypatch.setattr(merges, "require_held", held)
    assert live.take("after").changed
    live.forget("a")
    live.points["after"] = digest_of(live.data)
    live.require_right()
    live.require_nothing_left()


@pytest.mark.parametrize("what", ["after suspend", "after pivot"])
def test_nobody_stays_suspended(make_domain: Callable[..., LiveDomain], what: str) -> None:
    """The guardian is dead, too: the next task lets the guest go on, also where it has to do the merge again."""
    case = killed(make_domain, "newest", "persistent", what, "guardian too")
    assert case.live.libvirtd("domstate", case.live.name).strip() == "paused"
    case.end("as it is")
    assert case.live.libvirtd("domstate", case.live.name).strip() == "running"


def test_without_a_domain_a_killed_task_is_nobody_s(make_domain: Callable[..., LiveDomain]) -> None:
    """The user names libvirt and no domain has the volume. What is left any task ends."""
    live = make_domain("qcow2")
    nobody = replace(live.attachment, domain="")
    live.snapshot("a", attachment=nobody)
    live.scribble(1)
    number = next(one.number for one in instants.instants(lambda: live.take("trial", attachment=nobody)) if one.what == "before rename of v.info")
    live.points["trial"] = digest_of(live.data)
    instants.killed_at(lambda: live.take("b", attachment=nobody), number, "module", 0)
    assert live.take("c", attachment=None).changed
    live.points |= {"b": digest_of(live.data), "c": digest_of(live.data)}
    live.require_right()


@pytest.mark.parametrize("wrote", [False, True])
def test_a_transient_domain_that_is_gone(make_domain: Callable[..., LiveDomain], wrote: bool) -> None:
    """Nobody can be asked which image it had. While both show the same, both are right."""
    case = killed(make_domain, "newest", "transient", "after pivot", "guardian too")
    live = case.live
    guest = live.guest
    assert guest is not None
    if wrote:
        live.libvirtd("resume", live.name)
        guest.write(0, SIZE, 77)
    guest.kill()
    if wrote:
        with pytest.raises(NeedsRecovery, match="differ"):
            live.take("after")
        return
    assert live.take("after").changed
    live.points["after"] = digest_of(live.data)
    live.forget("c")
    live.require_right()
    live.require_nothing_left()


def test_the_host_was_started_anew_in_a_merge(make_domain: Callable[..., LiveDomain]) -> None:
    """What the merge wrote may not have reached the disk, and the domain runs on it. When it is off, it is merged again."""
    case = killed(make_domain, "oldest", "persistent", "after commit")
    live = case.live
    while live.libvirtd("blockjob", live.name, "vda", "--raw").strip():
        pass
    record = next((live.path / ".remotefs" / "volumes").iterdir())
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record.write_text(record.read_text().replace(boot, "0" + boot[1:]))
    for check in (True, False):
        with pytest.raises(InUse, match="started anew"):
            live.take("after", check=check)
    case.end("off")


def test_a_guardian_ends_when_all_is_gone(make_domain: Callable[..., LiveDomain]) -> None:
    """Neither libvirt nor QEMU is there any more: nobody waits for it."""
    case = DomainCase(make_domain("qcow2"), "newest", "persistent")
    daemon, guest = case.live.libvirtd, case.live.guest
    assert guest is not None
    machine = VolumeDomain(Spoken(str(virsh.program()), daemon.uri).find(case.live.name), case.live.attachment, None, None)  # type: ignore[arg-type]
    watching = Guardian.__new__(Guardian)
    watching._machine, watching._target, watching._new, watching._resumes = replace_uri(machine), "vda", "v", True
    assert not watching._has_gone_on(), "QEMU lives"
    guest.kill()
    assert watching._has_gone_on()


def replace_uri(machine: VolumeDomain) -> VolumeDomain:
    """The same, of a libvirt that does not answer."""
    machine.attachment = replace(machine.attachment, uri="qemu+unix:///system?socket=/nowhere")
    return machine


def test_libvirtd_dies(make_domain: Callable[..., LiveDomain]) -> None:
    """The task fails, the guest goes on, and a later task ends what was begun."""
    case = DomainCase(make_domain("qcow2"), "newest", "persistent")
    daemon = case.live.libvirtd
    pivot = SpokenDomain.pivot

    def dying(self: SpokenDomain, disk: str) -> None:
        daemon.restart()
        pivot(self, disk)

    with mock.patch.object(SpokenDomain, "pivot", dying):
        try:
            case.run()
        except StorageError:
            case.end("as it is")
        else:
            case.live.forget("c")
            case.live.require_right()
