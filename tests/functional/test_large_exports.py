# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports of large disks of zeros: what they cost and when they end; and what a task itself returns."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import types
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import exporting as writing
from ansible_collections.remotefs.storage.plugins.module_utils.pace import OutOfTime

from .test_exporting import export, lived
from .test_refusals import Store


def test_nobody_waits_for_checksums_of_zeros_that_nobody_wants(store: Store, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large content there is none, also where the file is compared: hashing terabytes of zeros takes hours."""
    store.present(size=1 << 40)
    first = export(store, out / "disk", format="qcow2")
    hashed: list[int] = []

    class Counting:
        def __init__(self) -> None:
            self._sum = hashlib.sha256()

        def update(self, data: bytes) -> None:
            hashed.append(len(data))
            self._sum.update(data)

        def hexdigest(self) -> str:
            return self._sum.hexdigest()

    monkeypatch.setattr(writing, "hashlib", types.SimpleNamespace(sha256=Counting))
    again = export(store, out / "disk", format="qcow2")
    assert not again.changed and again.sums == first.sums and sum(hashed) == (out / "disk").stat().st_size


def test_holes_of_an_image_that_qemu_reads_are_not_read(store: Store, out: Path) -> None:
    """A disk of 200 GiB without data, as VMDK: looking whether it is the same takes no time."""
    store.present(size=200 << 30, format="qcow2")
    export(store, out / "disk", format="vmdk", hashes_content=False)
    begin = time.monotonic()
    assert not export(store, out / "disk", format="vmdk", hashes_content=False).changed
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_the_time_holds_for_zeros_too(store: Store, out: Path, image_format: str) -> None:
    """They move no data, but reading and hashing 3 TiB of them takes hours."""
    store.present(size=3 << 40)
    begin = time.monotonic()
    with pytest.raises(OutOfTime):
        export(store, out / "disk", format=image_format, hashes_content=True, timeout=0.5)
    assert time.monotonic() - begin < 20 and not os.listdir(out)


def test_the_size_that_a_task_returns_is_that_of_the_disk(store: Store, out: Path, ansible_environment: dict) -> None:
    """Not the length of the file, which Ansible itself would say of whatever a result calls ``dest``."""
    life = lived(store, 3)
    words = f"share={store.path} volume=vol dest={out / 'disk'} format=qcow2"
    ansible = ["ansible", "localhost", "-m", "remotefs.storage.remotefs_image", "-a", words]
    for changed in (True, False):
        done = subprocess.run(ansible, env=ansible_environment, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout.partition("=> ")[2])
        assert (result["changed"], result["size"], result["bytes"]) == (changed, len(life.shown), (out / "disk").stat().st_size)
