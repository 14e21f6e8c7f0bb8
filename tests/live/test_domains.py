# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots, deletions and growth of volumes of libvirt's domains, off and running; by content, and by what libvirt starts next."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.operations import groups, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .guest import SIZE, digest, digest_of
from .libvirtd import DomainGuest, LiveDomain

FORMATS = ["raw", "qcow2"]


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_domain_that_is_off_starts_on_the_active_image(make_domain: Callable[..., LiveDomain], image_format: str) -> None:
    live = make_domain(image_format)
    live.define()
    for name in "abc":
        live.snapshot(name)
        assert live.defined() == [f"v.{name}", "qcow2"]
    assert live.libvirtd("dumpxml", "--inactive", "--security-info", live.name).count("passwd='secret'") == 1, "what is secret stays"
    assert "urn:somebody:else" in live.libvirtd("dumpxml", "--inactive", live.name), "and what others keep there"
    guest = live.run(define=False)
    guest.scribble(1)
    guest.quit()
    live.require_right()
    live.delete("b")
    live.forget("b")
    live.require_right()
    live.delete("a", "c")
    live.forget("a", "c")
    assert live.defined() == ["v", image_format]
    live.require_right()
    live.run(define=False).scribble(2)
    live.require_right()


@pytest.mark.parametrize("image_format, transient", [("raw", False), ("qcow2", True)], ids=["persistent", "transient"])
def test_a_domain_that_runs(make_domain: Callable[..., LiveDomain], image_format: str, transient: bool) -> None:
    live = make_domain(image_format)
    guest = live.run(transient=transient)
    for number, name in enumerate("abcd"):
        guest.scribble(number)
        live.snapshot(name)
    guest.scribble(9)
    live.require_right()
    for names in ("b", "a", "d", "c"):
        with guest.busy():
            assert live.delete(*names).changed
        live.forget(*names)
        live.require_right()
        live.require_nothing_left()
        guest.scribble(ord(names[0]))
    assert live.libvirtd("domstate", live.name).strip() == "running"
    active = live.info()["path"].rsplit("/", 1)[1]
    if not transient:
        assert live.defined()[0] == active
    guest.kill()
    live.require_right()
    assert active == "v" or image_format == "qcow2"


def test_growth(make_domain: Callable[..., LiveDomain]) -> None:
    for image_format in FORMATS:
        live = make_domain(image_format)
        guest = live.run()
        guest.scribble(1)
        live.grow(2 * SIZE)
        live.snapshot("a")
        live.grow(3 * SIZE)
        guest.write(3 * SIZE - 4096, 4096, 9)
        live.require_right()
        with guest.busy():
            live.delete("a")
        live.forget("a")
        live.require_right()


def second_disk(live: LiveDomain, name: str, image_format: str) -> str:
    """Another volume on the share, as a further disk of the domain."""
    request = updating.VolumeRequest(live.where, DesiredVolume(name, size=SIZE, format=image_format))
    volumes.ensure_present(request, Options(lock_timeout=5))
    driver = f"<driver name='qemu' type='{image_format}'/>"
    return f"</disk><disk type='file' device='disk'>{driver}<source file='{live.path}/{name}'/><target dev='vdb' bus='virtio'/>"


@pytest.mark.parametrize("runs", [True, False], ids=["running", "off"])
def test_a_group_at_one_instant(make_domain: Callable[..., LiveDomain], runs: bool) -> None:
    """Both disks of the domain, and a volume that nobody has open, by one call of libvirt's."""
    live = make_domain()
    more = second_disk(live, "w", "qcow2")
    volumes.ensure_present(updating.VolumeRequest(live.where, DesiredVolume("o", size=SIZE, format="qcow2")), Options(lock_timeout=5))
    guest = live.run(more=more)
    guest.scribble(1)
    other = DomainGuest(live.libvirtd, live.name, bytearray(SIZE))
    other.write(4096, 4096, 8, disk=1)
    if not runs:
        guest.quit()
    expected = digest_of(guest.data), digest_of(other.data)
    done = groups.take_group(live.where, ["v", "w", "o"], DesiredSnapshot("g"), live.options())
    assert all(not isinstance(one, StorageError) and one.changed for one in done)
    if not runs:
        live.run(define=False)
    guest.scribble(2)
    other.write(8192, 4096, 9, disk=1)
    guest.kill()
    assert (digest(str(live.path / "v"), "raw"), digest(str(live.path / "w"), "qcow2")) == expected
    assert (digest(str(live.path / "v.g"), "qcow2"), digest(str(live.path / "w.g"), "qcow2")) == (digest_of(guest.data), digest_of(other.data))
    assert (live.path / "o.g").exists()


_BY_BINDING = """
import sys
from ansible_collections.remotefs.storage.plugins.module_utils import command
from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt import binding
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

path, uri, domain, task, *names = sys.argv[1:]
assert binding.is_there()
where, options = Candidates((Share(path, path, "directory"),)), Options(lock_timeout=5, attachment=Attachment(uri=uri, domain=domain))
if task == "grow":
    volumes.ensure_present(updating.VolumeRequest(where, DesiredVolume("v", size=int(names[0]))), options)
for name in names if task == "take" else ():
    snapshots.take(snapshots.SnapshotRequest(where, "v", DesiredSnapshot(name)), options)
if task == "delete":
    snapshots.delete(where, "v", names, options)
assert "virsh" not in command.STARTED.programs, command.STARTED.programs
"""


def test_by_the_binding(make_domain: Callable[..., LiveDomain]) -> None:
    """The system's Python has libvirt's binding: virsh is not used."""
    if subprocess.run(["/usr/bin/python3", "-c", "import libvirt"], capture_output=True, check=False).returncode != 0:
        pytest.skip("missing: python3-libvirt")
    live = make_domain("qcow2")
    guest = live.run()
    tree = os.path.dirname(next(iter(sys.modules["ansible_collections"].__path__)))

    def task(*words: str) -> None:
        command = ["/usr/bin/python3", "-c", _BY_BINDING, str(live.path), live.libvirtd.uri, live.name, *words]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": tree}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    for number, name in enumerate("abc"):
        guest.scribble(number)
        live.points[name] = digest_of(live.data)
        task("take", name)
    task("grow", str(2 * SIZE))
    live.data += bytes(SIZE)
    guest.scribble(9)
    with guest.busy():
        task("delete", "a", "c")
    live.forget("a", "c")
    live.require_right()
    with guest.busy():
        task("delete", "b")
    live.forget("b")
    live.require_right()
    live.require_nothing_left()
    guest.quit()
    task("take", "off")
    assert live.defined() == ["v.off", "qcow2"]
