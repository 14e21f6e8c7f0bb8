# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leaked clusters are given back. Contents stay, and so does every image that somebody has open or that is not what it should be."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from unittest import mock

import pytest
from leaking import CLUSTER, leak, leaks_of

from ansible_collections.remotefs.storage.plugins.module_utils import model
from ansible_collections.remotefs.storage.plugins.module_utils.operations import leaked_clusters, updating
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.pace import OutOfTime
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks.lock import VolumeLock
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2 import clusters

from .test_clones import content, opened, write
from .test_documents import play
from .test_refusals import MIB, Store
from .test_replicas import names, replicate

IMAGES = ("vol", "vol.s1", "vol.s2")
OPEN = "a machine or another program has it open"


def told(store: Store, **options: object) -> dict[str, str]:
    """What became of each image: why it stays, "" where it does not. Check mode foretells it."""
    found = leaked_clusters.free(store.share, Options(lock_timeout=0.2, task=Task(), **options))  # type: ignore[arg-type]
    if found.failure is not None:
        raise found.failure
    return {image.file: image.why for image in found.images}


@pytest.fixture
def leaky(store: Store) -> Store:
    """Volume ``vol`` of qcow2 images: ones in the base, twos in ``vol.s1``, threes in the active image ``vol.s2``. Each has leaked clusters."""
    store.present(size=4 * MIB, format="qcow2")
    for value, name in ((1, "s1"), (2, "s2"), (3, None)):
        write(store, "vol", value, f"{value * 64}k 256k")
        if name:
            store.snapshot(name)
    for number, file in enumerate(IMAGES, 2):
        leak(store.path / file, number)
    return store


def points(store: Store) -> list[bytes]:
    """What each image of the chain shows."""
    shown, target = [], store.path.parent / "shown.raw"
    for image in store.info("vol")["chain"]:
        subprocess.run(["qemu-img", "convert", "-f", image["format"], "-O", "raw", store.path / image["file"], target], check=True)
        shown.append(target.read_bytes())
    return shown


def taken(store: Store) -> int:
    return sum((store.path / file).stat().st_blocks * 512 for file in IMAGES)


def test_leaked_clusters_are_given_back_and_contents_stay(leaky: Store) -> None:
    before, state, room, record = points(leaky), leaky.state(), taken(leaky), leaky.info("vol")
    expected = dict.fromkeys(IMAGES, "")
    assert told(leaky, check=True) == expected and leaky.state() == state, "check mode foretells it, and touches nothing"
    assert told(leaky) == expected
    assert [leaks_of(leaky.path / file) for file in IMAGES] == [0, 0, 0] and points(leaky) == before
    assert room - taken(leaky) == (2 + 3 + 4) * CLUSTER, "the room is free again"
    assert told(leaky) == {} and told(leaky, check=True) == {}, "the second time there is nothing to do"
    after = leaky.info("vol")
    assert (after["snapshots"], after["pending"]) == (record["snapshots"], None)
    leaky.snapshot("s3")
    leaky.delete("s1")
    assert points(leaky)[1:3] == before[:2], "the chain goes on as if nothing had been"


def test_who_has_an_image_open_keeps_it_as_it_is(leaky: Store) -> None:
    state = leaky.state()
    with opened(leaky, "vol"):
        assert told(leaky) == told(leaky, check=True) == {"vol.s2": OPEN}
        assert [image.bytes for image in leaked_clusters.free(leaky.share, leaky.options()).images] == [0], "what a machine writes cannot be counted"
    assert leaky.state() == state


def test_a_machine_on_a_clone_keeps_what_it_rests_on(leaky: Store) -> None:
    leaky.present("clone", updating.SourceRequest("vol", "s2", linked=True))
    with opened(leaky, "clone"):
        found = told(leaky)
    assert found == {"vol": OPEN, "vol.s1": OPEN, "vol.s2": ""}, "the clone does not rest on the active image"
    assert told(leaky) == {"vol": "", "vol.s1": ""}


def test_a_task_at_work_is_not_waited_for(leaky: Store) -> None:
    with ShareDirectory(leaky.share) as directory, VolumeLock(directory, "vol", 1):
        assert told(leaky) == {"vol": "a task works at it"}
    assert leaks_of(leaky.path / "vol") == 2


def test_interrupted_work_is_left_to_the_task_that_ends_it(leaky: Store) -> None:
    with mock.patch.object(qcow2, "repoint", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        leaky.delete("s1")
    pending = leaky.info("vol")["pending"]
    assert pending is not None and list(told(leaky).values()) == [leaked_clusters._PENDING] and leaky.info("vol")["pending"] == pending


def test_damaged_images_and_those_with_more_in_them_stay(leaky: Store) -> None:
    """A cluster that is used and not counted; counts that are out of date; a bitmap; extensions of somebody else's."""
    subprocess.run(["qemu-img", "bitmap", "--add", leaky.path / "vol.s2", "b0"], check=True)
    with (leaky.path / "vol").open("r+b") as stream:
        stream.seek(72)
        stream.write((1).to_bytes(8, "big"))  # the bit that says so
    with (leaky.path / "vol.s1").open("r+b") as stream:
        stream.seek(2 * CLUSTER)
        stream.write(b"\0\0")  # the header has no owner any more
    before = {file: (leaky.path / file).read_bytes() for file in IMAGES}
    found = told(leaky)
    assert "bitmaps" in found["vol.s2"] and "out of date" in found["vol"] and "counted less often" in found["vol.s1"]
    assert {file: (leaky.path / file).read_bytes() for file in IMAGES} == before and told(leaky, check=True) == found


def test_what_is_not_known_is_not_called_a_leak(tmp_path: Path) -> None:
    image = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    with image.open("r+b") as stream:
        stream.seek(int.from_bytes(stream.read(104)[100:], "big"))  # the length of the header
        stream.write((0x12345678).to_bytes(4, "big") + (8).to_bytes(4, "big") + bytes(16))
    with image.open("rb") as stream, pytest.raises(clusters.Unsuited, match="extensions"):
        qcow2.find_leaks(stream.fileno())


@pytest.mark.parametrize("words", ["", "-o cluster_size=4k", "-o extended_l2=on", "-o refcount_bits=1", "-o refcount_bits=64", "-o compat=0.10", "-c"])
def test_it_counts_as_qemu_counts(tmp_path: Path, words: str) -> None:
    """Images of each kind, whose tables lose entries one by one."""
    source, image = tmp_path / "source", tmp_path / "image"
    source.write_bytes(os.urandom(MIB) + bytes(MIB) + b"packed" * (MIB // 6))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *words.split(), source, image], check=True)
    data = bytearray(image.read_bytes())
    table = int.from_bytes(data[int.from_bytes(data[40:48], "big") :][:8], "big") & 0x00FFFFFFFFFFFE00
    for entry in (0, 16, 48, 160):
        data[table + entry : table + entry + 16] = bytes(16)  # two entries, or one with its bitmap
        image.write_bytes(data)
        with image.open("rb") as stream:
            assert qcow2.find_leaks(stream.fileno()).clusters == leaks_of(image)
    assert leaks_of(image) > 0


@pytest.fixture
def backup(tmp_path: Path) -> Store:
    (tmp_path / "backup").mkdir()
    return Store(tmp_path / "backup")


def test_a_point_keeps_its_identity(store: Store, backup: Store) -> None:
    """Leaks of files below snapshots are given back, and the replica goes on from those snapshots."""
    store.present(size=16 * MIB, format="qcow2")
    for number in range(2):
        write(store, "vol", number + 1, f"{number * 4}M 4M")
        leak(Path(store.info()["path"]))
        store.snapshot(f"s{number}")
    replicate(store, backup)
    assert told(store) == {"vol": "", "vol.s0": ""}
    write(store, "vol", 9, "0 64k")
    store.snapshot("s2")
    sent = replicate(store, backup).told["sent"]  # type: ignore[index]
    assert sent <= 2 * CLUSTER and content(backup, "vol") == content(store, "vol"), "nothing but the change was sent"
    assert names(backup) == ["s0", "s1", "s2"]


def test_what_somebody_else_wrote_is_not_taken_for_a_point(store: Store, backup: Store) -> None:
    store.present(size=4 * MIB, format="qcow2")
    store.snapshot("s1")
    replicate(store, backup)
    leak(store.path / "vol")  # after its snapshot was recorded
    assert told(store) == {"vol": leaked_clusters._IDENTITY} == told(store, check=True)
    assert leaks_of(store.path / "vol") == 3


def test_a_share_that_shows_no_locks(leaky: Store) -> None:
    blind = Store(leaky.path, locks_visible=False)
    assert told(blind) == {"vol.s2": leaked_clusters._USE_UNKNOWN}
    assert leaks_of(leaky.path / "vol.s2") == 4


def test_the_time_is_kept(leaky: Store) -> None:
    with pytest.raises(OutOfTime):
        told(leaky, timeout=0.0)
    assert told(leaky, timeout=60.0) == dict.fromkeys(IMAGES, "")


def test_one_share_that_fails_stops_no_other(leaky: Store, tmp_path: Path) -> None:
    gone = model.Share("gone", str(tmp_path / "gone"), "directory")
    found = leaked_clusters.free_all([gone, leaky.share], Options(task=Task()))
    assert found["error_code"] and found["given_back"] == (2 + 3 + 4) * CLUSTER and len(found["actions"]) == 3


def test_the_module_and_the_role_tell_it(leaky: Store, tmp_path: Path, ansible_environment: dict) -> None:
    wanted = {"housekeeping_shares": [str(leaky.path)], "housekeeping_leaked_clusters": True}
    tasks: list[dict] = [
        {"ansible.builtin.include_role": {"name": "remotefs.storage.housekeeping"}, "vars": wanted},
        {"ansible.builtin.assert": {"that": ["housekeeping_result.given_back == 589824", "housekeeping_result.leaked_clusters | length == 3"]}},
        {"remotefs.storage.remotefs_housekeeping": {"share": str(leaky.path), "leaked_clusters": True}, "register": "again"},
        {"ansible.builtin.assert": {"that": ["again is not changed", "again.given_back == 0", "again.leaked_clusters == []"]}},
    ]
    assert "failed=0" in play([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], tmp_path, ansible_environment)
