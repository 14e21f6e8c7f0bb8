# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images store equal blocks once. Contents stay, whoever writes meanwhile and whoever is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest
import yaml

from ansible_collections.remotefs.storage.plugins.module_utils.operations import equal_blocks
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.pace import OutOfTime
from ansible_collections.remotefs.storage.plugins.module_utils.store.files import equal_blocks as blocks

from .test_clones import content, write
from .test_copies import mounted
from .test_examples import play
from .test_refusals import MIB, Store

NAMES = ("one", "two", "three")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A share on a file system that shares blocks, with three volumes that have mebibytes in common, at other places and below snapshots."""
    for directory in mounted(tmp_path / "image", "xfs", 320 * MIB, "-m", "reflink=1"):
        (directory / "share").mkdir()
        made = Store(directory / "share")
        for number, name in enumerate(NAMES):
            made.present(name, size=16 * MIB, format="qcow2" if name == "two" else "raw")
            for place in range(6):
                write(made, name, 1 + (place + number) % 8, f"{place}M 1M")
            made.snapshot("s1", name)
            write(made, name, 3, "9M 1M")
        yield made


def shared(store: Store, check: bool = False, **options: float) -> equal_blocks.Shared:
    found = equal_blocks.share(store.share, Options(check=check, **options))  # type: ignore[arg-type]
    if found.failure is not None:
        raise found.failure
    return found


def contents(store: Store) -> list[bytes]:
    """Of each volume, as it is and as its snapshot shows it."""
    return [found for name in NAMES for found in (content(store, name), point(store, name))]


def point(store: Store, name: str) -> bytes:
    _active, file = store.info(name)["chain"]
    target = store.path.parent / "point.raw"
    subprocess.run(["qemu-img", "convert", "-f", file["format"], "-O", "raw", store.path / file["file"], target], check=True)
    return target.read_bytes()


def used(store: Store) -> int:
    """Bytes of its file system that are taken."""
    os.sync()
    told = os.statvfs(store.path)
    return (told.f_blocks - told.f_bfree) * told.f_frsize


def test_equal_blocks_are_stored_once_and_contents_stay(store: Store) -> None:
    before, room = contents(store), used(store)
    foretold = shared(store, check=True)
    assert foretold.bytes >= 10 * MIB and not foretold.why and used(store) == room
    assert shared(store) == foretold and contents(store) == before
    assert room - used(store) >= foretold.bytes - MIB, "the room is free again"
    assert shared(store).bytes == 0 and shared(store, check=True).bytes == 0, "the second time there is nothing to do"
    write(store, "one", 9, "9M 1M")
    assert contents(store)[1:] == before[1:] and content(store, "one") != before[0], "a write reaches one of them alone"


def test_who_writes_meanwhile_loses_nothing(store: Store) -> None:
    """A guest writes what others have too, over and over, while blocks are shared."""
    target, model, ends = Path(store.info("two")["path"]), bytearray(), threading.Event()
    model[:] = target.read_bytes()
    chance = random.Random(7)

    def guest() -> None:
        with target.open("r+b", buffering=0) as stream:
            while not ends.is_set():
                data, place = bytes([chance.randrange(1, 9)]) * (128 << 10), chance.randrange(4, len(model) // (128 << 10)) * (128 << 10)
                stream.seek(place)
                stream.write(data)
                model[place : place + len(data)] = data

    others = [content(store, name) for name in ("one", "three")]
    writer = threading.Thread(target=guest)
    writer.start()
    try:
        for _turn in range(5):
            shared(store)
    finally:
        ends.set()
        writer.join()
    assert target.read_bytes() == model and [content(store, name) for name in ("one", "three")] == others


def test_a_kill_leaves_nothing_to_repair(store: Store) -> None:
    before, state = contents(store), sorted(path.name for path in store.path.rglob("*"))
    for delay in (0.0, 0.01, 0.02, 0.04):
        child = os.fork()
        if child == 0:
            shared(store)
            os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert contents(store) == before and sorted(path.name for path in store.path.rglob("*")) == state
    shared(store)
    assert contents(store) == before and shared(store).bytes == 0


def test_what_may_be_allocated_in_advance_is_left_out(store: Store) -> None:
    """An active raw image without holes. Below a snapshot nobody writes to it any more."""
    shared(store)
    for name in ("full", "fuller"):
        store.present(name, size=4 * MIB, format="raw")
        write(store, name, 77, "0 4M")
    assert shared(store).bytes == 0
    store.snapshot("s1", "full")
    store.snapshot("s1", "fuller")
    assert shared(store).bytes > 7 * MIB


def test_without_the_ability_it_is_told(tmp_path: Path) -> None:
    """By what the first change has tried out; and by the kernel, where nothing was."""
    for directory in mounted(tmp_path / "image", "ext4", 64 * MIB, "-F"):
        (directory / "share").mkdir()
        store = Store(directory / "share")
        for name in ("a", "b"):
            store.present(name, size=4 * MIB, format="raw")
            write(store, name, 1)
        assert shared(store) == equal_blocks.Shared(0, "its file system shares no blocks")
        for path in (store.path / ".remotefs" / "ballast").glob("abilities*"):
            path.unlink()
        assert shared(store) == equal_blocks.Shared(0, "its file system shares no blocks (Operation not supported)")


def test_the_time_is_limited(store: Store) -> None:
    with pytest.raises(OutOfTime) as raised:
        shared(store, speed=MIB, timeout=0.3)
    assert raised.value.error_code == "tool_failed" and "within 0.3 s" in str(raised.value)


def test_what_was_shared_before_an_end_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that is over, or an error of the disk, in the middle: a result that says nothing was changed would be wrong."""
    before, done = contents(store), []

    def fails_later(run: blocks._Run) -> int:
        if len(done) == 2:
            raise OSError(5, "Input/output error")
        done.append(share_run(run))
        return done[-1]

    share_run = blocks._share
    monkeypatch.setattr(blocks, "_share", fails_later)
    told = equal_blocks.share_all([store.share], Options())
    assert told["shared"] == sum(done) > 0 and told["error_code"] and told["actions"] == [
        {"step": "share_blocks", "share": store.share.source, "bytes": sum(done)}
    ]
    assert "Input/output error" in told["equal_blocks"][0]["why"] and contents(store) == before


@pytest.mark.parametrize("seed", range(20))
def test_blocks_of_a_file_with_holes(tmp_path: Path, seed: int) -> None:
    """Each whole block with data comes once, in order; a block of holes alone never does."""
    chance, path, size = random.Random(seed), tmp_path / "file", 40 * 4096 + 100
    with path.open("wb") as stream:
        stream.truncate(size)
        for _number in range(chance.randrange(6)):
            stream.seek(chance.randrange(size - 5000))
            stream.write(b"x" * chance.randrange(1, 5000))
    data = path.read_bytes()
    with path.open("rb") as stream:
        found = list(blocks._blocks(stream.fileno(), 4 * 4096))
    assert found == sorted(set(found)) and all(offset % (4 * 4096) == 0 and offset + 4 * 4096 <= size for offset in found)
    missing = set(range(0, size - 4 * 4096 + 1, 4 * 4096)) - set(found)
    assert not any(data[offset : offset + 4 * 4096].strip(b"\0") for offset in missing)


def test_a_block_is_as_large_as_the_digests_have_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    with path.open("rb") as stream:
        assert blocks._block_size([stream.fileno()]) == blocks._BLOCK
        monkeypatch.setattr(blocks, "_MOST_BLOCKS", 3)
        assert blocks._block_size([stream.fileno()]) == 4 * blocks._BLOCK


def test_in_a_playbook(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    before = contents(store)
    tasks = yaml.safe_load("""
    - remotefs.storage.remotefs_housekeeping: {share: SHARE, equal_blocks: true}
      check_mode: true
      register: foretold
    - ansible.builtin.include_role: {name: remotefs.storage.housekeeping}
      vars: {housekeeping_shares: [SHARE], housekeeping_equal_blocks: true}
    - remotefs.storage.remotefs_housekeeping: {share: SHARE, equal_blocks: true, leftovers: false}
      register: again
    - ansible.builtin.assert:
        that:
          - foretold is changed and foretold.shared > 0 and foretold.actions[0].step == 'share_blocks'
          - housekeeping_result.equal_blocks == foretold.equal_blocks
          - again is not changed and again.shared == 0 and again.actions == []
    """)
    play(tasks, store.path, tmp_path, ansible_environment)
    assert contents(store) == before
