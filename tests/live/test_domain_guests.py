# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest of a domain, frozen for a snapshot of two disks, with its own agent and with one that misbehaves. libvirt has the channel.

A point of a frozen guest needs no recovery, and has what was never synced. That is compared with a point of the same guest that was not
frozen. Each guest is booted once for many things. Some of it is a sample; with LIVE_SWEEP=full all is done.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply import quiescing
from ansible_collections.remotefs.storage.plugins.module_utils.apply.guardians import GuardianProcess
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt import freezing
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt.virsh import SpokenDomain
from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, ToolFailed

from .domain_guest import CHANNEL, DomainWithGuest, ScriptedGuest
from .instants import instants, killed_at
from .libvirtd import Libvirtd, LiveDomain
from .real_guest import made
from .test_domain_kills import libvirt_watched
from .test_real_guest import LENGTH, NAMES, Site

IS_FULL = os.environ.get("LIVE_SWEEP") == "full"
CHANCE = random.Random(os.environ.get("LIVE_SEED", time.strftime("%j")))


class DomainSite(Site):
    """A domain with a guest, on two volumes of a share."""

    def __init__(self, path: Path, libvirtd: Libvirtd, kind: type[DomainWithGuest] = DomainWithGuest) -> None:
        self.libvirtd, self.kind = libvirtd, kind
        super().__init__(path)

    def boot(self, disks: list) -> tuple[Any, Attachment]:
        """See :meth:`Site.boot`."""
        guest = self.kind(self.libvirtd, disks)
        return guest, Attachment(uri=self.libvirtd.uri, domain=guest.name)

    def instant(self, what: str) -> int:
        """The number of an instant of a task that takes a snapshot of the first."""
        taken = f"trial{time.monotonic_ns()}"
        found = [one.number for one in instants(lambda: self.take(taken, quiesce="true"), libvirt_watched) if one.what == what]
        return found[0]

    def kill(self, name: str, number: int, victim: str) -> None:
        """A task that takes a snapshot with the guest frozen is killed."""
        killed_at(lambda: self.take(name, quiesce="true"), number, victim, 0, libvirt_watched, GuardianProcess)


def booted(libvirtd: Libvirtd, factory: pytest.TempPathFactory, kind: type[DomainWithGuest]) -> Iterator[DomainSite]:
    """One that serves several tests."""
    made()
    one = DomainSite(factory.mktemp("share"), libvirtd, kind)
    yield one
    one.guest.end()


@pytest.fixture(scope="module")
def real(libvirtd: Libvirtd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DomainSite]:
    """A guest with qemu-ga."""
    yield from booted(libvirtd, tmp_path_factory, DomainWithGuest)


@pytest.fixture(scope="module")
def scripted_site(libvirtd: Libvirtd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DomainSite]:
    """A guest whose agent does what it is told."""
    yield from booted(libvirtd, tmp_path_factory, ScriptedGuest)


@pytest.fixture
def site(real: DomainSite) -> DomainSite:
    real.warned.clear()
    return real


@pytest.fixture
def odd(scripted_site: DomainSite, short: None) -> DomainSite:
    scripted_site.warned.clear()
    scripted_site.guest.does("usual $1")
    return scripted_site


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long for an agent that is silent on purpose."""
    for name, seconds in (("ANSWER", 1), ("FREEZE", 1), ("THAW", 4), ("_ON_THE_WAY", 0.3)):
        monkeypatch.setattr(freezing, name, seconds)
    monkeypatch.setattr(quiescing, "_PAUSE", 0.05)


_BY_BINDING = """
import sys
from ansible_collections.remotefs.storage.plugins.module_utils import command
from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt import binding
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import groups
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot

path, uri, domain, name = sys.argv[1:]
assert binding.is_there()
where, options = Candidates((Share(path, path, "directory"),)), Options(lock_timeout=5, quiesce="true", attachment=Attachment(uri=uri, domain=domain))
done = groups.take_group(where, ["db", "log"], DesiredSnapshot(name), options)
assert [one.quiesced for one in done] == [(True, "")] * 2, done
assert "virsh" not in command.STARTED.programs, command.STARTED.programs
"""


def by_binding(site: DomainSite, name: str) -> None:
    """A snapshot of both, by the system's Python, which has libvirt's binding."""
    tree = os.path.dirname(next(iter(sys.modules["ansible_collections"].__path__)))
    command = ["/usr/bin/python3", "-c", _BY_BINDING, str(site.path), site.libvirtd.uri, site.guest.name, name]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": tree}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def require_whole(site: DomainSite, name: str) -> None:
    """A point needs no recovery, and has what was never synced."""
    for volume in NAMES:
        point = site.point(volume, name)
        assert not point.needs_recovery and point.is_clean() and point.read(f"/for-{name}") == b"x" * LENGTH, (volume, name)


def test_a_guest_that_is_frozen_for_a_moment(site: DomainSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site.require_difference()
    # Its agent is asked in check mode, and nothing is frozen. A group is frozen once, for libvirt's one call.
    called: list[str] = []
    for verb in ("freeze", "thaw", "is_frozen", "take_snapshot"):
        monkeypatch.setattr(SpokenDomain, verb, noting(called, verb))
    assert [one.quiesced for one in site.together("frozen", quiesce="true", check=True)] == [(True, "")] * 2
    assert called == ["is_frozen"]
    called.clear()
    site.guest.run("(while sleep 0.01; do date >>/a/busy; date >>/b/busy; sync; done) >/dev/null 2>&1 &")
    site.write("for-frozen")
    assert [one.quiesced for one in site.together("frozen", quiesce="true")] == [(True, "")] * 2
    assert called == ["is_frozen", "freeze", "take_snapshot", "is_frozen", "thaw"]
    site.require_going()
    require_whole(site, "frozen")
    # By the binding, too.
    if subprocess.run(["/usr/bin/python3", "-c", "import libvirt"], capture_output=True, check=False).returncode == 0:
        site.write("for-bound")
        by_binding(site, "bound")
        site.require_going()
        require_whole(site, "bound")
    # Somebody else has frozen it, and it stays so.
    site.libvirtd("domfsfreeze", site.guest.name)
    for check in (True, False):
        with pytest.raises(InUse, match="frozen already, by somebody else"):
            site.take("a", quiesce="true", check=check)
    assert site.guest.ask("guest-fsfreeze-status") == "frozen"
    site.libvirtd("domfsthaw", site.guest.name)
    # A domain that is suspended has nobody to ask. Then it goes on, and it can be frozen.
    site.libvirtd("suspend", site.guest.name)
    with pytest.raises(InUse, match="domain is not running"):
        site.take("a", quiesce="true")
    site.libvirtd("resume", site.guest.name)
    assert site.take("a", quiesce="auto").quiesced == (True, "")
    assert site.warned == []


def noting(called: list[str], verb: str) -> Callable[..., Any]:
    """A verb of virsh's domain that is noted in ``called``."""
    original = getattr(SpokenDomain, verb)

    def noted(self: SpokenDomain, *words: Any) -> Any:
        called.append(verb)
        return original(self, *words)

    return noted


def test_killed_while_frozen(site: DomainSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guardian lets the guest go on. If it is killed, too, the next task does, whatever that is."""
    monkeypatch.setattr(freezing, "_ON_THE_WAY", 0.3)
    number = site.instant("before take_snapshot")
    for victim in ("module", "group") if IS_FULL else (CHANCE.choice(("module", "group")),):
        site.kill(f"by-{victim}", number, victim)
        until = time.monotonic() + 5
        while site.guest.ask("guest-fsfreeze-status") == "frozen":
            assert time.monotonic() < until, "the guest is frozen for ever"
            time.sleep(0.1)
        site.require_going()
        assert site.take(f"after-{victim}").recovered and not [text for text in site.warned if "left it so" in text]
    site.kill("by-both", number, "guardian too")
    time.sleep(0.5)
    assert site.guest.ask("guest-fsfreeze-status") == "frozen"
    before = len(site.warned)
    assert site.take("after-both", check=True).recovered and site.guest.ask("guest-fsfreeze-status") == "frozen" and len(site.warned) == before
    assert site.take("after-both").recovered and [text for text in site.warned if "left it so" in text]
    site.require_going()


# -- an agent that misbehaves ------------------------------------------------------------------------------------------

WITHOUT = {  # what the agent does, and what is said of that before anything is changed
    "never answers the question": ("[ $1 = status ] || usual $1", "does not answer in time"),
    "refuses": ("say '{\"error\": {\"class\": \"X\", \"desc\": \"no\\u001b[2J\"}}'", r"refuses .*no\?\[2J"),
    "another word": ("say '{\"return\": \"fine\"}'", "neither that it is frozen nor"),
    "a number": ("say '{\"return\": 7}'", "neither that it is frozen nor"),
    "a list": ("say '{\"return\": [\"thawed\"]}'", "neither that it is frozen nor"),
}
FAILING = {  # the same of an agent that cannot freeze, or does not say so
    "freeze is refused": ("[ $1 = freeze ] && say '{\"error\": {\"class\": \"X\", \"desc\": \"not today\"}}' || usual $1", "refuses .*not today"),
    "nothing to freeze": ("[ $1 = freeze ] && say '{\"return\": 0}' || usual $1", "no file system"),
    "freezes and never answers": ("[ $1 = freeze ] && echo frozen >/run/state || usual $1", "does not answer in time"),
    "freezes late": ("[ $1 = freeze ] && sleep 2; usual $1", "does not answer in time"),
    "freezes and says nonsense": ("[ $1 = freeze ] && { echo frozen >/run/state; say '{\"return\": \"two\"}'; } || usual $1", "no number"),
    "freezes and dies": ("[ $1 = freeze ] && { echo frozen >/run/state; exit; } || usual $1", "agent"),
}


def test_an_agent_that_misbehaves(odd: DomainSite) -> None:
    """Without its help there is no snapshot with true, and one with auto. The guest goes on in any case."""
    guest, every = odd.guest, {**WITHOUT, **FAILING}
    chosen = list(every) if IS_FULL else [CHANCE.choice(list(every))]
    for number, case in enumerate(chosen):
        does, expected = every[case]
        guest.does(does)
        froze = guest.state()[1]
        for mode in ({"check": True}, {}) if case in WITHOUT else ({},):
            began = time.monotonic()
            with pytest.raises(InUse, match=expected) as caught:
                odd.take("never", quiesce="true", **mode)
            assert time.monotonic() - began < 15 and str(caught.value).isprintable(), case
            guest.wait_for_agent()
        assert guest.state() == (False, froze) or (case in FAILING and not guest.state()[0]), case
        done = odd.take(f"auto{number}", quiesce="auto")
        guest.wait_for_agent()
        assert done.changed and not done.quiesced.quiesced and not guest.state()[0], case
    assert odd.warned == []
    assert "never" not in [one["name"] for one in odd.told()], "with true nothing is taken"


def test_a_guest_that_goes_on_by_itself_and_one_that_does_not(odd: DomainSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the switch the snapshot is there, whatever the guest says."""
    site, guest = odd, odd.guest
    # As one with Windows does.
    guest.does("[ $1 = freeze ] && { usual freeze; echo thawed >/run/state; } || usual $1")
    done = site.take("a", quiesce="true")
    assert done.changed and not done.quiesced.quiesced and "went on by itself" in done.quiesced.reason
    assert len(site.warned) == 1 and "was not frozen for certain" in site.warned[0]
    # Its agent dies in between, and is there again.
    guest.does("[ $1.$(cat /run/state) = status.frozen ] && exit || usual $1")
    done = site.take("b", quiesce="auto")
    assert done.changed and not done.quiesced.quiesced
    guest.wait_for_agent()
    assert guest.state()[0] is False
    # libvirt refuses the switch.
    guest.does("usual $1")
    take = SpokenDomain.take_snapshot
    monkeypatch.setattr(SpokenDomain, "take_snapshot", lambda self, xml: take(self, "<nonsense/>"))
    with pytest.raises(ToolFailed, match="libvirt refuses"):
        site.take("never", quiesce="true")
    monkeypatch.setattr(SpokenDomain, "take_snapshot", take)
    assert not guest.state()[0]
    # It does not go on until this test lets it. A process goes on telling it to, and holds up nobody.
    monkeypatch.setattr(freezing, "THAW", 1)
    monkeypatch.setattr(quiescing, "_HOLD", 1)
    guest.does("[ $1 = thaw ] || usual $1")
    site.warned.clear()
    done = site.take("c", quiesce="true")
    assert done.quiesced == (True, "") and len(site.warned) == 1 and "may be frozen still" in site.warned[0]
    assert guest.state()[0], "the task has waited for it"
    began = time.monotonic()
    with pytest.raises(InUse, match="still tells the guest to go on"):
        site.take("d", quiesce="true", lock_timeout=0.3)
    assert site.take("d").changed and time.monotonic() - began < 20, "the locks and the domain are free again"
    guest.does("usual $1")
    until = time.monotonic() + 20
    while guest.state()[0]:
        assert time.monotonic() < until, "the guest is frozen for ever"
        time.sleep(0.2)


@pytest.mark.parametrize("has_channel", [False, True] if IS_FULL else [CHANCE.random() < 0.5])
def test_a_domain_without_an_agent(make_domain: Callable[..., LiveDomain], has_channel: bool) -> None:
    """With auto there is a snapshot all the same. A domain that is off needs no freezing."""
    live = make_domain()
    live.run(more="</disk>" + CHANNEL + "<disk type='file' device='cdrom'><target dev='sda'/>" if has_channel else "")
    expected = "no guest agent runs in it" if has_channel else "has no channel for a guest agent"
    before = live.tree()
    for check in (True, False):
        with pytest.raises(InUse, match=expected):
            live.take("a", quiesce="true", check=check)
    assert live.tree() == before
    done = live.take("a", quiesce="auto")
    assert done.changed and expected in done.quiesced.reason and "custom guest agent" not in live.libvirtd("dominfo", live.name)
    live.guest.quit()  # type: ignore[union-attr]
    for quiesce in ("true", "auto"):
        assert live.take(f"off-{quiesce}", quiesce=quiesce).quiesced == (False, "no machine has it open")
