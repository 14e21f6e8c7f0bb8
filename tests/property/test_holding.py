# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What QEMU has merged is seen in the tables, and each entry that it would have failed to write is missed."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2

from .examples import property_settings
from .moving_world import run

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

KIB = 1024
SIZE = 1 << 20
COMMANDS = st.tuples(st.sampled_from(["write -P 7", "write -P 9", "write -P 0", "write -z", "write -z -u", "discard"]), st.integers(0, 31), st.integers(1, 12))
WRITES = st.lists(COMMANDS, max_size=5)
OPTIONS = st.sampled_from(["", "compat=0.10", "cluster_size=4096", "cluster_size=256k", "preallocation=metadata", "packed"])
BENEATH = st.sampled_from(["nothing", "raw", "qcow2"])


class Chain:
    """``base`` on ``beneath`` or on nothing, and overlays ``l0``, ``l1``, … on it."""

    def __init__(self, path: Path, options: str, beneath: str, base: list, layers: list[list]) -> None:
        self.path = path
        under: list[str] = []
        if beneath != "nothing":
            run("qemu-img", "create", "-q", "-f", beneath, str(path / "beneath"), str(SIZE))
            run("qemu-io", "-f", beneath, "-c", f"write -P 5 0 {SIZE // 2}", str(path / "beneath"))
            under = ["-b", "beneath", "-F", beneath]
        given = ["-o", options] if options not in ("", "packed") and (beneath == "nothing" or "prealloc" not in options) else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *given, *under, str(path / "base"), str(SIZE))
        self.write("base", base)
        if options == "packed":
            onto = ["-B", "beneath", "-F", beneath] if under else []
            run("qemu-img", "convert", "-q", "-c", "-O", "qcow2", *onto, str(path / "base"), str(path / "packed"))
            os.replace(path / "packed", path / "base")
        self.layers = [f"l{number}" for number in range(len(layers))]
        for number, writes in enumerate(layers):
            backing = self.layers[number - 1] if number else "base"
            run("qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", str(path / self.layers[number]))
            self.write(self.layers[number], writes)

    def write(self, file: str, writes: list) -> None:
        for command, position, count in writes:
            start, length = position * 32 * KIB, count * 16 * KIB
            run("qemu-io", "-f", "qcow2", "-c", f"{command} {start} {min(length, SIZE - start)}", str(self.path / file))

    def shows(self, file: str) -> bytes:
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(self.path / file), str(self.path / "shown"))
        return (self.path / "shown").read_bytes()

    def is_held(self, target: str, layers: list[str], raw: str | None = None, is_above: bool = False) -> bool:
        names = [target, *layers, *([raw] if raw else [])]
        fds = [os.open(self.path / name, os.O_RDONLY) for name in names]
        try:
            qcow2.require_held(fds[0], fds[1 : 1 + len(layers)], fds[-1] if raw else None, is_above)
        except qcow2.Qcow2Error:
            return False
        finally:
            for fd in fds:
                os.close(fd)
        return True


def entries(path: Path) -> dict[tuple[int, int], tuple[int, bytes]]:
    """(Index in the L1 table, position) → (offset in the file, the entry)."""
    data = path.read_bytes()
    bits, l1_entries, l1_offset = struct.unpack(">I", data[20:24])[0], struct.unpack(">I", data[36:40])[0], struct.unpack(">Q", data[40:48])[0]
    found = {}
    for index in range(l1_entries):
        table = struct.unpack(">Q", data[l1_offset + index * 8 :][:8])[0] & 0x00FFFFFFFFFFFE00
        for position in range((1 << bits) // 8) if table else ():
            offset = table + position * 8
            found[index, position] = offset, data[offset : offset + 8].ljust(8, b"\0")
    return found


def require_that_losses_are_seen(chain: Chain, target: str, before: dict, right: bytes, **how: object) -> None:
    """Each entry that the merge has changed is put back. If the image then shows something else, that must be seen."""
    path = chain.path / target
    whole = path.read_bytes()
    for place, (offset, entry) in list(entries(path).items()):
        old = before.get(place, (0, bytes(8)))[1]
        if old == entry:
            continue
        path.write_bytes(whole[:offset] + old + whole[offset + 8 :])
        if chain.shows(target) != right:
            assert not chain.is_held(target, **how), f"the entry {place} is lost, and nobody sees it"  # type: ignore[arg-type]
    path.write_bytes(whole)


@given(OPTIONS, BENEATH, WRITES, st.lists(WRITES, min_size=1, max_size=3))
@property_settings(30)
def test_commits(options: str, beneath: str, base: list, layers: list[list]) -> None:
    with tempfile.TemporaryDirectory(prefix="remotefs-property-") as directory:
        chain = Chain(Path(directory), options, beneath, base, layers)
        before, right, top = entries(chain.path / "base"), chain.shows(chain.layers[-1]), chain.layers[-1]
        run("qemu-img", "commit", "-q", "-d", "-f", "qcow2", "-b", str(chain.path / "base"), str(chain.path / top))
        assert chain.shows("base") == right
        over = chain.layers[::-1]
        assert chain.is_held("base", over)
        require_that_losses_are_seen(chain, "base", before, right, layers=over)


@pytest.mark.parametrize("beneath", ["nothing", "raw"])
@pytest.mark.parametrize("options", ["", "compat=0.10", "packed"])
def test_zeros_over_data(tmp_path: Path, options: str, beneath: str) -> None:
    chain = Chain(tmp_path, options, beneath, [("write -P 7", 0, 32)], [[("write -z", 2, 8), ("write -z -u", 12, 4)]])
    before, right = entries(tmp_path / "base"), chain.shows("l0")
    run("qemu-img", "commit", "-q", "-d", "-f", "qcow2", "-b", str(tmp_path / "base"), str(tmp_path / "l0"))
    assert chain.is_held("base", ["l0"]) and chain.shows("base") == right
    require_that_losses_are_seen(chain, "base", before, right, layers=["l0"])


@given(BENEATH, WRITES, st.lists(WRITES, min_size=2, max_size=3))
@property_settings(30)
def test_pulls(beneath: str, base: list, layers: list[list]) -> None:
    """Onto the base, or onto nothing."""
    with tempfile.TemporaryDirectory(prefix="remotefs-property-") as directory:
        chain = Chain(Path(directory), "", beneath, base, layers)
        top, over = chain.layers[-1], chain.layers[-2::-1]
        before, right = entries(chain.path / top), chain.shows(top)
        run("qemu-img", "rebase", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", str(chain.path / top))
        assert chain.shows(top) == right
        everything = all(chain.shows(name) == right for name in over)
        if not everything:  # qemu-img compares contents, and leaves out what the base shows anyway; QEMU's own job copies it all
            require_that_losses_are_seen(chain, top, before, right, layers=over, is_above=True)
