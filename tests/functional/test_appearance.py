# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file that is adopted as raw because the user says so, and looks like something else, is adopted with a warning that names what."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume

from .test_refusals import MIB, Store


def made_by_qemu_img(image_format: str, *options: str) -> Callable[[Path], object]:
    return lambda path: subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *options, str(path), "4M"], check=True)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "vmdk": (made_by_qemu_img("vmdk"), "VMDK"),
    "vmdk, flat": (made_by_qemu_img("vmdk", "-o", "subformat=monolithicFlat"), "VMDK descriptor"),
    "vdi": (made_by_qemu_img("vdi"), "VDI"),
    "vhdx": (made_by_qemu_img("vhdx"), "VHDX"),
    "vpc": (made_by_qemu_img("vpc"), "VHD"),
    "vpc, fixed": (made_by_qemu_img("vpc", "-o", "subformat=fixed"), "VHD"),
    "qed": (made_by_qemu_img("qed"), "QED"),
    "parallels": (made_by_qemu_img("parallels"), "Parallels"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(bytes(4096))), "gzip"),
    "bzip2": (lambda path: path.write_bytes(bz2.compress(bytes(4096))), "bzip2"),
    "xz": (lambda path: path.write_bytes(lzma.compress(bytes(4096))), "xz"),
}


def adopted(store: Store, check: bool) -> list[str]:
    warnings: list[str] = []
    options = store.options(check=check, warn=warnings.append)
    volumes.ensure_present(updating.VolumeRequest(store.candidates, DesiredVolume("x", format="raw")), options)
    return [warning for warning in warnings if "raw disk, as you said" in warning]


@pytest.mark.parametrize("kind", KINDS)
def test_another_format_that_is_said_to_be_raw(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    make, told = KINDS[kind]
    make(store.path / "x")
    for check in (True, False):
        (warning,) = adopted(store, check)
        assert told in warning and "x" in warning
    assert adopted(store, False) == []  # it is on record now


def test_a_raw_disk_is_adopted_without_a_word(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for content in (b"", bytes(MIB), b"\xeb\x63\x90" + bytes(507) + b"\x55\xaa"):
        (store.path / "x").write_bytes(content or b"\0" * 512)
        assert adopted(store, True) == []
