# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data is taken out of an image in place: it stays valid for QEMU, shows what lies beneath, and its blocks come back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import making_room
from ansible_collections.remotefs.storage.plugins.module_utils.errors import StorageError
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory

MIB = 1 << 20
KINDS = {
    "as QEMU makes it": "",
    "version 2": "compat=0.10",
    "tiny clusters": "cluster_size=512",
    "large clusters": "cluster_size=2M",
    "extended entries": "extended_l2=on",
    "lazy counts": "lazy_refcounts=on",
    "narrow counts": "refcount_bits=1",
}


def qemu_img(*arguments: object) -> str:
    return subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def make_overlay(folder: Path, options: str) -> tuple[bytes, Path]:
    base = os.urandom(65536) + bytes(8 * MIB - 65536)
    (folder / "base").write_bytes(base)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", *(["-o", options] if options else []), folder / "over")
    writes = [part for place in ("0 64k", "1M 2M", "8190k 2k") for part in ("-c", f"write -q -P 7 {place}")]
    subprocess.run(["qemu-io", "-f", "qcow2", *writes, str(folder / "over")], check=True)
    return base, folder / "over"


@pytest.mark.parametrize("holes", [True, False], ids=["holes", "no holes"])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_data_is_taken_out(tmp_path: Path, options: str, holes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    base, over = make_overlay(tmp_path, options)
    before = over.stat()
    if not holes:
        monkeypatch.setattr(making_room.allocate, "make_hole", lambda *_arguments: False)
    with ShareDirectory(Share(str(tmp_path), str(tmp_path), "directory")) as directory:
        assert making_room.take_data_out(directory, "over", ["over", "not there"])
    after = over.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert after.st_blocks * 512 <= before.st_blocks * 512 - 2 * MIB
    found = subprocess.run(["qemu-img", "check", "--output=json", str(over)], check=False, capture_output=True)
    assert found.returncode in (0, 3) and not json.loads(found.stdout).get("corruptions"), found.stdout  # 3: some clusters are counted and unused
    qemu_img("convert", "-O", "raw", over, tmp_path / "shown")
    assert (tmp_path / "shown").read_bytes() == base
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 5 3M 64k", "-c", "read -q -P 5 3M 64k", str(over)], check=True)


def test_what_more_leads_to_is_left(tmp_path: Path) -> None:
    _base, over = make_overlay(tmp_path, "")
    qemu_img("bitmap", "--add", over, "backup")
    before = over.read_bytes()
    with open(over, "r+b") as stream, pytest.raises(qcow2.Qcow2Error):
        qcow2.drop_data(stream.fileno())
    assert over.read_bytes() == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    _base, over = make_overlay(tmp_path, "")
    before = over.read_bytes()
    (tmp_path / "link").symlink_to("over")
    with ShareDirectory(Share(str(tmp_path), str(tmp_path), "directory")) as directory, pytest.raises(StorageError):
        making_room.take_data_out(directory, "link", ["link"])
    assert over.read_bytes() == before
