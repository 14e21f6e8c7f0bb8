# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused of domains before anything is changed, in check mode and in the run: the files, the domain and its definition stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse, StorageError, ToolFailed

from .guest import SIZE
from .libvirtd import LiveDomain


def refused(live: LiveDomain, task: Callable[..., object], kind: type[StorageError] = InUse) -> str:
    """The error's words. The run and check mode say the same, and neither changes anything."""
    told = []
    defined = live.libvirtd("dumpxml", "--inactive", live.name)
    if live.guest is not None and live.guest.alive:
        live.guest.flush()  # type: ignore[attr-defined]
    before = live.tree()
    for check in (True, False):
        with pytest.raises(kind) as error:
            task(check=check)
        told.append(str(error.value))
        assert live.tree() == before
        assert live.libvirtd("dumpxml", "--inactive", live.name) == defined
    assert told[0] == told[1]
    return told[0]


def take(live: LiveDomain, **more: Any) -> Callable[..., object]:
    return lambda **mode: live.take("s", **more, **mode)


def test_without_attachment_a_domain_that_runs(make_domain: Callable[..., LiveDomain]) -> None:
    live = make_domain()
    live.run()
    assert "has it open" in refused(live, take(live, attachment=None))


def test_a_domain_that_is_not_there(make_domain: Callable[..., LiveDomain]) -> None:
    """The definition of the one that has the volume would not follow. If none has it, that is as if it was off."""
    live = make_domain()
    live.define()
    wrong = replace(live.attachment, domain="nobody")
    assert "there is no domain nobody at" in refused(live, take(live, attachment=wrong))
    live.run(define=False)
    assert "there is no domain nobody at" in refused(live, take(live, attachment=wrong))
    free = make_domain()
    assert free.take("s", attachment=wrong).changed


def test_libvirt_that_is_not_there(make_domain: Callable[..., LiveDomain]) -> None:
    live = make_domain()
    live.define()
    nowhere = Attachment(uri="qemu+unix:///system?socket=/nowhere", domain=live.name)
    assert "cannot be reached" in refused(live, take(live, attachment=nowhere), ToolFailed)


@pytest.mark.parametrize("runs", [False, True], ids=["off", "running"])
def test_another_volumes_domain(make_domain: Callable[..., LiveDomain], runs: bool) -> None:
    live, other = make_domain(), make_domain()
    (other.run if runs else other.define)()
    live.define()
    assert "as no disk" in refused(live, take(live, attachment=other.attachment))


@pytest.mark.parametrize("runs", [False, True], ids=["off", "running"])
@pytest.mark.parametrize("word", ["readonly", "shareable"])
def test_a_disk_that_is_no_plain_one(make_domain: Callable[..., LiveDomain], word: str, runs: bool) -> None:
    live = make_domain()
    (live.run if runs else live.define)(more=f"<{word}/>", cache="none")
    assert f"is {word}" in refused(live, take(live))


def test_a_definition_that_differs(make_domain: Callable[..., LiveDomain]) -> None:
    """The next start would be on another file."""
    live = make_domain()
    live.run()
    live.snapshot("a")
    live.libvirtd("define", "/dev/stdin", given=live.libvirtd("dumpxml", "--inactive", "--security-info", live.name).replace("/v.a", "/v"))
    assert "its definition says" in refused(live, take(live))
    live.guest.quit()  # type: ignore[union-attr]
    assert "would be started on" in refused(live, take(live))


@pytest.mark.parametrize("kind", ["snapshot", "checkpoint"])
def test_what_libvirt_keeps_of_the_disk(make_domain: Callable[..., LiveDomain], kind: str) -> None:
    live = make_domain("qcow2")
    live.run()
    live.libvirtd(f"{kind}-create-as", live.name, "kept", *(["--disk-only", "--diskspec", f"vda,file={live.path}/foreign"] if kind == "snapshot" else []))
    if kind == "snapshot":
        assert "writes to" in refused(live, take(live))
        live.libvirtd("blockcommit", live.name, "vda", "--active", "--pivot", "--wait")
    said = refused(live, take(live))
    assert "keeps a snapshot or a checkpoint" in said and "virsh" in said


def test_a_foreign_job(make_domain: Callable[..., LiveDomain]) -> None:
    live = make_domain("qcow2")
    live.run().scribble(1)
    copy = live.path.parent / "copy"
    live.libvirtd("blockcopy", live.name, "vda", str(copy), "--transient-job", "--wait")
    assert "job works on disk vda" in refused(live, take(live))


def test_memory_that_is_saved(make_domain: Callable[..., LiveDomain]) -> None:
    live = make_domain()
    live.run()
    live.libvirtd("managedsave", live.name)
    assert "is saved" in refused(live, take(live))


def test_an_image_that_another_process_has_open(make_domain: Callable[..., LiveDomain]) -> None:
    live = make_domain()
    live.run()
    with (live.path / "v").open("r+b"):
        pass  # this process itself does not count
    import subprocess

    with subprocess.Popen(["sleep", "60"], stdin=(live.path / "v").open("r+b")) as other:
        assert f"process {other.pid} has v open" in refused(live, take(live))
        other.kill()


def test_what_a_domain_cannot_lose_while_it_is_there(make_domain: Callable[..., LiveDomain]) -> None:
    from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, volumes

    live = make_domain()
    guest = live.run()
    live.snapshot("a")
    guest.scribble(1)
    assert "stop the machine" in refused(live, lambda **mode: snapshots.revert(live.where, "v", "a", True, live.options(**mode)))
    assert "stop the machine" in refused(live, lambda **mode: volumes.ensure_absent(live.where, "v", True, live.options(**mode)))
    live.guest.quit()  # type: ignore[union-attr]
    assert "detach it" in refused(live, lambda **mode: volumes.ensure_absent(live.where, "v", True, live.options(**mode)))
    live.snapshot("b")
    snapshots.revert(live.where, "v", "a", True, live.options())
    assert live.defined()[0] == live.info()["path"].rsplit("/", 1)[1]


def test_a_size_that_the_guest_has_not(make_domain: Callable[..., LiveDomain]) -> None:
    live = make_domain("qcow2")
    live.run()
    live.libvirtd("blockresize", live.name, "vda", f"{2 * SIZE}B")
    live.guest.flush()  # type: ignore[union-attr]
    assert live.take("s").changed, "the header says the new size, and so does info"
