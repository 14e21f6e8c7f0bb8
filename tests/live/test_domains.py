# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots, deletions and growth of volumes of libvirt's domains, off and running; by content, and by what libvirt starts next."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from .guest import SIZE
from .libvirtd import LiveDomain

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


@pytest.mark.parametrize("transient", [False, True], ids=["persistent", "transient"])
@pytest.mark.parametrize("image_format", FORMATS)
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
