# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of docs/coming-from.md as they stand: what others have made is taken over, with its content and without a new file."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from .test_clones import content, write
from .test_documents import blocks, play
from .test_examples import replaced
from .test_refusals import MIB, Store

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "coming-from.md").read_text()
MOUNT, BY_HAND, AS_VOLUMES, CINDER, POOL = blocks(PAGE)
Played = Callable[..., str]


@pytest.fixture
def played(store: Store, tmp_path: Path, ansible_environment: dict) -> Played:
    """Plays a playbook on this host, where a directory takes the share's place."""
    def run(book: list, *options: str, **places: str) -> str:
        words = {"hypervisors": "localhost", "/srv/vols": str(store.path), **places}
        return play(json.loads(replaced(json.dumps(book), words)), tmp_path, {**ansible_environment, "ANSIBLE_GATHERING": "explicit"}, *options)

    return run


def changed(said: str) -> int:
    (found,) = re.findall(r"changed=(\d+)", said)
    return int(found)


def image(path: Path, *more: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, str(path), "4M"], check=True)


def fill(path: Path, value: int, where: str = "0 64k") -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P {value} {where}", str(path)], check=True)


@pytest.mark.slow
def test_an_fstab_line_stays_as_it_is(played: Played, tmp_path: Path) -> None:
    """That ansible.posix.mount wrote: in check mode only the mount is foretold, and a task for fstab alone leaves every byte."""
    fstab, line = tmp_path / "fstab", f"nas1:/vols {tmp_path}/mounted nfs hard,vers=4.2 0 0\n"
    fstab.write_text(f"# by hand\n{line}")
    (book,) = MOUNT
    (task,) = book["tasks"]
    (options,) = (value for key, value in task.items() if key != "name")
    assert set(options) == {"src", "path", "opts"}

    def with_fstab(**more: str) -> list:
        return [{**book, "tasks": [{"remotefs.storage.remotefs_share": {**options, "fstab": str(fstab), **more}}]}]

    place = {"/srv/vols": str(tmp_path / "mounted")}
    said = played(with_fstab(), "--check", "--diff", **place)
    told = [row for row in said.splitlines() if row.lstrip("+- ").startswith('"fstab"')]
    assert changed(said) == 1 and len(told) == 1 and told[0].startswith(" ")
    (tmp_path / "mounted").mkdir()
    assert changed(played(with_fstab(state="present"), **place)) == 0
    assert fstab.read_text() == f"# by hand\n{line}"
    assert changed(played(with_fstab(state="present", opts="hard,vers=4.1"), "--check", **place)) == 1


@pytest.mark.slow
def test_loops_of_qemu_img(store: Store, played: Played) -> None:
    """Overlays that a loop made are linked clones afterwards, with their inodes and their content."""
    image(store.path / "golden.qcow2")
    fill(store.path / "golden.qcow2", 1)
    assert changed(played(BY_HAND)) == 1 and changed(played(BY_HAND)) == 0
    fill(store.path / "web1.qcow2", 2, "64k 64k")
    inodes = {path.name: path.stat().st_ino for path in store.path.glob("*.qcow2")}
    assert set(inodes) == {"golden.qcow2", "web1.qcow2", "web2.qcow2"}
    assert changed(played(AS_VOLUMES)) == 3 and changed(played(AS_VOLUMES)) == 0
    assert {name: (store.path / name).stat().st_ino for name in inodes} == inodes
    assert content(store, "web1.qcow2") == b"\1" * 65536 + b"\2" * 65536 + bytes(4 * MIB - 131072)
    assert content(store, "web2.qcow2") == content(store, "web3.qcow2") == b"\1" * 65536 + bytes(4 * MIB - 65536)
    for name in ("web1.qcow2", "web2.qcow2", "web3.qcow2"):
        volume = store.info(name)
        assert volume["parent"]["volume"] == "golden.qcow2" and [point["name"] for point in volume["snapshots"]] == ["before-upgrade"]
    remove = [{"hosts": "localhost", "tasks": [{"remotefs.storage.remotefs_volume": {
        "share": "/srv/vols", "name": "golden.qcow2", "state": "absent", "cascade": True}}]}]
    with pytest.raises(AssertionError, match="has_dependents"):
        played(remove)


@pytest.mark.slow
def test_what_cinder_has(store: Store, played: Played, tmp_path: Path) -> None:
    """A list as Cinder has it, a volume with a snapshot as its NFS driver leaves it, and one of which nothing says the format."""
    first, second, point = (f"volume-{number}0000000-0000-4000-8000-000000000000" for number in "123")
    (store.path / first).write_bytes(b"\5" * MIB)
    name = f"{first}.{point.partition('-')[2]}"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", first, "-F", "raw", name], cwd=store.path, check=True)
    (store.path / f"{first}.info").write_text(json.dumps({"active": name, point.partition("-")[2]: name}))
    (store.path / second).write_bytes(bytes(2 * MIB))
    (tmp_path / "nfs_shares").write_text(f"# Cinder's\n{store.path}\n")
    before = store.state()
    said = played(CINDER, **{"/etc/cinder/nfs_shares": str(tmp_path / "nfs_shares")})
    assert changed(said) == 0 and store.state() == before
    rows = {row.split()[0]: row.split() for row in re.findall(r'"(volume-.*?)"', said)}
    assert set(rows) == {first, second} and {"qcow2", "raw"} <= set(rows[first]) and "?" in rows[second]


@pytest.mark.slow
def test_disks_of_a_pool(store: Store, played: Played) -> None:
    image(store.path / "db01.qcow2")
    fill(store.path / "db01.qcow2", 3)
    wanted = b"\3" * 65536 + bytes(4 * MIB - 65536)
    place = {"/var/lib/libvirt/images": str(store.path)}
    said = played(POOL, **place)
    assert changed(said) == 2 and f"qcow2 {store.path}/db01.qcow2.before-upgrade" in said and content(store, "db01.qcow2") == wanted
    write(store, "db01.qcow2", 9)
    assert changed(played(POOL, **place)) == 0 and content(store, "db01.qcow2") == b"\x09" * 65536 + bytes(4 * MIB - 65536)


def test_words_of_the_tables_are_options() -> None:
    """States and options that the tables promise are in the documentation of the module beside them."""
    modules = Path(__file__).resolve().parents[2] / "plugins" / "modules"
    share, volume, snapshot = ((modules / f"remotefs_{name}.py").read_text() for name in ("share", "volume", "snapshot"))
    for word in ("persist:", "shares_file:", "credentials:", "shares:", "fstab:", "unmounted", "remounted"):
        assert word in share and word.rstrip(":") in PAGE
    for word in ("moved_from:", "image:", "checksum:", "volumes:"):
        assert word in volume and word.rstrip(":") in PAGE
    for word in ("keep:", "reverted", "attachment:"):
        assert word in snapshot + (modules.parent / "doc_fragments" / "store.py").read_text() and word.rstrip(":") in PAGE
