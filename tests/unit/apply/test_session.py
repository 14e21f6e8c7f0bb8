# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps of the offline engine: what is durable before it has a name, what a failure leaves, and which images are copied as they are."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.engine import CopySource, Terms
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import allocate, copying, qemu_img
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.guard import Guard
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.moving import Mover
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.session import OfflineSession
from ansible_collections.remotefs.storage.plugins.module_utils.errors import ChainBroken, InUse, LockTimeout, StorageError, UnsafeImage
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Share
from ansible_collections.remotefs.storage.plugins.module_utils.pace import Pace
from ansible_collections.remotefs.storage.plugins.module_utils.plan.steps import (
    Commit,
    CopyImage,
    CreateClone,
    CreateImage,
    CreateOverlay,
    Grow,
    Pull,
    ReplaceOverlay,
    Repoint,
    SetAttributes,
    Step,
    Truncate,
    Unlink,
    WriteInfo,
    WriteRecord,
)
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.waiting import Waiting
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import in_use
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import records

MIB = 1 << 20
KIB64 = 64 << 10


def run(*argv: object) -> str:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True, text=True).stdout


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class World:
    """A share with volume ``a``: ones in the raw base, twos in ``a.s``, which is the active image; and a volume of its own for each format.

    :ivar events: what was synced, named and changed, in order, with the hash of what the file had then.
    """

    def __init__(self, path: Path, **changes: object) -> None:
        self.path = path
        self.warnings: list[str] = []
        self.directory = ShareDirectory(Share(str(path), str(path), "directory")._replace(**changes))
        (path / "a").write_bytes(b"\1" * MIB)
        self.qcow2("a.s", "a", "raw", 2)
        (path / "r").write_bytes(b"\3" * KIB64 + bytes(MIB - KIB64))
        self.qcow2("q", None, None, 4)
        (path / "a.info").write_text('{"active": "a.s", "s": "a.s"}')
        self.guard = Guard(self.directory, False)
        self.events: list[tuple[str, str, str]] = []

    def qcow2(self, file: str, backing: str | None, backing_format: str | None, value: int, size: int = MIB) -> None:
        with open(self.path / file, "w+b") as stream:
            qcow2.write_image(stream.fileno(), size, backing, backing_format)
        run("qemu-io", "-f", "qcow2", "-c", f"write -q -P {value} 0 64k", self.path / file)

    def session(self, *source: Image, given_up: tuple[str, ...] = ()) -> OfflineSession:
        copied = CopySource(self.directory, source) if source else None
        return OfflineSession(self.directory, Terms(warn=self.warnings.append), "a", self.guard, copied, given_up)

    def files(self) -> dict[str, str]:
        """What is there by name, but for locks."""
        return {
            str(path.relative_to(self.path)): digest(path.read_bytes())
            for path in self.path.rglob("*")
            if path.is_file() and ".remotefs/locks" not in str(path)
        }

    def opened(self) -> list[str]:
        """The files of the share that this process has open."""
        names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        found = [os.readlink(name) for name in names if os.path.lexists(name)]
        return sorted(Path(name).name for name in found if name.startswith(f"{self.path}/") and not Path(name).is_dir())

    def shows(self, file: str, image_format: str) -> bytes:
        target = self.path.parent / "shown"
        run("qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", self.path / file, target)
        return target.read_bytes()

    def watch(self, patched: pytest.MonkeyPatch) -> None:
        """Note what is synced, published, replaced and changed from now on."""
        sync, publish, replace = Waiting.sync_file, ShareDirectory.publish, ShareDirectory.replace

        def noted(kind: str, name: str, path: Path) -> None:
            self.events.append((kind, name, digest(path.read_bytes())))

        def by_fd(kind: str, call: Callable) -> Callable:
            def wrapped(fd: int, *words: object) -> object:
                done = call(fd, *words)
                path = Path(os.readlink(f"/proc/self/fd/{fd}"))
                if path.is_file():
                    noted(kind, path.name, path)
                return done

            return wrapped

        def synced(waiting: Waiting, fd: int) -> None:
            by_fd("sync", lambda fd: sync(waiting, fd))(fd)

        def published(directory: ShareDirectory, temporary: str, name: str) -> None:
            noted("name", name, self.path / ".remotefs/tmp" / temporary)
            publish(directory, temporary, name)

        def replaced(directory: ShareDirectory, temporary: str, name: str, *words: object) -> None:
            noted("name", name, self.path / ".remotefs/tmp" / temporary)
            replace(directory, temporary, name, *words)  # type: ignore[arg-type]

        patched.setattr(Waiting, "sync_file", synced)
        patched.setattr(ShareDirectory, "publish", published)
        patched.setattr(ShareDirectory, "replace", replaced)
        for call in ("ftruncate", "fchmod", "fchown", "pwrite"):
            patched.setattr(os, call, by_fd("change", getattr(os, call)))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "share").mkdir()
    made = World(tmp_path / "share")
    with made.directory:
        yield made


RAW, QCOW2 = Image("r", "raw", MIB), Image("q", "qcow2", MIB)
LAYERED = (Image("a.s", "qcow2", MIB, 0, "a", "raw"), Image("a", "raw", MIB))
MAKING: dict[str, tuple[Step, tuple[Image, ...]]] = {
    "raw": (CreateImage("a.n", "raw", MIB), ()),
    "raw, reserved": (CreateImage("a.n", "raw", MIB, "falloc"), ()),
    "raw, written": (CreateImage("a.n", "raw", MIB, "full"), ()),
    "qcow2": (CreateImage("a.n", "qcow2", MIB), ()),
    "qcow2, with tables": (CreateImage("a.n", "qcow2", MIB, "metadata"), ()),
    "copy of raw": (CopyImage("a.n", "raw", MIB, "r"), (RAW,)),
    "copy of qcow2": (CopyImage("a.n", "qcow2", MIB, "q"), (QCOW2,)),
    "copy into the other format": (CopyImage("a.n", "qcow2", MIB, "r"), (RAW,)),
    "copy of a chain": (CopyImage("a.n", "raw", MIB, "a"), LAYERED),
    "clone": (CreateClone("a.n", "q", "qcow2", MIB), ()),
    "overlay": (CreateOverlay("a.n", "a.s", "qcow2", MIB), ()),
    "revert": (ReplaceOverlay("a.s", "a", "raw", MIB), ()),
    "growth over zeros": (Grow("a.s", "qcow2", 2 * MIB, True), ()),
}


@pytest.mark.parametrize("kind", MAKING)
def test_a_file_is_durable_before_it_gets_its_name(world: World, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    step, source = MAKING[kind]
    world.guard.take([step.file] if (world.path / step.file).exists() else [])
    with world.session(*source) as session:
        assert session.can(step)
        with monkeypatch.context() as patched:
            world.watch(patched)
            session.do(step)
    places = [number for number, (what, name, _hash) in enumerate(world.events) if (what, name) == ("name", step.file)]
    (what, _temporary, synced), (_what, _name, named) = world.events[places[0] - 1], world.events[places[0]]
    assert len(places) == 1 and what == "sync" and synced == named == digest((world.path / step.file).read_bytes())
    assert world.opened() == [] and not list((world.path / ".remotefs/tmp").iterdir())


@pytest.mark.parametrize("kind", ["revert", "growth over zeros"])
def test_a_file_that_is_replaced_is_not_open(world: World, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Some file systems refuse to replace one, and nobody is kept away by lock bytes on what has no name any more."""
    step, opened, real = MAKING[kind][0], [], ShareDirectory.replace
    world.guard.take([step.file])
    monkeypatch.setattr(ShareDirectory, "replace", lambda *words: (opened.append(world.opened()), real(*words))[1])
    world.session().do(step)
    assert opened == [[]] and step.file not in world.guard


def fail(*_args: object, **_named: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("where", ["filling", "sync", "name"])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("kind", MAKING)
def test_a_failure_leaves_nothing_behind(world: World, monkeypatch: pytest.MonkeyPatch, kind: str, where: str, prepared: bool) -> None:
    step, source = MAKING[kind]
    before = world.files()
    world.guard.take([step.file] if (world.path / step.file).exists() else [])
    failing = {"filling": [(OfflineSession, "_set_access"), (OfflineSession, "_fill_overlay"), (OfflineSession, "_give_access_of")],
               "sync": [(Waiting, "sync_file")], "name": [(ShareDirectory, "publish"), (ShareDirectory, "replace")]}
    with world.session(*source) as session, session.prepared([step] if prepared else []), monkeypatch.context() as patched:
        for kind_of, name in failing[where]:
            patched.setattr(kind_of, name, fail)
        with pytest.raises((OSError, StorageError)):
            session.do(step)
    assert world.files() == before and world.opened() == []


def test_what_is_prepared_is_known_before_it_has_a_name(world: World) -> None:
    steps = [WriteRecord("a"), CreateImage("a.n", "raw", MIB), CreateOverlay("a.o", "a.s", "qcow2", MIB), CopyImage("a.c", "raw", MIB, "r")]
    before = world.files()
    with world.session(RAW) as session:
        with session.prepared(steps) as made:
            assert set(made) == {"a.n", "a.c"} and len(world.opened()) == 2
            session.do(steps[1])
            assert made["a.n"][:2] == ((world.path / "a.n").stat().st_ino, MIB)
        assert set(world.files()) == {*before, "a.n"} and world.opened() == []
        with pytest.raises(ZeroDivisionError), session.prepared(steps):
            raise ZeroDivisionError
        assert set(world.files()) == {*before, "a.n"} and world.opened() == []
        session.do(steps[3])  # what was prepared for it is gone, so it makes its own
    assert world.files()["a.c"] == world.files()["r"]


def test_only_the_verbs_of_images_are_done(world: World) -> None:
    session = world.session()
    assert all(session.can(step) for step in (Commit("a.s", "a", "raw"), Pull("a.s", None, None), Repoint("a.s", "a", "raw"), Truncate("a", 1)))
    assert not any(session.can(step) for step in (WriteRecord("a"), WriteInfo("a.info", "a"), Unlink("a")))


# -- existing files ----------------------------------------------------------------------------------------------------


IN_PLACE: dict[str, Step] = {
    "a raw file grows": Grow("r", "raw", 2 * MIB),
    "a qcow2 file grows": Grow("q", "qcow2", 2 * MIB),
    "cut": Truncate("r", KIB64),
    "mode": SetAttributes("r", mode=0o640),
    "another backing name": Repoint("a.s", "r", "raw"),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_a_change_in_place_is_durable_at_its_end(world: World, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    step, synced = IN_PLACE[kind], []
    real = os.fsync
    with world.session() as session, monkeypatch.context() as patched:
        world.watch(patched)
        patched.setattr(os, "fsync", lambda fd: (world.events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{fd}")).name, "")), real(fd))[1])
        session.do(step)
    synced = [number for number, (what, name, _hash) in enumerate(world.events) if what == "fsync" and name == step.file]
    changed = [number for number, (what, name, _hash) in enumerate(world.events) if what == "change" and name == step.file]
    assert changed and synced and synced[-1] > changed[-1]
    if isinstance(step, (Grow, Truncate)) and step.file == "r":
        assert (world.path / "r").read_bytes() == (b"\3" * KIB64 + bytes(2 * MIB))[: step.size]
    if isinstance(step, SetAttributes):
        assert (world.path / "r").stat().st_mode & 0o777 == 0o640
    if isinstance(step, Grow) and step.format == "qcow2":
        assert world.shows("q", "qcow2") == b"\4" * KIB64 + bytes(2 * MIB - KIB64)


def test_who_lost_the_lock_changes_nothing(world: World) -> None:
    def lost(_name: str) -> None:
        raise LockTimeout("lock", "it was lost", "run it again")

    with ShareDirectory(world.directory.share, lost) as fenced:
        session = OfflineSession(fenced, Terms(), "a", Guard(fenced, False), CopySource(fenced, (RAW,)))
        before, mode = world.files(), (world.path / "r").stat().st_mode
        for step in (*IN_PLACE.values(), *(step for step, _source in MAKING.values()), Commit("a.s", "a", "raw"), Pull("a.s", None, None)):
            with pytest.raises(LockTimeout):
                session.do(step)
    assert world.files() == before and (world.path / "r").stat().st_mode == mode


@pytest.mark.parametrize("visible", [True, False])
def test_nobody_opens_a_file_that_is_removed(tmp_path: Path, visible: bool) -> None:
    """Where an open file cannot be removed, it is closed before."""
    (tmp_path / "share").mkdir()
    world = World(tmp_path / "share", locks_visible=visible)
    world.guard = Guard(world.directory, True)
    world.guard.take(["a", "a.s"])
    session = world.session()
    with session.closing("a.s"):
        assert world.opened() == (["a", "a.s"] if visible else ["a"])
    assert world.opened() == ["a"]
    with session:
        pass
    assert world.opened() == []


# -- qemu-img, where images are not plain -------------------------------------------------------------------------------


def others_may_write(world: World, file: str) -> bool:
    with open(world.path / file, "r+b") as stream:
        try:
            in_use.hold(stream.fileno(), file, "")
            return True
        except InUse:
            return False


@pytest.fixture
def with_a_bitmap(world: World) -> World:
    """Only qemu-img moves what such an image holds."""
    run("qemu-img", "bitmap", "--add", world.path / "a.s", "one")
    world.qcow2("a.t", "a.s", "qcow2", 5, 2 * MIB)
    (world.path / "a.info").write_text('{"active": "a.t", "s": "a.s", "t": "a.t"}')
    return world


PROGRAMS = [(Commit("a.t", "a.s", "qcow2"), "commit"), (Pull("a.t", "a", "raw"), "rebase"), (Grow("a.s", "qcow2", 2 * MIB), "resize")]


@pytest.mark.parametrize("step, program", PROGRAMS)
def test_lock_bytes_are_qemus_while_it_works(with_a_bitmap: World, monkeypatch: pytest.MonkeyPatch, step: Step, program: str) -> None:
    world = with_a_bitmap
    shown = world.shows("a.t", "qcow2")
    real, during = getattr(qemu_img, program), []
    world.guard.take(["a.s", "a.t"])
    world.guard.watch(["a"])

    def noted(*words: object) -> None:
        during.extend(others_may_write(world, file) for file in ("a.s", "a.t", "a"))
        real(*words)

    chain = ("a.s",) if program == "resize" else ("a.s", "a.t")
    with world.session() as session:
        with monkeypatch.context() as patched:
            patched.setattr(qemu_img, program, fail)
            with pytest.raises(OSError):
                session.do(step)
        assert [others_may_write(world, file) for file in ("a.s", "a.t", "a")] == ["a.s" in chain, "a.t" in chain, False]
        world.guard.take(["a.s", "a.t"])
        monkeypatch.setattr(qemu_img, program, noted)
        session.do(step)
        assert during == ["a.s" in chain, "a.t" in chain, False]  # who may read the base may do so all the time
        assert [others_may_write(world, file) for file in ("a.s", "a.t", "a")] == [False] * 3
    if program != "resize":
        assert world.shows("a.s" if program == "commit" else "a.t", "qcow2") == shown


def test_a_copy_that_grows_over_files_that_the_task_holds(world: World) -> None:
    """A merge holds the whole chain. qemu-img reads the files beneath the copy, and they are held again afterwards."""
    shown = world.shows("a.s", "qcow2")
    world.guard.take(["a", "a.s"])
    with world.session() as session:
        session.do(Grow("a.s", "qcow2", 2 * MIB, True))
        assert "a" in world.guard and not others_may_write(world, "a")
    assert world.shows("a.s", "qcow2") == shown.ljust(2 * MIB, b"\0")


def test_an_image_with_a_tail_that_cannot_be_removed_in_place_grows(world: World) -> None:
    """In a copy: the compressed data behind its end would come to light."""
    run("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", world.path / "q", world.path / "a.c")
    run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", world.path / "a.c", KIB64 // 2)
    record = records.Record({"a.c": "qcow2"}).to_bytes("a")
    world.directory.write_record("a", world.directory.make_private("volumes"), "a.json", record)
    with world.session() as session:
        session.do(Grow("a.c", "qcow2", MIB))
    assert world.shows("a.c", "qcow2") == (b"\4" * (KIB64 // 2)).ljust(MIB, b"\0")


@pytest.mark.parametrize("into, image_format", [("a", "raw"), ("q", "qcow2")])
def test_a_shorter_file_that_qemu_img_commits_into_shows_nothing_old_when_it_grows(
    world: World, monkeypatch: pytest.MonkeyPatch, into: str, image_format: str
) -> None:
    """Also not what a qcow2 file has behind its end."""
    if into == "q":
        run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", world.path / "q", KIB64 // 2)
    with open(world.path / "a.s", "w+b") as stream:
        qcow2.write_image(stream.fileno(), 2 * MIB, into, image_format)
    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 6 1280k 64k", world.path / "a.s")
    shown = world.shows("a.s", "qcow2")
    monkeypatch.setattr(OfflineSession, "_without_qemu_img", lambda _session, _move: False)
    with world.session() as session:
        session.do(Commit("a.s", into, image_format))
    assert world.shows(into, image_format) == shown


def test_what_lies_behind_the_end_of_a_file_that_does_not_grow_keeps_nothing_from_it(world: World) -> None:
    """Compressed data there cannot be removed in place, and need not."""
    run("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", world.path / "q", world.path / "c")
    run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", world.path / "c", KIB64 // 2)
    with open(world.path / "a.s", "w+b") as stream:
        qcow2.write_image(stream.fileno(), KIB64 // 2, "c", "qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 6 4k 4k", world.path / "a.s")
    shown = world.shows("a.s", "qcow2")
    with world.session() as session:
        session.do(Commit("a.s", "c", "qcow2"))
    assert world.shows("c", "qcow2") == shown


def test_a_pull_that_is_done_already(world: World) -> None:
    """A step that is done again gives the same result."""
    for step in (Pull("a.s", "a", "raw"), Pull("a.s", None, None), Pull("a.s", None, None)):
        shown = world.shows("a.s", "qcow2")
        with world.session() as session:
            session.do(step)
        assert world.shows("a.s", "qcow2") == shown and (world.path / "a").read_bytes() == b"\1" * MIB
    with open(world.path / "a.s", "rb") as stream:
        assert qcow2.read_header(stream.fileno()).backing_file is None


def cut(world: World, file: str, much: int) -> None:
    os.truncate(world.path / file, (world.path / file).stat().st_size - much)


@pytest.mark.parametrize("step", [Commit("a.t", "a.s", "qcow2"), Pull("a.t", "a", "raw")])
@pytest.mark.parametrize("plain", [True, False])
def test_a_file_that_was_cut_short_is_not_read_as_zeros(world: World, monkeypatch: pytest.MonkeyPatch, step: Step, plain: bool) -> None:
    world.qcow2("a.t", "a.s", "qcow2", 5)
    (world.path / "a.info").write_text('{"active": "a.t", "s": "a.s", "t": "a.t"}')
    file = "a.s" if isinstance(step, Pull) else "a.t"
    cut(world, file, KIB64 // 2)
    if not plain:
        monkeypatch.setattr(OfflineSession, "_without_qemu_img", lambda _session, _move: False)
    before = world.files()
    with world.session() as session, pytest.raises(UnsafeImage, match="restore the file from a backup; docs/worst-day.md"):
        session.do(step)
    assert world.files() == before


def test_a_damaged_image_is_told_with_its_name(world: World) -> None:
    with open(world.path / "a.s", "r+b") as stream:
        stream.seek(20)
        stream.write(struct.pack(">I", 99))
    before = world.files()
    for step in (Repoint("a.s", "r", "raw"), Grow("a.s", "qcow2", 2 * MIB)):
        with world.session() as session, pytest.raises(UnsafeImage, match="file a.s on .*nothing was changed; see docs/worst-day.md"):
            session.do(step)
    assert world.files() == before


# -- copies of sources -------------------------------------------------------------------------------------------------


def internal_snapshot(world: World) -> None:
    run("qemu-img", "snapshot", "-c", "one", world.path / "q")


def dirty(world: World) -> None:
    with open(world.path / "q", "r+b") as stream:
        stream.seek(72)
        stream.write(struct.pack(">Q", 1))


SOURCES: dict[str, tuple[Callable[[World], object], tuple[Image, ...], str, bool]] = {
    # what is done to the source, the source, the format of the clone, and whether it is copied as it is
    "raw": (lambda world: None, (RAW,), "raw", True),
    "qcow2": (lambda world: None, (QCOW2,), "qcow2", True),
    "raw into qcow2": (lambda world: None, (RAW,), "qcow2", False),
    "qcow2 into raw": (lambda world: None, (QCOW2,), "raw", False),
    "a chain": (lambda world: None, LAYERED, "qcow2", False),
    "an image with internal snapshots": (internal_snapshot, (QCOW2,), "qcow2", False),
    "an image whose counts are to be repaired": (dirty, (QCOW2,), "qcow2", False),
}


@pytest.mark.parametrize("size", [MIB, 4 * MIB])
@pytest.mark.parametrize("kind", SOURCES)
def test_copies_of_sources(world: World, monkeypatch: pytest.MonkeyPatch, kind: str, size: int) -> None:
    spoil, source, image_format, as_it_is = SOURCES[kind]
    expected = world.shows(source[0].file, source[0].format).ljust(size, b"\0")
    spoil(world)
    before, copied, real = world.files(), [], copying.copy_data

    def noted(original: int, target: int, pace: Pace) -> None:
        copied.append(os.readlink(f"/proc/self/fd/{original}"))
        real(original, target, pace)

    monkeypatch.setattr(copying, "copy_data", noted)
    with world.session(*source) as session:
        session.do(CopyImage("a.n", image_format, size, "x", mode=0o600))
    assert copied == ([str(world.path / source[0].file)] if as_it_is else [])
    assert world.shows("a.n", image_format) == expected
    assert {file: content for file, content in world.files().items() if file != "a.n"} == before
    if image_format == "qcow2":
        assert '"backing-filename"' not in run("qemu-img", "info", "--output=json", world.path / "a.n") and "one" not in run(
            "qemu-img", "snapshot", "-l", world.path / "a.n"
        )
    assert (world.path / "a.n").stat().st_mode & 0o777 == 0o600


def test_an_image_with_a_fixed_tail_is_not_copied_into_a_larger_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the copy has behind the end of its source would come to light."""
    run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", world.path / "q", KIB64 // 2)
    expected = world.shows("q", "qcow2")
    assert expected == b"\4" * (KIB64 // 2)
    monkeypatch.setattr("ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.growing.can_grow", lambda _fd, _size: False)
    with world.session(Image("q", "qcow2", KIB64 // 2)) as session:
        session.do(CopyImage("a.n", "qcow2", MIB, "q"))
        assert world.shows("a.n", "qcow2") == expected.ljust(MIB, b"\0")
        session.do(CopyImage("a.m", "qcow2", KIB64 // 2, "q"))  # of the same size it need not grow
    assert digest((world.path / "a.m").read_bytes()) == digest((world.path / "q").read_bytes())


def test_a_source_that_moves_by_qemu_img_starts_afresh(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the own engine wrote before it gave up is not in the copy: qemu-img is told that the copy is all zeros."""

    def give_up(_mover: Mover, _source: object, _images: object, target: int, _format: str) -> None:
        os.pwrite(target, b"\xee" * KIB64, 0)
        os.pwrite(target, b"\xee" * KIB64, 512 << 10)
        raise qcow2.Qcow2Error("it cannot be read")

    with open(world.path / "z", "w+b") as stream:
        qcow2.write_image(stream.fileno(), MIB, "r", "raw")
    os.truncate(world.path / "r", 0)
    os.truncate(world.path / "r", MIB)
    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 8 256k 64k", world.path / "z")
    monkeypatch.setattr(Mover, "copy", give_up)
    for image_format in ("raw", "qcow2"):
        with world.session(Image("z", "qcow2", MIB, 0, "r", "raw"), RAW) as session:
            session.do(CopyImage(f"a.{image_format}", image_format, MIB, "a"))
        assert world.shows(f"a.{image_format}", image_format) == bytes(256 << 10) + b"\x08" * KIB64 + bytes(MIB - (320 << 10))


@pytest.mark.parametrize("source, image_format", [((QCOW2,), "qcow2"), ((QCOW2,), "raw"), (LAYERED, "raw")])
def test_a_source_that_was_cut_short_is_not_copied(world: World, monkeypatch: pytest.MonkeyPatch, source: tuple, image_format: str) -> None:
    cut(world, source[0].file, KIB64 // 2)
    before = world.files()
    for patched in (False, True):
        if patched:  # before qemu-img reads it, it is asked as well
            monkeypatch.setattr(OfflineSession, "_without_qemu_img", lambda _session, _move: False)
        with world.session(*source) as session, pytest.raises(UnsafeImage, match="restore the file from a backup"):
            session.do(CopyImage("a.n", image_format, MIB, "x"))
        assert world.files() == before


def test_a_source_that_somebody_writes_is_not_copied(world: World) -> None:
    with open(world.path / "r", "r+b") as stream:
        for byte in (101, 201):
            fcntl.fcntl(stream.fileno(), 37, in_use._request(fcntl.F_RDLCK, byte))
        with world.session(RAW) as session, pytest.raises(InUse, match="image r on "):
            session.do(CopyImage("a.n", "raw", MIB, "r"))
    assert "a.n" not in world.files()


def test_who_lost_the_lock_of_a_source_copies_nothing_of_it(world: World) -> None:
    def lost(name: str) -> None:
        raise LockTimeout(f"lock of {name}", "it was lost", "run it again")

    with ShareDirectory(world.directory.share, lost) as fenced:
        session = OfflineSession(world.directory, Terms(), "a", world.guard, CopySource(fenced, (RAW,)))
        with pytest.raises(LockTimeout, match="lock of r"):
            session.do(CopyImage("a.n", "raw", MIB, "r"))
    assert "a.n" not in world.files()


def test_a_source_that_is_not_open(world: World) -> None:
    with world.session() as session, pytest.raises(ChainBroken, match="copy a.n: its source is not open; run the task again"):
        session.do(CopyImage("a.n", "raw", MIB, "r"))
    assert "a.n" not in world.files()


# -- what is reserved, and who may use it ------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("preallocation", ["off", "falloc", "full"])
def test_space_is_reserved_and_how_is_told(world: World, monkeypatch: pytest.MonkeyPatch, image_format: str, able: bool, preallocation: str) -> None:
    if not able:
        monkeypatch.setattr(allocate, "_fallocate", lambda *_words: False)
    with world.session() as session:
        session.do(CreateImage("a.n", image_format, 4 * MIB, preallocation))
    assert ((world.path / "a.n").stat().st_blocks * 512 >= 4 * MIB) is (preallocation != "off")
    assert world.shows("a.n", image_format) == bytes(4 * MIB)
    assert [("a.n was reserved by writing zeros" in text) for text in world.warnings] == ([True] if preallocation == "falloc" and not able else [])


@pytest.mark.parametrize("keeps", [True, False])
def test_who_may_use_new_files(tmp_path: Path, keeps: bool) -> None:
    (tmp_path / "share").mkdir()
    world = World(tmp_path / "share", keeps_modes=keeps)
    (world.path / "a.s").chmod(0o640)
    os.setxattr(world.path / "a.s", "user.label", b"x")
    with world.session() as session:
        session.do(CreateImage("a.n", "raw", MIB, mode=0o604))
        session.do(CreateOverlay("a.o", "a.s", "qcow2", MIB))
        session.do(CreateClone("a.c", "a.s", "qcow2", MIB, mode=0o604))
    modes = [(world.path / file).stat().st_mode & 0o777 for file in ("a.n", "a.o", "a.c")]
    assert modes == ([0o604, 0o640, 0o604] if keeps else [0o600] * 3)
    assert os.getxattr(world.path / "a.o", "user.label") == os.getxattr(world.path / "a.c", "user.label") == b"x"
