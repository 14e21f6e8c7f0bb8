# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers that do not spell their backing file as they should: they are read as QEMU reads them, and healed by the next task."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2

from .test_clones import content
from .test_refusals import MIB, Store, refused


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A raw file ``focal.img`` of ones, which nothing records."""
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "focal.img").write_bytes(b"\1" * MIB)
    return Store(tmp_path / "share")


def overlay(store: Store, file: str, name: str = "focal.img", spelt: bytes | None = b"raw") -> None:
    """An overlay of which the backing format is spelt otherwise, or not at all."""
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", store.path / file, str(MIB)], check=True)
    if spelt == b"raw":
        return
    with open(store.path / file, "r+b") as stream:
        data = bytearray(stream.read(4096))
        at = data.index(b"\xe2\x79\x2a\xca")
        rest = data[at + 16 : data.index(name.encode())]
        told = b"" if spelt is None else b"\xe2\x79\x2a\xca" + len(spelt).to_bytes(4, "big") + spelt.ljust((len(spelt) + 7) // 8 * 8, b"\0")
        data[at : at + 16 + len(rest)] = (told + bytes(8)).ljust(16 + len(rest), b"\0")
        stream.seek(0)
        stream.write(data)


def header(store: Store, file: str) -> tuple[str | None, str | None, bool]:
    with open(store.path / file, "rb") as stream:
        found = qcow2.read_header(stream.fileno())
    return found.backing_file, found.backing_format, found.alias


def test_the_format_comes_from_the_record_of_who_owns_the_file(store: Store) -> None:
    overlay(store, "vm", spelt=None)
    found = refused(store, errors.InvalidParameter, lambda check: store.present("vm", format="qcow2", check=check))
    assert "adopt focal.img first" in str(found) and "format: raw" not in str(found)
    store.present("focal.img", format="raw")
    done = store.present("vm", format="qcow2")
    assert done.changed and done.after["parent"] == {"volume": "focal.img", "snapshot": None}
    assert header(store, "vm") == ("focal.img", "raw", False) and not store.present("vm", format="qcow2").changed
    assert content(store, "vm") == b"\1" * MIB and store.info("focal.img")["dependents"] == [{"volume": "vm", "snapshot": None}]
    refused(store, errors.HasDependents, lambda check: store.absent("focal.img", check=check))


def test_a_record_that_outlived_its_file_does_not_say_the_format(store: Store) -> None:
    store.present("focal.img", format="raw")
    overlay(store, "vm", spelt=None)
    (store.path / "focal.img").rename(store.path.parent / "old")
    (store.path / "focal.img").write_bytes(b"\2" * MIB)
    refused(store, errors.InvalidParameter, lambda check: store.present("vm", format="qcow2", check=check))


def test_what_is_said_is_said_of_the_volumes_own_base(store: Store) -> None:
    """Never of what it rests on: that has a record of its own, or none."""
    overlay(store, "vm")
    assert store.present("vm", format="qcow2").after["base_format"] == "raw"
    refused(store, errors.Conflict, lambda check: store.present("focal.img", format="qcow2", check=check))


@pytest.mark.parametrize("spelt", [b"file", b"host_device", None])
@pytest.mark.parametrize("task", ["present", "snapshot", "delete"])
def test_a_protocol_reads_as_raw_and_is_healed(store: Store, spelt: bytes | None, task: str) -> None:
    """As QEMU spells the format of a raw file that it has open without a format layer."""
    (store.path / "focal.img").rename(store.path / "vol")
    store.present(format="raw")
    store.snapshot("s1")
    store.snapshot("s2")
    overlay(store, "vol.s1", "vol", spelt)
    assert store.info()["chain"][1]["backing_file"] == "vol" and store.info()["base_format"] == "raw"
    before = store.state()
    assert store.present(check=True).changed and store.state() == before
    if task == "present":
        done = store.present()
        assert [step["step"] for step in done.actions] == ["repoint"] and not store.present().changed
    else:
        done = store.snapshot("s3") if task == "snapshot" else store.delete("s2")
        assert done.actions[0]["step"] == "repoint"
    assert header(store, "vol.s1") == ("vol", "raw", False)
    assert content(store, "vol") == b"\1" * MIB


@pytest.mark.parametrize("spelt", [b"nbd", b"vmdk", b"host_device2", b"RAW", b""])
def test_other_formats_are_refused(store: Store, spelt: bytes) -> None:
    overlay(store, "vm", spelt=spelt)
    store.present("focal.img", format="raw")
    refused(store, errors.UnsafeImage, lambda check: store.present("vm", format="qcow2", check=check))


@pytest.mark.parametrize("spelt", ["{share}/vol", "{share}//vol", "{share}/./vol", "{link}/vol", "./vol", ".//vol", "{share}/../share/vol", "../share/vol"])
def test_paths_into_the_share_are_healed(store: Store, spelt: str) -> None:
    (store.path / "focal.img").rename(store.path / "vol")
    (store.path.parent / "link").symlink_to(store.path)
    store.present(format="raw")
    store.snapshot("s1")
    overlay(store, "vol.s1", spelt.format(share=store.path, link=store.path.parent / "link"))
    if ".." in spelt:
        refused(store, errors.UnsafeImage, lambda check: store.present(check=check))
        return
    assert store.present().changed and not store.present().changed
    assert header(store, "vol.s1") == ("vol", "raw", False) and content(store, "vol") == b"\1" * MIB


def test_paths_elsewhere_are_refused(store: Store) -> None:
    elsewhere = store.path.parent / "elsewhere"
    elsewhere.mkdir()
    os.link(store.path / "focal.img", elsewhere / "focal.img")
    for name in (str(elsewhere / "focal.img"), "sub/focal.img", "/focal.img", "//focal.img"):
        overlay(store, "vm", name)
        refused(store, errors.UnsafeImage, lambda check: store.present("vm", format="qcow2", check=check))
