# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""More than a thousand volumes in each task, one of which meets something that stands at its name; contents by hash."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from .test_examples import play
from .test_return_detail import check

COUNT, SIZE = 1100, 256 << 10
TAKEN = 500
WRITTEN_LATER = (0, 499, COUNT - 1)
NAMES = [f"v{number}" for number in range(COUNT)]
VOLUMES = [{"name": name} for name in NAMES]
POINTS = [{"volume": name, "name": "one"} for name in NAMES]


def of_volumes(**options: object) -> dict:
    return {
        "remotefs.storage.remotefs_volume": {"share": "SHARE", "volumes": VOLUMES, "return_detail": False, **options},
        "register": "found",
    }


def of_snapshots(**options: object) -> dict:
    return {
        "remotefs.storage.remotefs_snapshot": {"share": "SHARE", "snapshots": POINTS, "return_detail": False, **options},
        "register": "found",
    }


def changed(count: int) -> dict:
    return check(f"found.results | length == {COUNT}", f"found.results | selectattr('changed') | length == {count}")


def expected(number: int) -> bytes:
    content = bytearray(str(number).encode().ljust(SIZE, b"\0"))
    if number in WRITTEN_LATER:
        content[65536:131072] = b"\7" * 65536
    return bytes(content)


@pytest.mark.slow
def test_lives_of_many(tmp_path: Path, ansible_environment: dict) -> None:
    share = tmp_path / "share"
    share.mkdir()
    os.mkfifo(share / NAMES[TAKEN])
    failed = "found.results | selectattr('failed') | map(attribute='name') | list"
    create = of_volumes(size=str(SIZE))
    play(
        [{**create, "ignore_errors": True}, changed(COUNT - 1), check("found is failed", f"{failed} == ['{NAMES[TAKEN]}']")],
        share,
        tmp_path,
        ansible_environment,
    )
    (share / NAMES[TAKEN]).unlink()
    play([create, changed(1)], share, tmp_path, ansible_environment)
    for number, name in enumerate(NAMES):
        with open(share / name, "r+b") as disk:
            disk.write(str(number).encode())
    play([of_snapshots(), changed(COUNT), of_snapshots(), changed(0)], share, tmp_path, ansible_environment)
    for number in WRITTEN_LATER:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 64k 64k", f"{NAMES[number]}.one"], check=True, cwd=share)
    play([of_snapshots(state="absent"), changed(COUNT)], share, tmp_path, ansible_environment)
    assert not list(share.glob("*.one"))
    for number, name in enumerate(NAMES):
        assert hashlib.sha256((share / name).read_bytes()).digest() == hashlib.sha256(expected(number)).digest(), name
    play([of_volumes(state="absent"), changed(COUNT)], share, tmp_path, ansible_environment)
    assert list(share.glob("v*")) == []
